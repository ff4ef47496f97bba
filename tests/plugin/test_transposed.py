"""ConvTranspose, which the CPU provider has in floats only: the same codes, bit for bit.

Scales that are powers of two put many sums on rounding ties, where another order of the sums shows.
"""

import numpy as np
import pytest
from test_float import Signed
from test_layers import Layer, compare

SEEDS = range(16)


def window(random, rank: int, kind: str) -> dict:
    def lengths(low: int, high: int) -> list[int]:
        return [int(n) for n in random.integers(low, high, rank)]

    if kind == "apart":
        kernel = lengths(1, 5)
        strides = [k + int(random.integers(0, 3)) for k in kernel]
        return {"kernel_shape": kernel, "strides": strides}
    made = {"kernel_shape": lengths(1, 6), "strides": lengths(1, 4)}
    if random.random() < 0.4:
        made["dilations"] = lengths(1, 3)
    if random.random() < 0.5:
        made["output_padding"] = [int(random.integers(0, s)) for s in made["strides"]]
    return made


def cut(random, made: dict, size: list[int]) -> dict:
    """What is left of the whole result: all, less pads, as much as the stride says, or a shape."""
    kernel, strides = made["kernel_shape"], made["strides"]
    dilations, more = made.get("dilations", [1] * len(size)), made.get("output_padding", [0] * len(size))
    full = [(n - 1) * s + (k - 1) * d + 1 + m for n, s, k, d, m in zip(size, strides, kernel, dilations, more, strict=True)]
    match int(random.integers(5)):
        case 0:
            pads = [int(random.integers(0, (n + 1) // 2)) for n in full * 2]
            return {"pads": pads}
        case 1:
            return {"auto_pad": str(random.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
        case 2:
            return {"output_shape": [int(random.integers(1, n + 1)) for n in full]}
        case _:
            return {}


def unit(seed: int, kind: str, rank: int, make=Layer):
    random = np.random.default_rng([seed, rank, len(kind), 30])
    groups = int(random.integers(2, 5)) if random.random() < 0.3 else 1
    inputs, filters = groups * int(random.choice([1, 3, 8, 24, int(random.integers(1, 128))])), int(random.integers(1, 12))
    # Enough pixels for any number of threads to sum in blocks of all channels, or a single one.
    size = [1] * rank if random.random() < 0.15 and kind == "apart" else [int(n) for n in random.integers(12, 20, rank)]
    layer = make(random, [int(random.integers(1, 3)), inputs, *size])
    made = window(random, rank, kind)
    made |= cut(random, made, size)
    codes = (layer.scale(0.02), int(random.integers(1, 256)))
    taps = np.prod([-(-k // s) for k, s in zip(made["kernel_shape"], made["strides"], strict=True)])
    result = (layer.scale(0.02 * np.sqrt(inputs / groups * taps)), int(random.integers(60, 200)))
    scales = layer.weight_scales(filters)
    weight = layer.weights([inputs, filters, *made["kernel_shape"]], 1, scales)
    bias = layer.weight_scales(filters * groups)
    inputs = [layer.dequantise(layer.quantise("x", codes), codes), weight]
    if random.random() < 0.7:
        inputs.append(layer.bias(filters * groups, codes[0], np.broadcast_to(bias, filters * groups), 3000))
    y = layer.node("ConvTranspose", inputs, group=groups, **made)
    return layer, codes, y, result


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["apart", "overlapping"])
@pytest.mark.parametrize("seed", SEEDS)
def test_to_uint8(seed, kind, rank):
    layer, codes, y, result = unit(seed, kind, rank)
    if seed % 4 == 0:
        y = layer.node("Relu", [y])
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("kind", ["apart", "overlapping"])
@pytest.mark.parametrize("seed", SEEDS)
def test_to_int8(seed, kind, rank):
    layer, codes, y, result = unit(seed + 100, kind, rank, Signed)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("size", [[1, 1], [1, 2], [2, 2], [5, 3], [9, 9], [40]], ids=str)
@pytest.mark.parametrize("filters", [1, 3, 24])
@pytest.mark.parametrize("channels", [127, 128, 129, 300, 700])
def test_many_channels_are_summed_in_blocks(channels, filters, size):
    """Of 128, however few pixels there are: the library cannot make them longer where its first matrix lies transposed."""
    layer = Layer(np.random.default_rng([channels, filters, 31]), [2, channels, *size])
    codes, scale = (np.float32(0.0173), 128), np.float32(0.0091)
    result = (np.float32(codes[0] * scale * 2 ** np.ceil(np.log2(40 * np.sqrt(channels)))), 128)
    weight = layer.weights([channels, filters, *[2] * len(size)], 1, scale)
    x = layer.dequantise(layer.quantise("x", codes), codes)
    y = layer.node("ConvTranspose", [x, weight], kernel_shape=[2] * len(size), strides=[2] * len(size))
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)

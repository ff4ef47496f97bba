"""Layers over rows, tensors of three dimensions, against the CPU provider."""

import numpy as np
import pytest
from test_layers import SEEDS, Layer, compare


def rows(seed: int, salt: int, most_channels: int = 40):
    random = np.random.default_rng([seed, salt, 2])
    channels = int(random.integers(1, most_channels))
    layer = Layer(random, [int(random.integers(1, 4)), channels, int(random.integers(9, 60))])
    codes = layer.codes(0.02)
    return random, layer, codes, layer.quantise("x", codes)


def padding(random, reach: int) -> dict:
    """By numbers or by name; a window that is dilated is padded by numbers."""
    kind = str(random.choice(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if kind == "NOTSET":
        return {"pads": [int(pad) for pad in random.integers(0, reach, 2)]}
    return {"auto_pad": kind}


@pytest.mark.parametrize("depthwise", [False, True], ids=["grouped", "depthwise"])
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions_of_rows(seed, depthwise):
    random, layer, codes, x = rows(seed, 30 + depthwise)
    channels = layer.shape[1]
    groups = channels if depthwise else int(random.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs = channels if depthwise else groups * int(random.integers(1, 40 // groups + 2))
    kernel, stride = int(random.integers(1, 6)), int(random.integers(1, 4))
    dilation = int(random.integers(1, 3))
    pads = padding(random, (kernel - 1) * dilation + 1)
    dilation = dilation if "pads" in pads else 1
    scales, result = layer.weight_scales(outputs), layer.codes(0.5)
    inputs = [layer.dequantise(x, codes), layer.weights([outputs, channels // groups, kernel], 0, scales)]
    if random.random() < 0.8:
        inputs.append(layer.bias(outputs, codes[0], scales, 20_000))
    given = {"kernel_shape": [kernel]} if random.random() < 0.5 else {}
    y = layer.node("Conv", inputs, strides=[stride], dilations=[dilation], group=groups, **pads, **given)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool, pads count", "GlobalAveragePool"])
@pytest.mark.parametrize("seed", SEEDS)
def test_pools_of_rows(seed, kind):
    random, layer, codes, x = rows(seed, 32)
    attributes = {}
    if not kind.startswith("Global"):
        kernel = int(random.integers(1, 6))
        attributes = padding(random, kernel) | {"kernel_shape": [kernel], "strides": [int(random.integers(1, kernel + 1))]}
    if kind.endswith("count"):
        attributes["count_include_pad"] = 1
    elif kind == "MaxPool" and "pads" in attributes:
        attributes |= {"ceil_mode": 1, "dilations": [int(random.integers(1, 3))]}
    result = codes if kind == "MaxPool" else layer.codes(0.02)
    y = layer.node(kind.split(",")[0], [layer.dequantise(x, codes)], **attributes)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


def test_a_network_of_rows():
    """A short classifier of waves: what one layer writes the next one reads where it lies."""
    layer = Layer(np.random.default_rng(33), [2, 3, 128])
    codes = layer.codes(0.02)
    x, at, channels = layer.quantise("x", codes), codes, 3
    for outputs, kernel, stride in [(16, 9, 2), (20, 5, 1), (33, 3, 2)]:
        scales, result = layer.weight_scales(outputs), layer.codes(0.5)
        inputs = [layer.dequantise(x, at), layer.weights([outputs, channels, kernel], 0, scales)]
        inputs.append(layer.bias(outputs, at[0], scales, 20_000))
        y = layer.node("Conv", inputs, strides=[stride], pads=[kernel // 2, kernel // 2])
        x, at, channels = layer.quantise(y, result), result, outputs
    x = layer.quantise(layer.node("MaxPool", [layer.dequantise(x, at)], kernel_shape=[2], strides=[2]), at)
    result = layer.codes(0.3)
    x = layer.quantise(layer.node("GlobalAveragePool", [layer.dequantise(x, at)]), result)
    flat = layer.quantise(layer.node("Flatten", [layer.dequantise(x, result)], axis=1), result)
    scales, last = layer.weight_scales(10), layer.codes(1.0)
    y = layer.node("Gemm", [layer.dequantise(flat, result), layer.weights([channels, 10], 1, scales)])
    compare(layer, layer.dequantise(layer.quantise(y, last), last), codes)

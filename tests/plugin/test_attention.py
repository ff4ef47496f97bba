"""Matrix products of any rank, of two tensors, and Softmax, against the CPU provider: alone, and as attention has them."""

import numpy as np
import pytest
import sessions
from test_layers import SEEDS, Layer, compare, start


def product(layer: Layer, x: str, codes, inputs: int, outputs: int, about: float = 1.0):
    scales, result = layer.weight_scales(outputs), layer.codes(about)
    y = layer.node("MatMul", [layer.dequantise(x, codes), layer.weights([inputs, outputs], 1, scales)])
    return layer.quantise(y, result), result


def moved(layer: Layer, kind: str, x: str, codes, *constants: str, **attributes) -> str:
    return layer.quantise(layer.node(kind, [layer.dequantise(x, codes), *constants], **attributes), codes)


def reshaped(layer: Layer, x: str, codes, shape: list[int]) -> str:
    return moved(layer, "Reshape", x, codes, layer.constant(shape, np.int64))


@pytest.mark.parametrize("seed", SEEDS)
def test_products_with_a_matrix_of_tensors_of_any_rank(seed):
    random = np.random.default_rng([seed, 80])
    rank, inputs = int(random.integers(3, 5)), int(random.choice([16, 48, int(random.integers(1, 100))]))
    shape = [*(int(n) for n in random.integers(1, 7, rank - 1)), inputs]
    random, layer, codes, x = start(seed, shape, 80)
    y, result = product(layer, x, codes, inputs, int(random.integers(1, 90)))
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_of_a_transposed_image(seed):
    """As recognition of text has them: pixels of a row of features become rows."""
    random = np.random.default_rng([seed, 81])
    n, c, w = (int(v) for v in random.integers(1, 30, 3))
    random, layer, codes, x = start(seed, [1 + n % 3, c, 1, w], 81)
    x = reshaped(layer, x, codes, [0, c, w])
    x = moved(layer, "Transpose", x, codes, perm=[0, 2, 1])
    y, result = product(layer, x, codes, c, int(random.integers(1, 60)))
    out = layer.codes(1.0)
    z = layer.node("Add", [layer.dequantise(y, result), layer.dequantise(y, result)])
    compare(layer, layer.dequantise(layer.quantise(z, out), out), codes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_products_of_two_tensors(seed, transposed):
    random = np.random.default_rng([seed, 82])
    m, k = (int(v) for v in random.integers(1, 70, 2))
    around = [int(v) for v in random.integers(1, 5, int(random.integers(0, 3)))]
    random, layer, codes, x = start(seed, [*around, m, k], 82)
    if transposed:
        b = moved(layer, "Transpose", x, codes, perm=[*range(len(around)), len(around) + 1, len(around)])
        right = codes
    else:
        # [k, n] from a product of the transposed with weights.
        b = moved(layer, "Transpose", x, codes, perm=[*range(len(around)), len(around) + 1, len(around)])
        b, right = product(layer, b, codes, m, int(random.integers(1, 80)))
    result = layer.codes(0.01 * np.sqrt(k))
    y = layer.node("MatMul", [layer.dequantise(x, codes), layer.dequantise(b, right)])
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_softmax(seed):
    random = np.random.default_rng([seed, 83])
    shape = [int(v) for v in random.integers(1, 9, int(random.integers(0, 3)))] + [int(random.choice([2, 3, 17, 64, 500]))]
    random, layer, codes, x = start(seed, [int(random.integers(1, 40)), *shape], 83)
    scale = random.choice([np.float32(1 / 255), np.float32(1 / 256), np.float32(random.uniform(0.002, 0.05)), np.float32(2)])
    result = (np.float32(scale), int(random.choice([0, 0, 3, 128])))
    axis = len(shape) if random.random() < 0.5 else -1
    y = layer.node("Softmax", [layer.dequantise(x, codes)], axis=axis)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_attention(seed):
    """Heads beside each other, K transposed, a mask for all heads, and the residual: all of it in one part."""
    random = np.random.default_rng([seed, 84])
    batch, length, heads, depth = int(random.integers(1, 3)), int(random.integers(2, 40)), int(random.integers(1, 5)), int(random.choice([8, 16, 20, 32]))
    width = heads * depth
    random, layer, codes, x = start(seed, [batch, length, width], 84)

    def head(order: list[int]):
        y, of = product(layer, x, codes, width, width)
        bias, summed = layer.codes(0.02), layer.codes(1.0)
        vector = layer.dequantise(layer.constant(random.integers(0, 256, width), np.uint8), bias)
        y = layer.quantise(layer.node("Add", [layer.dequantise(y, of), vector]), summed)
        y = reshaped(layer, y, summed, [0, length, heads, depth])
        return moved(layer, "Transpose", y, summed, perm=order), summed

    (q, of_q), (k, of_k), (v, of_v) = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    scores, scaled = layer.codes(np.sqrt(depth)), layer.codes(0.3)
    s = layer.quantise(layer.node("MatMul", [layer.dequantise(q, of_q), layer.dequantise(k, of_k)]), scores)
    s = layer.quantise(layer.node("Div", [layer.dequantise(s, scores), layer.constant(np.float32(3.7), np.float32)]), scaled)
    shares = (np.float32(1 / 256), 0)
    s = layer.quantise(layer.node("Softmax", [layer.dequantise(s, scaled)], axis=-1), shares)
    mixed = layer.codes(0.2)
    y = layer.quantise(layer.node("MatMul", [layer.dequantise(s, shares), layer.dequantise(v, of_v)]), mixed)
    y = reshaped(layer, moved(layer, "Transpose", y, mixed, perm=[0, 2, 1, 3]), mixed, [0, length, width])
    y, dense = product(layer, y, mixed, width, width)
    result = layer.codes(1.0)
    y = layer.quantise(layer.node("Add", [layer.dequantise(y, dense), layer.dequantise(x, codes)]), result)
    compare(layer, layer.dequantise(y, result), codes)


def refused(layer: Layer, output: str, codes, kind: str) -> None:
    model = layer.model(output).SerializeToString()
    npu = sessions.by_name(model)
    assert kind in sessions.operators_on(npu, sessions.CPU)
    sessions.assert_same(npu, sessions.cpu(model), layer.input(codes), kind)


@pytest.mark.parametrize("opset", [11, 14])
@pytest.mark.parametrize("ones", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_a_softmax_of_channels(seed, ones, opset):
    """Of images of one pixel; in old operator sets all dimensions from the given one on are summed as one."""
    channels = int(np.random.default_rng([seed, 87]).integers(2, 60))
    _, layer, codes, x = start(seed, [3, channels] + [1] * ones, 87)
    result = (np.float32(1 / 256), 0)
    y = layer.quantise(layer.node("Softmax", [layer.dequantise(x, codes)], axis=1), result)
    layer.opset = opset
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("shape", [[2, 5, 7], [2, 5, 1, 3]])
def test_a_softmax_that_sums_dimensions_as_one_stays_on_the_cpu(shape):
    _, layer, codes, x = start(3, shape, 88)
    result = (np.float32(1 / 256), 0)
    y = layer.quantise(layer.node("Softmax", [layer.dequantise(x, codes)], axis=1), result)
    layer.opset = 11
    refused(layer, layer.dequantise(y, result), codes, "Softmax")


def test_a_softmax_that_is_not_over_the_last_dimension_stays_on_the_cpu():
    _, layer, codes, x = start(3, [2, 5, 7], 85)
    result = (np.float32(1 / 256), 0)
    y = layer.quantise(layer.node("Softmax", [layer.dequantise(x, codes)], axis=1), result)
    refused(layer, layer.dequantise(y, result), codes, "Softmax")


def test_matrices_repeated_over_many_dimensions_stay_on_the_cpu():
    _, layer, codes, x = start(4, [2, 1, 3, 4, 4], 86)
    b = layer.node("Slice", [layer.dequantise(x, codes), *(layer.constant([v], np.int64) for v in (0, 1, 2))])
    b = layer.quantise(b, codes)
    result = layer.codes(0.05)
    y = layer.quantise(layer.node("MatMul", [layer.dequantise(x, codes), layer.dequantise(b, codes)]), result)
    refused(layer, layer.dequantise(y, result), codes, "MatMul")

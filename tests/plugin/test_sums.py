"""Sums, means and normalisations over dimensions, in float on the CPU provider: its order of additions, shape by shape."""

import numpy as np
import pytest
import sessions
from test_layers import Layer, compare, start

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")

SEEDS = range(40)
LENGTHS = [1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 31, 40]


def dimensions(random: np.random.Generator, least: int, most: int) -> list[int]:
    while True:
        shape = [int(random.choice(LENGTHS)) for _ in range(int(random.integers(least, most + 1)))]
        if np.prod(shape) <= 60_000:
            return shape


def blocks(shape: list[int], axes: list[int]) -> list[tuple[bool, int]]:
    """Dimensions that are reduced and those that are not, as far as they lie side by side."""
    found: list[tuple[bool, int]] = []
    for axis, length in enumerate(shape):
        if found and found[-1][0] == (axis in axes):
            found[-1] = (axis in axes, found[-1][1] * length)
        else:
            found.append((axis in axes, length))
    return found


def floats(layer: Layer, count: int, about: float) -> str:
    return layer.constant(layer.random.normal(about, 0.5, count), np.float32)


def quantised(layer: Layer, count: int) -> str:
    """Codes of 8 or of 32 bits, as quantisers make them of gains and biases."""
    if layer.random.random() < 0.5:
        inputs = [layer.constant(layer.random.integers(-30_000, 30_000, count), np.int32), layer.constant(3e-5, np.float32)]
        return layer.node("DequantizeLinear", inputs)
    return layer.dequantise(layer.constant(layer.random.integers(0, 256, count), np.uint8), layer.codes(0.01))


def reduced(layer: Layer, kind: str, x: str, axes: list[int], **attributes) -> str:
    if layer.opset >= 18 or kind == "ReduceSum":
        return layer.node(kind, [x, layer.constant(axes, np.int64)], **attributes)
    return layer.node(kind, [x], axes=axes, **attributes)


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("seed", SEEDS)
def test_sums(seed, kind):
    random = np.random.default_rng([seed, 120])
    shape = dimensions(random, 1, 5)
    axes = sorted({int(a) for a in random.integers(0, len(shape), int(random.integers(1, len(shape) + 1)))})
    random, layer, codes, x = start(seed, shape, 121)
    layer.opset = int(random.choice([13, 18]))
    count = np.prod([shape[a] for a in axes])
    # Means lie near each other: a finer scale, so that ties are many.
    result = layer.codes(float(codes[0] * (1 / np.sqrt(count) if kind == "ReduceMean" else np.sqrt(count))))
    given = [a - len(shape) if random.random() < 0.3 else a for a in axes]
    y = reduced(layer, kind, layer.dequantise(x, codes), given, keepdims=int(random.integers(0, 2)))
    output = layer.dequantise(layer.quantise(y, result), result)
    apart = blocks(shape, axes)
    if [one for one, _ in apart] == [True, False, True] and apart[0][1] > 1 and apart[1][1] > 1:
        model = layer.model(output).SerializeToString()
        sessions.assert_same(sessions.by_name(model), sessions.cpu(model), layer.input(codes), str((shape, axes)))
    else:
        compare(layer, output, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_layer_normalisation(seed):
    random = np.random.default_rng([seed, 122])
    shape = dimensions(random, 1, 3)
    width = [int(random.choice([8, 9, 12, 15, 64, 120, 129, 255, 384]))]
    shape = [*shape, *width] if random.random() < 0.8 else [*shape, 4, *width]
    axis = -1 if random.random() < 0.7 else int(random.integers(0, len(shape)))
    random, layer, codes, x = start(seed, shape, 123)
    layer.opset = 17
    is_last = axis in (-1, len(shape) - 1)

    def term(about: float) -> str:
        if is_last and random.random() < 0.5:
            return quantised(layer, shape[-1])
        return layer.constant(layer.random.normal(about, 0.5, shape[axis:]), np.float32)

    terms = [term(about) for about in (1, 0)[: int(random.integers(1, 3))]]
    y = layer.node("LayerNormalization", [layer.dequantise(x, codes), *terms], axis=axis)
    result = layer.codes(0.03)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_instance_normalisation(seed):
    random = np.random.default_rng([seed, 124])
    random, layer, codes, x = start(seed, dimensions(random, 3, 5), 125)
    terms = [quantised(layer, layer.shape[1]) if random.random() < 0.3 else floats(layer, layer.shape[1], about) for about in (1, 0)]
    y = layer.node("InstanceNormalization", [layer.dequantise(x, codes), *terms], epsilon=float(random.choice([1e-5, 1e-2])))
    result = layer.codes(0.03)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


def single_operators(layer: Layer, x: str, codes, transposed: bool, shared: bool) -> tuple[str, tuple]:
    """A layer normalisation as exporters and quantisers have it: only the variance and what follows is quantised."""
    first = layer.dequantise(x, codes)
    again = first if shared else layer.dequantise(x, codes)
    centred = layer.node("Sub", [again, reduced(layer, "ReduceMean", first, [1 if transposed else -1], keepdims=1)])
    if transposed:
        centred = layer.node("Transpose", [centred], perm=[0, 2, 1])
    squares = layer.node("Pow", [centred, layer.constant(2.0, np.float32)])
    spread = float(codes[0]) * 70
    variance, summed = layer.codes(spread**2 / 200, 0), layer.codes(spread**2 / 200, 0)
    y = layer.quantise(reduced(layer, "ReduceMean", squares, [-1], keepdims=1), variance)
    y = layer.node("Add", [layer.dequantise(y, variance), layer.dequantise(layer.constant(1, np.uint8), (np.float32(1e-5), 0))])
    y = layer.node("Sqrt", [layer.dequantise(layer.quantise(y, summed), summed)])
    result = layer.codes(0.03)
    return layer.quantise(layer.node("Div", [centred, y]), result), result


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("seed", SEEDS[:20])
def test_a_layer_normalisation_of_single_operators(seed, transposed, shared):
    random = np.random.default_rng([seed, 126])
    random, layer, codes, x = start(seed, [int(random.integers(1, 4)), *(int(n) for n in random.choice([3, 8, 40, 120, 65], 2))], 127)
    layer.opset = int(random.choice([13, 18]))
    y, result = single_operators(layer, x, codes, transposed, shared)
    scaled = layer.codes(0.03)
    y = layer.node("Mul", [layer.dequantise(y, result), floats(layer, layer.shape[1 if transposed else 2], 1.0)])
    compare(layer, layer.dequantise(layer.quantise(y, scaled), scaled), codes)


def convolved(layer: Layer, x: str, codes, inputs: int, outputs: int) -> tuple[str, tuple]:
    result = layer.codes(float(codes[0]))
    y = layer.node("Conv", [layer.dequantise(x, codes), layer.weights([outputs, inputs, 1, 1], 0, np.float32(0.01))])
    return layer.quantise(y, result), result


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum"])
@pytest.mark.parametrize("axes", [[2, 3], [1], [3], [2]])
# A convolution behind the sum reads four dimensions.
@pytest.mark.parametrize(("keep", "behind"), [(0, 0), (1, 0), (1, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_sums_beside_convolutions(kind, axes, keep, behind, batch):
    """The CPU provider's convolutions have channels last, and it moves transpositions through what is between two."""
    random, layer, codes, x = start(7, [batch, 8, 7, 9], 128)
    x, codes_of_x = convolved(layer, x, codes, 8, 24)
    result = layer.codes(float(codes_of_x[0] / 5))
    y = layer.quantise(reduced(layer, kind, layer.dequantise(x, codes_of_x), axes, keepdims=keep), result)
    if behind:
        y, result = convolved(layer, y, result, 1 if axes == [1] else 24, 12)
    model = layer.model(layer.dequantise(y, result)).SerializeToString()
    npu, cpu = sessions.by_name(model), sessions.cpu(model)
    for _ in range(4):
        sessions.assert_same(npu, cpu, layer.input(codes), f"{kind} {axes}")
    # Where one stands behind, the order is not certain; of few elements any gives the same codes.
    is_left = bool(behind) and axes in ([1], [2, 3])
    assert (kind in sessions.operators_on(npu, sessions.CPU)) == is_left


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSum", "ReduceMax"])
@pytest.mark.parametrize("axes", [[-1], [3], [2, -1], [-2, -1], [2, 3]])
@pytest.mark.parametrize("keep", [0, 1])
def test_sums_of_a_batch_of_none(kind, axes, keep):
    """Of an empty tensor the CPU provider leaves out dimensions that are counted from the end, and so does the NPU."""
    _, layer, codes, x = start(3, ["batch", 2, 3, 6], 129)
    layer.opset = 18
    y = reduced(layer, kind, layer.dequantise(x, codes), axes, keepdims=keep)
    model = layer.model(layer.dequantise(layer.quantise(y, codes), codes)).SerializeToString()
    npu, cpu = sessions.by_name(model), sessions.cpu(model)
    for batch in (2, 0, 1):
        layer.shape = [batch, 2, 3, 6]
        sessions.assert_same(npu, cpu, layer.input(codes), f"{kind} {axes} of {batch}")

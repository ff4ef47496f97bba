"""Operators that put elements elsewhere, reduce them or combine two tensors, random in every attribute, against the CPU."""

import numpy as np
import pytest
import sessions
from onnx import TensorProto, helper
from test_layers import SEEDS, Layer, compare, convolution, image, start


def int64(layer: Layer, values) -> str:
    return layer.constant(list(values), np.int64)


def pooled(layer: Layer, x: str, codes) -> str:
    """Something that both providers take, so that a subgraph holds more than moves."""
    return layer.quantise(layer.node("MaxPool", [layer.dequantise(x, codes)], kernel_shape=[1, 1]), codes)


def unit(layer: Layer, kind: str, x: str, codes, result, *constants: str, **attributes) -> str:
    return layer.quantise(layer.node(kind, [layer.dequantise(x, codes), *constants], **attributes), result)


def other(layer: Layer, codes):
    """The same codes, or, a third of the time, others: then elements are requantised on their way."""
    return codes if layer.random.random() < 0.67 else layer.codes(0.02)


def finish(layer: Layer, y: str, result, codes) -> None:
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_products_of_two_tensors(seed):
    random, layer, codes, x = image(seed, 30)
    y, branch = convolution(random, layer, x, codes, same=True, depthwise=True)
    result = layer.codes(0.02)
    terms = [layer.dequantise(y, branch), layer.dequantise(x, codes)]
    order = terms if random.random() < 0.5 else terms[::-1]
    finish(layer, layer.quantise(layer.node("Mul", order), result), result, codes)


@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gate_for_each_channel(seed, kind):
    random, layer, codes, x = image(seed, 31)
    gate, result = layer.codes(0.02), layer.codes(0.02)
    y = unit(layer, "GlobalAveragePool", x, codes, gate)
    terms = [layer.dequantise(x, codes), layer.dequantise(y, gate)]
    order = terms if kind == "Add" or random.random() < 0.5 else terms[::-1]
    finish(layer, layer.quantise(layer.node(kind, order), result), result, codes)


@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("over", [[0], [1], [2], [3], [2, 3], [0, 1], [1, 3], [0, 1, 2, 3]], ids=str)
def test_a_tensor_repeated_over_any_dimensions(over, kind):
    random, layer, codes, x = image(len(over) * 7 + over[0], 32)
    axes, part, result = {"axes": over, "keepdims": 1}, codes, layer.codes(0.02)
    y = unit(layer, "ReduceMax", x, codes, part, **{**axes, "axes": over})
    terms = [layer.dequantise(pooled(layer, x, codes), codes), layer.dequantise(y, part)]
    finish(layer, layer.quantise(layer.node(kind, terms), result), result, codes)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
@pytest.mark.parametrize("seed", SEEDS)
def test_concatenation(seed, axis):
    random, layer, codes, x = image(seed, 33)
    parts = []
    for _ in range(int(random.integers(1, 5))):
        part = layer.codes(0.5) if random.random() < 0.5 else codes
        length = layer.shape[axis]
        start, stop = sorted(int(v) for v in random.choice(length + 1, 2, replace=False)) if length > 1 else (0, 1)
        cut = [int64(layer, [v]) for v in (start, stop, axis)]
        parts.append(layer.dequantise(unit(layer, "Slice", pooled(layer, x, codes), codes, part, *cut), part))
    result = other(layer, codes)
    finish(layer, layer.quantise(layer.node("Concat", parts, axis=axis), result), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions_joined_and_convolved(seed):
    random, layer, codes, x = image(seed, 34)
    branches = [convolution(random, layer, x, codes, same=True, depthwise=bool(k)) for k in range(2)]
    result = layer.codes(0.5)
    terms = [layer.dequantise(y, branch) for y, branch in branches]
    y = layer.quantise(layer.node("Concat", terms, axis=1), result)
    layer.channels *= 2
    y, last = convolution(random, layer, y, result)
    finish(layer, y, last, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_slices(seed):
    random, layer, codes, x = image(seed, 35)
    x = pooled(layer, x, codes)
    axes = [int(a) for a in random.choice(4, int(random.integers(1, 5)), replace=False)]
    starts, ends, steps = [], [], []
    for axis in axes:
        length, step = layer.shape[axis], int(random.choice([1, 1, 2, 3, -1, -2]))
        first = int(random.integers(0, length))
        starts.append(first - (length if random.random() < 0.3 else 0))
        ends.append(2**40 if step > 0 else -(2**40))
        steps.append(step)
    result = other(layer, codes)
    constants = [int64(layer, v) for v in (starts, ends, axes, steps)]
    finish(layer, unit(layer, "Slice", x, codes, result, *constants), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_other_row_and_column_joined_as_channels(seed):
    """How a YOLOX network begins."""
    random, layer, codes, x = image(seed, 36, 8)
    rows, columns = (size // 2 * 2 for size in layer.shape[2:])
    parts = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        y = unit(layer, "Slice", x, codes, codes, *(int64(layer, [v]) for v in (row, rows, 2, 2)))
        y = unit(layer, "Slice", y, codes, codes, *(int64(layer, [v]) for v in (column, columns, 3, 2)))
        parts.append(layer.dequantise(y, codes))
    y = layer.quantise(layer.node("Concat", parts, axis=1), codes)
    layer.channels *= 4
    y, result = convolution(random, layer, y, codes, same=True)
    finish(layer, y, result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_transposition(seed):
    random, layer, codes, x = image(seed, 37)
    result = other(layer, codes)
    y = unit(layer, "Transpose", pooled(layer, x, codes), codes, result, perm=[int(p) for p in random.permutation(4)])
    finish(layer, y, result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_shapes_and_orders_in_a_row(seed):
    random, layer, codes, x = image(seed, 38)
    x, shape = pooled(layer, x, codes), list(layer.shape)
    for _ in range(3):
        if random.random() < 0.5:
            split = int(random.integers(1, len(shape)))
            shape = [int(np.prod(shape[:split])), int(np.prod(shape[split:]))] if len(shape) > 2 else [shape[0], 1, shape[1], 1, 1]
            x = unit(layer, "Reshape", x, codes, codes, int64(layer, shape))
        else:
            perm = [int(p) for p in random.permutation(len(shape))]
            shape = [shape[p] for p in perm]
            x = unit(layer, "Transpose", x, codes, codes, perm=perm)
    finish(layer, x, codes, codes)


@pytest.mark.parametrize("how", ["asymmetric, floor", "half_pixel, round_prefer_floor", "half_pixel, round_prefer_ceil", "sizes"])
@pytest.mark.parametrize("seed", SEEDS)
def test_resizing_to_the_nearest(seed, how):
    random, layer, codes, x = image(seed, 39)
    factors = [1, 1, *(int(f) for f in random.integers(1, 5, 2))]
    coordinates, rounding = ("asymmetric, floor" if how == "sizes" else how).split(", ")
    sized = ["", int64(layer, [s * f for s, f in zip(layer.shape, factors, strict=True)])]
    constants = ["", *sized] if how == "sizes" else ["", layer.constant(factors, np.float32)]
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    result = other(layer, codes)
    y = unit(layer, "Resize", pooled(layer, x, codes), codes, result, *constants, **attributes)
    finish(layer, y, result, codes)


@pytest.mark.parametrize("kind", ["DepthToSpace", "DepthToSpace CRD", "SpaceToDepth"])
@pytest.mark.parametrize("seed", SEEDS)
def test_blocks(seed, kind):
    random = np.random.default_rng([seed, 40])
    block = int(random.integers(2, 4))
    shape = [int(random.integers(1, 3)), block * block * int(random.integers(1, 7)), *(block * int(s) for s in random.integers(1, 7, 2))]
    random, layer, codes, x = start(seed, shape, 40)
    attributes = {"mode": "CRD"} if kind.endswith("CRD") else {}
    result = codes
    y = unit(layer, kind.split()[0], pooled(layer, x, codes), codes, result, blocksize=block, **attributes)
    finish(layer, y, result, codes)


@pytest.mark.parametrize("kind", ["Expand", "Tile"])
@pytest.mark.parametrize("seed", SEEDS)
def test_repetition(seed, kind):
    random, layer, codes, x = image(seed, 41, 6)
    x = unit(layer, "ReduceMax", x, codes, codes, axes=[int(random.integers(0, 4))], keepdims=1)
    x = pooled(layer, x, codes)
    times = [int(t) for t in random.integers(1, 4, 4)]
    sizes = [*times] if kind == "Tile" else [2, 1, *layer.shape]
    if kind == "Expand":
        x = unit(layer, "ReduceMax", x, codes, codes, axes=[0], keepdims=1)
    result = codes
    finish(layer, unit(layer, kind, x, codes, result, int64(layer, sizes)), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_border(seed):
    random, layer, codes, x = image(seed, 42)
    pads = [int(p) for p in random.integers(0, 4, 8)]
    value = layer.constant(np.float32(random.normal() * codes[0] * 64), np.float32)
    result = other(layer, codes)
    finish(layer, unit(layer, "Pad", pooled(layer, x, codes), codes, result, int64(layer, pads), value), result, codes)


@pytest.mark.parametrize("kind", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_extremes(seed, keepdims, kind):
    random, layer, codes, x = image(seed, 43)
    axes = [2, 3] if random.random() < 0.3 else [int(a) for a in random.choice(4, int(random.integers(1, 4)), replace=False)]
    result = other(layer, codes)
    finish(layer, unit(layer, kind, x, codes, result, axes=axes, keepdims=keepdims), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_maximum_of_whole_images_before_a_product(seed):
    random, layer, codes, x = image(seed, 44)
    y = unit(layer, "GlobalMaxPool", x, codes, codes)
    y = unit(layer, "Flatten", y, codes, codes, axis=1)
    inputs, outputs = layer.shape[1], int(random.integers(1, 30))
    result = layer.codes(1.0)
    weight = layer.weights([inputs, outputs], 1, layer.weight_scales(outputs))
    y = layer.node("MatMul", [layer.dequantise(y, codes), weight])
    finish(layer, layer.quantise(y, result), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_channels_last_images_are_turned_and_convolved(seed):
    random = np.random.default_rng([seed, 45])
    shape = [int(random.integers(1, 3)), *(int(s) for s in random.integers(9, 20, 2)), int(random.integers(1, 30))]
    random, layer, codes, x = start(seed, shape, 45)
    x = unit(layer, "Transpose", x, codes, codes, perm=[0, 3, 1, 2])
    layer.channels = shape[3]
    y, result = convolution(random, layer, x, codes)
    finish(layer, y, result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_floats_sliced_twice_before_they_are_quantised(seed):
    """The Focus layer of a detector: four parts of an image, two of which share a Slice, joined as channels."""
    random = np.random.default_rng([seed, 47])
    shape = [int(random.integers(1, 3)), int(random.integers(1, 6)), *(2 * int(s) for s in random.integers(9, 16, 2))]
    random, layer, codes, _ = start(seed, shape, 47)
    layer.nodes, layer.constants = [], []
    parts = []
    for row in (0, 1):
        rows = layer.node("Slice", ["x", *(int64(layer, [v]) for v in (row, 1 << 40, 2, 2))])
        for column in (0, 1):
            part = layer.node("Slice", [rows, *(int64(layer, [v]) for v in (column, 1 << 40, 3, 2))])
            own = other(layer, codes)
            parts.append(layer.dequantise(layer.quantise(part, own), own))
    result = other(layer, codes)
    joined = layer.quantise(layer.node("Concat", parts, axis=1), result)
    layer.channels = 4 * shape[1]
    y, last = convolution(random, layer, joined, result)
    finish(layer, y, last, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_floats_in_another_shape_and_order_before_they_are_quantised(seed):
    random = np.random.default_rng([seed, 48])
    shape = [int(s) for s in random.integers(1, 14, 3)]
    random, layer, codes, _ = start(seed, list(shape), 48)
    layer.nodes, layer.constants = [], []
    y = "x"
    for kind in random.choice(["Transpose", "Reshape", "Unsqueeze", "Slice"], int(random.integers(1, 4))):
        axis = int(random.integers(0, len(shape)))
        if kind == "Transpose":
            order = [int(a) for a in random.permutation(len(shape))]
            y, shape = layer.node(kind, [y], perm=order), [shape[a] for a in order]
        elif kind == "Reshape":
            shape = [shape[axis], int(np.prod(shape)) // shape[axis]]
            y = layer.node(kind, [y, int64(layer, shape)])
        elif kind == "Unsqueeze":
            y = layer.node(kind, [y, int64(layer, [axis])])
            shape.insert(axis, 1)
        elif shape[axis] > 1:
            y = layer.node(kind, [y, *(int64(layer, [v]) for v in (1, 1 << 40, axis, 1))])
            shape[axis] -= 1
    y = layer.quantise(y, codes)
    finish(layer, unit(layer, "ReduceMax", y, codes, codes, axes=[0], keepdims=1), codes, codes)


@pytest.mark.parametrize("kind", ["Mul", "Add"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_constant_for_each_channel_or_place(seed, kind):
    random, layer, codes, x = image(seed, 49)
    own, result = layer.codes(0.02), layer.codes(0.05)
    # Some dimensions of the image, the others 1; leading ones left out now and then.
    dims = [1, *(length if random.random() < 0.6 else 1 for length in layer.shape[1:])]
    if random.random() < 0.5:
        dims = dims[int(random.integers(1, 4)) :]
    if np.prod(dims) == 1:
        dims = [1, layer.shape[1], 1, 1]
    constant = layer.dequantise(layer.constant(random.integers(0, 256, dims), np.uint8), own)
    x = pooled(layer, x, codes)
    terms = [layer.dequantise(x, codes), constant]
    if kind == "Mul" and random.random() < 0.5:
        terms.reverse()
    finish(layer, layer.quantise(layer.node(kind, terms), result), result, codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_with_a_constant_first_are_equal_wherever_they_run(seed):
    random, layer, codes, x = image(seed, 50)
    own, result = layer.codes(0.02), layer.codes(0.05)
    dims = [1, *(length if random.random() < 0.6 else 1 for length in layer.shape[1:])]
    constant = layer.dequantise(layer.constant(random.integers(0, 256, dims), np.uint8), own)
    y = layer.quantise(layer.node("Add", [constant, layer.dequantise(pooled(layer, x, codes), codes)]), result)
    model = layer.model(layer.dequantise(y, result)).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_same(npu, reference, layer.input(codes), "layer")


@pytest.mark.parametrize("scales", [(1.5, 2), (1.3, 0.7), (0.55, 3.2)], ids=str)
def test_a_factor_that_is_not_whole_takes_elements_unevenly(scales):
    _, layer, codes, x = image(1, 46)
    scales = layer.constant([1, 1, *scales], np.float32)
    y = layer.node("Resize", [layer.dequantise(pooled(layer, x, codes), codes), "", scales], mode="nearest")
    compare(layer, layer.dequantise(layer.quantise(y, codes), codes), codes)


def test_a_slice_of_one_image_behind_a_slice_that_may_be_empty():
    """The first is refused, as it leaves nothing of a batch of 1; then the second reads any number of images."""
    random, layer, codes, x = image(3, 47)
    layer.x.type.tensor_type.shape.dim[0].dim_param = "batch"
    rest = unit(layer, "Slice", pooled(layer, x, codes), codes, codes, int64(layer, [1]), int64(layer, [2**40]), int64(layer, [0]))
    result = layer.codes(0.02)
    gate = unit(layer, "HardSigmoid", rest, codes, result)
    cut = [int64(layer, [v]) for v in (0, -(2**40), 0, -1)]
    model = layer.model(layer.dequantise(unit(layer, "Slice", gate, result, result, *cut), result)).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for batch in (1, 2, 3):
        layer.shape[0] = batch
        sessions.assert_same(npu, reference, layer.input(codes), f"batch {batch}")


def test_a_tensor_of_any_rank_is_left_and_what_stands_behind_it():
    """A Reshape to lengths that are data: nobody knows the rank of its result before the run."""
    scale, zero = helper.make_tensor("s", TensorProto.FLOAT, [], [0.125]), helper.make_tensor("z", TensorProto.UINT8, [], [7])
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["a"]),
        helper.make_node("Reshape", ["a", "lengths"], ["b"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [12, 1]), helper.make_tensor_value_info("lengths", TensorProto.INT64, ["rank"])]
    graph = helper.make_graph(nodes, "any", inputs, [helper.make_tensor_value_info("y", TensorProto.UINT8, None)], [scale, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for lengths in ([12], [12, 1], [2, 1, 6], [1, 12]):
        feeds = {"x": np.arange(12, dtype=np.uint8).reshape(12, 1) * 20, "lengths": np.array(lengths, np.int64)}
        (found,), (want,) = npu.run(None, feeds), reference.run(None, feeds)
        assert found.shape == want.shape and np.array_equal(found, want), lengths

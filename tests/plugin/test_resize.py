"""Resize to the nearest by every way to choose an element, and by linear interpolation: equal to the CPU provider."""

import numpy as np
import pytest
import sessions
from onnx import TensorProto, helper, numpy_helper
from test_layers import SEEDS, compare, convolution, image
from test_operators import Case, model, numbers, resize

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")

# Length, factor.
SIZES = [(7, 1 / 3), (6, 0.5), (13, 2.5), (5, 3), (8, 0.25), (4, 2), (20, 1 / 3), (3, 5)]
# Those that are a rearrangement by whole factors, up and down.
USUAL = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}


@pytest.mark.parametrize("rounding", ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "align_corners"])
def test_resizes(coordinates, rounding):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    taken = []
    for index, (side, factor) in enumerate(SIZES):
        by_sizes = lambda layer, n=int(np.floor(side * factor)): ["", "", *numbers([2, 8, n, n])(layer)]  # noqa: E731
        more = by_sizes if index % 2 else resize(factor, factor)
        made, x = model(Case("Resize", attributes, more, [2, 8, side, side]))
        npu, reference = sessions.by_name(made.SerializeToString()), sessions.cpu(made.SerializeToString())
        sessions.assert_same(npu, reference, x, f"{coordinates}, {rounding}, {side} by {factor}")
        if "Resize" in sessions.operators_on(npu, sessions.EP):
            taken.append((side, factor))
    if (coordinates, rounding) in USUAL:
        assert {(6, 0.5), (5, 3), (4, 2), (3, 5)} <= set(taken), taken


@pytest.mark.parametrize("seed", SEEDS)
def test_linear_resizes_between_convolutions(seed):
    """There the CPU provider has channels last; elsewhere first."""
    random, layer, codes, x = image(seed, 61)
    y, inner = convolution(random, layer, x, codes, same=True) if random.random() < 0.7 else (x, codes)
    factors = [float(f) for f in random.choice([0.4, 0.5, 1, 4 / 3, 1.5, 2, 2.7, 3, 4], 2)]
    mode = str(random.choice(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
    scales = layer.constant([1, 1, *factors], np.float32)
    y = layer.node("Resize", [layer.dequantise(y, inner), "", scales], mode="linear", coordinate_transformation_mode=mode)
    result = inner if random.random() < 0.5 else layer.codes(0.02)
    y = layer.quantise(y, result)
    if random.random() < 0.7:
        y, result = convolution(random, layer, y, result, same=True)
    compare(layer, layer.dequantise(y, result), codes)


def test_where_a_batch_is_blended_each_batch_has_places_of_its_own():
    """The batch is the last dimension: the places that a program reads follow from it, in tables of one length."""
    constants = {"s": np.float32(1 / 64), "z": np.uint8(87), "t": np.float32(1 / 128), "n": np.uint8(0)}
    constants["scales"] = np.array([1, 1, 2, 1], np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"]),
        helper.make_node("Transpose", ["d"], ["turned"], perm=[1, 2, 3, 0]),
        helper.make_node("Resize", ["turned", "", "scales"], ["r"], mode="linear"),
        helper.make_node("QuantizeLinear", ["r", "t", "n"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 11, 5, 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "blended", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    npu, reference = sessions.by_name(made.SerializeToString()), sessions.cpu(made.SerializeToString())
    sessions.assert_all_on_npu(npu)
    random = np.random.default_rng(5)
    for batch in (1, 2, 3, 4, 5, 2, 1):
        x = random.integers(0, 256, (batch, 11, 5, 6), dtype=np.uint8)
        sessions.assert_same(npu, reference, x, f"batch {batch}")

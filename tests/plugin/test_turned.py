"""What the CPU provider's own passes over the graph depend on: a cut must not change what it computes beside it."""

import numpy as np
import pytest
import sessions
from onnx import ModelProto, TensorProto, helper
from test_layers import SEEDS, Layer, convolution, image

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")


def several(layer: Layer, outputs: list[str]) -> ModelProto:
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    graph = helper.make_graph(layer.nodes, "turned", [layer.x], values, layer.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", layer.opset)], ir_version=8)


def assert_same(layer: Layer, outputs: list[str], codes) -> list[str]:
    """Gives the operators that ran on the NPU."""
    model = several(layer, outputs).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for _ in range(3):
        sessions.assert_same(npu, reference, layer.input(codes), "turned")
    return sessions.operators_on(npu, sessions.EP)


@pytest.mark.parametrize("seed", SEEDS)
def test_cubic_resizes_between_convolutions_and_what_stands_beside_them(seed):
    random, layer, codes, x = image(seed, 310, 12)
    y, inner = convolution(random, layer, x, codes, same=True)
    beside = layer.dequantise(layer.quantise(layer.dequantise(y, inner), other := layer.codes(0.1)), other)
    scales = layer.constant([1, 1, *(float(f) for f in random.choice([1, 2, 3], 2))], np.float32)
    z = layer.quantise(layer.node("Resize", [layer.dequantise(y, inner), "", scales], mode="cubic"), inner)
    z, result = convolution(random, layer, z, inner, same=True)
    assert_same(layer, [beside, layer.dequantise(z, result)], codes)


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceSumSquare", "ReduceL2"])
@pytest.mark.parametrize("seed", SEEDS)
def test_float_sums_between_transpositions_with_a_convolution_elsewhere(seed, kind):
    random, layer, codes, x = image(seed, 311, 12)
    perm = [int(axis) for axis in random.permutation(4)]
    turned = layer.dequantise(layer.quantise(layer.node("Transpose", [layer.dequantise(x, codes)], perm=perm), codes), codes)
    summed = layer.node(kind, [turned], axes=[int(random.integers(4))], keepdims=1)
    less = layer.codes(0.05)
    y = layer.dequantise(layer.quantise(layer.node("Div", [turned, summed]), less), less)
    y = layer.quantise(layer.node("Transpose", [y], perm=[int(axis) for axis in random.permutation(4)]), less)
    z, result = convolution(random, layer, x, codes, same=True)
    assert_same(layer, [layer.dequantise(y, less), layer.dequantise(z, result)], codes)


@pytest.mark.parametrize("listed", [False, True], ids=["scalar", "list of one"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_clip_that_codes_hold_is_taken_away_only_before_a_scalar_scale(seed, listed):
    """Elsewise the CPU provider runs the convolution in float."""
    random, layer, codes, x = image(seed, 312, 12)
    y, result = convolution(random, layer, x, codes, same=True)
    layer.nodes.pop()
    scale = np.float32(random.choice([1, 3, 6])) / np.float32(255)
    bounds = [layer.constant(bound, np.float32) for bound in (0, scale * 255 if seed % 2 else 1e3)]
    clipped = layer.node("Clip", [layer.nodes[-1].output[0], *bounds])
    given = (lambda value: [value]) if listed else (lambda value: value)
    y = layer.node("QuantizeLinear", [clipped, layer.constant(given(scale), np.float32), layer.constant(given(0), np.uint8)])
    taken = assert_same(layer, [layer.dequantise(y, (scale, 0))], codes)
    assert listed or "Conv" in taken


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 4e-10, 2e-9, 1e-6])
def test_a_clip_of_numbers_too_small_for_the_cpu_provider_is_none(scale):
    layer = Layer(np.random.default_rng(313), [1, 1, 16, 16])
    codes = (np.float32(scale), 126)
    bounds = [layer.constant(bound, np.float32) for bound in (0, 8)]
    y = layer.node("Clip", [layer.dequantise(layer.quantise("x", codes), codes), *bounds])
    taken = assert_same(layer, [layer.dequantise(layer.quantise(y, codes), codes)], codes)
    assert "Clip" in taken

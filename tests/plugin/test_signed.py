"""int8 activations: outputs equal the CPU provider's bit for bit, which runs part of such a model in float.

The digits run always. With `NPU_MODELS=all` in the environment every model that the project knows runs.
"""

import os
from collections import Counter

import numpy as np
import onnx
import pytest
import sessions
from npu_models import build, describe, quantise, signed
from onnx import TensorProto, helper
from test_layers import Layer

NAMES = list(build.ALL) if os.environ.get("NPU_MODELS") == "all" else ["digits"]
VARIANTS = [(name, kind) for name in NAMES for kind in signed.KINDS]
IDS = [f"{name}.{kind}" for name, kind in VARIANTS]
# Those of which something may be left to the CPU: in how many subgraphs at most, and the least share of the multiplications.
PARTLY = {"ppocrv4-rec": (2, 0.99), "minilm-l3": (1, 0.99)}


@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=IDS)
def test_outputs_equal_the_cpu(models, name, kind, capsys):
    file = signed.ensure(name, kind, models)
    reference, session = sessions.cpu(str(file)), sessions.by_name(str(file))
    macs = describe.macs_by_node(onnx.load(file))
    taken = sum(macs.get(node, 0) for node in sessions.nodes_on(session, sessions.EP))
    subgraphs = sum(provider == sessions.EP for provider, _ in sessions.placement(session))
    left = Counter(sessions.operators_on(session, sessions.CPU))
    with capsys.disabled():
        print(f"\n{name}.{kind}: {taken / sum(macs.values()):.2%} of the multiplications in {subgraphs} subgraphs; left to the CPU {dict(left)}")
    seen = set()
    for index, feed in enumerate(signed.feeds(name, models)):
        for output in sessions.assert_same(session, reference, feed, f"{name}.{kind}, input {index}"):
            seen.update(np.unique(output).tolist())
    assert len(seen) > 2, f"all outputs are of {seen}"
    if name not in PARTLY:
        sessions.assert_all_on_npu(session)
        return
    most, least = PARTLY[name]
    assert subgraphs <= most
    assert taken >= least * sum(macs.values())


@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=IDS)
def test_every_quantised_intermediate_equals_the_cpu(models, name, kind):
    """With each 8-bit tensor an output, each stays int8: the CPU runs all in float that has no int8 kernel."""
    feeds = signed.feeds(name, models)[:2]
    for tapped in quantise.all_taps(onnx.load(signed.ensure(name, kind, models))):
        reference, session = sessions.cpu(tapped.SerializeToString()), sessions.by_name(tapped.SerializeToString())
        assert any(value.dtype == np.int8 for value in sessions.run(reference, feeds[0]))
        assert sessions.nodes_on(session, sessions.EP)
        for index, feed in enumerate(feeds):
            sessions.assert_same(session, reference, feed, f"{name}.{kind}, input {index}")


class Signed(Layer):
    """A layer whose activations are int8. Codes are told as they are moved to unsigned."""

    def parameters(self, codes) -> list[str]:
        return [self.constant(codes[0], np.float32), self.constant(codes[1] - 128, np.int8)]

    def quantise(self, x: str, codes) -> str:
        return self.node("QuantizeLinear", [x, *self.parameters(codes)])

    def dequantise(self, x: str, codes) -> str:
        return self.node("DequantizeLinear", [x, *self.parameters(codes)])

    def unit(self, op: str, tensors, codes, **attributes) -> str:
        return self.quantise(self.node(op, [self.dequantise(*tensor) for tensor in tensors], **attributes), codes)

    def relu(self, x: str, codes) -> tuple[str, tuple]:
        result = self.codes(0.02)
        return self.unit("Relu", [(x, codes)], result), result


def compare(layer: Signed, outputs: list[tuple[str, tuple]], codes) -> None:
    """All of `outputs` as floats; everything must be taken."""
    sessions.assert_all_on_npu(compare_what_is_taken(layer, outputs, codes))


def compare_what_is_taken(layer: Signed, outputs: list[tuple[str, tuple]], codes):
    """The same, of which some may stay on the CPU; gives the session."""
    ends = [layer.dequantise(*output) for output in outputs]
    values = [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ends]
    graph = helper.make_graph(layer.nodes, "layer", [layer.x], values, layer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for _ in range(3):
        sessions.assert_same(npu, reference, layer.input(codes), "layer")
    return npu


def start(seed: int, salt: int) -> tuple[Signed, str, tuple]:
    random = np.random.default_rng([seed, salt])
    layer = Signed(random, [int(n) for n in random.integers(1, [3, 40, 14, 14])])
    codes = layer.codes(0.02)
    return layer, layer.quantise("x", codes), codes


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("types", ["uint8", "mixed", "int8"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_two_tensors_of_any_types(op, types, seed):
    layer, x, codes = start(seed, 1)
    first, second = layer.relu(x, codes), layer.relu(x, codes)
    result = layer.codes(0.04)
    y = (layer.unit(op, [first, second], result), result)
    # A second reader keeps a tensor int8.
    others = {"uint8": [], "mixed": [first], "int8": [first, second, y]}[types]
    compare(layer, [layer.relu(*tensor) for tensor in others] + [layer.relu(*y)], codes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("shape", ["one", "a channel", "all"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_a_constant_of_int8_beside_a_tensor_of_either_type(op, shape, seed):
    layer, x, codes = start(seed, 2)
    dims = {"one": [1], "a channel": [layer.shape[1], 1, 1], "all": layer.shape[1:]}[shape]
    own, result = layer.codes(0.02), layer.codes(0.04)
    constant = layer.constant(layer.random.integers(-128, 128, dims), np.int8)
    y = layer.unit(op, [(x, codes), (constant, own)], result)
    outputs = [layer.relu(y, result)]
    if seed % 2 == 0:
        outputs += [layer.relu(x, codes), layer.relu(y, result)]
    compare(layer, outputs, codes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("readers", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_a_mean_of_whole_images(readers, seed):
    layer, x, codes = start(seed, 3)
    result = layer.codes(0.01)
    y = layer.unit("GlobalAveragePool", [(x, codes)], result)
    outputs = [layer.relu(y, result) for _ in range(readers[1])]
    outputs += [layer.relu(x, codes) for _ in range(readers[0] - 1)]
    compare(layer, outputs, codes)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("ends", [(1, 2), (2, 1), (2, 2)])
def test_rows_times_a_matrix(ends, rank, seed):
    """In float where either end is int8, whatever shape the rows have."""
    random = np.random.default_rng([seed, 4])
    shape = [*(int(n) for n in random.integers(1, 7, rank - 1)), int(random.choice([16, 48, int(random.integers(1, 300))]))]
    layer = Signed(random, shape)
    codes, result = layer.codes(0.02), layer.codes(1.0)
    x = layer.quantise("x", codes)
    rows, inputs, outputs = int(np.prod(shape[:-1])), shape[-1], int(random.integers(2, 90))
    weights = layer.weights([inputs, outputs], 1, layer.weight_scales(outputs))
    y = layer.quantise(layer.node("MatMul", [layer.dequantise(x, codes), weights]), result)
    tensors = [layer.relu(x, codes) for _ in range(ends[0] - 1)] + [layer.relu(y, result) for _ in range(ends[1])]
    npu = compare_what_is_taken(layer, tensors, codes)
    if 1 < rows < outputs and inputs <= 128:
        # However many threads divide these columns, all of them sum in one order.
        assert "MatMul" not in sessions.operators_on(npu, sessions.CPU)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [[1, 64, 384], [2, 30, 128], [3, 5, 7, 100], [90, 300]], ids=str)
def test_rows_whose_sums_lie_on_ties(shape, seed):
    """Of the real numbers many are ties, so what the order of sums does to floats shows in the codes."""
    layer = Signed(np.random.default_rng([seed, 6]), shape)
    inputs, outputs = shape[-1], 384
    codes, scale = (np.float32(0.0173), 128), np.float32(0.0091)
    result = (np.float32(codes[0] * scale * 2 ** np.ceil(np.log2(40 * np.sqrt(inputs)))), 128)
    x = layer.quantise("x", codes)
    weights = layer.weights([inputs, outputs], 1, scale)
    y = layer.quantise(layer.node("MatMul", [layer.dequantise(x, codes), weights]), result)
    npu = compare_what_is_taken(layer, [layer.relu(x, codes), layer.relu(y, result)], codes)
    # Longer sums have several blocks, where many threads leave each few columns.
    assert inputs > 128 or "MatMul" not in sessions.operators_on(npu, sessions.CPU)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("ends", [(1, 2), (2, 1), (2, 2)])
def test_softmax(ends, seed):
    """Where both ends are int8 the CPU computes on codes, and wraps at their end."""
    random = np.random.default_rng([seed, 5])
    layer = Signed(random, [int(random.integers(1, 40)), int(random.choice([2, 3, 17, 64, 500]))])
    codes = layer.codes(0.05)
    scale = random.choice([np.float32(1 / 255), np.float32(1 / 256), np.float32(random.uniform(0.003, 0.05))])
    result = (np.float32(scale), int(random.choice([0, 0, 3, 128])))
    x = layer.quantise("x", codes)
    y = layer.quantise(layer.node("Softmax", [layer.dequantise(x, codes)], axis=-1), result)
    tensors = [layer.relu(x, codes) for _ in range(ends[0] - 1)] + [layer.relu(y, result) for _ in range(ends[1])]
    npu = compare_what_is_taken(layer, tensors, codes)
    # Of one type at both ends, and no share is beyond its codes.
    is_taken = ends == (2, 2) and np.floor(np.float32(1) / result[0]) + result[1] <= 255
    assert ("Softmax" not in sessions.operators_on(npu, sessions.CPU)) == is_taken


@pytest.mark.parametrize("zero_point", [-128, -127])
@pytest.mark.parametrize("is_fed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_product_behind_a_relu_that_has_nothing_to_do(seed, is_fed, zero_point):
    """The CPU takes it away, and then the pair of one scale around it: the product reads what was before."""
    layer = Signed(np.random.default_rng([seed, 8]), [1, 5, 1])
    codes, result = (np.float32(0.00445180153), zero_point + 128), (np.float32(0.0164581221), 165)
    if is_fed:
        layer.x = helper.make_tensor_value_info("x", TensorProto.INT8, layer.shape)
        x = "x"
    else:
        x = layer.quantise("x", codes)
    relu = layer.unit("Relu", [(x, codes)], (codes[0], 0))
    weights = layer.weights([1, 62], 1, np.float32(0.0188620277))
    y = layer.quantise(layer.node("MatMul", [layer.dequantise(relu, (codes[0], 0)), weights]), result)
    model = layer.model(layer.dequantise(y, result)).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for _ in range(8):
        feed = layer.random.integers(-128, 128, layer.shape).astype(np.int8) if is_fed else layer.input(codes)
        sessions.assert_same(npu, reference, feed, "product")


@pytest.mark.parametrize("activation", ["Relu", None])
def test_a_product_of_int8_that_ends_in_floats(activation):
    """Its first operand is uint8 to the CPU where both ends are the CPU's: requantised here, it would stay int8."""
    layer = Signed(np.random.default_rng(9), [1, 8, 1, 9])
    layer.x = helper.make_tensor_value_info("x", TensorProto.INT8, layer.shape)
    before, codes, result = (np.float32(0.015625), 128), (np.float32(0.03125), 128), (np.float32(0.015625), 128)
    first = layer.quantise(layer.dequantise("x", before), codes)
    second = layer.constant(layer.random.integers(-128, 128, [1, 1, 8, 9, 1]), np.int8)
    floats = layer.node("MatMul", [layer.dequantise(first, codes), layer.dequantise(second, (np.float32(0.0203970242), 128))])
    floats = layer.node(activation, [floats]) if activation else floats
    ends = [layer.quantise(floats, result), floats]
    kinds = [TensorProto.INT8, TensorProto.FLOAT]
    outputs = [helper.make_tensor_value_info(end, kind, None) for end, kind in zip(ends, kinds, strict=True)]
    graph = helper.make_graph(layer.nodes, "layer", [layer.x], outputs, layer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for _ in range(4):
        sessions.assert_same(npu, reference, layer.random.integers(-128, 128, layer.shape).astype(np.int8), "product")

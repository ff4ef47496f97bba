"""Functions of two 8-bit tensors, pair by pair: all 65,536 through the NPU and through the CPU provider's kernels."""

import numpy as np
import pytest
import sessions
from onnx import TensorProto, helper, numpy_helper
from test_tables import Graph, onnx_model

A, B = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
PAIRS = {"x": A.reshape(1, 1, 256, 256), "y": B.reshape(1, 1, 256, 256)}


def compare(graph: Graph, feeds: dict[str, np.ndarray]) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.UINT8, value.shape) for name, value in feeds.items()]
    model = helper.make_graph(graph.nodes, "pairs", inputs, graph.outputs, graph.constants)
    model = onnx_model(model, graph.opset).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    left = sessions.operators_on(npu, sessions.CPU)
    assert not left, f"left to the CPU: {left}"
    found, want = npu.run(None, feeds), reference.run(None, feeds)
    for output, ours, theirs in zip(graph.outputs, found, want, strict=True):
        wrong = np.argwhere(ours != theirs)
        assert not len(wrong), f"{output.name}: {len(wrong)} of {ours.size} differ, first at {wrong[0]}"


def two(graph: Graph, kind: str, first: str = "x", second: str = "y", about: float = 0.05) -> None:
    terms = [graph.dequantise(name, graph.codes(0.03)) for name in (first, second)]
    graph.end(graph.node(kind, terms), about)


# Operator, and the scale of its result.
KINDS = {"Sub": 0.05, "Div": 0.05, "Max": 0.03, "Min": 0.03, "PRelu": 0.05, "Add": 0.05, "Mul": 0.1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_all_pairs_of_one_operator(kind, seed):
    graph = Graph(seed, len(kind))
    for _ in range(6):
        two(graph, kind, about=KINDS[kind])
    compare(graph, PAIRS)


@pytest.mark.parametrize("seed", range(3))
def test_floats_between_two_tensors(seed):
    graph = Graph(seed, 20)
    for gate in ("HardSigmoid", "Abs", "Exp", "Relu"):
        x, y = (graph.dequantise(name, graph.codes(0.02)) for name in ("x", "y"))
        graph.end(graph.node("Mul", [x, graph.node(gate, [y])]), 0.05)
        x, y = (graph.dequantise(name, graph.codes(0.02)) for name in ("x", "y"))
        graph.end(graph.node(gate, [graph.node("Sub", [y, x])]), 0.02)
    x, y = (graph.dequantise(name, graph.codes(0.02)) for name in ("x", "y"))
    graph.end(graph.node("Max", [x, y, graph.float_constant()]), 0.02)
    compare(graph, PAIRS)


@pytest.mark.parametrize("activation", ["", "Relu"])
@pytest.mark.parametrize("scale", [16, 1024, 4096])
def test_a_sum_whose_terms_are_of_very_different_sizes(scale, activation):
    """An activation that changes nothing is taken away by the CPU, which then adds codes, not floats."""
    graph = Graph(0, scale)
    y = graph.node("Add", [graph.dequantise("x", (scale, 255)), graph.dequantise("y", (0.03125, 114))])
    y = graph.node(activation, [y]) if activation else y
    output = graph.quantise(y, (0.0187584069, 0))
    graph.outputs.append(helper.make_tensor_value_info(output, TensorProto.UINT8, None))
    compare(graph, PAIRS)


REPEATS = [((2, 5, 4, 3), (1, 5, 1, 1)), ((2, 5, 4, 3), (2, 1, 4, 1)), ((2, 1, 1, 3), (2, 5, 4, 1)), ((2, 7), (7,)), ((3, 4, 5), (5,))]


@pytest.mark.parametrize("shapes", REPEATS, ids=str)
@pytest.mark.parametrize("kind", ["Sub", "Div", "Max", "Min"])
def test_repeated_operands(kind, shapes):
    random = np.random.default_rng(len(kind))
    graph = Graph(5, len(kind))
    for names in (("x", "y"), ("y", "x")):
        two(graph, kind, *names)
    compare(graph, {name: random.integers(0, 256, shape, dtype=np.uint8) for name, shape in zip("xy", shapes, strict=True)})


def vectors(graph: Graph, kind: str, shape, *, quantised: bool) -> None:
    """`kind` of the codes and of a constant of `shape`."""
    x = graph.dequantise("x", graph.codes(0.03))
    if quantised:
        values = graph.constant(0, np.uint8, shape)
        graph.constants[-1].CopyFrom(numpy_helper.from_array(graph.random.integers(0, 256, shape, dtype=np.uint8), values))
        other = graph.dequantise(values, graph.codes(0.02))
    else:
        other = graph.constant(0, np.float32, shape)
        values = graph.random.uniform(0.2, 3, shape).astype(np.float32)
        graph.constants[-1].CopyFrom(numpy_helper.from_array(values, other))
    graph.end(graph.node(kind, [x, other]), 0.05)


CHANNELS = {"x": np.tile(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, 21, 1, 1))}


@pytest.mark.parametrize("shape", [(21, 1, 1), (1, 21, 1, 1), (16,), (16, 1), (1, 1, 1, 16)], ids=str)
@pytest.mark.parametrize("quantised", [False, True], ids=["float", "quantised"])
@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"])
def test_a_constant_of_several_elements(kind, quantised, shape):
    graph = Graph(len(shape), len(kind))
    for _ in range(4):
        vectors(graph, kind, shape, quantised=quantised)
    compare(graph, CHANNELS)


@pytest.mark.parametrize("seed", range(4))
def test_batch_normalization(seed):
    """Behind a reader of codes, so that no convolution takes it in."""
    graph = Graph(seed, 40)
    for _ in range(8):
        x = graph.dequantise("x", graph.codes(0.03))
        names = [graph.constant(0, np.float32, (21,)) for _ in range(4)]
        for name, low in zip(names, (0.2, -1, -1, 0.05), strict=True):
            tensor = next(t for t in graph.constants if t.name == name)
            tensor.CopyFrom(numpy_helper.from_array(graph.random.uniform(low, 2, 21).astype(np.float32), name))
        graph.end(graph.node("BatchNormalization", [x, *names], epsilon=float(graph.random.choice([1e-5, 1e-3]))), 0.05)
    compare(graph, CHANNELS)

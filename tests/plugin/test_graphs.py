"""Whole graphs of random form: branches, refused operators in the middle, codes as inputs and outputs.

What is asked is less than of a layer, namely nothing of what is taken, and more: wherever the graph is
cut between the NPU and the CPU provider, the outputs are those of the CPU provider alone.
"""

import numpy as np
import pytest
import sessions
from onnx import ModelProto, TensorProto, helper
from test_layers import Layer

SEEDS = range(40)


class Random(Layer):
    """A graph that grows by whole units; `flow` is every 8-bit tensor so far with its codes and shape."""

    def __init__(self, seed: int):
        random = np.random.default_rng([seed, 100])
        shape = [int(n) for n in random.integers(1, [4, 13, 11, 11])]
        super().__init__(random, shape)
        codes = self.codes(0.02)
        self.flow, self.outputs = [], []
        self.inputs = {"x": (self.x, codes), "u": (helper.make_tensor_value_info("u", TensorProto.UINT8, shape), codes)}
        self.flow = [(self.quantise("x", codes), codes, shape), ("u", codes, shape)]

    def any(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def pick(self, fits=lambda shape: True):
        """A late tensor more often than an early one; none may fit."""
        found = [tensor for tensor in self.flow if fits(tensor[2])]
        return found[-1 - min(int(self.random.exponential(2)), len(found) - 1)] if found else None

    def give(self, value: str, codes, shape) -> None:
        """Ends a unit, with a Relu that the codes leave nothing to do, or that they do not."""
        if self.any(0.7 if codes[1] == 0 else 0.1):
            value = self.node("Relu", [value])
        self.flow.append((self.quantise(value, codes), codes, shape))
        if self.any(0.15):
            self.outputs.append((self.flow[-1][0], TensorProto.UINT8))
        if self.any(0.15):
            self.outputs.append((self.dequantise(self.flow[-1][0], codes), TensorProto.FLOAT))

    def convolution(self) -> None:
        x, codes, shape = self.pick(lambda shape: len(shape) == 4) or self.flow[0]
        groups = int(self.random.choice([g for g in range(1, shape[1] + 1) if shape[1] % g == 0]))
        outputs = shape[1] if self.any(0.6) else groups * int(self.random.integers(1, 5))
        kernel = [int(k) for k in self.random.integers(1, 4, 2)]
        strides = [1, 1] if self.any(0.7) else [2, 1]
        scales, result = self.weight_scales(outputs), self.codes(0.5)
        inputs = [self.dequantise(x, codes), self.weights([outputs, shape[1] // groups, *kernel], 0, scales)]
        if self.any(0.7):
            inputs.append(self.bias(outputs, codes[0], scales, 20_000))
        padding = str(self.random.choice(["SAME_UPPER", "SAME_LOWER"]))
        y = self.node("Conv", inputs, group=groups, strides=strides, auto_pad=padding)
        self.give(y, result, [shape[0], outputs, -(-shape[2] // strides[0]), shape[3]])

    def addition(self) -> None:
        a = self.pick()
        b = self.pick(lambda shape: shape == a[2])
        terms = [self.dequantise(*a[:2]), self.dequantise(*b[:2])]
        if a[0] == b[0] and self.any(0.5):
            terms = terms[:1] * 2
        self.give(self.node("Add", terms if self.any(0.5) else terms[::-1]), self.codes(0.5), a[2])

    def reshape(self) -> None:
        x, codes, shape = self.pick()
        length = int(np.prod(shape[1:]))
        rows = int(self.random.choice([n for n in range(1, length + 1) if length % n == 0]))
        new = [[rows, length // rows], [length], [1, rows, length // rows], [rows, 1, length // rows]][self.random.integers(4)]
        spec = self.constant([[0, *new], [-1, *new], [0, *new[:-1], -1]][self.random.integers(3)], np.int64)
        y = self.node("Reshape", [self.dequantise(x, codes), spec])
        self.give(y, codes if self.any(0.7) else self.codes(0.1), [shape[0], *new])

    def pool(self) -> None:
        x, codes, shape = self.pick(lambda shape: len(shape) == 4 and min(shape[2:]) > 1) or self.flow[0]
        if min(shape[2:]) < 2 or self.any(0.3):
            y, shape = self.node("GlobalAveragePool", [self.dequantise(x, codes)]), [*shape[:2], 1, 1]
            return self.give(y, self.codes(0.1), shape)
        kind = str(self.random.choice(["MaxPool", "AveragePool"]))
        y = self.node(kind, [self.dequantise(x, codes)], kernel_shape=[2, 2], pads=[1, 0, 0, 1], strides=[1, 1])
        return self.give(y, codes if kind == "MaxPool" else self.codes(0.1), shape)

    def matrix(self) -> None:
        found = self.pick(lambda shape: len(shape) == 2)
        if not found:
            return
        x, codes, shape = found
        outputs = int(self.random.integers(1, 20))
        scales = self.weight_scales(outputs)
        inputs = [self.dequantise(x, codes), self.weights([shape[1], outputs], 1, scales)]
        if self.any(0.5):
            y = self.node("Gemm", [*inputs, self.bias(outputs, codes[0], scales, 20_000)])
        else:
            y = self.node("MatMul", inputs)
        self.give(y, self.codes(1.0), [shape[0], outputs])

    def function(self) -> None:
        """A function of one tensor, which may multiply that tensor."""
        x, codes, shape = self.pick()
        kind = str(self.random.choice(["Sigmoid", "Tanh", "HardSigmoid", "Abs", "Neg", "Relu", "LeakyRelu"]))
        result = self.codes(0.01)
        y = self.node(kind, [self.dequantise(x, codes)])
        if self.random.random() < 0.5:
            self.give(y, result, shape)
            return
        y = self.quantise(y, result)
        if self.random.random() < 0.2:
            self.flow.append((y, result, shape))
        kind = str(self.random.choice(["Add", "Mul", "Max", "Sub"]))
        self.give(self.node(kind, [self.dequantise(x, codes), self.dequantise(y, result)]), self.codes(0.05), shape)

    def refused(self) -> None:
        x, codes, shape = self.pick()
        kind = str(self.random.choice(["Softsign", "Sin", "Identity", "LogSoftmax", "Transpose", "codes"]))
        if kind == "codes":
            self.flow.append((self.node("Identity", [x]), codes, shape))
        elif kind == "Transpose":
            order = [0, *range(2, len(shape)), *([1] if len(shape) > 1 else [])]
            self.give(self.node(kind, [self.dequantise(x, codes)], perm=order), codes, [shape[axis] for axis in order])
        else:
            self.give(self.node(kind, [self.dequantise(x, codes)]), self.codes(0.05), shape)

    def model(self) -> ModelProto:
        steps = [self.convolution, self.addition, self.reshape, self.pool, self.matrix, self.function, self.refused]
        for step in self.random.choice(len(steps), int(self.random.integers(3, 14)), p=[0.25, 0.2, 0.12, 0.12, 0.1, 0.13, 0.08]):
            steps[step]()
        self.outputs.append((self.dequantise(*self.flow[-1][:2]), TensorProto.FLOAT))
        outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in dict(self.outputs).items()]
        inputs = [info for info, _ in self.inputs.values()]
        graph = helper.make_graph(self.nodes, "graph", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)

    def feeds(self) -> dict[str, np.ndarray]:
        codes = self.inputs["x"][1]
        return {"x": self.input(codes), "u": self.random.integers(0, 256, self.shape).astype(np.uint8)}


def compare(npu, reference, feeds: dict[str, np.ndarray]) -> None:
    for output, a, b in zip(reference.get_outputs(), npu.run(None, feeds), reference.run(None, feeds), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), output.name
        assert np.array_equal(sessions.bits(a), sessions.bits(b)), output.name


@pytest.mark.parametrize("seed", SEEDS)
def test_random_graphs(seed):
    graph = Random(seed)
    model = graph.model().SerializeToString()
    npu, reference = sessions.by_name(model, severity=3), sessions.cpu(model)
    for _ in range(3):
        compare(npu, reference, graph.feeds())


@pytest.mark.parametrize("read", ["codes", "the float before them", "the float behind them"])
def test_the_body_of_an_if_reads_a_tensor_in_the_middle(read):
    """Such a reader stands in no list of a node's inputs."""
    layer = Layer(np.random.default_rng(1), [1, 4, 3, 3])
    codes = (np.float32(0.02), 7)

    def convolution(x: str) -> tuple[str, str, str]:
        before = layer.dequantise(x, codes)
        y = layer.node("Conv", [before, layer.weights([4, 4, 1, 1], 0, np.float32(0.01))])
        return before, y, layer.quantise(y, codes)

    _, middle, first = convolution(layer.quantise("x", codes))
    behind, _, second = convolution(first)
    wanted = {"codes": first, "the float before them": middle, "the float behind them": behind}[read]

    def body(name: str, value: str):
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Cast", [value], [name], to=TensorProto.FLOAT)], name, [], [result])

    chosen = layer.node("If", ["choice"], then_branch=body("yes", wanted), else_branch=body("no", "x"))
    model = layer.model(layer.dequantise(second, codes))
    model.graph.input.append(helper.make_tensor_value_info("choice", TensorProto.BOOL, []))
    model.graph.output.append(helper.make_tensor_value_info(chosen, TensorProto.FLOAT, None))
    npu, reference = (make(model.SerializeToString()) for make in (sessions.by_name, sessions.cpu))
    for choice in (True, False):
        compare(npu, reference, {"x": layer.input(codes), "choice": np.array(choice)})


def test_a_shape_that_inference_got_wrong_in_the_middle():
    """Inference counts a last window that lies wholly in the padding, as the CPU's kernel does not."""
    layer = Layer(np.random.default_rng(2), [1, 4, 5, 5])
    codes = (np.float32(0.02), 7)
    before = layer.dequantise(layer.quantise("x", codes), codes)
    refused = {"ceil_mode": 1, "count_include_pad": 1}
    y = layer.node("AveragePool", [before], kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1], **refused)
    y = layer.dequantise(layer.quantise(y, codes), codes)
    y = layer.node("Conv", [y, layer.weights([4, 4, 1, 1], 0, np.float32(0.01))])
    model = layer.model(layer.dequantise(layer.quantise(y, codes), codes)).SerializeToString()
    compare(sessions.by_name(model), sessions.cpu(model), {"x": layer.input(codes)})


@pytest.mark.parametrize("padding", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kind", ["Conv", "AveragePool"])
def test_steps_wider_than_the_window_with_automatic_padding(kind, padding):
    """The CPU's pools take the padding for negative then, and its convolutions for none."""
    layer = Layer(np.random.default_rng(3), [1, 4, 9, 12])
    codes = (np.float32(0.02), 7)
    inputs = [layer.dequantise(layer.quantise("x", codes), codes)]
    if kind == "Conv":
        inputs.append(layer.weights([4, 4, 2, 1], 0, np.float32(0.01)))
    y = layer.quantise(layer.node(kind, inputs, kernel_shape=[2, 1], strides=[4, 3], auto_pad=padding), codes)
    y = layer.node("Conv", [layer.dequantise(y, codes), layer.weights([4, 4, 1, 1], 0, np.float32(0.01))])
    model = layer.model(layer.dequantise(layer.quantise(y, codes), codes)).SerializeToString()
    compare(sessions.by_name(model), sessions.cpu(model), {"x": layer.input(codes)})


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("seed", range(8))
def test_a_last_window_that_is_cut_off(seed, kind):
    layer = Layer(np.random.default_rng([seed, 101]), [2, 5, 7 + seed % 5, 11])
    codes = layer.codes(0.02)
    kernel, strides = layer.random.integers(1, 5, 2), layer.random.integers(1, 5, 2)
    pads = [int(layer.random.integers(k)) for k in [*kernel, *kernel]]
    attributes = {"kernel_shape": kernel.tolist(), "strides": strides.tolist(), "pads": pads, "ceil_mode": 1}
    y = layer.node(kind, [layer.dequantise(layer.quantise("x", codes), codes)], **attributes)
    result = codes if kind == "MaxPool" else layer.codes(0.02)
    model = layer.model(layer.dequantise(layer.quantise(y, result), result)).SerializeToString()
    npu = sessions.by_name(model)
    sessions.assert_all_on_npu(npu)
    compare(npu, sessions.cpu(model), {"x": layer.input(codes)})

"""Functions of one 8-bit tensor, code by code: all 256 through the NPU's table and through the CPU provider's kernels.

A table can be proved by trying it: it has no more entries. Here each operator meets many scales and zero points, half of
the scales powers of two, so that many values lie exactly on a rounding tie.
"""

import numpy as np
import pytest
import sessions
from onnx import ModelProto, TensorProto, helper, numpy_helper

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")

SEEDS = range(8)
BRANCHES = 16
ALL_CODES = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)


class Graph:
    """Branches from one input of codes; each dequantises it with a meaning of its own and ends in codes."""

    def __init__(self, seed: int, salt: int = 0, opset: int = 14):
        self.random = np.random.default_rng([seed, salt])
        self.shape = ALL_CODES.shape
        self.nodes, self.constants, self.outputs, self.count, self.opset = [], [], [], 0, opset

    def constant(self, value, kind, shape=()) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.full(shape, value, kind), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes) -> str:
        self.count += 1
        output = f"{kind.lower()}{self.count}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{self.count}", **attributes))
        return output

    def codes(self, about: float) -> tuple[np.float32, int]:
        if self.random.random() < 0.5:
            scale = np.float32(2.0 ** np.round(np.log2(about)))
        else:
            scale = np.float32(about * self.random.uniform(0.5, 2))
        return scale, int(self.random.choice([0, 255, 128, self.random.integers(256)]))

    def dequantise(self, x: str, codes) -> str:
        return self.node("DequantizeLinear", [x, self.constant(codes[0], np.float32), self.constant(codes[1], np.uint8)])

    def quantise(self, x: str, codes) -> str:
        return self.node("QuantizeLinear", [x, self.constant(codes[0], np.float32), self.constant(codes[1], np.uint8)])

    def quantised_constant(self, shape=()) -> str:
        return self.dequantise(self.constant(self.random.integers(256), np.uint8, shape), self.codes(0.02))

    def float_constant(self, shape=(), low: float = -3) -> str:
        return self.constant(self.random.uniform(low, 3), np.float32, shape)

    def end(self, x: str, about: float) -> None:
        self.outputs.append(helper.make_tensor_value_info(self.quantise(x, self.codes(about)), TensorProto.UINT8, None))

    def model(self) -> ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.UINT8, self.shape)
        graph = helper.make_graph(self.nodes, "tables", [x], self.outputs, self.constants)
        return onnx_model(graph, self.opset)


def onnx_model(graph, opset: int) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def compare(graph: Graph) -> None:
    model = graph.model().SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    left = sessions.operators_on(npu, sessions.CPU)
    assert not left, f"left to the CPU: {left}"
    sessions.assert_same(npu, reference, ALL_CODES, "codes")


# Operator, attributes, scale of the input and of the output.
UNARY = {
    "Relu": ("Relu", {}, 0.02, 0.02),
    "LeakyRelu": ("LeakyRelu", {"alpha": 0.1}, 0.02, 0.02),
    "Sigmoid": ("Sigmoid", {}, 0.05, 1 / 256),
    "Sigmoid, wide": ("Sigmoid", {}, 0.5, 1 / 128),
    "HardSigmoid": ("HardSigmoid", {}, 0.05, 1 / 256),
    "HardSigmoid, a sixth": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 0.05, 1 / 256),
    "Tanh": ("Tanh", {}, 0.03, 1 / 128),
    "Tanh, wide": ("Tanh", {}, 0.3, 1 / 128),
    "Erf": ("Erf", {}, 0.03, 1 / 128),
    "Exp": ("Exp", {}, 0.03, 0.05),
    "Sqrt": ("Sqrt", {}, 0.03, 0.01),
    "Abs": ("Abs", {}, 0.02, 0.02),
    "Neg": ("Neg", {}, 0.02, 0.02),
}


@pytest.mark.parametrize("case", UNARY)
@pytest.mark.parametrize("seed", SEEDS)
def test_one_operator(case, seed):
    kind, attributes, about, result = UNARY[case]
    graph = Graph(seed)
    for _ in range(BRANCHES):
        graph.end(graph.node(kind, [graph.dequantise("x", graph.codes(about))], **attributes), result)
    compare(graph)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("constant", ["quantised", "float"])
@pytest.mark.parametrize("first", [True, False], ids=["constant first", "constant second"])
@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_one_operator_and_a_constant(kind, first, constant, shape):
    graph = Graph(len(shape) + 10 * first, len(kind))
    for _ in range(3 * BRANCHES):
        x = graph.dequantise("x", graph.codes(0.02))
        other = graph.quantised_constant(shape) if constant == "quantised" else graph.float_constant(shape)
        graph.end(graph.node(kind, [other, x] if first else [x, other]), 0.05)
    compare(graph)


@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_slopes_and_powers(seed):
    graph = Graph(seed, 3)
    for _ in range(BRANCHES // 4):
        bounds = sorted(graph.random.uniform(-2, 3, 2))
        x = [graph.dequantise("x", graph.codes(0.02)) for _ in range(4)]
        graph.end(graph.node("Clip", [x[0], *(graph.constant(bound, np.float32) for bound in bounds)]), 0.02)
        graph.end(graph.node("PRelu", [x[1], graph.float_constant((1,))]), 0.02)
        graph.end(graph.node("Pow", [x[2], graph.constant(2, np.float32)]), 0.04)
        graph.end(graph.node("Pow", [x[3], graph.constant(3, np.float32)]), 0.1)
    compare(graph)


def step(graph: Graph, x: str, kind: str, about: float, codes, *others: str, **attributes) -> tuple[str, tuple]:
    """A whole unit from the codes `x`; returns its codes and their meaning."""
    result = graph.codes(about)
    return graph.quantise(graph.node(kind, [graph.dequantise(x, codes), *others], **attributes), result), result


@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid", "Tanh"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_tensor_times_a_function_of_itself(seed, gate):
    graph = Graph(seed, 4)
    for turn in range(BRANCHES):
        codes = graph.codes(0.04)
        # All branches begin at one tensor; here each gets one of its own.
        x, codes = step(graph, "x", "LeakyRelu", 0.04, codes, alpha=0.3)
        y, gated = step(graph, x, gate, 1 / 200, codes)
        terms = [graph.dequantise(x, codes), graph.dequantise(y, gated)]
        graph.end(graph.node("Mul", terms if turn % 2 else terms[::-1]), 0.02)
    compare(graph)


@pytest.mark.parametrize("seed", SEEDS)
def test_hard_swish_step_by_step(seed):
    """As an older exporter writes it: (x * clip(x + 3, 0, 6)) / 6, each step quantised."""
    graph = Graph(seed, 5)
    for _ in range(BRANCHES):
        x, codes = step(graph, "x", "LeakyRelu", 0.04, graph.codes(0.04), alpha=0.5)
        three = graph.quantised_constant()
        sum_, moved = step(graph, x, "Add", 0.04, codes, three)
        low, high = graph.constant(0, np.float32), graph.constant(6, np.float32)
        gate, clipped = step(graph, sum_, "Clip", 0.024, moved, low, high)
        product, wide = step(graph, x, "Mul", 0.1, codes, graph.dequantise(gate, clipped))
        graph.end(graph.node("Div", [graph.dequantise(product, wide), graph.float_constant(low=2)]), 0.02)
    compare(graph)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Max", "Min"])
@pytest.mark.parametrize("seed", SEEDS)
def test_two_functions_of_one_tensor(seed, kind):
    graph = Graph(seed, 6)
    for _ in range(BRANCHES):
        codes = graph.codes(0.03)
        a, first = step(graph, "x", "LeakyRelu", 0.03, codes, alpha=0.2)
        b, second = step(graph, "x", "Abs", 0.03, codes)
        graph.end(graph.node(kind, [graph.dequantise(a, first), graph.dequantise(b, second)]), 0.04)
    compare(graph)


@pytest.mark.parametrize("seed", SEEDS)
def test_floats_between_operators(seed):
    graph = Graph(seed, 7)
    for _ in range(BRANCHES // 2):
        y = graph.node("Div", [graph.dequantise("x", graph.codes(0.05)), graph.constant(np.sqrt(2), np.float32)])
        graph.end(graph.node("Erf", [y]), 1 / 128)
        codes = graph.codes(0.05)
        gate = graph.node("HardSigmoid", [graph.dequantise("x", codes)], alpha=1 / 6)
        graph.end(graph.node("Mul", [gate, graph.dequantise("x", codes)]), 0.03)
    compare(graph)


# Operators that may stand between floats, and what draws their further inputs.
CHAIN = {
    "Relu": [], "LeakyRelu": [], "HardSigmoid": [], "Abs": [], "Neg": [], "Exp": [],
    "Add": ["any"], "Sub": ["any"], "Mul": ["any"], "Div": ["float"], "Max": ["any"], "Min": ["any"], "Clip": ["low", "high"],
}  # fmt: skip


@pytest.mark.parametrize("seed", range(24))
def test_random_chains_of_floats(seed):
    graph = Graph(seed, 10)
    others = {
        "any": lambda: graph.quantised_constant() if graph.random.random() < 0.5 else graph.float_constant(),
        "float": lambda: graph.float_constant(low=0.5),
        "low": lambda: graph.constant(graph.random.choice([0, -1]), np.float32),
        "high": lambda: graph.constant(graph.random.choice([1, 6]), np.float32),
    }
    for _ in range(BRANCHES):
        y = graph.dequantise("x", graph.codes(0.02))
        for kind in graph.random.choice(list(CHAIN), int(graph.random.integers(2, 5))):
            inputs = [y, *(others[other]() for other in CHAIN[kind])]
            y = graph.node(str(kind), inputs[::-1] if kind in ("Add", "Mul", "Sub") and graph.random.random() < 0.5 else inputs)
        graph.end(y, 0.02)
    compare(graph)


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_tensor_of_one_element_and_a_constant(kind):
    graph = Graph(1, 11)
    graph.shape = (1, 1, 1, 1)
    for turn in range(BRANCHES):
        inputs = [graph.dequantise("x", graph.codes(0.02)), graph.quantised_constant((1,) * (turn % 5))]
        graph.end(graph.node(kind, inputs if turn % 2 else inputs[::-1]), 0.05)
    model = graph.model().SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for code in range(256):
        sessions.assert_same(npu, reference, np.full(graph.shape, code, np.uint8), f"code {code}")


@pytest.mark.parametrize("seed", SEEDS)
def test_hard_swish_as_one_operator(seed):
    graph = Graph(seed, 8)
    for _ in range(BRANCHES):
        graph.end(graph.node("HardSwish", [graph.dequantise("x", graph.codes(0.05))]), 0.03)
    compare(graph)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_not_certain_is_left_and_all_outputs_are_equal(seed):
    graph = Graph(seed, 9)
    for _ in range(BRANCHES):
        graph.end(graph.node("Elu", [graph.dequantise("x", graph.codes(0.02))], alpha=float(graph.random.uniform(0.3, 1.5))), 0.02)
    model = graph.model().SerializeToString()
    npu = sessions.by_name(model)
    taken = sessions.operators_on(npu, sessions.EP).count("Elu")
    assert taken >= BRANCHES // 4, f"only {taken} of {BRANCHES} were taken"
    sessions.assert_same(npu, sessions.cpu(model), ALL_CODES, "codes")


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 1.5, 2.2, 4])
def test_powers(exponent):
    """By what is not multiplied out: taken where the CPU's last bits cannot change a code, and equal wherever it runs."""
    graph = Graph(int(exponent * 10) + 30, 50)
    for _ in range(3 * BRANCHES):
        scale, zero = graph.codes(0.02)
        x = graph.dequantise("x", (scale, zero if float(exponent).is_integer() else 0))
        graph.end(graph.node("Pow", [x, graph.constant(exponent, np.float32)]), 0.05)
    model = graph.model().SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_same(npu, reference, ALL_CODES, f"to the {exponent}")
    taken = sessions.operators_on(npu, sessions.EP).count("Pow")
    assert taken > BRANCHES, f"{taken} of {3 * BRANCHES} taken"

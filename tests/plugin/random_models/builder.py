"""A graph that grows node by node and knows each value on a sample, so that every next unit can be made to suit it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from .codes import Codes, Style

# No value larger than this: many small models find more than few large ones.
MOST_ELEMENTS = 40_000
IR_VERSION = 10
MICROSOFT = "com.microsoft"


class ImpossibleUnit(Exception):
    """What was drawn is no valid unit here; the graph stays as it was."""


@dataclass(frozen=True)
class Tensor:
    """An 8-bit value of the graph."""

    name: str
    codes: Codes
    shape: tuple[int, ...]


class Builder:
    """Nodes, constants, inputs and outputs so far. `flow` holds the 8-bit tensors that units may start from."""

    def __init__(self, random: np.random.Generator, style: Style, opset: int, batch: int, dynamic: bool):
        self.random, self.style, self.opset = random, style, opset
        self.batch, self.dynamic = batch, dynamic
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: dict[str, np.ndarray] = {}
        self.inputs: dict[str, Codes] = {}  # with the codes that suit them, also where they are floats
        self.outputs: list[str] = []
        self.flow: list[Tensor] = []
        self.shared: dict[str, str] = {}
        self.count = 0

    # Chance

    def any(self, p: float) -> bool:
        return bool(self.random.random() < p)

    def one(self, *choices):
        return choices[int(self.random.integers(len(choices)))]

    def whole(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return int(self.random.integers(low, high + 1))

    def pick(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Tensor:
        """A late tensor more often than an early one."""
        found = [tensor for tensor in self.flow if fits(tensor.shape)]
        if not found:
            raise ImpossibleUnit
        return found[-1 - min(int(self.random.exponential(1.5)), len(found) - 1)]

    # Growth

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def constant(self, values, element=np.int64) -> str:
        name = self.name("k")
        self.constants[name] = self.values[name] = np.asarray(values, element)
        return name

    def input(self, values: np.ndarray, codes: Codes) -> str:
        name = self.name("in")
        self.values[name], self.inputs[name] = values, codes
        return name

    def node(self, kind: str, inputs: list[str], outputs: int = 1, domain: str = "", **attributes) -> str:
        """Adds a node, runs it on the sample and gives the name of its first output; the others follow it in `values`."""
        stem = self.name(kind.lower())
        names = [stem] + [f"{stem}.{k}" for k in range(1, outputs)]
        made = helper.make_node(kind, inputs, names, name=self.name(kind), domain=domain, **attributes)
        for name, value in zip(names, self.run(made), strict=True):
            if value.size > MOST_ELEMENTS or value.size == 0:
                raise ImpossibleUnit
            self.values[name] = value
        self.nodes.append(made)
        return stem

    def run(self, node: NodeProto) -> list[np.ndarray]:
        names = [name for name in dict.fromkeys(node.input) if name]
        feeds = {name: self.values[name] for name in names if name not in self.constants}
        constants = [numpy_helper.from_array(self.constants[name], name) for name in names if name in self.constants]
        inputs = [value_info(name, value.dtype, value.shape) for name, value in feeds.items()]
        outputs = [ValueInfoProto(name=name) for name in node.output]
        model = self.proto(helper.make_graph([node], "unit", inputs, outputs, constants))
        try:
            return session(model, 1).run(None, feeds)
        except Exception as error:  # all that ONNX Runtime's failed statuses have in common
            raise ImpossibleUnit from error

    def quantise(self, value: str, codes: Codes) -> Tensor:
        name, source = self.name("q"), self.values[value]
        if source.dtype != np.float32:
            raise ImpossibleUnit
        self.nodes.append(helper.make_node("QuantizeLinear", [value, *self.meaning(codes)], [name], name=self.name("Q")))
        self.values[name] = codes.quantise(source)
        return Tensor(name, codes, source.shape)

    def dequantise(self, tensor: Tensor) -> str:
        """A DequantizeLinear of its own, or one that several units share."""
        if tensor.name in self.shared and self.any(0.3):
            return self.shared[tensor.name]
        name = self.name("dq")
        self.nodes.append(helper.make_node("DequantizeLinear", [tensor.name, *self.meaning(tensor.codes)], [name], name=self.name("DQ")))
        self.values[name] = tensor.codes.restore(self.values[tensor.name])
        self.shared[tensor.name] = name
        return name

    def meaning(self, codes: Codes) -> list[str]:
        """The scale and the zero point, as constants."""
        return [self.constant(codes.scale, np.float32), self.constant(codes.zero, codes.element)]

    def give(self, value: str, keep: Codes | None = None) -> Tensor:
        """Ends a unit. With `keep`, those codes more often than others; a clamp may stand in front of the Q."""
        if self.any(0.15):
            value = self.node("Relu", [value])
        elif self.any(0.05):
            value = self.node("Clip", [value, self.constant(0, np.float32), self.constant(6, np.float32)])
        codes = keep if keep and self.any(0.7) else self.style.codes(self.random, self.values[value])
        return self.add(self.quantise(value, codes))

    def add(self, tensor: Tensor) -> Tensor:
        self.flow.append(tensor)
        return tensor

    def attempt(self, unit: Callable[["Builder"], object]) -> bool:
        """Adds a unit, or nothing of it."""
        before = len(self.nodes), len(self.flow), len(self.outputs)
        shared = dict(self.shared)
        try:
            unit(self)
        except ImpossibleUnit:
            del self.nodes[before[0] :], self.flow[before[1] :], self.outputs[before[2] :]
            self.shared = shared
            return False
        return True

    # The end

    def model(self) -> ModelProto:
        used = {name for node in self.nodes for name in node.input}
        inputs = [self.declared(name) for name in self.inputs]
        outputs = [self.declared(name, shaped=not self.dynamic) for name in dict.fromkeys(self.outputs)]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used]
        return self.proto(helper.make_graph(self.nodes, "random", inputs, outputs, constants))

    def declared(self, name: str, shaped: bool = True) -> ValueInfoProto:
        value = self.values[name]
        shape = ["batch" if self.dynamic else value.shape[0], *value.shape[1:]] if value.ndim else []
        return value_info(name, value.dtype, shape if shaped else None)

    def proto(self, graph) -> ModelProto:
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def value_info(name: str, element, shape) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(element)), shape)


def session(model: ModelProto, threads: int) -> ort.InferenceSession:
    """On the CPU provider alone, silent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])




"""Faults of the CPU provider with models that are right: where it stops for one of these, an answer of ours is no finding.

Each is told by its message and by what the model must have for it, so that no other failure passes for one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import onnx


def nodes(graph: onnx.GraphProto):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def attributes(node: onnx.NodeProto) -> dict:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def has_pool_of_doubtful_shape(model: onnx.ModelProto) -> bool:
    """A pool for whose result ONNX Runtime's inference says another shape than its kernel makes."""

    def is_doubtful(node: onnx.NodeProto) -> bool:
        given = attributes(node)
        spread = max(given.get("dilations", [1])) > 1 and given.get("auto_pad", b"NOTSET").startswith(b"SAME")
        return node.op_type in ("MaxPool", "AveragePool", "LpPool") and (spread or bool(given.get("ceil_mode")))

    return any(is_doubtful(node) for node in nodes(model.graph))


def has_resize(mode: bytes) -> Callable[[onnx.ModelProto], bool]:
    def has(model: onnx.ModelProto) -> bool:
        return any(node.op_type == "Resize" and attributes(node).get("mode") == mode for node in nodes(model.graph))

    return has


@dataclass(frozen=True)
class Fault:
    text: str  # in its message
    is_of: Callable[[onnx.ModelProto], bool]  # whether the model may have it
    depends_on_rest: bool = False  # whether a part of the model may show it where the whole does not


FAULTS = (
    # It plans memory by the shape that it inferred: which nodes get such a buffer again depends on which it has.
    Fault("Shape mismatch attempting to re-use buffer", has_pool_of_doubtful_shape, depends_on_rest=True),
    # Its own operators between codes look at the shapes of both.
    *(
        Fault(f"({op}) [ShapeInferenceError] Incompatible dimensions", has_pool_of_doubtful_shape)
        for op in ("QLinearAdd", "QLinearConcat", "QLinearMul", "QLinearWhere")
    ),
    # Its own layout change made the Resize what it does not take.
    Fault("'Cubic' mode only supports", has_resize(b"cubic")),
    Fault("'Linear' mode only supports", has_resize(b"linear")),
)

OPERATOR = re.compile(r"while running (\w+) node")


def is_of_cpu(message: str, model: onnx.ModelProto) -> bool:
    """Whether the CPU provider alone stopped with this for a fault of its own."""
    return any(fault.text in message and fault.is_of(model) for fault in FAULTS)


def is_of_rest(message: str, model: onnx.ModelProto, left: dict[str, int]) -> bool:
    """Whether a session with us stopped so in a node that was left to the CPU provider, of `left` by operator."""
    running = OPERATOR.search(message)
    return (
        running is not None
        and running[1] in left
        and any(fault.depends_on_rest and fault.text in message and fault.is_of(model) for fault in FAULTS)
    )

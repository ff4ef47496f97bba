"""Faults of the CPU provider with models that are right: where it stops for one of these, an answer of ours is no finding.

Each is told by its message and by what the model must have for it, so that no other failure passes for one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort


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


def has_prelu(model: onnx.ModelProto) -> bool:
    """ONNX Runtime infers that its result has the shape of the first input, also where the slopes are more."""
    return any(node.op_type == "PRelu" for node in nodes(model.graph))


def has_reshape(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Reshape" for node in nodes(model.graph))


def has_pad_that_wraps(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Pad" and attributes(node).get("mode") == b"wrap" for node in nodes(model.graph))


def has_softmax(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "Softmax" for node in nodes(model.graph))


@dataclass(frozen=True)
class Fault:
    pattern: str  # in its message
    is_of: Callable[[onnx.ModelProto], bool]  # whether the model may have it
    reads_none: str | None = None  # the operator that must read an empty tensor in that run


FAULTS = (
    # It plans memory by the shape that it inferred.
    Fault("Shape mismatch attempting to re-use buffer", lambda model: has_pool_of_doubtful_shape(model) or has_prelu(model)),
    # Its own operators between codes look at the shapes of both.
    *(
        Fault(rf"\({op}\) \[ShapeInferenceError\] (Incompatible dimensions|Can't merge shape info)", has_pool_of_doubtful_shape)
        for op in ("QLinearAdd", "QLinearConcat", "QLinearMul", "QLinearWhere")
    ),
    Fault(r"\(Reshape\) \[ShapeInferenceError\] Dimension could not be inferred", has_pool_of_doubtful_shape),
    # Its own layout change made the Resize what it does not take.
    Fault("'Cubic' mode only supports", has_resize(b"cubic")),
    Fault("'Linear' mode only supports", has_resize(b"linear")),
    # A length that is to be found is not looked for where the others come to none, though all of the result is none.
    Fault(
        r"running Reshape node.*cannot be reshaped to the requested shape\. Input shape:\{(\d+,)*0[,}].*requested shape:\{(\d+,)*-1[,}]",
        has_reshape,
        "Reshape",
    ),
    # Of an empty tensor, its Pad knows every mode but this one.
    Fault(r"running Pad node.*Unexpected mode of 3", has_pad_that_wraps, "Pad"),
    # Its Softmax between codes writes nothing when it reads nothing, and whoever reads that stops.
    Fault(r"Missing Input: ", has_softmax, "Softmax"),
)


def is_of_cpu(message: str, model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> bool:
    """Whether the CPU provider alone stopped with this for a fault of its own; in a run with `feeds`, if there was one."""
    found = (fault for fault in FAULTS if re.search(fault.pattern, message, re.DOTALL) and fault.is_of(model))
    return any(fault.reads_none is None or (feeds is not None and reads_none(model, fault.reads_none, feeds)) for fault in found)


def reads_none(model: onnx.ModelProto, op: str, feeds: dict[str, np.ndarray]) -> bool:
    """Whether some `op` reads an empty tensor, in its first input."""
    return any(read and is_empty(read[0]) for _, read in inputs(model, lambda node: node.op_type == op, feeds))


def is_empty(value: np.ndarray | None) -> bool:
    return value is None or value.size == 0


def is_unsteady(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> bool:
    """Whether what the CPU provider answers to `feeds` hangs on how it has changed the model, or on what its memory held."""

    def drops_or_skips(node: onnx.NodeProto, read: list[np.ndarray | None]) -> bool:
        if node.op_type == "Concat":
            # An empty tensor beside others counts for the length of the result, and nothing is written for it.
            lengths = [value is not None and value.shape[attributes(node)["axis"]] for value in read]
            return any(map(is_empty, read)) and not all(map(is_empty, read)) and any(n for n, v in zip(lengths, read, strict=True) if is_empty(v))
        # An axis that is counted from the end is kept of an empty tensor, and no such axis is left after a change of layout.
        given = attributes(node)
        axes = read[1] if len(read) > 1 else given.get("axes", [given.get("axis", 0)])
        return is_empty(read[0]) and axes is not None and any(axis < 0 for axis in axes)

    def may(node: onnx.NodeProto) -> bool:
        return node.op_type == "Concat" or node.op_type.startswith(("Reduce", "ArgM"))

    return any(read and drops_or_skips(node, read) for node, read in inputs(model, may, feeds))


def inputs(
    model: onnx.ModelProto, wanted: Callable[[onnx.NodeProto], bool], feeds: dict[str, np.ndarray]
) -> list[tuple[onnx.NodeProto, list[np.ndarray | None]]]:
    """What each node that is `wanted` reads, computed by the CPU provider without the rest; nothing where that stops."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    found = [node for node in model.graph.node if wanted(node)]
    read = {name for node in found for name in node.input if name}
    names, kept = set(read), []
    for node in reversed(model.graph.node):
        if names.intersection(node.output):
            kept.append(node)
            names.update(node.input)
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(reversed(kept))
    made = sorted(read & {name for node in kept for name in node.output})
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer} | feeds
    if made:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
            given = {given.name: feeds[given.name] for given in session.get_inputs()}
            values |= zip(made, session.run(made, given), strict=True)
        except Exception:  # stopped before, by what else is wrong
            return []
    return [(node, [values.get(name) for name in node.input]) for node in found]

"""What a model is, in figures: nodes, multiply-accumulates, distinct codes of its quantised activations."""

import math

import numpy as np
import onnx
import onnxruntime as ort

from . import quantise


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products for a batch of one."""
    return sum(macs_by_node(model).values())


def macs_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Multiply-accumulates of each node that has some, by the node's name, for a batch of one."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for value in [*one.graph.input, *one.graph.output]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(one).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    found = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        first, second, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
        if node.op_type == "Conv":
            found[node.name] = math.prod(output) * math.prod(second[1:])
        elif node.op_type == "ConvTranspose":
            found[node.name] = math.prod(first) * math.prod(second[1:])
        else:
            transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
            found[node.name] = math.prod(output) * first[-2 if transposed else -1]
    return found


def distinct_codes(model: onnx.ModelProto, feeds: list[np.ndarray]) -> dict[str, int]:
    """For each quantised activation, how many different codes it takes over all the inputs, on the CPU provider."""
    tapped = quantise.with_taps(model)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in tapped.graph.output][len(model.graph.output) :]
    seen = {name: np.zeros(256, bool) for name in names}
    for feed in feeds:
        for name, value in zip(names, session.run(names, {"input": feed})):
            seen[name][np.unique(value).astype(np.int64) % 256] = True
    return {name: int(codes.sum()) for name, codes in seen.items()}

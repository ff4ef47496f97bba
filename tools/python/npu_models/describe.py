"""What a model is, in figures: nodes, multiply-accumulates, distinct codes of its quantised activations."""

import math

import numpy as np
import onnx
import onnxruntime as ort

from . import quantise


def macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of Conv and Gemm for a batch of one."""
    one = onnx.ModelProto()
    one.CopyFrom(model)
    for value in one.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for value in one.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(one).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight = shapes[node.input[1]]
            inner = math.prod(weight[1:]) if node.op_type == "Conv" else math.prod(weight) // shapes[node.output[0]][-1]
            total += math.prod(shapes[node.output[0]]) * inner
    return total


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

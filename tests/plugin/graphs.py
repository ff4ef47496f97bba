"""Small quantised models for the tests of single points, built in code and quantised by ONNX Runtime's quantiser."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType

from npu_models import quantise
from npu_models.network import Network

SHAPE = [3, 16, 16]


def sample(batch: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *SHAPE)).astype(np.float32)


def float_net(middle: str | None = None, tail: str | None = None) -> onnx.ModelProto:
    """conv, relu, [middle], conv, relu, pool, fully connected, [tail]; every node is named."""
    net = Network("small", sample(4), seed=11)
    x = net.node("Relu", [net.conv_bn("input", "conv1", 8, 3)], "relu1")
    if middle:
        x = net.node(middle, [x], "middle")
    x = net.node("Relu", [net.conv_bn(x, "conv2", 16, 3, 2)], "relu2")
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    weight = net.constant("fc.weight", net.random.standard_normal((10, 16)).astype(np.float32))
    bias = net.constant("fc.bias", net.random.standard_normal(10).astype(np.float32))
    x = net.node("Gemm", [x, weight, bias], "scores" if tail else "output", transB=1)
    if tail:
        net.node(tail, [x], "output")
    return net.model(SHAPE, [10])


def quantised(
    middle: str | None = None, tail: str | None = None, activations: QuantType = QuantType.QUInt8, per_channel: bool = True
) -> onnx.ModelProto:
    return quantise.static_qdq(float_net(middle, tail), [sample(4)], per_channel, activations)


def with_float_tail(kind: str) -> onnx.ModelProto:
    """A quantised classifier that ends in a float operator, as one does whose tail the quantiser was told to leave."""
    model = quantised()
    last = model.graph.node[-1]
    last.output[0] = "scores"
    model.graph.node.append(helper.make_node(kind, ["scores"], ["output"], name="tail"))
    onnx.checker.check_model(model)
    return model


def with_scale(node: str, position: int, scale: float) -> onnx.ModelProto:
    """The quantised classifier with one wrong scale: that of the Q or DQ which makes input `position` of `node`.

    Position -1 means the node's own output. All elements of a per-channel scale but the last stay as they are.
    """
    model = quantised()
    target = next(n for n in model.graph.node if n.name == node)
    if position < 0:
        owner = next(n for n in model.graph.node if target.output[0] in n.input)
    else:
        owner = next(n for n in model.graph.node if target.input[position] in n.output)
    values = next(t for t in model.graph.initializer if t.name == owner.input[1])
    changed = np.array(numpy_helper.to_array(values))
    changed[... if changed.ndim == 0 else -1] = scale
    values.CopyFrom(numpy_helper.from_array(changed, values.name))
    return model


def with_symbolic_sides() -> onnx.ModelProto:
    """The quantised classifier with height and width unknown until run."""
    model = quantised()
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    return model


def with_fixed_batch(batch: int) -> onnx.ModelProto:
    model = quantised()
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return model


def product(rows: int, depth: int, columns: int) -> onnx.ModelProto:
    """uint8 `input` [rows, depth] times constant int8 weights, uint8 `output`: no node changes what the input looks like."""
    random = np.random.default_rng(5)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "weight": random.integers(-127, 128, (depth, columns), dtype=np.int8),
        "weight_scale": np.float32(0.01),
        "weight_zero": np.int8(0),
        "out_scale": np.float32(0.01 * 0.02 * 127 * np.sqrt(depth)),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["input", "scale", "zero"], ["a"], "dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["b"], "dequantize_weight"),
        helper.make_node("MatMul", ["a", "b"], ["c"], "product"),
        helper.make_node("QuantizeLinear", ["c", "out_scale", "zero"], ["output"], "quantize"),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("input", onnx.TensorProto.UINT8, [rows, depth])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.UINT8, [rows, columns])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=7)
    onnx.checker.check_model(model)
    return model

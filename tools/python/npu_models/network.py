"""An ONNX graph that runs on a sample while it is built.

Each layer is run on the sample as soon as it is added, so the next one can be given weights that suit what really
arrives: batch normalisation with measured statistics, folded into the convolution as an exporter does. That keeps
every activation of a network with random weights in a useful range, at any depth.
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

OPSET = 14
IR_VERSION = 7


class Network:
    """Nodes and constants so far. Values are names; `sample` holds what each one is on the sample batch."""

    def __init__(self, name: str, sample: np.ndarray | None, seed: int = 0):
        self.name = name
        self.nodes = []
        self.constants = {}
        self.sample = {"input": sample}
        self.random = np.random.default_rng(seed)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes) -> str:
        """Adds a node with one output, which has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        if self.sample["input"] is not None:
            self.sample[name] = self._run(self.nodes[-1])
        return name

    def conv(self, x: str, name: str, weight: np.ndarray, bias: np.ndarray, stride: int, pads: list[int], group: int = 1):
        kernel = list(weight.shape[2:])
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        attributes = {"dilations": [1, 1], "group": group, "kernel_shape": kernel, "pads": pads, "strides": [stride] * 2}
        return self.node("Conv", inputs, name, **attributes)

    def conv_bn(
        self, x: str, name: str, out: int, kernel: int, stride: int = 1, group: int = 1, gain: float = 1.0, shift: float = 0.0, pad: int | None = None
    ):
        """A random convolution whose output has, channel by channel, about the mean `shift` and deviation `gain`.

        Scale and shift differ from channel to channel as trained ones do, so that per-channel and per-tensor
        quantisation are different problems.
        """
        channels = self.sample[x].shape[1] // group
        weight = self.random.standard_normal((out, channels, kernel, kernel)).astype(np.float32)
        weight /= np.float32(np.sqrt(channels * kernel * kernel))
        pads = [kernel // 2 if pad is None else pad] * 4
        raw = Network("probe", self.sample[x]).conv_output(weight, stride, pads, group)
        mean, deviation = raw.mean(axis=(0, 2, 3)), raw.std(axis=(0, 2, 3)) + 1e-3
        scale = gain * np.exp(self.random.normal(0, 0.25, out)) / deviation
        bias = self.random.normal(shift, 0.3 * gain, out) - mean * scale
        folded = weight * scale[:, None, None, None]
        return self.conv(x, name, folded.astype(np.float32), bias.astype(np.float32), stride, pads, group)

    def conv_output(self, weight: np.ndarray, stride: int, pads: list[int], group: int) -> np.ndarray:
        return self.sample[self.conv("input", "probe", weight, np.zeros(len(weight), np.float32), stride, pads, group)]

    def relu6(self, x: str, name: str) -> str:
        low, high = self.constant("six.low", np.float32(0)), self.constant("six.high", np.float32(6))
        return self.node("Clip", [x, low, high], name)

    def head(self, x: str, classes: int) -> str:
        """Global average pool, flatten, and a random fully connected layer whose logits spread over about 3."""
        features = self.node("Flatten", [self.node("GlobalAveragePool", [x], "avgpool")], "flatten", axis=1)
        width = self.sample[features].shape[1]
        weight = self.random.standard_normal((classes, width)).astype(np.float32)
        raw = self.sample[features] @ weight.T
        weight *= np.float32(3 / raw.std())
        bias = self.random.normal(0, 0.5, classes).astype(np.float32)
        return self.node("Gemm", [features, self.constant("fc.weight", weight), self.constant("fc.bias", bias)], "output", transB=1)

    def model(self, input_shape: list[int], output_shape: list[int]) -> onnx.ModelProto:
        """The checked model, with a symbolic batch axis at both ends as `torch.onnx.export(dynamic_axes=..)` makes it."""
        ends = [("input", input_shape), ("output", output_shape)]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in ends]
        graph = helper.make_graph(self.nodes, self.name, values[:1], values[1:], list(self.constants.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _run(self, node: onnx.NodeProto) -> np.ndarray:
        values = [name for name in node.input if name in self.sample]
        feeds = {name: self.sample[name] for name in values}
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, feeds[name].shape) for name in feeds]
        constants = [self.constants[name] for name in node.input if name in self.constants]
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "layer", inputs, [output], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, feeds)[0]

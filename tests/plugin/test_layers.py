"""One quantised layer at a time, random in every attribute, against the CPU provider.

Whole models hardly notice a wrong rounding: a step more or less in one code drowns in the next layer's
sum. Here scales are powers of two half of the time, so that many sums lie exactly on a rounding tie.
"""

import numpy as np
import pytest
import sessions
from onnx import ModelProto, TensorProto, helper, numpy_helper

SEEDS = range(12)


class Layer:
    """A graph of float input, QuantizeLinear, one or more units, DequantizeLinear."""

    def __init__(self, random: np.random.Generator, shape: list[int]):
        self.random, self.shape, self.opset = random, shape, 14
        self.nodes, self.constants, self.count = [], [], 0
        self.x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def constant(self, values, kind) -> str:
        name = self.name("c")
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes) -> str:
        output = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [output], name=self.name(kind), **attributes))
        return output

    def scale(self, about: float) -> np.float32:
        if self.random.random() < 0.5:
            return np.float32(2.0 ** np.round(np.log2(about)))
        return np.float32(about * self.random.uniform(0.5, 2))

    def codes(self, about: float, zero_point: int | None = None) -> tuple[np.float32, int]:
        middle = self.random.choice([0, 255, 128, self.random.integers(256)])
        return self.scale(about), int(middle if zero_point is None else zero_point)

    def quantise(self, x: str, codes) -> str:
        return self.node("QuantizeLinear", [x, self.constant(codes[0], np.float32), self.constant(codes[1], np.uint8)])

    def dequantise(self, x: str, codes) -> str:
        return self.node("DequantizeLinear", [x, self.constant(codes[0], np.float32), self.constant(codes[1], np.uint8)])

    def weights(self, shape, axis: int, scales) -> str:
        values = self.random.integers(-127, 128, shape)
        inputs = [self.constant(values, np.int8), self.constant(scales, np.float32), self.constant(np.zeros(np.shape(scales)), np.int8)]
        return self.node("DequantizeLinear", inputs, **({"axis": axis} if np.ndim(scales) else {}))

    def bias(self, count: int, x_scale, scales, spread: int) -> str:
        values = self.random.integers(-spread, spread + 1, count)
        scale = np.broadcast_to(np.float32(x_scale) * scales, (count,) if np.ndim(scales) else (1,)).astype(np.float32)
        inputs = [self.constant(values, np.int32), self.constant(scale, np.float32), self.constant(np.zeros(len(scale)), np.int32)]
        return self.node("DequantizeLinear", inputs, **({"axis": 0} if len(scale) > 1 else {}))

    def weight_scales(self, count: int):
        if self.random.random() < 0.5:
            return self.scale(0.01)
        return np.array([self.scale(0.01) for _ in range(count)], np.float32)

    def model(self, output: str) -> ModelProto:
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "layer", [self.x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)

    def input(self, codes) -> np.ndarray:
        """Every code, some values between codes, and a few out of range."""
        value = self.random.integers(-8, 264, self.shape) - float(codes[1])
        return (value * codes[0]).astype(np.float32)


def compare(layer: Layer, output: str, codes) -> None:
    model = layer.model(output).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    sessions.assert_all_on_npu(npu)
    for _ in range(3):
        sessions.assert_same(npu, reference, layer.input(codes), "layer")


def convolution(random, layer: Layer, x: str, codes, depthwise: bool = False, same: bool = False, spread: int = 20_000):
    """A Conv unit behind the codes `x`; returns its codes and their meaning."""
    channels = layer.channels
    groups = channels if depthwise else int(random.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs = channels if same or depthwise else groups * int(random.integers(1, 40 // groups + 2))
    kernel = [int(k) for k in random.integers(1, 6, 2)]
    dilations = [1, 1] if same else [int(d) for d in random.integers(1, 3, 2)]
    if same:
        kernel = [2 * (k // 2) + 1 for k in kernel]
        pads, strides = [kernel[0] // 2, kernel[1] // 2] * 2, [1, 1]
    else:
        reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)] * 2
        pads, strides = [int(random.integers(0, r + 1)) for r in reach], [int(s) for s in random.integers(1, 4, 2)]
    scales = layer.weight_scales(outputs)
    result = layer.codes(0.5)
    weight = layer.weights([outputs, channels // groups, *kernel], 0, scales)
    bias = [layer.bias(outputs, codes[0], scales, spread)] if random.random() < 0.8 else []
    inputs = [layer.dequantise(x, codes), weight, *bias]
    y = layer.node("Conv", inputs, kernel_shape=kernel, pads=pads, strides=strides, dilations=dilations, group=groups)
    return layer.quantise(y, result), result


def start(seed: int, shape: list[int], salt: int):
    random = np.random.default_rng([seed, salt])
    layer = Layer(random, shape)
    codes = layer.codes(0.02)
    return random, layer, codes, layer.quantise("x", codes)


def image(seed: int, salt: int, most_channels: int = 40):
    random = np.random.default_rng([seed, salt, 1])
    channels = int(random.integers(1, most_channels))
    shape = [int(random.integers(1, 3)), channels, int(random.integers(9, 20)), int(random.integers(9, 20))]
    random, layer, codes, x = start(seed, shape, salt)
    layer.channels = channels
    return random, layer, codes, x


@pytest.mark.parametrize("depthwise", [False, True], ids=["grouped", "depthwise"])
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions(seed, depthwise):
    random, layer, codes, x = image(seed, 1 + depthwise)
    y, result = convolution(random, layer, x, codes, depthwise)
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("depthwise", [False, True], ids=["grouped", "depthwise"])
def test_a_bias_at_the_end_of_32_bits_wraps_as_on_the_cpu(depthwise, side):
    random, layer, codes, x = image(3 + side, 3)
    y, result = convolution(random, layer, x, codes, depthwise)
    end = 2**31 - 1000
    for constant in layer.constants:
        if constant.data_type == TensorProto.INT32 and np.any(numpy_helper.to_array(constant)):
            size = numpy_helper.to_array(constant).shape
            constant.CopyFrom(numpy_helper.from_array(np.full(size, side * end, np.int32), constant.name))
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_residual_addition_behind_a_convolution(seed):
    random, layer, codes, x = image(seed, 4)
    y, branch = convolution(random, layer, x, codes, same=True)
    result = layer.codes(0.5)
    terms = [layer.dequantise(y, branch), layer.dequantise(x, codes)]
    order = terms if random.random() < 0.5 else terms[::-1]
    compare(layer, layer.dequantise(layer.quantise(layer.node("Add", order), result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_addition_of_two_pools(seed):
    random, layer, codes, x = image(seed, 5)
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    a = layer.quantise(layer.node("MaxPool", [layer.dequantise(x, codes)], **window), codes)
    average = layer.codes(0.02)
    b = layer.quantise(layer.node("AveragePool", [layer.dequantise(x, codes)], **window), average)
    result = layer.codes(0.03)
    y = layer.quantise(layer.node("Add", [layer.dequantise(a, codes), layer.dequantise(b, average)]), result)
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool, pads count", "GlobalAveragePool"])
@pytest.mark.parametrize("seed", SEEDS)
def test_pools(seed, kind):
    random, layer, codes, x = image(seed, 6)
    attributes = {}
    if not kind.startswith("Global"):
        kernel = [int(k) for k in random.integers(1, 5, 2)]
        pads = [int(random.integers(0, k)) for k in kernel * 2]
        attributes = {"kernel_shape": kernel, "pads": pads, "strides": [int(s) for s in random.integers(1, 4, 2)]}
    if kind.endswith("count"):
        attributes["count_include_pad"] = 1
    result = codes if kind == "MaxPool" else layer.codes(0.02)
    y = layer.node(kind.split(",")[0], [layer.dequantise(x, codes)], **attributes)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_average_of_all_pixels_is_a_global_one(seed, rank):
    """Without padding, whatever the strides: the CPU sums codes then, not floats."""
    size = [int(n) for n in np.random.default_rng(seed).integers(1, 6, rank)]
    random, layer, codes, x = start(seed, [2, 200, *size], 12)
    result, kind = layer.codes(0.01), int(random.integers(4 if min(size) > 1 else 3))
    attributes = [{}, {"strides": [3] * rank}, {"auto_pad": "VALID", "count_include_pad": 1}, {"pads": [0] * rank + [1] * rank}][kind]
    y = layer.node("AveragePool", [layer.dequantise(x, codes)], kernel_shape=size, **attributes)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_fully_connected_layers_behind_an_image(seed, transposed):
    random, layer, codes, x = image(seed, 7, 12)
    flat = layer.quantise(layer.node("Flatten", [layer.dequantise(x, codes)], axis=1), codes)
    inputs, outputs = int(np.prod(layer.shape[1:])), int(random.integers(1, 70))
    scales, result = layer.weight_scales(outputs), layer.codes(2.0)
    weight = layer.weights([outputs, inputs] if transposed else [inputs, outputs], 1 - transposed, scales)
    bias = layer.bias(outputs, codes[0], scales, 50_000)
    y = layer.node("Gemm", [layer.dequantise(flat, codes), weight, bias], transB=transposed)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_matrix_products(seed):
    random = np.random.default_rng([seed, 8])
    inputs, outputs = int(random.integers(1, 200)), int(random.integers(1, 90))
    random, layer, codes, x = start(seed, [int(random.integers(1, 20)), inputs], 8)
    scales, result = layer.weight_scales(outputs), layer.codes(1.0)
    y = layer.node("MatMul", [layer.dequantise(x, codes), layer.weights([inputs, outputs], 1, scales)])
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize(("kind", "attributes"), [("Relu", {}), ("LeakyRelu", {"alpha": 0.1})], ids=["Relu", "LeakyRelu"])
@pytest.mark.parametrize("seed", SEEDS)
def test_steps_that_are_a_table(seed, kind, attributes):
    _, layer, codes, x = image(seed, 9)
    result = layer.codes(0.02)
    y = layer.node(kind, [layer.dequantise(x, codes)], **attributes)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)

"""Units that the CPU provider runs in float32 between DequantizeLinear and QuantizeLinear: the same codes, bit for bit.

An activation that cuts off what the codes can hold keeps the CPU from fusing a unit into an 8-bit operator, and so does
int8 at one of its ends.
Scales that are powers of two put many sums on rounding ties, where an integer sum and one in floats part.
"""

import os

import numpy as np
import onnx
import pytest
import sessions
from onnx import TensorProto, helper
from processes import run_registered
from test_layers import Layer, compare

SEEDS = range(16)


class Signed(Layer):
    """A layer whose result is int8 and read twice, so that the CPU provider leaves it int8."""

    def convert(self, kind: str, x: str, codes) -> str:
        zero_point = self.constant(codes[1] - 128, np.int8)
        return self.node(kind, [x, self.constant(codes[0], np.float32), zero_point])

    def quantise(self, x: str, codes) -> str:
        return self.convert("QuantizeLinear", x, codes)

    def dequantise(self, x: str, codes) -> str:
        return self.convert("DequantizeLinear", x, codes)

    def model(self, output: str):
        last = next(node for node in self.nodes if output in node.output)
        self.nodes.append(helper.make_node(last.op_type, list(last.input), ["again"], name="again"))
        model = super().model(output)
        model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))
        return model


def convolution(seed: int, kind: str, make=Layer):
    """A Conv unit, of a shape whose sums have one order with any number of threads."""
    random = np.random.default_rng([seed, 20])
    side = int(random.integers(16, 25))
    kernel, strides, dilations, pads, groups = [1, 1], [1, 1], [1, 1], [0] * 4, 1
    inputs, outputs, images = int(random.integers(1, 300)), int(random.integers(2, 60)), 1
    if kind == "window":
        kernel = [int(k) for k in random.integers(1, 6, 2)]
        dilations = [int(d) for d in random.integers(1, 3, 2)]
        pads = [int(random.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel * 2, dilations * 2, strict=True)]
        strides = [int(s) for s in random.integers(1, 3, 2)]
        inputs, images = int(random.integers(1, 70)), 2
    elif kind == "groups":
        kernel, groups = [3, 3], int(random.integers(2, 6))
        inputs, outputs = groups * int(random.integers(1, 20)), groups * int(random.integers(1, 20))
    elif kind == "depthwise":
        kernel = [int(k) for k in random.integers(1, 6, 2)]
        inputs = outputs = groups = int(random.integers(2, 90))
    elif kind == "one pixel":
        side, inputs, outputs = 1, int(random.integers(1, 400)), int(random.integers(2, 70))
    elif kind == "one filter":
        kernel, outputs = [3, 3], 1
    elif kind == "small image":
        side, outputs = int(random.integers(3, 7)), int(random.integers(50, 200))
    layer = make(random, [images, inputs, side, side])
    codes = (layer.scale(0.02), int(random.integers(1, 256)))
    result = (layer.scale(0.02 * np.sqrt(inputs * kernel[0] * kernel[1] / groups)), int(random.integers(60, 200)))
    scales = layer.weight_scales(outputs)
    weight = layer.weights([outputs, inputs // groups, *kernel], 0, scales)
    bias = [layer.bias(outputs, codes[0], scales, 20_000)] if random.random() < 0.8 else []
    terms = [layer.dequantise(layer.quantise("x", codes), codes), weight, *bias]
    y = layer.node("Conv", terms, kernel_shape=kernel, pads=pads, strides=strides, dilations=dilations, group=groups)
    return layer, codes, y, result


def cut(layer: Layer, y: str, result) -> str:
    """A Relu or Clip that changes values which `result` can hold."""
    if layer.random.random() < 0.5:
        return layer.node("Relu", [y])
    low, high = float(layer.random.integers(-60, 0)), float(layer.random.uniform(1, 50))
    bounds = [layer.constant(float(result[0]) * bound, np.float32) for bound in (low, high)]
    return layer.node("Clip", [y, *bounds])


@pytest.mark.parametrize(("filters", "kernel", "is_taken"), [(2, 7, False), (1, 7, True), (4, 7, True), (2, 5, True), (2, 3, True), (1, 5, True)])
def test_two_filters_of_seven_by_seven_are_the_cpus_own(filters, kernel, is_taken):
    """Which it sums in an order of their own at this stride; everything near them is as the rest."""
    layer = Signed(np.random.default_rng([filters, kernel, 22]), [1, 64, 64, 64])
    codes, result = (np.float32(0.0173), 128), (np.float32(0.0173 * 0.0091 * 512), 128)
    weight = layer.weights([64 * filters, 1, kernel, kernel], 0, np.float32(0.0091))
    x = layer.dequantise(layer.quantise("x", codes), codes)
    y = layer.node("Conv", [x, weight], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, strides=[2, 2], group=64)
    model = layer.model(layer.dequantise(layer.quantise(y, result), result)).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    assert ("Conv" not in sessions.operators_on(npu, sessions.CPU)) == is_taken
    for _ in range(2):
        sessions.assert_same(npu, reference, layer.input(codes), "layer")


KINDS = ["point", "window", "groups", "depthwise", "one pixel", "one filter", "small image"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions_with_an_activation_that_cuts(seed, kind):
    layer, codes, y, result = convolution(seed, kind)
    y = layer.quantise(cut(layer, y, result), result)
    compare(layer, layer.dequantise(y, result), codes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions_to_int8(seed, kind):
    layer, codes, y, result = convolution(seed + 100, kind, Signed)
    y = cut(layer, y, result) if seed % 3 == 0 else y
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("seed", SEEDS)
def test_matrix_products_to_int8(seed):
    random = np.random.default_rng([seed, 21])
    rows, inputs, outputs = 1 if seed % 3 else int(random.integers(1, 6)), int(random.integers(1, 600)), int(random.integers(2, 90))
    if rows > 1:
        outputs = 260 + outputs  # too many for the blocks to depend on how many threads share them
    layer = Signed(random, [rows, inputs])
    codes, result = (layer.scale(0.02), 77), (layer.scale(0.02 * np.sqrt(inputs)), 130)
    weight = layer.weights([inputs, outputs], 1, layer.weight_scales(outputs))
    y = layer.node("MatMul", [layer.dequantise(layer.quantise("x", codes), codes), weight])
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


IN_FLOATS_ON_SO_MANY = """
threads = int(os.environ["NPU_CPU_THREADS"] or "0")
made = sessions.options()
made.intra_op_num_threads = threads or 1
model, x = sys.argv[1], np.load(sys.argv[2])
npu = sessions.on_npu(model, made)
if threads:
    made = sessions.options()
    made.intra_op_num_threads = threads
    sessions.assert_all_on_npu(npu)
    cpu = ort.InferenceSession(model, made, providers=[sessions.CPU])
    for scale in (1, 2, 3, 5, 7):
        sessions.assert_same(npu, cpu, x * np.float32(scale), f"{threads} threads")
print("on the CPU:", len(sessions.nodes_on(npu, sessions.CPU)))
"""


def test_a_sum_whose_order_follows_from_the_number_of_threads_is_taken_where_that_is_named(library, tmp_path, monkeypatch):
    random = np.random.default_rng(7)
    layer = Signed(random, [1, 300, 7, 7])
    codes, result = (2.0**-6, 77), (2.0**-3, 130)
    scales = np.full(32, 2.0**-7, np.float32)
    weight = layer.weights([32, 300, 1, 1], 0, scales)
    y = layer.node("Conv", [layer.dequantise(layer.quantise("x", codes), codes), weight], kernel_shape=[1, 1])
    file, sample = tmp_path / "model.onnx", tmp_path / "x.npy"
    onnx.save(layer.model(layer.dequantise(layer.quantise(y, result), result)), file)
    np.save(sample, layer.input(codes))
    for threads in ("1", "2", ""):
        monkeypatch.setenv("NPU_CPU_THREADS", threads)
        said, _ = run_registered(IN_FLOATS_ON_SO_MANY, library, "sim", arguments=[str(file), str(sample)])
        # A machine of one processor has but one number of threads.
        is_known = bool(threads) or os.cpu_count() == 1
        assert ("on the CPU: 0" in said) == is_known, said

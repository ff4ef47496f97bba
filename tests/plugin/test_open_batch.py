"""Models whose batch is open, at batches beyond those that a plan looks at: what was taken runs, whatever comes."""

import numpy as np
import onnx
import pytest
import sessions
from onnx import TensorProto, helper, numpy_helper


class Open:
    """A graph whose inputs have a dimension 0 that is open."""

    def __init__(self, seed: int):
        self.random, self.nodes, self.constants, self.inputs = np.random.default_rng(seed), [], [], []

    def input(self, element, shape: list[int | str]) -> str:
        name = f"in{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def constant(self, values, kind) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def node(self, op: str, *inputs: str, **attributes) -> str:
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def quantise(self, x: str, scale: float, zero_point: int, kind=np.int8) -> str:
        return self.node("QuantizeLinear", x, self.constant(scale, np.float32), self.constant(zero_point, kind))

    def dequantise(self, x: str, scale: float, zero_point: int, kind=np.int8) -> str:
        return self.node("DequantizeLinear", x, self.constant(scale, np.float32), self.constant(zero_point, kind))

    def model(self, *outputs: str) -> bytes:
        ends = [helper.make_empty_tensor_value_info(output) for output in outputs]
        graph = helper.make_graph(self.nodes, "open", self.inputs, ends, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def lengths(info: onnx.ValueInfoProto, batch: int) -> list[int]:
    return [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]


def compare(model: bytes, inputs, batches, seed: int):
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    random = np.random.default_rng(seed)
    for batch in batches:
        feeds = {}
        for info in inputs:
            kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            shape = lengths(info, batch)
            is_float = kind == np.float32
            feeds[info.name] = random.standard_normal(shape).astype(kind) if is_float else random.integers(-128, 128, shape).astype(kind)
        sessions.assert_same(npu, reference, feeds, f"batch {batch}")
    return npu


@pytest.mark.parametrize("rows", [[], [3]], ids=["one row", "three rows"])
@pytest.mark.parametrize(("inputs", "outputs"), [(383, 57), (40, 57), (700, 20), (3000, 5), (512, 1)])
def test_a_product_of_int8_whose_order_of_sums_follows_from_its_rows(inputs, outputs, rows):
    """It is left to the CPU if some batch would be: then a run would have nobody to go to."""
    graph = Open(inputs)
    x = graph.dequantise(graph.input(TensorProto.INT8, ["batch", *rows, inputs]), 2**-7, 3)
    weights = graph.dequantise(graph.constant(graph.random.integers(-127, 128, (inputs, outputs)), np.int8), 2**-9, 0)
    y = graph.quantise(graph.node("MatMul", x, weights), 2**-4, -5)
    compare(graph.model(y), graph.inputs, [1, 2, 3, 4, 5, 7, 8, 16, 33, 64], inputs)


@pytest.mark.parametrize("op", ["Div", "Sub", "Mul", "Max"])
@pytest.mark.parametrize("shape", [[1, 2, 2], [1, 3, 5], [2, 2], [1, 2, 1]], ids=str)
def test_a_small_tensor_repeated_to_an_open_batch(op, shape):
    """Its rows are channels of one pixel, so that the last of them begins within the last lanes."""
    graph = Open(len(op))
    x = graph.dequantise(graph.input(TensorProto.INT8, ["batch", 1, 4, 2]), 0.009, -17)
    most = graph.node("ReduceMax", x, graph.constant([3, 2], np.int64))
    terms = [
        graph.dequantise(graph.quantise(most, 0.009, -17), 0.009, -17),
        graph.dequantise(graph.input(TensorProto.INT8, shape), 0.0019, 4),
    ]
    y = graph.quantise(graph.node(op, *terms), 0.0312, 9)
    npu = compare(graph.model(y), graph.inputs, range(1, 10), 1)
    assert op not in sessions.operators_on(npu, sessions.CPU)


@pytest.mark.parametrize("end", [1, 2, 5])
def test_a_sum_over_a_part_of_the_batch_that_may_be_nothing(end):
    """The CPU makes 0 of a batch of none. A part of fixed length is refused, and then what reads it, too."""
    graph = Open(end)
    bounds = [graph.constant(values, np.int64) for values in ([0, 0], [end, 4], [0, 1], [2, 1])]
    part = graph.node("Slice", graph.input(TensorProto.FLOAT, ["batch", 6, 4, 3]), *bounds)
    x = graph.dequantise(graph.quantise(part, 0.5, 103, np.uint8), 0.5, 103, np.uint8)
    total = graph.node("ReduceSum", x, graph.constant([0, 2, -1, 1], np.int64))
    compare(graph.model(graph.quantise(total, 1, 0, np.uint8)), graph.inputs, [1, 0, 2, 3, 7, 0], end)


@pytest.mark.parametrize("dilation", [1, 2])
def test_beside_a_pool_of_misjudged_shape_nothing_is_taken(dilation):
    """ONNX Runtime infers more rows than the pool makes, and plans memory by that."""
    graph = Open(dilation)
    x = graph.input(TensorProto.FLOAT, ["batch", 3, 9, 8])
    x = graph.dequantise(graph.quantise(x, 0.03, 0), 0.03, 0)
    pool = graph.node("LpPool", x, kernel_shape=[3, 2], auto_pad="SAME_UPPER", dilations=[dilation, 1], p=1)
    ends = []
    for source in (pool, x):
        codes = graph.quantise(source, 0.05, 0)
        ends.append(graph.quantise(graph.node("Abs", graph.dequantise(codes, 0.05, 0)), 0.05, -3))
    npu = compare(graph.model(*ends), graph.inputs, [1, 2], 3)
    assert (sessions.EP in [name for name, _ in sessions.placement(npu)]) == (dilation == 1)


@pytest.mark.parametrize("is_output", [True, False])
@pytest.mark.parametrize("shape", [[1, 2, 1, 2], [4, 8, 1, 1], [2, 6, 3, 5]], ids=str)
def test_the_first_elements_of_a_tensor_are_not_all_of_it(shape, is_output):
    """They lie as a tensor of another shape would."""
    graph = Open(3)
    x = graph.input(TensorProto.UINT8, shape)
    codes = (0.0078125, 128, np.uint8)
    bounds = [graph.constant(values, np.int64) for values in ([0, 0], [shape[0] // 2 or 1, shape[1]], [0, 1], [1, 2])]
    whole = graph.quantise(graph.node("Tanh", graph.dequantise(x, *codes)), *codes) if is_output else x
    part = graph.quantise(graph.node("Slice", graph.dequantise(whole, *codes), *bounds), *codes)
    y = graph.quantise(graph.node("Abs", graph.dequantise(part, *codes)), 0.005, 3, np.uint8)
    outputs = [y, whole] if is_output else [y]
    compare(graph.model(*outputs), graph.inputs, [1], 3)


@pytest.mark.parametrize("end", [1, 2])
def test_the_first_of_several_images_is_not_all_of_them(end):
    graph = Open(end)
    codes = (0.0078125, 128, np.uint8)
    x = graph.dequantise(graph.input(TensorProto.UINT8, [3, 8, 1, 1]), *codes)
    bounds = [graph.constant(values, np.int64) for values in ([0], [end], [0], [1])]
    part = graph.quantise(graph.node("Slice", x, *bounds), *codes)
    pool = graph.quantise(graph.node("GlobalAveragePool", graph.dequantise(part, *codes)), *codes)
    compare(graph.model(pool), graph.inputs, [1], end)

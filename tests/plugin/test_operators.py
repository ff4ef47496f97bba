"""A verdict for every operator that a quantised CNN has: exact on the NPU, or left to the CPU with the reason.

One small QDQ model each, uint8, a scale for each tensor. The README's support table says the same.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import sessions
from onnx import TensorProto, helper
from test_doors import save, tool  # noqa: F401
from test_host import call, library  # noqa: F401
from test_layers import Layer

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")

README = Path(__file__).resolve().parents[2] / "README.md"
SHAPE = [2, 8, 6, 6]
CODES = (np.float32(0.03), 100)
RESULT = (np.float32(0.05), 90)


@dataclass
class Case:
    """`kind` of an activation, of what `more` gives and, where there are two, of a second activation."""

    kind: str
    attributes: dict = field(default_factory=dict)
    more: Callable[[Layer], list[str]] = lambda layer: []
    shape: list[int] = field(default_factory=lambda: SHAPE)
    # How many activations it reads.
    reads: int = 1
    outputs: int = 1
    # Part of the reason, of what stays on the CPU.
    reason: str = ""
    name: str = ""
    opset: int = 18


def floats(*shape: int, low: float = 0.2) -> Callable[[Layer], list[str]]:
    return lambda layer: [layer.constant(layer.random.uniform(low, 2, shape), np.float32)]


def numbers(*values: list[int]) -> Callable[[Layer], list[str]]:
    return lambda layer: [layer.constant(value, np.int64) for value in values]


def weights(shape: list[int], axis: int = 0) -> Callable[[Layer], list[str]]:
    return lambda layer: [layer.weights(shape, axis, np.float32(0.01))]


def biased(shape: list[int], count: int, axis: int = 0) -> Callable[[Layer], list[str]]:
    return lambda layer: [*weights(shape, axis)(layer), layer.bias(count, CODES[0], np.float32(0.01), 4000)]


def channels(count: int, lows: list[float]) -> Callable[[Layer], list[str]]:
    return lambda layer: [layer.constant(layer.random.uniform(low, 2, count), np.float32) for low in lows]


def quantised(layer: Layer) -> list[str]:
    """Scale, bias as quantisers make it of 32 bits, mean and variance."""
    scale, mean, variance = channels(8, [0.2, -1, 0.05])(layer)
    return [scale, layer.bias(8, 0.03, np.float32(0.01), 4000), mean, variance]


def resize(*scales: float) -> Callable[[Layer], list[str]]:
    return lambda layer: ["", layer.constant([1, 1, *scales], np.float32)]


TAKEN = [
    Case("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": 2}, weights([6, 4, 3, 3])),
    Case("Conv", {"auto_pad": "SAME_UPPER", "dilations": [1, 1]}, weights([6, 8, 3, 3]), name="padded by itself"),
    Case("Conv", {"pads": [1, 2]}, weights([6, 8, 3]), shape=[2, 8, 20], name="of rows"),
    Case("ConvTranspose", {"strides": [2, 2]}, weights([8, 4, 2, 2], 1)),
    Case("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, weights([8, 4, 3, 3], 1), name="overlapping"),
    Case("ConvTranspose", {"strides": [3], "group": 2}, weights([8, 4, 4], 1), shape=[2, 8, 20], name="of rows"),
    Case("Gemm", {}, weights([8, 5], 1), shape=[3, 8]),
    Case("Gemm", {"transA": 1, "alpha": 0.5}, weights([3, 5], 1), shape=[3, 8], name="turned"),
    Case("Gemm", {"transA": 1, "transB": 1}, biased([5, 3], 5), shape=[3, 8], name="turned, with a bias"),
    Case("Gemm", {}, biased([8, 5], 1, 1), shape=[3, 8], name="with one number as a bias"),
    Case("MatMul", {}, weights([8, 5], 1), shape=[2, 3, 8]),
    Case("MatMul", reads=2, shape=[2, 6, 6], name="of two tensors"),
    *(Case(kind, reads=2) for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "PRelu")),
    Case("PRelu", {}, floats(8, 1, 1), name="a slope for each channel"),
    *(Case(kind) for kind in ("Relu", "Sigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Sqrt", "Abs", "Neg")),
    Case("LeakyRelu", {"alpha": 0.1}),
    Case("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    Case("Elu", {"alpha": 1.0}),
    Case("Clip", {}, lambda layer: [layer.constant(v, np.float32) for v in (0, 1.5)]),
    *(Case("Pow", {}, lambda layer, e=e: [layer.constant(e, np.float32)], name=f"by {e}") for e in (2, 3, -1)),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    Case("GlobalAveragePool"),
    Case("GlobalMaxPool"),
    Case("ReduceMax", {"keepdims": 0}, numbers([2, 3])),
    Case("ReduceMin", {"keepdims": 1}, numbers([1])),
    Case("ReduceMean", {"keepdims": 1}, numbers([2, 3])),
    Case("ReduceMean", {"keepdims": 0}, numbers([1]), name="of channels"),
    Case("ReduceSum", {"keepdims": 1}, numbers([-1])),
    Case("ReduceSum", {"keepdims": 0}, numbers([0, 3]), name="of images and columns"),
    Case("LayerNormalization", {"axis": -1}, channels(40, [0.2, -1]), shape=[2, 3, 40], opset=17),
    Case("LayerNormalization", {"axis": 1}, floats(8, 6, 6), name="of whole images, without bias"),
    Case("InstanceNormalization", {}, channels(8, [0.2, -1])),
    Case("Concat", {"axis": 1}, reads=2),
    Case("Slice", {}, numbers([1], [7], [1], [2])),
    Case("Pad", {"mode": "constant"}, numbers([0, 0, 1, 2, 0, 0, 2, 1])),
    *(
        Case("Pad", {"mode": mode}, numbers(pads), name=f"{mode} {pads}", opset=19)
        for mode in ("reflect", "edge", "wrap", "constant")
        for pads in ([0, 0, 1, 2, 0, 0, 2, 1], [0, 1, 0, 5, 0, 0, 3, 0], [0, -3, 2, -1, 0, 2, -1, 1], [1, 2, 1, 0, 1, 0, 0, 0])
        if mode != "reflect" or not pads[0]
    ),
    Case("Pad", {"mode": "wrap"}, numbers([0, 0, 8, 0, 0, 0, 0, 13]), name="wrap several times", opset=19),
    Case("Pad", {"mode": "reflect"}, lambda layer: [layer.constant([2, 1, 0, 3], np.int64), "", layer.constant([-1, 1], np.int64)], name="of two axes"),
    Case("Split", {"axis": 1, "num_outputs": 2}, outputs=2),
    Case("Split", {"axis": 2, "num_outputs": 4}, outputs=4, name="with a rest", shape=[2, 8, 7, 6]),
    Case("Split", {"axis": -1}, numbers([1, 3, 2]), outputs=3, name="by lengths"),
    Case("Split", {"axis": 0}, numbers([2, 1]), outputs=2, name="of images", shape=[3, 8, 6, 6]),
    Case("Split", {"axis": 1}, outputs=4, name="by the number of outputs", opset=13),
    Case("Reshape", {}, numbers([2, 4, 72])),
    Case("Flatten", {"axis": 1}),
    Case("Squeeze", {}, numbers([1]), shape=[2, 1, 6, 6]),
    Case("Unsqueeze", {}, numbers([1])),
    Case("Transpose", {"perm": [0, 2, 3, 1]}),
    Case("Expand", {}, numbers([2, 8, 6, 6]), shape=[2, 8, 1, 6]),
    Case("Tile", {}, numbers([1, 2, 1, 3])),
    Case("DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", {"blocksize": 2}),
    Case("Gather", {"axis": 1}, numbers([5]), name="one element"),
    Case("Gather", {"axis": 2}, lambda layer: [layer.constant(4, np.int64)], name="without its dimension"),
    Case("Gather", {"axis": 3}, numbers([5, 3, -5]), name="backwards"),
    Case("Gather", {"axis": 1}, numbers([1, 2, 5, 0, 0, 7]), name="here and there"),
    Case("Gather", {"axis": 2}, numbers([[5, 0], [0, 1]]), name="in a shape of their own"),
    Case("Softmax", {"axis": -1}, shape=[2, 3, 40]),
    Case("BatchNormalization", {"epsilon": 1e-3}, channels(8, [0.2, -1, -1, 0.05])),
    Case("BatchNormalization", {}, quantised, name="with an int32 bias"),
    *(
        Case("Resize", {"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": r}, resize(*s), name=f"{c}, {r}, {s}")
        for c, r, s in [
            ("asymmetric", "floor", (2, 3)),
            ("half_pixel", "round_prefer_floor", (2, 2)),
            ("half_pixel", "round_prefer_ceil", (0.5, 0.5)),
            ("pytorch_half_pixel", "round_prefer_floor", (3, 1)),
            ("asymmetric", "ceil", (0.5, 1 / 3)),
            ("tf_half_pixel_for_nn", "floor", (0.5, 2)),
            ("asymmetric", "ceil", (2, 2)),
            ("half_pixel", "round_prefer_floor", (1.5, 2.5)),
        ]
    ),
    *(
        Case("Resize", {"mode": "linear", "coordinate_transformation_mode": c}, resize(*s), name=f"linear, {c}, {s}")
        for c in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        for s in [(2, 2), (1.5, 3), (0.5, 0.7), (1, 2.3)]
    ),
    Case("Resize", {"mode": "linear"}, lambda layer: ["", "", *numbers([2, 8, 11, 6])(layer)], name="linear, to a size"),
    Case("Resize", {"mode": "linear"}, resize(1.1, 1.1), name="linear, as large as before"),
    Case("Resize", {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, resize(0.2, 0.17), name="linear, to a single pixel"),
    Case(
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "round_prefer_ceil"},
        resize(0.6, 0.2),
        shape=[2, 8, 5, 5],
        name="corner on corner",
    ),
]
LEFT = [
    Case("ConvTranspose", {"strides": [2, 2]}, weights([130, 4, 3, 3], 1), [1, 130, 4, 4], reason="before it adds what overlaps", name="of many channels"),
    Case("Gemm", {"alpha": 0.5}, biased([8, 5], 5, 1), shape=[3, 8], reason="alpha 0.5 and beta 1", name="with a bias and a factor"),
    Case("Gather", {"axis": 3}, lambda layer: [layer.constant(layer.random.integers(0, 6, 2000), np.int64)], reason="without a pattern", name="everywhere"),
    Case("Split", {"axis": 0}, numbers([2, 0]), outputs=2, reason="makes an empty part", name="and nothing"),
    Case("Pad", {"mode": "constant"}, numbers([0, 0, 0, -3, 0, 0, 0, -3]), reason="cuts all of dimension 3", name="to nothing"),
    Case("Resize", {"mode": "linear"}, lambda layer: ["", layer.constant([1, 2, 2], np.float32)], shape=[2, 6, 6], reason="images are taken", name="linear of rows"),
    Case("Resize", {"mode": "cubic"}, resize(2, 2), reason='mode "cubic"', name="cubic"),
    Case("ReduceMean", {"keepdims": 0}, numbers([0, 2, 3]), reason="each block by itself", name="around a dimension", shape=[3, 8, 6, 6]),
    Case("LogSoftmax", {"axis": -1}, reason="computes LogSoftmax in floats"),
    Case("LayerNormalization", {"axis": -1}, floats(6), reason="sums otherwise than 8 and more", name="of few elements"),
    Case("ArgMax", {"axis": 1}, reason="gives indices"),
]


def label(case: Case) -> str:
    return f"{case.kind} {case.name}".strip()


def model(case: Case):
    """Codes, a maximum over single elements so that something is left of a mere move, the operator, codes."""
    layer = Layer(np.random.default_rng(len(label(case))), case.shape)
    flows = [layer.dequantise(layer.quantise("x", CODES), CODES)]
    if len(case.shape) > 2:
        single = layer.node("MaxPool", flows, kernel_shape=[1] * (len(case.shape) - 2))
        flows = [layer.dequantise(layer.quantise(single, CODES), CODES)]
    for slope in range(1, case.reads):
        inner = layer.quantise(layer.node("LeakyRelu", flows[:1], alpha=0.3 * slope), RESULT)
        flows.append(layer.dequantise(inner, RESULT))
    inputs = [*flows, *case.more(layer)]
    names = [layer.name(case.kind.lower()) for _ in range(case.outputs)]
    layer.nodes.append(helper.make_node(case.kind, inputs, names, name="it", **case.attributes))
    if case.kind == "ArgMax":
        outputs = [helper.make_tensor_value_info(names[0], TensorProto.INT64, None)]
    else:
        ends = [layer.dequantise(layer.quantise(name, RESULT), RESULT) for name in names]
        outputs = [helper.make_tensor_value_info(end, TensorProto.FLOAT, None) for end in ends]
    graph = helper.make_graph(layer.nodes, "operator", [layer.x], outputs, layer.constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9)
    return made, layer.input(CODES)


@pytest.mark.parametrize("case", TAKEN, ids=label)
def test_what_is_taken_equals_the_cpu(case):
    made, x = model(case)
    npu, reference = sessions.by_name(made.SerializeToString()), sessions.cpu(made.SerializeToString())
    sessions.assert_all_on_npu(npu)
    for found in sessions.assert_same(npu, reference, x, label(case)):
        assert len(np.unique(found)) > 1, "all outputs are saturated"


@pytest.mark.parametrize("case", LEFT, ids=label)
def test_what_is_left_to_the_cpu_has_a_reason_and_equals_it(case, tool, library, tmp_path):  # noqa: F811
    made, x = model(case)
    report = json.loads(call(tool, library, "explain", save(tmp_path, made), "--json")[0])
    (node,) = [node for node in report["nodes"] if node["name"] == "it"]
    assert not node["taken"] and f"{case.kind} `it`" in node["reason"] and case.reason in node["reason"], node
    assert node["change"], node
    npu, reference = sessions.by_name(made.SerializeToString()), sessions.cpu(made.SerializeToString())
    sessions.assert_same(npu, reference, x, label(case))


def test_the_readme_says_the_same():
    rows = dict(re.findall(r"^\| \*\*(.+?)\*\* \| (.+) \|$", README.read_text(), re.MULTILINE))
    taken = set(re.findall(r"\w+", " ".join(rows[row] for row in ("Operators", "Functions of one tensor", "Functions of two tensors"))))
    left = set(re.findall(r"\w+", rows["Operators on the CPU"]))
    kinds, others = {case.kind for case in TAKEN}, {case.kind for case in LEFT}
    assert kinds <= taken, f"taken, and not in the table: {kinds - taken}"
    assert others - kinds <= left, f"left to the CPU, and not in the table: {others - kinds - left}"
    assert not (others - kinds) & taken, f"in the table, and not taken: {(others - kinds) & taken}"

"""`exactness=bounded`: what `require` leaves to the CPU is taken, and each unit's codes lie within one of the CPU's."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import sessions
from onnx import TensorProto, helper, numpy_helper
from test_doors import tool  # noqa: F401
from test_explain import explained
from test_host import call, library  # noqa: F401

BOUNDED = {"exactness": "bounded"}


class Unit:
    """One operator between int8 tensors that the model shows, which so stay int8."""

    def __init__(self, seed: int, shape: list[int]):
        self.random, self.shape = np.random.default_rng(seed), shape
        self.nodes, self.constants = [], []

    def constant(self, values, kind) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes))
        return output

    def dequantised(self, value: str, scale, zero_point: int, kind=np.int8, **attributes) -> str:
        inputs = [value, self.constant(scale, np.float32), self.constant(np.full(np.shape(scale), zero_point), kind)]
        return self.node("DequantizeLinear", inputs, f"{value}_f", **attributes)

    def quantised(self, value: str, scale, zero_point: int, output: str, kind=np.int8) -> str:
        return self.node("QuantizeLinear", [value, self.constant(scale, np.float32), self.constant(zero_point, kind)], output)

    def weights(self, shape: list[int], axis: int = 0) -> str:
        scales = self.random.uniform(0.002, 0.02, shape[axis]).astype(np.float32)
        values = self.random.integers(-127, 128, shape)
        return self.dequantised(self.constant(values, np.int8), scales, 0, axis=axis)

    def bias(self, count: int) -> str:
        return self.dequantised(self.constant(self.random.integers(-20_000, 20_000, count), np.int32), np.full(count, 2e-4), 0, np.int32, axis=0)

    def model(self, output: str, kind=TensorProto.INT8, given=TensorProto.INT8) -> bytes:
        x = helper.make_tensor_value_info("x", given, self.shape)
        y = helper.make_tensor_value_info(output, kind, None)
        graph = helper.make_graph(self.nodes, "unit", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8).SerializeToString()


def unsettled_conv(seed: int) -> tuple[bytes, list[int]]:
    """The CPU divides 49 columns among threads, and with them the order of each sum."""
    unit = Unit(seed, [1, 300, 7, 7])
    inputs = [unit.dequantised("x", 0.02, -3), unit.weights([32, 300, 1, 1]), unit.bias(32)]
    unit.quantised(unit.node("Conv", inputs, "conv"), 0.35, 5, "y")
    return unit.model("y"), unit.shape


def conv_of_rows(seed: int) -> tuple[bytes, list[int]]:
    unit = Unit(seed, [2, 24, 37])
    inputs = [unit.dequantised("x", 0.02, 10), unit.weights([20, 24, 5]), unit.bias(20)]
    unit.quantised(unit.node("Conv", inputs, "conv", pads=[2, 2]), 0.2, -20, "y")
    return unit.model("y"), unit.shape


def product(seed: int) -> tuple[bytes, list[int]]:
    """Rows end by their place in their thread's part."""
    unit = Unit(seed, [1, 67, 160])
    inputs = [unit.dequantised("x", 0.02, 0), unit.weights([160, 1], axis=1)]
    unit.quantised(unit.node("MatMul", inputs, "matmul"), 0.3, 0, "y")
    return unit.model("y"), unit.shape


def gemm_of_both_types(seed: int) -> tuple[bytes, list[int]]:
    unit = Unit(seed, [3, 96])
    inputs = [unit.dequantised("x", 0.02, 0), unit.weights([24, 96]), unit.bias(24)]
    unit.quantised(unit.node("Gemm", inputs, "gemm", transB=1), 0.2, 117, "y", np.uint8)
    return unit.model("y", TensorProto.UINT8), unit.shape


def gemm_that_is_cut_off(seed: int) -> tuple[bytes, list[int]]:
    unit = Unit(seed, [3, 96])
    inputs = [unit.dequantised("x", 0.02, 128, np.uint8), unit.weights([24, 96])]
    relu = unit.node("Relu", [unit.node("Gemm", inputs, "gemm", transB=1)], "relu")
    unit.quantised(relu, 0.1, 60, "y", np.uint8)
    return unit.model("y", TensorProto.UINT8, TensorProto.UINT8), unit.shape


def conv_beside_a_cut(seed: int) -> tuple[bytes, list[int]]:
    """Whole, the tensor between is uint8 and the convolution of integers; Softsign stays on the CPU."""
    unit = Unit(seed, [1, 16, 9, 9])
    unit.quantised("x", 0.02, 3, "q")
    inputs = [unit.dequantised("q", 0.02, 3), unit.weights([24, 16, 3, 3])]
    unit.quantised(unit.node("Conv", inputs, "conv"), 0.2, 5, "t")
    # Its slope is at most 1, so what comes in within a code goes out within a code.
    unit.quantised(unit.node("Softsign", [unit.dequantised("t", 0.2, 5)], "softsign"), 0.2, 0, "y")
    return unit.model("y", given=TensorProto.FLOAT), unit.shape


UNITS = [unsettled_conv, conv_of_rows, product, gemm_of_both_types, gemm_that_is_cut_off, conv_beside_a_cut]


def feed(model: bytes, shape: list[int], seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, 1])
    kind = helper.tensor_dtype_to_np_dtype(onnx.load_from_string(model).graph.input[0].type.tensor_type.elem_type)
    if kind == np.float32:
        return (random.integers(-130, 130, shape) * 0.02).astype(np.float32)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max + 1, shape).astype(kind)


def taken(session: ort.InferenceSession) -> set[str]:
    return set(sessions.operators_on(session, sessions.EP)) - {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.since("1.28.0")
@pytest.mark.parametrize("build", UNITS, ids=lambda build: build.__name__)
def test_what_is_refused_is_taken_within_a_code(build):
    most = 0
    for seed in range(6):
        model, shape = build(seed)
        exact, bounded, reference = sessions.by_name(model), sessions.by_name(model, BOUNDED), sessions.cpu(model)
        assert not taken(exact), "`require` leaves it to the CPU"
        assert taken(bounded) >= {"Conv", "MatMul", "Gemm"} & {node.op_type for node in onnx.load_from_string(model).graph.node}
        for index in range(3):
            x = feed(model, shape, 10 * seed + index)
            wanted = sessions.assert_same(exact, reference, x, f"require, seed {seed}")
            for found, want in zip(sessions.run(bounded, x), wanted, strict=True):
                assert (found.dtype, found.shape) == (want.dtype, want.shape)
                apart = np.abs(found.astype(np.int32) - want)
                most = max(most, apart.max())
                assert apart.max() <= 1, f"seed {seed}: {np.count_nonzero(apart)} of {apart.size} codes differ, by up to {apart.max()}"
                assert np.unique(want).size > 8


def test_sums_that_may_lie_further_apart_are_refused_with_the_bound(tool, library, tmp_path):  # noqa: F811
    unit = Unit(1, [1, 2000, 4])
    inputs = [unit.dequantised("x", 0.02, 0), unit.weights([4, 2000, 1])]
    unit.quantised(unit.node("Conv", inputs, "conv"), 1e-6, 0, "y")
    path = tmp_path / "far.onnx"
    path.write_bytes(unit.model("y"))
    report = explained(tool, library, path, "--exactness", "bounded")
    verdict = next(node for node in report["nodes"] if node["op"] == "Conv")
    assert not verdict["taken"] and verdict["rule"] == "float-order"
    assert "codes between two orders" in verdict["reason"] and "uint8" in verdict["change"]


def test_the_bound_is_told(tool, library, tmp_path):  # noqa: F811
    path = tmp_path / "unit.onnx"
    path.write_bytes(conv_beside_a_cut(0)[0])
    report = explained(tool, library, path, "--exactness", "bounded")
    bounds = {node["op"]: node["bound_codes"] for node in report["nodes"] if "Linear" not in node["op"]}
    assert bounds == {"Conv": 1, "Softsign": 0}
    assert report["exactness"] == "bounded" and report["nodes_bounded"] > 0
    assert "within 1 code of the CPU's" in report["summary"]
    exact = explained(tool, library, path)
    assert exact["exactness"] == "require" and exact["nodes_bounded"] == 0
    assert "bounded" in next(node for node in explained(tool, library, save(tmp_path, unsettled_conv))["nodes"] if node["op"] == "Conv")["change"]
    page = tmp_path / "page.html"
    told = call(tool, library, "explain", path, "--exactness", "bounded", "--html", page)[0]
    assert "at most 1 code" in told
    assert "Not exact" in page.read_text()


def save(folder, build) -> str:
    path = folder / f"{build.__name__}.onnx"
    path.write_bytes(build(0)[0])
    return path


def test_a_unit_that_is_exact_stays_so():
    model, shape = exact_conv()
    bounded, reference = sessions.by_name(model, BOUNDED), sessions.cpu(model)
    sessions.assert_all_on_npu(bounded)
    sessions.assert_same(bounded, reference, feed(model, shape, 1), "bounded")


def exact_conv() -> tuple[bytes, list[int]]:
    unit = Unit(3, [1, 16, 9, 9])
    inputs = [unit.dequantised("x", 0.02, 100, np.uint8), unit.weights([24, 16, 3, 3])]
    unit.quantised(unit.node("Conv", inputs, "conv"), 0.2, 120, "y", np.uint8)
    return unit.model("y", TensorProto.UINT8, TensorProto.UINT8), unit.shape


def test_a_compiled_model_keeps_it_and_asks_for_it(tmp_path):
    model, shape = unsettled_conv(0)
    path = tmp_path / "bounded_ctx.onnx"
    made = sessions.options()
    made.add_session_config_entry("ep.context_enable", "1")
    made.add_session_config_entry("ep.context_file_path", str(path))
    before = sessions.on_npu(model, made, BOUNDED)
    loaded = sessions.by_name(str(path), BOUNDED)
    x = feed(model, shape, 4)
    assert np.array_equal(sessions.run(loaded, x)[0], sessions.run(before, x)[0])
    with pytest.raises(Exception, match="compiled with `exactness=bounded`.*requires equal"):
        sessions.by_name(str(path))


def test_the_cache_tells_both_apart(tmp_path):
    model, shape = unsettled_conv(0)
    settings = {"cache_dir": str(tmp_path)}
    for _ in range(2):
        sessions.by_name(model, settings | BOUNDED)
    held = list(tmp_path.glob("*.npub"))
    assert len(held) == 1
    exact, reference = sessions.by_name(model, settings), sessions.cpu(model)
    assert list(tmp_path.glob("*.npub")) == held, "`require` takes nothing of it"
    sessions.assert_same(exact, reference, feed(model, shape, 4), "require")
    known = exact_conv()[0]
    sessions.by_name(known, settings)
    sessions.by_name(known, settings | BOUNDED)
    assert len(list(tmp_path.glob("*.npub"))) == 3


def test_an_exactness_that_there_is_not_is_told():
    with pytest.raises(Exception, match="exactness.*`near`.*`require` or `bounded`"):
        sessions.by_name(exact_conv()[0], {"exactness": "near"})

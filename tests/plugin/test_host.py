"""`ep_npu::Session` with ONNX Runtime as host engine equals the plugin byte for byte, whatever the NPU takes.

The command-line tool stands for every program that uses `ep_npu::Session`. With `NPU_MODELS=all` in the environment
every model of `cargo xtask models --all` runs, and so does every one with int8 activations; else of these the digits do.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import graphs
import sessions
from npu_models import signed
from npu_models.build import ALL, SETS
from test_doors import DEADLINE_S, save, tool  # noqa: F401
from test_published import feeds

IS_ALL = os.environ.get("NPU_MODELS") == "all"
FILES = [(name, "qdq-pc") for name in SETS["all" if IS_ALL else "quick"]]
FILES += [(name, kind) for name in (ALL if IS_ALL else ["digits"]) for kind in signed.KINDS]
CAPI = Path(ort.__file__).parent / "capi"


@pytest.fixture(scope="session")
def library() -> Path:
    """The very library that this process runs, or its twin: the package has it once more for other languages."""
    (found,) = CAPI.glob("libonnxruntime.so*")
    return found


def call(tool: str, library: Path | str, *arguments, code: int = 0) -> tuple[str, str]:
    environment = {**os.environ, "ORT_DYLIB_PATH": str(library)}
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE_S, env=environment)
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "panicked" not in done.stderr, done.stderr
    return done.stdout, done.stderr


def run(tool: str, library: Path, folder: Path, model: Path, feed: dict[str, np.ndarray], count: int) -> tuple[list[np.ndarray], str]:
    options = []
    for index, (name, value) in enumerate(feed.items()):
        np.save(folder / f"x{index}.npy", value)
        options += ["--input", f"{name}={folder / f'x{index}.npy'}"]
    told, _ = call(tool, library, "run", model, "--host", "ort", *options, "--output", folder / "y.npy")
    return [np.load(folder / ("y.npy" if index == 0 else f"y.{index}.npy")) for index in range(count)], told


@pytest.mark.parametrize(("name", "kind"), FILES, ids=[f"{name}.{kind}" for name, kind in FILES])
def test_the_session_and_the_plugin_give_the_same_bytes(models, tool, library, tmp_path, name, kind):  # noqa: F811
    file = signed.ensure(name, kind, models) if kind in signed.KINDS else models / f"{name}.{kind}.onnx"
    session = sessions.by_name(str(file))
    programs = sum(provider == sessions.EP for provider, _ in sessions.placement(session))
    on_cpu = len(sessions.operators_on(session, sessions.CPU))
    names = [output.name for output in session.get_outputs()]
    for index, feed in enumerate(feeds(name, models / "packages")):
        wanted = session.run(names, feed)
        found, told = run(tool, library, tmp_path, file, feed, len(names))
        # The same nodes run on the NPU, in the same programs.
        assert f"in {programs} program(s)" in told, told
        assert (f" {on_cpu} nodes: " in told) if on_cpu else ("host" not in told), told
        for output, a, b in zip(names, found, wanted, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), output
            assert np.array_equal(sessions.bits(a), sessions.bits(b)), f"{output}, input {index}"


@pytest.mark.parametrize("tail", ["Softmax", "Cos", "Selu"])
@pytest.mark.parametrize("threads", [1, 2])
def test_what_the_npu_refuses_runs_on_the_host_and_the_report_says_so(tool, library, tmp_path, tail, threads):  # noqa: F811
    file = save(tmp_path, graphs.with_float_tail(tail))
    x = {"x": graphs.sample(3)}
    session = sessions.by_name(str(file))
    (wanted,) = session.run(None, {session.get_inputs()[0].name: x["x"]})
    np.save(tmp_path / "x.npy", x["x"])
    options = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--threads", threads, "--ort-threads", threads)
    told, _ = call(tool, library, "run", file, "--host", "ort", "--compare-cpu", *options)
    assert np.array_equal(sessions.bits(np.load(tmp_path / "y.npy")), sessions.bits(wanted))
    assert f"host (ONNX Runtime {ort.__version__}, exact)" in told and f"{tail} x1" in told
    assert f"reference: ONNX Runtime {ort.__version__}" in told and "equal the CPU's, bit for bit" in told
    assert "modelled 0 cycles" not in told
    _, error = call(tool, library, "run", file, *options, code=1)
    assert "`--host ort`" in error and f"{tail} " in error, error


def test_a_difference_from_the_cpu_is_counted_and_is_the_exit_code(tool, library, tmp_path):  # noqa: F811
    """Noise in the model makes two runs differ; everything else here is exact."""
    model = graphs.with_float_tail("RandomUniformLike")
    file = save(tmp_path, model)
    np.save(tmp_path / "x.npy", graphs.sample(2))
    told, _ = call(tool, library, "run", file, "--host", "ort", "--compare-cpu", "--repeat", 2, "--input", tmp_path / "x.npy", code=1)
    assert " values differ, by at most " in told and "first at " in told


def test_a_model_that_does_not_run_is_told_by_node(tool, library, tmp_path):  # noqa: F811
    """What ONNX Runtime says of a failing node reaches the caller; so does what it says of a model that is none."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [7, -1])
    model = graphs.with_float_tail("Softmax")
    model.graph.initializer.append(shape)
    tail = next(node for node in model.graph.node if node.name == "tail")
    tail.op_type = "Reshape"
    tail.input.append("shape")
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    file = save(tmp_path, model)
    np.save(tmp_path / "x.npy", graphs.sample(3))
    _, error = call(tool, library, "run", file, "--host", "ort", "--input", tmp_path / "x.npy", code=1)
    assert "tail" in error and "ONNX Runtime" in error
    _, error = call(tool, library, "run", __file__, "--host", "ort", code=1)
    assert f"ONNX Runtime {ort.__version__}" in error


def test_a_library_that_is_missing_or_another_is_named(tool, library, tmp_path):  # noqa: F811
    file = save(tmp_path, graphs.with_float_tail("Softmax"))
    missing = tmp_path / "libonnxruntime.so"
    _, error = call(tool, missing, "run", file, "--host", "ort", code=1)
    assert str(missing) in error
    _, error = call(tool, missing, "run", file, "--host", "ort", "--ort-library", "libm.so.6", code=1)
    assert "no ONNX Runtime" in error and "libm.so.6" in error
    _, error = call(tool, library, "run", file, "--host", "ort", "--ort-version", "1.0.0", code=1)
    assert ort.__version__ in error and "1.0.0" in error and str(library) in error
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DYLIB_PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")}
    done = subprocess.run([tool, "run", file, "--host", "ort"], capture_output=True, text=True, timeout=DEADLINE_S, env=environment)
    assert done.returncode == 1 and "ORT_DYLIB_PATH" in done.stderr and "onnxruntime/capi" in done.stderr


def test_external_data_beside_the_model_reaches_both(tool, library, tmp_path):  # noqa: F811
    options = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(graphs.with_float_tail("Softmax"), tmp_path / "model.onnx", location="weights.bin", **options)
    np.save(tmp_path / "x.npy", graphs.sample(2))
    told, _ = call(tool, library, "run", tmp_path / "model.onnx", "--host", "ort", "--compare-cpu", "--input", tmp_path / "x.npy")
    assert "equal the CPU's, bit for bit" in told


def test_a_run_ends_in_time_also_while_the_host_computes(tool, library, tmp_path):  # noqa: F811
    """A loop that nobody lives to see the end of, behind what the NPU takes."""
    model = graphs.with_float_tail("Softmax")
    result = model.graph.output[0].name
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"], name="going_on"),
            helper.make_node("Cos", ["state"], ["next"], name="turn"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn_number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62]))
    model.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["turns", "always", result], ["at_last"], name="endless", body=body))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("at_last", TensorProto.FLOAT, None))
    file = save(tmp_path, model)
    np.save(tmp_path / "x.npy", graphs.sample(2))
    options = ("--host", "ort", "--timeout-ms", 700, "--input", tmp_path / "x.npy")
    _, told = call(tool, library, "run", file, *options, code=1)
    assert "not done within 700ms" in told and "ONNX Runtime" in told, told

"""The Python package: packed into a wheel, installed into an environment of its own beside the stock ONNX Runtime, and used."""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import onnx
import pytest

import graphs

PACKAGE = Path(__file__).resolve().parents[2] / "ep-npu/python"
INSTALL_LIMIT_S = 900
RUN_LIMIT_S = 300


@pytest.fixture(scope="module")
def python(library, tmp_path_factory) -> Path:
    """An interpreter that has the package, ONNX Runtime and numpy, as released, and nothing else."""
    folder = tmp_path_factory.mktemp("package")
    tool = os.environ.get("NPU_TOOL", "")
    built = call([sys.executable, PACKAGE / "build_wheel.py", "--library", library, "--tool", tool, "--version", "0.1.0", "--folder", folder])
    wheel = Path(built.strip())
    assert wheel.name == "onnxruntime_ep_npu-0.1.0-py3-none-linux_x86_64.whl"
    venv.create(folder / "venv", with_pip=True)
    interpreter = folder / "venv/bin/python"
    pinned = (Path(__file__).resolve().parents[2] / "tools/python/requirements.txt").read_text()
    stock = re.findall(r"^(?:onnxruntime|numpy)==\S+", pinned, re.MULTILINE)
    assert len(stock) == 2, stock
    call([interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", wheel, *stock])
    return interpreter


def call(command: list, limit_s: int = INSTALL_LIMIT_S) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=limit_s, cwd="/")
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_installed_package_runs_a_model_as_the_cpu_does(python, tmp_path):
    model = tmp_path / "model.onnx"
    onnx.save(graphs.quantised(), model)
    code = f"""
import sys
import numpy as np, onnxruntime as ort, onnxruntime_ep_npu as npu
assert npu.__file__.startswith({str(python.parents[1])!r}), npu.__file__
for _ in range(2):
    npu.register()
assert (npu.get_ep_name(), npu.get_ep_names()) == ("NpuExecutionProvider", ["NpuExecutionProvider"])
assert len([d for d in ort.get_ep_devices() if d.ep_name == npu.get_ep_name()]) == 1
options = ort.SessionOptions()
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
session = ort.InferenceSession({str(model)!r}, options, providers=["NpuExecutionProvider", "CPUExecutionProvider"])
assert {{part.ep_name for part in session.get_provider_graph_assignment_info()}} == {{"NpuExecutionProvider"}}
x = np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)
wanted, = ort.InferenceSession({str(model)!r}, providers=["CPUExecutionProvider"]).run(None, {{"input": x}})
found, = session.run(None, {{"input": x}})
assert found.dtype == wanted.dtype and np.array_equal(found, wanted)
assert "onnx" not in sys.modules
npu.unregister()
npu.unregister()
npu.register()
print("equal")
"""
    assert "equal" in call([python, "-c", code], RUN_LIMIT_S)


def test_empty_arrays_are_used_in_place_and_outlive_all_else(python, tmp_path):
    model = tmp_path / "model.onnx"
    onnx.save(graphs.quantised(), model)
    code = f"""
import gc
import numpy as np, onnxruntime as ort, onnxruntime_ep_npu as npu
x = npu.empty([2, 3, 16, 16], np.float32)
assert (x.shape, x.dtype, x.flags.writeable) == ((2, 3, 16, 16), np.float32, True)
others = [npu.empty((5, 1 << 20), "uint8") for _ in range(3)]
for number, other in enumerate(others):
    other[:] = number
gc.collect()
x[:] = np.random.default_rng(1).standard_normal(x.shape)
assert [int(other.min()) for other in others] == [int(other.max()) for other in others] == [0, 1, 2]
session = ort.InferenceSession({str(model)!r}, providers=[("NpuExecutionProvider", {{"deny_copy": "1"}})], enable_fallback=0)
found, = session.run(None, {{"input": x}})
wanted, = ort.InferenceSession({str(model)!r}, providers=["CPUExecutionProvider"]).run(None, {{"input": x.copy()}})
assert np.array_equal(found, wanted)
del session
npu.unregister()
gc.collect()
x[:] = 1
assert x.sum() == x.size
print("in place")
"""
    assert "in place" in call([python, "-c", code], RUN_LIMIT_S)


def test_explain_says_what_the_tool_does(python, tmp_path):
    model = graphs.with_float_tail("Softmax")
    onnx.save(model, tmp_path / "model.onnx")
    code = f"""
import onnxruntime_ep_npu as npu
by_path = npu.explain({str(tmp_path / "model.onnx")!r})
by_bytes = npu.explain(open({str(tmp_path / "model.onnx")!r}, "rb").read())
left = {{node["op"]: node for node in by_path["nodes"] if not node["taken"]}}
assert left["Softmax"]["name"] == "tail" and left["Softmax"]["reason"], left
assert set(left) <= {{"Softmax", "DequantizeLinear"}}, left
assert by_path.pop("model") != by_bytes.pop("model") and by_path == by_bytes
assert npu.explain({str(tmp_path / "model.onnx")!r}, device="sim:macs=256")["cycles"] > by_path["cycles"]
try:
    npu.explain(b"nonsense")
except npu.ExplainError as error:
    assert "not an ONNX model" in str(error), error
else:
    raise AssertionError("nonsense was explained")
print("explained")
"""
    assert "explained" in call([python, "-c", code], RUN_LIMIT_S)

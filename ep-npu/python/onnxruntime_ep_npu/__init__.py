"""ONNX Runtime execution provider for the NPU: the plugin library, ready to be registered.

    import onnxruntime as ort
    import onnxruntime_ep_npu as npu

    npu.register()
    session = ort.InferenceSession("model.qdq.onnx", providers=[npu.get_ep_name(), "CPUExecutionProvider"])
"""

import importlib.util
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["ExplainError", "empty", "explain", "get_ep_name", "get_ep_names", "get_library_path", "register", "run", "unregister"]

_EP_NAME = "NpuExecutionProvider"
_FOLDER = Path(__file__).resolve().parent
_EXPLAIN_LIMIT_S = 600
_lock = threading.Lock()


class ExplainError(RuntimeError):
    """A model cannot be explained: it cannot be read, or the device cannot be opened."""


def get_library_path() -> str:
    """The plugin library, as `onnxruntime.register_execution_provider_library` takes it."""
    return str(_FOLDER / "libep_npu.so")


def get_ep_name() -> str:
    """The provider's name, as `providers` of a session takes it."""
    return _EP_NAME


def get_ep_names() -> list[str]:
    """The names of all providers in the library: one."""
    return [_EP_NAME]


def register() -> None:
    """Makes the provider known to ONNX Runtime; does nothing where it is known."""
    import onnxruntime as ort

    with _lock:
        if not _devices():
            ort.register_execution_provider_library(_EP_NAME, get_library_path())


def unregister() -> None:
    """Undoes `register`; does nothing where that was not called. Sessions and arrays that are in use stay so."""
    import onnxruntime as ort

    with _lock:
        if _devices():
            ort.unregister_execution_provider_library(_EP_NAME)


def empty(shape: Sequence[int], dtype: Any) -> "np.ndarray":  # noqa: F821
    """A writable array in memory that the device reads and writes in place: runs copy nothing of it.

    Its content is undefined. Needs ONNX Runtime 1.28 or newer.
    """
    import numpy as np
    import onnxruntime as ort

    register()
    memory = _devices()[0].memory_info(ort.OrtDeviceMemoryType.DEFAULT)
    shape, dtype = [int(length) for length in shape], np.dtype(dtype)
    value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, memory_info=memory)
    return _Held.over(value, shape, dtype)


def run(session: Any, output_names: Sequence[str] | None, feeds: dict[str, Any], run_options: Any = None) -> list:
    """As `session.run`, and Ctrl-C ends it: at once, not when the run is over.

    Python looks at signals between calls, and a run is one call. This one is made on another thread, while the caller's
    waits; what interrupts the wait sets `terminate` of the run's options, and is raised when the run has ended.
    """
    import onnxruntime as ort

    run_options = ort.RunOptions() if run_options is None else run_options
    ended, outcome = threading.Event(), []

    def call() -> None:
        try:
            outcome.append((session.run(output_names, feeds, run_options), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            ended.set()

    thread = threading.Thread(target=call, name="npu-run")
    thread.start()
    try:
        ended.wait()
    except BaseException:
        run_options.terminate = True
        thread.join()
        run_options.terminate = False
        raise
    thread.join()
    results, error = outcome[0]
    if error is not None:
        raise error
    return results


def explain(model: Any, device: str | None = None, batch: int = 1, exactness: str = "require") -> dict[str, Any]:
    """Says of each node of `model` whether the NPU takes it, by which rule not, what that costs, and what would change it.

    `model` is a path, the bytes of a model, or an `onnx.ModelProto`; `exactness` is the session's option. The report is
    that of `npu explain --json`.
    """
    if isinstance(model, str | os.PathLike):
        return _explain(Path(model), device, batch, exactness)
    content = model if isinstance(model, bytes | bytearray) else model.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="npu-explain-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        return _explain(path, device, batch, exactness)


def _explain(model: Path, device: str | None, batch: int, exactness: str) -> dict[str, Any]:
    command = [str(_FOLDER / "npu"), "explain", "--json", "--batch", str(batch), "--exactness", exactness]
    if device is not None:
        command += ["--device", device]
    command += ["--", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_EXPLAIN_LIMIT_S, env=_environment())
    if done.returncode != 0:
        raise ExplainError(done.stderr.strip() or f"npu ended with {done.returncode}")
    return json.loads(done.stdout)


def _environment() -> dict[str, str]:
    """This process's, with the ONNX Runtime that it would run: the report is on the graph as that shows it."""
    environment = dict(os.environ)
    found = importlib.util.find_spec("onnxruntime")
    if found is not None and found.origin and "ORT_DYLIB_PATH" not in environment:
        libraries = sorted(Path(found.origin).parent.glob("capi/libonnxruntime.so*"))
        if libraries:
            environment["ORT_DYLIB_PATH"] = str(libraries[-1])
    return environment


def _devices() -> list:
    import onnxruntime as ort

    return [device for device in ort.get_ep_devices() if device.ep_name == _EP_NAME]


class _Held:
    """Device memory as numpy takes it from any object: the array keeps this, and this keeps the memory."""

    def __init__(self, value: Any, shape: list[int], dtype: Any):
        self.value = value
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(shape),
            "typestr": dtype.str,
            "data": (value.data_ptr(), False),
        }

    @classmethod
    def over(cls, value: Any, shape: list[int], dtype: Any) -> "np.ndarray":  # noqa: F821
        import numpy as np

        return np.asarray(cls(value, shape, dtype))

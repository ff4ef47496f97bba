"""One runtime with one model, in a process of its own on given cores, that runs when it is asked to.

A process each, because runtimes bring thread pools that spin, and two that are built with OpenVINO cannot share one.
"""

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

Feed = dict[str, np.ndarray]
NPU = "NpuExecutionProvider"
CPU = "CPUExecutionProvider"
# For what takes long where a machine is busy: reading, compiling, a hundred runs of the slowest model.
LIMIT_S = 300.0


class Absent(Exception):
    """A runtime that does not work on this machine, and why."""


class Subject:
    """This process's end of one runtime."""

    def __init__(self, kind: str, model: Path, threads: int, plugin: Path, feeds: list[Feed]):
        context = multiprocessing.get_context("spawn")
        self.kind = kind
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, kind, model, threads, plugin, feeds), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def outputs(self) -> list[list[np.ndarray]]:
        """The outputs of each feed."""
        self.pipe.send(("outputs", 0))
        return self._answer()

    def times_ms(self, runs: int) -> list[float]:
        """So many runs of the first feed, after one that is not counted."""
        self.pipe.send(("times", runs))
        return self._answer()

    def close(self) -> None:
        self.pipe.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(10)

    def _answer(self):
        if not self.pipe.poll(LIMIT_S):
            raise RuntimeError(f"{self.kind} gave no answer in {LIMIT_S:.0f} s")
        try:
            told = self.pipe.recv()
        except EOFError:
            self.process.join(10)
            raise RuntimeError(f"the process of {self.kind} ended with {self.process.exitcode}") from None
        if isinstance(told, Absent):
            raise told
        if isinstance(told, Exception):
            raise RuntimeError(f"{self.kind}: {told}")
        return told


def _serve(pipe: Connection, kind: str, model: Path, threads: int, plugin: Path, feeds: list[Feed]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        run, about = MAKERS[kind](str(model), threads, plugin, feeds[0])
        pipe.send(about)
        while True:
            what, runs = pipe.recv()
            if what == "outputs":
                pipe.send([[np.array(value) for value in run(feed)] for feed in feeds])
            else:
                run(feeds[0])
                pipe.send([_timed_ms(run, feeds[0]) for _ in range(runs)])
    except EOFError:
        return
    except Exception as error:  # whatever a runtime throws is told to the other end
        pipe.send(error if isinstance(error, Absent) else RuntimeError(f"{type(error).__name__}: {error}"))


def _timed_ms(run, feed: Feed) -> float:
    start = time.perf_counter()
    run(feed)
    return 1e3 * (time.perf_counter() - start)


def _session(model: str, threads: int, providers: list | None, devices: list | None = None):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if devices:
        options.add_provider_for_devices(devices, {"num_of_threads": str(threads)})
    session = ort.InferenceSession(model, options, providers=providers)
    placed: dict[str, list[int]] = {}
    for part in session.get_provider_graph_assignment_info():
        parts = placed.setdefault(part.ep_name, [0, 0])
        parts[0] += 1
        parts[1] += len(part.get_nodes())
    about = {"version": ort.__version__, "parts": {name: parts for name, (parts, _) in placed.items()}, "nodes": {name: nodes for name, (_, nodes) in placed.items()}}
    return lambda feed: session.run(None, feed), about


def _cpu(model: str, threads: int, plugin: Path, feed: Feed):
    return _session(model, threads, [CPU])


def _npu(model: str, threads: int, plugin: Path, feed: Feed):
    import onnxruntime as ort

    ort.register_execution_provider_library(NPU, str(plugin))
    return _session(model, threads, [NPU, CPU])


def _openvino(model: str, threads: int, plugin: Path, feed: Feed):
    import openvino

    core = openvino.Core()
    graph = core.read_model(model)
    graph.reshape({name: list(value.shape) for name, value in feed.items()})
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(graph, "CPU", settings)
    request = compiled.create_infer_request()

    def run(given: Feed) -> list[np.ndarray]:
        done = request.infer(given, share_inputs=True, share_outputs=True)
        return [done[output] for output in compiled.outputs]

    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return run, {"version": openvino.__version__, "float_precision": precision}


def _openvino_plugin(model: str, threads: int, plugin: Path, feed: Feed):
    import onnxruntime as ort
    import onnxruntime_ep_openvino as package

    name = package.get_ep_name()
    ort.register_execution_provider_library(name, package.get_library_path())
    offered = [device for device in ort.get_ep_devices() if device.ep_name == name]
    found = [device for device in offered if device.ep_metadata.get("ov_device") == "CPU"]
    if not found:
        vendors = {device.device.vendor for device in ort.get_ep_devices()}
        raise Absent(f"it offers no processor as a device with ONNX Runtime {ort.__version__} here ({', '.join(sorted(vendors))}); it takes Intel's only")
    return _session(model, threads, None, found[:1])


MAKERS = {"cpu": _cpu, "openvino": _openvino, "openvino-ep": _openvino_plugin, "npu": _npu}
NAMES = {"cpu": "ONNX Runtime's CPU provider", "openvino": "OpenVINO's own API", "openvino-ep": "onnxruntime-ep-openvino", "npu": "this plugin"}

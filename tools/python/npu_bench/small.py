"""A model of one small Conv: what a run costs besides its arithmetic, through Python, beside the CPU provider's."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .rounds import differing
from .subject import Subject

# At most so much longer than the CPU provider a run may take.
WANTED_US = 10.0
SHAPE = [1, 8, 8, 8]
RUNS, ROUNDS = 500, 20
PAUSE_S = 0.02


def compare(threads: list[int], plugin: Path) -> tuple[list[dict], int]:
    """Prints and returns the median of a run by number of threads, us; and how many values differ."""
    found, wrong = [], 0
    random = np.random.default_rng(1)
    feeds = [{"x": random.integers(0, 256, SHAPE).astype(np.uint8)} for _ in range(4)]
    print("\n| one Conv 1x1, 8 to 8 at 8x8 | CPU provider, us | NPU, us | more | at most |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "one-conv.onnx")
        onnx.save(_one_conv(), model)
        for count in threads:
            subjects: list[Subject] = []
            try:
                for kind in ("cpu", "npu"):
                    subjects.append(Subject(kind, model, count, plugin, feeds))
                cpu, npu = (subject.outputs() for subject in subjects)
                wrong += differing(npu, cpu)
                times: dict[str, list[float]] = {subject.kind: [] for subject in subjects}
                for turn in range(ROUNDS):
                    for subject in subjects[:: 1 if turn % 2 else -1]:
                        time.sleep(PAUSE_S)
                        times[subject.kind] += subject.times_ms(RUNS)
            finally:
                for subject in subjects:
                    subject.close()
            us = {kind: 1e3 * statistics.median(series) for kind, series in times.items()}
            found.append({"threads": count, "median_us": us, "wanted_more_us": WANTED_US})
            print(f"| {count} thread{'s' * (count > 1)} | {us['cpu']:.1f} | {us['npu']:.1f} | {us['npu'] - us['cpu']:.1f} | {WANTED_US:g} |", flush=True)
    return found, wrong


def _one_conv() -> onnx.ModelProto:
    weights = np.random.default_rng(2).integers(-100, 100, (8, 8, 1, 1)).astype(np.int8)
    constants = {"scale": np.float32(0.02), "zero": np.uint8(128), "w": weights, "w_scale": np.float32(0.01), "w_zero": np.int8(0)}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("Conv", ["xf", "wf"], ["yf"]),
        helper.make_node("QuantizeLinear", ["yf", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, SHAPE) for name in ("x", "y")]
    initialisers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "one-conv", ends[:1], ends[1:], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

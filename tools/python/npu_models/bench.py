"""Latency of every model at batch 1, NPU beside CPU provider, with 1 and 2 threads: the table of docs/performance.md."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from . import build, demo, latency

BLOCKS = 15


def run(folder: Path, plugin: Path) -> int:
    made = [folder / entry.file for entry in build.build(folder, build.SETS["demo"]) if entry.kind in build.VARIANTS]
    ort.register_execution_provider_library(demo.EP, str(plugin.resolve()))
    print(f"ONNX Runtime {ort.__version__}; batch 1, median ms of {BLOCKS * latency.RUNS} runs in alternating blocks; ratio by block\n")
    print("| model | threads | CPU provider | NPU | CPU / NPU, median (lowest to highest block) |\n|---|---|---|---|---|")
    for model in sorted(made):
        for threads in (1, 2):
            cpu, npu = demo.cpu_session(str(model), threads), demo.npu_session(str(model), threads)
            shape = [1 if isinstance(size, str) else size for size in cpu.get_inputs()[0].shape]
            x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            t = latency.compare(cpu, npu, x, BLOCKS)
            name = model.name.removesuffix(".onnx")
            print(f"| {name} | {threads} | {t.cpu:.2f} | {t.npu:.2f} | {t.ratio:.2f} ({t.lowest:.2f} to {t.highest:.2f}) |", flush=True)
    return 0

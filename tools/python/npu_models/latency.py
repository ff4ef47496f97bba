"""Times the NPU beside the CPU provider, on the same cores, in alternating blocks.

Other work on the machine and a clock that moves touch both alike; quote the ratio, which is taken block by block.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

BLOCKS, RUNS, PAUSE_S = 8, 6, 0.05


@dataclass
class Times:
    """Medians in milliseconds, and of the blocks' ratios CPU / NPU the median, lowest and highest."""

    cpu: float
    npu: float
    ratio: float
    lowest: float
    highest: float


def compare(cpu: ort.InferenceSession, npu: ort.InferenceSession, x: np.ndarray, blocks: int = BLOCKS) -> Times:
    """Runs both in turn. The pause lets the threads of the other session stop spinning; a first run warms up."""
    name = cpu.get_inputs()[0].name
    found = {cpu: [], npu: []}
    for _ in range(blocks):
        for session, times in found.items():
            time.sleep(PAUSE_S)
            session.run(None, {name: x})
            times.append([timed_ms(session, name, x) for _ in range(RUNS)])
    ratios = [statistics.median(c) / statistics.median(n) for c, n in zip(found[cpu], found[npu], strict=True)]
    medians = {session: statistics.median(sum(times, [])) for session, times in found.items()}
    return Times(medians[cpu], medians[npu], statistics.median(ratios), min(ratios), max(ratios))


def timed_ms(session: ort.InferenceSession, name: str, x: np.ndarray) -> float:
    start = time.perf_counter()
    session.run(None, {name: x})
    return 1e3 * (time.perf_counter() - start)

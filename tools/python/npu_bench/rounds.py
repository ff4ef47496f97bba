"""Rounds: each runtime in turn on the same input, so that other work on the machine and a moving clock touch all alike."""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np

from .subject import Subject

# Runs in a row of one runtime in one round, after one that warms the caches up again.
RUNS = 2
# Lets the threads of the one before stop spinning.
PAUSE_S = 0.02
FEWEST_PAIRS = 5


@dataclass
class Ratio:
    """How many times as fast as a peer, over the pairs: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float
    wanted: float


@dataclass
class Result:
    """What was found of one case with so many threads."""

    case: str
    file: str
    threads: int
    batch: int
    pairs: int
    median_ms: dict[str, float]
    least_ms: dict[str, float]
    ratios: dict[str, Ratio]
    # Values of four inputs' outputs that are not the CPU provider's, of how many; by runtime.
    differing: dict[str, int]
    values: int
    about: dict[str, dict]
    absent: dict[str, str] = field(default_factory=dict)


def measure(subjects: list[Subject], pairs: int, limit_s: float) -> dict[str, list[float]]:
    """The median of each round of each runtime. Fewer rounds than `pairs` where these would take longer than `limit_s`."""
    found: dict[str, list[float]] = {subject.kind: [] for subject in subjects}
    for subject in subjects:
        subject.times_ms(RUNS)
    start = time.monotonic()
    for done in range(pairs):
        spent = time.monotonic() - start
        if done >= FEWEST_PAIRS and spent * (done + 1) / done > limit_s:
            break
        # Who comes first changes, so that nobody always follows the same one.
        turn = done % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            time.sleep(PAUSE_S)
            found[subject.kind].append(statistics.median(subject.times_ms(RUNS)))
    return found


def ratio(peer: list[float], npu: list[float], wanted: float) -> Ratio:
    """Of two series, taken pair by pair."""
    low, median, high = np.percentile([p / n for p, n in zip(peer, npu, strict=True)], [10, 50, 90])
    return Ratio(float(median), float(low), float(high), wanted)


def differing(outputs: list[list[np.ndarray]], reference: list[list[np.ndarray]]) -> int:
    """Values that differ in any bit; all of an output of another shape or type."""
    count = 0
    for found, wanted in zip(outputs, reference, strict=True):
        for value, right in zip(found, wanted, strict=True):
            if value.dtype != right.dtype or value.shape != right.shape:
                count += right.size
                continue
            bits = f"u{right.dtype.itemsize}"
            count += int((np.ascontiguousarray(value).view(bits) != np.ascontiguousarray(right).view(bits)).sum())
    return count

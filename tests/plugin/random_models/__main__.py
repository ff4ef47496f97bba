"""Runs random models from the command line, shrinks what fails, and ends with a table.

    python -m random_models --seeds 0..500        a fixed set
    python -m random_models --seconds 1200        as many as fit, from --from on
    python -m random_models --seed 7              one seed, in words
    python -m random_models --case found/7.onnx   a finding of an earlier run

NPU_EP_LIBRARY names the plugin and NPU_DEVICE the device.
"""

import argparse
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import report
from .case import Case
from .generate import generate
from .judge import DIFFERENT, Verdict
from .shrink import shrink
from .worker import Worker

# A run of a hundred models or more must take at least these shares, or it tests nothing. By count, not by speed.
LEAST_MODELS_THAT_RUN = 0.7
LEAST_NODES_TAKEN = 0.3
WORKERS = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="random_models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", metavar="A..B", help="from A up to but not including B")
    which.add_argument("--seconds", type=float, help="new seeds until the time is over")
    which.add_argument("--seed", type=int, help="this one, its graph printed")
    which.add_argument("--case", type=Path, help="a saved case, its graph printed")
    parser.add_argument("--from", dest="first", type=int, default=0, help="where --seconds begins")
    parser.add_argument("--keep", type=Path, default=Path("target/random_models"), help="where findings are saved")
    parser.add_argument("--most", type=int, default=10, help="stop after so many findings")
    return parser.parse_args()


def seeds(chosen: argparse.Namespace) -> Iterator[int]:
    if chosen.seeds:
        first, last = chosen.seeds.split("..")
        yield from range(int(first), int(last))
        return
    end = time.monotonic() + chosen.seconds
    yield from itertools.takewhile(lambda _: time.monotonic() < end, itertools.count(chosen.first))


class Run:
    """Seeds handed out to worker processes, one thread for each."""

    def __init__(self, chosen: argparse.Namespace):
        self.left, self.tally, self.lock = seeds(chosen), report.Tally(), threading.Lock()
        self.keep, self.most, self.found = chosen.keep, chosen.most, []
        self.shown = time.monotonic()

    def all(self) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:
            for done in [pool.submit(self.work) for _ in range(WORKERS)]:
                done.result()

    def work(self) -> None:
        with Worker() as worker:
            while (seed := self.next()) is not None:
                verdict = worker.seed(seed)
                with self.lock:
                    self.tally.add(verdict)
                    if time.monotonic() > self.shown + 10:
                        self.shown = time.monotonic()
                        print(f"{self.tally.kinds.total()} models, {len(self.found)} findings", flush=True)
                if verdict.is_finding:
                    text = examine(generate(seed), verdict, str(seed), self.keep, worker)
                    with self.lock:
                        self.found.append(seed)
                        print(text, flush=True)

    def next(self) -> int | None:
        with self.lock:
            return None if len(self.found) >= self.most else next(self.left, None)


def examine(case: Case, verdict: Verdict, name: str, keep: Path, worker: Worker) -> str:
    """Shrinks a finding, saves both forms, and says what is to be seen."""
    keep.mkdir(parents=True, exist_ok=True)
    case.save(keep / f"{name}.full.onnx")
    trial = keep / f"{name}.trial.onnx"
    small = shrink(case, lambda smaller: same_failure(worker.case(smaller, trial), verdict))
    last = worker.case(small, keep / f"{name}.onnx")
    for suffix in (".onnx", ".npz"):
        trial.with_suffix(suffix).unlink(missing_ok=True)
    head = f"\n== seed {name}: {verdict.kind}: {verdict.text}\nsaved as {keep / name}.onnx ({name}.full.onnx before shrinking); shrunk:"
    return f"{head} {last.kind}: {last.text}\n{report.graph(small.proto)}\nthreads {small.threads}, {len(small.feeds)} feeds\n"


def same_failure(found: Verdict, wanted: Verdict) -> bool:
    """The same kind; and a session that only one of both opens does not stand for values that differ."""
    if found.kind != DIFFERENT or wanted.kind != DIFFERENT:
        return found.kind == wanted.kind
    return way(found.text) == way(wanted.text)


def way(text: str) -> str:
    return next((mark for mark in ("the session:", "the run:") if mark in text), "values")


def single(chosen: argparse.Namespace) -> int:
    case = generate(chosen.seed) if chosen.seed is not None else Case.load(chosen.case)
    print(report.graph(case.proto))
    name = str(chosen.seed) if chosen.seed is not None else f"{chosen.case.stem}.again"
    with Worker() as worker:
        verdict = worker.case(case, keep_file(chosen.keep, name))
        tally = report.Tally()
        tally.add(verdict)
        print(tally.table())
        if verdict.is_finding:
            print(examine(case, verdict, name, chosen.keep, worker))
    return int(verdict.is_finding)


def keep_file(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.full.onnx"


def main() -> int:
    chosen = arguments()
    if not Path(os.environ.get("NPU_EP_LIBRARY", "")).is_file():
        sys.exit("NPU_EP_LIBRARY names no file; it is the path of the plugin's library")
    if chosen.seed is not None or chosen.case:
        return single(chosen)
    run = Run(chosen)
    run.all()
    print(run.tally.table())
    print(f"{len(run.found)} findings" + (f" from the seeds {sorted(run.found)}" if run.found else ""))
    return int(bool(run.found) or not tests_enough(run.tally))


def tests_enough(tally: report.Tally) -> bool:
    models, nodes = tally.kinds.total(), tally.taken.total() + tally.left.total()
    ran, taken = tally.kinds["equal"] / max(1, models), tally.taken.total() / max(1, nodes)
    if models == 0 or (models >= 100 and (ran < LEAST_MODELS_THAT_RUN or taken < LEAST_NODES_TAKEN)):
        print(f"too little was tested: {ran:.0%} of {models} models ran, {taken:.0%} of their nodes on the NPU")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())

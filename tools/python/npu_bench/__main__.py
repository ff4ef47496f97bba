"""`python -m npu_bench`: what `cargo xtask bench` calls once its peers are installed. Prints the table, writes it as JSON."""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

from npu_models import bench

from . import small
from .rounds import Result, differing, measure, ratio
from .subject import NAMES, NPU, Absent, Subject

PEERS = ["cpu", "openvino", "openvino-ep"]
HEAD = "| model | threads | CPU provider | OpenVINO | OpenVINO plugin | NPU | CPU / NPU | wanted | OpenVINO / NPU | wanted | on the NPU | values that differ |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="npu_bench", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the models are")
    parser.add_argument("--plugin", type=Path, required=True, help="libep_npu.so")
    parser.add_argument("--models", default="", help="cases, with commas; all if not given")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60, help="most for the rounds of one case")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    cases = bench.chosen([name for name in arguments.models.split(",") if name])
    threads = [int(count) for count in arguments.threads.split(",")]
    models = bench.files(cases, arguments.folder)
    most = len(cases) * len(threads) * (arguments.seconds + 15) / 60
    print(f"{len(cases)} cases with {threads} threads, at most about {most:.0f} minutes; load {_load()}", flush=True)
    results, absent = [], {}
    print(f"{HEAD}\n|{'---|' * HEAD.count(' |')}", flush=True)
    for case in cases:
        feeds = bench.feeds(case, arguments.folder)
        for count in threads:
            result = _run(case, models[case], feeds, count, arguments, absent)
            results.append(result)
            print(_row(result), flush=True)
    for kind, why in absent.items():
        print(f"\n{NAMES[kind]}: {why}")
    one_node, wrong = small.compare(threads, arguments.plugin.resolve())
    wrong += sum(result.differing.get("npu", 0) for result in results)
    print(f"\nvalues of the NPU that differ from the CPU provider's: {wrong}; load {_load()}")
    document = {"load": os.getloadavg(), "results": [asdict(result) for result in results], "one_node": one_node}
    arguments.json.write_text(json.dumps(document, indent=1))
    return 1 if wrong else 0


def _run(case: bench.Case, model: Path, feeds: list, threads: int, arguments: argparse.Namespace, absent: dict[str, str]) -> Result:
    subjects: list[Subject] = []
    missing: dict[str, str] = {}
    try:
        for kind in [*PEERS, "npu"]:
            if kind in absent:
                continue
            try:
                subjects.append(Subject(kind, model, threads, arguments.plugin.resolve(), feeds))
            except Absent as why:
                absent[kind] = str(why)
            except RuntimeError as why:
                if kind in ("cpu", "npu"):
                    raise
                missing[kind] = str(why)
        outputs = {subject.kind: subject.outputs() for subject in subjects}
        # Time for the threads of all to come to rest after what they just did.
        time.sleep(0.2)
        found = measure(subjects, arguments.pairs, arguments.seconds)
    finally:
        for subject in subjects:
            subject.close()
    reference = outputs["cpu"]
    wanted = {"cpu": case.cpu, "openvino": case.openvino, "openvino-ep": case.openvino}
    return Result(
        case=case.name,
        file=str(model),
        threads=threads,
        batch=case.batch,
        pairs=len(found["npu"]),
        median_ms={kind: statistics.median(times) for kind, times in found.items()},
        least_ms={kind: min(times) for kind, times in found.items()},
        ratios={kind: ratio(times, found["npu"], wanted[kind]) for kind, times in found.items() if kind != "npu"},
        differing={kind: differing(values, reference) for kind, values in outputs.items() if kind != "cpu"},
        values=sum(value.size for values in reference for value in values),
        about={subject.kind: subject.about for subject in subjects},
        absent=missing,
    )


def _row(result: Result) -> str:
    def ms(kind: str) -> str:
        return f"{result.median_ms[kind]:.2f}" if kind in result.median_ms else "-"

    def times(kind: str) -> str:
        if kind not in result.ratios:
            return "- | -"
        found = result.ratios[kind]
        return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f}) | {f'{found.wanted:g}' if found.wanted else '-'}"

    nodes = result.about["npu"]["nodes"]
    share = f"{nodes.get(NPU, 0)} of {sum(nodes.values())} nodes"
    middle = " | ".join(ms(kind) for kind in [*PEERS, "npu"])
    return f"| {result.case} | {result.threads} | {middle} | {times('cpu')} | {times('openvino')} | {share} | {result.differing['npu']} of {result.values:,} |"


def _load() -> str:
    return " ".join(f"{load:.1f}" for load in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())

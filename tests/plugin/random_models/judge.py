"""Runs one case on [NPU, CPU] and on the CPU provider alone, and says how they differ, if they do."""

from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import onnxruntime as ort
import sessions

from . import faults
from .case import Case, Feeds

EQUAL, DIFFERENT, REFUSED, UNSTEADY = "equal", "different", "refused by both", "the CPU provider differs from itself"
CRASH, HANG, CPU_CRASH = "crash", "hang", "the CPU provider alone crashes"
CPU_FAULT = "a known fault of the CPU provider"


@dataclass
class Verdict:
    """What came of a case; of nodes, how many of each operator ran on the NPU and how many were left."""

    kind: str
    text: str = ""
    taken: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    values: int = 0  # compared

    @property
    def is_finding(self) -> bool:
        return self.kind in (DIFFERENT, CRASH, HANG)

    def to_json(self) -> dict:
        return asdict(self)


def options(case: Case) -> ort.SessionOptions:
    made = sessions.options(4)
    made.intra_op_num_threads = case.threads
    return made


def open_cpu(case: Case) -> ort.InferenceSession:
    return ort.InferenceSession(case.model, options(case), providers=[sessions.CPU])


def open_npu(case: Case) -> ort.InferenceSession:
    return ort.InferenceSession(case.model, options(case), providers=[(sessions.EP, {}), sessions.CPU], enable_fallback=0)


def judge(case: Case) -> Verdict:
    wanted, why_not = attempt(lambda: open_cpu(case))
    found, why_not_npu = attempt(lambda: open_npu(case))
    if wanted is None or found is None:
        if wanted is None and found is None:
            return Verdict(REFUSED)
        if wanted is None and faults.is_of_cpu(why_not, case.proto):
            return Verdict(CPU_FAULT, f"the session: {why_not}")
        return Verdict(DIFFERENT, f"the session: CPU {why_not or 'opens'}; NPU {why_not_npu or 'opens'}")
    verdict = Verdict(EQUAL, taken=count(found, sessions.EP), left=count(found, sessions.CPU))
    for index, feeds in enumerate(case.feeds):
        text, values = compare(wanted, found, feeds, case)
        verdict.values += values
        if text == CPU_FAULT or (text and faults.is_unsteady(case.proto, feeds)):
            verdict.kind, verdict.text = CPU_FAULT, f"feed {index}"
        elif text and all(compare(wanted, open_cpu(case), feeds, case)[0] in (None, CPU_FAULT) for _ in range(2)):
            verdict.kind, verdict.text = DIFFERENT, f"feed {index}: {text}"
            return verdict
        elif text:
            verdict.kind, verdict.text = UNSTEADY, f"feed {index}: {text}"
    return verdict


def run_on_cpu(case: Case) -> Verdict:
    """For a case that crashed: whether the NPU has a part in that."""
    session, _ = attempt(lambda: open_cpu(case))
    for feeds in case.feeds if session else []:
        attempt(lambda feeds=feeds: session.run(None, feeds))
    return Verdict(EQUAL)


def attempt(action):
    try:
        return action(), None
    except Exception as error:  # all that ONNX Runtime's failed statuses have in common
        return None, str(error)


def count(session: ort.InferenceSession, provider: str) -> dict[str, int]:
    return dict(Counter(sessions.operators_on(session, provider)))


def compare(a: ort.InferenceSession, b: ort.InferenceSession, feeds: Feeds, case: Case) -> tuple[str | None, int]:
    """The first difference, and how many values were equal before it."""
    wanted, why_not = attempt(lambda: a.run(None, feeds))
    found, why_not_npu = attempt(lambda: b.run(None, feeds))
    if wanted is None or found is None:
        empty = any(value.size == 0 for value in feeds.values())  # -1 in a Reshape of none: the CPU cannot say
        if (why_not and why_not_npu) or (why_not and empty):
            return None, 0
        if why_not and faults.is_of_cpu(why_not, case.proto, feeds):
            return CPU_FAULT, 0
        return f"the run: CPU {why_not or 'works'}; NPU {why_not_npu or 'works'}", 0
    total = 0
    for name, one, other in zip([o.name for o in a.get_outputs()], wanted, found, strict=True):
        if one is None or other is None:  # ONNX Runtime gives nothing for some outputs of an empty batch
            if one is not other:
                return f"{name}: CPU {'nothing' if one is None else one.shape}, NPU {'nothing' if other is None else other.shape}", total
            continue
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return f"{name}: CPU {one.shape} {one.dtype}, NPU {other.shape} {other.dtype}", total
        differ = np.flatnonzero(sessions.bits(one) != sessions.bits(other))
        total += one.size
        if differ.size:
            places = [np.unravel_index(k, one.shape) for k in differ[:4]]
            shown = "; ".join(f"at {[int(p) for p in at]} CPU {one[at]} NPU {other[at]}" for at in places)
            return f"{name}: {differ.size} of {one.size} values differ: {shown}", total
    return None, total

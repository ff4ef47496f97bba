"""What `cargo xtask bench` compares: the cases, what is wanted of each, their models and their inputs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import build, inputs, signed
from .published import Published


@dataclass(frozen=True)
class Case:
    """One model at one batch size, and how many times as fast as each peer the NPU is to be (0 for no aim)."""

    model: str
    cpu: float
    openvino: float
    kind: str = "qdq-pc"
    batch: int = 1

    @property
    def name(self) -> str:
        """As `--models` has it: the model, and what is special."""
        signs = "-s8s8" if self.kind == "s8s8-pc" else ""
        return self.model + signs + (f"-b{self.batch}" if self.batch > 1 else "")


CASES = [
    Case("resnet50", 1.25, 1.1),
    Case("resnet50", 2.5, 0, kind="s8s8-pc"),
    Case("resnet50", 1.25, 1.1, batch=8),
    Case("resnet18", 1.3, 1.1),
    Case("squeezenet1_1", 1.3, 1.1),
    Case("effnet-lite0", 1.6, 1.3),
    Case("mobilenet_v2", 1.8, 1.3),
    Case("mobilenet_v3_small", 1.8, 1.3),
    Case("efficientnet_b0", 0, 0),
    Case("ppocrv4-det", 4, 6),
    Case("ppocrv4-rec", 3.5, 8),
    Case("ppocr-cls-v2", 3, 5),
    Case("ddddocr-det", 1.9, 2),
    Case("dnsmos-p808", 2.5, 2),
    Case("oww-embedding", 3, 5),
    Case("minilm-l3", 1.5, 2),
]


def chosen(names: list[str]) -> list[Case]:
    """The cases of these names; all where there are none."""
    known = {case.name: case for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no case is called {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] or CASES


def files(cases: list[Case], folder: Path) -> dict[Case, Path]:
    """The model of each case, made where it is missing."""
    build.build(folder, list(dict.fromkeys(case.model for case in cases)))
    found = {}
    for case in cases:
        plain = folder / f"{case.model}.{case.kind}.onnx"
        found[case] = signed.ensure(case.model, case.kind, folder) if case.kind in signed.KINDS else plain
    return found


def feeds(case: Case, folder: Path) -> list[dict[str, np.ndarray]]:
    """Four inputs that did not calibrate the model as they are; the first is the one that is timed."""
    if case.batch == 1:
        return signed.feeds(case.model, folder)
    recipe = build.ALL[case.model]
    if isinstance(recipe, Published):
        raise ValueError(f"{case.model} has one fixed shape")
    eight = inputs.eight(list(recipe.shape), case.batch, folder / "packages")
    return [{"input": eight[kind]} for kind in ("real", "real, others", "normal", "wide normal")]

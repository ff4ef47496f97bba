"""One model with what it is fed: what a seed stands for, what a finding leaves behind, what a worker is handed."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """`model` on each of `feeds` in turn, on one session with `threads` threads."""

    model: bytes
    feeds: list[Feeds]
    threads: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def proto(self) -> onnx.ModelProto:
        return onnx.load_model_from_string(self.model)

    def save(self, file: Path) -> None:
        """As `file`, which other tools open too, and beside it `.npz`."""
        file.write_bytes(self.model)
        arrays = {f"{k}/{name}": value for k, feeds in enumerate(self.feeds) for name, value in feeds.items()}
        np.savez(file.with_suffix(".npz"), threads=self.threads, count=len(self.feeds), **arrays)

    @staticmethod
    def load(file: Path) -> "Case":
        with np.load(file.with_suffix(".npz")) as arrays:
            feeds: list[Feeds] = [{} for _ in range(int(arrays["count"]))]
            for key in arrays.files:
                if "/" in key:
                    index, name = key.split("/", 1)
                    feeds[int(index)][name] = arrays[key]
            return Case(file.read_bytes(), feeds, int(arrays["threads"]))

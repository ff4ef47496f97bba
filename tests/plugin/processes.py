"""Processes that tests start: interpreters with the plugin to themselves, and servers of virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

import npu_sim

CHILD_LIMIT_S = 120
# Where the Python package lies, without the library in it.
PACKAGES = Path(__file__).resolve().parents[2] / "ep-npu/python"

START = """
import os, sys
sys.path.insert(0, {folder!r})
LIBRARY = {library!r}
import numpy as np, onnxruntime as ort, graphs, processes, sessions
ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
"""


def run_registered(code: str, library: str, device: str, limit_s: int = CHILD_LIMIT_S, arguments: list[str] | None = None) -> tuple[str, str]:
    """Runs `code` in a fresh interpreter that has the plugin and uses `device`; gives what it wrote to stdout and stderr."""
    start = START.format(folder=str(Path(__file__).parent), library=library)
    environment = os.environ | {"NPU_DEVICE": device}
    command = [sys.executable, "-c", start + code, *(arguments or [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


class Simulator(npu_sim.Simulator):
    """`npu-sim` as it is built beside the plugin's `library`."""

    def __init__(self, library: str):
        program = Path(library).with_name("npu-sim")
        assert program.is_file(), f"no {program}; `cargo build --release -p kmod-sim` makes it"
        super().__init__(program)


def memory(pid: int | str) -> dict[str, int]:
    """What the kernel says of a process's memory, in bytes: VmHWM, VmRSS, RssAnon, RssShmem and so on."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}


def forget_peak(pid: int | str) -> None:
    """Lets VmHWM begin anew, at what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")

"""What a user sees of a fault: the error of the application and `npu-smi log` name the same queue, operation and node.

The manual's table of it is compared with what is seen; `NPU_SNAPSHOTS=store` writes it anew.
"""

import functools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import LIMIT_S, MODEL, ROOT, Server, check, program

# Where no command is to blame, none is named: a program that could not be read, a table, an operand's memory.
FAULTS = {
    "stuck-engine": "HUNG",
    "stuck-engine@2": "HUNG",
    "stuck-engine@9": "HUNG",
    "lost-interrupt+stuck-engine@4": "HUNG",
    "slow-dma:2+stuck-engine@6": "HUNG",
    "bus-error": "DMA_ERROR",
    "bus-error@4": "DMA_ERROR",
    "slow-dma:2+bus-error@5": "DMA_ERROR",
    "dma-error": "DMA_ERROR",
    "dma-error@3": "DMA_ERROR",
    "dma-error@4": "DMA_ERROR",
    "dma-error@5": "DMA_ERROR",
}
HAS_NODE = 8
APPLICATIONS = ("npu run", "ONNX Runtime")
MANUAL = ROOT / "docs/management.md"
HEAD = "| injected | the application's error begins | status | queue | entry | operation | ONNX node |"


class Seen(NamedTuple):
    """One fault: the application's process, how it ended, what it wrote, and the log's line."""

    pid: int
    code: int
    told: str
    fault: dict

    def message(self) -> str:
        """The log's line without the node, which an application names first."""
        return self.fault["message"].replace(f", node `{self.fault['node']}`", "")

    def lead(self) -> str:
        """What the application says before that."""
        found = re.search(r"(the device [^:\n]*): " + re.escape(self.message()), self.told)
        assert found, (self.message(), self.told)
        return found[1]


def command(application: str, device: str) -> list:
    if application == "npu run":
        return [program("npu"), "run", MODEL, "--device", device, "--repeat", "3"]
    python = os.environ.get("NPU_PYTHON")
    assert python, "NPU_PYTHON must name a Python with ONNX Runtime; `cargo xtask test` sets it"
    return [python, Path(__file__).with_name("application.py"), MODEL, device]


@functools.cache
def seen(application: str, fault: str) -> Seen:
    with Server("--device", "hang_ms=300") as server:
        server.smi("inject", fault)
        environment = os.environ | {"NPU_EP_LIBRARY": str(program("npu").with_name("libep_npu.so"))}
        with subprocess.Popen(command(application, server.device), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment) as child:
            _, told = child.communicate(timeout=LIMIT_S)
        faults = check(server.smi("log", "--json").stdout)["faults"]
        assert len(faults) == 1, (told, json.dumps(faults))
        return Seen(child.pid, child.returncode, told, faults[0])


def cells(fault: str, sight: Seen) -> list[str]:
    log = sight.fault
    operation = "-" if log["op_id"] is None else f"`{log['op']}`, op {log['op_id']}"
    node = "-" if log["node"] is None else f"`{log['node']}`"
    return [f"`{fault}`", sight.lead(), f"`{log['status']}`", str(log["queue"]), f"`{log['entry']}`", operation, node]


def row(fault: str, sight: Seen) -> str:
    return f"| {' | '.join(cells(fault, sight))} |"


@pytest.mark.parametrize("application", APPLICATIONS)
@pytest.mark.parametrize("fault", FAULTS)
def test_application_and_log_name_the_same_queue_operation_and_node(application, fault):
    sight = seen(application, fault)
    log, told = sight.fault, sight.told
    assert sight.code != 0 and log["pid"] == sight.pid and log["status"] == FAULTS[fault], (told, log)
    has_node = list(FAULTS).index(fault) < HAS_NODE
    assert [log[field] is not None for field in ("command", "op_id", "op", "node")] == [has_node] * 4, log
    assert f"job {log['job']} of queue {log['queue']}: " in told
    if has_node:
        assert f" at node `{log['node']}` (" in sight.lead() and f"op {log['op_id']})" in sight.message()
    else:
        assert "node" not in sight.lead(), told
    # Both say all that the device's record holds, in the same words.
    assert sight.message() in told


def test_the_manual_shows_what_is_seen():
    rows = [[row(fault, seen(application, fault)) for fault in FAULTS] for application in APPLICATIONS]
    assert rows[0] == rows[1], "applications differ"
    print("\n".join([HEAD, *rows[0]]))
    before, _, rest = MANUAL.read_text().partition(HEAD)
    assert rest, f"{MANUAL} has no table that begins {HEAD}"
    border, *_ = rest.lstrip("\n").splitlines()
    table, _, after = rest.lstrip("\n").partition("\n\n")
    if os.environ.get("NPU_SNAPSHOTS") == "store":
        MANUAL.write_text("\n".join([before + HEAD, border, *rows[0]]) + "\n\n" + after)
    else:
        assert table.splitlines()[1:] == rows[0], "the manual's table is not what is seen; NPU_SNAPSHOTS=store writes it anew"

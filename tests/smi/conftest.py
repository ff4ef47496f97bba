"""What the tests of `npu-smi` share: the programs, a server with clients, and the published schemas."""

import json
import os
import subprocess
import time
from pathlib import Path

import jsonschema
import pytest

from npu_sim import Simulator

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60
MODEL = ROOT / "tests/models/digits.qdq.onnx"


def program(name: str) -> Path:
    tool = Path(os.environ.get("NPU_TOOL", ""))
    found = tool.with_name(name) if tool.is_file() else None
    if not found or not found.is_file():
        pytest.exit(f"NPU_TOOL is {str(tool)!r}, which has no {name} beside it; `cargo xtask test` builds them and sets it", 2)
    return found


def until(what: str, look, limit_s: float = LIMIT_S):
    """What `look` gives once it gives something; a failure when that takes too long."""
    deadline = time.monotonic() + limit_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} does not come within {limit_s} s"
        time.sleep(0.01)


class Server(Simulator):
    """`npu-sim` with a management socket, and clients that end with it."""

    def __init__(self, *options: str | Path):
        super().__init__(program("npu-sim"), "--manage", "npu.manage", *options)
        self.clients: list[subprocess.Popen] = []

    def __enter__(self) -> "Server":
        super().__enter__()
        self.socket = self.folder / "npu.manage"
        return self

    def __exit__(self, *_) -> None:
        for client in self.clients:
            client.kill()
            client.wait(LIMIT_S)
        super().__exit__()

    def work(self, model: Path = MODEL) -> subprocess.Popen:
        """A client that runs a model again and again."""
        command = [program("npu"), "run", model, "--device", self.device, "--repeat", "1000000000", "--timeout-ms", "3600000"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.clients.append(child)
        until("a client with jobs", lambda: any(c["pid"] == child.pid and c["jobs"] > 0 for c in self.stats()["clients"]))
        return child

    def stats(self) -> dict:
        return json.loads(self.smi("show", "--json", "--over", "0.05").stdout)

    def smi(self, *arguments, code: int = 0, **more) -> subprocess.CompletedProcess:
        """Runs `npu-smi` on this server; it has to end with `code`."""
        return smi("--socket", "npu.manage", *arguments, code=code, **({"cwd": self.folder} | more))


def smi(*arguments, code: int = 0, environment: dict | None = None, **more) -> subprocess.CompletedProcess:
    """Runs `npu-smi` without a terminal; it has to end with `code`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NPU_")}
    command = [program("npu-smi"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=clean | (environment or {}), stdin=subprocess.DEVNULL, **more)
    assert done.returncode == code, f"{arguments}: exit code {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert "\x1b" not in done.stdout + done.stderr, f"{arguments}: escape codes without a terminal"
    return done


def closed(schema):
    """The schema with every property that it does not name forbidden: what is printed has to be documented."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def check(text: str) -> dict:
    """One report that `npu-smi` printed as JSON, which has to be what its published schema says, and no more."""
    report = json.loads(text)
    schema = json.loads((ROOT / f"docs/schemas/{report['schema']}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(report)
    jsonschema.Draft202012Validator(closed(schema)).validate(report)
    return report


@pytest.fixture
def server():
    with Server() as started:
        yield started

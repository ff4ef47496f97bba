"""`npu-smi` through a management function instead of the socket: what a guest has, here over vfio-user."""

import os
import signal
import subprocess
import time

import pytest

from conftest import LIMIT_S, MODEL, Server, check, program, smi, until


@pytest.fixture
def server():
    with Server("--manage-function", "npu.function", "--device", "hang_ms=300") as started:
        yield started


def place(server: Server) -> str:
    return f"vfio-user:{server.folder / 'npu.function'}"


def ask(server: Server, *arguments, code: int = 0, **more):
    return smi("--socket", place(server), *arguments, code=code, cwd=server.folder, **more)


def test_each_report_is_that_of_the_socket(server):
    client = server.work()
    same = ("id", "pid", "uid", "process", "since_ms")
    (there,), (here,) = [check(done.stdout)["clients"] for done in (ask(server, "list", "--json"), server.smi("list", "--json"))]
    assert [there[name] for name in same] == [here[name] for name in same] and there["pid"] == client.pid
    report = check(ask(server, "show", "--json", "--over", "0.5").stdout)
    assert report["place"] == place(server) and report["clients"][0]["use"]["jobs"] > 0
    assert check(ask(server, "top", "--json", "--count", "1", "--every", "0.2").stdout)["clients"]
    assert "npu_client_jobs" in ask(server, "show", "--prometheus").stdout
    assert check(ask(server, "dump", "1", "--json").stdout)["state"] == "ready"
    # A trace is read in pieces, each of many words.
    server.smi("inject", "slow-dma:1")
    (traced,) = check(ask(server, "trace", "--json", "--for", "0.3").stdout)["clients"]
    assert traced["events"] and not traced["lost"]
    # Named by the environment, as in a guest's shell.
    text = smi("list", environment={"NPU_MANAGE": place(server)}).stdout
    assert str(client.pid) in text


def test_a_fault_is_armed_seen_and_reset_through_it(server):
    ask(server, "inject", "stuck-engine@30")
    command = [program("npu"), "run", MODEL, "--device", server.device, "--repeat", "100"]
    assert subprocess.run(command, capture_output=True, timeout=LIMIT_S).returncode != 0
    (fault,) = check(ask(server, "log", "--json").stdout)["faults"]
    (dump,) = check(ask(server, "dump", "--list", "--json").stdout)["dumps"]
    assert fault["status"] == dump["status"] == "HUNG" and fault["node"] == dump["node"] is not None
    report = check(ask(server, "dump", "--core", str(dump["id"]), "--json").stdout)
    assert report["fault"]["node"] == fault["node"]
    ask(server, "inject", "none")
    client = server.work()
    (id,) = [c["id"] for c in check(ask(server, "list", "--json").stdout)["clients"] if c["pid"] == client.pid]
    assert check(ask(server, "reset", str(id), "--json").stdout)["clients"] == [id]
    until("its end", lambda: client.poll() is not None)


def test_what_is_no_function_or_does_not_answer_is_told_in_time(server):
    said = smi("--socket", server.device, "list", code=3).stderr
    assert "is no management function" in said and said.count("\n") == 1, said
    assert "cannot open" in smi("--socket", "vfio-user:/nowhere/function", "list", code=3).stderr
    assert "--socket pci:" in smi("--device", "pci:0000:00:02.0", "list", code=3).stderr
    watching = [program("npu-smi"), "--socket", place(server), "--timeout", "1", "list", "--watch", "0.1"]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert "no clients" in child.stdout.readline()
        os.kill(server.child.pid, signal.SIGSTOP)
        began = time.monotonic()
        _, told = child.communicate(timeout=LIMIT_S)
        assert child.returncode == 5 and "did not answer `list` within 1.0 s" in told, (child.returncode, told)
        said = ask(server, "--timeout", "0.5", "list", code=5).stderr
        assert "did not answer `a connection` within 0.5 s" in said and time.monotonic() - began < LIMIT_S, said

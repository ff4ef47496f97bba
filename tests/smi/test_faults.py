"""What is left of a job that failed: the log, core dumps, files of them; and the state of a client that is at work."""

import json
import os
import subprocess

from conftest import LIMIT_S, MODEL, Server, check, program, smi, until


def failing(device: str, environment: dict | None = None) -> str:
    """Runs a model on a device that fails it; what the program says."""
    command = [program("npu"), "run", MODEL, "--device", device, "--repeat", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=os.environ | (environment or {}))
    assert done.returncode != 0, done.stdout
    return done.stderr


def broken(server: Server, fault: str, environment: dict | None = None) -> str:
    """Runs a model on a device with `fault`; what the program says of it."""
    server.smi("inject", fault)
    told = failing(server.device, environment)
    server.smi("inject", "none")
    return told


def test_the_log_as_text_says_what_the_report_does():
    with Server("--device", "hang_ms=300") as server:
        assert "no faults" in server.smi("log").stdout
        broken(server, "stuck-engine@30")
        (fault,) = check(server.smi("log", "--json").stdout)["faults"]
        assert fault["process"] == "npu" and not fault["is_here"]
        text = server.smi("log").stdout
        assert fault["node"] in text and fault["message"] in text
        assert check(server.smi("log", "--json", "--client", "99").stdout)["faults"] == []


def test_a_core_dump_is_listed_saved_and_printed_without_a_server(tmp_path):
    with Server("--device", "hang_ms=300", "--dumps", tmp_path / "dumps") as server:
        assert "no core dumps" in server.smi("dump", "--list").stdout
        broken(server, "stuck-engine@30")
        (dump,) = check(server.smi("dump", "--list", "--json").stdout)["dumps"]
        assert dump["status"] == "HUNG" and dump["node"] in server.smi("dump", "--list").stdout
        server.smi("dump", "--core", str(dump["id"]), "--save", tmp_path / "core")
        of_server = check(server.smi("dump", "--core", str(dump["id"]), "--json").stdout)
    assert (tmp_path / "core").read_bytes() == next((tmp_path / "dumps").iterdir()).read_bytes()
    report = check(smi("dump", tmp_path / "core", "--json").stdout)
    assert report | {"place": 0} == of_server | {"place": 0}
    assert report["fault"]["node"] == dump["node"] == report["job"]["node"] and len(report["events"]) > 10
    (current,) = [line for line in report["job"]["listing"] if line["is_current"]]
    assert current["text"].startswith(dump["op"]) and current["node"] == dump["node"]
    text = smi("dump", tmp_path / "core").stdout
    assert f"`{dump['node']}`" in text and "registers" in text and "submission" in text and current["text"].splitlines()[0] in text


def test_an_application_keeps_the_dump_that_the_server_has(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    with Server("--device", "hang_ms=300", "--dumps", theirs) as server:
        told = broken(server, "bus-error@4", {"NPU_DUMP_DIR": str(mine)})
    (kept,), (written,) = mine.iterdir(), theirs.iterdir()
    assert str(kept) in told and kept.read_bytes() == written.read_bytes()
    report = check(smi("dump", kept, "--json").stdout)
    assert report["fault"]["status"] == "DMA_ERROR" and f"at node `{report['fault']['node']}`" in told
    # A device in the application's process leaves the same, and nobody else has it.
    told = failing("sim:inject=bus-error@4,hang_ms=300", {"NPU_DUMP_DIR": str(tmp_path / "own")})
    (own,) = (tmp_path / "own").iterdir()
    same = check(smi("dump", own, "--json").stdout)
    assert str(own) in told and same["fault"]["message"] == report["fault"]["message"]
    # Where it cannot be kept, that is said beside the error.
    told = failing("sim:inject=bus-error@4", {"NPU_DUMP_DIR": "/dev/null/none"})
    assert "no core dump in NPU_DUMP_DIR=/dev/null/none: " in told and "at node `" in told


def test_a_client_at_work_shows_its_state(server):
    server.work()
    # Between two jobs there is none.
    report = until("a job", lambda: (dump := check(server.smi("dump", "1", "--json").stdout))["job"] and dump)
    assert report["fault"] is None and report["state"] == "ready"
    registers = {register["name"]: register["value"] for register in report["registers"]}
    assert registers["Magic"] == int.from_bytes(b"NPU0", "little")
    assert [queue["id"] for queue in report["queues"]][0] == 0 and report["programs"] and report["job"]["slots"]
    assert "Magic" in until("a command", lambda: "->" in (text := server.smi("dump", "1").stdout) and text)
    # The same as a file, which can be sent to somebody.
    server.smi("dump", "1", "--save", "one.dump")
    assert "Magic" in smi("dump", server.folder / "one.dump").stdout


def test_garbage_is_no_dump(tmp_path):
    good = {}
    with Server() as server:
        server.work()
        server.smi("dump", "1", "--save", tmp_path / "good")
        good = (tmp_path / "good").read_bytes()
        assert "no client 99" in smi("--socket", server.socket, "dump", "99", code=4).stderr
        assert "no dump 99" in smi("--socket", server.socket, "dump", "--core", "99", code=4).stderr
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    cases = {"empty": b"", "text": b"no dump at all, but text\n" * 10, "cut": good[:-8], "long": good + bytes(8), "flipped": flipped, "huge": bytes(1 << 20), "newer": good[:4] + b"\x63\x00" + good[6:]}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        said = smi("dump", tmp_path / name, code=6).stderr
        assert str(tmp_path / name) in said and said.count("\n") == 1, said
    assert "cannot read" in smi("dump", tmp_path / "none", code=7).stderr
    assert "cannot read" in smi("dump", tmp_path, code=7).stderr


def test_new_faults_are_told_as_they_come():
    with Server("--device", "hang_ms=300") as server:
        command = [program("npu-smi"), "--socket", server.socket, "log", "--json", "--watch", "0.1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert check(child.stdout.readline())["faults"] == []
            broken(server, "stuck-engine@30")
            (fault,) = until("the fault", lambda: check(child.stdout.readline())["faults"])
            assert fault["status"] == "HUNG"
            assert check(child.stdout.readline())["faults"] == [], "told once"
            child.terminate()


def test_the_selftest_has_a_verdict_and_an_exit_code(server):
    report = check(smi("selftest", "--device", server.device, "--json").stdout)
    names = {test["name"].split(":")[0] for test in report["tests"]}
    assert names == {"registers", "interrupt", "dma", "fault", "program", "latency", "bandwidth"}
    assert report["failed"] == 0 and all(test["is_passed"] for test in report["tests"])
    assert f"{report['passed']} of {report['passed']} passed" in smi("selftest", "--device", server.device).stdout
    # A device that loses an interrupt fails it.
    server.smi("inject", "lost-interrupt@1:1000000")
    report = check(smi("selftest", "--device", server.device, "--json", code=1).stdout)
    failed = [test for test in report["tests"] if not test["is_passed"]]
    assert any(test["name"].startswith("interrupt") and test["error"] for test in failed)
    assert "cannot open device" in smi("selftest", "--device", "vfio-user:/nowhere", code=3).stderr
    assert "--device sim" in smi("selftest", code=2).stderr
    assert json.dumps(report) and os.path.exists(server.socket)

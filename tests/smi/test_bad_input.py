"""What goes wrong is told in one line, in bounded time, with the exit code that `--help` documents."""

import json
import os
import signal
import socket
import subprocess
import threading
import time

import pytest

from conftest import LIMIT_S, Server, program, smi


def said(*arguments, code: int, **more) -> str:
    """The line that `npu-smi` says on standard error, ending with `code`."""
    done = smi(*arguments, code=code, **more)
    assert done.stdout == "" and done.stderr.startswith("npu-smi: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def answering(tmp_path):
    """Makes a server that answers every line with the same bytes."""
    listeners = []

    def serve(reply: bytes) -> str:
        path = tmp_path / f"socket-{len(listeners)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)

        def answer(connection: socket.socket) -> None:
            with connection, connection.makefile("rb") as lines:
                for _ in lines:
                    connection.sendall(reply)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return str(path)

    yield serve
    for listener in listeners:
        listener.close()


def test_where_nothing_is_the_line_says_what_to_start(tmp_path):
    nowhere = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    assert "start one with `npu-sim --socket PATH --manage PATH`" in said("list", code=3, environment=nowhere)
    missing = tmp_path / "none"
    assert str(missing) in said("list", "--socket", missing, code=3)
    (tmp_path / "file").write_text("text")
    assert "is a file" in said("show", "--socket", tmp_path / "file", code=3)
    assert "is a folder" in said("show", "--socket", tmp_path, code=3)
    assert "process" in said("top", "--device", "sim", code=3)
    assert "vfio-user:PATH" in said("top", "--device", "gpu:0", code=3)


def test_a_command_line_without_sense_is_code_2(tmp_path):
    for arguments in [("lsit",), ("list", "--watch", "0"), ("reset", "some"), ("top", "--count", "0"), ()]:
        assert smi(*arguments, code=2).stdout == ""


def test_replies_that_are_none_are_told_apart(answering):
    newer = said("list", "--socket", answering(b'{"schema":2,"functions":[]}\n'), code=6)
    assert "answers with schema 2, this npu-smi reads schema 1; update npu-smi" in newer
    assert "no reply" in said("list", "--socket", answering(b"\xff\x00garbage\n"), code=6)
    assert "no reply" in said("list", "--socket", answering(b'{"schema":1,"functions":[{"id":-1}]}\n'), code=6)
    assert "refuses `list`: not today" in said("list", "--socket", answering(b'{"schema":1,"error":"not today"}\n'), code=4)
    # A newer minor only adds.
    added = answering(b'{"schema":1,"minor":99,"functions":[{"id":1,"state":"ready","in_flight":0,"since_ms":0,"colour":"red"}]}\n')
    assert "ready" in smi("list", "--socket", added).stdout


def test_a_server_that_stalls_is_given_up(answering):
    start = time.monotonic()
    assert "did not answer `list` within 0.5 s" in said("list", "--socket", answering(b""), "--timeout", "0.5", code=5)
    # A drop now and then is no answer either.
    assert "within 0.5 s" in said("list", "--socket", answering(b" "), "--timeout", "0.5", code=5)
    assert time.monotonic() - start < LIMIT_S / 2


def test_a_stopped_server_is_given_up_and_a_killed_one_is_told(server):
    os.kill(server.child.pid, signal.SIGSTOP)
    try:
        assert "within 0.5 s; is its process stopped?" in said("--socket", server.socket, "list", "--timeout", "0.5", code=5)
    finally:
        os.kill(server.child.pid, signal.SIGCONT)
    server.smi("list")
    server.child.kill()
    server.child.wait(LIMIT_S)
    assert "nobody listens" in said("--socket", server.socket, "list", code=3)


@pytest.mark.parametrize("command", [("list", "--watch", "0.1"), ("show", "--watch", "0.1"), ("top", "--every", "0.1")])
def test_a_server_that_goes_away_ends_what_watches_it(command):
    with Server() as server:
        watcher = [program("npu-smi"), "--socket", server.socket, *command]
        with subprocess.Popen(watcher, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL) as child:
            # It is at it.
            child.stdout.readline()
            server.child.kill()
            server.child.wait(LIMIT_S)
            _, told = child.communicate(timeout=LIMIT_S)
        assert child.returncode == 5 and "has the server ended?" in told, told


def test_a_client_that_is_not_there_is_refused(server):
    assert "no client 99" in said("--socket", server.socket, "show", "99", code=4)
    assert "no client 99" in said("--socket", server.socket, "reset", "99", code=4)
    assert "no client 99" in said("--socket", server.socket, "inject", "dma-error", "--client", "99", code=4)
    assert "stuck-engine" in said("--socket", server.socket, "inject", "stuck", code=4)
    assert server.smi("reset", "all", code=1).stdout == "there was no client to reset\n"
    assert json.loads(server.smi("reset", "all", "--json", code=1).stdout)["clients"] == []

"""`npu-smi top` and the tables in a real terminal, at the sizes that people have.

What is shown is compared with the files in tests/snapshots; `NPU_SNAPSHOTS=store` writes them anew.
"""

import os
import signal
import time
from pathlib import Path

import pytest

import tmux
from conftest import ROOT, Server, program, until
from tmux import Terminal

SNAPSHOTS = ROOT / "tests/snapshots"
SIZES = [(80, 24), (160, 50), (40, 12)]


def top(server: Server, columns: int, rows: int, *arguments, **more) -> Terminal:
    command = [program("npu-smi"), "--socket", "npu.manage", "top", *arguments]
    return Terminal(columns, rows, *command, cwd=server.folder, **more)


def same(name: str, terminal: Terminal, of) -> str:
    """What `of` the terminal's screen is in the end, which has to be as it is stored."""
    file = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("NPU_SNAPSHOTS") == "store":
        file.write_text(terminal.at_rest(of, 3))
    stored = file.read_text() if file.is_file() else ""
    text = terminal.comes_to(stored, of)
    assert text == stored, f"not as in {file}:\n{text}"
    return text


@pytest.fixture(scope="module")
def stuck():
    """A server with a client whose job does not come to its end."""
    with Server("--device", "hang_ms=600000") as server:
        busy = server.work()
        server.smi("inject", "stuck-engine", "--client", "1")

        def rests() -> bool:
            one, other = (server.stats()["clients"][0] for _ in range(2))
            return one["jobs"] == other["jobs"] and one["in_flight"] > 0

        until("a job that takes long", rests)
        yield server, [busy.pid]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_top_of_an_idle_server(server, size):
    with top(server, *size, "--every", "0.05") as terminal:
        terminal.until("no clients")
        shown = same(f"top-idle-{size[0]}x{size[1]}", terminal, lambda text: tmux.without(text, []))
        assert tmux.narrowest(shown) <= size[0]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_top_of_a_busy_client_and_its_help(stuck, size):
    server, pids = stuck
    normal = lambda text: tmux.without(text, pids)
    with top(server, *size, "--every", "0.05") as terminal:
        terminal.until("USE%")
        shown = same(f"top-busy-{size[0]}x{size[1]}", terminal, normal)
        assert tmux.narrowest(shown) <= size[0]
        terminal.press("h")
        terminal.until("choose a client")
        same(f"top-help-{size[0]}x{size[1]}", terminal, normal)
        terminal.press("h")
        same(f"top-busy-{size[0]}x{size[1]}", terminal, normal)
        terminal.press("q")
        assert terminal.ended() == 0


def test_a_terminal_of_twenty_columns_and_less(stuck):
    server, _ = stuck
    with top(server, 20, 10, "--every", "0.05") as terminal:
        assert tmux.narrowest(terminal.until("USE%")) <= 20
        terminal.resize(10, 5)
        terminal.until("too small")
        terminal.resize(100, 30)
        terminal.until("client 1")
        terminal.press("q")
        assert terminal.ended() == 0
    for command, part in [(["list"], "ready"), (["show"], "USE%"), (["show", "1"], "QUEUE")]:
        with Terminal(20, 60, program("npu-smi"), "--socket", "npu.manage", *command, cwd=server.folder) as terminal:
            assert tmux.narrowest(terminal.until(part)) <= 20
            assert terminal.ended() == 0


def test_keys_choose_sort_pause_and_change_the_pace(server):
    server.work()
    server.work()
    with top(server, 100, 40, "--every", "0.2") as terminal:
        terminal.until("client 1")
        terminal.press("s")
        terminal.until("by jobs")
        terminal.press("s", "s")
        terminal.until("by id")
        terminal.press("Down", "Down")
        terminal.until(" client 2 ─")
        terminal.press("Up")
        terminal.until(" client 1 ─")
        terminal.press("-")
        terminal.until("0.4 s")
        terminal.press("+", "+")
        terminal.until("0.1 s")
        terminal.press("p")
        terminal.until("paused")
        shown = terminal.at_rest(str)
        assert "paused" in shown and terminal.at_rest(str, 1.5) == shown
        terminal.press("p")
        terminal.until("0.1 s")
        terminal.press("h")
        terminal.until("choose a client")
        terminal.press("Escape")
        until("no help", lambda: "choose a client" not in terminal.shows())
        terminal.press("C-c")
        assert terminal.ended() == 0


def shell(server: Server) -> Terminal:
    return Terminal(90, 24, "sh", cwd=server.folder)


def restored(terminal: Terminal, code: int) -> None:
    """The shell has its terminal as it was: its text, its echo, its lines."""
    until("a prompt", lambda: terminal.shows().endswith(("$", "#")) and "JOBS/s" not in terminal.shows())
    terminal.press("-l", "echo code $? $(stty -a | tr ' ;' '\\n\\n' | grep -cxE 'icanon|echo|isig|opost')")
    terminal.press("Enter")
    shown = terminal.until(f"code {code} 4")
    assert "before" in shown and "JOBS/s" not in shown, shown


@pytest.mark.parametrize("end, code", [("q", 0), ("term", 128 + 15), ("server", 5)])
def test_the_terminal_is_as_it_was_however_top_ends(end, code):
    with Server() as server, shell(server) as terminal:
        server.work()
        terminal.press("-l", "echo before")
        terminal.press("Enter")
        terminal.press("-l", f"{program('npu-smi')} --socket npu.manage top --every 0.1")
        terminal.press("Enter")
        terminal.until("JOBS/s")
        if end == "q":
            terminal.press("q")
        elif end == "term":
            children = f"/proc/{terminal.process()}/task/{terminal.process()}/children"
            os.kill(int(open(children).read().split()[0]), signal.SIGTERM)
        else:
            server.child.kill()
        restored(terminal, code)
        if end == "server":
            assert "has the server ended?" in terminal.shows().replace("\n", "")


def test_a_server_that_stalls_is_told_and_then_given_up(server):
    # Lines above, as the terminal's own last line pushes one out.
    line = f"echo; echo; exec {program('npu-smi')} --socket npu.manage top --every 0.1 --timeout 6"
    with Terminal(140, 24, "sh", "-c", line, cwd=server.folder) as terminal:
        terminal.until("no clients")
        os.kill(server.child.pid, signal.SIGSTOP)
        try:
            terminal.until("no answer for 1 s")
            # The keys are heard meanwhile.
            terminal.press("h")
            terminal.until("choose a client")
            assert terminal.ended() == 5
            assert "waits longer" in terminal.shows()
        finally:
            os.kill(server.child.pid, signal.SIGCONT)


def test_top_ends_with_its_terminal(server):
    with top(server, 80, 24) as terminal:
        terminal.until("no clients")
        process = terminal.process()
    until("its end", lambda: not os.path.exists(f"/proc/{process}"))


def test_top_costs_next_to_nothing(server):
    """A guard against a loop that spins; `top` takes well under 1 % of a core."""
    server.work()
    with top(server, 160, 50) as terminal:
        terminal.until("JOBS/s")
        threads = Path(f"/proc/{terminal.process()}/task")

        def used() -> float:
            return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads.iterdir()) / 1e9

        start, before = time.monotonic(), used()
        until("five looks", lambda: time.monotonic() - start > 5)
        share = (used() - before) / (time.monotonic() - start)
        print(f"top takes {100 * share:.2f} % of a core")
        assert share < 0.2

"""A real terminal of a given size: tmux, its keys and what it shows."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from conftest import LIMIT_S, until

NUMBERS = itertools.count()
# A terminal without a line of its own, that stays when its program has ended.
SETTINGS = "set -g status off\nset -g remain-on-exit on\nset -g default-terminal screen-256color\nset -s escape-time 0\n"


class Terminal:
    """`command` in a terminal of `columns` by `rows`, for as long as the `with` lasts."""

    def __init__(self, columns: int, rows: int, *command, cwd: Path, environment: dict | None = None):
        assert shutil.which("tmux"), "these tests need tmux: `apt-get install tmux`, as .ci/run does"
        self.name = f"npu-smi-{os.getpid()}-{next(NUMBERS)}"
        self.size, self.command, self.cwd = (columns, rows), command, cwd
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NPU_", "TMUX", "LC_"))}
        self.environment = clean | {"LANG": "C.UTF-8", "PS1": "$ "} | (environment or {})

    def tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-L", self.name, "-f", self.settings.name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=self.environment, cwd=self.cwd)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def __enter__(self) -> "Terminal":
        self.settings = tempfile.NamedTemporaryFile("w", suffix=".conf")
        self.settings.write(SETTINGS)
        self.settings.flush()
        columns, rows = self.size
        # tmux itself may never know how a program ended that did so at once.
        self.code = tempfile.NamedTemporaryFile("r", suffix=".code")
        line = f"{shlex.join(map(str, self.command))}; echo $? > {shlex.quote(self.code.name)}"
        self.tmux("new-session", "-d", "-x", str(columns), "-y", str(rows), line)
        return self

    def __exit__(self, *_) -> None:
        subprocess.run(["tmux", "-L", self.name, "kill-server"], capture_output=True, timeout=LIMIT_S)
        self.settings.close()
        self.code.close()

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def resize(self, columns: int, rows: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def shows(self) -> str:
        return self.tmux("capture-pane", "-p").rstrip("\n")

    def until(self, part: str) -> str:
        """What it shows once `part` is in it."""
        seen = [""]

        def look() -> str:
            seen[0] = self.shows()
            return seen[0] if part in seen[0] else ""

        try:
            return until(repr(part), look)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is\n{seen[0]}") from None

    def at_rest(self, of, still_s: float = 0.6) -> str:
        """`of` what it shows, once that stays the same for a while."""
        since = [time.monotonic(), of(self.shows())]

        def look() -> str:
            now = of(self.shows())
            if now != since[1]:
                since[:] = [time.monotonic(), now]
            return now if time.monotonic() - since[0] > still_s else ""

        return until("a screen that stays the same", look)

    def comes_to(self, wanted: str, of) -> str:
        """What `of` what it shows is in the end, by when it should be `wanted`: a plot fills look by look, and on a
        machine with other work a look may take as long as a screen that stays the same seems to rest."""
        seen = [""]

        def look() -> bool:
            seen[0] = of(self.shows())
            return seen[0] == wanted

        try:
            until("the screen", look)
        except AssertionError:
            pass
        return seen[0]

    def process(self) -> int:
        shell = int(self.tmux("display-message", "-p", "#{pane_pid}"))
        return int(until("the program", lambda: Path(f"/proc/{shell}/task/{shell}/children").read_text().split())[0])

    def ended(self) -> int:
        """The exit code of its program, once it has ended."""
        return int(until("an end", lambda: Path(self.code.name).read_text().strip()))


def narrowest(text: str) -> int:
    """Columns of the longest line."""
    return max(len(line) for line in text.splitlines())


def without(text: str, pids: list[int]) -> str:
    """A screen without what differs from run to run: process ids, and the figures of one client."""
    for pid in pids:
        text = re.sub(rf" +{pid}\b", "  PID", text)
    text = re.sub(r" +PID", "  PID", text)
    # The clock of a look and that of a job are not one: all the time is seen as a little less or more.
    text = re.sub(r"(?<=use )[\d.]+(?= %)", "100", text)
    text = re.sub(r"(?m)^( +\d+) +[\d.]+(?= )", r"\1   100", text, count=1)
    text = re.sub("[▁-█]", "█", text)
    head, mark, rest = text.partition("\n client ")
    # What a box covers in part depends on the figures before it.
    rest = re.sub(r"(?m)^.*?(?=[┌│└])", "", rest)
    rest = re.sub(r"\d+(\.\d+)?(?: [KMGTPE]?i?B\b|[kMGTPE])?", "#", rest)
    return "\n".join(line.rstrip() for line in (head + mark + rest).splitlines()) + "\n"

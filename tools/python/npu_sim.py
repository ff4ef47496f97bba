"""`npu-sim` as a process that tests start: waited for until it listens, and ended with all that it left."""

import queue
import subprocess
import tempfile
import threading
from pathlib import Path

LIMIT_S = 60


class Simulator:
    """The server `program` with its socket in a folder of its own, for as long as the `with` lasts.

    `options` are of its command line; paths in them are relative to that folder.
    """

    def __init__(self, program: Path, *options: str | Path):
        self.command = [program.resolve(), "--socket", "npu.sock", *options]

    def __enter__(self) -> "Simulator":
        self.temporary = tempfile.TemporaryDirectory(prefix="npu-test-")
        self.folder = Path(self.temporary.name)
        self.device = f"vfio-user:{self.folder / 'npu.sock'}"
        self.child = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True, cwd=self.folder)
        said: queue.Queue[str] = queue.Queue()
        # A thread, so that a server that says nothing does not hold the test up.
        threading.Thread(target=lambda: said.put(self.child.stdout.readline()), daemon=True).start()
        try:
            line = said.get(timeout=LIMIT_S)
            assert line.startswith("listening on"), f"npu-sim said {line!r}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # One that is stopped ends as well.
        self.child.kill()
        self.child.wait(LIMIT_S)
        self.child.stdout.close()
        self.temporary.cleanup()

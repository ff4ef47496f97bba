"""The process that runs cases, and the end that its parent holds: a crash or a hang costs one case, not the run.

One JSON object a line each way: `{"seed": 7}` or `{"case": "file.onnx"}` in, a verdict out. With `"only": "cpu"` the
NPU is left out.
"""

import faulthandler
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

from .case import Case
from .judge import CPU_CRASH, CRASH, HANG, Verdict

# A case takes milliseconds.
LIMIT_S = 120
TESTS = Path(__file__).resolve().parents[1]
TOOLS = TESTS.parents[1] / "tools/python"


class Worker:
    """A child process, started when it is needed and again after a crash or a hang."""

    def __init__(self, limit_s: int = LIMIT_S):
        self.limit_s, self.child = limit_s, None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def seed(self, seed: int) -> Verdict:
        return self.ask({"seed": seed})

    def case(self, case: Case, file: Path) -> Verdict:
        case.save(file)
        return self.ask({"case": str(file)})

    def ask(self, question: dict) -> Verdict:
        verdict = self.answer(question)
        if verdict.kind == CRASH and self.answer(question | {"only": "cpu"}).kind == CRASH:
            verdict.kind = CPU_CRASH
        return verdict

    def answer(self, question: dict) -> Verdict:
        child = self.started()
        try:
            child.stdin.write(json.dumps(question) + "\n")
            child.stdin.flush()
            line = self.lines.get(timeout=self.limit_s)
        except queue.Empty:
            self.stop()
            return Verdict(HANG, f"no answer within {self.limit_s} s")
        except BrokenPipeError:
            line = None
        if line is None:
            code = child.wait(self.limit_s)
            self.stop()
            return Verdict(CRASH, f"the process ended with {code}")
        return Verdict(**json.loads(line))

    def started(self) -> subprocess.Popen:
        if self.child is None:
            paths = os.pathsep.join([str(TESTS), str(TOOLS)])
            command = [sys.executable, "-X", "faulthandler", "-m", "random_models.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.child = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, **pipes)
            self.lines: queue.Queue[str | None] = queue.Queue()
            # A thread, so that the wait for an answer can end without one.
            threading.Thread(target=forward, args=(self.child.stdout, self.lines), daemon=True).start()
        return self.child

    def stop(self) -> None:
        if self.child:
            self.child.kill()
            self.child.wait(self.limit_s)
            self.child.stdin.close()
            self.child = None


def forward(pipe, lines: "queue.Queue[str | None]") -> None:
    with pipe:
        for line in pipe:
            lines.put(line)
    lines.put(None)


def main() -> None:
    import onnxruntime as ort
    import sessions

    from .generate import generate
    from .judge import DIFFERENT, judge, run_on_cpu

    # ONNX Runtime and the plugin may print; answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    ort.set_default_logger_severity(4)  # or each session would say what the NPU does not take
    ort.register_execution_provider_library(sessions.EP, os.environ["NPU_EP_LIBRARY"])
    faulthandler.enable(os.fdopen(os.dup(2), "w"))
    for line in sys.stdin:
        question = json.loads(line)
        case = generate(question["seed"]) if "seed" in question else Case.load(Path(question["case"]))
        run = run_on_cpu if "only" in question else judge
        with said() as words:
            verdict = run(case)
        # The plugin catches a panic, and ONNX Runtime goes on without it: nothing else would show.
        if "panicked at" in words[0]:
            verdict.kind, verdict.text = DIFFERENT, words[0][words[0].index("panicked at") :][:300]
        answers.write(json.dumps(verdict.to_json()) + "\n")


@contextmanager
def said():
    """Collects what is written to stderr, and passes it on at the end."""
    words, kept = [""], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield words
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read()
            words[0] = text.decode(errors="replace")
            os.write(2, text)


if __name__ == "__main__":
    main()

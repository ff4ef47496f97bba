"""Registration, sessions and memory over time: twice, many, at once, and in the wrong order."""

import gc
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

import graphs
import sessions

CHILD_LIMIT_S = 120
THREAD_LIMIT_S = 120



def in_a_process_of_its_own(code: str, library: str) -> str:
    """Runs `code` in a fresh interpreter, where it may register and unregister as it likes."""
    start = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); LIBRARY = {library!r}\n"
    start += "import numpy as np, onnxruntime as ort, graphs, sessions\n"
    start += "model = graphs.quantised().SerializeToString(); x = graphs.sample(2)\n"
    start += "wanted = sessions.run(sessions.cpu(model), x)[0]\n"
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=CHILD_LIMIT_S)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_two_names_for_one_library(library):
    code = """
for name in ("NpuExecutionProvider", "another"):
    ort.register_execution_provider_library(name, LIBRARY)
assert len(sessions.devices()) == 2, sessions.devices()
for make in (sessions.by_name, sessions.by_device):
    assert np.array_equal(sessions.run(make(model), x)[0], wanted)
ort.unregister_execution_provider_library("another")
assert len(sessions.devices()) == 1
assert np.array_equal(sessions.run(sessions.by_name(model), x)[0], wanted)
print("done")
"""
    assert "done" in in_a_process_of_its_own(code, library)


def test_a_name_in_use_is_refused_and_the_first_goes_on(library):
    code = """
ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
try:
    ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
except Exception as error:
    print("refused:", error)
assert np.array_equal(sessions.run(sessions.by_name(model), x)[0], wanted)
"""
    assert "refused:" in in_a_process_of_its_own(code, library)


def test_registering_again_after_unregistering(library):
    code = """
for turn in range(5):
    ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
    session = sessions.by_device(model)
    assert np.array_equal(sessions.run(session, x)[0], wanted)
    del session
    ort.unregister_execution_provider_library("NpuExecutionProvider")
print("done")
"""
    assert "done" in in_a_process_of_its_own(code, library)


def test_unregistering_under_a_live_session_does_not_crash(library):
    code = """
ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
session = sessions.by_name(model)
before = sessions.run(session, x)[0]
try:
    ort.unregister_execution_provider_library("NpuExecutionProvider")
except Exception as error:
    print("refused:", error)
try:
    assert np.array_equal(sessions.run(session, x)[0], wanted)
    print("ran on")
except Exception as error:
    print("error:", error)
assert np.array_equal(before, wanted)
del session, before
print("done")
"""
    assert "done" in in_a_process_of_its_own(code, library)


def test_leaving_without_cleaning_up_ends_with_zero(library):
    code = """
ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
kept = [sessions.by_name(model) for _ in range(3)]
results = [sessions.run(session, x)[0] for session in kept]
print("done")
"""
    assert "done" in in_a_process_of_its_own(code, library)


def test_sessions_come_and_go_and_leave_nothing_behind():
    model = graphs.quantised().SerializeToString()
    x = graphs.sample(2)
    reference = sessions.cpu(model)

    def turn() -> None:
        for make in sessions.DOORS.values():
            sessions.assert_same(make(model), reference, x, "one of many sessions")
        gc.collect()

    for _ in range(3):
        turn()
    threads, files, resident = _threads(), _open_files(), _resident_mib()
    for _ in range(20):
        turn()
    assert _threads() <= threads + 2
    assert _open_files() <= files + 2
    # 40 sessions of a model of a few kilobytes: a device arena leaked by each would be 80 MiB.
    assert _resident_mib() < resident + 60


@pytest.mark.parametrize("kind", ["model", "compiled model"])
def test_fifty_sessions_of_a_real_model_give_their_memory_back(models, tmp_path, kind):
    file = models / "mobilenet_v2.qdq-pc.onnx"
    path = str(file)
    if kind == "compiled model":
        path = str(tmp_path / "model_ctx.onnx")
        made = sessions.options()
        made.add_session_config_entry("ep.context_enable", "1")
        made.add_session_config_entry("ep.context_file_path", path)
        sessions.on_npu(str(file), made)
    x = np.random.default_rng(4).standard_normal((1, 3, 224, 224)).astype(np.float32)

    def turn() -> None:
        session = sessions.by_name(path)
        sessions.run(session, x)
        del session
        gc.collect()

    for _ in range(5):
        turn()
    before = _resident_mib()
    for _ in range(50):
        turn()
    # A session of this model holds more than 8 MiB of weights, here and on the device.
    assert _resident_mib() < before + 24


def test_terminating_ends_runs_within_bounded_time_and_the_session_stays_usable():
    """ONNX Runtime looks at the flag before each node; a run is as many nodes as the model has parts and CPU nodes."""
    model = graphs.quantised("LogSoftmax").SerializeToString()
    session, x = sessions.by_name(model), graphs.sample(2)
    run_options = ort.RunOptions()
    errors: list[str] = []
    running = threading.Event()

    def runner() -> None:
        try:
            while True:
                session.run(None, {"input": x}, run_options)
                running.set()
        except Exception as error:
            errors.append(str(error))

    thread = threading.Thread(target=runner, daemon=True)
    thread.start()
    assert running.wait(THREAD_LIMIT_S), f"no run ended: {errors}"
    run_options.terminate = True
    thread.join(THREAD_LIMIT_S)
    assert not thread.is_alive(), "a terminated run goes on"
    assert len(errors) == 1 and "terminate" in errors[0], errors
    sessions.assert_same(session, sessions.cpu(model), x, "after a terminated run")


def test_ctrl_c_ends_a_program_that_runs_a_model(library):
    """Python looks at signals between runs, so the bound is one run, which `timeout_ms` bounds in turn."""
    code = """
import os, signal, threading, time
# Whoever starts the tests in the background may have it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
ort.register_execution_provider_library("NpuExecutionProvider", LIBRARY)
session = sessions.by_name(model)
pressed = threading.Event()
def press():
    pressed.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
try:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        sessions.run(session, x)
        pressed.set()
except KeyboardInterrupt:
    print("interrupted")
assert np.array_equal(sessions.run(session, x)[0], wanted)
print("done")
"""
    assert in_a_process_of_its_own(code, library).split() == ["interrupted", "done"]


def test_twenty_sessions_at_once():
    model = graphs.quantised().SerializeToString()
    reference = sessions.cpu(model)
    alive = [sessions.by_name(model) for _ in range(20)]
    for seed, session in enumerate(alive):
        sessions.assert_same(session, reference, graphs.sample(1, seed), f"session {seed}")


@pytest.mark.parametrize("shared", [True, False], ids=["one session", "a session each"])
def test_four_threads_get_their_own_results(shared):
    model = graphs.quantised().SerializeToString()
    reference = sessions.cpu(model)
    work = {seed: graphs.sample(1 + seed % 3, seed) for seed in range(4)}
    wanted = {seed: sessions.run(reference, x)[0] for seed, x in work.items()}
    one = sessions.by_name(model)
    start = threading.Barrier(len(work), timeout=THREAD_LIMIT_S)
    wrong: list[str] = []

    def runner(seed: int) -> None:
        session = one if shared else sessions.by_name(model)
        start.wait()
        for turn in range(50):
            found = sessions.run(session, work[seed])[0]
            if not np.array_equal(sessions.bits(found), sessions.bits(wanted[seed])):
                wrong.append(f"thread {seed}, turn {turn}")

    runners = [threading.Thread(target=runner, args=(seed,), daemon=True) for seed in work]
    for thread in runners:
        thread.start()
    for thread in runners:
        thread.join(THREAD_LIMIT_S)
    assert not any(thread.is_alive() for thread in runners), "a thread hangs"
    assert start.n_waiting == 0 and not start.broken
    assert not wrong


@pytest.mark.since("1.28")
def test_device_visible_memory_in_and_out():
    model = graphs.quantised().SerializeToString()
    session = sessions.by_device(model)
    memory = sessions.devices()[0].memory_info(ort.OrtDeviceMemoryType.DEFAULT)
    assert memory is not None, "the plugin offers no device-visible memory"
    x = graphs.sample(3)
    source = ort.OrtValue.ortvalue_from_shape_and_type(list(x.shape), np.float32, memory_info=memory)
    source.numpy()[:] = x
    target = ort.OrtValue.ortvalue_from_shape_and_type([3, 10], np.float32, memory_info=memory)
    binding = session.io_binding()
    binding.bind_ortvalue_input("input", source)
    binding.bind_ortvalue_output("output", target)
    wanted = sessions.run(sessions.cpu(model), x)[0]
    for _ in range(3):
        target.numpy()[:] = np.nan
        session.run_with_iobinding(binding)
        assert np.array_equal(target.numpy(), wanted)
    assert np.array_equal(session.run(None, {"input": source})[0], wanted)


def test_results_stay_valid_when_their_session_is_gone():
    model = graphs.quantised().SerializeToString()
    x = graphs.sample(3)
    wanted = sessions.run(sessions.cpu(model), x)[0]
    session = sessions.by_name(model)
    kept = [sessions.run(session, x)[0] for _ in range(10)]
    copies = [value.copy() for value in kept]
    del session
    gc.collect()
    sessions.run(sessions.by_name(model), graphs.sample(3, seed=99))
    for value, copy in zip(kept, copies, strict=True):
        assert np.array_equal(value, copy) and np.array_equal(value, wanted)


@pytest.mark.parametrize("offset", [1, 3, 8, 15])
def test_an_input_at_any_address(offset):
    """numpy promises alignment to an element only, and a view into a larger array not even to 16 bytes."""
    model = graphs.quantised().SerializeToString()
    session, reference = sessions.by_name(model), sessions.cpu(model)
    x = graphs.sample(2)
    room = np.zeros(x.size + offset, np.float32)
    view = room[offset:].reshape(x.shape)
    view[:] = x
    sessions.assert_same(session, reference, view, f"{4 * offset} bytes into an array")


def test_run_async():
    model = graphs.quantised().SerializeToString()
    x = graphs.sample(2)
    wanted = sessions.run(sessions.cpu(model), x)[0]
    session = sessions.by_name(model)
    finished, results = threading.Event(), []

    def done(values, _, error) -> None:
        results.append((values, error))
        finished.set()

    session.run_async(None, {"input": x}, done, None)
    assert finished.wait(THREAD_LIMIT_S), "run_async never called back"
    values, error = results[0]
    assert not error, error
    assert np.array_equal(values[0], wanted)


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_the_number_of_threads_changes_no_bit(threads):
    model = graphs.quantised().SerializeToString()
    session = sessions.by_name(model, {"threads": threads})
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(5), f"{threads} threads")


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

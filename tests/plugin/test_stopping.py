"""Runs that end early: `RunOptions.terminate` inside one long command, Ctrl-C, time limits; and what may change while a session lives."""

import threading
import time

import numpy as np
import onnxruntime as ort
import pytest

import graphs
import processes
import sessions

# Far above what ending takes, and far below what the product takes by itself.
LIMIT_S = 60
# One matrix product of 2^40 multiply-accumulates: seconds even on the fastest kernels, hours on the scalar ones.
ROWS, DEPTH, COLUMNS = 1 << 15, 1 << 12, 1 << 13


@pytest.fixture(scope="module")
def product() -> bytes:
    return graphs.product(ROWS, DEPTH, COLUMNS).SerializeToString()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (ROWS, DEPTH), dtype=np.uint8)


def terminated_after(session: ort.InferenceSession, x: np.ndarray, wait_s: float) -> tuple[float, str]:
    """Runs, sets `terminate` after a while; gives how long the run took from then on, and its error."""
    run_options, ended, errors = ort.RunOptions(), [], []

    def runner() -> None:
        try:
            session.run(None, {"input": x}, run_options)
        except Exception as error:
            errors.append(str(error))
        ended.append(time.monotonic())

    thread = threading.Thread(target=runner, daemon=True)
    thread.start()
    thread.join(wait_s)
    asked = time.monotonic()
    run_options.terminate = True
    thread.join(LIMIT_S)
    assert not thread.is_alive(), "a terminated run goes on"
    assert len(errors) == 1, f"the run ended by itself: {errors}"
    return ended[0] - asked, errors[0]


@pytest.mark.parametrize("door", sessions.DOORS)
def test_terminate_ends_one_long_command_and_the_session_goes_on(product, x, door, capsys):
    session = sessions.DOORS[door](product)
    sessions.assert_all_on_npu(session)
    took, error = terminated_after(session, x, 0.3)
    assert "terminate flag" in error, error
    with capsys.disabled():
        print(f"\nended {took * 1000:.0f} ms after `terminate` was set")
    # The same session, another run.
    took, error = terminated_after(session, x, 0.1)
    assert "terminate flag" in error, error
    small = graphs.quantised().SerializeToString()
    sessions.assert_same(sessions.DOORS[door](small), sessions.cpu(small), graphs.sample(2), "after a terminated run")


def test_terminate_that_was_set_before_is_seen_and_unset_again_is_not():
    model = graphs.quantised().SerializeToString()
    session, x = sessions.by_name(model), graphs.sample(2)
    run_options = ort.RunOptions()
    run_options.terminate = True
    with pytest.raises(Exception, match="terminate"):
        session.run(None, {"input": x}, run_options)
    run_options.terminate = False
    wanted = sessions.run(sessions.cpu(model), x)[0]
    found = session.run(None, {"input": x}, run_options)[0]
    assert found.shape == wanted.shape
    sessions.assert_same(session, sessions.cpu(model), x, "not terminated")


def test_others_runs_on_the_session_are_not_ended(product, x):
    """An abort ends all jobs of a context; what nobody asked to end is submitted again."""
    model = graphs.quantised().SerializeToString()
    # As many sessions as to share contexts of the device.
    session = sessions.by_name(product)
    others = [sessions.by_name(model) for _ in range(3)]
    reference, small = sessions.cpu(model), graphs.sample(2)
    wanted = sessions.run(reference, small)[0]
    wrong, enough = [], threading.Event()

    def runner(other: ort.InferenceSession) -> None:
        try:
            while not enough.is_set():
                if not np.array_equal(sessions.run(other, small)[0], wanted):
                    wrong.append("another result")
        except Exception as error:
            wrong.append(str(error))

    threads = [threading.Thread(target=runner, args=(other,), daemon=True) for other in others]
    for thread in threads:
        thread.start()
    for _ in range(5):
        terminated_after(session, x, 0.05)
    enough.set()
    for thread in threads:
        thread.join(LIMIT_S)
    assert not any(thread.is_alive() for thread in threads) and not wrong, wrong


def test_ctrl_c_ends_a_long_run_of_the_package(library):
    """`run` of the package watches for it; `InferenceSession.run` sees it when the run has ended."""
    code = f"""
import signal, threading, time
sys.path.insert(0, os.path.join({str(processes.PACKAGES)!r}))
import onnxruntime_ep_npu as npu
signal.signal(signal.SIGINT, signal.default_int_handler)
model = graphs.product({ROWS}, {DEPTH}, {COLUMNS}).SerializeToString()
session = sessions.by_name(model)
x = np.zeros(({ROWS}, {DEPTH}), np.uint8)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    npu.run(session, None, {{"input": x}})
    print("ran to its end")
except KeyboardInterrupt:
    print("interrupted")
small = graphs.quantised().SerializeToString()
again = npu.run(sessions.by_name(small), None, {{"input": graphs.sample(2)}})
assert np.array_equal(again[0], sessions.run(sessions.by_name(small), graphs.sample(2))[0])
try:
    npu.run(session, None, {{"nothing": x}})
except Exception as error:
    assert "nothing" in str(error), error
    print("error told")
"""
    out, _ = processes.run_registered(code, library, "sim")
    assert out.split("\n")[:2] == ["interrupted", "error told"], out


@pytest.mark.since("1.25")
def test_dynamic_options_change_runs_and_unknown_ones_are_named(product, x):
    session = sessions.by_name(product)
    session.set_ep_dynamic_options({"timeout_ms": "50"})
    with pytest.raises(Exception, match="timeout_ms"):
        sessions.run(session, x)
    for key, value in (("priority", "1"), ("timeout_ms", "0"), ("threads", "none"), ("ep.dynamic.workload_type", "Fast")):
        with pytest.raises(Exception, match=key):
            session.set_ep_dynamic_options({key: value})
    model = graphs.quantised().SerializeToString()
    session, reference = sessions.by_name(model), sessions.cpu(model)
    for changed in ({"threads": "3"}, {"ep.dynamic.workload_type": "Efficient"}, {"ep.dynamic.workload_type": "Default", "threads": ""}):
        session.set_ep_dynamic_options(changed)
        sessions.assert_same(session, reference, graphs.sample(3), str(changed))

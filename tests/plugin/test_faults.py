"""A device that misbehaves under a session: what the application is told, when, and what it can do next."""

import time

import numpy as np
import pytest

import graphs
import sessions

LIMIT_S = 60


@pytest.fixture(scope="module")
def model() -> bytes:
    return graphs.quantised().SerializeToString()


@pytest.fixture(scope="module")
def wanted(model) -> np.ndarray:
    return sessions.run(sessions.cpu(model), graphs.sample(2))[0]


def first_error(session, wanted: np.ndarray, runs: int = 100) -> str:
    """Runs until the fault shows; every run before it is right."""
    start = time.monotonic()
    for _ in range(runs):
        try:
            found = sessions.run(session, graphs.sample(2))[0]
        except Exception as error:  # ONNX Runtime raises no narrower type
            assert time.monotonic() - start < LIMIT_S
            return str(error)
        assert np.array_equal(found, wanted)
    raise AssertionError(f"no error in {runs} runs")


@pytest.mark.parametrize("fault", ["lost-interrupt@1:3", "slow-dma:5", "delayed-reply@5:50"])
def test_what_costs_only_time_changes_no_result(model, wanted, fault):
    session = sessions.by_name(model, {"device": f"sim:inject={fault}"})
    for _ in range(3):
        assert np.array_equal(sessions.run(session, graphs.sample(2))[0], wanted)


def test_a_failed_access_names_queue_and_address_and_the_next_run_works(model, wanted):
    session = sessions.by_name(model, {"device": "sim:inject=dma-error@25"})
    message = first_error(session, wanted)
    assert "queue" in message and "IOVA" in message, message
    assert np.array_equal(sessions.run(session, graphs.sample(2))[0], wanted)


def test_a_stuck_engine_is_named_by_queue_and_node_and_the_next_run_works(model, wanted):
    session = sessions.by_name(model, {"device": "sim:inject=stuck-engine@4,hang_ms=300"})
    message = first_error(session, wanted)
    assert "queue" in message and "no progress" in message, message
    assert "at node `" in message and "opcode" in message, message
    assert np.array_equal(sessions.run(session, graphs.sample(2))[0], wanted)


@pytest.mark.parametrize("fault", ["corrupt-completion@2"])
def test_a_lost_queue_is_named_and_a_new_session_works(model, wanted, fault):
    settings = {"device": f"sim:inject={fault}"}
    session = sessions.by_name(model, settings)
    message = first_error(session, wanted)
    assert "queue" in message and "lost" in message, message
    again = first_error(session, wanted, 1)
    assert "new session" in again, again
    assert np.array_equal(sessions.run(sessions.by_name(model, settings), graphs.sample(2))[0], wanted)


def test_an_unknown_fault_is_refused_with_the_kinds(model):
    with pytest.raises(Exception, match="stuck-engine"):
        sessions.by_name(model, {"device": "sim:inject=fire"})

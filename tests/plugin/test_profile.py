"""Profiles: what the NPU ran stands in the file that ONNX Runtime writes, with modelled cycles."""

import json

import pytest

import graphs
import sessions


def events(path: str) -> list[dict]:
    with open(path) as file:
        return json.load(file)


@pytest.mark.since("1.25")
def test_each_run_of_each_part_is_an_event_with_its_cycles(tmp_path):
    model = graphs.quantised("LogSoftmax").SerializeToString()
    made = sessions.options()
    made.enable_profiling = True
    made.profile_file_prefix = str(tmp_path / "profile")
    session = sessions.on_npu(model, made)
    parts = sum(provider == sessions.EP for provider, _ in sessions.placement(session))
    assert parts > 1
    batches = (1, 2, 2)
    for batch in batches:
        sessions.run(session, graphs.sample(batch))
    found = [event for event in events(session.end_profiling()) if event.get("name", "").startswith("npu:")]
    assert len(found) == parts * len(batches), found
    assert all(int(event["args"]["npu_cycles"]) > 0 for event in found)
    one, two, again = (found[parts * turn : parts * (turn + 1)] for turn in range(3))
    cycles = [sum(int(event["args"]["npu_cycles"]) for event in turn) for turn in (one, two, again)]
    assert cycles[0] < cycles[1] == cycles[2], "modelled cycles depend on the work alone"
    starts = [event["ts"] for event in found]
    assert starts == sorted(starts), "in the order of time"
    # Nobody listens any more.
    sessions.run(session, graphs.sample(1))


@pytest.mark.since("1.25")
def test_a_part_from_the_cache_has_the_name_of_its_own_session(tmp_path):
    """ONNX Runtime makes it of the model's path, and the session that filled the cache had another."""

    def names(path, settings: dict[str, str]) -> set[str]:
        made = sessions.options()
        made.enable_profiling = True
        made.profile_file_prefix = str(tmp_path / "profile")
        session = sessions.on_npu(str(path), made, settings)
        sessions.run(session, graphs.sample(1))
        return {event["name"] for event in events(session.end_profiling()) if event.get("name", "").startswith("npu:")}

    paths = [tmp_path / "first.onnx", tmp_path / "second.onnx"]
    for path in paths:
        path.write_bytes(graphs.quantised().SerializeToString())
    cached = {"cache_dir": str(tmp_path / "cache")}
    first, second = (names(path, cached) for path in paths)
    assert len(list((tmp_path / "cache").glob("*.npub"))) == 1, "both are one part"
    assert second == names(paths[1], {}) and first != second

"""A trace of a real model, in Perfetto's own trace processor: its queries give the times of the operations."""

import json
import os
import signal
import subprocess
from collections import Counter

from conftest import LIMIT_S, Server, check, program, smi, until
from trace_processor import query

OPERATIONS = """
select s.ts, s.dur, s.name, t.name as track, p.pid as pid,
  extract_arg(s.arg_set_id, 'debug.op') as op,
  extract_arg(s.arg_set_id, 'debug.op_id') as op_id,
  extract_arg(s.arg_set_id, 'debug.command') as command,
  extract_arg(s.arg_set_id, 'debug.job') as job,
  extract_arg(s.arg_set_id, 'debug.took_cycles') as cycles,
  extract_arg(s.arg_set_id, 'debug.cut') as cut
from slice s join process_track t on s.track_id = t.id join process p using (upid)
where s.category = '{}' order by s.ts
"""


def test_the_trace_processor_gives_the_times_of_operations(server):
    client = server.work()
    server.smi("trace", "1", "--for", "0.3", "-o", "wall.pftrace")
    trace = (server.folder / "wall.pftrace").read_bytes()
    operations, jobs, tracks, counters, errors = query(
        trace,
        OPERATIONS.format("op"),
        OPERATIONS.format("job"),
        "select distinct name from track",
        "select max(value) as most from counter join track on counter.track_id = track.id where track.name like '%in flight'",
        "select name, value from stats where severity = 'error' and value > 0",
    )
    assert errors == [], errors
    whole = [slice for slice in operations if not slice.cut]
    assert len(whole) > 50 and all(slice.dur > 0 for slice in whole)
    assert {slice.pid for slice in operations} == {client.pid} and {slice.track for slice in operations} == {"client 1 operations"}
    # Each operation of the model, in each run alike: named by its ONNX node, with its modelled cycles.
    cycles: dict[tuple, set] = {}
    for slice in whole:
        cycles.setdefault((slice.name, slice.op, slice.op_id, slice.command), set()).add(slice.cycles)
    assert all(len(found) == 1 for found in cycles.values()), cycles
    assert any(op == "conv" and name != "conv" for name, op, *_ in cycles), cycles
    # An operation lies in its job.
    spans = {slice.job: (slice.ts, slice.ts + slice.dur) for slice in jobs if not slice.cut}
    inside = [spans[slice.job][0] <= slice.ts and slice.ts + slice.dur <= spans[slice.job][1] for slice in whole if slice.job in spans]
    assert len(inside) > 50 and all(inside)
    assert {"client 1 operations", "client 1 signals"} <= {track.name for track in tracks} and counters[0].most >= 1


def test_the_modelled_clock_gives_modelled_durations(server):
    server.work()
    server.smi("trace", "--for", "0.2", "--clock", "modelled", "-o", "modelled.pftrace")
    (operations,) = query((server.folder / "modelled.pftrace").read_bytes(), OPERATIONS.format("op"))
    whole = [slice for slice in operations if not slice.cut]
    # At 1 GHz a cycle is a nanosecond.
    assert len(whole) > 50 and all(slice.dur == slice.cycles for slice in whole)


def test_the_events_as_json_are_what_their_schema_says(server):
    server.work()
    server.work()
    # Not as many events as fit, each of which is checked.
    server.smi("inject", "slow-dma:1")
    report = check(server.smi("trace", "--json", "--for", "0.5").stdout)
    assert [client["client"] for client in report["clients"]] == [1, 2]
    for client in report["clients"]:
        kinds = Counter(event["kind"] for event in client["events"])
        assert kinds["op_begin"] > 10 and abs(kinds["op_begin"] - kinds["op_end"] - kinds["op_rest"]) <= 1 or client["lost"], kinds
        times = [event["ns"] for event in client["events"]]
        assert times == sorted(times) and client["process"] == "npu"
    assert not any(client["is_traced"] for client in server.stats()["clients"]), "it does not go on"


def test_an_interrupted_trace_is_written_and_ended(server):
    server.work()
    command = [program("npu-smi"), "--socket", "npu.manage", "trace", "--for", "3600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=server.folder) as child:
        until("a trace", lambda: server.stats()["clients"][0]["is_traced"])
        child.send_signal(signal.SIGINT)
        told, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0 and "npu.pftrace" in told
    assert (server.folder / "npu.pftrace").stat().st_size > 1000
    assert not server.stats()["clients"][0]["is_traced"]


def test_a_client_that_leaves_or_is_not_there_does_not_hold_a_trace_up(server):
    client = server.work()
    command = [program("npu-smi"), "--socket", "npu.manage", "trace", "--for", "0.5", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=server.folder) as child:
        until("a trace", lambda: server.stats()["clients"][0]["is_traced"])
        client.kill()
        told, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == 0 and check(told)["clients"][0]["has_left"]
    until("nobody", lambda: not server.stats()["clients"])
    assert server.smi("trace", "--json", "--for", "0.1", code=1).stderr == ""
    assert "no client 99" in server.smi("trace", "99", code=4).stderr
    assert "cannot write" in server.smi("trace", "--for", "0.1", "-o", "none/file", code=7).stderr
    assert json.loads(smi("--socket", server.socket, "list", "--json").stdout)["clients"] == [] and os.path.exists(server.socket)


def test_a_trace_can_be_sent_on_but_not_to_a_terminal(server):
    server.work()
    command = [program("npu-smi"), "--socket", server.socket, "trace", "--for", "0.1", "-o", "-"]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT_S)
    assert done.returncode == 0 and len(done.stdout) > 1000
    with Server() as other:
        assert other.smi("trace", "--for", "0.1", "-o", "empty.pftrace", code=1).stdout.startswith("0 events of no client")

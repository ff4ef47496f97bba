"""Models that nobody would make by accident: refused by name within bounded time, and where the CPU provider runs them, equal to it.

What may be wrong with a file is told by the tool, which reads it itself; what may be wrong with a graph by both doors.
"""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import graphs
import processes
import sessions
from test_bad_input import outcome
from test_doors import call, save, tool  # noqa: F401

# Far above what anything here takes.
LIMIT_S = 60
WHOLE = 1 << 40


def unit(op: str, shapes: list[list[int]], constants: tuple = (), weights: list[int] | None = None, given: list | None = None, **attributes) -> ModelProto:
    """DequantizeLinear, `op`, QuantizeLinear of one or more inputs; floats or numbers in `constants` go to `op` as they are."""
    scale, zero = numpy_helper.from_array(np.float32(0.02), "scale"), numpy_helper.from_array(np.uint8(120), "zero")
    kept, nodes, inputs, reads = [scale, zero], [], [], []
    for index, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.UINT8, (given or shapes)[index]))
        nodes.append(helper.make_node("DequantizeLinear", [f"x{index}", "scale", "zero"], [f"f{index}"], name=f"dq{index}"))
        reads.append(f"f{index}")
    if weights is not None:
        random = np.random.default_rng(len(weights))
        kept += [numpy_helper.from_array(random.integers(-127, 128, weights).astype(np.int8), "w")]
        kept += [numpy_helper.from_array(np.float32(0.01), "w_scale"), numpy_helper.from_array(np.int8(0), "w_zero")]
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], name="dqw"))
        reads.append("wf")
    for index, values in enumerate(constants):
        kept.append(numpy_helper.from_array(np.asarray(values), f"k{index}"))
        reads.append(f"k{index}")
    nodes.append(helper.make_node(op, reads, ["y"], name="odd", **attributes))
    nodes.append(helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["q"], name="q"))
    output = helper.make_tensor_value_info("q", TensorProto.UINT8, None)
    graph = helper.make_graph(nodes, "hostile", inputs, [output], kept)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


IMAGE, FILTERS = [[1, 4, 9, 9]], [8, 4, 3, 3]
INT64 = np.iinfo(np.int64)

ATTRIBUTES = {
    "strides of nothing": unit("Conv", IMAGE, weights=FILTERS, strides=[0, 1]),
    "strides backwards": unit("Conv", IMAGE, weights=FILTERS, strides=[-1, 1]),
    "strides beyond all": unit("Conv", IMAGE, weights=FILTERS, strides=[WHOLE, WHOLE]),
    "one stride": unit("Conv", IMAGE, weights=FILTERS, strides=[1]),
    "dilations of nothing": unit("Conv", IMAGE, weights=FILTERS, dilations=[0, 0]),
    "dilations beyond all": unit("Conv", IMAGE, weights=FILTERS, dilations=[WHOLE, 1]),
    "dilations whose reach overflows": unit("Conv", IMAGE, weights=FILTERS, dilations=[INT64.max // 2, 1]),
    "pads below zero": unit("Conv", IMAGE, weights=FILTERS, pads=[-1, 0, 0, 0]),
    "pads on three sides": unit("Conv", IMAGE, weights=FILTERS, pads=[1, 1, 1]),
    "groups that do not divide": unit("Conv", IMAGE, weights=FILTERS, group=3),
    "groups below zero": unit("Conv", IMAGE, weights=FILTERS, group=-4),
    "another kernel than the weights": unit("Conv", IMAGE, weights=FILTERS, kernel_shape=[5, 5]),
    "padding by a word": unit("Conv", IMAGE, weights=FILTERS, auto_pad="AROUND"),
    "a pool of nothing": unit("MaxPool", IMAGE, kernel_shape=[0, 0]),
    "a pool backwards": unit("AveragePool", IMAGE, kernel_shape=[-2, 2]),
    "a pool larger than its image": unit("MaxPool", IMAGE, kernel_shape=[40, 40]),
    "a pool padded beyond its kernel": unit("AveragePool", IMAGE, kernel_shape=[2, 2], pads=[5, 5, 5, 5]),
    "an axis beyond the rank": unit("Concat", [[1, 4], [1, 4]], axis=7),
    "an axis far below zero": unit("Softmax", [[1, 4]], axis=INT64.min),
    "an axis to flatten at": unit("Flatten", IMAGE, axis=9),
    "a dimension twice": unit("Transpose", IMAGE, perm=[0, 1, 1, 3]),
    "a dimension that is not there": unit("Transpose", IMAGE, perm=[0, 1, 2, 9]),
    "a shape with two unknowns": unit("Reshape", IMAGE, ([-1, -1],)),
    "a shape that overflows": unit("Reshape", IMAGE, ([WHOLE, WHOLE, 4],)),
    "a shape below zero": unit("Reshape", IMAGE, ([-5, 324],)),
    "a slice by steps of nothing": unit("Slice", IMAGE, ([0], [4], [1], [0])),
    "a slice from end to end of all numbers": unit("Slice", IMAGE, ([INT64.max], [INT64.min], [2], [-1])),
    "a slice along what is not there": unit("Slice", IMAGE, ([0], [4], [11], [1])),
    "pads that overflow": unit("Pad", IMAGE, ([INT64.max // 4, 0, 0, 0, INT64.max // 4, 0, 0, 0],)),
    "pads that take more than there is": unit("Pad", IMAGE, ([0, 0, -5, 0, 0, 0, -5, 0],)),
    "an index beyond the end": unit("Gather", IMAGE, ([[99]],), axis=1),
    "tiles that overflow": unit("Tile", IMAGE, ([1, 1, WHOLE, WHOLE],)),
    "tiles of nothing": unit("Tile", IMAGE, ([1, 0, 1, 1],)),
    "blocks that do not divide": unit("SpaceToDepth", IMAGE, blocksize=4),
    "blocks of nothing": unit("DepthToSpace", IMAGE, blocksize=0),
    "an expansion that does not fit": unit("Expand", IMAGE, ([1, 3, 9, 9],)),
    "an expansion beyond all": unit("Expand", [[1, 1]], ([WHOLE, WHOLE],)),
    "a product that does not fit": unit("MatMul", [[2, 5]], weights=[4, 3]),
    "a gemm by a number that is none": unit("Gemm", [[2, 4]], weights=[4, 3], alpha=float("nan")),
    "unsqueezed at the same place twice": unit("Unsqueeze", IMAGE, ([0, 0],)),
    "squeezed where there is more": unit("Squeeze", IMAGE, ([1],)),
    "parts that do not add up": unit("Split", [[1, 6]], ([1, 1],), axis=1),
}

EMPTY = {
    "an image without rows": unit("Conv", [[1, 4, 0, 9]], weights=FILTERS),
    "no channels": unit("Conv", [[1, 0, 9, 9]], weights=[8, 0, 3, 3]),
    "no filters": unit("Conv", IMAGE, weights=[0, 4, 3, 3]),
    "a kernel without taps": unit("Conv", IMAGE, weights=[8, 4, 0, 3]),
    "a product over nothing": unit("MatMul", [[2, 0]], weights=[0, 3]),
    "a product of nothing": unit("MatMul", [[0, 4]], weights=[4, 3]),
    "a sum of nothing": unit("Add", [[1, 0, 3], [1, 0, 3]]),
    "a sum with nothing repeated": unit("Add", [[1, 0, 3], [1, 1, 3]]),
    "joined to nothing": unit("Concat", [[1, 0], [1, 4]], axis=1),
    "a share of nothing": unit("Softmax", [[1, 0]], axis=1),
    "a mean of nothing": unit("GlobalAveragePool", [[1, 4, 0, 0]]),
    "an open batch of none": unit("Conv", [[0, 4, 9, 9]], weights=FILTERS, given=[["batch", 4, 9, 9]]),
}

CASES = {**ATTRIBUTES, **EMPTY}
# Here the CPU provider leaves its output as the memory was: there is nothing to equal.
UNWRITTEN = {"no channels", "a product over nothing"}


def feeds(model: ModelProto) -> dict[str, np.ndarray]:
    """One element for each open dimension, and none where the case is called so."""
    random, given = np.random.default_rng(5), {}
    for value in model.graph.input:
        shape = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in value.type.tensor_type.shape.dim]
        given[value.name] = random.integers(0, 256, shape).astype(np.uint8)
    return given


@pytest.mark.parametrize("case", CASES)
def test_the_plugin_gives_the_cpus_result_or_an_error(case):
    model = CASES[case]
    data, x = model.SerializeToString(), feeds(model)
    started = time.monotonic()
    wanted, cpu_error = outcome(sessions.cpu, data, x)
    for door, make in sessions.DOORS.items():
        found, error = outcome(make, data, x)
        assert "panic" not in str(error), error
        if cpu_error is not None:
            assert error is not None, f"{door}: the CPU provider refuses it ({cpu_error}), the NPU ran it"
            continue
        assert error is None, f"{door}: the CPU provider runs it, with the plugin it is {error}"
        for a, b in zip(found, wanted, strict=True):
            if b is None:
                assert a is None, f"{door}: {case}: the CPU provider gives no tensor"
                continue
            assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{door}: {case}"
            assert case in UNWRITTEN or np.array_equal(a, b), f"{door}: {case}"
    assert time.monotonic() - started < LIMIT_S


@pytest.mark.parametrize("case", CASES)
def test_the_tool_says_what_it_takes_or_names_what_it_does_not(case, tool, tmp_path):  # noqa: F811
    """Without ONNX Runtime, so that it is this project's own importer that meets the model."""
    file = save(tmp_path, CASES[case])
    environment = os.environ | {"ORT_DYLIB_PATH": "/nowhere"}
    done = processes.subprocess.run([tool, "explain", file, "--graph", "own"], capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert "panicked" not in done.stderr, done.stderr
    told = done.stdout + done.stderr
    assert done.returncode in (0, 1) and told, case
    if done.returncode == 0 and "takes 0 of" in told:
        assert "odd" in told or "q" in told, told


def test_files_that_are_no_models_are_told_so(tool, tmp_path):  # noqa: F811
    whole = graphs.quantised().SerializeToString()
    noise = np.random.default_rng(1).bytes(5000)
    # A field of almost 2^63 bytes in a file of a dozen; groups within groups; a varint without an end.
    files = {"noise": noise, "long": b"\x3a" + b"\xff" * 8 + b"\x7f" + b"abc", "deep": b"\x3b" * 100_000, "endless": b"\x08" + b"\xff" * 50}
    files |= {f"cut at {at}": whole[:at] for at in range(1, len(whole), max(1, len(whole) // 40))}
    for name, data in files.items():
        path = tmp_path / "file.onnx"
        path.write_bytes(data)
        for command in ("run", "explain", "compile"):
            told = call(tool, command, path, *(["--graph", "own"] if command == "explain" else []), fails=True)
            assert "file.onnx" in told or "model" in told, f"{name}: {told}"


def test_a_file_of_many_gigabytes_of_nothing_is_told_at_once(tool, tmp_path):  # noqa: F811
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(64 << 30)
    started = time.monotonic()
    told = call(tool, "run", path, fails=True)
    assert "not an ONNX model" in told or "huge.onnx" in told, told
    assert time.monotonic() - started < LIMIT_S


def test_an_initialiser_shorter_than_its_shape_is_named_by_both_doors(tool, tmp_path):  # noqa: F811
    for kept in (0, 1, 7):
        model = graphs.quantised()
        short = next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 64)
        short.raw_data = short.raw_data[:kept]
        assert short.name in call(tool, "run", save(tmp_path, model), fails=True)
        _, error = outcome(sessions.by_name, model.SerializeToString(), graphs.sample(1))
        assert error is not None


def test_a_circle_is_told_by_both_doors(tool, tmp_path):  # noqa: F811
    model = graphs.quantised()
    conv = next(node for node in model.graph.node if node.name == "conv1")
    last = model.graph.node[-1]
    model.graph.node.append(helper.make_node("Add", [conv.input[0], last.output[0]], ["around"], name="back"))
    conv.input[0] = "around"
    told = call(tool, "run", save(tmp_path, model), fails=True)
    assert "circle" in told or "cycle" in told or "nothing before it" in told, told
    _, error = outcome(sessions.by_name, model.SerializeToString(), graphs.sample(1))
    assert error is not None


def stop(pid: int) -> None:
    """Stops all threads of a process; they go on for a moment after the signal."""
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + LIMIT_S
    states = Path(f"/proc/{pid}/task")
    while any(task.joinpath("stat").read_text().rsplit(")", 1)[1].split()[0] != "T" for task in states.iterdir()):
        assert time.monotonic() < until, "the server does not stop"
        os.sched_yield()


@pytest.mark.parametrize("door", sessions.DOORS)
def test_a_device_that_stops_answering_ends_the_run_in_time(door, library):
    """The server is stopped, as a machine is whose other side hangs: it neither answers nor closes the connection."""
    model = graphs.quantised().SerializeToString()
    with processes.Simulator(library) as simulator:
        device = simulator.device.replace("vfio-user:", "vfio-user,patience_ms=2000:")
        session = sessions.DOORS[door](model, {"device": device, "timeout_ms": "1500"})
        reference, x = sessions.cpu(model), graphs.sample(2)
        sessions.assert_same(session, reference, x, "before")
        stop(simulator.child.pid)
        try:
            started = time.monotonic()
            with pytest.raises(Exception, match="NPU|device|vfio-user"):
                sessions.run(session, x)
            assert time.monotonic() - started < LIMIT_S
        finally:
            os.kill(simulator.child.pid, signal.SIGCONT)
        # The process lives on, and so do sessions of other devices.
        del session
        sessions.assert_same(sessions.by_name(model, {"device": "sim"}), reference, x, "on another device")

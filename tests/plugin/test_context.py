"""Compiled models (EPContext): written, read back without a compiler, and refused when anything is wrong with them."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import graphs
import processes
import sessions
from sessions import EP

MODES = pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "external"])
STAGES = re.compile(r"NPU compiler: (\d+) stages run[^;]*; (\d+) of (\d+) part\(s\) compiled before")


def compiled(folder: Path, model: bytes | str, embedded: bool, settings: dict[str, str] | None = None) -> Path:
    """The compiled model's file, made by a session as a user would."""
    path = folder / "model_ctx.onnx"
    made = sessions.options()
    made.add_session_config_entry("ep.context_enable", "1")
    made.add_session_config_entry("ep.context_embed_mode", str(int(embedded)))
    made.add_session_config_entry("ep.context_file_path", str(path))
    sessions.on_npu(model, made, settings)
    assert path.is_file()
    return path


def context_nodes(path: Path) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(path).graph.node if node.op_type == "EPContext"]


def attribute(node: onnx.NodeProto, name: str):
    return helper.get_attribute_value(next(found for found in node.attribute if found.name == name))


def with_blob(path: Path, blob: bytes) -> Path:
    """The embedded compiled model with another blob in it."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "EPContext")
    next(found for found in node.attribute if found.name == "ep_cache_context").s = blob
    other = path.with_name("other_ctx.onnx")
    onnx.save(model, other)
    return other


def stages_of(capfd, make) -> tuple[ort.InferenceSession, list[tuple[int, ...]]]:
    """The session of `make`, and of each Compile: stages of the compiler run, parts compiled before, parts."""
    capfd.readouterr()
    # Providers are made, and compile, before the session's own level counts.
    ort.set_default_logger_severity(1)
    try:
        session = make()
    finally:
        ort.set_default_logger_severity(2)
    return session, [tuple(map(int, found)) for found in STAGES.findall(capfd.readouterr().err)]


@MODES
@pytest.mark.parametrize("name", ["resnet18", "effnet-lite0", "digits"])
def test_a_real_model_is_read_back_and_gives_the_same_bytes(models, tmp_path, capfd, name, embedded):
    file = models / f"{name}.qdq-pc.onnx"
    path = compiled(tmp_path, str(file), embedded)
    (node,) = context_nodes(path)
    assert attribute(node, "embed_mode") == int(embedded)
    assert (attribute(node, "source"), attribute(node, "main_context")) == (EP.encode(), 1)
    session, stages = stages_of(capfd, lambda: sessions.by_name(str(path)))
    assert stages == [(0, 1, 1)], "a stage of the compiler ran for a model that is compiled"
    reference = sessions.cpu(str(file))
    shape = [1 if isinstance(size, str) else size for size in reference.get_inputs()[0].shape]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    sessions.assert_same(session, reference, x, name)


@MODES
@pytest.mark.parametrize("door", sessions.DOORS)
def test_a_batch_that_is_not_in_it_is_compiled_from_it(tmp_path, door, embedded):
    model = graphs.quantised().SerializeToString()
    path = compiled(tmp_path, model, embedded)
    session, reference = sessions.DOORS[door](str(path)), sessions.cpu(model)
    for batch in (1, 3, 2, 3):
        sessions.assert_same(session, reference, graphs.sample(batch), f"batch {batch}")


@MODES
def test_a_batch_that_may_not_be_compiled_is_refused_with_the_shapes_held(tmp_path, embedded):
    model = graphs.quantised().SerializeToString()
    path = compiled(tmp_path, model, embedded, {"batches": "1,4"})
    session, reference = sessions.by_name(str(path), {"compile_missing": "0"}), sessions.cpu(model)
    for batch in (4, 1):
        sessions.assert_same(session, reference, graphs.sample(batch), f"batch {batch}")
    with pytest.raises(Exception, match="compile_missing") as caught:
        sessions.run(session, graphs.sample(2))
    assert "[2, 3, 16, 16]" in str(caught.value)
    assert "[1, 3, 16, 16]; [4, 3, 16, 16]" in str(caught.value)
    sessions.assert_same(session, reference, graphs.sample(4), "after the refusal")


@pytest.mark.since("1.24")
@MODES
def test_a_model_of_several_parts_keeps_each_and_what_the_cpu_runs(tmp_path, capfd, embedded):
    model = graphs.quantised("LogSoftmax", "LogSoftmax").SerializeToString()
    before = sessions.by_name(model)
    parts = [kinds for name, kinds in sessions.placement(before) if name == EP]
    assert len(parts) > 1, "the model is to have several parts"
    path = compiled(tmp_path, model, embedded)
    assert len(context_nodes(path)) == len(parts)
    session, stages = stages_of(capfd, lambda: sessions.by_name(str(path)))
    assert stages == [(0, len(parts), len(parts))]
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "several parts")


@MODES
def test_a_compiled_model_compiled_again_is_the_same(tmp_path, embedded):
    model = graphs.quantised().SerializeToString()
    first = compiled(tmp_path, model, True)
    (tmp_path / "again").mkdir()
    again = compiled(tmp_path / "again", str(first), embedded)
    blob = attribute(context_nodes(again)[0], "ep_cache_context")
    held = blob if embedded else (again.parent / blob.decode()).read_bytes()
    assert held == attribute(context_nodes(first)[0], "ep_cache_context")
    sessions.assert_same(sessions.by_name(str(again)), sessions.cpu(model), graphs.sample(2), "twice compiled")


def test_the_model_compiler_of_onnx_runtime_makes_the_same(tmp_path):
    model = graphs.quantised().SerializeToString()
    made = sessions.options()
    made.add_provider_for_devices(sessions.devices()[:1], {})
    content = ort.ModelCompiler(made, model, embed_compiled_data_into_model=True).compile_to_bytes()
    sessions.assert_same(sessions.by_device(content), sessions.cpu(model), graphs.sample(2), "compiled to bytes")


def test_external_parts_of_a_model_given_as_bytes_need_its_path(tmp_path):
    model = graphs.quantised().SerializeToString()
    path = compiled(tmp_path, model, False)
    with pytest.raises(Exception, match="ep.context_file_path"):
        sessions.by_name(path.read_bytes())
    made = sessions.options()
    made.add_session_config_entry("ep.context_file_path", str(path))
    session = sessions.on_npu(path.read_bytes(), made)
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "given as bytes")


def test_a_file_outside_the_models_folder_is_not_read(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = compiled(inside, graphs.quantised().SerializeToString(), False)
    part = inside / attribute(context_nodes(path)[0], "ep_cache_context").decode()
    part.rename(tmp_path / "part")
    for name in ("../part", str(tmp_path / "part"), ""):
        with pytest.raises(Exception, match="below the model's folder"):
            sessions.by_name(str(with_blob(path, name.encode())))
    with pytest.raises(Exception, match="it belongs beside the model's file"):
        sessions.by_name(str(path))


def test_a_damaged_blob_is_refused(tmp_path):
    """Whole sessions for a few; the bundle's own tests go through all places."""
    path = compiled(tmp_path, graphs.quantised().SerializeToString(), True)
    blob = attribute(context_nodes(path)[0], "ep_cache_context")
    for bit in [*range(0, 512, 61), *range(512, 8 * len(blob), 8 * len(blob) // 40 + 1)]:
        damaged = bytearray(blob)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Exception, match="NPU compiled model: .*(not a compiled part|compile the model again|update the library)"):
            sessions.by_name(str(with_blob(path, bytes(damaged))))
    for length in [0, 3, 4, 63, 64, *range(65, len(blob), len(blob) // 20)]:
        with pytest.raises(Exception, match="not a compiled part|should have"):
            sessions.by_name(str(with_blob(path, blob[:length])))


def test_a_part_of_an_older_version_is_told_to_compile_again(tmp_path):
    path = compiled(tmp_path, graphs.quantised().SerializeToString(), True)
    older = bytearray(attribute(context_nodes(path)[0], "ep_cache_context"))
    older[4] = 1
    with pytest.raises(Exception, match="compiled part of version 1, this library reads 3: compile the model again"):
        sessions.by_name(str(with_blob(path, bytes(older))))


def test_weights_are_in_a_compiled_model_once(models, tmp_path):
    file = models / "resnet18.qdq-pc.onnx"
    path = compiled(tmp_path, str(file), True)
    weights = sum(numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(file).graph.initializer)
    # Records of channels, tables, the program and names are beside them.
    assert weights < path.stat().st_size < 1.2 * weights


def test_another_device_is_told_to_compile_again(tmp_path):
    model = graphs.quantised().SerializeToString()
    path = compiled(tmp_path, model, True)
    with pytest.raises(Exception, match="another device: it has 524288 bytes of SRAM.*compile the model again"):
        sessions.by_name(str(path), {"device": "sim:sram=512K"})
    session = sessions.by_name(str(path), {"device": "sim:macs=256"})
    sessions.assert_same(session, sessions.cpu(model), graphs.sample(2), "a device that is only slower")


def test_the_models_line_says_whether_the_device_fits(tmp_path):
    """What ONNX Runtime's own check asks: 1 is the same device, 2 one that would like it compiled again, 3 one that does not run it."""
    path = compiled(tmp_path, graphs.quantised().SerializeToString(), True)
    lines = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    line = lines[f"ep_compatibility_info.{EP}"]
    assert line.startswith("npu;bundle=3;isa=1.")
    from onnxruntime.capi import _pybind_state as state

    def verdict(text: str) -> int:
        return int(state.get_model_compatibility_for_ep_devices(sessions.devices()[:1], text))

    assert verdict(line) == int(state.OrtCompiledModelCompatibility.EP_SUPPORTED_OPTIMAL)
    limits = bytearray.fromhex(line.rsplit("limits=", 1)[1])
    macs, sram = 8, 16
    limits[macs] ^= 1
    head = line.rsplit("limits=", 1)[0] + "limits="
    assert verdict(head + limits.hex()) == int(state.OrtCompiledModelCompatibility.EP_SUPPORTED_PREFER_RECOMPILATION)
    limits[sram + 4] = 1
    assert verdict(head + limits.hex()) == int(state.OrtCompiledModelCompatibility.EP_UNSUPPORTED)
    assert verdict("nonsense") == int(state.OrtCompiledModelCompatibility.EP_UNSUPPORTED)


def test_a_compiled_model_runs_over_a_socket_and_one_from_there_in_process(library, tmp_path):
    model = graphs.quantised().SerializeToString()
    with processes.Simulator(library) as simulator:
        here = compiled(tmp_path, model, True, {"device": "sim"})
        (tmp_path / "there").mkdir()
        there = compiled(tmp_path / "there", model, False, {"device": simulator.device})
        reference, x = sessions.cpu(model), graphs.sample(2)
        for path, device in ((here, simulator.device), (there, "sim"), (there, simulator.device)):
            session = sessions.by_name(str(path), {"device": device})
            sessions.assert_same(session, reference, x, f"{path} on {device}")
            del session

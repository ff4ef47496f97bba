"""Both doors give the same: what `npu run` and `npu compile` make of a file equals what a session of ONNX Runtime does.

The command-line tool stands for every program that uses `ep_npu::Session`: it has no importer, compiler or runtime of its own.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphs
import sessions
from npu_models import inputs
from npu_models.build import RECIPES

VARIANTS = [(name, kind) for name, recipe in RECIPES.items() for kind in recipe.variants]
DIGITS = Path(__file__).resolve().parents[1] / "models/digits.qdq.onnx"
DEADLINE_S = 300
HEADER = 64
HASH = slice(32, 64)


@pytest.fixture(scope="session")
def tool() -> str:
    path = os.environ.get("NPU_TOOL", "")
    assert Path(path).is_file(), f"NPU_TOOL is {path!r}, which is no file; `cargo xtask test` builds the tool and sets it"
    return path


def call(tool: str, *arguments: str, fails: bool = False) -> str:
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode != 0) == fails, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "panicked" not in done.stderr, done.stderr
    return done.stderr if fails else done.stdout


def run(tool: str, folder: Path, model: Path, x: np.ndarray) -> np.ndarray:
    np.save(folder / "x.npy", x)
    call(tool, "run", model, "--input", folder / "x.npy", "--output", folder / "y.npy")
    return np.load(folder / "y.npy")


def save(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=[f"{name}.{kind}" for name, kind in VARIANTS])
def test_the_tool_the_plugin_and_the_cpu_give_the_same_bytes(models, tool, tmp_path, name, kind):
    file = models / f"{name}.{kind}.onnx"
    reference, session = sessions.cpu(str(file)), sessions.by_name(str(file))
    feeds = inputs.eight(list(RECIPES[name].shape), 3, models / "packages")
    for what in list(feeds)[:2]:
        x = feeds[what]
        (wanted,) = sessions.assert_same(session, reference, x, what)
        found = run(tool, tmp_path, file, x)
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        assert np.array_equal(sessions.bits(found), sessions.bits(wanted)), what


@pytest.mark.parametrize("name", ["digits", "resnet18", "effnet-lite0"])
def test_both_doors_give_the_same_program(models, tool, tmp_path, name):
    file = models / f"{name}.qdq-pc.onnx"
    sessions.by_name(str(file), {"dump": str(tmp_path / "plugin")})
    (from_plugin,) = (tmp_path / "plugin").iterdir()
    call(tool, "compile", file, "-o", tmp_path / "tool.npu")
    ours, theirs = (tmp_path / "tool.npu").read_bytes(), from_plugin.read_bytes()
    # ONNX Runtime renames constants that nodes share, and the hash of the source has their names; the
    # file's own hash covers that one.
    def without_source(tool_output: bytes, path: Path) -> dict:
        listing = json.loads(call(tool, "objdump", path, "--json"))
        assert listing.pop("bytes") == len(tool_output)
        del listing["source"]
        return listing

    assert without_source(ours, tmp_path / "tool.npu") == without_source(theirs, from_plugin)
    differ = [at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    outside = [at for at in differ if not HASH.start <= at < HASH.stop]
    assert not outside or outside[-1] - outside[0] < 32, "more than the two hashes differ"


def with_identities(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer behind an Identity or made by a Constant node, as some exporters write them; and a Dropout."""
    made = []
    for number, tensor in enumerate(model.graph.initializer):
        name = tensor.name
        if number % 2:
            made.append(helper.make_node("Constant", [], [name], name=f"constant{number}", value=tensor))
        else:
            renamed = TensorProto()
            renamed.CopyFrom(tensor)
            renamed.name = f"{name}.source"
            made.append(helper.make_node("Constant", [], [renamed.name], name=f"constant{number}", value=renamed))
            made.append(helper.make_node("Identity", [renamed.name], [name], name=f"identity{number}"))
    del model.graph.initializer[:]
    relu = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "input")
    made += [helper.make_node("Dropout", ["input"], ["kept"], name="dropout")]
    relu.input[0] = "kept"
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights as floats before a QuantizeLinear, as quantisation-aware training exports them."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    made = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        codes = numpy_helper.to_array(constants[node.input[0]])
        if codes.dtype != np.int8:
            continue
        scale = numpy_helper.to_array(constants[node.input[1]])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        along = scale.reshape([-1 if i == axis else 1 for i in range(codes.ndim)]) if scale.ndim else scale
        name = f"{node.input[0]}.float"
        model.graph.initializer.append(numpy_helper.from_array((codes * along).astype(np.float32), name))
        quantize = helper.make_node("QuantizeLinear", [name, *node.input[1:]], [f"{name}.codes"], name=f"{name}.q", axis=axis)
        made.append(quantize)
        node.input[0] = quantize.output[0]
    nodes = [*made, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def shuffled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nodes in another order that is topological too."""
    nodes, left = [], list(model.graph.node)
    known = {tensor.name for tensor in model.graph.initializer} | {value.name for value in model.graph.input} | {""}
    random = np.random.default_rng(7)
    while left:
        ready = [node for node in left if all(name in known for name in node.input)]
        node = ready[random.integers(len(ready))]
        left.remove(node)
        nodes.append(node)
        known.update(node.output)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


FORMS = {"identities and constants": with_identities, "float weights": with_float_weights, "shuffled": shuffled}


@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_another_form_is_the_same_to_both_doors(tool, tmp_path, form):
    file = save(tmp_path, FORMS[form](graphs.quantised()))
    reference, session = sessions.cpu(str(file)), sessions.by_name(str(file))
    sessions.assert_all_on_npu(session)
    x = graphs.sample(3)
    (wanted,) = sessions.assert_same(session, reference, x, form)
    assert np.array_equal(sessions.bits(run(tool, tmp_path, file, x)), sessions.bits(wanted))


def test_external_data_beside_the_model_is_read_and_any_other_refused(tool, tmp_path):
    model = graphs.quantised()
    x = graphs.sample(2)
    wanted = run(tool, tmp_path, save(tmp_path, model), x)
    inside = tmp_path / "inside"
    inside.mkdir()
    options = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(model, inside / "model.onnx", location="weights.bin", **options)
    assert np.array_equal(run(tool, tmp_path, inside / "model.onnx", x), wanted)
    weights = (inside / "weights.bin").read_bytes()

    def refusal() -> str:
        return call(tool, "run", inside / "model.onnx", fails=True)

    (inside / "weights.bin").write_bytes(weights[:-1])
    assert "bytes" in refusal() and "weights.bin" in refusal()
    (inside / "weights.bin").unlink()
    assert "cannot read it" in refusal()
    (tmp_path / "outside.bin").write_bytes(weights)
    (inside / "weights.bin").symlink_to(tmp_path / "outside.bin")
    assert "leads out of the model's folder" in refusal()
    for location in ("../outside.bin", str(tmp_path / "outside.bin"), ""):
        moved = onnx.load(inside / "model.onnx", load_external_data=False)
        for tensor in moved.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (inside / "model.onnx").write_bytes(moved.SerializeToString())
        assert "below the model's folder" in refusal()


def test_what_is_refused_is_named_with_its_reason_and_what_would_help(tool, tmp_path):
    file = save(tmp_path, graphs.with_float_tail("Softmax"))
    message = call(tool, "run", file, fails=True)
    assert "Softmax `tail`" in message and "npu explain" in message
    report = json.loads(call(tool, "explain", file, "--json"))
    # The conversion beside it stays with it.
    (left,) = [node for node in report["nodes"] if not node["taken"] and node["op"] != "DequantizeLinear"]
    assert (left["op"], left["name"]) == ("Softmax", "tail")
    assert left["rule"] and left["reason"]
    assert report["nodes_taken"] >= report["nodes_total"] - 2
    assert report["macs_share"] == 1.0 and report["macs"] > 0 and report["cycles"] > 0


@pytest.mark.parametrize("shapes", ["given", "missing"])
@pytest.mark.parametrize("node", ["conv1", "conv2"])
def test_an_attribute_that_is_to_blame_is_named(tool, tmp_path, node, shapes):
    model = graphs.quantised()
    target = next(n for n in model.graph.node if n.name == node)
    del target.attribute[:]
    target.attribute.extend([helper.make_attribute("auto_pad", "SAME_UPPER"), helper.make_attribute("dilations", [2, 2])])
    if shapes == "missing":
        del model.graph.value_info[:]
    report = json.loads(call(tool, "explain", save(tmp_path, model), "--json"))
    left = next(n for n in report["nodes"] if n["name"] == node)
    assert (left["rule"], left["attribute"]) == ("attribute", "auto_pad")
    assert "explicit pads" in left["change"]
    # Shapes that the file lacks are inferred.
    assert 0 < report["macs_share"] < 1 and report["macs_unknown"] == 0


def test_errors_of_the_tool_say_what_to_do(tool, tmp_path):
    assert "not an ONNX model" in call(tool, "run", __file__, fails=True)
    assert "cannot read it" in call(tool, "run", tmp_path / "nothing.onnx", fails=True)
    assert "numpy.save" in call(tool, "run", DIGITS, "--input", tmp_path / "nothing.npy", fails=True)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 28, 27), np.float32))
    assert "[batch, 1, 28, 28]" in call(tool, "run", DIGITS, "--input", tmp_path / "x.npy", fails=True)
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 28, 28), np.uint8))
    assert "float32" in call(tool, "run", DIGITS, "--input", tmp_path / "x.npy", fails=True)

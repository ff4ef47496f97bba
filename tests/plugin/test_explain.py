"""`npu explain` says of a model what the plugin does with it, what that costs, and what would change it."""

import json
import os

import numpy as np
import pytest

import graphs
import sessions
from npu_models.build import SETS
from test_doors import save, tool  # noqa: F401
from test_host import call, library  # noqa: F401

NAMES = SETS["all" if os.environ.get("NPU_MODELS") == "all" else "quick"]


def explained(tool, library, model, *options) -> dict:  # noqa: F811
    return json.loads(call(tool, library, "explain", model, "--json", *options)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_report_is_of_what_the_plugin_does(models, tool, library, name):  # noqa: F811
    file = models / f"{name}.qdq-pc.onnx"
    session = sessions.by_name(str(file))
    report = explained(tool, library, file)
    assert report["graph"].startswith("onnxruntime ")
    # What ONNX Runtime melts together behind the provider has another name there; on the NPU nothing is.
    wanted = sorted(sessions.nodes_on(session, sessions.EP))
    assert sorted(node["name"] for node in report["nodes"] if node["taken"]) == wanted
    placed = sessions.placement(session)
    programs = sorted(len(kinds) for provider, kinds in placed if provider == sessions.EP)
    counts: dict[int, int] = {}
    for node in report["nodes"]:
        if node["taken"]:
            counts[node["program"]] = counts.get(node["program"], 0) + 1
    assert sorted(counts.values()) == programs
    left = [node for node in report["nodes"] if not node["taken"]]
    for node in left:
        assert node["rule"] and node["reason"] and node["change"], node
        assert report["nodes"].index(node) in report["cuts"][node["cut"]]["nodes"]


def test_the_price_of_a_cut_is_told(tool, library, tmp_path):  # noqa: F811
    """A convolution of which the quantiser left the output alone: its work, and what crosses for it."""
    model = graphs.quantised()
    target = next(node for node in model.graph.node if node.name == "conv2")
    # Weights that are no constant are not taken: here they come through a node that the file does not fold.
    reader = next(node for node in model.graph.node if target.input[1] in node.output)
    noise = graphs.helper.make_node("RandomUniformLike", [target.input[1]], ["noise"], "noise")
    target.input[1] = "noise"
    at = list(model.graph.node).index(reader)
    model.graph.node.insert(at + 1, noise)
    report = explained(tool, library, save(tmp_path, model))
    cut = report["cuts"][0]
    causes = {report["nodes"][place]["name"] for place in cut["causes"]}
    assert "conv2" in causes
    macs = next(node["macs"] for node in report["nodes"] if node["name"] == "conv2")
    assert cut["macs"] >= macs > 0 and cut["macs_share"] == pytest.approx(cut["macs"] / report["macs"])
    # 8 channels of 16 by 16 codes in, 16 of 8 by 8 out.
    assert (cut["bytes_in"], cut["bytes_out"]) == (8 * 16 * 16, 16 * 8 * 8)
    assert cut["programs"] == 2 and cut["price_us"] > cut["host_us"] > 0
    text = call(tool, library, "explain", save(tmp_path, model))[0]
    assert f"cut 0: {len(cut['nodes'])} nodes" in text and f"{cut['bytes_in']} bytes there" in text
    assert "change: " in text


def test_without_onnx_runtime_the_report_says_whose_form_it_is(tool, library, tmp_path):  # noqa: F811
    file = save(tmp_path, graphs.with_float_tail("Softmax"))
    own = explained(tool, tmp_path / "missing.so", file)
    assert own["graph"] == "own" and "missing.so" in own["graph_note"]
    asked = explained(tool, library, file, "--graph", "own")
    assert asked["graph"] == "own" and "as asked for" in asked["graph_note"]
    _, error = call(tool, tmp_path / "missing.so", "explain", file, "--graph", "ort", code=1)
    assert "missing.so" in error


def test_progress_is_told_when_asked_for_and_not_into_a_pipe(models, tool, library):  # noqa: F811
    file = models / "resnet50.qdq-pc.onnx"
    _, quiet = call(tool, library, "run", file)
    assert quiet == ""
    _, told = call(tool, library, "run", file, "--progress")
    steps = [line for line in told.replace("\r", "\n").split("\n") if line.endswith(" s, done")]
    assert [step.split(":")[0] for step in steps[-2:]] == ["loading and compiling", "running"], told


@pytest.mark.parametrize("gain", [None, 0, 1_000_000])
def test_min_gain_leaves_what_does_not_pay_to_the_cpu_and_results_stay(tool, library, tmp_path, gain):  # noqa: F811
    file = save(tmp_path, graphs.quantised())
    x = graphs.sample(2)
    settings = {} if gain is None else {"min_gain": str(gain)}
    options = () if gain is None else ("--min-gain", gain)
    session, reference = sessions.by_name(str(file), settings), sessions.cpu(str(file))
    (wanted,) = sessions.assert_same(session, reference, x, f"min_gain {gain}")
    is_taken = bool(sessions.nodes_on(session, sessions.EP))
    # A million microseconds nothing saves; without the option no estimate is made.
    assert is_taken if gain is None else (not is_taken or gain == 0)
    np.save(tmp_path / "x.npy", x)
    call(tool, library, "run", file, "--host", "ort", *options, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert np.array_equal(sessions.bits(np.load(tmp_path / "y.npy")), sessions.bits(wanted))
    report = explained(tool, library, file, *options)
    assert (report["nodes_taken"] > 0) == is_taken
    if not is_taken:
        assert {node["rule"] for node in report["nodes"]} >= {"min-gain"}
        assert all("min_gain" in node["reason"] for node in report["nodes"] if node["rule"] == "min-gain")

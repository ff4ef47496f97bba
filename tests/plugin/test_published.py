"""Networks as people bring them: outputs equal the CPU provider's bit for bit, whatever part of them runs on the NPU.

The small ones run always. With `NPU_MODELS=all` in the environment every model of `cargo xtask models --all` runs.
"""

import os
from collections import Counter

import numpy as np
import onnx
import pytest
import sessions
from npu_models import describe, inputs, quantise, signed
from npu_models.build import ALL, RECIPES, SETS
from npu_models.published import Published

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")

NAMES = [name for name in SETS["all" if os.environ.get("NPU_MODELS") == "all" else "quick"] if name not in RECIPES]
# Those of which nothing may be left to the CPU.
WHOLE = {"squeezenet1_1", "mobilenet_v3_small", "efficientnet_b0", "dnsmos-p808", "oww-embedding", "ddddocr-det", "ppocr-cls-v2", "ppocrv4-det", "ppocrv4-rec"}
# At most as many subgraphs as there are between what stays on the CPU.
SUBGRAPHS = {"ppocr-cls-v2": 1, "minilm-l3": 1}
# The least share of the multiplications.
LEAST = {"minilm-l3": 0.99}


def feeds(name: str, packages) -> list[dict[str, np.ndarray]]:
    recipe = ALL[name]
    if isinstance(recipe, Published):
        return recipe.four(packages)
    eight = inputs.eight(list(recipe.shape), 1, packages)
    return [{"input": eight[kind]} for kind in ("real", "real, others", "normal", "wide normal")]


# Per channel, and with all of them per tensor.
FILES = [(name, "qdq-pc") for name in NAMES] + [(name, "u8s8-pt") for name in NAMES if os.environ.get("NPU_MODELS") == "all"]


@pytest.mark.parametrize(("name", "kind"), FILES, ids=[f"{name}.{kind}" for name, kind in FILES])
def test_outputs_equal_the_cpu(models, name, kind, capsys):
    file = models / f"{name}.{kind}.onnx" if kind == "qdq-pc" else signed.ensure(name, kind, models)
    reference, session = sessions.cpu(str(file)), sessions.by_name(str(file))
    macs = describe.macs_by_node(onnx.load(file))
    taken = sum(macs.get(node, 0) for node in sessions.nodes_on(session, sessions.EP))
    subgraphs = sum(provider == sessions.EP for provider, _ in sessions.placement(session))
    left = Counter(sessions.operators_on(session, sessions.CPU))
    with capsys.disabled():
        print(f"\n{name}.{kind}: {taken / sum(macs.values()):.2%} of the multiplications in {subgraphs} subgraphs; left to the CPU {dict(left)}")
    seen = set()
    for index, feed in enumerate(feeds(name, models / "packages")):
        for output in sessions.assert_same(session, reference, feed, f"{name}, input {index}"):
            seen.update(np.unique(output).tolist())
    # Two machines that differ would show it: the outputs are not all saturated.
    assert len(seen) > 2, f"all outputs are of {seen}"
    assert taken > 0, "nothing of the model ran on the NPU"
    if name in WHOLE:
        sessions.assert_all_on_npu(session)
    assert subgraphs <= SUBGRAPHS.get(name, subgraphs)
    assert taken >= LEAST.get(name, 0) * sum(macs.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_quantised_intermediate_equals_the_cpu(models, name):
    """With each 8-bit tensor an output, what was one table is a step for each operator again."""
    for tapped in quantise.all_taps(onnx.load(models / f"{name}.qdq-pc.onnx")):
        reference, session = sessions.cpu(tapped.SerializeToString()), sessions.by_name(tapped.SerializeToString())
        assert len(reference.get_outputs()) > 10
        assert sessions.nodes_on(session, sessions.EP)
        for index, feed in enumerate(feeds(name, models / "packages")[:2]):
            sessions.assert_same(session, reference, feed, f"{name}, input {index}")

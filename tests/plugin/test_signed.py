"""int8 activations: outputs equal the CPU provider's bit for bit, which runs part of such a model in float.

The digits run always. With `NPU_MODELS=all` in the environment every model that the project knows runs.
"""

import os
from collections import Counter

import numpy as np
import onnx
import pytest
import sessions
from npu_models import build, describe, quantise, signed

NAMES = list(build.ALL) if os.environ.get("NPU_MODELS") == "all" else ["digits"]
VARIANTS = [(name, kind) for name in NAMES for kind in signed.KINDS]
IDS = [f"{name}.{kind}" for name, kind in VARIANTS]
# Those of which nothing may be left to the CPU.
WHOLE = {"digits"}


@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=IDS)
def test_outputs_equal_the_cpu(models, name, kind, capsys):
    file = signed.ensure(name, kind, models)
    reference, session = sessions.cpu(str(file)), sessions.by_name(str(file))
    macs = describe.macs_by_node(onnx.load(file))
    taken = sum(macs.get(node, 0) for node in sessions.nodes_on(session, sessions.EP))
    subgraphs = sum(provider == sessions.EP for provider, _ in sessions.placement(session))
    left = Counter(sessions.operators_on(session, sessions.CPU))
    with capsys.disabled():
        print(f"\n{name}.{kind}: {taken / sum(macs.values()):.2%} of the multiplications in {subgraphs} subgraphs; left to the CPU {dict(left)}")
    seen = set()
    for index, feed in enumerate(signed.feeds(name, models)):
        for output in sessions.assert_same(session, reference, feed, f"{name}.{kind}, input {index}"):
            seen.update(np.unique(output).tolist())
    assert len(seen) > 2, f"all outputs are of {seen}"
    if name in WHOLE:
        sessions.assert_all_on_npu(session)


@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=IDS)
def test_every_quantised_intermediate_equals_the_cpu(models, name, kind):
    """With each 8-bit tensor an output, each stays int8: the CPU runs all in float that has no int8 kernel."""
    tapped = quantise.with_taps(onnx.load(signed.ensure(name, kind, models))).SerializeToString()
    reference, session = sessions.cpu(tapped), sessions.by_name(tapped)
    assert any(value.dtype == np.int8 for value in sessions.run(reference, signed.feeds(name, models)[0]))
    for index, feed in enumerate(signed.feeds(name, models)[:2]):
        sessions.assert_same(session, reference, feed, f"{name}.{kind}, input {index}")

"""Whole models: every output value equals the CPU provider's, bit for bit, and every node runs on the NPU."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import sessions
from npu_models import inputs
from npu_models.build import FEWEST_CODES, RECIPES

VARIANTS = [(name, kind) for name, recipe in RECIPES.items() for kind in recipe.variants]
BATCHES = [1, 3]


@lru_cache(maxsize=2)
def feeds(name: str, batch: int, packages: Path) -> dict[str, np.ndarray]:
    return inputs.eight(list(RECIPES[name].shape), batch, packages)


@pytest.mark.parametrize("door", sessions.DOORS)
@pytest.mark.parametrize(("name", "kind"), VARIANTS, ids=[f"{name}.{kind}" for name, kind in VARIANTS])
def test_outputs_equal_the_cpu_and_one_subgraph_holds_all_nodes(models, name, kind, door):
    file = str(models / f"{name}.{kind}.onnx")
    reference, session = sessions.cpu(file), sessions.DOORS[door](file)
    sessions.assert_all_on_npu(session)
    for batch in BATCHES:
        seen = set()
        for what, x in feeds(name, batch, models / "packages").items():
            (output,) = sessions.assert_same(session, reference, x, f"{what}, batch {batch}")
            seen.update(np.unique(output).tolist())
        # Ten scores, eight times, cannot fill 64 codes; the intermediates of that model do.
        assert len(seen) >= min(FEWEST_CODES, 4 * batch * output.shape[1]), f"only {len(seen)} distinct values at batch {batch}"


@pytest.mark.parametrize("name", RECIPES)
def test_every_quantised_intermediate_equals_the_cpu(models, name):
    file = str(models / f"{name}.{RECIPES[name].variants[0]}.taps.onnx")
    reference, session = sessions.cpu(file), sessions.by_name(file)
    sessions.assert_all_on_npu(session)
    names = [output.name for output in reference.get_outputs()]
    codes = {tensor: np.zeros(256, bool) for tensor in names[1:]}
    assert len(codes) > 5
    for batch in BATCHES:
        for what, x in feeds(name, batch, models / "packages").items():
            outputs = sessions.assert_same(session, reference, x, f"{what}, batch {batch}")
            for tensor, values in zip(names[1:], outputs[1:], strict=True):
                assert values.dtype == np.uint8, tensor
                codes[tensor][np.unique(values)] = True
    few = {tensor: int(seen.sum()) for tensor, seen in codes.items() if seen.sum() < FEWEST_CODES}
    assert not few, f"too few distinct codes to tell two machines apart: {few}"


def test_the_checked_in_digit_model_is_whole_and_exact(models):
    file = str(Path(__file__).resolve().parents[1] / "models/digits.qdq.onnx")
    reference, session = sessions.cpu(file), sessions.by_name(file)
    sessions.assert_all_on_npu(session)
    for what, x in feeds("digits", 3, models / "packages").items():
        sessions.assert_same(session, reference, x, what)

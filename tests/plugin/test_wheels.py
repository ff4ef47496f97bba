"""The digit classifier with every wheel: whole on the NPU, and as near to that wheel's CPU provider as versions are to each other."""

import numpy as np
import pytest

import sessions
from npu_models import inputs
from npu_models.build import RECIPES


@pytest.mark.parametrize("door", sessions.DOORS)
def test_digits_run_whole_and_give_the_same_digits(models, door):
    file = str(models / "digits.qdq-pc.onnx")
    reference, session = sessions.cpu(file), sessions.DOORS[door](file)
    sessions.assert_all_on_npu(session)
    for batch in (1, 3):
        for what, x in inputs.eight(list(RECIPES["digits"].shape), batch, models / "packages").items():
            (found,) = sessions.assert_same(session, reference, x, f"{what}, batch {batch}")
            (wanted,) = sessions.run(reference, x)
            assert np.array_equal(found.argmax(1), wanted.argmax(1)), what

"""Small models that random ones were shrunk to, each of which once came to other values on the NPU, or to an error."""

from pathlib import Path

import pytest
import wheels
from random_models.case import Case
from random_models.judge import EQUAL, judge

FOUND = sorted((Path(__file__).parent / "found").glob("*.onnx"))


@pytest.mark.parametrize("file", FOUND, ids=[file.stem for file in FOUND])
def test_what_was_found_stays_mended(file):
    verdict = judge(Case.load(file))
    assert not wheels.IS_REFERENCE or verdict.kind == EQUAL, verdict.text


def test_there_are_some():
    assert len(FOUND) > 10

"""Batches of none: what a model makes of them on the CPU, it makes on the NPU."""

import pytest
import sessions
from test_layers import Layer, image
from test_moves import int64, pooled, unit

# What ran where is asked of ONNX Runtime's own record.
pytestmark = pytest.mark.since("1.24")


def assert_same(layer: Layer, y: str, codes, batches) -> list[str]:
    """Gives the operators that ran on the NPU."""
    model = layer.model(layer.dequantise(y, codes)).SerializeToString()
    npu, reference = sessions.by_name(model), sessions.cpu(model)
    for batch in batches:
        layer.shape[0] = batch
        sessions.assert_same(npu, reference, layer.input(codes), f"batch {batch}")
    return sessions.operators_on(npu, sessions.EP)


def open_image(seed: int, salt: int):
    _, layer, codes, x = image(seed, salt, 12)
    layer.x.type.tensor_type.shape.dim[0].dim_param = "batch"
    return layer, codes, x


def test_every_second_image_of_none_is_none():
    layer, codes, x = open_image(1, 320)
    cut = [int64(layer, [v]) for v in (0, 2**40, 0, 2)]
    assert_same(layer, unit(layer, "Slice", pooled(layer, x, codes), codes, codes, *cut), codes, (0, 1, 2, 5))


@pytest.mark.parametrize("count", [1, 2])
def test_a_part_of_a_batch_that_may_be_none(count):
    """It is declared to be so many images, and is none of none."""
    layer, codes, x = open_image(2, 321)
    rest = layer.node("Slice", [layer.dequantise(x, codes), *(int64(layer, [v]) for v in (0, count, 0))])
    y = pooled(layer, layer.quantise(rest, codes), codes)
    assert_same(layer, unit(layer, "Sigmoid", y, codes, codes), codes, (0, count, count + 1))


def test_a_pad_of_a_batch_has_elements_of_none():
    layer, codes, x = open_image(3, 322)
    y = pooled(layer, unit(layer, "Pad", x, codes, codes, int64(layer, [2, 0, 0, 0, 0, 0, 0, 1])), codes)
    taken = assert_same(layer, y, codes, (0, 1, 3))
    assert "Pad" not in taken


def test_a_pad_of_rows_is_taken_in_a_batch_that_may_be_none():
    layer, codes, x = open_image(4, 323)
    y = pooled(layer, unit(layer, "Pad", x, codes, codes, int64(layer, [0, 0, 2, 0, 0, 0, 0, 1])), codes)
    assert "Pad" in assert_same(layer, y, codes, (0, 1, 3))

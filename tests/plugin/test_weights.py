"""Weights with zero points, and of uint8, in every operator that has weights, against the CPU provider."""

import numpy as np
import pytest
from onnx import TensorProto
from test_layers import SEEDS, Layer, compare, start

FORMS = ["int8", "uint8"]
RANGES = ["differences fit int8", "every code"]


def weights(layer: Layer, shape, axis: int, scales, form: str, spread: str, per_channel: bool) -> str:
    """A DequantizeLinear of random weights; with a zero point each where `per_channel`."""
    random, low = layer.random, -128 if form == "int8" else 0
    zero_points = random.integers(low, low + 256, np.shape(scales) if per_channel else ())
    if not per_channel:
        zero_points = np.full(np.shape(scales), zero_points)
    values = random.integers(low, low + 256, shape)
    if spread == RANGES[0]:
        along = [1] * len(shape)
        if np.ndim(scales):
            along[axis] = len(scales)
        middle = zero_points.reshape(along)
        values = np.clip(values, np.maximum(low, middle - 128), np.minimum(low + 255, middle + 127))
    kind = np.int8 if form == "int8" else np.uint8
    inputs = [layer.constant(values, kind), layer.constant(scales, np.float32), layer.constant(zero_points, kind)]
    return layer.node("DequantizeLinear", inputs, **({"axis": axis} if np.ndim(scales) else {}))


@pytest.mark.parametrize("spread", RANGES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions(seed, form, spread):
    random = np.random.default_rng([seed, 41])
    channels = int(random.integers(1, 20))
    random, layer, codes, x = start(seed, [2, channels, 11, 13], 41)
    groups = int(random.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs = groups * int(random.integers(1, 40 // groups + 2))
    kernel = [int(k) for k in random.integers(1, 5, 2)]
    scales, result = layer.weight_scales(outputs), layer.codes(0.5)
    w = weights(layer, [outputs, channels // groups, *kernel], 0, scales, form, spread, seed % 2 == 0)
    bias = [layer.bias(outputs, codes[0], scales, 20_000)] if seed % 3 else []
    pads = [kernel[0] // 2, kernel[1] // 2, 0, 0]
    y = layer.node("Conv", [layer.dequantise(x, codes), w, *bias], pads=pads, group=groups)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)


@pytest.mark.parametrize("spread", RANGES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["Gemm", "Gemm, transposed", "MatMul"])
@pytest.mark.parametrize("seed", SEEDS)
def test_products(seed, kind, form, spread):
    random = np.random.default_rng([seed, 42])
    inputs, outputs = int(random.integers(1, 200)), int(random.integers(1, 90))
    random, layer, codes, x = start(seed, [int(random.integers(1, 20)), inputs], 42)
    scales, result = layer.weight_scales(outputs), layer.codes(1.0)
    transposed = kind.endswith("transposed")
    shape = [outputs, inputs] if transposed else [inputs, outputs]
    w = weights(layer, shape, int(not transposed), scales, form, spread, seed % 2 == 0)
    bias = [layer.bias(outputs, codes[0], scales, 20_000)] if kind != "MatMul" and seed % 3 else []
    attributes = {"transB": 1} if transposed else {}
    if bias and not np.ndim(scales) and outputs > 1:
        # A bias may be a matrix of one row.
        vector = next(c for c in layer.constants if c.data_type == TensorProto.INT32 and list(c.dims) == [outputs])
        vector.dims[:] = [1, outputs]
    y = layer.node(kind.split(",")[0], [layer.dequantise(x, codes), w, *bias], **attributes)
    compare(layer, layer.dequantise(layer.quantise(y, result), result), codes)

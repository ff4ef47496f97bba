"""Units that the CPU provider runs in float32 between DequantizeLinear and QuantizeLinear: the same codes, bit for bit.

An activation that cuts off what the codes can hold keeps the CPU from fusing a unit into an 8-bit operator.
Scales that are powers of two put many sums on rounding ties, where an integer sum and one in floats part.
"""

import numpy as np
import pytest
import sessions
from test_layers import Layer, compare

SEEDS = range(16)


def convolution(seed: int, kind: str):
    """A Conv unit with a Relu or Clip in it, of a shape whose sums have one order with any number of threads."""
    random = np.random.default_rng([seed, 20])
    side = int(random.integers(16, 25))
    kernel, strides, dilations, pads, groups = [1, 1], [1, 1], [1, 1], [0] * 4, 1
    inputs, outputs, images = int(random.integers(1, 300)), int(random.integers(2, 60)), 1
    if kind == "window":
        kernel = [int(k) for k in random.integers(1, 6, 2)]
        dilations = [int(d) for d in random.integers(1, 3, 2)]
        pads = [int(random.integers(0, d * (k - 1) + 1)) for k, d in zip(kernel * 2, dilations * 2, strict=True)]
        strides = [int(s) for s in random.integers(1, 3, 2)]
        inputs, images = int(random.integers(1, 70)), 2
    elif kind == "groups":
        kernel, groups = [3, 3], int(random.integers(2, 6))
        inputs, outputs = groups * int(random.integers(1, 20)), groups * int(random.integers(1, 20))
    elif kind == "depthwise":
        kernel = [int(k) for k in random.integers(1, 6, 2)]
        inputs = outputs = groups = int(random.integers(2, 90))
    elif kind == "one pixel":
        side, inputs, outputs = 1, int(random.integers(1, 400)), int(random.integers(2, 70))
    elif kind == "one filter":
        kernel, outputs = [3, 3], 1
    elif kind == "small image":
        side, outputs = int(random.integers(3, 7)), int(random.integers(50, 200))
    layer = Layer(random, [images, inputs, side, side])
    codes = (layer.scale(0.02), int(random.integers(1, 256)))
    result = (layer.scale(0.02 * np.sqrt(inputs * kernel[0] * kernel[1] / groups)), int(random.integers(60, 200)))
    scales = layer.weight_scales(outputs)
    weight = layer.weights([outputs, inputs // groups, *kernel], 0, scales)
    bias = [layer.bias(outputs, codes[0], scales, 20_000)] if random.random() < 0.8 else []
    terms = [layer.dequantise(layer.quantise("x", codes), codes), weight, *bias]
    y = layer.node("Conv", terms, kernel_shape=kernel, pads=pads, strides=strides, dilations=dilations, group=groups)
    if random.random() < 0.5:
        y = layer.node("Relu", [y])
    else:
        bounds = [float(result[0]) * float(random.integers(-60, 0)), float(result[0]) * float(random.uniform(1, 50))]
        y = layer.node("Clip", [y, *(layer.constant(bound, np.float32) for bound in bounds)])
    return layer, codes, layer.quantise(y, result), result


@pytest.mark.parametrize("kind", ["point", "window", "groups", "depthwise", "one pixel", "one filter", "small image"])
@pytest.mark.parametrize("seed", SEEDS)
def test_convolutions_with_an_activation_that_cuts(seed, kind):
    layer, codes, y, result = convolution(seed, kind)
    compare(layer, layer.dequantise(y, result), codes)

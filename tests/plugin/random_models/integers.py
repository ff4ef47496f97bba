"""Units in QOperator form, which have integers at both ends, and those that quantise as they run."""

import numpy as np

from .builder import MICROSOFT, Builder, Tensor
from .codes import Codes
from .products import window


def result(b: Builder, about: float) -> Codes:
    """Codes for an output whose values are known only by their size."""
    return b.style.codes(b.random, b.random.standard_normal(1000) * about)


def size(b: Builder, x: Tensor) -> float:
    return float(np.sqrt(np.mean(np.square(x.codes.restore(b.values[x.name]).astype(np.float64))))) + 1e-20


def integer_weights(b: Builder, x: Tensor, shape: list[int], axis: int) -> tuple[list[str], np.ndarray, int]:
    """Names of weight, scale and zero point; the scales; the element type follows what the CPU has kernels for."""
    kind = np.int8 if x.codes.element == np.int8 or b.any(0.7) else np.uint8
    count = shape[axis] if b.any(0.5) else 1
    scale = (b.random.uniform(0.5, 2, count) / 60).astype(np.float32)
    zero = 0 if kind == np.int8 else 128
    codes = np.clip(np.rint(b.random.standard_normal(shape) * 50) + zero, np.iinfo(kind).min, np.iinfo(kind).max)
    one = count == 1
    names = [b.constant(codes, kind), b.constant(scale[0] if one else scale, np.float32), b.constant(zero if one else np.full(count, zero), kind)]
    return names, scale, int(np.prod(shape)) // shape[axis]


def give(b: Builder, name: str, codes: Codes) -> Tensor:
    return b.add(Tensor(name, codes, b.values[name].shape))


def convolution(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) in (3, 4))
    channels = x.shape[1]
    groups = b.one(1, 1, channels)
    count = groups * b.whole(1, max(1, 24 // groups))
    made = window(b, x.shape[2:], 3)
    weight, scale, depth = integer_weights(b, x, [count, channels // groups, *made["kernel_shape"]], 0)
    codes = result(b, size(b, x) * np.sqrt(depth) * 0.8)
    inputs = [x.name, *b.meaning(x.codes), *weight, *b.meaning(codes)]
    if b.any(0.6):
        inputs.append(b.constant(b.random.normal(0, 2000, count), np.int32))
    return give(b, b.node("QLinearConv", inputs, group=groups, **made), codes)


def matrix(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) >= 2)
    weight, scale, depth = integer_weights(b, x, [x.shape[-1], b.whole(1, 30)], 1)
    codes = result(b, size(b, x) * np.sqrt(depth) * 0.8)
    if len(x.shape) == 2 and b.any(0.5):
        bias = b.constant(b.random.normal(0, 2000, b.constants[weight[0]].shape[1]), np.int32)
        inputs = [x.name, *b.meaning(x.codes), *weight, bias, *b.meaning(codes)]
        return give(b, b.node("QGemm", inputs, domain=MICROSOFT), codes)
    return give(b, b.node("QLinearMatMul", [x.name, *b.meaning(x.codes), *weight, *b.meaning(codes)]), codes)


def pair(b: Builder) -> Tensor:
    x = b.pick()
    fitting = [y for y in b.flow if y.shape == x.shape and y.codes.element == x.codes.element]
    y = b.one(*fitting)
    codes = result(b, size(b, x) + size(b, y))
    codes = Codes(codes.scale, int(np.clip(codes.zero, x.codes.lowest, x.codes.highest)), x.codes.element)
    inputs = [x.name, *b.meaning(x.codes), y.name, *b.meaning(y.codes), *b.meaning(codes)]
    return give(b, b.node(b.one("QLinearAdd", "QLinearMul"), inputs, domain=MICROSOFT), codes)


def function(b: Builder) -> Tensor:
    x = b.pick()
    codes = result(b, size(b, x))
    codes = Codes(codes.scale, int(np.clip(codes.zero, x.codes.lowest, x.codes.highest)), x.codes.element)
    inputs = [x.name, *b.meaning(x.codes), *b.meaning(codes)]
    if len(x.shape) == 4 and b.any(0.4):
        if b.any(0.5):
            return give(b, b.node("QLinearGlobalAveragePool", inputs, domain=MICROSOFT, channels_last=0), codes)
        return give(b, b.node("QLinearAveragePool", inputs, domain=MICROSOFT, **window(b, x.shape[2:], 3) | {"dilations": [1, 1]}), codes)
    kind, made = b.one(("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.1}))
    return give(b, b.node(kind, inputs, domain=MICROSOFT, **made), codes)


def dynamic(b: Builder) -> Tensor:
    """Quantised by what arrives: DynamicQuantizeLinear, a product of integers, and back to floats."""
    x = b.pick(lambda shape: len(shape) in (2, 4))
    first = b.node("DynamicQuantizeLinear", [b.dequantise(x)], 3)
    image = len(x.shape) == 4
    shape = [b.whole(1, 12), x.shape[1], b.one(1, 3), 1] if image else [x.shape[1], b.whole(1, 20)]
    weight = b.random.integers(-127, 128, shape)
    scale = b.constant(b.random.uniform(0.5, 2) / 100, np.float32)
    inputs = [first, b.constant(weight, np.int8), f"{first}.2", b.constant(0, np.int8)]
    y = b.node("Cast", [b.node("ConvInteger" if image else "MatMulInteger", inputs)], to=1)
    return b.give(b.node("Mul", [y, b.node("Mul", [f"{first}.1", scale])]))


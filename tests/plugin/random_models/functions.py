"""Units that work element by element, on one tensor or two, and those that normalise."""

import numpy as np

from .builder import Builder, ImpossibleUnit, Tensor


def unary(b: Builder, x: str) -> str:
    """One element-wise operator on a float value."""
    plain = ["Relu", "Sigmoid", "Tanh", "HardSwish", "Erf", "Exp", "Sqrt", "Abs", "Neg", "Log", "Softplus", "Softsign"]
    plain += ["Floor", "Ceil", "Round", "Sin", "Cos", "Reciprocal", "Sign", "Identity", "Selu", "Celu", "Mish", "Gelu"]
    alphas = {"LeakyRelu": (0.0, 0.5), "Elu": (0.1, 2), "HardSigmoid": (0.05, 0.5), "ThresholdedRelu": (0.1, 1)}
    constants = ["Clip", "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "PRelu"]
    kind = b.one(*plain[:7], *plain, *alphas, *alphas, *constants, *constants)
    if kind in alphas:
        low, high = alphas[kind]
        made = {"alpha": float(b.random.uniform(low, high))} if b.any(0.8) else {}
        if kind == "HardSigmoid" and b.any(0.6):
            made["beta"] = float(b.random.uniform(0, 1))
        return b.node(kind, [x], **made)
    if kind == "Clip":
        low, high = sorted(float(v) for v in b.random.normal(0, 2, 2))
        ends = [b.constant(low, np.float32) if b.any(0.8) else "", b.constant(high, np.float32)]
        return b.node(kind, [x, *(ends if b.any(0.8) else ends[:1])])
    if kind in constants:
        return with_constant(b, kind, x)
    return b.node(kind, [x], **({"approximate": "tanh"} if kind == "Gelu" and b.any(0.5) else {}))


def with_constant(b: Builder, kind: str, x: str) -> str:
    """A float or an 8-bit constant: a scalar, one for each channel, or a whole tensor."""
    shape = b.values[x].shape
    rank = len(shape)
    forms = [(), (1,), tuple(n if k == 1 else 1 for k, n in enumerate(shape)), shape[-1:], (1, *shape[1:])]
    form = b.one((), (), *forms)
    values = b.random.normal(0, 1.5, form[: rank + 1])
    if kind == "Pow":
        values = np.full((), b.one(2, 2, 0.5, 3, -1))
    if kind == "Div":
        values = np.where(np.abs(values) < 0.1, 1, values)
    if b.any(0.5) or kind == "Pow":
        constant = b.constant(values, np.float32)
    else:
        codes = b.style.codes(b.random, np.asarray(values))
        scale, zero = b.constant(codes.scale, np.float32), b.constant(codes.zero, codes.element)
        constant = b.node("DequantizeLinear", [b.constant(codes.quantise(values), codes.element), scale, zero])
    pair = [x, constant]
    return b.node(kind, pair if b.any(0.8) or kind in ("Pow", "PRelu") else pair[::-1])


def function(b: Builder) -> Tensor:
    x = b.pick()
    return b.give(unary(b, b.dequantise(x)))


def expression(b: Builder) -> Tensor:
    """Several operators between one DQ and one Q; half of the time what comes out is joined with what went in."""
    x = b.dequantise(b.pick())
    y = x
    for _ in range(b.whole(2, 4)):
        y = unary(b, y)
    if b.any(0.5):
        pair = [x, y] if b.any(0.5) else [y, x]
        y = b.node(b.one("Mul", "Mul", "Add", "Sub", "Max"), pair)
    return b.give(y)


def swish(b: Builder) -> Tensor:
    """x * f(x), with a Q after f or without one."""
    x = b.pick()
    gate = b.node(b.one("Sigmoid", "HardSigmoid", "Tanh"), [b.dequantise(x)])
    if b.any(0.6):
        gate = b.dequantise(b.quantise(gate, b.style.codes(b.random, b.values[gate])))
    return b.give(b.node("Mul", [b.dequantise(x), gate]))


def pair(b: Builder) -> Tensor:
    """Two tensors that one operator joins; of the same shape, or one repeated over the other."""
    x = b.pick()
    fitting = [y for y in b.flow if repeats(x.shape, y.shape)]
    y = b.one(*fitting, *fitting[-3:])
    terms = [b.dequantise(x), b.dequantise(y)]
    kind = b.one("Add", "Add", "Mul", "Mul", "Sub", "Div", "Min", "Max", "Pow", "PRelu", "Sum", "Mean")
    name = b.node(kind, terms if b.any(0.7) or kind == "PRelu" else terms[::-1])
    if kind == "PRelu" and b.values[name].shape != x.shape:
        raise ImpossibleUnit  # a slope may not make the result larger; the CPU provider checks that late
    return b.give(name)


def repeats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(a[::-1], b[::-1], strict=False))


def choice(b: Builder) -> Tensor:
    """Where, by a comparison with a constant."""
    x = b.pick()
    y = b.one(*[y for y in b.flow if y.shape == x.shape])
    condition = b.node("Greater", [b.dequantise(x), b.constant(0.1, np.float32)])
    return b.give(b.node("Where", [condition, b.dequantise(x), b.dequantise(y)]))


def softmax(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) > 0)
    axis = b.one(-1, -1, b.whole(-len(x.shape), len(x.shape) - 1))
    return b.give(b.node("LogSoftmax" if b.any(0.1) else "Softmax", [b.dequantise(x)], axis=axis))


def normalisation(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) >= 2)
    kind = b.one("LayerNormalization", "BatchNormalization", "InstanceNormalization", "LRN", "LpNormalization")
    value, channels = b.dequantise(x), x.shape[1]
    if kind == "LayerNormalization":
        axis = b.one(-1, b.whole(1, len(x.shape) - 1) - len(x.shape))
        gain, shift = (b.constant(b.random.normal(k, 0.5, x.shape[axis:]), np.float32) for k in (1, 0))
        return b.give(b.node(kind, [value, gain, shift][: b.whole(2, 3)], axis=axis))
    gain, shift, mean = (b.constant(b.random.normal(k, 0.5, channels), np.float32) for k in (1, 0, 0))
    if kind == "BatchNormalization":
        return b.give(b.node(kind, [value, gain, shift, mean, b.constant(b.random.uniform(0.2, 2, channels), np.float32)]))
    if kind == "InstanceNormalization":
        return b.give(b.node(kind, [value, gain, shift]))
    return b.give(b.node(kind, [value], **({"size": b.one(1, 3, 5)} if kind == "LRN" else {"p": b.whole(1, 2)})))


def normalised(b: Builder) -> Tensor:
    """A layer normalisation by single operators, of which a quantiser saw the variance and what is behind it."""
    x = b.pick(lambda shape: len(shape) >= 2)

    def mean(value: str) -> str:
        if b.opset >= 18:
            return b.node("ReduceMean", [value, b.constant([-1])], keepdims=1)
        return b.node("ReduceMean", [value], axes=[-1], keepdims=1)

    first = b.dequantise(x)
    centred = b.node("Sub", [first if b.any(0.5) else b.dequantise(x), mean(first)])
    if b.any(0.2) and len(x.shape) == 3:
        centred = b.node("Transpose", [centred], perm=[1, 0, 2])
    squares = b.node("Pow", [centred, b.constant(2.0, np.float32)]) if b.any(0.7) else b.node("Mul", [centred, centred])

    def codes(value: str) -> Tensor:
        return b.quantise(value, b.style.codes(b.random, b.values[value]))

    summed = b.node("Add", [b.dequantise(codes(mean(squares))), b.constant(1e-3, np.float32)])
    root = b.node("Sqrt", [b.dequantise(codes(summed))])
    return b.give(b.node("Div", [centred, root]))


def island(b: Builder) -> Tensor:
    """A stretch that is not quantised, with weights that are floats."""
    x = b.pick(lambda shape: len(shape) >= 2)
    y = unary(b, b.dequantise(x))
    shape = b.values[y].shape
    if len(shape) == 4 and b.any(0.6):
        count = b.whole(1, 9)
        weight = b.constant(b.random.standard_normal((count, shape[1], 1, 1)) / np.sqrt(shape[1]), np.float32)
        y = b.node("Conv", [y, weight, b.constant(b.random.standard_normal(count), np.float32)])
    elif len(shape) < 2:
        raise ImpossibleUnit
    else:
        y = b.node("MatMul", [y, b.constant(b.random.standard_normal((shape[-1], b.whole(1, 9))), np.float32)])
    return b.give(unary(b, y) if b.any(0.5) else y)

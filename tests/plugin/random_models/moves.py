"""Units that put elements elsewhere, look through a window at them, or reduce them."""

import numpy as np

from .builder import Builder, ImpossibleUnit, Tensor
from .products import window


def move(b: Builder, kind: str, x: Tensor, *constants: str, outputs: int = 1, **attributes) -> list[Tensor]:
    """The operator between DQ and Q; sometimes on the codes themselves, which ONNX allows."""
    if b.any(0.12):
        name = b.node(kind, [x.name, *constants], outputs, **attributes)
        names = [name] + [f"{name}.{k}" for k in range(1, outputs)]
        return [b.add(Tensor(name, x.codes, b.values[name].shape)) for name in names]
    name = b.node(kind, [b.dequantise(x), *constants], outputs, **attributes)
    names = [name] + [f"{name}.{k}" for k in range(1, outputs)]
    return [b.give(name, x.codes) for name in names]


def largest(b: Builder):
    x = b.pick(lambda shape: len(shape) in (3, 4))
    made = window(b, x.shape[2:], 3) | ({"ceil_mode": 1} if b.any(0.25) else {})
    return move(b, "MaxPool", x, **made)


def average(b: Builder):
    x = b.pick(lambda shape: len(shape) in (3, 4))
    made = window(b, x.shape[2:], 3)
    # With `dilations`, even all 1, the CPU provider's own fusion makes a node that it then refuses.
    made.pop("dilations", None)
    made |= {"ceil_mode": 1} if b.any(0.2) else {}
    made |= {"count_include_pad": 1} if b.any(0.3) else {}
    return b.give(b.node("AveragePool", [b.dequantise(x)], **made))


def whole_image(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 3)
    kind = b.one("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    return b.give(b.node(kind, [b.dequantise(x)]), x.codes if kind == "GlobalMaxPool" else None)


def reduction(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    kind = b.one("ReduceMean", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceProd")
    axes = [int(a) for a in b.random.choice(len(x.shape), b.whole(1, len(x.shape)), replace=False)]
    axes = [a - len(x.shape) if b.any(0.3) else a for a in axes]
    made: dict = {"keepdims": b.whole(0, 1)} if b.any(0.8) else {}
    inputs = [b.dequantise(x)]
    if b.opset >= 18 or kind == "ReduceSum":
        inputs += [b.constant(axes)]
    else:
        made["axes"] = axes
    if b.any(0.05):
        made.pop("axes", None)
        inputs = inputs[:1]
    return b.give(b.node(kind, inputs, **made), x.codes if kind in ("ReduceMax", "ReduceMin") else None)


def concatenation(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    axis = b.whole(0, len(x.shape) - 1)
    if b.any(0.6) and len(x.shape) > 1:
        axis = 1
    rest = without(x.shape, axis)
    fitting = [y for y in b.flow if len(y.shape) == len(x.shape) and without(y.shape, axis) == rest]
    parts = [x, *(b.one(*fitting) for _ in range(b.whole(0, 3)))]
    axis -= len(x.shape) * int(b.any(0.3))
    return b.give(b.node("Concat", [b.dequantise(part) for part in parts], axis=axis), x.codes)


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def split(b: Builder) -> list[Tensor]:
    x = b.pick(lambda shape: len(shape) >= 1 and max(shape) > 1)
    axis = b.one(*(k for k, n in enumerate(x.shape) if n > 1))
    parts = b.whole(1, min(4, x.shape[axis]))
    made: dict = {"axis": axis if b.any(0.7) else axis - len(x.shape)}
    if b.any(0.6):
        cuts = sorted(int(c) for c in b.random.choice(np.arange(1, x.shape[axis]), parts - 1, replace=False))
        lengths = np.diff([0, *cuts, x.shape[axis]])
        return move(b, "Split", x, b.constant(lengths), outputs=parts, **made)
    return move(b, "Split", x, outputs=parts, **made | ({"num_outputs": parts} if b.opset >= 18 else {}))


def cut(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    axes = [int(a) for a in b.random.choice(len(x.shape), b.whole(1, len(x.shape)), replace=False)]
    rows = []
    for axis in axes:
        length, step = x.shape[axis], b.one(1, 1, 2, 3, -1, -2)
        first, last = (b.whole(0, length - 1), 2**40) if step > 0 else (b.whole(0, length - 1), -(2**40))
        last = b.whole(first + 1, length) if step > 0 and b.any(0.5) else last
        rows.append((first - (length if b.any(0.2) else 0), last, axis - (len(x.shape) if b.any(0.2) else 0), step))
    starts, ends, axes, steps = zip(*rows, strict=True)
    constants = [b.constant(v) for v in (starts, ends, axes)]
    if any(s != 1 for s in steps) or b.any(0.5):
        constants.append(b.constant(steps))
    return move(b, "Slice", x, *constants)


def pad(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    mode = b.one("constant", "constant", "reflect", "edge", *(["wrap"] if b.opset >= 19 else []))
    pads = [b.whole(0, 2) if b.any(0.6) else 0 for _ in x.shape * 2]
    if len(x.shape) == 4:
        pads[0] = pads[1] = pads[4] = pads[5] = 0 if b.any(0.8) else 1
    if b.any(0.1):
        pads[-1] = -1
    value, constants = b.dequantise(x), [b.constant(pads)]
    if mode == "constant" and b.any(0.6):
        constants.append(b.constant(float(b.one(0, 0.5, -1, 3)), np.float32))
    return b.give(b.node("Pad", [value, *constants], **({"mode": mode} if mode != "constant" or b.any(0.3) else {})), x.codes)


def factor(b: Builder, n: int) -> int:
    return b.one(*(k for k in range(1, n + 1) if n % k == 0))


def reshape(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    rest = int(np.prod(x.shape[1:]))
    rows = factor(b, rest)
    new = b.one([rest], [rows, rest // rows], [1, rows, rest // rows], [rows, 1, rest // rows], [rows, factor(b, rest // rows), -1])
    first = b.one(0, x.shape[0]) if not b.dynamic else 0
    spec = [first, *new] if -1 in new or b.any(0.6) else b.one([-1, *new], [0, *new[:-1], -1])
    if b.any(0.1) and not b.dynamic:
        spec = [-1]
    return move(b, "Reshape", x, b.constant(spec))


def reshape_like(b: Builder):
    """A new shape that is computed from another, as exporters write `x.view(x.size(0), -1)`."""
    x = b.pick(lambda shape: len(shape) >= 2)
    first = b.node("Gather", [b.node("Shape", [b.dequantise(x)]), b.constant(0)], axis=0)
    parts = [b.node("Unsqueeze", [first, b.constant([0])]), b.constant([-1])]
    return b.give(b.node("Reshape", [b.dequantise(x), b.node("Concat", parts, axis=0)]), x.codes)


def flatten(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    return move(b, "Flatten", x, axis=b.one(1, 1, b.whole(-len(x.shape), len(x.shape))))


def squeeze(b: Builder):
    x = b.pick(lambda shape: 1 in shape[1:])
    axes = [k for k, n in enumerate(x.shape) if n == 1 and (k > 0 or not b.dynamic)]
    return move(b, "Squeeze", x, *([b.constant(axes[: b.whole(1, len(axes))])] if b.any(0.9) else []))


def unsqueeze(b: Builder):
    x = b.pick(lambda shape: len(shape) <= 4)
    return move(b, "Unsqueeze", x, b.constant([b.whole(1 if x.shape else 0, len(x.shape))]))


def transpose(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 2)
    order = [int(p) for p in b.random.permutation(len(x.shape))]
    if b.any(0.6):
        order = [0, *(p for p in order if p != 0)]
    if b.any(0.3) and len(order) == 4:
        order = b.one([0, 2, 3, 1], [0, 3, 1, 2])
    return move(b, "Transpose", x, **({"perm": order} if b.any(0.95) else {}))


def expand(b: Builder):
    x = b.pick(lambda shape: 1 in shape[1:] or b.any(0.1))
    shape = [n if n > 1 else b.whole(1, 4) for n in x.shape[1:]]
    return move(b, "Expand", x, b.constant([1, *shape] if b.any(0.7) else shape))


def tile(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    return move(b, "Tile", x, b.constant([1, *(b.one(1, 1, 2, 3) for _ in x.shape[1:])]))


def depth_to_space(b: Builder):
    x = b.pick(lambda shape: len(shape) == 4)
    block = b.one(2, 2, 1, 3)
    return move(b, "DepthToSpace", x, blocksize=block, **({"mode": b.one("DCR", "CRD")} if b.any(0.8) else {}))


def space_to_depth(b: Builder):
    return move(b, "SpaceToDepth", b.pick(lambda shape: len(shape) == 4), blocksize=b.one(2, 2, 1, 3))


def gather(b: Builder):
    x = b.pick(lambda shape: len(shape) >= 1)
    axis = b.whole(0 if b.any(0.2) else min(1, len(x.shape) - 1), len(x.shape) - 1)
    length = x.shape[axis]
    indices = b.random.integers(-length, length, b.one((), (1,), (3,), (2, 2)))
    return move(b, "Gather", x, b.constant(indices), axis=axis)


def resize(b: Builder):
    x = b.pick(lambda shape: len(shape) == 4 or (len(shape) == 3 and b.any(0.3)))
    mode = b.one("nearest", "nearest", "linear", "linear", "cubic")
    made: dict = {"mode": mode}
    ways = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize"]
    if b.any(0.8):
        made["coordinate_transformation_mode"] = b.one("half_pixel", "asymmetric", *ways)
    if mode == "nearest" and b.any(0.8):
        made["nearest_mode"] = b.one("floor", "round_prefer_floor", "round_prefer_ceil", "ceil")
    if mode == "cubic" and b.any(0.5):
        made["cubic_coeff_a"] = -0.5
    if b.any(0.1):
        made["exclude_outside"] = 1
    rank = len(x.shape)
    if b.any(0.6):
        scales = [1.0, 1.0, *(float(b.one(2, 2, 1, 0.5, 1.5, 3, 0.7)) for _ in x.shape[2:])]
        last = ["", b.constant(scales, np.float32)]
    elif b.dynamic:
        raise ImpossibleUnit
    else:
        last = ["", "", b.constant([*x.shape[:2], *(b.whole(1, 3 * n) for n in x.shape[2:])])]
    region = b.constant([0.0] * rank + [1.0] * rank, np.float32) if "tf_crop" in made.get("coordinate_transformation_mode", "") else ""
    return b.give(b.node("Resize", [b.dequantise(x), region, *last[1:]], **made), x.codes)


def position(b: Builder) -> None:
    """ArgMax and TopK give integers, which can only leave the graph."""
    x = b.pick(lambda shape: len(shape) >= 2)
    axis = b.whole(1, len(x.shape) - 1)
    value = b.dequantise(x) if b.any(0.8) else x.name
    if b.any(0.7):
        b.outputs.append(b.node(b.one("ArgMax", "ArgMin"), [value], axis=axis, keepdims=b.whole(0, 1)))
    else:
        first = b.node("TopK", [b.dequantise(x), b.constant([b.whole(1, x.shape[axis])])], 2, axis=axis)
        b.outputs += [first, f"{first}.1"]

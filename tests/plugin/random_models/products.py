"""Units that multiply and sum: Conv, ConvTranspose, Gemm, MatMul."""

import numpy as np

from .builder import Builder, ImpossibleUnit, Tensor

# Scales that a bias may have instead of the product: rounding of another order, the tolerance, and beyond it.
OFF = [1 + 1e-7, 1 + 3e-6, 1.004, 1.02, 2.0]


def weights(b: Builder, shape: list[int], axis: int, depth: int) -> tuple[str, np.ndarray]:
    """Constant weights that keep the size of what they are multiplied with, and their scales."""
    kind = b.style.element(b.random, b.style.weights)
    lowest = int(np.iinfo(kind).min)
    per_channel = b.any(b.style.per_channel)
    spread = b.one(127, 127, 60, 3)
    codes = np.clip(np.rint(b.random.standard_normal(shape) * spread / 2.5), -127 if b.any(0.7) else -128, 127).astype(np.int64)
    if b.any(0.05):
        codes[...] = b.one(0, 127, -128)
    scale = 2.5 / spread / np.sqrt(depth) * np.exp(b.random.normal(0, 0.4, shape[axis] if per_channel else 1))
    scale = 2.0 ** np.rint(np.log2(scale)) if b.any(0.3) else scale
    if b.any(b.style.odd):
        scale[b.whole(0, len(scale) - 1)] *= b.one(1e-10, 1e4)
    scale = scale.astype(np.float32)
    zero = 128 + lowest if b.any(0.8) else b.whole(lowest, lowest + 255)
    constant = (codes + 128 + lowest).astype(kind)
    if b.any(0.05):  # weights that are still floats
        return b.constant((constant.astype(np.float32) - zero) * aligned(scale, shape, axis), np.float32), scale
    inputs = [b.constant(constant, kind), b.constant(scale if per_channel else scale[0], np.float32)]
    inputs.append(b.constant(np.full(len(scale), zero) if per_channel else zero, kind))
    return b.node("DequantizeLinear", inputs, **({"axis": axis - len(shape) * int(b.any(0.1))} if per_channel else {})), scale


def aligned(scale: np.ndarray, shape: list[int], axis: int) -> np.ndarray:
    return scale.reshape([-1 if k == axis else 1 for k in range(len(shape))]) if len(scale) > 1 else scale


def bias(b: Builder, x: Tensor, scale: np.ndarray, count: int) -> str:
    """32-bit integers whose scale is the product of the two others, or nearly, or not."""
    values = b.random.normal(0, 0.5 * float(np.abs(b.values[x.name].astype(np.float32) - x.codes.zero).mean() * x.codes.scale + 1e-9), count)
    if b.any(0.08):
        return b.constant(values, np.float32)
    product = (x.codes.scale * scale).astype(np.float32)
    with np.errstate(all="ignore"):
        codes = np.clip(np.nan_to_num(np.rint(values / product)), -(2**31), 2**31 - 1)
    if b.any(0.03):
        codes[b.whole(0, count - 1)] = b.one(2**31 - 1, -(2**31))
    if b.any(0.12):
        product = (product * np.float32(b.one(*OFF))).astype(np.float32)
    inputs = [b.constant(codes, np.int32), b.constant(product if len(product) > 1 else product[0], np.float32)]
    if b.any(0.7):
        inputs.append(b.constant(np.zeros(len(product)) if len(product) > 1 else 0, np.int32))
    return b.node("DequantizeLinear", inputs, **({"axis": 0} if len(product) > 1 else {}))


def window(b: Builder, spatial: tuple[int, ...], largest: int = 5) -> dict:
    """Kernel, strides, dilations and padding in any of their notations; the kernel may be larger than the image."""
    rank = len(spatial)
    kernel = [b.whole(1, largest) for _ in spatial]
    if b.any(0.4):
        kernel = [b.one(1, 3)] * rank
    made: dict = {"kernel_shape": kernel}
    if b.any(0.4):
        made["strides"] = [b.one(1, 2, 2, 3) for _ in spatial]
    dilations = [b.whole(1, 3) for _ in spatial] if b.any(0.2) else [1] * rank
    if b.any(0.3) or max(dilations) > 1:
        made["dilations"] = dilations
    if b.any(0.25):
        made["auto_pad"] = b.one("SAME_UPPER", "SAME_LOWER", "VALID")
    elif b.any(0.7):
        reach = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        made["pads"] = [r // 2 for r in reach] * 2 if b.any(0.6) else [b.whole(0, r) for r in reach * 2]
    return made


def convolution(b: Builder, x: Tensor | None = None, same: bool = False) -> Tensor:
    x = x or b.pick(lambda shape: len(shape) in (3, 4) or (len(shape) == 5 and b.any(0.2)))
    channels, spatial = x.shape[1], x.shape[2:]
    groups = b.one(1, 1, channels, *(g for g in range(1, channels + 1) if channels % g == 0))
    count = channels if b.any(0.4) or same else groups * b.whole(1, max(1, 40 // groups))
    made = window(b, spatial)
    if same:
        made = {"kernel_shape": made["kernel_shape"], "auto_pad": b.one("SAME_UPPER", "SAME_LOWER")}
    kernel = made["kernel_shape"]
    if b.any(0.1):
        del made["kernel_shape"]
    if groups > 1 or b.any(0.5):
        made["group"] = groups
    weight, scale = weights(b, [count, channels // groups, *kernel], 0, channels // groups * int(np.prod(kernel)))
    inputs = [b.dequantise(x), weight]
    if b.any(0.7):
        inputs.append(bias(b, x, scale, count))
    return b.give(b.node("Conv", inputs, **made))


def transposed_convolution(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) in (3, 4))
    channels = x.shape[1]
    groups = b.one(1, 1, 1, *(g for g in range(1, channels + 1) if channels % g == 0))
    made = window(b, x.shape[2:], 4)
    if b.any(0.5):
        made = {"kernel_shape": [2] * (len(x.shape) - 2), "strides": [2] * (len(x.shape) - 2)}
    if b.any(0.15):
        made["output_padding"] = [b.whole(0, s - 1) for s in made.get("strides", [1] * (len(x.shape) - 2))]
    each = b.whole(1, 8)
    weight, scale = weights(b, [channels, each, *made["kernel_shape"]], 1 if b.any(0.9) else 0, channels // groups)
    inputs = [b.dequantise(x), weight]
    if b.any(0.6):
        inputs.append(bias(b, x, scale if len(scale) == each * groups else scale[:1], each * groups))
    return b.give(b.node("ConvTranspose", inputs, group=groups, **made))


def fully_connected(b: Builder) -> Tensor:
    x = b.pick(lambda shape: len(shape) == 2)
    made: dict = {}
    if b.any(0.1):
        made["transA"] = 1
    depth, count = x.shape[0 if made else 1], b.whole(1, b.one(12, 70))
    across = b.any(0.5)
    if across:
        made["transB"] = 1
    if b.any(0.1):
        made["alpha"] = float(b.one(0.5, 1.5, 0.1))
    if b.any(0.1):
        made["beta"] = float(b.one(0.5, 0.0, 1.0))
    weight, scale = weights(b, [count, depth] if across else [depth, count], 0 if across else 1, depth)
    inputs = [b.dequantise(x), weight]
    if b.any(0.7):
        inputs.append(bias(b, x, scale, count))
    return b.give(b.node("Gemm", inputs, **made))


def matrix(b: Builder) -> Tensor:
    """By constant weights on the right, mostly; on the left, or one matrix for each of a batch, sometimes."""
    x = b.pick(lambda shape: len(shape) >= 2)
    if b.any(0.1):
        weight, _ = weights(b, [b.whole(1, 20), x.shape[-2]], 0, x.shape[-2])
        return b.give(b.node("MatMul", [weight, b.dequantise(x)]))
    depth, count = x.shape[-1], b.whole(1, b.one(12, 70))
    shape = [*x.shape[:-2], depth, count] if b.any(0.1) and len(x.shape) > 2 else [depth, count]
    weight, _ = weights(b, shape, len(shape) - 1, depth)
    y = b.node("MatMul", [b.dequantise(x), weight])
    if b.any(0.2):  # a bias as exporters write one
        y = b.node("Add", [y, b.constant(b.random.standard_normal(count), np.float32)])
    return b.give(y)


def matrices(b: Builder) -> Tensor:
    """A product of two activations: a tensor with itself turned, or with another that fits."""
    x = b.pick(lambda shape: len(shape) >= 2)
    fitting = [y for y in b.flow if len(y.shape) >= 2 and y.shape[-2] == x.shape[-1]]
    if fitting and b.any(0.7):
        return b.give(b.node("MatMul", [b.dequantise(x), b.dequantise(b.one(*fitting))]))
    order = list(range(len(x.shape)))
    order[-2:] = order[:-3:-1]
    if len(order) < 2:
        raise ImpossibleUnit
    turned = b.quantise(b.node("Transpose", [b.dequantise(x)], perm=order), x.codes)
    pair = [b.dequantise(x), b.dequantise(turned)]
    return b.give(b.node("MatMul", pair if b.any(0.7) else pair[::-1]))

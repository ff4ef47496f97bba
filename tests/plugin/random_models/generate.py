"""From a seed to a case: which units, in which topology, with which ends, and what the model is fed."""

import numpy as np
import onnx

from . import functions, integers, moves, products
from .break_model import break_model
from .builder import Builder, ImpossibleUnit, Tensor
from .case import Case, Feeds
from .codes import Style

# Drawn from as written: what stands twice comes twice as often.
PRODUCTS = [products.convolution] * 4 + [products.matrix, products.fully_connected, products.transposed_convolution, products.matrices]
FUNCTIONS = [functions.function] * 2 + [functions.pair] * 3 + [functions.expression, functions.swish, functions.normalisation, functions.normalised]
RARE = [functions.softmax, functions.island, functions.choice, moves.position]
MOVES = [
    *[moves.largest, moves.average, moves.whole_image, moves.reduction, moves.concatenation, moves.concatenation],
    *[moves.split, moves.cut, moves.pad, moves.reshape, moves.reshape_like, moves.flatten, moves.squeeze, moves.unsqueeze],
    *[moves.transpose, moves.expand, moves.tile, moves.depth_to_space, moves.space_to_depth, moves.gather, moves.resize],
]
INTEGERS = [integers.convolution, integers.convolution, integers.matrix, integers.pair, integers.function]
OPSETS = [13, 14, 15, 17, 17, 18, 19, 20, 21]


def residual(b: Builder) -> Tensor:
    """A branch of convolutions added to what it came from."""
    x = b.pick(lambda shape: len(shape) in (3, 4))
    y = x
    for _ in range(b.whole(1, 2)):
        y = products.convolution(b, y, same=True)
    if x.shape != y.shape:
        raise ImpossibleUnit
    terms = [b.dequantise(x), b.dequantise(y)]
    return b.give(b.node("Add", terms if b.any(0.5) else terms[::-1]))


def diamond(b: Builder) -> Tensor:
    """Split in channels, something done to each part, joined again."""
    parts = []
    for part in moves.split(b):
        x = part.codes.restore(b.values[part.name])
        y = functions.unary(b, b.dequantise(part)) if x.ndim < 3 or b.any(0.4) else b.dequantise(products.convolution(b, part, same=True))
        parts.append(b.dequantise(b.give(y)) if b.any(0.7) else y)
    return b.give(b.node("Concat", parts, axis=1))


def gate(b: Builder) -> Tensor:
    """Squeeze and excite: a factor for each channel, from the mean of all."""
    x = b.pick(lambda shape: len(shape) == 4)
    mean = b.give(b.node("GlobalAveragePool", [b.dequantise(x)]))
    y = products.convolution(b, mean, same=True)
    factor = b.give(b.node(b.one("Sigmoid", "HardSigmoid"), [b.dequantise(y)]))
    return b.give(b.node("Mul", [b.dequantise(x), b.dequantise(factor)]))


# A network as others are: what every quantised CNN has, and little else.
PLAIN = [
    *[products.convolution] * 4 + [residual, gate, functions.swish, functions.pair, functions.pair, functions.function],
    *[moves.largest, moves.average, moves.concatenation, moves.cut, moves.transpose, moves.reshape, moves.flatten],
    *[products.fully_connected, products.matrix, moves.resize, moves.whole_image, moves.reduction, moves.pad],
]
KINDS = ["plain"] * 10 + ["mixed"] * 8 + ["few"] * 4 + ["integer", "float", "broken"]
BLOCKS = [residual, diamond, gate]


def generate(seed: int) -> Case:
    """The case of this seed, always the same."""
    random = np.random.default_rng([seed, 4])
    while True:
        case = draw(random)
        if case:
            return case


def draw(random: np.random.Generator) -> Case | None:
    kind = str(random.choice(KINDS))
    style = Style.plain(random) if kind == "plain" else Style.random(random)
    # From opset 21 on the CPU provider makes int8 models that it then refuses itself.
    opset = int(random.choice(OPSETS if style.activations == "u8" else OPSETS[:-1]))
    b = Builder(random, style, opset, int(random.integers(1, 4)), bool(random.random() < 0.3))
    for _ in range(b.one(1, 1, 1, 2, 3)):
        start(b)
    units = choose(b, kind)
    for _ in range(b.whole(1, 3) if kind == "few" else b.whole(2, 14)):
        b.attempt(b.one(*units))
    if not b.nodes:
        return None
    finish(b)
    used = {name for node in b.nodes for name in node.input} | set(b.outputs)
    b.inputs = {name: codes for name, codes in b.inputs.items() if name in used}
    model = b.model()
    if kind == "float":
        strip_quantisation(model)
    if kind == "broken":
        break_model(b, model)
    batches = [b.batch, 1, b.whole(1, 5), b.batch] if b.dynamic else [b.batch] * 3
    if b.dynamic and b.any(0.04):
        batches.append(0)
    feeds = [feed(b, batch, index) for index, batch in enumerate(batches)]
    return Case(model.SerializeToString(), feeds, b.one(1, 1, 2))


def choose(b: Builder, kind: str) -> list:
    """What this model is made of: not all of everything, or all models would be alike."""
    if kind == "plain":
        return PLAIN
    if kind == "integer":
        return [*INTEGERS, *INTEGERS, *MOVES] if b.any(0.3) else INTEGERS
    all_units = [*PRODUCTS, *PRODUCTS, *FUNCTIONS, *FUNCTIONS, *MOVES, *BLOCKS, *RARE]
    if b.any(0.1):
        all_units += [*INTEGERS, integers.dynamic]
    if b.any(0.5):  # a network without what is refused most
        rare = set(RARE)
        all_units = [unit for unit in all_units if unit not in rare]
    return [b.one(*all_units) for _ in range(b.whole(3, 25))]


def start(b: Builder) -> None:
    """An input: floats and a Q, or codes."""
    side = b.one(4, 9, 16, 20)
    shape = b.one(
        *[[b.whole(1, 12), b.whole(1, side), b.whole(1, side)]] * 6,
        [b.one(3, 8, 16, 32, 48), b.whole(2, 8), b.whole(2, 8)],
        [b.whole(1, 16), b.whole(1, 40)],
        [b.whole(1, b.one(10, 80, 600))],
    )
    if b.flow and b.any(0.6):
        shape = list(b.flow[0].shape[1:])
    values = b.random.standard_normal([b.batch, *shape]) * np.exp(b.random.normal(0, 2)) + b.one(0, 0, 1)
    if b.any(0.2):
        values = np.abs(values)
    values = values.astype(np.float32)
    codes = b.style.codes(b.random, values)
    if b.any(0.7):
        b.add(b.quantise(b.input(values, codes), codes))
    else:
        b.add(Tensor(b.input(codes.quantise(values), codes), codes, values.shape))


def finish(b: Builder) -> None:
    """Outputs: all that nobody reads, and sometimes what somebody does; as codes, as floats, behind a float operator."""
    read = {name for node in b.nodes for name in node.input}
    for tensor in b.flow:
        if tensor.name in b.inputs:
            continue
        if tensor.name not in read or b.any(0.08):
            if b.any(0.4):
                b.outputs.append(tensor.name)
            else:
                b.attempt(lambda b, tensor=tensor: leave(b, tensor))
    made = [name for node in b.nodes for name in node.output]
    if b.any(0.06) or not b.outputs:
        b.outputs.append(b.one(*made) if b.outputs else made[-1])
    if b.any(0.3):
        b.outputs = [b.outputs[k] for k in b.random.permutation(len(b.outputs))]


def leave(b: Builder, tensor: Tensor) -> None:
    value = b.dequantise(tensor)
    if b.any(0.12):
        value = b.node("Softmax", [value], axis=-1) if b.any(0.5) else functions.unary(b, value)
    b.outputs.append(value)


def strip_quantisation(model: onnx.ModelProto) -> None:
    """The float model that was there before: without the Q and DQ between operators."""
    source: dict[str, str] = {}
    constants = {t.name for t in model.graph.initializer}
    kept, ends = [], {o.name for o in model.graph.output}
    for node in model.graph.node:
        node.input[:] = [source.get(name, name) for name in node.input]
        first = node.input[0] if node.input else ""
        if node.op_type == "QuantizeLinear" and node.output[0] not in ends:
            source[node.output[0]] = first
            continue
        restored = {n.output[0] for n in kept if n.op_type == "QuantizeLinear"} | {i.name for i in model.graph.input}
        if node.op_type == "DequantizeLinear" and first not in constants and first not in restored and node.output[0] not in ends:
            source[node.output[0]] = first
            continue
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def feed(b: Builder, batch: int, index: int) -> Feeds:
    """The first like the sample, the others of another size, with all codes, or with what no camera gives."""
    feeds = {}
    for name, codes in b.inputs.items():
        sample = b.values[name]
        shape = (batch, *sample.shape[1:])
        how = "like" if index == 0 else b.one("like", "all", "all", "ends", "flat", "odd")
        drawn = b.random.integers(codes.lowest, codes.highest + 1, shape)
        if how == "like":
            drawn = b.random.choice(codes.quantise(sample).reshape(-1) if sample.dtype == np.float32 else sample.reshape(-1), shape)
        if how == "ends":
            drawn = b.random.choice([codes.lowest, codes.highest], shape)
        if how == "flat":
            drawn = np.full(shape, b.one(codes.lowest, codes.highest, codes.zero))
        if sample.dtype != np.float32:
            feeds[name] = drawn.astype(sample.dtype)
            continue
        # Between the codes and a little beyond them; half steps are ties.
        steps = drawn - float(codes.zero) + (b.random.choice([0, 0.5, -0.5, 0.25], shape) if b.any(0.5) else b.random.uniform(-2, 2, shape))
        with np.errstate(all="ignore"):
            values = steps.astype(np.float32) * codes.scale
        if how == "odd" and values.size:
            places = b.random.integers(0, values.size, 3)
            values.reshape(-1)[places] = b.random.choice([np.inf, -np.inf, np.nan, 1e38, -1e38, -0.0, 1e-40], 3)
        feeds[name] = values
    return feeds

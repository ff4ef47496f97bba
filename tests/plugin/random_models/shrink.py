"""Makes a failing case smaller while it fails: fewer outputs, nodes, feeds and attributes, shorter dimensions."""

from collections.abc import Callable, Iterator

import numpy as np
import onnxruntime as ort
from onnx import ValueInfoProto, numpy_helper

from .builder import value_info
from .case import Case, Feeds

# A bound on the work: how often a smaller case may be tried.
MOST_TRIES = 600


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found for which `fails` still holds."""
    tries = 0
    found = True
    while found:
        found = False
        for smaller in candidates(case):
            tries += 1
            if tries > MOST_TRIES:
                return case
            if fails(smaller):
                case, found = smaller, True
                break
    return case


def candidates(case: Case) -> Iterator[Case]:
    """The boldest first."""
    if len(case.feeds) > 1:
        for feeds in case.feeds:
            yield Case(case.model, [feeds], case.threads)
    if case.threads > 1:
        yield Case(case.model, case.feeds, 1)
    outputs = list(case.proto.graph.output)
    if len(outputs) > 1:
        for output in outputs:
            yield with_ends(case, [output], {})
    if len(case.feeds) == 1:
        yield from cuts(case)
    yield from bypasses(case)
    yield from attributes(case)
    if len(case.feeds) == 1:
        yield from shorter(case)
    yield from simpler_constants(case)


def taps(case: Case) -> Feeds:
    """Every value of the graph on the only feed, as far as the CPU provider gives them."""
    model = case.proto
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(ValueInfoProto(name=n) for node in model.graph.node for n in node.output if n and n not in present)
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(None, case.feeds[0])
    except Exception:  # a broken model is shrunk without cuts
        return {}
    return dict(zip([o.name for o in session.get_outputs()], values, strict=True)) | case.feeds[0]


def cuts(case: Case) -> Iterator[Case]:
    """Ends the graph earlier, or starts it later, at any value; those that drop most come first."""
    values = taps(case)
    graph = case.proto.graph
    size = len(graph.node)
    made: list[Case] = []
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        outputs = [name for name in node.output if name in values]
        if not outputs:
            continue
        ends = [value_info(name, values[name].dtype, None) for name in outputs]
        made.append(with_ends(case, ends, {}))
        made.append(with_ends(case, list(graph.output), {name: values[name] for name in outputs}))
        before = [value_info(name, values[name].dtype, None) for name in node.input if name in values and name not in constants]
        last = {output.name for output in graph.output} & set(node.output)
        if before and last:
            others = [output for output in graph.output if output.name not in last]
            made.append(with_ends(case, [*others, *before], {}))
    smaller = [(len(new.proto.graph.node), new) for new in made]
    yield from (new for count, new in sorted(smaller, key=lambda pair: pair[0]) if count < size)


def with_ends(case: Case, outputs: list[ValueInfoProto], inputs: Feeds) -> Case:
    """The case with these outputs only, and `inputs` fed instead of computed; what nobody needs is gone."""
    model = case.proto
    graph = model.graph
    needed, kept = {output.name for output in outputs}, []
    for node in reversed(graph.node):
        if needed & set(node.output) and not set(inputs) & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    declared = [value for value in graph.input if value.name in needed]
    declared += [value_info(name, value.dtype, value.shape) for name, value in inputs.items() if name in needed]
    constants = [t for t in graph.initializer if t.name in needed]
    outputs = [output for output in outputs if output.name not in inputs]
    names = {value.name for value in declared}
    replace(graph, kept[::-1], declared, outputs, constants)
    return Case(model.SerializeToString(), [{n: v for n, v in (feeds | inputs).items() if n in names} for feeds in case.feeds], case.threads)


def replace(graph, nodes, inputs, outputs, constants) -> None:
    copies = [[type(item).FromString(item.SerializeToString()) for item in items] for items in (nodes, inputs, outputs, constants)]
    for field, items in zip((graph.node, graph.input, graph.output, graph.initializer), copies, strict=True):
        del field[:]
        field.extend(items)
    del graph.value_info[:]


def bypasses(case: Case) -> Iterator[Case]:
    """Without one node, or without one Q and its DQ: what read them reads what they read."""
    graph = case.proto.graph
    ends = {output.name for output in graph.output}
    constants = {t.name for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.input else None
        pairs = [(node.output[0], node.input[0])] if node.input and node.input[0] not in constants else []
        if node.op_type == "DequantizeLinear" and maker and maker.op_type == "QuantizeLinear":
            pairs.append((node.output[0], maker.input[0]))
        for name, instead in pairs:
            if name in ends:
                continue
            model = case.proto
            for other in model.graph.node:
                other.input[:] = [instead if n == name else n for n in other.input]
            yield with_ends(Case(model.SerializeToString(), case.feeds, case.threads), list(model.graph.output), {})


def attributes(case: Case) -> Iterator[Case]:
    """Without one attribute."""
    for index, node in enumerate(case.proto.graph.node):
        for position in range(len(node.attribute)):
            model = case.proto
            del model.graph.node[index].attribute[position]
            yield Case(model.SerializeToString(), case.feeds, case.threads)
        if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) > 2:
            model = case.proto
            del model.graph.node[index].input[2]
            yield with_ends(Case(model.SerializeToString(), case.feeds, case.threads), list(model.graph.output), {})


def shorter(case: Case) -> Iterator[Case]:
    """With one dimension of an input halved or one less; outputs lose their declared shapes."""
    feeds = case.feeds[0]
    for name, value in feeds.items():
        for axis, length in enumerate(value.shape):
            parts = {(0, length // 2), (length // 2, length), (0, length - 1), (1, length)} if length > 1 else set()
            for first, last in sorted(parts):
                cut = np.ascontiguousarray(value[(slice(None),) * axis + (slice(first, last),)])
                model = case.proto
                for declared in model.graph.input:
                    if declared.name == name:
                        declared.CopyFrom(value_info(name, cut.dtype, cut.shape))
                for output in model.graph.output:
                    output.type.tensor_type.ClearField("shape")
                yield Case(model.SerializeToString(), [feeds | {name: cut}], case.threads)


def simpler_constants(case: Case) -> Iterator[Case]:
    """With a float constant rounded to a power of two, an integer one that is all the same, or one scale for all channels."""
    for index, tensor in enumerate(case.proto.graph.initializer):
        try:
            values = numpy_helper.to_array(tensor)
        except Exception:  # a constant whose bytes do not fit its shape
            continue
        options = []
        if values.dtype == np.float32:
            with np.errstate(all="ignore"):
                options.append(np.sign(values) * np.exp2(np.rint(np.log2(np.abs(values)))))
        if values.dtype in (np.int8, np.uint8, np.int32) and values.ndim:
            options += [np.zeros_like(values), np.broadcast_to(values.reshape(-1)[:1], [values.size]).reshape(values.shape)]
        for option in options:
            option = np.asarray(option).astype(values.dtype)
            if np.array_equal(option, values, equal_nan=values.dtype == np.float32) or not np.all(np.isfinite(option)):
                continue
            model = case.proto
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(option, tensor.name))
            yield Case(model.SerializeToString(), case.feeds, case.threads)


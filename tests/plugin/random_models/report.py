"""What a run prints: a graph that one can read, and the table of what was tried and what the NPU took."""

from collections import Counter

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from .judge import Verdict


def graph(model: ModelProto) -> str:
    """One line a node: `conv_5 = Conv(dq_1, dq_4) pads=[0, 0, 1, 1]`; small constants stand where they are read."""
    constants = {tensor.name: constant(tensor) for tensor in model.graph.initializer}
    opsets = ", ".join(f"{o.domain or 'onnx'} {o.version}" for o in model.opset_import)
    lines = [f"opset {opsets}", *(f"input {value(i)}" for i in model.graph.input)]
    for node in model.graph.node:
        inputs = ", ".join(constants.get(name, name or "-") for name in node.input)
        made = " ".join(f"{a.name}={attribute(a)}" for a in node.attribute)
        lines.append(f"{', '.join(node.output)} = {node.op_type}({inputs}) {made}".rstrip())
    return "\n".join([*lines, *(f"output {value(o)}" for o in model.graph.output)])


def attribute(found) -> object:
    read = helper.get_attribute_value(found)
    return read.decode(errors="replace") if isinstance(read, bytes) else list(read) if found.ints else read


def value(info) -> str:
    kind = info.type.tensor_type
    element = helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "?"
    if not kind.HasField("shape"):
        return f"{info.name}: {element}"
    return f"{info.name}: {element}[{', '.join(d.dim_param or str(d.dim_value) for d in kind.shape.dim)}]"


def constant(tensor) -> str:
    try:
        values = numpy_helper.to_array(tensor)
    except Exception:  # bytes that do not fit the shape
        return f"{list(tensor.dims)} (damaged)"
    if values.size <= 8:
        shown = " ".join(f"{v:.9g}" if values.dtype.kind == "f" else str(v) for v in values.reshape(-1))
        return f"{shown}:{values.dtype}" if values.ndim == 0 else f"[{shown}]:{values.dtype}"
    return f"{values.dtype}{list(values.shape)} {np.min(values):.6g}..{np.max(values):.6g}"


class Tally:
    """Sums over the cases of a run."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self.values = 0

    def add(self, verdict: Verdict) -> None:
        self.kinds[verdict.kind] += 1
        self.taken.update(verdict.taken)
        self.left.update(verdict.left)
        self.values += verdict.values

    def table(self) -> str:
        both = self.taken + self.left
        rows = [f"{kind:<24}{both[kind]:>8}{self.taken[kind]:>8}{100 * self.taken[kind] // both[kind]:>5} %" for kind, _ in both.most_common()]
        nodes, taken = both.total(), self.taken.total()
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        share = 100 * taken / max(1, nodes)
        end = f"{self.kinds.total()} models: {counts}; {nodes} nodes, {taken} ({share:.1f} %) on the NPU; {self.values} values compared"
        return "\n".join([f"{'operator':<24}{'nodes':>8}{'on NPU':>8}{'share':>7}", *rows, end])

"""Damage to a model: what a broken exporter or a bad disk makes. Both providers must refuse it, or both run it."""

import numpy as np
from onnx import ModelProto, numpy_helper

from .builder import Builder


def break_model(b: Builder, model: ModelProto) -> None:
    for _ in range(b.whole(1, 2)):
        b.one(*WAYS)(b, model.graph)


def node(b: Builder, graph):
    return graph.node[b.whole(0, len(graph.node) - 1)]


def constant(b: Builder, graph):
    return graph.initializer[b.whole(0, len(graph.initializer) - 1)] if graph.initializer else None


def rename_input(b: Builder, graph) -> None:
    found = node(b, graph)
    if found.input:
        found.input[b.whole(0, len(found.input) - 1)] = b.one("nowhere", "", found.output[0], graph.node[-1].output[0])


def swap_inputs(b: Builder, graph) -> None:
    found = node(b, graph)
    found.input[:] = list(found.input)[::-1]


def drop_input(b: Builder, graph) -> None:
    found = node(b, graph)
    if found.input:
        del found.input[-1]


def drop_node(b: Builder, graph) -> None:
    if len(graph.node) > 1:
        del graph.node[b.whole(0, len(graph.node) - 1)]


def change_attribute(b: Builder, graph) -> None:
    for found in b.random.permutation(len(graph.node)):
        if graph.node[found].attribute:
            changed = b.one(*graph.node[found].attribute)
            odd = b.one(0, -1, 2**31, 2**62, -(2**63), 1000)
            changed.i = odd
            if changed.ints:
                changed.ints[b.whole(0, len(changed.ints) - 1)] = odd
            changed.f = b.one(0.0, float("nan"), float("inf"), -1.0)
            if changed.s:
                changed.s = b"NONSENSE"
            return


def shorten_constant(b: Builder, graph) -> None:
    found = constant(b, graph)
    if found and found.raw_data:
        found.raw_data = found.raw_data[:-1] if b.any(0.5) else b""


def reshape_constant(b: Builder, graph) -> None:
    found = constant(b, graph)
    if found and found.dims:
        found.dims[b.whole(0, len(found.dims) - 1)] = b.one(0, -1, 1, 2**40, 2**62)


def retype_constant(b: Builder, graph) -> None:
    found = constant(b, graph)
    if found:
        values = numpy_helper.to_array(found).astype(b.one(np.float32, np.uint8, np.int8, np.int32, np.uint16, np.float64))
        found.CopyFrom(numpy_helper.from_array(values, found.name))


def spoil_scale(b: Builder, graph) -> None:
    scales = [n.input[1] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) > 1]
    for found in graph.initializer:
        if scales and found.name == b.one(*scales) and found.data_type == 1:
            values = np.array(numpy_helper.to_array(found))
            values[...] = b.one(0.0, -0.1, float("nan"), float("inf"), 1e-45)
            found.CopyFrom(numpy_helper.from_array(values, found.name))


def rename_operator(b: Builder, graph) -> None:
    node(b, graph).op_type = b.one("Nonsense", "Relu", "Conv", "MatMul", "Concat", "QuantizeLinear")


def declare_otherwise(b: Builder, graph) -> None:
    found = b.one(*graph.input, *graph.output).type.tensor_type.shape
    if found.dim:
        found.dim[b.whole(0, len(found.dim) - 1)].dim_value = b.one(0, 1, 7, -1, 2**40)


WAYS = [
    *[rename_input, swap_inputs, drop_input, drop_node, change_attribute, change_attribute, shorten_constant],
    *[reshape_constant, retype_constant, spoil_scale, rename_operator, declare_otherwise],
]

//! A graph as bytes, its constants apart: read back, it is the same graph with the same numbers.

use super::error::{BundleError, malformed};
use super::wire::{Reader, Writer};
use crate::exactness::Exactness;
use crate::graph::{
    Attribute, Dim, ElementType, Graph, GraphBuilder, Node, Tensor, TensorType, Value, ValueId,
};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Constants begin at multiples of this in the weights, so that they can be read in place.
const ALIGN: usize = 64;
/// Number of an absent optional input or output.
const ABSENT: u32 = u32::MAX;

/// What of a value is there.
mod has {
    pub(super) const TYPE: u8 = 1;
    pub(super) const SHAPE: u8 = 2;
    pub(super) const CONSTANT: u8 = 4;
    /// The constant's bytes are in a program.
    pub(super) const APART: u8 = 8;
}

/// Kinds of attribute.
mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const INTS: u8 = 2;
    pub(super) const FLOAT: u8 = 3;
    pub(super) const FLOATS: u8 = 4;
    pub(super) const STRING: u8 = 5;
    pub(super) const OTHER: u8 = 6;
}

/// The graph without its constants' bytes; and those, except of constants that are kept `apart`.
pub(super) fn write<'a>(graph: &'a Graph, apart: &BTreeSet<ValueId>) -> (Vec<u8>, Vec<&'a Bytes>) {
    let (mut out, mut weights) = (Writer::default(), Weights::default());
    out.text(graph.name());
    out.count(graph.value_count());
    for id in (0..).map(ValueId).take(graph.value_count()) {
        write_value(&mut out, &mut weights, graph.value(id), apart.contains(&id));
    }
    write_ids(&mut out, graph.inputs().iter().copied().map(Some));
    out.count(graph.node_count());
    for (_, node) in graph.nodes() {
        for text in [&node.name, &node.op, &node.domain] {
            out.text(text);
        }
        write_ids(&mut out, node.inputs.iter().copied());
        write_ids(&mut out, node.outputs.iter().copied());
        out.count(node.attributes.len());
        for (name, attribute) in &node.attributes {
            out.text(name);
            write_attribute(&mut out, attribute);
        }
    }
    write_ids(&mut out, graph.outputs().iter().copied().map(Some));
    out.u8(match graph.exactness() {
        Exactness::Require => 0,
        Exactness::Bounded => 1,
    });
    (out.0, weights.all)
}

/// Constants, as the section of weights holds them.
pub(super) fn join(weights: &[&Bytes]) -> Vec<u8> {
    let mut joined = Vec::new();
    for bytes in weights {
        joined.resize(joined.len().next_multiple_of(ALIGN), 0);
        joined.extend_from_slice(bytes);
    }
    joined
}

/// Constants one behind the other.
#[derive(Default)]
struct Weights<'a> {
    all: Vec<&'a Bytes>,
    end: usize,
}

impl<'a> Weights<'a> {
    /// Where `bytes` will lie.
    fn place(&mut self, bytes: &'a Bytes) -> usize {
        let start = self.end.next_multiple_of(ALIGN);
        self.end = start + bytes.len();
        self.all.push(bytes);
        start
    }
}

/// The graph of [`write`].
pub(super) fn read(structure: Bytes, weights: &Bytes) -> Result<Graph, BundleError> {
    let mut reader = Reader::new(structure);
    let mut builder = GraphBuilder::new(&reader.text()?);
    let count = reader.u32()?;
    for index in 0..count {
        read_value(&mut reader, weights, &mut builder, index)?;
    }
    for input in read_given(&mut reader, count)? {
        builder.add_input(input);
    }
    for _ in 0..reader.u32()? {
        let (name, op, domain) = (reader.text()?, reader.text()?, reader.text()?);
        let (inputs, outputs) = (read_ids(&mut reader, count)?, read_ids(&mut reader, count)?);
        let attributes = reader.list(|reader| Ok((reader.text()?, read_attribute(reader)?)))?;
        let attributes = attributes.into_iter().collect();
        builder.add_node(Node { name, op, domain, inputs, outputs, attributes })?;
    }
    for output in read_given(&mut reader, count)? {
        builder.add_output(output);
    }
    let exactness = match reader.u8()? {
        0 => Exactness::Require,
        1 => Exactness::Bounded,
        _ => return Err(malformed("an exactness is neither `require` nor `bounded`")),
    };
    reader.finish()?;
    let mut graph = builder.finish()?;
    graph.set_exactness(exactness);
    Ok(graph)
}

fn write_value<'a>(out: &mut Writer, weights: &mut Weights<'a>, value: &'a Value, is_apart: bool) {
    let shape = value.ty.as_ref().and_then(|ty| ty.shape.as_ref());
    let flag = |there: bool, flag: u8| if there { flag } else { 0 };
    out.text(&value.name);
    out.u8(flag(value.ty.is_some(), has::TYPE)
        | flag(shape.is_some(), has::SHAPE)
        | flag(value.constant.is_some(), has::CONSTANT)
        | flag(is_apart, has::APART));
    if let Some(ty) = &value.ty {
        out.u32(ty.element.onnx());
    }
    if let Some(shape) = shape {
        out.count(shape.len());
        for dim in shape {
            match dim {
                Dim::Known(length) => {
                    out.u8(0);
                    out.length(*length);
                }
                Dim::Symbol(symbol) => {
                    out.u8(1);
                    out.text(symbol);
                }
            }
        }
    }
    if let Some(constant) = &value.constant {
        out.u32(constant.element.onnx());
        out.count(constant.shape.len());
        for &length in &constant.shape {
            out.length(length);
        }
        if !is_apart {
            out.length(weights.place(&constant.bytes));
            out.length(constant.bytes.len());
        }
    }
}

fn read_value(
    reader: &mut Reader,
    weights: &Bytes,
    builder: &mut GraphBuilder,
    index: u32,
) -> Result<(), BundleError> {
    let id = builder.value(&reader.text()?);
    if id != ValueId(index) {
        return Err(malformed("two values have one name"));
    }
    let flags = reader.u8()?;
    if flags & has::TYPE != 0 {
        let element = ElementType::from_onnx(reader.u32()?);
        let shape = match flags & has::SHAPE {
            0 => None,
            _ => Some(reader.list(read_dim)?),
        };
        builder.set_type(id, TensorType { element, shape });
    }
    if flags & has::CONSTANT != 0 {
        let element = ElementType::from_onnx(reader.u32()?);
        let shape = reader.list(Reader::length)?;
        if flags & has::APART != 0 {
            builder.set_constant_apart(id, element, shape);
            return Ok(());
        }
        let (start, len) = (reader.length()?, reader.length()?);
        let end = start.checked_add(len).filter(|&end| end <= weights.len());
        let end = end.ok_or(malformed("a constant lies outside the weights"))?;
        let tensor = Tensor { element, shape, bytes: weights.slice(start..end) };
        if tensor.expected_bytes().is_none() && element.bytes().is_some() {
            return Err(malformed("the shape of a constant overflows"));
        }
        builder.set_constant(id, tensor)?;
    }
    Ok(())
}

fn read_dim(reader: &mut Reader) -> Result<Dim, BundleError> {
    match reader.u8()? {
        0 => Ok(Dim::Known(reader.length()?)),
        1 => Ok(Dim::Symbol(reader.text()?)),
        _ => Err(malformed("a dimension is neither known nor open")),
    }
}

fn write_ids(out: &mut Writer, ids: impl ExactSizeIterator<Item = Option<ValueId>>) {
    out.count(ids.len());
    for id in ids {
        out.u32(id.map_or(ABSENT, |id| id.0));
    }
}

fn read_ids(reader: &mut Reader, count: u32) -> Result<Vec<Option<ValueId>>, BundleError> {
    reader.list(|reader| match reader.u32()? {
        ABSENT => Ok(None),
        id if id < count => Ok(Some(ValueId(id))),
        _ => Err(malformed("there is no such value")),
    })
}

/// Values none of which is absent.
fn read_given(reader: &mut Reader, count: u32) -> Result<Vec<ValueId>, BundleError> {
    let ids = read_ids(reader, count)?.into_iter().collect::<Option<Vec<_>>>();
    ids.ok_or(malformed("an input or output of the part is absent"))
}

fn write_attribute(out: &mut Writer, attribute: &Attribute) {
    match attribute {
        Attribute::Int(value) => {
            out.u8(kind::INT);
            out.i64(*value);
        }
        Attribute::Ints(values) => {
            out.u8(kind::INTS);
            out.count(values.len());
            for &value in values {
                out.i64(value);
            }
        }
        Attribute::Float(value) => {
            out.u8(kind::FLOAT);
            out.f32(*value);
        }
        Attribute::Floats(values) => {
            out.u8(kind::FLOATS);
            out.count(values.len());
            for &value in values {
                out.f32(value);
            }
        }
        Attribute::String(text) => {
            out.u8(kind::STRING);
            out.text(text);
        }
        Attribute::Other => out.u8(kind::OTHER),
    }
}

fn read_attribute(reader: &mut Reader) -> Result<Attribute, BundleError> {
    Ok(match reader.u8()? {
        kind::INT => Attribute::Int(reader.i64()?),
        kind::INTS => Attribute::Ints(reader.list(Reader::i64)?),
        kind::FLOAT => Attribute::Float(reader.f32()?),
        kind::FLOATS => Attribute::Floats(reader.list(Reader::f32)?),
        kind::STRING => Attribute::String(reader.text()?),
        kind::OTHER => Attribute::Other,
        _ => return Err(malformed("an attribute is of unknown kind")),
    })
}

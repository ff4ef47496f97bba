//! Every stage as text, for people and for golden files.

use crate::emit::Emitted;
use crate::graph::{Graph, NodeId, ValueId, shape_text};
use crate::lower::{Form, Function, Home, Normalise, Op, OpKind, Ops, Pool, TensorId};
use crate::partition::Plan;
use crate::program::Compiled;
use crate::quantize::Units;
use std::fmt::Write;

/// The nodes of a graph, one a line.
pub fn graph(graph: &Graph) -> String {
    let mut text = String::new();
    for (id, node) in graph.nodes() {
        let values = |values: &[Option<ValueId>]| {
            let names = values.iter().map(|value| value.map_or("-".into(), |id| name(graph, id)));
            names.collect::<Vec<_>>().join(", ")
        };
        let (inputs, outputs) = (values(&node.inputs), values(&node.outputs));
        line(&mut text, format_args!("{:>4} {node}({inputs}) -> {outputs}", id.0));
    }
    text
}

/// Units with their nodes, then what belongs to none.
pub fn units(graph: &Graph, units: &Units) -> String {
    let mut text = String::new();
    for unit in &units.units {
        let nodes: Vec<String> = unit.nodes.iter().map(|node| node.0.to_string()).collect();
        let inputs: Vec<String> = unit.inputs.iter().map(|&id| name(graph, id)).collect();
        line(
            &mut text,
            format_args!(
                "{} {}: {} -> {}  (nodes {})",
                unit.kind.name(),
                graph.node(unit.target),
                inputs.join(", "),
                unit.outputs().map(|id| name(graph, id)).collect::<Vec<_>>().join(", "),
                nodes.join(" ")
            ),
        );
    }
    for ((_, node), verdict) in graph.nodes().zip(&units.of_node) {
        if let Err(refusal) = verdict {
            line(&mut text, format_args!("refused {node}: {refusal}"));
        }
    }
    text
}

/// A plan: its summary and every verdict.
pub fn plan(graph: &Graph, plan: &Plan) -> String {
    let mut text = String::new();
    line(&mut text, format_args!("{}", plan.summary(graph)));
    for verdict in &plan.verdicts {
        let node = graph.node(verdict.node);
        match verdict.taken {
            Some(group) => line(&mut text, format_args!("group {group}: {node}")),
            None => line(&mut text, format_args!("{}: {}", verdict.rule, verdict.reason)),
        }
    }
    text
}

/// Operations, in order, with what their output stages do.
pub fn ops(graph: &Graph, ops: &Ops) -> String {
    let mut text = String::new();
    for op in &ops.ops {
        let reads: Vec<String> = op.reads.iter().map(|&read| tensor(ops, read)).collect();
        let writes = tensor(ops, op.writes);
        let what = what(op);
        let node = graph.node(op.node);
        line(&mut text, format_args!("{what}: {} -> {writes}  ; {node}", reads.join(", ")));
    }
    text
}

/// Memory of the job: each tensor's bytes.
pub fn memory(compiled: &Compiled) -> String {
    let mut text = String::new();
    let memory = &compiled.memory;
    let (sram, scratch) = (memory.sram_bytes, memory.scratch_bytes);
    line(&mut text, format_args!("sram {sram} bytes, scratch {scratch} bytes"));
    let ops = &compiled.ops;
    for &index in &compiled.schedule.order {
        let written = ops.ops[index].writes;
        if let Some((space, bytes)) = memory.range(ops, written) {
            let (start, end, name) = (bytes.start, bytes.end, &ops.tensor(written).name);
            line(&mut text, format_args!("{space:?} {start:>8} .. {end:<8} {name}"));
        }
    }
    text
}

/// The program in the text form of the command set.
pub fn image(emitted: &Emitted) -> String {
    npu_uapi::text::disassemble(&emitted.image)
}

/// The name of the node that `op_id` leads back to.
pub fn op_name(graph: &Graph, compiled: &Compiled, op_id: u32) -> Option<String> {
    let index = *compiled.emitted.op_ids.get(usize::try_from(op_id).ok()?)?;
    let node: NodeId = compiled.ops.ops.get(index)?.node;
    Some(graph.node(node).name.clone())
}

fn what(op: &Op) -> String {
    let mut text = match &op.kind {
        OpKind::Conv(conv) => {
            let [rows, columns] = conv.weights.kernel;
            let strips = conv.strips.map_or(String::new(), |strips| format!(" strips {strips}"));
            format!("conv {rows}x{columns} groups {}{strips}", conv.groups)
        }
        OpKind::Pair { function: Function::Add(_), .. } => "add".to_owned(),
        OpKind::Pair { function: Function::Multiply(_), .. } => "multiply".to_owned(),
        OpKind::Pair { function: Function::Table(_), .. } => "table of pairs".to_owned(),
        OpKind::Move { fill, parts } => {
            let fill = fill.map_or(String::new(), |code| format!("fill {code}, "));
            format!("{fill}move x{}", parts.len())
        }
        OpKind::Pool { kind: Pool::Max(_), .. } => "max".to_owned(),
        OpKind::Pool { kind: Pool::Average { .. }, .. } => "average".to_owned(),
        OpKind::Pool { kind: Pool::GlobalMean { .. }, .. } => "global mean".to_owned(),
        OpKind::Pool { kind: Pool::Global { .. }, .. } => "global average".to_owned(),
        OpKind::Product { matrices, .. } => {
            let ([m, n, k], turns) = (matrices.size, matrices.turns[0] * matrices.turns[1]);
            format!("product {m}x{n}x{k} x{turns}")
        }
        OpKind::Resize { .. } => "resize".to_owned(),
        OpKind::Softmax { .. } => "softmax".to_owned(),
        OpKind::Reduce { reduction, .. } if reduction.is_mean => "mean of rows".to_owned(),
        OpKind::Reduce { .. } => "sum of rows".to_owned(),
        OpKind::Norm { kind: Normalise::Layer { .. }, .. } => "norm of layers".to_owned(),
        OpKind::Norm { kind: Normalise::Instance { .. }, .. } => "norm of instances".to_owned(),
        OpKind::Norm { kind: Normalise::Staged { .. }, .. } => "norm in stages".to_owned(),
        OpKind::Table(_) => "table".to_owned(),
        OpKind::Channels(_) => "table by channel".to_owned(),
        OpKind::Layout { .. } => "layout".to_owned(),
    };
    let stages = match &op.kind {
        OpKind::Conv(conv) => [
            conv.table_0.is_some().then_some(" +table"),
            conv.addition.map(|a| if a.aux_first { " +add(aux first)" } else { " +add" }),
            conv.table_1.is_some().then_some(" +table"),
        ],
        OpKind::Pair { table, .. } | OpKind::Pool { table, .. } | OpKind::Product { table, .. } => {
            [table.is_some().then_some(" +table"), None, None]
        }
        OpKind::Table(_)
        | OpKind::Channels(_)
        | OpKind::Layout { .. }
        | OpKind::Move { .. }
        | OpKind::Resize { .. }
        | OpKind::Reduce { .. }
        | OpKind::Norm { .. }
        | OpKind::Softmax { .. } => [None; 3],
    };
    text.extend(stages.into_iter().flatten());
    text
}

fn tensor(ops: &Ops, id: TensorId) -> String {
    let tensor = ops.tensor(id);
    let dims = tensor.form.dims();
    let home = match tensor.home {
        Home::Scratch => String::new(),
        Home::Input(index) => format!("in{index} "),
        Home::Output(index) => format!("out{index} "),
    };
    let form = match tensor.form {
        Form::Map { pixel, .. } => format!("pixel {pixel}"),
        Form::Host { element_bytes: 4, .. } => "floats".to_owned(),
        Form::Host { .. } => "codes".to_owned(),
    };
    format!("{home}{}[{}x{}x{}x{} {form}]", tensor.name, dims.n, dims.h, dims.w, dims.c)
}

fn name(graph: &Graph, id: ValueId) -> String {
    let value = graph.value(id);
    match &value.ty {
        Some(ty) if value.producer.is_none() => {
            let shape = ty.shape.as_deref().map_or("[..]".to_owned(), shape_text);
            format!("{} {}{shape}", value.name, ty.element)
        }
        _ => value.name.clone(),
    }
}

fn line(text: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "{args}");
}

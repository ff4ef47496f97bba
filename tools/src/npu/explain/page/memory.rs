//! The memory map: each tensor of the job as a box, from the command that writes it to the last that
//! reads it, over the bytes where it lies.

use super::style::PROGRAMS;
use super::{escape, grouped};
use crate::model::Program;
use ep_npu::allocate::Space;
use npu_uapi::limits::Limits;
use std::fmt::Write as _;
use std::ops::Range;

const LEFT: u64 = 64;
const WIDE: u64 = 1010;
const HIGH: u64 = 230;

/// Both memories.
pub(super) fn draw(program: &Program, limits: &Limits) -> String {
    let mut out = "<h3>Memory over time</h3>".to_owned();
    let before = out.len();
    for (space, what, room) in [
        (Space::Sram, "On-chip memory", Some(limits.sram_bytes)),
        (Space::Scratch, "Scratch memory in DRAM", None),
    ] {
        let boxes = boxes(program, space);
        if !boxes.is_empty() {
            out += &map(&boxes, program.compiled.schedule.order.len(), what, room);
        }
    }
    if out.len() == before {
        out += "<p class=\"quiet\">The program keeps nothing between commands.</p>";
    }
    out
}

/// A tensor: first and last command, bytes, name.
struct Held<'p> {
    start: usize,
    end: usize,
    bytes: Range<u64>,
    name: &'p str,
}

fn boxes(program: &Program, space: Space) -> Vec<Held<'_>> {
    let (ops, schedule) = (&program.compiled.ops, &program.compiled.schedule);
    let mut last = vec![None; ops.tensors.len()];
    for (at, &op) in schedule.order.iter().enumerate() {
        for read in &ops.ops[op].reads {
            last[read.0] = Some(schedule.around(ops, *read, at).end - 1);
        }
    }
    let mut held = Vec::new();
    for (at, &op) in schedule.order.iter().enumerate() {
        let tensor = ops.ops[op].writes;
        let place = program.compiled.memory.range(ops, tensor);
        if let Some((_, bytes)) = place.filter(|(found, _)| *found == space) {
            let written = schedule.around(ops, tensor, at);
            let (start, end) = (written.start, written.end - 1);
            let end = last[tensor.0].unwrap_or(end).max(end);
            held.push(Held { start, end, bytes, name: &ops.tensor(tensor).name });
        }
    }
    held
}

fn map(boxes: &[Held<'_>], commands: usize, what: &str, room: Option<u64>) -> String {
    let top = boxes.iter().map(|held| held.bytes.end).max().unwrap_or(0).max(1);
    let used = match room {
        Some(room) => format!("{} of {} bytes", grouped(top), grouped(room)),
        None => format!("{} bytes", grouped(top)),
    };
    let across = |command: usize| LEFT + command as u64 * WIDE / commands.max(1) as u64;
    let down = |byte: u64| {
        let scaled = u128::from(byte) * u128::from(HIGH) / u128::from(top);
        HIGH - u64::try_from(scaled).unwrap_or(HIGH).min(HIGH)
    };
    let mut out = format!(
        "<p class=\"quiet\">{what}: {used} at most, {} tensors; commands from left to right, addresses upwards</p>\
         <div class=\"picture\"><svg class=\"memory\" width=\"{}\" height=\"{}\" role=\"img\" aria-label=\"{what}\">",
        boxes.len(),
        LEFT + WIDE + 4,
        HIGH + 18
    );
    for quarter in 0..=4 {
        let byte = top / 4 * quarter;
        let y = down(byte);
        // Writing to a string cannot fail.
        let _ = write!(
            out,
            "<path class=\"axis\" d=\"M{LEFT} {y}.5h{WIDE}\"/>\
             <text class=\"quiet\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 6,
            (y + 4).clamp(9, HIGH),
            size(byte)
        );
    }
    for (index, held) in boxes.iter().enumerate() {
        let (x, y) = (across(held.start), down(held.bytes.end));
        let (wide, high) = ((across(held.end + 1) - x).max(1), (down(held.bytes.start) - y).max(1));
        let told = format!(
            "{}\n{} bytes from {} on, commands {} to {}",
            held.name,
            grouped(held.bytes.end - held.bytes.start),
            grouped(held.bytes.start),
            held.start,
            held.end
        );
        let _ = write!(
            out,
            "<rect data-t=\"{}\" class=\"p{}\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{high}\" \
             stroke=\"var(--card)\" stroke-width=\".5\" opacity=\".88\"/>",
            escape(&told),
            index % PROGRAMS
        );
    }
    let _ = write!(
        out,
        "<text class=\"quiet\" x=\"{LEFT}\" y=\"{}\">command 0</text>\
         <text class=\"quiet\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{commands}</text></svg></div>",
        HIGH + 14,
        LEFT + WIDE,
        HIGH + 14
    );
    out
}

/// A size for an axis.
fn size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ if bytes < 10 << 10 => format!("{bytes} B"),
        _ if bytes < 10 << 20 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

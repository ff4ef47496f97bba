//! Units of MaxPool, AveragePool and GlobalAveragePool.

use super::codes::Codes;
use super::form::Former;
use super::signed::Edges;
use super::unit::{Kind, Unit};
use super::window::WindowSpec;
use crate::graph::Node;
use crate::refusal::{Refusal, refuse};

/// MaxPool. Codes keep the order of what they stand for, so the maximum of codes is the code of the
/// maximum; where the CPU provider pools floats, the table does what is left.
pub(super) fn max_pool(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let window = max_window(node)?;
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    let table = input.requantise(output);
    Ok(unit.finish(value, Kind::MaxPool { before: None, window, table }))
}

/// The window of a MaxPool.
pub(super) fn max_window(node: &Node) -> Result<WindowSpec, Refusal> {
    if let Some(order) = node.int("storage_order").filter(|&order| order != 0) {
        return refuse!(ATTRIBUTE, "{node} has storage_order {order}; only 0 is taken");
    }
    WindowSpec::read(node, None)
}

/// AveragePool.
pub(super) fn average_pool(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let window = WindowSpec::read(node, None)?;
    if !window.is_dense() {
        return refuse!(ATTRIBUTE, "{node} has dilations; an average is taken without");
    }
    let count_padding = node.int("count_include_pad").unwrap_or(0) != 0;
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    if unit.edges() != Edges::Unsigned {
        return refuse!(
            S8_ACTIVATIONS,
            "{node} reads or writes int8; quantise activations as uint8"
        );
    }
    check_reach(node, input, output)?;
    Ok(unit.finish(value, Kind::AveragePool { window, count_padding, input, output }))
}

/// GlobalAveragePool.
pub(super) fn global_average_pool(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let input = unit.activation(0)?;
    let (value, output) = unit.result()?;
    let kind = match unit.edges() {
        Edges::Mixed => Kind::GlobalMean { input, output },
        Edges::Unsigned | Edges::Signed => {
            check_reach(unit.node(), input, output)?;
            Kind::GlobalAveragePool { input, output }
        }
    };
    Ok(unit.finish(value, kind))
}

/// Refuses scales that take averages of codes beyond 32 bits, where the CPU provider's conversion wraps.
fn check_reach(node: &Node, input: Codes, output: Codes) -> Result<(), Refusal> {
    let reach = 256.0 * (input.scale / output.scale);
    if reach < 2_147_483_648.0 {
        return Ok(());
    }
    refuse!(
        SCALE,
        "{node} has scales {} and {}, which take codes up to {reach}, beyond 32 bits; use a larger scale for its result",
        input.scale,
        output.scale
    )
}

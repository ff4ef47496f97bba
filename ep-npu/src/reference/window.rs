//! Windows of pooling and convolution, tap by tap.

use crate::graph::Node;
use crate::quantize::{Codes, Placed, WindowSpec};
use ndarray::Array4;
use npu_uapi::requantise::{average_finish, average_step};

/// The taps of the window at output position `at` that lie in an input of `size`: kernel row, kernel
/// column, input row, input column, in row-major order.
pub(super) fn taps(
    placed: &Placed,
    at: [usize; 2],
    size: [usize; 2],
) -> impl Iterator<Item = (usize, usize, usize, usize)> + use<> {
    let window = placed.window;
    let inside = |out: usize, tap: u16, stride: u16, dilation: u16, pad: u16, len: usize| {
        let position = out * usize::from(stride) + usize::from(tap) * usize::from(dilation);
        position.checked_sub(usize::from(pad)).filter(|&position| position < len)
    };
    (0..window.kernel_h).flat_map(move |row| {
        (0..window.kernel_w).filter_map(move |column| {
            let w = window;
            let y = inside(at[0], row, w.stride_h, w.dilation_h, w.pad_top, size[0])?;
            let x = inside(at[1], column, w.stride_w, w.dilation_w, w.pad_left, size[1])?;
            Some((row.into(), column.into(), y, x))
        })
    })
}

pub(super) fn max(node: &Node, window: &WindowSpec, input: &Array4<u8>) -> Array4<u8> {
    over(node, window, input, |_, _, codes| codes.into_iter().max().unwrap_or(0))
}

pub(super) fn average(
    node: &Node,
    window: &WindowSpec,
    count_padding: bool,
    from: Codes,
    to: Codes,
    input: &Array4<u8>,
) -> Array4<u8> {
    over(node, window, input, |placed, at, codes| {
        let step = |sum, &code: &u8| average_step(sum, code, from.scale, from.zero_point);
        let sum = codes.iter().fold(0.0, step);
        let count = match count_padding {
            true => padded_area(placed, at, [input.dim().2, input.dim().3]),
            false => codes.len(),
        };
        let count = u32::try_from(count).expect("a window has fewer than 2^32 taps");
        average_finish(sum, count, to.scale, to.zero_point)
    })
}

/// Taps of a window that lie in the input or its padding.
fn padded_area(placed: &Placed, at: [usize; 2], size: [usize; 2]) -> usize {
    let w = placed.window;
    let along = |at: usize, stride: u16, kernel: u16, len: usize, before: u16, after: u16| {
        let start = at * usize::from(stride);
        let end = len + usize::from(before) + usize::from(after);
        (start + usize::from(kernel)).min(end) - start
    };
    along(at[0], w.stride_h, w.kernel_h, size[0], w.pad_top, placed.pad_bottom)
        * along(at[1], w.stride_w, w.kernel_w, size[1], w.pad_left, placed.pad_right)
}

fn over(
    node: &Node,
    window: &WindowSpec,
    input: &Array4<u8>,
    reduce: impl Fn(&Placed, [usize; 2], Vec<u8>) -> u8,
) -> Array4<u8> {
    let (n, c, h, w) = input.dim();
    let placed = window.place(node, [h, w]).expect("the window was checked");
    Array4::from_shape_fn((n, c, placed.out_h, placed.out_w), |(n, c, oy, ox)| {
        let codes =
            taps(&placed, [oy, ox], [h, w]).map(|(_, _, y, x)| input[[n, c, y, x]]).collect();
        reduce(&placed, [oy, ox], codes)
    })
}

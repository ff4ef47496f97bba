//! The window of a convolution or pooling, from attributes and from the size of its input.

use crate::graph::Node;
use crate::refusal::{Refusal, refuse};
use npu_uapi::command::Window;

/// Attributes of a window over one or two spatial dimensions; one is the columns of one row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WindowSpec {
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    padding: Padding,
    ceil: bool,
    /// Whether there is one dimension, the columns of one row.
    is_row: bool,
    /// Whether it is a pool's, not a convolution's.
    is_pool: bool,
    /// Whether padding counts in a mean.
    counts_padding: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Padding {
    /// Top, left, bottom, right.
    Explicit([usize; 4]),
    SameUpper,
    SameLower,
}

/// A window over an input of known size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// As the device takes it.
    pub window: Window,
    /// Rows of the output.
    pub out_h: usize,
    /// Columns of the output.
    pub out_w: usize,
    /// Rows of padding below.
    pub pad_bottom: u16,
    /// Columns of padding right.
    pub pad_right: u16,
}

impl WindowSpec {
    /// Reads the attributes of `node`; `kernel` is what the weights say, for a convolution: one length
    /// or two.
    pub fn read(node: &Node, kernel: Option<&[usize]>) -> Result<Self, Refusal> {
        let is_pool = kernel.is_none();
        let given = node.ints("kernel_shape").map(<[i64]>::len);
        let is_row = kernel.map(<[usize]>::len).or(given) == Some(1);
        let kernel = kernel.map(|kernel| match *kernel {
            [columns] => [1, columns],
            _ => [kernel[0], kernel[1]],
        });
        let pair = |name: &str, least: usize| pair(node, name, least, is_row);
        let given = pair("kernel_shape", 1)?;
        let kernel = match (kernel, given) {
            (Some(kernel), Some(given)) if kernel != given => {
                return refuse!(
                    ATTRIBUTE,
                    "{node} has kernel_shape {given:?}, its weights {kernel:?}"
                );
            }
            (Some(kernel), _) | (None, Some(kernel)) => kernel,
            (None, None) => return refuse!(ATTRIBUTE, "{node} has no kernel_shape"),
        };
        let strides = pair("strides", 1)?.unwrap_or([1, 1]);
        let dilations = pair("dilations", 1)?.unwrap_or([1, 1]);
        let padding = match node.string("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => Padding::Explicit(pads(node, is_row)?),
            "VALID" => Padding::Explicit([0; 4]),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            other => return refuse!(ATTRIBUTE, "{node} has auto_pad {other:?}, which is not ONNX"),
        };
        if !matches!(padding, Padding::Explicit(_)) && dilations != [1, 1] {
            return refuse!(
                ATTRIBUTE,
                "{node} has auto_pad SAME with dilations {dilations:?}; give explicit pads"
            );
        }
        let ceil = node.int("ceil_mode").unwrap_or(0) != 0;
        let counts_padding = node.int("count_include_pad").unwrap_or(0) != 0;
        Ok(Self { kernel, strides, dilations, padding, ceil, is_row, is_pool, counts_padding })
    }

    /// Whether it lies over rows, tensors of three dimensions.
    pub fn is_row(&self) -> bool {
        self.is_row
    }

    /// Elements that a window covers.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Whether every dilation is 1.
    pub fn is_dense(&self) -> bool {
        self.dilations == [1, 1]
    }

    /// The window over an input of `size` rows and columns.
    pub fn place(&self, node: &Node, size: [usize; 2]) -> Result<Placed, Refusal> {
        let rows = self.axis(node, 0, size[0])?;
        let columns = self.axis(node, 1, size[1])?;
        let window = Window {
            kernel_h: rows.kernel,
            kernel_w: columns.kernel,
            stride_h: rows.stride,
            stride_w: columns.stride,
            dilation_h: rows.dilation,
            dilation_w: columns.dilation,
            pad_top: rows.before,
            pad_left: columns.before,
        };
        Ok(Placed {
            window,
            out_h: rows.out,
            out_w: columns.out,
            pad_bottom: rows.after,
            pad_right: columns.after,
        })
    }

    fn axis(&self, node: &Node, axis: usize, len: usize) -> Result<Axis, Refusal> {
        let (kernel, stride) = (self.kernel[axis], self.strides[axis]);
        let dilation = self.dilations[axis];
        let reach = (kernel - 1) * dilation + 1;
        let covered = (len.div_ceil(stride).max(1) - 1) * stride + reach;
        let same = || covered.saturating_sub(len);
        if self.is_pool && covered < len && !matches!(self.padding, Padding::Explicit(_)) {
            // There the CPU's padding is negative: its average crops, its maximum fails.
            return refuse!(
                ATTRIBUTE,
                "{node} has auto_pad SAME, and windows of {reach} by steps of {stride} leave some of {len} out; give explicit pads"
            );
        }
        let (before, mut after) = match self.padding {
            Padding::Explicit(pads) => (pads[axis], pads[axis + 2]),
            Padding::SameUpper => (same() / 2, same() - same() / 2),
            Padding::SameLower => (same() - same() / 2, same() / 2),
        };
        let Some(room) = (len + before + after).checked_sub(reach) else {
            return refuse!(
                SHAPE,
                "{node} has a window of {reach} over {len} with pads {before} and {after}"
            );
        };
        if before >= reach || after >= reach {
            return refuse!(
                SHAPE,
                "{node} has pads {before} and {after}, as wide as its window of {reach}; pads below that are taken"
            );
        }
        let mut out = room / stride + 1;
        // As on the CPU, the window that ceil_mode adds begins before the padding behind the input.
        if self.ceil && room % stride != 0 && out * stride < len + before {
            if self.counts_padding {
                return refuse!(
                    ATTRIBUTE,
                    "{node} has ceil_mode 1, count_include_pad 1 and a last window that is cut off; set one to 0"
                );
            }
            after = out * stride + reach - len - before;
            out += 1;
        }
        let narrow = |name: &str, value: usize| match u16::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => refuse!(SIZE, "{node} has {name} {value}; at most 65535 is taken"),
        };
        Ok(Axis {
            kernel: narrow("kernel_shape", kernel)?,
            stride: narrow("strides", stride)?,
            dilation: narrow("dilations", dilation)?,
            before: narrow("pads", before)?,
            after: narrow("pads", after)?,
            out,
        })
    }
}

impl Placed {
    /// Whether the window is all of an input of `size`, without padding. Then the CPU provider computes an
    /// average as a global one.
    pub fn is_whole(&self, size: [usize; 2]) -> bool {
        let w = &self.window;
        let pads = [w.pad_top, w.pad_left, self.pad_bottom, self.pad_right];
        [w.kernel_h, w.kernel_w].map(usize::from) == size && pads == [0; 4]
    }

    /// Whether some window over an input of `size` has no tap inside the input.
    pub fn has_empty_window(&self, size: [usize; 2]) -> bool {
        let w = &self.window;
        let empty = |out: usize, stride: u16, dilation: u16, kernel: u16, pad: u16, len: usize| {
            let (stride, dilation) = (usize::from(stride), usize::from(dilation));
            (0..out).any(|position| {
                let before = usize::from(pad).saturating_sub(position * stride);
                let tap = before.div_ceil(dilation);
                let at = position * stride + tap * dilation - usize::from(pad);
                tap >= usize::from(kernel) || at >= len
            })
        };
        empty(self.out_h, w.stride_h, w.dilation_h, w.kernel_h, w.pad_top, size[0])
            || empty(self.out_w, w.stride_w, w.dilation_w, w.kernel_w, w.pad_left, size[1])
    }
}

struct Axis {
    kernel: u16,
    stride: u16,
    dilation: u16,
    before: u16,
    after: u16,
    out: usize,
}

pub(super) fn pair(
    node: &Node,
    name: &str,
    least: usize,
    is_row: bool,
) -> Result<Option<[usize; 2]>, Refusal> {
    let Some(found) = node.ints(name) else { return Ok(None) };
    match lengths(found, least).as_deref() {
        Some(&[w]) if is_row => Ok(Some([1, w])),
        Some(&[h, w]) if !is_row => Ok(Some([h, w])),
        _ => {
            let count = if is_row { "one number" } else { "two numbers" };
            refuse!(ATTRIBUTE, "{node} has {name} {found:?}; {count} from {least} are taken")
        }
    }
}

pub(super) fn pads(node: &Node, is_row: bool) -> Result<[usize; 4], Refusal> {
    let Some(found) = node.ints("pads") else { return Ok([0; 4]) };
    match lengths(found, 0).as_deref() {
        Some(&[left, right]) if is_row => Ok([0, left, 0, right]),
        Some(&[top, left, bottom, right]) if !is_row => Ok([top, left, bottom, right]),
        _ => {
            let count = if is_row { "two" } else { "four" };
            refuse!(ATTRIBUTE, "{node} has pads {found:?}; {count} numbers from 0 are taken")
        }
    }
}

/// `found` as lengths from `least` to 65535.
pub(super) fn lengths(found: &[i64], least: usize) -> Option<Vec<usize>> {
    let length = |&value| u16::try_from(value).ok().map(usize::from).filter(|&len| len >= least);
    found.iter().map(length).collect()
}

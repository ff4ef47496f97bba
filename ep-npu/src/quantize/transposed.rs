//! Units of ConvTranspose: every input pixel times a kernel, each product a stride further, the sums of
//! all that meet at a pixel.
//!
//! Seen from the output it is a convolution. Its pixels come in blocks as large as the stride, and block
//! `q` sums, for each of its pixels, a few input pixels up to `q`:
//!
//! ```text
//! out[q*stride + r] = sum over taps t with t*dilation = o*stride + r  of  in[q - o] * w[t]
//! ```
//!
//! The CPU provider has it in floats only: a product of matrices for each tap, added from the first tap to
//! the last, the bias at the end.

use super::form::{CutResult, Former};
use super::products;
use super::unit::{Kind, Products, Unit, Weights};
use super::window::{lengths, pads, pair};
use crate::graph::{ElementType, Node};
use crate::refusal::{Refusal, refuse};

/// Attributes of a transposed convolution over one or two dimensions; one is the columns of one row.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TransposedSpec {
    /// Groups of channels.
    pub groups: usize,
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    output_padding: [usize; 2],
    cut: Cut,
    is_row: bool,
}

/// What is cut off the full result.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cut {
    /// Top, left, bottom, right.
    Pads([usize; 4]),
    /// What exceeds input times stride.
    Same { more_behind: bool },
    /// What exceeds these rows and columns.
    To { shape: [usize; 2], more_behind: bool },
}

/// One dimension of a transposed convolution over an input of known size.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spread {
    /// Length of the input.
    pub len: usize,
    /// Length of the kernel.
    pub kernel: usize,
    /// From a product to the next.
    pub stride: usize,
    /// From a tap to the next.
    pub dilation: usize,
    /// Length of the output.
    pub out: usize,
    /// Pixels of the full result before it.
    pub before: usize,
}

impl Spread {
    /// Input pixels that meet in a block of the output.
    pub fn offsets(&self) -> usize {
        (self.kernel - 1) * self.dilation / self.stride + 1
    }

    /// Blocks of as many pixels as the stride that hold all that is not cut off behind.
    pub fn blocks(&self) -> usize {
        let needed = (self.before + self.out).div_ceil(self.stride);
        // A block for each input pixel needs no other order of the input.
        if self.offsets() == 1 { needed.max(self.len) } else { needed }
    }

    /// The tap by which pixel `place` of a block sees the input pixel so many before the block's own.
    pub fn tap(&self, place: usize, offset: usize) -> Option<usize> {
        let at = offset * self.stride + place;
        let tap = at / self.dilation;
        (at.is_multiple_of(self.dilation) && tap < self.kernel).then_some(tap)
    }
}

impl TransposedSpec {
    /// Reads the attributes of `node`, whose weights have a kernel of these lengths.
    fn read(node: &Node, kernel: &[usize]) -> Result<Self, Refusal> {
        let is_row = kernel.len() == 1;
        let [rows, columns] = [if is_row { 1 } else { kernel[0] }, kernel[kernel.len() - 1]];
        let pair = |name: &str, least: usize| pair(node, name, least, is_row);
        if let Some(given) = pair("kernel_shape", 1)?.filter(|given| *given != [rows, columns]) {
            return refuse!(ATTRIBUTE, "{node} has kernel_shape {given:?}, its weights {kernel:?}");
        }
        let strides = pair("strides", 1)?.unwrap_or([1, 1]);
        let mut output_padding = pair("output_padding", 0)?.unwrap_or([0, 0]);
        if is_row {
            output_padding[0] = 0;
        }
        if output_padding.iter().zip(&strides).any(|(more, stride)| more >= stride) {
            return refuse!(
                ATTRIBUTE,
                "{node} has output_padding {output_padding:?} for strides {strides:?}; less than the strides is taken"
            );
        }
        let auto = node.string("auto_pad").unwrap_or("NOTSET");
        let pads = pads(node, is_row)?;
        let more_behind = auto == "SAME_UPPER";
        let cut = match (node.ints("output_shape"), auto) {
            (Some(shape), "NOTSET" | "VALID" | "SAME_UPPER" | "SAME_LOWER") => {
                match lengths(shape, 1).as_deref() {
                    Some(&[columns]) if is_row => Cut::To { shape: [1, columns], more_behind },
                    Some(&[rows, columns]) if !is_row => {
                        Cut::To { shape: [rows, columns], more_behind }
                    }
                    _ => {
                        return refuse!(
                            ATTRIBUTE,
                            "{node} has output_shape {shape:?}; its rows and columns are taken"
                        );
                    }
                }
            }
            (None, "NOTSET") => Cut::Pads(pads),
            (None, "VALID") => Cut::Pads([0; 4]),
            (None, "SAME_UPPER" | "SAME_LOWER") => Cut::Same { more_behind },
            (_, other) => {
                return refuse!(ATTRIBUTE, "{node} has auto_pad {other:?}, which is not ONNX");
            }
        };
        Ok(Self {
            groups: usize::try_from(node.int("group").unwrap_or(1)).unwrap_or(0),
            kernel: [rows, columns],
            strides,
            dilations: pair("dilations", 1)?.unwrap_or([1, 1]),
            output_padding,
            cut,
            is_row,
        })
    }

    /// Whether it lies over rows, tensors of three dimensions.
    pub fn is_row(&self) -> bool {
        self.is_row
    }

    /// Taps that meet at a pixel of the output, at most.
    pub fn taps_a_pixel(&self) -> usize {
        let axis = |axis: usize| self.kernel[axis].div_ceil(self.strides[axis]);
        axis(0) * axis(1)
    }

    /// Rows and columns over an input of `size`.
    pub fn place(&self, node: &Node, size: [usize; 2]) -> Result<[Spread; 2], Refusal> {
        Ok([self.axis(node, 0, size[0])?, self.axis(node, 1, size[1])?])
    }

    fn axis(&self, node: &Node, axis: usize, len: usize) -> Result<Spread, Refusal> {
        let (kernel, stride, dilation) =
            (self.kernel[axis], self.strides[axis], self.dilations[axis]);
        let reach = (kernel - 1) * dilation + 1 + self.output_padding[axis];
        // One pixel is spread once, so that its whole result is a block.
        let stride = if len == 1 { reach } else { stride };
        let full = len.max(1).checked_sub(1).and_then(|steps| steps.checked_mul(stride));
        let Some(full) = full.and_then(|steps| steps.checked_add(reach)) else {
            return refuse!(SIZE, "{node} spreads {len} pixels by {stride}");
        };
        let to = |out: usize, more_behind: bool| {
            let cut = full - out;
            (out, if more_behind { cut / 2 } else { cut - cut / 2 })
        };
        let (out, before) = match self.cut {
            Cut::Pads(pads) => {
                let out = full.saturating_sub(pads[axis] + pads[axis + 2]);
                (out, pads[axis])
            }
            Cut::Same { more_behind } => {
                to(full.min(len.saturating_mul(self.strides[axis])), more_behind)
            }
            // One row has no rows to cut.
            Cut::To { shape, .. } if shape[axis] > full => (0, 0),
            Cut::To { shape, more_behind } => to(shape[axis], more_behind),
        };
        if out == 0 {
            return refuse!(
                SHAPE,
                "{node} spreads {len} pixels over {full}, and what is to be left of them is not among these"
            );
        }
        Ok(Spread { len, kernel, stride, dilation, out, before })
    }
}

/// A transposed convolution as the convolution that it is: of blocks of pixels, with one tap.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    /// Images.
    pub images: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Input channels of a group.
    pub inputs: usize,
    /// Output channels of a group.
    pub filters: usize,
    /// Rows.
    pub rows: Spread,
    /// Columns.
    pub columns: Spread,
}

/// Weights that a unit may come to.
const MOST_WEIGHTS: usize = 1 << 26;

/// Bytes of all blocks' neighbours.
const MOST_BYTES: u128 = 1 << 28;

/// Multiplications, beside those of the model: small kernels come to four or nine times as many, and
/// more on small images.
const MOST_TIMES: u128 = 16;

/// Multiplications that are no matter, whatever the model's are.
const FEW: u128 = 1 << 22;

impl Blocks {
    /// Of images of so many rows and columns; refuses what would be far more than the model says.
    pub fn new(
        node: &Node,
        products: &Products,
        spec: &TransposedSpec,
        [images, rows, columns]: [usize; 3],
    ) -> Result<Self, Refusal> {
        let weights = &products.weights;
        let [rows, columns] = spec.place(node, [rows, columns])?;
        let (groups, inputs) = (spec.groups, weights.inputs / spec.groups);
        let blocks = Self { images, groups, inputs, filters: weights.outputs, rows, columns };
        let lengths = [
            blocks.rows.stride,
            blocks.columns.stride,
            groups,
            weights.outputs,
            blocks.rows.offsets(),
            blocks.columns.offsets(),
            blocks.channels(),
        ];
        match lengths.iter().try_fold(1_usize, |n, &len| n.checked_mul(len)) {
            Some(0..=MOST_WEIGHTS) => blocks.check_work(node),
            _ => refuse!(
                SIZE,
                "{node} has {} weights by strides of {} and {}, and comes to more than {MOST_WEIGHTS}",
                weights.bytes.len(),
                rows.stride,
                columns.stride
            ),
        }
    }

    /// Refuses gaps, dilation and edges that blow the work up.
    fn check_work(self, node: &Node) -> Result<Self, Refusal> {
        let product = |lengths: &[usize]| lengths.iter().map(|&len| len as u128).product::<u128>();
        let [read, written] = self.shapes();
        let bytes = product(&read);
        let macs = product(&written).saturating_mul(self.terms() as u128);
        let Self { images, groups, inputs, filters, rows, columns } = self;
        let own = product(&[images, groups, inputs, filters]).saturating_mul(product(&[
            rows.len,
            columns.len,
            rows.kernel,
            columns.kernel,
        ]));
        if bytes <= MOST_BYTES && (macs <= FEW || macs <= MOST_TIMES.saturating_mul(own)) {
            return Ok(self);
        }
        refuse!(
            SIZE,
            "{node} does {own} multiplications, and as a convolution of blocks {macs} over {bytes} bytes; up to \
             {MOST_TIMES} times as many are taken, and {MOST_BYTES} bytes; less dilation, or a kernel that is small \
             beside the image"
        )
    }

    /// Whether each pixel of the output sees one of the input at most.
    pub fn are_apart(&self) -> bool {
        self.rows.offsets() == 1 && self.columns.offsets() == 1
    }

    /// Whether the input's pixels are the blocks as they lie.
    pub fn are_pixels(&self) -> bool {
        let fits = |axis: Spread| axis.blocks() == axis.len;
        self.are_apart() && fits(self.rows) && fits(self.columns)
    }

    /// Input channels of a group that one input pixel takes among a block's: where there are several,
    /// each begins a block of the sums.
    pub fn channels(&self) -> usize {
        if self.are_apart() { self.inputs } else { self.inputs.next_power_of_two() }
    }

    /// Input pixels that a block sees, from the first tap's: rows and columns before its own.
    pub fn offsets(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let columns = self.columns.offsets();
        (0..self.rows.offsets()).flat_map(move |row| (0..columns).map(move |column| [row, column]))
    }

    /// Terms of a sum.
    pub fn terms(&self) -> usize {
        self.rows.offsets() * self.columns.offsets() * self.channels()
    }

    /// Output channels of a group, for all pixels of a block.
    pub fn outputs(&self) -> usize {
        self.rows.stride * self.columns.stride * self.filters
    }

    /// What is multiplied, of any output.
    pub fn shapes(&self) -> [Vec<usize>; 2] {
        let of = |channels: usize| {
            vec![self.images, self.groups * channels, self.rows.blocks(), self.columns.blocks()]
        };
        [of(self.terms()), of(self.outputs())]
    }
}

/// ConvTranspose.
pub(super) fn conv_transpose(mut unit: Former<'_>) -> Result<Unit, Refusal> {
    let node = unit.node();
    let input = unit.activation(0)?;
    let constant = unit.constant(1, ElementType::I8, 1)?;
    let (inputs, filters, space) = match constant.tensor.shape.as_slice() {
        [inputs, filters, space @ ..] if (1..=2).contains(&space.len()) => {
            (*inputs, *filters, space.to_vec())
        }
        shape => {
            return refuse!(
                SHAPE,
                "{node} has weights of shape {shape:?}; one or two dimensions of space are taken"
            );
        }
    };
    if inputs == 0 || filters == 0 || space.contains(&0) {
        return refuse!(SHAPE, "{node} has empty weights of {inputs} by {filters} by {space:?}");
    }
    let spec = TransposedSpec::read(node, &space)?;
    let groups = spec.groups;
    if groups == 0 || !inputs.is_multiple_of(groups) {
        return refuse!(ATTRIBUTE, "{node} has group {groups} for {inputs} input channels");
    }
    let Some(outputs) = filters.checked_mul(groups) else {
        return refuse!(SIZE, "{node} has {groups} groups of {filters} channels");
    };
    let taps: usize = spec.kernel.iter().product();
    let weights = Weights {
        bytes: constant.tensor.bytes.clone(),
        outputs: filters,
        inputs,
        kernel: spec.kernel,
        strides: [taps, filters * taps, spec.kernel[1], 1],
        zero_points: constant.zero_points,
    };
    let scales = (0..outputs).map(|channel| {
        // One for all, or one for each of a group: `Former::constant` has checked it.
        constant.scales.get(channel % filters).copied().unwrap_or(constant.scales[0])
    });
    let scales = scales.collect();
    let CutResult { output: value, codes: output, cut } = unit.cut_result()?;
    let range = cut.map_or([0, 255], |(_, range)| range);
    let products = products::float(&mut unit, input, output, weights, scales, range)?;
    Ok(unit.finish(value, Kind::ConvTranspose { products, spec }))
}

/// The weight by which an output channel of one group sees channel `input` of that group.
pub(crate) fn weight(
    products: &Products,
    groups: usize,
    [output, input]: [usize; 2],
    [row, column]: [usize; 2],
) -> i8 {
    let weights = &products.weights;
    let (group, filter) = (output / weights.outputs, output % weights.outputs);
    weights.at(filter, group * (weights.inputs / groups) + input, row, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(len: usize, kernel: usize, stride: usize, dilation: usize) -> Spread {
        let out = (len - 1) * stride + (kernel - 1) * dilation + 1;
        Spread { len, kernel, stride, dilation, out, before: 0 }
    }

    #[test]
    fn every_tap_of_every_pixel_is_seen_once_and_in_order() {
        for (kernel, stride, dilation) in
            (1..6).flat_map(|k| (1..4).flat_map(move |s| (1..4).map(move |d| (k, s, d))))
        {
            let axis = spread(7, kernel, stride, dilation);
            let mut seen = vec![Vec::new(); axis.blocks() * stride];
            for (at, seen) in seen.iter_mut().enumerate() {
                let (block, place) = (at / stride, at % stride);
                // From the first tap, which is the input pixel of the block itself.
                for offset in 0..axis.offsets() {
                    let input = block.checked_sub(offset).filter(|&input| input < axis.len);
                    if let Some(pair) = input.zip(axis.tap(place, offset)) {
                        seen.push(pair);
                    }
                }
            }
            for (at, seen) in seen.iter().enumerate() {
                let taps = 0..kernel;
                let want: Vec<(usize, usize)> = taps
                    .filter_map(|tap| {
                        let from = at.checked_sub(tap * dilation)?;
                        let input = from / stride;
                        (from % stride == 0 && input < axis.len).then_some((input, tap))
                    })
                    .collect();
                assert_eq!(*seen, want, "{axis:?} at {at}");
            }
        }
    }
}

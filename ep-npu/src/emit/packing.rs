//! How weights are cut into blocks of 16 output by 4 input channels, and put together again.

use crate::lower::Conv;

/// Shape of a convolution's weights, and where each of them lies in a tensor of the graph.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Packing {
    /// Groups of channels.
    pub(crate) groups: usize,
    /// Output channels of all groups.
    pub(crate) outputs: usize,
    /// Input channels of one group.
    pub(crate) inputs: usize,
    /// Rows and columns of the kernel.
    pub(crate) kernel: [usize; 2],
    /// From an output channel, input channel, kernel row and kernel column to the next, in the tensor.
    pub(crate) strides: [usize; 4],
}

impl Packing {
    pub(crate) fn of(conv: &Conv) -> Self {
        let weights = &conv.weights;
        Self {
            groups: conv.groups,
            outputs: weights.outputs,
            inputs: weights.inputs,
            kernel: weights.kernel,
            strides: weights.strides,
        }
    }

    /// Bytes of the blocks.
    pub(crate) fn packed_bytes(&self) -> usize {
        let blocks = self.blocks();
        blocks.groups * blocks.outputs.div_ceil(16) * blocks.reduction * 16
    }

    /// Bytes of the blocks and of the tensor, when numbers from outside describe weights at all: then
    /// nothing lies outside those.
    pub(crate) fn checked_bytes(&self) -> Option<(usize, usize)> {
        let [rows, columns] = self.kernel;
        let lengths = [self.outputs, self.inputs, rows, columns];
        if self.groups == 0 || lengths.contains(&0) || !self.outputs.is_multiple_of(self.groups) {
            return None;
        }
        // No more than so many times the weights: each length is rounded up to 4 or 16 at most.
        let count = lengths.iter().try_fold(1_usize, |count, &len| count.checked_mul(len))?;
        count.checked_mul(16 * 4 * 2)?;
        let last = lengths.iter().zip(self.strides).try_fold(0_usize, |at, (len, stride)| {
            at.checked_add((len - 1).checked_mul(stride)?)
        })?;
        (last < count).then(|| (self.packed_bytes(), count))
    }

    /// The blocks of `tensor`.
    pub(crate) fn pack(&self, tensor: &[u8], packed: &mut [u8]) {
        self.each(|at, block| packed[block] = tensor[at]);
    }

    /// The tensor of the blocks `packed`.
    pub(crate) fn unpack(&self, packed: &[u8], tensor: &mut [u8]) {
        self.each(|at, block| tensor[at] = packed[block]);
    }

    /// Calls `weight` for each one, with its place in the tensor and in the blocks.
    fn each(&self, mut weight: impl FnMut(usize, usize)) {
        let blocks = self.blocks();
        let [rows, columns] = self.kernel;
        let [output_stride, input_stride, row_stride, column_stride] = self.strides;
        // In a depthwise convolution the reduction is over taps, else over taps and input channels.
        let depth = if self.is_depthwise() { 1 } else { self.inputs.next_multiple_of(4) };
        for output in 0..self.outputs {
            let lane = blocks.lane(output / blocks.outputs, output % blocks.outputs);
            for tap in 0..rows * columns {
                let (row, column) = (tap / columns, tap % columns);
                let at = output * output_stride + row * row_stride + column * column_stride;
                for input in 0..self.inputs {
                    let step = tap * depth + input;
                    weight(at + input * input_stride, lane + step / 4 * 64 + step % 4);
                }
            }
        }
    }

    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.inputs == 1 && self.outputs == self.groups
    }

    fn blocks(&self) -> Blocks {
        let [rows, columns] = self.kernel;
        let taps = rows * columns;
        if self.is_depthwise() {
            let (outputs, reduction) = (self.outputs, taps.next_multiple_of(4));
            return Blocks { groups: 1, outputs, reduction };
        }
        let outputs = self.outputs / self.groups;
        let reduction = taps * self.inputs.next_multiple_of(4);
        Blocks { groups: self.groups, outputs, reduction }
    }
}

struct Blocks {
    groups: usize,
    /// Output channels of one group.
    outputs: usize,
    reduction: usize,
}

impl Blocks {
    /// Where the block of `output` within `group` begins, and the lane in it.
    fn lane(&self, group: usize, output: usize) -> usize {
        let block = group * self.outputs.div_ceil(16) + output / 16;
        block * self.reduction * 16 + output % 16 * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weights of a tensor `[outputs, inputs, rows, columns]`.
    fn packing([groups, outputs, inputs, rows, columns]: [usize; 5]) -> Packing {
        let strides = [inputs * rows * columns, rows * columns, columns, 1];
        let (outputs, kernel) = (groups * outputs, [rows, columns]);
        Packing { groups, outputs, inputs, kernel, strides }
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked(
            groups in 1_usize..4, outputs in 1_usize..40, inputs in 1_usize..10,
            rows in 1_usize..4, columns in 1_usize..4,
        ) {
            let packing = packing([groups, outputs, inputs, rows, columns]);
            let (packed_bytes, count) = packing.checked_bytes().unwrap();
            let tensor: Vec<u8> = (1..=251).cycle().take(count).collect();
            let (mut packed, mut again) = (vec![0; packed_bytes], vec![0; count]);
            packing.pack(&tensor, &mut packed);
            packing.unpack(&packed, &mut again);
            prop_assert_eq!(again, tensor);
            prop_assert_eq!(packed.iter().filter(|&&byte| byte != 0).count(), count);
        }

        /// Whatever passes the check is read within its bounds.
        #[test]
        fn any_numbers_are_refused_or_stay_inside(
            groups in 0_usize..4, outputs in 0_usize..40, inputs in 0_usize..9,
            kernel in prop::array::uniform2(0_usize..4),
            strides in prop::array::uniform4(prop_oneof![0_usize..60, Just(usize::MAX)]),
        ) {
            let packing = Packing { groups, outputs, inputs, kernel, strides };
            if let Some((packed_bytes, count)) = packing.checked_bytes() {
                packing.unpack(&vec![0; packed_bytes], &mut vec![0; count]);
            }
        }
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let huge = Packing { outputs: 1 << 40, inputs: 1 << 30, ..packing([1; 5]) };
        assert_eq!(huge.checked_bytes(), None);
        let wide = Packing { outputs: 1 << 57, ..packing([1; 5]) };
        assert_eq!(wide.checked_bytes(), None);
    }
}

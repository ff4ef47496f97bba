//! CONV and MATMUL: one problem, and the choice of its kernel. A MATMUL is a 1x1 CONV of one image of
//! one row, whose pixels are the rows of the matrix.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
#[cfg(target_arch = "x86_64")]
mod depthwise_avx2;
#[cfg(target_arch = "x86_64")]
mod depthwise_avx512vnni;
#[cfg(target_arch = "x86_64")]
mod depthwise_float_avx512vnni;
#[cfg(target_arch = "x86_64")]
mod few_float_avx512vnni;
mod float;
#[cfg(target_arch = "x86_64")]
mod narrow_float_avx512vnni;
mod scalar;

use super::operand::{Map, Region, Slots, signed, zero_point};
use super::split::Split;
use super::stage::OutputStage;
use super::{Isa, Stop};
use npu_uapi::command::{Conv, Dims, MatMul, Strides, Window};

/// A convolution with resolved operands.
pub(crate) struct Problem {
    pub(crate) ifm: Map,
    pub(crate) ofm: Map,
    /// Present when the stage adds.
    pub(crate) aux: Option<Map>,
    pub(crate) weights: Region,
    pub(crate) records: Region,
    pub(crate) images: i64,
    pub(crate) ifm_h: i64,
    pub(crate) ifm_w: i64,
    pub(crate) ofm_h: i64,
    pub(crate) ofm_w: i64,
    /// Output channels, all groups.
    pub(crate) outputs: i64,
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels ask"))]
    pub(crate) groups: i64,
    /// Input channels of a group.
    pub(crate) group_inputs: i64,
    /// Output channels of a group.
    pub(crate) group_outputs: i64,
    /// Weights are laid out for a depthwise convolution.
    pub(crate) depthwise: bool,
    pub(crate) window: Taps,
    pub(crate) input_zero_point: u8,
    pub(crate) stage: OutputStage,
}

/// A window, signed.
#[derive(Clone, Copy)]
pub(crate) struct Taps {
    pub(crate) kernel_h: i64,
    pub(crate) kernel_w: i64,
    pub(crate) stride_h: i64,
    pub(crate) stride_w: i64,
    pub(crate) dilation_h: i64,
    pub(crate) dilation_w: i64,
    pub(crate) pad_top: i64,
    pub(crate) pad_left: i64,
}

impl Taps {
    pub(crate) fn new(window: &Window) -> Self {
        Self {
            kernel_h: window.kernel_h.into(),
            kernel_w: window.kernel_w.into(),
            stride_h: window.stride_h.into(),
            stride_w: window.stride_w.into(),
            dilation_h: window.dilation_h.into(),
            dilation_w: window.dilation_w.into(),
            pad_top: window.pad_top.into(),
            pad_left: window.pad_left.into(),
        }
    }

    /// The input row that kernel row `ky` of output row `oy` covers; may lie outside the input.
    #[inline]
    pub(crate) fn row(&self, oy: i64, ky: i64) -> i64 {
        oy * self.stride_h - self.pad_top + ky * self.dilation_h
    }

    /// The input column that kernel column `kx` of output column `ox` covers, likewise.
    #[inline]
    pub(crate) fn column(&self, ox: i64, kx: i64) -> i64 {
        ox * self.stride_w - self.pad_left + kx * self.dilation_w
    }
}

impl Problem {
    pub(crate) fn of_conv(c: &Conv, slots: Slots<'_>) -> Self {
        let [images, ifm_h, ifm_w, inputs] = signed(&c.ifm_dims);
        let dims = c.ofm_dims();
        let [_, ofm_h, ofm_w, outputs] = signed(&dims);
        let groups = i64::from(c.groups);
        let stage = OutputStage::new(&c.stage, c.header.flags(), c.tables, slots);
        Self {
            ifm: slots.map(c.ifm, &c.ifm_dims, &c.ifm_strides),
            ofm: slots.map(c.ofm, &dims, &c.ofm_strides),
            aux: stage.add.map(|_| slots.map(c.aux, &dims, &c.aux_strides)),
            weights: slots.region(c.weights),
            records: slots.region(c.channels),
            images,
            ifm_h,
            ifm_w,
            ofm_h,
            ofm_w,
            outputs,
            groups,
            group_inputs: inputs / groups,
            group_outputs: outputs / groups,
            depthwise: c.is_depthwise(),
            window: Taps::new(&c.window),
            input_zero_point: zero_point(c.stage.input_zero_point),
            stage,
        }
    }

    pub(crate) fn of_matmul(c: &MatMul, slots: Slots<'_>) -> Self {
        let one = Window { kernel_h: 1, kernel_w: 1, ..Window::default() };
        let window = Window { stride_h: 1, stride_w: 1, dilation_h: 1, dilation_w: 1, ..one };
        let rows = |columns| Dims { n: 1, h: 1, w: c.m, c: columns };
        let strides = |pixel| Strides { image: 0, row: 0, pixel };
        let stage = OutputStage::new(&c.stage, c.header.flags(), c.tables, slots);
        Self {
            ifm: slots.map(c.a, &rows(c.k), &strides(c.a_row)),
            ofm: slots.map(c.out, &rows(c.n), &strides(c.out_row)),
            aux: stage.add.map(|_| slots.map(c.aux, &rows(c.n), &strides(c.aux_row))),
            weights: slots.region(c.weights),
            records: slots.region(c.channels),
            images: 1,
            ifm_h: 1,
            ifm_w: c.m.into(),
            ofm_h: 1,
            ofm_w: c.m.into(),
            outputs: c.n.into(),
            groups: 1,
            group_inputs: c.k.into(),
            group_outputs: c.n.into(),
            depthwise: false,
            window: Taps::new(&window),
            input_zero_point: zero_point(c.stage.input_zero_point),
            stage,
        }
    }

    /// Taps of the window.
    pub(crate) fn taps(&self) -> i64 {
        self.window.kernel_h * self.window.kernel_w
    }

    /// Codes that it reads and writes, about: a measure, not a bound.
    pub(crate) fn codes(&self) -> i64 {
        let all = |of: [i64; 4]| of.into_iter().fold(1, i64::saturating_mul);
        let read = all([self.images, self.ifm_h, self.ifm_w, self.groups * self.group_inputs]);
        read.saturating_add(all([self.images, self.ofm_h, self.ofm_w, self.outputs]))
    }

    /// Offset of input pixel `(n, y, x)`, `None` in the padding.
    #[inline]
    pub(crate) fn input(&self, n: i64, y: i64, x: i64) -> Option<i64> {
        let inside = (0..self.ifm_h).contains(&y) && (0..self.ifm_w).contains(&x);
        inside.then(|| self.ifm.at(n, y, x))
    }
}

/// Runs `problem` on the fastest kernel that takes it.
pub(crate) fn run(problem: &Problem, isa: Isa, split: &Split<'_>) -> Result<(), Stop> {
    #[cfg(target_arch = "x86_64")]
    if let Some(float) = problem.stage.float
        && isa == Isa::Avx512Vnni
        && narrow_float_avx512vnni::takes(problem, float)
    {
        // SAFETY: it takes the problem, and `isa` says that the instructions exist.
        return unsafe { narrow_float_avx512vnni::run(problem, float, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(float) = problem.stage.float
        && isa == Isa::Avx512Vnni
        && few_float_avx512vnni::takes(problem, float)
    {
        // SAFETY: as above.
        return unsafe { few_float_avx512vnni::run(problem, float, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni && avx512vnni::takes(problem) {
        // SAFETY: it takes the problem, and `isa` says that the instructions exist.
        if let Some(done) = unsafe { avx512vnni::run(problem, split) } {
            return done;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(float) = problem.stage.float
        && isa == Isa::Avx512Vnni
        && depthwise_float_avx512vnni::takes(problem)
    {
        // SAFETY: as above.
        return unsafe { depthwise_float_avx512vnni::run(problem, float, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512Vnni
        && problem.stage.float.is_none()
        && depthwise_avx512vnni::takes(problem)
    {
        // SAFETY: as above.
        if let Some(done) = unsafe { depthwise_avx512vnni::run(problem, split) } {
            return done;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() && avx2::takes(problem) {
        // SAFETY: as above.
        return unsafe { avx2::run(problem, isa, split) };
    }
    #[cfg(target_arch = "x86_64")]
    if isa.is_256() && depthwise_avx2::takes(problem) {
        // SAFETY: as above.
        if let Some(done) = unsafe { depthwise_avx2::run(problem, split) } {
            return done;
        }
    }
    let _ = isa;
    scalar::run(problem, split)
}

//! REDUCE and NORM: rows of channels as floats, one pixel after the other.
//!
//! One source for both instruction sets: loops over slices, compiled once as they are and once for
//! processors with vector instructions, which take lanes of the definition together and round alike.

#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod scalar;

use super::Stop;
use super::operand::{Map, Region, Slots, signed};
use super::split::Split;
use crate::kernel::room::Room;
use crate::memory::usize_of;
use npu_uapi::command::{self, norm_kind};
use npu_uapi::rows::{Affine, Codes, Instructions, Order, Reduction, Spread, Staged};

/// What a row becomes.
pub(crate) enum Work {
    /// One code.
    Reduce(Reduction),
    /// A code each.
    Norm(Box<Norm>),
}

/// A NORM without its operands.
pub(crate) struct Norm {
    kind: NormKind,
    input: Codes,
    output: Codes,
}

enum NormKind {
    Layer { epsilon: f32, terms: Room<Affine> },
    Instance { epsilon: f32, terms: Region, period: u64 },
    Staged { staged: Staged, divisors: Room<f32> },
}

/// A command with resolved operands.
pub(crate) struct Problem {
    pub(crate) src: Map,
    pub(crate) dst: Map,
    /// `[n, h, w, c]` of the source.
    pub(crate) dims: [i64; 4],
    pub(crate) work: Work,
}

/// Memory of one worker for one row.
pub(crate) struct Buffers {
    /// The floats; what a NORM makes of them stands there behind it.
    pub(crate) values: Room<f32>,
    /// Squares of distances from the mean.
    squares: Room<f32>,
}

/// How codes become floats and floats codes, on the memory of a command.
pub(crate) trait Row {
    /// Reads the channels of the pixel at `at`.
    fn load(p: &Problem, at: i64, codes: Codes, values: &mut [f32]);
    /// Writes the channels of the pixel at `at`.
    fn store(p: &Problem, at: i64, codes: Codes, values: &[f32]);
}

/// Runs a REDUCE.
pub(crate) fn reduce(
    c: &command::Reduce,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let reduction = Reduction {
        order: order(c.order),
        is_mean: c.mean == 1,
        input: Codes { scale: c.input_scale, zero_point: c.input_zero_point },
        output: Codes { scale: c.output_scale, zero_point: c.zero_point },
    };
    let problem = Problem {
        src: slots.map(c.src, &c.dims, &c.src_strides),
        dst: slots.map(c.dst, &c.dst_dims(), &c.dst_strides),
        dims: signed(&c.dims),
        work: Work::Reduce(reduction),
    };
    run(&problem, vector, split)
}

/// Runs a NORM.
pub(crate) fn norm(
    c: &command::Norm,
    slots: Slots<'_>,
    vector: bool,
    split: &Split<'_>,
) -> Result<(), Stop> {
    let terms = slots.region(c.terms);
    let kind = match c.kind {
        norm_kind::LAYER => NormKind::Layer {
            epsilon: c.epsilon,
            terms: (0..i64::from(c.dims.c)).map(|index| pair(terms, index)).collect(),
        },
        norm_kind::INSTANCE => {
            // As many as the operand says, so they are read where they are needed.
            NormKind::Instance { epsilon: c.epsilon, terms, period: u64::from(c.period).max(1) }
        }
        _ => NormKind::Staged {
            staged: Staged {
                first: order(c.order),
                second: order(c.square_order),
                variance: Codes { scale: c.variance_scale, zero_point: c.variance_zero_point },
            },
            divisors: (0..256).map(|index| float(terms, index)).collect(),
        },
    };
    let norm = Norm {
        kind,
        input: Codes { scale: c.input_scale, zero_point: c.input_zero_point },
        output: Codes { scale: c.output_scale, zero_point: c.zero_point },
    };
    let problem = Problem {
        src: slots.map(c.src, &c.dims, &c.src_strides),
        dst: slots.map(c.dst, &c.dims, &c.dst_strides),
        dims: signed(&c.dims),
        work: Work::Norm(Box::new(norm)),
    };
    run(&problem, vector, split)
}

fn float(terms: Region, index: i64) -> f32 {
    f32::from_le_bytes(terms.memory.load_bytes(terms.start + 4 * index))
}

fn pair(terms: Region, index: i64) -> Affine {
    Affine { gain: float(terms, 2 * index), bias: float(terms, 2 * index + 1) }
}

fn order(number: u8) -> Order {
    Order::decode(number).expect("decoding and the check before kernels know it")
}

fn run(problem: &Problem, vector: bool, split: &Split<'_>) -> Result<(), Stop> {
    let [n, h, w, c] = problem.dims;
    // About what a row costs beside multiply-accumulates of vector code.
    let each = split.units_a_chunk(n * h * w, c.saturating_mul(8));
    let rows = n * h * w;
    split.chunks((rows + each - 1) / each, &|chunk, budget| {
        let mut buffers = Buffers::new(problem);
        for row in chunk * each..((chunk + 1) * each).min(rows) {
            budget.spend(c.saturating_mul(8))?;
            #[cfg(target_arch = "x86_64")]
            if vector {
                // SAFETY: `vector` says that the instructions exist; the row lies in the problem.
                unsafe { avx512vnni::row(problem, row, &mut buffers) };
                continue;
            }
            let _ = vector;
            scalar::row(problem, row, &mut buffers);
        }
        Ok(())
    })
}

impl Buffers {
    fn new(p: &Problem) -> Self {
        let len = usize_of(p.dims[3].unsigned_abs());
        let has_squares = match &p.work {
            Work::Reduce(_) => false,
            Work::Norm(norm) => !matches!(norm.kind, NormKind::Layer { .. }),
        };
        Self {
            values: Room::of(0.0, len),
            squares: Room::of(0.0, if has_squares { len } else { 0 }),
        }
    }
}

/// Row `row` of `p`, counted over its images, rows and pixels.
#[inline(always)]
fn compute<I: Instructions, R: Row>(p: &Problem, row: i64, buffers: &mut Buffers) {
    let [_, h, w, _] = p.dims;
    let (n, y, x) = (row / w / h, row / w % h, row % w);
    let (src, dst) = (p.src.at(n, y, x), p.dst.at(n, y, x));
    let row = row.unsigned_abs();
    match &p.work {
        Work::Reduce(reduction) => {
            R::load(p, src, reduction.input, &mut buffers.values);
            p.dst.store(dst, reduction.code(row, &buffers.values));
        }
        Work::Norm(norm) => {
            R::load(p, src, norm.input, &mut buffers.values);
            norm.row::<I>(row, buffers);
            R::store(p, dst, norm.output, &buffers.values);
        }
    }
}

impl Norm {
    #[inline(always)]
    fn row<I: Instructions>(&self, row: u64, buffers: &mut Buffers) {
        let Buffers { values, squares } = buffers;
        match &self.kind {
            NormKind::Layer { epsilon, terms } => {
                let spread = Spread::of_layer::<I>(values, *epsilon);
                for (value, &terms) in values.iter_mut().zip(terms) {
                    *value = spread.in_layer::<I>(*value, terms);
                }
            }
            NormKind::Instance { epsilon, terms, period } => {
                let spread = Spread::of_instance::<I>(row, values, squares, *epsilon);
                let of_row = pair(*terms, (row % period).cast_signed());
                let terms = spread.of_channel(of_row);
                values.iter_mut().for_each(|value| *value = terms.of(*value));
            }
            NormKind::Staged { staged, divisors } => {
                let (mean, code) = staged.of(row, values, squares);
                let divisor = divisors[usize::from(code)];
                values.iter_mut().for_each(|value| *value = (*value - mean) / divisor);
            }
        }
    }
}

//! The functional core: every command as a kernel of the host, all with the same bits.
//!
//! ```text
//! execute -> resolve (every operand against its slot, once) -> kernel of the command -> split over workers
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `operand` | operands resolved to memory |
//! | `control` | abort, preemption, heartbeat |
//! | `split`, `chunks`, `order` | chunks over workers, stopped and resumed between two |
//! | `stage` | the output stage, one scalar at a time |
//! | `conv` | CONV and MATMUL |
//! | `product`, `softmax` | PRODUCT and SOFTMAX |
//! | `rows` | REDUCE and NORM |
//! | `resize` | RESIZE |
//! | `binary`, `pool`, `table`, `layout`, `copy` | the other commands |
//! | `lookup` | PAIR_TABLE and CHANNEL_TABLE |
//! | `vector`, `vector_avx2` | building blocks that the kernels on AVX-512 share, and those on AVX2 |
//!
//! Each command has a scalar kernel, written as the loop that [`npu_uapi::command`] documents, right
//! for every valid command. Beside it lies an AVX-512 kernel for the shapes that models have, and for
//! the commands of image networks one on AVX2, of whose dot products there is a form for AVX-VNNI. Each
//! says what it takes, and the scalar kernel takes the rest. Weights' padding must hold zeros, as the command set
//! says: kernels differ in what they make of other bytes there.

pub(crate) mod binary;
pub(crate) mod chunks;
pub(crate) mod control;
pub(crate) mod conv;
pub(crate) mod copy;
pub(crate) mod layout;
pub(crate) mod lookup;
pub(crate) mod operand;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "vector kernels have them"))]
pub(crate) mod order;
pub(crate) mod pool;
pub(crate) mod product;
pub(crate) mod resize;
pub(crate) mod room;
mod rows;
pub(crate) mod softmax;
pub(crate) mod split;
pub(crate) mod stage;
pub(crate) mod table;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vector;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vector_avx2;

#[cfg(test)]
mod tests;

pub use control::{Control, Engine};

use crate::memory::Extent;
use npu_uapi::command::{Command, Dims, Flags, norm_kind};
use npu_uapi::extent::{Access, accesses, feature_maps};
use npu_uapi::float_order::Order;
use npu_uapi::rows::{MOST_ELEMENTS as MOST_ELEMENTS_OF_A_ROW, Order as SumOrder};
use npu_uapi::status::Status;
use npu_uapi::workers::Workers;
use operand::Slots;
use split::Split;

/// Which kernels run. Where a shape has no kernel of an instruction set, scalar code takes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Isa {
    /// Portable scalar code.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX2 with FMA, and dot products of AVX-VNNI.
    AvxVnni,
    /// AVX-512 with VNNI and VBMI.
    Avx512Vnni,
}

/// Why the instruction set that `NPU_ISA` names cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum IsaError {
    /// No kernels of that name.
    #[error(
        "NPU_ISA is `{found}`; it can be `scalar`, `avx2`, `avx-vnni` or `avx512-vnni`, or unset to choose the best"
    )]
    Unknown {
        /// What was found.
        found: String,
    },
    /// This processor lacks the instructions.
    #[error("NPU_ISA asks for `{}`, which this processor lacks; unset it or use `{}`", .asked.name(), Isa::best().name())]
    Absent {
        /// What was asked for.
        asked: Isa,
    },
}

impl Isa {
    /// All there are, the best first.
    pub const ALL: [Self; 4] = [Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::Scalar];

    /// The best kernels that this processor runs, or those that the variable `NPU_ISA` names.
    pub fn detect() -> Result<Self, IsaError> {
        match std::env::var_os("NPU_ISA") {
            Some(name) => Self::named(&name.to_string_lossy()),
            None => Ok(Self::best()),
        }
    }

    fn named(name: &str) -> Result<Self, IsaError> {
        let asked = match name {
            "scalar" => Self::Scalar,
            "avx2" => Self::Avx2,
            "avx-vnni" => Self::AvxVnni,
            "avx512-vnni" | "avx512vnni" => Self::Avx512Vnni,
            found => return Err(IsaError::Unknown { found: found.to_owned() }),
        };
        if asked.is_available() { Ok(asked) } else { Err(IsaError::Absent { asked }) }
    }

    /// The best kernels that this processor runs.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// Whether this processor runs them.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Scalar => true,
            Self::Avx2 => vector_avx2::is_available(),
            Self::AvxVnni => vector_avx2::is_available() && vector_avx2::has_vnni(),
            Self::Avx512Vnni => vector::is_available(),
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Scalar;
    }

    /// Whether the kernels on vectors of 256 bits run.
    #[cfg(target_arch = "x86_64")]
    fn is_256(self) -> bool {
        matches!(self, Self::Avx2 | Self::AvxVnni)
    }

    /// The name that `NPU_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }
}

/// Why a command did not run to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stop {
    /// [`Engine::abort`]; the command's results are undefined.
    Aborted,
    /// Others come first; the same call resumes the command where it stopped.
    Preempted,
    /// It made no progress; the command's results are undefined.
    Hung,
    /// An operand is not what the slots allow; nothing was read or written.
    Fault {
        /// The operand.
        access: Access,
        /// What is wrong with it.
        status: Status,
    },
}

/// Runs one command on the memory of `slots`.
///
/// Every operand is checked against its slot first, whatever a verifier proved before.
///
/// # Errors
/// A fault, or what `control` asked for. After [`Stop::Preempted`] the same call goes on: with the same
/// command, slots, `isa` and engine, other workers if need be. Operands that were read before the first
/// chunk (tables, channel records) are read again.
pub fn execute(
    command: &Command,
    slots: &[Option<Extent>],
    isa: Isa,
    workers: &dyn Workers,
    control: &Control<'_>,
) -> Result<(), Stop> {
    check(command, slots)?;
    let slots = Slots::new(slots);
    let split = Split { workers, control };
    // The vector kernels need instructions; an `Isa` can be made by hand, so ask once more.
    let isa = if isa.is_available() { isa } else { Isa::Scalar };
    let vector = isa == Isa::Avx512Vnni;
    match command {
        Command::Conv(c) => conv::run(&conv::Problem::of_conv(c, slots), isa, &split),
        Command::MatMul(c) => conv::run(&conv::Problem::of_matmul(c, slots), isa, &split),
        Command::Product(c) => product::run(c, slots, vector, &split),
        Command::Softmax(c) => softmax::run(c, slots, vector, &split),
        Command::Reduce(c) => rows::reduce(c, slots, vector, &split),
        Command::Norm(c) => rows::norm(c, slots, vector, &split),
        Command::Resize(c) => resize::run(c, slots, vector, &split),
        Command::Add(c) => binary::add(c, slots, isa, &split),
        Command::Mul(c) => binary::mul(c, slots, isa, &split),
        Command::Pool(c) => pool::run(c, slots, isa, &split),
        Command::Table(c) => table::run(c, slots, isa, &split),
        Command::PairTable(c) => lookup::pairs(c, slots, vector, &split),
        Command::ChannelTable(c) => lookup::channels(c, slots, vector, &split),
        Command::Layout(c) => layout::run(c, slots, isa, &split),
        Command::Copy(c) => copy::copy(c, slots, &split),
        Command::Fill(c) => copy::fill(c, slots, &split),
        Command::End(_) => Ok(()),
    }
}

/// Sets all of `memory` to `value`, as a command would.
pub(crate) fn poison(
    memory: Extent,
    value: u8,
    workers: &dyn Workers,
    control: &Control<'_>,
) -> Result<(), Stop> {
    copy::fill_all(&memory, value, &Split { workers, control })
}

/// The device's own protection: what the kernels below take for granted.
fn check(command: &Command, slots: &[Option<Extent>]) -> Result<(), Stop> {
    let refused = |field| Stop::Fault {
        access: Access { field, ..Access::default() },
        status: Status::PROGRAM_REFUSED,
    };
    let accesses = accesses(command).map_err(|_| refused(command.name()))?;
    if command.header().flags().contains(Flags::DYNAMIC) {
        return Err(refused("quant"));
    }
    if command.header().flags().contains(Flags::FLOAT) {
        let stage = match command {
            Command::Conv(c) => c.stage,
            Command::MatMul(c) => c.stage,
            _ => return Err(refused("flags")),
        };
        if Order::decode(stage.float_order, stage.float_block_log2).is_none() {
            return Err(refused("stage.float_order"));
        }
    }
    if let Command::Conv(c) = command
        && (c.ifm_dims.c % c.groups != 0 || c.ofm_c % c.groups != 0)
    {
        return Err(refused("groups"));
    }
    if rows_are_wrong(command) {
        return Err(refused("kind"));
    }
    // With strides of zero, dimensions are not bounded by memory; products of them must fit.
    if elements(command).is_none_or(|count| count > MOST_ELEMENTS) {
        return Err(refused("dims"));
    }
    for access in &accesses {
        let fault = |status| Err(Stop::Fault { access: *access, status });
        match slots.get(access.slot.index()).copied().flatten() {
            None => return fault(Status::UNBOUND_SLOT),
            Some(slot) if slot.len() < access.end() => return fault(Status::SLOT_TOO_SMALL),
            Some(slot) if access.write && !slot.is_writable() => {
                return fault(Status::ACCESS_DENIED);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether a command on rows of floats has orders or lengths that decoding would have refused.
fn rows_are_wrong(command: &Command) -> bool {
    let orders: &[u8] = match command {
        Command::Reduce(c) => &[c.order],
        Command::Norm(c) => match c.kind {
            norm_kind::LAYER | norm_kind::INSTANCE => &[],
            norm_kind::STAGED => &[c.order, c.square_order],
            _ => return true,
        },
        _ => &[],
    };
    let (length, shortest) = match command {
        Command::Reduce(c) => (c.dims.c, 1),
        Command::Norm(c) => (c.dims.c, if c.kind == norm_kind::LAYER { 8 } else { 1 }),
        _ => return false,
    };
    orders.iter().any(|&order| SumOrder::decode(order).is_none())
        || !(shortest..=MOST_ELEMENTS_OF_A_ROW).contains(&length)
}

/// Most elements of a tensor that a command computes on: far above any, and sums of products fit.
const MOST_ELEMENTS: u64 = 1 << 48;

/// Elements of the largest tensor of `command`; `None` when there are more than 64 bits count.
fn elements(command: &Command) -> Option<u64> {
    let count = |d: &Dims| {
        [d.h, d.w, d.c].iter().try_fold(u64::from(d.n), |all, &x| all.checked_mul(x.into()))
    };
    if let Command::Layout(layout) = command {
        return count(&layout.dims)?.checked_mul(layout.repeats().into());
    }
    if let Command::Product(product) = command {
        let all = [product.matrices_a(), product.matrices_b(), product.matrices_out()];
        return all.iter().try_fold(0, |most: u64, one| Some(most.max(one.bytes()?)));
    }
    feature_maps(command).iter().try_fold(0, |most: u64, map| Some(most.max(count(&map.dims)?)))
}

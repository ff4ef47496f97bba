//! AVX-512 building blocks that the vector kernels share.
//!
//! ```text
//! memory      raw loads and stores
//! channels    channel records
//! requantise  32-bit sums to codes
//! pairs       sums and products of two tensors' codes
//! lanes       the order of codes in a vector; tables
//! runs        element-wise commands as runs of channels
//! stage       the output stage of CONV and MATMUL
//! turn        sixteen rows of sixteen bytes or words turned
//! ```
//!
//! Equal bits come from equal steps: one IEEE operation for each that the definition writes, fused only
//! where it fuses. `max(v, low)` before `min(v, high)` sends a NaN to `low`, as the definition does.

pub(crate) mod runs;
pub(crate) mod stage;
pub(crate) mod turn;

mod channels;
mod lanes;
mod memory;
mod pairs;
mod requantise;

pub(crate) use channels::{Channels, channels, load_records};
pub(crate) use lanes::{Lookup, in_order, pack_64, pack_lanes, spread_64, unpack_64};
pub(crate) use memory::{
    broadcast_4, load_64, load_codes, load_masked_64, mask_16, mask_64, store_16, store_32,
    store_64,
};
pub(crate) use pairs::{Addition, Multiplication, is_bounded, is_bounded_product};
pub(crate) use requantise::Requantise;

/// Whether this processor has every instruction that the vector kernels use.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vbmi")
}

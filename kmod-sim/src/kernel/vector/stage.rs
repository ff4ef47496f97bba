//! The output stage of CONV and MATMUL in registers: [`OutputStage`] on 16 or 64 lanes.

use super::{Addition, Lookup, Requantise, load_codes, load_masked_64, pack_64, unpack_64};
use crate::kernel::stage::OutputStage;
use std::arch::x86_64::__m512i;

/// An output stage, its immediates spread over lanes.
pub(crate) struct Stage {
    pub(crate) requantise: Requantise,
    table_0: Option<Lookup>,
    add: Option<Addition>,
    aux_first: bool,
    table_1: Option<Lookup>,
    /// Neither table nor addition: requantisation is all.
    pub(crate) plain: bool,
}

impl Stage {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(crate) fn new(stage: &OutputStage) -> Self {
        Self {
            requantise: Requantise::new(stage.zero_point, stage.low, stage.high),
            table_0: stage.table_0.as_ref().map(|table| Lookup::new(table)),
            add: stage.add.map(|terms| Addition::new(terms, 0, 255)),
            aux_first: stage.aux_first,
            table_1: stage.table_1.as_ref().map(|table| Lookup::new(table)),
            plain: stage.table_0.is_none() && stage.add.is_none() && stage.table_1.is_none(),
        }
    }

    /// What comes behind requantisation, for 16 codes.
    ///
    /// # Safety
    /// With an addition, the bytes of `mask` at `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) unsafe fn rest(&self, mut codes: __m512i, mask: u16, aux: *const u8) -> __m512i {
        if let Some(table) = &self.table_0 {
            codes = table.codes(codes);
        }
        if let Some(add) = &self.add {
            // SAFETY: the caller's promise.
            let other = unsafe { load_codes(mask, aux) };
            codes = self.sums(add, codes, other);
        }
        if let Some(table) = &self.table_1 {
            codes = table.codes(codes);
        }
        codes
    }

    /// What comes behind requantisation, for 64 codes as bytes.
    ///
    /// # Safety
    /// With an addition, the bytes of `mask` at `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(crate) unsafe fn rest_64(&self, mut codes: __m512i, mask: u64, aux: *const u8) -> __m512i {
        if let Some(table) = &self.table_0 {
            codes = table.bytes(codes);
        }
        if let Some(add) = &self.add {
            // SAFETY: the caller's promise.
            let others = unpack_64(unsafe { load_masked_64(mask, aux) });
            let mut sums = unpack_64(codes);
            for (codes, other) in sums.iter_mut().zip(others) {
                *codes = self.sums(add, *codes, other);
            }
            codes = pack_64(sums);
        }
        if let Some(table) = &self.table_1 {
            codes = table.bytes(codes);
        }
        codes
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn sums(&self, add: &Addition, codes: __m512i, aux: __m512i) -> __m512i {
        let (first, second) = if self.aux_first { (aux, codes) } else { (codes, aux) };
        add.codes(first, second)
    }
}

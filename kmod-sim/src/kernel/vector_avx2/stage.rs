//! The output stage of CONV and MATMUL on vectors of 256 bits: [`OutputStage`] on 32 lanes.

use super::{
    Addition, Lookup, Requantise, load_codes, load_some, saturate_32, store_some, unpack_32,
};
use crate::kernel::stage::OutputStage;
use std::arch::x86_64::{__m256, __m256i, _mm256_cvtepi32_ps};

/// What an output stage consists of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Requantisation only.
    Plain,
    /// Requantisation, then the addition.
    Sum,
    /// Tables, and perhaps the addition.
    Tables,
}

/// The kinds, as parameters.
pub(crate) const PLAIN: u8 = 0;
pub(crate) const SUM: u8 = 1;
pub(crate) const TABLES: u8 = 2;

/// An output stage, its immediates spread over lanes.
pub(crate) struct Stage {
    pub(crate) requantise: Requantise,
    table_0: Option<Lookup>,
    add: Option<Addition>,
    aux_first: bool,
    table_1: Option<Lookup>,
}

impl Stage {
    #[target_feature(enable = "avx2,fma")]
    pub(crate) fn new(stage: &OutputStage) -> Self {
        Self {
            requantise: Requantise::new(stage.zero_point, stage.low, stage.high),
            table_0: stage.table_0.as_ref().map(|table| Lookup::new(table)),
            add: stage.add.map(|terms| Addition::new(terms)),
            aux_first: stage.aux_first,
            table_1: stage.table_1.as_ref().map(|table| Lookup::new(table)),
        }
    }

    /// What the stage consists of.
    pub(crate) fn kind(&self) -> Kind {
        match (&self.table_0, &self.add, &self.table_1) {
            (None, None, None) => Kind::Plain,
            (None, Some(_), None) => Kind::Sum,
            _ => Kind::Tables,
        }
    }

    /// 32 sums as codes, in order; `aux` has two addresses of `lens` bytes each. `KIND` is that of the stage:
    /// what a loop around this does not need is not kept for it.
    ///
    /// # Safety
    /// With an addition, so many bytes at `aux` must be readable.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    pub(crate) unsafe fn codes<const KIND: u8>(
        &self,
        sums: [__m256i; 4],
        multipliers: [__m256; 4],
        aux: [*const u8; 2],
        lens: [usize; 2],
    ) -> __m256i {
        match KIND {
            PLAIN => self.requantise.bytes(sums, multipliers),
            // SAFETY: the caller's promise.
            SUM => unsafe { self.summed(sums, multipliers, aux, lens) },
            // SAFETY: the caller's promise.
            _ => unsafe { self.any(sums, multipliers, aux, lens) },
        }
    }

    /// Requantisation, and the addition behind it.
    ///
    /// # Safety
    /// As of [`Self::codes`].
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn summed(
        &self,
        sums: [__m256i; 4],
        multipliers: [__m256; 4],
        aux: [*const u8; 2],
        lens: [usize; 2],
    ) -> __m256i {
        let Some(add) = &self.add else { return self.requantise.bytes(sums, multipliers) };
        // SAFETY: the caller's promise.
        let others = unsafe { others(aux, lens) };
        let mut codes = sums;
        for (i, code) in codes.iter_mut().enumerate() {
            let value = self.requantise.floats(*code, multipliers[i]);
            *code = self.sum(add, value, _mm256_cvtepi32_ps(others[i]));
        }
        saturate_32(codes)
    }

    /// The same with tables.
    ///
    /// # Safety
    /// As of [`Self::codes`].
    #[target_feature(enable = "avx2,fma")]
    #[inline(never)]
    unsafe fn any(
        &self,
        sums: [__m256i; 4],
        multipliers: [__m256; 4],
        aux: [*const u8; 2],
        lens: [usize; 2],
    ) -> __m256i {
        if self.table_0.is_none() {
            // SAFETY: the caller's promise.
            return self.last(unsafe { self.summed(sums, multipliers, aux, lens) });
        }
        let bytes = self.requantise.bytes(sums, multipliers);
        // SAFETY: the caller's promise.
        unsafe { self.rest(bytes, aux, lens) }
    }

    /// What comes behind requantisation, for 32 codes.
    ///
    /// # Safety
    /// As of [`Self::codes`].
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn rest(&self, mut bytes: __m256i, aux: [*const u8; 2], lens: [usize; 2]) -> __m256i {
        if let Some(table) = &self.table_0 {
            bytes = table.bytes(bytes);
        }
        if let Some(add) = &self.add {
            let mut codes = unpack_32(bytes);
            // SAFETY: the caller's promise.
            let others = unsafe { others(aux, lens) };
            for (code, other) in codes.iter_mut().zip(others) {
                *code = self.sum(add, _mm256_cvtepi32_ps(*code), _mm256_cvtepi32_ps(other));
            }
            bytes = saturate_32(codes);
        }
        self.last(bytes)
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn sum(&self, add: &Addition, code: __m256, aux: __m256) -> __m256i {
        if self.aux_first { add.rounded(aux, code) } else { add.rounded(code, aux) }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn last(&self, bytes: __m256i) -> __m256i {
        self.table_1.as_ref().map_or(bytes, |table| table.bytes(bytes))
    }
}

/// Two runs of up to 16 codes as integers.
///
/// # Safety
/// So many bytes as `lens` says must be readable.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn others(aux: [*const u8; 2], lens: [usize; 2]) -> [__m256i; 4] {
    if lens == [16, 16] {
        let [a, b] = aux;
        let at = [a, a.wrapping_add(8), b, b.wrapping_add(8)];
        // SAFETY: the caller's promise, for 16 of each.
        return at.map(|at| unsafe { load_codes(at) });
    }
    let mut bytes = [0u8; 32];
    for ((at, len), to) in aux.into_iter().zip(lens).zip(bytes.chunks_exact_mut(16)) {
        // SAFETY: the caller's promise; at most 16.
        let some = unsafe { load_some(at, len.min(16)) };
        // SAFETY: 16 bytes of the array.
        unsafe { store_some(to.as_mut_ptr(), 16, some) };
    }
    // SAFETY: the array.
    unpack_32(unsafe { load_some(bytes.as_ptr(), 32) })
}

//! The output stage of CONV and MATMUL in registers: [`OutputStage`] on 16 or 64 lanes.

use super::lanes::saturate_lanes;
use super::{
    Addition, Channels, Lookup, Requantise, in_order, load_codes, load_masked_64, pack_64,
    unpack_64,
};
use crate::kernel::stage::OutputStage;
use std::arch::x86_64::{
    __m128i, __m512, __m512i, _mm_loadu_si128, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
};

/// What an output stage consists of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    /// Requantisation only, by small multipliers, and saturation is all that bounds its codes.
    Bare,
    /// Requantisation only.
    Plain,
    /// Requantisation, then the addition of the auxiliary tensor.
    Sum,
    /// Requantisation, then the addition to the auxiliary tensor.
    SumAuxFirst,
    /// Requantisation, then one table.
    Table,
    /// Requantisation, then one table, then the addition of the auxiliary tensor.
    TableSum,
    /// Tables and the addition otherwise.
    Tables,
}

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
    pub(crate) fn new(stage: &OutputStage, channels: Channels) -> Self {
        // With the bounds of the codes that it is for, where there are any: this is done for each chunk.
        let is_bounded = (stage.low, stage.high) != (0, u8::MAX);
        let bounded = |table: [u8; 256]| -> [u8; 256] {
            if !is_bounded {
                return table;
            }
            std::array::from_fn(|code| table[code.clamp(stage.low.into(), stage.high.into())])
        };
        // Without an addition between them, two tables are one.
        let (table_0, table_1) = match (&stage.add, &stage.table_0, &stage.table_1) {
            (None, Some(first), Some(second)) => {
                (Some(first.map(|code| second[usize::from(code)])), None)
            }
            (None, None, Some(second)) => (Some(*second), None),
            _ => (stage.table_0, stage.table_1),
        };
        Self {
            requantise: Requantise::new(stage.zero_point, stage.low, stage.high)
                .with_multipliers(channels),
            table_0: table_0.map(|table| Lookup::new(&bounded(table))),
            add: stage.add.map(|terms| Addition::new(terms, 0, 255)),
            aux_first: stage.aux_first,
            table_1: table_1.map(|table| Lookup::new(&table)),
            plain: stage.table_0.is_none() && stage.add.is_none() && stage.table_1.is_none(),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match (&self.table_0, &self.add, &self.table_1) {
            (None, None, None) if self.requantise.is_bare() => Kind::Bare,
            (None, None, None) => Kind::Plain,
            (None, Some(_), None) if self.aux_first => Kind::SumAuxFirst,
            (None, Some(_), None) => Kind::Sum,
            (Some(_), None, _) => Kind::Table,
            (Some(_), Some(_), None) if !self.aux_first => Kind::TableSum,
            _ => Kind::Tables,
        }
    }

    /// Requantisation of four vectors of 16 sums, as bytes in order.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn plain_64(&self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        in_order(self.requantise.lanes(sums, multipliers))
    }

    /// The same where all multipliers are small.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn small_64(&self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        in_order(self.requantise.small_lanes(sums, multipliers))
    }

    /// The same for [`Kind::Bare`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn bare_64(sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        in_order(Requantise::bare_lanes(sums, multipliers))
    }

    /// The same where all multipliers are small, through the table of a stage that adds nothing.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn small_table_64(&self, sums: [__m512i; 4], multipliers: [__m512; 4]) -> __m512i {
        // The table has the bounds.
        self.one_table(in_order(self.requantise.unbounded_lanes(sums, multipliers)))
    }

    /// The same and the addition behind it.
    ///
    /// # Safety
    /// The bytes of `masks` at `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) unsafe fn sum_64<const AUX_FIRST: bool>(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        masks: [u16; 4],
        aux: [*const u8; 4],
    ) -> __m512i {
        let Some(add) = self.add else { return self.plain_64(sums, multipliers) };
        let mut codes = sums;
        for i in 0..4 {
            let code = self.requantise.floats(sums[i], multipliers[i]);
            // SAFETY: the caller's promise.
            let other = _mm512_cvtepi32_ps(unsafe { load_codes(masks[i], aux[i]) });
            let (first, second) = if AUX_FIRST { (other, code) } else { (code, other) };
            codes[i] = add.rounded(first, second);
        }
        in_order(saturate_lanes(codes))
    }

    /// The same of pixels of whole blocks, where no sum of two codes leaves 32 bits.
    ///
    /// # Safety
    /// 16 bytes at each of `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) unsafe fn sum_within<const AUX_FIRST: bool>(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        aux: [*const u8; 4],
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let codes = aux.map(|aux| unsafe { _mm_loadu_si128(aux.cast()) });
        self.sum_of_codes::<AUX_FIRST>(sums, multipliers, codes)
    }

    /// The same with auxiliary codes that were read.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn sum_of_codes<const AUX_FIRST: bool>(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        aux: [__m128i; 4],
    ) -> __m512i {
        let Some(add) = &self.add else { return self.plain_64(sums, multipliers) };
        let mut codes = sums;
        for i in 0..4 {
            let code = self.requantise.floats(sums[i], multipliers[i]);
            let other = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(aux[i]));
            let (first, second) = if AUX_FIRST { (other, code) } else { (code, other) };
            codes[i] = add.rounded_within(first, second);
        }
        in_order(saturate_lanes(codes))
    }

    /// The table of a stage that adds nothing, if it has one.
    pub(crate) fn table(&self) -> Option<Lookup> {
        self.table_0
    }

    /// Codes through that table.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn one_table(&self, bytes: __m512i) -> __m512i {
        self.table_0.as_ref().map_or(bytes, |table| table.bytes(bytes))
    }

    /// Requantisation, the table, and the addition, of pixels of whole blocks, where multipliers are small
    /// and no sum of two codes leaves 32 bits.
    ///
    /// # Safety
    /// 16 bytes at each of `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) unsafe fn table_sum_within(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        aux: [*const u8; 4],
    ) -> __m512i {
        // SAFETY: the caller's promise.
        let codes = aux.map(|aux| unsafe { _mm_loadu_si128(aux.cast()) });
        self.table_sum_of_codes(sums, multipliers, codes)
    }

    /// The same with auxiliary codes that were read.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) fn table_sum_of_codes(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        aux: [__m128i; 4],
    ) -> __m512i {
        let bytes = self.small_table_64(sums, multipliers);
        let Some(add) = &self.add else { return bytes };
        let mut codes = unpack_64(bytes);
        for (codes, aux) in codes.iter_mut().zip(aux) {
            let second = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(aux));
            *codes = add.rounded_within(_mm512_cvtepi32_ps(*codes), second);
        }
        in_order(saturate_lanes(codes))
    }

    /// The same with tables before and behind the addition, whichever there are.
    ///
    /// # Safety
    /// With an addition, the bytes of `masks` at `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    pub(crate) unsafe fn any_64(
        &self,
        sums: [__m512i; 4],
        multipliers: [__m512; 4],
        masks: [u16; 4],
        aux: [*const u8; 4],
    ) -> __m512i {
        let mut bytes = match (&self.table_0, &self.add) {
            (None, Some(_)) if self.aux_first => {
                // SAFETY: the caller's promise.
                unsafe { self.sum_64::<true>(sums, multipliers, masks, aux) }
            }
            // SAFETY: the caller's promise.
            (None, Some(_)) => unsafe { self.sum_64::<false>(sums, multipliers, masks, aux) },
            _ => self.plain_64(sums, multipliers),
        };
        if let Some(table) = &self.table_0 {
            bytes = table.bytes(bytes);
            if let Some(add) = &self.add {
                let mut sums = unpack_64(bytes);
                for i in 0..4 {
                    // SAFETY: the caller's promise.
                    let other = unsafe { load_codes(masks[i], aux[i]) };
                    sums[i] = self.sums(add, sums[i], other);
                }
                bytes = pack_64(sums);
            }
        }
        self.table_1.as_ref().map_or(bytes, |table| table.bytes(bytes))
    }

    /// What comes behind requantisation, for 64 codes as bytes.
    ///
    /// # Safety
    /// With an addition, the bytes of `mask` at `aux` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(crate) unsafe fn rest_64(&self, codes: __m512i, mask: u64, aux: *const u8) -> __m512i {
        if self.add.is_none() {
            return self.rest_of_codes(codes, codes);
        }
        // SAFETY: the caller's promise.
        self.rest_of_codes(codes, unsafe { load_masked_64(mask, aux) })
    }

    /// The same with auxiliary codes that were read; any where nothing is added.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    pub(crate) fn rest_of_codes(&self, mut codes: __m512i, aux: __m512i) -> __m512i {
        if let Some(table) = &self.table_0 {
            codes = table.bytes(codes);
        }
        if let Some(add) = &self.add {
            let mut sums = unpack_64(codes);
            for (codes, other) in sums.iter_mut().zip(unpack_64(aux)) {
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

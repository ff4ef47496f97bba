//! Back-to-back products of 8-bit numbers, one loop for each instruction set. What is unsafe of the
//! benchmark is here: calling code that this processor may lack, and statements that the compiler cannot see through.
//!
//! 16 (AVX2: 8) sums that do not depend on each other hide the time of one product. The empty statement
//! after each keeps the compiler from computing all rounds at once.

/// GMAC/s of one thread.
pub(super) type Rate = fn() -> f64;

/// AVX-512 VNNI, AVX-VNNI, AVX2 by bytes and by 16-bit words; `None` where this processor lacks it.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn loops() -> [Option<Rate>; 4] {
    [None; 4]
}

#[cfg(target_arch = "x86_64")]
pub(super) use on_x86::loops;

#[cfg(target_arch = "x86_64")]
mod on_x86 {
    use super::Rate;
    use std::arch::asm;
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_setzero_si256, _mm512_dpbusd_epi32,
        _mm512_set1_epi8, _mm512_setzero_si512,
    };
    use std::time::Instant;

    /// A few milliseconds.
    const ROUNDS: u32 = 300_000;

    pub(in super::super) fn loops() -> [Option<Rate>; 4] {
        let has_512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
        let (has_vnni, has_2) =
            (is_x86_feature_detected!("avxvnni"), is_x86_feature_detected!("avx2"));
        [
            // SAFETY: the processor has what the loop uses.
            has_512.then_some((|| unsafe { avx512_vnni() }) as Rate),
            // SAFETY: the processor has what the loop uses.
            has_vnni.then_some((|| unsafe { avx_vnni() }) as Rate),
            // SAFETY: the processor has what the loop uses.
            has_2.then_some((|| unsafe { avx2_bytes() }) as Rate),
            // SAFETY: the processor has what the loop uses.
            has_2.then_some((|| unsafe { avx2_words() }) as Rate),
        ]
    }

    fn rate(products: u32, started: Instant) -> f64 {
        f64::from(ROUNDS) * f64::from(products) / started.elapsed().as_secs_f64() / 1e9
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512_vnni() -> f64 {
        let (one, two) = (_mm512_set1_epi8(1), _mm512_set1_epi8(2));
        let mut sums = [_mm512_setzero_si512(); 16];
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, one, two);
                // SAFETY: an empty statement.
                unsafe { asm!("/* {0} */", inout(zmm_reg) * sum, options(nomem, nostack)) };
            }
        }
        rate(16 * 64, started)
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avx_vnni() -> f64 {
        let (one, two) = (_mm256_set1_epi8(1), _mm256_set1_epi8(2));
        let mut sums = [_mm256_setzero_si256(); 12];
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, one, two);
                // SAFETY: an empty statement.
                unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack)) };
            }
        }
        rate(12 * 32, started)
    }

    #[target_feature(enable = "avx2")]
    fn avx2_bytes() -> f64 {
        let (mut one, two, ones) = (_mm256_set1_epi8(1), _mm256_set1_epi8(2), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 8];
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // SAFETY: an empty statement; without it the product would be taken out of the loop.
                unsafe { asm!("/* {0} */", inout(ymm_reg) one, options(nomem, nostack)) };
                let pairs = _mm256_maddubs_epi16(one, two);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                // SAFETY: an empty statement.
                unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack)) };
            }
        }
        rate(8 * 32, started)
    }

    #[target_feature(enable = "avx2")]
    fn avx2_words() -> f64 {
        let (mut one, two) = (_mm256_set1_epi16(1), _mm256_set1_epi16(2));
        let mut sums = [_mm256_setzero_si256(); 8];
        let started = Instant::now();
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // SAFETY: an empty statement; without it the product would be taken out of the loop.
                unsafe { asm!("/* {0} */", inout(ymm_reg) one, options(nomem, nostack)) };
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(one, two));
                // SAFETY: an empty statement.
                unsafe { asm!("/* {0} */", inout(ymm_reg) * sum, options(nomem, nostack)) };
            }
        }
        rate(8 * 16, started)
    }
}

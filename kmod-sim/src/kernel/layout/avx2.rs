//! LAYOUT between floats and codes on AVX2, where one dimension of each side is contiguous.
//!
//! - the same one on both (channels, or pixels of a row): runs of 32;
//! - f32 planes of up to four channels to pixels of four bytes, as for a model's image: 32 pixels at a
//!   time, joined by unpacking.
//!
//! Everything else is the scalar kernel's.

use crate::kernel::Stop;
use crate::kernel::layout::{Conversion, Problem, offset};
use crate::kernel::split::Split;
use crate::kernel::vector_avx2::{Requantise, all, load_some, store_some, unpack_32};
use crate::memory::{isize_of, usize_of};
use std::arch::x86_64::{
    __m256, __m256i, _mm256_cvtepi32_ps, _mm256_div_ps, _mm256_loadu_ps, _mm256_mul_ps,
    _mm256_permute2x128_si256, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_storeu_ps, _mm256_sub_epi32, _mm256_unpackhi_epi8, _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16,
};

/// How a problem is walked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Walk {
    /// Contiguous along pixels on both sides.
    Pixels,
    /// Contiguous along channels on both sides.
    Channels,
    /// Planes to pixels of four bytes.
    Image,
}

fn walk(p: &Problem) -> Option<Walk> {
    let [from, to] = match p.conversion {
        Conversion::Quantise => [4, 1],
        Conversion::Dequantise => [1, 4],
        Conversion::MoveBytes | Conversion::MoveFloats => return None,
    };
    let [.., w, c] = p.dims;
    let along = |stride: i64, bytes: i64, count: i64| count == 1 || stride == bytes;
    let contiguous = |s: &[i64; 5], b| (along(s[3], b, w), along(s[4], b, c));
    let (src_pixels, src_channels) = contiguous(&p.src_strides, from);
    let (dst_pixels, dst_channels) = contiguous(&p.dst_strides, to);
    let image = p.conversion == Conversion::Quantise && c <= 4 && p.dst_strides[3] == 4;
    if image && src_pixels && dst_channels && w > 1 {
        return Some(Walk::Image);
    }
    match (src_pixels && dst_pixels, src_channels && dst_channels) {
        (true, true) if w > c => Some(Walk::Pixels),
        (_, true) => Some(Walk::Channels),
        (true, _) => Some(Walk::Pixels),
        _ => None,
    }
}

/// Whether this kernel takes `problem`.
pub(crate) fn takes(p: &Problem) -> bool {
    walk(p).is_some()
}

/// Runs `problem`.
///
/// # Safety
/// `takes(problem)`, on a processor with AVX2 and FMA.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let Some(walk) = walk(p) else {
        return Ok(());
    };
    let [outer, images, rows, w, c] = p.dims;
    // Units are a piece of a row: many pixels by 16 channels, or the other way around.
    let (pixels, channels) = match walk {
        Walk::Channels => (PIECE / c.min(PIECE), c.min(PIECE)),
        Walk::Image => (PIECE, c),
        Walk::Pixels => (PIECE, 16),
    };
    let (groups, pieces) = ((c + channels - 1) / channels, (w + pixels - 1) / pixels);
    let units = outer * images * rows * pieces * groups;
    let cost = w.min(pixels) * c.min(channels) * 8;
    let units_a_chunk = split.units_a_chunk(units, cost);
    split.chunks((units + units_a_chunk - 1) / units_a_chunk, &|chunk, budget| {
        let first = chunk * units_a_chunk;
        for unit in first..(first + units_a_chunk).min(units) {
            let (piece, group) = (unit / groups, unit % groups);
            let (row, piece) = (piece / pieces, piece % pieces);
            let (image, y) = (row / rows, row % rows);
            let at = [image / images, image % images, y, piece * pixels, group * channels];
            budget.spend(cost)?;
            let src = p.src.start + offset(&p.src_strides, at);
            let dst = p.dst.start + offset(&p.dst_strides, at);
            let piece = Piece {
                p,
                src: p.src.memory.pointer(src, 1),
                dst: p.dst.memory.pointer(dst, 1),
                pixels: pixels.min(w - at[3]),
                channels: channels.min(c - at[4]),
            };
            // SAFETY: the processor is the caller's promise; the piece exists.
            unsafe { piece.convert(walk) };
        }
        Ok(())
    })
}

/// Most pixels of a piece of a row, or most channels where they are the run.
const PIECE: i64 = 4096;

/// Some pixels of a row, some of their channels.
struct Piece<'a> {
    p: &'a Problem,
    src: *const u8,
    dst: *mut u8,
    pixels: i64,
    channels: i64,
}

impl Piece<'_> {
    /// Addresses of element `(x, ch)` of this piece on both sides.
    #[inline]
    fn at(&self, x: i64, ch: i64) -> (*const u8, *mut u8) {
        let at = [0, 0, 0, x, ch];
        let src = isize_of(offset(&self.p.src_strides, at));
        let dst = isize_of(offset(&self.p.dst_strides, at));
        (self.src.wrapping_offset(src), self.dst.wrapping_offset(dst))
    }

    /// # Safety
    /// As of [`run`]; `walk` is the problem's.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn convert(&self, walk: Walk) {
        let (w, channels) = (self.pixels, self.channels);
        match walk {
            Walk::Channels => {
                for x in 0..w {
                    for ch in (0..channels).step_by(32) {
                        // SAFETY: so many channels exist and are contiguous on both sides.
                        unsafe { self.run(x, ch, channels - ch) };
                    }
                }
            }
            Walk::Pixels => {
                for ch in 0..channels {
                    for x in (0..w).step_by(32) {
                        // SAFETY: so many pixels exist and are contiguous on both sides.
                        unsafe { self.run(x, ch, w - x) };
                    }
                }
            }
            Walk::Image => {
                for x in (0..w).step_by(32) {
                    // SAFETY: at least one pixel from `x` on exists.
                    unsafe { self.join(x) };
                }
            }
        }
    }

    /// Up to 32 of `count` elements from `(x, ch)` on.
    ///
    /// # Safety
    /// As of [`run`]; they exist and are contiguous on both sides.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn run(&self, x: i64, ch: i64, count: i64) {
        let (from, to) = self.at(x, ch);
        let count = usize_of(count.min(32).unsigned_abs());
        if self.p.conversion == Conversion::Quantise {
            // SAFETY: the caller's promise.
            let codes = unsafe { self.quantised(from, count) };
            // SAFETY: the caller's promise.
            unsafe { store_some(to, count, codes) };
            return;
        }
        // SAFETY: the caller's promise.
        let codes = unsafe { load_some(from, count) };
        let (zero_point, scale) = (all(self.p.zero_point.into()), _mm256_set1_ps(self.p.scale));
        let mut floats = [0f32; 32];
        for (to, codes) in floats.chunks_exact_mut(8).zip(unpack_32(codes)) {
            let value = _mm256_cvtepi32_ps(_mm256_sub_epi32(codes, zero_point));
            let value = _mm256_mul_ps(value, scale);
            // SAFETY: eight floats of the array.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) };
        }
        // SAFETY: the caller's promise; the array has 32.
        unsafe { floats.as_ptr().cast::<u8>().copy_to_nonoverlapping(to, 4 * count) };
    }

    /// Codes of `count` contiguous floats, at most 32.
    ///
    /// # Safety
    /// They are readable; vector instructions are present.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn quantised(&self, from: *const u8, count: usize) -> __m256i {
        let mut some = [0f32; 32];
        let from = if count == 32 {
            from.cast()
        } else {
            // SAFETY: the caller's promise; the array has 32.
            unsafe { from.copy_to_nonoverlapping(some.as_mut_ptr().cast(), 4 * count.min(32)) };
            some.as_ptr()
        };
        let scale = _mm256_set1_ps(self.p.scale);
        let mut values: [__m256; 4] = [_mm256_setzero_ps(); 4];
        for (index, value) in values.iter_mut().enumerate() {
            // SAFETY: 32 floats, of the caller's or of the array.
            let floats = unsafe { _mm256_loadu_ps(from.wrapping_add(8 * index)) };
            *value = _mm256_div_ps(floats, scale);
        }
        Requantise::new(self.p.zero_point, 0, 255).finish(values)
    }

    /// Up to 32 pixels from `x` on, each of up to four channels in four bytes; pad lanes stay.
    ///
    /// # Safety
    /// As of [`run`]; the source is contiguous along pixels, the result's pixels are four bytes.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn join(&self, x: i64) {
        let count = usize_of((self.pixels - x).min(32).unsigned_abs());
        let mut planes = [_mm256_setzero_si256(); 4];
        for (ch, plane) in (0..self.channels).zip(&mut planes) {
            // SAFETY: so many pixels exist.
            *plane = unsafe { self.quantised(self.at(x, ch).0, count) };
        }
        let [a, b, c, d] = planes;
        let (low_ab, high_ab) = (_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b));
        let (low_cd, high_cd) = (_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d));
        // Pixels 0-3 and 16-19, 4-7 and 20-23, and so on.
        let quads = [
            _mm256_unpacklo_epi16(low_ab, low_cd),
            _mm256_unpackhi_epi16(low_ab, low_cd),
            _mm256_unpacklo_epi16(high_ab, high_cd),
            _mm256_unpackhi_epi16(high_ab, high_cd),
        ];
        let in_order = [
            _mm256_permute2x128_si256::<0x20>(quads[0], quads[1]),
            _mm256_permute2x128_si256::<0x20>(quads[2], quads[3]),
            _mm256_permute2x128_si256::<0x31>(quads[0], quads[1]),
            _mm256_permute2x128_si256::<0x31>(quads[2], quads[3]),
        ];
        let mut pixels = [0u8; 128];
        for (to, eight) in pixels.chunks_exact_mut(32).zip(in_order) {
            // SAFETY: 32 bytes of the array.
            unsafe { store_some(to.as_mut_ptr(), 32, eight) };
        }
        let channels = usize_of(self.channels.unsigned_abs());
        let to = self.at(x, 0).1;
        for (index, pixel) in pixels.chunks_exact(4).enumerate().take(count) {
            // SAFETY: the channels of a pixel that exists.
            unsafe {
                pixel.as_ptr().copy_to_nonoverlapping(to.wrapping_add(4 * index), channels.min(4));
            }
        }
    }
}

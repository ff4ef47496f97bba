//! LAYOUT on AVX-512, where one dimension of each side is contiguous.
//!
//! - the same one on both (channels, or pixels of a row): runs of 16;
//! - pixels on one and channels on the other, as between NCHW and NHWC: tiles of 16 by 16, turned on the
//!   stack;
//! - f32 planes of up to four channels to pixels of four bytes, as for a model's image, and back, as for
//!   a map that it gives: 16 pixels at a time, joined or parted in registers.
//!
//! Moves of bytes have a kernel of their own; everything else is the scalar kernel's.

use crate::kernel::Stop;
use crate::kernel::layout::{Conversion, Problem, offset};
use crate::kernel::split::Split;
use crate::kernel::vector::{Requantise, load_codes, load_masked_64, mask_16, store_16, store_64};
use crate::memory::isize_of;
use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castps_si512,
    _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps, _mm512_div_ps, _mm512_i32gather_epi32,
    _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps, _mm512_maskz_set1_epi32, _mm512_mul_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srli_epi32, _mm512_storeu_si512, _mm512_sub_epi32,
    _mm512_test_epi8_mask,
};

/// How a problem is walked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Walk {
    /// Contiguous along pixels on both sides.
    Pixels,
    /// Contiguous along channels on both sides.
    Channels,
    /// Contiguous along pixels in the source, along channels in the result.
    ToChannels,
    /// The other way around.
    ToPixels,
    /// Planes to pixels of four bytes.
    Image,
    /// The other way around.
    Planes,
}

/// Bytes of an element of source and result.
fn bytes(p: &Problem) -> Option<[i64; 2]> {
    match p.conversion {
        Conversion::Quantise => Some([4, 1]),
        Conversion::Dequantise => Some([1, 4]),
        Conversion::MoveBytes | Conversion::MoveFloats => None,
    }
}

fn walk(p: &Problem) -> Option<Walk> {
    let [from, to] = bytes(p)?;
    let [.., w, c] = p.dims;
    let along = |stride: i64, bytes: i64, count: i64| count == 1 || stride == bytes;
    let src = |s: &[i64; 5], b| (along(s[3], b, w), along(s[4], b, c));
    let ((src_pixels, src_channels), (dst_pixels, dst_channels)) =
        (src(&p.src_strides, from), src(&p.dst_strides, to));
    let image = p.conversion == Conversion::Quantise && c <= 4 && p.dst_strides[3] == 4;
    if image && src_pixels && dst_channels && w > 1 {
        return Some(Walk::Image);
    }
    let planes = p.conversion == Conversion::Dequantise && c <= 4 && p.src_strides[3] == 4;
    if planes && src_channels && dst_pixels && w > 1 {
        return Some(Walk::Planes);
    }
    match (src_pixels && dst_pixels, src_channels && dst_channels) {
        (true, true) if w > c => Some(Walk::Pixels),
        (_, true) => Some(Walk::Channels),
        (true, _) => Some(Walk::Pixels),
        _ if src_pixels && dst_channels => Some(Walk::ToChannels),
        _ if src_channels && dst_pixels => Some(Walk::ToPixels),
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
/// `takes(problem)`, on a processor with the vector instructions.
pub(crate) unsafe fn run(p: &Problem, split: &Split<'_>) -> Result<(), Stop> {
    let Some(walk) = walk(p) else {
        return Ok(());
    };
    let [outer, images, rows, w, c] = p.dims;
    // Units are a piece of a row: many pixels by 16 channels, or the other way around.
    let (pixels, channels) = match walk {
        Walk::Channels => (PIECE / c.min(PIECE), c.min(PIECE)),
        Walk::Image | Walk::Planes => (PIECE, c),
        Walk::Pixels | Walk::ToChannels | Walk::ToPixels => (PIECE, 16),
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
            // SAFETY: the processor is the caller's promise.
            let piece = unsafe { Piece::new(p, at, pixels, channels) };
            // SAFETY: as above; the piece exists.
            unsafe { piece.convert(walk) };
        }
        Ok(())
    })
}

/// Most pixels of a piece of a row, or most channels where they are the run.
const PIECE: i64 = 4096;

/// Asks for what lies a page behind `at`: a model's input comes from memory, page by page, as no processor
/// looks behind the end of one by itself.
#[inline]
fn ask(at: *const u8) {
    // SAFETY: a hint, which reads nothing: any address will do.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4096).cast()) };
}

/// Some pixels of a row, some of their channels.
struct Piece<'a> {
    p: &'a Problem,
    src: *const u8,
    dst: *mut u8,
    pixels: i64,
    channels: i64,
    convert: Convert,
}

/// The conversion in registers.
struct Convert {
    quantise: bool,
    scale: __m512,
    zero_point: __m512i,
    finish: Requantise,
}

impl Convert {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &Problem) -> Self {
        Self {
            quantise: p.conversion == Conversion::Quantise,
            scale: _mm512_set1_ps(p.scale),
            zero_point: _mm512_set1_epi32(p.zero_point.into()),
            finish: Requantise::new(p.zero_point, 0, 255),
        }
    }

    /// Up to 16 contiguous elements, converted: codes as integers, or floats as their bits.
    ///
    /// # Safety
    /// The elements of `mask` at `from` must be readable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn load(&self, from: *const u8, mask: u16) -> __m512i {
        if self.quantise {
            // SAFETY: the caller's promise; masked-out lanes are not accessed.
            let values = unsafe { _mm512_maskz_loadu_ps(mask, from.cast()) };
            return self.finish.finish(_mm512_div_ps(values, self.scale));
        }
        // SAFETY: the caller's promise.
        self.floats(unsafe { load_codes(mask, from) })
    }

    /// Codes as integers to floats, as their bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn floats(&self, codes: __m512i) -> __m512i {
        let value = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, self.zero_point));
        _mm512_castps_si512(_mm512_mul_ps(value, self.scale))
    }

    /// Stores what [`Self::load`] gave.
    ///
    /// # Safety
    /// The elements of `mask` at `to` must be writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    unsafe fn store(&self, to: *mut u8, mask: u16, lanes: __m512i) {
        if self.quantise {
            let codes = _mm512_cvtepi32_epi8(lanes);
            // SAFETY: the caller's promise.
            unsafe { store_16(to, mask, codes) }
        } else {
            // SAFETY: the caller's promise; masked-out lanes are not accessed.
            unsafe { _mm512_mask_storeu_epi32(to.cast(), mask, lanes) }
        }
    }

    /// `count` elements that are contiguous on both sides.
    ///
    /// # Safety
    /// They must be readable and writable.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn run(&self, (mut from, mut to): (*const u8, *mut u8), count: i64) {
        let (src, dst) = if self.quantise { (64, 16) } else { (16, 64) };
        for done in (0..count).step_by(16) {
            let mask = mask_16(count - done);
            ask(from);
            // SAFETY: the elements of the mask, the caller's promise.
            let lanes = unsafe { self.load(from, mask) };
            // SAFETY: as above.
            unsafe { self.store(to, mask, lanes) };
            (from, to) = (from.wrapping_add(src), to.wrapping_add(dst));
        }
    }
}

impl<'a> Piece<'a> {
    /// # Safety
    /// As of [`run`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    fn new(p: &'a Problem, at: [i64; 5], pixels: i64, channels: i64) -> Self {
        let src = p.src.start + offset(&p.src_strides, at);
        let dst = p.dst.start + offset(&p.dst_strides, at);
        Self {
            p,
            src: p.src.memory.pointer(src, 1),
            dst: p.dst.memory.pointer(dst, 1),
            pixels: pixels.min(p.dims[3] - at[3]),
            channels: channels.min(p.dims[4] - at[4]),
            convert: Convert::new(p),
        }
    }

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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn convert(&self, walk: Walk) {
        let (w, channels) = (self.pixels, self.channels);
        match walk {
            Walk::Channels => {
                for x in 0..w {
                    // SAFETY: the channels exist and are contiguous on both sides.
                    unsafe { self.convert.run(self.at(x, 0), channels) };
                }
            }
            Walk::Pixels => {
                for ch in 0..channels {
                    // SAFETY: the pixels exist and are contiguous on both sides.
                    unsafe { self.convert.run(self.at(0, ch), w) };
                }
            }
            Walk::ToChannels | Walk::ToPixels => {
                for x in (0..w).step_by(16) {
                    // SAFETY: at least one pixel from `x` on exists.
                    unsafe { self.turn(x, walk == Walk::ToChannels) };
                }
            }
            Walk::Image => {
                let join = match channels {
                    1 => Self::join::<1>,
                    2 => Self::join::<2>,
                    3 => Self::join::<3>,
                    _ => Self::join::<4>,
                };
                // SAFETY: the piece has so many channels.
                unsafe { join(self) };
            }
            Walk::Planes => {
                for x in (0..w).step_by(16) {
                    // SAFETY: at least one pixel from `x` on exists.
                    unsafe { self.part(x) };
                }
            }
        }
    }

    /// A tile of up to 16 pixels from `x` on by all channels, at most 16, through the stack.
    ///
    /// # Safety
    /// As of [`run`]; the source is contiguous along pixels and the result along channels when
    /// `to_channels`, else the other way around.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn turn(&self, x: i64, to_channels: bool) {
        let (pixels, channels) = ((self.pixels - x).min(16), self.channels);
        let (loads, lanes) = if to_channels { (channels, pixels) } else { (pixels, channels) };
        let mut tile = [[0i32; 16]; 16];
        for (i, row) in (0..loads).zip(&mut tile) {
            let (from, _) = if to_channels { self.at(x, i) } else { self.at(x + i, 0) };
            // SAFETY: that many contiguous elements exist.
            let converted = unsafe { self.convert.load(from, mask_16(lanes)) };
            // SAFETY: a row of the tile has 16 elements.
            unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), converted) };
        }
        let steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let down = _mm512_slli_epi32::<4>(steps);
        for i in 0..lanes {
            let column = tile.as_ptr().cast::<i32>().wrapping_offset(isize_of(i));
            // SAFETY: element `i` of each of the tile's 16 rows.
            let turned = unsafe { _mm512_i32gather_epi32::<4>(down, column) };
            let (_, to) = if to_channels { self.at(x + i, 0) } else { self.at(x, i) };
            // SAFETY: that many contiguous elements exist.
            unsafe { self.convert.store(to, mask_16(loads), turned) };
        }
    }

    /// Pixels of `CHANNELS` channels, each in four bytes; pad lanes stay.
    ///
    /// # Safety
    /// As of [`run`]; the piece has so many channels, at most four, the source is contiguous along pixels,
    /// the result's pixels are four bytes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn join<const CHANNELS: usize>(&self) {
        let planes: [*const u8; CHANNELS] =
            std::array::from_fn(|ch| self.at(0, i64::try_from(ch).unwrap_or(0)).0);
        let (_, to) = self.at(0, 0);
        for x in (0..self.pixels).step_by(16) {
            let pixels = mask_16(self.pixels - x);
            let mut joined = _mm512_setzero_si512();
            for plane in planes.iter().rev() {
                let from = plane.wrapping_offset(isize_of(4 * x));
                ask(from);
                // SAFETY: the pixels of the mask exist.
                let codes = unsafe { self.convert.load(from, pixels) };
                joined = _mm512_or_si512(_mm512_slli_epi32::<8>(joined), codes);
            }
            let real = self.real(pixels);
            // SAFETY: the real channels of the pixels of the mask.
            unsafe { store_64(to.wrapping_offset(isize_of(4 * x)), real, joined) };
        }
    }

    /// Up to 16 pixels from `x` on, each of up to four channels in four bytes, to as many planes.
    ///
    /// # Safety
    /// As of [`run`]; the source's pixels are four bytes, the result is contiguous along pixels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    unsafe fn part(&self, x: i64) {
        let pixels = mask_16(self.pixels - x);
        let real = self.real(pixels);
        // SAFETY: the real channels of the pixels of the mask; pad lanes may lie beyond the memory.
        let mut joined = unsafe { load_masked_64(real, self.at(x, 0).0) };
        for ch in 0..self.channels {
            let codes = _mm512_and_si512(joined, _mm512_set1_epi32(0xff));
            joined = _mm512_srli_epi32::<8>(joined);
            let floats = self.convert.floats(codes);
            // SAFETY: the pixels of the mask exist.
            unsafe { self.convert.store(self.at(x, ch).1, pixels, floats) };
        }
    }

    /// The bytes of `pixels` of four bytes that are channels.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")]
    #[inline]
    fn real(&self, pixels: u16) -> u64 {
        let lanes = u32::MAX >> (32 - 8 * u32::try_from(self.channels).unwrap_or(4).min(4));
        let real = _mm512_maskz_set1_epi32(pixels, lanes.cast_signed());
        _mm512_test_epi8_mask(real, real)
    }
}

//! Where a tile's inputs and results lie: addresses of its pixels, and the runs of its reduction.
//! Unsafe: rows under the padding are copied from the input.

use super::{Job, MOST_PIXELS, ROOM};
use crate::memory::{isize_of, usize_of};
use std::cell::RefCell;

/// Most bytes that are copied for a tile at the padding, of what its windows cover: a small part of the
/// level-1 cache. Wider pixels make up for the shorter runs of single taps.
const MOST_WINDOW: i64 = 8 << 10;

/// The pixels of a tile: where their windows begin in the input, and where their results go.
pub(in crate::kernel::conv) struct Pixels {
    pub(in crate::kernel::conv) count: usize,
    /// Whether no window reaches into the padding.
    inside: bool,
    /// First tap of each pixel's window; an address outside the input when that is in the padding.
    input: [*const u8; MOST_PIXELS],
    /// Row and column of that tap.
    y: [i64; MOST_PIXELS],
    x: [i64; MOST_PIXELS],
    pub(in crate::kernel::conv) out: [*mut u8; ROOM],
    pub(in crate::kernel::conv) aux: [*const u8; ROOM],
    /// With sums of floats, the norm of what each window covers.
    pub(in crate::kernel::conv) norms: [f32; ROOM],
    /// Where weights have zero points, the sum of what each window covers, of one group's channels.
    pub(in crate::kernel::conv) sums: Option<[i32; ROOM]>,
    /// Pixel of the tile, block of all groups and lanes that an integer sum does not settle.
    pub(in crate::kernel::conv) unsettled: RefCell<Vec<(usize, i64, u16)>>,
}

impl Pixels {
    /// Pixels `first .. first + count` of the output, counted through rows and images.
    pub(in crate::kernel::conv) fn new(job: &Job<'_>, first: i64, count: i64) -> Self {
        let (row, mut ox) = (first / job.ofm_w, first % job.ofm_w);
        let (mut n, mut oy) = (row / job.ofm_h, row % job.ofm_h);
        let w = &job.window;
        let last_y = job.ifm_h - 1 - (w.kernel_h - 1) * w.dilation_h;
        let last_x = job.ifm_w - 1 - (w.kernel_w - 1) * w.dilation_w;
        let mut pixels = Self {
            count: usize_of(count.unsigned_abs()),
            inside: true,
            input: [std::ptr::null(); MOST_PIXELS],
            y: [0; MOST_PIXELS],
            x: [0; MOST_PIXELS],
            out: [std::ptr::null_mut(); ROOM],
            aux: [std::ptr::null(); ROOM],
            norms: [0.0; ROOM],
            sums: None,
            unsettled: RefCell::new(Vec::new()),
        };
        // By rows of the output: within one, addresses step by a stride.
        let input_step = isize_of(w.stride_w).wrapping_mul(job.ifm.pixel);
        let mut r = 0;
        while r < pixels.count {
            let end = pixels.count.min(r + usize_of((job.ofm_w - ox).unsigned_abs()));
            let (y, mut x) = (w.row(oy, 0), w.column(ox, 0));
            let mut input = job.ifm.at(n, y, x);
            let mut out = job.ofm.at(n, oy, ox);
            let (mut aux, aux_step) = match &job.aux {
                Some(aux) => (aux.at(n, oy, ox), aux.pixel),
                None => (std::ptr::null_mut(), 0),
            };
            pixels.inside &= y >= 0 && y <= last_y && x >= 0;
            for r in r..end {
                pixels.input[r] = input;
                (pixels.y[r], pixels.x[r]) = (y, x);
                (pixels.out[r], pixels.aux[r]) = (out, aux);
                input = input.wrapping_offset(input_step);
                out = out.wrapping_offset(job.ofm.pixel);
                aux = aux.wrapping_offset(aux_step);
                x += w.stride_w;
            }
            pixels.inside &= x - w.stride_w <= last_x;
            (r, ox, oy) = (end, 0, oy + 1);
            if oy == job.ofm_h {
                (oy, n) = (0, n + 1);
            }
        }
        // What is read to fill a four of vectors is a pixel that exists.
        let last = pixels.aux[pixels.count - 1];
        pixels.aux[pixels.count..].fill(last);
        pixels
    }

    /// The runs of a tile's reduction, in the order of the weights.
    pub(in crate::kernel::conv) fn runs<'a>(
        &self,
        job: &Job<'_>,
        addresses: &'a mut Vec<[*const u8; MOST_PIXELS]>,
        window: &mut Vec<u8>,
    ) -> Runs<'a> {
        let w = &job.window;
        addresses.clear();
        // Contiguous columns are one run.
        let merged = job.contiguous_rows && (self.inside || self.copy(job, addresses, window));
        let steps =
            usize_of(if merged { job.steps * w.kernel_w } else { job.steps }.unsigned_abs());
        if merged && w.kernel_h == 1 && self.inside {
            addresses.push(self.input);
        } else if addresses.is_empty() {
            let columns = if merged { 1 } else { w.kernel_w };
            for ky in 0..w.kernel_h {
                addresses.extend((0..columns).map(|kx| self.tap(job, ky, kx)));
            }
        }
        Runs { addresses, steps, next: std::ptr::null() }
    }

    /// Copies what the windows of a tile cover into `window`, with zero points for the padding, and puts
    /// the addresses of each pixel's kernel rows into `addresses`; not when it is too much.
    fn copy(
        &self,
        job: &Job<'_>,
        addresses: &mut Vec<[*const u8; MOST_PIXELS]>,
        window: &mut Vec<u8>,
    ) -> bool {
        let w = &job.window;
        let pixel = 4 * job.steps;
        // Pixels of one row of the output share what their windows cover.
        let mut segments = [(0, 0); MOST_PIXELS];
        let (mut count, mut len) = (0, 0);
        for r in 0..self.count {
            let next =
                r > 0 && self.y[r] == self.y[r - 1] && self.x[r] == self.x[r - 1] + w.stride_w;
            if !next {
                segments[count].0 = r;
                count += 1;
                len += w.kernel_h * w.kernel_w * pixel;
            } else {
                len += w.kernel_h * w.stride_w * pixel;
            }
            segments[count - 1].1 = r + 1;
        }
        if len > MOST_WINDOW {
            return false;
        }
        window.clear();
        window.resize(usize_of(len.unsigned_abs()), job.problem.input_zero_point);
        addresses.resize(usize_of(w.kernel_h.unsigned_abs()), [std::ptr::null(); MOST_PIXELS]);
        let mut to = window.as_mut_ptr();
        for &(first, end) in &segments[..count] {
            let x = self.x[first];
            let columns = self.x[end - 1] - x + w.kernel_w;
            let (left, right) = ((-x).max(0), (job.ifm_w - x).min(columns));
            for (ky, addresses) in (0..w.kernel_h).zip(addresses.iter_mut()) {
                let dy = ky * w.dilation_h;
                if (0..job.ifm_h).contains(&(self.y[first] + dy)) && left < right {
                    let from = self.input[first]
                        .wrapping_offset(isize_of(dy).wrapping_mul(job.ifm.row))
                        .wrapping_offset(isize_of(left * pixel));
                    let len = usize_of(((right - left) * pixel).unsigned_abs());
                    // SAFETY: whole pixels of a row of the input; `len` above counts their places.
                    unsafe {
                        from.copy_to_nonoverlapping(to.wrapping_offset(isize_of(left * pixel)), len)
                    };
                }
                for (address, at) in addresses[first..end].iter_mut().zip(&self.x[first..end]) {
                    *address = to.wrapping_offset(isize_of((at - x) * pixel));
                }
                to = to.wrapping_offset(isize_of(columns * pixel));
            }
        }
        true
    }

    /// Addresses under tap `(ky, kx)`, or of the zero points in the padding.
    pub(super) fn tap(&self, job: &Job<'_>, ky: i64, kx: i64) -> [*const u8; MOST_PIXELS] {
        let (dy, dx) = (ky * job.window.dilation_h, kx * job.window.dilation_w);
        let offset = isize_of(dy).wrapping_mul(job.ifm.row);
        let offset = offset.wrapping_add(isize_of(dx).wrapping_mul(job.ifm.pixel));
        let mut at = self.input;
        for (r, at) in at.iter_mut().enumerate() {
            let outside = !self.inside
                && (!(0..job.ifm_h).contains(&(self.y[r] + dy))
                    || !(0..job.ifm_w).contains(&(self.x[r] + dx)));
            *at = if outside { job.padding.as_ptr() } else { at.wrapping_offset(offset) };
        }
        at
    }
}

/// What a tile's reduction reads: runs of steps, from an address for each pixel.
pub(in crate::kernel::conv) struct Runs<'a> {
    pub(in crate::kernel::conv) addresses: &'a [[*const u8; MOST_PIXELS]],
    pub(in crate::kernel::conv) steps: usize,
    /// Weights to be asked for meanwhile, a line a step; may lie behind the last.
    pub(in crate::kernel::conv) next: *const u8,
}

//! Pillow's Gaussian blur: three box blurs along the rows, then three along the columns, each rounded to 8 bits.
//!
//! A box of radius ρ = r + fraction weighs 2r + 1 pixels fully and the two beyond them by the fraction; pixels outside
//! the image repeat the border. ρ is chosen such that three boxes have the variance σ² (Gwosdek et al., "Theoretical
//! foundations of Gaussian convolution by extended box filtering", 2011).

use multiversion::multiversion;

const PASSES: usize = 3;

/// Weights of one box in 24-bit fixed point; 2r + 1 of `full` and two of `edge` make 2^24.
struct BoxFilter {
    r: usize,
    full: u32,
    edge: u32,
}

impl BoxFilter {
    /// `None` for a radius of zero, which changes nothing.
    fn of(sigma: f64) -> Option<BoxFilter> {
        // Pillow computes in f32 except where C promotes; other roundings would move weights.
        let sigma = sigma as f32;
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * variance as f64 + 1.0).sqrt() as f32;
        let l = ((length as f64 - 1.0) / 2.0).floor() as f32;
        let a = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance);
        let radius = l + a / (6.0 * (variance - (l + 1.0) * (l + 1.0)));
        if radius == 0.0 {
            return None;
        }
        let r = radius as usize;
        let full = ((1 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        Some(BoxFilter { r, full, edge: ((1 << 24) - (2 * r as u32 + 1) * full) / 2 })
    }

    /// `y[i]` from the taps `x[starts[d] + i]`, d = 0 ..= 2r + 2: a row and its shifts, or rows.
    #[inline(always)]
    fn apply(&self, y: &mut [u8], x: &[u8], starts: &[usize]) {
        // The published blurs reach as far as five taps; known numbers of them keep the sums in registers.
        match starts.len() {
            3 => self.few::<3>(y, x, starts),
            5 => self.few::<5>(y, x, starts),
            _ => self.many(y, x, starts),
        }
    }

    #[inline(always)]
    fn few<const TAPS: usize>(&self, y: &mut [u8], x: &[u8], starts: &[usize]) {
        // Crops are full blocks wide. Without blocks the compiler takes 64 at a time, and one by one what is left.
        let (blocks, rest) = y.as_chunks_mut::<BLOCK>();
        let mut at = 0;
        for y in blocks {
            let mut taps = [[0; BLOCK]; TAPS];
            for d in 0..TAPS {
                taps[d].copy_from_slice(&x[starts[d] + at..][..BLOCK]);
            }
            for i in 0..BLOCK {
                let mut sum = 0;
                for d in 1..TAPS - 1 {
                    sum += taps[d][i] as u32;
                }
                y[i] = self.weighed(sum, taps[0][i], taps[TAPS - 1][i]);
            }
            at += BLOCK;
        }
        self.many(rest, &x[at..], starts);
    }

    #[inline(always)]
    fn many(&self, y: &mut [u8], x: &[u8], starts: &[usize]) {
        let (low, high) = (&x[starts[0]..], &x[starts[starts.len() - 1]..]);
        for i in 0..y.len() {
            let sum = starts[1..starts.len() - 1].iter().map(|start| x[start + i] as u32).sum();
            y[i] = self.weighed(sum, low[i], high[i]);
        }
    }

    #[inline(always)]
    fn weighed(&self, sum: u32, low: u8, high: u8) -> u8 {
        ((sum * self.full + (low as u32 + high as u32) * self.edge + (1 << 23)) >> 24) as u8
    }
}

/// Values whose sums are kept in registers.
const BLOCK: usize = 32;

/// Buffers that can be used again.
#[derive(Default)]
pub struct Scratch {
    row: Vec<u8>,
    plane: Vec<u8>,
    starts: Vec<usize>,
}

/// Blurs planes of rows of `width`, each `height` rows, in place. `sigma` in pixels; zero changes nothing.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gaussian_blur(planes: &mut [u8], height: usize, width: usize, sigma: f64, scratch: &mut Scratch) {
    let Some(taps) = BoxFilter::of(sigma).filter(|_| height * width > 0) else { return };
    let Scratch { row: padded, plane: other, starts } = scratch;
    let reach = taps.r + 1;
    padded.resize(width + 2 * reach, 0);
    starts.clear();
    starts.extend(0..=2 * reach);
    for row in planes.chunks_exact_mut(width) {
        for _ in 0..PASSES {
            padded[..reach].fill(row[0]);
            padded[reach..reach + width].copy_from_slice(row);
            padded[reach + width..].fill(row[width - 1]);
            taps.apply(row, padded, starts);
        }
    }

    for plane in planes.chunks_exact_mut(height * width) {
        for _ in 0..PASSES {
            other.clear();
            other.extend_from_slice(plane);
            for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                starts.clear();
                starts.extend((0..=2 * reach).map(|d| (y + d).saturating_sub(reach).min(height - 1) * width));
                taps.apply(row, other, starts);
            }
        }
    }
}

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
    fn apply(&self, y: &mut [u8], sums: &mut [u32], x: &[u8], starts: &[usize]) {
        let (n, last) = (y.len(), starts.len() - 1);
        let (y, sums) = (&mut y[..n], &mut sums[..n]);
        let tap = |d: usize| &x[starts[d]..][..n];
        let [low, first, high] = [0, 1, last].map(tap);
        for i in 0..n {
            sums[i] = first[i] as u32;
        }
        for d in 2..last {
            let x = tap(d);
            for i in 0..n {
                sums[i] += x[i] as u32;
            }
        }
        for i in 0..n {
            let edges = low[i] as u32 + high[i] as u32;
            y[i] = ((sums[i] * self.full + edges * self.edge + (1 << 23)) >> 24) as u8;
        }
    }
}

/// Buffers that can be used again.
#[derive(Default)]
pub struct Scratch {
    row: Vec<u8>,
    plane: Vec<u8>,
    starts: Vec<usize>,
    sums: Vec<u32>,
}

/// Blurs planes of rows of `width`, each `height` rows, in place. `sigma` in pixels; zero changes nothing.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn gaussian_blur(planes: &mut [u8], height: usize, width: usize, sigma: f64, scratch: &mut Scratch) {
    let Some(taps) = BoxFilter::of(sigma).filter(|_| height * width > 0) else { return };
    let Scratch { row: padded, plane: other, starts, sums } = scratch;
    let reach = taps.r + 1;
    padded.resize(width + 2 * reach, 0);
    sums.resize(width, 0);
    starts.clear();
    starts.extend(0..=2 * reach);
    for row in planes.chunks_exact_mut(width) {
        for _ in 0..PASSES {
            padded[..reach].fill(row[0]);
            padded[reach..reach + width].copy_from_slice(row);
            padded[reach + width..].fill(row[width - 1]);
            taps.apply(row, sums, padded, starts);
        }
    }

    for plane in planes.chunks_exact_mut(height * width) {
        for _ in 0..PASSES {
            other.clear();
            other.extend_from_slice(plane);
            for (y, row) in plane.chunks_exact_mut(width).enumerate() {
                starts.clear();
                starts.extend((0..=2 * reach).map(|d| (y + d).saturating_sub(reach).min(height - 1) * width));
                taps.apply(row, sums, other, starts);
            }
        }
    }
}

//! Pillow's Gaussian blur: three box blurs along the rows, then three along the columns, each rounded to 8 bits.
//!
//! A box of radius ρ = r + fraction weighs 2r + 1 pixels fully and the two beyond them by the fraction; pixels outside
//! the image repeat the border. ρ is chosen such that three boxes have the variance σ² (Gwosdek et al., "Theoretical
//! foundations of Gaussian convolution by extended box filtering", 2011).

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

    /// `y[i]` from the taps `x(d)[i]`, d = 0 ..= 2r + 2, all of the same length: a row and its shifts, or rows.
    fn apply<'a>(&self, y: &mut [u8], sums: &mut [u32], x: impl Fn(usize) -> &'a [u8]) {
        let last = 2 * self.r + 2;
        sums.fill(0);
        for d in 1..last {
            for (sum, x) in sums.iter_mut().zip(x(d)) {
                *sum += *x as u32;
            }
        }
        for (((y, sum), low), high) in y.iter_mut().zip(sums).zip(x(0)).zip(x(last)) {
            *y = ((*sum * self.full + (*low as u32 + *high as u32) * self.edge + (1 << 23)) >> 24) as u8;
        }
    }
}

/// Buffers that can be used again.
#[derive(Default)]
pub struct Scratch {
    row: Vec<u8>,
    image: Vec<u8>,
    sums: Vec<u32>,
}

/// Blurs `height * width * 3` bytes (R G B interleaved) in place. `sigma` in pixels; zero changes nothing.
pub fn gaussian_blur(pixels: &mut [u8], width: usize, sigma: f64, scratch: &mut Scratch) {
    let stride = width * 3;
    let Some(taps) = BoxFilter::of(sigma).filter(|_| stride > 0) else { return };
    let height = pixels.len() / stride;
    let Scratch { row: padded, image: other, sums } = scratch;
    sums.clear();
    sums.resize(stride, 0);

    let reach = taps.r + 1;
    padded.clear();
    padded.resize(stride + 6 * reach, 0);
    for row in pixels.chunks_exact_mut(stride) {
        for _ in 0..PASSES {
            let (left, rest) = padded.split_at_mut(3 * reach);
            let (middle, right) = rest.split_at_mut(stride);
            left.as_chunks_mut::<3>().0.fill([row[0], row[1], row[2]]);
            middle.copy_from_slice(row);
            right.as_chunks_mut::<3>().0.fill([row[stride - 3], row[stride - 2], row[stride - 1]]);
            taps.apply(row, sums, |d| &padded[3 * d..3 * d + stride]);
        }
    }

    other.clear();
    other.resize(pixels.len(), 0);
    for _ in 0..PASSES {
        other.copy_from_slice(pixels);
        for (y, row) in pixels.chunks_exact_mut(stride).enumerate() {
            let at = |d: usize| (y + d).saturating_sub(reach).min(height - 1) * stride;
            taps.apply(row, sums, |d| &other[at(d)..at(d) + stride]);
        }
    }
}

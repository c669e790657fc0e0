//! Resizing 8-bit images as Pillow does: separable, the filter widened when shrinking so that nothing aliases, weights
//! in 22-bit fixed point, rounded to 8 bits between the horizontal pass, which comes first, and the vertical one.
//!
//! y_o = ( ½ + Σ_i w_oi x_i ) >> 22,   w_oi ∝ f((i + ½ − c_o) / s),   c_o = (o + ½) n_in / n_out,   s = max(1, n_in / n_out)
//!
//! The published recipe was trained on Pillow up to 12; torch's `interpolate` is another function (a = −0.75, no widening).

use crate::data::Image;

const FRACTION: u32 = 22;
const HALF: i32 = 1 << (FRACTION - 1);

/// The interpolation kernel f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The triangle of radius 1.
    Bilinear,
    /// Keys' cubic of radius 2 with a = −0.5.
    Bicubic,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Filter::Bicubic => 0.0,
        }
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Region {
    /// All of an image of this size.
    pub fn whole(height: usize, width: usize) -> Region {
        Region { top: 0, left: 0, height, width }
    }
}

/// Which inputs make each output of one axis, and by how much.
#[derive(Default)]
struct Taps {
    /// First input, first weight and number of weights of each output.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
    exact: Vec<f64>,
}

impl Taps {
    /// For the outputs `from .. from + count` of an axis that goes from `n_in` to `n_out` pixels.
    fn fill(&mut self, n_in: usize, n_out: usize, from: usize, count: usize, filter: Filter) {
        self.spans.clear();
        self.weights.clear();
        let scale = n_in as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let (reach, shrink) = (filter.radius() * stretch, 1.0 / stretch);
        for o in from..from + count {
            let centre = (o as f64 + 0.5) * scale;
            let low = (centre - reach + 0.5).max(0.0) as usize;
            let high = ((centre + reach + 0.5) as usize).min(n_in);
            self.exact.clear();
            self.exact.extend((low..high).map(|i| filter.at((i as f64 - centre + 0.5) * shrink)));
            // At the border the kernel is cut off: what is left is scaled back to one.
            let sum: f64 = self.exact.iter().sum();
            self.spans.push((low, self.weights.len(), high - low));
            self.weights.extend(self.exact.iter().map(|w| {
                let fixed = w / sum * (1u32 << FRACTION) as f64;
                (fixed + if fixed < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
        }
    }

    /// The outputs in order: first input, weights.
    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans.iter().map(|&(low, at, n)| (low, &self.weights[at..at + n]))
    }

    /// The inputs that any output needs.
    fn needed(&self) -> std::ops::Range<usize> {
        let low = self.spans.iter().map(|s| s.0).min().unwrap_or(0);
        low..self.spans.iter().map(|s| s.0 + s.2).max().unwrap_or(low)
    }
}

fn round(sum: i32) -> u8 {
    (sum >> FRACTION).clamp(0, 255) as u8
}

/// Reusable buffers; a resizer carries nothing from one image to the next.
#[derive(Default)]
pub struct Resizer {
    columns: Taps,
    rows: Taps,
    /// The needed source rows after the horizontal pass.
    middle: Vec<u8>,
    sums: Vec<i32>,
}

impl Resizer {
    /// Cuts `source` out of the image, resizes the cut (no pixel outside it has a say) to `size` = (height, width), and
    /// writes the `window` of the result to `out`, which becomes `window.height * window.width * 3` bytes.
    ///
    /// `source` lies in the image, `window` in `size`, and neither is empty.
    pub fn run(
        &mut self,
        out: &mut Vec<u8>,
        image: &Image,
        source: Region,
        size: (usize, usize),
        window: Region,
        filter: Filter,
    ) {
        assert!(source.top + source.height <= image.height && source.left + source.width <= image.width, "{source:?}");
        assert!(window.top + window.height <= size.0 && window.left + window.width <= size.1, "{window:?} of {size:?}");
        assert!(source.height > 0 && source.width > 0, "nothing to resize in {source:?}");
        self.columns.fill(source.width, size.1, window.left, window.width, filter);
        self.rows.fill(source.height, size.0, window.top, window.height, filter);

        let needed = self.rows.needed();
        self.middle.clear();
        for y in needed.clone() {
            let start = ((source.top + y) * image.width + source.left) * 3;
            let row = &image.pixels[start..start + source.width * 3];
            for (low, weights) in self.columns.iter() {
                let (pixels, _) = row[low * 3..(low + weights.len()) * 3].as_chunks::<3>();
                let mut sum = [HALF; 3];
                for (pixel, w) in pixels.iter().zip(weights) {
                    for c in 0..3 {
                        sum[c] += pixel[c] as i32 * w;
                    }
                }
                self.middle.extend_from_slice(&sum.map(round));
            }
        }

        let stride = window.width * 3;
        out.clear();
        for (low, weights) in self.rows.iter() {
            self.sums.clear();
            self.sums.resize(stride, HALF);
            let first = (low - needed.start) * stride;
            for (row, w) in self.middle[first..].chunks_exact(stride).zip(weights) {
                for (sum, x) in self.sums.iter_mut().zip(row) {
                    *sum += *x as i32 * w;
                }
            }
            out.extend(self.sums.iter().map(|&s| round(s)));
        }
    }
}

/// The whole image at another size.
pub fn resize(image: &Image, height: usize, width: usize, filter: Filter) -> Image {
    resized_crop(image, Region::whole(image.height, image.width), height, width, filter)
}

/// The part `source` of the image at another size. `source` lies in the image and is not empty.
pub fn resized_crop(image: &Image, source: Region, height: usize, width: usize, filter: Filter) -> Image {
    let mut pixels = Vec::new();
    Resizer::default().run(&mut pixels, image, source, (height, width), Region::whole(height, width), filter);
    Image { width, height, channels: image.channels, pixels }
}

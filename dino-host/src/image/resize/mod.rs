//! Resizing 8-bit images as Pillow does: separable, the filter widened when shrinking so that nothing aliases, weights
//! in 22-bit fixed point, rounded to 8 bits between the passes.
//!
//! y_o = ( ½ + Σ_i w_oi x_i ) >> 22,   w_oi ∝ f((i + ½ − c_o) / s),   c_o = (o + ½) n_in / n_out,   s = max(1, n_in / n_out)
//!
//! The published recipe was trained on Pillow up to 12; torch's `interpolate` is another function (a = −0.75, no widening).

mod passes;
mod taps;

use crate::image::Image;
use crate::image::planes::interleaved;
use taps::Taps;

/// The interpolation kernel f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The mean over a pixel's width.
    Box,
    /// The triangle of radius 1.
    Bilinear,
    /// Keys' cubic of radius 2 with a = −0.5.
    Bicubic,
    /// The sinc windowed by a sinc of three times its width.
    Lanczos,
}

impl Filter {
    fn radius(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let far = x.abs();
        match self {
            // A border between two inputs belongs to one of them.
            Filter::Box if x > -0.5 && x <= 0.5 => 1.0,
            Filter::Bilinear => (1.0 - far).max(0.0),
            Filter::Bicubic if far < 1.0 => ((A + 2.0) * far - (A + 3.0)) * far * far + 1.0,
            Filter::Bicubic if far < 2.0 => (((far - 5.0) * far + 8.0) * far - 4.0) * A,
            Filter::Lanczos if far < 3.0 => sinc(x) * sinc(x / 3.0),
            Filter::Box | Filter::Bicubic | Filter::Lanczos => 0.0,
        }
    }
}

/// sin(pi x) / (pi x)
fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { libm::sin(x) / x }
}

/// Which pass comes first; the rounding between them lets it show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Horizontal, as in Pillow up to 12, on which the published recipe was trained.
    #[default]
    Pillow12,
    /// As in Pillow 13: vertical where the height shrinks by more than twice the pixels that the width shrinks by.
    Pillow13,
}

impl Order {
    fn vertical_first(self, from: (usize, usize), to: (usize, usize)) -> bool {
        let [height, width] = [from.0 as i64 - to.0 as i64, from.1 as i64 - to.1 as i64];
        self == Order::Pillow13 && height > 0 && height > 2 * width
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
    pub fn full(height: usize, width: usize) -> Region {
        Region { top: 0, left: 0, height, width }
    }
}

/// Reusable buffers; a resizer carries nothing from one image to the next.
#[derive(Default)]
pub struct Resizer {
    /// Which pass comes first.
    pub order: Order,
    columns: Taps,
    rows: Taps,
    strip: Strip,
    /// Lines between the passes.
    middle: Vec<u8>,
    /// Lines before or after them.
    other: Vec<u8>,
}

/// A transposed strip of rows, before and after the horizontal pass.
#[derive(Default)]
struct Strip {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Strip {
    /// The horizontal pass over `count` rows: `out` `(count, stride)`, in each row `(channels, outputs)`.
    fn run<'a>(
        &mut self,
        out: &mut [u8],
        stride: usize,
        taps: &Taps,
        channels: usize,
        count: usize,
        row: impl Fn(usize) -> &'a [u8],
    ) {
        self.before.resize(row(0).len() * passes::STRIP, 0);
        self.after.resize(channels * taps.len() * passes::STRIP, 0);
        for (at, out) in out[..count * stride].chunks_mut(passes::STRIP * stride).enumerate() {
            let first = at * passes::STRIP;
            let rows: [&[u8]; passes::STRIP] = std::array::from_fn(|y| row((first + y).min(count - 1)));
            passes::transpose_rows(&mut self.before, &rows);
            passes::horizontal(&mut self.after, &self.before, taps, channels);
            passes::transpose_back(out, stride, &self.after);
        }
    }
}

impl Resizer {
    /// Cuts `source` out of the image, resizes the cut (no pixel outside it has an effect) to `size` = (height, width), and
    /// writes the `window` of the result to `out`, which becomes planes: `(channels, window.height, window.width)` bytes.
    ///
    /// `source` is within the image, `window` within `size`, and neither is empty.
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
        assert!(window.height > 0 && window.width > 0, "nothing wanted in {window:?}");
        let channels = image.channels;
        let Resizer { order, columns, rows, strip, middle, other } = self;
        columns.fill(source.width, size.1, window.left, window.width, filter);
        rows.fill(source.height, size.0, window.top, window.height, filter);
        out.resize(channels * window.height * window.width, 0);

        let needed = rows.needed();
        let wide = source.width * channels;
        let input = |y: usize| {
            let start = ((source.top + needed.start + y) * image.width + source.left) * channels;
            &image.pixels[start..start + wide]
        };
        let stride = passes::padded(window.width * channels);
        if order.vertical_first((source.height, source.width), size) {
            let wide_stride = passes::padded(wide);
            other.resize(needed.len() * wide_stride, 0);
            for (y, line) in other.chunks_exact_mut(wide_stride).enumerate() {
                line[..wide].copy_from_slice(input(y));
            }
            middle.resize(window.height * wide_stride, 0);
            for (line, (low, weights)) in middle.chunks_exact_mut(wide_stride).zip(rows.iter()) {
                passes::vertical(line, &other[(low - needed.start) * wide_stride..], wide_stride, weights);
            }
            other.resize(window.height * stride, 0);
            strip.run(other, stride, columns, channels, window.height, |y| &middle[y * wide_stride..][..wide]);
            for (y, line) in other.chunks_exact(stride).take(window.height).enumerate() {
                write_line(out, window, y, line);
            }
        } else {
            middle.resize(needed.len() * stride, 0);
            strip.run(middle, stride, columns, channels, needed.len(), input);
            other.resize(stride, 0);
            for (y, (low, weights)) in rows.iter().enumerate() {
                passes::vertical(other, &middle[(low - needed.start) * stride..], stride, weights);
                write_line(out, window, y, other);
            }
        }
    }
}

/// Row `y` of every plane from a line `(channels, width)`, which may be longer.
fn write_line(out: &mut [u8], window: Region, y: usize, line: &[u8]) {
    let planes = out.chunks_exact_mut(window.height * window.width);
    for (plane, row) in planes.zip(line.chunks_exact(window.width)) {
        plane[y * window.width..][..window.width].copy_from_slice(row);
    }
}

/// The entire image at another size.
pub fn resize(image: &Image, height: usize, width: usize, filter: Filter) -> Image {
    resized_crop(image, Region::full(image.height, image.width), height, width, filter, Order::default())
}

/// The part `source` of the image at another size. `source` is within the image and is not empty.
pub fn resized_crop(image: &Image, source: Region, height: usize, width: usize, filter: Filter, order: Order) -> Image {
    let mut planes = Vec::new();
    let mut resizer = Resizer { order, ..Resizer::default() };
    resizer.run(&mut planes, image, source, (height, width), Region::full(height, width), filter);
    Image { width, height, channels: image.channels, pixels: interleaved(&planes, image.channels) }
}

//! The view of an image that is evaluated.

use crate::image::Image;
use crate::image::planes::{self, normalize};
use crate::image::resize::{Filter, Region, Resizer};

/// How an image becomes the square that is evaluated. It belongs to the configuration: all images of a set go the same way, whatever
/// their sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalView {
    /// Shorter side to 8/7 of the square's (published: 256 for 224), bicubic, and the central square of that.
    ResizeCrop,
    /// Shorter side to the square's, bicubic, so that of a square image nothing is cut; one that has the size is taken as it is.
    Whole,
}

impl EvalView {
    /// The value of the key `eval-view`.
    pub fn name(self) -> &'static str {
        match self {
            EvalView::ResizeCrop => "resize-crop",
            EvalView::Whole => "whole",
        }
    }

    /// Pixels of an image's shorter side, of which the square of side `size` is cut.
    pub fn short(self, size: usize) -> usize {
        match self {
            EvalView::ResizeCrop => (size * 8 + 3) / 7, // to the nearest
            EvalView::Whole => size,
        }
    }
}

/// The square of side `size` that is evaluated of an image, normalized to `out` `(channels, size, size)`.
///
/// `out` is `channels * size * size` long, `mean` and `std` have a number a channel of the image, `size` is at least 1 and the image
/// is not empty.
pub fn eval_view(image: &Image, size: usize, view: EvalView, mean: &[f64], std: &[f64], out: &mut [f32]) {
    assert_eq!(mean.len(), image.channels, "a mean a channel");
    assert_eq!(out.len(), mean.len() * size * size, "a view of side {size} has channels * side * side values");
    if view == EvalView::Whole && (image.height, image.width) == (size, size) {
        return normalize(out, &planes::planes(image), mean, std);
    }
    normalize(out, &center(image, view.short(size), size), mean, std);
}

/// torchvision's `Resize(short)` and `CenterCrop(size)`: the shorter side becomes `short`, the longer one is cut to an
/// integer, and the central square of side `size <= short` is kept (only its pixels are computed).
pub fn resize_and_center(image: &Image, short: usize, size: usize) -> Image {
    let pixels = planes::interleaved(&center(image, short, size), image.channels);
    Image { width: size, height: size, channels: image.channels, pixels }
}

/// The planes of [`resize_and_center`].
fn center(image: &Image, short: usize, size: usize) -> Vec<u8> {
    let (h, w) = (image.height, image.width);
    let (height, width) = if h <= w { (short, short * w / h) } else { (short * h / w, short) };
    // Python's round: a half goes to the even number.
    let offset = |n: usize| ((n - size) as f64 / 2.0).round_ties_even() as usize;
    let window = Region { top: offset(height), left: offset(width), height: size, width: size };
    let mut pixels = Vec::new();
    Resizer::default().run(&mut pixels, image, Region::full(h, w), (height, width), window, Filter::Bicubic);
    pixels
}

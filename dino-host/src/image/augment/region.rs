//! The part of an image that torchvision's RandomResizedCrop takes, from the numbers that it draws.

use crate::image::resize::Region;
use dino_kernel::rng::Rng;

/// Height and width of a part of the image's area (0 to 1) and of a width / height; `None` where it does not fit.
pub fn sides(height: usize, width: usize, part: f64, aspect: f64) -> Option<(usize, usize)> {
    let area = (height * width) as f64 * part;
    let w = libm::sqrt(area * aspect).round_ties_even() as usize;
    let h = libm::sqrt(area / aspect).round_ties_even() as usize;
    (0 < w && w <= width && 0 < h && h <= height).then_some((h, w))
}

/// The largest central part whose width / height is allowed, for images in which ten draws found no other.
pub fn central(height: usize, width: usize, ratio: [f64; 2]) -> Region {
    let aspect = width as f64 / height as f64;
    let (h, w) = if aspect < ratio[0] {
        ((width as f64 / ratio[0]).round_ties_even() as usize, width)
    } else if aspect > ratio[1] {
        (height, (height as f64 * ratio[1]).round_ties_even() as usize)
    } else {
        (height, width)
    };
    // An image of one pixel's width or height can round to nothing.
    let (h, w) = (h.clamp(1, height), w.clamp(1, width));
    Region { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// torchvision's RandomResizedCrop: area and aspect ratio drawn up to ten times; where none fits, the largest central
/// part whose ratio is allowed.
pub(super) fn random_region(height: usize, width: usize, scale: [f64; 2], ratio: [f64; 2], rng: &mut Rng) -> Region {
    // libm, not std: the same bits on every platform.
    let log_ratio = ratio.map(libm::log);
    for _ in 0..10 {
        let part = rng.range(scale[0], scale[1]);
        let aspect = libm::exp(rng.range(log_ratio[0], log_ratio[1]));
        if let Some((h, w)) = sides(height, width, part, aspect) {
            let top = rng.below((height - h + 1) as u32) as usize;
            let left = rng.below((width - w + 1) as u32) as usize;
            return Region { top, left, height: h, width: w };
        }
    }
    central(height, width, ratio)
}

//! The part of an image that torchvision's RandomResizedCrop takes, from the numbers that it draws.

use crate::image::resize::Region;

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

//! Decoded samples to the requested form: 8 bits, other channels, rotated by EXIF.

use super::remark::set_highest;
use super::white::narrowed;
use crate::error::{Error, Result};
use crate::image::Image;
use std::path::Path;

/// Samples of 16 bits as 8, their highest value noted; see [`narrowed`].
pub(crate) fn eight_bits(samples: &[u16], white: u16, channels: usize, alpha: bool) -> Vec<u8> {
    let color = samples.iter().enumerate().filter(|(i, _)| !alpha || i % channels != channels - 1);
    set_highest(color.map(|(_, x)| *x).max());
    narrowed(samples, white, channels, alpha)
}

/// The image with the requested number of channels: gray repeated, colors as their luma (ITU-R 601, in Pillow's
/// integers), transparency dropped on the way to either. `path` is for the error.
pub(crate) fn converted(path: &Path, mut image: Image, alpha: bool, channels: usize) -> Result<Image> {
    let found = image.channels;
    if found == channels {
        return Ok(image);
    }
    if alpha && matches!(channels, 1 | 3) {
        image.channels = found - 1;
        image.pixels = image.pixels.chunks_exact(found).flat_map(|p| &p[..found - 1]).copied().collect();
    }
    image.pixels = match (image.channels, channels) {
        (a, b) if a == b => image.pixels,
        (1, 3) => image.pixels.iter().flat_map(|&y| [y; 3]).collect(),
        (3, 1) => image.pixels.as_chunks().0.iter().map(luma).collect(),
        _ => {
            return Err(Error::new(format!(
                "{} has {found} channels, {channels} are asked for (--channels {channels})",
                path.display()
            ))
            .hint(format!("--channels {found} takes it as it is; only gray and RGB are converted to each other")));
        }
    };
    image.channels = channels;
    Ok(image)
}

fn luma(&[r, g, b]: &[u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Ink to light, as Pillow does it: each of R, G, B is what black leaves less its own ink's share of that.
pub(crate) fn cmyk_to_rgb(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
    let white = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let t = u32::from(ink) * white + 128;
        (white - (((t >> 8) + t) >> 8)) as u8 // ink * white / 255, rounded
    })
}

/// The image as its orientation tag (1 to 8) wants it seen.
pub(super) fn oriented(image: Image, orientation: u8) -> Image {
    if !(2..=8).contains(&orientation) {
        return image;
    }
    let Image { width: w, height: h, channels, pixels } = image;
    let (width, height) = if orientation < 5 { (w, h) } else { (h, w) };
    let mut out = Vec::with_capacity(pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (from_x, from_y) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            out.extend_from_slice(&pixels[(from_y * w + from_x) * channels..][..channels]);
        }
    }
    Image { width, height, channels, pixels: out }
}

//! PNG files that are written.

use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use std::io::Write;
use std::path::Path;

/// Writes an RGB image, `width * height * 3` bytes, as PNG.
///
/// # Errors
/// The image cannot be encoded, or the file cannot be written.
pub fn write_png(path: &Path, size: [usize; 2], rgb: &[u8]) -> Result<()> {
    let png = encode_png(size, rgb, ExtendedColorType::Rgb8)
        .map_err(|e| Error::new(format!("cannot write {}: {}", path.display(), e.message)))?;
    write_atomically(path, |f| f.write_all(&png))
}

/// The bytes of a PNG file.
///
/// # Errors
/// The image cannot be encoded.
pub fn encode_png([width, height]: [usize; 2], pixels: &[u8], color: ExtendedColorType) -> Result<Vec<u8>> {
    let mut png = Vec::new();
    PngEncoder::new(&mut png)
        .write_image(pixels, width as u32, height as u32, color)
        .map_err(|e| Error::new(format!("cannot encode an image of {width} x {height} pixels as PNG: {e}")))?;
    Ok(png)
}

//! GIF: the first image of the file on its canvas.

use std::path::Path;

use ::gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::limits::{Found, MAX_BYTES, check_size, damaged};
use super::{Image, end_marks};
use crate::error::Result;

/// The colors are those that Pillow's `convert("RGB")` finds: what the image leaves free of the canvas has the transparent color,
/// or the first of the palette, and an image that reaches beyond the canvas makes it larger.
///
/// Errors: as of [`super::decode`].
pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<(Found, bool)> {
    let failed = |e: DecodingError| damaged(path, &e);
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes(std::num::NonZeroU64::new(MAX_BYTES).expect("not 0")));
    let mut decoder = options.read_info(bytes).map_err(failed)?;
    let (width, height) = (decoder.width(), decoder.height());
    check_size(path, (width.into(), height.into()), 0)?;
    let frame = decoder.next_frame_info().map_err(failed)?.ok_or_else(|| damaged(path, &"a GIF without an image"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (across, down) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    let (width, height) = (usize::from(width).max(left + across), usize::from(height).max(top + down));
    let channels = if transparent.is_some() { 4 } else { 3 };
    check_size(path, (width as u32, height as u32), (width * height * channels) as u64)?;
    if across == 0 || down == 0 {
        return Err(damaged(path, &format!("{across} x {down} pixels")));
    }
    let mut indices = vec![0; across * down];
    decoder.read_into_buffer(&mut indices).map_err(failed)?;
    let palette = decoder.palette().map_err(failed)?.as_chunks::<3>().0;
    let free = transparent.unwrap_or(0);
    let mut pixels = Vec::with_capacity(width * height * channels);
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let inside = (top..top + down).contains(&y) && (left..left + across).contains(&x);
        let index = if inside { indices[(y - top) * across + x - left] } else { free };
        // Indices beyond the palette are black, as everywhere.
        pixels.extend(palette.get(usize::from(index)).copied().unwrap_or_default());
        if let Some(transparent) = transparent {
            pixels.push(if index == transparent { 0 } else { 255 });
        }
    }
    let image = Image { width, height, channels, pixels };
    Ok((Found { image, alpha: channels == 4, orientation: 1 }, end_marks::gif_ended(bytes)))
}

//! TIFF, with any number of bands: the first picture of the file. The crate reads no palettes.

use std::io::Cursor;
use std::path::Path;

use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use ::tiff::tags::Tag;
use ::tiff::{ColorType, TiffError};

use super::Image;
use super::picture::{Found, MAX_BYTES, check_size, cmyk_to_rgb, damaged, unsupported};
use crate::error::Result;

/// Whether the file is a BigTIFF.
pub(super) fn is_big(bytes: &[u8]) -> bool {
    bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+")
}

/// Errors: as of [`super::decode`].
pub(super) fn read(path: &Path, bytes: &[u8], white: u16) -> Result<Found> {
    let failed = |e: TiffError| match e {
        TiffError::UnsupportedError(e) => unsupported(path, &e),
        e => damaged(path, &e),
    };
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_BYTES as usize;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(failed)?.with_limits(limits);
    let (w, h) = decoder.dimensions().map_err(failed)?;
    check_size(path, (w, h), 0)?;
    let layout = decoder.image_buffer_layout().map_err(failed)?;
    check_size(path, (w, h), layout.complete_len as u64)?;
    let colour = decoder.colortype().map_err(failed)?;
    let orientation = decoder.find_tag_unsigned(Tag::Orientation).ok().flatten().unwrap_or(1);
    let (width, height) = (w as usize, h as usize);
    if width == 0 || height == 0 {
        return Err(damaged(path, &format!("{width} x {height} pixels")));
    }

    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(failed)?;
    let depth = colour.bit_depth();
    let bytes = match samples {
        DecodingResult::U8(v) if depth == 8 => v,
        DecodingResult::U8(v) if matches!(depth, 1 | 2 | 4) && colour.num_samples() == 1 => {
            unpacked(&v, width, height, depth)
        }
        DecodingResult::U16(v) if depth == 16 => v.into_iter().map(|x| ((u32::from(x) + 128) / 257) as u8).collect(),
        _ => return Err(unsupported(path, &format!("samples of {depth} bits ({:?})", layout.sample_format))),
    };
    let area = width * height;
    let found = bytes.len() / area;
    if found == 0 || bytes.len() != area * found {
        return Err(damaged(path, &format!("{} samples for {area} pixels", bytes.len())));
    }
    let stored: usize = decoder.find_tag_unsigned(Tag::SamplesPerPixel).ok().flatten().unwrap_or(found);
    if stored > found {
        // The crate leaves bands out that the photometric interpretation does not name.
        return Err(unsupported(path, &format!("{stored} bands called {colour:?}: save them as grey (MINISBLACK)")));
    }
    // Planes one after the other, or pixel by pixel: as many samples either way.
    let bytes = if layout.planes > 1 && found > 1 {
        (0..area).flat_map(|p| (0..found).map(move |c| (p, c))).map(|(p, c)| bytes[c * area + p]).collect()
    } else {
        bytes
    };

    let (channels, alpha, pixels) = match colour {
        ColorType::Gray(_) | ColorType::RGB(_) | ColorType::Multiband { .. } => (found, false, bytes),
        ColorType::GrayA(_) | ColorType::RGBA(_) => (found, matches!(found, 2 | 4), bytes),
        ColorType::CMYK(_) if found == 4 => (3, false, bytes.as_chunks().0.iter().flat_map(cmyk_to_rgb).collect()),
        other => return Err(unsupported(path, &format!("a TIFF of {other:?}"))),
    };
    Ok(Found { image: Image { width, height, channels, pixels }, alpha, orientation })
}

/// Grey of 1, 2 or 4 bits, each row filling whole bytes, spread over 0 ..= 255.
fn unpacked(packed: &[u8], width: usize, height: usize, depth: u8) -> Vec<u8> {
    let (depth, row) = (usize::from(depth), (width * usize::from(depth)).div_ceil(8));
    let top = (1u16 << depth) - 1;
    let sample = |y: usize, x: usize| {
        let bit = x * depth;
        let byte = packed.get(y * row + bit / 8).copied().unwrap_or(0);
        let value = u16::from(byte) >> (8 - depth - bit % 8) & top;
        (value * 255 / top) as u8
    };
    (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(|(y, x)| sample(y, x)).collect()
}

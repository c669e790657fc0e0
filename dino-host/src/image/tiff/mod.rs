//! TIFF and BigTIFF, with any number of bands: the first image of the file.
//!
//! The crate reads the tags. Strips and tiles are unpacked and placed here: the crate's own way (0.11) panics on planes in tiles, wants
//! an end code of LZW, ignores FillOrder, and reads no palette.

mod chunks;

use std::io::Cursor;
use std::path::Path;

use ::tiff::decoder::{Decoder, Limits};
use ::tiff::tags::Tag;
use ::tiff::{ColorType, TiffError};

use self::chunks::Chunks;
use super::Image;
use super::convert::{cmyk_to_rgb, eight_bits};
use super::limits::{Found, MAX_BYTES, check_size, damaged, unsupported};
use crate::error::{Error, Result};

/// Values of PhotometricInterpretation.
const WHITE_IS_ZERO: u16 = 0;
const GRAY: u16 = 1;
const RGB: u16 = 2;
const PALETTE: u16 = 3;
const CMYK: u16 = 5;
const YCBCR: u16 = 6;

/// Whether the file is a BigTIFF.
pub(crate) fn is_big(bytes: &[u8]) -> bool {
    bytes.starts_with(b"II+\0") || bytes.starts_with(b"MM\0+")
}

fn failed(path: &Path, error: TiffError) -> Error {
    match error {
        TiffError::UnsupportedError(e) => unsupported(path, &e),
        e => damaged(path, &e),
    }
}

/// The numbers of a tag; empty where it is not there.
fn numbers(path: &Path, decoder: &mut Decoder<Cursor<&[u8]>>, tag: Tag) -> Result<Vec<u64>> {
    Ok(decoder.find_tag_unsigned_vec(tag).map_err(|e| failed(path, e))?.unwrap_or_default())
}

/// `white`: see [`super::Decode`]. Errors: as of [`super::decode`].
pub(crate) fn read(path: &Path, bytes: &[u8], white: u16) -> Result<Found> {
    let mut limits = Limits::default();
    limits.decoding_buffer_size = MAX_BYTES as usize;
    let mut decoder = Decoder::new(Cursor::new(bytes)).map_err(|e| failed(path, e))?.with_limits(limits);
    let size = decoder.dimensions().map_err(|e| failed(path, e))?;
    check_size(path, size, 0)?;
    let (width, height) = (size.0 as usize, size.1 as usize);
    if width == 0 || height == 0 {
        return Err(damaged(path, &format!("{width} x {height} pixels")));
    }
    let mut tag = |tag: Tag| numbers(path, &mut decoder, tag);
    let one = |found: Vec<u64>, default: u64| found.first().copied().unwrap_or(default);
    let samples = one(tag(Tag::SamplesPerPixel)?, 1) as usize;
    let depths = tag(Tag::BitsPerSample)?;
    let bits = one(depths.clone(), 1) as usize;
    check_size(path, size, (width * height) as u64 * samples as u64 * (bits as u64).div_ceil(8))?;
    let (formats, photometric) = (tag(Tag::SampleFormat)?, one(tag(Tag::PhotometricInterpretation)?, 1) as u16);
    if !matches!(bits, 1 | 2 | 4 | 8 | 16)
        || depths.iter().any(|d| *d != bits as u64)
        || formats.iter().any(|f| *f == 2 || *f == 3)
    {
        let kind = ["", "", " (signed)", " (floating point)"].get(one(formats, 1) as usize).unwrap_or(&"");
        return Err(unsupported(path, &format!("samples of {bits} bits{kind}")));
    }
    let orientation = one(tag(Tag::Orientation)?, 1);
    let (extras, map) = (tag(Tag::ExtraSamples)?, tag(Tag::ColorMap)?);
    let colors = match photometric {
        WHITE_IS_ZERO | GRAY | PALETTE => 1,
        RGB | YCBCR => 3,
        CMYK => 4,
        other => return Err(unsupported(path, &format!("a TIFF of photometric interpretation {other}"))),
    };
    let spare = samples.checked_sub(colors).ok_or_else(|| damaged(path, &format!("{samples} bands")))?;
    if photometric == PALETTE && (spare > 0 || bits > 8) {
        return Err(unsupported(path, &format!("a palette for {samples} bands of {bits} bits")));
    }
    if spare > usize::from(photometric == RGB) && !matches!(photometric, WHITE_IS_ZERO | GRAY) {
        let color = decoder.colortype().unwrap_or(ColorType::Gray(bits as u8));
        return Err(unsupported(path, &format!("{samples} bands called {color:?}: save them as gray (MINISBLACK)")));
    }
    // 1: the colors are multiplied with it; 2: they are not.
    let kind = if spare == 1 { extras.first().copied().unwrap_or(0) } else { 0 };
    let alpha = matches!(kind, 1 | 2) || photometric == RGB && spare == 1;

    let chunks = Chunks::read(path, bytes, &mut decoder, (width, height), samples, bits, photometric)?;
    let already_rgb = photometric == YCBCR && chunks.are_jpeg();
    let mut placed = chunks.placed(path, &mut decoder)?;
    if photometric == WHITE_IS_ZERO && !chunks.are_fax() {
        invert(&mut placed, bits, samples, spare, white);
    }
    let top = (1 << bits.min(8)) - 1;
    let mut pixels = match bits {
        16 => {
            let wide: Vec<u16> = placed.as_chunks().0.iter().map(|b| u16::from_ne_bytes(*b)).collect();
            eight_bits(&wide, white, samples, alpha)
        }
        8 => placed,
        _ if photometric == PALETTE => placed,
        _ => placed.into_iter().map(|x| (u16::from(x) * 255 / top) as u8).collect(),
    };
    let mut channels = samples;
    match photometric {
        PALETTE => {
            let colors = palette(&map, 1 << bits).ok_or_else(|| damaged(path, &"a palette without its colors"))?;
            (channels, pixels) = (3, pixels.iter().flat_map(|&i| colors[usize::from(i)]).collect());
        }
        CMYK => (channels, pixels) = (3, pixels.as_chunks().0.iter().flat_map(cmyk_to_rgb).collect()),
        YCBCR if !already_rgb => pixels.as_chunks_mut().0.iter_mut().for_each(|p| *p = ycbcr_to_rgb(*p)),
        _ => {}
    }
    if kind == 1 {
        pixels.chunks_exact_mut(channels).for_each(divide);
    }
    let image = Image { width, height, channels, pixels };
    Ok(Found { image, alpha, orientation: orientation.min(255) as u8 })
}

/// Ink to light: the color values of the `samples` of a pixel, of which `spare` are no colors.
fn invert(placed: &mut [u8], bits: usize, samples: usize, spare: usize, white: u16) {
    if bits == 16 {
        for pixel in placed.chunks_exact_mut(2 * samples) {
            for value in &mut pixel.as_chunks_mut::<2>().0[..samples - spare] {
                *value = white.saturating_sub(u16::from_ne_bytes(*value)).to_ne_bytes();
            }
        }
    } else {
        let top = ((1_u16 << bits) - 1) as u8;
        for pixel in placed.chunks_exact_mut(samples) {
            pixel[..samples - spare].iter_mut().for_each(|x| *x = top - *x);
        }
    }
}

/// The colors of a palette: all reds, all greens, all blues, of 16 bits; of 8 where none is higher, as some programs wrote them.
fn palette(map: &[u64], entries: usize) -> Option<Vec<[u8; 3]>> {
    let shift = if map.iter().any(|x| *x > 255) { 8 } else { 0 };
    let of = |i: usize, plane: usize| Some((map.get(plane * entries + i)? >> shift) as u8);
    (0..entries).map(|i| Some([of(i, 0)?, of(i, 1)?, of(i, 2)?])).collect()
}

/// Colors that were multiplied with their transparency, the last value: divided by it, as Pillow does it.
fn divide(pixel: &mut [u8]) {
    if let Some((&mut alpha, colors)) = pixel.split_last_mut()
        && alpha > 0
    {
        colors.iter_mut().for_each(|x| *x = (u16::from(*x) * 255 / u16::from(alpha)).min(255) as u8);
    }
}

/// JPEG's (JFIF's) colors.
fn ycbcr_to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let [y, cb, cr] = [f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0];
    [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb].map(|x| x.round() as u8)
}

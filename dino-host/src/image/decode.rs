//! Image files to pixels: PNG, JPEG, WebP, GIF, BMP, TIFF and PNM, detected by content.

use std::borrow::Cow;
use std::cell::Cell;
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use image::codecs::pnm::PnmDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::convert::{converted, eight_bits, oriented};
use super::jpeg::Layout;
use super::limits::{Found, MAX_BYTES, check_size, damaged, unsupported};
use super::remark;
use super::{Decode, Image, end_marks, gif, tiff};
use crate::error::{Error, Result};
use crate::io::read_error;

/// Decodes an image file to 8 bits a channel: PNG, JPEG, WebP, GIF, BMP, TIFF or PNM, detected by content. Of several
/// images in one file (animations, TIFF pages) it is the first.
///
/// 16 bits become 8 by rounding to the nearest, `how.white` and above are 255; with the full range it is `(x + 128) / 257`,
/// where Pillow drops the low byte, which is at most 1 less or more. Palettes become their colors, CMYK becomes RGB as Pillow's
/// `convert("RGB")` makes it, transparency is dropped where 1 or 3 channels are requested. A file whose end mark alone is
/// missing is decoded; [`crate::data::Unreadable`] counts such files.
///
/// # Errors
/// The file is unreadable, empty, of an unknown format, damaged, truncated, too large (32,768 pixels a side, 512 MiB decoded), or has
/// channels that do not become `how.channels`; the error names it.
pub fn decode(path: &Path, how: Decode) -> Result<Image> {
    let kind = fs::metadata(path).map_err(|e| read_error(path, &e))?;
    if !kind.is_file() {
        // A pipe would be waited for, a device read for ever.
        return Err(Error::new(format!("{} is no file", path.display())).hint("remove it, or replace it by an image"));
    }
    if kind.len() > MAX_BYTES {
        return Err(Error::new(format!("{} has {} bytes", path.display(), kind.len()))
            .hint(format!("files of up to {MAX_BYTES} bytes are read")));
    }
    decode_bytes(path, &fs::read(path).map_err(|e| read_error(path, &e))?, how)
}

/// The same for the bytes of a file; `path` is for the errors.
///
/// # Errors
/// As [`decode`].
pub fn decode_bytes(path: &Path, bytes: &[u8], how: Decode) -> Result<Image> {
    // The fuzzer is there to see panics.
    if cfg!(fuzzing) { decoded(path, bytes, how) } else { guarded(path, || decoded(path, bytes, how)) }
}

thread_local! {
    /// This thread is within [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A panic of `decode` as the error of a damaged file. Decoders meet files that anyone may have made, and a panic in one of them must
/// cost a warning, not a run of days. Decoding changes nothing but what it returns, so nothing is left half done.
pub(crate) fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // The panic's own message would be printed over the progress bar, once an epoch.
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                before(info);
            }
        }));
    });
    GUARDED.set(true);
    let done = catch_unwind(AssertUnwindSafe(decode));
    GUARDED.set(false);
    done.unwrap_or_else(|_| Err(damaged(path, &"its decoder panicked")))
}

fn decoded(path: &Path, bytes: &[u8], how: Decode) -> Result<Image> {
    if bytes.is_empty() {
        return Err(Error::new(format!("{} is empty", path.display())).hint("remove it or copy it again"));
    }
    let (found, ended) = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg(path, bytes, how)?,
        Ok(ImageFormat::Gif) => gif::read(path, bytes)?,
        Ok(ImageFormat::WebP) => {
            let (bytes, ended) = end_marks::webp(bytes).ok_or_else(|| cut_short(path, "WebP"))?;
            (read(path, &bytes, ImageFormat::WebP, how)?, ended)
        }
        Ok(ImageFormat::Png) => {
            let (bytes, ended) = end_marks::png(bytes).ok_or_else(|| cut_short(path, "PNG"))?;
            (read(path, &bytes, ImageFormat::Png, how)?, ended)
        }
        Ok(ImageFormat::Bmp) => (read(path, bytes, ImageFormat::Bmp, how)?, true),
        Ok(ImageFormat::Pnm) => (pnm(path, bytes, how)?, true),
        Ok(ImageFormat::Tiff) => (tiff::read(path, bytes, how.white)?, true),
        Ok(other) => return Err(unsupported(path, &format!("it is a {other:?} file"))),
        Err(_) if tiff::is_big(bytes) => (tiff::read(path, bytes, how.white)?, true),
        Err(_) => return Err(unsupported(path, &"it is not an image")),
    };
    if !ended {
        remark::set_endless();
    }
    let image = if how.orient { oriented(found.image, found.orientation) } else { found.image };
    converted(path, image, found.alpha, how.channels)
}

fn cut_short(path: &Path, format: &str) -> Error {
    Error::new(format!("{} is cut short: a {format} file without an end", path.display()))
        .hint("remove it or copy it again")
}

fn failed(path: &Path, error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(e) => unsupported(path, &e),
        e => damaged(path, &e),
    }
}

/// The `image` crate's decoder, its size checked.
fn opened<'a>(path: &Path, bytes: &'a [u8], format: ImageFormat) -> Result<impl ImageDecoder + use<'a>> {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| failed(path, e))?;
    check_size(path, decoder.dimensions(), decoder.total_bytes())?;
    Ok(decoder)
}

/// PNG, WebP and BMP.
fn read(path: &Path, bytes: &[u8], format: ImageFormat, how: Decode) -> Result<Found> {
    let mut decoder = opened(path, bytes, format)?;
    // A damaged tag is no tag: the pixels may be fine.
    let orientation = if how.orient { decoder.orientation().map_or(1, Orientation::to_exif) } else { 1 };
    let image = DynamicImage::from_decoder(decoder).map_err(|e| failed(path, e))?;
    Ok(found(image, how.white, orientation))
}

/// PBM, PGM, PPM and PAM: the greatest value that the head allows becomes 255, or `how.white` where that is less.
fn pnm(path: &Path, bytes: &[u8], how: Decode) -> Result<Found> {
    let decoder = PnmDecoder::new(bytes).map_err(|e| failed(path, e))?;
    check_size(path, decoder.dimensions(), decoder.total_bytes())?;
    let most = decoder.header().maximal_sample().clamp(1, 0xffff);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| failed(path, e))?;
    // The crate spreads what is stored over 16 bits.
    let stored = |x: &mut u16| *x = ((u32::from(*x) * most + 0x7fff) / 0xffff) as u16;
    match &mut image {
        DynamicImage::ImageLuma16(image) => image.iter_mut().for_each(stored),
        DynamicImage::ImageLumaA16(image) => image.pixels_mut().for_each(|p| stored(&mut p.0[0])),
        DynamicImage::ImageRgb16(image) => image.iter_mut().for_each(stored),
        DynamicImage::ImageRgba16(image) => image.pixels_mut().for_each(|p| p.0[..3].iter_mut().for_each(stored)),
        _ => {} // 8 bits are spread over 8 bits
    }
    Ok(found(image, how.white.min(most as u16), 1))
}

fn found(image: DynamicImage, white: u16, orientation: u8) -> Found {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let channels = image.color().channel_count() as usize;
    let alpha = matches!(channels, 2 | 4);
    let pixels = match image {
        DynamicImage::ImageLuma16(image) => eight_bits(&image, white, channels, alpha),
        DynamicImage::ImageLumaA16(image) => eight_bits(&image, white, channels, alpha),
        DynamicImage::ImageRgb16(image) => eight_bits(&image, white, channels, alpha),
        DynamicImage::ImageRgba16(image) => eight_bits(&image, white, channels, alpha),
        image => match channels {
            1 => image.into_luma8().into_raw(),
            2 => image.into_luma_alpha8().into_raw(),
            3 => image.into_rgb8().into_raw(),
            _ => image.into_rgba8().into_raw(),
        },
    };
    Found { image: Image { width, height, channels, pixels }, alpha, orientation }
}

/// The pixels of a JPEG that is a part of another file.
pub(crate) fn jpeg_pixels(path: &Path, bytes: &[u8]) -> Result<Image> {
    Ok(jpeg(path, bytes, Decode { orient: false, ..Decode::default() })?.0.image)
}

/// A JPEG, by the decoder that is right for it, and whether its end mark is there.
fn jpeg(path: &Path, bytes: &[u8], how: Decode) -> Result<(Found, bool)> {
    let layout = Layout::read(bytes);
    let (width, height) = layout.size();
    check_size(path, (width, height), u64::from(width) * u64::from(height) * 4)?;
    let mut bytes = Cow::Borrowed(bytes);
    if !layout.ended {
        // A decoder fills what is missing with gray and reports nothing; a training set full of gray halves should not go unnoticed.
        if !layout.complete(&bytes) {
            return Err(cut_short(path, "JPEG"));
        }
        bytes.to_mut().extend([0xff, 0xd9]);
    }
    layout.check(path)?;
    // A damaged tag is no tag: the pixels may be fine.
    let exif = layout.exif.filter(|_| how.orient);
    let orientation = exif.and_then(Orientation::from_exif_chunk).map_or(1, Orientation::to_exif);
    let small = how.fast.and_then(|shorter| layout.scaled(&bytes, shorter));
    let image = match small {
        Some(image) => image,
        None if layout.ordinary() => {
            let decoder = opened(path, &bytes, ImageFormat::Jpeg)?;
            found(DynamicImage::from_decoder(decoder).map_err(|e| failed(path, e))?, how.white, 1).image
        }
        None => layout.decode(path, &bytes)?,
    };
    Ok((Found { alpha: false, image, orientation }, layout.ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_a_damaged_file() {
        let none: [u8; 0] = [];
        let error = guarded::<Image>(Path::new("a.png"), || panic!("{}", none.len())).unwrap_err();
        assert_eq!(error.message, "cannot decode a.png: its decoder panicked");
        assert!(!GUARDED.get(), "panics of this thread would not be printed from here on");
        let image = Image { width: 1, height: 1, channels: 1, pixels: vec![7] };
        assert_eq!(guarded(Path::new("b.png"), || Ok(image.clone())).unwrap(), image);
    }
}

//! Picture files to pixels: PNG, JPEG, WebP, BMP and TIFF, told apart by content.

use std::cell::Cell;
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::path::Path;
use std::sync::Once;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};

use super::{Decode, Image, tiff};
use crate::error::{Error, Result};

/// Largest width or height that is decoded.
pub(super) const MAX_SIDE: u32 = 1 << 15;
/// Largest file that is read and largest decoded image, bytes: a small file can claim any size.
pub(super) const MAX_BYTES: u64 = 512 << 20;

/// What a picture file's name ends in, in any case.
const ENDINGS: [&str; 7] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"];

/// Whether the name is a picture file's.
pub(crate) fn is_picture(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// The ending, in lower case, of a file that is a picture by its name and is not read.
pub(crate) fn unread_ending(path: &Path) -> Option<String> {
    const UNREAD: [&str; 4] = ["jp2", "avif", "heic", "svg"];
    let ending = path.extension()?.to_str()?.to_ascii_lowercase();
    UNREAD.contains(&ending.as_str()).then_some(ending)
}

/// A decoded file as it is, before `Decode` has its say.
pub(super) struct Found {
    pub image: Image,
    /// The last channel is transparency.
    pub alpha: bool,
    /// The orientation tag of EXIF and TIFF, 1 to 8; 1 leaves the picture as it is.
    pub orientation: u8,
}

pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("cannot read {}: {error}", path.display())).hint("is it there, and may this user read it?")
}

pub(super) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {error}", path.display())).hint("remove it or copy it again")
}

pub(super) fn unsupported(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {what}", path.display()))
        .hint("PNG, JPEG, WebP, BMP and TIFF (8 or 16 bits a channel, no palette) are read, whatever the ending says")
}

/// Refuses a size before anything is allocated for it. `bytes`: of the decoded image.
pub(super) fn check_size(path: &Path, (width, height): (u32, u32), bytes: u64) -> Result<()> {
    if width.max(height) <= MAX_SIDE && bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(Error::new(format!("{} claims {width} x {height} pixels, {} MiB", path.display(), bytes >> 20))
        .hint(format!("images of up to {MAX_SIDE} pixels a side and {} MiB are read", MAX_BYTES >> 20)))
}

/// Decodes a picture file to 8 bits a channel: PNG, JPEG, WebP, BMP or TIFF, told apart by content. Of several pictures in
/// one file (WebP animations, TIFF pages) it is the first.
///
/// 16 bits become 8 by rounding to the nearest, `(x + 128) / 257`; Pillow drops the low byte, which is at most 1 less or
/// more. Palettes become their colours (TIFF with a palette is not read), CMYK becomes RGB as Pillow's `convert("RGB")` makes it, transparency is dropped
/// where 1 or 3 channels are asked for.
///
/// Errors name the file: unreadable, empty, no such format, damaged, cut short, too large (32,768 pixels a side, 512 MiB
/// decoded), or a number of channels that does not become `how.channels`.
pub fn decode(path: &Path, how: Decode) -> Result<Image> {
    let kind = fs::metadata(path).map_err(|e| unreadable(path, &e))?;
    if !kind.is_file() {
        // A pipe would be waited for, a device read for ever.
        return Err(
            Error::new(format!("{} is no file", path.display())).hint("remove it, or put a picture in its place")
        );
    }
    if kind.len() > MAX_BYTES {
        return Err(Error::new(format!("{} has {} bytes", path.display(), kind.len()))
            .hint(format!("files of up to {MAX_BYTES} bytes are read")));
    }
    decode_bytes(path, &fs::read(path).map_err(|e| unreadable(path, &e))?, how)
}

/// The same for the bytes of a file; `path` is for the errors.
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
pub(super) fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
    // The panic's own words would be printed over the progress bar, once an epoch.
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
    let found = match image::guess_format(bytes) {
        Ok(ImageFormat::Tiff) => tiff::read(path, bytes)?,
        Ok(format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Bmp)) => {
            read(path, bytes, format, how)?
        }
        Ok(other) => return Err(unsupported(path, &format!("it is a {other:?} file"))),
        Err(_) => return Err(unsupported(path, &"it is no picture")),
    };
    let image = if how.orient { turned(found.image, found.orientation) } else { found.image };
    converted(path, image, found.alpha, how.channels)
}

/// Everything but TIFF.
fn read(path: &Path, bytes: &[u8], format: ImageFormat, how: Decode) -> Result<Found> {
    let failed = |e: ImageError| match e {
        ImageError::Unsupported(e) => unsupported(path, &e),
        e => damaged(path, &e),
    };
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    check_size(path, decoder.dimensions(), decoder.total_bytes())?;
    let whole = match format {
        ImageFormat::Jpeg => jpeg_is_whole(bytes),
        ImageFormat::WebP => webp_is_whole(bytes),
        _ => true, // a missing pixel is an error already
    };
    if !whole {
        return Err(Error::new(format!("{} is cut short: a {format:?} file without an end", path.display()))
            .hint("remove it or copy it again"));
    }
    // A damaged tag is no tag: the pixels may be fine.
    let orientation = if how.orient { decoder.orientation().map_or(1, Orientation::to_exif) } else { 1 };
    let small = how.fast.filter(|_| format == ImageFormat::Jpeg).and_then(|shorter| jpeg_scaled(bytes, shorter));
    let image = match small {
        Some(image) => image,
        None => {
            let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
            let (width, height, channels) =
                (image.width() as usize, image.height() as usize, image.color().channel_count() as usize);
            let pixels = match channels {
                1 => image.into_luma8().into_raw(),
                2 => image.into_luma_alpha8().into_raw(),
                3 => image.into_rgb8().into_raw(),
                _ => image.into_rgba8().into_raw(),
            };
            Image { width, height, channels, pixels }
        }
    };
    Ok(Found { alpha: matches!(image.channels, 2 | 4), image, orientation })
}

/// A JPEG decoded at the smallest of 1/2, 1/4 and 1/8 whose shorter side still has `shorter` pixels. `None` where none has,
/// and for whatever this decoder does not read: the other one has its say then.
fn jpeg_scaled(bytes: &[u8], shorter: usize) -> Option<Image> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(MAX_BYTES as usize);
    decoder.read_info().ok()?;
    let info = decoder.info()?;
    let channels = match info.pixel_format {
        jpeg_decoder::PixelFormat::L8 => 1,
        jpeg_decoder::PixelFormat::RGB24 => 3,
        _ => return None,
    };
    if usize::from(info.width.min(info.height)).div_ceil(2) < shorter {
        return None;
    }
    // The decoder takes the smallest size that has either of the two: only the shorter side's can be reached.
    let shorter = shorter as u16;
    let wish = if info.width <= info.height { (shorter, u16::MAX) } else { (u16::MAX, shorter) };
    let (width, height) = decoder.scale(wish.0, wish.1).ok()?;
    let (width, height) = (usize::from(width), usize::from(height));
    let pixels = decoder.decode().ok()?;
    (pixels.len() == width * height * channels).then_some(Image { width, height, channels, pixels })
}

/// Whether the end marker of a JPEG is there. The decoder fills what is missing with grey and says nothing; a training
/// set full of grey halves should not go unnoticed.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut in_scan = false;
    while let Some(&[mark, code]) = bytes.get(at..at + 2).and_then(|b| b.first_chunk()) {
        at += match (mark, code) {
            (0xff, 0xd9) => return true,
            (0xff, 0xff) => 1,                      // fill byte
            (0xff, 0x00 | 0x01 | 0xd0..=0xd8) => 2, // stuffed byte or marker without a segment
            (0xff, _) => {
                in_scan = code == 0xda;
                match bytes.get(at + 2..at + 4) {
                    Some(length) => 2 + u16::from_be_bytes([length[0], length[1]]) as usize,
                    None => return false,
                }
            }
            _ if in_scan => 1,
            _ => return true, // not a well-formed header: the decoder has its own word for that
        };
    }
    false
}

/// Whether all bytes are there that the header tells of. The orientation comes last and would be missed in silence.
fn webp_is_whole(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .and_then(|b| b.first_chunk())
        .is_some_and(|&b| bytes.len() as u64 >= 8 + u64::from(u32::from_le_bytes(b)))
}

/// The picture as its orientation tag (1 to 8) wants it seen.
fn turned(image: Image, orientation: u8) -> Image {
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

/// The image with the number of channels that is asked for: grey repeated, colours as their luma (ITU-R 601, in Pillow's
/// integers), transparency dropped on the way to either. `path` is for the error.
pub(super) fn converted(path: &Path, mut image: Image, alpha: bool, channels: usize) -> Result<Image> {
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
            .hint(format!("--channels {found} takes it as it is; only grey and RGB become one another")));
        }
    };
    image.channels = channels;
    Ok(image)
}

fn luma(&[r, g, b]: &[u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}

/// Ink to light, as Pillow does it: each of R, G, B is what black leaves less its own ink's share of that.
pub(super) fn cmyk_to_rgb(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
    let white = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let t = u32::from(ink) * white + 128;
        (white - (((t >> 8) + t) >> 8)) as u8 // ink * white / 255, rounded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_a_damaged_file() {
        let none: [u8; 0] = [];
        let error = guarded::<Image>(Path::new("a.png"), || panic!("{}", none.len())).unwrap_err();
        assert_eq!(error.message, "cannot decode a.png: its decoder panicked");
        assert!(!GUARDED.get(), "panics of this thread would stay unsaid from here on");
        let image = Image { width: 1, height: 1, channels: 1, pixels: vec![7] };
        assert_eq!(guarded(Path::new("b.png"), || Ok(image.clone())).unwrap(), image);
    }
}

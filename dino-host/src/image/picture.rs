//! Picture files to pixels: PNG, JPEG, WebP, GIF, BMP, TIFF and PNM, told apart by content.

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

use super::jpeg::Layout;
use super::white::narrowed;
use super::{Decode, Image, ends, gif, tiff};
use crate::error::{Error, Result};

/// Largest width or height that is decoded.
pub(crate) const MAX_SIDE: u32 = 1 << 15;
/// Largest file that is read and largest decoded image, bytes: a small file can claim any size.
pub(crate) const MAX_BYTES: u64 = 512 << 20;

/// What a picture file's name ends in, in any case.
const ENDINGS: [&str; 17] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff", "pbm", "pgm", "ppm",
    "pnm", "pam",
];

/// What the names of pictures end in that are not read.
#[rustfmt::skip]
const UNREAD: [&str; 48] = [
    "jp2", "j2k", "j2c", "jpf", "jpx", "jpm", "jxl", "jxr", "avif", "heic", "heif", "psd", "psb", "xcf", "svg", "svgz", "eps",
    "exr", "hdr", "pfm", "dds", "tga", "ico", "cur", "icns", "pcx", "ff", "qoi", "dcm", "nef", "nrw", "cr2", "cr3", "crw",
    "arw", "sr2", "dng", "raf", "orf", "rw2", "pef", "srw", "raw", "3fr", "iiq", "x3f", "fits", "wmf",
];

fn ending(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Whether the name is a picture file's.
pub(crate) fn is_picture(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// The ending, in lower case, of a picture's name in a format that is not read.
pub(crate) fn unread_ending(path: &Path) -> Option<String> {
    Some(ending(path)).filter(|ending| UNREAD.contains(&ending.as_str()))
}

/// What there is to say of a picture beside its pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remark {
    /// The file's end mark is missing, though all its pixels are there.
    pub endless: bool,
    /// The highest value of a channel, where channels have 16 bits.
    pub highest: Option<u16>,
}

thread_local! {
    /// Of the pictures that this thread decodes: they pass through data sets of every kind, which know nothing of it.
    static REMARK: Cell<Remark> = const { Cell::new(Remark { endless: false, highest: None }) };
}

/// What `read` gives, and the remark on the picture that it decodes.
pub(crate) fn remarked<T>(read: impl FnOnce() -> T) -> (T, Remark) {
    REMARK.take();
    let found = read();
    (found, REMARK.take())
}

/// Samples of 16 bits as 8, their highest value noted; see [`narrowed`].
pub(crate) fn eight_bits(samples: &[u16], white: u16, channels: usize, alpha: bool) -> Vec<u8> {
    let colour = samples.iter().enumerate().filter(|(i, _)| !alpha || i % channels != channels - 1);
    REMARK.set(Remark { highest: colour.map(|(_, x)| *x).max(), ..REMARK.get() });
    narrowed(samples, white, channels, alpha)
}

/// A decoded file as it is, before `Decode` has its say.
pub(crate) struct Found {
    pub image: Image,
    /// The last channel is transparency.
    pub alpha: bool,
    /// The orientation tag of EXIF and TIFF, 1 to 8; 1 leaves the picture as it is.
    pub orientation: u8,
}

pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("cannot read {}: {error}", path.display())).hint("is it there, and may this user read it?")
}

pub(crate) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {error}", path.display())).hint("remove it or copy it again")
}

pub(crate) fn unsupported(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {what}", path.display()))
        .hint("PNG, JPEG, WebP, GIF, BMP, PNM and TIFF (8 or 16 bits a channel) are read, whatever the ending says")
}

/// Refuses a size before anything is allocated for it. `bytes`: of the decoded image.
pub(crate) fn check_size(path: &Path, (width, height): (u32, u32), bytes: u64) -> Result<()> {
    if width.max(height) <= MAX_SIDE && bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(Error::new(format!("{} claims {width} x {height} pixels, {} MiB", path.display(), bytes >> 20))
        .hint(format!("images of up to {MAX_SIDE} pixels a side and {} MiB are read", MAX_BYTES >> 20)))
}

/// Decodes a picture file to 8 bits a channel: PNG, JPEG, WebP, GIF, BMP, TIFF or PNM, told apart by content. Of several
/// pictures in one file (animations, TIFF pages) it is the first.
///
/// 16 bits become 8 by rounding to the nearest, `how.white` and above are 255; with the whole range it is `(x + 128) / 257`,
/// where Pillow drops the low byte, which is at most 1 less or more. Palettes become their colours, CMYK becomes RGB as Pillow's
/// `convert("RGB")` makes it, transparency is dropped where 1 or 3 channels are asked for. A file whose end mark alone is
/// missing is decoded; [`super::Faults`] counts such files.
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
pub(crate) fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T>) -> Result<T> {
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
    let (found, ended) = match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => jpeg(path, bytes, how)?,
        Ok(ImageFormat::Gif) => gif::read(path, bytes)?,
        Ok(ImageFormat::WebP) => {
            let (bytes, ended) = ends::webp(bytes).ok_or_else(|| cut_short(path, "WebP"))?;
            (read(path, &bytes, ImageFormat::WebP, how)?, ended)
        }
        Ok(ImageFormat::Png) => {
            let (bytes, ended) = ends::png(bytes).ok_or_else(|| cut_short(path, "PNG"))?;
            (read(path, &bytes, ImageFormat::Png, how)?, ended)
        }
        Ok(ImageFormat::Bmp) => (read(path, bytes, ImageFormat::Bmp, how)?, true),
        Ok(ImageFormat::Pnm) => (pnm(path, bytes, how)?, true),
        Ok(ImageFormat::Tiff) => (tiff::read(path, bytes, how.white)?, true),
        Ok(other) => return Err(unsupported(path, &format!("it is a {other:?} file"))),
        Err(_) if tiff::is_big(bytes) => (tiff::read(path, bytes, how.white)?, true),
        Err(_) => return Err(unsupported(path, &"it is no picture")),
    };
    if !ended {
        REMARK.set(Remark { endless: true, ..REMARK.get() });
    }
    let image = if how.orient { turned(found.image, found.orientation) } else { found.image };
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
        // A decoder fills what is missing with grey and says nothing; a training set full of grey halves should not go unnoticed.
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
pub(crate) fn cmyk_to_rgb(&[c, m, y, k]: &[u8; 4]) -> [u8; 3] {
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
    fn endings_that_are_read_and_that_are_not() {
        let both = |name: &str| (is_picture(Path::new(name)), unread_ending(Path::new(name)));
        for name in ["a.jfif", "b.JPE", "c.gif", "d.ppm", "e.PGM", "f.pbm", "g.TIFF", "h.png"] {
            assert_eq!(both(name), (true, None), "{name}");
        }
        for (name, ending) in
            [("a.jp2", "jp2"), ("b.AVIF", "avif"), ("c.d.heic", "heic"), ("e.Psd", "psd"), ("f.CR2", "cr2")]
        {
            assert_eq!(both(name), (false, Some(ending.into())), "{name}");
        }
        for name in ["a.txt", "jp2", ".avif", "b.json", "c.png.txt", ""] {
            assert_eq!(both(name), (false, None), "{name}");
        }
    }

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

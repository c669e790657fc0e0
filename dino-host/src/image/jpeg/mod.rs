//! JPEG: which of the two decoders is right for a file, decided by its markers; and whether its end is there.
//!
//! The `image` crate's decoder (zune-jpeg 0.5) is fast and right for what nearly every file is: one scan or progressive scans, brightness
//! at full resolution, markers of color that do not contradict one another. Several baseline scans, or a first component that is not
//! the largest, become garbage in it without an error. Those go to jpeg-decoder, which is right where every component is either at full
//! resolution or at that of one sample a unit. What neither reads right is an error.

mod entropy;

use std::path::Path;

use jpeg_decoder::{ColorTransform, Decoder, PixelFormat};

use super::Image;
use super::limits::{MAX_BYTES, damaged, unsupported};
use crate::error::Result;

/// A marker with its segment (empty for the end mark), at the offset where what follows it begins.
struct Segment<'a> {
    code: u8,
    body: &'a [u8],
    end: usize,
}

const END: u8 = 0xd9;
const SCAN: u8 = 0xda;

/// The segments from the start of the image to its end mark, or to the end of what is there. Garbage between them and the coded
/// data after a scan's head are passed over, as every decoder does it.
fn segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let (mut at, mut ended) = (2, false);
    std::iter::from_fn(move || {
        while !ended {
            at += bytes.get(at..)?.iter().position(|b| *b == 0xff)?;
            match *bytes.get(at + 1)? {
                0xff => at += 1,                      // fill byte
                0x00 | 0x01 | 0xd0..=0xd8 => at += 2, // stuffed byte or marker without a segment
                END => {
                    ended = true;
                    return Some(Segment { code: END, body: &[], end: at + 2 });
                }
                code => {
                    let length = bytes.get(at + 2..at + 4)?;
                    let end = at + 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                    // A length below 2, which counts itself, is no length.
                    let body = bytes.get(at + 4..end).unwrap_or_default();
                    at = end.max(at + 4);
                    return (at <= bytes.len()).then_some(Segment { code, body, end: at });
                }
            }
        }
        None
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Component {
    id: u8,
    /// Samples of it in a unit, across and down, 1 to 4.
    across: u8,
    down: u8,
}

/// What the first frame's head states.
#[derive(Default)]
struct Frame {
    /// The marker's code: 0xc0 baseline, 0xc1 extended, 0xc2 progressive; no decoder here reads others.
    code: u8,
    precision: u8,
    width: u16,
    height: u16,
    components: Vec<Component>,
}

impl Frame {
    fn read(code: u8, body: &[u8]) -> Option<Frame> {
        let (head, rest) = body.split_first_chunk::<6>()?;
        let components = rest.as_chunks::<3>().0.iter().take(usize::from(head[5]));
        Some(Frame {
            code,
            precision: head[0],
            height: u16::from_be_bytes([head[1], head[2]]),
            width: u16::from_be_bytes([head[3], head[4]]),
            components: components.map(|c| Component { id: c[0], across: c[1] >> 4, down: c[1] & 15 }).collect(),
        })
    }

    /// The most samples in a unit, across and down.
    fn most(&self) -> (u8, u8) {
        let most = |of: fn(&Component) -> u8| self.components.iter().map(of).max().unwrap_or(1).max(1);
        (most(|c| c.across), most(|c| c.down))
    }
}

/// The head of a scan, ITU-T T.81, B.2.3.
struct Scan {
    /// Indices in the frame, and numbers of the tables for the first and the other coefficients.
    components: Vec<(usize, u8, u8)>,
    first: u8,
    last: u8,
    /// How often the bit below was sent before, and which bit is sent.
    before: u8,
    bit: u8,
}

impl Scan {
    fn read(body: &[u8], frame: &Frame) -> Option<Scan> {
        let (&n, rest) = body.split_first()?;
        let (named, tail) = rest.split_at_checked(2 * usize::from(n))?;
        let tail = tail.first_chunk::<3>()?;
        let component = |&[id, tables]: &[u8; 2]| {
            Some((frame.components.iter().position(|c| c.id == id)?, tables >> 4, tables & 15))
        };
        let components = named.as_chunks().0.iter().map(component).collect::<Option<Vec<_>>>()?;
        Some(Scan { components, first: tail[0], last: tail[1], before: tail[2] >> 4, bit: tail[2] & 15 })
    }
}

/// What the components are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Color {
    Gray,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// All that the markers state.
#[derive(Default)]
pub(crate) struct Layout<'a> {
    frame: Frame,
    /// The last EXIF segment before the first scan, without its head.
    pub exif: Option<&'a [u8]>,
    scans: Vec<Scan>,
    jfif: bool,
    /// The color transform of Adobe's marker.
    adobe: Option<u8>,
    /// The end mark is there.
    pub ended: bool,
    height_later: bool,
}

impl<'a> Layout<'a> {
    pub fn read(bytes: &'a [u8]) -> Layout<'a> {
        let mut layout = Layout::default();
        for Segment { code, body, .. } in segments(bytes) {
            match code {
                0xc0..=0xcf if !matches!(code, 0xc4 | 0xc8 | 0xcc) && layout.frame.code == 0 => {
                    layout.frame = Frame::read(code, body).unwrap_or_default();
                }
                SCAN => layout.scans.extend(Scan::read(body, &layout.frame)),
                0xe0 => layout.jfif |= body.starts_with(b"JFIF\0"),
                0xe1 if layout.scans.is_empty() => layout.exif = body.strip_prefix(b"Exif\0\0").or(layout.exif),
                0xee if body.starts_with(b"Adobe") && body.len() >= 12 => layout.adobe = Some(body[11]),
                0xdc => layout.height_later = true,
                END => layout.ended = true,
                _ => {}
            }
        }
        layout
    }

    /// Width and height; 0 without a frame.
    pub fn size(&self) -> (u32, u32) {
        (self.frame.width.into(), self.frame.height.into())
    }

    /// As libjpeg decides it, `jdapimin.c`.
    fn color(&self) -> Option<Color> {
        Some(match (self.frame.components.len(), self.adobe) {
            (1, _) => Color::Gray,
            (3, _) if self.jfif => Color::YCbCr,
            (3, Some(0)) => Color::Rgb,
            (3, Some(_)) => Color::YCbCr,
            (3, None) if self.called_rgb() => Color::Rgb,
            (3, None) => Color::YCbCr,
            (4, None | Some(0)) => Color::Cmyk,
            (4, Some(_)) => Color::Ycck,
            _ => return None,
        })
    }

    fn called_rgb(&self) -> bool {
        self.frame.components.iter().map(|c| c.id).eq(*b"RGB")
    }

    /// As zune-jpeg decides it.
    fn color_in_zune(&self) -> Option<Color> {
        Some(match (self.frame.components.len(), self.adobe) {
            (1, _) => Color::Gray,
            (3, _) if self.called_rgb() => Color::Rgb,
            (3, Some(0)) => Color::Rgb,
            (3, None | Some(1)) => Color::YCbCr,
            (4, None | Some(0)) => Color::Cmyk,
            (4, Some(2)) => Color::Ycck,
            _ => return None,
        })
    }

    /// zune-jpeg is right for it.
    pub fn ordinary(&self) -> bool {
        let (most, components) = (self.frame.most(), &self.frame.components);
        let largest_first = components.first().is_some_and(|c| (c.across, c.down) == most) && most.0 != 3;
        let scans =
            self.frame.code == 0xc2 || self.scans.len() == 1 && self.scans[0].components.len() == components.len();
        self.color().is_some()
            && self.color() == self.color_in_zune()
            && (components.len() == 1 || largest_first && scans)
    }

    /// jpeg-decoder is right for it.
    fn rare(&self) -> bool {
        let (across, down) = self.frame.most();
        let plain = |c: &Component| [1, across].contains(&c.across) && [1, down].contains(&c.down);
        matches!(self.color(), Some(Color::Gray | Color::Rgb | Color::YCbCr)) && self.frame.components.iter().all(plain)
    }

    /// Whether a decoder here reads the file, and reads it right.
    ///
    /// # Errors
    /// The coding, precision or sampling is not supported, or a frame or scan is missing.
    pub fn check(&self, path: &Path) -> Result<()> {
        let frame = &self.frame;
        let coding = match frame.code {
            0 => return Err(damaged(path, &"a JPEG without a frame")),
            0xc0..=0xc2 => "",
            0xc3 | 0xc7 | 0xcb | 0xcf => "lossless",
            0xc9 | 0xca => "arithmetic",
            _ => "hierarchical",
        };
        if !coding.is_empty() {
            return Err(unsupported(path, &format!("a JPEG with {coding} coding")));
        }
        if frame.precision != 8 {
            return Err(unsupported(path, &format!("a JPEG of {} bits a sample", frame.precision)));
        }
        if self.height_later || frame.height == 0 {
            return Err(unsupported(path, &"a JPEG whose height is told after its rows"));
        }
        if !self.ordinary() && !self.rare() {
            let scale = |c: &Component| format!("{}x{}", c.across, c.down);
            let scales: Vec<String> = frame.components.iter().map(scale).collect();
            let scans = self.scans.len();
            return Err(unsupported(path, &format!("a JPEG of components {} in {scans} scans", scales.join(", "))));
        }
        let missing = |i: &usize| !self.scans.iter().any(|s| s.first == 0 && s.components.iter().any(|c| c.0 == *i));
        match (0..frame.components.len()).find(missing) {
            Some(i) => Err(damaged(path, &format!("a JPEG without a scan of component {}", frame.components[i].id))),
            None => Ok(()),
        }
    }

    /// Whether all coded data is there, though the end mark is not.
    pub fn complete(&self, bytes: &[u8]) -> bool {
        entropy::complete(bytes, &self.frame)
    }

    fn decoder<'b>(&self, bytes: &'b [u8]) -> Option<Decoder<&'b [u8]>> {
        let mut decoder = Decoder::new(bytes);
        decoder.set_max_decoding_buffer_size(MAX_BYTES as usize);
        match self.color()? {
            Color::Rgb => decoder.set_color_transform(ColorTransform::RGB),
            Color::YCbCr => decoder.set_color_transform(ColorTransform::YCbCr),
            Color::Gray => {}
            Color::Cmyk | Color::Ycck => return None,
        }
        Some(decoder)
    }

    /// A file that is not ordinary. [`Layout::check`] has passed it.
    ///
    /// # Errors
    /// The data is damaged.
    pub fn decode(&self, path: &Path, bytes: &[u8]) -> Result<Image> {
        let failed = |e: jpeg_decoder::Error| damaged(path, &e);
        let mut decoder = self.decoder(bytes).ok_or_else(|| damaged(path, &"no decoder reads it"))?;
        let pixels = decoder.decode().map_err(failed)?;
        let (width, height) = (usize::from(self.frame.width), usize::from(self.frame.height));
        let channels = self.frame.components.len();
        match pixels.len() == width * height * channels {
            true => Ok(Image { width, height, channels, pixels }),
            false => Err(damaged(path, &format!("{} samples for {width} x {height} pixels", pixels.len()))),
        }
    }

    /// The file decoded at the smallest of 1/2, 1/4 and 1/8 whose shorter side still has `shorter` pixels. `None` where none has,
    /// and for whatever jpeg-decoder does not read right.
    pub fn scaled(&self, bytes: &[u8], shorter: usize) -> Option<Image> {
        if !self.rare() {
            return None;
        }
        let mut decoder = self.decoder(bytes)?;
        decoder.read_info().ok()?;
        let info = decoder.info()?;
        let channels = match info.pixel_format {
            PixelFormat::L8 => 1,
            PixelFormat::RGB24 => 3,
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
}

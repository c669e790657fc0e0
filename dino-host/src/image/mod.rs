//! Images: decoding files of many formats to 8 bits a channel, resizing, masks and augmentation.

pub mod augment;
mod convert;
mod decode;
mod end_marks;
pub mod enlarge;
mod extensions;
mod gif;
mod jpeg;
pub(crate) mod limits;
pub mod masks;
pub mod planes;
pub mod png;
pub(crate) mod remark;
pub mod resize;
mod tiff;
mod white;

pub(crate) use convert::converted;
pub(crate) use decode::guarded;
pub use decode::{decode, decode_bytes};
pub(crate) use extensions::{is_image_file, unsupported_extension};
pub use white::White;

/// An image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values a pixel: 3 are R G B, 1 is gray, any other number are bands without a meaning of their own.
    pub channels: usize,
    /// `height * width * channels` bytes, rows top to bottom, channels interleaved.
    pub pixels: Vec<u8>,
}

/// How files become images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Values a pixel of every image: 3 and 1 convert what is found (gray is repeated, colors become their luma, as Pillow's
    /// `convert` does); any other number must be what the file has.
    pub channels: usize,
    /// Rotate the image by its EXIF orientation. The published recipe does not.
    pub orient: bool,
    /// JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size, the smallest at which the shorter side keeps this many
    /// pixels: a smaller image to crop from, and other pixels than the published recipe sees. The decoding itself gains
    /// little: at 1/4 and 1/8 about 15 % of 2000 x 1500 pixels' 12 to 27 ms, at 1/2 nothing, for most of it is reading
    /// the bit stream.
    pub fast: Option<usize>,
    /// Of channels of 16 bits, this value and all above it become 255; 65535 is the full range.
    pub white: u16,
}

impl Default for Decode {
    fn default() -> Decode {
        Decode { channels: 3, orient: true, fast: None, white: u16::MAX }
    }
}

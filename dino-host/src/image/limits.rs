//! What every decoder gives and keeps to: the largest images that are read, and the errors of files that are not.

use crate::error::{Error, Result};
use crate::image::Image;
use std::path::Path;

/// Largest width or height that is decoded.
pub(crate) const MAX_SIDE: u32 = 1 << 15;

/// Largest file that is read and largest decoded image, bytes: a small file can claim any size.
pub(crate) const MAX_BYTES: u64 = 512 << 20;

/// A decoded file as it is, before `Decode` is applied.
pub(crate) struct Found {
    pub image: Image,
    /// The last channel is transparency.
    pub alpha: bool,
    /// The orientation tag of EXIF and TIFF, 1 to 8; 1 leaves the image as it is.
    pub orientation: u8,
}

pub(crate) fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {error}", path.display())).hint("remove it or copy it again")
}

pub(crate) fn unsupported(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot decode {}: {what}", path.display())).hint(
        "PNG, JPEG, WebP, GIF, BMP, PNM and TIFF (8 or 16 bits a channel) are read, whatever the file's ending is",
    )
}

/// Refuses a size before anything is allocated for it. `bytes`: of the decoded image.
pub(crate) fn check_size(path: &Path, (width, height): (u32, u32), bytes: u64) -> Result<()> {
    if width.max(height) <= MAX_SIDE && bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(Error::new(format!("{} claims {width} x {height} pixels, {} MiB", path.display(), bytes >> 20))
        .hint(format!("images of up to {MAX_SIDE} pixels a side and {} MiB are read", MAX_BYTES >> 20)))
}

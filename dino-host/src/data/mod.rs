//! Images with or without labels: the trait every data set implements, and the one function that opens any of them.

pub mod builtin;

use crate::error::Result;

/// An RGB image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub width: usize,
    pub height: usize,
    /// `height * width * 3` bytes, rows top to bottom, R G B interleaved.
    pub pixels: Vec<u8>,
}

/// A fixed, ordered set of images. Index `i` always means the same image.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Decodes (or draws) image `i`. The error names the file.
    fn image(&self, i: usize) -> Result<Image>;
    /// The class of image `i`, in `0 .. classes().len()`; `None` when the set has no labels.
    fn label(&self, i: usize) -> Option<u32>;
    /// Class names; empty without labels.
    fn classes(&self) -> &[String];
    /// A name for image `i` that is unique in the set and does not depend on where the set lies on disk.
    fn name(&self, i: usize) -> String;
    /// The exact object mask of image `i` (row-major, `true` = object), where the set knows it.
    fn mask(&self, _i: usize) -> Option<Vec<bool>> {
        None
    }
    /// Identifies the content: same images in the same order give the same string on any machine.
    fn fingerprint(&self) -> String;
}

//! Images with or without labels: the trait every data set implements, and the one function that opens any of them.

pub mod builtin;
pub mod cifar;
mod faults;
pub mod folder;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
pub use faults::{Fault, Faults};
pub use folder::{decode, decode_bytes};

/// An image, 8 bits a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Values a pixel: 3 are R G B, 1 is grey, any other number are bands without a meaning of their own.
    pub channels: usize,
    /// `height * width * channels` bytes, rows top to bottom, channels interleaved.
    pub pixels: Vec<u8>,
}

/// How files become images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decode {
    /// Values a pixel of every image: 3 and 1 convert what is found (grey is repeated, colours become their luma, as Pillow's
    /// `convert` does); any other number must be what the file has.
    pub channels: usize,
    /// Turn the image as its EXIF orientation says. The published recipe does not.
    pub orient: bool,
}

impl Default for Decode {
    fn default() -> Decode {
        Decode { channels: 3, orient: true }
    }
}

/// A fixed, ordered set of images. Index `i` always means the same image.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// No images at all.
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

/// What one training run reads: images to learn from, and images to judge by.
pub struct Splits {
    /// What is learned from.
    pub train: Box<dyn Dataset>,
    /// Never holds an image of `train`. Empty only where the whole set is one image.
    pub test: Box<dyn Dataset>,
    /// The set came without a test part, and a tenth of its images was taken out of training.
    pub held_out: bool,
}

impl std::fmt::Debug for Splits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Splits {{ train: {}, test: {}, held_out: {} }}", self.train.len(), self.test.len(), self.held_out)
    }
}

/// A format: `None` when the folder is not of this format, an error when it is but cannot be used.
type Open = fn(&Path) -> Result<Option<Splits>>;

/// Tried in this order; `folder` takes whatever holds pictures, so it comes last.
const FORMATS: [Open; 2] = [cifar::open, folder::open];

/// Opens the data set in the folder `path`, telling the formats apart by what lies there: the binary files of CIFAR-10,
/// class folders of PNG and JPEG files, or such files alone; with or without a test part beside the train part.
///
/// Where there is no test part, [`hold_out`] makes one. Errors name the file or folder and say what would fit.
pub fn open(path: &Path) -> Result<Splits> {
    let kind = std::fs::metadata(path)
        .map_err(|e| Error::new(format!("cannot open the data set {}: {e}", path.display())).hint(EXPECTED))?;
    if !kind.is_dir() {
        return Err(Error::new(format!("{} is a file, not a folder", path.display()))
            .hint("pass the folder that holds the data set"));
    }
    for format in FORMATS {
        if let Some(splits) = format(path)? {
            return Ok(splits);
        }
    }
    Err(Error::new(format!("no images found in {}", path.display())).hint(EXPECTED))
}

const EXPECTED: &str = "a data set is a folder of PNG or JPEG files, of class folders of such files, of train/ and val/ or \
                        test/ with either, or of CIFAR-10's binary files (data_batch_1.bin ..., or train.bin)";

/// Takes a tenth of the images out of training, to judge by.
///
/// Which ones depends on each image's name alone: not on its place in the list, on the other images or on where the set
/// lies, so that the parts are the same on every machine and an image never changes sides as a set grows. The tenth is
/// therefore approximate. Where no name falls into it, one image is taken; a set of a single image is only trained on.
pub fn hold_out(set: Box<dyn Dataset>) -> Splits {
    let set: Arc<dyn Dataset> = Arc::from(set);
    let hashes: Vec<u64> = (0..set.len()).map(|i| name_hash(&set.name(i))).collect();
    let mut held: HashSet<usize> = (0..set.len()).filter(|&i| hashes[i].is_multiple_of(10)).collect();
    let by_hash = |&i: &usize| hashes[i];
    if set.len() < 2 {
        held.clear();
    } else if held.is_empty() {
        held.extend((0..set.len()).min_by_key(by_hash));
    } else if held.len() == set.len() {
        let back = (0..set.len()).max_by_key(by_hash);
        held.retain(|&i| Some(i) != back);
    }
    let part = |of_test| (0..set.len()).filter(|i| held.contains(i) == of_test).collect();
    let subset = |indices| Box::new(Subset { whole: set.clone(), indices });
    Splits { train: subset(part(false)), test: subset(part(true)), held_out: true }
}

/// Some images of a set, in the set's order. Labels and classes stay the whole set's.
pub struct Subset {
    whole: Arc<dyn Dataset>,
    /// Image `i` here is image `indices[i]` of the whole.
    indices: Vec<usize>,
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        self.whole.image(self.indices[i])
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.whole.label(self.indices[i])
    }
    fn classes(&self) -> &[String] {
        self.whole.classes()
    }
    fn name(&self, i: usize) -> String {
        self.whole.name(self.indices[i])
    }
    fn mask(&self, i: usize) -> Option<Vec<bool>> {
        self.whole.mask(self.indices[i])
    }
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.text(&self.whole.fingerprint());
        for i in 0..self.len() {
            hash.text(&self.name(i));
        }
        hash.hex()
    }
}

/// FNV-1a, 64 bits: enough to notice another data set, and the same on every machine. Not against intent.
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    pub(crate) fn number(&mut self, x: u64) {
        self.bytes(&x.to_le_bytes());
    }
    /// The length goes first, so that "ab", "c" and "a", "bc" differ.
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// FNV-1a leaves the low bits of similar names alike; two rounds of multiply and shift (MurmurHash3's) even them out.
fn name_hash(name: &str) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(name.as_bytes());
    let x = (hash.0 ^ hash.0 >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

/// The name of the built-in set where a path is expected.
pub const BUILTIN: &str = "builtin";

/// The built-in set at `side` pixels: drawn, not read, so that a fresh machine needs nothing.
pub fn builtin(side: usize) -> Splits {
    let part = |count, part| Box::new(builtin::Builtin::new(side, count, part, 0)) as Box<dyn Dataset>;
    Splits { train: part(4000, builtin::Part::Train), test: part(1000, builtin::Part::Test), held_out: false }
}

//! Images with or without labels: the trait every data set implements, and the one function that opens any of them.

pub mod arrays;
pub mod builtin;
mod cache;
pub mod files;
mod fingerprint;
pub mod folder;
mod hold_out;
mod labels;
mod levels;
pub mod list;
pub mod loader;
pub mod order;
mod overlap;
mod parquet;
mod part_files;
mod parts;
pub mod shards;
mod sidecar;
mod table;
mod unreadable;
mod unsupported;

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::image::{Decode, Image, is_image_file};
use arrays::{cifar, idx, npz, stl10};
pub use builtin::{BUILTIN, builtin};
pub use folder::several_below;
pub use hold_out::{Subset, hold_out, to_choose_on};
pub use levels::Range;
pub use order::Shards;
pub use unreadable::{Unreadable, UnreadableImage, lines as unreadable_lines};

/// A fixed, ordered set of images. Index `i` always means the same image.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;
    /// No images at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Decodes (or draws) image `i`.
    ///
    /// # Errors
    /// The file is missing, unreadable or damaged, or has other channels; the error names it.
    fn image(&self, i: usize) -> Result<Image>;
    /// The class of image `i`, in `0 .. classes().len()`; `None` when the set has no labels.
    fn label(&self, i: usize) -> Option<u32>;
    /// Class names; empty without labels.
    fn classes(&self) -> &[String];
    /// A name for image `i` that is unique in the set and does not depend on where the set is stored on disk.
    fn name(&self, i: usize) -> String;
    /// Distinguishes the sets of a run: the address in memory of image `i`'s set, which is this one's own but for a selection from
    /// others.
    fn identity(&self, _i: usize) -> usize {
        std::ptr::from_ref(self).cast::<()>().addr()
    }
    /// The file that image `i` is, where it is one by itself.
    fn path(&self, _i: usize) -> Option<PathBuf> {
        None
    }
    /// The exact object mask of image `i` (row-major, `true` = object), where the set knows it.
    fn mask(&self, _i: usize) -> Option<Vec<bool>> {
        None
    }
    /// For a set that is read much faster in order than at random: its layout on disk.
    fn shards(&self) -> Option<Shards> {
        None
    }
    /// Every image once, in the order of training epoch `epoch`: a function of the set, `seed` and `epoch` alone.
    ///
    /// All orders are equally likely (Fisher-Yates), except for a set in shards: there the shards are shuffled, and then
    /// the images of neighboring ones, see [`Shards::order`].
    fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        match self.shards() {
            Some(shards) => shards.order(seed, epoch),
            None => order::order(self.len(), seed, epoch),
        }
    }
    /// Identifies the content: same images in the same order give the same string on any machine.
    fn fingerprint(&self) -> String;
}

/// What one training run reads: images to learn from, and images to evaluate on.
pub struct Splits {
    /// What is learned from.
    pub train: Box<dyn Dataset>,
    /// Never holds an image of `train`. Empty only where the entire set is one image.
    pub test: Box<dyn Dataset>,
    /// The set came without a test part, and a tenth of its images was taken out of training.
    pub held_out: bool,
    /// What was passed over or decided, a line each, for the user to know once.
    pub notes: Vec<String>,
}

impl Splits {
    /// The two parts and the notes on them; without a test part a tenth is held out, see [`hold_out`].
    fn of<D: Dataset + 'static>(train: D, test: Option<D>, mut notes: Vec<String>) -> Splits {
        let train = Box::new(train);
        match test {
            Some(test) => Splits { train, test: Box::new(test), held_out: false, notes },
            None => {
                let held = hold_out(train);
                notes.extend(held.notes);
                Splits { notes, ..held }
            }
        }
    }
}

impl std::fmt::Debug for Splits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Splits {{ train: {}, test: {}, held_out: {} }}", self.train.len(), self.test.len(), self.held_out)
    }
}

/// A format of folders: `None` when the folder is not of this format, an error when it is but cannot be used.
type Open = fn(&Path, Decode) -> Result<Option<Splits>>;

/// Tried in this order. A folder with images is a folder of images, even where the archive that they came in is stored beside
/// them: so archives come last, and after them what is only called as CIFAR's files.
const FORMATS: [Open; 8] =
    [cifar::open, stl10::open, idx::open, folder::open, shards::open, parquet::open, npz::open, cifar::open_odd];

/// Formats of single files, likewise.
const FILES: [Open; 6] =
    [list::open_file, idx::open_file, shards::open_file, parquet::open_file, npz::open_file, stl10::open_file];

/// Opens the data set at `path`, detecting the format by what is stored there (see the hint of the error): a folder, a list
/// of files, a file in IDX format or a shard; with or without a test part beside the train part.
///
/// Where there is no test part, [`hold_out`] makes one.
///
/// # Errors
/// Nothing at `path` is a known format, or its files, labels or parts cannot be used; the error names the file or folder.
pub fn open(path: &Path, how: Decode) -> Result<Splits> {
    let mut splits = open_any(path, how)?;
    overlap::check(&mut splits)?;
    if let Some(class) = only_class(&splits) {
        let mut note = format!("there is one class, {class}: no accuracy is given");
        if let Some(below) = several_below(path) {
            note += &format!("; {} has several folders, pass it to have them as classes", below.display());
        }
        splits.notes.push(note);
    }
    Ok(splits)
}

/// The class of all labeled images of both parts, where there is just one: nothing can be classified then.
pub fn only_class(splits: &Splits) -> Option<&str> {
    let mut labels =
        [&splits.train, &splits.test].into_iter().flat_map(|set| (0..set.len()).filter_map(|i| set.label(i)));
    let first = labels.next()?;
    let only = labels.all(|label| label == first);
    splits.train.classes().get(first as usize).filter(|_| only).map(String::as_str)
}

fn open_any(path: &Path, how: Decode) -> Result<Splits> {
    let failed = |e: std::io::Error| Error::new(format!("cannot open the data set {}: {e}", path.display()));
    let kind = fs::metadata(path).map_err(|e| failed(e).hint(EXPECTED))?;
    if kind.is_dir() {
        fs::read_dir(path).map_err(|e| failed(e).hint("its owner can make it readable"))?;
        for format in FORMATS {
            if let Some(mut splits) = format(path, how)? {
                splits.notes.extend(cifar::passed_over(path));
                return Ok(splits);
            }
        }
        let unsupported = folder::unsupported(path).map(|note| format!(": {note}")).unwrap_or_default();
        return Err(Error::new(format!("no images found in {}{unsupported}", path.display())).hint(EXPECTED));
    }
    if !kind.is_file() {
        return Err(Error::new(format!("{} is neither a file nor a folder", path.display())).hint(EXPECTED));
    }
    for format in FILES {
        if let Some(splits) = format(path, how)? {
            return Ok(splits);
        }
    }
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    if ["zip", "rar", "7z", "gz", "xz", "bz2", "zst"].contains(&ending.as_str()) {
        return Err(Error::new(format!("{} is packed", path.display()))
            .hint("unpack it and pass the folder; packed are read only .tar.gz, .tgz and .tar.zst, and MNIST's .gz"));
    }
    let what = if is_image_file(path) { "a single image" } else { "not a data set that is known" };
    Err(Error::new(format!("{} is {what}", path.display())).hint(EXPECTED))
}

const EXPECTED: &str = "a data set is one of: a folder of images (PNG, JPEG, WebP, GIF, BMP, PNM, TIFF), of class folders of images, \
                        or of train/ and val/ or test/ with either; a folder of CIFAR-10's or CIFAR-100's files, binary \
                        (data_batch_1.bin ..., train.bin) or Python's (data_batch_1 ..., train); of STL-10's (train_X.bin); a \
                        folder with MNIST's files (train-images-idx3-ubyte, also .gz) or such a file; a list of files (.csv, \
                        .tsv, .txt, .jsonl: path,label); a shard (.tar, .tar.gz, .tgz, .tar.zst) or a folder of shards; .parquet files \
                        with a column of images, or such a file; NumPy's arrays of images (.npz, .npy)";

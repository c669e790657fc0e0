//! Images with or without labels: the trait every data set implements, and the one function that opens any of them.

pub mod arrays;
mod beside;
pub mod builtin;
mod faults;
pub mod files;
pub mod folder;
mod kept;
mod labels;
pub mod list;
pub mod loader;
mod overlap;
mod parquet;
mod part_files;
mod parts;
pub mod shards;
mod table;
mod unread;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
pub use crate::image::white::Range;
use crate::image::{Decode, Image, is_picture};
use crate::io::text;
use arrays::{cifar, idx, npz, stl10};
use dino_kernel::rng::{Kind, Rng};
pub use faults::{Fault, Faults, lines as fault_lines};
pub use folder::several_below;

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
    /// Tells the sets of a run apart: where in memory that of image `i` lies, which is this one's place but for a selection from
    /// others.
    fn place(&self, _i: usize) -> usize {
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
    /// Where a set is read much faster in order than at random: how it lies on disk.
    fn shards(&self) -> Option<Shards> {
        None
    }
    /// Every image once, in the order of training epoch `epoch`: a function of the set, `seed` and `epoch` alone.
    ///
    /// All orders are equally likely (Fisher-Yates), except for a set in shards: there the shards are shuffled, and then
    /// the images of neighbouring ones, see [`Shards::order`].
    fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        match self.shards() {
            Some(shards) => shards.order(seed, epoch),
            None => crate::data::loader::order(self.len(), seed, epoch),
        }
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
    /// What was passed over or decided, a line each, for the user to know once.
    pub notes: Vec<String>,
}

impl Splits {
    /// The two parts and what is to be said of them; without a test part a tenth is held out, see [`hold_out`].
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

/// Runs of images that lie together on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The first image of every shard, ascending, and at the end the number of images.
    pub starts: Vec<usize>,
    /// How many shards are mixed with one another at most.
    pub together: usize,
}

impl Shards {
    /// Images that are mixed with one another at most.
    pub const BUFFER: usize = 4096;

    /// The shards in random order, their images through a buffer: it is filled with up to [`Shards::BUFFER`] images of up to
    /// `together` shards, shuffled, emptied, and filled again.
    ///
    /// (A buffer that is topped up after every image mixes no better and lets a few images wait for many shards: each would
    /// be a shard read, and perhaps decompressed, for one image.)
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let rng = |block| Rng::new(seed, epoch as u32, 0, 0, Kind::Shuffle, block);
        let mut shards: Vec<usize> = (0..self.starts.len().saturating_sub(1)).collect();
        shuffle(&mut shards, &mut rng(1));
        let mut rng = rng(2);
        let mut order = Vec::with_capacity(self.starts.last().copied().unwrap_or(0));
        let (mut buffer, mut mixed) = (Vec::new(), 0);
        for shard in shards {
            for image in self.starts[shard]..self.starts[shard + 1] {
                buffer.push(image as u32);
                if buffer.len() == Shards::BUFFER {
                    shuffle(&mut buffer, &mut rng);
                    order.append(&mut buffer);
                    mixed = 0;
                }
            }
            mixed += 1;
            if mixed == self.together {
                shuffle(&mut buffer, &mut rng);
                order.append(&mut buffer);
                mixed = 0;
            }
        }
        shuffle(&mut buffer, &mut rng);
        order.append(&mut buffer);
        order
    }
}

/// Fisher-Yates.
fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u32 + 1) as usize);
    }
}

/// A format of folders: `None` when the folder is not of this format, an error when it is but cannot be used.
type Open = fn(&Path, Decode) -> Result<Option<Splits>>;

/// Tried in this order. A folder with pictures is a folder of pictures, even where the archive that they came in lies beside
/// them: so archives come last, and after them what is only called as CIFAR's files.
const FORMATS: [Open; 8] =
    [cifar::open, stl10::open, idx::open, folder::open, shards::open, parquet::open, npz::open, cifar::open_odd];

/// Formats of single files, likewise.
const FILES: [Open; 6] =
    [list::open_file, idx::open_file, shards::open_file, parquet::open_file, npz::open_file, stl10::open_file];

/// Opens the data set at `path`, telling the formats apart by what lies there (see the hint of the error): a folder, a list
/// of files, a file in IDX format or a shard; with or without a test part beside the train part.
///
/// Where there is no test part, [`hold_out`] makes one. Errors name the file or folder and say what would fit.
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

/// The class that all labelled images of both parts are of, where there is just one: nothing can be told apart then.
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
        let unread = folder::unread(path).map(|said| format!(": {said}")).unwrap_or_default();
        return Err(Error::new(format!("no images found in {}{unread}", path.display())).hint(EXPECTED));
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
    let what = if is_picture(path) { "a single picture" } else { "not a data set that is known" };
    Err(Error::new(format!("{} is {what}", path.display())).hint(EXPECTED))
}

const EXPECTED: &str = "a data set is one of: a folder of pictures (PNG, JPEG, WebP, GIF, BMP, PNM, TIFF), of class folders of pictures, \
                        or of train/ and val/ or test/ with either; a folder of CIFAR-10's or CIFAR-100's files, binary \
                        (data_batch_1.bin ..., train.bin) or Python's (data_batch_1 ..., train); of STL-10's (train_X.bin); a \
                        folder with MNIST's files (train-images-idx3-ubyte, also .gz) or such a file; a list of files (.csv, \
                        .tsv, .txt, .jsonl: path,label); a shard (.tar, .tar.gz, .tgz, .tar.zst) or a folder of shards; .parquet files \
                        with a column of pictures, or such a file; NumPy's arrays of images (.npz, .npy)";

/// The file that names classes which are numbers, one name a line.
const CLASS_NAMES: &str = "classnames.txt";

/// Classes that are numbers: at most this many, so that one wild label does not make millions of names.
const MAX_CLASSES: usize = 1 << 20;

/// The names of classes that are numbers: the lines of `classnames.txt` in the first of `folders` that has one, otherwise
/// `0 ..= highest` as text. Errors: a number beyond the names, or too high.
fn numbered_classes(folders: &[&Path], highest: u32) -> Result<Vec<String>> {
    let Some(path) = folders.iter().map(|f| f.join(CLASS_NAMES)).find(|p| p.is_file()) else {
        return match highest as usize {
            n if n < MAX_CLASSES => Ok((0..=highest).map(|i| i.to_string()).collect()),
            n => Err(Error::new(format!("{} has a label {n}", folders[0].display()))
                .hint(format!("labels below {MAX_CLASSES} are read; number the classes from 0"))),
        };
    };
    let names = names_in(&path)?;
    match names.len() {
        n if n > highest as usize => Ok(names),
        n => Err(Error::new(format!("{} names {n} classes, but there is a label {highest}", path.display()))
            .hint("one class name a line; without the file the numbers are the names")),
    }
}

/// Classes that are numbers.
struct Numbered {
    names: Vec<String>,
    /// The numbers that are classes, ascending, where they are not `0 .. names.len()`.
    sparse: Option<Vec<u64>>,
}

impl Numbered {
    /// The class of a label.
    fn place(&self, label: u64) -> Option<u32> {
        match &self.sparse {
            Some(numbers) => numbers.binary_search(&label).ok().map(|place| place as u32),
            None => u32::try_from(label).ok().filter(|&label| (label as usize) < self.names.len()),
        }
    }
}

/// From so high a number on, and with so few of the numbers up to it, labels are numbers of something else than places in a list.
const SPARSE_FROM: u64 = 1000;
const SPARSE_PART: u64 = 4;

/// The classes of labels that are numbers; `occurring`: those of both parts, ascending, each once. Names are those of
/// [`numbered_classes`], but where the highest number is 1000 or more and less than a quarter of the numbers up to it occur (taxa,
/// articles, WordNet offsets): there only the numbers that occur are classes, in their order, so that nothing grows with the numbers
/// themselves. Errors: as [`numbered_classes`].
fn numbered(folders: &[&Path], occurring: &[u64]) -> Result<Numbered> {
    let highest = occurring.last().copied().unwrap_or(0);
    let named = folders.iter().any(|folder| folder.join(CLASS_NAMES).is_file());
    if highest >= SPARSE_FROM && (occurring.len() as u64) < highest / SPARSE_PART && !named {
        let names = occurring.iter().map(u64::to_string).collect();
        return Ok(Numbered { names, sparse: Some(occurring.to_vec()) });
    }
    let names = numbered_classes(folders, u32::try_from(highest).unwrap_or(u32::MAX))?;
    Ok(Numbered { names, sparse: None })
}

/// The names of classes whose labels are numbers; the labels of all images of both parts become their places among them, see
/// [`numbered`].
fn renumbered(folders: &[&Path], labels: Vec<&mut u32>) -> Result<Vec<String>> {
    let mut occurring: Vec<u64> = labels.iter().map(|label| u64::from(**label)).collect();
    occurring.sort_unstable();
    occurring.dedup();
    let classes = numbered(folders, &occurring)?;
    for label in labels {
        *label = classes.place(u64::from(*label)).unwrap_or(*label); // all of them have a place
    }
    Ok(classes.names)
}

/// The lines of a file of class names, trimmed, empty ones left out.
fn names_in(path: &Path) -> Result<Vec<String>> {
    let failed =
        |e: String| Error::new(format!("cannot read {}: {e}", path.display())).hint("one class name a line, as text");
    let bytes = fs::read(path).map_err(|e| failed(e.to_string()))?;
    let text = text::decoded(bytes).map_err(|line| failed(format!("line {line} is not UTF-8")))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    match names.len() {
        0 => Err(Error::new(format!("{} names no class", path.display()))
            .hint("one class name a line; without the file there are default names")),
        _ => Ok(names),
    }
}

/// Takes a tenth of the images out of training, to judge by.
///
/// Which ones depends on each image's name alone: not on its place in the list, on the other images or on where the set
/// lies, so that the parts are the same on every machine and an image never changes sides as a set grows. The tenth is
/// therefore approximate. Where no name falls into it, one image is taken; a set of a single image is only trained on. Classes that
/// it misses, as it may in a small set, are named in a note: images taken for their sake would change sides as the set grows.
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
    let notes = missed(&*set, &held);
    let part = |of_test| (0..set.len()).filter(|i| held.contains(i) == of_test).collect();
    let subset = |indices| Box::new(Subset { whole: set.clone(), indices });
    Splits { train: subset(part(false)), test: subset(part(true)), held_out: true, notes }
}

/// What is said of classes of which all images or none are held out.
fn missed(set: &dyn Dataset, held: &HashSet<usize>) -> Vec<String> {
    // (images, held out) of every class that occurs.
    let mut counts = BTreeMap::new();
    for i in 0..set.len() {
        if let Some(label) = set.label(i) {
            let (images, out): &mut (usize, usize) = counts.entry(label).or_default();
            *images += 1;
            *out += held.contains(&i) as usize;
        }
    }
    let named = |part: &dyn Fn(&(usize, usize)) -> bool| -> Vec<&str> {
        let of = counts.iter().filter(|(_, count)| part(count));
        of.filter_map(|(label, _)| set.classes().get(*label as usize).map(String::as_str)).collect()
    };
    let (none, all) = (named(&|(_, out)| *out == 0), named(&|(images, out)| images == out));
    let mut notes = Vec::new();
    if !none.is_empty() && !held.is_empty() {
        let (missed, all) = (none.len(), counts.len());
        let some = labels::some(&none);
        notes.push(format!(
            "the held-out tenth ({}) has no image of {missed} of {all} classes ({some})",
            labels::counted(held.len(), "image")
        ));
    }
    if !all.is_empty() {
        let (classes, some) = (labels::counted(all.len(), "class"), labels::some(&all));
        notes.push(format!("all images of {classes} are held out ({some}): nothing is learned of them"));
    }
    notes
}

/// Some images of a set, in the set's order. Labels and classes stay the whole set's.
pub struct Subset {
    whole: Arc<dyn Dataset>,
    /// Image `i` here is image `indices[i]` of the whole; ascending.
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
    fn path(&self, i: usize) -> Option<PathBuf> {
        self.whole.path(self.indices[i])
    }
    fn mask(&self, i: usize) -> Option<Vec<bool>> {
        self.whole.mask(self.indices[i])
    }
    fn shards(&self) -> Option<Shards> {
        let Shards { starts, together } = self.whole.shards()?;
        let starts = starts.iter().map(|&start| self.indices.partition_point(|&i| i < start)).collect();
        Some(Shards { starts, together })
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

/// The built-in set at `side` pixels, in colour or grey: drawn, not read, so that a fresh machine needs nothing.
pub fn builtin(side: usize, channels: usize) -> Splits {
    let part = |count, part| Box::new(builtin::Builtin::new(side, count, part, 0).with(channels)) as Box<dyn Dataset>;
    Splits {
        train: part(4000, builtin::Part::Train),
        test: part(1000, builtin::Part::Test),
        held_out: false,
        notes: Vec::new(),
    }
}

//! The IDX format of MNIST and its relatives (Fashion, EMNIST, KMNIST): a magic number, the dimensions as big-endian 32-bit
//! numbers, bytes (yann.lecun.com/exdb/mnist). Plain or gzipped.
//!
//! Images are `*images-idx3-ubyte` (n, height, width) or `*images-idx4-ubyte` (n, height, width, channels), labels
//! `*labels-idx1-ubyte` with the same beginning; `images.idx3-ubyte`, as some programs unpack it, is the same. A beginning
//! that ends in `train-` is the train part, one that ends in `t10k-` or `test-` the test part.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::picture::{MAX_BYTES, MAX_SIDE, converted, unreadable};
use super::{Dataset, Decode, Fnv, Image, Splits, hold_out, numbered_classes};
use crate::error::{Error, Result};

/// Largest file, unpacked: EMNIST's largest has 0.6 GB.
const MAX_FILE: u64 = 8 << 30;

/// Images of one size, in memory.
pub struct Idx {
    /// The images' file name up to `images`, without its last character: `train`, `t10k`, `emnist-letters-train`.
    name: String,
    pixels: Vec<u8>,
    /// n, height, width, channels.
    dims: [usize; 4],
    labels: Option<Vec<u8>>,
    classes: Vec<String>,
    how: Decode,
}

/// A pair of files.
#[derive(Clone)]
struct Pair {
    /// What their names begin with, such as `train-`.
    name: String,
    images: PathBuf,
    labels: Option<PathBuf>,
}

/// `None` when the folder has no images in this format.
pub(super) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let pairs = pairs(folder)?;
    let train: Vec<_> = pairs.iter().filter(|p| pairs.len() == 1 || is_train(&p.name)).collect();
    match train[..] {
        _ if pairs.is_empty() => Ok(None),
        [pair] => splits(folder, pair, &pairs, how).map(Some),
        _ => {
            let names = pairs.iter().map(|p| p.images.display().to_string()).collect::<Vec<_>>().join(", ");
            Err(Error::new(format!("{} holds several sets: {names}", folder.display()))
                .hint("pass the file of training images itself"))
        }
    }
}

/// `None` when the file's name is not that of images or labels in this format.
pub(super) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    let Some((name, _)) = path.file_name().and_then(|n| n.to_str()).and_then(parse_name) else { return Ok(None) };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let pairs = pairs(folder)?;
    match pairs.iter().find(|p| p.name == name) {
        Some(pair) => splits(folder, pair, &pairs, how).map(Some),
        None => Err(Error::new(format!("{} has no images beside it", path.display()))
            .hint(format!("{name}images-idx3-ubyte, or the same with .gz, goes with it"))),
    }
}

fn is_train(name: &str) -> bool {
    name.trim_end_matches(['-', '.', '_']).ends_with("train")
}

/// The train part's pair, with the test part of the same set where there is one.
fn splits(folder: &Path, train: &Pair, pairs: &[Pair], how: Decode) -> Result<Splits> {
    let set = |name: &str| name.replace("train", "").replace("t10k", "").replace("test", "");
    let other = |p: &&Pair| is_train(&train.name) && !is_train(&p.name) && set(&p.name) == set(&train.name);
    let mut parts = vec![Idx::read(train, how)?];
    if let Some(test) = pairs.iter().find(other) {
        parts.push(Idx::read(test, how)?);
    }
    if let [train, test] = parts.as_slice()
        && train.labels.is_some() != test.labels.is_some()
    {
        let (with, without) = if train.labels.is_some() { (train, test) } else { (test, train) };
        return Err(Error::new(format!("{}: {} has labels, {} has none", folder.display(), with.name, without.name))
            .hint("both label files or neither: *labels-idx1-ubyte"));
    }
    let highest = parts.iter().flat_map(|p| p.labels.iter().flatten()).max();
    if let Some(&highest) = highest {
        let classes = numbered_classes(&[folder], u32::from(highest))?;
        parts.iter_mut().for_each(|part| part.classes.clone_from(&classes));
    }
    let test = parts.len().checked_sub(2).and_then(|_| parts.pop());
    let train: Box<dyn Dataset> = Box::new(parts.remove(0));
    Ok(match test {
        Some(test) => Splits { train, test: Box::new(test), held_out: false, notes: Vec::new() },
        None => hold_out(train),
    })
}

/// What the name begins with, and whether images (`true`) or labels follow.
fn parse_name(name: &str) -> Option<(String, bool)> {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    ["images-idx3-ubyte", "images.idx3-ubyte", "images-idx4-ubyte", "images.idx4-ubyte"]
        .iter()
        .map(|end| (end, true))
        .chain(["labels-idx1-ubyte", "labels.idx1-ubyte"].iter().map(|end| (end, false)))
        .find_map(|(end, images)| Some((plain.strip_suffix(end)?.to_string(), images)))
}

/// The images in a folder with the labels of the same name, sorted. An unpacked file goes before the packed one.
fn pairs(folder: &Path) -> Result<Vec<Pair>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let path = entry.map_err(|e| unreadable(folder, &e))?.path();
        let found = path.file_name().and_then(|n| n.to_str()).and_then(parse_name);
        if let Some((name, images)) = found.filter(|_| path.is_file()) {
            files.push((name, images, path));
        }
    }
    files.sort_by(|a, b| (&a.0, a.2.as_os_str().len(), &a.2).cmp(&(&b.0, b.2.as_os_str().len(), &b.2)));
    let labels = |name: &str| files.iter().find(|f| !f.1 && f.0 == name).map(|f| f.2.clone());
    let mut pairs: Vec<Pair> = Vec::new();
    for (name, _, path) in files.iter().filter(|f| f.1) {
        if pairs.last().is_none_or(|last| last.name != *name) {
            pairs.push(Pair { name: name.clone(), images: path.clone(), labels: labels(name) });
        }
    }
    Ok(pairs)
}

impl Idx {
    fn read(pair: &Pair, how: Decode) -> Result<Idx> {
        let (dims, pixels) = read(&pair.images, &[3, 4])?;
        let dims = [dims[0], dims[1], dims[2], dims.get(3).copied().unwrap_or(1)];
        let [n, height, width, channels] = dims;
        // Saturating: next to no images at all, the other three can be anything.
        let size = [height, width, channels].iter().fold(1u64, |size, &d| size.saturating_mul(d as u64));
        if n == 0 || size == 0 || height.max(width) > MAX_SIDE as usize || size > MAX_BYTES {
            return Err(Error::new(format!(
                "{} claims {n} images of {width} x {height} pixels and {channels} channels",
                pair.images.display()
            ))
            .hint(format!("images of up to {MAX_SIDE} pixels a side and {} MiB are read", MAX_BYTES >> 20)));
        }
        let labels = pair.labels.as_ref().map(|path| read(path, &[1]).map(|(_, labels)| labels)).transpose()?;
        if let (Some(labels), Some(path)) = (&labels, &pair.labels)
            && labels.len() != n
        {
            return Err(Error::new(format!(
                "{} has {} labels, {} has {n} images",
                path.display(),
                labels.len(),
                pair.images.display()
            ))
            .hint("the two files are not of the same set"));
        }
        let name = match pair.name.trim_end_matches(['-', '.', '_']) {
            "" => "images".into(),
            name => name.to_string(),
        };
        Ok(Idx { name, pixels, dims, labels, classes: Vec::new(), how })
    }
}

/// The dimensions, as many as one of `ranks` says, and the bytes of a file.
fn read(path: &Path, ranks: &[u8]) -> Result<(Vec<usize>, Vec<u8>)> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(format!("{} is cut short", path.display())).hint("copy it again")
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Error::new(format!("cannot unpack {}: {e}", path.display())).hint("copy it again")
        }
        _ => unreadable(path, &e),
    };
    let file = fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let packed = path.extension().is_some_and(|e| e == "gz");
    let mut reader: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(std::io::BufReader::new(file)) };
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(failed)?;
    let [0, 0, kind, rank] = magic else {
        return Err(Error::new(format!("{} begins with {magic:02x?}, not with 00 00", path.display()))
            .hint("it is not in IDX format; is it packed?"));
    };
    if kind != 8 || !ranks.contains(&rank) {
        return Err(Error::new(format!("{} has type {kind:#04x} and {rank} dimensions", path.display())).hint(
            "images are unsigned bytes (0x08) in 3 dimensions (n, height, width) or 4 (with channels), labels in 1",
        ));
    }
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut dim = [0; 4];
        reader.read_exact(&mut dim).map_err(failed)?;
        dims.push(u32::from_be_bytes(dim) as usize);
    }
    let product = dims.iter().try_fold(1u64, |p, &d| p.checked_mul(d as u64)).filter(|&p| p <= MAX_FILE);
    let Some(expected) = product else {
        return Err(Error::new(format!("{} claims the dimensions {dims:?}", path.display()))
            .hint(format!("up to {} GiB are read", MAX_FILE >> 30)));
    };
    let mut bytes = Vec::new();
    let header = 4 + 4 * u64::from(rank);
    // A plain file has what its length says; a packed one is believed as it comes.
    let surely = if packed { 0 } else { expected.min(length.saturating_sub(header)) };
    bytes.try_reserve_exact(surely as usize + 1).map_err(|e| unreadable(path, &e.into()))?;
    reader.take(expected + 1).read_to_end(&mut bytes).map_err(failed)?;
    let (what, found) = match bytes.len() as u64 {
        n if n == expected => return Ok((dims, bytes)),
        n if n < expected => ("cut short", format!("{n}")),
        _ => ("too long", format!("more than {expected}")),
    };
    Err(Error::new(format!("{} is {what}: {found} bytes for the dimensions {dims:?}", path.display()))
        .hint(format!("{expected} bytes follow its header; copy it again")))
}

impl Dataset for Idx {
    fn len(&self) -> usize {
        self.dims[0]
    }
    fn image(&self, i: usize) -> Result<Image> {
        let [_, height, width, channels] = self.dims;
        let size = height * width * channels;
        let pixels = self.pixels[i * size..(i + 1) * size].to_vec();
        converted(Path::new(&self.name), Image { width, height, channels, pixels }, false, self.how.channels)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| u32::from(labels[i]))
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// File and image, as in `train/00042`.
    fn name(&self, i: usize) -> String {
        format!("{}/{i:05}", self.name)
    }
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.text(&self.name);
        self.dims.iter().for_each(|&d| hash.number(d as u64));
        self.classes.iter().for_each(|class| hash.text(class));
        hash.bytes(self.labels.as_deref().unwrap_or_default());
        hash.bytes(&self.pixels);
        hash.hex()
    }
}

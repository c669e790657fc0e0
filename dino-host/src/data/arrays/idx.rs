//! The IDX format of MNIST and its relatives (Fashion, EMNIST, KMNIST, QMNIST): a magic number, the dimensions as big-endian
//! 32-bit numbers, the numbers themselves (yann.lecun.com/exdb/mnist). Plain or gzipped.
//!
//! Images are `*images-idx3-ubyte` (n, height, width) or `*images-idx4-ubyte` (n, height, width, channels), labels
//! `*labels-idx1-ubyte` with the same beginning, or QMNIST's `*labels-idx2-int`, whose column 0 is the label;
//! `images.idx3-ubyte`, as some programs unpack it, is the same. A word of the prefix names the part, as in
//! `emnist-letters-train-`; `t10k` is MNIST's test part. EMNIST stores its images transposed: they are transposed back.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{Arrays, Layout, MAX_ARRAY, check_dims, splits as both};
use crate::data::Splits;
use crate::data::labels::MAX_CLASSES;
use crate::data::parts::{self, Part};
use crate::error::{Error, Result};
use crate::image::Decode;
use crate::io::read_error;

/// A pair of files.
#[derive(Clone)]
struct Pair {
    /// What their names begin with, such as `train-`.
    name: String,
    images: PathBuf,
    labels: Option<PathBuf>,
}

/// `None` when the folder has no images in this format.
pub(crate) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let pairs = pairs(folder)?;
    let train: Vec<_> = pairs.iter().filter(|p| pairs.len() == 1 || part(&p.name).0 == Some(Part::Train)).collect();
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
pub(crate) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    let Some((name, _)) = path.file_name().and_then(|n| n.to_str()).and_then(parse_name) else { return Ok(None) };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let pairs = pairs(folder)?;
    match pairs.iter().find(|p| p.name == name) {
        Some(pair) => splits(folder, pair, &pairs, how).map(Some),
        None => Err(Error::new(format!("{} has no images beside it", path.display()))
            .hint(format!("{name}images-idx3-ubyte, or the same with .gz, goes with it"))),
    }
}

/// The part that a beginning is of, and what the set is called.
fn part(name: &str) -> (Option<Part>, String) {
    let name = name.to_ascii_lowercase().replace("t10k", "test");
    let (part, words) = parts::in_name(&name);
    let set = words.join("-");
    match set.strip_suffix("train") {
        Some(set) if part.is_none() => (Some(Part::Train), set.to_string()),
        _ => (part, set),
    }
}

/// The train part's pair, with the test part of the same set where there is one.
fn splits(folder: &Path, train: &Pair, pairs: &[Pair], how: Decode) -> Result<Splits> {
    let (train_part, set) = part(&train.name);
    let rank = |p: &&Pair| match part(&p.name) {
        (Some(Part::Test { rank }), other) if other == set && train_part == Some(Part::Train) => Some(rank),
        _ => None,
    };
    let test = pairs.iter().filter(|p| rank(p).is_some()).min_by_key(rank);
    let used = |p: &&Pair| p.name == train.name || test.is_some_and(|test| test.name == p.name);
    let unused: Vec<String> = pairs.iter().filter(|p| !used(p)).map(|p| p.images.display().to_string()).collect();
    let mut notes = Vec::new();
    if !unused.is_empty() {
        notes.push(format!("not used: {}", unused.join(", ")));
    }
    let mut parts = vec![read_pair(train, how, &mut notes)?];
    if let Some(test) = test {
        parts.push(read_pair(test, how, &mut notes)?);
    }
    if let [train, test] = parts.as_slice()
        && train.labels.is_some() != test.labels.is_some()
    {
        let (with, without) = if train.labels.is_some() { (train, test) } else { (test, train) };
        return Err(Error::new(format!("{}: {} has labels, {} has none", folder.display(), with.name, without.name))
            .hint("both label files or neither: *labels-idx1-ubyte"));
    }
    if parts.iter().any(|part| part.layout == Layout::Columns) {
        notes.push(format!(
            "{}: EMNIST's files hold every image transposed; they are transposed back (a file whose name has no \"emnist\" is \
             taken as it is)",
            folder.display()
        ));
    }
    both(folder, parts, notes)
}

/// What the name begins with, and whether images (`true`) or labels follow.
fn parse_name(name: &str) -> Option<(String, bool)> {
    let lower = name.to_ascii_lowercase();
    let plain = lower.strip_suffix(".gz").unwrap_or(&lower);
    let (at, images) = plain.rfind("images").map(|at| (at, true)).or(plain.rfind("labels").map(|at| (at, false)))?;
    let (rank, kind) = plain[at + 6..].strip_prefix(['-', '.'])?.strip_prefix("idx")?.split_once('-')?;
    let known = match images {
        true => matches!(rank, "3" | "4") && kind == "ubyte",
        false => matches!(rank, "1" | "2") && matches!(kind, "ubyte" | "byte" | "short" | "int"),
    };
    known.then(|| (name[..at].to_string(), images))
}

/// The images in a folder with the labels of the same name, sorted. An unpacked file goes before the packed one.
fn pairs(folder: &Path) -> Result<Vec<Pair>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let path = entry.map_err(|e| read_error(folder, &e))?.path();
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

fn read_pair(pair: &Pair, how: Decode, notes: &mut Vec<String>) -> Result<Arrays> {
    let Numbers { dims, bytes: pixels, .. } = read(&pair.images, &[3, 4], &[BYTES])?;
    let mut dims = [dims[0], dims[1], dims[2], dims.get(3).copied().unwrap_or(1)];
    check_dims(&pair.images, dims)?;
    let labels = pair.labels.as_ref().map(|path| labels(path, notes)).transpose()?;
    if let (Some(labels), Some(path)) = (&labels, &pair.labels)
        && labels.len() != dims[0]
    {
        return Err(Error::new(format!(
            "{} has {} labels, {} has {} images",
            path.display(),
            labels.len(),
            pair.images.display(),
            dims[0]
        ))
        .hint("the two files are not of the same set"));
    }
    let name = match pair.name.trim_end_matches(['-', '.', '_']) {
        "" => "images".into(),
        name => name.to_string(),
    };
    let emnist = name.to_ascii_lowercase().starts_with("emnist") && dims[3] == 1;
    if emnist {
        dims.swap(1, 2);
    }
    let layout = if emnist { Layout::Columns } else { Layout::Rows };
    Ok(Arrays { name, pixels, dims, layout, labels, classes: Vec::new(), how })
}

/// The labels of a file; of a matrix column 0.
fn labels(path: &Path, notes: &mut Vec<String>) -> Result<Vec<u32>> {
    let Numbers { dims, width, signed, bytes } = read(path, &[1, 2], &[BYTES, (0x09, 1), (0x0b, 2), (0x0c, 4)])?;
    let columns = dims.get(1).copied().unwrap_or(1);
    if columns == 0 {
        return Err(Error::new(format!("{} has no column", path.display())).hint("column 0 is the label"));
    }
    if columns > 1 {
        notes.push(format!("{}: column 0 of {columns} is the label", path.display()));
    }
    let label = |(i, row): (usize, &[u8])| {
        let fill = if signed && row[0] >= 0x80 { u32::MAX } else { 0 };
        let label = row[..width].iter().fold(fill, |x, b| x << 8 | u32::from(*b));
        match (label as usize) < MAX_CLASSES {
            true => Ok(label),
            false => Err(Error::new(format!("{}: label {i} is {}", path.display(), label as i32))
                .hint(format!("labels are integers from 0 and below {MAX_CLASSES}"))),
        }
    };
    bytes.chunks_exact(width * columns).enumerate().map(label).collect()
}

/// Unsigned bytes: the number of a type and the bytes of an element.
const BYTES: (u8, usize) = (0x08, 1);

/// The content of a file.
struct Numbers {
    dims: Vec<usize>,
    /// Bytes of an element, the highest first.
    width: usize,
    signed: bool,
    bytes: Vec<u8>,
}

/// Reads a file with a number of dimensions among `ranks` and of one of the types `kinds`.
fn read(path: &Path, ranks: &[u8], kinds: &[(u8, usize)]) -> Result<Numbers> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::new(format!("{} is cut short", path.display())).hint("copy it again")
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Error::new(format!("cannot unpack {}: {e}", path.display())).hint("copy it again")
        }
        _ => read_error(path, &e),
    };
    let file = fs::File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let packed = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"));
    let mut reader: Box<dyn Read> =
        if packed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(std::io::BufReader::new(file)) };
    let mut magic = [0; 4];
    reader.read_exact(&mut magic).map_err(failed)?;
    let [0, 0, kind, rank] = magic else {
        return Err(Error::new(format!("{} begins with {magic:02x?}, not with 00 00", path.display()))
            .hint("it is not in IDX format; is it packed?"));
    };
    let Some(&(_, width)) = kinds.iter().find(|k| k.0 == kind && ranks.contains(&rank)) else {
        return Err(Error::new(format!("{} has type {kind:#04x} and {rank} dimensions", path.display())).hint(
            "images are unsigned bytes (0x08) in 3 dimensions (n, height, width) or 4 (with channels), labels integers \
             (0x08, 0x09, 0x0b, 0x0c) in 1, or in 2 with the label in column 0",
        ));
    };
    let mut dims = Vec::new();
    for _ in 0..rank {
        let mut dim = [0; 4];
        reader.read_exact(&mut dim).map_err(failed)?;
        dims.push(u32::from_be_bytes(dim) as usize);
    }
    let bytes = dims.iter().try_fold(width as u64, |p, &d| p.checked_mul(d as u64)).filter(|&p| p <= MAX_ARRAY);
    let Some(expected) = bytes else {
        return Err(Error::new(format!("{} claims the dimensions {dims:?}", path.display()))
            .hint(format!("up to {} GiB are read", MAX_ARRAY >> 30)));
    };
    let mut bytes = Vec::new();
    let header = 4 + 4 * u64::from(rank);
    // The length of a plain file bounds what is reserved; a packed one is read as it comes.
    let surely = if packed { 0 } else { expected.min(length.saturating_sub(header)) };
    bytes.try_reserve_exact(surely as usize + 1).map_err(|e| read_error(path, &e.into()))?;
    reader.take(expected + 1).read_to_end(&mut bytes).map_err(failed)?;
    let (what, found) = match bytes.len() as u64 {
        n if n == expected => return Ok(Numbers { dims, width, signed: kind != BYTES.0, bytes }),
        n if n < expected => ("cut short", format!("{n}")),
        _ => ("too long", format!("more than {expected}")),
    };
    Err(Error::new(format!("{} is {what}: {found} bytes for the dimensions {dims:?}", path.display()))
        .hint(format!("{expected} bytes follow its header; copy it again")))
}

//! CIFAR's Python version: a dictionary of `data`, a matrix of bytes with a row an image, and lists of labels, pickled. (The images,
//! their order and their labels are those of the binary version.)

use std::fs;
use std::path::Path;

use super::cifar::Version;
use crate::error::{Error, Result};
use crate::io::read_error;
use crate::weights::pickle::{Id, Pickle, Value};

/// Largest file: CIFAR-100's training part has 155 MB.
const MAX_FILE: u64 = 1 << 30;
const PIXELS: usize = 3 * 32 * 32;

/// A pickle and the bytes it was read from.
struct Read {
    pickle: Pickle,
    bytes: Vec<u8>,
}

/// Whether a file begins as a pickle of protocol 2 or later.
pub(crate) fn is_pickle(path: &Path) -> bool {
    let mut start = [0; 2];
    let read = fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut start));
    read.is_ok() && start[0] == 0x80 && (2..=5).contains(&start[1])
}

/// The images of a file as records of the binary version.
pub(crate) fn records(path: &Path, version: Version) -> Result<Vec<u8>> {
    let read = Read::open(path)?;
    let data = read.entry("data").ok_or_else(|| wrong(path, "no matrix `data`"))?;
    let data = read.matrix(data).ok_or_else(|| wrong(path, "no matrix `data` of bytes with 3072 columns"))?;
    let keys: &[&str] = match version {
        Version::Ten => &["labels"],
        Version::Hundred => &["coarse_labels", "fine_labels"],
    };
    let mut labels = Vec::new();
    for key in keys {
        let list = read.entry(key).and_then(|id| read.numbers(id));
        labels.push(list.ok_or_else(|| wrong(path, &format!("no list `{key}` of integers below 256")))?);
    }
    let images = data.len() / PIXELS;
    if let Some(list) = labels.iter().find(|list| list.len() != images) {
        return Err(wrong(path, &format!("{} labels for {images} images", list.len())));
    }
    let mut records = Vec::with_capacity(images * (PIXELS + labels.len()));
    for (i, pixels) in data.chunks_exact(PIXELS).enumerate() {
        records.extend(labels.iter().map(|list| list[i]));
        records.extend(pixels);
    }
    Ok(records)
}

/// The class names of `batches.meta` or `meta`.
pub(crate) fn names(path: &Path, version: Version) -> Result<Vec<String>> {
    let read = Read::open(path)?;
    let key = match version {
        Version::Ten => "label_names",
        Version::Hundred => "fine_label_names",
    };
    let names = read.entry(key).and_then(|id| match &read.pickle.values[id] {
        Value::Sequence(ids) if !ids.is_empty() => ids.iter().map(|&id| read.text(id)).collect(),
        _ => None,
    });
    names.ok_or_else(|| wrong(path, &format!("no list `{key}` of names")))
}

fn wrong(path: &Path, what: &str) -> Error {
    Error::new(format!("{} has {what}", path.display())).hint(
        "it is not as CIFAR's Python version comes: unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz again",
    )
}

impl Read {
    fn open(path: &Path) -> Result<Read> {
        let length = fs::metadata(path).map_err(|e| read_error(path, &e))?.len();
        if length > MAX_FILE {
            return Err(wrong(path, &format!("{length} bytes")));
        }
        let bytes = fs::read(path).map_err(|e| read_error(path, &e))?;
        let pickle = Pickle::read(&bytes).map_err(|e| {
            let hint = "unpack cifar-10-python.tar.gz or cifar-100-python.tar.gz again";
            Error::new(format!("{}: {}", path.display(), e.message)).hint(hint)
        })?;
        Ok(Read { pickle, bytes })
    }

    /// The bytes of a text or of bytes, as they are in the file: Python 2 wrote both alike.
    fn raw(&self, id: Id) -> Option<&[u8]> {
        self.bytes.get(self.pickle.raw.get(&id)?.clone())
    }

    fn text(&self, id: Id) -> Option<String> {
        std::str::from_utf8(self.raw(id)?).ok().map(String::from)
    }

    fn entry(&self, key: &str) -> Option<Id> {
        let Value::Dict(pairs) = self.pickle.root() else { return None };
        pairs.iter().rev().find(|(k, _)| self.raw(*k) == Some(key.as_bytes())).map(|(_, value)| *value)
    }

    fn int(&self, id: Id) -> Option<i64> {
        if let Value::Int(n) = self.pickle.values[id] { Some(n) } else { None }
    }

    fn numbers(&self, id: Id) -> Option<Vec<u8>> {
        let Value::Sequence(ids) = &self.pickle.values[id] else { return None };
        ids.iter().map(|&id| u8::try_from(self.int(id)?).ok()).collect()
    }

    /// The bytes of a NumPy array of rows of 3,072 bytes. Its state is (version, shape, type, whether it is column-major, bytes).
    fn matrix(&self, id: Id) -> Option<&[u8]> {
        let Value::Object(array) = &self.pickle.values[id] else { return None };
        let Value::Sequence(state) = &self.pickle.values[array.state?] else { return None };
        let [_, shape, _, columns, data] = *state.first_chunk::<5>()?;
        let Value::Sequence(shape) = &self.pickle.values[shape] else { return None };
        let [rows, width] = *shape.first_chunk::<2>()?;
        let (rows, data) = (usize::try_from(self.int(rows)?).ok()?, self.raw(data)?);
        let fits =
            self.int(width)? == PIXELS as i64 && shape.len() == 2 && rows.checked_mul(PIXELS) == Some(data.len());
        let apart = !matches!(self.pickle.values[columns], Value::Bool(true) | Value::Int(1));
        (fits && apart && rows > 0).then_some(data)
    }
}

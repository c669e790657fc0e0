//! A file of named tensors, whatever its format: where each is stored, and its numbers as f32 when they are asked for.

use super::pickle::Dtype;
use super::pth::{self, MOST_TENSORS};
use super::tensors::Location;
use crate::error::{Error, Result};
use half::{bf16, f16};
use safetensors::SafeTensors;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

/// A format that tensors travel in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Published by Hugging Face: a header, then the tensors.
    Safetensors,
    /// `torch.save` since 1.6: an archive of stored entries.
    Zip,
    /// `torch.save` before: pickles, then the storages.
    Legacy,
}

impl Format {
    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Zip => "PyTorch's .pth",
            Format::Legacy => "PyTorch's .pth of before 1.6",
        }
    }
}

/// An open file, or several that make up one. Names are those in the file; of a pickle of dictionaries, `outer.inner`.
pub struct File {
    /// Its path, for errors.
    pub name: String,
    /// The format it was read as.
    pub format: Format,
    /// Where every tensor is stored, by name.
    pub tensors: BTreeMap<String, Location>,
    /// Of a safetensors file.
    pub metadata: BTreeMap<String, String>,
    /// Names under which something is stored that is no tensor that can be read, and what made it.
    pub opaque: BTreeMap<String, String>,
    /// What to know of it, a line each.
    pub notes: Vec<String>,
    parts: Vec<Vec<u8>>,
    /// First bytes of the ranges whose checksum was found right.
    sound: RefCell<HashSet<(usize, usize)>>,
}

/// Whether the bytes of a file are to be read as safetensors: all that are known to be nothing else. A safetensors header is an object
/// that follows its length, and a length may begin with the bytes that a pickle or an archive begins with.
pub fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') || !(bytes.first() == Some(&0x80) || pth::is_zip(bytes) || other(bytes).is_some())
}

/// What a file is that holds no tensors to be read here, and what to do.
fn other(bytes: &[u8]) -> Option<Error> {
    let begins = |with: &[u8]| bytes.starts_with(with);
    let page = || {
        let text = bytes.trim_ascii_start();
        text.get(..5).is_some_and(|t| [&b"<html"[..], b"<!doc", b"<?xml"].iter().any(|w| t.eq_ignore_ascii_case(w)))
    };
    let (what, hint) = if bytes.get(257..262) == Some(b"ustar") {
        ("a tar archive, the format of PyTorch before 0.2", "load it in Python and torch.save(...) it again")
    } else if begins(b"version https://git-lfs") {
        (
            "a pointer of Git LFS, not the file that it stands for",
            "`git lfs pull` fetches that, or download the file itself",
        )
    } else if page() {
        ("a web page", "download the file itself, not the page that shows it")
    } else if begins(&[0x1f, 0x8b]) {
        ("compressed by gzip", "unpack it: gunzip")
    } else if begins(b"\x89HDF") {
        ("an HDF5 file, as Keras writes them", "weights of PyTorch are read: .safetensors, .pth, .bin")
    } else if begins(b"GGUF") {
        ("a GGUF file", "weights of PyTorch are read: .safetensors, .pth, .bin")
    } else if begins(b"\x93NUMPY") {
        ("one NumPy array", "weights of PyTorch are read: .safetensors, .pth, .bin")
    } else {
        return None;
    };
    Some(Error::new(format!("it is {what}")).hint(hint))
}

impl File {
    /// Finds the tensors in the bytes of a file; `name` is for the errors.
    ///
    /// # Errors
    /// The bytes are none of the formats, are damaged, or hold too many tensors.
    pub fn parse(name: String, mut bytes: Vec<u8>) -> Result<File> {
        let unreadable = |e: Error| Error {
            message: format!("cannot read the weights {name}: {}", e.message),
            hint: e.hint.or(Some("safetensors files and those of torch.save are read".into())),
        };
        let (mut found, mut metadata) = (pth::Found::default(), BTreeMap::new());
        let format = if is_safetensors(&bytes) {
            (found.tensors, metadata) = safetensors(&bytes).map_err(unreadable)?;
            Format::Safetensors
        } else if bytes.first() == Some(&0x80) {
            found = pth::legacy(&bytes).map_err(unreadable)?;
            Format::Legacy
        } else if let Some(e) = other(&bytes) {
            return Err(unreadable(e));
        } else {
            found = pth::zip(&bytes).map_err(unreadable)?;
            Format::Zip
        };
        if found.tensors.len() > MOST_TENSORS {
            return Err(unreadable(Error::new(format!("it holds {} tensors", found.tensors.len()))));
        }
        bytes.append(&mut found.unpacked);
        let pth::Found { tensors, opaque, notes, .. } = found;
        Ok(File { name, format, tensors, metadata, opaque, notes, parts: vec![bytes], sound: RefCell::default() })
    }

    /// One file of several, none of whose names is in two of them.
    ///
    /// # Errors
    /// There are no files, or two hold a tensor of one name.
    pub fn join(name: String, files: Vec<File>) -> Result<File> {
        let mut files = files.into_iter();
        let Some(mut all) = files.next() else { return Err(Error::new(format!("{name} names no files"))) };
        all.name = name;
        for file in files {
            let first = all.parts.len();
            for (key, mut place) in file.tensors {
                place.part += first;
                if all.tensors.insert(key.clone(), place).is_some() {
                    return Err(Error::new(format!("{} is in two of the files of {}", key, all.name))
                        .hint("do they belong together?"));
                }
            }
            all.parts.extend(file.parts);
            all.opaque.extend(file.opaque);
            all.notes.extend(file.notes.into_iter().filter(|note| !all.notes.contains(note)).collect::<Vec<_>>());
        }
        Ok(all)
    }

    /// The numbers of a tensor in row-major order, finite, as f32.
    ///
    /// # Errors
    /// There is no such tensor, its checksum or place is wrong, its type is not one of weights, or a number is not finite.
    pub fn values(&self, key: &str) -> Result<Vec<f32>> {
        let place = self.tensors.get(key).ok_or_else(|| Error::new(format!("{} has no tensor {key}", self.name)))?;
        let bad = |what: String| Error::new(format!("{}: {key} {what}", self.name));
        let damaged = |what: String| bad(what).hint("the file is damaged: copy or download it again");
        if let Some((range, crc)) = &place.crc
            && !self.sound.borrow().contains(&(place.part, range.start))
        {
            if crc32fast::hash(&self.parts[place.part][range.clone()]) != *crc {
                return Err(damaged("does not have the checksum that its archive states".into()));
            }
            self.sound.borrow_mut().insert((place.part, range.start));
        }
        let storage = &self.parts[place.part][place.storage.clone()];
        let elements = storage.len() / place.dtype.bytes();
        let at = place.indices(elements).ok_or_else(|| {
            damaged(format!(
                "of shape {:?} and strides {:?} does not fit its storage of {elements} numbers",
                place.shape, place.strides
            ))
        })?;
        let values: Vec<f32> = match place.dtype {
            Dtype::F64 => pick(storage, place, &at, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => pick(storage, place, &at, f32::from_le_bytes),
            Dtype::F16 => pick(storage, place, &at, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => pick(storage, place, &at, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::Other(name, _) => {
                return Err(bad(format!("holds {name}")).hint("weights are float32, float16, bfloat16 or float64"));
            }
        };
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(i) => Err(damaged(format!("is not finite: element {i} is {}", values[i]))),
        }
    }
}

/// Numbers of `N` bytes; `read` takes them with the least significant byte first.
fn pick<const N: usize>(storage: &[u8], place: &Location, at: &[usize], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let elements = storage.as_chunks::<N>().0;
    let number = |mut bytes: [u8; N]| {
        if place.big_endian {
            bytes.reverse();
        }
        read(bytes)
    };
    at.iter().map(|&i| number(elements[i])).collect()
}

type Found = (BTreeMap<String, Location>, BTreeMap<String, String>);

fn safetensors(bytes: &[u8]) -> Result<Found> {
    let failed = |e| Error::new(format!("{e}, {} bytes", bytes.len()));
    SafeTensors::deserialize(bytes).map_err(failed)?;
    let (header, all) = SafeTensors::read_metadata(bytes).map_err(failed)?;
    let first = 8 + header;
    let mut tensors = BTreeMap::new();
    for (name, info) in all.tensors() {
        use safetensors::Dtype as D;
        let dtype = match info.dtype {
            D::F64 => Dtype::F64,
            D::F32 => Dtype::F32,
            D::F16 => Dtype::F16,
            D::BF16 => Dtype::BF16,
            D::I64 => Dtype::Other("int64", 8),
            D::I32 => Dtype::Other("int32", 4),
            _ => Dtype::Other("a type of a few bits or none of a number", 1),
        };
        let mut strides = vec![1; info.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * info.shape[i].max(1);
        }
        let storage = first + info.data_offsets.0..first + info.data_offsets.1;
        let shape = info.shape.clone();
        let place = Location { dtype, shape, strides, part: 0, storage, offset: 0, crc: None, big_endian: false };
        tensors.insert(name, place);
    }
    Ok((tensors, all.metadata().clone().unwrap_or_default().into_iter().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header whose length begins as a pickle (0x80) or as an archive ("PK") does.
    #[test]
    fn a_safetensors_file_is_known_whatever_its_header_s_length() {
        for length in [0x280u64, 0x1380, u64::from(u16::from_le_bytes(*b"PK"))] {
            let mut header = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_vec();
            header.resize(length as usize, b' ');
            let bytes = [&length.to_le_bytes()[..], &header, &1f32.to_le_bytes()].concat();
            let file = File::parse(format!("{length:#x}"), bytes).unwrap();
            assert_eq!((file.format, file.values("x").unwrap()), (Format::Safetensors, vec![1.0]));
        }
    }
}

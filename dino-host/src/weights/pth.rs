//! Files of `torch.save`: the archive of today, and what came before 1.6.
//!
//! The archive holds `NAME/data.pkl`, a pickle whose tensors refer to the storages `NAME/data/KEY`, all of them stored, not compressed, in
//! the machine's byte order. The older format is five pickles in a row (a magic number, the protocol, facts about the machine, the
//! values, the storages' keys) and then every storage: its number of elements in eight bytes, its elements.

use super::file::Place;
use super::pickle::{Pickle, Storage, Value};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

/// What the older format begins with, as a number of ten bytes.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Largest pickle: names and shapes are short.
const MOST_PICKLE: u64 = 1 << 26;
/// Dictionaries inside dictionaries that are looked into.
const DEPTH: usize = 3;
/// Most entries of dictionaries that are looked at, the same one named twice counted twice.
const MOST_ENTRIES: usize = 1 << 20;

/// Where a storage lies in the file, and its checksum.
type Stored = (Range<usize>, Option<u32>);

fn broken(what: impl std::fmt::Display) -> Error {
    Error::new(what.to_string()).hint("the file is damaged: copy or download it again")
}

/// The tensors of an archive.
pub fn zip(bytes: &[u8]) -> Result<BTreeMap<String, Place>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|e| broken(format!("its archive: {e}")))?;
    let names: Vec<String> = archive.file_names().filter_map(|n| Some(n.ok()?.into_owned())).collect();
    let pickles: Vec<&String> =
        names.iter().filter(|n| n.ends_with("/data.pkl") && n.matches('/').count() == 1).collect();
    let [pickle] = pickles[..] else {
        return Err(Error::new(format!("its archive has {} entries of the kind NAME/data.pkl", pickles.len()))
            .hint("is it a file of torch.save?"));
    };
    let root = pickle.strip_suffix("data.pkl").unwrap_or_default();
    let mut order = String::new();
    if let Ok(entry) = archive.by_name(&format!("{root}byteorder")) {
        let _ = entry.take(16).read_to_string(&mut order);
    }
    if order.trim() == "big" {
        return Err(Error::new("it was written on a big-endian machine").hint("save it again on another"));
    }
    let mut program = Vec::new();
    let entry = archive.by_name(pickle).map_err(|e| broken(format!("{pickle}: {e}")))?;
    if entry.size() > MOST_PICKLE {
        return Err(broken(format!("{pickle} has {} bytes", entry.size())));
    }
    entry.take(MOST_PICKLE).read_to_end(&mut program).map_err(|e| broken(format!("{pickle}: {e}")))?;
    let mut found: HashMap<String, Stored> = HashMap::new();
    let storages = format!("{root}data/");
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| broken(format!("its archive: {e}")))?;
        let name = entry.name().map_err(|e| broken(format!("its archive: {e}")))?.into_owned();
        let Some(key) = name.strip_prefix(&storages) else { continue };
        if entry.compression() != CompressionMethod::Stored {
            return Err(Error::new(format!("{name} is compressed"))
                .hint("torch.save stores its entries; pack it anew without compression"));
        }
        let range = entry.data_start().and_then(|at| within(bytes, at, entry.size()));
        let range = range.ok_or_else(|| broken(format!("{name} lies outside the file")))?;
        found.insert(key.to_owned(), (range, Some(entry.crc32())));
    }
    tensors(&Pickle::read(&program)?, &found)
}

fn within(bytes: &[u8], at: u64, len: u64) -> Option<Range<usize>> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(len)?).ok()?);
    (end <= bytes.len()).then_some(at..end)
}

/// The tensors of a file of before 1.6.
pub fn legacy(bytes: &[u8]) -> Result<BTreeMap<String, Place>> {
    let mut at = 0;
    let mut next = || {
        let read = Pickle::read(&bytes[at..])?;
        at += read.used;
        Ok(read)
    };
    if *next()?.root() != Value::Long(MAGIC.to_vec()) {
        return Err(
            Error::new("it is a bare pickle").hint("torch.save(model.state_dict(), ...) writes what is read here")
        );
    }
    if *next()?.root() != Value::Int(1001) {
        return Err(broken("its protocol is not 1001"));
    }
    let facts = next()?;
    if entry(&facts, facts.root, "little_endian") == Some(&Value::Bool(false)) {
        return Err(Error::new("it was written on a big-endian machine").hint("save it again on another"));
    }
    let (values, keys) = (next()?, next()?);
    let Value::Sequence(ids) = keys.root() else { return Err(broken("it has no list of storages")) };
    let sizes: HashMap<&str, usize> = values.values.iter().filter_map(kind).collect();
    let mut found = HashMap::new();
    for id in ids {
        let key = keys.text(*id).ok_or_else(|| broken("a storage has no name"))?;
        // A storage that no tensor refers to has no type, so nothing after it could be found.
        let size = *sizes.get(key).ok_or_else(|| broken("a storage belongs to no tensor"))?;
        let count = bytes[at..].first_chunk::<8>().ok_or_else(|| broken("it ends before its storages"))?;
        let len = u64::from_le_bytes(*count).checked_mul(size as u64);
        let range = len.and_then(|len| within(bytes, at as u64 + 8, len));
        let range = range.ok_or_else(|| broken("it ends within its storages"))?;
        at = range.end;
        found.insert(key.to_owned(), (range, None));
    }
    tensors(&values, &found)
}

fn kind(value: &Value) -> Option<(&str, usize)> {
    if let Value::Storage(s) = value { Some((s.key.as_str(), s.dtype.bytes())) } else { None }
}

fn entry<'a>(p: &'a Pickle, dict: usize, key: &str) -> Option<&'a Value> {
    let Value::Dict(pairs) = &p.values[dict] else { return None };
    pairs.iter().rev().find(|(k, _)| p.text(*k) == Some(key)).map(|(_, v)| &p.values[*v])
}

/// Every tensor below the root, `outer.inner` from names that are texts. What else there is (epochs, arguments, an optimiser's lists) is
/// none of our business.
fn tensors(p: &Pickle, storages: &HashMap<String, Stored>) -> Result<BTreeMap<String, Place>> {
    if matches!(p.root(), Value::Tensor(_)) {
        return Err(Error::new("it is one tensor, not a dictionary of them").hint("save model.state_dict()"));
    }
    let (mut found, mut looked) = (BTreeMap::new(), 0);
    let mut left = vec![(p.root, String::new(), 0)];
    while let Some((id, prefix, depth)) = left.pop() {
        let Value::Dict(pairs) = &p.values[id] else { continue };
        looked += pairs.len();
        if looked > MOST_ENTRIES {
            return Err(broken("its dictionaries have too many entries"));
        }
        for &(key, value) in pairs {
            let Some(key) = p.text(key).filter(|key| key.len() < 1000) else { continue };
            match &p.values[value] {
                Value::Tensor(t) => {
                    let place = place(t.clone(), storages)?;
                    found.insert(format!("{prefix}{key}"), place);
                }
                Value::Dict(_) if depth < DEPTH => left.push((value, format!("{prefix}{key}."), depth + 1)),
                _ => (),
            }
        }
    }
    if found.is_empty() {
        return Err(Error::new("it holds no tensors under names").hint("save model.state_dict()"));
    }
    Ok(found)
}

fn place(t: super::pickle::Tensor, storages: &HashMap<String, Stored>) -> Result<Place> {
    let Storage { dtype, key, at, len } = t.storage;
    let shown: String = key.chars().take(40).flat_map(char::escape_default).collect();
    let (range, crc) = storages.get(&key).ok_or_else(|| broken(format!("its storage {shown} is missing")))?;
    let bytes = |n: usize| n.checked_mul(dtype.bytes());
    let stored = bytes(at).zip(bytes(len)).and_then(|(at, len)| {
        let (first, last) = (range.start.checked_add(at)?, range.start.checked_add(at)?.checked_add(len)?);
        (last <= range.end).then_some(first..last)
    });
    let storage = stored.ok_or_else(|| {
        broken(format!("its storage {shown} has {} bytes, not {len} numbers of {}", range.len(), dtype.name()))
    })?;
    let crc = crc.map(|crc| (range.clone(), crc));
    Ok(Place { dtype, shape: t.shape, strides: t.strides, storage, offset: t.offset, crc })
}

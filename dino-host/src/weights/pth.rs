//! Files of `torch.save`: the archive of today, and what came before 1.6.
//!
//! The archive holds `NAME/data.pkl`, a pickle whose tensors refer to the storages `NAME/data/KEY`, all of them stored, not compressed
//! (other packers may have compressed them since), in the byte order that `NAME/byteorder` states. TorchScript's archives are of this kind,
//! too, with the program beside it. The older format is five pickles in a row (a magic number, the protocol, facts about the machine, the
//! values, the storages' keys) and then every storage: its number of elements in eight bytes, its elements.

use super::pickle::{Object, Pickle, Storage, Value};
use super::tensors::Location;
use crate::error::{Error, Result};
use flate2::read::DeflateDecoder;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::ops::Range;
use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

/// What the older format begins with, as a number of ten bytes.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Largest pickle: names and shapes are short.
const MOST_PICKLE: u64 = 1 << 26;
/// Entries that were compressed may grow so many times beyond the entire file, which weights do not.
const MOST_GROWTH: u64 = 100;
/// Dictionaries inside dictionaries that are looked into. Of a pickled module two a layer of names.
const DEPTH: usize = 40;
/// Most entries of dictionaries that are looked at, the same one named twice counted twice.
const MOST_ENTRIES: usize = 1 << 20;
/// Most tensors of a file.
pub const MOST_TENSORS: usize = 100_000;
/// Longest name of a tensor that is kept, bytes.
const LONGEST: usize = 500;

/// What a file of `torch.save` holds.
#[derive(Debug, Default)]
pub struct Found {
    pub tensors: BTreeMap<String, Location>,
    /// Names under which something is stored that might be meant for a tensor and is none, and what made it.
    pub opaque: BTreeMap<String, String>,
    /// What to know of the file, a line each.
    pub notes: Vec<String>,
    /// Entries that were compressed; places beyond the file's bytes are here.
    pub unpacked: Vec<u8>,
}

/// Storages of a file.
struct Storages {
    /// Where each is stored, and its checksum.
    places: HashMap<String, (Range<usize>, Option<u32>)>,
    big_endian: bool,
}

fn broken(what: impl std::fmt::Display) -> Error {
    Error::new(what.to_string()).hint("the file is damaged: copy or download it again")
}

/// Reads an archive's directory. Offsets are counted from the first byte, as those of `torch.save` are, or from where the archive begins
/// behind other bytes (a program that unpacks itself). The library's own search for the beginning is a guess that some valid archives
/// mislead, so it comes last.
fn directory(bytes: &[u8]) -> zip::result::ZipResult<ZipArchive<Cursor<&[u8]>>> {
    let read = |archive_offset| ZipArchive::with_config(Config { archive_offset }, Cursor::new(bytes));
    let first = beginning(bytes).unwrap_or(0);
    let found = read(ArchiveOffset::Known(first)).or_else(|_| read(ArchiveOffset::Known(0)));
    found.or_else(|_| read(ArchiveOffset::Detect))
}

/// Where an archive begins, by its end: the records there state where they are, counted from the beginning.
fn beginning(bytes: &[u8]) -> Option<u64> {
    let number = |at: usize, len: usize| {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0u64, |x, b| x << 8 | u64::from(*b)))
    };
    let last = |mark: &[u8], within: Range<usize>| {
        Some(within.start + bytes.get(within)?.windows(4).rposition(|four| four == mark)?)
    };
    // 22 bytes, and a comment of up to 64 KiB.
    let end = last(b"PK\x05\x06", bytes.len().saturating_sub(22 + 0xffff)..bytes.len())?;
    match end.checked_sub(20).filter(|&at| bytes[at..].starts_with(b"PK\x06\x07")) {
        // The record of ZIP64, of 56 bytes or somewhat more, and what the locator states of its place.
        Some(locator) => {
            let record = last(b"PK\x06\x06", locator.saturating_sub(4096)..locator)?;
            (record as u64).checked_sub(number(locator + 8, 8)?)
        }
        // The directory ends where its end record begins.
        None => (end as u64).checked_sub(number(end + 12, 4)?)?.checked_sub(number(end + 16, 4)?),
    }
}

/// Whether the bytes hold a zip archive, at their beginning or behind something else.
pub fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
        || bytes.starts_with(b"PK\x05\x06")
        || directory(bytes).is_ok_and(|a| !a.is_empty())
}

/// An entry of an archive.
struct Entry {
    /// Its bytes in the file.
    range: Range<usize>,
    packed: CompressionMethod,
    /// Unpacked.
    size: u64,
    /// None where the writer was told not to compute it: PyTorch's is then 0.
    crc: Option<u32>,
}

/// The tensors of an archive.
///
/// # Errors
/// The archive is damaged, has not one `data.pkl` that can be read, or grows too much when it is unpacked.
pub fn zip(bytes: &[u8]) -> Result<Found> {
    let mut archive =
        directory(bytes).map_err(|e| broken(format!("its archive has no directory that can be read: {e}")))?;
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| broken(format!("its archive: {e}")))?;
        let name = entry.name().map_err(|e| broken(format!("its archive: {e}")))?.into_owned();
        let range = entry.data_start().and_then(|at| within(bytes, at, entry.compressed_size()));
        let range = range.ok_or_else(|| broken(format!("{name} lies outside the file")))?;
        let crc = Some(entry.crc32()).filter(|crc| *crc != 0);
        entries.insert(name, Entry { range, packed: entry.compression(), size: entry.size(), crc });
    }
    let pickles: Vec<&String> = entries.keys().filter(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).collect();
    let [pickle] = pickles[..] else { return Err(foreign(&entries, pickles.len())) };
    let root = pickle.strip_suffix("data.pkl").unwrap_or_default();
    if entries[pickle].size > MOST_PICKLE {
        return Err(Error::new(format!(
            "{pickle} has {} bytes, more than names and shapes need",
            entries[pickle].size
        ))
        .hint("torch.save(model.state_dict(), ...) writes the tensors alone"));
    }
    let mut found = Found::default();
    let order = entries.get(&format!("{root}byteorder")).map(|e| e.read(bytes, "byteorder", 16)).transpose()?;
    let program = entries[pickle].read(bytes, pickle, MOST_PICKLE)?;
    let mut storages = Storages { places: HashMap::new(), big_endian: order.is_some_and(|o| o.trim_ascii() == b"big") };
    let folder = format!("{root}data/");
    for (name, entry) in &entries {
        let Some(key) = name.strip_prefix(&folder) else { continue };
        let place = if entry.packed == CompressionMethod::Stored {
            (entry.range.clone(), entry.crc)
        } else {
            let most = MOST_GROWTH * bytes.len() as u64;
            let left = most.saturating_sub(found.unpacked.len() as u64);
            let at = bytes.len() + found.unpacked.len();
            found.unpacked.extend(entry.read(bytes, name, left)?);
            (at..bytes.len() + found.unpacked.len(), None)
        };
        storages.places.insert(key.to_owned(), place);
    }
    if entries.keys().any(|n| n.strip_prefix(root).is_some_and(|n| n == "constants.pkl" || n.starts_with("code/"))) {
        found.notes.push("it is a TorchScript program: its tensors are read, the program is not".into());
    }
    tensors(&Pickle::read(&program)?, &storages, &mut found)?;
    Ok(found)
}

impl Entry {
    /// The bytes, unpacked and compared with their checksum; at most `most`.
    fn read(&self, bytes: &[u8], name: &str, most: u64) -> Result<Vec<u8>> {
        if self.size > most {
            return Err(Error::new(format!("{name} would have {} bytes unpacked", self.size))
                .hint("torch.save stores its entries without compression; save it again"));
        }
        let packed = &bytes[self.range.clone()];
        let mut all = Vec::new();
        match self.packed {
            CompressionMethod::Stored => all.extend_from_slice(packed),
            CompressionMethod::DEFLATE => {
                let unpacked = DeflateDecoder::new(packed).take(self.size).read_to_end(&mut all);
                unpacked.map_err(|e| broken(format!("{name}: {e}")))?;
            }
            other => {
                return Err(Error::new(format!("{name} is compressed by {other} or encrypted"))
                    .hint("torch.save stores its entries; unpack it and pack it again without compression"));
            }
        }
        if all.len() as u64 != self.size || self.crc.is_some_and(|crc| crc != crc32fast::hash(&all)) {
            return Err(broken(format!("{name} does not have the length or the checksum that its archive states")));
        }
        Ok(all)
    }
}

/// An archive that is not `torch.save`'s: what it seems to be.
fn foreign(entries: &BTreeMap<String, Entry>, pickles: usize) -> Error {
    let within = |ends: &[&str]| entries.keys().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(name) = within(&[".pth", ".pt", ".safetensors", ".ckpt", ".pth.tar", "pytorch_model.bin"]) {
        return Error::new(format!("it is an archive with {} within", name.escape_default())).hint("unpack it first");
    }
    if within(&[".npy"]).is_some() {
        return Error::new("it is an archive of NumPy arrays (.npz)").hint(
            "in Python: torch.save({name: torch.from_numpy(array) for name, array in np.load(FILE).items()}, OUT)",
        );
    }
    if within(&["models/model.json", "archive_format"]).is_some() {
        return Error::new("it is a program of torch.export (.pt2)")
            .hint("in Python: torch.save(torch.export.load(FILE).state_dict, OUT)");
    }
    Error::new(format!("its archive has {pickles} entries of the kind NAME/data.pkl, not one"))
        .hint("is it a file of torch.save?")
}

fn within(bytes: &[u8], at: u64, len: u64) -> Option<Range<usize>> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(len)?).ok()?);
    (end <= bytes.len()).then_some(at..end)
}

/// The tensors of a file of before 1.6.
///
/// # Errors
/// A pickle cannot be read, it is a bare one, or the storages do not fit the file.
pub fn legacy(bytes: &[u8]) -> Result<Found> {
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
    let big_endian = entry(&facts, facts.root, "little_endian") == Some(&Value::Bool(false));
    let (values, keys) = (next()?, next()?);
    let Value::Sequence(ids) = keys.root() else { return Err(broken("it has no list of storages")) };
    let sizes: HashMap<&str, usize> = values.values.iter().filter_map(kind).collect();
    let mut storages = Storages { places: HashMap::new(), big_endian };
    for id in ids {
        let key = keys.text(*id).ok_or_else(|| broken("a storage has no name"))?;
        // A storage that no tensor refers to has no type, so nothing after it could be found.
        let size = *sizes.get(key).ok_or_else(|| broken("a storage belongs to no tensor"))?;
        let count = bytes[at..].first_chunk::<8>().ok_or_else(|| broken("it ends before its storages"))?;
        let count = if big_endian { u64::from_be_bytes(*count) } else { u64::from_le_bytes(*count) };
        let range = count.checked_mul(size as u64).and_then(|len| within(bytes, at as u64 + 8, len));
        let range = range.ok_or_else(|| broken("it ends within its storages"))?;
        at = range.end;
        storages.places.insert(key.to_owned(), (range, None));
    }
    let mut found = Found::default();
    tensors(&values, &storages, &mut found)?;
    Ok(found)
}

fn kind(value: &Value) -> Option<(&str, usize)> {
    if let Value::Storage(s) = value { Some((s.key.as_str(), s.dtype.bytes())) } else { None }
}

fn entry<'a>(p: &'a Pickle, dict: usize, key: &str) -> Option<&'a Value> {
    let Value::Dict(pairs) = &p.values[dict] else { return None };
    pairs.iter().rev().find(|(k, _)| p.text(*k) == Some(key)).map(|(_, v)| &p.values[*v])
}

/// The dictionaries that make up a value: a dictionary, an object's own entries and its attributes.
fn dictionaries<'a>(p: &'a Pickle, value: &'a Value) -> Vec<&'a [(usize, usize)]> {
    let dict = |id: usize| if let Value::Dict(pairs) = &p.values[id] { Some(pairs.as_slice()) } else { None };
    match value {
        Value::Dict(pairs) => vec![pairs],
        Value::Object(Object { items, state, .. }) => {
            let mut all = vec![items.as_slice()];
            match state.map(|id| (id, &p.values[id])) {
                // (attributes, slots)
                Some((_, Value::Sequence(two))) if two.len() == 2 => all.extend(two.iter().filter_map(|&id| dict(id))),
                Some((id, _)) => all.extend(dict(id)),
                None => (),
            }
            all
        }
        _ => vec![],
    }
}

/// Every tensor below the root, `outer.inner` from names that are texts. Of a pickled module the names are those of its state
/// dictionary. What else there is (epochs, arguments, an optimizer's lists) is none of our business.
fn tensors(p: &Pickle, storages: &Storages, found: &mut Found) -> Result<()> {
    if matches!(p.root(), Value::Tensor(_)) {
        return Err(Error::new("it is one tensor, not a dictionary of them").hint("save model.state_dict()"));
    }
    if !p.passed_over.is_empty() {
        let names: Vec<&str> = p.passed_over.iter().take(3).map(String::as_str).collect();
        let more = p.passed_over.len() - names.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        found.notes.push(format!(
            "its pickle names {}{more}: nothing was executed, and what they stand for is passed over",
            names.join(", ")
        ));
    }
    let (mut looked, mut module) = (0, None);
    let mut left = vec![(p.root, String::new(), 0)];
    if let Value::Sequence(items) = p.root() {
        // (state, epoch): what is saved as a list or a tuple has its place for a name.
        left = items.iter().take(100).enumerate().map(|(i, &id)| (id, format!("{i}."), 0)).collect();
    }
    while let Some((id, prefix, depth)) = left.pop() {
        let attributes = matches!(p.values[id], Value::Object(_));
        for pairs in dictionaries(p, &p.values[id]) {
            looked += pairs.len();
            if looked > MOST_ENTRIES || found.tensors.len() + found.opaque.len() > MOST_TENSORS {
                return Err(Error::new("its dictionaries have more entries than those of any network")
                    .hint("torch.save(model.state_dict(), ...) writes the tensors alone"));
            }
            for &(key, value) in pairs {
                let Some(key) = p.text(key).filter(|key| prefix.len() + key.len() < LONGEST) else { continue };
                let inner = matches!(&p.values[value], Value::Dict(_) | Value::Object(_)) && depth < DEPTH;
                // A module's attributes.
                if attributes && matches!(key, "_parameters" | "_buffers" | "_modules") && inner {
                    if let (Value::Object(object), None) = (&p.values[id], &module) {
                        module = Some(object.name.to_string());
                    }
                    left.push((value, prefix.clone(), depth + 1));
                    continue;
                }
                let name = format!("{prefix}{key}");
                match &p.values[value] {
                    Value::Tensor(t) => {
                        let place = place(t.clone(), storages)?;
                        found.tensors.insert(name, place);
                    }
                    other => {
                        if let Value::Object(object) = other {
                            found.opaque.insert(name.clone(), object.name.to_string());
                        }
                        if inner {
                            left.push((value, name + ".", depth + 1));
                        }
                    }
                }
            }
        }
    }
    if let Some(class) = module {
        found.notes.push(format!("it is a whole module, {class}: its parameters and buffers are taken by their names"));
    }
    if found.tensors.is_empty() {
        return Err(match found.opaque.iter().next() {
            Some((name, made)) => Error::new(format!("it holds no tensors under names: {name} is made by {made}"))
                .hint(plain_tensors(made)),
            None => Error::new("it holds no tensors under names")
                .hint("torch.save(model.state_dict(), ...) writes what is read here"),
        });
    }
    Ok(())
}

/// What to do in Python about tensors that something else than a plain one makes.
pub fn plain_tensors(made: &str) -> String {
    let value = if made.starts_with("numpy") {
        "torch.from_numpy(v)"
    } else if made.contains("qtensor") {
        "v.dequantize() if v.is_quantized else v"
    } else if made.contains("sparse") {
        "v.to_dense()"
    } else {
        return "plain tensors are read: torch.save(model.state_dict(), ...) in Python writes them".into();
    };
    format!("plain tensors are read: in Python, torch.save({{k: {value} for k, v in state.items()}}, OUT)")
}

fn place(t: super::pickle::Tensor, storages: &Storages) -> Result<Location> {
    let Storage { dtype, key, at, len } = t.storage;
    let shown: String = key.chars().take(40).flat_map(char::escape_default).collect();
    let (range, crc) = storages.places.get(&key).ok_or_else(|| broken(format!("its storage {shown} is missing")))?;
    let bytes = |n: usize| n.checked_mul(dtype.bytes());
    let stored = bytes(at).zip(bytes(len)).and_then(|(at, len)| {
        let (first, last) = (range.start.checked_add(at)?, range.start.checked_add(at)?.checked_add(len)?);
        (last <= range.end).then_some(first..last)
    });
    let storage = stored.ok_or_else(|| {
        broken(format!("its storage {shown} has {} bytes, not {len} numbers of {}", range.len(), dtype.name()))
    })?;
    let crc = crc.map(|crc| (range.clone(), crc));
    let big_endian = storages.big_endian;
    Ok(Location { dtype, shape: t.shape, strides: t.strides, part: 0, storage, offset: t.offset, crc, big_endian })
}

//! CIFAR-10 in its binary format: records of one label byte and 3 x 32 x 32 bytes, the planes R, G, B, rows top to
//! bottom (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

use std::fs;
use std::io::Read;
use std::path::Path;

use super::{Dataset, Fnv, Image, Splits, hold_out};
use crate::error::{Error, Result};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const RECORD: usize = 1 + 3 * PLANE;
const NAMES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Records of one or more files, in memory (180 MB for the full set).
pub struct Cifar {
    records: Vec<u8>,
    /// Name of each file without its ending, and the index of its first record.
    files: Vec<(String, usize)>,
    classes: Vec<String>,
}

/// `None` when the folder has none of the format's files.
pub(super) fn open(folder: &Path) -> Result<Option<Splits>> {
    let unpacked = folder.join("cifar-10-batches-bin"); // what the published archive unpacks to
    let folder = if unpacked.is_dir() { unpacked.as_path() } else { folder };
    let here = |name: &str| folder.join(name).is_file();
    let batches: Vec<String> = (1..=5).map(|k| format!("data_batch_{k}.bin")).collect();
    let (train, test): (Vec<&str>, &str) = if batches.iter().any(|b| here(b)) {
        // Fewer than five are fine, but a hole is a copy that went wrong.
        let present = batches.iter().filter(|b| here(b)).count();
        if let Some(missing) = batches[..present].iter().find(|b| !here(b)) {
            return Err(Error::new(format!("{} is missing", folder.join(missing).display()))
                .hint("later batches are there: unpack cifar-10-binary.tar.gz again"));
        }
        (batches[..present].iter().map(String::as_str).collect(), "test_batch.bin")
    } else if here("train.bin") {
        (vec!["train.bin"], "test.bin")
    } else if let Some(test) = ["test_batch.bin", "test.bin"].into_iter().find(|t| here(t)) {
        return Err(Error::new(format!("{} has no training part beside it", folder.join(test).display()))
            .hint("CIFAR-10 is data_batch_1.bin ... data_batch_5.bin and test_batch.bin, or train.bin and test.bin"));
    } else {
        return Ok(None);
    };
    let set = Box::new(Cifar::read(folder, &train)?);
    Ok(Some(if here(test) {
        Splits { train: set, test: Box::new(Cifar::read(folder, &[test])?), held_out: false }
    } else {
        hold_out(set)
    }))
}

impl Cifar {
    /// Reads the named files of `folder`, and `batches.meta.txt` where there is one (a class name a line).
    ///
    /// Errors: a file that cannot be read, whose length is not a whole number of records, or that has a label without
    /// a class.
    pub fn read(folder: &Path, names: &[&str]) -> Result<Cifar> {
        let classes = class_names(folder)?;
        let (mut records, mut files) = (Vec::new(), Vec::new());
        for name in names {
            files.push((name.trim_end_matches(".bin").to_string(), records.len() / RECORD));
            append(&folder.join(name), &mut records, classes.len())?;
        }
        Ok(Cifar { records, files, classes })
    }

    fn record(&self, i: usize) -> &[u8] {
        &self.records[i * RECORD..(i + 1) * RECORD]
    }
}

fn append(path: &Path, records: &mut Vec<u8>, classes: usize) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot read {}: {e}", path.display()));
    let mut file = fs::File::open(path).map_err(|e| failed(&e))?;
    let length = file.metadata().map_err(|e| failed(&e))?.len();
    if length == 0 || !length.is_multiple_of(RECORD as u64) {
        return Err(Error::new(format!("{} has {length} bytes, not a multiple of {RECORD}", path.display()))
            .hint(length_hint(length)));
    }
    let start = records.len();
    records.try_reserve_exact(length as usize).map_err(|e| failed(&e))?;
    // `take`: a file that grows while it is read must not grow the records by a part of one.
    let read = file.by_ref().take(length).read_to_end(records).map_err(|e| failed(&e))?;
    if read as u64 != length {
        return Err(failed(&format!("{read} of {length} bytes came")));
    }
    for (i, record) in records[start..].chunks_exact(RECORD).enumerate() {
        if record[0] as usize >= classes {
            return Err(Error::new(format!(
                "{}: record {i} has label {}, but there are {classes} classes",
                path.display(),
                record[0]
            ))
            .hint(format!("labels are 0 to {}; batches.meta.txt names the classes", classes - 1)));
        }
    }
    Ok(())
}

fn length_hint(length: u64) -> String {
    let (record, whole) = (RECORD as u64, length / RECORD as u64);
    if length == 0 {
        format!("the file is empty; a CIFAR-10 file has {record} bytes an image")
    } else if length.is_multiple_of(record + 1) {
        "its length fits CIFAR-100, whose records have two labels; only CIFAR-10 is read".into()
    } else if whole == 0 {
        format!("one image takes {record} bytes (label, then 32 x 32 R, G and B)")
    } else {
        let (low, high) = (whole * record, (whole + 1) * record);
        format!("{whole} images take {low} bytes, {} take {high}; the file may be cut short", whole + 1)
    }
}

fn class_names(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("batches.meta.txt");
    if !path.is_file() {
        return Ok(NAMES.map(String::from).to_vec());
    }
    let text = fs::read_to_string(&path)
        .map_err(|e| Error::new(format!("cannot read {}: {e}", path.display())).hint("one class name a line"))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    if names.is_empty() {
        return Err(Error::new(format!("{} names no class", path.display()))
            .hint("one class name a line; without the file the ten published names are used"));
    }
    Ok(names)
}

impl Dataset for Cifar {
    fn len(&self) -> usize {
        self.records.len() / RECORD
    }
    fn image(&self, i: usize) -> Result<Image> {
        let record = self.record(i);
        let pixels = (0..PLANE).flat_map(|p| [0, 1, 2].map(|c| record[1 + c * PLANE + p])).collect();
        Ok(Image { width: SIDE, height: SIDE, channels: 3, pixels })
    }
    fn label(&self, i: usize) -> Option<u32> {
        Some(self.record(i)[0] as u32)
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// File and record, as in `data_batch_1/00042`.
    fn name(&self, i: usize) -> String {
        let file = self.files.iter().rev().find(|f| f.1 <= i);
        let (name, first) = file.map_or(("", 0), |f| (f.0.as_str(), f.1));
        format!("{name}/{:05}", i - first)
    }
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        for (name, first) in &self.files {
            hash.text(name);
            hash.number(*first as u64);
        }
        for class in &self.classes {
            hash.text(class);
        }
        hash.bytes(&self.records);
        hash.hex()
    }
}

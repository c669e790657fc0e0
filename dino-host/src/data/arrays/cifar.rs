//! CIFAR-10 and CIFAR-100 in their binary and Python versions. The binary one has records of one label byte (CIFAR-100: the coarse,
//! then the fine label) and 3 x 32 x 32 bytes, the planes R, G, B, rows top to bottom (Krizhevsky, "Learning multiple layers of
//! features from tiny images", 2009). The Python version has the same images and labels in the same order, and is read as the same
//! records.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::cifar_python::{self, is_pickle};
use crate::data::fingerprint::Fnv;
use crate::data::labels::names_in;
use crate::data::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::image::{Decode, Image, converted};

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const NAMES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Which of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One label byte, 10 classes.
    Ten,
    /// Two label bytes, of which the second counts: 100 classes.
    Hundred,
}

impl Version {
    /// Bytes in front of the pixels; the last one is the label.
    const fn labels(self) -> usize {
        match self {
            Version::Ten => 1,
            Version::Hundred => 2,
        }
    }

    const fn record(self) -> usize {
        self.labels() + 3 * PLANE
    }

    const fn name(self) -> &'static str {
        match self {
            Version::Ten => "CIFAR-10",
            Version::Hundred => "CIFAR-100",
        }
    }

    /// The Python version's file of class names.
    const fn meta_file(self) -> &'static str {
        match self {
            Version::Ten => "batches.meta",
            Version::Hundred => "meta",
        }
    }

    /// The file of class names, one a line.
    const fn names_file(self) -> &'static str {
        match self {
            Version::Ten => "batches.meta.txt",
            Version::Hundred => "fine_label_names.txt",
        }
    }
}

/// Records of one or more files, in memory (180 MB for either full set).
pub struct Cifar {
    version: Version,
    records: Vec<u8>,
    /// Name of each file without its ending, and the index of its first record.
    files: Vec<(String, usize)>,
    classes: Vec<String>,
    how: Decode,
}

/// What the published archives unpack to.
const UNPACKED: [&str; 4] = ["cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python"];

/// `None` when the folder has none of the format's files, or, under their names, files of another length than CIFAR's: see
/// [`open_odd`].
pub(crate) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let here = unpacked(folder)?;
    if here == folder && odd(folder).is_some() { Ok(None) } else { opened(&here, how) }
}

/// The same where the folder is of no other format: the error states what is wrong with the files.
pub(crate) fn open_odd(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    opened(&unpacked(folder)?, how)
}

/// A line on a file that is called as one of the binary version's but has another length, in a folder of another format.
pub(crate) fn passed_over(folder: &Path) -> Option<String> {
    odd(folder).map(|path| format!("not used: {} has not the length of a file of CIFAR's", path.display()))
}

fn odd(folder: &Path) -> Option<PathBuf> {
    let batches = (1..=5).map(|k| format!("data_batch_{k}.bin"));
    let names = batches.chain(["test_batch.bin", "train.bin", "test.bin"].map(String::from));
    names.map(|name| folder.join(name)).find(|path| {
        let length = fs::metadata(path).ok().filter(|kind| kind.is_file()).map_or(1, |kind| kind.len());
        let fits = |version: Version| length > 0 && length.is_multiple_of(version.record() as u64);
        path.is_file() && !fits(Version::Ten) && !fits(Version::Hundred)
    })
}

/// The folder that an archive was unpacked to, where `folder` holds one.
fn unpacked(folder: &Path) -> Result<PathBuf> {
    let found: Vec<PathBuf> = UNPACKED.iter().map(|name| folder.join(name)).filter(|path| path.is_dir()).collect();
    let ten = |path: &Path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("cifar-10-"));
    match (found.iter().find(|path| ten(path)), found.iter().find(|path| !ten(path))) {
        (Some(ten), Some(_)) => Err(Error::new(format!("{} holds both CIFAR-10 and CIFAR-100", folder.display()))
            .hint(format!("pass one of them: {}", ten.display()))),
        (Some(one), None) | (None, Some(one)) => Ok(one.clone()),
        (None, None) => Ok(folder.to_path_buf()),
    }
}

fn opened(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let here = |name: &str| folder.join(name).is_file();
    // The Python version's files have no ending.
    let pickled = |name: &str| here(name) && is_pickle(&folder.join(name));
    let ending = if (1..=5).any(|k| here(&format!("data_batch_{k}.bin"))) { ".bin" } else { "" };
    let batches: Vec<String> = (1..=5).map(|k| format!("data_batch_{k}{ending}")).collect();
    let (train, test, version): (Vec<&str>, String, Version) = if batches
        .iter()
        .any(|b| if ending.is_empty() { pickled(b) } else { here(b) })
    {
        // Fewer than five are fine, but a hole is a copy that went wrong.
        let present = batches.iter().filter(|b| here(b)).count();
        if let Some(missing) = batches[..present].iter().find(|b| !here(b)) {
            let archive = if ending.is_empty() { "cifar-10-python.tar.gz" } else { "cifar-10-binary.tar.gz" };
            return Err(Error::new(format!("{} is missing", folder.join(missing).display()))
                .hint(format!("later batches are there: unpack {archive} again")));
        }
        (batches[..present].iter().map(String::as_str).collect(), format!("test_batch{ending}"), Version::Ten)
    } else if here("train.bin") {
        (vec!["train.bin"], "test.bin".into(), version_of(folder)?)
    } else if pickled("train") && (pickled("meta") || pickled("test")) {
        (vec!["train"], "test".into(), Version::Hundred)
    } else if let Some(test) = ["test_batch.bin", "test.bin"].into_iter().find(|t| here(t)) {
        return Err(Error::new(format!("{} has no training part beside it", folder.join(test).display())).hint(
            "CIFAR-10 is data_batch_1.bin ... data_batch_5.bin and test_batch.bin, or train.bin and test.bin, as CIFAR-100 is",
        ));
    } else {
        return Ok(None);
    };
    let set = Cifar::read(folder, version, &train, how)?;
    let test = here(&test).then(|| Cifar::read(folder, version, &[&test], how)).transpose()?;
    Ok(Some(Splits::of(set, test, Vec::new())))
}

/// Which set a `train.bin` is of: its length decides, unless the file of class names or the folder's name does.
fn version_of(folder: &Path) -> Result<Version> {
    let path = folder.join("train.bin");
    let length = fs::metadata(&path).map_err(|e| Error::new(format!("cannot read {}: {e}", path.display())))?.len();
    let fits = |version: Version| length.is_multiple_of(version.record() as u64);
    let is_hundred = folder.join(Version::Hundred.names_file()).is_file()
        || folder.file_name().is_some_and(|name| name == "cifar-100-binary");
    // Both fit only where the length is a multiple of 3,073 x 3,074; the full sets' are not.
    Ok(if is_hundred || fits(Version::Hundred) && !fits(Version::Ten) { Version::Hundred } else { Version::Ten })
}

impl Cifar {
    /// Reads the named files of `folder`, those without the ending `.bin` as the Python version's, and the file of class names
    /// where there is one (`batches.meta.txt` or `fine_label_names.txt`, a class name a line, `batches.meta` or `meta`; without
    /// it the ten published names, or the numbers 0 to 99).
    ///
    /// # Errors
    /// A file cannot be read, its length is not a multiple of the record's, or it has a label without a class.
    pub fn read(folder: &Path, version: Version, names: &[&str], how: Decode) -> Result<Cifar> {
        let named = folder.join(version.names_file());
        let meta = folder.join(version.meta_file());
        let classes = match version {
            _ if named.is_file() => names_in(&named)?,
            _ if meta.is_file() && is_pickle(&meta) => cifar_python::names(&meta, version)?,
            Version::Ten => NAMES.map(String::from).to_vec(),
            Version::Hundred => (0..100).map(|i: u32| i.to_string()).collect(),
        };
        let (mut records, mut files) = (Vec::new(), Vec::new());
        for name in names {
            files.push((name.trim_end_matches(".bin").to_string(), records.len() / version.record()));
            let path = folder.join(name);
            let start = records.len();
            if name.ends_with(".bin") {
                append(&path, version, &mut records)?;
            } else {
                records.append(&mut cifar_python::records(&path, version)?);
            }
            check_labels(&path, version, &records[start..], classes.len())?;
        }
        Ok(Cifar { version, records, files, classes, how })
    }

    fn record(&self, i: usize) -> &[u8] {
        let record = self.version.record();
        &self.records[i * record..(i + 1) * record]
    }
}

fn append(path: &Path, version: Version, records: &mut Vec<u8>) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new(format!("cannot read {}: {e}", path.display()));
    let record = version.record() as u64;
    let mut file = fs::File::open(path).map_err(|e| failed(&e))?;
    let length = file.metadata().map_err(|e| failed(&e))?.len();
    if length == 0 || !length.is_multiple_of(record) {
        return Err(Error::new(format!("{} has {length} bytes, not a multiple of {record}", path.display()))
            .hint(length_hint(version, length)));
    }
    records.try_reserve_exact(length as usize).map_err(|e| failed(&e))?;
    // `take`: a file that grows while it is read must not grow the records by a part of one.
    let read = file.by_ref().take(length).read_to_end(records).map_err(|e| failed(&e))?;
    if read as u64 != length {
        return Err(failed(&format!("{read} of {length} bytes came")));
    }
    Ok(())
}

fn check_labels(path: &Path, version: Version, records: &[u8], classes: usize) -> Result<()> {
    for (i, record) in records.chunks_exact(version.record()).enumerate() {
        let label = record[version.labels() - 1];
        if label as usize >= classes {
            return Err(Error::new(format!(
                "{}: record {i} has label {label}, but there are {classes} classes",
                path.display(),
            ))
            .hint(format!(
                "read as {}, labels are 0 to {}; {} names the classes",
                version.name(),
                classes - 1,
                version.names_file()
            )));
        }
    }
    Ok(())
}

fn length_hint(version: Version, length: u64) -> String {
    let record = version.record() as u64;
    let images = length / record;
    let other = if version == Version::Ten { Version::Hundred } else { Version::Ten };
    if length == 0 {
        format!("the file is empty; a {} file has {record} bytes an image", version.name())
    } else if length.is_multiple_of(other.record() as u64) {
        format!(
            "read as {}; its length fits {}. A train.bin beside fine_label_names.txt, or in a folder cifar-100-binary, is \
             CIFAR-100, otherwise its length decides",
            version.name(),
            other.name()
        )
    } else if images == 0 {
        format!("one image takes {record} bytes (label, then 32 x 32 R, G and B; CIFAR-100 has two labels)")
    } else {
        let (low, high) = (images * record, (images + 1) * record);
        format!(
            "read as {}: {images} images take {low} bytes, {} take {high}; the file may be cut short",
            version.name(),
            images + 1
        )
    }
}

impl Dataset for Cifar {
    fn len(&self) -> usize {
        self.records.len() / self.version.record()
    }
    fn image(&self, i: usize) -> Result<Image> {
        let planes = &self.record(i)[self.version.labels()..];
        let pixels = (0..PLANE).flat_map(|p| [0, 1, 2].map(|c| planes[c * PLANE + p])).collect();
        let image = Image { width: SIDE, height: SIDE, channels: 3, pixels };
        converted(Path::new(&self.name(i)), image, false, self.how.channels)
    }
    fn label(&self, i: usize) -> Option<u32> {
        Some(self.record(i)[self.version.labels() - 1] as u32)
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

//! STL-10 in its binary version: `train_X.bin`, `test_X.bin`, `unlabeled_X.bin` are images of 3 x 96 x 96 bytes, the planes R, G, B,
//! every one column by column; `train_y.bin`, `test_y.bin` a byte an image, 1 to 10 (cs.stanford.edu/~acoates/stl10).
//!
//! The 5,000 labeled images are the training part, the 8,000 of the test part are for evaluation. The 100,000 images without labels
//! are trained on where `unlabeled_X.bin` itself is named. Images are read from the file one by one: they are 2.8 GB.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::{Layout, rows};
use crate::data::fingerprint::Fnv;
use crate::data::labels::names_in;
use crate::data::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::image::{Decode, Image, converted};
use crate::io::read_error;

const SIDE: usize = 96;
const IMAGE: usize = 3 * SIDE * SIDE;
/// As `class_names.txt` has them.
const NAMES: [&str; 10] = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"];

/// The images of one file.
struct Stl10 {
    path: PathBuf,
    /// `train`, `test` or `unlabeled`.
    name: String,
    len: usize,
    labels: Option<Vec<u8>>,
    classes: Vec<String>,
    how: Decode,
}

/// `None` when the folder has no `train_X.bin`, directly or in the folder that the archive unpacks to.
pub(crate) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let unpacked = folder.join("stl10_binary");
    let folder = if unpacked.is_dir() { &unpacked } else { folder };
    match folder.join("train_X.bin") {
        path if path.is_file() => open_file(&path, how),
        _ => Ok(None),
    }
}

/// `None` when the file is called otherwise than one of the three.
pub(crate) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix("_X.bin"));
    let Some(name) = name.filter(|name| ["train", "test", "unlabeled"].contains(name)) else { return Ok(None) };
    let folder = path.parent().unwrap_or(Path::new(""));
    let train = Stl10::read(folder, name, how)?;
    let test = (name == "train" && folder.join("test_X.bin").is_file()).then(|| Stl10::read(folder, "test", how));
    let test = test.transpose()?;
    if let Some(test) = &test
        && test.labels.is_some() != train.labels.is_some()
    {
        let (with, without) = if train.labels.is_some() { ("train", "test") } else { ("test", "train") };
        return Err(Error::new(format!("{}: {with} has labels, {without} has none", folder.display()))
            .hint(format!("{without}_y.bin goes with {without}_X.bin; unpack the archive again")));
    }
    let mut notes = Vec::new();
    if name == "train" && folder.join("unlabeled_X.bin").is_file() {
        notes.push(format!(
            "not used: {}, the images without labels; name this file itself to train on it",
            folder.join("unlabeled_X.bin").display()
        ));
    }
    Ok(Some(Splits::of(train, test, notes)))
}

impl Stl10 {
    fn read(folder: &Path, name: &str, how: Decode) -> Result<Stl10> {
        let path = folder.join(format!("{name}_X.bin"));
        let length = fs::metadata(&path).map_err(|e| read_error(&path, &e))?.len();
        if length == 0 || !length.is_multiple_of(IMAGE as u64) {
            return Err(Error::new(format!("{} has {length} bytes, not a multiple of {IMAGE}", path.display())).hint(
                "an image of STL-10 takes 3 x 96 x 96 bytes; the file may be cut short: unpack the archive again",
            ));
        }
        let len = (length / IMAGE as u64) as usize;
        let names = folder.join("class_names.txt");
        let classes = if names.is_file() { names_in(&names)? } else { NAMES.map(String::from).to_vec() };
        let labels = folder.join(format!("{name}_y.bin"));
        let mut set = Stl10 { path, name: name.into(), len, labels: None, classes: Vec::new(), how };
        if labels.is_file() {
            let mut bytes = Vec::new();
            let file = fs::File::open(&labels).map_err(|e| read_error(&labels, &e))?;
            file.take(len as u64 + 1).read_to_end(&mut bytes).map_err(|e| read_error(&labels, &e))?;
            if bytes.len() != len {
                let found = if bytes.len() < len { "fewer" } else { "more" };
                return Err(Error::new(format!("{} has {found} labels than {len} images", labels.display()))
                    .hint("a byte an image; the two files are not of the same set"));
            }
            if let Some(i) = bytes.iter().position(|&label| label == 0 || usize::from(label) > classes.len()) {
                return Err(Error::new(format!("{}: label {i} is {}", labels.display(), bytes[i]))
                    .hint(format!("labels are 1 to {}, one for every line of class_names.txt", classes.len())));
            }
            set.labels = Some(bytes);
            set.classes = classes;
        }
        Ok(set)
    }
}

impl Dataset for Stl10 {
    fn len(&self) -> usize {
        self.len
    }
    fn image(&self, i: usize) -> Result<Image> {
        let mut stored = vec![0; IMAGE];
        fs::File::open(&self.path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start((i * IMAGE) as u64))?;
                file.read_exact(&mut stored)
            })
            .map_err(|e| read_error(&self.path, &e))?;
        let pixels = rows(&stored, [SIDE, SIDE, 3], Layout::Columns);
        let image = Image { width: SIDE, height: SIDE, channels: 3, pixels };
        converted(Path::new(&self.name(i)), image, false, self.how.channels)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| u32::from(labels[i]) - 1)
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// File and image, as in `train/00042`.
    fn name(&self, i: usize) -> String {
        format!("{}/{i:05}", self.name)
    }
    /// Names, labels and the number of images; the pixels are not read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.text("STL-10");
        hash.text(&self.name);
        hash.number(self.len as u64);
        self.classes.iter().for_each(|class| hash.text(class));
        hash.bytes(self.labels.as_deref().unwrap_or_default());
        hash.hex()
    }
}

//! Data sets on disk: formats told apart, labels, the held-out tenth, and what is reported of files that are not right.

use std::fs;
use std::path::Path;

use dino_host::data::{self, Dataset, Splits};
use dino_host::error::Result;
use dino_host::image::{Decode, Image, decode_bytes};
use tempfile::TempDir;

mod cifar;
mod field;
mod folder;
mod idx;
mod list;
mod pictures;
mod shards;
mod stl10;
mod tables;
mod tars;

const RECORD: usize = 3073;

/// CIFAR records whose labels count 0, 1, ... 9, 0, ... and whose planes are all 1, all 2, all 3.
fn records(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| [vec![(i % 10) as u8], vec![1; 1024], vec![2; 1024], vec![3; 1024]].concat()).collect()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        put(dir.path(), name, bytes);
    }
    dir
}

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// An image of one color, encoded.
fn encoded(format: image::ImageFormat, width: u32, height: u32, color: [u8; 3]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb(color)).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(color: u8) -> Vec<u8> {
    encoded(image::ImageFormat::Png, 4, 3, [color, 0, 0])
}

fn jpeg() -> Vec<u8> {
    encoded(image::ImageFormat::Jpeg, 40, 30, [200, 100, 50])
}

fn names(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|i| set.name(i)).collect()
}

fn labels(set: &dyn Dataset) -> Vec<Option<u32>> {
    (0..set.len()).map(|i| set.label(i)).collect()
}

fn open(path: &Path) -> Result<Splits> {
    data::open(path, Decode::default())
}

fn decode(path: &Path) -> Result<Image> {
    dino_host::image::decode(path, Decode::default())
}

/// All images of a set, those held out too.
fn everything(path: &Path) -> Box<dyn Dataset> {
    struct Both(Splits);
    impl Both {
        fn at(&self, i: usize) -> (&dyn Dataset, usize) {
            let Splits { train, test, .. } = &self.0;
            if i < train.len() { (&**train, i) } else { (&**test, i - train.len()) }
        }
    }
    impl Dataset for Both {
        fn len(&self) -> usize {
            self.0.train.len() + self.0.test.len()
        }
        fn image(&self, i: usize) -> Result<Image> {
            let (set, i) = self.at(i);
            set.image(i)
        }
        fn label(&self, i: usize) -> Option<u32> {
            let (set, i) = self.at(i);
            set.label(i)
        }
        fn classes(&self) -> &[String] {
            self.0.train.classes()
        }
        fn name(&self, i: usize) -> String {
            let (set, i) = self.at(i);
            set.name(i)
        }
        fn fingerprint(&self) -> String {
            self.0.train.fingerprint()
        }
    }
    Box::new(Both(open(path).unwrap()))
}

/// One of the set's notes has every one of `words`.
#[track_caller]
fn reports(splits: &Splits, words: &[&str]) {
    let has_all = |note: &String| words.iter().all(|word| note.contains(word));
    assert!(splits.notes.iter().any(has_all), "{words:?} are not noted: {:?}", splits.notes);
}

/// The full text of the error that opening gives; it must name the path that ends in `named`.
#[track_caller]
fn refusal(path: &Path, named: &str) -> String {
    let text = open(path).expect_err("must not open").to_string();
    assert!(text.contains(named), "{named:?} is not named in {text:?}");
    assert!(text.contains("hint:"), "no hint in {text:?}");
    text
}

/// An input made for tests, see its folder.
fn case(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data").join(name)
}

/// One of the notes has all these words.
#[track_caller]
fn noted(splits: &Splits, words: &[&str]) {
    let notes = &splits.notes;
    assert!(notes.iter().any(|note| words.iter().all(|word| note.contains(word))), "{words:?} in {notes:#?}");
}

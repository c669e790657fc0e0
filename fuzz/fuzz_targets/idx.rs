//! Any bytes as files in IDX format. The first byte selects how many channels are asked for, whether the files are packed and which
//! ending the images have; the second how many bytes the labels take.
#![no_main]

use dino_host::data::{self, Dataset};
use dino_host::image::Decode;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a scratch folder"));

fuzz_target!(|bytes: &[u8]| {
    let [choice, length, rest @ ..] = bytes else { return };
    let (labels, images) = rest.split_at((*length as usize).min(rest.len()));
    let folder = FOLDER.path();
    for old in fs::read_dir(folder).expect("a folder").flatten() {
        fs::remove_file(old.path()).expect("its files are ours");
    }
    let gz = ["", ".gz"][(choice >> 2 & 1) as usize];
    let rank = 3 + (choice >> 3 & 1);
    let name = format!("train-images-idx{rank}-ubyte{gz}");
    fs::write(folder.join(&name), images).expect("space for the images");
    if !labels.is_empty() {
        fs::write(folder.join(format!("train-labels-idx1-ubyte{gz}")), labels).expect("space for the labels");
    }
    let how = Decode { channels: [3, 1, 2, 4][(choice & 3) as usize], ..Decode::default() };
    let Ok(splits) = data::open(&if choice & 16 == 0 { folder.into() } else { folder.join(name) }, how) else { return };
    ask(&*splits.train, splits.train.classes());
    ask(&*splits.test, splits.train.classes());
});

/// Everything that can be asked of a set.
fn ask(set: &dyn Dataset, classes: &[String]) {
    assert_eq!(set.classes(), classes);
    for i in 0..set.len() {
        let _ = set.image(i);
        assert!(set.label(i).is_none_or(|label| (label as usize) < classes.len()));
        assert!(!set.name(i).is_empty());
    }
    let mut order = set.order(1, 1);
    order.sort();
    assert!(order.into_iter().eq(0..set.len() as u32));
    set.fingerprint();
}

//! Any bytes as a list of files, with a test part beside it. The first byte selects which ending, the second how many bytes the test
//! part takes.
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
    let (test, train) = rest.split_at((*length as usize).min(rest.len()));
    let folder = FOLDER.path();
    for old in fs::read_dir(folder).expect("a folder").flatten() {
        fs::remove_file(old.path()).expect("its files are ours");
    }
    let ending = ["csv", "tsv", "txt", "jsonl"][(choice % 4) as usize];
    fs::write(folder.join(format!("train.{ending}")), train).expect("space for the list");
    if !test.is_empty() {
        fs::write(folder.join(format!("val.{ending}")), test).expect("space for the list");
    }
    match data::open(&folder.join(format!("train.{ending}")), Decode::default()) {
        Err(e) => assert!(e.to_string().contains(ending), "{e}"),
        Ok(splits) => {
            ask(&*splits.train, splits.train.classes());
            ask(&*splits.test, splits.train.classes());
        }
    }
});

/// Everything that can be asked of a set.
fn ask(set: &dyn Dataset, classes: &[String]) {
    // A test part whose labels do not fit has none.
    assert!(set.classes() == classes || set.classes().is_empty());
    for i in 0..set.len() {
        assert!(set.label(i).is_none_or(|label| (label as usize) < classes.len()));
        assert!(!set.name(i).is_empty());
    }
    let mut order = set.order(1, 1);
    order.sort();
    assert!(order.into_iter().eq(0..set.len() as u32));
    set.fingerprint();
}

//! Any bytes as a file of NumPy's, a parquet table, or a batch of CIFAR's Python version. The first byte selects which.
#![no_main]

use dino_host::data::{self, Dataset};
use dino_host::image::Decode;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a scratch folder"));

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, bytes)) = bytes.split_first() else { return };
    let folder = FOLDER.path();
    for old in fs::read_dir(folder).expect("a folder").flatten() {
        fs::remove_file(old.path()).expect("its files are ours");
    }
    let name = ["fuzz.npz", "fuzz.npy", "fuzz.parquet", "data_batch_1"][(choice & 3) as usize];
    let path = folder.join(name);
    fs::write(&path, bytes).expect("space for the file");
    let how = Decode { channels: [3, 1, 2, 4][(choice >> 2 & 3) as usize], ..Decode::default() };
    match data::open(if choice & 3 == 3 || choice & 16 == 0 { folder } else { &path }, how) {
        Err(e) => assert!(!e.to_string().is_empty()),
        Ok(splits) => {
            ask(&*splits.train, splits.train.classes());
            ask(&*splits.test, splits.train.classes());
        }
    }
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

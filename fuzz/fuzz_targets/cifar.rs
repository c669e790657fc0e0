//! Any bytes as a file of CIFAR-10 records, with any class names beside it. The first byte says how many bytes the names take.
#![no_main]

use dino_host::data;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a scratch folder"));

fuzz_target!(|bytes: &[u8]| {
    let Some((&length, rest)) = bytes.split_first() else { return };
    let (names, records) = rest.split_at((length as usize).min(rest.len()));
    let folder = FOLDER.path();
    let meta = folder.join("batches.meta.txt");
    if names.is_empty() {
        let _ = fs::remove_file(&meta);
    } else {
        fs::write(&meta, names).expect("room for the names");
    }
    fs::write(folder.join("data_batch_1.bin"), records).expect("room for the records");
    let Ok(splits) = data::open(folder) else { return };
    assert_eq!((splits.train.len() + splits.test.len()) * 3073, records.len());
    for set in [&splits.train, &splits.test] {
        for i in 0..set.len() {
            let image = set.image(i).expect("records in memory can be read");
            assert_eq!(image.pixels.len(), 3 * image.width * image.height);
            assert!((set.label(i).expect("labelled") as usize) < set.classes().len());
            assert!(!set.name(i).is_empty());
        }
        set.fingerprint();
    }
});

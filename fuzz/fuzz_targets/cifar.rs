//! Any bytes as a file of CIFAR records, with any class names beside it. The first byte selects which set and which files, the second
//! how many bytes the names take.
#![no_main]

use dino_host::data;
use dino_host::image::Decode;
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::sync::LazyLock;
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a scratch folder"));

fuzz_target!(|bytes: &[u8]| {
    let [choice, length, rest @ ..] = bytes else { return };
    let (names, records) = rest.split_at((*length as usize).min(rest.len()));
    let folder = FOLDER.path();
    for old in fs::read_dir(folder).expect("a folder").flatten() {
        fs::remove_file(old.path()).expect("its files are ours");
    }
    if !names.is_empty() {
        let file = ["batches.meta.txt", "fine_label_names.txt"][(choice & 1) as usize];
        fs::write(folder.join(file), names).expect("space for the names");
    }
    let file = ["data_batch_1.bin", "train.bin"][(choice >> 1 & 1) as usize];
    fs::write(folder.join(file), records).expect("space for the records");
    let how = Decode { channels: [3, 1, 2, 4][(choice >> 2 & 3) as usize], ..Decode::default() };
    let Ok(splits) = data::open(folder, how) else { return };
    let images = splits.train.len() + splits.test.len();
    assert!([3073, 3074].iter().any(|record| images * record == records.len()));
    for set in [&splits.train, &splits.test] {
        for i in 0..set.len() {
            if let Ok(image) = set.image(i) {
                assert_eq!(image.pixels.len(), how.channels * image.width * image.height);
            } else {
                assert!(how.channels != 3 && how.channels != 1, "records in memory can be read");
            }
            assert!((set.label(i).expect("labeled") as usize) < set.classes().len());
            assert!(!set.name(i).is_empty());
        }
        set.fingerprint();
    }
});

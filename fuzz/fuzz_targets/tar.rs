//! Any bytes as a shard. The first byte selects how it is packed, and whether the checksums of its headers are put right first.
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
    let mut bytes = bytes.to_vec();
    let ending = [".tar", ".tar.gz", ".tar.zst", ".tar"][(choice & 3) as usize];
    if choice & 4 == 0 {
        bytes.as_chunks_mut().0.iter_mut().for_each(sign);
    }
    let path = FOLDER.path().join(format!("fuzz{ending}"));
    fs::write(&path, &bytes).expect("space for the shard");
    match data::open(&path, Decode::default()) {
        Err(e) => assert!(e.to_string().contains("fuzz"), "{e}"),
        Ok(splits) => {
            ask(&*splits.train, splits.train.classes());
            ask(&*splits.test, splits.train.classes());
        }
    }
});

/// Puts a header's checksum right: nothing but chance would.
fn sign(block: &mut [u8; 512]) {
    if block[257..262] == *b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

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

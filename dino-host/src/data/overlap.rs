//! Images that are in both parts of a set: the same files, on whatever way they got there, and copies of them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::fingerprint::Fnv;
use super::{Dataset, Splits};
use crate::error::{Error, Result};

/// Files that are read at most to find copies, and their bytes: opening a set may not take longer than reading a few batches. Only
/// files of the same length in both parts are read, the rarest lengths first; in a set of ImageNet's size nearly every length occurs
/// in both parts, and a sample of a few thousand files is examined.
const READ_FILES: usize = 4096;
const READ_BYTES: u64 = 256 << 20;

/// A file of a part.
struct Located {
    image: usize,
    /// Of the path with all links resolved.
    hash: u64,
    bytes: u64,
}

/// Notes how many test images are training images as well. Error: both parts are the same files.
pub(super) fn check(splits: &mut Splits) -> Result<()> {
    let (train, test) = (located(&*splits.train), located(&*splits.test));
    if train.is_empty() || test.is_empty() {
        return Ok(());
    }
    let of_train: HashSet<u64> = train.iter().map(|file| file.hash).collect();
    let shared: Vec<&Located> = test.iter().filter(|file| of_train.contains(&file.hash)).collect();
    let total = splits.test.len();
    if let Some(first) = shared.first() {
        let of_test: HashSet<u64> = test.iter().map(|file| file.hash).collect();
        if !splits.held_out && of_test == of_train && train.len() == splits.train.len() && test.len() == total {
            return Err(Error::new(format!("the training part and the test part are the same {total} files")).hint(
                "the test part must not repeat the training images; without a test part a tenth of them is held out",
            ));
        }
        splits.notes.push(format!(
            "{} of {total} test images are training images as well, such as {}: accuracies on them tell little",
            shared.len(),
            splits.test.name(first.image)
        ));
    }
    let (copies, all) = copies([&*splits.train, &*splits.test], &train, &test, &of_train);
    if let Some(&(image, of)) = copies.first() {
        splits.notes.push(format!(
            "{}{} of {total} test images are copies of training images, byte by byte, such as {} of {}: accuracies on them tell \
             little",
            if all { "" } else { "at least " },
            copies.len(),
            splits.test.name(image),
            splits.train.name(of)
        ));
    }
    Ok(())
}

/// The files of a part that are there. Links are resolved folder by folder: requesting every file's full path from the system would take
/// many times longer.
fn located(set: &dyn Dataset) -> Vec<Located> {
    let locate = |folders: &mut HashMap<OsString, Option<PathBuf>>, image: usize| {
        let path = set.path(image)?;
        let kind = fs::symlink_metadata(&path).ok()?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (real, bytes) = match kind.is_symlink() || path.file_name().is_none() {
            true => (fs::canonicalize(&path).ok()?, fs::metadata(&path).ok()?.len()),
            false => {
                let known = folders.entry(folder.into()).or_insert_with(|| fs::canonicalize(folder).ok());
                (known.as_ref()?.join(path.file_name()?), kind.len())
            }
        };
        let mut hash = Fnv::new();
        hash.bytes(real.as_os_str().as_encoded_bytes());
        Some(Located { image, hash: hash.0, bytes })
    };
    (0..set.len()).into_par_iter().map_init(HashMap::new, locate).flatten_iter().collect()
}

/// Test images whose bytes are those of a training image that is another file, with that image, in order; and whether all files were
/// examined that could be copies.
fn copies(
    sets: [&dyn Dataset; 2],
    train: &[Located],
    test: &[Located],
    of_train: &HashSet<u64>,
) -> (Vec<(usize, usize)>, bool) {
    let mut lengths: HashMap<u64, (Vec<&Located>, Vec<&Located>)> = HashMap::new();
    for file in test.iter().filter(|file| file.bytes > 0 && !of_train.contains(&file.hash)) {
        lengths.entry(file.bytes).or_default().1.push(file);
    }
    for file in train {
        if let Some((of_length, _)) = lengths.get_mut(&file.bytes) {
            of_length.push(file);
        }
    }
    let mut groups: Vec<_> = lengths.into_iter().filter(|(_, (train, _))| !train.is_empty()).collect();
    groups.sort_by_key(|(bytes, (train, test))| (train.len() + test.len(), *bytes));
    let (mut files, mut bytes, mut all) = (0, 0, true);
    // Of a length that all images have (bitmaps), some of both parts are examined.
    groups.retain_mut(|(length, (train, test))| {
        let left = (READ_FILES - files).min((READ_BYTES.saturating_sub(bytes) / *length) as usize);
        if train.len() + test.len() > left {
            all = false;
            let of_test = test.len().min(left / 2);
            test.truncate(of_test);
            train.truncate(left - of_test);
        }
        files += train.len() + test.len();
        bytes += *length * (train.len() + test.len()) as u64;
        !train.is_empty() && !test.is_empty()
    });
    let content = |set: &dyn Dataset, file: &Located| {
        let mut hash = Fnv::new();
        hash.bytes(&fs::read(set.path(file.image)?).ok()?);
        Some(hash.0)
    };
    let found = |(_, (train, test)): (u64, (Vec<&Located>, Vec<&Located>))| {
        let known: HashMap<u64, usize> =
            train.iter().rev().filter_map(|file| Some((content(sets[0], file)?, file.image))).collect();
        let of = |file: &&Located| Some((file.image, *known.get(&content(sets[1], file)?)?));
        test.iter().filter_map(of).collect::<Vec<_>>()
    };
    let mut copies: Vec<(usize, usize)> = groups.into_par_iter().flat_map_iter(found).collect();
    copies.sort_unstable();
    (copies, all)
}

//! Which files of one kind (shards, tables) are of which part of a data set.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::parts::{Part, in_name, of};
use crate::error::{Error, Result};
use crate::io::read_error;

/// Files by part.
pub(super) struct Files {
    /// Not empty.
    pub train: Vec<PathBuf>,
    pub test: Vec<PathBuf>,
    /// What is there and is not used.
    pub notes: Vec<String>,
}

/// Which files of one kind are of which part: by their own names (`imagenet-train-0001.tar`, `val.tar`), or, where the folder itself has
/// none, by the names of the folders that they are in. Files whose names mean no part are of the train part. Of several test parts
/// the one of the lowest rank is taken.
///
/// `list` gives the sorted files of a folder, `stem` the name of one without its ending, `kind` is what they are called in messages.
/// `None` where there are none. Errors: a test part alone, folders of which the test part's has none.
pub(super) fn find(
    folder: &Path,
    kind: &str,
    list: &dyn Fn(&Path) -> Result<Vec<PathBuf>>,
    stem: &dyn Fn(&Path) -> String,
) -> Result<Option<Files>> {
    let here = list(folder)?;
    if here.is_empty() {
        return below(folder, kind, list);
    }
    let (mut train, mut plain, mut tests) = (Vec::new(), Vec::new(), Vec::new());
    for path in here {
        match in_name(&stem(&path)).0 {
            Some(Part::Train) => train.push(path),
            Some(Part::Test { rank }) => tests.push((rank, path)),
            None => plain.push(path),
        }
    }
    let (test, mut notes) = lowest(tests);
    if let ([_, ..], [first, ..]) = (&train[..], &plain[..]) {
        notes.push(format!("taken for training, for no part is in the name: {}", counted(first, plain.len())));
    }
    train.extend(plain);
    train.sort();
    match (train.first(), test.first()) {
        (None, Some(test)) => {
            Err(Error::new(format!("{} has no training part beside it", test.display())).hint(format!(
                "{kind} that are called val, test or the like are the test part; pass the file itself to train on it"
            )))
        }
        _ => Ok(Some(Files { train, test, notes })),
    }
}

/// Refuses one file, or two links to it, in both parts.
pub(super) fn apart(train: &[PathBuf], test: &[PathBuf]) -> Result<()> {
    let real = |path: &PathBuf| fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let train: HashMap<PathBuf, &PathBuf> = train.iter().map(|path| (real(path), path)).collect();
    match test.iter().find_map(|path| Some((path, train.get(&real(path))?))) {
        None => Ok(()),
        Some((test, train)) => Err(Error::new(format!("{} and {} are the same file", train.display(), test.display()))
            .hint("the test part must not repeat the training images")),
    }
}

/// The same for folders that are called as parts.
fn below(folder: &Path, kind: &str, list: &dyn Fn(&Path) -> Result<Vec<PathBuf>>) -> Result<Option<Files>> {
    let (mut train, mut tests, mut none) = (Vec::new(), Vec::new(), None);
    let entries = fs::read_dir(folder).map_err(|e| read_error(folder, &e))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| p.is_dir()).collect();
    paths.sort();
    for path in paths {
        match path.file_name().and_then(|n| n.to_str()).and_then(of) {
            Some(Part::Train) if train.is_empty() => train = list(&path)?,
            Some(Part::Test { rank }) => match list(&path)? {
                files if files.is_empty() => none = none.or(Some(path)),
                files => tests.extend(files.into_iter().map(|file| (rank, file))),
            },
            _ => (),
        }
    }
    if train.is_empty() {
        return Ok(None);
    }
    if let (Some(none), true) = (none, tests.is_empty()) {
        return Err(Error::new(format!("no {kind} found in {}", none.display()))
            .hint(format!("it was taken for the test part of {}", train[0].display())));
    }
    let (test, notes) = lowest(tests);
    Ok(Some(Files { train, test, notes }))
}

/// The test part beside a single file of the train part: what is called as it is but for the part's name and numbers. And what is not
/// used of `files`, the files beside it.
pub(super) fn beside(path: &Path, files: Vec<PathBuf>, stem: &dyn Fn(&Path) -> String) -> (Vec<PathBuf>, Vec<String>) {
    let read = |path: &Path| {
        let name = stem(path);
        let (part, words) = in_name(&name);
        let words: Vec<String> =
            words.into_iter().filter(|w| !w.bytes().all(|b| b.is_ascii_digit())).map(str::to_lowercase).collect();
        (part, words)
    };
    let (part, words) = read(path);
    if part != Some(Part::Train) {
        return (Vec::new(), Vec::new());
    }
    let (mut tests, mut more) = (Vec::new(), Vec::new());
    for file in files.into_iter().filter(|file| file.file_name() != path.file_name()) {
        match read(&file) {
            (Some(Part::Test { rank }), other) if other == words => tests.push((rank, file)),
            (Some(Part::Train), other) if other == words => more.push(file),
            _ => (),
        }
    }
    let (test, mut notes) = lowest(tests);
    if let Some(first) = more.first() {
        notes.push(format!("not used, for one file was named and not its folder: {}", counted(first, more.len())));
    }
    (test, notes)
}

/// The files of the lowest rank, and a note of the others.
fn lowest(tests: Vec<(usize, PathBuf)>) -> (Vec<PathBuf>, Vec<String>) {
    let lowest = tests.iter().map(|t| t.0).min();
    let (test, others): (Vec<_>, Vec<_>) = tests.into_iter().partition(|t| Some(t.0) == lowest);
    let test: Vec<PathBuf> = test.into_iter().map(|t| t.1).collect();
    let note = others.first().map(|first| {
        format!("not used, for the test part is {}: {}", counted(&test[0], test.len()), counted(&first.1, others.len()))
    });
    (test, note.into_iter().collect())
}

fn counted(first: &Path, files: usize) -> String {
    match files {
        1 => first.display().to_string(),
        n => format!("{} and {} more", first.display(), n - 1),
    }
}

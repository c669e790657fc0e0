//! Folders of picture files: one sub-folder a class, or all files in one folder and no labels.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::picture::{decode, is_picture, unreadable};
use super::{Dataset, Decode, Fnv, Image, Splits, hold_out};
use crate::error::{Error, Result};

/// Files below one folder. Image `i` is the `i`-th in the order class, then path.
pub struct ImageFolder {
    root: PathBuf,
    files: Vec<File>,
    classes: Vec<String>,
    how: Decode,
}

struct File {
    /// Path below the root, parts joined by `/` on every system.
    name: String,
    bytes: u64,
    label: Option<u32>,
}

/// `None` when there is no image anywhere below the folder.
pub(super) fn open(path: &Path, how: Decode) -> Result<Option<Splits>> {
    let (train, test) = parts(path)?;
    let Some(set) = ImageFolder::read(&train, None, how)? else { return Ok(None) };
    let Some(test) = test else { return Ok(Some(hold_out(Box::new(set)))) };
    let canonical = |p: &Path| fs::canonicalize(p).map_err(|e| unreadable(p, &e));
    if canonical(&train)? == canonical(&test)? {
        return Err(Error::new(format!("{} and {} are the same folder", train.display(), test.display()))
            .hint("the test part must not repeat the training images"));
    }
    let known = Some(set.classes.as_slice()).filter(|c| !c.is_empty());
    let Some(test_set) = ImageFolder::read(&test, known, how)? else {
        return Err(Error::new(format!("no images found in {}", test.display())).hint(format!(
            "it was taken for the test part of {}; without it a tenth of the training images is held out",
            train.display()
        )));
    };
    Ok(Some(Splits { train: Box::new(set), test: Box::new(test_set), held_out: false, notes: Vec::new() }))
}

/// The folder of the train part, and that of the test part where there is one.
fn parts(path: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let test_below = |root: &Path| ["val", "test"].map(|t| root.join(t)).into_iter().find(|t| t.is_dir());
    let train = path.join("train");
    if train.is_dir() {
        // A class may be called "train" as well: then it holds images and has other classes beside it.
        let test = test_below(path);
        let alone = || Ok(list(path)?.iter().filter(|e| e.folder).count() == 1);
        let has_classes = || Ok(list(&train)?.iter().any(|e| e.folder));
        if test.is_some() || alone()? || has_classes()? {
            return Ok((train, test));
        }
    } else if let Some(test) = test_below(path).filter(|_| path.file_name().is_none_or(|n| n != "train")) {
        // One of the two names alone, with nothing else, is half a data set, not a class.
        if list(path)?.iter().all(|e| e.folder && (e.name == "val" || e.name == "test")) {
            return Err(Error::new(format!("{} has no train/ beside {}", path.display(), test.display()))
                .hint(format!("pass {} itself to train on it", test.display())));
        }
    }
    // "." has no name of its own.
    let full = if path.file_name().is_some() { path.to_path_buf() } else { fs::canonicalize(path).unwrap_or_default() };
    let beside = if full.file_name().is_some_and(|n| n == "train") { full.parent().and_then(test_below) } else { None };
    Ok((path.to_path_buf(), beside))
}

impl ImageFolder {
    /// Lists the images of `root` (nothing is decoded). Class folders may hold folders; links are followed, and no
    /// folder is entered twice. Names that begin with a dot are left out. A picture that cannot be read (a link to nothing,
    /// an empty file) is a member like any other: `image` says what is wrong with it.
    ///
    /// `known`: the class names to use, in order, for the test part of a set; `None` takes the sorted folder names.
    /// `None` is returned where there is no image at all. Errors: a folder that cannot be listed, a class folder without
    /// images, a class that is not known, images both beside and inside class folders.
    pub fn read(root: &Path, known: Option<&[String]>, how: Decode) -> Result<Option<ImageFolder>> {
        let entries = list(root)?;
        let mut visited = HashSet::from([fs::canonicalize(root).map_err(|e| unreadable(root, &e))?]);
        let (mut files, mut classes, mut empty) = (Vec::new(), Vec::new(), None);
        for class in entries.iter().filter(|e| e.folder) {
            let below = images_below(root, &class.name, &mut visited)?;
            if below.is_empty() {
                empty.get_or_insert(&class.name);
                continue;
            }
            let label = match known {
                None => classes.len(),
                Some(known) => known.iter().position(|k| *k == class.name).ok_or_else(|| {
                    Error::new(format!("class {} of {} is not in the training part", class.name, root.display()))
                        .hint(format!("known are {}", known.join(", ")))
                })?,
            };
            classes.push(class.name.clone());
            files.extend(below.into_iter().map(|(name, bytes)| File { name, bytes, label: Some(label as u32) }));
        }
        let direct = entries.iter().filter(|e| !e.folder);
        if let (Some(image), Some(class)) = (direct.clone().next(), classes.first()) {
            return Err(Error::new(format!(
                "{} has images beside its class folders: {} beside {class}/",
                root.display(),
                image.name
            ))
            .hint("move them into a class folder, or away"));
        }
        if classes.is_empty() {
            files.extend(direct.map(|e| File { name: e.name.clone(), bytes: e.bytes, label: None }));
        } else if let (Some(known), Some(_)) = (known, classes.first()) {
            classes = known.to_vec();
        } else if let Some(empty) = empty {
            // Left out silently, it would shift the number of every class after it.
            return Err(Error::new(format!("class folder {} has no picture", root.join(empty).display()))
                .hint("remove it, or begin its name with a dot to have it left out"));
        }
        Ok(Some(ImageFolder { root: root.to_path_buf(), files, classes, how }).filter(|set| !set.files.is_empty()))
    }
}

struct Entry {
    name: String,
    folder: bool,
    bytes: u64,
}

/// The sub-folders and images of a folder, sorted by name.
fn list(folder: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let path = entry.map_err(|e| unreadable(folder, &e))?.path();
        let picture = is_picture(&path);
        let (folder, file, bytes) = match fs::metadata(&path) {
            Ok(kind) => (kind.is_dir(), kind.is_file(), kind.len()),
            Err(_) => (false, true, 0), // a link to nothing: one bad picture must not stop a run
        };
        if !(folder || picture && file) {
            continue;
        }
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(Error::new(format!("the name of {} is not UTF-8", path.display())).hint("rename it"));
        };
        if !name.starts_with('.') {
            entries.push(Entry { name: name.to_string(), folder, bytes });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Names and sizes of all images below `root/folder`, sorted. `visited` holds the folders that were entered, links
/// resolved: a link to a folder above would otherwise never end.
fn images_below(root: &Path, folder: &str, visited: &mut HashSet<PathBuf>) -> Result<Vec<(String, u64)>> {
    let (mut images, mut todo) = (Vec::new(), vec![folder.to_string()]);
    while let Some(folder) = todo.pop() {
        let path = root.join(&folder);
        if !visited.insert(fs::canonicalize(&path).map_err(|e| unreadable(&path, &e))?) {
            continue;
        }
        for entry in list(&path)? {
            let name = format!("{folder}/{}", entry.name);
            if entry.folder { todo.push(name) } else { images.push((name, entry.bytes)) }
        }
    }
    images.sort();
    Ok(images)
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        decode(&self.root.join(&self.files[i].name), self.how)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.files[i].label
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn name(&self, i: usize) -> String {
        self.files[i].name.clone()
    }
    /// Names, labels and file sizes; the pixels are not read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        for class in &self.classes {
            hash.text(class);
        }
        for file in &self.files {
            hash.text(&file.name);
            hash.number(file.label.map_or(u64::MAX, u64::from));
            hash.number(file.bytes);
        }
        hash.hex()
    }
}

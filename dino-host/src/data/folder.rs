//! Folders of image files: one sub-folder a class, or all files in one folder, with the labels of a list beside them or without.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::fingerprint::Fnv;
use super::labels::{Classes, counted, fit, some};
use super::parts::{self, Part};
use super::unsupported::Unsupported;
use super::{Dataset, Splits, sidecar};
use crate::error::{Error, Result};
use crate::image::{Decode, Image, decode, is_image_file};
use crate::io::read_error;

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
    let Parts { train, test, mut notes } = parts(path)?;
    let mut unsupported = Unsupported::default();
    let Some(of_train) = Listing::of(&train, &mut unsupported)? else { return Ok(None) };
    of_train.check(true)?;
    notes.extend(of_train.notes.iter().cloned());
    let Some(test) = test else {
        let (set, _) = labeled(of_train, None, &mut notes, how)?;
        notes.extend(unsupported.notes());
        return Ok(Some(Splits::of(set, None, notes)));
    };
    let canonical = |p: &Path| fs::canonicalize(p).map_err(|e| read_error(p, &e));
    if canonical(&train)? == canonical(&test)? {
        return Err(Error::new(format!("{} and {} are the same folder", train.display(), test.display()))
            .hint("the test part must not repeat the training images"));
    }
    let mut unsupported_of_test = Unsupported::default();
    let Some(of_test) = Listing::of(&test, &mut unsupported_of_test)? else {
        let unsupported = unsupported_of_test.notes().first().map(|note| format!(" ({note})")).unwrap_or_default();
        return Err(Error::new(format!("no images found in {}{unsupported}", test.display())).hint(format!(
            "it was taken for the test part of {}; without it a tenth of the training images is held out",
            train.display()
        )));
    };
    of_test.check(false)?;
    notes.extend(of_test.notes.iter().cloned());
    let (train, test) = labeled(of_train, Some(of_test), &mut notes, how)?;
    unsupported.add(unsupported_of_test);
    notes.extend(unsupported.notes());
    let test = test.ok_or_else(|| Error::new(format!("no images found in {}", path.display())))?;
    Ok(Some(Splits::of(train, Some(test), notes)))
}

/// Both parts with their labels: those of the class folders, or those of a list beside the images where there are no class folders or
/// where those of the test part do not fit the training part's.
fn labeled(
    train: Listing,
    test: Option<Listing>,
    notes: &mut Vec<String>,
    how: Decode,
) -> Result<(ImageFolder, Option<ImageFolder>)> {
    let by_list = match train.classes.len() {
        0 | 1 => sidecar::labels(&train.root, &train.names(), None, notes),
        _ => None,
    };
    let names = || train.classes.iter().map(|class| class.name.clone()).collect::<Vec<_>>();
    let mut classes = match &by_list {
        None => Classes::known(&names()),
        Some(found) => Classes::of(&train.root, found.iter().map(String::as_str), std::iter::empty())?,
    };
    let mut test_labels = Vec::new();
    if let Some(test) = &test {
        let by_folder = test.labels();
        let fits = by_folder.iter().any(|label| classes.index(label).is_some());
        let found = match fits || classes.names.is_empty() {
            true => None,
            false => sidecar::labels(&test.root, &test.names(), Some(&classes), notes),
        };
        test_labels = found.unwrap_or(by_folder);
    }
    if let Some(found) = &by_list {
        // Numbers count over both parts.
        let [of_train, of_test] = [found, &test_labels].map(|labels| labels.iter().map(String::as_str));
        classes = Classes::of(&train.root, of_train, of_test)?;
    }
    let train_labels = by_list.unwrap_or_else(|| train.labels());
    let indices = train_labels.iter().map(|label| classes.index(label)).collect::<Vec<_>>();
    let test = test.map(|test| {
        let labels: Vec<&str> = test_labels.iter().map(String::as_str).collect();
        let fitted = fit(&test.root, &classes, &labels);
        notes.extend(fitted.notes);
        match fitted.indices.is_empty() {
            true => test.set(&[], &[], how),
            false => test.set(&fitted.indices, &classes.names, how),
        }
    });
    Ok((train.set(&indices, &classes.names, how), test))
}

/// The folders of both parts, and what is stored beside them.
struct Parts {
    train: PathBuf,
    test: Option<PathBuf>,
    notes: Vec<String>,
}

/// A sub-folder that is called as a part.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Called {
    part: Part,
    /// The name but for the part.
    rest: String,
    name: String,
}

/// The sub-folders of `folder` that are called as parts, sorted.
fn called(names: &[String]) -> Vec<Called> {
    let read = |name: &String| parts::named(name).map(|(part, rest)| Called { part, rest, name: name.clone() });
    let mut called: Vec<Called> = names.iter().filter_map(read).collect();
    called.sort();
    called
}

/// The test part that goes with a training part: the one that is called alike but for the part, then the one of the lowest rank.
fn test_of<'a>(called: &'a [Called], rest: &str) -> Option<&'a Called> {
    called.iter().filter(|c| c.part != Part::Train).min_by_key(|c| (c.rest != rest, c.part))
}

/// Which folders are the parts of the set at `path`.
fn parts(path: &Path) -> Result<Parts> {
    let entries = list(path, &mut Unsupported::default())?;
    let folders: Vec<String> = entries.iter().filter(|e| e.folder).map(|e| e.name.clone()).collect();
    let below = called(&folders);
    // "." has no name of its own.
    let full = if path.file_name().is_some() { path.to_path_buf() } else { fs::canonicalize(path).unwrap_or_default() };
    let own = full.file_name().and_then(|name| name.to_str()).and_then(parts::named);
    let train = below.iter().filter(|c| c.part == Part::Train).min_by_key(|c| (c.rest != "*", &c.name));
    let mut as_class = Vec::new();
    if let Some(train) = train {
        // A class may be called "train" as well: then it holds images and has other classes beside it.
        let test = test_of(&below, &train.rest);
        let folder = path.join(&train.name);
        let has_classes = || Ok(list(&folder, &mut Unsupported::default())?.iter().any(|e| e.folder));
        if test.is_some() || folders.len() == 1 || has_classes()? {
            let used = |name: &String| *name == train.name || test.is_some_and(|test| *name == test.name);
            let strays: Vec<&String> = folders.iter().filter(|name| !used(name)).collect();
            let mut notes = Vec::new();
            if !strays.is_empty() {
                notes.push(format!("beside the parts in {} and not used: {}", path.display(), some(&strays)));
            }
            if let (n @ 1.., Some(first)) = (entries.len() - folders.len(), entries.iter().find(|e| !e.folder)) {
                let path = path.join(&first.name);
                let are = if n == 1 { "is" } else { "are" };
                let images = counted(n, "image");
                notes.push(format!("{images} beside the parts {are} not used, such as {}", path.display()));
            }
            return Ok(Parts { train: folder, test: test.map(|test| path.join(&test.name)), notes });
        }
        let others: Vec<&String> = folders.iter().filter(|name| **name != train.name).collect();
        as_class.push(format!(
            "{} is taken for a class, as it holds images and other folders are beside it ({}); pass it to train on it alone",
            folder.display(),
            some(&others)
        ));
    } else if let Some(test) = below.first()
        && own.as_ref().is_none_or(|(part, _)| *part != Part::Train)
        && below.len() == entries.len()
    {
        // Names of test parts alone, with nothing else, are half a data set, not classes.
        let test = path.join(&test.name);
        return Err(Error::new(format!("{} has no train/ beside {}", path.display(), test.display()))
            .hint(format!("pass {} itself to train on it", test.display())));
    }
    let mut found = Parts { train: path.to_path_buf(), test: None, notes: as_class };
    if let (Some((Part::Train, rest)), Some(above)) = (own, full.parent()) {
        let here = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let siblings = fs::read_dir(here).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
        let names: Vec<String> = siblings.filter_map(|e| e.file_name().into_string().ok()).collect();
        let beside = called(&names);
        if let Some(test) = test_of(&beside, &rest) {
            found.test = Some(above.join(&test.name));
            let others = beside.iter().filter(|c| c.part != Part::Train && c.name != test.name);
            let others: Vec<String> = others.map(|c| above.join(&c.name).display().to_string()).collect();
            if !others.is_empty() {
                found.notes.push(format!("not used, for the test part is {}: {}", test.name, some(&others)));
            }
        }
    }
    Ok(found)
}

/// The folder in which class folders may have been meant: the first with several folders below folders that hold one folder and
/// nothing else.
pub fn several_below(path: &Path) -> Option<PathBuf> {
    let root = parts(path).ok()?.train;
    let mut folder = root.clone();
    for _ in 0..DEEPEST {
        let entries = list(&folder, &mut Unsupported::default()).ok()?;
        match entries.iter().filter(|e| e.folder).count() {
            1 if entries.len() == 1 => folder.push(&entries[0].name),
            0 | 1 => return None,
            _ => return Some(folder).filter(|folder| *folder != root),
        }
    }
    None
}

/// Folders below one another, where each holds nothing but the next, that are gone through at most: links make circles.
const DEEPEST: usize = 16;

/// The note on files that look like images in a folder where no image was found.
pub(super) fn unsupported(path: &Path) -> Option<String> {
    let mut unsupported = Unsupported::default();
    Listing::of(&parts(path).ok()?.train, &mut unsupported).ok()?;
    unsupported.notes().into_iter().next()
}

/// Folders of outlines and the like beside one of images, as detectors are trained on: no classes.
const ANNOTATIONS: [&str; 6] = ["labels", "annotations", "annots", "xml", "json", "bboxes"];

/// What is stored below a folder.
struct Listing {
    root: PathBuf,
    /// Images beside the class folders.
    direct: Vec<File>,
    /// Class folders with images, sorted.
    classes: Vec<Class>,
    /// A class folder without an image.
    empty: Option<String>,
    notes: Vec<String>,
}

struct Class {
    name: String,
    files: Vec<File>,
}

impl Listing {
    /// Lists the images of `root` (nothing is decoded); `None` where there is none. Class folders may hold folders; links are
    /// followed, and within a class no folder is entered twice. Names that begin with a dot are left out, and what systems leave beside
    /// images. An image that cannot be read (a dangling link, an empty file) is a member like any other. Errors: a folder cannot be listed.
    fn of(root: &Path, unsupported: &mut Unsupported) -> Result<Option<Listing>> {
        let entries = list(root, unsupported)?;
        let real = fs::canonicalize(root).map_err(|e| read_error(root, &e))?;
        let mut found = Listing {
            root: root.to_path_buf(),
            direct: Vec::new(),
            classes: Vec::new(),
            empty: None,
            notes: Vec::new(),
        };
        // The class that a folder was first met in.
        let mut met: HashMap<PathBuf, String> = HashMap::new();
        let mut shared: Option<(usize, String)> = None;
        for entry in entries {
            if !entry.folder {
                found.direct.push(File { name: entry.name, bytes: entry.bytes, label: None });
                continue;
            }
            let Below { files, folders } = below(root, &entry.name, &real, &met, unsupported)?;
            if files.is_empty() && ANNOTATIONS.contains(&entry.name.to_lowercase().as_str()) {
                found
                    .notes
                    .push(format!("{} holds no image and is not taken for a class", root.join(entry.name).display()));
                continue;
            }
            if files.is_empty() {
                found.empty.get_or_insert(entry.name);
                continue;
            }
            for (i, (folder, images)) in folders.into_iter().enumerate() {
                match met.get(&folder) {
                    None => _ = met.insert(folder, entry.name.clone()),
                    Some(other) if i == 0 => found.notes.push(format!(
                        "the class folders {other} and {} are one folder: its {} images are in both classes",
                        entry.name,
                        files.len()
                    )),
                    Some(other) if images > 0 => {
                        let first = format!("{} is in {other} and in {}", folder.display(), entry.name);
                        shared.get_or_insert((0, first)).0 += images;
                    }
                    Some(_) => (),
                }
            }
            found.classes.push(Class { name: entry.name, files });
        }
        if let Some((images, first)) = shared {
            found.notes.push(format!("{images} images are in several classes, by links: {first}"));
        }
        Ok(Some(found).filter(|found| !found.direct.is_empty() || !found.classes.is_empty()))
    }

    /// Refuses images beside class folders, and in a training part a class folder without an image.
    fn check(&self, of_train: bool) -> Result<()> {
        if let (Some(image), Some(class)) = (self.direct.first(), self.classes.first()) {
            return Err(Error::new(format!(
                "{} has images beside its class folders: {} beside {}/",
                self.root.display(),
                image.name,
                class.name
            ))
            .hint("move them into a class folder, or away"));
        }
        match self.empty.as_ref().filter(|_| of_train && !self.classes.is_empty()) {
            // Left out silently, it would shift the number of every class after it.
            Some(empty) => Err(Error::new(format!("class folder {} has no image", self.root.join(empty).display()))
                .hint("remove it, or begin its name with a dot to have it left out")),
            None => Ok(()),
        }
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.direct.iter().chain(self.classes.iter().flat_map(|class| &class.files))
    }

    fn names(&self) -> Vec<&str> {
        self.files().map(|file| file.name.as_str()).collect()
    }

    /// The class folder of every file; none without class folders.
    fn labels(&self) -> Vec<String> {
        self.classes.iter().flat_map(|class| vec![class.name.clone(); class.files.len()]).collect()
    }

    /// The files with these classes, those without one left out; all without classes where `indices` is empty.
    fn set(self, indices: &[Option<u32>], classes: &[String], how: Decode) -> ImageFolder {
        let files = self.direct.into_iter().chain(self.classes.into_iter().flat_map(|class| class.files));
        let files = match indices.is_empty() {
            true => files.collect(),
            false => files
                .zip(indices)
                .filter(|(_, label)| label.is_some())
                .map(|(file, &label)| File { label, ..file })
                .collect(),
        };
        ImageFolder { root: self.root, files, classes: classes.to_vec(), how }
    }
}

impl ImageFolder {
    /// The images of `root`, its sub-folders being the classes; `None` where there is none. `image` reports what is wrong with an image
    /// that cannot be read.
    ///
    /// # Errors
    /// A folder cannot be listed, a class folder has no images, or images are both beside and inside class folders.
    pub fn read(root: &Path, how: Decode) -> Result<Option<ImageFolder>> {
        let Some(listing) = Listing::of(root, &mut Unsupported::default())? else { return Ok(None) };
        listing.check(true)?;
        Ok(Some(labeled(listing, None, &mut Vec::new(), how)?.0))
    }
}

struct Entry {
    name: String,
    folder: bool,
    bytes: u64,
}

/// Folders that systems and programs put beside images: resource forks, thumbnails, deleted files.
const LITTER: [&str; 5] = ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"];

/// The sub-folders and images of a folder, sorted by name.
fn list(folder: &Path, unsupported: &mut Unsupported) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let path = entry.map_err(|e| read_error(folder, &e))?.path();
        let image = is_image_file(&path);
        let (folder, file, bytes) = match fs::metadata(&path) {
            Ok(kind) => (kind.is_dir(), kind.is_file(), kind.len()),
            Err(_) => (false, true, 0), // a link to nothing: one bad image must not stop a run
        };
        let hidden = path.file_name().is_some_and(|name| {
            name.as_encoded_bytes().starts_with(b".") || folder && LITTER.iter().any(|litter| name == *litter)
        });
        if !folder && file && !image && !hidden {
            unsupported.take(&path);
        }
        if !(folder || image && file) {
            continue;
        }
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            return Err(Error::new(format!("the name of {} is not UTF-8", path.display())).hint("rename it"));
        };
        if !hidden {
            entries.push(Entry { name: name.to_string(), folder, bytes });
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What is below a class folder.
struct Below {
    /// Sorted.
    files: Vec<File>,
    /// The folders that were entered, links resolved, the class folder first, with the images that are directly in each.
    folders: Vec<(PathBuf, usize)>,
}

/// All images below `root/class`. Neither `real`, the root with its links resolved, nor any folder a second time is entered: a link to a
/// folder above would otherwise never end. Files in folders that are in `met` have been taken note of.
fn below(
    root: &Path,
    class: &str,
    real: &Path,
    met: &HashMap<PathBuf, String>,
    unsupported: &mut Unsupported,
) -> Result<Below> {
    let (mut found, mut todo) = (Below { files: Vec::new(), folders: Vec::new() }, vec![class.to_string()]);
    let mut entered = HashSet::from([real.to_path_buf()]);
    while let Some(folder) = todo.pop() {
        let path = root.join(&folder);
        let real = fs::canonicalize(&path).map_err(|e| read_error(&path, &e))?;
        if !entered.insert(real.clone()) {
            continue;
        }
        let again = &mut Unsupported::again();
        let before = found.files.len();
        for entry in list(&path, if met.contains_key(&real) { again } else { unsupported })? {
            let name = format!("{folder}/{}", entry.name);
            match entry.folder {
                true => todo.push(name),
                false => found.files.push(File { name, bytes: entry.bytes, label: None }),
            }
        }
        found.folders.push((real, found.files.len() - before));
    }
    found.files.sort_by(|a, b| (&a.name, a.bytes).cmp(&(&b.name, b.bytes)));
    Ok(found)
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
    fn path(&self, i: usize) -> Option<PathBuf> {
        Some(self.root.join(&self.files[i].name))
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

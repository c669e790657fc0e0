//! How labels become numbers: names and numbers as they are written, and the labels of a test part by the classes of its training
//! part.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::io::text::{self, composed};

/// The file that names classes which are numbers, one name a line.
pub(super) const CLASS_NAMES: &str = "classnames.txt";

/// Classes that are numbers: at most this many, so that one wild label does not make millions of names.
pub(super) const MAX_CLASSES: usize = 1 << 20;

/// The names of classes that are numbers: the lines of `classnames.txt` in the first of `folders` that has one, otherwise
/// `0 ..= highest` as text. Errors: a number beyond the names, or too high.
pub(super) fn numbered_classes(folders: &[&Path], highest: u32) -> Result<Vec<String>> {
    let Some(path) = folders.iter().map(|f| f.join(CLASS_NAMES)).find(|p| p.is_file()) else {
        return match highest as usize {
            n if n < MAX_CLASSES => Ok((0..=highest).map(|i| i.to_string()).collect()),
            n => Err(Error::new(format!("{} has a label {n}", folders[0].display()))
                .hint(format!("labels below {MAX_CLASSES} are read; number the classes from 0"))),
        };
    };
    let names = names_in(&path)?;
    match names.len() {
        n if n > highest as usize => Ok(names),
        n => Err(Error::new(format!("{} names {n} classes, but there is a label {highest}", path.display()))
            .hint("one class name a line; without the file the numbers are the names")),
    }
}

/// Classes that are numbers.
pub(super) struct Numbered {
    pub names: Vec<String>,
    /// The numbers that are classes, ascending, where they are not `0 .. names.len()`.
    sparse: Option<Vec<u64>>,
}

impl Numbered {
    /// The class of a label.
    pub fn index(&self, label: u64) -> Option<u32> {
        match &self.sparse {
            Some(numbers) => numbers.binary_search(&label).ok().map(|index| index as u32),
            None => u32::try_from(label).ok().filter(|&label| (label as usize) < self.names.len()),
        }
    }
}

/// From so high a number on, and with so few of the numbers up to it, labels number something else than the entries of a list.
const SPARSE_FROM: u64 = 1000;

const SPARSE_PART: u64 = 4;

/// The classes of labels that are numbers; `occurring`: those of both parts, ascending, each once. Names are those of
/// [`numbered_classes`], but where the highest number is 1000 or more and less than a quarter of the numbers up to it occur (taxa,
/// articles, WordNet offsets): there only the numbers that occur are classes, in their order, so that nothing grows with the numbers
/// themselves. Errors: as [`numbered_classes`].
pub(super) fn numbered(folders: &[&Path], occurring: &[u64]) -> Result<Numbered> {
    let highest = occurring.last().copied().unwrap_or(0);
    let named = folders.iter().any(|folder| folder.join(CLASS_NAMES).is_file());
    if highest >= SPARSE_FROM && (occurring.len() as u64) < highest / SPARSE_PART && !named {
        let names = occurring.iter().map(u64::to_string).collect();
        return Ok(Numbered { names, sparse: Some(occurring.to_vec()) });
    }
    let names = numbered_classes(folders, u32::try_from(highest).unwrap_or(u32::MAX))?;
    Ok(Numbered { names, sparse: None })
}

/// The names of classes whose labels are numbers; the labels of all images of both parts become their indices among them, see
/// [`numbered`].
pub(super) fn renumbered(folders: &[&Path], labels: Vec<&mut u32>) -> Result<Vec<String>> {
    let mut occurring: Vec<u64> = labels.iter().map(|label| u64::from(**label)).collect();
    occurring.sort_unstable();
    occurring.dedup();
    let classes = numbered(folders, &occurring)?;
    for label in labels {
        *label = classes.index(u64::from(*label)).unwrap_or(*label); // all of them have an index
    }
    Ok(classes.names)
}

/// The lines of a file of class names, trimmed, empty ones left out.
pub(super) fn names_in(path: &Path) -> Result<Vec<String>> {
    let failed =
        |e: String| Error::new(format!("cannot read {}: {e}", path.display())).hint("one class name a line, as text");
    let bytes = fs::read(path).map_err(|e| failed(e.to_string()))?;
    let text = text::decoded(bytes).map_err(|line| failed(format!("line {line} is not UTF-8")))?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect();
    match names.len() {
        0 => Err(Error::new(format!("{} names no class", path.display()))
            .hint("one class name a line; without the file there are default names")),
        _ => Ok(names),
    }
}

/// The classes of a set, and how its labels name them.
pub(super) struct Classes {
    pub names: Vec<String>,
    /// Indices in `names`, by the label in its composed form.
    indices: HashMap<String, u32>,
}

impl Classes {
    /// Classes whose names are known, in their order.
    pub fn known(names: &[String]) -> Classes {
        let mut indices = HashMap::new();
        for (index, name) in names.iter().enumerate() {
            indices.entry(composed(name).into_owned()).or_insert(index as u32);
        }
        Classes { names: names.to_vec(), indices }
    }

    /// Of the labels of both parts: names are numbered in sorted order, those of the training part alone; where all are
    /// integers, they are the classes' numbers, see [`numbered`]. `folder` may hold `classnames.txt`.
    ///
    /// # Errors
    /// A class file cannot be read, or a number is beyond its names or too high.
    pub fn of<'a>(
        folder: &Path,
        train: impl Iterator<Item = &'a str> + Clone,
        test: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Classes> {
        let number = |label: &'a str| match label.bytes().all(|b| b.is_ascii_digit()) {
            true => label.parse::<u64>().ok(),
            false => None,
        };
        let numbers: Option<Vec<u64>> = train.clone().chain(test).map(number).collect();
        if train.clone().next().is_none() {
            return Ok(Classes::known(&[]));
        }
        let Some(mut numbers) = numbers else {
            let mut names: Vec<String> = train.map(String::from).collect();
            names.sort();
            names.dedup();
            let mut seen = std::collections::HashSet::new();
            names.retain(|name| seen.insert(composed(name).into_owned()));
            return Ok(Classes::known(&names));
        };
        numbers.sort_unstable();
        numbers.dedup();
        let classes = numbered(&[folder], &numbers)?;
        let mut indices: HashMap<String, u32> =
            numbers.iter().filter_map(|&n| Some((n.to_string(), classes.index(n)?))).collect();
        // As they are written: 007 is 7.
        let written = train.filter_map(|label| Some((label.to_string(), classes.index(label.parse().ok()?)?)));
        indices.extend(written);
        Ok(Classes { names: classes.names, indices })
    }

    /// The number of a label.
    pub fn index(&self, label: &str) -> Option<u32> {
        let padded = || label.trim_start_matches('0');
        let index = self.indices.get(composed(label).as_ref());
        index.or_else(|| self.indices.get(padded()).filter(|_| label.bytes().all(|b| b.is_ascii_digit()))).copied()
    }
}

/// The labels of a test part as numbers of the training part's `classes`, and the notes on them.
pub(super) struct Fitted {
    /// Of every image; `None`: the image is left out of the part. Empty: the part has no labels.
    pub indices: Vec<Option<u32>>,
    pub notes: Vec<String>,
}

/// `labels`: of every image, none at all where the part has none; `part`: where it is stored, for the notes.
///
/// Labels that the training part does not have cannot be scored: their images are left out, and where no label fits, the part has
/// no labels.
pub(super) fn fit(part: &Path, classes: &Classes, labels: &[&str]) -> Fitted {
    let part = part.display();
    let unlabeled = |why: String| Fitted { indices: Vec::new(), notes: vec![why] };
    if labels.is_empty() {
        return match classes.names.is_empty() {
            true => Fitted { indices: Vec::new(), notes: Vec::new() },
            false => unlabeled(format!("{part} has no labels: it is a test part without accuracy")),
        };
    }
    if classes.names.is_empty() {
        return unlabeled(format!("the training part has no labels: those of {part} are not used"));
    }
    let indices: Vec<Option<u32>> = labels.iter().map(|label| classes.index(label)).collect();
    let mut strange: Vec<&str> =
        labels.iter().zip(&indices).filter(|(_, index)| index.is_none()).map(|(label, _)| *label).collect();
    let images = strange.len();
    strange.sort_unstable();
    strange.dedup();
    let named = some(&strange);
    match images {
        0 => Fitted { indices, notes: Vec::new() },
        n if n == labels.len() => unlabeled(format!(
            "no class of {part} is in the training part ({named}): it is a test part without labels, and without accuracy"
        )),
        n => {
            let mut all = labels.to_vec();
            all.sort_unstable();
            all.dedup();
            let (strange, all) = (strange.len(), all.len());
            let images = counted(n, "image");
            let note = format!(
                "{strange} of {all} classes of {part} are not in the training part ({named}): {images} left out"
            );
            Fitted { indices, notes: vec![note] }
        }
    }
}

/// `1 image`, `2 images`, `2 classes`.
pub(super) fn counted(n: usize, what: &str) -> String {
    match n {
        1 => format!("1 {what}"),
        n if what.ends_with('s') => format!("{n} {what}es"),
        n => format!("{n} {what}s"),
    }
}

/// A few names of many, for a line of text.
pub(super) fn some<T: AsRef<str>>(names: &[T]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(AsRef::as_ref).collect::<Vec<&str>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}

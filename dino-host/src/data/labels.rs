//! How labels become numbers: names and numbers as they are written, and the labels of a test part by the classes of its training
//! part.

use std::collections::HashMap;
use std::path::Path;

use super::numbered;
use crate::error::Result;
use crate::io::text::composed;

/// The classes of a set, and how its labels name them.
pub(super) struct Classes {
    pub names: Vec<String>,
    /// Places in `names`, by the label in its composed form.
    places: HashMap<String, u32>,
}

impl Classes {
    /// Classes whose names are known, in their order.
    pub fn known(names: &[String]) -> Classes {
        let mut places = HashMap::new();
        for (place, name) in names.iter().enumerate() {
            places.entry(composed(name).into_owned()).or_insert(place as u32);
        }
        Classes { names: names.to_vec(), places }
    }

    /// Of the labels of both parts: names are numbered in sorted order, those of the training part alone; where all are whole
    /// numbers, they are the classes' numbers, see [`numbered`]. `folder` may hold `classnames.txt`.
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
        let mut places: HashMap<String, u32> =
            numbers.iter().filter_map(|&n| Some((n.to_string(), classes.place(n)?))).collect();
        // As they are written: 007 is 7.
        let written = train.filter_map(|label| Some((label.to_string(), classes.place(label.parse().ok()?)?)));
        places.extend(written);
        Ok(Classes { names: classes.names, places })
    }

    /// The number of a label.
    pub fn place(&self, label: &str) -> Option<u32> {
        let padded = || label.trim_start_matches('0');
        let place = self.places.get(composed(label).as_ref());
        place.or_else(|| self.places.get(padded()).filter(|_| label.bytes().all(|b| b.is_ascii_digit()))).copied()
    }
}

/// The labels of a test part as numbers of the training part's `classes`, and what is said of them.
pub(super) struct Fitted {
    /// Of every image; `None`: the image is left out of the part. Empty: the part has no labels.
    pub places: Vec<Option<u32>>,
    pub notes: Vec<String>,
}

/// `labels`: of every image, none at all where the part has none; `part`: where it lies, for the notes.
///
/// Labels that the training part does not have cannot be judged: their images are left out, and where no label fits, the part has
/// no labels.
pub(super) fn fit(part: &Path, classes: &Classes, labels: &[&str]) -> Fitted {
    let part = part.display();
    let unlabelled = |why: String| Fitted { places: Vec::new(), notes: vec![why] };
    if labels.is_empty() {
        return match classes.names.is_empty() {
            true => Fitted { places: Vec::new(), notes: Vec::new() },
            false => unlabelled(format!("{part} has no labels: it is a test part without accuracy")),
        };
    }
    if classes.names.is_empty() {
        return unlabelled(format!("the training part has no labels: those of {part} are not used"));
    }
    let places: Vec<Option<u32>> = labels.iter().map(|label| classes.place(label)).collect();
    let mut strange: Vec<&str> =
        labels.iter().zip(&places).filter(|(_, place)| place.is_none()).map(|(label, _)| *label).collect();
    let images = strange.len();
    strange.sort_unstable();
    strange.dedup();
    let named = some(&strange);
    match images {
        0 => Fitted { places, notes: Vec::new() },
        n if n == labels.len() => unlabelled(format!(
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
            Fitted { places, notes: vec![note] }
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

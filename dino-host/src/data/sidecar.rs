//! Labels of images by a list stored with them: `metadata.csv`, `labels.csv`, Tiny-ImageNet's `val_annotations.txt`, the lists of
//! ImageNet's validation images.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::labels::{CLASS_NAMES, Classes};
use super::list::{is_list, read};
use super::parts::{self, Part};
use super::table::{self, Table};
use crate::image::is_image_file;
use crate::io::text::composed;

/// Lists that are examined, and folders above the images' in which ImageNet's list may be stored, at most.
const LISTS: usize = 64;
const ABOVE: usize = 4;

/// The labels of the images below `folder`, whose paths relative to it are `names`, by the first list that names all of them.
/// `known`: the classes of the training part, for the test part. Lists that name some of the images and are not used are noted.
pub(super) fn labels(
    folder: &Path,
    names: &[&str],
    known: Option<&Classes>,
    notes: &mut Vec<String>,
) -> Option<Vec<String>> {
    let full = fs::canonicalize(folder).ok()?;
    let part = full.file_name().and_then(|name| name.to_str()).and_then(parts::of);
    let images = Images::new(names, part);
    let (mut taken, mut notes_of_lists) = (None, Vec::new());
    for list in lists(folder, &full, part) {
        match one(&list, &images, known) {
            Ok(Some((labels, note))) => match &taken {
                None => {
                    notes.push(format!("the labels of {} are those of {}{note}", folder.display(), list.display()));
                    taken = Some(labels);
                }
                Some(other) if *other != labels => {
                    notes.push(format!("{} has other labels, and is not used", list.display()));
                }
                Some(_) => (),
            },
            Ok(None) => (),
            Err(why) => notes_of_lists.push(format!("{} is not used for labels: {why}", list.display())),
        }
    }
    if taken.is_none() {
        notes.append(&mut notes_of_lists);
    }
    taken
}

/// Lists that may name the images: those in their folder; beside a part's folder those of the part and those of all parts; and
/// ImageNet's as Kaggle packs it.
fn lists(folder: &Path, full: &Path, part: Option<Part>) -> Vec<PathBuf> {
    let files = |folder: &Path| -> Vec<PathBuf> {
        let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<PathBuf> = paths.filter(|path| is_list(path) && path.is_file()).collect();
        found.sort_by_key(|path| (stem(path) != "metadata", path.clone()));
        found
    };
    let of_all = |path: &PathBuf| ["metadata", "labels", "annotations"].contains(&stem(path).as_str());
    let mut found = files(folder);
    found.retain(|path| path.file_name().is_none_or(|name| name != CLASS_NAMES));
    if let Some(part) = part {
        // As the user named it, where its name shows what is above it.
        let above = match folder.file_name().and(folder.parent()) {
            Some(above) if above.as_os_str().is_empty() => Path::new("."),
            Some(above) => above,
            None => full.parent().unwrap_or(full),
        };
        let of_part = |path: &PathBuf| parts::of_list(&stem(path)).is_some_and(|other| parts::same(part, other));
        let (of_part, others): (Vec<PathBuf>, Vec<PathBuf>) = files(above).into_iter().partition(of_part);
        found.extend(of_part);
        found.extend(others.into_iter().filter(of_all));
        if parts::of("val").is_some_and(|val| parts::same(part, val)) {
            found.extend(full.ancestors().skip(2).take(ABOVE).map(|above| above.join("LOC_val_solution.csv")));
        }
    }
    found.retain(|path| path.is_file());
    found.truncate(LISTS);
    found
}

fn stem(path: &Path) -> String {
    path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_lowercase()
}

/// The labels by one list and the notes on them; `None` where it names none of the images. The error states why it cannot be
/// used.
fn one(list: &Path, images: &Images, known: Option<&Classes>) -> Result<Option<(Vec<String>, String)>, String> {
    let text = read(list).map_err(|e| e.message)?;
    // What is no table is no list of these images.
    let Ok(table) = table::parse(list, &text, &|name| images.find(name).is_some()) else { return Ok(None) };
    let width = table.rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
    let named = |column: usize| {
        let named = table.column(column).filter(|cell| images.find(cell).is_some()).count();
        // A label may be called as an image is without its ending.
        (named > 0).then(|| (table.column(column).any(|cell| is_image_file(Path::new(cell))), named))
    };
    // Among equals the first; `max_by_key` gives the last.
    let Some((path, _)) = (0..width).filter_map(|c| Some((c, named(c)?))).rev().max_by_key(|(_, named)| *named) else {
        let numbers = width == 1 && table.column(0).all(|cell| cell.parse::<u32>().is_ok());
        return match numbers && images.count == table.rows.len() && parts::of_list(&stem(list)).is_some() {
            true => Err("it has numbers and no names; ImageNet's own numbers are classes only by meta.mat of its development kit. \
                         A list of lines `file class` gives labels"
                .into()),
            false => Ok(None),
        };
    };
    let column = label_column(&table, path, known, &|cell| images.find(cell).is_some())?;
    let mut labels: Vec<Option<&str>> = vec![None; images.count];
    for row in &table.rows {
        let cell = |column: usize| row.cells.get(column).map_or("", String::as_str);
        let (Some(image), label) = (images.find(cell(path)), table.label(column, cell(column))) else { continue };
        match labels[image].replace(label) {
            Some(other) if other != label => {
                return Err(format!("line {} names {} again, with another label", row.number, cell(path)));
            }
            _ => (),
        }
    }
    let all: Option<Vec<String>> =
        labels.iter().map(|label| label.filter(|label| !label.is_empty()).map(String::from)).collect();
    match all {
        None => Err(format!(
            "it names {} of {} images; as --data it trains on those alone",
            labels.iter().flatten().count(),
            images.count
        )),
        Some(labels) => Ok(Some(by_place(labels, known))),
    }
}

/// Which column is the label: the only one whose cells are all known classes, or the one whose name means it.
fn label_column(
    table: &Table,
    path: usize,
    known: Option<&Classes>,
    found: &dyn Fn(&str) -> bool,
) -> Result<usize, String> {
    if let Some(known) = known {
        let width = table.rows.first().map_or(0, |row| row.cells.len());
        let fits = |c: &usize| *c != path && table.column(*c).all(|cell| known.index(table.label(*c, cell)).is_some());
        let fitting: Vec<usize> = (0..width).filter(fits).collect();
        if let [one] = fitting.as_slice() {
            return Ok(*one);
        }
    }
    table.columns(found)?.label.ok_or_else(|| "it has no column of labels".into())
}

/// Numbers where the classes have names: indices of the sorted names, from 0, as Caffe's lists of ImageNet have them.
fn by_place(labels: Vec<String>, known: Option<&Classes>) -> (Vec<String>, String) {
    let Some(known) = known.filter(|known| labels.iter().all(|label| known.index(label).is_none())) else {
        return (labels, String::new());
    };
    let names: Option<Vec<String>> =
        labels.iter().map(|label| known.names.get(label.parse::<usize>().ok()?).cloned()).collect();
    match names {
        None => (labels, String::new()),
        Some(names) => {
            (names, format!(": its numbers are taken for indices of the {} classes, from 0", known.names.len()))
        }
    }
}

/// Images by what a list may call them.
struct Images {
    count: usize,
    part: Option<Part>,
    /// By their paths, composed.
    paths: HashMap<String, usize>,
    /// By their files' names, with and without the ending; `None` where several have it.
    names: HashMap<String, Option<usize>>,
}

impl Images {
    fn new(paths: &[&str], part: Option<Part>) -> Images {
        let mut images = Images { count: paths.len(), part, paths: HashMap::new(), names: HashMap::new() };
        for (i, path) in paths.iter().enumerate() {
            let path = composed(path).into_owned();
            let name = path.rsplit('/').next().unwrap_or(&path).to_string();
            let without = Path::new(&name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_string();
            for name in [name, without] {
                images.names.entry(name).and_modify(|known| *known = None).or_insert(Some(i));
            }
            images.paths.insert(path, i);
        }
        images
    }

    /// The image that a cell means: folders in front of its name may be left out or be others', but for another part's.
    fn find(&self, cell: &str) -> Option<usize> {
        if cell.is_empty() {
            return None;
        }
        let cell = composed(cell).replace('\\', "/");
        let mut rest = cell.as_str();
        loop {
            if let Some(image) = self.paths.get(rest) {
                return Some(*image);
            }
            match rest.split_once('/') {
                Some((folder, _))
                    if parts::of(folder)
                        .is_some_and(|other| self.part.is_none_or(|part| !parts::same(part, other))) =>
                {
                    return None;
                }
                Some((_, below)) => rest = below,
                None => break,
            }
        }
        self.names.get(rest).copied().flatten()
    }
}

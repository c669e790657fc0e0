//! A list of picture files: one `path` or `path,label` a line (comma or tab), paths relative to the list's folder. Empty lines
//! and lines that begin with `#` are skipped.
//!
//! Labels are class names, numbered in sorted order; where all of them are whole numbers, they are the classes' numbers.
//! A list called `train` has its test part beside it: `val` or `test` with the same ending.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::picture::{decode, is_picture, unreadable};
use super::{Dataset, Decode, Fnv, Image, MAX_CLASSES, Splits, hold_out};
use crate::error::{Error, Result};

/// Largest list that is read, bytes.
const MAX_LIST: u64 = 1 << 30;

/// The files of a list, in its order.
pub struct FileList {
    folder: PathBuf,
    files: Vec<(String, Option<u32>)>,
    classes: Vec<String>,
    how: Decode,
}

/// A line that names a file.
struct Line<'a> {
    number: usize,
    file: &'a str,
    label: Option<&'a str>,
}

/// `None` when the name does not end as a list's.
pub(super) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["csv", "tsv", "txt"].iter().any(|known| ending.eq_ignore_ascii_case(known)) {
        return Ok(None);
    }
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let beside = ["val", "test"].map(|name| path.with_file_name(format!("{name}.{ending}")));
    let test = beside.into_iter().find(|p| stem == "train" && p.is_file());

    let text = read(path)?;
    let lines = lines(path, &text)?;
    let test_text = test.as_ref().map(|p| read(p)).transpose()?;
    let test_lines = match (&test, &test_text) {
        (Some(path), Some(text)) => Some(self::lines(path, text)?),
        _ => None,
    };
    let classes = Classes::of(path, &lines, test_lines.as_deref().unwrap_or_default())?;
    let train = Box::new(FileList::new(path, &lines, &classes, how)?);
    Ok(Some(match (test, test_lines) {
        (Some(path), Some(lines)) => {
            let test = Box::new(FileList::new(&path, &lines, &classes, how)?);
            Splits { train, test, held_out: false, notes: Vec::new() }
        }
        _ => hold_out(train),
    }))
}

fn read(path: &Path) -> Result<String> {
    let length = fs::metadata(path).map_err(|e| unreadable(path, &e))?.len();
    if length > MAX_LIST {
        return Err(Error::new(format!("{} has {length} bytes", path.display()))
            .hint(format!("lists of up to {} MiB are read", MAX_LIST >> 20)));
    }
    let bytes = fs::read(path).map_err(|e| unreadable(path, &e))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        Error::new(format!("{} line {line} is not UTF-8", path.display())).hint(HINT)
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

const HINT: &str = "a line is path or path,label (comma or tab); a line that begins with # is skipped";

fn lines<'a>(path: &Path, text: &'a str) -> Result<Vec<Line<'a>>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| Error::new(format!("{} line {number}: {what}", path.display())).hint(HINT);
        let mut fields = line.split(if line.contains('\t') { '\t' } else { ',' }).map(str::trim);
        let (file, label) = (fields.next().unwrap_or_default(), fields.next());
        if file.is_empty() {
            return Err(wrong("no path"));
        }
        if !is_picture(Path::new(file)) {
            return Err(wrong(&format!(
                "{file} is not named as a picture (.png, .jpg, .jpeg, .webp, .bmp, .tif, .tiff)"
            )));
        }
        if label == Some("") {
            return Err(wrong("no label after the path"));
        }
        if fields.next().is_some() {
            return Err(wrong("more than a path and a label"));
        }
        if let Some(first) = lines.first()
            && first.label.is_some() != label.is_some()
        {
            let has = |yes| if yes { "a label" } else { "no label" };
            let (first, here) = (format!("line {} has {}", first.number, has(label.is_none())), has(label.is_some()));
            return Err(wrong(&format!("{here}, but {first}")));
        }
        if let Some(before) = seen.insert(file, number) {
            return Err(wrong(&format!("{file} is in line {before} already")));
        }
        lines.push(Line { number, file, label });
    }
    match lines.is_empty() {
        true => Err(Error::new(format!("{} names no file", path.display())).hint(HINT)),
        false => Ok(lines),
    }
}

/// How labels become numbers.
struct Classes {
    names: Vec<String>,
    numbers: bool,
}

impl Classes {
    fn of(path: &Path, train: &[Line], test: &[Line]) -> Result<Classes> {
        let labels = || train.iter().chain(test).filter_map(|line| line.label);
        let number =
            |label: &str| label.bytes().all(|b| b.is_ascii_digit()).then(|| label.parse::<usize>().ok()).flatten();
        if train.first().is_none_or(|line| line.label.is_none()) || !labels().all(|label| number(label).is_some()) {
            let mut names: Vec<String> = train.iter().filter_map(|line| line.label).map(String::from).collect();
            names.sort();
            names.dedup();
            return Ok(Classes { names, numbers: false });
        }
        let highest = labels().filter_map(number).max().unwrap_or(0);
        if highest >= MAX_CLASSES {
            let line = train.iter().find(|line| line.label.and_then(number) == Some(highest)).map_or(0, |l| l.number);
            return Err(Error::new(format!("{} line {line}: label {highest}", path.display()))
                .hint(format!("labels below {MAX_CLASSES} are read; number the classes from 0, or name them")));
        }
        Ok(Classes { names: (0..=highest).map(|i| i.to_string()).collect(), numbers: true })
    }

    fn label(&self, name: &str) -> Option<u32> {
        match self.numbers {
            true => name.parse().ok(),
            false => self.names.binary_search_by(|known| known.as_str().cmp(name)).ok().map(|i| i as u32),
        }
    }
}

impl FileList {
    /// Errors: a label that is not of the training part.
    fn new(path: &Path, lines: &[Line], classes: &Classes, how: Decode) -> Result<FileList> {
        let mut files = Vec::with_capacity(lines.len());
        for line in lines {
            let label = match line.label {
                None if !classes.names.is_empty() => {
                    return Err(Error::new(format!("{} line {} has no label", path.display(), line.number))
                        .hint("the training part has labels"));
                }
                None => None,
                Some(name) => Some(classes.label(name).ok_or_else(|| {
                    Error::new(format!(
                        "{} line {}: class {name} is not in the training part",
                        path.display(),
                        line.number
                    ))
                    .hint(match classes.names.is_empty() {
                        true => "the training part has no labels".into(),
                        false => format!("known are {}", classes.names.join(", ")),
                    })
                })?),
            };
            files.push((line.file.to_string(), label));
        }
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Ok(FileList { folder, files, classes: classes.names.clone(), how })
    }
}

impl Dataset for FileList {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        decode(&self.folder.join(&self.files[i].0), self.how)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.files[i].1
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// The path as the list has it.
    fn name(&self, i: usize) -> String {
        self.files[i].0.clone()
    }
    /// Names and labels; neither the files' sizes nor the pixels are read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        self.classes.iter().for_each(|class| hash.text(class));
        for (name, label) in &self.files {
            hash.text(name);
            hash.number(label.map_or(u64::MAX, u64::from));
        }
        hash.hex()
    }
}

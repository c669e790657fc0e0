//! Lists of image files: one `path` or `path,label` a line, or a table (commas, tabs, semicolons, spaces; with or without a line of
//! names; JSON lines). Paths are relative to the list's folder. Empty lines and lines that begin with `#` are
//! skipped.
//!
//! Labels are class names, numbered in sorted order; where all of them are integers, they are the classes' numbers.
//! A list called `train` has its test part beside it: `val`, `test` or another of a part's names; or a column gives for every line
//! the part it is of.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::fingerprint::Fnv;
use super::labels::{Classes, counted, fit};
use super::parts::{self, Part};
use super::table::{self, Table};
use super::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::image::{Decode, Image, decode, is_image_file, unsupported_extension};
use crate::io::{read_error, text};

/// Largest list that is read, bytes.
const MAX_LIST: u64 = 1 << 30;

/// What a list's name ends in, in any case.
const ENDINGS: [&str; 4] = ["csv", "tsv", "txt", "jsonl"];

/// What an image's name may end in that a list leaves out.
const LEFT_OUT: [&str; 9] = ["jpg", "png", "jpeg", "JPEG", "JPG", "PNG", "webp", "bmp", "tif"];

/// The files of a list, in its order.
pub struct FileList {
    folder: PathBuf,
    files: Vec<File>,
    classes: Vec<String>,
    how: Decode,
}

struct File {
    /// As the list has it.
    name: String,
    /// Where it is stored, relative to the list's folder, if not there.
    path: Option<String>,
    label: Option<u32>,
}

/// A line that names a file.
struct Line {
    number: usize,
    file: String,
    path: Option<String>,
    label: Option<String>,
    part: Option<Part>,
}

/// Whether the name ends as a list's.
pub(super) fn is_list(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// `None` when the name does not end as a list's.
pub(super) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    if !is_list(path) {
        return Ok(None);
    }
    let (beside, mut notes) = beside(path)?;
    let mut lines = lines(path, &read(path)?)?;
    let test = match &beside {
        Some(path) => Some((path.clone(), self::lines(path, &read(path)?)?)),
        None => by_column(path, &mut lines, &mut notes)?.map(|lines| (path.to_path_buf(), lines)),
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let of_test = test.iter().flat_map(|(_, lines)| lines);
    let label = |line: &'_ Line| -> Option<String> { line.label.clone() };
    let labels: [Vec<String>; 2] = [lines.iter().filter_map(label).collect(), of_test.filter_map(label).collect()];
    let [train_labels, test_labels] = &labels;
    let classes = Classes::of(folder, train_labels.iter().map(String::as_str), test_labels.iter().map(String::as_str))
        .map_err(|e| Error { message: format!("{}: {}", path.display(), e.message), ..e })?;
    let indices = lines.iter().map(|line| line.label.as_ref().and_then(|label| classes.index(label))).collect();
    let train = FileList::new(path, lines, indices, classes.names.clone(), how);
    let test = match test {
        None => None,
        Some((path, mut lines)) => {
            let fitted = fit(&path, &classes, &test_labels.iter().map(String::as_str).collect::<Vec<_>>());
            notes.extend(fitted.notes);
            let unlabeled = fitted.indices.is_empty();
            let mut indices = if unlabeled { vec![None; lines.len()] } else { fitted.indices };
            if !unlabeled {
                let mut kept = indices.iter().map(Option::is_some);
                lines.retain(|_| kept.next() == Some(true));
                indices.retain(Option::is_some);
            }
            let names = if unlabeled { Vec::new() } else { classes.names.clone() };
            Some(FileList::new(&path, lines, indices, names, how))
        }
    };
    Ok(Some(Splits::of(train, test, notes)))
}

/// The list of the test part beside a list of the training part, where there is one: called as it is but for the part. And a note of
/// those that are not used.
fn beside(path: &Path) -> Result<(Option<PathBuf>, Vec<String>)> {
    let stem = |path: &Path| path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_string();
    let Some((Part::Train, rest)) = parts::read_list(&stem(path)) else { return Ok((None, Vec::new())) };
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let name = entry.map_err(|e| read_error(folder, &e))?.file_name();
        let other = path.with_file_name(&name);
        if let Some((Part::Test { rank }, of)) = parts::read_list(&stem(&other))
            && of == rest
            && is_list(&other)
            && other.is_file()
        {
            found.push((other.extension() != path.extension(), rank, other));
        }
    }
    found.sort();
    let mut found = found.into_iter().map(|found| found.2);
    let (test, others) = (found.next(), found.map(|p| p.display().to_string()).collect::<Vec<_>>());
    let notes = match (&test, others.is_empty()) {
        (Some(test), false) => {
            vec![format!("not used, for the test part is {}: {}", test.display(), super::labels::some(&others))]
        }
        _ => Vec::new(),
    };
    Ok((test, notes))
}

/// Takes the lines of the test part out, where a column names the parts.
fn by_column(path: &Path, lines: &mut Vec<Line>, notes: &mut Vec<String>) -> Result<Option<Vec<Line>>> {
    let mut counts: BTreeMap<Part, usize> = BTreeMap::new();
    lines.iter().filter_map(|line| line.part).for_each(|part| *counts.entry(part).or_default() += 1);
    let tests = counts.iter().filter(|(part, _)| **part != Part::Train);
    let Some((&test, _)) = tests.clone().next() else { return Ok(None) };
    if !counts.contains_key(&Part::Train) {
        return Err(Error::new(format!("{}: no line is of a training part", path.display()))
            .hint("its column of parts holds train, val or the like; leave the column out to train on all lines"));
    }
    let unused: usize = tests.skip(1).map(|(_, n)| n).sum();
    if unused > 0 {
        notes.push(format!("{}: {} of a third part not used", path.display(), counted(unused, "line")));
    }
    let (mut train, mut of_test) = (Vec::new(), Vec::new());
    for line in lines.drain(..) {
        match line.part {
            Some(Part::Train) => train.push(line),
            part if part == Some(test) => of_test.push(line),
            _ => (),
        }
    }
    *lines = train;
    Ok(Some(of_test))
}

/// The text of a list.
pub(super) fn read(path: &Path) -> Result<String> {
    let length = fs::metadata(path).map_err(|e| read_error(path, &e))?.len();
    if length > MAX_LIST {
        return Err(Error::new(format!("{} has {length} bytes", path.display()))
            .hint(format!("lists of up to {} MiB are read", MAX_LIST >> 20)));
    }
    let bytes = fs::read(path).map_err(|e| read_error(path, &e))?;
    text::decoded(bytes).map_err(|line| {
        Error::new(format!("{} line {line} is not UTF-8", path.display()))
            .hint("UTF-8, or UTF-16 with a byte order mark; an editor can save it so")
    })
}

const HINT: &str = "a line is path or path,label (also with tab, semicolon or space), or a table whose first line names the columns, \
                    such as filename,label; a line that begins with # is skipped";

fn lines(path: &Path, text: &str) -> Result<Vec<Line>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let plain = match plain_lines(path, text) {
        Ok(lines) => return Ok(lines),
        Err(e) => e,
    };
    let there = |name: &str| is_image_file(Path::new(name)) && folder.join(name).is_file();
    let table = table::parse(path, text, &there)?;
    match tabled(path, &table) {
        Err(of_table) if !table.header.is_empty() || text.contains(['"', ';']) => Err(of_table),
        Err(_) => Err(plain),
        done => done,
    }
}

/// Checks lines as they come.
struct Checked<'a> {
    path: &'a Path,
    lines: Vec<Line>,
    seen: HashMap<PathBuf, usize>,
}

impl<'a> Checked<'a> {
    fn new(path: &'a Path) -> Checked<'a> {
        Checked { path, lines: Vec::new(), seen: HashMap::new() }
    }

    fn wrong(&self, number: usize, what: &str) -> Error {
        Error::new(format!("{} line {number}: {what}", self.path.display())).hint(HINT)
    }

    /// `id`: the file is named without an ending.
    fn push(&mut self, line: Line, id: bool) -> Result<()> {
        let (number, file) = (line.number, line.file.as_str());
        let wrong = |what: &str| Err(self.wrong(number, what));
        if file.is_empty() {
            return wrong("no path");
        }
        if file.contains("://") {
            return wrong(&format!("{file} is an address: download the images and name the files"));
        }
        if let Some(ending) = unsupported_extension(Path::new(file)) {
            return wrong(&format!("{file} is an image in a format that is not read (.{ending})"));
        }
        if !id && !is_image_file(Path::new(file)) {
            return wrong(&format!("{file} does not have the ending of an image (such as .png, .jpg, .webp, .tif)"));
        }
        if line.label.as_deref() == Some("") {
            return wrong("no label after the path");
        }
        if [Some(&line.file), line.label.as_ref()].into_iter().flatten().any(|cell| cell.contains(['\n', '\r'])) {
            return wrong("a quote is not closed in this line");
        }
        if let Some(first) = self.lines.first()
            && first.label.is_some() != line.label.is_some()
        {
            let has = |yes| if yes { "a label" } else { "no label" };
            let first = format!("line {} has {}", first.number, has(line.label.is_none()));
            return wrong(&format!("{}, but {first}", has(line.label.is_some())));
        }
        // `./a.png` is `a.png`.
        let plain: PathBuf = Path::new(file).components().collect();
        let plain = plain.strip_prefix(".").unwrap_or(&plain).to_path_buf();
        if let Some(before) = self.seen.insert(plain, number) {
            return Err(self.wrong(number, &format!("{} is in line {before} already", line.file)));
        }
        self.lines.push(line);
        Ok(())
    }

    fn done(self) -> Result<Vec<Line>> {
        match self.lines.is_empty() {
            true => Err(Error::new(format!("{} names no file", self.path.display())).hint(HINT)),
            false => Ok(self.lines),
        }
    }
}

/// Lines of a path or a path and a label, with a comma or a tab in between.
fn plain_lines(path: &Path, text: &str) -> Result<Vec<Line>> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut checked = Checked::new(path);
    for (i, line) in text.lines().enumerate() {
        let number = i + 1;
        let line = line.trim();
        let mut fields = line.split(if line.contains('\t') { '\t' } else { ',' }).map(str::trim);
        let (file, label) = (fields.next().unwrap_or_default(), fields.next());
        // An image may be called #8.png.
        let comment = || line.starts_with('#') && !(is_image_file(Path::new(file)) && folder.join(file).is_file());
        if line.is_empty() || comment() {
            continue;
        }
        if line.contains('"') {
            return Err(checked.wrong(number, "a quote"));
        }
        if fields.next().is_some() {
            return Err(checked.wrong(number, "more than a path and a label"));
        }
        let (file, label) = (file.to_string(), label.map(String::from));
        checked.push(Line { number, path: None, file, label, part: None }, false)?;
    }
    let mut lines = checked.done()?;
    let base = Base::of(path, lines.iter().map(|line| line.file.as_str()));
    lines.iter_mut().for_each(|line| line.path = base.path(&line.file));
    Ok(lines)
}

/// Lines of a table.
fn tabled(path: &Path, table: &Table) -> Result<Vec<Line>> {
    if table.rows.is_empty() {
        return Checked::new(path).done();
    }
    let mut base = Base { folders: folders(path), ..Base::of(path, std::iter::empty()) };
    let columns = table.columns(&|cell| base.find(cell).is_some()).map_err(|what| {
        let first = table.rows.first().map_or(String::new(), |row| format!(" line {}", row.number));
        Error::new(format!("{}{first}: {what}", path.display())).hint(HINT)
    })?;
    let cell = |row: &'_ table::Row, column: usize| row.cells.get(column).cloned().unwrap_or_default();
    let files: Vec<String> = table.rows.iter().map(|row| cell(row, columns.path)).collect();
    base = Base::of(path, files.iter().map(String::as_str));
    let id = !files.iter().any(|file| is_image_file(Path::new(file)));
    let mut checked = Checked::new(path);
    for (row, file) in table.rows.iter().zip(files) {
        let label = columns.label.map(|column| table.label(column, &cell(row, column)).to_string());
        let part = columns.part.and_then(|column| parts::of(&cell(row, column)));
        let path = base.path(&file);
        checked.push(Line { number: row.number, file, path, label, part }, id)?;
    }
    checked.done()
}

/// Where the files of a list are stored.
struct Base {
    folder: PathBuf,
    /// Below it, each with a slash at its end or empty; the first that fits is taken.
    folders: Vec<String>,
}

/// Folders in which the images of a list may be stored: its own, that of its part, one called `images`.
fn folders(list: &Path) -> Vec<String> {
    let stem = list.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let folder = list.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter(|e| e.path().is_dir()).filter_map(|e| e.file_name().into_string().ok());
    let rank = |name: &str| match parts::of(name) {
        _ if name == stem => Some(0),
        Some(part) if Some(part) == parts::of_list(stem) => Some(1),
        Some(_) => None,
        None => ["images", "imgs", "img", "pictures", "photos", "data"]
            .iter()
            .position(|known| name.eq_ignore_ascii_case(known))
            .map(|i| i + 2),
    };
    let mut ranked: Vec<(usize, String)> = names.filter_map(|name| Some((rank(&name)?, name))).collect();
    ranked.sort();
    let below = ranked.into_iter().flat_map(|(_, name)| [format!("{name}/"), format!("{name}/images/")]);
    std::iter::once(String::new()).chain(below).collect()
}

impl Base {
    /// The one folder where the first few files are; the list's own if they are nowhere.
    fn of<'a>(list: &Path, files: impl Iterator<Item = &'a str>) -> Base {
        let folder = list.parent().map(Path::to_path_buf).unwrap_or_default();
        let first: Vec<&str> = files.take(10).collect();
        let own = Base { folder, folders: vec![String::new()] };
        if first.is_empty() || first.iter().any(|file| own.find(file).is_some()) {
            return own;
        }
        let at = |below: &String| Base { folder: own.folder.clone(), folders: vec![below.clone()] };
        let fits = folders(list).iter().map(at).find(|base| first.iter().any(|file| base.find(file).is_some()));
        fits.unwrap_or(own)
    }

    /// The path of a file of the list relative to its folder, where it differs from the list's.
    fn path(&self, file: &str) -> Option<String> {
        let as_it_is = self.folders[0].is_empty() && file.is_ascii() && !file.contains('\\');
        if as_it_is && is_image_file(Path::new(file)) {
            return None; // not even searched for: a list may have millions of lines
        }
        let below = || (!self.folders[0].is_empty()).then(|| format!("{}{file}", self.folders[0]));
        self.find(file).or_else(below).filter(|path| path != file)
    }

    /// The path of a file that is there, relative to the list's folder: with slashes for backslashes, composed or decomposed, with an
    /// ending that the list leaves out.
    fn find(&self, file: &str) -> Option<String> {
        if file.is_empty() {
            return None;
        }
        let endings = || LEFT_OUT.iter().map(|ending| format!(".{ending}"));
        let endings: Vec<String> = match is_image_file(Path::new(file)) {
            true => vec![String::new()],
            false => endings().collect(),
        };
        for below in &self.folders {
            for ending in &endings {
                let path = format!("{below}{file}{ending}");
                let slashes = path.replace('\\', "/");
                let forms = [text::composed(&slashes).into_owned(), text::decomposed(&slashes)];
                let there = |path: &String| self.folder.join(path).is_file();
                if let Some(found) = [path, slashes].into_iter().chain(forms).find(there) {
                    return Some(found);
                }
            }
        }
        None
    }
}

impl FileList {
    fn new(path: &Path, lines: Vec<Line>, indices: Vec<Option<u32>>, classes: Vec<String>, how: Decode) -> FileList {
        let file = |(line, label): (Line, Option<u32>)| File { name: line.file, path: line.path, label };
        let folder = path.parent().map(Path::to_path_buf).unwrap_or_default();
        FileList { folder, files: lines.into_iter().zip(indices).map(file).collect(), classes, how }
    }
}

impl Dataset for FileList {
    fn len(&self) -> usize {
        self.files.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        let file = &self.files[i];
        decode(&self.folder.join(file.path.as_ref().unwrap_or(&file.name)), self.how)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.files[i].label
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// The path as the list has it.
    fn name(&self, i: usize) -> String {
        self.files[i].name.clone()
    }
    fn path(&self, i: usize) -> Option<PathBuf> {
        let file = &self.files[i];
        Some(self.folder.join(file.path.as_ref().unwrap_or(&file.name)))
    }
    /// Names and labels; neither the files' sizes nor the pixels are read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        self.classes.iter().for_each(|class| hash.text(class));
        for file in &self.files {
            hash.text(&file.name);
            hash.number(file.label.map_or(u64::MAX, u64::from));
        }
        hash.hex()
    }
}

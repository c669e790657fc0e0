//! Lists of images as spreadsheets, pandas, Kaggle and Hugging Face write them: which column is the path, which the label.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::parts;
use crate::error::{Error, Result};
use crate::image::is_image_file;

/// Rows of cells, and the names of the columns where the first line has them.
pub(super) struct Table {
    /// Empty where there is no line of names.
    pub header: Vec<String>,
    pub rows: Vec<Row>,
}

/// A line of a table.
pub(super) struct Row {
    /// Counted from 1.
    pub number: usize,
    pub cells: Vec<String>,
}

/// The columns that matter.
pub(super) struct Columns {
    pub path: usize,
    pub label: Option<usize>,
    /// Gives the part of every row.
    pub part: Option<usize>,
}

/// Names of columns, the surest first, without all but letters and digits.
const PATHS: [&str; 22] = [
    "filename",
    "filepath",
    "imagepath",
    "imgpath",
    "path",
    "file",
    "files",
    "imagename",
    "imgname",
    "imagefile",
    "imagefilename",
    "fname",
    "image",
    "images",
    "img",
    "picture",
    "photo",
    "imageid",
    "imgid",
    "fileid",
    "name",
    "id",
];
const LABELS: [&str; 24] = [
    "label",
    "labels",
    "class",
    "classes",
    "classname",
    "classlabel",
    "classid",
    "labelname",
    "labelid",
    "category",
    "categories",
    "categoryname",
    "categoryid",
    "target",
    "targets",
    "y",
    "gt",
    "groundtruth",
    "species",
    "breed",
    "wnid",
    "synset",
    "taxon",
    "predictionstring",
];
const PARTS: [&str; 7] = ["split", "set", "subset", "partition", "phase", "part", "fold"];
/// Columns that are text about an image, not its class.
const PROSE: [&str; 8] = ["text", "caption", "captions", "description", "prompt", "url", "title", "comment"];

fn plain(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn names_image(cell: &str) -> bool {
    is_image_file(Path::new(cell))
}

/// The cells of a list. `there`: whether a file of that name is stored beside the list (lines that begin with `#` are comments but for
/// such ones). Errors name the line.
pub(super) fn parse(path: &Path, text: &str, there: &dyn Fn(&str) -> bool) -> Result<Table> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl")) {
        return objects(path, text);
    }
    let comment = |line: &str| line.starts_with('#') && !there(line) && !separated(line, there);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty() && !comment(l)).take(50).collect();
    let mut rows = match delimiter(&lines) {
        Some(delimiter) => delimited(path, text, delimiter)?,
        None => text.lines().enumerate().map(|(i, line)| Row { number: i + 1, cells: spaced(line.trim()) }).collect(),
    };
    rows.retain(|row| {
        let first = row.cells.first().map_or("", String::as_str);
        row.cells.iter().any(|cell| !cell.is_empty()) && (!first.starts_with('#') || there(first))
    });
    let mut table = Table { header: Vec::new(), rows };
    if let [first, rest @ ..] = table.rows.as_slice() {
        let known = |cell: &String| PATHS.contains(&plain(cell).as_str()) || LABELS.contains(&plain(cell).as_str());
        let with_image = |row: &Row| row.cells.iter().any(|cell| names_image(cell));
        let names = !with_image(first) && (first.cells.iter().any(known) || rest.first().is_some_and(with_image));
        if names {
            table.header = table.rows.remove(0).cells;
        }
    }
    Ok(table)
}

/// Whether the line is an image's name that begins with `#`, and more.
fn separated(line: &str, there: &dyn Fn(&str) -> bool) -> bool {
    let end = line.find(['\t', ',', ';']).or_else(|| line.rfind(char::is_whitespace));
    end.is_some_and(|end| there(line[..end].trim()))
}

/// What separates the cells: of those that the first line has the one that leaves images' names and that all lines have equally
/// often; `None`: spaces, or nothing.
fn delimiter(lines: &[&str]) -> Option<u8> {
    let cells = |line: &str, delimiter: char| -> Vec<String> {
        let mut quoted = false;
        let split = |c: char| {
            quoted ^= c == '"';
            c == delimiter && !quoted
        };
        line.split(split).map(|cell| cell.trim().trim_matches('"').to_string()).collect()
    };
    let known = ['\t', ',', ';', '|'];
    let first = |d: &&char| lines.first().is_some_and(|line| cells(line, **d).len() > 1);
    let even = |d: char| lines.iter().map(|line| cells(line, d).len()).collect::<HashSet<_>>().len() == 1;
    let names = |d: char| lines.iter().any(|line| cells(line, d).iter().any(|cell| names_image(cell)));
    // Among equals the first; `max_by_key` gives the last.
    let best = known.iter().filter(first).rev().max_by_key(|d| (names(**d), even(**d)));
    best.map(|d| *d as u8)
}

fn delimited(path: &Path, text: &str, delimiter: u8) -> Result<Vec<Row>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .trim(csv::Trim::All)
        .from_reader(text.as_bytes());
    let open = text.matches('"').count() % 2 == 1;
    let row = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(|e| Error::new(format!("{}: {e}", path.display())).hint("a table of cells"))?;
        let number = record.position().map_or(0, |at| at.line() as usize);
        let cells: Vec<String> = record.iter().map(String::from).collect();
        // The reader takes all that follows an open quote for one cell.
        match open && cells.iter().any(|cell| cell.contains('\n')) {
            true => Err(Error::new(format!("{} line {number}: a quote is not closed", path.display()))
                .hint("a quote within a quoted cell is written twice")),
            false => Ok(Row { number, cells }),
        }
    };
    reader.records().map(row).collect()
}

/// Cells with spaces between them, as Caffe has them; a path may have spaces as well.
fn spaced(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let unquoted = |text: &str| text.trim().trim_matches('"').to_string();
    match line.rsplit_once(char::is_whitespace) {
        _ if names_image(line) && words.iter().filter(|word| names_image(word)).count() == 1 => vec![unquoted(line)],
        Some((path, label))
            if words.len() > 2 && !names_image(words[0]) && names_image(path.trim().trim_matches('"')) =>
        {
            vec![unquoted(path), unquoted(label)]
        }
        _ => words.into_iter().map(unquoted).collect(),
    }
}

/// Lines of JSON objects, as `metadata.jsonl` has them: keys are columns.
fn objects(path: &Path, text: &str) -> Result<Table> {
    let mut header: Vec<String> = Vec::new();
    let mut columns: HashMap<String, usize> = HashMap::new();
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).map_err(|e| {
            Error::new(format!("{} line {}: {e}", path.display(), i + 1))
                .hint("a line is an object, such as {\"file_name\": \"1.png\", \"label\": 3}")
        })?;
        let mut cells = vec![String::new(); header.len()];
        for (key, value) in object {
            let column = *columns.entry(key.clone()).or_insert_with(|| {
                header.push(key);
                header.len() - 1
            });
            cells.resize(header.len(), String::new());
            cells[column] = match value {
                serde_json::Value::String(text) => text,
                serde_json::Value::Null | serde_json::Value::Array(_) | serde_json::Value::Object(_) => String::new(),
                other => other.to_string(),
            };
        }
        rows.push(Row { number: i + 1, cells });
    }
    let width = header.len();
    rows.iter_mut().for_each(|row| row.cells.resize(width, String::new()));
    Ok(Table { header, rows })
}

impl Table {
    /// What a column is called.
    fn called(&self, column: usize) -> String {
        match self.header.get(column).filter(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => format!("number {}", column + 1),
        }
    }

    /// The cells of a column.
    pub fn column(&self, column: usize) -> impl Iterator<Item = &str> {
        self.rows.iter().map(move |row| row.cells.get(column).map_or("", String::as_str))
    }

    /// Which column is what. `found`: whether a cell leads to an image that is there.
    ///
    /// # Errors
    /// No column, or more than one, may be the path or the label.
    pub fn columns(&self, found: &dyn Fn(&str) -> bool) -> std::result::Result<Columns, String> {
        let width = self.rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let names: Vec<String> = (0..width).map(|c| self.header.get(c).map_or(String::new(), |n| plain(n))).collect();
        let rank = |known: &[&str], c: usize| known.iter().position(|name| *name == names[c]);
        let path = self.path_column(width, &|c| rank(&PATHS, c), found)?;
        let part = (0..width)
            .find(|&c| c != path && rank(&PARTS, c).is_some() && self.column(c).all(|cell| parts::of(cell).is_some()));
        let rest: Vec<usize> = (0..width).filter(|&c| c != path && Some(c) != part && !self.counts(c)).collect();
        let known: Vec<usize> = rest.iter().copied().filter(|&c| rank(&LABELS, c).is_some()).collect();
        let other = |c: &usize| rank(&PATHS, *c).is_none() && rank(&PARTS, *c).is_none() && rank(&PROSE, *c).is_none();
        let by_name = !known.is_empty();
        let candidates = match known.is_empty() {
            true => rest.into_iter().filter(other).filter(|&c| self.column(c).any(|cell| !cell.is_empty())).collect(),
            false => known,
        };
        let label = match candidates.as_slice() {
            [] => None,
            [one] => Some(*one),
            // A number and a name of the same classes: the name.
            [first, ..] if by_name && candidates.iter().all(|&c| self.agree(*first, c)) => {
                let number = |c: usize| self.column(c).all(|cell| cell.bytes().all(|b| b.is_ascii_digit()));
                candidates.iter().copied().find(|&c| !number(c)).or(Some(*first))
            }
            several => {
                let called: Vec<String> = several.iter().map(|&c| self.called(c)).collect();
                return Err(format!("which column is the label: {}?", called.join(", ")));
            }
        };
        Ok(Columns { path, label, part })
    }

    fn path_column(
        &self,
        width: usize,
        known: &dyn Fn(usize) -> Option<usize>,
        found: &dyn Fn(&str) -> bool,
    ) -> std::result::Result<usize, String> {
        let named = |c: usize| self.column(c).all(names_image);
        let leads = |c: usize| self.column(c).take(10).any(|cell| !cell.is_empty() && found(cell));
        // Columns of images' names, then such in which an image's name is missing here and there, then those that lead to files.
        let some = |c: usize| self.column(c).any(names_image);
        let tests: [&dyn Fn(usize) -> bool; 3] = [&named, &some, &leads];
        for test in tests {
            let candidates: Vec<usize> = (0..width).filter(|&c| test(c)).collect();
            let best = candidates.iter().copied().filter(|&c| known(c).is_some()).min_by_key(|&c| known(c));
            match (candidates.as_slice(), best) {
                ([], _) => continue,
                ([one], _) => return Ok(*one),
                (_, Some(best)) => return Ok(best),
                (several, None) => {
                    let called: Vec<String> = several.iter().map(|&c| self.called(c)).collect();
                    return Err(format!("which column is the path: {}?", called.join(", ")));
                }
            }
        }
        match (0..width).filter(|&c| known(c).is_some()).min_by_key(|&c| known(c)) {
            Some(c) => Err(format!(
                "the column {} leads to no image: {} is not there, and does not have the ending of one either",
                self.called(c),
                self.column(c).next().unwrap_or_default()
            )),
            None => Err("no column holds names of images".into()),
        }
    }

    /// Whether the first column numbers the rows, as pandas' index does: under no name of its own, or, in a table without names, by
    /// counting them.
    fn counts(&self, column: usize) -> bool {
        let called = self.header.get(column).map_or(String::new(), |name| plain(name));
        let numbers = || self.column(column).all(|cell| cell.parse::<u64>().is_ok());
        let from = |start: usize| self.column(column).enumerate().all(|(i, cell)| cell.parse() == Ok(i + start));
        match self.header.is_empty() {
            true => column == 0 && self.rows.len() > 1 && (from(0) || from(1)),
            false => {
                column == 0 && (called.is_empty() || called.starts_with("unnamed") || called == "index") && numbers()
            }
        }
    }

    /// Whether two columns distinguish the same rows.
    fn agree(&self, a: usize, b: usize) -> bool {
        let (mut to, mut from) = (HashMap::new(), HashMap::new());
        self.column(a)
            .zip(self.column(b))
            .all(|(x, y)| *to.entry(x).or_insert(y) == y && *from.entry(y).or_insert(x) == x)
    }

    /// The class that a cell of a label column names: of ImageNet's `PredictionString` (a class and a box, repeated) the first word.
    pub fn label<'a>(&self, column: usize, cell: &'a str) -> &'a str {
        let first = self.header.get(column).is_some_and(|name| plain(name) == "predictionstring");
        if first { cell.split_whitespace().next().unwrap_or("") } else { cell }
    }
}

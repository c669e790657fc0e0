//! Parquet tables with a column of images, as Hugging Face keeps them: a struct of `bytes` (a PNG or JPEG file) and `path`, or the
//! bytes alone; and perhaps a column of labels, whose names are in the table's metadata.
//!
//! Rows are stored in groups, which are read in full, a few at a time. Plain and Snappy-compressed columns are read.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use parquet::basic::{Compression, ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, DataType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;
use rayon::prelude::*;

use super::cache::{Cache, Size, UNPACKED};
use super::fingerprint::Fnv;
use super::labels::{MAX_CLASSES, Numbered, numbered};
use super::{Dataset, Shards, Splits, part_files};
use crate::error::{Error, Result};
use crate::image::limits::MAX_BYTES;
use crate::image::{Decode, Image, decode_bytes, guarded};
use crate::io::read_error;

/// Columns of labels, the first of these that a table has; names that the metadata gives classes for come before.
const LABELS: [&str; 8] = ["label", "labels", "fine_label", "class", "target", "category", "class_label", "y"];
/// The same for images.
const IMAGES: [&str; 4] = ["image", "img", "picture", "jpg"];

/// A file of rows.
struct Table {
    path: PathBuf,
    /// The file's name without its ending.
    name: String,
    /// Which column the images are in.
    column: usize,
    /// Of every row group: rows, and bytes of the images' column unpacked.
    groups: Vec<Size>,
    labels: Labels,
    /// The columns of the images and of the labels, and others that could be either.
    image: String,
    label: Option<String>,
    passed: Vec<String>,
    names: Vec<String>,
}

/// The labels of a file's rows; none where a row has none.
enum Labels {
    Missing,
    Numbers(Vec<Option<i64>>),
    Texts(Vec<Option<String>>),
}

/// The rows of some files, in the files' order by name.
struct Tables {
    tables: Vec<Table>,
    /// Of every row group: its table, and its number there.
    groups: Vec<(usize, usize)>,
    /// The first row of every group, and at the end the number of rows.
    starts: Vec<usize>,
    /// The first row of every table.
    firsts: Vec<usize>,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
    how: Decode,
    together: usize,
    kept: Cache<Vec<Option<ByteArray>>>,
}

/// `None` when the folder has no such files, neither directly nor in folders that are called as parts, nor all of this in `data/` or
/// in the one folder that has any (Hugging Face's configurations). Errors: several folders have.
pub(super) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let mut folders = vec![folder.to_path_buf(), folder.join("data")];
    let mut below = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))?.flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("data") && !files(&path).unwrap_or_default().is_empty() {
            below.push(path);
        }
    }
    below.sort();
    folders.extend(below.first().cloned());
    for here in folders.iter().filter(|folder| folder.is_dir()) {
        let Some(parts) = part_files::find(here, "parquet files", &files, &stem)? else { continue };
        if let ([first, second, ..], true) = (&below[..], below.contains(here)) {
            let both = format!("{} and {}", first.display(), second.display());
            return Err(Error::new(format!("{both} are several sets")).hint("pass one of the folders"));
        }
        return of_parts(here, parts.train, parts.test, parts.notes, how).map(Some);
    }
    Ok(None)
}

/// `None` when the name ends otherwise. The test part is what is stored beside it under the name of one.
pub(super) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    if !is_table(path) {
        return Ok(None);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (test, notes) = part_files::beside(path, files(folder)?, &stem);
    of_parts(folder, vec![path.to_path_buf()], test, notes, how).map(Some)
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet"))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let path = entry.map_err(|e| read_error(folder, &e))?.path();
        if is_table(&path) && !stem(&path).starts_with('.') && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn of_parts(
    folder: &Path,
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
    mut notes: Vec<String>,
    how: Decode,
) -> Result<Splits> {
    part_files::apart(&train, &test)?;
    let read = |paths: Vec<PathBuf>| paths.into_par_iter().map(|p| Table::read(&p)).collect::<Result<Vec<_>>>();
    let (mut train, mut test) = (read(train)?, read(test)?);
    let named = train.iter().find(|t| !t.names.is_empty());
    if let Some(table) = train.iter().find(|t| !t.passed.is_empty()) {
        let used = table.label.as_ref().map_or(table.image.clone(), |label| format!("{} and {label}", table.image));
        notes.push(format!("images and labels are those of the columns {used}; not used: {}", table.passed.join(", ")));
    }
    let part = |tables: &[Table]| tables.iter().any(|t| t.has_labels());
    // Labels that were kept back (-1 or null in every row) are no labels.
    let (with_train, mut with_test) = (part(&train), part(&test));
    if with_train && !test.is_empty() && !with_test {
        notes.push(format!("{} and its like have no labels: a test part without labels", test[0].path.display()));
    }
    if with_test && !with_train {
        notes.push(format!("the labels of {} are not used: the training part has none", test[0].path.display()));
    }
    let mut classes = named.map_or(Vec::new(), |t| t.names.clone());
    if with_train && classes.is_empty() {
        classes = match train.iter().flat_map(|t| t.texts()).flatten().map(String::from).collect::<Vec<_>>() {
            texts if texts.is_empty() => {
                let numbers = train.iter().chain(&test).flat_map(|t| t.numbers());
                let mut occurring: Vec<u64> = numbers.flatten().map(|n| n as u64).collect();
                occurring.sort_unstable();
                occurring.dedup();
                let classes = numbered(&[folder], &occurring)?;
                train.iter_mut().chain(&mut test).for_each(|table| table.renumber(&classes));
                classes.names
            }
            mut texts => {
                texts.sort();
                texts.dedup();
                texts
            }
        };
    }
    if with_train
        && with_test
        && let Some(e) = test.iter().find_map(|t| t.classes(&classes).err())
    {
        notes.push(format!("{}: a test part without labels", e.message));
        with_test = false;
    }
    let train = Tables::new(train, with_train.then_some(&classes[..]), how)?;
    let test = match test.is_empty() {
        true => None,
        false => Some(Tables::new(test, (with_train && with_test).then_some(&classes[..]), how)?),
    };
    Ok(Splits::of(train, test, notes))
}

fn failed(path: &Path, error: &ParquetError) -> Error {
    Error::new(format!("cannot read {}: {error}", path.display()))
        .hint("is it a parquet file, and complete? Copy or download it again")
}

fn open_table(path: &Path) -> Result<SerializedFileReader<File>> {
    let file = File::open(path).map_err(|e| read_error(path, &e))?;
    SerializedFileReader::new(file).map_err(|e| failed(path, &e))
}

/// Text, and not bytes of any kind.
fn is_text(column: &ColumnDescriptor) -> bool {
    column.converted_type() == ConvertedType::UTF8 || matches!(column.logical_type_ref(), Some(LogicalType::String))
}

impl Table {
    /// Reads the footer and the labels; no image.
    ///
    /// Errors: no such file or a truncated one; no column of images, or several; an unsupported compression.
    fn read(path: &Path) -> Result<Table> {
        guarded(path, || Table::read_unguarded(path))
    }

    fn read_unguarded(path: &Path) -> Result<Table> {
        let reader = open_table(path)?;
        let metadata = reader.metadata();
        let schema = metadata.file_metadata().schema_descr();
        let parts = |i: usize| schema.column(i).path().parts().to_vec();
        let flat: Vec<usize> = (0..schema.num_columns()).filter(|&i| schema.column(i).max_rep_level() == 0).collect();
        let binary = |i: &&usize| schema.column(**i).physical_type() == Physical::BYTE_ARRAY;
        let structs = |i: &&usize| binary(i) && matches!(&parts(**i)[..], [_, bytes] if bytes == "bytes");
        let plain = |i: &&usize| binary(i) && parts(**i).len() == 1 && !is_text(&schema.column(**i));
        let mut found: Vec<usize> = flat.iter().filter(structs).copied().collect();
        if found.is_empty() {
            found = flat.iter().filter(plain).copied().collect();
        }
        let usual = IMAGES.iter().find_map(|name| found.iter().find(|&&i| parts(i)[0].eq_ignore_ascii_case(name)));
        let column = match (usual, &found[..]) {
            (Some(&usual), _) => usual,
            (None, [one]) => *one,
            (None, []) => {
                let names = (0..schema.num_columns()).map(|i| parts(i).join(".")).collect::<Vec<_>>().join(", ");
                return Err(Error::new(format!("{} has no column of images, but {names}", path.display())).hint(
                    "images are a struct of bytes and path, as Hugging Face keeps them, or a column of binary values",
                ));
            }
            (None, [a, b, ..]) => {
                return Err(Error::new(format!(
                    "{}: the columns {} and {} may both be the images",
                    path.display(),
                    parts(*a)[0],
                    parts(*b)[0]
                ))
                .hint("call the one that is meant `image`"));
            }
        };
        let known = class_names(metadata.file_metadata().key_value_metadata().into_iter().flatten());
        let number = |i: usize| matches!(schema.column(i).physical_type(), Physical::INT32 | Physical::INT64);
        let text = |i: usize| schema.column(i).physical_type() == Physical::BYTE_ARRAY && is_text(&schema.column(i));
        let of_label = |i: &&usize| parts(**i).len() == 1 && (number(**i) || text(**i));
        let rank = |i: usize| {
            let name = &parts(i)[0];
            let usual = LABELS.iter().position(|label| name.eq_ignore_ascii_case(label));
            let described = known.iter().any(|(column, _)| column == name);
            (described || usual.is_some()).then(|| (usual.is_none(), !described, usual))
        };
        let mut labels: Vec<usize> = flat.iter().filter(of_label).copied().filter(|&i| rank(i).is_some()).collect();
        labels.sort_by_key(|&i| (rank(i), i));
        let label = labels.first().copied();
        let name = |i: usize| parts(i)[0].clone();
        let mut table = Table {
            path: path.to_path_buf(),
            name: stem(path),
            column,
            groups: Vec::new(),
            labels: Labels::Missing,
            label: label.map(name),
            image: name(column),
            passed: found.iter().filter(|&&i| i != column).chain(labels.iter().skip(1)).map(|&i| name(i)).collect(),
            names: label.and_then(|i| known.into_iter().find(|(column, _)| *column == name(i))).map_or(vec![], |k| k.1),
        };
        let length = fs::metadata(path).map_err(|e| read_error(path, &e))?.len();
        let wrong =
            |what: String| Error::new(format!("{} {what}", path.display())).hint("is it complete? Copy it again");
        let mut rows = 0u64;
        for group in metadata.row_groups() {
            let images = group.column(column);
            for chunk in [Some(images), label.map(|i| group.column(i))].into_iter().flatten() {
                if !matches!(chunk.compression(), Compression::UNCOMPRESSED | Compression::SNAPPY) {
                    return Err(Error::new(format!(
                        "{}: the column {} is compressed as {}",
                        path.display(),
                        chunk.column_path().string(),
                        chunk.compression()
                    ))
                    .hint("plain and Snappy columns are read: pyarrow.parquet.write_table(table, path, compression='snappy')"));
                }
            }
            let size = u64::try_from(group.num_rows()).ok().zip(u64::try_from(images.uncompressed_size()).ok());
            let Some((count, bytes)) = size.filter(|size| size.1 <= UNPACKED) else {
                return Err(Error::new(format!(
                    "{} has a group of rows of {} bytes",
                    path.display(),
                    images.uncompressed_size()
                ))
                .hint(format!(
                    "groups of up to {} GiB are read: write it with a smaller row_group_size",
                    UNPACKED >> 30
                )));
            };
            rows = rows.saturating_add(count);
            // An image takes a byte at least: nothing is allocated for rows that cannot be there.
            if rows > length || images.num_values() != group.num_rows() {
                return Err(wrong(format!("claims {rows} rows in {length} bytes")));
            }
            table.groups.push(Size { images: count as usize, bytes });
        }
        if rows == 0 {
            return Err(wrong("has no rows".into()));
        }
        if let Some(label) = label {
            table.labels = if number(label) { Labels::Numbers(Vec::new()) } else { Labels::Texts(Vec::new()) };
            table.read_labels(&reader, label)?;
        }
        Ok(table)
    }

    /// Reads the column `label` of all groups.
    fn read_labels(&mut self, reader: &SerializedFileReader<File>, label: usize) -> Result<()> {
        let path = &self.path;
        for (g, size) in self.groups.iter().enumerate() {
            let group = reader.get_row_group(g).map_err(|e| failed(path, &e))?;
            let column = group.get_column_reader(label).map_err(|e| failed(path, &e))?;
            let read = match (&mut self.labels, column) {
                (Labels::Numbers(labels), ColumnReader::Int32ColumnReader(mut column)) => {
                    values(&mut column, size.images).map(|new| labels.extend(new.into_iter().map(|x| x.map(i64::from))))
                }
                (Labels::Numbers(labels), ColumnReader::Int64ColumnReader(mut column)) => {
                    values(&mut column, size.images).map(|new| labels.extend(new))
                }
                (Labels::Texts(labels), ColumnReader::ByteArrayColumnReader(mut column)) => {
                    values(&mut column, size.images).map(|new| {
                        let text = |x: ByteArray| String::from_utf8_lossy(x.data()).into_owned();
                        labels.extend(new.into_iter().map(|x| x.map(text)))
                    })
                }
                _ => Err(ParquetError::General("a column changes its type".into())),
            };
            read.map_err(|e| failed(path, &e))?;
        }
        Ok(())
    }

    /// Its numbers of classes; those below 0 mean none.
    fn numbers(&self) -> impl Iterator<Item = Option<i64>> {
        let numbers = if let Labels::Numbers(numbers) = &self.labels { &numbers[..] } else { &[] };
        numbers.iter().map(|n| n.filter(|n| *n >= 0))
    }

    /// Makes them indices of the classes.
    fn renumber(&mut self, classes: &Numbered) {
        if let Labels::Numbers(numbers) = &mut self.labels {
            for n in numbers.iter_mut().flatten().filter(|n| **n >= 0) {
                *n = classes.index(*n as u64).map_or(*n, i64::from);
            }
        }
    }

    fn texts(&self) -> impl Iterator<Item = Option<&str>> {
        let texts = if let Labels::Texts(texts) = &self.labels { &texts[..] } else { &[] };
        texts.iter().map(|t| t.as_deref())
    }

    fn has_labels(&self) -> bool {
        self.numbers().any(|n| n.is_some()) || self.texts().any(|t| t.is_some())
    }

    /// The class of every row.
    fn classes(&self, names: &[String]) -> Result<Vec<u32>> {
        let rows: usize = self.groups.iter().map(|g| g.images).sum();
        let wrong = |row: usize, what: String| {
            Error::new(format!("{} row {row} {what}", self.path.display())).hint(format!(
                "every row of a labeled set has one of its {} classes in the column {}",
                names.len(),
                self.label.as_deref().unwrap_or("label")
            ))
        };
        let by_name: HashMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let numbers = self.numbers().enumerate().map(|(row, n)| match n {
            Some(n) if (n as usize) < names.len().min(MAX_CLASSES) => Ok(n as u32),
            Some(n) => Err(wrong(row, format!("has label {n}"))),
            None => Err(wrong(row, "has no label".into())),
        });
        let texts = self.texts().enumerate().map(|(row, text)| match text {
            Some(text) => match by_name.get(text) {
                Some(&class) => Ok(class as u32),
                None => Err(wrong(row, format!("has the class {text}, which the training part has not"))),
            },
            None => Err(wrong(row, "has no label".into())),
        });
        let labels: Vec<u32> = numbers.chain(texts).collect::<Result<_>>()?;
        match labels.len() == rows {
            true => Ok(labels),
            false => Err(wrong(labels.len(), "has no label".into())),
        }
    }

    /// The images of a group of rows.
    fn images(&self, group: usize) -> Result<Vec<Option<ByteArray>>> {
        guarded(&self.path, || {
            let reader = open_table(&self.path)?;
            let rows = self.groups[group].images;
            let read = || {
                let ColumnReader::ByteArrayColumnReader(mut column) =
                    reader.get_row_group(group)?.get_column_reader(self.column)?
                else {
                    return Err(ParquetError::General("it has changed".into()));
                };
                values(&mut column, rows)
            };
            read().map_err(|e| failed(&self.path, &e))
        })
    }
}

/// As many values of a column, nothing where one is null.
fn values<T: DataType>(
    column: &mut ColumnReaderImpl<T>,
    rows: usize,
) -> std::result::Result<Vec<Option<T::T>>, ParquetError> {
    let (mut levels, mut values, mut done) = (Vec::new(), Vec::new(), 0);
    while done < rows {
        match column.read_records(rows - done, Some(&mut levels), None, &mut values)?.0 {
            0 => return Err(ParquetError::EOF(format!("{done} of {rows} rows are there"))),
            n => done += n,
        }
    }
    if levels.is_empty() {
        return Ok(values.into_iter().map(Some).collect());
    }
    // A value that is there has the highest level; there are as many as values.
    let highest = levels.iter().copied().max().unwrap_or(0);
    if levels.iter().filter(|level| **level == highest).count() != values.len() {
        return Ok(levels.into_iter().map(|_| None).collect());
    }
    let mut values = values.into_iter();
    Ok(levels.into_iter().map(|level| if level == highest { values.next() } else { None }).collect())
}

/// The class names in the metadata that Hugging Face's `datasets` writes, by column.
fn class_names<'a>(entries: impl Iterator<Item = &'a parquet::file::metadata::KeyValue>) -> Vec<(String, Vec<String>)> {
    let text = entries.filter(|entry| entry.key == "huggingface").find_map(|entry| entry.value.as_deref());
    let json: serde_json::Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let mut found = Vec::new();
    for (column, feature) in json["info"]["features"].as_object().into_iter().flatten() {
        let names = feature["names"].as_array().filter(|_| feature["_type"] == "ClassLabel");
        let names: Option<Vec<String>> =
            names.and_then(|names| names.iter().map(|name| name.as_str().map(String::from)).collect());
        found.extend(names.filter(|names| !names.is_empty()).map(|names| (column.clone(), names)));
    }
    found
}

impl Tables {
    /// `classes`: their names, where rows have labels.
    fn new(tables: Vec<Table>, classes: Option<&[String]>, how: Decode) -> Result<Tables> {
        let (mut groups, mut starts, mut firsts, mut labels) = (Vec::new(), vec![0], Vec::new(), Vec::new());
        let mut largest = 1;
        for (t, table) in tables.iter().enumerate() {
            firsts.push(*starts.last().unwrap_or(&0));
            for (g, size) in table.groups.iter().enumerate() {
                groups.push((t, g));
                starts.push(starts.last().unwrap_or(&0) + size.images);
                largest = largest.max(size.bytes);
            }
            if let Some(names) = classes {
                labels.extend(table.classes(names)?);
            }
        }
        Ok(Tables {
            tables,
            groups,
            starts,
            firsts,
            labels: classes.map(|_| labels),
            classes: classes.unwrap_or_default().to_vec(),
            how,
            together: (UNPACKED / largest).max(1) as usize,
            // Groups are often of a hundred rows, and there may be many within a buffer: what is kept is bounded by images and bytes.
            kept: Cache::new(2),
        })
    }

    fn table_of(&self, i: usize) -> usize {
        self.firsts.partition_point(|&first| first <= i) - 1
    }
}

impl Dataset for Tables {
    fn len(&self) -> usize {
        *self.starts.last().unwrap_or(&0)
    }
    fn image(&self, i: usize) -> Result<Image> {
        let at = self.starts.partition_point(|&start| start <= i) - 1;
        let (table, group) = self.groups[at];
        let table = &self.tables[table];
        let content = self.kept.get(at, table.groups[group], || table.images(group));
        let images = content.get().expect("it was just made").as_ref().map_err(Clone::clone)?;
        let path = table.path.join(format!("{:06}", i - self.firsts[self.groups[at].0]));
        let Some(image) = &images[i - self.starts[at]] else {
            return Err(Error::new(format!("{} has no bytes", path.display()))
                .hint("a table that only names its images is not read: embed them, as push_to_hub does"));
        };
        if image.len() as u64 > MAX_BYTES {
            return Err(Error::new(format!("{} has {} bytes", path.display(), image.len()))
                .hint(format!("files of up to {MAX_BYTES} bytes are read")));
        }
        decode_bytes(&path, image.data(), self.how)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[i])
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// File and row, as in `train-00000-of-00002/000042`.
    fn name(&self, i: usize) -> String {
        let table = self.table_of(i);
        format!("{}/{:06}", self.tables[table].name, i - self.firsts[table])
    }
    fn shards(&self) -> Option<Shards> {
        Some(Shards { starts: self.starts.clone(), together: self.together })
    }
    /// Names of files, labels, and the sizes of row groups; the pixels are not read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        self.classes.iter().for_each(|class| hash.text(class));
        for table in &self.tables {
            hash.text(&table.name);
            for group in &table.groups {
                hash.number(group.images as u64);
                hash.number(group.bytes);
            }
        }
        self.labels.iter().flatten().for_each(|&label| hash.number(u64::from(label)));
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn every_group_of_rows_is_read_once_an_epoch() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/tables/hub/data");
        let tables = (0..2).map(|i| Table::read(&folder.join(format!("train-0000{i}-of-00002.parquet"))).unwrap());
        let set = Tables::new(tables.collect(), None, Decode::default()).unwrap();
        let order = set.order(1, 0);
        assert_eq!(order.len(), 11);
        order.par_iter().for_each(|&i| drop(set.image(i as usize).unwrap()));
        assert_eq!(set.kept.made.load(Ordering::Relaxed), 5);
    }
}

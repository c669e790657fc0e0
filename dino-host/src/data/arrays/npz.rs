//! NumPy's arrays: an `.npz` archive (MedMNIST's `train_images`, `train_labels`, ..., Keras's `x_train`, `y_train`, ...), or `.npy`
//! files of such names.
//!
//! A word of an array's name tells its part. In every part there is one array of images: unsigned bytes, (n, height, width),
//! (n, height, width, channels) or (n, channels, height, width), where the axis of 1, 3, 4 or `--channels` values is that of the
//! channels; and perhaps one of labels, integers, (n) or (n, 1). Arrays are read into memory in full.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::read::{ArchiveOffset, Config};

use super::{Arrays, Layout, MAX_ARRAY, check_dims, splits};
use crate::data::Splits;
use crate::data::labels::MAX_CLASSES;
use crate::data::parts::{self, Part};
use crate::error::{Error, Result};
use crate::image::Decode;
use crate::io::read_error;

/// Largest header: it is a short text.
const MAX_HEADER: u64 = 1 << 16;
/// Words of the names of arrays of images and of labels.
const IMAGES: [&str; 8] = ["images", "image", "imgs", "img", "x", "data", "pixels", "arr"];
const LABELS: [&str; 7] = ["labels", "label", "y", "targets", "target", "lbls", "classes"];

/// What an array is, from its header.
struct Array {
    /// The file, or the archive and the array's index in it.
    path: PathBuf,
    entry: Option<usize>,
    name: String,
    part: Option<Part>,
    /// Of the name, without the part, in small letters.
    words: Vec<String>,
    kind: Kind,
    shape: Vec<usize>,
}

/// The type of the elements.
struct Kind {
    /// As NumPy writes it: byte order, letter, bytes.
    text: String,
    fortran: bool,
}

impl Kind {
    /// Letter and bytes of an element, where it is a plain one.
    fn letter(&self) -> Option<(char, usize)> {
        let rest = self.text.strip_prefix(['|', '<', '>', '='])?;
        let letter = rest.chars().next().filter(char::is_ascii)?;
        Some((letter, rest[1..].parse().ok()?))
    }
}

/// `None` when the folder has no array of images.
pub(crate) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let mut arrays = Vec::new();
    let files = files(folder)?;
    let archives = files.iter().filter(|path| is_archive(path)).count();
    for path in &files {
        arrays.extend(match is_archive(path) {
            true => archive(path, archives > 1 || files.len() > archives)?,
            false => vec![single(path)?],
        });
    }
    if !arrays.iter().any(Array::has_images) {
        return Ok(None);
    }
    of_arrays(folder, folder, arrays, None, how).map(Some)
}

/// `None` when the name ends otherwise.
pub(crate) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    if !is_archive(path) && !is_array(path) {
        return Ok(None);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Some(named) = lone(path)? else {
        return of_arrays(path, folder, archive(path, false)?, None, how).map(Some);
    };
    // The labels and the test part are stored beside it, under names that differ in these words alone.
    let set = |array: &Array| {
        let plain = |w: &&String| !IMAGES.contains(&w.as_str()) && !LABELS.contains(&w.as_str());
        array.words.iter().filter(plain).cloned().collect::<Vec<_>>()
    };
    let mut arrays = Vec::new();
    for other in files(folder)?.iter().filter(|other| other.file_name() != path.file_name()) {
        // What cannot be read is another set's.
        let other = lone(other).ok().flatten().filter(|other| set(other) == set(&named));
        arrays.extend(other.filter(|other| !(other.has_images() && other.part == named.part)));
    }
    if named.part != Some(Part::Train) {
        arrays.retain(|other| other.part == named.part);
    }
    let own = named.part;
    arrays.push(named);
    of_arrays(path, folder, arrays, own, how).map(Some)
}

/// The only array of a file, which is called as the file is; none where there are more, under names of their own.
fn lone(path: &Path) -> Result<Option<Array>> {
    if is_array(path) {
        return single(path).map(Some);
    }
    let mut arrays = archive(path, true)?;
    Ok(if arrays.len() == 1 { arrays.pop() } else { None })
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending))
}

fn is_archive(path: &Path) -> bool {
    has_ending(path, "npz")
}

fn is_array(path: &Path) -> bool {
    has_ending(path, "npy")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let path = entry.map_err(|e| read_error(folder, &e))?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if (is_archive(&path) || is_array(&path)) && !hidden && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The headers of an archive's arrays. `file`: the archive's name is a part of theirs.
fn archive(path: &Path, file: bool) -> Result<Vec<Array>> {
    let mut zip = zip(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut arrays = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(|e| damaged(path, &e))?;
        let name = entry.name().map_err(|e| damaged(path, &e))?.into_owned();
        let Some(key) = name.strip_suffix(".npy").filter(|_| !entry.is_dir()) else { continue };
        let name = match file {
            true if key == "arr_0" => stem.clone(),
            true => format!("{stem}_{key}"),
            false => key.to_string(),
        };
        let (kind, shape) = header(&mut entry).map_err(|what| damaged(path, &format!("{key}: {what}")))?;
        arrays.push(Array::new(path, Some(i), name, kind, shape));
    }
    Ok(arrays)
}

fn zip(path: &Path) -> Result<ZipArchive<BufReader<File>>> {
    let file = File::open(path).map_err(|e| read_error(path, &e))?;
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    ZipArchive::with_config(config, BufReader::new(file)).map_err(|e| damaged(path, &e))
}

fn single(path: &Path) -> Result<Array> {
    let file = File::open(path).map_err(|e| read_error(path, &e))?;
    let (kind, shape) = header(&mut BufReader::new(file)).map_err(|what| damaged(path, &what))?;
    Ok(Array::new(path, None, path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), kind, shape))
}

fn damaged(path: &Path, what: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot read {}: {what}", path.display()))
        .hint("is it what numpy.savez or numpy.save writes, and complete? Copy or save it again")
}

/// Type and shape of an array; what follows are its elements. The error is a part of a sentence.
fn header(reader: &mut dyn Read) -> std::result::Result<(Kind, Vec<usize>), String> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).map_err(|e| e.to_string())?;
    let [0x93, b'N', b'U', b'M', b'P', b'Y', version, _] = start else { return Err("it is no array".into()) };
    let mut length = [0; 4];
    let bytes = if version == 1 { 2 } else { 4 };
    reader.read_exact(&mut length[..bytes]).map_err(|e| e.to_string())?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > MAX_HEADER {
        return Err(format!("its header has {length} bytes"));
    }
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text).map_err(|e| e.to_string())?;
    parse(&String::from_utf8_lossy(&text)).ok_or_else(|| "its header is damaged".into())
}

/// A header is a dictionary as Python writes it: `{'descr': '|u1', 'fortran_order': False, 'shape': (60000, 28, 28), }`.
fn parse(text: &str) -> Option<(Kind, Vec<usize>)> {
    let after = |key: &str| {
        let at = text.find(&format!("'{key}'"))? + key.len() + 2;
        Some(text[at..].trim_start().strip_prefix(':')?.trim_start())
    };
    let descr = after("descr")?;
    let kind = match descr.strip_prefix('\'') {
        Some(rest) => rest.split_once('\'')?.0.to_string(),
        None => "a record".into(),
    };
    let fortran = after("fortran_order")?.starts_with("True");
    let (shape, _) = after("shape")?.strip_prefix('(')?.split_once(')')?;
    let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
    let shape: Vec<usize> = dims.map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    (shape.len() <= 32).then_some((Kind { text: kind, fortran }, shape))
}

impl Array {
    fn new(path: &Path, entry: Option<usize>, name: String, kind: Kind, shape: Vec<usize>) -> Array {
        let (part, words) = parts::in_name(&name);
        let words = words.into_iter().map(str::to_lowercase).collect();
        Array { path: path.to_path_buf(), entry, part, words, name, kind, shape }
    }

    fn called(&self, names: &[&str]) -> bool {
        self.words.iter().any(|word| names.contains(&word.as_str()))
    }

    /// Its shape and type may be those of images.
    fn has_images(&self) -> bool {
        self.shape.len() >= 3 && !self.called(&LABELS) && self.kind.letter().is_some_and(|k| k.0 != 'U' && k.0 != 'S')
    }

    fn shown(&self) -> String {
        match self.entry {
            Some(_) => format!("{} in {}", self.name, self.path.display()),
            None => self.path.display().to_string(),
        }
    }

    /// The elements as they are in the file.
    fn read(&self) -> Result<Vec<u8>> {
        let width = self.kind.letter().map_or(1, |k| k.1 as u64);
        let size = self.shape.iter().try_fold(width, |size, &d| size.checked_mul(d as u64)).filter(|&s| s <= MAX_ARRAY);
        let Some(size) = size else {
            return Err(Error::new(format!("{} claims the shape {:?}", self.shown(), self.shape)).hint(format!(
                "arrays of up to {} GiB are read; write its images into a folder, or into shards",
                MAX_ARRAY >> 30
            )));
        };
        let mut bytes = Vec::new();
        let mut take = |reader: &mut dyn Read| {
            header(reader).map_err(|what| damaged(&self.path, &what))?;
            reader.take(size + 1).read_to_end(&mut bytes).map_err(|e| damaged(&self.path, &e))
        };
        match self.entry {
            Some(entry) => {
                let mut zip = zip(&self.path)?;
                take(&mut zip.by_index(entry).map_err(|e| damaged(&self.path, &e))?)?;
            }
            None => {
                take(&mut BufReader::new(File::open(&self.path).map_err(|e| read_error(&self.path, &e))?))?;
            }
        }
        match bytes.len() as u64 {
            n if n == size => Ok(bytes),
            n => Err(damaged(
                &self.path,
                &format!(
                    "{} has {}{n} bytes and not the {size} of its shape {:?}",
                    self.name,
                    if n > size { "at least " } else { "" },
                    self.shape
                ),
            )),
        }
    }

    /// n, height, width, channels, and their layout.
    fn dims(&self, how: Decode) -> Result<([usize; 4], Layout)> {
        let unclear = |what: &str, hint: &str| {
            Err(Error::new(format!("{} has the shape {:?}: {what}", self.shown(), self.shape)).hint(hint))
        };
        if self.kind.letter() != Some(('u', 1)) {
            let hint = match self.kind.letter() {
                Some(('f', _)) => "images are bytes, 0 to 255: numpy.rint(x * 255).astype('uint8') where x is 0 to 1",
                Some(('i' | 'u', _)) => "images are bytes, 0 to 255: x.astype('uint8') where no value is larger",
                _ => "images are bytes, 0 to 255, of the type uint8",
            };
            return Err(Error::new(format!("{} is of the type {}", self.shown(), self.kind.text)).hint(hint));
        }
        if self.kind.fortran {
            return unclear("its axes are in Fortran's order", "save numpy.ascontiguousarray(x)");
        }
        let channels = |d: usize| matches!(d, 1 | 3 | 4) || d == how.channels;
        let hint = "(n, height, width), (n, height, width, channels) or (n, channels, height, width), with 1, 3, 4 or --channels \
                    channels";
        let dims = match self.shape[..] {
            [_, _, 1 | 3 | 4] => return unclear("is it one image, or are they many without a width?", hint),
            [n, h, w] => ([n, h, w, 1], Layout::Rows),
            [n, a, b, c] => match (channels(a), channels(c)) {
                (false, true) => ([n, a, b, c], Layout::Rows),
                (true, false) => ([n, b, c, a], Layout::Planes),
                (true, true) => return unclear("both axes may be the channels", hint),
                (false, false) => return unclear("no axis is that of the channels", hint),
            },
            _ => return unclear("images have 3 or 4 axes", hint),
        };
        check_dims(Path::new(&self.shown()), dims.0)?;
        Ok(dims)
    }

    /// One label an image.
    fn labels(&self, images: usize) -> Result<Vec<u32>> {
        let (letter, width) = self.kind.letter().unwrap_or(('?', 0));
        let integers = matches!((letter, width), ('u' | 'i', 1 | 2 | 4 | 8) | ('f', 4 | 8) | ('b', 1));
        if !integers {
            return Err(Error::new(format!("{} is of the type {}", self.shown(), self.kind.text))
                .hint("labels are integers: numpy.unique(names, return_inverse=True)[1] numbers the classes"));
        }
        if self.shape[0] != images {
            return Err(Error::new(format!("{} has {} labels for {images} images", self.shown(), self.shape[0]))
                .hint("the two arrays are not of the same set"));
        }
        let bytes = self.read()?;
        let big = self.kind.text.starts_with('>');
        let number = |(i, bytes): (usize, &[u8])| {
            let mut wide = [0; 8];
            wide[..width].copy_from_slice(bytes);
            if big {
                wide[..width].reverse();
            }
            let x = u64::from_le_bytes(wide);
            let value = match (letter, width) {
                ('f', 4) => f64::from(f32::from_bits(x as u32)),
                ('f', _) => f64::from_bits(x),
                ('i', _) => ((x << (64 - 8 * width)) as i64 >> (64 - 8 * width)) as f64,
                _ => x as f64,
            };
            match value >= 0.0 && value < MAX_CLASSES as f64 && value.fract() == 0.0 {
                true => Ok(value as u32),
                false => Err(Error::new(format!("{}: label {i} is {value}", self.shown()))
                    .hint(format!("labels are integers from 0 and below {MAX_CLASSES}"))),
            }
        };
        bytes.chunks_exact(width).enumerate().map(number).collect()
    }
}

/// The parts among some arrays. `what`: the file or folder, for errors. `own`: the part to train on where there is no train part.
fn of_arrays(what: &Path, folder: &Path, arrays: Vec<Array>, own: Option<Part>, how: Decode) -> Result<Splits> {
    let named = arrays.iter().any(|a| a.part == Some(Part::Train) && a.has_images());
    let of_part = |part: Option<Part>| arrays.iter().filter(move |a| a.part == part).collect::<Vec<_>>();
    let train = if named { Some(Part::Train) } else { own };
    let mut tests: Vec<Part> = arrays
        .iter()
        .filter(|a| a.has_images() && a.part != train)
        .filter_map(|a| a.part)
        .filter(|part| matches!(part, Part::Test { .. }))
        .collect();
    tests.sort();
    if let (Some(test), false, None) = (tests.first(), of_part(None).iter().any(|a| a.has_images()), train) {
        let test = of_part(Some(*test)).first().map_or(String::new(), |a| a.shown());
        return Err(Error::new(format!("{test} has no training part beside it")).hint(
            "arrays are called train_images, train_labels, test_images, test_labels, or x_train, y_train and so on",
        ));
    }
    let mut notes = Vec::new();
    let mut used = Vec::new();
    let mut sets = vec![of_one_part(what, of_part(train), how, &mut notes, &mut used)?];
    if let Some(test) = tests.first() {
        sets.push(of_one_part(what, of_part(Some(*test)), how, &mut notes, &mut used)?);
    }
    let unused: Vec<String> = arrays.iter().map(Array::shown).filter(|name| !used.contains(name)).collect();
    if let Some(first) = unused.first() {
        notes.push(match unused.len() {
            1 => format!("not used: {first}"),
            n => format!("not used: {first} and {} more", n - 1),
        });
    }
    if let [train, test] = sets.as_slice()
        && train.labels.is_some() != test.labels.is_some()
    {
        let (with, without) = if train.labels.is_some() { (train, test) } else { (test, train) };
        return Err(Error::new(format!("{}: {} has labels, {} has none", what.display(), with.name, without.name))
            .hint("both parts have an array of labels or neither"));
    }
    splits(folder, sets, notes)
}

/// The images of a part, and their labels.
fn of_one_part(
    what: &Path,
    arrays: Vec<&Array>,
    how: Decode,
    notes: &mut Vec<String>,
    used: &mut Vec<String>,
) -> Result<Arrays> {
    let of_images: Vec<&Array> = arrays.iter().copied().filter(|a| a.has_images()).collect();
    let called: Vec<&Array> = of_images.iter().copied().filter(|a| a.called(&IMAGES)).collect();
    let of_images = if called.is_empty() { of_images } else { called };
    let images = match of_images[..] {
        [one] => one,
        [] => {
            let all = arrays.iter().map(|a| format!("{} {:?} {}", a.name, a.shape, a.kind.text)).collect::<Vec<_>>();
            return Err(Error::new(format!("{} holds no array of images, but {}", what.display(), all.join(", ")))
                .hint("images are bytes (uint8) in 3 axes (n, height, width) or 4 (with channels)"));
        }
        [first, second, ..] => {
            return Err(Error::new(format!(
                "{} holds several sets: {}, {}",
                what.display(),
                first.shown(),
                second.shown()
            ))
            .hint("pass one file, with one array of images for every part"));
        }
    };
    let (dims, layout) = images.dims(how)?;
    used.push(images.shown());
    let one_an_image = |a: &&&Array| matches!(a.shape[..], [_] | [_, 1]);
    let (labels, other): (Vec<&Array>, Vec<&Array>) = {
        let called = |a: &&Array| a.called(&LABELS) || (a.called(&["arr"]) && a.shape == [dims[0]]);
        let all: Vec<&Array> = arrays.iter().copied().filter(called).collect();
        (all.iter().filter(one_an_image).copied().collect(), all.iter().filter(|a| !one_an_image(a)).copied().collect())
    };
    if let (Some(other), true) = (other.first(), labels.is_empty()) {
        used.push(other.shown());
        notes.push(format!("no labels: {} has the shape {:?}, and not one label an image", other.shown(), other.shape));
    }
    let labels = match labels[..] {
        [] => None,
        [one] => {
            used.push(one.shown());
            Some(one.labels(dims[0])?)
        }
        [first, second, ..] => {
            return Err(Error::new(format!("{} and {} may both be the labels", first.shown(), second.shown()))
                .hint("save the images with one array of labels"));
        }
    };
    Ok(Arrays { name: images.name.clone(), pixels: images.read()?, dims, layout, labels, classes: Vec::new(), how })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_numpy_writes_them() {
        let of = |text| parse(text).map(|(kind, shape)| (kind.text, kind.fortran, shape));
        let text = |s: &str| s.to_string();
        assert_eq!(
            of("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 28, 28), }   \n"),
            Some((text("|u1"), false, vec![3, 28, 28]))
        );
        assert_eq!(of("{'shape':(7,),'fortran_order':True,'descr':'<i8'}"), Some((text("<i8"), true, vec![7])));
        assert_eq!(
            of("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (), }"),
            Some((text("a record"), false, vec![]))
        );
        for bad in [
            "",
            "{}",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (3, -1), }",
            "{'descr': '|u1",
            "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
        let letter = |text: &str| Kind { text: text.into(), fortran: false }.letter();
        assert_eq!((letter("|u1"), letter(">f8"), letter("<U5")), (Some(('u', 1)), Some(('f', 8)), Some(('U', 5))));
        assert_eq!((letter("|O"), letter("a record"), letter("|é1"), letter("")), (None, None, None, None));
    }
}

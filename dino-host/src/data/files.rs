//! Images named one by one, by folder or by pattern: what a user wants to see, not what a run is trained on.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use super::Dataset;
use super::fingerprint::Fnv;
use super::unsupported::Unsupported;
use crate::error::{Error, Result};
use crate::image::{Decode, Image, decode, is_image_file};
use crate::io::read_error;

/// Image files in the order in which they were named.
pub struct Files {
    paths: Vec<PathBuf>,
    how: Decode,
}

impl Files {
    /// Each of `named` is a file, a folder (the images in it, not below it) or a pattern with `*`, `?` or `[...]`. The images of a
    /// folder or pattern are sorted by name, numbers by their value, so that `frame10` comes after `frame9`; names that begin with
    /// a dot are left out. A file that is named itself is taken whatever its name is.
    ///
    /// # Errors
    /// Nothing is there, a pattern is malformed, or a folder or pattern has no image.
    pub fn open(named: &[PathBuf], how: Decode) -> Result<Files> {
        let mut paths = Vec::new();
        for name in named {
            if name.is_dir() {
                let entries = fs::read_dir(name).map_err(|e| read_error(name, &e))?;
                let below: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
                paths.extend(only_images(name, below.map_err(|e| read_error(name, &e))?)?);
            } else if fs::symlink_metadata(name).is_err() && name.to_string_lossy().contains(['*', '?', '[']) {
                let found = glob::glob(&name.to_string_lossy()).map_err(|e| {
                    Error::new(format!("{} is no pattern: {e}", name.display()))
                        .hint("such as 'frames/*.jpg', in quotes")
                })?;
                paths.extend(only_images(name, found.filter_map(std::result::Result::ok).collect())?);
            } else {
                fs::metadata(name).map_err(|e| read_error(name, &e))?;
                paths.push(name.clone());
            }
        }
        Ok(Files { paths, how })
    }

    /// Where image `i` is stored.
    pub fn path(&self, i: usize) -> &Path {
        &self.paths[i]
    }
}

/// The images among `found`, sorted.
fn only_images(named: &Path, mut found: Vec<PathBuf>) -> Result<Vec<PathBuf>> {
    let hidden = |path: &Path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    let mut unsupported = Unsupported::default();
    found.retain(|path| !path.is_dir() && !hidden(path));
    found.iter().filter(|path| !is_image_file(path) && path.is_file()).for_each(|path| unsupported.take(path));
    found.retain(|path| is_image_file(path));
    found.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
    let notes = unsupported.notes();
    match found.is_empty() {
        false => {
            notes.iter().for_each(|note| errln!("note: {note}"));
            Ok(found)
        }
        true => Err(Error::new(format!(
            "no images in {}{}",
            named.display(),
            notes.first().map_or(String::new(), |n| format!(": {n}"))
        ))
        .hint("a folder or pattern of PNG, JPEG, WebP, GIF, BMP, PNM or TIFF files")),
    }
}

/// By letters, runs of digits by their value; names that differ in leading zeros alone by letters.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.as_bytes(), b.as_bytes());
    while let ([i, ..], [j, ..]) = (x, y) {
        let order = if i.is_ascii_digit() && j.is_ascii_digit() {
            let (m, n) = (digits(&mut x), digits(&mut y));
            m.len().cmp(&n.len()).then(m.cmp(n))
        } else {
            (x, y) = (&x[1..], &y[1..]);
            i.cmp(j)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    x.len().cmp(&y.len()).then(a.cmp(b))
}

/// Takes the digits off the front; gives them without leading zeros.
fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    &number[number.iter().position(|c| *c != b'0').unwrap_or(number.len())..]
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.paths.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        decode(&self.paths[i], self.how)
    }
    fn label(&self, _i: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    /// As the user named it: two folders may hold the same file names.
    fn name(&self, i: usize) -> String {
        self.paths[i].display().to_string()
    }
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        self.paths.iter().for_each(|path| hash.text(&path.to_string_lossy()));
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_numbers_are_in_their_order() {
        let mut names =
            ["b1", "a10.png", "a9.png", "a09.png", "a9b1", "a", "a100000000000000000000000", "A2", "a9.jpg"];
        names.sort_by(|a, b| natural(a, b));
        let want = ["A2", "a", "a09.png", "a9.jpg", "a9.png", "a9b1", "a10.png", "a100000000000000000000000", "b1"];
        // "a09.png" and "a9.png" are equal up to the zero, "a9.jpg" comes before both by its ending.
        let want = [want[0], want[1], want[3], want[2], want[4], want[5], want[6], want[7], want[8]];
        assert_eq!(names, want);
    }

    #[test]
    fn files_folders_and_patterns() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["10.png", "9.PNG", "x.txt", ".1.png", "list"] {
            fs::write(at(name), "x").unwrap();
        }
        fs::create_dir(at("d.png")).unwrap();
        let names = |named: &[PathBuf]| {
            let files = Files::open(named, Decode::default()).map_err(|e| e.to_string())?;
            Ok((0..files.len()).map(|i| files.path(i).file_name().unwrap().to_str().unwrap().into()).collect())
        };
        let ok = |names: &[&str]| Ok::<Vec<String>, String>(names.iter().map(|n| n.to_string()).collect());
        assert_eq!(names(&[dir.path().into()]), ok(&["9.PNG", "10.png"]));
        assert_eq!(names(&[at("1*.png"), at("list")]), ok(&["10.png", "list"]));
        assert!(names(&[at("*.gif")]).unwrap_err().contains("no images in"));
        assert!(names(&[at("d.png")]).unwrap_err().contains("no images in"));
        assert!(names(&[at("none.png")]).unwrap_err().contains("none.png"));
        assert!(names(&[at("***")]).unwrap_err().contains("is no pattern"));
    }
}

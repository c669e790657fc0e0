//! Files that look like images and are not read: counted, and reported once by ending.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::labels::counted;
use crate::image::unsupported_extension;

/// Files that look like images and are not read.
#[derive(Default)]
pub(super) struct Unsupported {
    /// How many by their ending, and the first of them.
    endings: BTreeMap<String, (usize, PathBuf)>,
    /// Those that begin as images do, under another ending or none.
    disguised: (usize, PathBuf),
    opened: usize,
}

impl Unsupported {
    /// Files whose first bytes are read at most; a folder may hold millions that are no images.
    const OPENED: usize = 100;
    /// Endings of files that are no images: not opened.
    const OTHERS: [&str; 12] = ["txt", "csv", "tsv", "json", "jsonl", "xml", "md", "html", "py", "tar", "zip", "gz"];

    /// For a folder that has been listed once: no file is opened again.
    pub fn again() -> Unsupported {
        Unsupported { opened: Unsupported::OPENED, ..Unsupported::default() }
    }

    /// Takes note of a file that is not read.
    pub fn take(&mut self, path: &Path) {
        if let Some(ending) = unsupported_extension(path) {
            return count(self.endings.entry(ending).or_default(), 1, path);
        }
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        if self.opened < Unsupported::OPENED && !Unsupported::OTHERS.contains(&ending.as_str()) {
            self.opened += 1;
            if begins_as_an_image(path) {
                count(&mut self.disguised, 1, path);
            }
        }
    }

    /// Of another part of the same set.
    pub fn add(&mut self, other: Unsupported) {
        for (ending, (n, first)) in other.endings {
            count(self.endings.entry(ending).or_default(), n, &first);
        }
        let (n, first) = other.disguised;
        count(&mut self.disguised, n, &first);
    }

    /// A line for every ending.
    pub fn notes(&self) -> Vec<String> {
        let line = |(ending, (n, first)): (&String, &(usize, PathBuf))| {
            let end = if *n == 1 { "ends" } else { "end" };
            format!("{} {end} in .{ending}, which is not read, such as {}", counted(*n, "file"), first.display())
        };
        let mut notes: Vec<String> = self.endings.iter().map(line).collect();
        let (n, first) = &self.disguised;
        if *n > 0 {
            notes.push(format!(
                "not read, as the names do not have the ending of an image, though the files begin as images do: {}, such as {}; rename them",
                counted(*n, "file"),
                first.display()
            ));
        }
        notes
    }
}

/// The first by name represents all, for a folder is listed in any order.
fn count((n, first): &mut (usize, PathBuf), more: usize, path: &Path) {
    if more > 0 && (*n == 0 || path < first.as_path()) {
        *first = path.to_path_buf();
    }
    *n += more;
}

fn begins_as_an_image(path: &Path) -> bool {
    let mut first = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(16).read_to_end(&mut first));
    let begins = |magic: &[u8]| first.starts_with(magic);
    read.is_ok()
        && (begins(b"\x89PNG\r\n")
            || begins(b"\xff\xd8\xff")
            || begins(b"II*\0")
            || begins(b"MM\0*")
            || begins(b"GIF8")
            || begins(b"RIFF") && first.get(8..12) == Some(b"WEBP"))
}

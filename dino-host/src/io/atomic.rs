//! Files that are written aside and renamed.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::path::Path;

/// Writes a file aside (same folder, `.part`), flushes it to the disk and renames it: a reader sees the old or the new one.
///
/// # Errors
/// The file cannot be written or renamed; the part that was written is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut File) -> std::io::Result<()>) -> Result<()> {
    let aside = path.with_extension("part");
    let done = File::create(&aside).and_then(|mut f| {
        write(&mut f)?;
        f.sync_all()?;
        fs::rename(&aside, path)
    });
    done.map_err(|e| {
        let _ = fs::remove_file(&aside);
        Error::new(format!("cannot write {}: {e}", path.display()))
            .hint("is there space left on the disk, and do you have the right to write there?")
    })
}

//! One owner of a run's folder: a lock that ends with its process, however that ends.

use crate::error::{Error, Result};
use crate::io::host;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The locked file. It names the owner, and is there only while there is one (or after one was killed: then nobody holds its
/// lock).
pub const LOCK: &str = "owner.lock";

/// The right to write into a folder, until it is dropped.
#[derive(Debug)]
pub struct Owner {
    folder: PathBuf,
    _file: File,
    /// The folders that were made for it, innermost first.
    made: Vec<PathBuf>,
}

impl Owner {
    /// Takes the folder, which is made where there is none.
    ///
    /// # Errors
    /// The folder cannot be made or written, or another process holds it, which the error names.
    pub fn of(folder: &Path) -> Result<Owner> {
        let made: Vec<_> = folder.ancestors().take_while(|f| !f.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(folder).map_err(|e| {
            Error::new(format!("cannot make the folder {}: {e}", folder.display())).hint("--out names another")
        })?;
        Owner::lock(folder, made)
    }

    /// Makes and takes the first of `runs`/1, `runs`/2, … that does not exist, though others search for one at the same time.
    ///
    /// # Errors
    /// A folder cannot be made, or every number is taken.
    pub fn of_new_in(runs: &Path) -> Result<Owner> {
        let cannot = |folder: &Path, e: std::io::Error| {
            Error::new(format!("cannot make the folder {}: {e}", folder.display())).hint("--out names another")
        };
        fs::create_dir_all(runs).map_err(|e| cannot(runs, e))?;
        for number in 1u64.. {
            let folder = runs.join(number.to_string());
            match fs::create_dir(&folder) {
                Ok(()) => return Owner::lock(&folder, vec![folder.clone()]),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => (),
                Err(e) => return Err(cannot(&folder, e)),
            }
        }
        Err(Error::new(format!("{} is full", runs.display())).hint("--out names another folder"))
    }

    fn lock(folder: &Path, made: Vec<PathBuf>) -> Result<Owner> {
        let path = folder.join(LOCK);
        let cannot = |e: std::io::Error| {
            Error::new(format!("cannot write {}: {e}", path.display()))
                .hint("is there space left on the disk, and do you have the right to write there?")
        };
        loop {
            let mut options = OpenOptions::new();
            let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
            match file.try_lock() {
                Ok(()) if !is_at(&file, &path) => continue, // its last owner has removed it in between
                Ok(()) => (),
                Err(TryLockError::WouldBlock) => return Err(taken(folder, &mut file)),
                Err(TryLockError::Error(e)) => errln!(
                    "note: {} cannot be locked ({e}): see to it that no other `train` writes there",
                    folder.display()
                ),
            }
            let since = humantime::format_rfc3339_seconds(SystemTime::now());
            let owner = format!("process {} on {}, since {since}\n", std::process::id(), host());
            // The lock holds without it; a disk that is full is met, and named, by the first file of the run.
            let _ = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
            return Ok(Owner { folder: folder.into(), _file: file, made });
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Owner {
    /// Removes the file while it is still locked, and the folders that were made if nothing was put into them.
    fn drop(&mut self) {
        let _ = fs::remove_file(self.folder.join(LOCK));
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

/// Whether the file is still the one at the path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: &fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), fs::metadata(path)), (Ok(a), Ok(b)) if id(&a) == id(&b))
}

/// An open file that was removed keeps its name until it is closed, and cannot be opened again.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}

fn taken(folder: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    // Where a lock keeps readers out as well, the owner stays unnamed.
    let _ = file.read_to_string(&mut owner);
    let owner = if owner.trim().is_empty() { "another process" } else { owner.trim() };
    Error::new(format!("{} is being written by {owner}", folder.display()))
        .hint("wait for it or stop it (it saves on SIGTERM); another --out starts another run")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("deep/run");
        let owner = Owner::of(&folder).unwrap();
        let refused = Owner::of(&folder).unwrap_err();
        assert!(refused.message.contains("deep/run is being written by process"), "{refused}");
        assert!(refused.message.contains(&std::process::id().to_string()), "{refused}");
        drop(owner);
        assert!(!dir.path().join("deep").exists(), "nothing was put there");

        // What a killed owner leaves is locked by nobody.
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(LOCK), "process 1 on elsewhere").unwrap();
        let owner = Owner::of(&folder).unwrap();
        fs::write(folder.join("log.jsonl"), "").unwrap();
        drop(owner);
        assert!(folder.join("log.jsonl").exists() && !folder.join(LOCK).exists());
    }

    #[test]
    fn free_folders_are_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let start = std::sync::Barrier::new(8);
        let mut taken: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        Owner::of_new_in(&runs).unwrap()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        taken.sort_by_key(|o| o.folder().to_owned());
        let names: Vec<_> = taken.iter().map(|o| o.folder().strip_prefix(&runs).unwrap().to_owned()).collect();
        assert_eq!(names, (1..9).map(|i| PathBuf::from(i.to_string())).collect::<Vec<_>>());
        drop(taken);
        assert_eq!(fs::read_dir(&runs).unwrap().count(), 0);
    }

    /// The file is removed and made anew all the time: never do two hold it.
    #[test]
    fn owners_that_come_and_go_never_meet() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (owners, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Ok(owner) = Owner::of(dir.path()) {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                            rounds.fetch_add(1, Ordering::SeqCst);
                            owners.fetch_sub(1, Ordering::SeqCst);
                            drop(owner);
                        }
                    }
                });
            }
        });
        assert!(rounds.load(Ordering::SeqCst) >= 4);
    }
}

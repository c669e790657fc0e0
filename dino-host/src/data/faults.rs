//! Images that cannot be read: each is named once and counted, and the run goes on without it.

use super::picture::remarked;
use super::{Dataset, Image};
use crate::error::{Error, Result};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard};

/// What could not be read so far. Shared by all threads of a run.
#[derive(Default)]
pub struct Faults {
    strict: bool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Every fault by its message, which names the file.
    known: HashSet<String>,
    /// Those that [`Faults::take`] has not given out yet, with the image's name.
    fresh: Vec<(String, Error)>,
    /// Names of images whose file lacks its end mark and was decoded all the same, and how many of them [`Faults::endless`] has
    /// told of.
    endless: BTreeSet<String>,
    told: usize,
}

/// An image that cannot be read.
#[derive(Clone, Debug)]
pub struct Fault {
    /// [`Dataset::name`]
    pub image: String,
    /// Why not; names the file.
    pub error: Error,
    /// How many there are, this one counted.
    pub count: usize,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (many, message) = (if self.count == 1 { "" } else { "s" }, &self.error.message);
        write!(f, "WARNING: {message}; left out, {} image{many} so far (--strict stops instead)", self.count)
    }
}

impl Faults {
    /// `strict`: the first image that cannot be read is an error.
    pub fn new(strict: bool) -> Faults {
        Faults { strict, ..Faults::default() }
    }

    /// Image `i` of the set; `None` where it cannot be read, which is noted.
    pub fn image(&self, set: &dyn Dataset, i: usize) -> Result<Option<Image>> {
        let (found, remark) = remarked(|| set.image(i));
        if remark.endless && found.is_ok() {
            self.seen().endless.insert(set.name(i));
        }
        match found {
            Ok(image) => Ok(Some(image)),
            Err(e) if self.strict => Err(e),
            Err(error) => {
                let mut seen = self.seen();
                if seen.known.insert(error.message.clone()) {
                    seen.fresh.push((set.name(i), error));
                }
                Ok(None)
            }
        }
    }

    /// Counts a fault that an earlier part of the run has named already.
    pub fn know(&self, message: &str) {
        self.seen().known.insert(message.into());
    }

    /// The faults found since the last call, by name: the order in which threads come upon them means nothing.
    pub fn take(&self) -> Vec<Fault> {
        let mut seen = self.seen();
        let mut fresh = std::mem::take(&mut seen.fresh);
        fresh.sort_by(|a, b| a.0.cmp(&b.0));
        let before = seen.known.len() - fresh.len();
        let numbered = fresh.into_iter().zip(before + 1..);
        numbered.map(|((image, error), count)| Fault { image, error, count }).collect()
    }

    /// What is to be said of the images whose file lacks its end mark, if there are more than were told of.
    pub fn endless(&self) -> Option<String> {
        let mut seen = self.seen();
        let (n, told) = (seen.endless.len(), seen.told);
        seen.told = n;
        let first = seen.endless.first().filter(|_| n > told)?;
        Some(match n {
            1 => format!("WARNING: {first} lacks its end mark; all its pixels are there, and it is used"),
            _ => format!(
                "WARNING: {n} images lack their end mark, {first} is one; all their pixels are there, and they are used"
            ),
        })
    }

    /// Prints those on stderr: for commands without a screen of their own.
    pub fn say(&self) {
        self.take().iter().for_each(|fault| errln!("{fault}"));
        self.endless().iter().for_each(|line| errln!("{line}"));
    }

    /// A thread that panicked while it held the lock has left nothing half done.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

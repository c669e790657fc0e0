//! Images that cannot be read: each is named once and counted, and the run goes on without it.

use super::{Dataset, Image};
use crate::error::{Error, Result};
use std::collections::HashSet;
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
        match set.image(i) {
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

    /// Prints those on stderr: for commands without a screen of their own.
    pub fn say(&self) {
        self.take().iter().for_each(|fault| errln!("{fault}"));
    }

    /// A thread that panicked while it held the lock has left nothing half done.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

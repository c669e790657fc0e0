//! Where the processes of a run agree on how it goes on. Alone, a process agrees with itself.
//!
//! They meet before every step and before every evaluation, where each sends every other a byte, which is little beside the sum of a
//! step's gradients. So all of them stop, save and fail in the same step.

use super::{SAVE_AFTER, Trainer, failure};
use crate::device::Device;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;

/// What was said at a meeting.
#[derive(Clone, Copy, Debug, Default)]
pub struct Said {
    /// A process was asked to stop.
    pub stop: bool,
    /// The first one's time is nearly over.
    pub late: bool,
    /// The first one has not saved for long.
    pub save: bool,
    /// A process has met images that cannot be read.
    pub unreadable: bool,
}

const FAILED: u8 = 1;
const STOP: u8 = 2;
const LATE: u8 = 4;
const SAVE: u8 = 8;
const UNREADABLE: u8 = 16;

impl<D: Device> Trainer<'_, D> {
    /// Meets all others: what this process has for the next thing to do, if all of them have that, and what they said. `late`: whether
    /// its own time is too short for it.
    ///
    /// # Errors
    /// A process could not do its part; the run is saved.
    pub(super) fn meet<T>(&mut self, own: Result<T>, late: bool) -> Result<(T, Said)> {
        let (run, group) = (self.run, &self.run.group);
        let trouble = self.trouble.clone();
        let save = self.saved.elapsed() + self.clock.evaluating() > SAVE_AFTER;
        let mut words = vec![0; group.size()];
        for (word, is_so) in [
            (FAILED, own.is_err() || trouble.is_some()),
            (STOP, run.stop.load(Ordering::Relaxed)),
            (LATE, late && group.is_first()),
            (SAVE, save && group.is_first()),
            (UNREADABLE, run.unreadable.has_news()),
        ] {
            words[group.rank()] |= if is_so { word } else { 0 };
        }
        group.gather_parts(&mut words)?;
        let said = |word| words.iter().any(|of| of & word != 0);
        if said(FAILED) {
            let in_log = trouble.is_some();
            let own = group.all(trouble.map_or(Ok(()), Err).and(own));
            let e = own.err().unwrap_or_else(|| Error::new("a process failed"));
            return Err(match self.save() {
                Ok(()) if in_log => self.lost(e),
                Ok(()) => e,
                Err(also) => failure::both(e, also),
            });
        }
        let said = Said { stop: said(STOP), late: said(LATE), save: said(SAVE), unreadable: said(UNREADABLE) };
        own.map(|own| (own, said))
    }
}

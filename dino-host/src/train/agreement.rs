//! What the processes of a run agree on: whether and how it goes on. Alone, a process agrees with itself.
//!
//! They do so before every step and before every evaluation, where each sends every other a byte, which is little beside the sum of a
//! step's gradients. So all of them stop, save and fail in the same step.

use super::{SAVE_AFTER, Trainer, failure};
use crate::device::Device;
use crate::error::{Error, Result};
use std::sync::atomic::Ordering;

/// What they agree on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Agreed {
    /// A process was asked to stop.
    pub stop: bool,
    /// The first one's time is nearly over.
    pub late: bool,
    /// The first one has not saved for long.
    pub save: bool,
    /// A process has met images that cannot be read.
    pub unreadable: bool,
    /// The run has collapsed, and is not to go on like that.
    pub collapsed: bool,
}

/// The bits of a process's byte.
const FAILED: u8 = 1;
const STOP: u8 = 2;
const LATE: u8 = 4;
const SAVE: u8 = 8;
const UNREADABLE: u8 = 16;
const COLLAPSED: u8 = 32;

impl<D: Device> Trainer<'_, D> {
    /// What this process has for the next thing to do, if all of them have that, and what they agree on. `late`: whether its own time is
    /// too short for it.
    ///
    /// # Errors
    /// A process could not do its part; the run is saved.
    pub(super) fn agree<T>(&mut self, own: Result<T>, late: bool) -> Result<(T, Agreed)> {
        let (run, group) = (self.run, &self.run.group);
        let log_error = self.log_error.clone();
        let save = self.saved.elapsed() + self.clock.evaluating() > SAVE_AFTER;
        let mut flags = vec![0; group.size()];
        for (flag, is_set) in [
            (FAILED, own.is_err() || log_error.is_some()),
            (STOP, run.stop.load(Ordering::Relaxed)),
            (LATE, late && group.is_first()),
            (SAVE, save && group.is_first()),
            (UNREADABLE, run.unreadable.has_news()),
            (COLLAPSED, self.has_collapsed()),
        ] {
            flags[group.rank()] |= if is_set { flag } else { 0 };
        }
        group.gather_parts(&mut flags)?;
        let any = |flag| flags.iter().any(|of| of & flag != 0);
        if any(FAILED) {
            let in_log = log_error.is_some();
            let own = group.all(log_error.map_or(Ok(()), Err).and(own));
            let e = own.err().unwrap_or_else(|| Error::new("a process failed"));
            return Err(match self.save() {
                Ok(()) if in_log => self.lost(e),
                Ok(()) => e,
                Err(also) => failure::both(e, also),
            });
        }
        let agreed = Agreed {
            stop: any(STOP),
            late: any(LATE),
            save: any(SAVE),
            unreadable: any(UNREADABLE),
            collapsed: any(COLLAPSED),
        };
        own.map(|own| (own, agreed))
    }
}

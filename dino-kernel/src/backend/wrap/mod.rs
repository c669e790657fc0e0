//! Backends that wrap backends: [`Checked`] (spans in range and disjoint, first non-finite number named), [`Timed`] (a profile by
//! op), [`Lockstep`] (run two, compare after every op), [`Lanes`] (every op in several shards). None is known to the model.

mod checked;
mod lanes;
mod lockstep;
mod timed;

pub use checked::{Checked, Violation};
pub use lanes::Lanes;
pub use lockstep::{Lockstep, Mismatch};
pub use timed::{Tally, Timed};

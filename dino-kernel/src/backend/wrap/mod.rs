//! Backends that wrap backends: [`Checked`] (spans in range and disjoint, first non-finite number named), [`Timed`] (a profile by
//! word), [`Lockstep`] (run two, compare after every word). None is known to the model.

mod checked;
mod lockstep;
mod timed;

pub use checked::{Checked, Fault};
pub use lockstep::{Lockstep, Mismatch};
pub use timed::{Tally, Timed};

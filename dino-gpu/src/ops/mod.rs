//! The ops, as launches. Nothing here waits, allocates or reads the device; where a launch fails, the first error is kept for `sync`.
//!
//! An op over a ragged batch is a launch a group.

mod attention;
mod backward;
mod batchnorm;
mod collective;
mod conv;
mod forward;
mod loss;
mod pool;
mod update;

use dino_kernel::crops::Ragged;

/// (first crop, crops, first row, tokens) of every group.
fn groups(n: Ragged) -> impl Iterator<Item = [usize; 4]> {
    let (mut crop, mut row, mut i) = (0, 0, 0);
    std::iter::from_fn(move || {
        let &[count, tokens] = n.groups().get(i)?;
        let group = [crop, count, row, tokens];
        (crop, row, i) = (crop + count, row + count * tokens, i + 1);
        Some(group)
    })
}

//! Units that are read in full and used image by image: unpacked shards, row groups. The latest ones are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Shards;
use crate::error::Result;

/// Bytes of units that are mixed with one another at most, but for a unit that is larger by itself. Twice as much is kept: the
/// units of this buffer and those of the next, which a batch may need at once.
pub(super) const UNPACKED: u64 = 2 << 30;

/// A unit's content, or why there is none; made once, whoever comes first.
type Content<T> = Arc<OnceLock<Result<T>>>;

/// How large a unit is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub images: usize,
    pub bytes: u64,
}

struct Unit<T> {
    number: usize,
    size: Size,
    content: Content<T>,
}

/// The units in use, the latest last.
///
/// The threads that make a batch are at as many positions in it: all units of a batch are needed at once, and where units are small,
/// these are many. So as many are kept as hold two buffers of images ([`Shards::BUFFER`]), as long as they fit the memory.
pub(super) struct Cache<T> {
    units: Mutex<VecDeque<Unit<T>>>,
    /// Units that are kept however large they are.
    least: usize,
    #[cfg(test)]
    pub made: std::sync::atomic::AtomicUsize,
}

impl<T> Cache<T> {
    /// `together`: as in [`Shards`].
    pub fn new(together: usize) -> Cache<T> {
        Cache {
            units: Mutex::default(),
            least: together.saturating_mul(2),
            #[cfg(test)]
            made: Default::default(),
        }
    }

    /// The content of unit `number`, which another thread may be making just now.
    pub fn get(&self, number: usize, size: Size, make: impl FnOnce() -> Result<T>) -> Content<T> {
        let content = {
            let mut units = self.units.lock().unwrap_or_else(PoisonError::into_inner);
            let unit = match units.iter().position(|unit| unit.number == number) {
                Some(at) => units.remove(at).expect("it was found there"),
                None => Unit { number, size, content: Content::default() },
            };
            let content = unit.content.clone();
            units.push_back(unit);
            while units.len() > self.least.max(1) && !fit(&units) {
                units.pop_front();
            }
            content
        };
        content.get_or_init(|| {
            #[cfg(test)]
            self.made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            make()
        });
        content
    }
}

fn fit<T>(units: &VecDeque<Unit<T>>) -> bool {
    let images: usize = units.iter().map(|unit| unit.size.images).sum();
    let bytes = units.iter().fold(0u64, |sum, unit| sum.saturating_add(unit.size.bytes));
    images <= 2 * Shards::BUFFER && bytes <= 2 * UNPACKED
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    /// How often units are made when `order` is requested.
    fn made(together: usize, size: Size, order: impl Iterator<Item = usize>) -> usize {
        let kept = Cache::new(together);
        for number in order {
            let content = kept.get(number, size, || Ok(number));
            assert_eq!(content.get().unwrap().as_ref().unwrap(), &number);
        }
        kept.made.load(Ordering::Relaxed)
    }

    #[test]
    fn small_units_are_made_once_and_large_ones_do_not_pile_up() {
        let rounds = |units: usize| (0..3 * units).map(move |i| i % units);
        assert_eq!(made(4, Size { images: 50, bytes: 5 << 20 }, rounds(160)), 160);
        // More images than two buffers hold, or more bytes: the oldest go, down to twice what is mixed.
        assert_eq!(made(4, Size { images: 50, bytes: 5 << 20 }, rounds(200)), 600);
        assert_eq!(made(1, Size { images: 1, bytes: 2 << 30 }, rounds(2)), 2);
        assert_eq!(made(1, Size { images: 1, bytes: 3 << 30 }, rounds(2)), 2);
        assert_eq!(made(1, Size { images: 1, bytes: 2 << 30 }, rounds(3)), 9);
        assert_eq!(made(0, Size { images: 9000, bytes: u64::MAX }, rounds(2)), 6);
    }

    #[test]
    fn an_error_is_kept_as_well() {
        let kept = Cache::<()>::new(1);
        let size = Size { images: 1, bytes: 1 };
        for _ in 0..3 {
            let content = kept.get(7, size, || Err(crate::error::Error::new("gone")));
            assert!(content.get().unwrap().is_err());
        }
        assert_eq!(kept.made.load(Ordering::Relaxed), 1);
    }
}

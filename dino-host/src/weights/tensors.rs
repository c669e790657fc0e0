//! Where a tensor is stored in a file.

use super::pickle::Dtype;
use std::ops::Range;

/// Where a tensor is stored.
#[derive(Clone, Debug)]
pub struct Location {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Elements between neighbors along every axis.
    pub strides: Vec<usize>,
    /// Which of a file's parts, and bytes of the storage in it.
    pub part: usize,
    pub storage: Range<usize>,
    /// Its first element, counted from there.
    pub offset: usize,
    /// The storage's checksum, where the format has one.
    pub crc: Option<(Range<usize>, u32)>,
    /// Whether the most significant byte of a number is the first.
    pub big_endian: bool,
}

impl Location {
    /// The place of every element in a storage of `elements`; `None` where one is outside, or where they are more than the storage
    /// has, which no tensor that was ever trained does.
    pub(super) fn indices(&self, elements: usize) -> Option<Vec<usize>> {
        let count = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        if count > elements {
            return None;
        }
        if count > 0 {
            let span = self.shape.iter().zip(&self.strides);
            let last = span.map(|(d, s)| (d - 1).checked_mul(*s)).try_fold(self.offset, |n, x| n.checked_add(x?))?;
            if last >= elements {
                return None;
            }
        }
        let mut at = Vec::with_capacity(count);
        at.extend((count > 0).then_some(self.offset));
        // Axis by axis, the outermost first: every place becomes those of its row.
        for (d, s) in self.shape.iter().zip(&self.strides) {
            at = at.iter().flat_map(|first| (0..*d).map(move |i| first + i * s)).collect();
        }
        Some(at)
    }
}

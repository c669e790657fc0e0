//! What the images of a set use of their 16 bits a channel.

use super::Dataset;
use crate::image::remark::remarked;
use rayon::prelude::*;

/// What some of a set's images use of their 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Images of 16 bits among those that were examined.
    pub images: usize,
    /// The highest value in them.
    pub highest: u16,
    /// How many of the 256 levels are left of them.
    pub levels: usize,
}

impl Range {
    /// Below this many levels too little of an image is left to go unreported.
    const FEW: usize = 32;

    /// Examines up to `most` images: spread over the set or, where it is stored in shards, the first ones. `None` where the first
    /// [`Range::FIRST`] of them have 8 bits, or none can be read.
    pub fn of(set: &dyn Dataset, most: usize) -> Option<Range> {
        let most = most.min(set.len());
        let index = |i: usize| if set.shards().is_some() { i } else { i * set.len() / most };
        let look = |i: usize| {
            let (image, remark) = remarked(|| set.image(index(i)));
            let (image, highest) = (image.ok()?, remark.highest?);
            let mut seen = [false; 256];
            image.pixels.iter().for_each(|&x| seen[usize::from(x)] = true);
            Some((highest, seen))
        };
        let first = most.min(Range::FIRST);
        let mut found: Vec<_> = (0..first).into_par_iter().filter_map(look).collect();
        if found.is_empty() {
            return None;
        }
        found.par_extend((first..most).into_par_iter().filter_map(look));
        let levels = (0..256).filter(|&x| found.iter().any(|(_, seen)| seen[x])).count();
        Some(Range { images: found.len(), highest: found.iter().map(|f| f.0).max()?, levels })
    }

    /// Images that decide whether a set has 16 bits.
    pub const FIRST: usize = 16;

    /// The note where few levels are left; `white`: what became 255.
    pub fn note(&self, white: u16) -> Option<String> {
        let Range { images, highest, levels } = *self;
        if levels >= Range::FEW {
            return None;
        }
        let many = if images == 1 { "" } else { "s" };
        let mut note = format!(
            "{levels} of 256 levels are left of the {images} image{many} of 16 bits looked at: their highest value is {highest}, and {white} becomes 255"
        );
        if highest < white {
            note += &format!(" (--white {} or --white auto would use the range)", highest.max(1));
        }
        Some(note)
    }
}

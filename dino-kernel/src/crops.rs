//! Ragged batches: crops of any height and width as one packed token matrix plus a fixed table of at most eight groups.
//!
//! Row order: group, then crop, then token (row 0 of a crop is its class token). Row-wise ops work on one tall matrix; only
//! patches, positions and attention read the table.

/// Most groups one batch may have.
pub const MAX_GROUPS: usize = 8;

/// `count` crops of `height` x `width` pixels. The grid is derived, because the published rule for when the position
/// table is resized goes by the image, not by the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Number of crops.
    pub count: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl Group {
    /// Patches in a column and in a row; surplus pixels at the right and bottom are dropped.
    pub const fn grid(self, patch: usize) -> [usize; 2] {
        [self.height / patch, self.width / patch]
    }

    /// Patches of one crop.
    pub const fn patches(self, patch: usize) -> usize {
        (self.height / patch) * (self.width / patch)
    }
}

/// The crops of a micro-batch, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crops {
    groups: [Group; MAX_GROUPS],
    len: usize,
}

impl Crops {
    /// No crops.
    pub const EMPTY: Crops = Crops { groups: [Group { count: 0, height: 0, width: 0 }; MAX_GROUPS], len: 0 };

    /// A single group.
    pub const fn one(group: Group) -> Crops {
        Crops::EMPTY.with(group)
    }

    /// Appends a group. Panics beyond [`MAX_GROUPS`]; plans check first.
    pub const fn with(mut self, group: Group) -> Crops {
        self.groups[self.len] = group;
        self.len += 1;
        self
    }

    /// The groups, in the order of their rows.
    pub fn groups(&self) -> &[Group] {
        &self.groups[..self.len]
    }

    /// Group `i`.
    pub const fn group(&self, i: usize) -> Group {
        self.groups[i]
    }

    /// Number of groups.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no group.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of crops.
    pub const fn count(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i].count;
            i += 1;
        }
        n
    }

    /// The group of crop `i`, which is one of these.
    pub const fn group_of(&self, i: usize) -> usize {
        let (mut group, mut end) = (0, self.groups[0].count);
        while end <= i {
            group += 1;
            end += self.groups[group].count;
        }
        group
    }

    /// Crops `first .. first + count` of these.
    pub const fn part(&self, first: usize, count: usize) -> Crops {
        let (mut part, mut skip, mut left, mut i) = (Crops::EMPTY, first, count, 0);
        while i < self.len {
            let g = self.groups[i];
            let skipped = if skip < g.count { skip } else { g.count };
            let taken = if left < g.count - skipped { left } else { g.count - skipped };
            if taken > 0 {
                part = part.with(Group { count: taken, height: g.height, width: g.width });
            }
            skip -= skipped;
            left -= taken;
            i += 1;
        }
        part
    }

    /// Pixels of one channel, all crops.
    pub const fn pixels(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i].count * self.groups[i].height * self.groups[i].width;
            i += 1;
        }
        n
    }

    /// The pixels of these crops as rows: feature maps as an op sees them.
    pub const fn maps(&self) -> Ragged {
        let mut r = Ragged { groups: [[0; 2]; MAX_GROUPS], len: self.len };
        let mut i = 0;
        while i < self.len {
            r.groups[i] = [self.groups[i].count, self.groups[i].height * self.groups[i].width];
            i += 1;
        }
        r
    }

    /// Patches, all crops.
    pub const fn patches(&self, patch: usize) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i].count * self.groups[i].patches(patch);
            i += 1;
        }
        n
    }

    /// The token matrix of these crops: a class token and the patches of each.
    pub const fn tokens(&self, patch: usize) -> Ragged {
        let mut r = Ragged { groups: [[0; 2]; MAX_GROUPS], len: self.len };
        let mut i = 0;
        while i < self.len {
            r.groups[i] = [self.groups[i].count, 1 + self.groups[i].patches(patch)];
            i += 1;
        }
        r
    }
}

/// Rows per crop: groups of (crops, tokens of each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ragged {
    groups: [[usize; 2]; MAX_GROUPS],
    len: usize,
}

impl Ragged {
    /// No rows: what has no crops.
    pub const EMPTY: Ragged = Ragged { groups: [[0; 2]; MAX_GROUPS], len: 0 };

    /// `count` crops of one row each: class tokens alone.
    pub const fn single(count: usize) -> Ragged {
        let mut groups = [[0; 2]; MAX_GROUPS];
        groups[0] = [count, 1];
        Ragged { groups, len: 1 }
    }

    /// (crops, tokens of each) of every group.
    pub fn groups(&self) -> &[[usize; 2]] {
        &self.groups[..self.len]
    }

    /// (crops, rows of each) of group `i`.
    pub const fn group(&self, i: usize) -> [usize; 2] {
        self.groups[i]
    }

    /// Number of groups.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// The same without the class tokens.
    pub(crate) fn patches(mut self) -> Ragged {
        self.groups[..self.len].iter_mut().for_each(|group| group[1] -= 1);
        self
    }

    /// Number of crops.
    pub const fn crops(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i][0];
            i += 1;
        }
        n
    }

    /// Number of rows of the packed matrix.
    pub const fn rows(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i][0] * self.groups[i][1];
            i += 1;
        }
        n
    }

    /// Sum over crops of tokens squared: the size of all attention matrices of one head.
    pub const fn squares(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            n += self.groups[i][0] * self.groups[i][1] * self.groups[i][1];
            i += 1;
        }
        n
    }

    /// Most tokens any crop has.
    pub const fn longest(&self) -> usize {
        let (mut n, mut i) = (0, 0);
        while i < self.len {
            if self.groups[i][1] > n {
                n = self.groups[i][1];
            }
            i += 1;
        }
        n
    }

    /// (first row, rows) of every crop, in order.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut row = 0;
        self.groups().iter().flat_map(|&[count, tokens]| core::iter::repeat_n(tokens, count)).map(move |tokens| {
            row += tokens;
            (row - tokens, tokens)
        })
    }

    /// The crop that owns `row`.
    pub fn crop_of(&self, row: usize) -> Option<usize> {
        self.each().position(|(first, tokens)| row < first + tokens)
    }
}

//! The dimensions that operations take: numbers alone, no handles.

use crate::crops::{Crops, Group, Ragged};
use core::ops::Range;

/// y (rows, out) = x (rows, inp) times w (out, inp) transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mat {
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub inp: usize,
    /// Columns of y.
    pub out: usize,
}

/// A row-major matrix (rows, cols).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

/// A row-major matrix (rows, cols) whose rows are normalized, and what is added to their variance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerNorm {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// What is added to the variance.
    pub eps: f64,
}

/// Images to patches (im2col): every group (count, channels, height, width) becomes (count, patches, channels * patch * patch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// The images, in pixels.
    pub crops: Crops,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Color channels.
    pub channels: usize,
}

/// Attention over each crop's own rows; C = heads * head_dim, and the packed projection has rows [q | k | v], each head-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Rows of every crop.
    pub crops: Ragged,
    /// Number of heads, H.
    pub heads: usize,
    /// Columns of a head, D.
    pub head_dim: usize,
}

impl Heads {
    /// Channels.
    pub const fn cols(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// A position table of `from` = (rows, columns) resized to `to`, C = `cols` channels each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Rows and columns of the table.
    pub from: [usize; 2],
    /// Rows and columns after resizing.
    pub to: [usize; 2],
    /// Channels of a position.
    pub cols: usize,
}

/// Tokens of one group: `crops` times (1 class token + `patches`), C = `cols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Embed {
    /// Number of crops.
    pub crops: usize,
    /// Patches of a crop.
    pub patches: usize,
    /// Channels of a token.
    pub cols: usize,
}

/// The prototype loss over the student rows of views `first_view .. first_view + views` of `images` images, view-major, against
/// the rows of `teachers` teacher views. Rows have `bottleneck` columns; there are `prototypes` prototypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossDims {
    /// Images of the micro-batch.
    pub images: usize,
    /// The first view among all views of an image.
    pub first_view: usize,
    /// Number of student views.
    pub views: usize,
    /// Number of teacher views.
    pub teachers: usize,
    /// Columns of a row.
    pub bottleneck: usize,
    /// Number of prototypes, K.
    pub prototypes: usize,
}

impl LossDims {
    /// No loss at all.
    pub const NONE: LossDims =
        LossDims { images: 0, first_view: 0, views: 0, teachers: 0, bottleneck: 0, prototypes: 0 };

    /// Number of student rows.
    pub const fn rows(&self) -> usize {
        self.images * self.views
    }

    /// Number of teacher views that student view `v` is compared with: all but itself.
    pub const fn pairs_of(&self, v: usize) -> usize {
        if v < self.teachers { self.teachers - 1 } else { self.teachers }
    }
}

/// A square window that moves over the rows and columns of feature maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side in pixels.
    pub kernel: usize,
    /// Pixels from one position to the next, in rows and in columns.
    pub stride: usize,
    /// Pixels by which the window reaches over the border, on every side.
    pub padding: usize,
}

impl Window {
    /// Positions of the window along a side of so many pixels; 0 where it does not fit.
    pub const fn positions(&self, side: usize) -> usize {
        let padded = side.saturating_add(2 * self.padding);
        if padded < self.kernel { 0 } else { (padded - self.kernel) / self.stride + 1 }
    }

    /// The maps that have a pixel for every position of the window over these.
    pub const fn over(&self, maps: Crops) -> Crops {
        let (mut out, mut i) = (Crops::EMPTY, 0);
        while i < maps.len() {
            let Group { count, height, width } = maps.group(i);
            out = out.with(Group { count, height: self.positions(height), width: self.positions(width) });
            i += 1;
        }
        out
    }

    /// The pixel that element `at` of the window covers at a position, along a side of so many pixels; none where that is padding.
    pub const fn pixel(&self, position: usize, at: usize, side: usize) -> Option<usize> {
        match (position * self.stride + at).checked_sub(self.padding) {
            Some(pixel) if pixel < side => Some(pixel),
            _ => None,
        }
    }
}

/// A convolution without bias: maps of `inp` channels become maps of `out`. The weight is (out, inp, kernel, kernel), as published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// The maps that are read.
    pub maps: Crops,
    /// The filter's side, stride and zero padding.
    pub window: Window,
    /// Channels that are read.
    pub inp: usize,
    /// Channels that are written.
    pub out: usize,
}

impl Conv {
    /// The maps that are written.
    pub const fn output(&self) -> Crops {
        self.window.over(self.maps)
    }

    /// Elements of one filter: what a sum of the forward pass has.
    pub const fn filter(&self) -> usize {
        self.inp * self.window.kernel * self.window.kernel
    }
}

/// A maximum over windows of every channel of some maps; padding never is the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// The maps that are read.
    pub maps: Crops,
    /// The window, whose padding is less than its side.
    pub window: Window,
    /// Channels.
    pub cols: usize,
}

/// A matrix (rows, cols) whose columns are normalized by statistics over groups of its rows: the rows of all crops of one size of `group`
/// images that follow each other. So a group is what the published code sends through a network at once on one card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Rows of every crop. Crops are view-major within a size: all images' first view, all images' second one, and so on.
    pub rows: Ragged,
    /// Number of images.
    pub images: usize,
    /// Images of a group; divides `images`.
    pub group: usize,
    /// Shards that have each as many rows of every group as are here, and share its statistics; 1 where a group is in one shard.
    pub shards: usize,
    /// Number of columns.
    pub cols: usize,
    /// What is added to the variance.
    pub eps: f64,
    /// Whether a ReLU follows.
    pub relu: bool,
}

impl BatchNorm {
    /// Number of groups: those of the first images of every size, then those of the next ones.
    pub const fn groups(&self) -> usize {
        self.rows.len() * (self.images / self.group)
    }

    /// Number of rows of group `i`, of this shard.
    pub const fn group_rows(&self, i: usize) -> usize {
        let [crops, rows] = self.rows.group(i % self.rows.len());
        crops / self.images * self.group * rows
    }

    /// The rows of group `i`, which follow each other within a view.
    pub fn segments(&self, i: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (size, part) = (i % self.rows.len(), i / self.rows.len());
        let before: usize = self.rows.groups()[..size].iter().map(|[crops, rows]| crops * rows).sum();
        let ([crops, rows], BatchNorm { images, group, .. }) = (self.rows.group(size), *self);
        (0..crops / images).map(move |view| {
            let first = before + (view * images + part * group) * rows;
            first..first + group * rows
        })
    }

    /// Rows of a block, whose sums are formed apart and then added up in order, so that the bits do not depend on the number of threads.
    pub const fn block(&self) -> usize {
        let rows = 32768 / self.cols;
        if rows < 32 { 32 } else { rows }
    }

    /// Blocks of all groups.
    pub const fn blocks(&self) -> usize {
        let (mut blocks, mut i) = (0, 0);
        while i < self.rows.len() {
            let [crops, rows] = self.rows.group(i);
            blocks += crops / self.group * (self.group * rows).div_ceil(self.block());
            i += 1;
        }
        blocks
    }
}

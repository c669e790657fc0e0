//! The dimensions that operations take: numbers alone, no handles.

use crate::crops::{Crops, Ragged};

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

//! Where batch norms take mean and variance from, for every family of networks.

use crate::backend::BatchNorm;
use crate::crops::{Crops, Ragged};
use crate::ops::batchnorm::EPS;

/// Where batch norms take mean and variance from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// Training: from the rows themselves, over groups of images ([`BatchNorm`]); the running ones move.
    Groups {
        /// Images that the crops are of.
        images: usize,
        /// Images of a group, those of one shard.
        group: usize,
        /// Shards that share a group ([`BatchNorm::shards`]).
        shards: usize,
    },
    /// Evaluation: the running ones.
    Running,
}

impl Statistics {
    /// A batch norm of rows of so many columns.
    pub(crate) const fn norm(self, rows: Ragged, cols: usize, relu: bool) -> BatchNorm {
        match self {
            Statistics::Groups { images, group, shards } => {
                BatchNorm { rows, images, group, shards, cols, eps: EPS, relu }
            }
            // The same numbers for all rows: one group.
            Statistics::Running => {
                let rows = rows.rows();
                BatchNorm { rows: Ragged::single(rows), images: rows, group: rows, shards: 1, cols, eps: EPS, relu }
            }
        }
    }

    /// Groups that have numbers of their own, of crops of these sizes.
    pub(crate) const fn groups(self, crops: &Crops) -> usize {
        self.norm(crops.maps(), 1, false).groups()
    }
}

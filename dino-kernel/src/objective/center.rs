//! Centering (paper, eq. 4): c <- m c + (1 - m) mean, the mean teacher logit of every prototype over the rows of a step.
//!
//! Logits are linear in the bottleneck rows, so a step adds up those rows, (rows, bottleneck) to (bottleneck), and the mean logits follow
//! once, from the sum: nothing of size rows x K is stored.

use super::TargetSpans;
use crate::backend::Update;
use crate::dims::{LossDims, Rows};
use crate::mem::State;

/// The sum starts anew.
pub(super) fn begin<O: Update>(o: &mut O, t: &TargetSpans) {
    o.zero(t.sum);
}

/// The sum takes a micro-batch's rows.
pub(super) fn accumulate<O: Update>(o: &mut O, t: &TargetSpans, n: LossDims) {
    o.sum_rows(t.sum, t.rows.z, Rows { rows: n.teachers * n.images, cols: n.bottleneck });
}

/// The center moves toward the mean.
pub(super) fn commit<O: Update>(o: &mut O, t: &TargetSpans, monitor: State, hyper: State, n: Rows) {
    o.commit_center(t.rows.offset, monitor, t.sum, t.rows.prototypes, hyper, n);
}

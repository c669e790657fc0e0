//! Sinkhorn-Knopp targets (SwAV's assignment, which the paper compares centering with: table 15 and appendix B).
//!
//! In matrix form: x = exp(t / T) over all teacher rows i of the batch and all prototypes k; every iteration divides columns by their
//! sums, then rows by theirs. In logarithms an iteration is c_k = lse_i(t_ik / T - r_i), then r_i = lse_k(t_ik / T - c_k), from r = 0,
//! and the targets are softmax_k(t_ik / T - c_k): after any number of iterations they are a number a prototype and one a row, and
//! nothing of size rows x K is stored. One iteration is the paper's softmax(batch): a softmax of every column over the rows, then each
//! row divided by its sum.
//!
//! The last r is formed micro-batch by micro-batch, as for every kind of targets, so a step forms one less here.
//!
//! Processes that share the batch each form the offsets of all of its rows, from the rows of all: the same numbers in the same order as a
//! process alone, so the same bits. What they do more than once is little: a matmul over the teacher's rows and the prototypes for every
//! log-sum-exp, beside the passes of both networks and the loss.

use super::{BatchSpans, TargetSpans};
use crate::backend::{TargetRows, Update};
use crate::dims::LossDims;
use crate::mem::State;

/// The offsets of the targets, T c_k, from the teacher's rows of the full batch. `n` is a micro-batch's.
pub(super) fn offsets<O: Update>(o: &mut O, t: &TargetSpans, iterations: u32, hyper: State, n: LossDims) {
    let (BatchSpans { z, lse, entropy, .. }, TargetRows { prototypes, offset, .. }) = (t.batch, t.rows);
    let rows = n.teachers * n.images;
    let all = LossDims { images: z.len() / n.bottleneck / n.teachers, ..n };
    o.column_lse(offset, z, lse.part(0, 0), prototypes, hyper, all, rows);
    for _ in 1..iterations {
        for first in (0..lse.len() / 2).step_by(rows) {
            let z = z.part(first * n.bottleneck, rows * n.bottleneck);
            let part = TargetRows { z, lse: lse.part(2 * first, 2 * rows), prototypes, offset };
            o.teacher_lse(entropy, part, hyper, n);
        }
        o.column_lse(offset, z, lse, prototypes, hyper, all, rows);
    }
}

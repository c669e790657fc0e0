//! What the student learns: how its targets are formed from the teacher's rows ([`Targets`]), and how its own rows are compared with
//! them ([`Divergence`]).
//!
//! Whatever the rule, the targets are softmax((logits - offset) / temperature), and the loss reads two things of it: a number for every
//! prototype ([`TargetRows::offset`]) and a log-sum-exp for every row ([`TargetRows::lse`]). Centering takes its offsets from the steps
//! before, so the teacher's rows of one micro-batch are enough to form their targets, and a step runs teacher and student micro-batch
//! by micro-batch. A rule that takes them from the rows of this step (Sinkhorn-Knopp: alternating log-sum-exps of rows and columns) needs
//! the teacher's rows of the full batch before the student's first.
//!
//! A further rule is a file beside `center.rs` and an arm of every match here; ops that it needs are ops like any other.

mod center;

use crate::backend::{LossSpans, Prototypes, StudentRows, TargetRows, Update};
use crate::dims::{LossDims, Rows};
use crate::mem::{Act, Layout, Stat, State};
use crate::scalars::monitor;

/// How the teacher's rows become targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Targets {
    /// Minus a running mean of the teacher's logits, the center, which forgets with `momentum`.
    Centered {
        /// Share of the center that a step keeps; published 0.9.
        momentum: f64,
    },
}

/// How a student row is compared with its targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// -sum_k q_k log p_k (paper, eq. 2).
    CrossEntropy,
}

/// What the student learns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// How the targets are formed.
    pub targets: Targets,
    /// How a student row is compared with them.
    pub divergence: Divergence,
}

/// What targets are formed from and where they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetSpans {
    /// The teacher's rows of a micro-batch, as the loss compares with them.
    pub rows: TargetRows,
    /// Entropy of every row's targets (rows).
    pub entropy: Stat,
    /// Sum of the teacher's l2-normalized bottleneck rows so far in this step (bottleneck).
    pub sum: State,
}

impl TargetSpans {
    /// Lays out what is formed of `rows` teacher rows `z`; `n` is (K, bottleneck).
    pub const fn new(z: Act, rows: usize, prototypes: Prototypes, n: Rows, l: &mut Layout) -> TargetSpans {
        let (lse, entropy) = (l.stat(2 * rows), l.stat(rows));
        let (offset, sum) = (l.state(n.rows), l.state(n.cols));
        TargetSpans { rows: TargetRows { z, lse, prototypes, offset }, entropy, sum }
    }
}

impl Objective {
    /// The paper's: centered targets, cross-entropy.
    pub const PUBLISHED: Objective =
        Objective { targets: Targets::Centered { momentum: 0.9 }, divergence: Divergence::CrossEntropy };

    /// The share of a step's mean logits in the center that follows.
    pub const fn center_rate(&self) -> f64 {
        match self.targets {
            Targets::Centered { momentum } => 1.0 - momentum,
        }
    }

    /// Before the first micro-batch of a step, and of every further shard: what is summed over micro-batches starts from zero.
    pub fn begin<O: Update>(&self, o: &mut O, t: &TargetSpans) {
        match self.targets {
            Targets::Centered { .. } => center::begin(o, t),
        }
    }

    /// Once per micro-batch, after the teacher's pass: its rows become targets, and add to what [`Objective::commit`] goes by.
    pub fn targets<O: Update>(&self, o: &mut O, t: &TargetSpans, monitor: State, hyper: State, n: LossDims) {
        o.teacher_lse(t.entropy, t.rows, hyper, n);
        match self.targets {
            Targets::Centered { .. } => center::accumulate(o, t, n),
        }
        o.sum_stat(monitor.part(monitor::ENTROPY, 1), t.entropy);
    }

    /// After every pass of the student: its loss and the gradient of its rows and prototypes.
    pub fn loss<O: Update>(
        &self,
        o: &mut O,
        out: LossSpans,
        student: StudentRows,
        targets: &TargetSpans,
        hyper: State,
        n: LossDims,
    ) {
        match self.divergence {
            Divergence::CrossEntropy => o.dino_loss(out, student, targets.rows, hyper, n),
        }
    }

    /// Once per step, while the teacher's weights are still those that its rows came from; `n` is (K, bottleneck).
    pub fn commit<O: Update>(&self, o: &mut O, t: &TargetSpans, monitor: State, hyper: State, n: Rows) {
        match self.targets {
            Targets::Centered { .. } => center::commit(o, t, monitor, hyper, n),
        }
    }
}

//! What the student learns: how its targets are formed from the teacher's rows ([`Targets`]), and how its own rows are compared with
//! them ([`Divergence`]).
//!
//! Whatever the rule, the targets are softmax((logits - offset) / temperature), and the loss reads two things of it: a number for every
//! prototype ([`TargetRows::offset`]) and a log-sum-exp for every row ([`TargetRows::lse`]). Centering takes its offsets from the steps
//! before, so the teacher's rows of one micro-batch are enough to form their targets, and a step runs teacher and student micro-batch
//! by micro-batch. A rule that takes them from the rows of this step (Sinkhorn-Knopp: alternating log-sum-exps of rows and columns) needs
//! the teacher's rows of the full batch before the student's first.
//!
//! Then the teacher's pass over every micro-batch comes first ([`Objective::whole_batch`]), its bottleneck rows are kept, and its offsets
//! are formed of all of them ([`Objective::offsets`]); what follows is the same for every rule.
//!
//! A further rule is a file beside `center.rs` and an arm of every match here; ops that it needs are ops like any other.

mod center;
mod sinkhorn;

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
    /// By the prototypes' and the rows' shares of the batch in turn, see `sinkhorn.rs`: every prototype gets as much of the batch as any
    /// other. One iteration is the paper's softmax over the batch.
    SinkhornKnopp {
        /// Times that columns, then rows are normalized; published 3.
        iterations: u32,
    },
    /// The logits as they are.
    Plain,
}

/// How a student row is compared with its targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// -sum_k q_k log p_k (paper, eq. 2).
    CrossEntropy,
    /// sum_k (p_k - q_k)^2: the mean squared error between the softmax outputs (paper, table 7), times K.
    SquaredError,
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
    /// What is kept of the full batch; empty unless [`Objective::whole_batch`].
    pub batch: BatchSpans,
}

/// The teacher's rows of the full batch, micro-batch after micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpans {
    /// l2-normalized bottleneck rows of this process's micro-batches (rows, bottleneck).
    pub own: Act,
    /// Those of the full batch (rows of the batch, bottleneck). A process alone has them all: the same span.
    pub z: Act,
    /// Log-sum-exp of every row (rows of the batch, 2), where there is more than one iteration.
    pub lse: Stat,
    /// What is written beside it, and not read (rows of a micro-batch).
    pub entropy: Stat,
}

impl TargetSpans {
    /// Lays out what `objective` forms of `rows` teacher rows `z` of each of a step's micro-batches, of which this process has `own` of
    /// `all`; `n` is (K, bottleneck).
    pub const fn new(
        objective: &Objective,
        z: Act,
        rows: usize,
        [own, all]: [usize; 2],
        prototypes: Prototypes,
        n: Rows,
        l: &mut Layout,
    ) -> TargetSpans {
        let (lse, entropy) = (l.stat(2 * rows), l.stat(rows));
        let (offset, sum) = (l.state(n.rows), l.state(n.cols));
        let [kept, again] = match objective.targets {
            Targets::SinkhornKnopp { iterations } => [rows, if iterations > 1 { rows } else { 0 }],
            Targets::Centered { .. } | Targets::Plain => [0; 2],
        };
        let of_batch = l.act(all * kept * n.cols);
        let batch = BatchSpans {
            own: if own == all { of_batch } else { l.act(own * kept * n.cols) },
            z: of_batch,
            lse: l.stat(2 * again * all),
            entropy: l.stat(again),
        };
        TargetSpans { rows: TargetRows { z, lse, prototypes, offset }, entropy, sum, batch }
    }

    /// The kept rows of this process's micro-batch `part`.
    pub const fn kept(&self, part: usize) -> Act {
        let len = self.rows.z.len();
        self.batch.own.part(part * len, len)
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
            Targets::SinkhornKnopp { .. } | Targets::Plain => 0.0,
        }
    }

    /// Whether the targets of a row depend on all rows of the batch: then a step has the teacher's rows of every micro-batch before the
    /// student's first.
    pub const fn whole_batch(&self) -> bool {
        matches!(self.targets, Targets::SinkhornKnopp { .. })
    }

    /// Whether there is a center, which outlives a step.
    pub const fn has_center(&self) -> bool {
        matches!(self.targets, Targets::Centered { .. })
    }

    /// Before the first micro-batch of a step, and of every further shard: what is summed over micro-batches starts from zero.
    pub fn begin<O: Update>(&self, o: &mut O, t: &TargetSpans) {
        match self.targets {
            Targets::Centered { .. } => center::begin(o, t),
            Targets::SinkhornKnopp { .. } => (),
            Targets::Plain => o.zero(t.rows.offset),
        }
    }

    /// Once per step, with the teacher's rows of all micro-batches kept: the offsets of their targets. Only where the targets depend on
    /// the [`Objective::whole_batch`]; `n` is a micro-batch's.
    pub fn offsets<O: Update>(&self, o: &mut O, t: &TargetSpans, hyper: State, n: LossDims) {
        match self.targets {
            Targets::SinkhornKnopp { iterations } => sinkhorn::offsets(o, t, iterations, hyper, n),
            Targets::Centered { .. } | Targets::Plain => (),
        }
    }

    /// Once per micro-batch, after the teacher's pass: its rows become targets, and add to what [`Objective::commit`] goes by.
    pub fn targets<O: Update>(&self, o: &mut O, t: &TargetSpans, monitor: State, hyper: State, n: LossDims) {
        o.teacher_lse(t.entropy, t.rows, hyper, n);
        match self.targets {
            Targets::Centered { .. } => center::accumulate(o, t, n),
            Targets::SinkhornKnopp { .. } | Targets::Plain => (),
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
            Divergence::SquaredError => o.mse_loss(out, student, targets.rows, hyper, n),
        }
    }

    /// Once per step, while the teacher's weights are still those that its rows came from; `n` is (K, bottleneck).
    pub fn commit<O: Update>(&self, o: &mut O, t: &TargetSpans, monitor: State, hyper: State, n: Rows) {
        match self.targets {
            Targets::Centered { .. } => center::commit(o, t, monitor, hyper, n),
            Targets::SinkhornKnopp { .. } | Targets::Plain => (),
        }
    }
}

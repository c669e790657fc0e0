//! Operands that belong together, as one argument.

use crate::mem::{Act, Stat, State, Weight};

/// Weight and bias of a linear layer, or gain and bias of a layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affine {
    /// Weight (out, inp), or gain (C).
    pub w: Weight,
    /// Bias (out), or (C).
    pub b: Weight,
}

impl Affine {
    /// The same parameters, `by` elements further on: the teacher's.
    pub const fn shift(self, by: usize) -> Affine {
        Affine { w: self.w.shift(by), b: self.b.shift(by) }
    }
}

/// Running mean and variance of every column (C), which a batch norm keeps for evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Mean (C).
    pub mean: State,
    /// Unbiased variance (C).
    pub var: State,
}

/// Mean and 1 / standard deviation of every row (rows), which a layer norm keeps for its backward pass; of a batch norm those of every
/// group and column (groups, C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormStats {
    /// Mean of every row (rows).
    pub mean: Stat,
    /// 1 / sqrt(variance + eps) of every row (rows).
    pub rstd: Stat,
}

/// The output of an attention, and the log-sum-exp of the scaled scores (rows, heads), from which its backward pass forms the
/// probabilities again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// The output (rows, C).
    pub y: Act,
    /// Log-sum-exp of the scaled scores (rows, heads).
    pub lse: Stat,
}

/// One query row a crop, q (crops, C), and keys and values of all rows, kv (rows, 2C); or the gradients of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassQkv {
    /// The class rows' queries (crops, C).
    pub q: Act,
    /// Keys and values of all rows (rows, 2C).
    pub kv: Act,
}

/// The last layer of one network: directions `v` (K, bottleneck) and, per prototype, `scale` = g / |v|. Normalized prototypes
/// are never materialized: logits are (z v^T) * scale. Without weight normalization `v` are the prototypes, and every scale is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prototypes {
    /// Directions (K, bottleneck).
    pub v: Weight,
    /// g / |v| (K).
    pub scale: Stat,
}

/// The student's side of the loss: l2-normalized bottleneck rows z (rows, bottleneck), and the prototypes that they are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StudentRows {
    /// l2-normalized bottleneck rows (rows, bottleneck).
    pub z: Act,
    /// The student's prototypes.
    pub prototypes: Prototypes,
}

/// The teacher's side of the loss: the targets are softmax((z v^T * scale - offset) / temperature), never materialized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetRows {
    /// l2-normalized bottleneck rows (rows, bottleneck).
    pub z: Act,
    /// Log-sum-exp of every row (rows, 2), as [`super::Update::teacher_lse`] writes it.
    pub lse: Stat,
    /// The teacher's prototypes.
    pub prototypes: Prototypes,
    /// What is subtracted from the logits (K), by the rule of the targets: the center, say.
    pub offset: State,
}

/// What the loss writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossSpans {
    /// Cross-entropy, or squared error, of every student row with its targets (rows).
    pub loss: Stat,
    /// Log-sum-exp of every student row (rows, 2), as [`super::Update::teacher_lse`] keeps the teacher's.
    pub lse: Stat,
    /// The gradient of the student's rows (rows, bottleneck).
    pub dz: Act,
}

/// One of the shards that a process works on side by side ([`super::Collective`]), from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane(pub usize);

/// What a step sums over images beside the gradients: the teacher's normalized bottleneck rows (bottleneck), and the monitor's loss and
/// entropy (2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// The sum of the teacher's l2-normalized bottleneck rows (bottleneck).
    pub teacher: State,
    /// The sums of loss and entropy over rows (2).
    pub losses: State,
}

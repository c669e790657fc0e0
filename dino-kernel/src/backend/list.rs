//! The list of ops and how each accesses its operands, written once, in `ops!`: the enum [`Op`], the accesses of a call and the
//! wrappers of [`super::wrap`] are made from it.

use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Span, Stat, State, Weight};
use crate::optim::Optimizer;
use crate::params::ParamTable;

/// How an op uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Written; earlier content does not matter.
    Set,
    /// Read and written.
    Acc,
    /// Read.
    Get,
    /// A parameter that is read and whose gradient accumulates.
    Grad,
    /// A parameter of which only the gradient accumulates; its value is not read.
    GradOnly,
}

/// One span that an op reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The pool that the span indexes.
    pub pool: Pool,
    /// The elements.
    pub span: Span,
    /// Whether the op writes them.
    pub written: bool,
}

/// The spans that one call reads or writes.
#[derive(Clone, Copy, Debug)]
pub struct Accesses {
    list: [Access; 24],
    len: usize,
    /// Arrays of state that the call's optimizer keeps.
    slots: usize,
    /// The lane that the call enters, if it enters one.
    pub(super) lane: Option<usize>,
}

impl Accesses {
    pub(super) fn new() -> Accesses {
        Accesses {
            list: [Access { pool: Pool::Acts, span: Span::EMPTY, written: false }; 24],
            len: 0,
            slots: 0,
            lane: None,
        }
    }

    fn push(&mut self, pool: Pool, span: Span, written: bool) {
        if span.len > 0 {
            self.list[self.len] = Access { pool, span, written };
            self.len += 1;
        }
    }

    /// All of them, in the order of the op's arguments.
    pub fn all(&self) -> &[Access] {
        &self.list[..self.len]
    }
}

/// Anything that can be an operand.
pub(super) trait Operand {
    fn access(&self, access: Use, t: &mut Accesses);
}

macro_rules! operand {
    ($handle:ty, $pool:expr) => {
        impl Operand for $handle {
            fn access(&self, access: Use, t: &mut Accesses) {
                t.push($pool, self.0, access != Use::Get);
            }
        }
    };
}
operand!(Act, Pool::Acts);
operand!(Stat, Pool::Stats);
operand!(State, Pool::State);

impl Operand for Weight {
    fn access(&self, access: Use, t: &mut Accesses) {
        if access != Use::GradOnly {
            t.push(Pool::Weights, self.0, false);
        }
        if access != Use::Get {
            t.push(Pool::Grads, self.0, true);
        }
    }
}

impl Operand for Affine {
    /// A bias is added: its gradient does not depend on its value.
    fn access(&self, access: Use, t: &mut Accesses) {
        self.w.access(access, t);
        self.b.access(if access == Use::Grad { Use::GradOnly } else { access }, t);
    }
}

impl Operand for NormStats {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.mean.access(access, t);
        self.rstd.access(access, t);
    }
}

impl Operand for Running {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.mean.access(access, t);
        self.var.access(access, t);
    }
}

impl Operand for Attention {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.y.access(access, t);
        self.lse.access(access, t);
    }
}

impl Operand for ClassQkv {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.q.access(access, t);
        self.kv.access(access, t);
    }
}

impl Operand for Prototypes {
    /// The use is that of the directions; scales are read.
    fn access(&self, access: Use, t: &mut Accesses) {
        self.v.access(access, t);
        self.scale.access(Use::Get, t);
    }
}

impl Operand for StudentRows {
    /// The use is that of the prototypes; rows are read.
    fn access(&self, access: Use, t: &mut Accesses) {
        self.z.access(Use::Get, t);
        self.prototypes.access(access, t);
    }
}

impl Operand for TargetRows {
    /// The use is that of the log-sum-exp; all else is read.
    fn access(&self, access: Use, t: &mut Accesses) {
        self.z.access(Use::Get, t);
        self.lse.access(access, t);
        self.prototypes.access(Use::Get, t);
        self.offset.access(Use::Get, t);
    }
}

impl Operand for LossSpans {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.loss.access(access, t);
        self.lse.access(access, t);
        self.dz.access(access, t);
    }
}

impl Operand for Sums {
    fn access(&self, access: Use, t: &mut Accesses) {
        self.teacher.access(access, t);
        self.losses.access(access, t);
    }
}

/// An optimizer is no span, but tells that the table after it comes with its arrays of state.
impl Operand for Optimizer {
    fn access(&self, _: Use, t: &mut Accesses) {
        t.slots = self.slots().len();
    }
}

/// A lane is no span either.
impl Operand for Lane {
    fn access(&self, _: Use, t: &mut Accesses) {
        t.lane = Some(self.0);
    }
}

/// Ops over all parameters read or write entire pools: the gradients ([`Use::Get`], [`Use::GradOnly`]), or what the optimizer moves.
impl Operand for &dyn ParamTable {
    fn access(&self, access: Use, t: &mut Accesses) {
        let len = self.len();
        if matches!(access, Use::Get | Use::GradOnly) {
            t.push(Pool::Grads, Span { at: 0, len }, access != Use::Get);
        } else {
            t.push(Pool::Weights, Span { at: 0, len: len + self.teacher_len() }, true);
            t.push(Pool::Slots, Span { at: 0, len: t.slots * len }, true);
        }
    }
}

/// Expands `$make` with every op: its trait, its operands with their use, its other arguments.
macro_rules! ops {
    ($make:ident) => {
        $make! {
            Collective {
                enter(Get lane: Lane;);
                spread(Get x: State;);
                all_gather(Set all: Act, Get own: Act;);
                all_reduce(GradOnly table: &dyn ParamTable, Acc sums: Sums;);
            }
            Forward {
                patchify(Set y: Act, Get x: Act; n: Patches);
                linear(Set y: Act, Get x: Act, Get w: Affine; n: Mat);
                gelu(Set y: Act, Get x: Act;);
                copy(Set y: Act, Get x: Act;);
                relu(Set y: Act, Get x: Act;);
                linear_gelu(Set y: Act, Set pre: Act, Get x: Act, Get w: Affine; n: Mat);
                layernorm(Set y: Act, Set stats: NormStats, Get x: Act, Get w: Affine; n: LayerNorm);
                add(Set y: Act, Get x: Act, Get branch: Act;);
                add_scaled(Set y: Act, Get x: Act, Get branch: Act, Get scale: State; n: Ragged, cols: usize);
                add_layernorm(Set y: Act, Set sum: Act, Set stats: NormStats, Get x: Act, Get branch: Act, Get w: Affine; n: LayerNorm);
                convolve(Set y: Act, Get x: Act, Get w: Weight; n: Conv);
                batch_statistics(Set stats: NormStats, Acc running: Running, Get x: Act; n: BatchNorm);
                running_statistics(Set stats: NormStats, Get running: Running; eps: f64);
                batch_normalize(Set y: Act, Get x: Act, Get residual: Act, Get stats: NormStats, Get w: Affine; n: BatchNorm);
                max_pool(Set y: Act, Get x: Act; n: MaxPool);
                average_pool(Set y: Act, Get x: Act; n: Ragged, cols: usize);
                resize_positions(Set y: Act, Get table: Weight, Get rows: State, Get cols: State; n: Grid);
                embed(Set y: Act, Get patches: Act, Get class: Weight, Get class_position: Weight, Get positions: Act; n: Embed);
                attention(Set out: Attention, Get qkv: Act; n: Heads);
                attention_class(Set out: Attention, Get x: ClassQkv; n: Heads);
                attention_rows(Set y: Act, Get lse: Stat, Get qkv: Act; queries: usize, n: Heads);
                gather_class(Set y: Act, Get x: Act; n: Ragged, cols: usize);
                l2_normalize(Set y: Act, Set norm: Stat, Get x: Act; n: Rows);
                prototype_scale(Set scale: Stat, Get v: Weight, Get g: Weight; n: Rows);
                logits(Set y: Act, Get z: Act, Get p: Prototypes; n: Mat);
            }
            Backward {
                linear_backward(Set dx: Act, Get dy: Act, Get x: Act, Grad w: Affine; n: Mat);
                linear_backward_params(Get dy: Act, Get x: Act, GradOnly w: Affine; n: Mat);
                gelu_backward(Set dx: Act, Get dy: Act, Get x: Act;);
                relu_backward(Set dx: Act, Get dy: Act, Get x: Act;);
                layernorm_backward(Acc dx_acc: Act, Get dy: Act, Get x: Act, Get stats: NormStats, Grad w: Affine; n: Rows);
                scale_crops(Set y: Act, Get x: Act, Get scale: State; n: Ragged, cols: usize);
                attention_backward(Set dqkv: Act, Get dy: Act, Get out: Attention, Get qkv: Act; n: Heads);
                attention_class_backward(Set dx: ClassQkv, Get dy: Act, Get out: Attention, Get x: ClassQkv; n: Heads);
                embed_backward(Set dpatches: Act, Set dpositions: Act, Get dy: Act, GradOnly class: Weight, GradOnly class_position: Weight; n: Embed);
                resize_positions_backward(Get dy: Act, GradOnly table: Weight, Get rows: State, Get cols: State; n: Grid);
                convolve_backward(Set dx: Act, Get dy: Act, Get x: Act, Grad w: Weight; n: Conv);
                convolve_backward_acc(Acc dx_acc: Act, Get dy: Act, Get x: Act, Grad w: Weight; n: Conv);
                convolve_backward_params(Get dy: Act, Get x: Act, GradOnly w: Weight; n: Conv);
                batch_normalize_backward(Set dx: Act, Acc dy: Act, Get x: Act, Get y: Act, Get stats: NormStats, Grad w: Affine; n: BatchNorm);
                max_pool_backward(Set dx: Act, Get dy: Act, Get x: Act; n: MaxPool);
                average_pool_backward(Set dx: Act, Get dy: Act; n: Ragged, cols: usize);
                clear(Set x: Act;);
                scatter_class_acc(Acc dx_acc: Act, Get dy: Act; n: Ragged, cols: usize);
                l2_normalize_backward(Set dx: Act, Get dy: Act, Get y: Act, Get norm: Stat; n: Rows);
                gradients_complete(; from: usize);
            }
            Update {
                zero_grads(;);
                zero(Set x: State;);
                teacher_lse(Set entropy: Stat, Set targets: TargetRows, Get hyper: State; n: LossDims);
                dino_loss(Set out: LossSpans, Grad student: StudentRows, Get targets: TargetRows, Get hyper: State; n: LossDims);
                mse_loss(Set out: LossSpans, Grad student: StudentRows, Get targets: TargetRows, Get hyper: State; n: LossDims);
                column_lse(Set offset: State, Get z: Act, Get lse: Stat, Get p: Prototypes, Get hyper: State; n: LossDims, block: usize);
                sum_rows(Acc sum: State, Get x: Act; n: Rows);
                sum_stat(Acc sum: State, Get x: Stat;);
                keep_sums(Set kept: State, Get table: &dyn ParamTable, Get sums: Sums;);
                add_sums(GradOnly table: &dyn ParamTable, Acc sums: Sums, Get kept: State;);
                weight_norm_backward(Grad p: Prototypes, Grad g: Weight; train_gain: bool, n: Rows);
                clip(Acc monitor: State, GradOnly table: &dyn ParamTable, Get hyper: State;);
                commit_center(Acc center: State, Acc monitor: State, Get sum: State, Get teacher: Prototypes, Get hyper: State; n: Rows);
                optimize(Get rule: Optimizer, Acc table: &dyn ParamTable, Get monitor: State, Get hyper: State;);
                copy_running(Set y: State, Get x: State;);
                commit_running(Acc running: State, Get moved: State, Get monitor: State;);
                follow_running(Acc teacher: State, Get student: State, Get monitor: State, Get hyper: State;);
                ema(Get monitor: State, Acc table: &dyn ParamTable, Get hyper: State;);
            }
        }
    };
}

macro_rules! make_op {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        /// An operation of the traits [`Collective`], [`Forward`], [`Backward`] and [`Update`].
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op {
            $($(
                /// The op of this name.
                $op,
            )*)*
        }

        impl Op {
            /// All of them.
            pub const ALL: &'static [Op] = &[$($(Op::$op,)*)*];

            /// Whether it is issued once for all lanes of a process, for it exchanges something between them ([`Collective`]). A batch norm
            /// does so wherever there are lanes: its statistics are what they exist for.
            pub const fn is_collective(self) -> bool {
                use Op::*;
                matches!(self, enter | spread | all_gather | all_reduce | batch_statistics | batch_normalize_backward)
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $($(Op::$op => stringify!($op),)*)* }
            }
        }
    };
}
ops!(make_op);

/// The accesses of a call, from the operands of the list.
macro_rules! accesses {
    ($($use:ident $arg:ident),*) => {{
        #[allow(unused_mut)]
        let mut t = $crate::backend::Accesses::new();
        $($crate::backend::list::Operand::access(&$arg, $crate::backend::Use::$use, &mut t);)*
        t
    }};
}

// Wrappers can borrow what they wrap.
macro_rules! borrowed {
    ($($tr:ident { $($op:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr> $tr for &mut O {
            $(fn $op(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                (**self).$op($($arg,)* $($dim),*);
            })*
        })*
    };
}
ops!(borrowed);

pub(super) use {accesses, ops};

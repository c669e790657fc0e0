//! The parameter table's row. A parameter is declared once: name, shape, initializer, role; its offset is where the cursor
//! was. The row drives initialization, parameter groups, per-tensor clip, checkpoint keys, upload and the printed plan.

use crate::mem::{Cursor, State, Weight};
use core::fmt;

/// The published key of a parameter, without allocation: `blocks.` 3 `.` `attn.qkv.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// "" for the backbone, "head." for the projection head.
    pub part: &'static str,
    /// A list's name, with its dot, or "".
    pub list: &'static str,
    /// Which element of the list.
    pub index: usize,
    /// The rest of the key.
    pub leaf: &'static str,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part)?;
        if !self.list.is_empty() {
            write!(f, "{}{}.", self.list, self.index)?;
        }
        f.write_str(self.leaf)
    }
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Normal with this standard deviation, redrawn outside +-2 (absolute).
    TruncNormal(f64),
    /// The same with the recipe's standard deviation for linear layers; published: 0.02, whatever the width.
    Linear,
    /// Uniform in +-1/sqrt(fan_in): PyTorch's default for convolutions and linear layers.
    FanIn(usize),
    /// Normal with variance 2 / fan_out (He et al. 2015): torchvision's for the convolutions of a ResNet.
    FanOut(usize),
}

/// What of a network a parameter belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The backbone, whose keys have no prefix.
    Backbone,
    /// The projection head, whose keys begin with `head.`.
    Head,
}

/// Which block of the optimizer's numbers a parameter reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamGroup {
    /// More than one axis and not a bias: follows the weight-decay schedule. Includes the class token and the positions.
    Decay,
    /// One axis, or a bias: never decayed.
    Plain,
    /// [`ParamGroup::Decay`], and of the head's last layer, which is withheld from the optimizer in the first epochs.
    LastDecay,
    /// [`ParamGroup::Plain`], and of that layer.
    LastPlain,
}

impl ParamGroup {
    /// All of them, in the order of their blocks.
    pub const ALL: [ParamGroup; 4] =
        [ParamGroup::Decay, ParamGroup::Plain, ParamGroup::LastDecay, ParamGroup::LastPlain];

    /// Whether the weight decay is for it.
    pub const fn decays(self) -> bool {
        matches!(self, ParamGroup::Decay | ParamGroup::LastDecay)
    }

    /// Whether it is of the head's last layer.
    pub const fn is_last_layer(self) -> bool {
        matches!(self, ParamGroup::LastDecay | ParamGroup::LastPlain)
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// The published key.
    pub name: Name,
    /// The published shape; only the first `rank` entries count.
    pub dims: [usize; 4],
    /// Number of axes.
    pub rank: usize,
    /// How it starts.
    pub init: Init,
    /// What of the network it belongs to.
    pub part: Part,
    /// Which of the optimizer's numbers it reads.
    pub group: ParamGroup,
    /// Not trained (the gain of the last layer, by default). The teacher still averages it.
    pub frozen: bool,
    /// Handle of the student's copy.
    pub at: Weight,
}

impl Spec {
    /// The published shape.
    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// The same parameter as one of another part.
    pub(crate) const fn of(self, part: Part) -> Spec {
        Spec { part, ..self }
    }
}

/// What an optimizer sees of a network: its tensors, in the order in which they are stored.
#[allow(clippy::len_without_is_empty)] // a network always has parameters
pub trait ParamTable {
    /// Calls `f` for every tensor.
    fn visit(&self, f: &mut dyn FnMut(Spec));
    /// Elements of the student, alignment included.
    fn len(&self) -> usize;
    /// Those of the teacher, which has the first of these tensors.
    fn teacher_len(&self) -> usize;
}

/// Declares a parameter of the backbone and takes its span.
pub(crate) const fn spec<const R: usize>(
    name: Name,
    shape: [usize; R],
    init: Init,
    group: ParamGroup,
    c: &mut Cursor,
) -> Spec {
    let (mut dims, mut len, mut i) = ([1; 4], 1, 0);
    while i < R {
        dims[i] = shape[i];
        len *= shape[i];
        i += 1;
    }
    Spec { name, dims, rank: R, init, part: Part::Backbone, group, frozen: false, at: Weight(c.take(len)) }
}

/// Numbers of a network that are no parameters: passes in training move them, evaluation reads them, files carry them (the running mean
/// and variance of a batch norm). Student and teacher have their own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Buffer {
    /// The published key.
    pub name: Name,
    /// What every element starts as.
    pub value: f64,
    /// Its elements (C), counted from the network's first buffer: `running.part(at, len)` is where a network with buffers at `running` has
    /// them.
    pub at: State,
}

/// Declares a buffer and takes its span.
pub(crate) const fn buffer(name: Name, len: usize, value: f64, c: &mut Cursor) -> Buffer {
    Buffer { name, value, at: State(c.take(len)) }
}

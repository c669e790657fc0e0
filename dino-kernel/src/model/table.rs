//! What a network has: every parameter and every buffer, backbone and head.

use super::{Backbone, Head};
use crate::mem::{Cursor, Layout, Weight};
use crate::params::{Buffer, ParamTable, Spec};

/// Every parameter of the student, backbone first: the single source of offsets, initializers, roles and checkpoint keys.
/// The teacher has the same table, [`Table::len`] elements further on, without the predictor, which is the last of the student's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    /// The backbone's shape.
    pub backbone: Backbone,
    /// The head's shape.
    pub head: Head,
}

impl Table {
    /// Calls `f` for every parameter, in the published order.
    pub fn visit(&self, mut f: impl FnMut(Spec)) {
        let mut l = Layout::new();
        self.backbone.params(&mut l, &mut f);
        self.head.visit(&mut l.weights, &mut f);
    }

    /// That of the teacher alone.
    pub const fn of_teacher(&self) -> Table {
        Table { backbone: self.backbone, head: self.head.teacher() }
    }

    /// Elements of the student, alignment included.
    pub const fn len(&self) -> usize {
        let mut c = Cursor { next: self.backbone.len() };
        self.head.weights(&mut c, 0);
        c.next
    }

    /// A network always has parameters.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Elements of the backbone alone: a prefix of the network, so that inference needs no more.
    pub const fn backbone_len(&self) -> usize {
        self.backbone.len()
    }

    /// Elements of the backbone's parameters and, after them, its buffers: what a backbone by itself is stored as.
    pub const fn backbone_numbers(&self) -> usize {
        self.backbone.len() + self.backbone.buffers_len()
    }

    /// Elements of the head's parameters and, after them, its buffers.
    pub const fn head_numbers(&self) -> usize {
        self.len() - self.backbone.len() + self.buffers_len() - self.backbone.buffers_len()
    }

    /// Calls `f` for every buffer, in the published order. Each network has a set, at the offsets of [`Buffer::at`].
    pub fn visit_buffers(&self, mut f: impl FnMut(Buffer)) {
        let mut l = Layout::new();
        self.backbone.buffers(&mut l, &mut f);
        self.head.buffers(&mut l.state, &mut f);
    }

    /// Elements of the student's buffers, alignment included; 0 without any.
    pub const fn buffers_len(&self) -> usize {
        let mut c = Cursor { next: self.backbone.buffers_len() };
        self.head.skip_buffers(&mut c);
        c.next
    }

    /// Whether a step takes groups of images as they are: batch norms, in the backbone or in the head.
    pub const fn batch_statistics(&self) -> bool {
        self.backbone.batch_statistics() || self.head.batch_statistics()
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        let mut n = 0;
        self.visit(|_| n += 1);
        n
    }

    /// Number of parameters, alignment excluded.
    pub fn parameters(&self) -> usize {
        let mut n = 0;
        self.visit(|s| n += s.at.len());
        n
    }

    /// The teacher's copy of a student weight.
    pub const fn teacher(&self, w: Weight) -> Weight {
        w.shift(self.len())
    }
}

impl ParamTable for Table {
    fn visit(&self, f: &mut dyn FnMut(Spec)) {
        Table::visit(self, f);
    }

    fn len(&self) -> usize {
        Table::len(self)
    }

    fn teacher_len(&self) -> usize {
        self.of_teacher().len()
    }
}

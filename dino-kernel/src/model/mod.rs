//! The model, written once: parameter tables, activation layouts, forward and backward, over the ops of [`crate::backend`].

pub mod head;
pub(crate) mod spans;
pub mod vit;

pub use head::Head;
pub use vit::Vit;

use crate::mem::{Cursor, Weight};
use crate::params::{ParamTable, Spec};

/// Every parameter of one network, backbone first: the single source of offsets, initializers, roles and checkpoint keys.
/// The teacher has the same table, [`Table::len`] elements further on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    pub backbone: Vit,
    pub head: Head,
}

impl Table {
    /// Calls `f` for every parameter, in the published order.
    pub fn visit(&self, mut f: impl FnMut(Spec)) {
        let mut c = Cursor::new();
        self.backbone.visit(&mut c, &mut f);
        self.head.visit(&mut c, &mut f);
    }

    /// Elements of one network, alignment included.
    pub const fn len(&self) -> usize {
        let mut c = Cursor::new();
        self.backbone.weights(&mut c);
        self.head.weights(&mut c);
        c.next
    }

    /// A network always has parameters.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Elements of the backbone alone: a prefix of the network, so that inference needs no more.
    pub const fn backbone_len(&self) -> usize {
        let mut c = Cursor::new();
        self.backbone.weights(&mut c);
        c.next
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
}

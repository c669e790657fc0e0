//! The parameters of a backbone with a classifier, by layer.
//!
//! Layers are numbered as by BEiT and its successors: 0 is what comes before the blocks (class token, positions, patch embedding, or a
//! ResNet's stem), block i is layer i + 1, and the last layer, depth + 1, is the final norm and the classifier. With layer-wise decay d
//! a layer's learning rate is that of the classifier times d^(depth + 1 - layer): the earliest moves least.

use crate::dims::Mat;
use crate::mem::{Cursor, Layout};
use crate::model::Backbone;
use crate::params::{Name, ParamGroup, ParamTable, Part, Spec, spec};

/// The parameters of a backbone, and behind them those of a linear classifier on its output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    /// The backbone's shape.
    pub backbone: Backbone,
    /// Number of classes.
    pub classes: usize,
    /// How many last blocks are trained, with the final norm and the classifier; 0: the classifier alone. None: everything.
    pub blocks: Option<usize>,
}

impl Table {
    /// Number of layers: depth + 2.
    pub const fn layers(&self) -> usize {
        self.backbone.depth() + 2
    }

    /// What a layer's learning rate is multiplied by, with layer-wise decay `decay`.
    pub fn scale(&self, decay: f64, layer: usize) -> f64 {
        libm::pow(decay, (self.layers() - 1 - layer) as f64)
    }

    /// Whether a layer's parameters of the backbone stay as they are.
    const fn freezes(&self, layer: usize) -> bool {
        match self.blocks {
            None => false,
            Some(0) => true,
            Some(blocks) => layer + blocks <= self.backbone.depth(),
        }
    }

    /// Weight (classes, C) and bias (classes) of the classifier, under the names that timm and torchvision have for them, next in `c`.
    pub(super) const fn classifier(&self, c: &mut Cursor) -> [Spec; 2] {
        const fn name(leaf: &'static str) -> Name {
            Name { part: "", list: "", index: 0, leaf }
        }
        let ([w, b], [init_w, init_b]) = self.backbone.classifier();
        [
            spec(name(w), [self.classes, self.backbone.dim()], init_w, ParamGroup::Decay, c).of(Part::Head),
            spec(name(b), [self.classes], init_b, ParamGroup::Plain, c).of(Part::Head),
        ]
    }

    /// Its dimensions over so many rows.
    pub const fn mat(&self, rows: usize) -> Mat {
        Mat { rows, inp: self.backbone.dim(), out: self.classes }
    }

    /// Calls `f` for every parameter with its layer, in the published order, the classifier's at the end.
    pub fn visit_layers(&self, f: &mut dyn FnMut(usize, Spec)) {
        let (mut l, last) = (Layout::new(), self.layers() - 1);
        let (mut layer, mut block) = (0, None);
        self.backbone.params(&mut l, &mut |spec| {
            let Name { list, index, leaf, .. } = spec.name;
            if list.is_empty() {
                // In front of the blocks, or behind them.
                layer = if layer == 0 { 0 } else { last };
            } else if block != Some((list, index)) {
                (layer, block) = (layer + 1, Some((list, index)));
            }
            // DeiT decays neither class token nor positions, unlike the published DINO.
            let group = if matches!(leaf, "cls_token" | "pos_embed") { ParamGroup::Plain } else { spec.group };
            f(layer, Spec { group, frozen: self.freezes(layer), ..spec });
        });
        self.classifier(&mut l.weights).into_iter().for_each(|spec| f(last, spec));
    }

    /// What an optimizer sees of one layer.
    pub const fn layer(&self, layer: usize) -> Layer<'_> {
        Layer { table: self, layer }
    }
}

impl ParamTable for Table {
    fn visit(&self, f: &mut dyn FnMut(Spec)) {
        self.visit_layers(&mut |_, spec| f(spec));
    }

    fn len(&self) -> usize {
        let mut c = Cursor { next: self.backbone.len() };
        self.classifier(&mut c);
        c.next
    }

    /// There is no teacher.
    fn teacher_len(&self) -> usize {
        0
    }
}

/// One layer of a table: its parameters are stored where the table has them.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    table: &'a Table,
    layer: usize,
}

impl ParamTable for Layer<'_> {
    fn visit(&self, f: &mut dyn FnMut(Spec)) {
        self.table.visit_layers(&mut |layer, spec| {
            if layer == self.layer {
                f(spec);
            }
        });
    }

    fn len(&self) -> usize {
        self.table.len()
    }

    fn teacher_len(&self) -> usize {
        0
    }
}

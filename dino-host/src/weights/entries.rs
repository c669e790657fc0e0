//! The tensors of a network as files have them: what is read, written, exported and started from goes through this list.

use dino_kernel::model::Table;
use dino_kernel::params::Part;
use std::ops::Range;

/// A tensor of a network. Its name and shape are what a file has, whatever it is: a parameter, or a buffer, which a network keeps beside
/// its parameters and no optimizer sees (the running statistics of a batch norm).
pub(super) struct Entry {
    /// The published name, without a prefix in a backbone, with `head.` in a head.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) part: Part,
    /// Where it is in the table's layout: of a parameter among the parameters, of a buffer among the buffers.
    pub(super) at: Range<usize>,
    /// Whether it is a buffer.
    pub(super) buffer: bool,
}

impl Entry {
    /// Where it is among the numbers of its part, the buffers after the parameters ([`Table::backbone_numbers`],
    /// [`Table::head_numbers`]).
    pub(super) fn in_part(&self, table: &Table) -> Range<usize> {
        let (backbone, buffers) = (table.backbone_len(), table.backbone.buffers_len());
        // What is before the part, and what of the part is before its buffers.
        let (skipped, parameters) = match (self.part, self.buffer) {
            (Part::Backbone, false) => (0, 0),
            (Part::Backbone, true) => (0, backbone),
            (Part::Head, false) => (backbone, 0),
            (Part::Head, true) => (buffers, table.len() - backbone),
        };
        self.at.start - skipped + parameters..self.at.end - skipped + parameters
    }

    /// Its key in a checkpoint: `backbone.X` or `head.X`.
    pub(super) fn key(&self) -> String {
        if self.part == Part::Backbone { format!("backbone.{}", self.name) } else { self.name.clone() }
    }
}

/// Every tensor of a network, in the published order, the buffers after the parameters.
pub(super) fn entries(table: &Table) -> Vec<Entry> {
    let mut all = vec![];
    table.visit(|spec| {
        let (name, shape) = (spec.name.to_string(), spec.shape().to_vec());
        all.push(Entry { name, shape, part: spec.part, at: spec.at.range(), buffer: false });
    });
    table.visit_buffers(|b| {
        let part = if b.name.part == "head." { Part::Head } else { Part::Backbone };
        all.push(Entry { name: b.name.to_string(), shape: vec![b.at.len()], part, at: b.at.range(), buffer: true });
    });
    all
}

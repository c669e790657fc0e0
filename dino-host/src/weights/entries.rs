//! The tensors of a network as files have them: what is read, written, exported and started from goes through this list.

use dino_kernel::model::Table;
use dino_kernel::params::Part;
use std::ops::Range;

/// A tensor of a network. Its name and shape are what a file has, whatever it is: a parameter, as all of them are now, or what a network
/// keeps beside its parameters and no optimizer sees (the running statistics of a batch norm).
pub(super) struct Entry {
    /// The published name, without a prefix in a backbone, with `head.` in a head.
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) part: Part,
    /// Where a network's numbers have it, which are the parameters in the table's layout. What is no parameter has its place behind them.
    pub(super) at: Range<usize>,
}

impl Entry {
    /// Its key in a checkpoint: `backbone.X` or `head.X`.
    pub(super) fn key(&self) -> String {
        if self.part == Part::Backbone { format!("backbone.{}", self.name) } else { self.name.clone() }
    }
}

/// Every tensor of a network, in the published order.
pub(super) fn entries(table: &Table) -> Vec<Entry> {
    let mut all = vec![];
    table.visit(|spec| {
        let (name, shape) = (spec.name.to_string(), spec.shape().to_vec());
        all.push(Entry { name, shape, part: spec.part, at: spec.at.range() });
    });
    all
}

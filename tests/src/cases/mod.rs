//! The table of op cases: operands and calls of every op, written once and read by every check.
//!
//! A [`Row`] builds a [`Case`] from sizes: operands with content, the call of the forward op, and that of its backward op. The checks are
//! `golden_ops` (content from PyTorch's tensors), `gradients` (finite differences in f64), `op_agreement` (backend against backend, at
//! the sizes where kernels change their ways; nothing but the results changes) and `cargo bench -p tests` (time). A new op is a row in
//! `rows/`: its calls, its sizes and, where PyTorch has the op, the prefix of its golden tensors.

mod build;
mod rows;

pub use build::{Build, Source, numbers, ragged};
pub use rows::TABLE;

use crate::backend::{Arena, Factory};
use crate::fixture::Fixture;
use dino_kernel::backend::{Op, Update};
use dino_kernel::mem::{Act, Pool, Span, Weight};

/// A call of some ops. It takes any backend behind one type, so that a case is compiled once.
pub type Call = Box<dyn Fn(&mut dyn Update)>;

/// Where a backward op leaves a gradient.
#[derive(Clone, Copy, Debug)]
pub enum Wrt {
    /// With respect to the first, at the second, which it sets.
    Set(Act, Act),
    /// With respect to the first, at the second, to which it adds.
    Acc(Act, Act),
    /// Of a parameter, to whose gradient it adds.
    Parameter(Weight),
}

/// What a row makes of its operands.
pub struct Calls {
    /// The forward op.
    pub forward: Call,
    /// Its backward op.
    pub backward: Option<Call>,
    /// Terms of the longest sum: what bounds of agreement grow with.
    pub longest_sum: usize,
    /// What agreement is allowed beyond that.
    pub slack: f64,
}

impl Calls {
    /// A forward op alone.
    pub fn forward(longest_sum: usize, forward: impl Fn(&mut dyn Update) + 'static) -> Calls {
        Calls { forward: Box::new(forward), backward: None, longest_sum, slack: 0.0 }
    }

    /// With its backward op.
    pub fn backward(self, backward: impl Fn(&mut dyn Update) + 'static) -> Calls {
        Calls { backward: Some(Box::new(backward)), ..self }
    }
}

/// Operands and calls.
pub struct Case {
    /// The operands.
    pub arena: Arena,
    /// Every operand that may be a golden output, by its name in a fixture.
    pub outputs: Vec<(String, Pool, Span)>,
    /// The output and its gradient, of a case with a backward op.
    pub result: Option<[Act; 2]>,
    /// The gradients that the backward op gives.
    pub wrt: Vec<Wrt>,
    /// The calls.
    pub calls: Calls,
}

/// The shape of the golden tensor of an operand's name.
pub type Shapes<'a> = dyn Fn(&str) -> Vec<usize> + 'a;

/// Where the golden tensors of a row are.
pub struct Golden {
    /// The fixture.
    pub file: &'static str,
    /// Names are this, perhaps a number, a dot, and the operand's name.
    pub prefix: &'static str,
    /// The sizes of a case, from its tensors.
    pub sizes: fn(&Shapes) -> Vec<usize>,
    /// Whether the backward op's results are golden too.
    pub backward: bool,
    /// Outputs that no op gives, and why.
    pub skip: &'static [(&'static str, &'static str)],
}

/// An op, or a forward op with its backward op, at several sizes.
pub struct Row {
    /// Its name in messages.
    pub name: &'static str,
    /// The ops that it calls.
    pub ops: &'static [Op],
    /// Sizes for finite differences of every element; none if nothing has a gradient here.
    pub small: &'static [&'static [usize]],
    /// Sizes at which kernels change their ways: tails, splits, strips, more chunks than threads.
    pub edges: &'static [&'static [usize]],
    /// The size that is timed: a training step of ViT-S/16 on four images.
    pub timed: &'static [usize],
    /// The KiB of workspace that a GPU has for `edges`: a small one makes many tiles and strips.
    pub workspace: usize,
    /// Its golden tensors.
    pub golden: Option<Golden>,
    /// Lays out operands of these sizes and calls the ops.
    pub build: fn(&mut Build, &[usize]) -> Calls,
}

impl Row {
    /// The case of these sizes over random numbers.
    pub fn random(&self, sizes: &[usize]) -> Case {
        self.case(Source::Random, sizes)
    }

    /// The case with the tensors of `prefix` in a fixture.
    pub fn golden(&self, file: &Fixture, prefix: &str) -> Case {
        let golden = self.golden.as_ref().expect("a row with golden tensors");
        let sizes = (golden.sizes)(&|name| file.get(&format!("{prefix}.{name}")).shape.clone());
        self.case(Source::Golden(file, prefix), &sizes)
    }

    fn case(&self, source: Source<'_>, sizes: &[usize]) -> Case {
        let mut build = Build::new(source);
        let calls = (self.build)(&mut build, sizes);
        build.finish(calls)
    }
}

impl Case {
    /// The operands in a backend of exactly their size, and the calls.
    pub fn place<F: Factory>(self) -> (F::Backend, Calls) {
        (self.arena.build::<F>(), self.calls)
    }
}

/// The row of this name.
pub fn row(name: &str) -> &'static Row {
    let rows = TABLE.iter().flat_map(|rows| rows.iter());
    rows.into_iter().find(|row| row.name == name).unwrap_or_else(|| panic!("the table has no row {name:?}"))
}

/// Ops over all parameters, or over a whole pool: `op_agreement` and the tests of steps check them, from the plan of a network.
pub const OF_A_STEP: &[Op] = &[
    Op::enter,
    Op::spread,
    Op::all_gather,
    Op::all_reduce,
    Op::gradients_complete,
    Op::zero_grads,
    Op::zero,
    Op::keep_sums,
    Op::add_sums,
    Op::clip,
    Op::commit_center,
    Op::optimize,
    Op::copy_running,
    Op::commit_running,
    Op::follow_running,
    Op::ema,
];

#[test]
fn every_op_has_a_row() {
    let has = |op: &Op| OF_A_STEP.contains(op) || TABLE.iter().flat_map(|t| t.iter()).any(|row| row.ops.contains(op));
    let without: Vec<_> = Op::ALL.iter().filter(|op| !has(op)).collect();
    assert!(without.is_empty(), "ops without a row in tests/src/cases/rows: {without:?}");
}

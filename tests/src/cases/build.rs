//! Lays out the operands of a case, by name.

use super::{Calls, Case, Wrt};
use crate::backend::Arena;
use crate::fixture::Fixture;
use crate::training::normals;
use dino_kernel::backend::{Affine, NormStats};
use dino_kernel::crops::{Crops, Group, Ragged};
use dino_kernel::mem::{Act, Pool, Span, Stat, State, Weight};

/// `n` numbers that bf16 holds, so that operands are the same in either precision.
pub fn numbers(seed: usize, n: usize, scale: f64) -> Vec<f64> {
    normals(seed as u64, n).iter().map(|x| f64::from(half::bf16::from_f64(scale * x))).collect()
}

/// What operands hold.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Random numbers that bf16 holds.
    Random,
    /// The tensors of a fixture whose names begin with this prefix and a dot; zero where there is none of the operand's name.
    Golden(&'a Fixture, &'a str),
}

/// Lays out operands. Names are those of golden tensors, without their prefix.
pub struct Build<'a> {
    source: Source<'a>,
    arena: Arena,
    operands: usize,
    outputs: Vec<(String, Pool, Span)>,
    result: Option<[Act; 2]>,
    wrt: Vec<Wrt>,
}

impl<'a> Build<'a> {
    pub(super) fn new(source: Source<'a>) -> Build<'a> {
        let (outputs, wrt) = (Vec::new(), Vec::new());
        Build { source, arena: Arena::new(), operands: 0, outputs, result: None, wrt }
    }

    pub(super) fn finish(self, calls: Calls) -> Case {
        let Build { arena, outputs, result, wrt, .. } = self;
        Case { arena, outputs, result, wrt, calls }
    }

    /// A tensor of the fixture: a setting, which is no operand. None where operands are random.
    pub fn setting(&self, name: &str) -> Option<&'a [f64]> {
        match self.source {
            Source::Random => None,
            Source::Golden(file, prefix) => Some(&file.get(&format!("{prefix}.{name}")).data),
        }
    }

    /// The content of an operand.
    fn content(&mut self, name: &str, len: usize, scale: f64, mean: f64) -> Vec<f64> {
        self.operands += 1;
        match self.source {
            Source::Random => {
                let drawn = normals(self.operands as u64, len);
                drawn.iter().map(|x| f64::from(half::bf16::from_f64(mean + scale * x))).collect()
            }
            Source::Golden(file, prefix) => {
                let key = format!("{prefix}.{name}");
                if file.has(&key) { file.get(&key).data.clone() } else { vec![0.0; len] }
            }
        }
    }

    /// An activation that is read: normal numbers around 0.
    pub fn input(&mut self, name: &str, len: usize) -> Act {
        self.input_around(name, len, 1.0, 0.0)
    }

    /// An activation that is read: normal numbers of this scale around this mean.
    pub fn input_around(&mut self, name: &str, len: usize, scale: f64, mean: f64) -> Act {
        let content = self.content(name, len, scale, mean);
        self.arena.input(&content)
    }

    /// An activation that is set.
    pub fn output(&mut self, name: &str, len: usize) -> Act {
        let act = self.arena.act(len);
        self.outputs.push((name.into(), Pool::Acts, act.0));
        act
    }

    /// An activation to which an op adds: random numbers, or zeros under golden tensors.
    pub fn sum(&mut self, name: &str, len: usize) -> Act {
        let act = match self.source {
            Source::Random => self.input(name, len),
            Source::Golden(..) => self.arena.input(&vec![0.0; len]),
        };
        self.outputs.push((name.into(), Pool::Acts, act.0));
        act
    }

    /// A parameter: normal numbers of this scale. Its gradient is the golden output `d` and its name.
    pub fn weight(&mut self, name: &str, len: usize, scale: f64) -> Weight {
        let content = self.content(name, len, scale, 0.0);
        let weight = self.arena.weight(&content);
        self.outputs.push((format!("d{name}"), Pool::Grads, weight.0));
        weight
    }

    /// A parameter whose rows are all the same.
    pub fn same_rows(&mut self, rows: usize, row: &[f64]) -> Weight {
        self.arena.weight(&row.repeat(rows))
    }

    /// Weight (out, inp) of scale 1 / sqrt(inp), and bias.
    pub fn affine(&mut self, out: usize, inp: usize) -> Affine {
        Affine { w: self.weight("w", out * inp, 1.0 / (inp as f64).sqrt()), b: self.weight("b", out, 0.5) }
    }

    /// Numbers of one step that an op sets.
    pub fn stat(&mut self, len: usize) -> Stat {
        self.arena.stat(len)
    }

    /// Numbers of one step that are read.
    pub fn stats(&mut self, values: &[f64]) -> Stat {
        self.arena.stats(values)
    }

    /// What a norm keeps of every row.
    pub fn norm_stats(&mut self, rows: usize) -> NormStats {
        NormStats { mean: self.stat(rows), rstd: self.stat(rows) }
    }

    /// State that is read, or added to.
    pub fn state(&mut self, values: &[f64]) -> State {
        self.arena.state(values)
    }

    /// The output whose gradient is checked: it comes back with the memory of its gradient, which is read.
    pub fn result(&mut self, y: Act) -> Act {
        let dy = self.input_around("dy", y.len(), 1.0, 0.5);
        self.result = Some([y, dy]);
        dy
    }

    /// The gradient with respect to an activation, which the backward op sets.
    pub fn set(&mut self, x: Act, dx: Act) {
        self.wrt.push(Wrt::Set(x, dx));
    }

    /// The gradient with respect to an activation, to which the backward op adds.
    pub fn acc(&mut self, x: Act, dx: Act) {
        self.wrt.push(Wrt::Acc(x, dx));
    }

    /// The gradient of parameters, to which the backward op adds.
    pub fn parameters(&mut self, weights: impl IntoIterator<Item = Weight>) {
        self.wrt.extend(weights.into_iter().map(Wrt::Parameter));
    }
}

/// Groups of crops from sizes, three numbers each: how many, their height, their width.
pub(super) fn crops(sizes: &[usize]) -> Crops {
    let group = |c: Crops, &[count, height, width]: &[usize; 3]| c.with(Group { count, height, width });
    sizes.as_chunks().0.iter().fold(Crops::EMPTY, group)
}

/// Rows of crops from sizes, two numbers each: how many, and their tokens, the class token included.
pub fn ragged(sizes: &[usize]) -> Ragged {
    let group = |c: Crops, &[count, tokens]: &[usize; 2]| c.with(Group { count, height: tokens - 1, width: 1 });
    sizes.as_chunks().0.iter().fold(Crops::EMPTY, group).tokens(1)
}

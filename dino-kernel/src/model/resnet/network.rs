//! A network (a shape, its weights and running statistics) and its passes, each with every handle that it needs.

use super::ResNet;
use super::acts::{ResNetActs, ResNetGrads};
use crate::backend::Forward;
use crate::crops::{Crops, Ragged};
use crate::dims::Patches;
use crate::mem::{Act, Cursor, Layout, Pool, Span, State, max};
use crate::model::spans::pass_on;
use crate::model::{Output, Save, Statistics};
use crate::params::Name;

/// A residual network over the crops of a micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// The shape.
    pub resnet: ResNet,
    /// Where its parameters and its running statistics begin.
    pub(super) start: Layout,
    /// The running statistics that its passes read or move.
    pub running: State,
    /// The crops' pixels, a row of channels each.
    pub input: Act,
    statistics: Statistics,
    crops: Crops,
}

/// A forward pass over some of a network's crops and, with gradients, a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// The shape.
    pub resnet: ResNet,
    pub(super) start: Layout,
    /// What the forward pass writes.
    pub acts: ResNetActs,
    /// Empty without a backward pass.
    pub grads: ResNetGrads,
    /// The input of the pass's crops.
    pub(super) input: Act,
}

const fn start(weights: usize, running: State) -> Layout {
    let mut l = Layout::new();
    (l.weights, l.state) = (Cursor { next: weights }, Cursor { next: running.0.at });
    l
}

impl ResNet {
    /// The network whose parameters come next, with the running statistics of the caller.
    pub(in crate::model) const fn network(
        &self,
        crops: Crops,
        statistics: Statistics,
        running: State,
        l: &mut Layout,
    ) -> Network {
        let start = start(l.weights.next, running);
        let mut end = *l;
        self.skip(&mut end);
        l.weights = end.weights;
        let input = l.act(crops.pixels() * self.channels);
        Network { resnet: *self, start, running, input, statistics, crops }
    }
}

impl Network {
    /// The teacher beside this student.
    pub(in crate::model) const fn teacher(&self, by: usize, crops: Crops, running: State) -> Network {
        let start = start(self.start.weights.next + by, running);
        let input = self.input.part(0, crops.pixels() * self.resnet.channels);
        Network { start, running, input, crops, ..*self }
    }

    pub(in crate::model) const fn pixels(&self, passes: &mut Layout) -> Act {
        passes.act(self.crops.pixels() * self.resnet.channels)
    }

    pub(in crate::model) const fn pass(
        &self,
        [first, count]: [usize; 2],
        output: Output,
        save: Save,
        l: &mut Layout,
    ) -> Pass {
        let (before, crops, channels) =
            (self.crops.part(0, first), self.crops.part(first, count), self.resnet.channels);
        Pass {
            resnet: self.resnet,
            start: self.start,
            acts: self.resnet.acts(crops, self.statistics, matches!(output, Output::Dense), save, l),
            grads: ResNetGrads::EMPTY,
            input: self.input.part(before.pixels() * channels, crops.pixels() * channels),
        }
    }

    /// Its pixels and its only pass. Pixels are not read again once they are rows: the pass may write over them.
    pub(in crate::model) const fn inference(&self, output: Output, l: &mut Layout) -> (Act, Pass) {
        let mut early = *l;
        let pixels = self.pixels(&mut early);
        let pass = self.pass([0, self.crops.count()], output, Save::Nothing, l);
        l.acts.next = max(l.acts.next, early.acts.next);
        (pixels, pass)
    }

    /// Rows of channels are patches of one pixel.
    pub(in crate::model) fn prepare<O: Forward>(&self, o: &mut O, pixels: Act) {
        o.patchify(self.input, pixels, Patches { crops: self.crops, patch: 1, channels: self.resnet.channels });
    }
}

impl Pass {
    pub(in crate::model) const fn with_gradients(self, l: &mut Layout) -> Pass {
        Pass { grads: self.resnet.grads(&self.acts, l), ..self }
    }

    /// The stream in front of block `i` (pixels, channels); behind the last block for their number.
    pub const fn stream(&self, i: usize) -> Act {
        if i < self.resnet.depth() { self.acts.block(&self.resnet, i).x } else { self.acts.last }
    }

    pub(in crate::model) const fn y(&self) -> Act {
        if self.acts.pooled.len() > 0 { self.acts.pooled } else { self.acts.last }
    }

    pub(in crate::model) fn spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        self.acts.visit(&self.resnet, part, f);
    }

    pub(in crate::model) fn gradient_spans(&self, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let ResNetGrads { dy, dx } = self.grads;
        pass_on(f, part, "", 0, Ragged::single(self.acts.crops.count()), [("dy", Pool::Acts, dy.0)]);
        let scratch = [("dx.0", dx[0]), ("dx.1", dx[1])];
        pass_on(f, part, "", 0, Ragged::EMPTY, scratch.map(|(leaf, a)| (leaf, Pool::Acts, a.0)));
    }

    pub(in crate::model) fn reused(&self, f: &mut impl FnMut(Span, Ragged)) {
        self.acts.reused(&self.resnet, &self.grads, f);
    }
}

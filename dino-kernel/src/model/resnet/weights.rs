//! The parameters and the running statistics: their lists and their handles.

use super::{BlockShape, MAX_STAGES, ResNet, UNITS, Unit};
use crate::backend::{Affine, Running};
use crate::mem::{Cursor, Layout, State, Weight};
use crate::params::{Buffer, Init, Name, ParamGroup, Spec, buffer, spec};

/// Published names of a unit: weight of the convolution, gain and bias of the norm, its running mean and variance.
type Leaves = [&'static str; 5];

const fn leaves(i: usize) -> Leaves {
    match i {
        0 => ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"],
        1 => ["conv2.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"],
        _ => ["conv3.weight", "bn3.weight", "bn3.bias", "bn3.running_mean", "bn3.running_var"],
    }
}

const SHORTCUT: Leaves = [
    "downsample.0.weight",
    "downsample.1.weight",
    "downsample.1.bias",
    "downsample.1.running_mean",
    "downsample.1.running_var",
];

/// Published names of the stages.
pub(super) const LAYERS: [&str; MAX_STAGES] =
    ["layer1.", "layer2.", "layer3.", "layer4.", "layer5.", "layer6.", "layer7.", "layer8."];

/// Handles of a unit's parameters and of its running statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnitWeights {
    pub(super) conv: Weight,
    pub(super) norm: Affine,
    pub(super) running: Running,
}

impl UnitWeights {
    const NONE: UnitWeights = UnitWeights {
        conv: Weight::EMPTY,
        norm: Affine { w: Weight::EMPTY, b: Weight::EMPTY },
        running: Running { mean: State::EMPTY, var: State::EMPTY },
    };
}

/// Those of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockWeights {
    pub(super) units: [UnitWeights; UNITS],
    pub(super) shortcut: UnitWeights,
}

impl Unit {
    /// `at`: the name's part in front of the leaves.
    const fn specs(&self, at: Name, [conv, gain, bias, ..]: Leaves, c: &mut Cursor) -> [Spec; 3] {
        let k = self.window.kernel;
        let kaiming = Init::FanOut(self.out * k * k);
        [
            spec(Name { leaf: conv, ..at }, [self.out, self.inp, k, k], kaiming, ParamGroup::Decay, c),
            spec(Name { leaf: gain, ..at }, [self.out], Init::Ones, ParamGroup::Plain, c),
            spec(Name { leaf: bias, ..at }, [self.out], Init::Zeros, ParamGroup::Plain, c),
        ]
    }

    const fn buffers(&self, at: Name, [.., mean, var]: Leaves, c: &mut Cursor) -> [Buffer; 2] {
        [buffer(Name { leaf: mean, ..at }, self.out, 0.0, c), buffer(Name { leaf: var, ..at }, self.out, 1.0, c)]
    }

    /// Names do not matter for handles.
    const fn weights(&self, l: &mut Layout) -> UnitWeights {
        let [conv, gain, bias] = self.specs(NAME, SHORTCUT, &mut l.weights);
        let [mean, var] = self.buffers(NAME, SHORTCUT, &mut l.state);
        UnitWeights {
            conv: conv.at,
            norm: Affine { w: gain.at, b: bias.at },
            running: Running { mean: mean.at, var: var.at },
        }
    }
}

const NAME: Name = Name { part: "", list: "", index: 0, leaf: "" };

impl BlockShape {
    /// Calls `f` for every unit, in the published order.
    fn each(&self, mut f: impl FnMut(&Unit, Name, Leaves)) {
        let at = Name { list: LAYERS[self.stage], index: self.index, ..NAME };
        for (i, unit) in self.units[..self.len].iter().enumerate() {
            f(unit, at, leaves(i));
        }
        if let Some(unit) = &self.shortcut {
            f(unit, at, SHORTCUT);
        }
    }

    const fn weights(&self, l: &mut Layout) -> BlockWeights {
        let (mut units, mut i) = ([UnitWeights::NONE; UNITS], 0);
        while i < self.len {
            units[i] = self.units[i].weights(l);
            i += 1;
        }
        let shortcut = match &self.shortcut {
            Some(unit) => unit.weights(l),
            None => UnitWeights::NONE,
        };
        BlockWeights { units, shortcut }
    }
}

impl ResNet {
    /// Calls `f` for every unit, in the published order.
    fn each_unit(&self, mut f: impl FnMut(&Unit, Name, Leaves)) {
        f(&self.stem_unit(), NAME, leaves(0));
        for i in 0..self.depth() {
            self.block_shape(i).each(&mut f);
        }
    }

    /// Calls `f` for every parameter, in the published order.
    pub(in crate::model) fn visit(&self, c: &mut Cursor, f: &mut impl FnMut(Spec)) {
        self.each_unit(|unit, at, leaves| unit.specs(at, leaves, c).into_iter().for_each(&mut *f));
    }

    /// Calls `f` for every running mean and variance, in the published order.
    pub(in crate::model) fn visit_buffers(&self, c: &mut Cursor, f: &mut impl FnMut(Buffer)) {
        self.each_unit(|unit, at, leaves| unit.buffers(at, leaves, c).into_iter().for_each(&mut *f));
    }

    /// Moves on by all parameters and running statistics.
    pub(in crate::model) const fn skip(&self, l: &mut Layout) {
        self.stem_weights(l);
        self.skip_blocks(self.depth(), l);
    }

    const fn skip_blocks(&self, blocks: usize, l: &mut Layout) {
        let mut i = 0;
        while i < blocks {
            self.block_shape(i).weights(l);
            i += 1;
        }
    }

    /// Handles of the stem, the network beginning at `l`.
    pub(super) const fn stem_weights(&self, l: &mut Layout) -> UnitWeights {
        self.stem_unit().weights(l)
    }

    /// Handles of block `i`, the network beginning at `l`.
    pub(super) const fn block_weights(&self, i: usize, mut l: Layout) -> BlockWeights {
        self.stem_weights(&mut l);
        self.skip_blocks(i, &mut l);
        self.block_shape(i).weights(&mut l)
    }
}

//! The forward pass, straight down.

use super::acts::{BlockActs, UnitActs};
use super::weights::{BlockWeights, UnitWeights};
use super::{BlockShape, Pass, Unit};
use crate::backend::Forward;
use crate::crops::Crops;
use crate::mem::Act;
use crate::model::Statistics;
use crate::ops::batchnorm::EPS;

impl Unit {
    /// y = norm(conv(x)) + residual, its ReLU if the unit has one; x of these maps.
    fn forward<O: Forward>(
        &self,
        o: &mut O,
        w: &UnitWeights,
        a: &UnitActs,
        [x, residual]: [Act; 2],
        maps: Crops,
        statistics: Statistics,
    ) {
        let n = statistics.norm(self.window.over(maps).maps(), self.out, self.relu);
        o.convolve(a.pre, x, w.conv, self.conv(maps));
        match statistics {
            Statistics::Groups { .. } => o.batch_statistics(a.stats, w.running, a.pre, n),
            Statistics::Running => o.running_statistics(a.stats, w.running, EPS),
        }
        o.batch_normalize(a.y, a.pre, residual, a.stats, w.norm, n);
    }
}

impl BlockShape {
    fn forward<O: Forward>(&self, o: &mut O, w: &BlockWeights, a: &BlockActs, statistics: Statistics) {
        let shortcut = match &self.shortcut {
            Some(unit) => {
                unit.forward(o, &w.shortcut, &a.shortcut, [a.x, Act::EMPTY], a.maps, statistics);
                a.shortcut.y
            }
            None => a.x,
        };
        let (mut x, mut maps) = (a.x, a.maps);
        for (i, unit) in self.units[..self.len].iter().enumerate() {
            let residual = if i + 1 == self.len { shortcut } else { Act::EMPTY };
            unit.forward(o, &w.units[i], &a.units[i], [x, residual], maps, statistics);
            (x, maps) = (a.units[i].y, unit.window.over(maps));
        }
    }
}

impl Pass {
    /// Block `i`, from the stream in front of it to the next one ([`Pass::stream`]).
    pub fn forward_block<O: Forward>(&self, o: &mut O, i: usize) {
        let (r, acts) = (&self.resnet, &self.acts);
        r.block_shape(i).forward(o, &r.block_weights(i, self.start), &acts.block(r, i), acts.statistics);
    }

    /// From the input to the output at [`Pass::y`].
    pub(in crate::model) fn forward<O: Forward>(&self, o: &mut O) {
        let (r, acts, mut l) = (&self.resnet, &self.acts, self.start);
        let (stem, unit, w) = (acts.stem(r), r.stem_unit(), r.stem_weights(&mut l));
        unit.forward(o, &w, &stem.unit, [self.input, Act::EMPTY], acts.crops, acts.statistics);
        if r.stem.pool {
            o.max_pool(stem.x, stem.unit.y, r.max_pool(unit.window.over(acts.crops)));
        }
        for i in 0..r.depth() {
            self.forward_block(o, i);
        }
        if acts.pooled.len() > 0 {
            o.average_pool(acts.pooled, acts.last, acts.last_maps, r.dim());
        }
    }
}

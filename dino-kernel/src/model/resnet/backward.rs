//! The backward pass: the mirror image of the forward pass.

use super::acts::{BlockActs, Scratch, UnitActs, at_end};
use super::weights::{BlockWeights, UnitWeights};
use super::{BlockShape, Pass, UNITS, Unit};
use crate::backend::Backward;
use crate::crops::Crops;
use crate::mem::Act;
use crate::model::Statistics;

impl Unit {
    /// From dy, the gradient of y, to d_pre, that of what the convolution wrote; dy leaves as the gradient in front of the ReLU.
    fn norm_backward<O: Backward>(
        &self,
        o: &mut O,
        w: &UnitWeights,
        a: &UnitActs,
        [d_pre, dy]: [Act; 2],
        maps: Crops,
        statistics: Statistics,
    ) -> Act {
        let n = statistics.norm(self.window.over(maps).maps(), self.out, self.relu);
        let (d_pre, y) = (d_pre.part(0, a.pre.len()), if self.relu { a.y } else { Act::EMPTY });
        o.batch_normalize_backward(d_pre, dy, a.pre, y, a.stats, w.norm, n);
        d_pre
    }
}

/// What every block of a pass is told.
#[derive(Clone, Copy)]
struct Context {
    statistics: Statistics,
    /// What cheap units and norms inside a branch wrote is computed again, from the same numbers.
    again: bool,
}

impl Context {
    /// What the unit's convolution of x wrote, unless it was kept.
    fn pre_again<O: Backward>(&self, o: &mut O, unit: &Unit, w: &UnitWeights, a: &UnitActs, x: Act, maps: Crops) {
        if self.again && unit.cheap {
            o.convolve(a.pre, x, w.conv, unit.conv(maps));
        }
    }

    /// What its norm wrote inside a branch, unless it was kept.
    fn y_again<O: Backward>(&self, o: &mut O, unit: &Unit, w: &UnitWeights, a: &UnitActs, maps: Crops) {
        if self.again {
            let n = self.statistics.norm(unit.window.over(maps).maps(), unit.out, unit.relu);
            o.batch_normalize(a.y, a.pre, Act::EMPTY, a.stats, w.norm, n);
        }
    }
}

impl BlockShape {
    /// From dy, the gradient of what the block writes, to that of what it reads: in dy's own span, or in `free` where the shape changes.
    fn backward<O: Backward>(
        &self,
        o: &mut O,
        w: &BlockWeights,
        a: &BlockActs,
        [dy, free]: [Act; 2],
        c: Context,
    ) -> Act {
        let Scratch { d_pre, d_unit, .. } = a.scratch;
        // The maps that every unit reads.
        let (mut maps, last) = ([a.maps; UNITS], self.len - 1);
        for i in 0..last {
            maps[i + 1] = self.units[i].window.over(maps[i]);
        }
        // A branch has two units or three. What the last one reads is needed first where it convolves again.
        let before = last - 1;
        c.y_again(o, &self.units[before], &w.units[before], &a.units[before], maps[before]);
        c.pre_again(o, &self.units[last], &w.units[last], &a.units[last], a.units[before].y, maps[last]);
        let mut d =
            self.units[last].norm_backward(o, &w.units[last], &a.units[last], [d_pre, dy], maps[last], c.statistics);
        // dy is now the gradient of the sum, and so of the shortcut.
        let dx = match &self.shortcut {
            Some(unit) => {
                c.pre_again(o, unit, &w.shortcut, &a.shortcut, a.x, a.maps);
                let d = unit.norm_backward(o, &w.shortcut, &a.shortcut, [d_unit, dy], a.maps, c.statistics);
                let dx = at_end(free, a.x.len());
                o.convolve_backward(dx, d, a.x, w.shortcut.conv, unit.conv(a.maps));
                dx
            }
            None => dy,
        };
        for i in (1..self.len).rev() {
            let (before, w_before, a_before) = (&self.units[i - 1], &w.units[i - 1], &a.units[i - 1]);
            if i < last {
                c.y_again(o, before, w_before, a_before, maps[i - 1]);
            }
            let dy = d_unit.part(0, a_before.y.len());
            o.convolve_backward(dy, d, a_before.y, w.units[i].conv, self.units[i].conv(maps[i]));
            d = before.norm_backward(o, w_before, a_before, [d_pre, dy], maps[i - 1], c.statistics);
        }
        o.convolve_backward_acc(dx, d, a.x, w.units[0].conv, self.units[0].conv(a.maps));
        dx
    }
}

impl Pass {
    /// Block `i`, from the gradient of the stream behind it to that of the stream in front of it: in dy's own span, which is masked by the
    /// ReLU, or in `free` where the shape changes.
    pub fn backward_block<O: Backward>(&self, o: &mut O, i: usize, [dy, free]: [Act; 2]) -> Act {
        let (r, acts) = (&self.resnet, &self.acts);
        r.block_shape(i).backward(o, &r.block_weights(i, self.start), &acts.block(r, i), [dy, free], self.context())
    }

    fn context(&self) -> Context {
        Context { statistics: self.acts.statistics, again: self.acts.again() }
    }

    /// The last `blocks` blocks alone; gives the gradient of the stream in front of them.
    pub(in crate::model) fn backward_last<O: Backward>(&self, o: &mut O, blocks: usize) -> Act {
        let (r, acts, grads) = (&self.resnet, &self.acts, &self.grads);
        let (mut turn, mut dx) = (0, at_end(grads.dx[0], acts.last.len()));
        o.average_pool_backward(dx, grads.dy, acts.last_maps, r.dim());
        for i in (r.depth() - blocks..r.depth()).rev() {
            dx = self.backward_block(o, i, [dx, grads.dx[1 - turn]]);
            turn = if r.block_shape(i).shortcut.is_some() { 1 - turn } else { turn };
        }
        dx
    }

    /// From the gradient at `grads.dy` to every parameter's. Needs a saving pass.
    pub(in crate::model) fn backward<O: Backward>(&self, o: &mut O) {
        let (r, acts, c) = (&self.resnet, &self.acts, self.context());
        let mut dx = self.backward_last(o, r.depth());
        let mut l = self.start;
        let (stem, unit, w) = (acts.stem(r), r.stem_unit(), r.stem_weights(&mut l));
        c.pre_again(o, &unit, &w, &stem.unit, self.input, acts.crops);
        if r.stem.pool {
            c.y_again(o, &unit, &w, &stem.unit, acts.crops);
            let dy = stem.scratch.d_unit.part(0, stem.unit.y.len());
            o.max_pool_backward(dy, dx, stem.unit.y, r.max_pool(unit.window.over(acts.crops)));
            dx = dy;
        }
        let d = unit.norm_backward(o, &w, &stem.unit, [stem.scratch.d_pre, dx], acts.crops, acts.statistics);
        o.convolve_backward_params(d, self.input, w.conv, unit.conv(acts.crops));
    }
}

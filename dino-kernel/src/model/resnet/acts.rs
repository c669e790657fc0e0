//! Where a pass writes, and what its backward pass needs beside that.
//!
//! A unit's convolution writes `pre`, its norm `y`. Saved are the statistics, what blocks read, which is the stream, and with
//! [`Save::All`] every `pre` and `y`. With [`Save::Least`] all cheap units share one `pre`, and all norms within a branch one `y`,
//! `again`: the backward pass computes both again. Where nothing is saved, all units share their spans, and the stream alternates between
//! two.

use super::weights::LAYERS;
use super::{BlockShape, Measure, ResNet, UNITS, Unit};
use crate::backend::NormStats;
use crate::crops::{Crops, Ragged};
use crate::mem::{Act, Layout, Pool, Span, Stat, max};
use crate::model::spans::pass_on;
use crate::model::{Save, Statistics};
use crate::params::Name;

/// What a unit writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnitActs {
    pub(super) pre: Act,
    pub(super) stats: NormStats,
    pub(super) y: Act,
}

impl UnitActs {
    const NONE: UnitActs =
        UnitActs { pre: Act::EMPTY, stats: NormStats { mean: Stat::EMPTY, rstd: Stat::EMPTY }, y: Act::EMPTY };
}

/// What a block writes. The last unit's `y` is the stream behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockActs {
    pub(super) units: [UnitActs; UNITS],
    pub(super) shortcut: UnitActs,
    /// The maps that the block reads.
    pub(super) maps: Crops,
    /// The stream in front of it.
    pub(super) x: Act,
}

/// What the stem writes: its unit, and the stream in front of the first block.
#[derive(Clone, Copy, Debug)]
pub(super) struct StemActs {
    pub(super) unit: UnitActs,
    pub(super) x: Act,
}

/// Everything a pass over some crops writes.
#[derive(Clone, Copy, Debug)]
pub struct ResNetActs {
    pub(super) crops: Crops,
    pub(super) statistics: Statistics,
    pub(super) save: Save,
    /// Shared spans; empty are those that nobody shares.
    pre: Act,
    again: Act,
    /// What a shortcut's norm writes; in the backward pass the gradient of what a norm inside a branch writes.
    pub(super) shortcut: Act,
    streams: [Act; 2],
    stats: NormStats,
    /// Where the spans of the stem begin, and those of the blocks after it.
    start: Layout,
    /// The last stream.
    pub(super) last: Act,
    pub(super) last_maps: Ragged,
    /// The average (crops, C); empty in a dense pass.
    pub(super) pooled: Act,
}

/// Scratch of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct ResNetGrads {
    /// The gradient of the features (crops, C), set by the head.
    pub dy: Act,
    /// Gradients of the stream, by turns where its shape changes.
    pub dx: [Act; 2],
    /// The gradient of what a convolution writes.
    pub(super) d_pre: Act,
}

impl ResNetGrads {
    /// Of a pass that is not followed by a backward pass.
    pub(super) const EMPTY: ResNetGrads = ResNetGrads { dy: Act::EMPTY, dx: [Act::EMPTY; 2], d_pre: Act::EMPTY };
}

const fn shared(wanted: bool, len: usize, l: &mut Layout) -> Act {
    l.act(if wanted { len } else { 0 })
}

impl ResNetActs {
    const fn saves(&self) -> bool {
        !matches!(self.save, Save::Nothing)
    }

    /// Whether the backward pass computes again what cheap units and norms inside a branch write.
    pub(super) const fn again(&self) -> bool {
        matches!(self.save, Save::Least)
    }

    /// Whether what the unit's convolution writes is not saved.
    const fn shares_pre(&self, unit: &Unit) -> bool {
        !self.saves() || (self.again() && unit.cheap)
    }

    /// The unit's spans; `y` is given where it is no span of its own.
    const fn unit(&self, unit: &Unit, maps: Crops, y: Option<Act>, l: &mut Layout) -> UnitActs {
        let (len, stats) = (unit.written(maps), self.statistics.groups(&maps) * unit.out);
        let pre = if self.shares_pre(unit) { self.pre.part(0, len) } else { l.act(len) };
        let stats = if self.saves() {
            NormStats { mean: l.stat(stats), rstd: l.stat(stats) }
        } else {
            NormStats { mean: self.stats.mean.part(0, stats), rstd: self.stats.rstd.part(0, stats) }
        };
        let y = match y {
            Some(y) => y,
            None if matches!(self.save, Save::All) => l.act(len),
            None => self.again.part(0, len),
        };
        UnitActs { pre, stats, y }
    }

    /// Stream `i`, in front of block `i`.
    const fn stream(&self, i: usize, len: usize, l: &mut Layout) -> Act {
        if self.saves() { l.act(len) } else { self.streams[i % 2].part(0, len) }
    }

    const fn stem_at(&self, r: &ResNet, l: &mut Layout) -> StemActs {
        let unit = r.stem_unit();
        let x = self.stream(0, r.stem_maps(self.crops).pixels() * unit.out, l);
        let y = if r.stem.pool { None } else { Some(x) };
        StemActs { unit: self.unit(&unit, self.crops, y, l), x }
    }

    /// Block `i`, which reads `x` of these maps.
    const fn block_at(&self, i: usize, shape: &BlockShape, maps: Crops, x: Act, l: &mut Layout) -> BlockActs {
        let (mut units, mut inner, mut j) = ([UnitActs::NONE; UNITS], maps, 0);
        let y = self.stream(i + 1, shape.output(maps).pixels() * shape.channels()[1], l);
        while j < shape.len {
            let last = j + 1 == shape.len;
            units[j] = self.unit(&shape.units[j], inner, if last { Some(y) } else { None }, l);
            inner = shape.units[j].window.over(inner);
            j += 1;
        }
        let shortcut = match &shape.shortcut {
            Some(unit) => self.unit(unit, maps, Some(self.shortcut.part(0, unit.written(maps))), l),
            None => UnitActs::NONE,
        };
        BlockActs { units, shortcut, maps, x }
    }

    /// What the stem writes.
    pub(super) const fn stem(&self, r: &ResNet) -> StemActs {
        let mut l = self.start;
        self.stem_at(r, &mut l)
    }

    /// What block `i` writes.
    pub(super) const fn block(&self, r: &ResNet, i: usize) -> BlockActs {
        let mut l = self.start;
        self.walk(r, i, &mut l)
    }

    /// The same; moves on to the end of the block.
    const fn walk(&self, r: &ResNet, i: usize, l: &mut Layout) -> BlockActs {
        let (mut x, mut maps, mut j) = (self.stem_at(r, l).x, r.stem_maps(self.crops), 0);
        loop {
            let shape = r.block_shape(j);
            let block = self.block_at(j, &shape, maps, x, l);
            if j == i {
                return block;
            }
            (x, maps, j) = (block.units[shape.len - 1].y, shape.output(maps), j + 1);
        }
    }
}

impl ResNet {
    /// Elements of the largest stream, of what is written inside a branch (and in front of the stem's pool), and of a shortcut.
    const fn widths(&self, crops: Crops) -> [usize; 3] {
        let stem = self.stem_unit();
        let (mut maps, mut i) = (self.stem_maps(crops), 0);
        let mut inner = if self.stem.pool { stem.written(crops) } else { 0 };
        let (mut stream, mut shortcut) = (maps.pixels() * stem.out, 0);
        while i < self.depth() {
            let (block, mut inside, mut j) = (self.block_shape(i), maps, 0);
            while j + 1 < block.len {
                inner = max(inner, block.units[j].written(inside));
                inside = block.units[j].window.over(inside);
                j += 1;
            }
            let written = block.output(maps).pixels() * block.channels()[1];
            stream = max(stream, written);
            shortcut = if block.shortcut.is_some() { max(shortcut, written) } else { shortcut };
            maps = block.output(maps);
            i += 1;
        }
        [stream, inner, shortcut]
    }

    /// Where a pass writes.
    pub(super) const fn acts(
        &self,
        crops: Crops,
        statistics: Statistics,
        dense: bool,
        save: Save,
        l: &mut Layout,
    ) -> ResNetActs {
        let [stream, inner, shortcut] = self.widths(crops);
        let nothing = matches!(save, Save::Nothing);
        let stats = if nothing { self.largest(crops, Measure::Statistics(statistics)) } else { 0 };
        let pre = match save {
            Save::All => 0,
            Save::Least => self.largest(crops, Measure::Cheap),
            Save::Nothing => self.largest(crops, Measure::Written),
        };
        let last_maps = self.last_maps(crops);
        let acts = ResNetActs {
            crops,
            statistics,
            save,
            pre: l.act(pre),
            again: shared(!matches!(save, Save::All), inner, l),
            shortcut: l.act(if nothing { shortcut } else { max(inner, shortcut) }),
            streams: [shared(nothing, stream, l), shared(nothing, stream, l)],
            stats: NormStats { mean: l.stat(stats), rstd: l.stat(stats) },
            start: *l,
            last: Act::EMPTY,
            last_maps: last_maps.maps(),
            pooled: Act::EMPTY,
        };
        let i = self.depth() - 1;
        let last = acts.walk(self, i, l).units[self.block_shape(i).len - 1].y;
        ResNetActs { last, pooled: l.act(if dense { 0 } else { crops.count() * self.dim() }), ..acts }
    }

    /// Scratch of a backward pass over the crops of `a`.
    pub(super) const fn grads(&self, a: &ResNetActs, l: &mut Layout) -> ResNetGrads {
        let [first, second] = self.stream_gradients(a.crops);
        ResNetGrads {
            dy: l.act(a.pooled.len()),
            dx: [l.act(first), l.act(second)],
            d_pre: l.act(self.largest(a.crops, Measure::Written)),
        }
    }

    /// Elements of the largest gradient of a stream at each turn: the last one's is the first, and turns change at every shortcut.
    const fn stream_gradients(&self, crops: Crops) -> [usize; 2] {
        let (mut maps, mut left, mut i) = (self.stem_maps(crops), 0, 0);
        while i < self.depth() {
            left += self.block_shape(i).shortcut.is_some() as usize;
            i += 1;
        }
        let mut lens = [0; 2];
        lens[left % 2] = maps.pixels() * self.stem.width;
        i = 0;
        while i < self.depth() {
            let block = self.block_shape(i);
            maps = block.output(maps);
            left -= block.shortcut.is_some() as usize;
            lens[left % 2] = max(lens[left % 2], maps.pixels() * block.channels()[1]);
            i += 1;
        }
        lens
    }
}

impl ResNetActs {
    /// Calls `f` for every span of the pass, with its rows, its name beginning with `part`.
    pub(super) fn visit(&self, r: &ResNet, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let shared = [
            ("pre", Pool::Acts, self.pre.0),
            ("again", Pool::Acts, self.again.0),
            ("shortcut", Pool::Acts, self.shortcut.0),
            ("stream.0", Pool::Acts, self.streams[0].0),
            ("stream.1", Pool::Acts, self.streams[1].0),
            ("mean", Pool::Stats, self.stats.mean.0),
            ("rstd", Pool::Stats, self.stats.rstd.0),
        ];
        pass_on(f, part, "", 0, Ragged::EMPTY, shared);
        let all = matches!(self.save, Save::All);
        let own = |shape: &Unit, unit: &UnitActs, stream: bool| {
            let pre = if self.shares_pre(shape) { Act::EMPTY } else { unit.pre };
            let y = if all || stream { unit.y } else { Act::EMPTY };
            [(Pool::Acts, pre.0), (Pool::Acts, y.0), (Pool::Stats, unit.stats.mean.0), (Pool::Stats, unit.stats.rstd.0)]
        };
        let named = |[pre, y, mean, rstd]: [&'static str; 4], own: [(Pool, Span); 4]| {
            let [a, b, c, d] = own;
            [(pre, a.0, a.1), (y, b.0, b.1), (mean, c.0, c.1), (rstd, d.0, d.1)]
        };
        if self.saves() {
            let stem = self.stem(r);
            let names = ["conv1", "bn1.y", "bn1.mean", "bn1.rstd"];
            let maps = r.stem_unit().window.over(self.crops).maps();
            pass_on(f, part, "", 0, maps, named(names, own(&r.stem_unit(), &stem.unit, !r.stem.pool)));
            if r.stem.pool {
                pass_on(f, part, "", 0, r.stem_maps(self.crops).maps(), [("maxpool", Pool::Acts, stem.x.0)]);
            }
            for i in 0..r.depth() {
                let (shape, block) = (r.block_shape(i), self.block(r, i));
                let (list, mut maps) = (LAYERS[shape.stage], block.maps);
                for (j, (unit, acts)) in shape.units[..shape.len].iter().zip(&block.units).enumerate() {
                    let names = [
                        ["conv1", "bn1.y", "bn1.mean", "bn1.rstd"],
                        ["conv2", "bn2.y", "bn2.mean", "bn2.rstd"],
                        ["conv3", "bn3.y", "bn3.mean", "bn3.rstd"],
                    ][j];
                    maps = unit.window.over(maps);
                    let spans = named(names, own(unit, acts, j + 1 == shape.len));
                    pass_on(f, part, list, shape.index, maps.maps(), spans);
                }
                if let Some(unit) = &shape.shortcut {
                    let names = ["downsample.0", "downsample.1.y", "downsample.1.mean", "downsample.1.rstd"];
                    let spans = named(names, own(unit, &UnitActs { y: Act::EMPTY, ..block.shortcut }, false));
                    pass_on(f, part, list, shape.index, maps.maps(), spans);
                }
            }
        }
        pass_on(f, part, "", 0, Ragged::single(self.crops.count()), [("avgpool", Pool::Acts, self.pooled.0)]);
    }

    /// Calls `f` for the parts of shared spans that units use, and of scratch for gradients, each with the rows that it has there.
    pub(super) fn reused(&self, r: &ResNet, g: &ResNetGrads, f: &mut impl FnMut(Span, Ragged)) {
        let mut offer = |spans: [Act; 6], len: usize, maps: Ragged| {
            spans.iter().filter(|span| span.len() >= len).for_each(|span| f(span.part(0, len).0, maps));
        };
        let spans = [self.pre, self.again, self.shortcut, g.dx[0], g.dx[1], g.d_pre];
        let mut maps = r.stem_unit().window.over(self.crops);
        offer(spans, maps.pixels() * r.stem_unit().out, maps.maps());
        maps = r.stem_maps(self.crops);
        offer(spans, maps.pixels() * r.stem_unit().out, maps.maps());
        offer([self.streams[0]; 6], maps.pixels() * r.stem_unit().out, maps.maps());
        for i in 0..r.depth() {
            let shape = r.block_shape(i);
            for (j, unit) in shape.units[..shape.len].iter().enumerate() {
                maps = unit.window.over(maps);
                offer(spans, maps.pixels() * unit.out, maps.maps());
                if j + 1 == shape.len {
                    offer([self.streams[(i + 1) % 2]; 6], maps.pixels() * unit.out, maps.maps());
                }
            }
        }
    }
}

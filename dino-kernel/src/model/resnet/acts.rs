//! Where a pass writes, and what its backward pass needs beside that.
//!
//! A unit's convolution writes `pre`, its norm `y`. Saved are the statistics, what blocks read, which is the stream, and with
//! [`Save::All`] every `pre` and `y`. With [`Save::Least`] the cheap units of a block share one `pre`, and its norms within the branch one
//! `y`, `again`: the backward pass computes both again. Where nothing is saved, all units of a block share their spans, and the stream
//! alternates between two.
//!
//! What a block needs only while it runs ([`Scratch`]) is stored behind what it saves, where the blocks after it write: forwards they have
//! not yet written, backwards they are done with. The first blocks need the most scratch and have the most behind them: it was a fourth of
//! the activations of `resnet_small` where all blocks had one scratch of their own.

use super::weights::LAYERS;
use super::{BlockShape, Measure, ResNet, UNITS, Unit};
use crate::backend::NormStats;
use crate::crops::{Crops, Ragged};
use crate::mem::{Act, Cursor, Layout, Pool, Span, Stat, max};
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
    pub(super) scratch: Scratch,
}

/// What the stem writes: its unit, and the stream in front of the first block.
#[derive(Clone, Copy, Debug)]
pub(super) struct StemActs {
    pub(super) unit: UnitActs,
    pub(super) x: Act,
    pub(super) scratch: Scratch,
}

/// What a block, or the stem, needs while it runs. An empty span is one that it does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scratch {
    /// What convolutions write that is not saved.
    pre: Act,
    /// What norms within the branch write, or that of a stem with a pool.
    again: Act,
    /// What the shortcut's norm writes.
    shortcut: Act,
    /// In the backward pass, in the place of the shortcut's: the gradient of what a norm within the branch writes.
    pub(super) d_unit: Act,
    /// The gradient of what a convolution writes.
    pub(super) d_pre: Act,
    /// Where all of this ends.
    end: usize,
}

/// Elements that units of a block write.
#[derive(Clone, Copy)]
struct Written {
    /// Most of a convolution that is not saved.
    pre: usize,
    /// Most within the branch.
    inner: usize,
    shortcut: usize,
    /// Most of all.
    most: usize,
}

impl Written {
    const NONE: Written = Written { pre: 0, inner: 0, shortcut: 0, most: 0 };
}

/// Everything a pass over some crops writes.
#[derive(Clone, Copy, Debug)]
pub struct ResNetActs {
    pub(super) crops: Crops,
    pub(super) statistics: Statistics,
    pub(super) save: Save,
    /// Two streams by turns, where none is saved.
    streams: [Act; 2],
    stats: NormStats,
    /// Where the spans of the stem begin, and those of the blocks after it.
    start: Layout,
    /// What blocks need of scratch beyond the last one's spans.
    beyond: Act,
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
}

impl ResNetGrads {
    /// Of a pass that is not followed by a backward pass.
    pub(super) const EMPTY: ResNetGrads = ResNetGrads { dy: Act::EMPTY, dx: [Act::EMPTY; 2] };
}

/// How far from the end of both spans gradients of so many elements at each turn reach back, where the second span has `second`.
const fn reach([first, other]: [usize; 2], second: usize) -> usize {
    if first > 0 { second + first.next_multiple_of(Cursor::ALIGN) } else { other.next_multiple_of(Cursor::ALIGN) }
}

/// Elements at the end of a span of stream gradients.
pub(super) const fn at_end(span: Act, len: usize) -> Act {
    span.part(span.len() - len.next_multiple_of(Cursor::ALIGN), len)
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

    /// What the unit saves; `y` is given where it is the stream.
    const fn saved(&self, unit: &Unit, maps: Crops, y: Option<Act>, l: &mut Layout) -> UnitActs {
        let (len, stats) = (unit.written(maps), self.statistics.groups(&maps) * unit.out);
        let pre = if self.shares_pre(unit) { Act::EMPTY } else { l.act(len) };
        let stats = if self.saves() {
            NormStats { mean: l.stat(stats), rstd: l.stat(stats) }
        } else {
            NormStats { mean: self.stats.mean.part(0, stats), rstd: self.stats.rstd.part(0, stats) }
        };
        let y = match y {
            Some(y) => y,
            None if matches!(self.save, Save::All) => l.act(len),
            None => Act::EMPTY,
        };
        UnitActs { pre, stats, y }
    }

    /// The unit with scratch for what it does not save: of `y` for what its norm writes.
    const fn completed(&self, unit: &Unit, maps: Crops, saved: UnitActs, s: &Scratch, y: Act) -> UnitActs {
        let len = unit.written(maps);
        let pre = if self.shares_pre(unit) { s.pre.part(0, len) } else { saved.pre };
        UnitActs { pre, y: if saved.y.len() > 0 { saved.y } else { y.part(0, len) }, ..saved }
    }

    /// Scratch behind what is saved.
    const fn scratch(&self, n: Written, mut l: Layout) -> Scratch {
        let (all, saves) = (matches!(self.save, Save::All), self.saves());
        let (pre, again) = (l.act(n.pre), shared(!all, n.inner, &mut l));
        let both = l.act(if saves { max(n.inner, n.shortcut) } else { n.shortcut });
        let (shortcut, d_unit) = (both.part(0, n.shortcut), if saves { both } else { Act::EMPTY });
        let d_pre = shared(saves, n.most, &mut l);
        Scratch { pre, again, shortcut, d_unit, d_pre, end: l.acts.next }
    }

    /// With this unit as well, which reads these maps.
    const fn written(&self, n: Written, unit: &Unit, maps: Crops) -> Written {
        let len = unit.written(maps);
        let pre = if self.shares_pre(unit) { len } else { 0 };
        Written { pre: max(n.pre, pre), most: max(n.most, len), ..n }
    }

    /// Stream `i`, in front of block `i`.
    const fn stream(&self, i: usize, len: usize, l: &mut Layout) -> Act {
        if self.saves() { l.act(len) } else { self.streams[i % 2].part(0, len) }
    }

    const fn stem_at(&self, r: &ResNet, l: &mut Layout) -> StemActs {
        let (unit, pool) = (r.stem_unit(), r.stem.pool);
        let x = self.stream(0, r.stem_maps(self.crops).pixels() * unit.out, l);
        let saved = self.saved(&unit, self.crops, if pool { None } else { Some(x) }, l);
        let n = self.written(Written::NONE, &unit, self.crops);
        let scratch = self.scratch(Written { inner: if pool { n.most } else { 0 }, ..n }, *l);
        StemActs { unit: self.completed(&unit, self.crops, saved, &scratch, scratch.again), x, scratch }
    }

    /// Block `i`, which reads `x` of these maps.
    const fn block_at(&self, i: usize, shape: &BlockShape, maps: Crops, x: Act, l: &mut Layout) -> BlockActs {
        let (mut units, mut inner, mut n, mut j) = ([UnitActs::NONE; UNITS], maps, Written::NONE, 0);
        let y = self.stream(i + 1, shape.output(maps).pixels() * shape.channels()[1], l);
        while j < shape.len {
            let (unit, last) = (&shape.units[j], j + 1 == shape.len);
            units[j] = self.saved(unit, inner, if last { Some(y) } else { None }, l);
            n = self.written(n, unit, inner);
            n.inner = if last { n.inner } else { n.most };
            inner = unit.window.over(inner);
            j += 1;
        }
        let mut shortcut = UnitActs::NONE;
        if let Some(unit) = &shape.shortcut {
            // What its norm writes is never saved: nobody reads it after the sum.
            shortcut = self.saved(unit, maps, Some(Act::EMPTY), l);
            n = self.written(n, unit, maps);
            n.shortcut = unit.written(maps);
        }
        let scratch = self.scratch(n, *l);
        (inner, j) = (maps, 0);
        while j < shape.len {
            units[j] = self.completed(&shape.units[j], inner, units[j], &scratch, scratch.again);
            inner = shape.units[j].window.over(inner);
            j += 1;
        }
        if let Some(unit) = &shape.shortcut {
            shortcut = self.completed(unit, maps, shortcut, &scratch, scratch.shortcut);
        }
        BlockActs { units, shortcut, maps, x, scratch }
    }

    /// What the stem writes.
    pub(super) const fn stem(&self, r: &ResNet) -> StemActs {
        let mut l = self.start;
        self.stem_at(r, &mut l)
    }

    /// What block `i` writes.
    pub(super) const fn block(&self, r: &ResNet, i: usize) -> BlockActs {
        let mut l = self.start;
        let (mut x, mut maps, mut j) = (self.stem_at(r, &mut l).x, r.stem_maps(self.crops), 0);
        loop {
            let shape = r.block_shape(j);
            let block = self.block_at(j, &shape, maps, x, &mut l);
            if j == i {
                return block;
            }
            (x, maps, j) = (block.units[shape.len - 1].y, shape.output(maps), j + 1);
        }
    }
}

impl ResNet {
    /// Elements of the largest stream.
    const fn widest_stream(&self, crops: Crops) -> usize {
        let mut maps = self.stem_maps(crops);
        let (mut stream, mut i) = (maps.pixels() * self.stem.width, 0);
        while i < self.depth() {
            let block = self.block_shape(i);
            maps = block.output(maps);
            stream = max(stream, maps.pixels() * block.channels()[1]);
            i += 1;
        }
        stream
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
        let nothing = matches!(save, Save::Nothing);
        let stream = if nothing { self.widest_stream(crops) } else { 0 };
        let stats = if nothing { self.largest(crops, Measure::Statistics(statistics)) } else { 0 };
        let streams = [l.act(stream), l.act(stream)];
        let stats = NormStats { mean: l.stat(stats), rstd: l.stat(stats) };
        let last_maps = self.last_maps(crops).maps();
        let (start, last, pooled) = (*l, Act::EMPTY, Act::EMPTY);
        let mut acts =
            ResNetActs { crops, statistics, save, streams, stats, start, beyond: Act::EMPTY, last, last_maps, pooled };
        let stem = acts.stem_at(self, l);
        let (mut maps, mut end, mut i) = (self.stem_maps(crops), stem.scratch.end, 0);
        acts.last = stem.x;
        while i < self.depth() {
            let shape = self.block_shape(i);
            let block = acts.block_at(i, &shape, maps, acts.last, l);
            (acts.last, maps) = (block.units[shape.len - 1].y, shape.output(maps));
            end = max(end, block.scratch.end);
            i += 1;
        }
        acts.beyond = l.act(end.saturating_sub(l.acts.next));
        acts.pooled = l.act(if dense { 0 } else { crops.count() * self.dim() });
        acts
    }

    /// Scratch of a backward pass over the crops of `a`: first the stream's gradients of one turn, then those of the other, each at the
    /// end of its span. Those of the first blocks are the longest, and reach back to where the last blocks and the head are done with.
    pub(super) const fn grads(&self, a: &ResNetActs, l: &mut Layout) -> ResNetGrads {
        let dy = l.act(a.pooled.len());
        let [first, second] = self.stream_gradients(a.crops);
        let (behind, stem) = (l.acts.next, a.stem(self));
        let (mut turn, mut beyond, mut i) = (0, 0, self.depth());
        while i > 0 {
            i -= 1;
            let (shape, block) = (self.block_shape(i), a.block(self, i));
            let mut used = [0; 2];
            used[turn] = block.units[shape.len - 1].y.len();
            turn = if shape.shortcut.is_some() { 1 - turn } else { turn };
            used[turn] = max(used[turn], block.x.len());
            // Beside the last block the gradient of the average is still read.
            let free = if i + 1 == self.depth() { 0 } else { behind - block.scratch.end };
            beyond = max(beyond, reach(used, second).saturating_sub(free));
        }
        let mut used = [0; 2];
        used[turn] = stem.x.len();
        beyond = max(beyond, reach(used, second).saturating_sub(behind - stem.scratch.end));
        let end = behind + l.act(beyond.next_multiple_of(Cursor::ALIGN)).len();
        let first = Act(Span { at: end - second - first, len: first });
        ResNetGrads { dy, dx: [first, Act(Span { at: end - second, len: second })] }
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
        [lens[0].next_multiple_of(Cursor::ALIGN), lens[1].next_multiple_of(Cursor::ALIGN)]
    }
}

impl ResNetActs {
    /// Calls `f` for every span of the pass, with its rows, its name beginning with `part`.
    pub(super) fn visit(&self, r: &ResNet, part: &'static str, f: &mut impl FnMut(Name, Pool, Span, Ragged)) {
        let shared = [
            ("scratch", Pool::Acts, self.beyond.0),
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

    /// Calls `f` for the parts of scratch and of gradients that units use, each with the rows that it has there.
    pub(super) fn reused(&self, r: &ResNet, g: &ResNetGrads, f: &mut impl FnMut(Span, Ragged)) {
        let mut offer = |s: &Scratch, stream: Act, len: usize, maps: Crops| {
            let spans = [s.pre, s.again, s.shortcut, s.d_unit, s.d_pre, stream];
            spans.iter().filter(|span| span.len() >= len).for_each(|span| f(span.part(0, len).0, maps.maps()));
            g.dx.iter().filter(|dx| dx.len() >= len).for_each(|&dx| f(at_end(dx, len).0, maps.maps()));
        };
        let stem = self.stem(r);
        let mut maps = r.stem_unit().window.over(self.crops);
        offer(&stem.scratch, self.streams[0], maps.pixels() * r.stem_unit().out, maps);
        maps = r.stem_maps(self.crops);
        offer(&stem.scratch, self.streams[0], maps.pixels() * r.stem_unit().out, maps);
        for i in 0..r.depth() {
            let (shape, block) = (r.block_shape(i), self.block(r, i));
            for unit in &shape.units[..shape.len] {
                maps = unit.window.over(maps);
                offer(&block.scratch, self.streams[(i + 1) % 2], maps.pixels() * unit.out, maps);
            }
        }
    }
}

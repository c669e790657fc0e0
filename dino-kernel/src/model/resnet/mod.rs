//! The residual network (He et al. 2015, as torchvision defines it; DINO paper, section 4.1): a stem, stages of residual blocks, a global
//! average. The shape is here; parameters and running statistics are in `resnet/weights.rs`, spans in `resnet/acts.rs`, a network and its
//! passes in `resnet/network.rs`, forward and backward in `resnet/forward.rs` and `resnet/backward.rs`, what is refused in
//! `resnet/check.rs`, the numbers of a blob's header in `resnet/flat.rs`.
//!
//! y = relu(branch(x) + shortcut(x)); the branch is two 3 x 3 convolutions (basic) or 1 x 1, 3 x 3 and 1 x 1 (bottleneck), each followed
//! by a batch norm and, but for the last, a ReLU. The shortcut is x, or a 1 x 1 convolution and a batch norm where the shape changes.
//!
//! Everything is made of one part, a convolution and the batch norm after it (a unit): the stem is one, a block two to four.
//! Activations are rows of channels, a row for every pixel of every crop, so crops of several sizes are one matrix.

mod acts;
mod backward;
mod check;
mod flat;
mod forward;
mod network;
mod weights;

pub use acts::{ResNetActs, ResNetGrads};
pub use network::{Network, Pass};

use crate::crops::Crops;
use crate::dims::{Conv, MaxPool, Window};
use crate::mem::max;
use crate::model::{Extents, Statistics};

/// Most stages a network may have.
pub const MAX_STAGES: usize = 8;

/// Most blocks a stage may have.
pub const MAX_BLOCKS: usize = 256;

/// The kind of a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Two 3 x 3 convolutions, the first with the stride.
    Basic,
    /// 1 x 1 to the stage's width, 3 x 3 with the stride, 1 x 1 to four times the width.
    Bottleneck,
}

impl Block {
    /// Channels that a block gives for each of its stage's width.
    pub const fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }

    const fn units(self) -> usize {
        match self {
            Block::Basic => 2,
            Block::Bottleneck => 3,
        }
    }
}

/// The first convolution and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stem {
    /// Channels that it gives.
    pub width: usize,
    /// Side of the filter, odd; the padding is half of it.
    pub kernel: usize,
    /// Its stride.
    pub stride: usize,
    /// Whether a 3 x 3 max pool of stride 2 follows.
    pub pool: bool,
}

impl Stem {
    /// torchvision's: 7 x 7, stride 2, and the max pool.
    pub const fn published(width: usize) -> Stem {
        Stem { width, kernel: 7, stride: 2, pool: true }
    }

    /// 3 x 3 without a stride or a pool: for images of 32 pixels a side.
    pub const fn small(width: usize) -> Stem {
        Stem { width, kernel: 3, stride: 1, pool: false }
    }
}

/// Blocks of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Channels of the 3 x 3 convolutions.
    pub width: usize,
    /// Number of blocks.
    pub blocks: usize,
    /// Stride of the first block; torchvision's is 1 in the first stage and 2 in the others.
    pub stride: usize,
}

/// Shape of a residual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNet {
    /// Side in pixels of the square image that it is made for. Any crop will do.
    pub image: usize,
    /// Color channels.
    pub channels: usize,
    /// The first convolution.
    pub stem: Stem,
    /// The kind of every block.
    pub block: Block,
    stages: [Stage; MAX_STAGES],
    len: usize,
}

impl ResNet {
    /// A network without stages, for images of `image` pixels a side and so many channels.
    pub const fn new(image: usize, channels: usize, stem: Stem, block: Block) -> ResNet {
        let stages = [Stage { width: 0, blocks: 0, stride: 1 }; MAX_STAGES];
        ResNet { image, channels, stem, block, stages, len: 0 }
    }

    /// Appends a stage. Panics beyond [`MAX_STAGES`].
    pub const fn with(mut self, stage: Stage) -> ResNet {
        self.stages[self.len] = stage;
        self.len += 1;
        self
    }

    const fn preset(block: Block, [a, b, c, d]: [usize; 4]) -> ResNet {
        ResNet::new(224, 3, Stem::published(64), block)
            .with(Stage { width: 64, blocks: a, stride: 1 })
            .with(Stage { width: 128, blocks: b, stride: 2 })
            .with(Stage { width: 256, blocks: c, stride: 2 })
            .with(Stage { width: 512, blocks: d, stride: 2 })
    }
    /// ResNet-18.
    pub const RESNET_18: ResNet = ResNet::preset(Block::Basic, [2, 2, 2, 2]);
    /// ResNet-34.
    pub const RESNET_34: ResNet = ResNet::preset(Block::Basic, [3, 4, 6, 3]);
    /// ResNet-50: the paper's.
    pub const RESNET_50: ResNet = ResNet::preset(Block::Bottleneck, [3, 4, 6, 3]);

    /// The stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages[..self.len]
    }

    /// C, the width of the features: 2048 of ResNet-50.
    pub const fn dim(&self) -> usize {
        if self.len == 0 { 0 } else { self.stages[self.len - 1].width.saturating_mul(self.block.expansion()) }
    }

    /// Blocks of all stages.
    pub const fn depth(&self) -> usize {
        let (mut blocks, mut i) = (0usize, 0);
        while i < self.len {
            blocks = blocks.saturating_add(self.stages[i].blocks);
            i += 1;
        }
        blocks
    }

    /// Pixels of the image between two neighbors of the last map: 32 of torchvision's.
    pub const fn stride(&self) -> usize {
        let (mut stride, mut i) = (self.stem.stride, 0);
        while i < self.len {
            stride = stride.saturating_mul(self.stages[i].stride);
            i += 1;
        }
        if self.stem.pool { stride.saturating_mul(2) } else { stride }
    }

    /// The maps that the global average is taken over.
    pub const fn last_maps(&self, crops: Crops) -> Crops {
        let (mut maps, mut i) = (self.stem_maps(crops), 0);
        while i < self.depth() {
            maps = self.block_shape(i).output(maps);
            i += 1;
        }
        maps
    }
}

/// A convolution and the batch norm after it.
#[derive(Clone, Copy, Debug)]
struct Unit {
    inp: usize,
    out: usize,
    window: Window,
    /// Whether a ReLU follows, in the last unit of a block after the shortcut is added.
    relu: bool,
    /// Whether its convolution is rather computed again than saved ([`Unit::or_again`]).
    cheap: bool,
}

impl Unit {
    const NONE: Unit = Unit::new([0, 0], 1, 1, false);

    const fn new([inp, out]: [usize; 2], kernel: usize, stride: usize, relu: bool) -> Unit {
        Unit { inp, out, window: Window { kernel, stride, padding: kernel / 2 }, relu, cheap: false }
    }

    const fn conv(&self, maps: Crops) -> Conv {
        Conv { maps, window: self.window, inp: self.inp, out: self.out }
    }

    /// Elements of what it writes.
    const fn written(&self, maps: Crops) -> usize {
        self.window.over(maps).pixels() * self.out
    }

    /// The same, computed again rather than saved if it is cheap. Of a ResNet-50 such units write half of what there is to save, and
    /// convolving again is 6 % of a step's multiplications.
    const fn or_again(self) -> Unit {
        Unit { cheap: self.inp * self.window.kernel * self.window.kernel <= CHEAP, ..self }
    }
}

/// Most multiplications for an element of a convolution that is cheap: 3 x 3 over 32 channels.
const CHEAP: usize = 288;

/// Most units of a branch.
const UNITS: usize = 3;

/// The convolutions of one block.
#[derive(Clone, Copy, Debug)]
struct BlockShape {
    /// Which stage it is in, and its number there.
    stage: usize,
    index: usize,
    /// The branch: the first `len`.
    units: [Unit; UNITS],
    len: usize,
    /// None where the shortcut is the block's input.
    shortcut: Option<Unit>,
}

impl BlockShape {
    /// The maps that it writes.
    const fn output(&self, mut maps: Crops) -> Crops {
        let mut i = 0;
        while i < self.len {
            maps = self.units[i].window.over(maps);
            i += 1;
        }
        maps
    }

    /// Channels that it reads, and those that it writes.
    const fn channels(&self) -> [usize; 2] {
        [self.units[0].inp, self.units[self.len - 1].out]
    }
}

impl ResNet {
    const fn stem_unit(&self) -> Unit {
        Unit::new([self.channels, self.stem.width], self.stem.kernel, self.stem.stride, true).or_again()
    }

    /// The max pool of the stem, which reads these maps.
    const fn max_pool(&self, maps: Crops) -> MaxPool {
        MaxPool { maps, window: Window { kernel: 3, stride: 2, padding: 1 }, cols: self.stem.width }
    }

    /// The maps that the first block reads.
    const fn stem_maps(&self, crops: Crops) -> Crops {
        let maps = self.stem_unit().window.over(crops);
        if self.stem.pool { self.max_pool(maps).window.over(maps) } else { maps }
    }

    /// Block `i` of all stages.
    const fn block_shape(&self, i: usize) -> BlockShape {
        let (mut stage, mut index) = (0, i);
        while index >= self.stages[stage].blocks {
            index -= self.stages[stage].blocks;
            stage += 1;
        }
        let (width, expansion) = (self.stages[stage].width, self.block.expansion());
        let (stride, out) = (if index == 0 { self.stages[stage].stride } else { 1 }, width * expansion);
        let inp = match (stage, index) {
            (0, 0) => self.stem.width,
            (_, 0) => self.stages[stage - 1].width * expansion,
            _ => out,
        };
        let units = match self.block {
            Block::Basic => {
                [Unit::new([inp, width], 3, stride, true), Unit::new([width, width], 3, 1, true).or_again(), Unit::NONE]
            }
            Block::Bottleneck => [
                Unit::new([inp, width], 1, 1, true),
                Unit::new([width, width], 3, stride, true),
                Unit::new([width, out], 1, 1, true).or_again(),
            ],
        };
        let shortcut =
            if stride > 1 || inp != out { Some(Unit::new([inp, out], 1, stride, false).or_again()) } else { None };
        BlockShape { stage, index, units, len: self.block.units(), shortcut }
    }

    /// The largest of `value(unit, the maps that it reads)` over all units.
    const fn largest(&self, crops: Crops, value: Measure) -> usize {
        let mut most = value.of(&self.stem_unit(), crops);
        let (mut maps, mut i) = (self.stem_maps(crops), 0);
        while i < self.depth() {
            let (block, mut inner, mut j) = (self.block_shape(i), maps, 0);
            while j < block.len {
                most = max(most, value.of(&block.units[j], inner));
                inner = block.units[j].window.over(inner);
                j += 1;
            }
            if let Some(unit) = block.shortcut {
                most = max(most, value.of(&unit, maps));
            }
            (maps, i) = (inner, i + 1);
        }
        most
    }
}

/// What of a unit is measured ([`ResNet::largest`]).
#[derive(Clone, Copy)]
enum Measure {
    /// Columns of the widest factor of its matmul.
    Widest,
    /// Elements of its weight.
    Weight,
    /// Means of its batch norm: one a group and channel.
    Statistics(Statistics),
    /// Partial sums of its batch norm over groups of so many images: two a block of rows and channel.
    Sums(usize),
}

impl Measure {
    const fn of(self, unit: &Unit, maps: Crops) -> usize {
        match self {
            Measure::Widest => max(unit.conv(maps).filter(), unit.out),
            Measure::Weight => unit.conv(maps).filter() * unit.out,
            Measure::Statistics(statistics) => statistics.groups(&maps) * unit.out,
            Measure::Sums(group) => {
                let statistics = Statistics::Groups { images: group, group, shards: 1 };
                2 * statistics.norm(unit.window.over(maps).maps(), unit.out, unit.relu).blocks() * unit.out
            }
        }
    }
}

impl ResNet {
    pub(in crate::model) const fn extents(&self, crops: Crops, group: Option<usize>) -> Extents {
        Extents {
            longest: 0,
            head_dim: 0,
            widest: self.largest(crops, Measure::Widest),
            filters: self.largest(crops, Measure::Weight),
            sums: match group {
                Some(group) => self.largest(crops, Measure::Sums(group)),
                None => 0,
            },
        }
    }
}

//! Where a pass writes, and what its backward pass needs beside that.

use super::{Output, Save, Vit};
use crate::backend::{Attention, ClassQkv, NormStats};
use crate::crops::{Crops, MAX_GROUPS, Ragged};
use crate::mem::{Act, Cursor, Layout, State};
use crate::ops::position;
use crate::real::Real;

/// A layer norm's output and what its backward needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub(super) y: Act,
    pub(super) stats: NormStats,
}

impl Norm {
    const fn take(rows: usize, cols: usize, l: &mut Layout) -> Norm {
        Norm::at(l.act(rows * cols), rows, l)
    }

    /// With an output span of the caller's.
    const fn at(y: Act, rows: usize, l: &mut Layout) -> Norm {
        Norm { y, stats: NormStats { mean: l.stat(rows), rstd: l.stat(rows) } }
    }

    const fn shift(&self, acts: usize, stats: usize) -> Norm {
        let NormStats { mean, rstd } = self.stats;
        Norm { y: self.y.shift(acts), stats: NormStats { mean: mean.shift(stats), rstd: rstd.shift(stats) } }
    }
}

/// The MLP half of a block over some rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct MlpActs {
    pub(super) rows: usize,
    pub(super) norm: Norm,
    pub(super) fc1: Act,
    pub(super) gelu: Act,
}

impl MlpActs {
    const fn take(rows: usize, v: &Vit, l: &mut Layout) -> MlpActs {
        MlpActs { rows, norm: Norm::take(rows, v.dim, l), fc1: l.act(rows * v.mlp), gelu: l.act(rows * v.mlp) }
    }

    const fn shift(&self, acts: usize, stats: usize) -> MlpActs {
        MlpActs {
            rows: self.rows,
            norm: self.norm.shift(acts, stats),
            fc1: self.fc1.shift(acts),
            gelu: self.gelu.shift(acts),
        }
    }
}

/// A full block over all rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockActs {
    pub(super) norm: Norm,
    pub(super) qkv: Act,
    pub(super) attn: Attention,
    pub(super) residual: Act,
    pub(super) mlp: MlpActs,
}

impl BlockActs {
    const fn take(rows: usize, v: &Vit, l: &mut Layout) -> BlockActs {
        let (norm, mlp_norm) = (l.act(rows * v.dim), l.act(rows * v.dim));
        let gelu = l.act(rows * v.mlp);
        BlockActs::around([norm, mlp_norm, gelu], rows, v, l)
    }

    /// With spans of the caller's for both norms' outputs and the GELU's.
    const fn around([norm, mlp_norm, gelu]: [Act; 3], rows: usize, v: &Vit, l: &mut Layout) -> BlockActs {
        BlockActs {
            norm: Norm::at(norm, rows, l),
            qkv: l.act(rows * 3 * v.dim),
            attn: Attention { y: l.act(rows * v.dim), lse: l.stat(rows * v.heads) },
            residual: l.act(rows * v.dim),
            mlp: MlpActs { rows, norm: Norm::at(mlp_norm, rows, l), fc1: l.act(rows * v.mlp), gelu },
        }
    }

    /// With the spans of `other` for what can be computed again.
    const fn sharing(self, other: &BlockActs) -> BlockActs {
        let norm = Norm { y: other.norm.y, ..self.norm };
        let mlp_norm = Norm { y: other.mlp.norm.y, ..self.mlp.norm };
        BlockActs { norm, mlp: MlpActs { norm: mlp_norm, gelu: other.mlp.gelu, ..self.mlp }, ..self }
    }

    const fn shift(&self, acts: usize, stats: usize) -> BlockActs {
        BlockActs {
            norm: self.norm.shift(acts, stats),
            qkv: self.qkv.shift(acts),
            attn: Attention { y: self.attn.y.shift(acts), lse: self.attn.lse.shift(stats) },
            residual: self.residual.shift(acts),
            mlp: self.mlp.shift(acts, stats),
        }
    }
}

/// The last block where only class rows go on: `norm`, keys and values over all rows, the rest over one row a crop.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClassActs {
    pub(super) norm: Norm,
    pub(super) norm_class: Act,
    pub(super) qkv: ClassQkv,
    pub(super) attn: Attention,
    pub(super) x: Act,
    pub(super) residual: Act,
    pub(super) mlp: MlpActs,
    pub(super) out: Act,
}

impl ClassActs {
    const fn take(rows: usize, crops: usize, v: &Vit, l: &mut Layout) -> ClassActs {
        let wide = crops * v.dim;
        let norm = Norm::take(rows, v.dim, l);
        let (kv, norm_class) = (l.act(rows * 2 * v.dim), l.act(wide));
        ClassActs {
            norm,
            norm_class,
            qkv: ClassQkv { q: l.act(wide), kv },
            attn: Attention { y: l.act(wide), lse: l.stat(crops * v.heads) },
            x: l.act(wide),
            residual: l.act(wide),
            mlp: MlpActs::take(crops, v, l),
            out: l.act(wide),
        }
    }
}

/// One group's resized positions: the table (patches, C) and the two small matrices that make it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Positions {
    pub(super) y: Act,
    pub(super) rows: State,
    pub(super) cols: State,
}

/// The resized position tables of some crops: made once a step, read by every micro-batch of it.
#[derive(Clone, Copy, Debug)]
pub struct PositionActs {
    pub(super) crops: Crops,
    pub(super) groups: [Positions; MAX_GROUPS],
}

impl PositionActs {
    /// The table of group `i` (patches, C), and its two matrices.
    pub const fn group(&self, i: usize) -> (Act, State, State) {
        let p = self.groups[i];
        (p.y, p.rows, p.cols)
    }

    /// Those of `crops` alone, whose groups have the sizes of these from group `first` on.
    pub(super) const fn part(&self, first: usize, crops: Crops) -> PositionActs {
        let (mut groups, mut i) = (self.groups, 0);
        while i < crops.len() {
            groups[i] = self.groups[first + i];
            i += 1;
        }
        PositionActs { crops, groups }
    }
}

/// Everything a pass over some crops writes.
#[derive(Clone, Copy, Debug)]
pub struct VitActs {
    pub(super) crops: Crops,
    pub(super) tokens: Ragged,
    pub(super) output: Output,
    pub(super) embedded: Act,
    pub(super) positions: PositionActs,
    /// The residual stream: between blocks i - 1 and i at base + i * stride, or alternating between two spans.
    pub(super) x: Act,
    pub(super) save: Save,
    pub(super) block: BlockActs,
    pub(super) stride: [usize; 2],
    pub(super) branch: Act,
    pub(super) last: ClassActs,
    pub(super) norm: Norm,
    /// Stochastic-depth scales (depth, 2 branches, crops); empty without.
    pub(super) drop: State,
}

/// Scratch of a backward pass.
#[derive(Clone, Copy, Debug)]
pub struct VitGrads {
    /// The gradient of the class rows (crops, C), set by the head.
    pub dy: Act,
    pub(super) dx: Act,
    pub(super) d_norm: Act,
    pub(super) d_branch: Act,
    pub(super) d_attn: Act,
    pub(super) d_qkv: Act,
    pub(super) d_gelu: Act,
    pub(super) d_class: Act,
    pub(super) d_q: Act,
    pub(super) d_norm_class: Act,
}

impl VitGrads {
    /// Of a pass that is not followed by a backward pass.
    pub(super) const EMPTY: VitGrads = VitGrads {
        dy: Act::EMPTY,
        dx: Act::EMPTY,
        d_norm: Act::EMPTY,
        d_branch: Act::EMPTY,
        d_attn: Act::EMPTY,
        d_qkv: Act::EMPTY,
        d_gelu: Act::EMPTY,
        d_class: Act::EMPTY,
        d_q: Act::EMPTY,
        d_norm_class: Act::EMPTY,
    };
}

impl VitActs {
    /// The output: (crops, C) or (rows, C), normalized.
    pub const fn y(&self) -> Act {
        self.norm.y
    }

    /// The rows of every crop, its class token included.
    pub const fn tokens(&self) -> Ragged {
        self.tokens
    }

    /// The end of the embedded patches, which are the first span that a pass writes.
    pub(super) const fn end_of_embedded(&self) -> usize {
        self.embedded.0.at + self.embedded.len()
    }

    /// The crops of the pass, in pixels.
    pub const fn crops(&self) -> Crops {
        self.crops
    }

    /// Stochastic-depth scales (depth, 2 branches, crops); empty without.
    pub const fn drop(&self) -> State {
        self.drop
    }

    /// The residual stream in front of block `i`; `depth` for the last block's output (dense form).
    pub const fn stream(&self, i: usize) -> Act {
        let len = self.x.len().next_multiple_of(Cursor::ALIGN);
        let step = if matches!(self.save, Save::Nothing) { i % 2 } else { i };
        self.x.shift(step * len)
    }

    pub(super) const fn full(&self, i: usize) -> BlockActs {
        let own = self.block.shift(i * self.stride[0], i * self.stride[1]);
        match self.save {
            Save::Nothing => self.block,
            Save::All => own,
            Save::Least => own.sharing(&self.block),
        }
    }
}

impl Vit {
    /// Handles of the resized position tables of `crops`. They outlive a pass; counts do not matter, only sizes.
    pub(super) const fn positions(&self, crops: Crops, l: &mut Layout) -> PositionActs {
        let mut groups = [Positions { y: Act::EMPTY, rows: State::EMPTY, cols: State::EMPTY }; MAX_GROUPS];
        let (mut i, side) = (0, self.side());
        while i < crops.len() {
            let [r, c] = crops.group(i).grid(self.patch);
            groups[i] = Positions { y: l.act(r * c * self.dim), rows: l.state(r * side), cols: l.state(c * side) };
            i += 1;
        }
        PositionActs { crops, groups }
    }

    /// Where a pass writes. `drop`: its stochastic-depth scales (depth, 2 branches, crops), or empty.
    pub(super) const fn acts(
        &self,
        crops: Crops,
        positions: PositionActs,
        output: Output,
        save: Save,
        drop: State,
        l: &mut Layout,
    ) -> VitActs {
        let tokens = crops.tokens(self.patch);
        let (rows, count) = (tokens.rows(), crops.count());
        let full = match output {
            Output::Class => self.depth - 1,
            Output::Dense => self.depth,
        };
        let blocks = if matches!(save, Save::Nothing) && full > 0 { 1 } else { full };
        let embedded = l.act(crops.patches(self.patch) * self.dim);
        let x = l.act(rows * self.dim);
        l.acts.next += blocks * (l.acts.next - x.0.at);
        let shared = match save {
            Save::Least if full > 0 => {
                let norm = l.act(rows * self.dim);
                Some([norm, norm, l.act(rows * self.mlp)])
            }
            _ => None,
        };
        let (a0, s0) = (l.acts.next, l.stats.next);
        let block = match shared {
            Some(shared) => BlockActs::around(shared, rows, self, l),
            None => BlockActs::take(rows, self, l),
        };
        let stride = [l.acts.next - a0, l.stats.next - s0];
        l.acts.next = a0 + blocks * stride[0];
        l.stats.next = s0 + blocks * stride[1];
        let branch = l.act(rows * self.dim);
        let (last, norm_rows) = match output {
            Output::Class => (ClassActs::take(rows, count, self, l), count),
            Output::Dense => (ClassActs::take(0, 0, self, l), rows),
        };
        VitActs {
            crops,
            tokens,
            output,
            embedded,
            positions,
            x,
            save,
            block,
            stride,
            branch,
            last,
            norm: Norm::take(norm_rows, self.dim, l),
            drop,
        }
    }

    /// Scratch of a backward pass over `v`'s crops.
    pub(super) const fn grads(&self, v: &VitActs, l: &mut Layout) -> VitGrads {
        let (rows, crops) = (v.tokens.rows(), v.crops.count());
        let (wide, class) = (rows * self.dim, crops * self.dim);
        VitGrads {
            dy: l.act(class),
            dx: l.act(wide),
            d_norm: l.act(wide),
            d_branch: l.act(if v.drop.len() > 0 { wide } else { 0 }),
            d_attn: l.act(wide),
            d_qkv: l.act(3 * wide),
            d_gelu: l.act(rows * self.mlp),
            d_class: l.act(class),
            d_q: l.act(class),
            d_norm_class: l.act(class),
        }
    }

    /// Fills the small matrices of `p` in a copy of the state pool.
    pub(super) fn position_matrices<T: Real>(&self, p: &PositionActs, state: &mut [T]) {
        for (m, &group) in p.groups.iter().zip(p.crops.groups()) {
            let [r, c] = group.grid(self.patch);
            let interpolation = (!position::is_native(group, self.patch, self.side())).then_some(self.positions);
            position::matrix(&mut state[m.rows.range()], self.side(), r, interpolation);
            position::matrix(&mut state[m.cols.range()], self.side(), c, interpolation);
        }
    }
}

//! The CPU backend: rayon over tiles, crops and blocks of rows, matmuls of our own or `matrixmultiply`'s, row kernels that vectorize. Ops
//! that cost nothing run through the reference backend.
//!
//! The lanes of a process ([`dino_kernel::backend::Collective`]) take turns at the same threads, op by op.
//!
//! Same bits for any number of threads: every sum has a fixed order, whichever thread or tile it falls to.

mod attention;
mod backward;
mod batchnorm;
mod collective;
mod column_lse;
mod conv;
mod device;
mod forward;
mod lanes;
mod loss;
mod mse;
mod pool;
mod update;
mod winograd;

use crate::dist::Group;
use dino_kernel::backend::Memory;
use dino_kernel::backend::reference::Train;
use dino_kernel::crops::Ragged;
use dino_kernel::group::GroupError;
use dino_kernel::mem::{Pool, Span, State};
use dino_kernel::scalars::{hyper, monitor};
use lanes::Lane;

/// The pools, in f32.
pub struct Cpu {
    weights: Vec<f32>,
    grads: Vec<f32>,
    slots: Vec<f32>,
    acts: Vec<f32>,
    stats: Vec<f32>,
    state: Vec<f32>,
    /// Partial sums of one op; grows to the largest need and stays.
    scratch: Vec<f32>,
    /// The pools of all lanes where there are several; those of the one that is entered are above.
    lanes: Vec<Lane>,
    entered: usize,
    group: Group,
    /// What batch norms exchange over lanes and processes; grows to the largest need and stays.
    exchanged: Vec<f32>,
    /// How the running statistics move when the group is brought together.
    moves: batchnorm::Moves,
    /// Why the group's last exchange failed; ops cannot fail, so it waits for `sync`.
    failure: Option<GroupError>,
}

/// The CPU takes no flags of its own.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct NoOptions {}

/// Elements per task of an elementwise op: large enough to hide the task, small enough for a cache.
const CHUNK: usize = 1 << 14;

/// Distinct spans of one pool as slices.
fn split<const N: usize>(pool: &mut [f32], spans: [Span; N]) -> [&mut [f32]; N] {
    match pool.get_disjoint_mut(spans.map(Span::range)) {
        Ok(parts) => parts,
        Err(_) => panic!("the plan hands an op overlapping or out-of-pool spans: {spans:?}"),
    }
}

/// So much of a scratch that only grows: what was written there before is still there. (Shrinking it, each op wrote zeros again over
/// what the next one takes: a twelfth of a ResNet-50's step, on one thread.)
fn room(scratch: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    &mut scratch[..len]
}

/// Cuts a packed matrix of `width` elements a token into its crops.
fn crops(mut data: &mut [f32], n: Ragged, width: usize) -> Vec<&mut [f32]> {
    n.each().map_while(|(_, tokens)| data.split_off_mut(..tokens * width)).collect()
}

/// The same for a matrix that is read.
fn crops_of(data: &[f32], n: Ragged, width: usize) -> Vec<&[f32]> {
    n.each().map(|(first, tokens)| &data[first * width..][..tokens * width]).collect()
}

impl Cpu {
    fn reference(&mut self) -> Train<'_, f32> {
        Train {
            weights: &mut self.weights,
            grads: &mut self.grads,
            slots: &mut self.slots,
            acts: &mut self.acts,
            stats: &mut self.stats,
            state: &mut self.state,
        }
    }

    fn hyper(&self, h: State) -> [f32; hyper::LEN] {
        let mut numbers = [0.0; hyper::LEN];
        numbers.copy_from_slice(&self.state[h.range()]);
        numbers
    }

    fn finite(&self, m: State) -> bool {
        self.state[m.0.at + monitor::FINITE] == 1.0
    }

    fn pool(&mut self, pool: Pool) -> &mut Vec<f32> {
        match pool {
            Pool::Weights => &mut self.weights,
            Pool::Grads => &mut self.grads,
            Pool::Slots => &mut self.slots,
            Pool::Acts => &mut self.acts,
            Pool::Stats => &mut self.stats,
            Pool::State => &mut self.state,
        }
    }
}

impl Memory for Cpu {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.reference().read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        self.reference().write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.pool(pool).len()
    }
}

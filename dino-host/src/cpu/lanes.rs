//! The lanes of a process: shards that go through a step side by side. Weights and the optimizer's state are common.

use super::{CHUNK, Cpu};
use crate::error::Result;
use crate::linalg::rows;
use dino_kernel::backend::Sums;
use dino_kernel::backend::wrap::Lanes;
use dino_kernel::mem::{Act, Span, State};
use dino_kernel::plan::Pools;
use rayon::prelude::*;
use std::mem::swap;

/// What a lane has of its own. That of the lane that is entered is empty, for the backend has it.
#[derive(Default)]
pub struct Lane {
    grads: Vec<f32>,
    acts: Vec<f32>,
    stats: Vec<f32>,
    state: Vec<f32>,
}

impl Lane {
    /// Those of a plan, the first one entered; none where there is one lane.
    pub fn several(pools: Pools, zeros: &impl Fn(usize) -> Result<Vec<f32>>) -> Result<Vec<Lane>> {
        let lane = |lane: usize| match lane {
            0 => Ok(Lane::default()),
            _ => Ok(Lane {
                grads: zeros(pools.grads)?,
                acts: zeros(pools.acts)?,
                stats: zeros(pools.stats)?,
                state: zeros(pools.state)?,
            }),
        };
        if pools.lanes > 1 { (0..pools.lanes).map(lane).collect() } else { Ok(Vec::new()) }
    }

    pub fn acts(&self, x: Act) -> &[f32] {
        &self.acts[x.range()]
    }

    pub fn set_acts(&mut self, x: Act, values: &[f32]) {
        self.acts[x.range()].copy_from_slice(values);
    }
}

impl Cpu {
    /// How many lanes there are.
    pub(super) fn lanes(&self) -> usize {
        self.lanes.len().max(1)
    }

    /// Takes the pools of a lane in the place of those of another.
    pub(super) fn take(&mut self, lane: usize) {
        if lane == self.entered {
            return;
        }
        for at in [self.entered, lane] {
            let of = &mut self.lanes[at];
            swap(&mut self.grads, &mut of.grads);
            swap(&mut self.acts, &mut of.acts);
            swap(&mut self.stats, &mut of.stats);
            swap(&mut self.state, &mut of.state);
        }
        self.entered = lane;
    }

    /// [`Lanes::each`] of them.
    pub(super) fn in_lanes(&mut self, work: impl FnMut(&mut Cpu, usize)) {
        let lanes = self.lanes();
        Lanes::new(self, lanes).each(work);
    }

    /// x of every lane = that of the first, which is entered.
    pub(super) fn spread_state(&mut self, x: State) {
        for lane in self.lanes.iter_mut().skip(1) {
            lane.state[x.range()].copy_from_slice(&self.state[x.range()]);
        }
    }

    /// The first lane's gradients and sums become those of all lanes, added by halves.
    pub(super) fn add_lanes(&mut self, len: usize, sums: Sums) {
        let (lanes, mut step) = (self.lanes(), 1);
        while step < lanes {
            for at in (0..lanes - step).step_by(2 * step) {
                self.take(at);
                let further = &self.lanes[at + step];
                let grads = self.grads[..len].par_chunks_mut(CHUNK).zip(further.grads[..len].par_chunks(CHUNK));
                grads.for_each(|(g, further)| rows::add_assign(g, further));
                for Span { at, len } in [sums.teacher.0, sums.losses.0] {
                    rows::add_assign(&mut self.state[at..at + len], &further.state[at..at + len]);
                }
            }
            step *= 2;
        }
        self.take(0);
    }
}

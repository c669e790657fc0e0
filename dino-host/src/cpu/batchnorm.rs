//! Batch norms: blocks of rows on all threads, their sums added up in order ([`BatchNorm::block`]).
//!
//! Where shards share a group's statistics, each forms those of its own rows, as one that is alone does; those of all shards are gathered
//! and merged by halves, in every process alike. The backward pass does so with the sums of the gradient. Where a group is in one shard,
//! processes exchange nothing but what their running statistics move by, once a step.

use super::{Cpu, room, split};
use crate::linalg::{columns, rows};
use dino_kernel::backend::{Affine, BatchNorm, NormStats, Running};
use dino_kernel::group::add_by_halves;
use dino_kernel::mem::Act;
use dino_kernel::ops::batchnorm;
use rayon::prelude::*;
use std::ops::Range;

/// The group and the rows of every block, group by group.
fn blocks(n: BatchNorm) -> Vec<(usize, Range<usize>)> {
    let segments = (0..n.groups()).flat_map(|group| n.segments(group).map(move |rows| (group, rows)));
    let cut = |(group, rows): (usize, Range<usize>)| {
        let end = rows.end;
        rows.step_by(n.block()).map(move |first| (group, first..(first + n.block()).min(end)))
    };
    segments.flat_map(cut).collect()
}

/// The matrix cut into those blocks, in their order. Groups of several views are not in the order of their rows.
fn cut<'a>(mut data: &'a mut [f32], blocks: &[(usize, Range<usize>)], cols: usize) -> Vec<&'a mut [f32]> {
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&i| blocks[i].1.start);
    let mut parts: Vec<&mut [f32]> = blocks.iter().map(|_| Default::default()).collect();
    for i in order {
        parts[i] = data.split_off_mut(..blocks[i].1.len() * cols).unwrap_or_default();
    }
    parts
}

fn rows_of<'a>(data: &'a [f32], rows: &Range<usize>, cols: usize) -> &'a [f32] {
    &data[rows.start * cols..rows.end * cols]
}

/// mean (groups, cols) of x (rows, cols), and moment (groups, cols), the sums of squared differences from it.
fn moments([mean, moment]: [&mut [f32]; 2], x: &[f32], n: BatchNorm, scratch: &mut Vec<f32>) {
    let blocks = blocks(n);
    let scratch = room(scratch, blocks.len() * 2 * n.cols);
    scratch.par_chunks_mut(2 * n.cols).zip(&blocks).for_each(|(sums, (_, rows))| {
        let (mean, moment) = sums.split_at_mut(n.cols);
        columns::moments(mean, moment, rows_of(x, rows, n.cols));
    });
    let mut found = scratch.chunks(2 * n.cols).zip(&blocks).peekable();
    for (i, (mean, moment)) in mean.chunks_mut(n.cols).zip(moment.chunks_mut(n.cols)).enumerate() {
        let mut count = 0;
        while let Some((sums, (_, rows))) = found.next_if(|(_, (group, _))| *group == i) {
            let further = [&sums[..n.cols], &sums[n.cols..]];
            if count == 0 {
                mean.copy_from_slice(further[0]);
                moment.copy_from_slice(further[1]);
            } else {
                columns::merge(mean, moment, count, further, rows.len());
            }
            count += rows.len();
        }
    }
}

/// Moments (groups, cols) over all rows of every group become its rstd; `moved` gets the group's rows, mean and biased variance (cols).
fn finish(mean: &[f32], moment: &mut [f32], n: BatchNorm, mut moved: impl FnMut(usize, &[f32], &[f32])) {
    for (i, (mean, var)) in mean.chunks(n.cols).zip(moment.chunks_mut(n.cols)).enumerate() {
        let rows = n.group_rows(i) * n.shards;
        let inverse = 1.0 / rows as f32;
        var.iter_mut().for_each(|var| *var *= inverse);
        moved(rows, mean, var);
        batchnorm::to_rstd(var, n.eps);
    }
}

/// Means and moments (shards, 2, groups, cols), of as many rows in every shard, merged by halves as sums are added: the first shard's
/// become those of all.
fn merge_by_halves(all: &mut [f32], n: BatchNorm) {
    let (len, mut step) = (n.groups() * n.cols, 1);
    while step < n.shards {
        for at in (0..n.shards - step).step_by(2 * step) {
            let (left, right) = all[2 * at * len..].split_at_mut(2 * step * len);
            let ((mean, moment), (means, moments)) =
                (left[..2 * len].split_at_mut(len), right[..2 * len].split_at(len));
            let further = means.chunks(n.cols).zip(moments.chunks(n.cols));
            let merged = mean.chunks_mut(n.cols).zip(moment.chunks_mut(n.cols));
            for (i, ((mean, moment), (means, moments))) in merged.zip(further).enumerate() {
                let (rows, more) = (step, step.min(n.shards - at - step));
                columns::merge(mean, moment, rows * n.group_rows(i), [means, moments], more * n.group_rows(i));
            }
        }
        step *= 2;
    }
}

/// y, x (rows, cols), residual the same or empty; mean, rstd (groups, cols); w, b (cols).
pub fn normalize(y: &mut [f32], x: &[f32], residual: &[f32], stats: [&[f32]; 2], affine: [&[f32]; 2], n: BatchNorm) {
    let blocks = blocks(n);
    cut(y, &blocks, n.cols).into_par_iter().zip(&blocks).for_each(|(y, (group, rows))| {
        let residual = if residual.is_empty() { residual } else { rows_of(residual, rows, n.cols) };
        let stats = group_stats(stats, *group, n);
        columns::normalize(y, rows_of(x, rows, n.cols), residual, stats, affine, n.relu);
    });
}

/// dy becomes the gradient in front of the ReLU; dw and db (cols) accumulate. Sums (2, cols) of the gradient and of it times x^ over every
/// group are in the scratch, beginning at these elements.
fn gradient_sums(
    dy: &mut [f32],
    [dw, db]: [&mut [f32]; 2],
    [x, y]: [&[f32]; 2],
    stats: [&[f32]; 2],
    n: BatchNorm,
    scratch: &mut Vec<f32>,
) -> Vec<usize> {
    let blocks = blocks(n);
    let scratch = room(scratch, blocks.len() * 2 * n.cols);
    let parts = cut(dy, &blocks, n.cols).into_par_iter().zip(&blocks);
    scratch.par_chunks_mut(2 * n.cols).zip(parts).for_each(|(sums, (dy, (group, rows)))| {
        let (sum, sum_normal) = sums.split_at_mut(n.cols);
        let ([mean, rstd], y) = (group_stats(stats, *group, n), n.relu.then(|| rows_of(y, rows, n.cols)));
        columns::gradient_sums(sum, sum_normal, dy, rows_of(x, rows, n.cols), y, mean, rstd);
    });
    // The sums of a group come to be in its first block's place.
    let firsts: Vec<usize> = (0..n.groups()).map(|group| blocks.partition_point(|(of, _)| *of < group)).collect();
    for (group, &first) in firsts.iter().enumerate() {
        let (total, rest) = scratch[first * 2 * n.cols..].split_at_mut(2 * n.cols);
        let others = blocks[first + 1..].iter().take_while(|(of, _)| *of == group).count();
        for sums in rest.chunks(2 * n.cols).take(others) {
            rows::add_assign(total, sums);
        }
        rows::add_assign(db, &total[..n.cols]);
        rows::add_assign(dw, &total[n.cols..]);
    }
    firsts.into_iter().map(|first| first * 2 * n.cols).collect()
}

/// dx (rows, cols) from what [`gradient_sums`] leaves of dy, and a group's sums over all of its rows, which begin at these elements.
fn gradient(
    dx: &mut [f32],
    [dy, x]: [&[f32]; 2],
    stats: [&[f32]; 2],
    w: &[f32],
    sums: &[f32],
    firsts: &[usize],
    n: BatchNorm,
) {
    let blocks = blocks(n);
    cut(dx, &blocks, n.cols).into_par_iter().zip(&blocks).for_each(|(dx, (group, rows))| {
        let (sum, sum_normal) = sums[firsts[*group]..][..2 * n.cols].split_at(n.cols);
        let inverse = 1.0 / (n.group_rows(*group) * n.shards) as f32;
        let (dy, x) = (rows_of(dy, rows, n.cols), rows_of(x, rows, n.cols));
        columns::gradient(dx, dy, x, [sum, sum_normal], group_stats(stats, *group, n), w, inverse);
    });
}

fn group_stats(stats: [&[f32]; 2], group: usize, n: BatchNorm) -> [&[f32]; 2] {
    stats.map(|s| &s[group * n.cols..][..n.cols])
}

/// What the running statistics of a process among several move by at the end of a step: group after group, as the ops came.
#[derive(Default)]
pub struct Moves {
    /// Whose they are, and the rows of the group.
    of: Vec<(Running, usize)>,
    /// Mean and biased variance of every one.
    numbers: Vec<f32>,
}

impl Moves {
    pub fn clear(&mut self) {
        self.of.clear();
        self.numbers.clear();
    }

    fn push(&mut self, running: Running, rows: usize, mean: &[f32], var: &[f32]) {
        self.of.push((running, rows));
        self.numbers.extend_from_slice(mean);
        self.numbers.extend_from_slice(var);
    }
}

impl Cpu {
    /// See `batch_statistics` of the op traits.
    pub(super) fn take_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        if n.shards > 1 {
            return self.share_statistics(stats, running, x, n);
        }
        let [mean, var] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        moments([mean, var], &self.acts[x.range()], n, &mut self.scratch);
        finish(mean, var, n, |rows, mean, var| {
            if self.group.size() > 1 {
                self.moves.push(running, rows, mean, var);
            } else {
                let running = split(&mut self.state, [running.mean.0, running.var.0]);
                batchnorm::update_running(running, mean, var, rows);
            }
        });
    }

    /// The same where several shards share a group: once for all lanes, whose first one has the running statistics.
    fn share_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        let (half, mut all) = (n.groups() * n.cols, std::mem::take(&mut self.exchanged));
        all.resize(2 * half * n.shards, 0.0);
        self.in_lanes(|cpu, lane| {
            let (mean, moment) = all[2 * half * cpu.shard(lane)..][..2 * half].split_at_mut(half);
            moments([mean, moment], &cpu.acts[x.range()], n, &mut cpu.scratch);
        });
        self.gather(&mut all);
        merge_by_halves(&mut all, n);
        let (mean, var) = all[..2 * half].split_at_mut(half);
        finish(mean, var, n, |rows, mean, var| {
            let running = split(&mut self.state, [running.mean.0, running.var.0]);
            batchnorm::update_running(running, mean, var, rows);
        });
        self.in_lanes(|cpu, _| {
            cpu.stats[stats.mean.range()].copy_from_slice(mean);
            cpu.stats[stats.rstd.range()].copy_from_slice(var);
        });
        self.exchanged = all;
    }

    /// Running statistics of groups in one shard move as they do in a process alone: by the groups of the first process, then by those of
    /// the next one.
    pub(super) fn move_running(&mut self) {
        let len = self.moves.numbers.len();
        if len == 0 {
            return;
        }
        let mut all = std::mem::take(&mut self.exchanged);
        all.resize(len * self.group.size(), 0.0);
        all[len * self.group.rank()..][..len].copy_from_slice(&self.moves.numbers);
        self.gather(&mut all);
        for mut numbers in all.chunks(len) {
            for (running, rows) in &self.moves.of {
                let (own, rest) = numbers.split_at(2 * running.mean.len());
                let (mean, var) = own.split_at(running.mean.len());
                let running = split(&mut self.state, [running.mean.0, running.var.0]);
                batchnorm::update_running(running, mean, var, *rows);
                numbers = rest;
            }
        }
        self.moves.clear();
        self.exchanged = all;
    }

    /// See `batch_normalize_backward` of the op traits.
    pub(super) fn normalize_backward(
        &mut self,
        [dx, dy]: [Act; 2],
        [x, y]: [Act; 2],
        stats: NormStats,
        w: Affine,
        n: BatchNorm,
    ) {
        if n.shards > 1 {
            return self.share_backward([dx, dy], [x, y], stats, w, n);
        }
        let firsts = self.own_sums(dy, [x, y], stats, w, n);
        let [dx, dy, x] = split(&mut self.acts, [dx.0, dy.0, x.0]);
        let stats = [stats.mean, stats.rstd].map(|s| &self.stats[s.range()]);
        gradient(dx, [dy, x], stats, &self.weights[w.w.range()], &self.scratch, &firsts, n);
    }

    /// [`gradient_sums`] of the lane that is entered.
    fn own_sums(&mut self, dy: Act, [x, y]: [Act; 2], stats: NormStats, w: Affine, n: BatchNorm) -> Vec<usize> {
        let [dy, x, y] = split(&mut self.acts, [dy.0, x.0, y.0]);
        let grads = split(&mut self.grads, [w.w.0, w.b.0]);
        let stats = [stats.mean, stats.rstd].map(|s| &self.stats[s.range()]);
        gradient_sums(dy, grads, [x, y], stats, n, &mut self.scratch)
    }

    /// The same where several shards share a group: once for all lanes, whose parameters' gradients are those of their own rows.
    fn share_backward(&mut self, [dx, dy]: [Act; 2], [x, y]: [Act; 2], stats: NormStats, w: Affine, n: BatchNorm) {
        let (len, mut all) = (2 * n.groups() * n.cols, std::mem::take(&mut self.exchanged));
        all.resize(len * n.shards, 0.0);
        self.in_lanes(|cpu, lane| {
            let firsts = cpu.own_sums(dy, [x, y], stats, w, n);
            let own = all[len * cpu.shard(lane)..][..len].chunks_mut(2 * n.cols);
            own.zip(firsts).for_each(|(own, first)| own.copy_from_slice(&cpu.scratch[first..][..2 * n.cols]));
        });
        self.gather(&mut all);
        add_by_halves(&mut all, len);
        let firsts: Vec<usize> = (0..n.groups()).map(|group| 2 * n.cols * group).collect();
        self.in_lanes(|cpu, _| {
            let [dx, dy, x] = split(&mut cpu.acts, [dx.0, dy.0, x.0]);
            let stats = [stats.mean, stats.rstd].map(|s| &cpu.stats[s.range()]);
            gradient(dx, [dy, x], stats, &cpu.weights[w.w.range()], &all, &firsts, n);
        });
        self.exchanged = all;
    }
}

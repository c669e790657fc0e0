//! Batch norms: blocks of rows on all threads, their sums added up in order ([`BatchNorm::block`]).

use crate::linalg::columns;
use dino_kernel::backend::BatchNorm;
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

/// mean, rstd (groups, cols) of x (rows, cols); the running mean and variance (cols) move once for every group.
pub fn statistics(
    [mean, rstd]: [&mut [f32]; 2],
    [running_mean, running_var]: [&mut [f32]; 2],
    x: &[f32],
    n: BatchNorm,
    scratch: &mut Vec<f32>,
) {
    let blocks = blocks(n);
    scratch.resize(blocks.len() * 2 * n.cols, 0.0);
    scratch.par_chunks_mut(2 * n.cols).zip(&blocks).for_each(|(sums, (_, rows))| {
        let (mean, moment) = sums.split_at_mut(n.cols);
        columns::moments(mean, moment, rows_of(x, rows, n.cols));
    });
    let mut found = scratch.chunks(2 * n.cols).zip(&blocks).peekable();
    for (i, (mean, var)) in mean.chunks_mut(n.cols).zip(rstd.chunks_mut(n.cols)).enumerate() {
        let mut count = 0;
        while let Some((sums, (_, rows))) = found.next_if(|(_, (group, _))| *group == i) {
            let further = [&sums[..n.cols], &sums[n.cols..]];
            if count == 0 {
                mean.copy_from_slice(further[0]);
                var.copy_from_slice(further[1]);
            } else {
                columns::merge(mean, var, count, further, rows.len());
            }
            count += rows.len();
        }
        let inverse = 1.0 / count as f32;
        var.iter_mut().for_each(|var| *var *= inverse);
        batchnorm::update_running([&mut *running_mean, &mut *running_var], mean, var, count);
        batchnorm::to_rstd(var, n.eps);
    }
}

/// y, x (rows, cols), residual the same or empty; mean, rstd (groups, cols); w, b (cols).
pub fn normalize(y: &mut [f32], x: &[f32], residual: &[f32], stats: [&[f32]; 2], affine: [&[f32]; 2], n: BatchNorm) {
    let blocks = blocks(n);
    cut(y, &blocks, n.cols).into_par_iter().zip(&blocks).for_each(|(y, (group, rows))| {
        let residual = if residual.is_empty() { residual } else { rows_of(residual, rows, n.cols) };
        let stats = stats.map(|s| &s[group * n.cols..][..n.cols]);
        columns::normalize(y, rows_of(x, rows, n.cols), residual, stats, affine, n.relu);
    });
}

/// dx (rows, cols) is set; dy leaves as the gradient in front of the ReLU; dw and db (cols) accumulate.
pub fn backward(
    [dx, dy]: [&mut [f32]; 2],
    [dw, db]: [&mut [f32]; 2],
    [x, y]: [&[f32]; 2],
    stats: [&[f32]; 2],
    w: &[f32],
    n: BatchNorm,
    scratch: &mut Vec<f32>,
) {
    let blocks = blocks(n);
    let group_stats = |group: usize| stats.map(|s| &s[group * n.cols..][..n.cols]);
    scratch.resize(blocks.len() * 2 * n.cols, 0.0);
    let parts = cut(dy, &blocks, n.cols).into_par_iter().zip(&blocks);
    scratch.par_chunks_mut(2 * n.cols).zip(parts).for_each(|(sums, (dy, (group, rows)))| {
        let (sum, sum_normal) = sums.split_at_mut(n.cols);
        let ([mean, rstd], y) = (group_stats(*group), n.relu.then(|| rows_of(y, rows, n.cols)));
        columns::gradient_sums(sum, sum_normal, dy, rows_of(x, rows, n.cols), y, mean, rstd);
    });
    // The sums of a group come to be in its first block's place.
    let firsts: Vec<usize> = (0..n.groups()).map(|group| blocks.partition_point(|(of, _)| *of < group)).collect();
    for (group, &first) in firsts.iter().enumerate() {
        let (total, rest) = scratch[first * 2 * n.cols..].split_at_mut(2 * n.cols);
        let others = blocks[first + 1..].iter().take_while(|(of, _)| *of == group).count();
        for sums in rest.chunks(2 * n.cols).take(others) {
            crate::linalg::rows::add_assign(total, sums);
        }
        crate::linalg::rows::add_assign(db, &total[..n.cols]);
        crate::linalg::rows::add_assign(dw, &total[n.cols..]);
    }
    let (dy, sums) = (&*dy, &*scratch);
    cut(dx, &blocks, n.cols).into_par_iter().zip(&blocks).for_each(|(dx, (group, rows))| {
        let (sum, sum_normal) = sums[firsts[*group] * 2 * n.cols..][..2 * n.cols].split_at(n.cols);
        let inverse = 1.0 / n.group_rows(*group) as f32;
        let (dy, x) = (rows_of(dy, rows, n.cols), rows_of(x, rows, n.cols));
        columns::gradient(dx, dy, x, [sum, sum_normal], group_stats(*group), w, inverse);
    });
}

//! The prototype loss on the CPU: matmuls over tiles of prototypes that stay in the cache, so that no (rows, K) matrix exists.
//!
//! The tiles are dealt to at most eight strips, each a task with its own partial sums; strips are added in order. The logits
//! are computed twice (once for the log-sum-exp, once for the gradient): a fifth more matmuls, no memory. With few rows a tile
//! costs more to bring from memory and to transpose than to multiply, so larger micro-batches are what makes this quick.

use super::room;
use crate::linalg::gemm::View;
use crate::linalg::rows::{self, Running};
use crate::linalg::small::matmul;
use crate::linalg::transpose::row_of;
use crate::linalg::transpose::transpose;
use crate::linalg::with_scratch;
use dino_kernel::backend::LossDims;
use dino_kernel::ops::loss::LossOut;
use dino_kernel::scalars::hyper;
use rayon::prelude::*;

/// Prototypes per tile.
pub(super) const TILE: usize = 256;
/// How far apart rows of a transposed tile are.
const LD: usize = row_of(TILE);
/// Most strips.
const STRIPS: usize = 8;

/// One network's l2-normalized rows, its prototypes (K, bottleneck) and their scales (K).
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub z: &'a [f32],
    pub v: &'a [f32],
    pub scale: &'a [f32],
}

impl Rows<'_> {
    /// s (rows, tile) = z times prototypes `at .. at + tile`, not yet scaled.
    pub(super) fn matmul(&self, s: &mut [f32], at: usize, tile: usize, bottleneck: usize) {
        let rows = self.z.len() / bottleneck;
        with_scratch(LD * bottleneck, |transposed| {
            transpose(transposed, LD, &self.v[at * bottleneck..], bottleneck, [tile, bottleneck]);
            matmul(s, tile, View::rows(self.z, bottleneck), transposed, LD, [rows, bottleneck, tile], false);
        });
    }
}

/// The teacher's side of the loss: its rows, their log-sum-exp (rows, 2) and what is subtracted from the logits (K).
#[derive(Clone, Copy)]
pub struct Targets<'a> {
    pub rows: Rows<'a>,
    pub lse: &'a [f32],
    pub offset: &'a [f32],
}

/// Elements of a thread's scratch that the loss takes.
pub fn transposed_len(n: LossDims) -> usize {
    LD * n.bottleneck
}

/// Prototypes per strip: full tiles.
pub(super) fn strip_len(prototypes: usize) -> usize {
    prototypes.div_ceil(TILE).div_ceil(STRIPS) * TILE
}

/// Elements of a strip's own memory: student logits, teacher probabilities, summed targets of a row, what the rows met, dz.
pub(super) fn share(n: LossDims) -> usize {
    (n.rows() + n.teachers * n.images + 1) * TILE + n.rows() * (1 + n.bottleneck)
}

/// Elements that the ops of the loss take of their scratch.
pub fn scratch_len(n: LossDims) -> usize {
    match n.prototypes {
        0 => 0,
        k => k.div_ceil(strip_len(k)) * share(n),
    }
}

/// The running softmax of every row over all prototypes, strips merged in order.
pub(super) fn sweep(
    network: Rows,
    offset: Option<&[f32]>,
    slope: f32,
    n: LossDims,
    scratch: &mut Vec<f32>,
) -> Vec<Running> {
    let rows = network.z.len() / n.bottleneck;
    let strip = strip_len(n.prototypes);
    let strips = n.prototypes.div_ceil(strip);
    let scratch = room(scratch, strips * rows * TILE);
    let partial: Vec<Vec<Running>> = scratch
        .par_chunks_mut(rows * TILE)
        .enumerate()
        .map(|(i, s)| {
            let mut sums = vec![Running::START; rows];
            let end = ((i + 1) * strip).min(n.prototypes);
            for at in (i * strip..end).step_by(TILE) {
                let tile = TILE.min(end - at);
                let s = &mut s[..rows * tile];
                network.matmul(s, at, tile, n.bottleneck);
                for (row, sum) in s.chunks_mut(tile).zip(&mut sums) {
                    let offset = offset.map(|c| &c[at..at + tile]);
                    *sum = sum.merge(rows::running(row, &network.scale[at..at + tile], offset, slope), slope);
                }
            }
            sums
        })
        .collect();
    (0..rows).map(|r| partial.iter().fold(Running::START, |sum, strip| sum.merge(strip[r], slope))).collect()
}

/// lse (teacher rows, 2), entropy (teacher rows).
pub fn teacher_lse(
    lse: &mut [f32],
    entropy: &mut [f32],
    teacher: Rows,
    offset: &[f32],
    h: &[f32; hyper::LEN],
    n: LossDims,
    scratch: &mut Vec<f32>,
) {
    for (r, sum) in sweep(teacher, Some(offset), h[hyper::INV_TEACHER_TEMP], n, scratch).into_iter().enumerate() {
        lse[2 * r..][..2].copy_from_slice(&sum.parts());
        entropy[r] = sum.entropy();
    }
}

/// See `dino_kernel::ops::loss::forward_backward`.
pub fn forward_backward(
    out: LossOut<f32>,
    student: Rows,
    targets: Targets,
    h: &[f32; hyper::LEN],
    n: LossDims,
    scratch: &mut Vec<f32>,
) {
    let (LossOut { loss, lse, dz, dw }, Targets { rows: teacher, offset, .. }) = (out, targets);
    let (soften, sharpen) = (h[hyper::INV_STUDENT_TEMP], h[hyper::INV_TEACHER_TEMP]);
    let gradient_scale = soften * h[hyper::LOSS_SCALE];
    let (rows, rows_teacher, c) = (n.rows(), n.teachers * n.images, n.bottleneck);
    for (r, sum) in sweep(student, None, soften, n, scratch).into_iter().enumerate() {
        lse[2 * r..][..2].copy_from_slice(&sum.parts());
    }

    let (strip, share) = (strip_len(n.prototypes), share(n));
    let strips = n.prototypes.div_ceil(strip);
    let scratch = room(scratch, strips * share);
    let (lse, lse_teacher) = (lse.as_chunks::<2>().0, targets.lse.as_chunks::<2>().0);
    let tasks = scratch.par_chunks_mut(share).zip(dw.par_chunks_mut(strip * c)).enumerate();
    tasks.for_each(|(i, (own, dw))| {
        let (s, own) = own.split_at_mut(rows * TILE);
        let (t, own) = own.split_at_mut(rows_teacher * TILE);
        let (q, own) = own.split_at_mut(TILE);
        let (met, dz) = own.split_at_mut(rows);
        met.fill(0.0);
        dz.fill(0.0);
        let (first, end) = (i * strip, ((i + 1) * strip).min(n.prototypes));
        for at in (first..end).step_by(TILE) {
            let tile = TILE.min(end - at);
            let part = at..at + tile;
            let (s, t, q) = (&mut s[..rows * tile], &mut t[..rows_teacher * tile], &mut q[..tile]);
            student.matmul(s, at, tile, c);
            teacher.matmul(t, at, tile, c);
            for (t, &lse) in t.chunks_mut(tile).zip(lse_teacher) {
                rows::targets(t, &teacher.scale[part.clone()], &offset[part.clone()], sharpen, lse);
            }
            for (row, s) in s.chunks_mut(tile).enumerate() {
                let (view, image) = (n.first_view + row / n.images, row % n.images);
                q.fill(0.0);
                for other in (0..n.teachers).filter(|&other| other != view) {
                    rows::add_assign(q, &t[(other * n.images + image) * tile..][..tile]);
                }
                let pairs = n.pairs_of(view) as f32;
                let scale = &student.scale[part.clone()];
                met[row] += rows::student_row(s, q, scale, soften, lse[row], pairs, gradient_scale);
            }
            let dw = &mut dw[(at - first) * c..][..tile * c];
            matmul(dw, c, View::transposed(s, tile), student.z, c, [tile, rows, c], true);
            s.chunks_mut(tile).for_each(|s| rows::scale_columns(s, &student.scale[part.clone()]));
            matmul(dz, c, View::rows(s, tile), &student.v[at * c..], c, [rows, tile, c], true);
        }
    });
    dz.fill(0.0);
    loss.fill(0.0);
    for own in scratch.chunks(share) {
        let (met, part) = own[(rows + rows_teacher + 1) * TILE..].split_at(rows);
        rows::add_assign(dz, part);
        rows::add_assign(loss, met);
    }
}

//! The mean squared error of the softmax outputs on the CPU: the tiles and strips of `loss.rs`, with a pass more over the prototypes.
//!
//! See `dino_kernel::ops::mse`. The first pass over tiles of both networks' logits gives the loss and the inner product of every row's
//! softmax with its gradient, the second the gradient of the logits.

use super::loss::{Rows, TILE, Targets, share, strip_len, sweep};
use super::room;
use crate::linalg::gemm::View;
use crate::linalg::rows;
use crate::linalg::small::matmul;
use dino_kernel::backend::LossDims;
use dino_kernel::ops::loss::LossOut;
use dino_kernel::scalars::{MAX_TEACHERS, hyper};
use rayon::prelude::*;
use std::ops::Range;

/// Both networks' rows, and what their logits are made probabilities with.
struct Pair<'a> {
    student: Rows<'a>,
    teacher: Targets<'a>,
    lse: &'a [[f32; 2]],
    slopes: [f32; 2],
    n: LossDims,
}

impl Pair<'_> {
    /// Over the prototypes `part`: s (rows, tile) becomes the student's probabilities and t (teacher rows, tile) the teacher's. `each` gets
    /// every student row's number, probabilities p, d = pairs p - the sum of its targets, and the sums of p d and of (p - q)^2.
    fn tile(
        &self,
        [s, t, d]: [&mut [f32]; 3],
        part: Range<usize>,
        mut each: impl FnMut(usize, &mut [f32], &[f32], [f32; 2]),
    ) {
        let (n, at, tile, [soften, sharpen]) = (self.n, part.start, part.len(), self.slopes);
        let Targets { rows: teacher, lse, offset } = self.teacher;
        self.student.matmul(s, at, tile, n.bottleneck);
        teacher.matmul(t, at, tile, n.bottleneck);
        for (t, &lse) in t.chunks_mut(tile).zip(lse.as_chunks::<2>().0) {
            rows::targets(t, &teacher.scale[part.clone()], &offset[part.clone()], sharpen, lse);
        }
        for (row, s) in s.chunks_mut(tile).enumerate() {
            let (view, image) = (n.first_view + row / n.images, row % n.images);
            let (mut targets, mut pairs) = ([&t[..0]; MAX_TEACHERS], 0);
            for other in (0..n.teachers).filter(|&other| other != view) {
                targets[pairs] = &t[(other * n.images + image) * tile..][..tile];
                pairs += 1;
            }
            let scale = &self.student.scale[part.clone()];
            let sums = rows::squared_error(s, d, &targets[..pairs], scale, soften, self.lse[row]);
            each(row, s, d, sums);
        }
    }
}

/// A strip's own memory: s, t and d of a tile, so many rows each, and the rest.
fn split(own: &mut [f32], [s, t, d]: [usize; 3]) -> ([&mut [f32]; 3], &mut [f32]) {
    let (s, own) = own.split_at_mut(s * TILE);
    let (t, own) = own.split_at_mut(t * TILE);
    let (d, own) = own.split_at_mut(d * TILE);
    ([s, t, d], own)
}

/// Of each as much as a tile of so many prototypes takes.
fn cut<'a>(own: &'a mut [&mut [f32]; 3], heights: [usize; 3], tile: usize) -> [&'a mut [f32]; 3] {
    let mut heights = heights.into_iter();
    own.each_mut().map(|part| &mut part[..heights.next().unwrap_or(0) * tile])
}

/// See `dino_kernel::ops::mse::forward_backward`.
pub fn forward_backward(
    out: LossOut<f32>,
    student: Rows,
    teacher: Targets,
    h: &[f32; hyper::LEN],
    n: LossDims,
    scratch: &mut Vec<f32>,
) {
    let LossOut { loss, lse, dz, dw } = out;
    let slopes @ [soften, _] = [h[hyper::INV_STUDENT_TEMP], h[hyper::INV_TEACHER_TEMP]];
    let gradient_scale = 2.0 * soften * h[hyper::LOSS_SCALE];
    let (rows, rows_teacher, c) = (n.rows(), n.teachers * n.images, n.bottleneck);
    for (r, sum) in sweep(student, None, soften, n, scratch).into_iter().enumerate() {
        lse[2 * r..][..2].copy_from_slice(&sum.parts());
    }
    let pair = Pair { student, teacher, lse: lse.as_chunks::<2>().0, slopes, n };

    let (strip, share) = (strip_len(n.prototypes), share(n));
    let strips = n.prototypes.div_ceil(strip);
    let scratch = room(scratch, strips * share);
    let tiles = |i: usize| {
        let end = ((i + 1) * strip).min(n.prototypes);
        (i * strip..end).step_by(TILE).map(move |at| at..(at + TILE).min(end))
    };
    let heights = [rows, rows_teacher, 1];
    let sums: Vec<Vec<[f32; 2]>> = scratch
        .par_chunks_mut(share)
        .enumerate()
        .map(|(i, own)| {
            let (mut own, mut sums) = (split(own, heights).0, vec![[0.0; 2]; rows]);
            for part in tiles(i) {
                let own = cut(&mut own, heights, part.len());
                pair.tile(own, part, |row, _, _, [inner, error]| {
                    sums[row][0] += inner;
                    sums[row][1] += error;
                });
            }
            sums
        })
        .collect();
    let inner: Vec<f32> = (0..rows).map(|r| sums.iter().map(|strip| strip[r][0]).sum()).collect();
    for (r, loss) in loss.iter_mut().enumerate() {
        *loss = sums.iter().map(|strip| strip[r][1]).sum();
    }

    let tasks = scratch.par_chunks_mut(share).zip(dw.par_chunks_mut(strip * c)).enumerate();
    tasks.for_each(|(i, (own, dw))| {
        let (mut own, rest) = split(own, heights);
        let dz = &mut rest[rows..];
        dz.fill(0.0);
        for (part, dw) in tiles(i).zip(dw.chunks_mut(TILE * c)) {
            let (at, tile) = (part.start, part.len());
            let [s, t, d] = cut(&mut own, heights, tile);
            pair.tile([&mut *s, t, d], part.clone(), |row, p, d, _| {
                rows::squared_error_gradient(p, d, inner[row], gradient_scale);
            });
            matmul(dw, c, View::transposed(s, tile), student.z, c, [tile, rows, c], true);
            s.chunks_mut(tile).for_each(|s| rows::scale_columns(s, &student.scale[part.clone()]));
            matmul(dz, c, View::rows(s, tile), &student.v[at * c..], c, [rows, tile, c], true);
        }
    });
    dz.fill(0.0);
    for own in scratch.chunks(share) {
        rows::add_assign(dz, &own[(rows + rows_teacher + 1) * TILE + rows..]);
    }
}

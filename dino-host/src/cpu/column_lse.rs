//! The log-sum-exp of every prototype over the teacher's rows, on the CPU: the loss's tiles and strips, rows in blocks of a micro-batch's.
//!
//! See `dino_kernel::ops::column_lse`. Every column's sum is over the rows in their order, whatever thread its strip falls to.

use super::loss::{Rows, TILE, strip_len};
use super::room;
use crate::linalg::rows;
use dino_kernel::backend::LossDims;
use dino_kernel::scalars::hyper;
use rayon::prelude::*;

/// offset (K); lse (rows, 2), or empty for rows whose log-sum-exp is 0; `block` rows at once.
pub fn forward(
    offset: &mut [f32],
    teacher: Rows,
    lse: &[f32],
    h: &[f32; hyper::LEN],
    n: LossDims,
    block: usize,
    scratch: &mut Vec<f32>,
) {
    let (c, strip, slope) = (n.bottleneck, strip_len(n.prototypes), h[hyper::INV_TEACHER_TEMP]);
    let len = block * TILE;
    let scratch = room(scratch, n.prototypes.div_ceil(strip) * len);
    let tasks = scratch.par_chunks_mut(len).zip(offset.par_chunks_mut(strip)).enumerate();
    tasks.for_each(|(i, (s, offset))| {
        for (at, offset) in (i * strip..).step_by(TILE).zip(offset.chunks_mut(TILE)) {
            let tile = offset.len();
            let scale = &teacher.scale[at..at + tile];
            let (mut tops, mut totals) = ([f32::NEG_INFINITY; TILE], [0.0f64; TILE]);
            for (number, z) in teacher.z.chunks(block * c).enumerate() {
                let s = &mut s[..z.len() / c * tile];
                Rows { z, ..teacher }.matmul(s, at, tile, c);
                let lse = lse.get(2 * number * block..).unwrap_or_default().as_chunks::<2>().0;
                for (row, s) in s.chunks_mut(tile).enumerate() {
                    let [top, ln] = lse.get(row).copied().unwrap_or_default();
                    rows::column_terms(s, scale, top, ln / slope);
                }
                rows::column_totals(&mut tops[..tile], &mut totals[..tile], s, slope);
            }
            for ((offset, top), total) in offset.iter_mut().zip(tops).zip(totals) {
                *offset = top + total.ln() as f32 / slope;
            }
        }
    });
}

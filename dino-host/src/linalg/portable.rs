//! Matmuls by `matrixmultiply`, where we have no loops of our own.
//!
//! It runs single-threaded inside; rayon cuts the result into tiles outside it. What it costs beyond its multiplications is packing. It
//! packs a factor quickly only if neighbors are along the side it packs (columns of a, rows of b). The other way it takes element by
//! element: hardly slower where the factor is in the cache, a quarter of an entire training step where it is not. So such a factor is
//! transposed first, block by block.

use super::gemm::{Fused, Output, View};
use super::packed::DEPTH;
use super::transpose::{row_of, transpose};
use super::with_scratch;
use rayon::prelude::*;
use std::ops::Range;

/// What of a matmul is transposed and multiplied at once, so that it stays in the second cache: 384 x 768 in equal parts are 1 to 3 %
/// faster than 256 x 512 (`sgemm` packs its right factor anew for every part of the left one, and the left one is transposed anew for
/// every part of the right one). A left factor that packs quickly is not cut; leaving the right one uncut gained nothing. Sums over k are
/// cut where `sgemm` cuts them anyway, so that the bits are those of one call.
const WIDTH: usize = 768;
const HEIGHT: usize = 384;

/// Elements of a thread's scratch that a matmul of factors of up to `widest` columns takes at most: both of them transposed.
pub fn scratch_len(widest: usize) -> usize {
    DEPTH * (row_of(HEIGHT.min(widest)) + row_of(WIDTH.min(widest)))
}

/// Elements that `sgemm` itself allocates at most while it multiplies a block: it packs 64 rows of the left factor at a time, and
/// all columns of the right one (its `mc`, `kc` and `nc`).
pub fn packed_len(widest: usize) -> usize {
    DEPTH * (64 + WIDTH.min(widest))
}

/// Whether `sgemm` packs it quickly as a left factor: its neighbors are along columns (or nowhere, where transposing would not help).
fn packs_fast(x: View) -> bool {
    x.row == 1 || x.col != 1
}

/// The same (m, k) in the order that packs quickly: itself, or a transposed copy.
fn along<'b>(x: View<'b>, copy: &'b mut [f32], m: usize, k: usize) -> View<'b> {
    if packs_fast(x) {
        return x;
    }
    let ld = row_of(m);
    transpose(copy, ld, x.data, x.row, [m, k]);
    View::transposed(copy, ld)
}

/// Least elements of a tile where there are more tiles than threads: smaller ones pack too much.
const TILE: usize = 1 << 17;

/// How many tasks are made of work that so many would be worth their while: as many for every thread, one, or two where there is
/// enough, so that a thread that falls behind is helped.
fn tasks(worthwhile: usize) -> usize {
    let threads = rayon::current_num_threads();
    threads * (worthwhile / threads).clamp(1, 2)
}

/// Length of a part where `len` is cut into at most `parts` parts of full kernel tiles (16).
fn part(len: usize, parts: usize) -> usize {
    len.div_ceil(parts).next_multiple_of(16).max(16)
}

/// Rows and columns of the tiles that an (m, n) result is cut into: of all grids with so many tasks the one that packs least.
pub fn tile_size(m: usize, n: usize) -> [usize; 2] {
    let tasks = tasks(m * n / TILE);
    let grids =
        (1..=tasks).filter(|down| tasks.is_multiple_of(*down)).map(|down| [part(m, down), part(n, tasks / down)]);
    let packed = |&[rows, cols]: &[usize; 2]| m.div_ceil(rows) * n + n.div_ceil(cols) * m;
    grids.min_by_key(packed).unwrap_or([m.max(1), n.max(1)])
}

/// c (m, n) = a (m, k) b (k, n), none of them zero, added to what is there if `add`; on all threads or on this one.
pub fn multiply(c: Output, a: View, b: View, [m, k, n]: [usize; 3], add: bool, all: bool, fused: &impl Fused) {
    let tile = |rows: Range<usize>, cols: Range<usize>| {
        // SAFETY: tiles are disjoint.
        unsafe { tile(c, rows.clone(), cols.clone(), a, b, k, add, fused) };
        for i in rows {
            // SAFETY: as above.
            let c = unsafe { c.row(i, cols.clone()) };
            if let Some(bias) = fused.bias() {
                super::rows::add_bias(c, &bias[cols.clone()]);
            }
            fused.after(i, cols.start, c);
        }
    };
    if !all {
        return tile(0..m, 0..n);
    }
    let [rows, cols] = tile_size(m, n);
    let across = n.div_ceil(cols);
    (0..m.div_ceil(rows) * across).into_par_iter().for_each(|i| {
        let (row, col) = (i / across * rows, i % across * cols);
        tile(row..(row + rows).min(m), col..(col + cols).min(n));
    });
}

/// Rows and columns of the result.
///
/// # Safety
/// Nothing else uses them.
unsafe fn tile(
    c: Output,
    rows: Range<usize>,
    cols: Range<usize>,
    a: View,
    b: View,
    k: usize,
    add: bool,
    fused: &impl Fused,
) {
    let (m, n, a, b) = (rows.len(), cols.len(), a.from(rows.start, 0), b.from(0, cols.start));
    let cut = |len: usize, most| part(len, len.div_ceil(most)).min(len);
    let (height, width) = (if packs_fast(a) { m } else { cut(m, HEIGHT) }, cut(n, WIDTH));
    let copied_row = |factor: View, len| if packs_fast(factor) { 0 } else { row_of(len) };
    let (copied_a, copied_b) = (copied_row(a, height), copied_row(b.flipped(), width));
    let depth = DEPTH.min(k);
    with_scratch(depth * (copied_a + copied_b), |scratch| {
        let (copy_a, copy_b) = scratch.split_at_mut(depth * copied_a);
        for at in (0..k).step_by(DEPTH) {
            let depth = DEPTH.min(k - at);
            if cols.start == 0 {
                fused.before(rows.clone(), at..at + depth);
            }
            for j in (0..n).step_by(width) {
                let width = width.min(n - j);
                let b = along(b.from(at, j).flipped(), copy_b, width, depth).flipped();
                for i in (0..m).step_by(height) {
                    let height = height.min(m - i);
                    let a = along(a.from(i, at), copy_a, height, depth);
                    let to = c.at(rows.start + i, cols.start + j);
                    // SAFETY: within the tile, which is the caller's alone.
                    unsafe { block(to, [height, depth, width], a, b, add || at > 0) };
                }
            }
        }
    });
}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n), added to what is there if `add`.
///
/// # Safety
/// c has so many rows and columns, the factors as well; nobody else uses those of c.
unsafe fn block((c, stride): (*mut f32, usize), [m, k, n]: [usize; 3], a: View, b: View, add: bool) {
    debug_assert!(a.holds(m, k) && b.holds(k, n), "a is {m} x {k}, b is {k} x {n}");
    let (ra, ca, rb, cb) = (a.row as isize, a.col as isize, b.row as isize, b.col as isize);
    let (a, b, stride) = (a.data.as_ptr(), b.data.as_ptr(), stride as isize);
    // SAFETY: as the caller promises; rows of the result do not overlap because stride >= n.
    unsafe { matrixmultiply::sgemm(m, k, n, 1.0, a, ra, ca, b, rb, cb, add as u8 as f32, c, stride, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_result() {
        for (m, n) in [(1, 1), (10, 2048), (3168, 768), (192, 768), (1536, 384), (0, 5), (5, 0)] {
            let [rows, cols] = tile_size(m, n);
            assert!(rows > 0 && cols > 0, "{m} x {n}: {rows} x {cols}");
        }
    }
}

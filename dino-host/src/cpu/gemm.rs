//! Matrix products: the one place that calls `sgemm`, and the three parallel products a linear layer needs.
//!
//! `matrixmultiply` runs single-threaded inside; rayon splits the work outside it. How the work is split depends on the shape
//! alone, never on the number of threads, so the bits do not either.

use rayon::prelude::*;

/// A strided matrix inside a slice: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub col: usize,
}

impl<'a> View<'a> {
    /// Rows one after the other, `row` elements apart.
    pub fn rows(data: &'a [f32], row: usize) -> View<'a> {
        View { data, row, col: 1 }
    }

    /// The transpose of rows that lie `row` elements apart.
    pub fn transposed(data: &'a [f32], row: usize) -> View<'a> {
        View { data, row: 1, col: row }
    }

    fn reach(&self, rows: usize, cols: usize) -> usize {
        (rows - 1) * self.row + (cols - 1) * self.col
    }
}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n) + beta c, on this thread.
pub fn sgemm(c: &mut [f32], stride: usize, a: View, b: View, [m, k, n]: [usize; 3], beta: f32) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(stride >= n && (m - 1) * stride + n <= c.len(), "c has room for {m} x {n}");
    assert!(a.reach(m, k) < a.data.len() && b.reach(k, n) < b.data.len(), "a is {m} x {k}, b is {k} x {n}");
    let (ra, ca, rb, cb) = (a.row as isize, a.col as isize, b.row as isize, b.col as isize);
    // SAFETY: the asserts above bound every element that m, k, n and the strides reach; `c` is borrowed mutably, so it overlaps
    // neither input, and its rows do not overlap each other because stride >= n.
    unsafe {
        let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), c.as_mut_ptr());
        matrixmultiply::sgemm(m, k, n, 1.0, a, ra, ca, b, rb, cb, beta, c, stride as isize, 1);
    }
}

/// The instructions `sgemm` uses on this machine: what the bits of a product depend on, besides its shape.
pub fn instructions() -> &'static str {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    {
        use std::arch::is_x86_feature_detected as has;
        match () {
            () if has!("avx512f") => "AVX-512",
            () if has!("fma") && has!("avx2") => "AVX2 and FMA",
            () if has!("avx") => "AVX",
            () => "SSE2",
        }
    }
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
    std::env::consts::ARCH
}

/// Rows per task: enough that packing the other matrix once per task is cheap, few enough that several tasks exist.
pub fn row_block(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(32).clamp(64, 512)
}

/// y (rows, out) = x (rows, inp) w (out, inp)^T + b.
pub fn linear(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    let block = row_block(y.len() / b.len());
    y.par_chunks_mut(block * b.len()).zip(x.par_chunks(block * inp)).for_each(|(y, x)| affine(y, x, w, b, inp));
}

/// pre = x w^T + b; y = f(pre), block by block while it is in cache.
pub fn linear_then(
    y: &mut [f32],
    pre: &mut [f32],
    x: &[f32],
    w: &[f32],
    b: &[f32],
    inp: usize,
    f: fn(&mut [f32], &[f32]),
) {
    let block = row_block(y.len() / b.len());
    let written = y.par_chunks_mut(block * b.len()).zip(pre.par_chunks_mut(block * b.len()));
    written.zip(x.par_chunks(block * inp)).for_each(|((y, pre), x)| {
        affine(pre, x, w, b, inp);
        f(y, pre);
    });
}

fn affine(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    y.chunks_mut(b.len()).for_each(|row| row.copy_from_slice(b));
    let size = [y.len() / b.len(), inp, b.len()];
    sgemm(y, b.len(), View::rows(x, inp), View::transposed(w, inp), size, 1.0);
}

/// dx (rows, inp) = dy (rows, out) w (out, inp).
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], inp: usize, out: usize) {
    let block = row_block(dx.len() / inp);
    dx.par_chunks_mut(block * inp).zip(dy.par_chunks(block * out)).for_each(|(dx, dy)| {
        sgemm(dx, inp, View::rows(dy, out), View::rows(w, inp), [dx.len() / inp, out, inp], 0.0);
    });
}

/// A weight gradient of at most this many elements is summed over rows in parallel parts; a larger one is cut into tiles, each of
/// which sees all rows.
const SMALL: usize = 1 << 16;
/// Rows a product takes at once: with more, the strided operand no longer packs from cache (71 against 130 GFLOP/s at 12,736).
const ROWS: usize = 1024;
/// Side of the tiles of a large gradient.
const TILE: usize = 256;

/// dw (out, inp) += dy (rows, out)^T x (rows, inp); db (out) += column sums of dy.
pub fn weight_gradient(dw: &mut [f32], db: &mut [f32], dy: &[f32], x: &[f32], inp: usize, scratch: &mut Vec<f32>) {
    let out = db.len();
    let rows = dy.len() / out;
    let parts = rows.div_ceil(256).clamp(1, 8);
    let block = rows.div_ceil(parts);
    let small = dw.len() <= SMALL;
    // Every part of the rows has its own sums, added up in order afterwards.
    let share = out + if small { dw.len() } else { 0 };
    scratch.clear();
    scratch.resize(parts * share, 0.0);
    let sources = dy.par_chunks(block * out).zip(x.par_chunks(block * inp));
    scratch.par_chunks_mut(share).zip(sources).for_each(|(sums, (dy, x))| {
        let (db, dw) = sums.split_at_mut(out);
        super::rows::column_sums(db, dy);
        if small {
            accumulate(dw, inp, dy, x, [out, inp], [out, inp]);
        }
    });
    for sums in scratch.chunks(share) {
        super::rows::add_assign(db, &sums[..out]);
        if small {
            super::rows::add_assign(dw, &sums[out..]);
        }
    }
    if !small {
        // Bands of whole output rows are disjoint in memory; each band takes its columns in turn.
        dw.par_chunks_mut(TILE * inp).enumerate().for_each(|(i, band)| {
            let rows = band.len() / inp;
            accumulate(band, inp, &dy[i * TILE..], x, [rows, inp], [out, inp]);
        });
    }
}

/// c (m, n) += dy[.., ..m]^T x[.., ..n], rows taken in blocks; `strides` are the widths of dy and x.
fn accumulate(c: &mut [f32], stride: usize, dy: &[f32], x: &[f32], [m, n]: [usize; 2], [dy_row, x_row]: [usize; 2]) {
    for (dy, x) in dy.chunks(ROWS * dy_row).zip(x.chunks(ROWS * x_row)) {
        let rows = x.len() / x_row;
        sgemm(c, stride, View::transposed(dy, dy_row), View::rows(x, x_row), [m, rows, n], 1.0);
    }
}

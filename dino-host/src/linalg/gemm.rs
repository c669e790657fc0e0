//! Matmuls: the only caller of `sgemm`, and the parallel matmuls a linear layer needs.
//!
//! `matrixmultiply` runs single-threaded inside; rayon cuts the result into tiles outside it. An element of a matmul is summed in
//! the same order in whatever tile it is (over k alone, in blocks of a fixed length), so tiles may be cut by the number of
//! threads and the bits still do not depend on it; the tests below hold `sgemm` to that.
//!
//! What a matmul costs beyond its multiplications is packing. `matrixmultiply` packs a factor quickly only if neighbors are along
//! the side it packs (columns of a, rows of b). The other way it takes element by element: hardly slower where the factor is in
//! the cache, a quarter of an entire training step where it is not. So such a factor is transposed first, block by block. Also measured
//! (AVX-512, 146 GFLOP/s at best): 64 rows a tile 109, 176 rows 125, 350 rows 137; starting from a result that holds the bias
//! (beta = 1) 107 against 131 for adding it afterwards, while the rows are in the cache.

use super::transpose::transpose;
use super::with_scratch;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A strided matrix inside a slice: element (i, j) is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The slice.
    pub data: &'a [f32],
    /// Elements from a row to the next.
    pub row: usize,
    /// Elements from a column to the next.
    pub col: usize,
}

impl<'a> View<'a> {
    /// Rows one after the other, `row` elements apart.
    pub fn rows(data: &'a [f32], row: usize) -> View<'a> {
        View { data, row, col: 1 }
    }

    /// The transpose of rows that are `row` elements apart.
    pub fn transposed(data: &'a [f32], row: usize) -> View<'a> {
        View { data, row: 1, col: row }
    }

    /// The matrix from element (i, j) on.
    fn from(&self, i: usize, j: usize) -> View<'a> {
        View { data: &self.data[i * self.row + j * self.col..], ..*self }
    }

    /// The transpose.
    fn flipped(self) -> View<'a> {
        View { row: self.col, col: self.row, ..self }
    }

    /// Whether `sgemm` packs it quickly as a left factor: its neighbors are along columns (or nowhere, where transposing would not help).
    fn packs_fast(&self) -> bool {
        self.row == 1 || self.col != 1
    }

    /// The same (m, k) in the order that packs quickly: itself, or a transposed copy.
    fn along<'b>(self, copy: &'b mut [f32], m: usize, k: usize) -> View<'b>
    where
        'a: 'b,
    {
        if self.packs_fast() {
            return self;
        }
        let ld = row_of(m);
        transpose(copy, ld, self.data, self.row, [m, k]);
        View::transposed(copy, ld)
    }

    /// Whether the slice holds so many rows and columns, neither of them zero.
    fn holds(&self, rows: usize, cols: usize) -> bool {
        let far = |n: usize, step: usize| (n - 1).checked_mul(step);
        let last = far(rows, self.row).zip(far(cols, self.col)).and_then(|(r, c)| r.checked_add(c));
        last.is_some_and(|last| last < self.data.len())
    }
}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n) + beta c, on this thread.
pub fn sgemm(c: &mut [f32], stride: usize, a: View, b: View, [m, k, n]: [usize; 3], beta: f32) {
    // SAFETY: the only tile of this result.
    unsafe { Output::new(c, stride, m, n).tile(0..m, 0..n) }.set(a, b, k, beta);
}

/// What of a matmul is transposed and multiplied at once, so that it stays in the second cache: 384 x 768 in equal parts are 1 to 3 %
/// faster than 256 x 512 (`sgemm` packs its right factor anew for every part of the left one, and the left one is transposed anew for
/// every part of the right one). A left factor that packs quickly is not cut; leaving the right one uncut gained nothing. Sums over k are
/// cut where `sgemm` cuts them anyway, so that the bits are those of one call.
const DEPTH: usize = 256;
const WIDTH: usize = 768;
const HEIGHT: usize = 384;

/// How far apart rows of `len` elements are in a transposed copy: an odd number of cache lines, so that a column's neighbors share no
/// set of the cache.
pub(crate) const fn row_of(len: usize) -> usize {
    (len.div_ceil(16) | 1) * 16
}

/// Elements of a thread's scratch that a matmul of factors of up to `widest` columns takes at most: both of them transposed.
pub fn scratch_len(widest: usize) -> usize {
    DEPTH * (row_of(HEIGHT.min(widest)) + row_of(WIDTH.min(widest)))
}

/// Elements that `sgemm` itself allocates at most while it multiplies a block: it packs 64 rows of the left factor at a time, and
/// all columns of the right one (its `mc`, `kc` and `nc`).
pub fn packed_len(widest: usize) -> usize {
    DEPTH * (64 + WIDTH.min(widest))
}

/// A result that is written by tiles.
#[derive(Clone, Copy)]
struct Output<'c> {
    c: *mut f32,
    stride: usize,
    m: usize,
    n: usize,
    _borrowed: PhantomData<&'c mut [f32]>,
}

// SAFETY: it is a mutable borrow of floats, and whoever calls `tile` promises that no two of them overlap.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

/// Rows and columns of a result that one task writes.
struct Tile<'c> {
    output: Output<'c>,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl<'c> Output<'c> {
    fn new(c: &'c mut [f32], stride: usize, m: usize, n: usize) -> Output<'c> {
        let len = m.checked_sub(1).map_or(Some(0), |rows| rows.checked_mul(stride)?.checked_add(n));
        assert!(stride >= n && len.is_some_and(|len| len <= c.len()), "c is large enough for {m} x {n}");
        Output { c: c.as_mut_ptr(), stride, m, n, _borrowed: PhantomData }
    }

    /// # Safety
    /// No two tiles of one result that are in use at the same time may overlap.
    unsafe fn tile(self, rows: Range<usize>, cols: Range<usize>) -> Tile<'c> {
        assert!(rows.end <= self.m && cols.end <= self.n, "a tile of {} x {}", self.m, self.n);
        Tile { output: self, rows, cols }
    }
}

impl Tile<'_> {
    /// The tile's part of a (m, k) b (k, n) + beta c, for the full factors.
    fn set(&mut self, a: View, b: View, k: usize, beta: f32) {
        let (m, n) = (self.rows.len(), self.cols.len());
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        let (a, b) = (a.from(self.rows.start, 0), b.from(0, self.cols.start));
        assert!(a.holds(m, k) && b.holds(k, n), "a is {m} x {k}, b is {k} x {n}");
        let cut = |len: usize, most| part(len, len.div_ceil(most)).min(len);
        let (height, width) = (if a.packs_fast() { m } else { cut(m, HEIGHT) }, cut(n, WIDTH));
        let packed_row = |factor: View, len| if factor.packs_fast() { 0 } else { row_of(len) };
        let (packed_a, packed_b) = (packed_row(a, height), packed_row(b.flipped(), width));
        let depth = DEPTH.min(k);
        with_scratch(depth * (packed_a + packed_b), |scratch| {
            let (transposed_a, transposed_b) = scratch.split_at_mut(depth * packed_a);
            for at in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - at);
                let beta = if at == 0 { beta } else { 1.0 };
                for j in (0..n).step_by(width) {
                    let cols = width.min(n - j);
                    let b = b.from(at, j).flipped().along(transposed_b, cols, depth).flipped();
                    for i in (0..m).step_by(height) {
                        let rows = height.min(m - i);
                        let a = a.from(i, at).along(transposed_a, rows, depth);
                        // SAFETY: within the tile, which is this task's alone.
                        unsafe { self.block([i, j], [rows, depth, cols], a, b, beta) };
                    }
                }
            }
        });
    }

    /// The block of the tile from element (i, j) on, [m, n] of it: a (m, k) b (k, n) + beta c.
    ///
    /// # Safety
    /// The block is within the tile.
    unsafe fn block(&mut self, [i, j]: [usize; 2], [m, k, n]: [usize; 3], a: View, b: View, beta: f32) {
        debug_assert!(a.holds(m, k) && b.holds(k, n), "a is {m} x {k}, b is {k} x {n}");
        let (ra, ca, rb, cb) = (a.row as isize, a.col as isize, b.row as isize, b.col as isize);
        let stride = self.output.stride;
        // SAFETY: `set` and `Output` have bounded every element that m, k, n and the strides reach; the result is borrowed
        // mutably, so it overlaps neither factor; its rows do not overlap because stride >= n, nor do its tiles.
        unsafe {
            let c = self.output.c.add((self.rows.start + i) * stride + self.cols.start + j);
            let (a, b, stride) = (a.data.as_ptr(), b.data.as_ptr(), stride as isize);
            matrixmultiply::sgemm(m, k, n, 1.0, a, ra, ca, b, rb, cb, beta, c, stride, 1);
        }
    }
}

/// The instructions `sgemm` uses on this machine: what the bits of a matmul depend on, besides its shape.
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
fn tile_size(m: usize, n: usize) -> [usize; 2] {
    let tasks = tasks(m * n / TILE);
    let grids =
        (1..=tasks).filter(|down| tasks.is_multiple_of(*down)).map(|down| [part(m, down), part(n, tasks / down)]);
    let packed = |&[rows, cols]: &[usize; 2]| m.div_ceil(rows) * n + n.div_ceil(cols) * m;
    grids.min_by_key(packed).unwrap_or([m.max(1), n.max(1)])
}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n) + beta c, on all threads.
pub fn matmul(c: &mut [f32], stride: usize, a: View, b: View, [m, k, n]: [usize; 3], beta: f32) {
    let ([rows, cols], output) = (tile_size(m, n), Output::new(c, stride, m, n));
    let across = n.div_ceil(cols);
    (0..m.div_ceil(rows) * across).into_par_iter().for_each(|i| {
        let (row, col) = (i / across * rows, i % across * cols);
        // SAFETY: the tiles of a grid are disjoint.
        let mut tile = unsafe { output.tile(row..(row + rows).min(m), col..(col + cols).min(n)) };
        tile.set(a, b, k, beta);
    });
}

/// Rows of a block of a row-wise op whose partial sums are added up in order: cut by shape alone, so that the sums do not depend
/// on the number of threads.
pub fn row_block(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(32).clamp(64, 512)
}

/// Least rows of a block that goes through a layer on its own. Fewer than that for every thread, and the matmul is cut as its shape
/// suggests (by columns, mostly: each weight is then packed once), the bias added in a pass of its own.
const FEW: usize = 256;

/// Rows of a block of a layer of `rows` rows, one block a task; none where they are too few.
fn by_rows(rows: usize) -> Option<usize> {
    let block = part(rows, tasks(rows / FEW));
    (block >= FEW).then_some(block)
}

/// Rows of a pass over a matrix in the cache, one block a task.
fn rows_a_task(rows: usize) -> usize {
    rows.div_ceil(rayon::current_num_threads()).max(1)
}

/// y (rows, out) = x (rows, inp) w (out, inp)^T + b.
pub fn linear(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    let (rows, out) = (y.len() / b.len(), b.len());
    let Some(block) = by_rows(rows) else {
        matmul(y, out, View::rows(x, inp), View::transposed(w, inp), [rows, inp, out], 0.0);
        return y.par_chunks_mut(rows_a_task(rows) * out).for_each(|y| super::rows::add_bias(y, b));
    };
    y.par_chunks_mut(block * out).zip(x.par_chunks(block * inp)).for_each(|(y, x)| {
        sgemm(y, out, View::rows(x, inp), View::transposed(w, inp), [y.len() / out, inp, out], 0.0);
        super::rows::add_bias(y, b);
    });
}

/// pre = x w^T + b; y = gelu(pre).
pub fn linear_gelu(y: &mut [f32], pre: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    let (rows, out) = (y.len() / b.len(), b.len());
    let Some(block) = by_rows(rows) else {
        matmul(pre, out, View::rows(x, inp), View::transposed(w, inp), [rows, inp, out], 0.0);
        let chunk = rows_a_task(rows) * out;
        let written = y.par_chunks_mut(chunk).zip(pre.par_chunks_mut(chunk));
        return written.for_each(|(y, pre)| super::rows::bias_gelu(y, pre, b));
    };
    let written = y.par_chunks_mut(block * out).zip(pre.par_chunks_mut(block * out));
    written.zip(x.par_chunks(block * inp)).for_each(|((y, pre), x)| {
        sgemm(pre, out, View::rows(x, inp), View::transposed(w, inp), [pre.len() / out, inp, out], 0.0);
        super::rows::bias_gelu(y, pre, b);
    });
}

/// dx (rows, inp) = dy (rows, out) w (out, inp).
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], inp: usize, out: usize) {
    let rows = dx.len() / inp;
    matmul(dx, inp, View::rows(dy, out), View::rows(w, inp), [rows, out, inp], 0.0);
}

/// Rows that a weight gradient takes at once: the column sums bring into the cache what the matmul then packs.
const ROWS: usize = 256;

/// dw (out, inp) += dy (rows, out)^T x (rows, inp); db (out) += column sums of dy.
pub fn weight_gradient(dw: &mut [f32], db: &mut [f32], dy: &[f32], x: &[f32], inp: usize) {
    let out = db.len();
    let [band, cols] = tile_size(out, inp);
    let bands = dw.par_chunks_mut(band * inp).zip(db.par_chunks_mut(band)).enumerate();
    bands.for_each(|(i, (dw, db))| {
        let (output, rows) = (Output::new(dw, inp, db.len(), inp), db.len());
        let column = |j: usize, mut sums: Option<&mut [f32]>| {
            // SAFETY: every column of tiles is visited once.
            let mut tile = unsafe { output.tile(0..rows, j * cols..((j + 1) * cols).min(inp)) };
            for (dy, x) in dy.chunks(ROWS * out).zip(x.chunks(ROWS * inp)) {
                let dy = &dy[i * band..];
                if let Some(sums) = &mut sums {
                    super::rows::column_sums(sums, dy, out);
                }
                tile.set(View::transposed(dy, out), View::rows(x, inp), x.len() / inp, 1.0);
            }
        };
        // Whoever takes the first columns also sums.
        let others = 1..inp.div_ceil(cols);
        rayon::join(|| column(0, Some(db)), || others.into_par_iter().for_each(|j| column(j, None)));
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dino_kernel::rng::{Kind, Rng};

    pub fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0, 0, 0, Kind::Test, 0);
        (0..len).map(|_| rng.normal() as f32).collect()
    }

    /// What lets tiles be cut by the number of threads, and factors be transposed block by block.
    #[test]
    fn an_element_of_a_product_does_not_depend_on_its_tile_or_block() {
        for [m, k, n] in [[70, 33, 50], [130, 600, 67], [33, 1100, 1030], [17, 256, 16], [530, 257, 40], [3, 300, 2060]]
        {
            let (a, b, c) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
            for (ta, tb, beta) in [(false, false, 0.0), (true, false, 1.0), (false, true, 0.0), (true, true, 1.0)] {
                let view = |data, rows, cols, transposed| {
                    if transposed { View::transposed(data, rows) } else { View::rows(data, cols) }
                };
                let (a, b) = (view(&a, m, k, ta), view(&b, k, n, tb));
                let mut at_once = c.clone();
                sgemm(&mut at_once, n, a, b, [m, k, n], beta);
                let mut plain = c.clone();
                // SAFETY: the slices hold m x k, k x n and m x n elements.
                unsafe {
                    let (ra, ca, rb, cb) = (a.row as isize, a.col as isize, b.row as isize, b.col as isize);
                    let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), plain.as_mut_ptr());
                    matrixmultiply::sgemm(m, k, n, 1.0, a, ra, ca, b, rb, cb, beta, c, n as isize, 1);
                }
                assert!(at_once == plain, "{m} x {k} x {n} by blocks");
                for (rows, cols) in [(1, n), (m, 1), (5, 7), (16, 16), (31, 48)] {
                    let mut tiled = c.clone();
                    let w = Output::new(&mut tiled, n, m, n);
                    for (i, j) in (0..m).step_by(rows).flat_map(|i| (0..n).step_by(cols).map(move |j| (i, j))) {
                        // SAFETY: one after the other.
                        unsafe { w.tile(i..(i + rows).min(m), j..(j + cols).min(n)) }.set(a, b, k, beta);
                    }
                    assert!(tiled == at_once, "{m} x {k} x {n} in tiles of {rows} x {cols}");
                }
                let mut parallel = c.clone();
                matmul(&mut parallel, n, a, b, [m, k, n], beta);
                assert!(parallel == at_once, "{m} x {k} x {n} on all threads");
            }
        }
    }

    #[test]
    fn tiles_cover_the_result() {
        for (m, n) in [(1, 1), (10, 2048), (3168, 768), (192, 768), (1536, 384), (0, 5), (5, 0)] {
            let [rows, cols] = tile_size(m, n);
            assert!(rows > 0 && cols > 0, "{m} x {n}: {rows} x {cols}");
            sgemm(&mut [], n, View::rows(&[], 3), View::rows(&[], n), [0, 3, n], 0.0);
        }
    }
}

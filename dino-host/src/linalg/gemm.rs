//! Matmuls, on one thread or on all, and those of a linear layer.
//!
//! On processors that we have loops for (`packed.rs`) both factors are packed by us; on others `matrixmultiply` multiplies
//! (`portable.rs`). An element is summed over k alone, in blocks of a fixed length, in both: results may be cut by the number of
//! threads and the bits still do not depend on it; the tests below hold them to that.

use super::{packed, portable, rows};
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
    pub(super) fn from(&self, i: usize, j: usize) -> View<'a> {
        View { data: &self.data[i * self.row + j * self.col..], ..*self }
    }

    /// The transpose.
    pub(super) fn flipped(self) -> View<'a> {
        View { row: self.col, col: self.row, ..self }
    }

    /// Whether the slice holds so many rows and columns, neither of them zero.
    pub(super) fn holds(&self, rows: usize, cols: usize) -> bool {
        let far = |n: usize, step: usize| (n - 1).checked_mul(step);
        let last = far(rows, self.row).zip(far(cols, self.col)).and_then(|(r, c)| r.checked_add(c));
        last.is_some_and(|last| last < self.data.len())
    }
}

/// A result whose parts are written by several threads.
#[derive(Clone, Copy)]
pub(super) struct Output<'c> {
    c: *mut f32,
    stride: usize,
    m: usize,
    n: usize,
    _borrowed: PhantomData<&'c mut [f32]>,
}

// SAFETY: it is a mutable borrow of floats, and whoever writes promises that no two parts overlap.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'c> Output<'c> {
    /// (m, n), rows `stride` apart.
    pub(super) fn new(c: &'c mut [f32], stride: usize, m: usize, n: usize) -> Output<'c> {
        let len = m.checked_sub(1).map_or(Some(0), |rows| rows.checked_mul(stride)?.checked_add(n));
        assert!(stride >= n && len.is_some_and(|len| len <= c.len()), "c is large enough for {m} x {n}");
        Output { c: c.as_mut_ptr(), stride, m, n, _borrowed: PhantomData }
    }

    /// Columns of a row.
    ///
    /// # Safety
    /// No one else uses them for as long as this is used.
    #[inline(always)]
    pub(super) unsafe fn row(self, i: usize, cols: Range<usize>) -> &'c mut [f32] {
        assert!(i < self.m && cols.start <= cols.end && cols.end <= self.n);
        // SAFETY: within the slice that was borrowed, by the assert and that of `new`; the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(self.c.add(i * self.stride + cols.start), cols.len()) }
    }

    /// Where element (i, j) is, and elements from a row to the next.
    pub(super) fn at(self, i: usize, j: usize) -> (*mut f32, usize) {
        assert!(i < self.m && j < self.n);
        // SAFETY: within the slice that was borrowed.
        (unsafe { self.c.add(i * self.stride + j) }, self.stride)
    }
}

/// What is done with rows of a matmul's factors and result while they are in the cache.
pub(super) trait Fused: Sync {
    /// What is added to every row of the result.
    fn bias(&self) -> Option<&[f32]> {
        None
    }
    /// Before these rows of a left factor are packed, for so much of k: once, in the order of k.
    fn before(&self, _rows: Range<usize>, _k: Range<usize>) {}
    /// When a row of the result is done, from a column on.
    fn after(&self, _row: usize, _col: usize, _c: &mut [f32]) {}
}

/// Nothing.
impl Fused for () {}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n), added to what is there if `add`, on this thread.
pub fn sgemm(c: &mut [f32], stride: usize, a: View, b: View, size: [usize; 3], add: bool) {
    multiply(c, stride, a, b, size, add, false, &());
}

/// c (m, n; rows `stride` apart) = a (m, k) b (k, n), added to what is there if `add`, on all threads.
pub fn matmul(c: &mut [f32], stride: usize, a: View, b: View, size: [usize; 3], add: bool) {
    multiply(c, stride, a, b, size, add, true, &());
}

fn multiply(
    c: &mut [f32],
    stride: usize,
    a: View,
    b: View,
    [m, k, n]: [usize; 3],
    add: bool,
    all: bool,
    fused: &impl Fused,
) {
    let c = Output::new(c, stride, m, n);
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n), "a is {m} x {k}, b is {k} x {n}");
    match packed::isa() {
        Some(isa) => packed::multiply(isa, c, a, b, [m, k, n], add, all, fused),
        None => portable::multiply(c, a, b, [m, k, n], add, all, fused),
    }
}

/// Elements of a thread's scratch that a matmul of factors of up to `widest` columns takes at most.
pub fn scratch_len(widest: usize) -> usize {
    if packed::isa().is_some() { packed::SCRATCH } else { portable::scratch_len(widest) }
}

/// Elements that each thread allocates at most beside that while it multiplies.
pub fn packed_len(widest: usize) -> usize {
    if packed::isa().is_some() { 0 } else { portable::packed_len(widest) }
}

/// The instructions matmuls use on this machine: what the bits of a matmul depend on, besides its shape.
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

/// Rows of a block of a row-wise op whose partial sums are added up in order: cut by shape alone, so that the sums do not depend
/// on the number of threads.
pub fn row_block(rows: usize) -> usize {
    rows.div_ceil(16).next_multiple_of(32).clamp(64, 512)
}

/// The bias of a layer.
struct Bias<'a>(&'a [f32]);

impl Fused for Bias<'_> {
    fn bias(&self) -> Option<&[f32]> {
        Some(self.0)
    }
}

/// y (rows, out) = x (rows, inp) w (out, inp)^T + b.
pub fn linear(y: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    let (rows, out) = (y.len() / b.len(), b.len());
    let (x, w) = (View::rows(x, inp), View::transposed(w, inp));
    multiply(y, out, x, w, [rows, inp, out], false, true, &Bias(b));
}

/// The bias, and y = gelu of the result.
struct BiasGelu<'a> {
    y: Output<'a>,
    b: &'a [f32],
}

impl Fused for BiasGelu<'_> {
    fn after(&self, row: usize, col: usize, pre: &mut [f32]) {
        // SAFETY: a part of the result is done once.
        let y = unsafe { self.y.row(row, col..col + pre.len()) };
        rows::bias_gelu(y, pre, &self.b[col..][..pre.len()]);
    }
}

/// pre = x w^T + b; y = gelu(pre).
pub fn linear_gelu(y: &mut [f32], pre: &mut [f32], x: &[f32], w: &[f32], b: &[f32], inp: usize) {
    let (rows, out) = (y.len() / b.len(), b.len());
    let (x, w) = (View::rows(x, inp), View::transposed(w, inp));
    let fused = BiasGelu { y: Output::new(y, out, rows, out), b };
    multiply(pre, out, x, w, [rows, inp, out], false, true, &fused);
}

/// A factor of each column.
struct ScaledColumns<'a>(&'a [f32]);

impl Fused for ScaledColumns<'_> {
    fn after(&self, _: usize, col: usize, y: &mut [f32]) {
        rows::scale_columns(y, &self.0[col..][..y.len()]);
    }
}

/// y (rows, out) = x (rows, inp) w (out, inp)^T, columns scaled.
pub fn scaled(y: &mut [f32], x: &[f32], w: &[f32], scale: &[f32], inp: usize) {
    let (rows, out) = (y.len() / scale.len(), scale.len());
    let (x, w) = (View::rows(x, inp), View::transposed(w, inp));
    multiply(y, out, x, w, [rows, inp, out], false, true, &ScaledColumns(scale));
}

/// dx (rows, inp) = dy (rows, out) w (out, inp).
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], inp: usize, out: usize) {
    let rows = dx.len() / inp;
    matmul(dx, inp, View::rows(dy, out), View::rows(w, inp), [rows, out, inp], false);
}

/// Sums of the columns of dy: they bring into the cache what is then packed.
struct ColumnSums<'a> {
    sums: Output<'a>,
    dy: &'a [f32],
}

impl Fused for ColumnSums<'_> {
    fn before(&self, cols: Range<usize>, k: Range<usize>) {
        let out = self.sums.n;
        let dy = &self.dy[k.start * out + cols.start..self.dy.len().min(k.end * out)];
        // SAFETY: a part of the sums belongs to one task.
        rows::column_sums(unsafe { self.sums.row(0, cols) }, dy, out);
    }
}

/// dw (out, inp) += dy (rows, out)^T x (rows, inp); db (out) += column sums of dy.
pub fn weight_gradient(dw: &mut [f32], db: &mut [f32], dy: &[f32], x: &[f32], inp: usize) {
    let (rows, out) = (x.len() / inp, db.len());
    let fused = ColumnSums { sums: Output::new(db, out, 1, out), dy };
    multiply(dw, inp, View::transposed(dy, out), View::rows(x, inp), [out, rows, inp], true, true, &fused);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::simd::Isa;
    use super::*;
    use dino_kernel::rng::{Kind, Rng};

    pub fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 0, 0, 0, Kind::Test, 0);
        (0..len).map(|_| rng.normal() as f32).collect()
    }

    /// What lets tasks be cut by the number of threads, and factors be packed block by block.
    #[test]
    fn an_element_of_a_product_does_not_depend_on_who_multiplies() {
        for [m, k, n] in [
            [70, 33, 50],
            [130, 600, 67],
            [33, 1100, 1030],
            [17, 256, 16],
            [530, 257, 40],
            [3, 300, 2060],
            [300, 9000, 120],
        ] {
            let (a, b, c) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
            for (ta, tb, add) in [(false, false, false), (true, false, true), (false, true, false), (true, true, true)]
            {
                let view = |data, rows, cols, transposed| {
                    if transposed { View::transposed(data, rows) } else { View::rows(data, cols) }
                };
                let (a, b) = (view(&a, m, k, ta), view(&b, k, n, tb));
                let mut plain = c.clone();
                // SAFETY: the slices hold m x k, k x n and m x n elements.
                unsafe {
                    let (ra, ca, rb, cb) = (a.row as isize, a.col as isize, b.row as isize, b.col as isize);
                    let (a, b, c) = (a.data.as_ptr(), b.data.as_ptr(), plain.as_mut_ptr());
                    matrixmultiply::sgemm(m, k, n, 1.0, a, ra, ca, b, rb, cb, add as u8 as f32, c, n as isize, 1);
                }

                for all in [false, true] {
                    let (portably, mut written) = (&mut c.clone(), c.clone());
                    portable::multiply(Output::new(portably, n, m, n), a, b, [m, k, n], add, all, &());
                    assert!(*portably == plain, "{m} x {k} x {n} by matrixmultiply, all threads: {all}");
                    for &isa in Isa::available().iter().filter(|isa| isa.is_fused()) {
                        written.copy_from_slice(&c);
                        packed::multiply(isa, Output::new(&mut written, n, m, n), a, b, [m, k, n], add, all, &());
                        assert!(written == plain, "{m} x {k} x {n} by {isa:?}, all threads: {all}");
                    }
                }
            }
        }
    }

    /// A bias, sums over a left factor, and what is done with rows at the end: all at once.
    struct All<'a> {
        sums: ColumnSums<'a>,
        gelu: BiasGelu<'a>,
    }

    impl Fused for All<'_> {
        fn bias(&self) -> Option<&[f32]> {
            Some(self.gelu.b)
        }
        fn before(&self, rows: Range<usize>, k: Range<usize>) {
            self.sums.before(rows, k);
        }
        fn after(&self, row: usize, col: usize, c: &mut [f32]) {
            self.gelu.after(row, col, c);
        }
    }

    #[test]
    fn what_is_fused_is_done_once_to_every_row_by_both() {
        for [m, k, n] in [[5, 3, 7], [150, 600, 67], [300, 257, 2100], [13, 1100, 16]] {
            let (dy, x, b) = (noise(k * m, 1), noise(k * n, 2), noise(n, 3));
            let written = |isa: Option<Isa>| {
                let (mut c, mut y, mut sums) = (vec![0.5; m * n], vec![0.0; m * n], vec![0.25; m]);
                let (a, x) = (View::transposed(&dy, m), View::rows(&x, n));
                let fused = All {
                    sums: ColumnSums { sums: Output::new(&mut sums, m, 1, m), dy: &dy },
                    gelu: BiasGelu { y: Output::new(&mut y, n, m, n), b: &b },
                };
                let to = Output::new(&mut c, n, m, n);
                match isa {
                    Some(isa) => packed::multiply(isa, to, a, x, [m, k, n], true, true, &fused),
                    None => portable::multiply(to, a, x, [m, k, n], true, true, &fused),
                }
                (c, y, sums)
            };
            let (mut want, mut y, mut sums) = (vec![0.5; m * n], vec![0.0; m * n], vec![0.25; m]);
            sgemm(&mut want, n, View::transposed(&dy, m), View::rows(&x, n), [m, k, n], true);
            rows::add_bias(&mut want, &b);
            rows::bias_gelu(&mut y, &mut want, &b);
            dy.chunks(packed::DEPTH * m).for_each(|dy| rows::column_sums(&mut sums, dy, m));
            for isa in Isa::available().iter().filter(|isa| isa.is_fused()).map(|&isa| Some(isa)).chain([None]) {
                assert!(written(isa) == (want.clone(), y.clone(), sums.clone()), "{m} x {k} x {n} by {isa:?}");
            }
        }
    }
}

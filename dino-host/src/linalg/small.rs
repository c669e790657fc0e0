//! Small matmuls, of factors that are in the cache: attention's and the prototype loss's.
//!
//! Nothing is packed and nothing is padded to full tiles, which is most of what `sgemm` does where a side has 17, 37 or 65 elements.
//! Six rows of 64 columns stay in registers (16 columns where registers have 256 bits) while k goes by; the compiler makes of these
//! loops the 24 multiply-adds, 6 broadcasts and 4 loads that they are. What matters for that: rows of b are copied into a value
//! (read six times from memory otherwise, at half the speed), and lengths are known before the loop. 260 GFLOP/s a thread where
//! `sgemm` has 220 on its best shapes (`BENCHMARKS.md`, "The matmul itself").
//!
//! An element is summed over k one after the other, whatever is beside it: the same bits wherever multiply-adds are fused.

use super::gemm::View;
use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Columns of a group.
const LANES: usize = 16;

/// Each element of c (m, n; rows `ldc` apart) = a (m, k) b (k, n; rows `ldb` apart), added to what is there if `add`.
/// One of a's strides is 1, k is not 0. Panics where a slice is shorter than its sizes.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn matmul(c: &mut [f32], ldc: usize, a: View, b: &[f32], ldb: usize, [m, k, n]: [usize; 3], add: bool) {
    assert!(k > 0 && (a.row == 1 || a.col == 1), "rows or columns of the left factor are contiguous");
    // Branches on literals, which are gone before anything is compiled: all kernels in every target took 30 s.
    if target_cfg_f!(target_feature = "avx512f") {
        either::<4, true>(c, ldc, a, b, ldb, [m, k, n], add);
    } else if target_cfg_f!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
        either::<1, true>(c, ldc, a, b, ldb, [m, k, n], add);
    } else {
        either::<1, false>(c, ldc, a, b, ldb, [m, k, n], add);
    }
}

/// By which side of a is contiguous.
#[inline(always)]
fn either<const V: usize, const FUSED: bool>(
    c: &mut [f32],
    ldc: usize,
    a: View,
    b: &[f32],
    ldb: usize,
    sizes: [usize; 3],
    add: bool,
) {
    if a.col == 1 {
        columns::<V, FUSED, false>(c, ldc, a.data, a.row, b, ldb, sizes, add);
    } else {
        columns::<V, FUSED, true>(c, ldc, a.data, a.col, b, ldb, sizes, add);
    }
}

/// V groups of columns at a time, then two, one, then what is left of one. `TRANSPOSED`: a's columns are contiguous, `lda` apart.
#[inline(always)]
fn columns<const V: usize, const FUSED: bool, const TRANSPOSED: bool>(
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    [m, k, n]: [usize; 3],
    add: bool,
) {
    let mut j = 0;
    while j < n {
        let (c, b) = (&mut c[j..], &b[j..]);
        j += match n - j {
            left if left >= V * LANES => rows::<V, LANES, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, m, k, add),
            left if left >= 2 * LANES => rows::<2, LANES, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, m, k, add),
            LANES.. => rows::<1, LANES, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, m, k, add),
            8.. => rows::<1, 8, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, m, k, add),
            _ => rows::<1, 1, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, m, k, add),
        };
    }
}

/// V groups of L columns: six rows at a time, then four, two, one. Returns how many columns.
#[inline(always)]
fn rows<const V: usize, const L: usize, const FUSED: bool, const TRANSPOSED: bool>(
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    m: usize,
    k: usize,
    add: bool,
) -> usize {
    let mut i = 0;
    while i < m {
        let (c, a) = (&mut c[i * ldc..], &a[if TRANSPOSED { i } else { i * lda }..]);
        i += match m - i {
            6.. => block::<6, V, L, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, k, add),
            4.. => block::<4, V, L, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, k, add),
            2.. => block::<2, V, L, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, k, add),
            _ => block::<1, V, L, FUSED, TRANSPOSED>(c, ldc, a, lda, b, ldb, k, add),
        };
    }
    V * L
}

/// R rows of V groups of L columns. Returns how many rows.
#[inline(always)]
fn block<const R: usize, const V: usize, const L: usize, const FUSED: bool, const TRANSPOSED: bool>(
    c: &mut [f32],
    ldc: usize,
    a: &[f32],
    lda: usize,
    b: &[f32],
    ldb: usize,
    k: usize,
    add: bool,
) -> usize {
    let mut sums = [[[0.0f32; L]; V]; R];
    let mut a_rows: [&[f32]; R] = [&[]; R];
    for r in 0..if TRANSPOSED { 0 } else { R } {
        a_rows[r] = &a[r * lda..][..k];
    }
    for p in 0..k {
        let mut row = [[0.0; L]; V];
        let b = &b[p * ldb..][..V * L];
        for v in 0..V {
            for l in 0..L {
                row[v][l] = b[v * L + l];
            }
        }
        for r in 0..R {
            let x = if TRANSPOSED { a[p * lda..][..R][r] } else { a_rows[r][p] };
            for v in 0..V {
                for l in 0..L {
                    let (y, sum) = (row[v][l], &mut sums[r][v][l]);
                    *sum = if FUSED { x.mul_add(y, *sum) } else { x * y + *sum };
                }
            }
        }
    }
    for r in 0..R {
        let c = &mut c[r * ldc..][..V * L];
        for v in 0..V {
            for l in 0..L {
                let sum = sums[r][v][l];
                c[v * L + l] = if add { c[v * L + l] + sum } else { sum };
            }
        }
    }
    R
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::gemm::tests::noise;

    #[test]
    fn what_is_no_number_stays_none() {
        let (m, k, n) = (13, 20, 70);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (mut a, mut b, mut c) = (noise(m * k, 1), noise(k * n, 2), vec![0.0; m * n]);
            a[5 * k + 19] = bad;
            b[3 * n + 66] = bad;
            matmul(&mut c, n, View::rows(&a, k), &b, n, [m, k, n], false);
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                assert_eq!(c[i * n + j].is_finite(), i != 5 && j != 66, "{bad} at {i} {j}");
            }
        }
    }
}

//! Matmuls of convolutions: the rows of the left factor begin anywhere in a slice, so that windows of a map are multiplied where the map
//! is, without a copy (im2col) and without packing.
//!
//! As in [`super::small`], a block of rows and a panel of columns stay in registers while k goes by: 6 rows of 64 columns are 24
//! multiply-adds, 6 broadcasts and 4 loads. The right factor is laid out in panels of [`WIDE`] columns, [`DEPTH`] rows of which stay in the
//! first cache.
//!
//! An element is summed over k one after the other within a call, whatever is beside it, so blocks may be cut anywhere.

use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Columns of a panel; the last one is as many groups of 16 as it takes.
pub const WIDE: usize = 64;

/// Rows of a panel that a call should go through at most: 32 KiB, two thirds of a first cache.
pub const DEPTH: usize = 128;

/// Where a row of zeros begins: of a pixel that is not on the map.
pub const OFF: usize = usize::MAX;

const LANES: usize = 16;
static ZEROS: [f32; DEPTH] = [0.0; DEPTH];

/// Elements from a row of a panel of `cols` columns to the next.
pub const fn row_of(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}

/// For every row i of m = `to.len()`: `c[to[i]..][..cols]` = the sum over taps t of `x[from[t m + i]..][..depth]` times the panel's rows from
/// t depth on, added to what is there if `add`. `depth` is at most [`DEPTH`], `cols` at most [`WIDE`].
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn multiply(
    c: &mut [f32],
    to: &[usize],
    cols: usize,
    x: &[f32],
    from: &[usize],
    depth: usize,
    panel: &[f32],
    add: bool,
) {
    assert!(depth <= DEPTH && cols <= WIDE, "{depth} rows and {cols} columns of a panel");
    // Branches on literals, so that a target compiles only its own kernels.
    if target_cfg_f!(target_feature = "avx512f") {
        match cols.div_ceil(LANES) {
            4 => blocks::<6, 4, true>(c, to, cols, x, from, depth, panel, add),
            3 => blocks::<8, 3, true>(c, to, cols, x, from, depth, panel, add),
            2 => blocks::<12, 2, true>(c, to, cols, x, from, depth, panel, add),
            _ => blocks::<14, 1, true>(c, to, cols, x, from, depth, panel, add),
        }
    } else if target_cfg_f!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
        blocks::<6, 1, true>(c, to, cols, x, from, depth, panel, add);
    } else {
        blocks::<6, 1, false>(c, to, cols, x, from, depth, panel, add);
    }
}

/// R rows of V groups of columns at a time.
#[inline(always)]
fn blocks<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    to: &[usize],
    cols: usize,
    x: &[f32],
    from: &[usize],
    depth: usize,
    panel: &[f32],
    add: bool,
) {
    let (m, row) = (to.len(), row_of(cols));
    for first in (0..row).step_by(V * LANES) {
        for i in (0..m).step_by(R) {
            let (to, from) = (&to[i..(i + R).min(m)], &from[i..]);
            let cols = (V * LANES).min(cols - first);
            block::<R, V, FUSED>(&mut c[first..], to, cols, x, from, m, depth, &panel[first..], row, add);
        }
    }
}

#[inline(always)]
fn block<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    to: &[usize],
    cols: usize,
    x: &[f32],
    from: &[usize],
    m: usize,
    depth: usize,
    panel: &[f32],
    row: usize,
    add: bool,
) {
    let mut sums = [[[0.0f32; LANES]; V]; R];
    for (t, from) in from.chunks(m).enumerate() {
        let from = &from[..to.len()];
        let mut rows: [&[f32]; R] = [&ZEROS[..depth]; R];
        for (row, &at) in rows.iter_mut().zip(from) {
            if at != OFF {
                *row = &x[at..][..depth];
            }
        }
        let panel = &panel[t * depth * row..];
        for p in 0..depth {
            let b: [[f32; LANES]; V] = *panel[p * row..][..V * LANES].as_chunks().0.as_array().expect("V groups");
            for r in 0..R {
                let x = rows[r][p];
                for v in 0..V {
                    for l in 0..LANES {
                        let (y, sum) = (b[v][l], &mut sums[r][v][l]);
                        *sum = if FUSED { x.mul_add(y, *sum) } else { x * y + *sum };
                    }
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        if let Some(&to) = to.get(r) {
            store(&mut c[to..][..cols], sums, add);
        }
    }
}

/// A row of sums becomes what is written. Elements have constant places in the sums, which are registers otherwise spilled at every step.
#[inline(always)]
fn store<const V: usize>(c: &mut [f32], sums: [[f32; LANES]; V], add: bool) {
    for (v, sums) in sums.into_iter().enumerate() {
        if let Some(c) = c.get_mut(v * LANES..(v + 1) * LANES) {
            for (c, sum) in c.iter_mut().zip(sums) {
                *c = if add { *c + sum } else { sum };
            }
        } else {
            for (l, sum) in sums.into_iter().enumerate() {
                if let Some(c) = c.get_mut(v * LANES + l) {
                    *c = if add { *c + sum } else { sum };
                }
            }
        }
    }
}

/// c (rows, columns; as far apart as [`row_of`] the columns) += the sum over `pairs` (at, p) of `x[at..][..rows]` times row p of the panel
/// of so many columns: the gradient of a weight, whose sums go over pixels.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn accumulate(c: &mut [f32], rows: usize, x: &[f32], pairs: &[(usize, usize)], panel: &[f32], cols: usize) {
    if target_cfg_f!(target_feature = "avx512f") {
        match cols.div_ceil(LANES) {
            4 => outers::<6, 4, true>(c, rows, x, pairs, panel, cols),
            3 => outers::<6, 3, true>(c, rows, x, pairs, panel, cols),
            2 => outers::<12, 2, true>(c, rows, x, pairs, panel, cols),
            _ => outers::<6, 1, true>(c, rows, x, pairs, panel, cols),
        }
    } else if target_cfg_f!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
        outers::<6, 1, true>(c, rows, x, pairs, panel, cols);
    } else {
        outers::<6, 1, false>(c, rows, x, pairs, panel, cols);
    }
}

/// R rows of V groups of columns at a time, then four, then one.
#[inline(always)]
fn outers<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    rows: usize,
    x: &[f32],
    pairs: &[(usize, usize)],
    panel: &[f32],
    cols: usize,
) {
    let row = row_of(cols);
    for first in (0..row).step_by(V * LANES) {
        let panel = &panel[first..];
        let mut i = 0;
        while i < rows {
            let c = &mut c[i * row + first..];
            i += match rows - i {
                left if left >= R => outer::<R, V, FUSED>(c, i, x, pairs, panel, row),
                4.. => outer::<4, V, FUSED>(c, i, x, pairs, panel, row),
                _ => outer::<1, V, FUSED>(c, i, x, pairs, panel, row),
            };
        }
    }
}

#[inline(always)]
fn outer<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    first: usize,
    x: &[f32],
    pairs: &[(usize, usize)],
    panel: &[f32],
    row: usize,
) -> usize {
    let mut sums = [[[0.0f32; LANES]; V]; R];
    for &(at, p) in pairs {
        let x = &x[at + first..][..R];
        let b: [[f32; LANES]; V] = *panel[p * row..][..V * LANES].as_chunks().0.as_array().expect("V groups");
        for r in 0..R {
            for v in 0..V {
                for l in 0..LANES {
                    let (y, sum) = (b[v][l], &mut sums[r][v][l]);
                    *sum = if FUSED { x[r].mul_add(y, *sum) } else { x[r] * y + *sum };
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        store(&mut c[r * row..][..V * LANES], sums, true);
    }
    R
}

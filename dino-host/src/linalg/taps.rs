//! Matmuls of convolutions: the rows of the left factor begin anywhere in a slice, so that windows of a map are multiplied where the map
//! is, without a copy (im2col) and without packing.
//!
//! As in [`super::small`], a block of rows and a panel of columns stay in registers while k goes by: 6 rows of 64 columns are 24
//! multiply-adds, 6 broadcasts and 4 loads of AVX-512; AVX2 has registers for 16 columns. The right factor is laid out in panels of
//! [`wide`] columns, [`DEPTH`] rows of which stay in the first cache.
//!
//! An element is summed over k one after the other within a call, whatever is beside it, so blocks may be cut anywhere.
//!
//! On an AVX2 machine whose peak is 100 GFLOP/s a thread, the convolutions of a ResNet-50 ran at 46 forward and 48 for weights. Comparing
//! every element's place with its row's end took a fourth; panels of 64 columns, 16 of which are used at a time, were 128 lines in
//! sixteen sets of the first cache, all of their ways; and a weight's gradient read six channels of every pixel's cache line at a time.
//! Without these it is 67 and 58. Asking for the next tile's lines while one is multiplied gained nothing.

use multiversion::multiversion;
use multiversion::target::target_cfg_f;

/// Columns of a panel, as many as registers hold; the last one is as many groups of 16 as it takes.
pub fn wide() -> usize {
    if has_avx512() { 4 * LANES } else { LANES }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn has_avx512() -> bool {
    target_cfg_f!(target_feature = "avx512f")
}

/// Rows of a panel that a call should go through at most: 32 KiB, two thirds of a first cache.
pub const DEPTH: usize = 128;

/// Where a row of zeros begins: of a pixel that is not on the map.
pub const OFF: usize = usize::MAX;

/// Columns that are a cache line.
const LANES: usize = 16;

/// Rows of a panel between two looks at where they end.
const AT_ONCE: usize = 8;

static ZEROS: [f32; DEPTH] = [0.0; DEPTH];

/// Elements from a row of a panel of `cols` columns to the next.
pub const fn row_of(cols: usize) -> usize {
    cols.next_multiple_of(LANES)
}

/// Row p of panels of [`wide`] columns and `depth` rows each.
#[inline]
pub fn place(panels: &mut [f32], depth: usize, p: usize, row: &[f32]) {
    let wide = wide();
    for first in (0..row.len()).step_by(wide) {
        let row = &row[first..row.len().min(first + wide)];
        let to = &mut panels[first * depth + p * row_of(row.len())..];
        match (to.first_chunk_mut(), row.first_chunk::<LANES>()) {
            (Some(to), Some(line)) if row.len() == LANES => *to = *line,
            _ => to[..row.len()].copy_from_slice(row),
        }
    }
}

/// For every row i of m = `to.len()`: `c[to[i]..][..cols]` = the sum over taps t of `x[from[t m + i]..][..depth]` times the panel's rows from
/// t depth on, added to what is there if `add`. `depth` is at most [`DEPTH`], `cols` at most [`wide`].
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
    assert!(depth <= DEPTH && cols <= wide(), "{depth} rows and {cols} columns of a panel");
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
    let m = to.len();
    let panel = panel.as_chunks::<LANES>().0;
    for i in (0..m).step_by(R) {
        let (to, from) = (&to[i..(i + R).min(m)], &from[i..]);
        let mut sums = [[[0.0f32; LANES]; V]; R];
        for (t, from) in from.chunks(m).enumerate() {
            let mut rows: [&[f32]; R] = [&ZEROS[..depth]; R];
            begin(&mut rows, &from[..to.len()], x, depth);
            sum::<R, V, FUSED>(&mut sums, rows, depth, &panel[t * depth * V..][..depth * V]);
        }
        for r in 0..R {
            if r < to.len() {
                store(&mut c[to[r]..][..cols], sums[r], add);
            }
        }
    }
}

/// Where the rows that are on the map begin. A call, so that they stay in memory: as a loop that the compiler sees through, it halved the
/// speed, for there are not registers enough for them beside the sums.
#[inline(never)]
fn begin<'a>(rows: &mut [&'a [f32]], from: &[usize], x: &'a [f32], depth: usize) {
    for r in 0..from.len() {
        if from[r] != OFF {
            rows[r] = &x[from[r]..][..depth];
        }
    }
}

/// sums += the rows, `depth` elements each, times the panel.
#[inline(always)]
fn sum<const R: usize, const V: usize, const FUSED: bool>(
    sums: &mut [[[f32; LANES]; V]; R],
    rows: [&[f32]; R],
    depth: usize,
    panel: &[[f32; LANES]],
) {
    let by_eight = depth / AT_ONCE * AT_ONCE;
    for p in (0..by_eight).step_by(AT_ONCE) {
        // Eight elements whose number is known: otherwise every single one is compared with where its row ends, which took a fourth.
        let mut eight = [&[0.0; AT_ONCE]; R];
        for r in 0..R {
            eight[r] = rows[r][p..].first_chunk().expect("rows are as long as the panel is deep");
        }
        let panel = &panel[p * V..][..AT_ONCE * V];
        for j in 0..AT_ONCE {
            for r in 0..R {
                fused::<V, FUSED>(&mut sums[r], eight[r][j], &panel[j * V..][..V]);
            }
        }
    }
    for p in by_eight..depth {
        for r in 0..R {
            fused::<V, FUSED>(&mut sums[r], rows[r][p], &panel[p * V..][..V]);
        }
    }
}

/// sums += x y.
#[inline(always)]
fn fused<const V: usize, const FUSED: bool>(sums: &mut [[f32; LANES]; V], x: f32, y: &[[f32; LANES]]) {
    for v in 0..V {
        for l in 0..LANES {
            let (y, sum) = (y[v][l], &mut sums[v][l]);
            *sum = if FUSED { x.mul_add(y, *sum) } else { x * y + *sum };
        }
    }
}

/// A row of sums becomes what is written. Elements have constant places in the sums, which are registers otherwise spilled at every step.
#[inline(always)]
fn store<const V: usize>(c: &mut [f32], sums: [[f32; LANES]; V], add: bool) {
    for v in 0..V {
        let first = v * LANES;
        if first + LANES <= c.len() {
            let c = &mut c[first..][..LANES];
            for l in 0..LANES {
                c[l] = if add { c[l] + sums[v][l] } else { sums[v][l] };
            }
        } else {
            for l in 0..LANES {
                if first + l < c.len() {
                    c[first + l] = if add { c[first + l] + sums[v][l] } else { sums[v][l] };
                }
            }
        }
    }
}

/// c (rows, columns; as far apart as [`row_of`] the columns) += the sum over `pairs` (at, p) of `x[at..][..rows]` times row p of the panels
/// of so many columns, `depth` rows each: the gradient of a weight, whose sums go over pixels.
pub fn accumulate(
    c: &mut [f32],
    rows: usize,
    x: &[f32],
    pairs: &[(usize, usize)],
    panels: &[f32],
    depth: usize,
    cols: usize,
) {
    let (row, wide) = (row_of(cols), wide());
    let mut lines = [[0.0; LANES]; DEPTH];
    for pairs in pairs.chunks(DEPTH) {
        for first in (0..rows).step_by(LANES) {
            // Pixels are far apart, often by a power of two: a cache line of each is gathered once, for all columns.
            let of_line = LANES.min(rows - first);
            for (k, &(at, _)) in pairs.iter().enumerate() {
                match x[at + first..].first_chunk() {
                    Some(x) => lines[k] = *x,
                    None => lines[k][..of_line].copy_from_slice(&x[at + first..][..of_line]),
                }
            }
            for col in (0..cols).step_by(wide) {
                let (panel, cols) = (&panels[col * depth..], wide.min(cols - col));
                outers(&mut c[first * row + col..], of_line, row, &lines, pairs, panel, cols);
            }
        }
    }
}

/// The same of a line's rows and one panel.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn outers(
    c: &mut [f32],
    rows: usize,
    row: usize,
    lines: &[[f32; LANES]; DEPTH],
    pairs: &[(usize, usize)],
    panel: &[f32],
    cols: usize,
) {
    if target_cfg_f!(target_feature = "avx512f") {
        match cols.div_ceil(LANES) {
            4 => by_rows::<6, 4, true>(c, rows, row, lines, pairs, panel),
            3 => by_rows::<6, 3, true>(c, rows, row, lines, pairs, panel),
            2 => by_rows::<12, 2, true>(c, rows, row, lines, pairs, panel),
            _ => by_rows::<6, 1, true>(c, rows, row, lines, pairs, panel),
        }
    } else if target_cfg_f!(target_feature = "fma") || cfg!(target_arch = "aarch64") {
        by_rows::<6, 1, true>(c, rows, row, lines, pairs, panel);
    } else {
        by_rows::<6, 1, false>(c, rows, row, lines, pairs, panel);
    }
}

/// R of a line's rows at a time, then four, then one.
#[inline(always)]
fn by_rows<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    rows: usize,
    row: usize,
    lines: &[[f32; LANES]; DEPTH],
    pairs: &[(usize, usize)],
    panel: &[f32],
) {
    let (mut i, panel) = (0, panel.as_chunks().0);
    while i < rows {
        let c = &mut c[i * row..];
        i += match rows - i {
            left if left >= R => outer::<R, V, FUSED>(c, i, row, lines, pairs, panel),
            4.. => outer::<4, V, FUSED>(c, i, row, lines, pairs, panel),
            _ => outer::<1, V, FUSED>(c, i, row, lines, pairs, panel),
        };
    }
}

/// R rows from `first` on. Returns how many.
#[inline(always)]
fn outer<const R: usize, const V: usize, const FUSED: bool>(
    c: &mut [f32],
    first: usize,
    row: usize,
    lines: &[[f32; LANES]; DEPTH],
    pairs: &[(usize, usize)],
    panel: &[[f32; LANES]],
) -> usize {
    let mut sums = [[[0.0f32; LANES]; V]; R];
    let lines = &lines[..pairs.len()];
    for k in 0..pairs.len() {
        // By value: of slices the compiler made gathers and scatters, an eighth of the speed (AVX-512).
        let x: [f32; R] = *lines[k][first..].first_chunk().expect("R rows");
        let y: [[f32; LANES]; V] = *panel[pairs[k].1 * V..].first_chunk().expect("a row of the panel");
        for r in 0..R {
            fused::<V, FUSED>(&mut sums[r], x[r], &y);
        }
    }
    for r in 0..R {
        store(&mut c[r * row..][..V * LANES], sums[r], true);
    }
    R
}

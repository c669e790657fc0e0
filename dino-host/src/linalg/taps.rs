//! Matmuls of convolutions: the rows of the left factor begin anywhere in a slice, so that windows of a map are multiplied where the map
//! is, without a copy (im2col) and without packing.
//!
//! As in [`super::small`], a block of rows and a panel of columns stay in registers while k goes by: 6 rows of 64 columns are 24
//! multiply-adds, 6 broadcasts and 4 loads of AVX-512; AVX2 has registers for 16 columns. The right factor is laid out in panels of
//! [`wide`] columns, [`DEPTH`] rows of which stay in the first cache.
//!
//! An element is summed over k one after the other within a call, whatever is beside it, so blocks may be cut anywhere.
//!
//! What was slow: comparing every element's place with its row's end (a fourth; free beside named instructions); panels of 64 columns where
//! 16 are used at a time, 128 lines in sixteen sets of the first cache; a weight's gradient that read six channels of every pixel's cache
//! line at a time; sums that were stored in every turn, or gathered (see `simd.rs`). Asking for the next tile's lines while one is
//! multiplied gained nothing.

use super::simd::{Isa, LANES, Vector, over_vectors};

/// Columns of a panel, as many as registers hold; the last one is as many groups of 16 as it takes.
pub fn wide() -> usize {
    Isa::best().wide() * LANES
}

/// Rows of a panel that a call should go through at most: 32 KiB, two thirds of a first cache.
pub const DEPTH: usize = 128;

/// Where a row of zeros begins: of a pixel that is not on the map.
pub const OFF: usize = usize::MAX;

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
    blocks(Isa::best(), c, to, cols, x, from, depth, panel, add);
}

over_vectors! {
    /// [`multiply`] by as many groups of columns as the panel has.
    fn blocks<L>(c: &mut [f32], to: &[usize], cols: usize, x: &[f32], from: &[usize], depth: usize, panel: &[f32], add: bool) {
        if L::WIDE == 1 {
            return rows::<L, 6, 1>(c, to, cols, x, from, depth, panel, add);
        }
        // With more rows of one or two groups the registers suffice, but not those for where rows begin.
        match cols.div_ceil(LANES) {
            4 => rows::<L, 6, 4>(c, to, cols, x, from, depth, panel, add),
            3 => rows::<L, 8, 3>(c, to, cols, x, from, depth, panel, add),
            2 => rows::<L, 6, 2>(c, to, cols, x, from, depth, panel, add),
            _ => rows::<L, 6, 1>(c, to, cols, x, from, depth, panel, add),
        }
    }
}

/// R rows of V groups of columns at a time.
#[inline(always)]
fn rows<L: Vector, const R: usize, const V: usize>(
    c: &mut [f32],
    to: &[usize],
    cols: usize,
    x: &[f32],
    from: &[usize],
    depth: usize,
    panel: &[f32],
    add: bool,
) {
    let (m, panel) = (to.len(), panel.as_chunks::<LANES>().0.as_chunks::<V>().0);
    for i in (0..m).step_by(R) {
        let (to, from) = (&to[i..(i + R).min(m)], &from[i..]);
        let mut sums = [[L::splat(0.0); V]; R];
        for (t, from) in from.chunks(m).enumerate() {
            let mut rows: [&[f32]; R] = [&ZEROS[..depth]; R];
            for r in 0..to.len() {
                if from[r] != OFF {
                    rows[r] = &x[from[r]..][..depth];
                }
            }
            sum(&mut sums, rows, &panel[t * depth..][..depth]);
        }
        for r in 0..R {
            if r < to.len() {
                store(&mut c[to[r]..][..cols], sums[r], add);
            }
        }
    }
}

/// A row of a panel. As a loop: a closure would be a function of its own, without the caller's instructions.
#[inline(always)]
pub(super) fn load<L: Vector, const V: usize>(row: &[[f32; LANES]; V]) -> [L; V] {
    let mut y = [L::splat(0.0); V];
    for v in 0..V {
        y[v] = L::load(&row[v]);
    }
    y
}

/// sums += the rows times the panel.
#[inline(always)]
fn sum<L: Vector, const R: usize, const V: usize>(
    sums: &mut [[L; V]; R],
    rows: [&[f32]; R],
    panel: &[[[f32; LANES]; V]],
) {
    let mut here = *sums;
    for (p, row) in panel.iter().enumerate() {
        let y = load(row);
        for r in 0..R {
            let x = L::splat(rows[r][p]);
            for v in 0..V {
                here[r][v] = here[r][v].add_product(x, y[v]);
            }
        }
    }
    *sums = here;
}

/// A row of sums becomes what is written.
#[inline(always)]
fn store<L: Vector, const V: usize>(c: &mut [f32], sums: [L; V], add: bool) {
    if c.len() == V * LANES {
        let c = c.as_chunks_mut::<LANES>().0;
        for v in 0..V {
            let sum = if add { L::load(&c[v]).add(sums[v]) } else { sums[v] };
            sum.store(&mut c[v]);
        }
        return;
    }
    let mut all = [[0.0; LANES]; V];
    for v in 0..V {
        sums[v].store(&mut all[v]);
    }
    for (c, &sum) in c.iter_mut().zip(all.as_flattened()) {
        *c = if add { *c + sum } else { sum };
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
                outers(Isa::best(), &mut c[first * row + col..], of_line, row, &lines, pairs, panel, cols);
            }
        }
    }
}

over_vectors! {
    /// The same of a line's rows and one panel.
    fn outers<L>(
        c: &mut [f32],
        rows: usize,
        row: usize,
        lines: &[[f32; LANES]; DEPTH],
        pairs: &[(usize, usize)],
        panel: &[f32],
        cols: usize,
    ) {
        if L::WIDE == 1 {
            return by_rows::<L, 6, 1>(c, rows, row, lines, pairs, panel);
        }
        match cols.div_ceil(LANES) {
            4 => by_rows::<L, 6, 4>(c, rows, row, lines, pairs, panel),
            3 => by_rows::<L, 6, 3>(c, rows, row, lines, pairs, panel),
            2 => by_rows::<L, 12, 2>(c, rows, row, lines, pairs, panel),
            _ => by_rows::<L, 12, 1>(c, rows, row, lines, pairs, panel),
        }
    }
}

/// R of a line's rows at a time, then four, then one.
#[inline(always)]
fn by_rows<L: Vector, const R: usize, const V: usize>(
    c: &mut [f32],
    rows: usize,
    row: usize,
    lines: &[[f32; LANES]; DEPTH],
    pairs: &[(usize, usize)],
    panel: &[f32],
) {
    let (mut i, panel) = (0, panel.as_chunks::<LANES>().0.as_chunks::<V>().0);
    while i < rows {
        let c = &mut c[i * row..];
        i += match rows - i {
            left if left >= R => outer::<L, R, V>(c, i, row, lines, pairs, panel),
            4.. => outer::<L, 4, V>(c, i, row, lines, pairs, panel),
            _ => outer::<L, 1, V>(c, i, row, lines, pairs, panel),
        };
    }
}

/// R rows from `first` on. Returns how many.
#[inline(always)]
fn outer<L: Vector, const R: usize, const V: usize>(
    c: &mut [f32],
    first: usize,
    row: usize,
    lines: &[[f32; LANES]; DEPTH],
    pairs: &[(usize, usize)],
    panel: &[[[f32; LANES]; V]],
) -> usize {
    let mut sums = [[L::splat(0.0); V]; R];
    for (line, &(_, p)) in lines.iter().zip(pairs) {
        let x: &[f32; R] = line[first..].first_chunk().expect("R rows");
        let y = load(&panel[p]);
        for r in 0..R {
            let x = L::splat(x[r]);
            for v in 0..V {
                sums[r][v] = sums[r][v].add_product(x, y[v]);
            }
        }
    }
    for r in 0..R {
        store(&mut c[r * row..][..V * LANES], sums[r], true);
    }
    R
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linalg::gemm::tests::noise;

    /// Columns of a panel, up to as many as a kind of instructions takes.
    fn widths(isa: Isa) -> impl Iterator<Item = usize> {
        [1, 7, 16, 17, 32, 40, 48, 63, 64].into_iter().filter(move |&cols| cols <= isa.wide() * LANES)
    }

    /// Sums one after the other, each product rounded with its sum where `fused`.
    fn sum(products: impl Iterator<Item = (f32, f32)>, fused: bool) -> f32 {
        products.fold(0.0, |sum, (x, y)| if fused { x.mul_add(y, sum) } else { x * y + sum })
    }

    #[test]
    fn every_kind_of_instructions_sums_in_order() {
        for &isa in Isa::available() {
            for cols in widths(isa) {
                for (m, depth, taps) in [(1, 1, 1), (5, 3, 9), (13, 128, 2), (30, 27, 1), (14, 16, 4)] {
                    let (row, x) = (row_of(cols), noise(m * depth * taps, 1));
                    let panel = noise(taps * depth * row, 2);
                    // A pixel in five is not on the map.
                    let from: Vec<usize> = (0..taps * m).map(|i| if i % 5 == 3 { OFF } else { i * depth }).collect();
                    let to: Vec<usize> = (0..m).rev().map(|i| i * cols).collect();
                    for add in [false, true] {
                        let mut written = vec![0.5; m * cols];
                        let (c, to, x, from, panel) = (&mut written[..], &to[..], &x[..], &from[..], &panel[..]);
                        blocks(isa, c, to, cols, x, from, depth, panel, add);
                        for (i, j) in (0..m).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                            let products = (0..taps * depth).map(|k| {
                                let at = from[k / depth * m + i];
                                (if at == OFF { 0.0 } else { x[at + k % depth] }, panel[k * row + j])
                            });
                            let sum = sum(products, isa.is_fused()) + if add { 0.5 } else { 0.0 };
                            assert_eq!(written[to[i] + j], sum, "{isa:?} {m} {depth} {taps} {cols} at {i} {j}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_kind_of_instructions_accumulates_in_order() {
        for &isa in Isa::available() {
            for cols in widths(isa) {
                for (rows, pixels) in [(1, 1), (3, 5), (16, 128), (13, 20)] {
                    let (row, panel) = (row_of(cols), noise(pixels * row_of(cols), 3));
                    let mut lines = [[0.0; LANES]; DEPTH];
                    lines.as_flattened_mut()[..pixels * LANES].copy_from_slice(&noise(pixels * LANES, 4));
                    let pairs: Vec<(usize, usize)> = (0..pixels).rev().map(|p| (0, p)).collect();
                    let mut c = vec![0.25; rows * row];
                    let (lines, pairs) = (&lines, &pairs);
                    outers(isa, &mut c, rows, row, lines, pairs, &panel, cols);
                    for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                        let products = pairs.iter().enumerate().map(|(k, &(_, p))| (lines[k][i], panel[p * row + j]));
                        assert_eq!(
                            c[i * row + j],
                            0.25 + sum(products, isa.is_fused()),
                            "{isa:?} {rows} {pixels} {cols}"
                        );
                    }
                }
            }
        }
    }
}

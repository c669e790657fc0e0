//! The two passes of a resize, both without a gather: whatever the axis, the sums of neighboring values share their weights.
//!
//! A vertical pass has such neighbors in memory. A horizontal one gets them by transposing strips of sixteen rows.

use super::taps::{FRACTION, Taps};
use multiversion::multiversion;

/// Rows of a strip: as many i32 sums as the widest register holds.
pub const STRIP: usize = 16;
/// Sums of the vertical pass that are kept in registers.
const LANES: usize = 32;
const HALF: i32 = 1 << (FRACTION - 1);

/// Spelled out, as all that goes over a strip: `array::map` and `zip` are calls where crates are not optimized across their parts.
#[inline(always)]
fn round<const N: usize>(y: &mut [u8; N], sums: &[i32; N]) {
    for i in 0..N {
        y[i] = (sums[i] >> FRACTION).clamp(0, 255) as u8;
    }
}

/// Transposes 16 x 16 bytes. Interleaving the two halves moves every bit of an index up by one; four times swaps
/// row and column.
#[inline(always)]
fn transpose(mut block: [u8; STRIP * STRIP]) -> [u8; STRIP * STRIP] {
    for _ in 0..4 {
        let mut dealt = [0; STRIP * STRIP];
        for i in 0..STRIP * STRIP / 2 {
            dealt[2 * i] = block[i];
            dealt[2 * i + 1] = block[STRIP * STRIP / 2 + i];
        }
        block = dealt;
    }
    block
}

/// `transposed` `(columns, 16)` from up to 16 rows of as many columns each. Rows that are not there stay as they were.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn transpose_rows(transposed: &mut [u8], rows: &[&[u8]]) {
    let mut block = [0; STRIP * STRIP];
    for (at, transposed) in transposed.chunks_mut(STRIP * STRIP).enumerate() {
        let wide = transposed.len() / STRIP;
        for (line, row) in block.as_chunks_mut::<STRIP>().0.iter_mut().zip(rows) {
            let row = &row[at * STRIP..at * STRIP + wide];
            match row.try_into() {
                Ok(row) => *line = row,
                Err(_) => line[..wide].copy_from_slice(row),
            }
        }
        transposed.copy_from_slice(&transpose(block)[..transposed.len()]);
    }
}

/// The way back: `(columns, 16)` to the first rows of `out`, which are `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn transpose_back(out: &mut [u8], stride: usize, transposed: &[u8]) {
    let mut block = [0; STRIP * STRIP];
    for (at, transposed) in transposed.chunks(STRIP * STRIP).enumerate() {
        let wide = transposed.len() / STRIP;
        block[..transposed.len()].copy_from_slice(transposed);
        let lines = transpose(block);
        for (line, row) in lines.as_chunks::<STRIP>().0.iter().zip(out.chunks_mut(stride)) {
            row[at * STRIP..at * STRIP + wide].copy_from_slice(&line[..wide]);
        }
    }
}

/// The horizontal pass over a transposed strip: `out` `(channels, outputs, 16)` from `x` `(inputs, channels, 16)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn horizontal(out: &mut [u8], x: &[u8], taps: &Taps, channels: usize) {
    let (x, _) = x.as_chunks::<STRIP>();
    let (out, _) = out.as_chunks_mut::<STRIP>();
    for (c, plane) in out.chunks_mut(taps.len()).enumerate() {
        for (y, (low, weights)) in plane.iter_mut().zip(taps.iter()) {
            let mut sums = [HALF; STRIP];
            for (tap, w) in weights.iter().enumerate() {
                let x = &x[(low + tap) * channels + c];
                for i in 0..STRIP {
                    sums[i] += x[i] as i32 * w;
                }
            }
            round(y, &sums);
        }
    }
}

/// One row of the vertical pass: `out` from as many rows of `x`, `stride` apart, as there are weights. The length of `out` is
/// a multiple of [`LANES`], see [`padded`].
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn vertical(out: &mut [u8], x: &[u8], stride: usize, weights: &[i32]) {
    for (at, y) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [HALF; LANES];
        for (tap, w) in weights.iter().enumerate() {
            let x: &[u8; LANES] = x[tap * stride + at * LANES..].first_chunk().expect("rows are padded");
            for i in 0..LANES {
                sums[i] += x[i] as i32 * w;
            }
        }
        round(y, &sums);
    }
}

/// The next length that [`vertical`] takes.
pub fn padded(len: usize) -> usize {
    len.next_multiple_of(LANES)
}

//! Matmuls by our own loops: both factors are packed, in the order in which they are multiplied (Goto and van de Geijn 2008).
//!
//! With AVX-512, 12 rows of 32 columns stay in registers while k goes by: 24 multiply-adds, 12 broadcasts and 2 loads; with AVX2, 6 rows
//! of 16. A panel of the right factor (32 KiB) stays in the first cache, the rows of the left factor in the second, and so do those of
//! the result, which a task finishes a few at a time: what is fused finds them there.
//!
//! On a Zen 5 with AVX-512 these loops run at 98 % of what they reach within the first cache, and a layer of a ViT at 78 % of it: the rest
//! is packing (10 %; five times as slow where a factor comes from memory), and waiting at the end. With `matrixmultiply` it was 72 %. What
//! was tried: a bias added in a pass of its own, as late as a few rows later (3 % slower); copies whose length is known only at run time
//! (calls, five times as slow); the right factor packed once by all threads and shared by them (5 % slower: threads wait for each other
//! twice); asking for what is packed next while others are multiplied (1.5 % faster, for sixty lines: not taken).
//!
//! An element is summed over k one after the other, in blocks of [`DEPTH`] that are added up in order, whatever is beside it:
//! `matrixmultiply` adds in the same order, so the bits are the same wherever multiply-adds are fused.

use super::gemm::{Fused, Output, View};
use super::portable::tile_size;
use super::simd::{Isa, LANES, Vector, over_vectors};
use super::taps::load;
use super::transpose::transpose;
use super::with_scratch;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of k in a block.
pub const DEPTH: usize = 256;

/// Rows that are packed and multiplied at a time at most, full panels of 12 or 6: 144 KiB.
const HEIGHT: usize = 144;

/// Columns of a task at most.
const WIDTH: usize = 1024;

/// Elements of a right factor that a task packs at a time at most: 1 MiB.
const CHUNK: usize = DEPTH * WIDTH;

/// Elements of a thread's scratch that a matmul takes at most.
pub const SCRATCH: usize = HEIGHT * DEPTH + CHUNK;

/// The instructions to multiply by; none where `matrixmultiply` has better loops than a compiler makes of ours.
pub fn isa() -> Option<Isa> {
    let best = Isa::best();
    (best != Isa::Baseline).then_some(best)
}

/// c (m, n) = a (m, k) b (k, n), none of them zero, added to what is there if `add`; on all threads or on this one.
pub fn multiply(
    isa: Isa,
    c: Output,
    a: View,
    b: View,
    [m, k, n]: [usize; 3],
    add: bool,
    all: bool,
    fused: &impl Fused,
) {
    let [rows, cols] = if all { tile_size(m, n) } else { [m, n] };
    let cols = n.div_ceil(n.div_ceil(cols.min(WIDTH))).next_multiple_of(2 * LANES);
    let across = n.div_ceil(cols);
    let task = |task: usize| {
        let (i, j) = (task / across * rows, task % across * cols);
        let (i, j) = (i..(i + rows).min(m), j..(j + cols).min(n));
        // SAFETY: tasks are disjoint parts of the result.
        unsafe { part(isa, c, i, j, a, b, k, add, fused) };
    };
    let tasks = 0..m.div_ceil(rows) * across;
    if all { tasks.into_par_iter().for_each(task) } else { tasks.for_each(task) }
}

/// Rows and columns of the result.
///
/// # Safety
/// Nothing else uses them.
unsafe fn part(
    isa: Isa,
    c: Output,
    i: Range<usize>,
    j: Range<usize>,
    a: View,
    b: View,
    k: usize,
    add: bool,
    fused: &impl Fused,
) {
    let (n, wide) = (j.len(), j.len().next_multiple_of(LANES));
    let height = i.len().div_ceil(i.len().div_ceil(HEIGHT)).next_multiple_of(12);
    let deep = (CHUNK / wide / DEPTH * DEPTH).min(k);
    let len = height * DEPTH.min(k);
    let (panel, bias) = (panel(isa), fused.bias());
    with_scratch(len + deep * wide, |scratch| {
        let (left, right) = scratch.split_at_mut(len);
        for chunk in (0..k).step_by(deep).map(|at| at..(at + deep).min(k)) {
            for first in i.clone().step_by(height) {
                let rows = height.min(i.end - first);
                for at in chunk.clone().step_by(DEPTH) {
                    let depth = DEPTH.min(chunk.end - at);
                    if j.start == 0 {
                        fused.before(first..first + rows, at..at + depth);
                    }
                    pack_left(left, panel[0], a.from(first, at), rows, depth);
                    let right = &mut right[(at - chunk.start) * wide..];
                    for col in (0..n).step_by(panel[1]) {
                        let cols = panel[1].min(n - col);
                        let right = &mut right[col * depth..];
                        if first == i.start {
                            pack_panel(right, b.from(at, j.start + col), depth, cols);
                        }
                        let (to, size) = ([first, j.start + col], [rows, depth, cols]);
                        let bias = if at + depth == k { bias.map(|b| &b[j.start + col..][..cols]) } else { None };
                        right_panel(isa, c, to, left, right, size, add || at > 0, bias);
                    }
                }
                if chunk.end == k {
                    // SAFETY: as the caller promises.
                    (first..first + rows).for_each(|i| fused.after(i, j.start, unsafe { c.row(i, j.clone()) }));
                }
            }
        }
    });
}

/// Rows of a panel of the left factor, and columns of one of the right: what stays in registers.
fn panel(isa: Isa) -> [usize; 2] {
    match isa.wide() {
        1 => [6, LANES],
        _ => [12, 2 * LANES],
    }
}

/// Rows of the next panel where `left` are left: with fewer, nothing is multiplied for nothing.
#[inline(always)]
fn rows_of(left: usize, most: usize) -> usize {
    match left {
        _ if left >= most => most,
        8.. => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// The left factor (m, k) in panels: all rows of a panel side by side, for one element of k after the other.
fn pack_left(to: &mut [f32], most: usize, a: View, m: usize, k: usize) {
    let mut i = 0;
    while i < m {
        let rows = rows_of(m - i, most);
        let (to, a) = (&mut to[i * k..][..rows * k], a.from(i, 0));
        match rows {
            12 => pack_side::<12>(to, rows, a, rows, k),
            8 => pack_side::<8>(to, rows, a, rows, k),
            6 => pack_side::<6>(to, rows, a, rows, k),
            4 => pack_side::<4>(to, rows, a, rows, k),
            _ => pack_side::<1>(to, rows, a, rows, k),
        }
        i += rows;
    }
}

/// A panel of the right factor (k, n): all columns side by side, for one element of k after the other; zeros up to a multiple of 16.
fn pack_panel(to: &mut [f32], b: View, k: usize, n: usize) {
    let wide = n.next_multiple_of(LANES);
    let (to, b) = (&mut to[..wide * k], b.flipped());
    if n < wide {
        to.fill(0.0);
    }
    match n {
        32 => pack_side::<32>(to, wide, b, n, k),
        16 => pack_side::<16>(to, wide, b, n, k),
        _ => pack_side::<1>(to, wide, b, n, k),
    }
}

/// One panel: `to[p ld + i]` = x (i, p) for i < n, p < k. N is n where it is known beforehand, so that a copy is not a call.
fn pack_side<const N: usize>(to: &mut [f32], ld: usize, x: View, n: usize, k: usize) {
    if x.col == 1 && n > 1 {
        return transpose(to, ld, x.data, x.row, [n, k]);
    }
    for (p, to) in to.chunks_exact_mut(ld).enumerate() {
        let from = &x.data[p * x.col..];
        match (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            (Some(to), Some(from)) if x.row == 1 && N == n => *to = *from,
            _ => (0..n).for_each(|i| to[i] = from[i * x.row]),
        }
    }
}

over_vectors! {
    /// c from `at` on: a (m, k) by one panel of `cols` columns of b, both packed. Nothing else may use that part of c.
    fn right_panel<L>(
        c: Output,
        at: [usize; 2],
        a: &[f32],
        b: &[f32],
        size: [usize; 3],
        add: bool,
        bias: Option<&[f32]>,
    ) {
        let wide = size[2].div_ceil(LANES);
        if L::WIDE == 1 {
            return left_panels::<L, 6, 1>(c, at, a, b, size, add, bias);
        }
        match wide {
            2 => left_panels::<L, 12, 2>(c, at, a, b, size, add, bias),
            _ => left_panels::<L, 12, 1>(c, at, a, b, size, add, bias),
        }
    }
}

/// R rows at a time.
#[inline(always)]
fn left_panels<L: Vector, const R: usize, const V: usize>(
    c: Output,
    [first, j]: [usize; 2],
    a: &[f32],
    b: &[f32],
    [m, k, n]: [usize; 3],
    add: bool,
    bias: Option<&[f32]>,
) {
    let b = &b.as_chunks::<LANES>().0.as_chunks::<V>().0[..k];
    let mut i = 0;
    while i < m {
        let (at, a) = ([first + i, j], &a[i * k..]);
        i += match rows_of(m - i, R) {
            rows if rows == R => block::<L, R, V>(c, at, n, a, b, add, bias),
            8 => block::<L, 8, V>(c, at, n, a, b, add, bias),
            4 => block::<L, 4, V>(c, at, n, a, b, add, bias),
            2 => block::<L, 2, V>(c, at, n, a, b, add, bias),
            _ => block::<L, 1, V>(c, at, n, a, b, add, bias),
        };
    }
}

/// R rows of V groups of columns, `cols` of which are written. Returns how many rows.
#[inline(always)]
fn block<L: Vector, const R: usize, const V: usize>(
    c: Output,
    [i, j]: [usize; 2],
    cols: usize,
    a: &[f32],
    b: &[[[f32; LANES]; V]],
    add: bool,
    bias: Option<&[f32]>,
) -> usize {
    for r in 0..R {
        // SAFETY: as `panels` is promised; the reference is gone before the next.
        L::prefetch(unsafe { c.row(i + r, j..j + cols) });
    }
    let mut sums = [[L::splat(0.0); V]; R];
    for (x, y) in a.as_chunks::<R>().0.iter().zip(b) {
        let y = load(y);
        for r in 0..R {
            let x = L::splat(x[r]);
            for v in 0..V {
                sums[r][v] = sums[r][v].add_product(x, y[v]);
            }
        }
    }
    for r in 0..R {
        // SAFETY: as above.
        store(unsafe { c.row(i + r, j..j + cols) }, sums[r], add, bias);
    }
    R
}

/// A row of sums becomes what is written: added to what is there, then a bias to both.
#[inline(always)]
fn store<L: Vector, const V: usize>(c: &mut [f32], sums: [L; V], add: bool, bias: Option<&[f32]>) {
    if c.len() == V * LANES {
        let c = c.as_chunks_mut::<LANES>().0;
        let bias = bias.map(|b| b.as_chunks::<LANES>().0);
        for v in 0..V {
            let mut sum = if add { L::load(&c[v]).add(sums[v]) } else { sums[v] };
            if let Some(bias) = bias {
                sum = sum.add(L::load(&bias[v]));
            }
            sum.store(&mut c[v]);
        }
        return;
    }
    let mut all = [[0.0; LANES]; V];
    for v in 0..V {
        sums[v].store(&mut all[v]);
    }
    for (i, &sum) in all.as_flattened()[..c.len()].iter().enumerate() {
        c[i] = if add { c[i] + sum } else { sum };
        if let Some(bias) = bias {
            c[i] += bias[i];
        }
    }
}

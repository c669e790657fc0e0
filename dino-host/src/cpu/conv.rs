//! Convolutions as matmuls.
//!
//! A tile of output pixels is (pixels, filter) times (filter, out): the left factor, the pixels under every window (im2col), is gathered
//! for a few hundred pixels and 256 of the filter's elements at a time, so it stays in the second cache and never is in memory as a
//! matrix. It is gathered transposed, the order that `sgemm` packs quickly: one copy of each input, as contiguous pixels of a row become
//! contiguous elements. The weight is permuted once a call, from (out, inp, kernel, kernel) to that order of the filter's elements.
//!
//! The input's gradient is the same from the other side: the pixels of dx that have their place within the stride in common (all of
//! them at stride 1) see the same elements of the window, and are a convolution of dy with those. The weight's gradient takes the
//! windows as rows instead, again without a transposition, and sums over parts of the pixels, which the shape determines.

use crate::linalg::gemm::{self, View};
use crate::linalg::transpose::transpose;
use dino_kernel::backend::{Conv, Window};
use dino_kernel::crops::{Crops, Group};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Output pixels of a tile.
const TILE: usize = 384;

/// Elements of the filter that are gathered at once.
const DEPTH: usize = 256;

/// Elements of a weight's gradient, of all parts of the pixels that are summed apart.
const PARTS: usize = 1 << 20;

/// Most parts.
const MOST_PARTS: usize = 16;

thread_local! {
    static GATHERED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of this thread, which keeps its largest size. Not [`crate::linalg::with_scratch`], which `sgemm` asks for meanwhile.
fn with_buffer(len: usize, f: impl FnOnce(&mut [f32])) {
    GATHERED.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        f(&mut buffer[..len]);
    });
}

/// Elements of a thread's buffer.
pub fn buffer_len() -> usize {
    DEPTH * gemm::row_of(TILE) + TILE * DEPTH
}

/// Elements of scratch where the largest weight has so many.
pub fn scratch_len(filters: usize) -> usize {
    filters.max(PARTS.min(MOST_PARTS.saturating_mul(filters)))
}

/// An element of the window: where the pixel under it is, from where the window is.
#[derive(Clone, Copy)]
struct Tap {
    row: isize,
    col: isize,
}

/// The maps of one group, and pixels of a grid over each of them: pixel (i, j) of the grid sees (step i + row, step j + col) of the map,
/// for every tap.
struct Grid<'a> {
    x: &'a [f32],
    map: Group,
    channels: usize,
    rows: usize,
    cols: usize,
    step: usize,
    taps: &'a [Tap],
}

/// Pixels of a grid that follow each other in one row: map, row, columns.
struct Run {
    map: usize,
    row: usize,
    cols: Range<usize>,
}

/// A part of a filter: channels of one tap.
struct Piece {
    tap: Tap,
    channels: Range<usize>,
}

impl Grid<'_> {
    /// Elements of the filter.
    fn filter(&self) -> usize {
        self.taps.len() * self.channels
    }

    /// The runs of pixels `range`, counted over all maps.
    fn runs(&self, range: Range<usize>) -> impl Iterator<Item = Run> + use<'_> {
        let (mut at, of_map) = (range.start, self.rows * self.cols);
        std::iter::from_fn(move || {
            let (map, row, col) = (at / of_map, at % of_map / self.cols, at % self.cols);
            let len = (self.cols - col).min(range.end - at);
            at += len;
            (len > 0).then_some(Run { map, row, cols: col..col + len })
        })
    }

    /// Elements `range` of the filter.
    fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece> + use<'_> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let first = at % self.channels;
            let len = (self.channels - first).min(range.end - at);
            let tap = *self.taps.get(at / self.channels)?;
            at += len;
            (len > 0).then_some(Piece { tap, channels: first..first + len })
        })
    }

    /// Where the first of the run's pixels under a tap begins in x, and which of the run are on the map; none where no pixel is.
    fn under(&self, run: &Run, tap: Tap) -> Option<(usize, Range<usize>)> {
        let row = run.row * self.step;
        let row = row.checked_add_signed(tap.row).filter(|row| *row < self.map.height)?;
        let on_map = |j: &usize| (j * self.step).checked_add_signed(tap.col).is_some_and(|col| col < self.map.width);
        let (first, last) = (run.cols.clone().find(on_map)?, run.cols.clone().rfind(on_map)?);
        let col = (first * self.step).checked_add_signed(tap.col)?;
        let pixel = (run.map * self.map.height + row) * self.map.width + col;
        Some((pixel * self.channels, first - run.cols.start..last + 1 - run.cols.start))
    }

    /// to (elements of the filter, pixels; rows `ld` apart): what the pixels see.
    fn gather_columns(&self, to: &mut [f32], ld: usize, pixels: Range<usize>, filter: Range<usize>) {
        let mut first = 0;
        for Piece { tap, channels } in self.pieces(filter) {
            let mut at = 0;
            for run in self.runs(pixels.clone()) {
                let len = run.cols.len();
                let under = self.under(&run, tap);
                let seen = under.as_ref().map_or(0..0, |(_, seen)| seen.clone());
                if seen.len() < len {
                    for i in 0..channels.len() {
                        let row = &mut to[(first + i) * ld + at..][..len];
                        row[..seen.start].fill(0.0);
                        row[seen.end..].fill(0.0);
                    }
                }
                if let Some((from, seen)) = under {
                    let size = [seen.len(), channels.len()];
                    let x = &self.x[from + channels.start..];
                    transpose(&mut to[first * ld + at + seen.start..], ld, x, self.step * self.channels, size);
                }
                at += len;
            }
            first += channels.len();
        }
    }

    /// to (pixels, elements of the filter): the same as rows.
    fn gather_rows(&self, to: &mut [f32], pixels: Range<usize>, filter: Range<usize>) {
        let wide = filter.len();
        let mut first = 0;
        for Piece { tap, channels } in self.pieces(filter) {
            let mut at = 0;
            for run in self.runs(pixels.clone()) {
                let (from, seen) = self.under(&run, tap).unwrap_or((0, 0..0));
                for i in 0..run.cols.len() {
                    let row = &mut to[(at + i) * wide + first..][..channels.len()];
                    if seen.contains(&i) {
                        let from = from + (i - seen.start) * self.step * self.channels;
                        row.copy_from_slice(&self.x[from..][channels.clone()]);
                    } else {
                        row.fill(0.0);
                    }
                }
                at += run.cols.len();
            }
            first += channels.len();
        }
    }

    /// y (pixels, wide; rows `stride` apart) = what the pixels see times w (filter, wide) + beta y. `buffer` takes the left factor.
    fn multiply(
        &self,
        (y, stride): (&mut [f32], usize),
        pixels: Range<usize>,
        w: View,
        wide: usize,
        beta: f32,
        buffer: &mut [f32],
    ) {
        let ld = gemm::row_of(pixels.len());
        for first in (0..self.filter()).step_by(DEPTH) {
            let depth = DEPTH.min(self.filter() - first);
            self.gather_columns(buffer, ld, pixels.clone(), first..first + depth);
            let w = View { data: &w.data[first * w.row..], ..w };
            let beta = if first == 0 { beta } else { 1.0 };
            gemm::sgemm(y, stride, View::transposed(buffer, ld), w, [pixels.len(), depth, wide], beta);
        }
    }
}

/// Whether the convolution is a matmul as it is.
fn is_pointwise(w: Window) -> bool {
    w.kernel == 1 && w.stride == 1 && w.padding == 0
}

/// Every group of maps and those that are written for it, with where their pixels begin.
fn groups(maps: Crops, written: Crops) -> Vec<(Group, usize, Group, usize)> {
    let (mut from, mut to) = (0, 0);
    let pairs = maps.groups().iter().zip(written.groups());
    let place = |(&map, &out): (&Group, &Group)| {
        let place = (map, from, out, to);
        from += map.count * map.height * map.width;
        to += out.count * out.height * out.width;
        place
    };
    pairs.map(place).collect()
}

fn pixels(g: Group) -> usize {
    g.count * g.height * g.width
}

/// Elements (u, v) of the window, row-major.
fn elements(w: Window) -> impl Iterator<Item = [usize; 2]> {
    (0..w.kernel).flat_map(move |u| (0..w.kernel).map(move |v| [u, v]))
}

/// What every output pixel sees.
fn taps(w: Window) -> Vec<Tap> {
    let from = |at: usize| at as isize - w.padding as isize;
    elements(w).map(|[u, v]| Tap { row: from(u), col: from(v) }).collect()
}

/// y (output pixels, out), x (pixels, inp), w (out, inp, kernel, kernel).
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    if is_pointwise(n.window) {
        let size = [x.len() / n.inp, n.inp, n.out];
        return gemm::matmul(y, n.out, View::rows(x, n.inp), View::transposed(w, n.inp), size, 0.0);
    }
    let (filter, taps) = (n.filter(), taps(n.window));
    scratch.resize(filter * n.out, 0.0);
    scratch.par_chunks_mut(n.out).enumerate().for_each(|(k, row)| {
        let (tap, channel) = (k / n.inp, k % n.inp);
        let read = w[channel * taps.len() + tap..].iter().step_by(filter);
        row.iter_mut().zip(read).for_each(|(to, &w)| *to = w);
    });
    let w = View::rows(scratch, n.out);
    for (map, from, out, to) in groups(n.maps, n.output()) {
        let x = &x[from * n.inp..][..pixels(map) * n.inp];
        let step = n.window.stride;
        let grid = Grid { x, map, channels: n.inp, rows: out.height, cols: out.width, step, taps: &taps };
        let y = &mut y[to * n.out..][..pixels(out) * n.out];
        y.par_chunks_mut(TILE * n.out).enumerate().for_each(|(i, y)| {
            let pixels = i * TILE..i * TILE + y.len() / n.out;
            with_buffer(DEPTH * gemm::row_of(TILE), |b| grid.multiply((y, n.out), pixels, w, n.out, 0.0, b));
        });
    }
}

/// Pixels of dx whose rows and columns have this place within the stride, and what of the window sees them.
struct Phase {
    place: [usize; 2],
    taps: Vec<Tap>,
    /// Elements of the window before these, in the order of the permuted weight.
    before: usize,
}

/// The phases, and the elements of the window in their order.
fn phases(w: Window) -> (Vec<Phase>, Vec<[usize; 2]>) {
    let (mut phases, mut order) = (Vec::new(), Vec::new());
    for place in (0..w.stride).flat_map(|a| (0..w.stride).map(move |b| [a, b])) {
        // Pixel a + s t is under element u of window (a + s t + p - u) / s.
        let window = |place: usize, at: usize| {
            let offset = (place + w.padding) as isize - at as isize;
            (offset.rem_euclid(w.stride as isize) == 0).then(|| offset.div_euclid(w.stride as isize))
        };
        let (before, mut taps) = (order.len(), Vec::new());
        for [u, v] in elements(w) {
            if let (Some(row), Some(col)) = (window(place[0], u), window(place[1], v)) {
                taps.push(Tap { row, col });
                order.push([u, v]);
            }
        }
        phases.push(Phase { place, taps, before });
    }
    (phases, order)
}

/// dx (pixels, inp) = the transpose of the convolution of dy (output pixels, out), or += it where it is to `accumulate`.
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], n: Conv, accumulate: bool, scratch: &mut Vec<f32>) {
    let beta = if accumulate { 1.0 } else { 0.0 };
    if is_pointwise(n.window) {
        let size = [dx.len() / n.inp, n.out, n.inp];
        return gemm::matmul(dx, n.inp, View::rows(dy, n.out), View::rows(w, n.inp), size, beta);
    }
    let (phases, order) = phases(n.window);
    let (kernel, window) = (n.window.kernel, order.len());
    scratch.resize(window * n.out * n.inp, 0.0);
    scratch.par_chunks_mut(n.inp).enumerate().for_each(|(k, row)| {
        let ([u, v], out) = (order[k / n.out], k % n.out);
        let read = w[out * n.filter() + u * kernel + v..].iter().step_by(window);
        row.iter_mut().zip(read).for_each(|(to, &w)| *to = w);
    });
    let (w, step) = (&scratch[..], n.window.stride);
    for (map, to, out, from) in groups(n.maps, n.output()) {
        let x = &dy[from * n.out..][..pixels(out) * n.out];
        let dx = &mut dx[to * n.inp..][..pixels(map) * n.inp];
        let grid = |i: usize, rows, cols| {
            let taps = &phases[i].taps[..];
            Grid { x, map: out, channels: n.out, rows, cols, step: 1, taps }
        };
        if step == 1 {
            let grid = grid(0, map.height, map.width);
            dx.par_chunks_mut(TILE * n.inp).enumerate().for_each(|(i, dx)| {
                let (pixels, w) = (i * TILE..i * TILE + dx.len() / n.inp, View::rows(w, n.inp));
                with_buffer(DEPTH * gemm::row_of(TILE), |b| grid.multiply((dx, n.inp), pixels, w, n.inp, beta, b));
            });
            continue;
        }
        dx.par_chunks_mut(map.height * map.width * n.inp).enumerate().for_each(|(i, dx)| {
            if !accumulate {
                dx.fill(0.0);
            }
            for (p, phase) in phases.iter().enumerate().filter(|(_, phase)| !phase.taps.is_empty()) {
                let [a, b] = phase.place;
                let [rows, cols] =
                    [(map.height, a), (map.width, b)].map(|(side, at)| side.saturating_sub(at).div_ceil(step));
                let grid = grid(p, rows, cols);
                let w = &w[phase.before * n.out * n.inp..];
                for first in (0..rows * cols).step_by(TILE) {
                    let count = TILE.min(rows * cols - first);
                    let pixels = i * rows * cols + first..i * rows * cols + first + count;
                    for channel in (0..n.inp).step_by(DEPTH) {
                        let wide = DEPTH.min(n.inp - channel);
                        with_buffer(buffer_len(), |buffer| {
                            let (gathered, y) = buffer.split_at_mut(DEPTH * gemm::row_of(TILE));
                            let (y, w) = (&mut y[..count * wide], View::rows(&w[channel..], n.inp));
                            grid.multiply((&mut *y, wide), pixels.clone(), w, wide, 0.0, gathered);
                            for (k, y) in y.chunks(wide).enumerate() {
                                let (row, col) = ((first + k) / cols * step + a, (first + k) % cols * step + b);
                                let dx = &mut dx[(row * map.width + col) * n.inp + channel..][..wide];
                                dx.iter_mut().zip(y).for_each(|(dx, &y)| *dx += y);
                            }
                        });
                    }
                }
            }
        });
    }
}

/// dw (out, inp, kernel, kernel) += the gradient of the weight.
pub fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    if is_pointwise(n.window) {
        // The sums of columns are a bias's gradient, which there is none of.
        scratch.clear();
        scratch.resize(n.out, 0.0);
        return gemm::weight_gradient(dw, scratch, dy, x, n.inp);
    }
    let (filter, taps) = (n.filter(), taps(n.window));
    let (window, len) = (taps.len(), filter * n.out);
    let groups = groups(n.maps, n.output());
    let tiles: Vec<(usize, Range<usize>)> = groups
        .iter()
        .enumerate()
        .flat_map(|(g, &(_, _, out, _))| {
            let pixels = pixels(out);
            (0..pixels).step_by(DEPTH).map(move |first| (g, first..(first + DEPTH).min(pixels)))
        })
        .collect();
    let parts = (PARTS / len).clamp(1, MOST_PARTS).min(tiles.len());
    scratch.clear();
    scratch.resize(parts * len, 0.0);
    let tiles: Vec<_> = tiles.chunks(tiles.len().div_ceil(parts)).collect();
    let slabs = scratch.par_chunks_mut(len).zip(tiles);
    slabs.for_each(|(slab, tiles)| {
        slab.par_chunks_mut(DEPTH * n.out).enumerate().for_each(|(block, dw)| {
            let (first, depth) = (block * DEPTH, dw.len() / n.out);
            for (g, pixels) in tiles {
                let (map, from, out, to) = groups[*g];
                let x = &x[from * n.inp..];
                let step = n.window.stride;
                let grid = Grid { x, map, channels: n.inp, rows: out.height, cols: out.width, step, taps: &taps };
                let dy = &dy[(to + pixels.start) * n.out..][..pixels.len() * n.out];
                with_buffer(DEPTH * DEPTH, |buffer| {
                    grid.gather_rows(buffer, pixels.clone(), first..first + depth);
                    let seen = View::transposed(buffer, depth);
                    gemm::sgemm(dw, n.out, seen, View::rows(dy, n.out), [depth, pixels.len(), n.out], 1.0);
                });
            }
        });
    });
    // Sixteen filters at a time: a cache line of every slab's row.
    dw.par_chunks_mut(16 * filter).enumerate().for_each(|(i, dw)| {
        for slab in scratch.chunks(len) {
            for (k, row) in slab.chunks(n.out).enumerate() {
                let at = k % n.inp * window + k / n.inp;
                dw.chunks_mut(filter).zip(&row[16 * i..]).for_each(|(dw, &sum)| dw[at] += sum);
            }
        }
    });
}

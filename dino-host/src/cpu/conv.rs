//! Convolutions as matmuls over the map itself.
//!
//! A tile of output pixels is (pixels, filter) times (filter, out). The left factor, the pixels under every window, is never formed: a
//! table has, for every pixel and element of the window, where that element's channels begin in the map, and [`taps`] multiplies rows
//! that begin anywhere. The weight is permuted once a call, into panels of 64 columns whose rows follow the order of the sum: up to 128
//! channels, then the elements of the window, then the next channels.
//!
//! The input's gradient is the same from the other side: the pixels of dx that have their place within the stride in common (all of
//! them at stride 1) see the same elements of the window, and are a convolution of dy with those. The weight's gradient sums over pixels
//! instead, a panel of dy at a time, over parts of the pixels that the shape determines.
//!
//! Against im2col, a tile at a time, and `sgemm`, nothing is copied: that was a quarter of the time of 3 x 3 over 64 channels.

use super::{room, winograd};
use crate::linalg::rows;
use crate::linalg::taps::{self, DEPTH, OFF, wide};
use crate::linalg::transpose::transpose;
use dino_kernel::backend::{Conv, Window};
use dino_kernel::crops::Group;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Most output pixels of a tile, and least: a multiple of the rows that [`taps`] takes at once.
const TILE: usize = 192;
const LEAST: usize = 48;

/// Fewer channels are gathered, as rows of a filter: three of them are too few to begin anew for.
const FEW: usize = 16;

/// Elements of a weight's gradient, of all parts of the pixels that are summed apart.
pub(super) const PARTS: usize = 1 << 20;

/// Most parts.
pub(super) const MOST_PARTS: usize = 16;

/// Rows and columns of a weight's gradient that one task sums.
const ROWS: usize = 1024;
pub(super) const COLUMNS: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of this thread, which keeps its largest size.
pub(super) fn with_buffer<T>(len: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
        f(&mut buffer[..len])
    })
}

/// Elements of a thread's buffer.
pub fn buffer_len() -> usize {
    winograd::BUFFER.max(TILE * DEPTH)
}

/// Elements of scratch where the largest weight has so many: its panels, whose last one may be wider than the weight, or the parts of
/// its gradient.
pub fn scratch_len(filters: usize) -> usize {
    let transformed = filters.saturating_mul(16).div_ceil(9);
    transformed.max(PARTS.min(MOST_PARTS.saturating_mul(transformed)))
}

/// An element of the window: where the pixel under it is, from where the window is.
#[derive(Clone, Copy)]
struct Tap {
    row: isize,
    col: isize,
}

/// The maps of one group, and a grid over each of them: pixel (i, j) of the grid sees pixel (step i + row, step j + col) of the map for
/// every tap, and is written at pixel (apart i + place, apart j + place) of other maps.
struct Grid<'a> {
    map: Group,
    channels: usize,
    rows: usize,
    cols: usize,
    step: usize,
    taps: &'a [Tap],
    written: Written,
}

/// Where the pixels of a grid are written.
#[derive(Clone, Copy)]
struct Written {
    map: Group,
    channels: usize,
    place: [usize; 2],
    apart: usize,
}

/// Pixels of a tile: where each is written and, tap by tap, where what it sees begins.
struct Table {
    to: Vec<usize>,
    from: Vec<usize>,
}

/// Some channels under some elements of the window, which follow each other in a panel from this row on.
pub(super) struct Piece {
    pub(super) channels: Range<usize>,
    taps: Range<usize>,
    pub(super) row: usize,
}

/// The order in which a sum goes through a filter: [`DEPTH`] rows of a panel at a time.
pub(super) fn pieces(channels: usize, taps: usize) -> impl Iterator<Item = Piece> {
    (0..channels).step_by(DEPTH).flat_map(move |first| {
        let depth = DEPTH.min(channels - first);
        let at_once = DEPTH / depth;
        (0..taps).step_by(at_once).map(move |tap| Piece {
            channels: first..first + depth,
            taps: tap..(tap + at_once).min(taps),
            row: first * taps + tap * depth,
        })
    })
}

/// Which row of a panel has a channel under an element of the window.
fn row_of(channel: usize, tap: usize, channels: usize, taps: usize) -> usize {
    let first = channel / DEPTH * DEPTH;
    first * taps + tap * DEPTH.min(channels - first) + channel - first
}

/// Panels of a right factor of `rows` rows and `cols` columns.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    data: &'a [f32],
    rows: usize,
    pub(super) cols: usize,
}

impl Panels<'_> {
    const fn len(rows: usize, cols: usize) -> usize {
        rows * taps::row_of(cols)
    }

    /// Calls `f` for every panel, with its first column and their number.
    pub(super) fn each(&self, mut f: impl FnMut(usize, usize, &[f32])) {
        for first in (0..self.cols).step_by(wide()) {
            f(first, wide().min(self.cols - first), &self.data[first * self.rows..]);
        }
    }
}

impl Grid<'_> {
    /// Of a tile whose first pixel, or whose map's, is written at `base`.
    fn table(&self, pixels: Range<usize>, base: usize) -> Table {
        let (m, of_map) = (pixels.len(), self.rows * self.cols);
        let mut table = Table { to: vec![0; m], from: vec![OFF; self.taps.len() * m] };
        let mut at = pixels.start;
        while at < pixels.end {
            // The pixels that follow each other in one row.
            let (map, row, col) = (at / of_map, at % of_map / self.cols, at % self.cols);
            let (first, len) = (at - pixels.start, (self.cols - col).min(pixels.end - at));
            let (w, [down, right]) = (&self.written, self.written.place);
            let start = (map * w.map.height + row * w.apart + down) * w.map.width + right;
            for (j, to) in table.to[first..first + len].iter_mut().enumerate() {
                *to = (start + (col + j) * w.apart) * w.channels - base;
            }
            for (t, tap) in self.taps.iter().enumerate() {
                let seen = (row * self.step).checked_add_signed(tap.row).filter(|&row| row < self.map.height);
                let Some(row) = seen else { continue };
                let start = (map * self.map.height + row) * self.map.width;
                for (j, from) in table.from[t * m + first..][..len].iter_mut().enumerate() {
                    let col = ((col + j) * self.step).wrapping_add_signed(tap.col);
                    *from = if col < self.map.width { (start + col) * self.channels } else { OFF };
                }
            }
            at += len;
        }
        table
    }

    fn pixels(&self) -> usize {
        self.map.count * self.rows * self.cols
    }

    /// c, which begins at `base`, = [c +] what the pixels see times the panels.
    fn multiply(&self, c: &mut [f32], base: usize, pixels: Range<usize>, x: &[f32], panels: Panels, add: bool) {
        let (m, Table { to, from }) = (pixels.len(), self.table(pixels, base));
        if self.is_gathered() {
            return with_buffer(TILE * DEPTH, |seen| {
                for piece in pieces(panels.rows, 1) {
                    let depth = piece.channels.len();
                    gather(seen, &from, m, x, self.channels, piece.channels);
                    let from: Vec<usize> = (0..m).map(|i| i * depth).collect();
                    panels.each(|col, cols, panel| {
                        let panel = &panel[piece.row * taps::row_of(cols)..];
                        taps::multiply(&mut c[col..], &to, cols, seen, &from, depth, panel, add || piece.row > 0);
                    });
                }
            });
        }
        panels.each(|col, cols, panel| {
            for Piece { channels, taps, row } in pieces(self.channels, self.taps.len()) {
                let (depth, panel) = (channels.len(), &panel[row * taps::row_of(cols)..]);
                let (x, from) = (&x[channels.start..], &from[taps.start * m..taps.end * m]);
                taps::multiply(&mut c[col..], &to, cols, x, from, depth, panel, add || row > 0);
            }
        });
    }

    fn is_gathered(&self) -> bool {
        self.channels < FEW && self.taps.len() > 1
    }

    /// y = [y +] the same of all pixels, which are written one after the other, on all threads.
    fn multiply_all(&self, y: &mut [f32], x: &[f32], panels: Panels, add: bool) {
        let (pixels, cols) = (self.pixels(), self.written.channels);
        let tile = pixels.div_ceil(8).next_multiple_of(LEAST).min(TILE);
        y.par_chunks_mut(tile * cols).enumerate().for_each(|(i, y)| {
            let first = i * tile;
            if self.taps.len() == 1 && self.step == 1 {
                // The panels go through both by pieces of rows, slower than memory gives them.
                // Best of ten, one thread: 512 to 128 channels 76 GFLOP/s before and 103 so, 64 to 256 channels 52 and 78.
                look(y);
                look(&x[first * self.channels..][..y.len() / cols * self.channels]);
            }
            self.multiply(y, first * cols, first..first + y.len() / cols, x, panels, add);
        });
    }
}

/// Looks at every cache line, in order, so that it is near when it is read piece by piece.
fn look(lines: &[f32]) {
    let mut sum = 0.0;
    for at in (0..lines.len()).step_by(16) {
        sum += lines[at];
    }
    std::hint::black_box(sum);
}

/// seen (pixels, elements `filter` of the filter), of the m pixels of a table `from`. What follows each other in the map is copied at
/// once: a row of the window, unless it is at the edge.
fn gather(seen: &mut [f32], from: &[usize], m: usize, x: &[f32], channels: usize, filter: Range<usize>) {
    for (i, seen) in seen.chunks_mut(filter.len()).take(m).enumerate() {
        let mut at = filter.start;
        while at < filter.end {
            let (mut tap, first) = (at / channels, at % channels);
            let start = from[tap * m + i];
            let follows = |tap: usize, before: usize| match start {
                OFF => from[tap * m + i] == OFF,
                start => from[tap * m + i] == start + before * channels,
            };
            let begun = tap;
            while (tap + 1) * channels < filter.end && follows(tap + 1, tap + 1 - begun) {
                tap += 1;
            }
            let len = ((tap + 1) * channels).min(filter.end) - at;
            let to = &mut seen[at - filter.start..][..len];
            match start {
                OFF => to.fill(0.0),
                start => to.copy_from_slice(&x[start + first..][..len]),
            }
            at += len;
        }
    }
}

fn is_pointwise(w: Window) -> bool {
    w.kernel == 1 && w.stride == 1 && w.padding == 0
}

/// Every group of maps and those that are written for it, with where their pixels begin; all of them at once where the convolution is a
/// matmul.
pub(super) fn groups(n: Conv) -> Vec<(Group, usize, Group, usize)> {
    if is_pointwise(n.window) {
        let all = Group { count: 1, height: 1, width: n.maps.pixels() };
        return vec![(all, 0, all, 0)];
    }
    let written = n.output();
    let (mut from, mut to) = (0, 0);
    let pairs = n.maps.groups().iter().zip(written.groups());
    let place = |(&map, &out): (&Group, &Group)| {
        let place = (map, from, out, to);
        from += pixels(map);
        to += pixels(out);
        place
    };
    pairs.map(place).collect()
}

pub(super) fn pixels(g: Group) -> usize {
    g.count * g.height * g.width
}

/// Elements (u, v) of the window, row-major.
fn elements(w: Window) -> impl Iterator<Item = [usize; 2]> {
    (0..w.kernel).flat_map(move |u| (0..w.kernel).map(move |v| [u, v]))
}

/// What every output pixel sees.
fn window(w: Window) -> Vec<Tap> {
    let from = |at: usize| at as isize - w.padding as isize;
    elements(w).map(|[u, v]| Tap { row: from(u), col: from(v) }).collect()
}

/// The grid of the output pixels.
fn outputs<'a>(n: Conv, taps: &'a [Tap], map: Group, out: Group) -> Grid<'a> {
    let written = Written { map: out, channels: n.out, place: [0, 0], apart: 1 };
    Grid { map, channels: n.inp, rows: out.height, cols: out.width, step: n.window.stride, taps, written }
}

/// Panels of so many rows and columns, `fill` given each with its first column and their number.
pub(super) fn panels(
    scratch: &mut Vec<f32>,
    rows: usize,
    cols: usize,
    fill: impl Fn(&mut [f32], usize, usize) + Sync,
) -> Panels<'_> {
    let scratch = room(scratch, Panels::len(rows, cols));
    scratch.par_chunks_mut((wide() * rows).max(1)).enumerate().for_each(|(j, panel)| {
        let first = j * wide();
        let cols = wide().min(cols - first);
        if cols < taps::row_of(cols) {
            panel.fill(0.0); // what is beyond the last column is multiplied too, and not written
        }
        fill(panel, first, cols);
    });
    Panels { data: scratch, rows, cols }
}

/// y (output pixels, out), x (pixels, inp), w (out, inp, kernel, kernel).
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    if winograd::takes(n) {
        return winograd::forward(y, x, w, n, scratch);
    }
    let (filter, taps) = (n.filter(), window(n.window));
    let (count, inp) = (taps.len(), n.inp);
    let panels = panels(scratch, filter, n.out, |panel, first, cols| {
        let row = taps::row_of(cols);
        if count == 1 {
            return transpose(panel, row, &w[first * filter..], filter, [cols, filter]);
        }
        with_buffer(count * row, |turned| {
            for channel in 0..inp {
                transpose(turned, row, &w[first * filter + channel * count..], filter, [cols, count]);
                for (tap, turned) in turned.chunks(row).enumerate() {
                    panel[row_of(channel, tap, inp, count) * row..][..cols].copy_from_slice(&turned[..cols]);
                }
            }
        });
    });
    for (map, from, out, to) in groups(n) {
        let (x, y) = (&x[from * n.inp..], &mut y[to * n.out..][..pixels(out) * n.out]);
        outputs(n, &taps, map, out).multiply_all(y, x, panels, false);
    }
}

/// Pixels of dx whose rows and columns have this place within the stride, and what of the window sees them.
struct Phase {
    place: [usize; 2],
    taps: Vec<Tap>,
    /// The elements (u, v) of the window that these are.
    elements: Vec<[usize; 2]>,
}

fn phases(w: Window) -> impl Iterator<Item = Phase> {
    let places = (0..w.stride).flat_map(move |a| (0..w.stride).map(move |b| [a, b]));
    places.map(move |place| {
        // Pixel a + s t is under element u of window (a + s t + p - u) / s.
        let under = |place: usize, at: usize| {
            let offset = (place + w.padding) as isize - at as isize;
            (offset.rem_euclid(w.stride as isize) == 0).then(|| offset.div_euclid(w.stride as isize))
        };
        let (mut taps, mut which) = (Vec::new(), Vec::new());
        for [u, v] in elements(w) {
            if let (Some(row), Some(col)) = (under(place[0], u), under(place[1], v)) {
                taps.push(Tap { row, col });
                which.push([u, v]);
            }
        }
        Phase { place, taps, elements: which }
    })
}

/// dx (pixels, inp) = the transpose of the convolution of dy (output pixels, out), or += it where it is to `accumulate`.
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], n: Conv, accumulate: bool, scratch: &mut Vec<f32>) {
    if winograd::takes(n) {
        return winograd::input_gradient(dx, dy, w, n, accumulate, scratch);
    }
    let (kernel, apart, filter) = (n.window.kernel, n.window.stride, n.filter());
    for Phase { place, taps, elements } in phases(n.window) {
        let (count, out) = (taps.len(), n.out);
        let panels = panels(scratch, count * n.out, n.inp, |panel, first, cols| {
            let row = taps::row_of(cols);
            for k in 0..out {
                let w = &w[k * filter + first * kernel * kernel..][..cols * kernel * kernel];
                for (tap, [u, v]) in elements.iter().enumerate() {
                    let to = &mut panel[row_of(k, tap, out, count) * row..][..cols];
                    if kernel == 1 {
                        to.copy_from_slice(w);
                        continue;
                    }
                    for j in 0..cols {
                        to[j] = w[j * kernel * kernel + u * kernel + v];
                    }
                }
            }
        });
        for (map, to, out, from) in groups(n) {
            let dy = &dy[from * n.out..];
            let dx = &mut dx[to * n.inp..][..pixels(map) * n.inp];
            let [rows, cols] = [(map.height, place[0]), (map.width, place[1])]
                .map(|(side, at)| side.saturating_sub(at).div_ceil(apart));
            let written = Written { map, channels: n.inp, place, apart };
            let grid = Grid { map: out, channels: n.out, rows, cols, step: 1, taps: &taps, written };
            if apart == 1 {
                grid.multiply_all(dx, dy, panels, accumulate);
                continue;
            }
            let of_map = map.height * map.width * n.inp;
            dx.par_chunks_mut(of_map).enumerate().for_each(|(i, dx)| {
                for first in (0..rows * cols).step_by(TILE) {
                    let pixels = i * rows * cols + first..i * rows * cols + (first + TILE).min(rows * cols);
                    if count > 0 {
                        grid.multiply(dx, i * of_map, pixels, dy, panels, accumulate);
                    } else if !accumulate {
                        let to = grid.table(pixels, i * of_map).to;
                        to.iter().for_each(|&to| dx[to..][..n.inp].fill(0.0));
                    }
                }
            });
        }
    }
}

/// The sum of the parts of `len` elements each, in their order.
pub(super) fn sum_parts(parts: &mut [f32], len: usize) -> &[f32] {
    const BLOCK: usize = 1 << 14;
    let (total, others) = parts.split_at_mut(len);
    total.par_chunks_mut(BLOCK).enumerate().for_each(|(i, total)| {
        for part in others.chunks(len) {
            rows::add_assign(total, &part[i * BLOCK..][..total.len()]);
        }
    });
    total
}

/// Output pixels of one group that are summed by one call.
type Pixels = (usize, Range<usize>);

/// dw (out, inp, kernel, kernel) += the gradient of the weight.
pub fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    if winograd::takes(n) {
        return winograd::weight_gradient(dw, dy, x, n, scratch);
    }
    let (filter, taps, groups) = (n.filter(), window(n.window), groups(n));
    let (count, len) = (taps.len(), Panels::len(filter, n.out));
    let cut = |(g, &(_, _, out, _)): (usize, &(Group, usize, Group, usize))| {
        let pixels = pixels(out);
        (0..pixels).step_by(DEPTH).map(move |first| (g, first..(first + DEPTH).min(pixels)))
    };
    let tiles: Vec<Pixels> = groups.iter().enumerate().flat_map(cut).collect();
    let parts = (PARTS / len).clamp(1, MOST_PARTS).min(tiles.len());
    let tiles: Vec<_> = tiles.chunks(tiles.len().div_ceil(parts)).collect();
    let scratch = room(scratch, tiles.len() * len);
    // A task has rows of one panel of one part: some elements of the window, or of the channels where it has only one.
    let mut tasks = Vec::new();
    for (slab, tiles) in scratch.chunks_mut(len).zip(&tiles) {
        for (j, panel) in slab.chunks_mut(filter * COLUMNS).enumerate() {
            let cols = COLUMNS.min(n.out - j * COLUMNS);
            let rows = if count == 1 { ROWS } else { (ROWS / n.inp).max(1) * n.inp };
            let parts = panel.chunks_mut(rows * taps::row_of(cols)).enumerate();
            tasks.extend(parts.map(|(i, part)| (part, i * rows, j * COLUMNS, cols, tiles)));
        }
    }
    tasks.into_par_iter().for_each(|(part, first, col, cols, tiles)| {
        part.fill(0.0);
        let row = taps::row_of(cols);
        let rows = first..first + part.len() / row;
        with_buffer(DEPTH * (COLUMNS + DEPTH), |buffer| {
            let (panels, seen) = buffer.split_at_mut(DEPTH * COLUMNS);
            panels.fill(0.0);
            for (g, pixels) in tiles.iter() {
                let (map, from, out, to) = groups[*g];
                let (x, m) = (&x[from * n.inp..], pixels.len());
                for (p, dy) in dy[(to + pixels.start) * n.out..].chunks(n.out).take(m).enumerate() {
                    taps::place(panels, DEPTH, p, &dy[col..][..cols]);
                }
                let grid = outputs(n, &taps, map, out);
                let table = grid.table(pixels.clone(), pixels.start * n.out);
                if grid.is_gathered() {
                    for first in rows.clone().step_by(DEPTH) {
                        let depth = DEPTH.min(rows.end - first);
                        gather(seen, &table.from, m, x, n.inp, first..first + depth);
                        let pairs: Vec<_> = (0..m).map(|p| (p * depth, p)).collect();
                        let part = &mut part[(first - rows.start) * row..];
                        taps::accumulate(part, depth, seen, &pairs, panels, DEPTH, cols);
                    }
                    continue;
                }
                let mut at = rows.start;
                while at < rows.end {
                    let (tap, channel) = (at / n.inp, at % n.inp);
                    let depth = (n.inp - channel).min(rows.end - at);
                    let mut pairs = Vec::with_capacity(m);
                    for (p, &at) in table.from[tap * m..][..m].iter().enumerate() {
                        if at != OFF {
                            pairs.push((at + channel, p));
                        }
                    }
                    if count == 1 {
                        pairs.iter().for_each(|&(at, _)| look(&x[at..][..depth]));
                    }
                    taps::accumulate(&mut part[(at - rows.start) * row..], depth, x, &pairs, panels, DEPTH, cols);
                    at += depth;
                }
            }
        });
    });
    add_in_order(dw, sum_parts(scratch, len), n);
}

/// dw += its sums, whose panels have a row for every element of a filter, channels within elements of the window: sixteen filters at a time.
fn add_in_order(dw: &mut [f32], sums: &[f32], n: Conv) {
    let (filter, count) = (n.filter(), n.window.kernel * n.window.kernel);
    dw.par_chunks_mut(16 * filter).enumerate().for_each(|(i, dw)| {
        let (first, outs) = (16 * i / COLUMNS * COLUMNS, dw.len() / filter);
        let (row, col) = (taps::row_of(COLUMNS.min(n.out - first)), 16 * i - first);
        with_buffer(outs * ROWS, |turned| {
            for tap in 0..count {
                for channel in (0..n.inp).step_by(ROWS) {
                    let (at, channels) = ((tap * n.inp + channel) * row + col, ROWS.min(n.inp - channel));
                    transpose(turned, channels, &sums[first * filter + at..], row, [channels, outs]);
                    for (k, dw) in dw.chunks_mut(filter).enumerate() {
                        let (dw, sums) = (&mut dw[channel * count + tap..], &turned[k * channels..][..channels]);
                        if count == 1 {
                            rows::add_assign(&mut dw[..channels], sums);
                            continue;
                        }
                        for i in 0..channels {
                            dw[i * count] += sums[i];
                        }
                    }
                }
            }
        });
    });
}

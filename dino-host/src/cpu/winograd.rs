//! 3 x 3 convolutions of stride 1 with 4 multiplications an output pixel instead of 9 (Winograd's minimal filtering, as Lavin and Gray
//! 2015 use it: F(2 x 2, 3 x 3)).
//!
//! Two by two output pixels y see four by four pixels d:  y = A^T [ (G g G^T) * (B^T d B) ] A,  * element by element. Summed over
//! channels, each of the sixteen elements is a matmul of its own, of (tiles, inp) and (inp, out). The input's gradient is the same with the
//! filter turned around; the weight's is  dg = G^T [ sum over tiles of (B^T d B) * (A dy A^T) ] G.
//!
//! B and A have only 0, 1 and -1, G also 1/2, so roundings hardly grow: the worst element is as far from f64 as that of the plain sum
//! is (sums are nine times shorter). Larger tiles would multiply less, and lose a digit.

use super::conv::{self, COLUMNS, MOST_PARTS, PARTS, Panels, groups, pieces, with_buffer};
use super::room;
use crate::linalg::simd::{LANES, Vector, over_vectors};
use crate::linalg::taps::{self, OFF, wide};
use crate::linalg::transpose::transpose;
use dino_kernel::backend::Conv;
use dino_kernel::crops::Group;
use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Elements of transformed tiles and their matmuls, within a second cache; and of a thread's buffer, with what is between them ([`plane`]).
const TRANSFORMED: usize = 3 << 17;
pub const BUFFER: usize = TRANSFORMED + 2 * 16 * LANES;

/// Most tiles at once of a convolution, and of a weight's gradient; channels of it that are summed at once.
const MOST: usize = 96;
const SUMMED: usize = 64;
const CHANNELS: usize = 128;

/// Elements from one of the sixteen matrices of a tile to the next: a cache line more than it has. Sizes are mostly powers of two, and
/// lines that a page is between go to one set of the first cache, which has fewer ways than sixteen.
const fn plane(len: usize) -> usize {
    len + LANES
}

/// Channels of a filter that are transformed at once.
type Line = [f32; LANES];

/// Columns, then rows of a matrix of R x R elements by the transform of one line, R elements to S; of all lanes.
#[inline(always)]
fn both_ways<const R: usize, const S: usize, const RR: usize, const SR: usize, const SS: usize>(
    from: &[Line; RR],
    line: impl Fn([f32; R]) -> [f32; S],
) -> [Line; SS] {
    let mut between = [[0.0; LANES]; SR];
    for j in 0..R {
        for l in 0..LANES {
            let mut column = [0.0; R];
            for i in 0..R {
                column[i] = from[i * R + j][l];
            }
            let column = line(column);
            for i in 0..S {
                between[i * R + j][l] = column[i];
            }
        }
    }
    let mut to = [[0.0; LANES]; SS];
    for i in 0..S {
        for l in 0..LANES {
            let mut row = [0.0; R];
            for j in 0..R {
                row[j] = between[i * R + j][l];
            }
            let row = line(row);
            for j in 0..S {
                to[i * S + j][l] = row[j];
            }
        }
    }
    to
}

/// Elements of N rows that are `plane` apart.
#[inline(always)]
fn load<const N: usize>(x: &[f32], plane: usize) -> [Line; N] {
    let mut rows = [[0.0; LANES]; N];
    for e in 0..N {
        rows[e] = *x[e * plane..].first_chunk().expect("channels go by 16");
    }
    rows
}

#[inline(always)]
fn store<const N: usize>(x: &mut [f32], plane: usize, rows: &[Line; N]) {
    for e in 0..N {
        // As an array: a slice's copy is a call.
        *x[e * plane..].first_chunk_mut().expect("channels go by 16") = rows[e];
    }
}

/// Most channels of a convolution that is computed so.
const MOST_CHANNELS: usize = 4096;

static ZEROS: [[f32; LANES]; MOST_CHANNELS / LANES] = [[0.0; LANES]; MOST_CHANNELS / LANES];

/// The channels of N pixels, which are zero where they are off the map.
#[inline(always)]
fn pixels<'a, const N: usize>(x: &'a [f32], starts: &[usize; N], channels: usize) -> [&'a [[f32; LANES]]; N] {
    let mut pixels = [&ZEROS[..channels / LANES]; N];
    for e in 0..N {
        if starts[e] != OFF {
            pixels[e] = x[starts[e]..][..channels].as_chunks().0;
        }
    }
    pixels
}

/// B^T d of one line.
#[inline(always)]
fn seen<L: Vector>([a, b, c, d]: [L; 4]) -> [L; 4] {
    [a.sub(c), b.add(c), c.sub(b), b.sub(d)]
}

/// A^T m of one line.
#[inline(always)]
fn back<L: Vector>([a, b, c, d]: [L; 4]) -> [L; 2] {
    [a.add(b).add(c), b.sub(c).sub(d)]
}

/// A dy of one line.
#[inline(always)]
fn gradient<L: Vector>([a, b]: [L; 2]) -> [L; 4] {
    [a, a.add(b), a.sub(b), L::splat(0.0).sub(b)]
}

over_vectors! {
    /// B^T d B of tiles whose sixteen pixels begin at `starts`: rows of `channels`, tile by tile, in sixteen matrices that are `plane` apart.
    fn transform_seen<L>(v: &mut [f32], plane: usize, x: &[f32], starts: &[[usize; 16]], channels: usize) {
        let (v, plane, row) = (v.as_chunks_mut::<LANES>().0, plane / LANES, channels / LANES);
        for (k, starts) in starts.iter().enumerate() {
            let pixels = pixels(x, starts, channels);
            for c in 0..row {
                let mut between = [[L::splat(0.0); 4]; 4];
                for j in 0..4 {
                    let mut column = [L::splat(0.0); 4];
                    for i in 0..4 {
                        column[i] = L::load(&pixels[4 * i + j][c]);
                    }
                    let column = seen(column);
                    for i in 0..4 {
                        between[i][j] = column[i];
                    }
                }
                for i in 0..4 {
                    let line = seen(between[i]);
                    for j in 0..4 {
                        line[j].store(&mut v[(4 * i + j) * plane + k * row + c]);
                    }
                }
            }
        }
    }
}

over_vectors! {
    /// A^T m A: what is written of tiles, sums whose rows of `channels` are in sixteen matrices that are `plane` apart.
    fn transform_back<L>(y: &mut [f32], starts: &[[usize; 4]], m: &[f32], plane: usize, channels: usize, add: bool) {
        let (m, plane, row) = (m.as_chunks::<LANES>().0, plane / LANES, channels / LANES);
        for (k, starts) in starts.iter().enumerate() {
            for c in 0..row {
                let mut between = [[L::splat(0.0); 4]; 2];
                for j in 0..4 {
                    let mut column = [L::splat(0.0); 4];
                    for i in 0..4 {
                        column[i] = L::load(&m[(4 * i + j) * plane + k * row + c]);
                    }
                    let column = back(column);
                    for i in 0..2 {
                        between[i][j] = column[i];
                    }
                }
                for i in 0..2 {
                    let line = back(between[i]);
                    for j in 0..2 {
                        if starts[2 * i + j] != OFF {
                            let y = y[starts[2 * i + j] + LANES * c..].first_chunk_mut().expect("channels go by 16");
                            let sum = if add { L::load(y).add(line[j]) } else { line[j] };
                            sum.store(y);
                        }
                    }
                }
            }
        }
    }
}

over_vectors! {
    /// A dy A^T of tiles of a gradient, as [`transform_seen`] lays out.
    fn transform_gradient<L>(v: &mut [f32], plane: usize, dy: &[f32], starts: &[[usize; 4]], channels: usize) {
        let (v, plane, row) = (v.as_chunks_mut::<LANES>().0, plane / LANES, channels / LANES);
        for (k, starts) in starts.iter().enumerate() {
            let pixels = pixels(dy, starts, channels);
            for c in 0..row {
                let mut between = [[L::splat(0.0); 2]; 4];
                for j in 0..2 {
                    let column = gradient([L::load(&pixels[j][c]), L::load(&pixels[2 + j][c])]);
                    for i in 0..4 {
                        between[i][j] = column[i];
                    }
                }
                for i in 0..4 {
                    let line = gradient(between[i]);
                    for j in 0..4 {
                        line[j].store(&mut v[(4 * i + j) * plane + k * row + c]);
                    }
                }
            }
        }
    }
}

/// G g G^T of filters between one channel and `row` others, the nine elements' rows one after the other.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn transform_filter(u: &mut [f32], plane: usize, g: &[f32], row: usize) {
    for c in (0..row).step_by(LANES) {
        let g = load(&g[c..], row);
        let line = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + c) + 0.5 * b, 0.5 * (a + c) - 0.5 * b, c];
        let to: [Line; 16] = both_ways::<3, 4, 9, 12, 16>(&g, line);
        store(&mut u[c..], plane, &to);
    }
}

/// dw += G^T m G of sixteen filters, `filter` elements apart.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn add_filter(dw: &mut [f32], filter: usize, m: &[f32], plane: usize) {
    let line = |[a, b, c, d]: [f32; 4]| [a + 0.5 * (b + c), 0.5 * (b - c), 0.5 * (b + c) + d];
    let to: [Line; 9] = both_ways::<4, 3, 16, 12, 9>(&load(m, plane), line);
    for l in 0..LANES {
        let dw = &mut dw[l * filter..][..9];
        for e in 0..9 {
            dw[e] += to[e][l];
        }
    }
}

/// The tiles of one group of maps: two by two pixels of those that are written, in rows of tiles.
struct Tiles {
    seen: Group,
    written: Group,
    padding: usize,
}

impl Tiles {
    fn a_row(&self) -> usize {
        self.written.width.div_ceil(2)
    }

    fn a_map(&self) -> usize {
        self.written.height.div_ceil(2)
    }

    fn rows(&self) -> usize {
        self.written.count * self.a_map()
    }

    /// The pixel that a row of tiles begins with.
    fn first_pixel(&self, row: usize) -> usize {
        let w = self.written;
        (row / self.a_map() * w.height + row % self.a_map() * 2) * w.width
    }

    /// Rows of at most so many tiles, and not too few parts for all threads.
    fn parts(&self, most: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, at_once) = (self.rows(), (most / self.a_row().max(1)).clamp(1, self.rows().div_ceil(4).max(1)));
        (0..rows).step_by(at_once).map(move |first| first..(first + at_once).min(rows))
    }

    /// What `f` finds of every tile in those rows, from its row and its column.
    fn each<T>(&self, rows: &Range<usize>, f: impl Fn(usize, usize) -> T) -> Vec<T> {
        let (mut all, a_row) = (Vec::with_capacity(rows.len() * self.a_row()), self.a_row());
        for row in rows.clone() {
            all.extend((0..a_row).map(|col| f(row, col)));
        }
        all
    }

    /// Where the four by four pixels begin that a tile sees.
    fn see(&self, row: usize, col: usize, channels: usize) -> [usize; 16] {
        let (map, s) = (row / self.a_map(), self.seen);
        let (first_row, first_col) = (2 * (row % self.a_map()), 2 * col);
        let mut starts = [OFF; 16];
        for e in 0..16 {
            // What is in the padding wraps around to a place beyond every side.
            let i = (first_row + e / 4).wrapping_sub(self.padding);
            let j = (first_col + e % 4).wrapping_sub(self.padding);
            if i < s.height && j < s.width {
                starts[e] = ((map * s.height + i) * s.width + j) * channels;
            }
        }
        starts
    }

    /// Where its two by two pixels begin that are written, from `base` on.
    fn write(&self, row: usize, col: usize, channels: usize, base: usize) -> [usize; 4] {
        let (map, w) = (row / self.a_map(), self.written);
        let mut starts = [OFF; 4];
        for e in 0..4 {
            let (i, j) = (row % self.a_map() * 2 + e / 2, 2 * col + e % 2);
            if i < w.height && j < w.width {
                starts[e] = ((map * w.height + i) * w.width + j) * channels - base;
            }
        }
        starts
    }

    /// y = [y +] the convolution of x (pixels, inp) with filters in sixteen rows of panels a channel.
    fn convolve(&self, mut y: &mut [f32], x: &[f32], panels: Panels, inp: usize, add: bool) {
        let out = panels.cols;
        let mut tasks = Vec::new();
        for rows in self.parts(MOST.min(TRANSFORMED / (16 * (inp + wide())))) {
            let len = self.first_pixel(rows.end) - self.first_pixel(rows.start);
            tasks.push((y.split_off_mut(..len * out).unwrap_or_default(), rows));
        }
        tasks.into_par_iter().for_each(|(y, rows)| {
            let (tiles, base) = (rows.len() * self.a_row(), self.first_pixel(rows.start) * out);
            let plane = plane(tiles * inp);
            with_buffer(16 * (plane + self::plane(tiles * wide())), |buffer| {
                let (v, m) = buffer.split_at_mut(16 * plane);
                let seen = self.each(&rows, |row, col| self.see(row, col, inp));
                let written = self.each(&rows, |row, col| self.write(row, col, out, base));
                transform_seen(v, plane, x, &seen, inp);
                let from: Vec<usize> = (0..tiles).map(|k| k * inp).collect();
                panels.each(|first, cols, panel| {
                    let to: Vec<usize> = (0..tiles).map(|k| k * cols).collect();
                    let of_sums = self::plane(tiles * cols);
                    for (e, m) in m.chunks_mut(of_sums).take(16).enumerate() {
                        for piece in pieces(inp, 1) {
                            let v = &v[e * plane + piece.channels.start..];
                            let panel = &panel[(e * inp + piece.row) * cols..];
                            taps::multiply(m, &to, cols, v, &from, piece.channels.len(), panel, piece.row > 0);
                        }
                    }
                    transform_back(&mut y[first..], &written, m, of_sums, cols, add);
                });
            });
        });
    }
}

/// Whether a convolution is computed so: its channels go by sixteen, and a row of tiles fits in the buffer.
pub fn takes(n: Conv) -> bool {
    let w = n.window;
    let by_lanes = n.inp.is_multiple_of(LANES) && n.out.is_multiple_of(LANES);
    let fits = |g: &Group| g.width.div_ceil(2).max(1).saturating_mul(16 * (n.inp.max(n.out) + COLUMNS)) <= TRANSFORMED;
    let written = n.output();
    let groups = || n.maps.groups().iter().chain(written.groups());
    w.kernel == 3
        && w.stride == 1
        && w.padding <= 2
        && by_lanes
        && n.inp.max(n.out) <= MOST_CHANNELS
        && groups().all(fits)
}

/// See [`conv::forward`].
pub fn forward(y: &mut [f32], x: &[f32], w: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    let (filter, inp) = (n.filter(), n.inp);
    let panels = conv::panels(scratch, 16 * inp, n.out, |panel, first, cols| {
        with_buffer(9 * cols, |turned| {
            for i in 0..inp {
                transpose(turned, cols, &w[first * filter + 9 * i..], filter, [cols, 9]);
                transform_filter(&mut panel[i * cols..], inp * cols, turned, cols);
            }
        });
    });
    for (seen, from, written, to) in groups(n) {
        let y = &mut y[to * n.out..][..conv::pixels(written) * n.out];
        Tiles { seen, written, padding: n.window.padding }.convolve(y, &x[from * inp..], panels, inp, false);
    }
}

/// See [`conv::input_gradient`].
pub fn input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32], n: Conv, accumulate: bool, scratch: &mut Vec<f32>) {
    let (filter, out) = (n.filter(), n.out);
    let panels = conv::panels(scratch, 16 * out, n.inp, |panel, first, cols| {
        with_buffer(18 * cols, |buffer| {
            let (turned, around) = buffer.split_at_mut(9 * cols);
            for k in 0..out {
                transpose(turned, cols, &w[k * filter + 9 * first..], 9, [cols, 9]);
                for (e, row) in turned.chunks(cols).enumerate() {
                    around[(8 - e) * cols..][..cols].copy_from_slice(row);
                }
                transform_filter(&mut panel[k * cols..], out * cols, around, cols);
            }
        });
    });
    for (written, to, seen, from) in groups(n) {
        let dx = &mut dx[to * n.inp..][..conv::pixels(written) * n.inp];
        Tiles { seen, written, padding: 2 - n.window.padding }.convolve(dx, &dy[from * out..], panels, out, accumulate);
    }
}

/// See [`conv::weight_gradient`].
pub fn weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32], n: Conv, scratch: &mut Vec<f32>) {
    let (filter, len, groups) = (n.filter(), 16 * n.inp * n.out, groups(n));
    let tiles =
        |&(seen, _, written, _): &(Group, usize, Group, usize)| Tiles { seen, written, padding: n.window.padding };
    let all: Vec<Tiles> = groups.iter().map(tiles).collect();
    let most = SUMMED.min(TRANSFORMED / (16 * (CHANNELS + COLUMNS)));
    let cut = |(g, tiles): (usize, &Tiles)| tiles.parts(most).map(move |rows| (g, rows));
    let blocks: Vec<(usize, Range<usize>)> = all.iter().enumerate().flat_map(cut).collect();
    let parts = (PARTS / len).clamp(1, MOST_PARTS).min(blocks.len());
    let blocks: Vec<_> = blocks.chunks(blocks.len().div_ceil(parts)).collect();
    let scratch = room(scratch, blocks.len() * len);
    // A task has some channels of one panel of one part.
    let mut tasks = Vec::new();
    for (slab, blocks) in scratch.chunks_mut(len).zip(&blocks) {
        for (j, panel) in slab.chunks_mut(16 * n.inp * COLUMNS).enumerate() {
            let cols = COLUMNS.min(n.out - j * COLUMNS);
            let parts = panel.chunks_mut(16 * CHANNELS * cols).enumerate();
            tasks.extend(parts.map(|(i, part)| (part, i * CHANNELS, j * COLUMNS, cols, blocks)));
        }
    }
    tasks.into_par_iter().for_each(|(part, channel, col, cols, blocks)| {
        part.fill(0.0);
        let depth = part.len() / (16 * cols);
        for (g, rows) in blocks.iter() {
            let (t, (_, from, _, to)) = (&all[*g], groups[*g]);
            let (x, dy) = (&x[from * n.inp + channel..], &dy[to * n.out + col..]);
            let tiles = rows.len() * t.a_row();
            let [plane, of_panels] = [plane(tiles * depth), plane(tiles * cols)];
            with_buffer(16 * (plane + of_panels), |buffer| {
                let (v, panels) = buffer.split_at_mut(16 * plane);
                transform_seen(v, plane, x, &t.each(rows, |row, col| t.see(row, col, n.inp)), depth);
                let written = t.each(rows, |row, col| t.write(row, col, n.out, 0));
                for first in (0..cols).step_by(wide()) {
                    let at_once = wide().min(cols - first);
                    transform_gradient(&mut panels[first * tiles..], of_panels, &dy[first..], &written, at_once);
                }
                let pairs: Vec<(usize, usize)> = (0..tiles).map(|k| (k * depth, k)).collect();
                for (e, part) in part.chunks_mut(depth * cols).enumerate() {
                    let (v, panels) = (&v[e * plane..], &panels[e * of_panels..]);
                    taps::accumulate(part, depth, v, &pairs, panels, tiles, cols);
                }
            });
        }
    });
    let total = conv::sum_parts(scratch, len);
    dw.par_chunks_mut(LANES * filter).enumerate().for_each(|(i, dw)| {
        let (first, at) = (LANES * i / COLUMNS * COLUMNS, LANES * i % COLUMNS);
        let (panel, cols) = (&total[16 * n.inp * first..], COLUMNS.min(n.out - first));
        for channel in (0..n.inp).step_by(CHANNELS) {
            let depth = CHANNELS.min(n.inp - channel);
            for k in 0..depth {
                let m = &panel[(16 * channel + k) * cols + at..];
                add_filter(&mut dw[9 * (channel + k)..], filter, m, depth * cols);
            }
        }
    });
}

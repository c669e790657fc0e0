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
use crate::linalg::simd::{Isa, LANES, Vector, over_vectors};
use crate::linalg::taps::{self, OFF, wide};
use crate::linalg::transpose::transpose;
use dino_kernel::backend::Conv;
use dino_kernel::crops::Group;
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

/// A matrix of the transforms, as what it makes of a line: R elements to S.
trait Transform<const R: usize, const S: usize> {
    fn line<L: Vector>(from: [L; R]) -> [L; S];
}

/// B^T, of what a tile sees.
struct Seen;
/// A^T, back from the sums.
struct Back;
/// A, of a gradient.
struct Gradient;
/// G, of a filter.
struct Filter;
/// G^T, back from the sums of a filter's gradient.
struct FilterBack;

impl Transform<4, 4> for Seen {
    #[inline(always)]
    fn line<L: Vector>([a, b, c, d]: [L; 4]) -> [L; 4] {
        [a.sub(c), b.add(c), c.sub(b), b.sub(d)]
    }
}

impl Transform<4, 2> for Back {
    #[inline(always)]
    fn line<L: Vector>([a, b, c, d]: [L; 4]) -> [L; 2] {
        [a.add(b).add(c), b.sub(c).sub(d)]
    }
}

impl Transform<2, 4> for Gradient {
    #[inline(always)]
    fn line<L: Vector>([a, b]: [L; 2]) -> [L; 4] {
        [a, a.add(b), a.sub(b), L::splat(0.0).sub(b)]
    }
}

impl Transform<3, 4> for Filter {
    #[inline(always)]
    fn line<L: Vector>([a, b, c]: [L; 3]) -> [L; 4] {
        let (outer, inner) = (half(a.add(c)), half(b));
        [a, outer.add(inner), outer.sub(inner), c]
    }
}

impl Transform<4, 3> for FilterBack {
    #[inline(always)]
    fn line<L: Vector>([a, b, c, d]: [L; 4]) -> [L; 3] {
        let sum = half(b.add(c));
        [a.add(sum), half(b.sub(c)), sum.add(d)]
    }
}

#[inline(always)]
fn half<L: Vector>(x: L) -> L {
    L::splat(0.0).add_product(L::splat(0.5), x)
}

/// T x T^T, of sixteen channels: columns, then rows.
#[inline(always)]
fn both_ways<T: Transform<R, S>, L: Vector, const R: usize, const S: usize>(x: [[L; R]; R]) -> [[L; S]; S] {
    let mut between = [[L::splat(0.0); R]; S];
    for j in 0..R {
        let mut column = [L::splat(0.0); R];
        for i in 0..R {
            column[i] = x[i][j];
        }
        let column = T::line(column);
        for i in 0..S {
            between[i][j] = column[i];
        }
    }
    let mut to = [[L::splat(0.0); S]; S];
    for i in 0..S {
        to[i] = T::line(between[i]);
    }
    to
}

/// Element (i, j) of R x R matrices that are `plane` rows of sixteen apart, their row `at`.
#[inline(always)]
fn load<L: Vector, const R: usize>(x: &[[f32; LANES]], plane: usize, at: usize) -> [[L; R]; R] {
    let mut elements = [[L::splat(0.0); R]; R];
    for i in 0..R {
        for j in 0..R {
            elements[i][j] = L::load(&x[(i * R + j) * plane + at]);
        }
    }
    elements
}

/// The same, written.
#[inline(always)]
fn store<L: Vector, const R: usize>(x: &mut [[f32; LANES]], plane: usize, at: usize, elements: [[L; R]; R]) {
    for i in 0..R {
        for j in 0..R {
            elements[i][j].store(&mut x[(i * R + j) * plane + at]);
        }
    }
}

/// Most channels of a convolution that is computed so.
const MOST_CHANNELS: usize = 4096;

static ZEROS: [[f32; LANES]; MOST_CHANNELS / LANES] = [[0.0; LANES]; MOST_CHANNELS / LANES];

/// The channels of R x R pixels, which are zero where they are off the map.
#[inline(always)]
fn pixels<'a, const R: usize>(x: &'a [f32], starts: &[[usize; R]; R], channels: usize) -> [[&'a [[f32; LANES]]; R]; R] {
    let mut pixels = [[&ZEROS[..channels / LANES]; R]; R];
    for i in 0..R {
        for j in 0..R {
            if starts[i][j] != OFF {
                pixels[i][j] = x[starts[i][j]..][..channels].as_chunks().0;
            }
        }
    }
    pixels
}

/// T x T^T of tiles whose R x R pixels begin at `starts`: rows of `channels`, tile by tile, in sixteen matrices that are `plane` apart.
#[inline(always)]
fn transform<T: Transform<R, 4>, L: Vector, const R: usize>(
    v: &mut [f32],
    plane: usize,
    x: &[f32],
    starts: &[[[usize; R]; R]],
    channels: usize,
) {
    let (v, plane, row) = (v.as_chunks_mut().0, plane / LANES, channels / LANES);
    for (k, starts) in starts.iter().enumerate() {
        let pixels = pixels(x, starts, channels);
        for c in 0..row {
            let mut seen = [[L::splat(0.0); R]; R];
            for i in 0..R {
                for j in 0..R {
                    seen[i][j] = L::load(&pixels[i][j][c]);
                }
            }
            store(v, plane, k * row + c, both_ways::<T, L, R, 4>(seen));
        }
    }
}

over_vectors! {
    /// B^T d B: see [`transform`].
    fn transform_seen<L>(v: &mut [f32], plane: usize, x: &[f32], starts: &[[[usize; 4]; 4]], channels: usize) {
        transform::<Seen, L, 4>(v, plane, x, starts, channels);
    }
}

over_vectors! {
    /// A dy A^T of a gradient: see [`transform`].
    fn transform_gradient<L>(v: &mut [f32], plane: usize, dy: &[f32], starts: &[[[usize; 2]; 2]], channels: usize) {
        transform::<Gradient, L, 2>(v, plane, dy, starts, channels);
    }
}

over_vectors! {
    /// A^T m A: what is written of tiles, sums whose rows of `channels` are in sixteen matrices that are `plane` apart.
    fn transform_back<L>(y: &mut [f32], starts: &[[[usize; 2]; 2]], m: &[f32], plane: usize, channels: usize, add: bool) {
        let (m, plane, row) = (m.as_chunks().0, plane / LANES, channels / LANES);
        for (k, starts) in starts.iter().enumerate() {
            for c in 0..row {
                let sums = both_ways::<Back, L, 4, 2>(load(m, plane, k * row + c));
                for i in 0..2 {
                    for j in 0..2 {
                        if starts[i][j] != OFF {
                            let y = y[starts[i][j] + LANES * c..].first_chunk_mut().expect("channels go by 16");
                            let sum = if add { L::load(y).add(sums[i][j]) } else { sums[i][j] };
                            sum.store(y);
                        }
                    }
                }
            }
        }
    }
}

over_vectors! {
    /// G g G^T of filters between one channel and `row` others, the nine elements' rows one after the other.
    fn transform_filter<L>(u: &mut [f32], plane: usize, g: &[f32], row: usize) {
        let (u, g, row) = (u.as_chunks_mut().0, g.as_chunks().0, row / LANES);
        for c in 0..row {
            store(u, plane / LANES, c, both_ways::<Filter, L, 3, 4>(load(g, row, c)));
        }
    }
}

over_vectors! {
    /// dw += G^T m G of sixteen filters, `filter` elements apart.
    fn add_filter<L>(dw: &mut [f32], filter: usize, m: &[f32], plane: usize) {
        let mut sums = [[0.0; LANES]; 9];
        store(&mut sums, 1, 0, both_ways::<FilterBack, L, 4, 3>(load(m.as_chunks().0, plane / LANES, 0)));
        for l in 0..LANES {
            let dw = &mut dw[l * filter..][..9];
            for e in 0..9 {
                dw[e] += sums[e][l];
            }
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
    fn see(&self, row: usize, col: usize, channels: usize) -> [[usize; 4]; 4] {
        self.starts(self.seen, self.padding, [row, col], channels, 0)
    }

    /// Where its two by two pixels begin that are written, from `base` on.
    fn write(&self, row: usize, col: usize, channels: usize, base: usize) -> [[usize; 2]; 2] {
        self.starts(self.written, 0, [row, col], channels, base)
    }

    /// Where pixels of a tile begin, from `base` on, on maps that are padded so.
    fn starts<const R: usize>(
        &self,
        maps: Group,
        padding: usize,
        [row, col]: [usize; 2],
        channels: usize,
        base: usize,
    ) -> [[usize; R]; R] {
        let (map, first) = (row / self.a_map(), row % self.a_map());
        let mut starts = [[OFF; R]; R];
        for i in 0..R {
            for j in 0..R {
                // What is in the padding wraps around to a place beyond every side.
                let y = (2 * first + i).wrapping_sub(padding);
                let x = (2 * col + j).wrapping_sub(padding);
                if y < maps.height && x < maps.width {
                    starts[i][j] = ((map * maps.height + y) * maps.width + x) * channels - base;
                }
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
                transform_seen(Isa::best(), v, plane, x, &seen, inp);
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
                    transform_back(Isa::best(), &mut y[first..], &written, m, of_sums, cols, add);
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
                transform_filter(Isa::best(), &mut panel[i * cols..], inp * cols, turned, cols);
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
                transform_filter(Isa::best(), &mut panel[k * cols..], out * cols, around, cols);
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
                transform_seen(Isa::best(), v, plane, x, &t.each(rows, |row, col| t.see(row, col, n.inp)), depth);
                let written = t.each(rows, |row, col| t.write(row, col, n.out, 0));
                for first in (0..cols).step_by(wide()) {
                    let at_once = wide().min(cols - first);
                    transform_gradient(
                        Isa::best(),
                        &mut panels[first * tiles..],
                        of_panels,
                        &dy[first..],
                        &written,
                        at_once,
                    );
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
                add_filter(Isa::best(), &mut dw[9 * (channel + k)..], filter, m, depth * cols);
            }
        }
    });
}

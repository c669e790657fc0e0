//! y[i, j, c] = the largest of x[i s + u - p, j s + v - p, c] over window elements (u, v); what is outside does not count.
//! dx of the first pixel, row-major, that is the largest of its window += dy[i, j, c].

use super::LANES;
use crate::crops::Group;
use crate::dims::{MaxPool, Window};
use crate::real::Real;

/// Pixels of one map that the window covers at output pixel (i, j), row-major.
fn covered(w: Window, map: Group, [i, j]: [usize; 2]) -> impl Iterator<Item = usize> {
    let rows = (0..w.kernel).filter_map(move |u| w.pixel(i, u, map.height));
    rows.flat_map(move |row| {
        (0..w.kernel).filter_map(move |v| w.pixel(j, v, map.width)).map(move |col| row * map.width + col)
    })
}

/// One output row of one map: y (output columns, cols), x (height, width, cols).
#[inline(always)]
pub fn forward_row<T: Real>(y: &mut [T], x: &[T], row: usize, map: Group, n: MaxPool) {
    for (j, y) in y.chunks_mut(n.cols).enumerate() {
        let y = &mut y[..n.cols];
        for (k, pixel) in covered(n.window, map, [row, j]).enumerate() {
            let x = &x[pixel * n.cols..][..n.cols];
            if k == 0 {
                y.copy_from_slice(x);
            } else {
                for c in 0..n.cols {
                    y[c] = y[c].larger(x[c]);
                }
            }
        }
    }
}

/// y (output pixels, cols), x (pixels, cols).
pub fn forward<T: Real>(y: &mut [T], x: &[T], n: MaxPool) {
    let (mut y, mut from) = (y, 0);
    for (&map, out) in n.maps.groups().iter().zip(n.window.over(n.maps).groups()) {
        for _ in 0..map.count {
            for row in 0..out.height {
                let line;
                (line, y) = core::mem::take(&mut y).split_at_mut(out.width * n.cols);
                forward_row(line, &x[from * n.cols..], row, map, n);
            }
            from += map.height * map.width;
        }
    }
}

/// One map: dx (height, width, cols) is set, dy (output pixels, cols), x (height, width, cols).
#[inline(always)]
pub fn backward_map<T: Real>(dx: &mut [T], dy: &[T], x: &[T], map: Group, n: MaxPool) {
    let width = n.window.positions(map.width);
    dx.fill(T::ZERO);
    for (at, dy) in dy.chunks(n.cols).enumerate() {
        let position = [at / width, at % width];
        // Channels whose largest elements are looked for at once, in vectors: four times as fast as one by one.
        for (i, dy) in dy.chunks(LANES).enumerate() {
            let first = i * LANES;
            let (mut most, mut which) = ([T::ZERO; LANES], [usize::MAX; LANES]);
            let (most, which) = (&mut most[..dy.len()], &mut which[..dy.len()]);
            for pixel in covered(n.window, map, position) {
                let x = &x[pixel * n.cols + first..][..dy.len()];
                for l in 0..dy.len() {
                    if which[l] == usize::MAX || x[l] > most[l] || x[l].is_nan() {
                        (most[l], which[l]) = (x[l], pixel);
                    }
                }
            }
            for l in 0..dy.len() {
                if which[l] != usize::MAX {
                    dx[which[l] * n.cols + first + l] += dy[l];
                }
            }
        }
    }
}

/// dx (pixels, cols) is set; dy (output pixels, cols), x (pixels, cols).
pub fn backward<T: Real>(dx: &mut [T], dy: &[T], x: &[T], n: MaxPool) {
    let (mut from, mut to) = (0, 0);
    for (&map, out) in n.maps.groups().iter().zip(n.window.over(n.maps).groups()) {
        let (pixels, written) = (map.height * map.width * n.cols, out.height * out.width * n.cols);
        for _ in 0..map.count {
            backward_map(&mut dx[from..from + pixels], &dy[to..to + written], &x[from..from + pixels], map, n);
            from += pixels;
            to += written;
        }
    }
}

//! The position table for another grid: separable bicubic resampling (a = -0.75, half-pixel centers, taps clamped at the edge,
//! no anti-aliasing) as two small matrices that are data, so that no backend knows the kernel.
//!
//! y[i, j] = sum over (p, q) of rows[i, p] cols[j, q] table[p, q]. The backward is the transpose.

use super::axpy;
use crate::crops::Group;
use crate::dims::Grid;
use crate::real::Real;

/// How the sampling grid is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpolation {
    /// src = (dst + 0.5) n_in / (n_out + 0.1) - 0.5: the published recipe.
    Published,
    /// src = (dst + 0.5) n_in / n_out - 0.5: what resizing to a size does.
    Size,
}

/// The table is used as it is where the image is square and has the native number of patches (the published rule goes by the image).
pub const fn is_native(group: Group, patch: usize, side: usize) -> bool {
    group.height == group.width && group.patches(patch) == side * side
}

/// Weights of the taps at -1, 0, 1, 2 around fraction `t`.
fn cubic(t: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

/// m (n_out, n_in): one axis of the resampling; `None` for the identity.
pub fn matrix<T: Real>(m: &mut [T], n_in: usize, n_out: usize, interpolation: Option<Interpolation>) {
    m.fill(T::ZERO);
    let stretched = match interpolation {
        None => {
            assert!(n_in == n_out, "the identity is square");
            for i in 0..n_out {
                m[i * n_in + i] = T::ONE;
            }
            return;
        }
        Some(Interpolation::Published) => n_out as f64 + 0.1,
        Some(Interpolation::Size) => n_out as f64,
    };
    for o in 0..n_out {
        let source = (o as f64 + 0.5) * n_in as f64 / stretched - 0.5;
        let base = libm::floor(source);
        let row = &mut m[o * n_in..][..n_in];
        for (tap, weight) in cubic(source - base).into_iter().enumerate() {
            let at = (base as isize + tap as isize - 1).clamp(0, n_in as isize - 1) as usize;
            row[at] += T::of(weight);
        }
    }
}

/// y (to, C); table (from, C): the patch part; `rows (to[0], from[0])`; `cols (to[1], from[1])`.
pub fn forward<T: Real>(y: &mut [T], table: &[T], rows: &[T], cols: &[T], n: Grid) {
    y.fill(T::ZERO);
    visit(rows, cols, n, |to, from, weight| {
        axpy(&mut y[to * n.cols..][..n.cols], weight, &table[from * n.cols..][..n.cols])
    });
}

/// dtable (from, C) += transpose applied to dy (to, C).
pub fn backward<T: Real>(dtable: &mut [T], dy: &[T], rows: &[T], cols: &[T], n: Grid) {
    visit(rows, cols, n, |to, from, weight| {
        axpy(&mut dtable[from * n.cols..][..n.cols], weight, &dy[to * n.cols..][..n.cols])
    });
}

/// Calls `f(to, from, weight)` for every pair of cells with a non-zero weight: sixteen for each output cell.
fn visit<T: Real>(rows: &[T], cols: &[T], n: Grid, mut f: impl FnMut(usize, usize, T)) {
    for i in 0..n.to[0] {
        for p in 0..n.from[0] {
            let vertical = rows[i * n.from[0] + p];
            if vertical == T::ZERO {
                continue;
            }
            for j in 0..n.to[1] {
                for q in 0..n.from[1] {
                    let horizontal = cols[j * n.from[1] + q];
                    if horizontal != T::ZERO {
                        f(i * n.to[1] + j, p * n.from[1] + q, vertical * horizontal);
                    }
                }
            }
        }
    }
}

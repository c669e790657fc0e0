//! y[i, j, o] = sum over channels c and window elements (u, v) of x[i s + u - p, j s + v - p, c] w[o, c, u, v]; pixels outside are 0.
//! dx[i s + u - p, j s + v - p, c] += dy[i, j, o] w[o, c, u, v];   dw[o, c, u, v] += dy[i, j, o] x[i s + u - p, j s + v - p, c].
//!
//! Activations are rows of channels, a row for every pixel: so a 1 x 1 convolution is a plain matmul, a batch norm is a norm of columns,
//! and maps of several sizes are one matrix, as the tokens of a transformer are. The weight keeps its published layout.

use super::axpy;
use crate::dims::Conv;
use crate::real::Real;

/// Calls `f` with (output pixel, input pixel, window element) wherever a window covers a pixel: output row-major, then window row-major.
fn each(n: Conv, mut f: impl FnMut(usize, usize, usize)) {
    let (mut from, mut to, w) = (0, 0, n.window);
    for (maps, out) in n.maps.groups().iter().zip(n.output().groups()) {
        for _ in 0..maps.count {
            for (i, j) in (0..out.height).flat_map(|i| (0..out.width).map(move |j| (i, j))) {
                for (u, v) in (0..w.kernel).flat_map(|u| (0..w.kernel).map(move |v| (u, v))) {
                    if let (Some(row), Some(col)) = (w.pixel(i, u, maps.height), w.pixel(j, v, maps.width)) {
                        f(to + i * out.width + j, from + row * maps.width + col, u * w.kernel + v);
                    }
                }
            }
            from += maps.height * maps.width;
            to += out.height * out.width;
        }
    }
}

/// y (output pixels, out), x (pixels, inp), w (out, inp, kernel, kernel).
pub fn forward<T: Real>(y: &mut [T], x: &[T], w: &[T], n: Conv) {
    let taps = n.window.kernel * n.window.kernel;
    y.fill(T::ZERO);
    each(n, |to, from, tap| {
        let x = &x[from * n.inp..][..n.inp];
        for (y, w) in y[to * n.out..][..n.out].iter_mut().zip(w.chunks(n.inp * taps)) {
            for (&x, &w) in x.iter().zip(w[tap..].iter().step_by(taps)) {
                *y += x * w;
            }
        }
    });
}

/// dx (pixels, inp) accumulates.
pub fn backward_input<T: Real>(dx_acc: &mut [T], dy: &[T], w: &[T], n: Conv) {
    let taps = n.window.kernel * n.window.kernel;
    each(n, |to, from, tap| {
        let dx = &mut dx_acc[from * n.inp..][..n.inp];
        for (&dy, w) in dy[to * n.out..][..n.out].iter().zip(w.chunks(n.inp * taps)) {
            for (dx, &w) in dx.iter_mut().zip(w[tap..].iter().step_by(taps)) {
                *dx += dy * w;
            }
        }
    });
}

/// dw (out, inp, kernel, kernel) accumulates.
pub fn backward_params<T: Real>(dw: &mut [T], dy: &[T], x: &[T], n: Conv) {
    let taps = n.window.kernel * n.window.kernel;
    if taps == 1 && n.window.stride == 1 {
        for (dy, x) in dy.chunks(n.out).zip(x.chunks(n.inp)) {
            dw.chunks_mut(n.inp).zip(dy).for_each(|(dw, &dy)| axpy(dw, dy, x));
        }
        return;
    }
    each(n, |to, from, tap| {
        let x = &x[from * n.inp..][..n.inp];
        for (&dy, dw) in dy[to * n.out..][..n.out].iter().zip(dw.chunks_mut(n.inp * taps)) {
            for (&x, dw) in x.iter().zip(dw[tap..].iter_mut().step_by(taps)) {
                *dw += dy * x;
            }
        }
    });
}

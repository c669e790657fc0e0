//! Pixels to tokens: patches as rows, the class token in front, positions added; and class rows out of and into a token matrix.

use super::{axpy, residual};
use crate::crops::Ragged;
use crate::dims::{Embed, Patches};
use crate::real::Real;

/// y (patches, channels * patch * patch) from x, every group (count, channels, height, width); surplus pixels are dropped.
/// A convolution of stride `patch` is this followed by a linear layer.
pub fn patchify<T: Real>(y: &mut [T], x: &[T], n: Patches) {
    let (p, mut from, mut to) = (n.patch, 0, 0);
    for group in n.crops.groups() {
        let [rows, cols] = group.grid(p);
        for _ in 0..group.count {
            for r in 0..rows {
                for c in 0..cols {
                    for channel in 0..n.channels {
                        for line in 0..p {
                            let at = from + (channel * group.height + r * p + line) * group.width + c * p;
                            y[to..to + p].copy_from_slice(&x[at..at + p]);
                            to += p;
                        }
                    }
                }
            }
            from += n.channels * group.height * group.width;
        }
    }
}

/// y (crops, 1 + patches, C); patches (crops, patches, C); class, class_position (C); positions (patches, C).
pub fn forward<T: Real>(y: &mut [T], patches: &[T], class: &[T], class_position: &[T], positions: &[T], n: Embed) {
    let (tokens, body) = ((1 + n.patches) * n.cols, n.patches * n.cols);
    for i in 0..n.crops {
        let (head, rest) = y[i * tokens..][..tokens].split_at_mut(n.cols);
        residual::add(head, class, class_position);
        residual::add(rest, &patches[i * body..][..body], positions);
    }
}

/// dpatches (crops, patches, C) and dpositions (patches, C) are set; dclass and dclass_position (C) accumulate.
pub fn backward<T: Real>(
    dpatches: &mut [T],
    dpositions: &mut [T],
    dclass: &mut [T],
    dclass_position: &mut [T],
    dy: &[T],
    n: Embed,
) {
    let (tokens, body) = ((1 + n.patches) * n.cols, n.patches * n.cols);
    dpositions.fill(T::ZERO);
    for i in 0..n.crops {
        let (head, rest) = dy[i * tokens..][..tokens].split_at(n.cols);
        dpatches[i * body..][..body].copy_from_slice(rest);
        axpy(dpositions, T::ONE, rest);
        axpy(dclass, T::ONE, head);
        axpy(dclass_position, T::ONE, head);
    }
}

/// y (crops, C) = row 0 of every crop of x (rows, C).
pub fn gather_class<T: Real>(y: &mut [T], x: &[T], n: Ragged, cols: usize) {
    for (i, (first, _)) in n.each().enumerate() {
        y[i * cols..][..cols].copy_from_slice(&x[first * cols..][..cols]);
    }
}

/// Row 0 of every crop of dx (rows, C) += dy (crops, C).
pub fn scatter_class_acc<T: Real>(dx_acc: &mut [T], dy: &[T], n: Ragged, cols: usize) {
    for (i, (first, _)) in n.each().enumerate() {
        axpy(&mut dx_acc[first * cols..][..cols], T::ONE, &dy[i * cols..][..cols]);
    }
}

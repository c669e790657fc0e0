//! What a residual network is made of: convolutions, batch norms, pools. Their golden tensors are images, not rows of channels:
//! `golden_resnet` compares them.

use super::super::build::crops;
use crate::cases::{Build, Calls, Row};
use dino_kernel::backend::{Affine, BatchNorm, Conv, MaxPool, NormStats, Op, Running, Window};
use dino_kernel::mem::Act;
use dino_kernel::ops::batchnorm::EPS;

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "convolution",
        ops: &[Op::convolve, Op::convolve_backward],
        small: CONV_SMALL,
        edges: CONV_EDGES,
        timed: &[128, 128, 3, 1, 1, 8, 28, 28],
        workspace: 256,
        golden: None,
        build: |b, sizes| convolution(b, sizes, false),
    },
    Row {
        name: "convolution of a stream",
        ops: &[Op::convolve, Op::convolve_backward_acc, Op::convolve_backward_params],
        small: CONV_SMALL,
        edges: CONV_EDGES,
        timed: &[256, 64, 1, 1, 0, 8, 56, 56],
        workspace: 256,
        golden: None,
        build: |b, sizes| convolution(b, sizes, true),
    },
    Row {
        name: "batch norm",
        ops: &[Op::batch_statistics, Op::batch_normalize, Op::batch_normalize_backward],
        small: &[&[6, 2, 3, 0, 12, 2, 3, 12, 1, 2], &[5, 5, 2, 0, 5, 3, 3]],
        edges: &[
            &[6, 2, 3, 1, 12, 2, 3, 12, 1, 2],
            &[4, 4, 300, 1, 8, 9, 9, 4, 3, 3],
            &[3, 1, 70, 0, 6, 40, 41],
            &[8, 8, 40, 1, 40, 1, 1],
        ],
        timed: &[4, 4, 256, 1, 8, 56, 56, 32, 24, 24],
        workspace: 256,
        golden: None,
        build: batch_norm,
    },
    Row {
        name: "running statistics",
        ops: &[Op::running_statistics],
        small: &[],
        edges: &[&[1], &[300]],
        timed: &[2048],
        workspace: 256,
        golden: None,
        build: running,
    },
    Row {
        name: "max pool",
        ops: &[Op::max_pool, Op::max_pool_backward],
        small: &[],
        edges: &[&[2, 3, 2, 1, 2, 5, 4, 1, 1, 3], &[70, 3, 2, 1, 3, 20, 19], &[5, 2, 1, 0, 4, 6, 7]],
        timed: &[64, 3, 2, 1, 8, 112, 112],
        workspace: 256,
        golden: None,
        build: max_pool,
    },
    Row {
        name: "average pool",
        ops: &[Op::average_pool, Op::average_pool_backward],
        small: &[&[2, 2, 5, 4, 1, 1, 3]],
        edges: &[&[2, 2, 5, 4, 1, 1, 3], &[300, 9, 3, 3]],
        timed: &[2048, 40, 7, 7],
        workspace: 256,
        golden: None,
        build: average_pool,
    },
];

/// (inp, out, kernel, stride, padding, groups of maps).
const CONV_SMALL: &[&[usize]] = &[
    &[3, 4, 1, 1, 0, 2, 3, 4],
    &[3, 4, 1, 2, 0, 2, 5, 4, 1, 1, 3],
    &[2, 3, 3, 1, 1, 2, 5, 4, 1, 3, 2],
    &[2, 3, 3, 2, 1, 2, 5, 4, 1, 1, 2],
    &[2, 2, 5, 3, 2, 1, 6, 7],
    &[1, 2, 7, 2, 3, 1, 7, 6],
];

/// More pixels than a tile of the CPU, rows longer than one, filters of several blocks, more parts than one; 3 x 3 by sixteen channels,
/// wider than the CPU sums at once.
const CONV_EDGES: &[&[usize]] = &[
    &[3, 5, 7, 2, 3, 3, 20, 21, 2, 1, 500],
    &[70, 33, 3, 1, 1, 2, 14, 15],
    &[300, 20, 3, 2, 1, 3, 9, 8, 1, 17, 11],
    &[40, 300, 1, 2, 0, 4, 9, 9],
    &[17, 18, 5, 3, 2, 1, 30, 30],
    &[19, 35, 1, 1, 0, 2, 23, 17],
    &[1050, 20, 1, 1, 0, 2, 3, 4],
    &[32, 80, 3, 1, 1, 2, 9, 8],
    &[16, 48, 3, 1, 1, 1, 3, 280, 2, 5, 6],
];

fn convolution(b: &mut Build, sizes: &[usize], stream: bool) -> Calls {
    let (maps, window) = (crops(&sizes[5..]), Window { kernel: sizes[2], stride: sizes[3], padding: sizes[4] });
    let n = Conv { maps, window, inp: sizes[0], out: sizes[1] };
    let (read, written) = (maps.pixels() * n.inp, n.output().pixels() * n.out);
    let (x, y) = (b.input("x", read), b.output("y", written));
    let dx = if stream { b.sum("dx", read) } else { b.output("dx", read) };
    let (dy, w) = (b.result(y), b.weight("w", n.filter() * n.out, 1.0 / (n.filter() as f64).sqrt()));
    b.parameters([w]);
    // The data's convolution has a weight of its own.
    let alone = b.weight("alone", w.len(), 1.0);
    if stream {
        b.acc(x, dx)
    } else {
        b.set(x, dx)
    }
    Calls::forward(n.filter().max(n.output().pixels()), move |o| o.convolve(y, x, w, n)).backward(move |o| {
        if stream {
            o.convolve_backward_acc(dx, dy, x, w, n);
            o.convolve_backward_params(dy, x, alone, n);
        } else {
            o.convolve_backward(dx, dy, x, w, n);
        }
    })
}

/// (images, images of a group, columns, whether a residual is added and a ReLU follows, groups of maps).
fn batch_norm(b: &mut Build, sizes: &[usize]) -> Calls {
    let (rows, cols, whole) = (crops(&sizes[4..]).maps(), sizes[2], sizes[3] == 1);
    let n = BatchNorm { rows, images: sizes[0], group: sizes[1], shards: 1, cols, eps: EPS, relu: whole };
    let len = rows.rows() * cols;
    let (x, y, dx) = (b.input_around("x", len, 1.0, 3.0), b.output("y", len), b.output("dx", len));
    let residual = if whole { b.input("residual", len) } else { Act::EMPTY };
    let stats = b.norm_stats(n.groups() * cols);
    let running = Running { mean: b.state(&vec![0.5; cols]), var: b.state(&vec![1.5; cols]) };
    let (dy, w) = (b.result(y), Affine { w: b.weight("w", cols, 1.0), b: b.weight("b", cols, 0.3) });
    b.parameters([w.w, w.b]);
    b.set(x, dx);
    Calls::forward(rows.rows(), move |o| {
        o.batch_statistics(stats, running, x, n);
        o.batch_normalize(y, x, residual, stats, w, n);
    })
    .backward(move |o| o.batch_normalize_backward(dx, dy, x, if whole { y } else { Act::EMPTY }, stats, w, n))
}

/// (columns).
fn running(b: &mut Build, sizes: &[usize]) -> Calls {
    let cols = sizes[0];
    let running = Running { mean: b.state(&vec![0.5; cols]), var: b.state(&vec![1.5; cols]) };
    let stats: NormStats = b.norm_stats(cols);
    Calls::forward(1, move |o| o.running_statistics(stats, running, EPS))
}

/// (columns, kernel, stride, padding, groups of maps). Its gradient has kinks: `resnet` takes smaller steps.
fn max_pool(b: &mut Build, sizes: &[usize]) -> Calls {
    let (maps, window) = (crops(&sizes[4..]), Window { kernel: sizes[1], stride: sizes[2], padding: sizes[3] });
    let n = MaxPool { maps, window, cols: sizes[0] };
    let (x, y) = (b.input("x", maps.pixels() * n.cols), b.output("y", window.over(maps).pixels() * n.cols));
    let (dy, dx) = (b.result(y), b.output("dx", x.len()));
    Calls::forward(window.kernel * window.kernel, move |o| o.max_pool(y, x, n))
        .backward(move |o| o.max_pool_backward(dx, dy, x, n))
}

/// (columns, groups of maps).
fn average_pool(b: &mut Build, sizes: &[usize]) -> Calls {
    let (rows, cols) = (crops(&sizes[1..]).maps(), sizes[0]);
    let (x, y) = (b.input("x", rows.rows() * cols), b.output("y", rows.crops() * cols));
    let (dy, dx) = (b.result(y), b.output("dx", x.len()));
    b.set(x, dx);
    Calls::forward(rows.longest(), move |o| o.average_pool(y, x, rows, cols))
        .backward(move |o| o.average_pool_backward(dx, dy, rows, cols))
}

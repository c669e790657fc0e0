//! Norms of rows: layer norm, l2 norm, weight norm.

use crate::cases::{Build, Calls, Golden, Row, Shapes};
use dino_kernel::backend::{LayerNorm, Mat, Op, Prototypes, Rows};
use dino_kernel::ops::layernorm::EPS;

/// What is added to the variance. Others than the published one show that it is not a constant.
const EPSILONS: [f64; 4] = [EPS, 0.3, 1e-12, 0.02];

/// (rows, columns, index of an epsilon).
const EDGES: &[&[usize]] = &[&[1, 5, 0], &[7, 39, 1], &[3, 128, 2], &[131, 132, 0], &[300, 262, 3]];

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "layer norm",
        ops: &[Op::layernorm, Op::layernorm_backward],
        // One width below a lane, one above and not a multiple.
        small: &[&[4, 5, 0], &[4, 37, 0]],
        edges: EDGES,
        timed: &[1576, 384, 0],
        workspace: 256,
        golden: Some(Golden {
            file: "ops_basic",
            prefix: "layernorm",
            sizes: rows_and_zero,
            backward: true,
            skip: &[],
        }),
        build: layernorm,
    },
    Row {
        name: "addition and layer norm",
        ops: &[Op::add_layernorm, Op::layernorm_backward],
        small: &[&[3, 18, 0]],
        edges: EDGES,
        timed: &[1576, 384, 0],
        workspace: 256,
        golden: None,
        build: add_layernorm,
    },
    Row {
        name: "l2 norm",
        ops: &[Op::l2_normalize, Op::l2_normalize_backward],
        small: &[&[4, 7, 0]],
        // Rows whose squares overflow, vanish or are below the floor; and nothing at all.
        edges: &[
            &[5, 37, 0],
            &[3, 128, 0],
            &[5, 37, 1],
            &[3, 128, 1],
            &[5, 37, 2],
            &[3, 128, 2],
            &[5, 37, 3],
            &[3, 128, 3],
            &[5, 37, 4],
            &[3, 128, 4],
            &[5, 37, 5],
            &[3, 128, 5],
            &[5, 37, 6],
            &[3, 128, 6],
        ],
        timed: &[40, 256, 0],
        workspace: 256,
        golden: Some(Golden { file: "ops_basic", prefix: "l2norm", sizes: rows_and_zero, backward: true, skip: &[] }),
        build: l2_normalize,
    },
    Row {
        name: "logits and weight norm",
        ops: &[Op::prototype_scale, Op::logits, Op::weight_norm_backward],
        small: &[],
        edges: &[
            &[13, 37, 700, 0],
            &[4, 128, 5, 0],
            &[13, 37, 700, 1],
            &[4, 128, 5, 1],
            &[13, 37, 700, 2],
            &[4, 128, 5, 2],
        ],
        timed: &[40, 256, 4096, 1],
        workspace: 12,
        golden: None,
        build: logits,
    },
];

fn rows_and_zero(shape: &Shapes) -> Vec<usize> {
    let x = shape("x");
    let (cols, rows) = x.split_last().expect("a matrix");
    vec![rows.iter().product(), *cols, 0]
}

fn layernorm(b: &mut Build, sizes: &[usize]) -> Calls {
    let (n, eps) = (Rows { rows: sizes[0], cols: sizes[1] }, EPSILONS[sizes[2]]);
    let len = n.rows * n.cols;
    // Far from zero, so that the mean matters.
    let (x, y, dx) = (b.input_around("x", len, 1.0, 3.0), b.output("y", len), b.sum("dx", len));
    let (stats, dy) = (b.norm_stats(n.rows), b.result(y));
    let w = affine(b, n.cols);
    b.acc(x, dx);
    Calls::forward(len.min(1000), move |o| o.layernorm(y, stats, x, w, LayerNorm { rows: n.rows, cols: n.cols, eps }))
        .backward(move |o| o.layernorm_backward(dx, dy, x, stats, w, n))
}

/// The sum's gradient is that of both operands.
fn add_layernorm(b: &mut Build, sizes: &[usize]) -> Calls {
    let (n, eps) = (Rows { rows: sizes[0], cols: sizes[1] }, EPSILONS[sizes[2]]);
    let len = n.rows * n.cols;
    let (x, branch) = (b.input_around("x", len, 1.0, 3.0), b.input("branch", len));
    let (y, sum, dx) = (b.output("y", len), b.output("sum", len), b.sum("dx", len));
    let (stats, dy) = (b.norm_stats(n.rows), b.result(y));
    let w = affine(b, n.cols);
    b.acc(x, dx);
    b.acc(branch, dx);
    let norm = LayerNorm { rows: n.rows, cols: n.cols, eps };
    Calls::forward(len.min(1000), move |o| o.add_layernorm(y, sum, stats, x, branch, w, norm))
        .backward(move |o| o.layernorm_backward(dx, dy, sum, stats, w, n))
}

/// Gain and bias of a norm over the columns.
fn affine(b: &mut Build, cols: usize) -> dino_kernel::backend::Affine {
    let w = dino_kernel::backend::Affine { w: b.weight("w", cols, 1.0), b: b.weight("b", cols, 0.3) };
    b.parameters([w.w, w.b]);
    w
}

/// (rows, columns, index of a scale).
fn l2_normalize(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Rows { rows: sizes[0], cols: sizes[1] };
    let (len, scale) = (n.rows * n.cols, [1.0, 1e25, 1e-5, 1e-13, 1e-30, 1e-39, 0.0][sizes[2]]);
    let x = b.input_around("x", len, scale, 0.0);
    let (y, dx, norm) = (b.output("y", len), b.output("dx", len), b.stat(n.rows));
    let dy = b.result(y);
    b.set(x, dx);
    Calls::forward(n.cols, move |o| o.l2_normalize(y, norm, x, n))
        .backward(move |o| o.l2_normalize_backward(dx, dy, y, norm, n))
}

/// (rows, bottleneck, prototypes, whether gains are trained: 2 without weight normalization). The backward op turns whatever gradient is there into that of directions
/// and gains: `gradients` and `golden_ops` check it together with what makes that gradient.
fn logits(b: &mut Build, sizes: &[usize]) -> Calls {
    let (n, train_gain) = (Mat { rows: sizes[0], inp: sizes[1], out: sizes[2] }, sizes[3] == 1);
    let (z, y) = (b.input("z", n.rows * n.inp), b.output("y", n.rows * n.out));
    let (gains, v) = (if sizes[3] == 2 { 0 } else { n.out }, b.weight("v", n.out * n.inp, 1.0));
    let g = b.weight("g", gains, 1.0);
    let (p, shape) = (Prototypes { v, scale: b.stat(n.out) }, Rows { rows: n.out, cols: n.inp });
    let calls = Calls::forward(n.inp, move |o| {
        o.prototype_scale(p.scale, v, g, shape);
        o.logits(y, z, p, n);
    });
    if gains == 0 {
        return calls;
    }
    calls.backward(move |o| o.weight_norm_backward(p, g, train_gain, shape))
}

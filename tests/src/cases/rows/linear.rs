//! Linear layers, GELU and ReLU.

use crate::cases::{Build, Calls, Golden, Row, Shapes};
use dino_kernel::backend::{Mat, Op};

/// (rows, inp, out). Anything; rows on 16 bytes; several steps and a tail; sums over rows that are split, the last split shorter.
const EDGES: &[&[usize]] =
    &[&[1, 1, 1], &[70, 37, 45], &[66, 72, 96], &[130, 200, 56], &[3, 33, 131], &[1100, 24, 40], &[1037, 19, 33]];

fn sizes(shape: &Shapes) -> Vec<usize> {
    let (x, w) = (shape("x"), shape("w"));
    vec![x[..x.len() - 1].iter().product(), w[1], w[0]]
}

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "linear",
        ops: &[Op::linear, Op::linear_backward],
        small: &[&[5, 19, 3]],
        edges: EDGES,
        timed: &[1576, 384, 1536],
        workspace: 256,
        golden: Some(Golden { file: "ops_basic", prefix: "linear", sizes, backward: true, skip: &[] }),
        build: linear,
    },
    Row {
        name: "linear, parameters alone",
        ops: &[Op::linear_backward_params],
        small: &[&[5, 19, 3]],
        edges: EDGES,
        timed: &[1576, 768, 384],
        workspace: 256,
        golden: Some(Golden { file: "ops_basic", prefix: "linear", sizes, backward: true, skip: &[] }),
        build: linear_params,
    },
    Row {
        name: "linear and GELU",
        ops: &[Op::linear_gelu, Op::gelu_backward],
        small: &[&[4, 6, 5]],
        edges: EDGES,
        timed: &[1576, 384, 1536],
        workspace: 256,
        golden: Some(Golden { file: "ops_basic", prefix: "linear", sizes, backward: false, skip: &[] }),
        build: linear_gelu,
    },
    Row {
        name: "GELU",
        ops: &[Op::gelu, Op::gelu_backward],
        small: &[&[41, 0]],
        edges: super::residual::LENGTHS,
        timed: &[1576 * 1536, 0],
        workspace: 256,
        golden: Some(Golden {
            file: "ops_basic",
            prefix: "gelu",
            sizes: |shape| vec![shape("x").iter().product(), 0],
            backward: true,
            skip: &[],
        }),
        build: gelu,
    },
    Row {
        name: "ReLU",
        ops: &[Op::relu, Op::relu_backward],
        small: &[&[41, 0]],
        edges: super::residual::LENGTHS,
        timed: &[1576 * 1536, 0],
        workspace: 256,
        golden: None,
        build: relu,
    },
];

fn linear(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Mat { rows: sizes[0], inp: sizes[1], out: sizes[2] };
    let (x, dx) = (b.input("x", n.rows * n.inp), b.output("dx", n.rows * n.inp));
    let (y, w) = (b.output("y", n.rows * n.out), b.affine(n.out, n.inp));
    let dy = b.result(y);
    b.set(x, dx);
    b.parameters([w.w, w.b]);
    Calls::forward(n.rows.max(n.inp).max(n.out), move |o| o.linear(y, x, w, n))
        .backward(move |o| o.linear_backward(dx, dy, x, w, n))
}

/// The form for inputs that are data.
fn linear_params(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Mat { rows: sizes[0], inp: sizes[1], out: sizes[2] };
    let (x, y, w) = (b.input("x", n.rows * n.inp), b.output("y", n.rows * n.out), b.affine(n.out, n.inp));
    let dy = b.result(y);
    b.parameters([w.w, w.b]);
    Calls::forward(n.rows.max(n.inp).max(n.out), move |o| o.linear(y, x, w, n))
        .backward(move |o| o.linear_backward_params(dy, x, w, n))
}

/// The fused form. The golden output is its first half's.
fn linear_gelu(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Mat { rows: sizes[0], inp: sizes[1], out: sizes[2] };
    let (x, dx) = (b.input("x", n.rows * n.inp), b.output("dx of the fused form", n.rows * n.inp));
    let (before, y) = (b.output("y", n.rows * n.out), b.output("GELU", n.rows * n.out));
    let (d_before, w) = (b.output("dy before GELU", n.rows * n.out), b.affine(n.out, n.inp));
    let dy = b.result(y);
    b.set(x, dx);
    b.parameters([w.w, w.b]);
    Calls::forward(n.rows.max(n.inp).max(n.out), move |o| o.linear_gelu(y, before, x, w, n)).backward(move |o| {
        o.gelu_backward(d_before, dy, before);
        o.linear_backward(dx, d_before, x, w, n);
    })
}

/// (elements, and how many before the first: 1 begins in the middle of a packed load).
fn gelu(b: &mut Build, sizes: &[usize]) -> Calls {
    let (len, from) = (sizes[0], sizes[1]);
    let x = b.input_around("x", len + from, 2.0, 0.0).part(from, len);
    let (y, dx) = (b.output("y", len + from).part(from, len), b.output("dx", len + from).part(from, len));
    let dy = b.result(y);
    b.set(x, dx);
    Calls::forward(1, move |o| o.gelu(y, x)).backward(move |o| o.gelu_backward(dx, dy, x))
}

/// As [`gelu`].
fn relu(b: &mut Build, sizes: &[usize]) -> Calls {
    let (len, from) = (sizes[0], sizes[1]);
    let x = b.input_around("x", len + from, 2.0, 0.0).part(from, len);
    let (y, dx) = (b.output("y", len + from).part(from, len), b.output("dx", len + from).part(from, len));
    let dy = b.result(y);
    b.set(x, dx);
    Calls::forward(1, move |o| o.relu(y, x)).backward(move |o| o.relu_backward(dx, dy, x))
}

//! Attention: all rows, the class rows alone, and its probabilities.

use crate::cases::{Build, Calls, Row, build};
use dino_kernel::backend::{Attention, ClassQkv, Heads, Op};

/// (heads, columns of a head, then crops and their tokens).
const EDGES: &[&[usize]] = &[
    &[2, 24, 2, 17, 1, 130, 1, 64],
    &[2, 32, 1, 1, 1, 197],
    &[2, 40, 2, 5, 1, 150],
    &[2, 64, 1, 129],
    &[2, 72, 2, 17, 1, 102],
    &[1, 96, 1, 65],
    &[2, 104, 2, 17, 1, 102],
    &[1, 128, 1, 65],
    // Heads that tensor cores do not take.
    &[2, 37, 2, 3, 1, 70],
    &[1, 200, 1, 34],
];

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "attention",
        ops: &[Op::attention, Op::attention_backward],
        small: &[&[2, 3, 2, 7, 1, 2, 3, 5]],
        edges: EDGES,
        timed: &[6, 64, 8, 197],
        workspace: 256,
        golden: None,
        build: attention,
    },
    Row {
        name: "attention, little workspace",
        ops: &[Op::attention, Op::attention_backward],
        small: &[],
        // More rows than their sums have memory for.
        edges: &[&[3, 8, 90, 23]],
        timed: &[6, 64, 32, 37],
        workspace: 12,
        golden: None,
        build: attention,
    },
    Row {
        name: "attention probabilities",
        ops: &[Op::attention, Op::attention_rows],
        small: &[],
        edges: EDGES,
        timed: &[6, 64, 8, 197],
        workspace: 256,
        golden: None,
        build: attention_rows,
    },
    Row {
        name: "class attention",
        ops: &[Op::attention_class, Op::attention_class_backward],
        small: &[&[2, 3, 2, 7, 1, 2, 3, 5]],
        edges: &[&[2, 37, 2, 3, 3, 70], &[3, 8, 5, 33, 1, 1]],
        timed: &[6, 64, 8, 197],
        workspace: 256,
        golden: None,
        build: class_attention,
    },
];

fn heads(sizes: &[usize]) -> Heads {
    Heads { heads: sizes[0], head_dim: sizes[1], crops: build::ragged(&sizes[2..]) }
}

fn attention(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = heads(sizes);
    let (rows, c) = (n.crops.rows(), n.cols());
    let (qkv, dqkv) = (b.input("qkv", rows * 3 * c), b.output("dqkv", rows * 3 * c));
    let out = Attention { y: b.output("y", rows * c), lse: b.stat(rows * n.heads) };
    let dy = b.result(out.y);
    b.set(qkv, dqkv);
    Calls::forward(rows.max(c), move |o| o.attention(out, qkv, n))
        .backward(move |o| o.attention_backward(dqkv, dy, out, qkv, n))
}

/// The first three rows of every crop, or all where it has fewer.
fn attention_rows(b: &mut Build, sizes: &[usize]) -> Calls {
    let (n, queries) = (heads(sizes), 3);
    let (rows, c) = (n.crops.rows(), n.cols());
    let maps: usize = n.crops.each().map(|(_, tokens)| n.heads * queries.min(tokens) * tokens).sum();
    let (qkv, y) = (b.input("qkv", rows * 3 * c), b.output("probabilities", maps));
    let out = Attention { y: b.output("y", rows * c), lse: b.stat(rows * n.heads) };
    Calls::forward(rows.max(c), move |o| {
        o.attention(out, qkv, n);
        o.attention_rows(y, out.lse, qkv, queries, n);
    })
}

fn class_attention(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = heads(sizes);
    let (rows, crops, c) = (n.crops.rows(), n.crops.crops(), n.cols());
    let x = ClassQkv { q: b.input("q", crops * c), kv: b.input("kv", rows * 2 * c) };
    let dx = ClassQkv { q: b.output("dq", crops * c), kv: b.output("dkv", rows * 2 * c) };
    let out = Attention { y: b.output("y", crops * c), lse: b.stat(crops * n.heads) };
    let dy = b.result(out.y);
    b.set(x.q, dx.q);
    b.set(x.kv, dx.kv);
    Calls::forward(rows, move |o| o.attention_class(out, x, n))
        .backward(move |o| o.attention_class_backward(dx, dy, out, x, n))
}

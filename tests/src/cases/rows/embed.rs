//! Patches, tokens and positions.

use crate::cases::{Build, Calls, Golden, Row, build};
use dino_kernel::backend::{Embed, Grid, Mat, Op, Patches};
use dino_kernel::ops::position::{self, Interpolation};

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "patch embedding",
        ops: &[Op::patchify, Op::linear, Op::linear_backward_params],
        small: &[&[2, 2, 5, 2, 4, 5]],
        // Images that patches do not fill, of two sizes.
        edges: &[&[3, 3, 27, 2, 7, 11, 3, 3, 7]],
        timed: &[3, 16, 384, 8, 224, 224],
        workspace: 256,
        golden: Some(Golden {
            file: "ops_basic",
            prefix: "patch_embed",
            sizes: |shape| {
                let (x, w) = (shape("x"), shape("w"));
                vec![x[1], w[2], w[0], x[0], x[2], x[3]]
            },
            backward: true,
            skip: &[("dx", "pixels are data: the patch embedding has no gradient towards them")],
        }),
        build: patch_embed,
    },
    Row {
        name: "positions",
        ops: &[Op::resize_positions, Op::resize_positions_backward],
        small: &[&[4, 4, 3, 5, 4, 0]],
        // Taps of any value, many of them zero, as most are in truth.
        edges: &[&[3, 4, 5, 2, 37, 1], &[4, 4, 3, 5, 4, 0]],
        timed: &[14, 14, 6, 6, 384, 0],
        workspace: 256,
        golden: None,
        build: positions,
    },
    Row {
        name: "tokens",
        ops: &[Op::embed, Op::embed_backward],
        small: &[&[2, 15, 4]],
        edges: &[&[3, 7, 37]],
        timed: &[8, 196, 384],
        workspace: 256,
        golden: None,
        build: embed,
    },
];

/// (channels, patch, width, then images, their height and their width).
fn patch_embed(b: &mut Build, sizes: &[usize]) -> Calls {
    let &[channels, patch, out, ref groups @ ..] = sizes else { panic!("sizes of a patch embedding: {sizes:?}") };
    let crops = build::crops(groups);
    let n = Mat { rows: crops.patches(patch), inp: channels * patch * patch, out };
    let (x, patches) = (b.input("x", channels * crops.pixels()), b.output("patches", n.rows * n.inp));
    let (y, w) = (b.output("y", n.rows * out), b.affine(out, n.inp));
    let dy = b.result(y);
    b.parameters([w.w, w.b]);
    Calls::forward(n.rows.max(n.inp), move |o| {
        o.patchify(patches, x, Patches { crops, patch, channels });
        o.linear(y, patches, w, n);
    })
    .backward(move |o| o.linear_backward_params(dy, patches, w, n))
}

/// (rows and columns of the table, rows and columns after it, width, whether the taps are random).
fn positions(b: &mut Build, sizes: &[usize]) -> Calls {
    let &[h, w, rows, columns, cols, random] = sizes else { panic!("sizes of positions: {sizes:?}") };
    let n = Grid { from: [h, w], to: [rows, columns], cols };
    let taps = |seed: usize, from: usize, to: usize| {
        let mut taps = vec![0.0; to * from];
        if random == 1 {
            let drawn = crate::cases::numbers(seed, taps.len(), 1.0).into_iter().enumerate();
            taps = drawn.map(|(i, x)| if i % 3 == 1 { 0.0 } else { x }).collect();
        } else {
            position::matrix(&mut taps, from, to, Some(Interpolation::Published));
        }
        taps
    };
    let (down, across) = (b.state(&taps(1, h, rows)), b.state(&taps(2, w, columns)));
    let (table, y) = (b.weight("pos", h * w * cols, 1.0), b.output("y", rows * columns * cols));
    let dy = b.result(y);
    b.parameters([table]);
    Calls::forward(20, move |o| o.resize_positions(y, table, down, across, n))
        .backward(move |o| o.resize_positions_backward(dy, table, down, across, n))
}

/// (crops, patches of each, width). The positions' gradient is the sum over crops.
fn embed(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Embed { crops: sizes[0], patches: sizes[1], cols: sizes[2] };
    let (body, all) = (n.crops * n.patches * n.cols, n.crops * (1 + n.patches) * n.cols);
    let (patches, positions) = (b.input("patches", body), b.input("positions", n.patches * n.cols));
    let (class, own) = (b.weight("class", n.cols, 1.0), b.weight("class position", n.cols, 1.0));
    let (d_patches, d_positions) = (b.output("dpatches", body), b.output("dpositions", n.patches * n.cols));
    let y = b.output("y", all);
    let dy = b.result(y);
    b.set(patches, d_patches);
    b.set(positions, d_positions);
    b.parameters([class, own]);
    Calls::forward(n.crops, move |o| o.embed(y, patches, class, own, positions, n))
        .backward(move |o| o.embed_backward(d_patches, d_positions, dy, class, own, n))
}

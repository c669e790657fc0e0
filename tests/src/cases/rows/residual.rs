//! Residual additions, class rows, sums over rows.

use crate::cases::{Build, Calls, Golden, Row, build};
use dino_kernel::backend::{Op, Rows};

/// (elements, and how many before the first: 1 begins in the middle of a packed load).
pub(super) const LENGTHS: &[&[usize]] =
    &[&[1, 0], &[7, 0], &[1024, 0], &[1030, 0], &[1, 1], &[7, 1], &[1024, 1], &[1030, 1]];

/// Crops of more tokens than a warp has lanes, and of fewer.
const CLASS_ROWS: &[usize] = &[37, 2, 11, 3, 5];

pub(super) const ROWS: &[Row] = &[
    Row {
        name: "addition",
        ops: &[Op::add],
        small: &[],
        edges: LENGTHS,
        timed: &[1576 * 384, 0],
        workspace: 256,
        golden: None,
        build: add,
    },
    Row {
        name: "addition under stochastic depth",
        ops: &[Op::add_scaled, Op::scale_crops],
        small: &[&[3, 2, 7, 1, 2, 3, 5]],
        // Crops that start in the middle of a packed load; and one that ends an element before a packed load does.
        edges: &[&[37, 2, 11, 3, 5], &[39, 1, 5]],
        timed: &[384, 8, 197],
        workspace: 256,
        golden: Some(Golden {
            file: "ops_basic",
            prefix: "drop_path",
            sizes: |shape| {
                let x = shape("x");
                vec![x[2], x[0], x[1]]
            },
            backward: true,
            skip: &[("dx", "the residual's own gradient is its upstream gradient, which no op touches")],
        }),
        build: add_scaled,
    },
    Row {
        name: "class rows",
        ops: &[Op::gather_class, Op::scatter_class_acc],
        small: &[&[3, 2, 7, 1, 2, 3, 5]],
        edges: &[CLASS_ROWS],
        timed: &[384, 8, 197],
        workspace: 256,
        golden: None,
        build: class_rows,
    },
    Row {
        name: "sums over rows",
        ops: &[Op::sum_rows, Op::sum_stat, Op::clear],
        small: &[],
        edges: &[&[1, 1], &[5, 300], &[37, 9]],
        timed: &[1576, 384],
        workspace: 256,
        golden: None,
        build: sums,
    },
];

fn add(b: &mut Build, sizes: &[usize]) -> Calls {
    let (len, from) = (sizes[0], sizes[1]);
    let [x, branch] = ["x", "branch"].map(|name| b.input(name, len + from).part(from, len));
    let y = b.output("y", len + from).part(from, len);
    Calls::forward(1, move |o| o.add(y, x, branch))
}

/// (columns, then crops and their rows). A third of the crops is dropped.
fn add_scaled(b: &mut Build, sizes: &[usize]) -> Calls {
    let (cols, n) = (sizes[0], build::ragged(&sizes[1..]));
    let len = n.rows() * cols;
    let (x, branch) = (b.input("x", len), b.input("branch", len));
    let (y, d_branch) = (b.output("y", len), b.output("dbranch", len));
    let scales: Vec<f64> = match (b.setting("keep_mask"), b.setting("keep")) {
        (Some(mask), Some(keep)) => mask.iter().map(|m| m / keep[0]).collect(),
        _ => (0..n.crops()).map(|i| [2.0, 0.0, 1.5, 0.75][i % 4]).collect(),
    };
    let (scale, dy) = (b.state(&scales), b.result(y));
    b.set(branch, d_branch);
    b.set(x, dy); // the stream's gradient is the upstream gradient itself
    Calls::forward(1, move |o| o.add_scaled(y, x, branch, scale, n, cols))
        .backward(move |o| o.scale_crops(d_branch, dy, scale, n, cols))
}

fn class_rows(b: &mut Build, sizes: &[usize]) -> Calls {
    let (cols, n) = (sizes[0], build::ragged(&sizes[1..]));
    let (x, y) = (b.input("x", n.rows() * cols), b.output("y", n.crops() * cols));
    let (dx, dy) = (b.sum("dx", n.rows() * cols), b.result(y));
    b.acc(x, dx);
    Calls::forward(1, move |o| o.gather_class(y, x, n, cols)).backward(move |o| o.scatter_class_acc(dx, dy, n, cols))
}

fn sums(b: &mut Build, sizes: &[usize]) -> Calls {
    let n = Rows { rows: sizes[0], cols: sizes[1] };
    let (x, y) = (b.input("x", n.rows * n.cols), b.output("y", n.rows * n.cols));
    let stat = b.stats(&crate::cases::numbers(2, n.rows * n.cols, 1.0));
    let (sum, total) = (b.state(&crate::cases::numbers(3, n.cols, 1.0)), b.state(&[0.5]));
    Calls::forward(n.rows * n.cols, move |o| {
        o.sum_rows(sum, x, n);
        o.sum_stat(total, stat);
        o.clear(y);
    })
}

//! The loss: teacher rows and student rows against the prototypes.

use crate::cases::{Build, Calls, Row, numbers};
use crate::training::{OBJECTIVE, OPTIMIZER, hyper_numbers};
use dino_kernel::backend::{LossDims, LossSpans, Op, Prototypes, StudentRows, TargetRows};
use dino_kernel::objective::Divergence;
use dino_kernel::step::Hyper;

/// Temperatures of teacher and student: mild ones, and such that rows are one-hot but for the last digits.
const TEMPERATURES: [[f64; 2]; 2] = [[0.2, 0.3], [0.001, 0.005]];

/// (images, first view, views, teachers, bottleneck, prototypes, index of the temperatures, whether all prototypes are one).
const EDGES: &[&[usize]] = &[
    &[3, 0, 4, 2, 21, 1000, 0, 0],
    &[3, 1, 2, 2, 20, 65, 0, 0],
    &[3, 0, 4, 2, 21, 1000, 1, 0],
    &[3, 1, 2, 2, 20, 65, 1, 0],
    &[3, 0, 4, 2, 21, 1000, 0, 1],
    &[3, 1, 2, 2, 20, 65, 0, 1],
];

/// The loss op gives value and gradient at once, so `gradients` differentiates it by itself, and `golden_loss_optim` has its tensors.
pub(super) const ROWS: &[Row] = &[
    Row {
        name: "loss",
        ops: &[Op::teacher_lse, Op::dino_loss],
        small: &[],
        edges: EDGES,
        timed: &[4, 0, 10, 2, 256, 65536, 0, 0],
        workspace: 12,
        golden: None,
        build: |b, sizes| loss(b, sizes, Divergence::CrossEntropy),
    },
    Row {
        name: "mean squared error",
        ops: &[Op::mse_loss],
        small: &[],
        edges: EDGES,
        timed: &[4, 0, 10, 2, 256, 65536, 0, 0],
        workspace: 12,
        golden: None,
        build: |b, sizes| loss(b, sizes, Divergence::SquaredError),
    },
    Row {
        name: "log-sum-exp of columns",
        ops: &[Op::column_lse, Op::copy],
        small: &[],
        edges: &[&[6, 6, 21, 1000, 0, 1], &[37, 6, 21, 301, 0, 1], &[37, 6, 21, 301, 1, 1], &[3, 6, 20, 5, 1, 0]],
        timed: &[128, 8, 256, 65536, 0, 1],
        workspace: 12,
        golden: None,
        build: column_lse,
    },
];

/// Sizes: teacher rows, rows of a micro-batch, bottleneck, prototypes, index of the temperatures, whether rows have a log-sum-exp.
fn column_lse(b: &mut Build, sizes: &[usize]) -> Calls {
    let &[rows, block, bottleneck, prototypes, temperatures, with_lse] = sizes else {
        panic!("sizes of a log-sum-exp of columns: {sizes:?}");
    };
    let n = LossDims { images: rows, first_view: 0, views: 4, teachers: 1, bottleneck, prototypes };
    let unit = 1.0 / (bottleneck as f64).sqrt();
    let z = b.input_around("z", rows * bottleneck, unit, 0.0);
    let copy = b.output("copy", z.len());
    let scale: Vec<f64> = numbers(4, prototypes, 0.2).iter().map(|x| 1.0 + x).collect();
    let p = Prototypes { v: b.weight("teacher", prototypes * bottleneck, unit), scale: b.stats(&scale) };
    let lse = b.stats(&numbers(5, with_lse * 2 * rows, 1.0));
    let offset = b.state(&vec![0.0; prototypes]);
    let [teacher_temp, student_temp] = TEMPERATURES[temperatures];
    let h = Hyper { teacher_temp, student_temp, ..hyper_numbers() };
    let hyper = b.state(&h.derive(OPTIMIZER, OBJECTIVE, n.images, n.views, n.teachers));
    Calls::forward(prototypes.max(rows), move |o| {
        o.column_lse(offset, z, lse, p, hyper, n, block);
        o.copy(copy, z);
    })
}

/// With `ties` all prototypes are one, and all logits of a row are its largest.
fn loss(b: &mut Build, sizes: &[usize], divergence: Divergence) -> Calls {
    let &[images, first_view, views, teachers, bottleneck, prototypes, temperatures, ties] = sizes else {
        panic!("sizes of a loss: {sizes:?}");
    };
    let n = LossDims { images, first_view, views, teachers, bottleneck, prototypes };
    let ([teacher_temp, student_temp], ties) = (TEMPERATURES[temperatures], ties == 1);
    let (c, k, rows, rows_teacher) = (n.bottleneck, n.prototypes, n.rows(), n.teachers * n.images);
    let (unit, spread) = (1.0 / (c as f64).sqrt(), if ties { 0.0 } else { 1.0 });
    let (z, zt) = (b.input_around("z", rows * c, unit, 0.0), b.input_around("teacher", rows_teacher * c, unit, 0.0));
    let mut side = |name: &str, seed: usize| {
        let scale: Vec<f64> = numbers(seed, k, 0.2 * spread).iter().map(|x| 1.0 + x).collect();
        let v = if ties { b.same_rows(k, &numbers(seed + 1, c, unit)) } else { b.weight(name, k * c, unit) };
        Prototypes { v, scale: b.stats(&scale) }
    };
    let (student, teacher) = (side("student", 4), side("teacher", 6));
    let out = LossSpans { loss: b.stat(rows), lse: b.stat(2 * rows), dz: b.output("dz", rows * c) };
    let offset = b.state(&numbers(3, k, 0.1 * spread));
    let targets = TargetRows { z: zt, lse: b.stat(2 * rows_teacher), prototypes: teacher, offset };
    let h = Hyper { teacher_temp, student_temp, ..hyper_numbers() };
    let hyper = b.state(&h.derive(OPTIMIZER, OBJECTIVE, n.images, n.first_view + n.views, n.teachers));
    let entropy = b.stat(rows_teacher);
    let calls = Calls::forward(k, move |o| {
        o.teacher_lse(entropy, targets, hyper, n);
        let student = StudentRows { z, prototypes: student };
        match divergence {
            Divergence::CrossEntropy => o.dino_loss(out, student, targets, hyper, n),
            Divergence::SquaredError => o.mse_loss(out, student, targets, hyper, n),
        }
    });
    Calls { slack: 2.0 * f64::from(f32::EPSILON) / teacher_temp.min(student_temp), ..calls }
}

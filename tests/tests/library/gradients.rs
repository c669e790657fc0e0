//! Every backward op, and the full model, against finite differences in f64 (a stencil of four points: its own error falls with
//! the fourth power of the step).

use dino_kernel::backend::reference::Train;
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Act, Pool, Span};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::{self, Interpolation};
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::hyper;
use dino_kernel::step::Hyper;
use tests::backend::{Arena, Place, Reference, make_poisoned, read, read_grad, read_span, write, write_grad};
use tests::cases::{Case, TABLE, Wrt};
use tests::plans::ordinary;
use tests::training::{OBJECTIVE, OPTIMIZER, Run, hyper_numbers, normals, random_views};

type Backend = Train<'static, f64>;

/// d value / dx by (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h, for every element of a span.
fn differences(
    o: &mut Backend,
    pool: Pool,
    span: Span,
    step: f64,
    value: &mut dyn FnMut(&mut Backend) -> f64,
) -> Vec<f64> {
    let x = read_span(o, pool, span);
    let mut slopes = Vec::with_capacity(x.len());
    for (i, &x) in x.iter().enumerate() {
        let mut f = |by: f64| {
            o.write(pool, span.at + i, &[x + by * step]);
            value(o)
        };
        slopes.push((8.0 * (f(1.0) - f(-1.0)) - (f(2.0) - f(-2.0))) / (12.0 * step));
        o.write(pool, span.at + i, &[x]);
    }
    slopes
}

/// |got - want| / |want| as vectors.
fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

/// Holds `backward` to the differences of the sum of `dy` times what `forward` leaves at `y`.
fn check(
    name: &str,
    a: Arena,
    [y, dy]: [Act; 2],
    wrt: &[Wrt],
    forward: impl Fn(&mut Backend),
    backward: impl Fn(&mut Backend),
) {
    let weights = normals(99, dy.len());
    let mut o = a.build::<Reference<f64>>();
    write(&mut o, dy, &weights);
    let mut value = |o: &mut Backend| {
        forward(o);
        read(o, y).iter().zip(&weights).map(|(y, w)| y * w).sum()
    };
    check_value(name, &mut o, wrt, &mut value, backward);
}

fn check_value(
    name: &str,
    o: &mut Backend,
    wrt: &[Wrt],
    value: &mut dyn FnMut(&mut Backend) -> f64,
    backward: impl Fn(&mut Backend),
) {
    value(o);
    // What accumulates starts at something: what is set starts as NaN.
    o.grads.fill(0.25);
    for x in wrt {
        if let Wrt::Acc(_, dx) = *x {
            write(o, dx, &vec![0.5; dx.len()]);
        }
    }
    backward(o);
    let less = |x: Vec<f64>, by: f64| x.into_iter().map(|x| x - by).collect::<Vec<_>>();
    let found: Vec<_> = wrt
        .iter()
        .map(|x| match *x {
            Wrt::Set(x, dx) => (Pool::Acts, x.span(), read(o, dx)),
            Wrt::Acc(x, dx) => (Pool::Acts, x.span(), less(read(o, dx), 0.5)),
            Wrt::Parameter(w) => (Pool::Weights, w.span(), less(read_grad(o, w), 0.25)),
        })
        .collect();
    for (i, (pool, span, got)) in found.into_iter().enumerate() {
        let want = differences(o, pool, span, 1e-3, value);
        let error = relative(&got, &want);
        println!("{name}, operand {i}: relative error {error:.1e}");
        assert!(error <= 1e-8, "{name}, operand {i}: relative error {error:.3e}, allowed 1e-8");
    }
}

/// Every row of the table whose backward op has a gradient.
#[test]
fn every_row() {
    for row in TABLE.iter().flat_map(|rows| rows.iter()) {
        for sizes in row.small {
            let Case { arena, result, wrt, calls, .. } = row.random(sizes);
            let (result, backward) = (result.expect("an output"), calls.backward.expect("a backward op"));
            check(&format!("{} {sizes:?}", row.name), arena, result, &wrt, |o| (calls.forward)(o), |o| backward(o));
        }
    }
}

/// Positions that are resized, and tokens made of them.
#[test]
fn embed_with_resized_positions() {
    let (side, [r, c], cols, crops) = (4, [3, 5], 4, 2);
    let (grid, n) = (Grid { from: [side; 2], to: [r, c], cols }, Embed { crops, patches: r * c, cols });
    let mut matrices = [vec![0.0; r * side], vec![0.0; c * side]];
    position::matrix(&mut matrices[0], side, r, Some(Interpolation::Published));
    position::matrix(&mut matrices[1], side, c, Some(Interpolation::Published));
    let (body, all) = (crops * r * c * cols, crops * (1 + r * c) * cols);
    let mut a = Arena::new();
    let (patches, dpatches) = (a.input(&normals(1, body)), a.act(body));
    let (positions, dpositions) = (a.act(r * c * cols), a.act(r * c * cols));
    let (y, dy) = (a.act(all), a.act(all));
    let (class, table) = (a.weight(&normals(2, cols)), a.weight(&normals(3, (1 + side * side) * cols)));
    let (own, rest) = (table.part(0, cols), table.part(cols, side * side * cols));
    let (rows, columns) = (a.state(&matrices[0]), a.state(&matrices[1]));
    let wrt = [Wrt::Set(patches, dpatches), Wrt::Parameter(class), Wrt::Parameter(table)];
    let forward = |o: &mut Backend| {
        o.resize_positions(positions, rest, rows, columns, grid);
        o.embed(y, patches, class, own, positions, n);
    };
    check("embed", a, [y, dy], &wrt, forward, |o| {
        o.embed_backward(dpatches, dpositions, dy, class, own, n);
        o.resize_positions_backward(dpositions, rest, rows, columns, grid);
    });
}

/// The loss and its gradient come from one op; the weight norm's backward makes the raw gradient those of v and g.
#[test]
fn loss_and_weight_norm() {
    for divergence in [Divergence::CrossEntropy, Divergence::SquaredError] {
        loss_and_weight_norm_by(divergence);
    }
}

fn loss_and_weight_norm_by(divergence: Divergence) {
    let n = LossDims { images: 2, first_view: 0, views: 4, teachers: 2, bottleneck: 5, prototypes: 67 };
    let (c, k) = (n.bottleneck, n.prototypes);
    let h = hyper_numbers().derive(OPTIMIZER, OBJECTIVE, n.images, n.views, n.teachers);
    let mut a = Arena::new();
    let (z, dz) = (a.input(&normals(1, n.rows() * c)), a.act(n.rows() * c));
    let zt = a.input(&normals(2, n.images * n.teachers * c));
    let (v, g, vt) = (a.weight(&normals(3, k * c)), a.weight(&normals(4, k)), a.weight(&normals(5, k * c)));
    let (scale, scale_t) = (a.stat(k), a.stats(&normals(6, k)));
    let (loss, lse) = (a.stat(n.rows()), a.stat(2 * n.rows()));
    let (lse_t, entropy) = (a.stat(2 * n.images * n.teachers), a.stat(n.images * n.teachers));
    let (center, numbers) = (a.state(&normals(7, k)), a.state(&h));
    let (student, teacher) = (Prototypes { v, scale }, Prototypes { v: vt, scale: scale_t });
    let mut o = a.build::<Reference<f64>>();
    let say = |o: &mut Backend| {
        o.prototype_scale(scale, v, g, Rows { rows: k, cols: c });
        let targets = TargetRows { z: zt, lse: lse_t, prototypes: teacher, offset: center };
        o.teacher_lse(entropy, targets, numbers, n);
        let (out, student) = (LossSpans { loss, lse, dz }, StudentRows { z, prototypes: student });
        match divergence {
            Divergence::CrossEntropy => o.dino_loss(out, student, targets, numbers, n),
            Divergence::SquaredError => o.mse_loss(out, student, targets, numbers, n),
        }
    };
    let mut value = |o: &mut Backend| {
        say(o);
        read(o, loss).iter().sum::<f64>() * h[hyper::LOSS_SCALE]
    };
    // The raw gradient of v is projected at once, so it starts at zero; that of the gain accumulates.
    let wrt = [Wrt::Set(z, dz), Wrt::Parameter(g)];
    let project = |o: &mut Backend| o.weight_norm_backward(Prototypes { v, scale }, g, true, Rows { rows: k, cols: c });
    check_value("loss: rows and gain", &mut o, &wrt, &mut value, |o| {
        write_grad(o, v, &vec![0.0; k * c]);
        say(o);
        project(o);
    });
    write_grad(&mut o, v, &vec![0.0; k * c]);
    // Two passes accumulate twice the gradient.
    say(&mut o);
    say(&mut o);
    project(&mut o);
    let got: Vec<f64> = read_grad(&mut o, v).iter().map(|d| d / 2.0).collect();
    let error = relative(&got, &differences(&mut o, Pool::Weights, v.span(), 1e-3, &mut value));
    assert!(error <= 1e-8, "loss: prototypes: relative error {error:.3e}, allowed 1e-8");
}

/// The loss may be taken over some views at a time: student rows from `first_view` on.
#[test]
fn loss_by_groups_of_views() {
    let n = LossDims { images: 2, first_view: 0, views: 5, teachers: 2, bottleneck: 5, prototypes: 67 };
    let (c, k) = (n.bottleneck, n.prototypes);
    let mut a = Arena::new();
    let (z, dz) = (a.input(&normals(1, n.rows() * c)), a.act(n.rows() * c));
    let (zt, v) = (a.input(&normals(2, n.images * n.teachers * c)), a.weight(&normals(3, k * c)));
    let p = Prototypes { v, scale: a.stats(&normals(6, k)) };
    let teacher = Prototypes { v: a.weight(&normals(5, k * c)), scale: a.stats(&normals(4, k)) };
    let (loss, lse) = (a.stat(n.rows()), a.stat(2 * n.rows()));
    let (lse_t, entropy) = (a.stat(2 * n.images * n.teachers), a.stat(n.images * n.teachers));
    let center = a.state(&normals(7, k));
    let numbers = a.state(&hyper_numbers().derive(OPTIMIZER, OBJECTIVE, n.images, n.views, n.teachers));
    let mut o = a.build::<Reference<f64>>();
    let targets = TargetRows { z: zt, lse: lse_t, prototypes: teacher, offset: center };
    o.teacher_lse(entropy, targets, numbers, n);
    let mut pass = |groups: &[[usize; 2]]| {
        o.zero_grads();
        for &[first_view, views] in groups {
            let n = LossDims { first_view, views, ..n };
            let (row, rows) = (first_view * n.images, n.rows());
            let (loss, lse) = (loss.part(row, rows), lse.part(2 * row, 2 * rows));
            let (z, dz) = (z.part(row * c, rows * c), dz.part(row * c, rows * c));
            o.dino_loss(LossSpans { loss, lse, dz }, StudentRows { z, prototypes: p }, targets, numbers, n);
        }
        (read(&mut o, loss), read(&mut o, dz), read_grad(&mut o, v))
    };
    let whole = pass(&[[0, 5]]);
    for groups in [vec![[0, 2], [2, 3]], vec![[0, 1], [1, 1], [2, 1], [3, 1], [4, 1]]] {
        let parts = pass(&groups);
        assert_eq!((&parts.0, &parts.1), (&whole.0, &whole.1), "rows do not see each other");
        let error = relative(&parts.2, &whole.2);
        assert!(error <= 1e-15, "prototypes: relative difference {error:.3e}, allowed 1e-15");
    }
}

/// The loss with respect to every parameter, of the published objective and of one that needs the full batch (`plans` has the others,
/// along one direction): ragged groups that are not square, positions resized, stochastic depth, a trained gain,
/// two micro-batches.
#[test]
fn whole_model() {
    let backbone = Backbone::Vit(Vit {
        image: 6,
        patch: 2,
        channels: 2,
        dim: 6,
        depth: 3,
        heads: 2,
        mlp: 9,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 6, layers: 3, hidden: 7, bottleneck: 5, prototypes: 11, train_gain: true, ..Head::PUBLISHED };
    let group = |count, height, width| Group { count, height, width };
    let views = Crops::one(group(2, 6, 6)).with(group(1, 4, 7)).with(group(1, 2, 5));
    let whole = Objective { targets: Targets::SinkhornKnopp { iterations: 3 }, divergence: Divergence::SquaredError };
    for objective in [OBJECTIVE, whole] {
        let config = Config { drop_path: true, objective, ..ordinary(backbone, head, views, [4, 2]) };
        let worst = whole_model_of(config);
        println!("whole model, {objective:?}: worst relative error {worst:.1e}");
    }
}

/// Its largest relative error.
fn whole_model_of(config: Config) -> f64 {
    let plan = Plan::new(config).expect("a sound plan");
    let mut run = Run::random(plan, make_poisoned::<Reference<f64>>(plan.pools), 5);
    let pixels = random_views(&run.plan, 20);
    let h = Hyper { student_temp: 0.1, teacher_temp: 0.07, ..hyper_numbers() };

    run.accumulate(&h, &pixels);
    let dropped = read(&mut run.o, run.plan.drop);
    assert!(dropped.contains(&0.0) && dropped.iter().any(|&s| s > 1.0), "some branches are dropped: {dropped:?}");
    run.finish_grads();
    let found: Vec<_> = run.specs().into_iter().map(|spec| (spec, run.grad(&spec))).collect();
    let mut worst = 0.0f64;
    for (spec, got) in found {
        let want: Vec<f64> = (0..spec.at.len())
            .map(|i| {
                let x = read_span(&mut run.o, Pool::Weights, Span { at: spec.at.0.at + i, len: 1 })[0];
                let step = 3e-4;
                let mut f = |by: f64| {
                    run.o.write(Pool::Weights, spec.at.0.at + i, &[x + by * step]);
                    run.accumulate(&h, &pixels);
                    run.loss()
                };
                let slope = (8.0 * (f(1.0) - f(-1.0)) - (f(2.0) - f(-2.0))) / (12.0 * step);
                run.o.write(Pool::Weights, spec.at.0.at + i, &[x]);
                slope
            })
            .collect();
        if spec.name.to_string().ends_with("qkv.bias") {
            // The softmax does not see a shift of the keys: their bias has no gradient.
            let keys = spec.at.len() / 3..spec.at.len() / 3 * 2;
            for i in keys {
                assert!(got[i].abs() <= 1e-14 && want[i].abs() <= 1e-10, "{}: {} {}", spec.name, got[i], want[i]);
            }
        }
        let error = relative(&got, &want);
        worst = worst.max(error);
        assert!(error <= 1e-7, "{}: relative error {error:.3e}, allowed 1e-7", spec.name);
    }
    worst
}

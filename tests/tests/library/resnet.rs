//! Residual networks: gradients against finite differences in f64, splits of a batch that keep its groups, plans that are refused,
//! backends in lockstep, running statistics. (Golden tensors: `golden_resnet`.)

use dino_host::cpu::Cpu;
use dino_kernel::backend::reference::Train;
use dino_kernel::backend::wrap::{Checked, Lockstep};
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Act, Cursor, Pool, Span};
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Backbone, Head, Output, ResNet};
use dino_kernel::ops::batchnorm::EPS;
use dino_kernel::plan::{Config, FeaturePlan, Plan, PlanError, Sharding};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use proptest::prelude::*;
use tests::backend::{Arena, Factory, Place, Reference, make_poisoned, read, read_grad, read_span, write};
use tests::for_backends;
use tests::gpu::{OnGpu, f32_bound};
use tests::plans::{cases, ordinary, resnet_configs};
use tests::training::{Run, hyper_numbers, normals, random_views};

type F64 = Train<'static, f64>;

fn group(count: usize, height: usize, width: usize) -> Group {
    Group { count, height, width }
}

fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

// ------------------------------------------------------------------------------------------------------- gradients of ops

/// d value / dx by a stencil of four points, for every element at a place.
fn differences<P: Place>(o: &mut F64, place: P, h: f64, value: &mut dyn FnMut(&mut F64) -> f64) -> Vec<f64> {
    let x = read(o, place);
    let mut slope = |i: usize| {
        let mut f = |by: f64| {
            o.write(P::POOL, place.span().at + i, &[x[i] + by * h]);
            value(o)
        };
        let slope = (8.0 * (f(1.0) - f(-1.0)) - (f(2.0) - f(-2.0))) / (12.0 * h);
        o.write(P::POOL, place.span().at + i, &[x[i]]);
        slope
    };
    (0..x.len()).map(&mut slope).collect()
}

fn weighted(o: &mut F64, y: Act, by: &[f64]) -> f64 {
    read(o, y).iter().zip(by).map(|(y, w)| y * w).sum()
}

fn near(what: &str, got: &[f64], want: &[f64]) {
    let error = relative(got, want);
    assert!(error <= 1e-8, "{what}: relative error {error:.3e}, allowed 1e-8");
}

/// Two sizes of crops, two views of each, three groups of two images.
fn norm(relu: bool) -> BatchNorm {
    let rows = Crops::one(group(12, 2, 3)).with(group(12, 1, 2)).maps();
    BatchNorm { rows, images: 6, group: 2, shards: 1, cols: 3, eps: EPS, relu }
}

#[test]
fn batch_norm() {
    let n = norm(false);
    let len = n.rows.rows() * n.cols;
    let mut a = Arena::new();
    let (x, residual) = (a.input(&normals(1, len)), a.input(&normals(2, len)));
    let (w, b) = (a.weight(&normals(3, 3)), a.weight(&normals(4, 3)));
    let ([y, dx], by) = ([(); 2].map(|()| a.act(len)), normals(5, len));
    let (dy, masked) = (a.input(&by), a.act(len));
    let stats = NormStats { mean: a.stat(n.groups() * 3), rstd: a.stat(n.groups() * 3) };
    let running = Running { mean: a.state(&[0.0; 3]), var: a.state(&[1.0; 3]) };
    let mut o = a.build::<Reference<f64>>();
    let affine = Affine { w, b };
    let mut value = |o: &mut F64| {
        o.batch_statistics(stats, running, x, n);
        o.batch_normalize(y, x, residual, stats, affine, n);
        weighted(o, y, &by)
    };
    let want = differences(&mut o, x, 1e-3, &mut value);
    let [want_w, want_b] = [w, b].map(|p| differences(&mut o, p, 1e-3, &mut value));
    value(&mut o);
    o.batch_normalize_backward(dx, dy, x, Act::EMPTY, stats, affine, n);
    near("x", &read(&mut o, dx), &want);
    near("gain", &read_grad(&mut o, w), &want_w);
    near("bias", &read_grad(&mut o, b), &want_b);
    assert_eq!(read(&mut o, dy), by, "without a ReLU the residual's gradient is dy");
    // With a ReLU it is the same of the gradient where y is positive.
    let plain = read(&mut o, y);
    let positive: Vec<f64> = plain.iter().zip(&by).map(|(&y, &d)| if y > 0.0 { d } else { 0.0 }).collect();
    o.grads.fill(0.0);
    write(&mut o, masked, &positive);
    o.batch_normalize_backward(dx, masked, x, Act::EMPTY, stats, affine, n);
    let want = (read(&mut o, dx), read_grad(&mut o, w), read_grad(&mut o, b));
    o.grads.fill(0.0);
    o.batch_normalize(y, x, residual, stats, affine, norm(true));
    assert!(read(&mut o, y).iter().zip(&plain).all(|(&y, &x)| y == x.max(0.0)));
    o.batch_normalize_backward(dx, dy, x, y, stats, affine, norm(true));
    assert_eq!((read(&mut o, dx), read_grad(&mut o, w), read_grad(&mut o, b)), want);
    assert_eq!(read(&mut o, dy), positive);
}

/// Rows of a group are those of its images in every view of one size: each group's columns have mean 0 and variance 1.
#[test]
fn groups_are_of_images() {
    let n = norm(false);
    let of_row: Vec<(usize, usize)> = n
        .rows
        .groups()
        .iter()
        .enumerate()
        .flat_map(|(size, &[crops, rows])| (0..crops * rows).map(move |row| (size, row / rows % 6 / 2)))
        .collect();
    for i in 0..n.groups() {
        let rows: Vec<usize> = n.segments(i).flatten().collect();
        let want = (i % 2, i / 2);
        let all: Vec<usize> = (0..of_row.len()).filter(|&row| of_row[row] == want).collect();
        assert_eq!((rows, n.group_rows(i)), (all.clone(), all.len()));
    }
    let cut: usize = (0..n.groups()).flat_map(|i| n.segments(i)).map(|rows| rows.len().div_ceil(n.block())).sum();
    assert_eq!(n.blocks(), cut);
}

#[test]
fn pools() {
    let maps = Crops::one(group(2, 5, 4)).with(group(1, 1, 3));
    let n = MaxPool { maps, window: Window { kernel: 3, stride: 2, padding: 1 }, cols: 2 };
    let (read_len, written) = (maps.pixels() * 2, n.window.over(maps).pixels() * 2);
    let mut a = Arena::new();
    let (x, y, dx, by) = (a.input(&normals(1, read_len)), a.act(written), a.act(read_len), normals(2, written));
    let (dy, mean, by_mean) = (a.input(&by), a.act(6), normals(3, 6));
    let (dmean, dx_mean) = (a.input(&by_mean), a.act(read_len));
    let mut o = a.build::<Reference<f64>>();
    let want = differences(&mut o, x, 1e-6, &mut |o| {
        o.max_pool(y, x, n);
        weighted(o, y, &by)
    });
    o.max_pool_backward(dx, dy, x, n);
    near("max pool", &read(&mut o, dx), &want);
    let want = differences(&mut o, x, 1e-3, &mut |o| {
        o.average_pool(mean, x, maps.maps(), 2);
        weighted(o, mean, &by_mean)
    });
    o.average_pool_backward(dx_mean, dmean, maps.maps(), 2);
    near("average pool", &read(&mut o, dx_mean), &want);
}

// --------------------------------------------------------------------------------------------------- the CPU's convolutions

/// Shapes at which the CPU's tiles, parts and phases change: more pixels than a tile, rows longer than one, filters of several blocks.
#[test]
fn convolutions_of_the_cpu_agree_on_any_number_of_threads() {
    let cases = [
        (Crops::one(group(3, 20, 21)).with(group(2, 1, 500)), 3, 5, 7, 2),
        (Crops::one(group(2, 14, 15)), 70, 33, 3, 1),
        (Crops::one(group(5, 9, 8)).with(group(1, 27, 31)), 300, 20, 3, 2),
        (Crops::one(group(4, 9, 9)), 40, 300, 1, 2),
        (Crops::one(group(1, 30, 30)), 17, 18, 5, 3),
        (Crops::one(group(2, 23, 17)), 19, 35, 1, 1),
    ];
    for (maps, inp, out, kernel, stride) in cases {
        let n = Conv { maps, window: Window { kernel, stride, padding: kernel / 2 }, inp, out };
        let run = |o: &mut dyn FnMut(Conv) -> Vec<Vec<f64>>| o(n);
        let reference = run(&mut convolve::<Reference<f32>>);
        let exact = run(&mut convolve::<Reference<f64>>);
        let mut first = None;
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            let found = pool.install(|| run(&mut convolve::<Cpu>));
            for ((found, exact), reference) in found.iter().zip(&exact).zip(&reference) {
                let (error, usual) = (relative(found, exact), relative(reference, exact));
                assert!(error <= 4.0 * usual + 1e-6, "{n:?}: relative error {error:.1e}, of the reference {usual:.1e}");
            }
            assert!(*first.get_or_insert_with(|| found.clone()) == found, "{n:?} on {threads} threads");
        }
    }
}

/// y, dx, dx accumulated, dw.
fn convolve<F: Factory>(n: Conv) -> Vec<Vec<f64>> {
    let mut a = Arena::new();
    let rounded = |seed, len| normals(seed, len).into_iter().map(|x| f64::from(x as f32)).collect::<Vec<_>>();
    let (read_len, written) = (n.maps.pixels() * n.inp, n.output().pixels() * n.out);
    let (x, dy, w) =
        (a.input(&rounded(1, read_len)), a.input(&rounded(2, written)), a.weight(&rounded(3, n.filter() * n.out)));
    let (y, dx, acc) = (a.act(written), a.act(read_len), a.input(&rounded(4, read_len)));
    let mut o = a.build::<F>();
    o.convolve(y, x, w, n);
    o.convolve_backward(dx, dy, x, w, n);
    o.convolve_backward_acc(acc, dy, x, w, n);
    vec![read(&mut o, y), read(&mut o, dx), read(&mut o, acc), read_grad(&mut o, w)]
}

// ------------------------------------------------------------------------------------------------------------- whole models

fn head(resnet: ResNet, batch_norm: bool) -> Head {
    Head {
        inp: resnet.dim(),
        layers: 3,
        hidden: 7,
        bottleneck: 5,
        prototypes: 11,
        train_gain: true,
        batch_norm,
        ..Head::PUBLISHED
    }
}

/// Both kinds of blocks and stems, shortcuts of all kinds.
fn small_networks() -> [ResNet; 3] {
    let stage = |width, blocks, stride| Stage { width, blocks, stride };
    let small = ResNet::new(9, 2, Stem::small(4), Block::Basic);
    let stem = Stem { width: 3, kernel: 5, stride: 2, pool: true };
    let pooled = ResNet::new(9, 2, stem, Block::Bottleneck);
    [
        small.with(stage(4, 2, 1)).with(stage(5, 1, 2)),
        pooled.with(stage(2, 2, 1)).with(stage(3, 1, 2)),
        ResNet::new(9, 2, Stem::small(8), Block::Bottleneck).with(stage(2, 2, 1)).with(stage(2, 1, 2)),
    ]
}

/// The loss along a random direction of every parameter: the gradient predicts it. (A ReLU has kinks, and so has a max pool: a step short
/// enough meets none.)
#[test]
fn whole_model() {
    for (i, resnet) in small_networks().into_iter().enumerate() {
        for (recompute, batch_norm) in [(true, false), (false, true)] {
            let views = Crops::one(group(2, 9, 8)).with(group(2, 6, 5));
            let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, batch_norm), views, [6, 6]);
            let plan = Plan::new(Config { recompute, bn_group: Some(3), ..ordinary }).expect("a sound plan");
            let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), 5 + i as u64);
            let (pixels, h) = (random_views(&plan, 20), hyper_numbers());
            run.accumulate(&h, &pixels);
            run.finish_grads();
            let found: Vec<_> = run.specs().into_iter().map(|spec| (spec, run.grad(&spec))).collect();
            run.check_slopes(&h, &pixels, &found, [1e-4, 1e-5, 1e-6], [1e-7, 1e-9]);
            step::commit(&mut run.o, &plan);
            assert_eq!(run.o.violation, None);
        }
    }
}

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu] [
    any_split_that_keeps_groups, computing_again_changes_no_bit, a_step_that_is_not_finite_moves_nothing,
]);
for_backends!([gpu: OnGpu<false, 256>] [computing_again_changes_no_bit, a_step_that_is_not_finite_moves_nothing]);

/// Loss, gradients, running statistics, all named.
fn split<F: Factory>(config: Config) -> Vec<(String, Vec<f64>)> {
    let plan = Plan::new(config).expect("a sound plan");
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 3);
    let views = random_views(&run.plan, 9);
    run.accumulate(&Hyper { clip_grad: 0.0, ..hyper_numbers() }, &views);
    let mut found = vec![("loss".to_string(), vec![run.loss()])];
    step::commit(&mut run.o, &run.plan);
    found.extend(run.specs().iter().map(|spec| (spec.name.to_string(), run.grad(spec))));
    for (name, at) in [("student", plan.student.running), ("teacher", plan.teacher.running)] {
        found.push((name.to_string(), read(&mut run.o, at)));
    }
    found
}

fn any_split_that_keeps_groups<F: Factory>(who: &str) {
    let double = read(&mut probe::<F>(), Act(Span { at: 0, len: 1 }))[0] != f64::from(0.1f32);
    // A weight in front of a batch norm has no gradient along itself, so what is left of the sums is smaller than their terms.
    let allowed = if double { 1e-13 } else { 1e-5 };
    for resnet in small_networks() {
        let views = Crops::one(group(2, 12, 11)).with(group(3, 8, 8));
        let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, false), views, [12, 12]);
        let whole = Config { bn_group: Some(3), ..ordinary };
        let once = split::<F>(whole);
        for (micro_batch, stream_crops) in [(12, true), (6, false), (6, true), (3, false), (3, true)] {
            let parts = split::<F>(Config { micro_batch, stream_crops, ..whole });
            for ((name, want), (_, got)) in once.iter().zip(&parts) {
                // Crops in turns move the running statistics in another order.
                let allowed = if stream_crops && (name == "student" || name == "teacher") { 1.0 } else { allowed };
                let error = relative(got, want);
                assert!(
                    error <= allowed,
                    "{who}: micro-batch {micro_batch}, in turns {stream_crops}: {name}: {error:.1e}"
                );
            }
        }
        // Other groups are another computation.
        let other = split::<F>(Config { bn_group: Some(6), ..whole });
        assert!(relative(&other[1].1, &once[1].1) > 1e-3);
    }
}

/// A backend that holds 0.1 as it can.
fn probe<F: Factory>() -> F::Backend {
    let mut a = Arena::new();
    a.input(&[0.1]);
    a.build::<F>()
}

fn computing_again_changes_no_bit<F: Factory>(who: &str) {
    for resnet in small_networks() {
        let views = Crops::one(group(2, 9, 8)).with(group(2, 6, 5));
        let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, true), views, [4, 4]);
        let [kept, again] = [false, true].map(|recompute| split::<F>(Config { recompute, ..ordinary }));
        assert!(kept == again, "{who}");
        let [kept, again] = [false, true].map(|recompute| Plan::new(Config { recompute, ..ordinary }).unwrap().pools);
        assert!(again.acts < kept.acts, "{who}: {} elements of activations, not fewer than {}", again.acts, kept.acts);
    }
}

/// The running statistics of a step that is not taken are those before it.
fn a_step_that_is_not_finite_moves_nothing<F: Factory>(who: &str) {
    let [resnet, ..] = small_networks();
    let views = Crops::one(group(2, 9, 8));
    let plan = Plan::new(ordinary(Backbone::ResNet(resnet), head(resnet, true), views, [4, 4])).expect("a sound plan");
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 1);
    let (h, good) = (hyper_numbers(), random_views(&plan, 2));
    let mut bad = good.clone();
    bad[0].pixels[7] = f64::NAN;
    let nets = [plan.student.running, plan.teacher.running];
    run.step(&h, &good);
    let before = nets.map(|at| read(&mut run.o, at));
    assert!(before[0] != before[1], "{who}: each network has its own");
    run.step(&h, &bad);
    assert_eq!(run.monitor(monitor::FINITE), 0.0, "{who}");
    assert!(nets.map(|at| read(&mut run.o, at)) == before, "{who}");
    run.o.write(Pool::State, plan.monitor.0.at + monitor::HALTED, &[0.0]);
    run.step(&Hyper { momentum: 0.0, ..h }, &good);
    let [student, teacher] = nets.map(|at| read(&mut run.o, at));
    assert!(student != before[0] && student == teacher, "{who}: a teacher that copies takes the student's");
}

// ------------------------------------------------------------------------------------------------------------------- plans

#[test]
fn micro_batches_that_cut_groups_are_refused() {
    let [resnet, ..] = small_networks();
    let plan = |batch, micro_batch, bn_group, batch_norm, stream_crops| {
        let views = Crops::one(group(2, 9, 8)).with(group(2, 6, 5));
        let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, batch_norm), views, [batch, micro_batch]);
        Plan::new(Config { bn_group, stream_crops, ..ordinary }).map(|plan| plan.passes().count())
    };
    assert_eq!((plan(24, 24, None, true, false), plan(24, 6, Some(6), true, false)), (Ok(1), Ok(1)));
    assert_eq!((plan(24, 24, None, false, true), plan(24, 6, Some(3), false, true)), (Ok(2), Ok(2)), "a pass a size");
    assert_eq!(plan(24, 24, None, true, true), Err(PlanError::StreamedHead));
    let cut = plan(24, 6, None, false, false).unwrap_err();
    assert_eq!(cut, PlanError::BatchGroup { batch: 24, micro_batch: 6, group: 24 });
    assert_eq!(cut.to_string(), "micro-batches of 6 images would cut batch norm's groups of 24: these fit: 24");
    let cut = plan(24, 6, Some(4), false, false).unwrap_err();
    assert_eq!(
        cut.to_string(),
        "micro-batches of 6 images would cut batch norm's groups of 4: these fit: 4, 8, 12, 24"
    );
    let cut = plan(24, 8, Some(16), false, false).unwrap_err();
    assert_eq!(cut.to_string(), "a batch of 24 is not a multiple of batch norm's groups of 16 images");
    assert!(plan(24, 8, Some(0), false, false).is_err());
    // The last maps of a single view have one pixel.
    let tiny = |count, batch_norm| {
        let views = Crops::one(group(count, 2, 2)).with(group(2, 2, 1));
        let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, batch_norm), views, [2, 2]);
        Plan::new(Config { bn_group: Some(1), ..ordinary }).map(|_| ())
    };
    assert_eq!((tiny(1, false), tiny(2, false)), (Err(PlanError::OneValue { group: 1 }), Ok(())));
    // Shards that share statistics go through at once, those of one process side by side.
    let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, false), Crops::one(group(2, 9, 8)), [8, 2]);
    let lanes = |bn_group, micro_batch, shards, ranks| {
        let config = Config { bn_group, micro_batch, ..ordinary };
        Plan::sharded(config, Sharding { shards, ranks }).map(|plan| (plan.pools.lanes, plan.shares_statistics()))
    };
    assert_eq!([1, 2, 4].map(|ranks| lanes(None, 2, 4, ranks)), [Ok((4, true)), Ok((2, true)), Ok((1, true))]);
    assert_eq!([1, 2, 4].map(|ranks| lanes(Some(2), 2, 4, ranks)), [Ok((1, false)); 3]);
    assert_eq!((lanes(None, 8, 1, 1), lanes(Some(8), 4, 2, 2)), (Ok((1, false)), Ok((1, true))));
    let small = lanes(None, 2, 2, 1).unwrap_err();
    assert_eq!(small, PlanError::BatchShards { batch: 8, micro_batch: 2, shards: 2 });
    assert_eq!(small.to_string(), "batch norm over the full batch takes each of 2 shards at once: 4 images, not 2");
    for (bn_group, shards, ranks) in [(None, 1 << 62, 1), (None, 1 << 62, 1 << 62), (Some(1), 2, 2)] {
        let config = Config { bn_group, micro_batch: 1, batch: 1 << 62, ..ordinary };
        let large = Plan::sharded(config, Sharding { shards, ranks }).map(|_| ());
        assert_eq!(large, Err(PlanError::TooLarge), "{bn_group:?}, {shards} shards, {ranks} ranks");
    }
    assert_eq!(lanes(Some(4), 4, 4, 4), Err(PlanError::Shards { micro_batches: 2, shards: 4 }));
}

/// A plan that is accepted has room for everything, and no op meets an overlap; its pools are as large as needed.
#[test]
fn random_plans_are_sound() {
    proptest!(cases(60), |(config in resnet_configs(), seed in 0u64..1000)| {
        let plan = Plan::new(config).expect("a sound plan");
        let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), seed);
        run.step(&hyper_numbers(), &random_views(&plan, seed + 20));
        prop_assert_eq!(run.o.violation, None);
        prop_assert_eq!(run.monitor(monitor::FINITE), 1.0);
        for (pool, len) in [(Pool::Acts, plan.pools.acts), (Pool::Stats, plan.pools.stats)] {
            let content = read_span(&mut run.o, pool, Span { at: 0, len });
            let used = content.iter().rposition(|x| !x.is_nan()).map_or(0, |i| i + 1);
            prop_assert_eq!(used.next_multiple_of(Cursor::ALIGN), len, "{:?} is as large as needed", pool);
        }
        let mut elements = 0;
        plan.table.visit_buffers(|b| elements = b.at.0.at + b.at.len());
        prop_assert_eq!(elements.next_multiple_of(Cursor::ALIGN), plan.student.running.len());
    });
}

/// Features are those of the running statistics, in both forms.
#[test]
fn evaluation_goes_by_running_statistics() {
    for resnet in small_networks() {
        let crops = Crops::one(group(2, 9, 8)).with(group(1, 5, 7));
        let plans = [Output::Class, Output::Dense]
            .map(|output| FeaturePlan::new(Backbone::ResNet(resnet), crops, output, 0).expect("a sound plan"));
        let found = plans.map(|plan| {
            let mut o = Checked::new(make_poisoned::<Reference<f64>>(plan.pools));
            let mut state = vec![0.0f64; plan.pools.state];
            plan.initial_state(&mut state);
            o.write(Pool::State, 0, &state);
            let running = plan.network.running();
            assert_eq!(running.len(), plan.backbone.buffers_len());
            let drawn: Vec<f64> = normals(3, running.len()).iter().map(|x| 0.5 + x * x).collect();
            write(&mut o, running, &drawn);
            o.write(Pool::Weights, 0, &normals(1, plan.pools.weights));
            write(&mut o, plan.pixels, &normals(2, plan.pixels.len()));
            plan.forward(&mut o);
            assert_eq!(o.violation, None);
            assert_eq!(read(&mut o, running), drawn, "evaluation moves nothing");
            read(&mut o, plan.pass.y())
        });
        let (maps, c) = (resnet.last_maps(crops).maps(), resnet.dim());
        let mut averages = Vec::new();
        for (first, rows) in maps.each() {
            let column = |i: usize| found[1][first * c..][..rows * c].iter().skip(i).step_by(c).sum::<f64>();
            averages.extend((0..c).map(|i| column(i) / rows as f64));
        }
        assert!(relative(&found[0], &averages) < 1e-14);
    }
}

/// An element of what a convolution wrote is of the crop whose rows it is in, in spans of their own and in shared ones.
#[test]
fn elements_are_traced_to_their_crops() {
    for (resnet, recompute) in small_networks().into_iter().flat_map(|r| [(r, false), (r, true)]) {
        let views = Crops::one(group(2, 9, 8)).with(group(2, 6, 5));
        let ordinary = ordinary(Backbone::ResNet(resnet), head(resnet, false), views, [4, 4]);
        let plan = Plan::new(Config { recompute, ..ordinary }).expect("a sound plan");
        let window = Window { kernel: resnet.stem.kernel, stride: resnet.stem.stride, padding: resnet.stem.kernel / 2 };
        let check = |pass: Option<usize>, span: Span, maps: Crops| {
            let (rows, mut crop) = (maps.maps(), 0);
            let cols = span.len / rows.rows();
            for (first, count) in rows.each() {
                for row in [first, first + count - 1] {
                    let found = plan.locate(pass, span, row * cols + cols - 1);
                    assert_eq!(found, Some((crop / 4, crop % 4)), "{pass:?} {span:?}");
                }
                crop += 1;
            }
            assert_eq!(crop, maps.count());
        };
        let mut spans = Vec::new();
        plan.visit_spans(|pass, name, _, span| spans.push((pass, name.to_string(), span)));
        let span = |name: &str| spans.iter().find(|s| s.1 == name).unwrap_or_else(|| panic!("no {name}")).2;
        let (globals, all) = (plan.crops().part(0, 8), plan.crops());
        // The stem's convolution is cheap: with `recompute` it has no span of its own, but scratch behind the stem's stream.
        let first = window.over(all);
        let conv1 = if recompute {
            let stream = span(if resnet.stem.pool { "student.maxpool" } else { "student.bn1.y" });
            let at = (stream.at + stream.len).next_multiple_of(Cursor::ALIGN);
            Span { at, len: first.pixels() * resnet.stem.width }
        } else {
            span("student.conv1")
        };
        check(Some(0), conv1, first);
        let stem = window.over(globals);
        check(None, span("teacher.scratch").part(0, stem.pixels() * resnet.stem.width), stem);
        let last = resnet.last_maps(all);
        // The gradient of the last stream is at the end of its span.
        let (dx, len) = (span("gradient.dx.0"), last.pixels() * resnet.dim());
        check(Some(0), dx.part(dx.len - len.next_multiple_of(Cursor::ALIGN), len), last);
    }
}

// ---------------------------------------------------------------------------------------------------------------- lockstep

mod lockstep {
    use super::*;
    for_backends!([reference: Reference<f32>, cpu: Cpu] [agrees_with_the_reference_op_by_op]);
}

fn agrees_with_the_reference_op_by_op<F: Factory>(who: &str) {
    proptest!(cases(48), |(config in resnet_configs(), seed in 0..1u64 << 32)| {
        let plan = Plan::new(config).expect("a sound plan");
        let both = Lockstep::new(make_poisoned::<Reference<f32>>(plan.pools), make_poisoned::<F>(plan.pools));
        let mut run = Run::random(plan, both, seed);
        // A bias in front of a batch norm has no gradient, so its error is measured by the terms of the sum: by the loss's gradient.
        if config.head.batch_norm {
            let pairs = plan.teachers() * (plan.views() - 1) * config.batch;
            run.o.floor[Op::linear_backward as usize][Pool::Grads as usize] = (config.micro_batch as f64).sqrt() / (0.3 * pairs as f64);
        }
        run.step(&Hyper { teacher_temp: 0.2, student_temp: 0.3, ..hyper_numbers() }, &random_views(&plan, seed));
        // The longest sum: the pixels of a weight's gradient.
        let bound = f32_bound(plan.crops().pixels() as f64);
        let worst = run.o.worst().expect("ops were called");
        prop_assert!(worst.error <= bound, "{}: {:?} exceeds {:e} under {:?}", who, worst, bound, config);
        prop_assert_eq!(run.monitor(monitor::FINITE), 1.0);
    });
}

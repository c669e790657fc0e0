//! Backend against backend, single ops: every row of the table of op cases at the sizes where kernels change their ways (tails, splits,
//! strips, heads of any width, more chunks than threads), and what a row has no sizes for. The CPU is held to the reference, the GPU in
//! f32 and in bf16 to the CPU. Nothing but an op's own results may change, and no op reads past its operands.

use dino_gpu::Gpu;
use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::{Checked, Lockstep, Violation};
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Act, Pool, Span, Weight};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::batchnorm;
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{AdamW, Optimizer};
use dino_kernel::plan::{Config, Plan, Pools};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use tests::backend::{Arena, Factory, Reference, make_poisoned, read, read_span, write};
use tests::cases::{Call, Row, TABLE, numbers, ragged, row};
use tests::for_backends;
use tests::gpu::{OnGpu, bf16_bound, f32_bound, ready};
use tests::plans::{ordinary, smallest};
use tests::training::{OPTIMIZERS, Run, hyper_numbers, teacher_copies_and_keeps};

/// Two backends in lockstep.
type Pair<F> = Lockstep<<F as Both>::A, <F as Both>::B>;

/// Makes two backends that are to agree.
trait Both: Factory<Backend = Pair<Self>> {
    /// The one that is compared with.
    type A: Update + Memory;
    /// The one that is compared.
    type B: Update + Memory;
    /// Whether the second keeps activations in bf16.
    const BF16: bool = false;
    /// The same with a workspace of 12 KiB.
    type Small: Both;
}

/// The reference, and the CPU.
struct CpuBesideReference;

impl Factory for CpuBesideReference {
    type Backend = Lockstep<<Reference<f32> as Factory>::Backend, Cpu>;

    fn make(pools: Pools) -> Self::Backend {
        Lockstep::new(Reference::<f32>::make(pools), Cpu::make(pools))
    }
}

impl Both for CpuBesideReference {
    type A = <Reference<f32> as Factory>::Backend;
    type B = Cpu;
    type Small = CpuBesideReference;
}

/// The CPU, and the GPU.
struct GpuBesideCpu<const BF16: bool, const KIB: usize>;

impl<const BF16: bool, const KIB: usize> Factory for GpuBesideCpu<BF16, KIB> {
    type Backend = Lockstep<Cpu, Gpu>;

    fn ready(test: &str) -> bool {
        ready(test)
    }

    fn make(pools: Pools) -> Self::Backend {
        Lockstep::new(Cpu::make(pools), OnGpu::<BF16, KIB>::make(pools))
    }
}

impl<const BF16: bool, const KIB: usize> Both for GpuBesideCpu<BF16, KIB> {
    type A = Cpu;
    type B = Gpu;
    const BF16: bool = BF16;
    type Small = GpuBesideCpu<BF16, 12>;
}

for_backends!([cpu: CpuBesideReference, f32: GpuBesideCpu<false, 256>, bf16: GpuBesideCpu<true, 256>] [
    every_row,
    row_norms,
    repelling_heads,
    optimizer,
]);
for_backends!([gpu_f32: GpuBesideCpu<false, 256>, gpu_bf16: GpuBesideCpu<true, 256>] [
    teacher_rates,
    matmuls_see_the_new_weights,
    norms_over_lanes,
]);

/// What the op wrote is within its bounds, and everything else is unchanged. `k`: the longest sum; `slack`: allowed beyond it.
fn check<F: Both>(o: &mut Pair<F>, k: usize, slack: f64, what: &dyn std::fmt::Debug) {
    for m in o.worst.iter().flatten().flatten() {
        let bound = if F::BF16 { bf16_bound(m.op, m.access.pool, k as f64) } else { f32_bound(k as f64) } + slack;
        assert!(m.error <= bound, "{m:?} exceeds {bound:e}: {what:?}");
    }
    for pool in [Pool::Weights, Pool::Grads, Pool::Slots, Pool::Acts, Pool::Stats, Pool::State] {
        let len = o.len(pool);
        let all = Span { at: 0, len };
        let (a, b) = (read_span(&mut o.a, pool, all), read_span(&mut o.b, pool, all));
        let other = (0..len).find(|&i| a[i].to_bits() != b[i].to_bits() && !(a[i].is_nan() && b[i].is_nan()));
        assert!(other.is_none(), "{pool:?} {other:?} of {len} was touched, or settled differently: {what:?}");
    }
    o.worst = [[None; Pool::COUNT]; Op::ALL.len()];
}

/// What an arena holds, and random numbers in place of what nothing was written to: a NaN that is copied over a NaN would not show.
fn fill<O: Memory>(o: &mut O) {
    for pool in [Pool::Acts, Pool::Stats] {
        let len = o.len(pool);
        let mut all = read_span(o, pool, Span { at: 0, len });
        let other = numbers(99, len, 1.0);
        all.iter_mut().zip(other).filter(|(x, _)| x.is_nan()).for_each(|(x, y)| *x = y);
        o.write(pool, 0, &all);
    }
}

/// Gradients that something is to be added to.
fn random_grads<O: Memory>(o: &mut O, seed: usize) {
    let len = o.len(Pool::Grads);
    o.write(Pool::Grads, 0, &numbers(seed, len, 1.0));
}

/// A row at some sizes: both calls, or one of them.
fn agree<F: Both>(row: &Row, sizes: &[usize], [forward, backward]: [bool; 2]) {
    let mut case = row.random(sizes);
    case.arena.act(sizes.iter().copied().max().unwrap_or(0)); // memory that a row too many would write to
    let (mut o, calls) = case.place::<F>();
    fill(&mut o);
    random_grads(&mut o, 5);
    let mut o = Checked::new(o);
    let mut run = |call: &Call| {
        call(&mut o);
        check::<F>(&mut o.inner, calls.longest_sum, calls.slack, &(row.name, sizes));
    };
    if forward {
        run(&calls.forward);
    }
    if let Some(call) = calls.backward.as_ref().filter(|_| backward) {
        run(call);
    }
    // Numbers that are not finite are some of the cases' own.
    let wrong = o.violation.filter(|(what, ..)| !matches!(what, Violation::NonFinite(..)));
    assert!(wrong.is_none(), "{} {sizes:?}: {wrong:?}", row.name);
}

fn every_row<F: Both>(_: &str) {
    for row in TABLE.iter().flat_map(|rows| rows.iter()) {
        for sizes in row.edges {
            if row.workspace < 256 {
                agree::<F::Small>(row, sizes, [true; 2])
            } else {
                agree::<F>(row, sizes, [true; 2])
            }
        }
    }
}

/// Matrices of several tiles of 128, with four steps, whose copies are asynchronous. Columns: even and not on 16 bytes; on 16 bytes and
/// not a full warp's part; odd.
#[test]
fn large_matmuls_in_bf16() {
    if !ready("large_matmuls_in_bf16") {
        return;
    }
    let (many, deep, [even, packed, odd]) = (11 * 128 + 40, 104, [1406, 1432, 1405]);
    agree::<GpuBesideCpu<true, 256>>(row("linear"), &[many, deep, even], [true, false]);
    agree::<GpuBesideCpu<true, 256>>(row("linear"), &[many, packed, deep], [false, true]);
    agree::<GpuBesideCpu<true, 256>>(row("linear, parameters alone"), &[deep, odd, many], [false, true]);
}

/// Batch norms whose groups have rows in every one of several lanes, of one size of crops and of two; a number of lanes that is no power
/// of two, and one of more strips than a warp adds at once.
fn norms_over_lanes<F: Both>(_: &str) {
    for (lanes, images, cols, sizes) in
        [(3, 4, 40, &[8, 2, 3][..]), (2, 2, 7, &[4, 3, 3, 6, 1, 2]), (9, 6, 33, &[6, 9, 8])]
    {
        let groups = sizes.chunks(3).map(|g| Group { count: g[0], height: g[1], width: g[2] });
        let rows = groups.fold(Crops::EMPTY, Crops::with).maps();
        let n = BatchNorm { rows, images, group: images, shards: lanes, cols, eps: batchnorm::EPS, relu: true };
        let len = rows.rows() * cols;
        let mut a = Arena::new();
        let [x, y, dx, dy, residual] = [0; 5].map(|_| a.act(len));
        let stats = NormStats { mean: a.stat(n.groups() * cols), rstd: a.stat(n.groups() * cols) };
        let running = Running { mean: a.state(&vec![0.5; cols]), var: a.state(&vec![1.5; cols]) };
        let w = Affine { w: a.weight(&numbers(1, cols, 1.0)), b: a.weight(&numbers(2, cols, 0.3)) };
        let mut o = a.build_in_lanes::<F>(lanes);
        for lane in (0..lanes).rev() {
            o.enter(Lane(lane));
            fill(&mut o);
            random_grads(&mut o, 5 + lane);
            for (seed, at) in [x, dy, residual].into_iter().enumerate() {
                let values = numbers(10 * lane + seed, len, 1.0 + 0.2 * lane as f64);
                write(
                    &mut o,
                    at,
                    &values.iter().map(|v| f64::from(half::bf16::from_f64(v + lane as f64))).collect::<Vec<_>>(),
                );
            }
        }
        let longest = rows.rows() * lanes;
        let what = (lanes, images, cols, sizes);
        o.batch_statistics(stats, running, x, n);
        check::<F>(&mut o, longest, 0.0, &what);
        for lane in (0..lanes).rev() {
            o.enter(Lane(lane));
            o.batch_normalize(y, x, residual, stats, w, n);
        }
        o.batch_normalize_backward(dx, dy, x, y, stats, w, n);
        check::<F>(&mut o, longest, 1e-4, &what);
        // Every lane has its own rows' results, and all have the same statistics. (Those of the first have become the CPU's.)
        let bound = if F::BF16 { 4.0 / 256.0 } else { 1e-4 };
        o.enter(Lane(1));
        let second = read_span(&mut o.b, Pool::Stats, stats.mean.0);
        for lane in (0..lanes).rev() {
            o.enter(Lane(lane));
            assert!(lane == 0 || read_span(&mut o.b, Pool::Stats, stats.mean.0) == second, "{what:?}, lane {lane}");
            let spans =
                [(Pool::Acts, y.0), (Pool::Acts, dx.0), (Pool::Acts, dy.0), (Pool::Grads, w.w.0), (Pool::Grads, w.b.0)];
            for (pool, span) in spans {
                let (a, b) = (read_span(&mut o.a, pool, span), read_span(&mut o.b, pool, span));
                let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
                let error = norm(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / norm(&mut a.iter().copied());
                assert!(error <= bound, "{what:?}, lane {lane}, {pool:?} {span:?}: {error:e}");
            }
        }
    }
}

/// A row that is not a number, and one that is infinite, next to one that is neither.
fn row_norms<F: Both>(_: &str) {
    for bad in [f64::NAN, f64::INFINITY] {
        let (mut a, mut values, n) = (Arena::new(), numbers(1, 3 * 37, 1.0), Rows { rows: 3, cols: 37 });
        values[35] = bad;
        values[37 + 2] = bad;
        let (x, y, norm) = (a.input(&values), a.act(3 * 37), a.stat(3));
        let mut o = a.build::<F>();
        o.l2_normalize(y, norm, x, n);
        check::<F>(&mut o, 37, 0.0, &bad);
    }
}

/// Every score is so negative that the score 0 of what is past the last key would have an infinite probability.
fn repelling_heads<F: Both>(_: &str) {
    for head_dim in [32, 64, 96, 128] {
        let (n, queries) = (Heads { crops: ragged(&[1, 37]), heads: 1, head_dim }, 3);
        let (rows, c) = (n.crops.rows(), n.cols());
        let mut a = Arena::new();
        let mut qkv = numbers(1, rows * 3 * c, 1.0);
        for (i, x) in qkv.iter_mut().enumerate() {
            *x = f64::from(half::bf16::from_f64(*x + [6.0, -6.0, 0.0][i / c % 3]));
        }
        let (qkv, dy) = (a.input(&qkv), a.input(&numbers(2, rows * c, 1.0)));
        let out = Attention { y: a.act(rows * c), lse: a.stat(rows) };
        let (dqkv, probabilities) = (a.act(rows * 3 * c), a.act(queries * rows));
        let mut o = a.build::<F>();
        fill(&mut o);
        o.attention(out, qkv, n);
        check::<F>(&mut o, rows.max(c), 0.0, &n);
        o.attention_rows(probabilities, out.lse, qkv, queries, n);
        o.attention_backward(dqkv, dy, out, qkv, n);
        check::<F>(&mut o, rows.max(c), 0.0, &n);
    }
}

/// What a step ends with, over random gradients: clipping and not, the last layer frozen and not, gains trained and not, then a
/// gradient that is not finite, and the step after it. More tensors than a block has threads, and a tensor of two chunks.
fn optimizer<F: Both>(_: &str) {
    let adamw = Optimizer::AdamW(AdamW { eps: 1e-3, ..AdamW::PUBLISHED });
    let [_, sgd, lars] = OPTIMIZERS;
    let each = [adamw, sgd, lars].into_iter().flat_map(|optimizer| [(optimizer, false), (optimizer, true)]);
    for (optimizer, train_gain) in each {
        let backbone = Backbone::Vit(Vit {
            image: 4,
            patch: 2,
            channels: 3,
            dim: 8,
            depth: 24,
            heads: 1,
            mlp: 9,
            positions: Interpolation::Published,
            eps: EPS,
        });
        let head =
            Head { inp: 8, layers: 2, hidden: 700, bottleneck: 37, prototypes: 301, train_gain, ..Head::PUBLISHED };
        let views = Crops::one(Group { count: 2, height: 4, width: 4 });
        let config = Config { optimizer, ..ordinary(backbone, head, views, [2, 2]) };
        let plan = Plan::new(config).expect("a sound plan");
        let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 1);
        assert!(run.specs().len() > 256 && run.specs().iter().any(|s| s.at.len() > 1 << 14));
        // A parameter of zeros has no norm that an update could go by.
        let zero = run.specs().into_iter().find(|s| s.rank > 1).expect("a tensor of several axes").at;
        write(&mut run.o, zero, &vec![0.0; zero.len()]);
        let (s, t, n) = (&plan.student, &plan.teacher, plan.prototype_rows());
        run.o.prototype_scale(s.scale, s.head_weights.v, s.head_weights.g, n);
        run.o.prototype_scale(t.scale, t.head_weights.v, t.head_weights.g, n);
        write(&mut run.o, plan.targets.sum, &numbers(2, n.cols, 1.0));
        let h = Hyper { lr: 0.05, ..hyper_numbers() };
        let steps = [
            ("first", h, 1.0),
            ("frozen", Hyper { step: 2, step_last: 1, freeze_last: true, ..h }, 1.0),
            ("unclipped", Hyper { step: 3, step_last: 1, clip_grad: 0.0, ..h }, 1.0),
            ("half clipped", Hyper { step: 4, step_last: 2, clip_grad: 3.0, ..h }, 1.0),
            ("infinite", h, f64::INFINITY),
            ("after", h, 1.0),
        ];
        for (i, (what, h, last)) in steps.into_iter().enumerate() {
            run.set_hyper(&h);
            run.o.zero(plan.monitor.part(0, monitor::HALTED));
            random_grads(&mut run.o, 10 + i);
            // The last element of the last chunk.
            let end = plan.table.len();
            let at = run.specs().iter().map(|s| s.at.0.at + s.at.len()).max().unwrap().min(end) - 1;
            run.o.write(Pool::Grads, at, &[last]);
            step::commit(&mut run.o, &plan);
            check::<F>(&mut run.o, 700, 0.0, &(what, optimizer, train_gain));
            let halted = if i < 4 { 0.0 } else { 1.0 };
            assert_eq!(run.monitor(monitor::HALTED), halted, "{what}");
            assert_eq!(run.monitor(monitor::FINITE), 1.0 - halted, "{what}");
        }
        // A loss that is not finite is enough.
        for loss in [f64::NAN, f64::NEG_INFINITY] {
            run.o.write(Pool::State, plan.monitor.0.at + monitor::HALTED, &[0.0]);
            run.o.write(Pool::State, plan.monitor.0.at + monitor::LOSS, &[loss]);
            random_grads(&mut run.o, 20);
            step::commit(&mut run.o, &plan);
            check::<F>(&mut run.o, 700, 0.0, &(loss, optimizer, train_gain));
            assert_eq!(run.monitor(monitor::FINITE), 0.0, "{loss}");
        }
    }
}

/// At the ends of its rate the teacher takes the student as it is, or stays as it is, to the bit. (In lockstep no bit is the GPU's own.)
fn teacher_rates<F: Both>(_: &str) {
    if F::BF16 {
        teacher_copies_and_keeps::<OnGpu<true, 256>>()
    } else {
        teacher_copies_and_keeps::<OnGpu<false, 256>>()
    }
}

/// After an update the operands of matmuls are what they are when the same weights are written anew. (In lockstep they always are written.)
fn matmuls_see_the_new_weights<F: Both>(_: &str) {
    OPTIMIZERS.into_iter().for_each(matmuls_see_what_it_writes::<F>);
}

fn matmuls_see_what_it_writes<F: Both>(optimizer: Optimizer) {
    let plan = Plan::new(Config { optimizer, ..smallest().config }).expect("a valid plan");
    let all = 2 * plan.table.len();
    // Beyond the plan's activations: a unit matrix, and its matmul with all weights.
    let (unit, y) = (Act(Span { at: plan.pools.acts, len: 256 }), Act(Span { at: plan.pools.acts + 256, len: all }));
    let pools = Pools { acts: plan.pools.acts + 256 + all, ..plan.pools };
    let gpu = if F::BF16 { OnGpu::<true, 256>::make(pools) } else { OnGpu::<false, 256>::make(pools) };
    let mut run = Run::random(plan, gpu, 1);
    run.set_hyper(&Hyper { lr: 0.05, ..hyper_numbers() });
    let values = numbers(2, plan.pools.grads, 1.0);
    run.o.write(Pool::Grads, 0, &values);
    write(&mut run.o, unit, &(0..256).map(|i| if i % 17 == 0 { 1.0 } else { 0.0 }).collect::<Vec<_>>());
    let weights = Weight(Span { at: 0, len: all });
    let matmul = |o: &mut Gpu| {
        o.linear(y, unit, Affine { w: weights, b: weights }, Mat { rows: 16, inp: 16, out: all / 16 });
        read(o, y)
    };
    let before = matmul(&mut run.o);
    step::commit(&mut run.o, &plan);
    let updated = matmul(&mut run.o);
    let weights = read(&mut run.o, weights);
    run.o.write(Pool::Weights, 0, &weights);
    assert!(updated == matmul(&mut run.o), "matmuls see other weights");
    // Column `o` of the result has 16 weights from 16 o on: the student's first, then the teacher's.
    let moved = |teacher: bool| (0..all).any(|i| (i % (all / 16) >= all / 32) == teacher && before[i] != updated[i]);
    assert!(moved(false) && moved(true), "a network does not move");
}

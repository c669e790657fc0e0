//! The GPU backend against the CPU, single ops at the sizes where kernels change their ways: tails, tiles of 128, splits, strips, heads
//! of any width, more chunks than threads, and ops that no training step calls. Nothing but an op's own results may change.

use dino_gpu::Gpu;
use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::Lockstep;
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group, Ragged};
use dino_kernel::mem::{Act, Pool, Span, Weight};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{AdamW, Optimizer};
use dino_kernel::plan::{Config, Plan, Pools};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use tests::backend::{Arena, Factory, make_poisoned, read, read_span, write};
use tests::for_backends;
use tests::gpu::{OnGpu, bf16_bound, f32_bound, ready};
use tests::plans::{ordinary, smallest};
use tests::training::{OBJECTIVE, OPTIMIZER, Run, hyper_numbers, normals, teacher_copies_and_keeps};

type Pair = Lockstep<Cpu, Gpu>;

/// The CPU and the GPU in step. A workspace of 12 KiB makes many tiles and strips.
struct On<const BF16: bool, const KIB: usize>;

trait Both: Factory<Backend = Pair> {
    const BF16: bool;
    type Small: Both;
}

impl<const BF16: bool, const KIB: usize> Factory for On<BF16, KIB> {
    type Backend = Pair;

    fn ready(who: &str) -> bool {
        ready(who)
    }

    fn make(pools: Pools) -> Pair {
        Lockstep::new(Cpu::make(pools), OnGpu::<BF16, KIB>::make(pools))
    }
}

impl<const BF16: bool, const KIB: usize> Both for On<BF16, KIB> {
    const BF16: bool = BF16;
    type Small = On<BF16, 12>;
}

for_backends!([f32: On<false, 256>, bf16: On<true, 256>] [
    products,
    large_products,
    elementwise,
    stochastic_depth,
    layer_norms,
    patches_and_positions,
    class_rows,
    row_norms,
    narrow_heads,
    wide_heads,
    odd_heads,
    repelling_heads,
    class_attention,
    logits_and_prototypes,
    loss,
    sharp_loss,
    tied_loss,
    sums,
    optimizer,
    teacher_rates,
    products_see_the_new_weights,
]);

/// `n` numbers that bf16 holds, so that operands are the same in either precision.
fn numbers(seed: usize, n: usize, scale: f64) -> Vec<f64> {
    normals(seed as u64, n).iter().map(|x| f64::from(half::bf16::from_f64(scale * x))).collect()
}

/// What the op wrote is within its bounds, and everything else is unchanged. `k`: the longest sum; `more`: allowed beyond it.
fn check<F: Both>(o: &mut Pair, k: usize, more: f64, what: &dyn std::fmt::Debug) {
    for m in o.worst.iter().flatten().flatten() {
        let bound = if F::BF16 { bf16_bound(m.op, m.access.pool, k as f64) } else { f32_bound(k as f64) } + more;
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
fn build<F: Both>(a: Arena) -> Pair {
    let mut o = a.build::<F>();
    for pool in [Pool::Acts, Pool::Stats] {
        let len = o.len(pool);
        let mut all = read_span(&mut o, pool, Span { at: 0, len });
        let other = numbers(99, len, 1.0);
        all.iter_mut().zip(other).filter(|(x, _)| x.is_nan()).for_each(|(x, y)| *x = y);
        o.write(pool, 0, &all);
    }
    o
}

/// Gradients that something is to be added to.
fn random_grads(o: &mut Pair, seed: usize) {
    let len = o.len(Pool::Grads);
    o.write(Pool::Grads, 0, &numbers(seed, len, 1.0));
}

fn product<F: Both>([rows, inp, out]: [usize; 3], forward: bool, backward: bool) {
    let (mut a, n) = (Arena::new(), Mat { rows, inp, out });
    let x = a.input(&numbers(1, rows * inp, 1.0));
    let (y, pre) = if forward { (a.act(rows * out), a.act(rows * out)) } else { (Act::EMPTY, Act::EMPTY) };
    let (dy, dx) = (a.input(&numbers(2, rows * out, 1.0)), a.act(rows * inp));
    let (w, b) = (a.weight(&numbers(3, out * inp, 1.0 / (inp as f64).sqrt())), a.weight(&numbers(4, out, 0.5)));
    let _a_row_more = a.act(inp.max(out)); // that a wrong one would write to
    let mut o = build::<F>(a);
    random_grads(&mut o, 5);
    if forward {
        o.linear(y, x, Affine { w, b }, n);
        o.linear_gelu(y, pre, x, Affine { w, b }, n);
    }
    if backward {
        o.linear_backward(dx, dy, x, Affine { w, b }, n);
    }
    check::<F>(&mut o, rows.max(inp).max(out), 0.0, &n);
}

fn products<F: Both>(_: &str) {
    // Anything; rows on 16 bytes; several steps and a tail; sums over rows that are split, the last split shorter.
    for size in [[1, 1, 1], [70, 37, 45], [66, 72, 96], [130, 200, 56], [3, 33, 131], [1100, 24, 40], [1037, 19, 33]] {
        product::<F>(size, true, true);
    }
}

fn large_products<F: Both>(_: &str) {
    if !F::BF16 {
        return; // no tile of 128
    }
    // Four steps, whose copies are asynchronous. Columns: even and not on 16 bytes; on 16 bytes and not a full warp's part; odd.
    let (many, deep, [even, packed, odd]) = (11 * 128 + 40, 104, [1406, 1432, 1405]);
    product::<F>([many, deep, even], true, false);
    product::<F>([many, packed, deep], false, true);
    let (mut a, n) = (Arena::new(), Mat { rows: deep, inp: odd, out: many });
    let (x, dy) = (a.input(&numbers(1, deep * odd, 1.0)), a.input(&numbers(2, deep * many, 1.0)));
    let (w, b) = (a.weight(&vec![0.0; many * odd]), a.weight(&vec![0.0; many]));
    let mut o = build::<F>(a);
    random_grads(&mut o, 3);
    o.linear_backward_params(dy, x, Affine { w, b }, n);
    check::<F>(&mut o, deep, 0.0, &n);
}

fn elementwise<F: Both>(_: &str) {
    for len in [1, 7, 1024, 1030] {
        let mut a = Arena::new();
        let (x, z) = (a.input(&numbers(1, len, 2.0)), a.input(&numbers(2, len, 1.0)));
        // The second starts in the middle of a packed load.
        let room = [(); 6].map(|_| a.act(len + 1));
        let mut o = build::<F>(a);
        for from in [0, 1] {
            let [y, w, d, moved_x, moved_z, _] = room.map(|r| r.part(from, len));
            let (x, z) = if from == 0 { (x, z) } else { (moved_x, moved_z) };
            if from == 1 {
                write(&mut o, x, &numbers(3, len, 2.0));
                write(&mut o, z, &numbers(4, len, 1.0));
            }
            o.gelu(y, x);
            o.add(w, x, z);
            o.gelu_backward(d, z, x);
            check::<F>(&mut o, 1, 0.0, &(len, from));
        }
    }
}

/// Crops of so many tokens each.
fn ragged(groups: &[[usize; 2]]) -> Ragged {
    let crops = |c: Crops, &[count, tokens]: &[usize; 2]| c.with(Group { count, height: 1, width: tokens - 1 });
    groups.iter().fold(Crops::EMPTY, crops).tokens(1)
}

fn stochastic_depth<F: Both>(_: &str) {
    // Crops that start in the middle of a packed load; and one that ends an element before a packed load does, with nothing written after.
    for (groups, cols) in [(vec![[2, 11], [3, 5]], 37), (vec![[1, 5]], 39)] {
        let n = ragged(&groups);
        let len = n.rows() * cols;
        let mut a = Arena::new();
        let (x, branch) = (a.input(&numbers(1, len, 1.0)), a.input(&numbers(2, len, 1.0)));
        let (y, z, scale) = (a.act(len), a.act(len), a.state(&[2.0, 0.0, 1.5, 0.0, 0.75]));
        let mut o = build::<F>(a);
        o.add_scaled(y, x, branch, scale, n, cols);
        o.scale_crops(z, x, scale, n, cols);
        check::<F>(&mut o, 1, 0.0, &n);
    }
}

fn layer_norms<F: Both>(_: &str) {
    // Another epsilon than the published one shows that it is not a constant.
    for ([rows, cols], eps) in [([1, 5], EPS), ([7, 39], 0.3), ([3, 128], 1e-12), ([131, 132], EPS), ([300, 262], 0.02)]
    {
        let (len, n) = (rows * cols, Rows { rows, cols });
        let mut a = Arena::new();
        // Far from zero, so that the mean matters.
        let near = |seed, at: f64| {
            numbers(seed, len, 1.0).iter().map(|x| f64::from(half::bf16::from_f64(x + at))).collect::<Vec<_>>()
        };
        let (x, branch, dy) = (a.input(&near(1, 3.0)), a.input(&numbers(2, len, 1.0)), a.input(&near(3, 0.5)));
        let (y, mid, dx) = (a.act(len), a.act(len), a.input(&numbers(4, len, 1.0)));
        let (w, b) = (a.weight(&numbers(5, cols, 1.0)), a.weight(&numbers(6, cols, 0.3)));
        let stats = [(); 4].map(|_| a.stat(rows));
        let mut o = build::<F>(a);
        random_grads(&mut o, 7);
        let (affine, norm) = (Affine { w, b }, LayerNorm { rows: n.rows, cols: n.cols, eps });
        let [alone, fused] = [0, 2].map(|i| NormStats { mean: stats[i], rstd: stats[i + 1] });
        o.layernorm(y, alone, x, affine, norm);
        o.layernorm_backward(dx, dy, x, alone, affine, n);
        o.add_layernorm(y, mid, fused, x, branch, affine, norm);
        check::<F>(&mut o, len.min(1000), 0.0, &n);
    }
}

fn patches_and_positions<F: Both>(_: &str) {
    let crops = Crops::one(Group { count: 2, height: 7, width: 11 }).with(Group { count: 3, height: 3, width: 7 });
    let n = Patches { crops, patch: 3, channels: 3 };
    let (pixels, cols) = (3 * crops.pixels(), 27);
    let mut a = Arena::new();
    let (x, y) = (a.input(&numbers(1, pixels, 1.0)), a.act(crops.patches(3) * cols));
    let mut o = build::<F>(a);
    o.patchify(y, x, n);
    check::<F>(&mut o, 1, 0.0, &n);

    let (mut a, n) = (Arena::new(), Grid { from: [3, 4], to: [5, 2], cols: 37 });
    // Some of the taps are zero, as most are in truth.
    let sparse = |seed, len| {
        numbers(seed, len, 1.0).iter().enumerate().map(|(i, x)| if i % 3 == 1 { 0.0 } else { *x }).collect::<Vec<_>>()
    };
    let (rows, columns) = (a.state(&sparse(1, 15)), a.state(&sparse(2, 8)));
    let (table, y, dy) = (a.weight(&numbers(3, 12 * 37, 1.0)), a.act(10 * 37), a.input(&numbers(4, 10 * 37, 1.0)));
    let mut o = build::<F>(a);
    random_grads(&mut o, 5);
    o.resize_positions(y, table, rows, columns, n);
    o.resize_positions_backward(dy, table, rows, columns, n);
    check::<F>(&mut o, 20, 0.0, &n);

    let (mut a, n) = (Arena::new(), Embed { crops: 3, patches: 7, cols: 37 });
    let (body, tokens) = (n.crops * n.patches * n.cols, n.crops * (1 + n.patches) * n.cols);
    let (patches, positions) = (a.input(&numbers(1, body, 1.0)), a.input(&numbers(2, n.patches * n.cols, 1.0)));
    let (class, class_position) = (a.weight(&numbers(3, n.cols, 1.0)), a.weight(&numbers(4, n.cols, 1.0)));
    let (y, dy) = (a.act(tokens), a.input(&numbers(5, tokens, 1.0)));
    let (dpatches, dpositions) = (a.act(body), a.act(n.patches * n.cols));
    let mut o = build::<F>(a);
    random_grads(&mut o, 6);
    o.embed(y, patches, class, class_position, positions, n);
    o.embed_backward(dpatches, dpositions, dy, class, class_position, n);
    check::<F>(&mut o, n.crops, 0.0, &n);
}

fn class_rows<F: Both>(_: &str) {
    let (n, cols, crops) = (ragged(&[[2, 11], [3, 5]]), 37, 5);
    let mut a = Arena::new();
    let (x, y) = (a.input(&numbers(1, n.rows() * cols, 1.0)), a.act(crops * cols));
    let (dx, dy) = (a.input(&numbers(2, n.rows() * cols, 1.0)), a.input(&numbers(3, crops * cols, 1.0)));
    let mut o = build::<F>(a);
    o.gather_class(y, x, n, cols);
    o.scatter_class_acc(dx, dy, n, cols);
    check::<F>(&mut o, 1, 0.0, &n);
}

fn row_norms<F: Both>(_: &str) {
    // A row that is not a number, and one that is infinite, next to one that is neither.
    for bad in [f64::NAN, f64::INFINITY] {
        let (mut a, mut values, n) = (Arena::new(), numbers(1, 3 * 37, 1.0), Rows { rows: 3, cols: 37 });
        values[35] = bad;
        values[37 + 2] = bad;
        let (x, y, norm) = (a.input(&values), a.act(3 * 37), a.stat(3));
        let mut o = a.build::<F>();
        o.l2_normalize(y, norm, x, n);
        check::<F>(&mut o, 37, 0.0, &bad);
    }
    // Rows whose squares overflow, vanish or are below the floor; and nothing at all.
    for scale in [1.0, 1e25, 1e-5, 1e-13, 1e-30, 1e-39, 0.0] {
        for [rows, cols] in [[5, 37], [3, 128]] {
            let (len, n) = (rows * cols, Rows { rows, cols });
            let mut a = Arena::new();
            let (x, dy, norm) = (a.input(&numbers(1, len, scale)), a.input(&numbers(2, len, 1.0)), a.stat(rows));
            let (y, dx) = (a.act(len), a.act(len));
            let mut o = build::<F>(a);
            o.l2_normalize(y, norm, x, n);
            o.l2_normalize_backward(dx, dy, y, norm, n);
            check::<F>(&mut o, cols, 0.0, &(n, scale));
        }
    }
}

fn heads<F: Both>(groups: &[[usize; 2]], heads: usize, head_dim: usize) {
    heads_with::<F>(groups, heads, head_dim, 0.0);
}

/// `push`: queries are about there and keys on the other side.
fn heads_with<F: Both>(groups: &[[usize; 2]], heads: usize, head_dim: usize, push: f64) {
    let n = Heads { crops: ragged(groups), heads, head_dim };
    let (rows, c, queries) = (n.crops.rows(), n.cols(), 3);
    let maps: usize = groups.iter().map(|[crops, tokens]| crops * heads * queries.min(*tokens) * tokens).sum();
    let mut a = Arena::new();
    let mut qkv = numbers(1, rows * 3 * c, 1.0);
    for (i, x) in qkv.iter_mut().enumerate() {
        *x = f64::from(half::bf16::from_f64(*x + [push, -push, 0.0][i / c % 3]));
    }
    let (qkv, dy) = (a.input(&qkv), a.input(&numbers(2, rows * c, 1.0)));
    let (y, lse, dqkv, y_rows) = (a.act(rows * c), a.stat(rows * heads), a.act(rows * 3 * c), a.act(maps));
    let mut o = build::<F>(a);
    o.attention(Attention { y, lse }, qkv, n);
    check::<F>(&mut o, rows.max(c), 0.0, &n);
    o.attention_rows(y_rows, lse, qkv, queries, n);
    o.attention_backward(dqkv, dy, Attention { y, lse }, qkv, n);
    check::<F>(&mut o, rows.max(c), 0.0, &n);
}

fn narrow_heads<F: Both>(_: &str) {
    heads::<F>(&[[2, 17], [1, 130], [1, 64]], 2, 24);
    heads::<F>(&[[1, 1], [1, 197]], 2, 32);
    heads::<F>(&[[2, 5], [1, 150]], 2, 40);
    heads::<F>(&[[1, 129]], 2, 64);
}

fn wide_heads<F: Both>(_: &str) {
    heads::<F>(&[[2, 17], [1, 102]], 2, 72);
    heads::<F>(&[[1, 65]], 1, 96);
    heads::<F>(&[[2, 17], [1, 102]], 2, 104);
    heads::<F>(&[[1, 65]], 1, 128);
}

/// Heads that the tensor cores do not take, and more rows than their sums have memory for.
fn odd_heads<F: Both>(_: &str) {
    heads::<F>(&[[2, 3], [1, 70]], 2, 37);
    heads::<F>(&[[1, 34]], 1, 200);
    heads::<F::Small>(&[[90, 23]], 3, 8);
}

/// Every score is so negative that the score 0 of what is past the last key would have an infinite probability.
fn repelling_heads<F: Both>(_: &str) {
    for head_dim in [32, 64, 96, 128] {
        heads_with::<F>(&[[1, 37]], 1, head_dim, 6.0);
    }
}

fn class_attention<F: Both>(_: &str) {
    for (groups, heads, head_dim) in [([[2, 3], [3, 70]], 2, 37), ([[5, 33], [1, 1]], 3, 8)] {
        let n = Heads { crops: ragged(&groups), heads, head_dim };
        let (rows, c, crops) = (n.crops.rows(), n.cols(), groups[0][0] + groups[1][0]);
        let mut a = Arena::new();
        let (q, kv) = (a.input(&numbers(1, crops * c, 1.0)), a.input(&numbers(2, rows * 2 * c, 1.0)));
        let (dy, y, lse) = (a.input(&numbers(3, crops * c, 1.0)), a.act(crops * c), a.stat(crops * heads));
        let (dq, dkv) = (a.act(crops * c), a.act(rows * 2 * c));
        let mut o = build::<F>(a);
        o.attention_class(Attention { y, lse }, ClassQkv { q, kv }, n);
        o.attention_class_backward(ClassQkv { q: dq, kv: dkv }, dy, Attention { y, lse }, ClassQkv { q, kv }, n);
        check::<F>(&mut o, rows, 0.0, &n);
    }
}

fn logits_and_prototypes<F: Both>(_: &str) {
    for [rows, inp, out] in [[13, 37, 700], [4, 128, 5]] {
        let (mut a, n) = (Arena::new(), Mat { rows, inp, out });
        let (z, y) = (a.input(&numbers(1, rows * inp, 1.0)), a.act(rows * out));
        let (v, g) = (a.weight(&numbers(2, out * inp, 1.0)), a.weight(&numbers(3, out, 1.0)));
        let (p, shape) = (Prototypes { v, scale: a.stat(out) }, Rows { rows: out, cols: inp });
        let mut o = build::<F::Small>(a);
        o.prototype_scale(p.scale, v, g, shape);
        o.logits(y, z, p, n);
        for train_gain in [false, true] {
            random_grads(&mut o, 4);
            o.weight_norm_backward(Prototypes { v, scale: p.scale }, g, train_gain, shape);
        }
        check::<F::Small>(&mut o, inp, 0.0, &n);
    }
}

/// With `ties` all prototypes are one, and all logits of a row are its largest.
fn losses<F: Both>([teacher_temp, student_temp]: [f64; 2], ties: bool) {
    let dims = LossDims { images: 3, first_view: 0, views: 4, teachers: 2, bottleneck: 21, prototypes: 1000 };
    for n in [dims, LossDims { first_view: 1, views: 2, bottleneck: 20, prototypes: 65, ..dims }] {
        let (mut a, c, k) = (Arena::new(), n.bottleneck, n.prototypes);
        let (rows, rows_teacher) = (n.rows(), n.teachers * n.images);
        let unit = 1.0 / (c as f64).sqrt();
        let (z, zt) = (a.input(&numbers(1, rows * c, unit)), a.input(&numbers(2, rows_teacher * c, unit)));
        let spread = if ties { 0.0 } else { 1.0 };
        let (dz, center) = (a.act(rows * c), a.state(&numbers(3, k, 0.1 * spread)));
        let mut prototypes = |seed| {
            let scale: Vec<f64> = numbers(seed, k, 0.2 * spread).iter().map(|x| 1.0 + x).collect();
            let v = if ties { numbers(seed + 1, c, unit).repeat(k) } else { numbers(seed + 1, k * c, unit) };
            Prototypes { v: a.weight(&v), scale: a.stats(&scale) }
        };
        let (student, teacher) = (prototypes(4), prototypes(6));
        let (loss, lse) = (a.stat(rows), a.stat(2 * rows));
        let (lse_teacher, entropy) = (a.stat(2 * rows_teacher), a.stat(rows_teacher));
        let h = Hyper { teacher_temp, student_temp, ..hyper_numbers() };
        let hyper = a.state(&h.derive(OPTIMIZER, OBJECTIVE, n.images, n.first_view + n.views, n.teachers));
        let mut o = build::<F::Small>(a);
        random_grads(&mut o, 8);
        let targets = TargetRows { z: zt, lse: lse_teacher, prototypes: teacher, offset: center };
        o.teacher_lse(entropy, targets, hyper, n);
        o.dino_loss(LossSpans { loss, lse, dz }, StudentRows { z, prototypes: student }, targets, hyper, n);
        check::<F::Small>(&mut o, k, 2.0 * f32::EPSILON as f64 / teacher_temp.min(student_temp), &n);
    }
}

fn loss<F: Both>(_: &str) {
    losses::<F>([0.2, 0.3], false);
}

/// Rows that are one-hot but for the last digits.
fn sharp_loss<F: Both>(_: &str) {
    losses::<F>([0.001, 0.005], false);
}

fn tied_loss<F: Both>(_: &str) {
    losses::<F>([0.2, 0.3], true);
}

fn sums<F: Both>(_: &str) {
    for [rows, cols] in [[1, 1], [5, 300], [37, 9]] {
        let (mut a, n) = (Arena::new(), Rows { rows, cols });
        let (x, stat) = (a.input(&numbers(1, rows * cols, 1.0)), a.stats(&numbers(2, rows * cols, 1.0)));
        let (sum, total) = (a.state(&numbers(3, cols, 1.0)), a.state(&[0.5]));
        let mut o = build::<F>(a);
        o.sum_rows(sum, x, n);
        o.sum_stat(total, stat);
        check::<F>(&mut o, rows * cols, 0.0, &n);
    }
}

/// What a step ends with, over random gradients: clipping and not, the last layer frozen and not, gains trained and not, then a
/// gradient that is not finite, and the step after it. More tensors than a block has threads, and a tensor of two chunks.
fn optimizer<F: Both>(_: &str) {
    for train_gain in [false, true] {
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
        let head = Head { inp: 8, layers: 2, hidden: 700, bottleneck: 37, prototypes: 301, train_gain };
        let views = Crops::one(Group { count: 2, height: 4, width: 4 });
        let optimizer = Optimizer::AdamW(AdamW { eps: 1e-3, ..AdamW::PUBLISHED });
        let config = Config { optimizer, ..ordinary(backbone, head, views, [2, 2]) };
        let plan = Plan::new(config).expect("a sound plan");
        let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 1);
        assert!(run.specs().len() > 256 && run.specs().iter().any(|s| s.at.len() > 1 << 14));
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
            check::<F>(&mut run.o, 700, 0.0, &(what, train_gain));
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
            check::<F>(&mut run.o, 700, 0.0, &(loss, train_gain));
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
fn products_see_the_new_weights<F: Both>(_: &str) {
    let plan = smallest();
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
    let product = |o: &mut Gpu| {
        o.linear(y, unit, Affine { w: weights, b: weights }, Mat { rows: 16, inp: 16, out: all / 16 });
        read(o, y)
    };
    let before = product(&mut run.o);
    step::commit(&mut run.o, &plan);
    let updated = product(&mut run.o);
    let weights = read(&mut run.o, weights);
    run.o.write(Pool::Weights, 0, &weights);
    assert!(updated == product(&mut run.o), "products see other weights");
    // Column `o` of the result has 16 weights from 16 o on: the student's first, then the teacher's.
    let moved = |teacher: bool| (0..all).any(|i| (i % (all / 16) >= all / 32) == teacher && before[i] != updated[i]);
    assert!(moved(false) && moved(true), "a network does not move");
}

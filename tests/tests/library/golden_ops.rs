//! Single ops against golden tensors: the rows of the table of op cases, and, operands laid out by hand, what is stored otherwise in a
//! fixture than in an op. Everything that an op writes is compared.

use dino_host::cpu::Cpu;
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group, Ragged};
use dino_kernel::ops::loss::LogSumExp;
use dino_kernel::ops::position::{self, Interpolation};
use std::collections::BTreeSet;
use tests::backend::{Arena, Factory, Reference, read, read_grad, read_span, write, write_grad};
use tests::cases::TABLE;
use tests::fixture::Fixture;
use tests::for_backends;
use tests::gpu::OnGpu;

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu, gpu: OnGpu<false, 1024>] [
    every_row,
    weight_norm,
    attention,
    attention_module,
    positions,
]);

#[test]
fn every_golden_tensor_belongs_to_a_test() {
    let f = Fixture::open("ops_basic");
    let all = [
        "layernorm",
        "gelu.",
        "softmax.",
        "linear.",
        "l2norm",
        "weightnorm.",
        "attention.",
        "attention_module.",
        "drop_path.",
        "patch_embed",
        "pos_",
    ];
    assert_eq!(f.outputs(&all), f.outputs(&[""]));
}

/// The rows of the table that have golden tensors, in every case that the fixture has of them.
fn every_row<F: Factory>(who: &str) {
    let rows = || TABLE.iter().flat_map(|rows| rows.iter()).filter_map(|row| Some((row, row.golden.as_ref()?)));
    for file in rows().map(|(_, golden)| golden.file).collect::<BTreeSet<_>>() {
        let f = Fixture::open(file);
        let outputs = f.outputs(&[""]);
        let (mut prefixes, mut skip) = (Vec::new(), Vec::new());
        for (row, golden) in rows().filter(|(_, golden)| golden.file == file) {
            let cases = f.between(golden.prefix, ".x");
            assert!(!cases.is_empty(), "{file}: no case of {}", row.name);
            for prefix in cases.iter().map(|case| format!("{}{case}", golden.prefix)) {
                let case = row.golden(&f, &prefix);
                let names = case.outputs.clone();
                let (mut o, calls) = case.place::<F>();
                (calls.forward)(&mut o);
                calls.backward.iter().filter(|_| golden.backward).for_each(|backward| backward(&mut o));
                for (name, pool, span) in names {
                    let key = format!("{prefix}.{name}");
                    if outputs.contains(&key) && (golden.backward || !name.starts_with('d')) {
                        f.assert_golden(&key, &read_span(&mut o, pool, span));
                    }
                }
                skip.extend(golden.skip.iter().map(|(name, why)| (format!("{prefix}.{name}"), *why)));
                prefixes.push(format!("{prefix}."));
            }
        }
        f.finish(
            who,
            &prefixes.iter().map(String::as_str).collect::<Vec<_>>(),
            &skip.iter().map(|(key, why)| (key.as_str(), *why)).collect::<Vec<_>>(),
        );
    }
}

/// Crops of `count` times `tokens` rows, whatever pixels that takes.
fn ragged(count: usize, tokens: usize) -> Ragged {
    Crops::one(Group { count, height: tokens - 1, width: 1 }).tokens(1)
}

/// No op is a plain softmax: attention and loss stream it through [`LogSumExp`], which this holds to the golden rows.
#[test]
fn softmax_through_log_sum_exp() {
    fn check<T: dino_kernel::real::Real + Into<f64>>(who: &str) {
        let f = Fixture::open("ops_basic");
        let x = f.get("softmax.x");
        let (mut y, mut log_y) = (Vec::new(), Vec::new());
        for row in x.data.chunks(x.last()) {
            let row: Vec<T> = row.iter().map(|&v| T::of(v)).collect();
            let mut sum = LogSumExp::new(T::ONE);
            row.iter().for_each(|&v| sum.push(v));
            let [top, rest] = sum.parts();
            log_y.extend(row.iter().map(|&v| (v - top) - rest));
            y.extend(row.iter().map(|&v| ((v - top) - rest).exp()));
        }
        f.assert_golden("softmax.y", &y);
        f.assert_golden("softmax.log_y", &log_y);
        let why = "no op is the backward of a plain softmax; attention's and the loss's stand for it";
        f.finish(who, &["softmax."], &[("softmax.dx", why)]);
    }
    check::<f32>("f32::softmax");
    check::<f64>("f64::softmax");
}

/// The ops never make the normalized prototypes: logits are scaled, and the raw gradient dW = dy^T x is projected once.
fn weight_norm<F: Factory>(who: &str) {
    let f = Fixture::open("ops_basic");
    let get = |k: &str| f.get(&format!("weightnorm.{k}"));
    let (k, c, rows) = (get("v").shape[0], get("v").last(), get("x").rows());
    let (n, mat) = (Rows { rows: k, cols: c }, Mat { rows, inp: c, out: k });
    let mut a = Arena::new();
    let (x, dy) = (a.input(&get("x").data), a.input(&get("dy").data));
    let (y, dx) = (a.act(rows * k), a.act(rows * c));
    let (v, g) = (a.weight(&get("v").data), a.weight(&get("g").data));
    let scale = a.stat(k);
    // A plain linear layer on the rows W[k] = scale[k] v[k] gives dx; its dw is the raw gradient.
    let (dense, bias) = (a.weight(&vec![0.0; k * c]), a.weight(&vec![0.0; k]));
    let mut o = a.build::<F>();
    o.prototype_scale(scale, v, g, n);
    o.logits(y, x, Prototypes { v, scale }, mat);
    f.assert_golden("weightnorm.y", &read(&mut o, y));
    let by_row = read(&mut o, scale);
    let normalized: Vec<f64> = get("v").data.iter().enumerate().map(|(i, v)| v * by_row[i / c]).collect();
    write(&mut o, dense, &normalized);
    o.linear_backward(dx, dy, x, Affine { w: dense, b: bias }, mat);
    f.assert_golden("weightnorm.dx", &read(&mut o, dx));
    let raw = read_grad(&mut o, dense);
    write_grad(&mut o, v, &raw);
    o.weight_norm_backward(Prototypes { v, scale }, g, true, n);
    f.assert_golden("weightnorm.dv", &read_grad(&mut o, v));
    f.assert_golden("weightnorm.dg", &read_grad(&mut o, g));
    // With a frozen gain its gradient is left alone.
    write_grad(&mut o, v, &raw);
    let before = read_grad(&mut o, g);
    o.weight_norm_backward(Prototypes { v, scale }, g, false, n);
    f.assert_golden("weightnorm.dv", &read_grad(&mut o, v));
    assert_eq!(read_grad(&mut o, g), before);
    f.finish(who, &["weightnorm."], &[]);
}

/// (B, heads, N, D) to packed rows (B, N, parts, heads, D) and back.
fn pack(parts: &[&[f64]], [b, h, n, d]: [usize; 4]) -> Vec<f64> {
    let mut out = Vec::with_capacity(parts.len() * b * h * n * d);
    for i in 0..b * n {
        for part in parts {
            for head in 0..h {
                out.extend_from_slice(&part[((i / n * h + head) * n + i % n) * d..][..d]);
            }
        }
    }
    out
}

fn unpack(rows: &[f64], part: usize, parts: usize, [b, h, n, d]: [usize; 4]) -> Vec<f64> {
    let mut out = Vec::with_capacity(b * h * n * d);
    for i in 0..b * h * n {
        let (image, head, token) = (i / (h * n), i / n % h, i % n);
        out.extend_from_slice(&rows[(((image * n + token) * parts + part) * h + head) * d..][..d]);
    }
    out
}

fn attention<F: Factory>(who: &str) {
    let f = Fixture::open("ops_basic");
    let get = |k: &str| f.get(&format!("attention.{k}")).data.as_slice();
    let shape: [usize; 4] = f.get("attention.q").shape.as_slice().try_into().unwrap();
    let [b, heads, tokens, head_dim] = shape;
    let n = Heads { crops: ragged(b, tokens), heads, head_dim };
    let (rows, c) = (b * tokens, n.cols());
    let mut a = Arena::new();
    let qkv = a.input(&pack(&[get("q"), get("k"), get("v")], shape));
    let dy = a.input(&pack(&[get("do")], shape));
    let (y, dqkv, probs) = (a.act(rows * c), a.act(rows * 3 * c), a.act(b * heads * tokens * tokens));
    let lse = a.stat(rows * heads);
    // The class token's query alone, over the same keys and values.
    let kv = a.input(&pack(&[get("k"), get("v")], shape));
    let class = |part: &[f64]| -> Vec<f64> {
        pack(&[part], shape).chunks(tokens * c).flat_map(|crop| crop[..c].to_vec()).collect()
    };
    let (q1, dy1) = (a.input(&class(get("q"))), a.input(&class(get("do"))));
    let (y1, dq1, dkv1, lse1) = (a.act(b * c), a.act(b * c), a.act(rows * 2 * c), a.stat(b * heads));
    // What the full form gives when only class rows have a gradient.
    let mut only = pack(&[get("do")], shape);
    only.iter_mut().enumerate().filter(|(i, _)| i % (tokens * c) >= c).for_each(|(_, x)| *x = 0.0);
    let (dy_only, dqkv_only) = (a.input(&only), a.act(rows * 3 * c));
    let mut o = a.build::<F>();

    o.attention(Attention { y, lse }, qkv, n);
    o.attention_rows(probs, lse, qkv, tokens, n);
    o.attention_backward(dqkv, dy, Attention { y, lse }, qkv, n);
    f.assert_golden("attention.o", &unpack(&read(&mut o, y), 0, 1, shape));
    f.assert_golden("attention.probs", &read(&mut o, probs));
    let d = read(&mut o, dqkv);
    for (part, key) in ["dq", "dk", "dv"].into_iter().enumerate() {
        f.assert_golden(&format!("attention.{key}"), &unpack(&d, part, 3, shape));
    }

    // Fewer rows are the first rows of every head.
    let some = tokens.div_ceil(2);
    let part = probs.part(0, b * heads * some * tokens);
    o.attention_rows(part, lse, qkv, some, n);
    let whole = &f.get("attention.probs").data;
    for (got, want) in read(&mut o, part).chunks(some * tokens).zip(whole.chunks(tokens * tokens)) {
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() <= f.note("attention.probs", "atol").unwrap(), "{got}, golden {want}");
        }
    }

    let out1 = Attention { y: y1, lse: lse1 };
    o.attention_class(out1, ClassQkv { q: q1, kv }, n);
    o.attention_class_backward(ClassQkv { q: dq1, kv: dkv1 }, dy1, out1, ClassQkv { q: q1, kv }, n);
    o.attention_backward(dqkv_only, dy_only, Attention { y, lse }, qkv, n);
    let near = |what: &str, key: &str, got: &[f64], want: &[f64]| {
        let atol = f.note(&format!("attention.{key}"), "atol").unwrap();
        assert_eq!(got.len(), want.len(), "{what}: lengths");
        let worst = got.iter().zip(want).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst <= atol, "class attention: {what}: error {worst:.3e}, allowed {atol:.1e}");
    };
    let first = |rows: &[f64], width: usize| -> Vec<f64> {
        rows.chunks(tokens * width).flat_map(|crop| crop[..width].to_vec()).collect()
    };
    near("output", "o", &read(&mut o, y1), &class(&f.get("attention.o").data));
    near("lse", "o", &read(&mut o, lse1), &first(&read(&mut o, lse), heads));
    let full = read(&mut o, dqkv_only);
    let columns =
        |from: usize, to: usize| -> Vec<f64> { full.chunks(3 * c).flat_map(|row| row[from..to].to_vec()).collect() };
    near("dq", "dq", &read(&mut o, dq1), &first(&columns(0, c), c));
    near("dk, dv", "dk", &read(&mut o, dkv1), &columns(c, 3 * c));
    f.finish(who, &["attention."], &[]);
}

fn attention_module<F: Factory>(who: &str) {
    let f = Fixture::open("ops_basic");
    let get = |k: &str| f.get(&format!("attention_module.{k}"));
    let &[b, tokens, c] = get("x").shape.as_slice() else { panic!("three axes") };
    let heads = get("heads").scalar() as usize;
    let (n, rows) = (Heads { crops: ragged(b, tokens), heads, head_dim: c / heads }, b * tokens);
    let (wide, square) = (Mat { rows, inp: c, out: 3 * c }, Mat { rows, inp: c, out: c });
    let mut a = Arena::new();
    let (x, dy) = (a.input(&get("x").data), a.input(&get("dy").data));
    let (qkv, att, y, lse) = (a.act(rows * 3 * c), a.act(rows * c), a.act(rows * c), a.stat(rows * heads));
    let (dqkv, datt, dx) = (a.act(rows * 3 * c), a.act(rows * c), a.act(rows * c));
    let [qkv_w, qkv_b, proj_w, proj_b] = ["qkv_w", "qkv_b", "proj_w", "proj_b"].map(|k| a.weight(&get(k).data));
    let mut o = a.build::<F>();
    o.linear(qkv, x, Affine { w: qkv_w, b: qkv_b }, wide);
    o.attention(Attention { y: att, lse }, qkv, n);
    o.linear(y, att, Affine { w: proj_w, b: proj_b }, square);
    o.linear_backward(datt, dy, att, Affine { w: proj_w, b: proj_b }, square);
    o.attention_backward(dqkv, datt, Attention { y: att, lse }, qkv, n);
    o.linear_backward(dx, dqkv, x, Affine { w: qkv_w, b: qkv_b }, wide);
    f.assert_golden("attention_module.y", &read(&mut o, y));
    f.assert_golden("attention_module.dx", &read(&mut o, dx));
    for (key, w) in [("qkv_w", qkv_w), ("qkv_b", qkv_b), ("proj_w", proj_w), ("proj_b", proj_b)] {
        f.assert_golden(&format!("attention_module.d{key}"), &read_grad(&mut o, w));
    }
    f.finish(who, &["attention_module."], &[]);
}

fn positions<F: Factory>(who: &str) {
    let f = Fixture::open("ops_basic");
    for case in f.between("pos_", ".pos") {
        // Names are pos_{side}_{rows}x{columns}_{dialect}.
        let [side, grid, dialect] = case.split('_').collect::<Vec<_>>()[..] else { panic!("pos_{case}") };
        let (rows, columns) = grid.split_once('x').expect("rows x columns");
        let [side, r, c]: [usize; 3] = [side, rows, columns].map(|n| n.parse().expect("a size"));
        let dialect = match dialect {
            "dino" => Interpolation::Published,
            "size" => Interpolation::Size,
            other => panic!("unknown dialect {other}"),
        };
        let get = |k: &str| f.get(&format!("pos_{case}.{k}"));
        let d = get("pos").last();
        assert_eq!((get("pos").rows(), get("dy").rows()), (1 + side * side, 1 + r * c), "pos_{case}");
        let matrix = |n_out: usize| {
            let mut m = vec![0.0f64; n_out * side];
            position::matrix(&mut m, side, n_out, Some(dialect));
            m
        };
        let n = Grid { from: [side; 2], to: [r, c], cols: d };
        let mut a = Arena::new();
        // The full table is one parameter, of which the class token's row is left out.
        let table = a.weight(&get("pos").data);
        let patches = table.part(d, side * side * d);
        let (y, dy) = (a.act(r * c * d), a.input(&get("dy").data[d..]));
        let (rows, cols) = (a.state(&matrix(r)), a.state(&matrix(c)));
        let mut o = a.build::<F>();
        o.resize_positions(y, patches, rows, cols, n);
        o.resize_positions_backward(dy, patches, rows, cols, n);
        let with_class = |class: &[f64], rest: Vec<f64>| [class, &rest].concat();
        f.assert_golden(&format!("pos_{case}.y"), &with_class(&get("pos").data[..d], read(&mut o, y)));
        let grad = read_grad(&mut o, table);
        assert!(grad[..d].iter().all(|&g| g == 0.0), "the class token's position is not resized");
        f.assert_golden(&format!("pos_{case}.dpos"), &with_class(&get("dy").data[..d], grad[d..].to_vec()));
    }
    f.finish(who, &["pos_"], &[]);
}

//! The full model against golden tensors: forward taps, odd image sizes, loss, gradients, and five optimization steps in two
//! scenarios (A: plain; B: trained gain, per-tensor clip, last layer frozen at first).

use dino_host::cpu::Cpu;
use dino_kernel::backend::{Forward, LossDims, Mat, Memory, Prototypes};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Layout, Pool, State};
use dino_kernel::model::{Backbone, Extents, Head, Network, Output, Pass, Save, Statistics, Table, Vit};
use dino_kernel::objective::{Objective, Targets};
use dino_kernel::ops::layernorm;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::AdamW;
use dino_kernel::params::Spec;
use dino_kernel::plan::{BlocksPlan, Config, FeaturePlan, Plan, PlanError, Pools};
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use tests::backend::{Arena, Factory, Reference, make_poisoned, read, read_grad, write};
use tests::fixture::{Fixture, Tensor};
use tests::for_backends;
use tests::gpu::OnGpu;
use tests::training::{Net, OPTIMIZER, Run, TEACHER, View, groups};

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu, gpu: OnGpu<false, 1024>] [
    forward_taps,
    odd_images,
    head_and_loss,
    gradients,
    scenario_a,
    scenario_b,
    last_blocks,
    class_form_equals_dense_form,
]);

/// What each test compares, by the prefix of the names.
const TAPS: &[&str] = &["out.student.global.", "out.student.local.", "out.teacher.global."];
const ODD: &[&str] = &["out.odd"];
const HEAD: &[&str] = &[
    "out.student.bottleneck",
    "out.student.logits",
    "out.teacher.logits",
    "out.teacher.probs",
    "out.loss",
    "out.center",
    "out.logit_grad",
];
const GRADIENTS: &[&str] = &["grad."];
const SCENARIO_A: &[&str] = &["after", "losses"];
const SCENARIO_B: &[&str] = &["b."];

#[test]
fn every_golden_tensor_belongs_to_a_test() {
    let f = Fixture::open("vit_train");
    let all = [TAPS, ODD, HEAD, GRADIENTS, SCENARIO_A, SCENARIO_B].concat();
    assert_eq!(f.outputs(&all), f.outputs(&[""]));
}

// ------------------------------------------------------------------------------------------------ what the file states

fn table(f: &Fixture, train_gain: bool) -> Table {
    let &[image, patch, dim, depth, heads, ratio, hidden, bottleneck, prototypes] =
        f.get("cfg.model").sizes().as_slice()
    else {
        panic!("cfg.model has nine entries");
    };
    let channels = f.get("init.student.patch_embed.proj.weight").shape[1];
    let layers = f.between("init.student.head.mlp.", ".weight").len();
    let backbone = Backbone::Vit(Vit {
        image,
        patch,
        channels,
        dim,
        depth,
        heads,
        mlp: ratio * dim,
        positions: Interpolation::Published,
        eps: layernorm::EPS,
    });
    Table { backbone, head: Head { inp: dim, layers, hidden, bottleneck, prototypes, train_gain, ..Head::PUBLISHED } }
}

/// The crops of step `i`, one entry a view.
fn views(f: &Fixture, step: usize) -> Vec<View> {
    let n = f.between(&format!("in.step{step}.crop"), "").len();
    let crop = |j: usize| f.get(&format!("in.step{step}.crop{j}"));
    (0..n).map(crop).map(|x| View { height: x.shape[2], width: x.shape[3], pixels: x.data.clone() }).collect()
}

fn plan(f: &Fixture, train_gain: bool, (parts, stream_crops): Split) -> Plan {
    let cfg = f.get("cfg.crops").sizes();
    let Table { backbone, head } = table(f, train_gain);
    let views = groups(views(f, 0).iter().map(|v| (v.height, v.width)));
    assert_eq!((views.group(0).count, views.count()), (cfg[1], cfg[1] + cfg[2]), "the crops are those of cfg.crops");
    let (batch, micro_batch) = (cfg[0], cfg[0] / parts);
    Plan::new(Config {
        backbone,
        head,
        objective: Objective { targets: Targets::Centered { momentum: constants(f)[1] }, ..Objective::PUBLISHED },
        optimizer: OPTIMIZER,
        teacher: TEACHER,
        views,
        batch,
        micro_batch,
        drop_path: false,
        recompute: parts > 1,
        stream_crops,
        bn_group: None,
    })
    .expect("a valid plan")
}

/// The constants are meant as the decimals they print as, not as their f32 roundings.
fn decimal(x: f64) -> f64 {
    (x as f32).to_string().parse().unwrap()
}

/// The constants of the recipe.
fn constants(f: &Fixture) -> Vec<f64> {
    f.get("hp.const").data.iter().map(|&x| decimal(x)).collect()
}

/// The numbers of step `i`; `frozen`: in how many first steps the last layer is withheld.
fn hyper(f: &Fixture, i: usize, clip_grad: f64, frozen: usize) -> Hyper {
    let constant = constants(f);
    let AdamW { beta1, beta2, eps } = AdamW::PUBLISHED; // those of the plan
    assert_eq!(constant[2..], [beta1, beta2, eps, layernorm::EPS]);
    Hyper {
        lr: f.get("hp.lr").data[i],
        weight_decay: f.get("hp.wd").data[i],
        momentum: f.get("hp.momentum").data[i],
        teacher_temp: f.get("hp.temp").data[i],
        student_temp: constant[0],
        clip_grad,
        step: i as u64 + 1,
        step_last: (i + 1).saturating_sub(frozen) as u64,
        freeze_last: i < frozen,
    }
}

fn initial<'a>(f: &'a Fixture, net: Net, name: &str, gain: Option<&'a Tensor>) -> &'a Tensor {
    let network = if net == Net::Student { "student" } else { "teacher" };
    match gain {
        Some(gain) if name == "head.last_layer.weight_g" => gain,
        _ => f.get(&format!("init.{network}.{name}")),
    }
}

/// A run in the state in which the file's begin, its batch in so many parts.
fn start<F: Factory>(f: &Fixture, train_gain: bool, gain: Option<&Tensor>, split: Split) -> Run<F::Backend> {
    let mut run = Run::new::<F>(plan(f, train_gain, split));
    for net in [Net::Student, Net::Teacher] {
        run.load(net, |spec| {
            let tensor = initial(f, net, &spec.name.to_string(), gain);
            assert_eq!(tensor.shape, spec.shape(), "published shape of {}", spec.name);
            tensor.data.clone()
        });
    }
    let named = f.between("init.student.", "").len();
    assert_eq!(named, run.plan.table.tensors(), "the table has the published tensors and no others");
    run.set_center(&f.get("init.center").data);
    run
}

// ------------------------------------------------------------------------------------------------------------ forward

/// A dense pass that keeps every block's stream, with memory for all attention rows.
fn dense_plan(backbone: Backbone, crops: Crops) -> FeaturePlan {
    let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
    let mut l = Layout::new();
    let network = backbone.network(crops, Statistics::Running, State::EMPTY, &mut l);
    let pixels = network.pixels(&mut l);
    let pass = network.pass([0, crops.count()], Output::Dense, Save::All, State::EMPTY, &mut l);
    let attention = l.act(crops.tokens(vit.patch).squares() * vit.heads);
    let Extents { longest, head_dim, widest, filters, sums } = backbone.extents(&crops, None);
    let pools = Pools {
        weights: l.weights.next,
        grads: 0,
        slots: 0,
        acts: l.acts.next,
        stats: l.stats.next,
        state: l.state.next,
        input: 0,
        loss: LossDims::NONE,
        longest,
        head_dim,
        widest,
        filters,
        sums,
        lanes: 1,
        exchanged: 0,
    };
    FeaturePlan { backbone, network, pixels, pass, attention, pools }
}

/// Runs a feature plan over `pixels` with the named network's initial weights.
fn features<F: Factory>(f: &Fixture, net: Net, p: &FeaturePlan, pixels: &[f64]) -> F::Backend {
    let mut o = make_poisoned::<F>(p.pools);
    let mut state = vec![0.0f64; p.pools.state];
    p.initial_state(&mut state);
    o.write(Pool::State, 0, &state);
    p.backbone.params(&mut Layout::new(), &mut |spec: Spec| {
        write(&mut o, spec.at, &initial(f, net, &spec.name.to_string(), None).data);
    });
    write(&mut o, p.pixels, pixels);
    p.forward(&mut o);
    o
}

/// Row 0 of every crop.
fn class_rows(normed: &[f64], crops: usize, cols: usize) -> Vec<f64> {
    normed.chunks(normed.len() / crops).flat_map(|crop| crop[..cols].to_vec()).collect()
}

fn forward_taps<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    let Table { backbone, .. } = table(&f, false);
    let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
    let (views, globals) = (views(&f, 0), f.get("cfg.crops").sizes()[1]);
    for (net, name, which) in [
        (Net::Student, "out.student.global", &views[..globals]),
        (Net::Student, "out.student.local", &views[globals..]),
        (Net::Teacher, "out.teacher.global", &views[..globals]),
    ] {
        let images = f.get("cfg.crops").sizes()[0];
        let (height, width) = (which[0].height, which[0].width);
        let crops = Crops::one(Group { count: which.len() * images, height, width });
        let pixels: Vec<f64> = which.iter().flat_map(|v| v.pixels.clone()).collect();
        let p = dense_plan(backbone, crops);
        let mut o = features::<F>(&f, net, &p, &pixels);
        p.pass.attention(&mut o, p.attention, p.pools.longest);
        let normed = read(&mut o, p.pass.y());
        f.assert_golden(&format!("{name}.attn"), &read(&mut o, p.attention));
        f.assert_golden(&format!("{name}.normed"), &normed);
        f.assert_golden(&format!("{name}.cls"), &class_rows(&normed, crops.count(), vit.dim));
        if net == Net::Student {
            let Pass::Vit(pass) = p.pass else { panic!("a ViT") };
            f.assert_golden(&format!("{name}.tokens"), &read(&mut o, pass.acts.stream(0)));
            for i in 0..vit.depth {
                f.assert_golden(&format!("{name}.block{i}"), &read(&mut o, pass.acts.stream(i + 1)));
            }
        }
        // The form that training uses: class rows alone.
        let p = FeaturePlan::new(backbone, crops, Output::Class, 0).expect("a valid plan");
        let mut o = features::<F>(&f, net, &p, &pixels);
        f.assert_golden(&format!("{name}.cls"), &read(&mut o, p.pass.y()));
    }
    f.finish(test, TAPS, &[]);
}

fn odd_images<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    let Table { backbone, .. } = table(&f, false);
    let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
    for odd in f.between("in.odd", "") {
        let x = f.get(&format!("in.odd{odd}"));
        let crops = Crops::one(Group { count: x.shape[0], height: x.shape[2], width: x.shape[3] });
        let p = FeaturePlan::new(backbone, crops, Output::Dense, usize::MAX).expect("a valid plan");
        let mut o = features::<F>(&f, Net::Student, &p, &x.data);
        p.pass.attention(&mut o, p.attention, p.pools.longest);
        f.assert_golden(&format!("out.odd{odd}.attn"), &read(&mut o, p.attention));
        let cls = class_rows(&read(&mut o, p.pass.y()), crops.count(), vit.dim);
        f.assert_golden(&format!("out.odd{odd}.cls"), &cls);
        // The class token's own position is never resized.
        let mut positions = f.get("init.student.pos_embed").data[..vit.dim].to_vec();
        let Network::Vit(network) = p.network else { panic!("a ViT") };
        positions.extend(read(&mut o, network.positions.group(0).0));
        f.assert_golden(&format!("out.odd{odd}.pos"), &positions);

        let p = FeaturePlan::new(backbone, crops, Output::Class, 0).expect("a valid plan");
        let mut o = features::<F>(&f, Net::Student, &p, &x.data);
        f.assert_golden(&format!("out.odd{odd}.cls"), &read(&mut o, p.pass.y()));
    }
    f.finish(test, ODD, &[]);
}

/// The class rows of the last blocks, against the recorded streams and the norm's formula in f64.
fn last_blocks<F: Factory>(_test: &str) {
    let f = Fixture::open("vit_train");
    let Table { backbone, .. } = table(&f, false);
    let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
    let (views, images) = (&views(&f, 0)[..1], f.get("cfg.crops").sizes()[0]);
    let globals = f.get("cfg.crops").sizes()[1];
    let [w, b] = ["weight", "bias"].map(|x| &f.get(&format!("init.student.norm.{x}")).data);
    let norm = |block: usize| -> Vec<f64> {
        let stream = &f.get(&format!("out.student.global.block{block}")).data;
        let rows = class_rows(stream, images * globals, vit.dim);
        rows[..images * vit.dim]
            .chunks(vit.dim)
            .flat_map(|x| {
                let mean = x.iter().sum::<f64>() / x.len() as f64;
                let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
                let scaled = move |(i, x): (usize, &f64)| (x - mean) / (var + layernorm::EPS).sqrt() * w[i] + b[i];
                x.iter().enumerate().map(scaled).collect::<Vec<_>>()
            })
            .collect()
    };
    let group = Group { count: images, height: views[0].height, width: views[0].width };
    for output in [Output::Class, Output::Dense] {
        let p = BlocksPlan::new(backbone, Crops::one(group), output, vit.depth).expect("a valid plan");
        let plan = FeaturePlan { pools: p.pools, ..p.plan };
        let mut o = features::<F>(&f, Net::Student, &plan, &views[0].pixels);
        write(&mut o, plan.pixels, &views[0].pixels); // the first pass has written over them
        p.forward(&mut o);
        let expected: Vec<f64> = (0..vit.depth - 1).flat_map(norm).collect();
        assert_close("class rows of earlier blocks", &read(&mut o, p.earlier.classes), &expected, 2e-5);
        let last = read(&mut o, p.plan.pass.y());
        assert_close("class rows of the last block", &class_rows(&last, images, vit.dim), &norm(vit.depth - 1), 2e-5);
    }
    for blocks in [0, vit.depth + 1] {
        let refused = BlocksPlan::new(backbone, Crops::one(group), Output::Class, blocks).unwrap_err();
        assert_eq!(refused, PlanError::Blocks { blocks, depth: vit.depth });
    }
}

/// All groups of different sizes in one ragged batch, both forms, against each group alone.
fn class_form_equals_dense_form<F: Factory>(_test: &str) {
    let f = Fixture::open("vit_train");
    let Table { backbone, .. } = table(&f, false);
    let Backbone::Vit(vit) = backbone else { panic!("a ViT") };
    let (mut crops, mut pixels, mut alone) = (Crops::EMPTY, Vec::new(), Vec::new());
    for odd in f.between("in.odd", "") {
        let x = f.get(&format!("in.odd{odd}"));
        let group = Group { count: x.shape[0], height: x.shape[2], width: x.shape[3] };
        let p = FeaturePlan::new(backbone, Crops::one(group), Output::Class, 0).expect("a valid plan");
        let mut o = features::<F>(&f, Net::Student, &p, &x.data);
        alone.extend(read(&mut o, p.pass.y()));
        crops = crops.with(group);
        pixels.extend(&x.data);
    }
    let p = FeaturePlan::new(backbone, crops, Output::Class, 0).expect("a valid plan");
    let mut o = features::<F>(&f, Net::Student, &p, &pixels);
    let class = read(&mut o, p.pass.y());
    let p = FeaturePlan::new(backbone, crops, Output::Dense, 0).expect("a valid plan");
    let mut o = features::<F>(&f, Net::Student, &p, &pixels);
    let dense = read(&mut o, p.pass.y());
    let Pass::Vit(pass) = p.pass else { panic!("a ViT") };
    let rows = pass.acts.tokens();
    let dense: Vec<f64> = rows.each().flat_map(|(first, _)| dense[first * vit.dim..][..vit.dim].to_vec()).collect();
    assert_close("class form against dense form", &class, &dense, 2e-6);
    assert_close("ragged batch against one group at a time", &class, &alone, 2e-6);
}

/// |a - b| <= tolerance * |b| as vectors.
fn assert_close(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}: lengths");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied());
    assert!(error <= tolerance, "{what}: relative error {error:.3e}, allowed {tolerance:.1e}");
}

// --------------------------------------------------------------------------------------------------- loss and gradients

fn head_and_loss<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    let mut run = start::<F>(&f, false, None, WHOLE);
    let h = hyper(&f, 0, 0.0, 0);
    run.accumulate(&h, &views(&f, 0));
    let p = run.plan;
    let pass = p.passes().next().expect("all crops at once");
    f.assert_golden("out.student.bottleneck", &read(&mut run.o, pass.head.bottleneck()));
    f.assert_golden("out.student.bottleneck_unit", &read(&mut run.o, pass.head.z));
    f.assert_golden("out.loss", &[run.loss()]);

    // Training streams the logits; here they are made once more, in memory of their own.
    let (k, cols) = (p.table.head.prototypes, p.table.head.bottleneck);
    let mut logits = |net: Net| {
        let (from, z) = if net == Net::Student { (&p.student, pass.head.z) } else { (&p.teacher, p.teacher_head.z) };
        let z = read(&mut run.o, z);
        let mut a = Arena::new();
        let (y, at) = (a.act(z.len() / cols * k), a.input(&z));
        let v = a.weight(&read(&mut run.o, from.head_weights.v));
        let scale = a.stats(&read(&mut run.o, from.scale));
        let mut o = a.build::<F>();
        o.logits(y, at, Prototypes { v, scale }, Mat { rows: z.len() / cols, inp: cols, out: k });
        read(&mut o, y)
    };
    let (student, teacher) = (logits(Net::Student), logits(Net::Teacher));
    f.assert_golden("out.student.logits", &student);
    f.assert_golden("out.teacher.logits", &teacher);

    let center = &f.get("init.center").data;
    f.assert_golden("out.teacher.probs", &tests::training::teacher_probs::<F>(&teacher, center, &h));

    // With unit prototypes the rows are the logits, so that dz is their gradient.
    let dims = LossDims { bottleneck: k, ..p.loss_dims() };
    let dz = tests::training::loss_over_logits::<F>(dims, &student, &teacher, center, &h).dz;
    f.assert_golden("out.logit_grad", &dz);

    dino_kernel::step::commit(&mut run.o, &p);
    f.assert_golden("out.center", &read(&mut run.o, p.targets.rows.offset));
    f.finish(test, HEAD, &[]);
}

fn gradients<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    // The file states the gain's gradient too, though scenario A does not train it.
    let mut run = start::<F>(&f, true, None, WHOLE);
    run.accumulate(&hyper(&f, 0, 0.0, 0), &views(&f, 0));
    run.finish_grads();
    for spec in run.specs() {
        f.assert_golden(&format!("grad.{}", spec.name), &run.grad(&spec));
    }
    // A frozen gain gets no gradient, and changes nobody else's.
    let mut frozen = start::<F>(&f, false, None, WHOLE);
    frozen.accumulate(&hyper(&f, 0, 0.0, 0), &views(&f, 0));
    frozen.finish_grads();
    for spec in frozen.specs() {
        if spec.at == frozen.plan.student.head_weights.g {
            assert!(read_grad(&mut frozen.o, spec.at).iter().all(|&g| g == 0.0), "{} is frozen", spec.name);
        } else {
            assert_eq!(frozen.grad(&spec), run.grad(&spec), "{}", spec.name);
        }
    }
    f.finish(test, GRADIENTS, &[]);
}

// --------------------------------------------------------------------------------------------------------------- steps

/// Compares everything the file states about the state after `done` steps.
fn compare<O: dino_kernel::backend::Update + Memory>(
    f: &Fixture,
    run: &mut Run<O>,
    tag: &str,
    done: usize,
    gain: Option<&Tensor>,
) {
    for (net, network) in [(Net::Student, "student"), (Net::Teacher, "teacher")] {
        for spec in run.specs() {
            let name = spec.name.to_string();
            let got = run.parameter(net, &spec);
            f.assert_parameter(&format!("{tag}after{done}.{network}.{name}"), initial(f, net, &name, gain), &got);
        }
    }
    f.assert_golden(&format!("{tag}after{done}.center"), &read(&mut run.o, run.plan.targets.rows.offset));
}

/// All steps of a scenario, compared wherever the file states a value.
fn scenario<F: Factory>(
    f: &Fixture,
    tag: &str,
    run: &mut Run<F::Backend>,
    gain: Option<&Tensor>,
    clip: f64,
    frozen: usize,
) {
    let steps = f.get("hp.lr").data.len();
    let mut losses = Vec::new();
    for i in 0..steps {
        run.step(&hyper(f, i, clip, frozen), &views(f, i));
        assert_eq!(run.monitor(monitor::FINITE), 1.0, "step {i} was taken");
        losses.push(run.loss());
        if f.has(&format!("{tag}after{}.center", i + 1)) {
            compare(f, run, tag, i + 1, gain);
        }
    }
    f.assert_golden(&format!("{tag}losses"), &losses);
}

/// The parts of a batch, and whether the student sees their crops one after another.
type Split = (usize, bool);

const WHOLE: Split = (1, false);

/// Every split of a batch.
fn splits(f: &Fixture) -> impl Iterator<Item = Split> {
    let batch = f.get("cfg.crops").sizes()[0];
    (1..=batch).filter(move |parts| batch.is_multiple_of(*parts)).flat_map(|parts| [(parts, false), (parts, true)])
}

fn scenario_a<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    for split in splits(&f) {
        let mut run = start::<F>(&f, false, None, split);
        scenario::<F>(&f, "", &mut run, None, 0.0, 0);
    }
    f.finish(test, SCENARIO_A, &[]);
}

fn scenario_b<F: Factory>(test: &str) {
    let f = Fixture::open("vit_train");
    let (clip, frozen) = (f.get("hp.b").data[0], f.get("hp.b").data[1] as usize);
    let gain = Some(f.get("b.init.weight_g"));

    let mut run = start::<F>(&f, true, gain, WHOLE);
    run.accumulate(&hyper(&f, 0, clip, frozen), &views(&f, 0));
    run.finish_grads();
    let order: Vec<&str> =
        f.meta("b_grad_norm_order").as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut norms = vec![f64::NAN; order.len()];
    for spec in run.specs() {
        let at = order.iter().position(|&name| name == spec.name.to_string()).expect("a norm of every parameter");
        norms[at] = run.grad(&spec).iter().map(|g| g * g).sum::<f64>().sqrt();
    }
    f.assert_golden("b.grad_norms", &norms);

    assert!(norms.iter().any(|&n| n > clip), "the scenario clips");
    let steps = f.get("hp.lr").data.len();
    for split in splits(&f) {
        let mut run = start::<F>(&f, true, gain, split);
        scenario::<F>(&f, "b.", &mut run, gain, clip, frozen);
        for spec in run.specs() {
            for (which, moment) in ["adam_m", "adam_v"].into_iter().enumerate() {
                let key = format!("b.after{steps}.{moment}.{}", spec.name);
                if f.has(&key) {
                    f.assert_golden(&key, &run.slot(which, &spec));
                }
            }
        }
    }
    let last = hyper(&f, steps - 1, clip, frozen);
    f.assert_golden(&format!("b.after{steps}.adam_t"), &[last.step as f64, last.step_last as f64]);

    // The monitor reports the norm of all gradients before the clip.
    let mut run = start::<F>(&f, true, gain, WHOLE);
    run.step(&hyper(&f, 0, clip, frozen), &views(&f, 0));
    let total = norms.iter().map(|n| n * n).sum::<f64>().sqrt();
    let (got, want) = (run.monitor(monitor::GRAD_NORM), total);
    assert!((got - want).abs() <= 1e-6 * want, "gradient norm {got}, want {want}");
    f.finish(test, SCENARIO_B, &[]);
}

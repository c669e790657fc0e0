//! The loss at extreme temperatures, the optimizer's ops and the schedules against golden tensors.

use dino_host::cpu::Cpu;
use dino_kernel::backend::{LossDims, Memory, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::Pool;
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::lars::block as lars_block;
use dino_kernel::optim::{At, Lars, Optimizer, Sgd};
use dino_kernel::params::{ParamGroup, Spec};
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::{hyper, monitor};
use dino_kernel::schedule::{Cosine, TeacherTemp};
use dino_kernel::step::Hyper;
use std::collections::BTreeMap;
use tests::backend::{Factory, Reference, write};
use tests::fixture::Fixture;
use tests::for_backends;
use tests::gpu::OnGpu;
use tests::plans::ordinary;
use tests::training::{Net, OBJECTIVE, OPTIMIZER, Run, loss_over_logits, teacher_copies_and_keeps, teacher_probs};

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu, gpu: OnGpu<false, 1024>] [loss, adamw, sgd, lars, clip, ema, teacher_rates]);

/// Neutral numbers; each test sets what it is about.
fn quiet() -> Hyper {
    Hyper {
        lr: 0.0,
        weight_decay: 0.0,
        momentum: 1.0,
        teacher_temp: 1.0,
        student_temp: 1.0,
        clip_grad: 0.0,
        step: 1,
        step_last: 1,
        freeze_last: false,
    }
}

// ---------------------------------------------------------------------------------------------------------------- loss

fn loss<F: Factory>(who: &str) {
    let f = Fixture::open("loss");
    for case in f.between("", ".temps") {
        let key = |k: &str| format!("{case}.{k}");
        let get = |k: &str| f.get(&key(k));
        let k = get("center").last();
        let (teachers, views) = (get("pairs").shape[0], get("pairs").shape[1]);
        let images = get("student").rows() / views;
        let temps = &get("temps").data;
        let h = Hyper { student_temp: temps[0], teacher_temp: temps[1], ..quiet() };
        let n = LossDims { images, first_view: 0, views, teachers, bottleneck: k, prototypes: k };
        let (student, teacher, center) = (&get("student").data, &get("teacher").data, &get("center").data);
        let got = loss_over_logits::<F>(n, student, teacher, center, &h);

        let scale = h.derive(OPTIMIZER, OBJECTIVE, images, views, teachers)[hyper::LOSS_SCALE];
        f.assert_golden(&key("loss"), &[got.loss.iter().sum::<f64>() * scale]);
        f.assert_golden(&key("dstudent"), &got.dz);
        f.assert_golden(&key("center_new"), &got.center);
        f.assert_golden(&key("teacher_entropy"), &got.entropy);
        f.assert_golden(&key("probs"), &teacher_probs::<F>(teacher, center, &h));

        // One teacher view with every student view: numbered from one on, no student view is the teacher's own.
        let mut pairs = Vec::new();
        for i in 0..teachers {
            let n = LossDims { first_view: 1, teachers: 1, ..n };
            let rows = &teacher[i * images * k..][..images * k];
            let got = loss_over_logits::<F>(n, student, rows, center, &h);
            pairs.extend(got.loss.chunks(images).map(|view| view.iter().sum::<f64>() / images as f64));
        }
        f.assert_golden(&key("pairs"), &pairs);
    }
    f.finish(who, &[""], &[]);
}

// ----------------------------------------------------------------------------------------------------------- optimizer

/// A network whose tensors take any of the file's parameters, which are then the first elements of theirs.
fn roomy<F: Factory>(longest: usize, optimizer: Optimizer) -> Run<F::Backend> {
    let side = longest.max(2);
    let backbone = Backbone::Vit(Vit {
        image: 1,
        patch: 1,
        channels: side,
        dim: side,
        depth: 1,
        heads: side,
        mlp: side,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head = Head {
        inp: side,
        layers: 1,
        hidden: 1,
        bottleneck: side,
        prototypes: side,
        train_gain: true,
        ..Head::PUBLISHED
    };
    let views = Crops::one(Group { count: 2, height: 1, width: 1 });
    let config = Config { optimizer, ..ordinary(backbone, head, views, [1, 1]) };
    let mut run = Run::new::<F>(Plan::new(config).expect("a sound plan"));
    for net in [Net::Student, Net::Teacher] {
        run.load(net, |spec| vec![0.0; spec.at.len()]);
    }
    let mut taken = [0.0; monitor::LEN];
    taken[monitor::FINITE] = 1.0;
    write(&mut run.o, run.plan.monitor, &taken);
    run
}

/// Which tensors of the network replace the file's: decayed if it has several axes, the last layer's if it is withheld.
fn stand_ins<O: Update + Memory>(run: &Run<O>, shapes: &[&[usize]], withheld: &[bool]) -> Vec<Spec> {
    let mut free = run.specs();
    let pick = |(shape, &last): (&&[usize], &bool)| {
        let group = match (shape.len() > 1, last) {
            (true, false) => ParamGroup::Decay,
            (false, false) => ParamGroup::Plain,
            (true, true) => ParamGroup::LastDecay,
            (false, true) => ParamGroup::LastPlain,
        };
        let len: usize = shape.iter().product();
        let fits = |s: &Spec| s.group == group && s.at.len() >= len;
        free.swap_remove(free.iter().position(fits).expect("a tensor of that group"))
    };
    shapes.iter().zip(withheld).map(pick).collect()
}

fn put_grad<O: Memory>(o: &mut O, spec: &Spec, values: &[f64]) {
    o.write(Pool::Grads, spec.at.0.at, values);
}

/// What [`walk`] leaves behind.
struct Walk<O> {
    run: Run<O>,
    names: Vec<String>,
    specs: Vec<Spec>,
    lens: Vec<usize>,
    withheld: Vec<bool>,
    /// The last step's numbers.
    last: Hyper,
}

/// All steps of the file with one of its optimizers, whose tensors begin with `prefix`; every parameter is compared after every step.
fn walk<F: Factory>(f: &Fixture, prefix: &str, optimizer: Optimizer, rates: &str) -> Walk<F::Backend> {
    let names: Vec<String> = f.between("p", "").into_iter().map(String::from).collect();
    let steps = f.get(rates).data.len();
    let counts = f.get("adamw.t").sizes();
    // A tensor with fewer steps was withheld in the first ones, from every optimizer.
    let withheld: Vec<bool> = counts.iter().map(|&t| t < steps).collect();
    let frozen = steps - counts.iter().min().unwrap();
    let p: Vec<_> = names.iter().map(|i| f.get(&format!("p{i}"))).collect();
    let lens: Vec<usize> = p.iter().map(|p| p.data.len()).collect();
    let mut run = roomy::<F>(*lens.iter().max().unwrap(), optimizer);
    let shapes: Vec<&[usize]> = p.iter().map(|p| p.shape.as_slice()).collect();
    let specs = stand_ins(&run, &shapes, &withheld);
    for (p, spec) in p.iter().zip(&specs) {
        run.o.write(Pool::Weights, spec.at.0.at, &p.data);
    }
    let mut last = quiet();
    for step in 0..steps {
        last = Hyper {
            lr: f.get(rates).data[step],
            weight_decay: f.get("hp.wd").data[step],
            step: step as u64 + 1,
            step_last: (step + 1).saturating_sub(frozen) as u64,
            freeze_last: step < frozen,
            ..quiet()
        };
        run.set_hyper(&last);
        for (i, spec) in names.iter().zip(&specs) {
            put_grad(&mut run.o, spec, &f.get(&format!("g{i}.{step}")).data);
        }
        run.o.optimize(run.plan.config.optimizer, &run.plan.table, run.plan.monitor, run.plan.hyper);
        for ((i, len), spec) in names.iter().zip(&lens).zip(&specs) {
            let got = run.parameter(Net::Student, spec);
            f.assert_golden(&format!("{prefix}p{i}.{step}"), &got[..*len]);
            assert!(got[*len..].iter().all(|&x| x == 0.0), "without a gradient, zero stays zero");
        }
    }
    Walk { run, names, specs, lens, withheld, last }
}

fn adamw<F: Factory>(who: &str) {
    let f = Fixture::open("optim");
    let Walk { mut run, names, specs, lens, withheld, last } = walk::<F>(&f, "adamw.", OPTIMIZER, "hp.lr");
    for ((i, len), spec) in names.iter().zip(lens).zip(&specs) {
        f.assert_golden(&format!("adamw.m{i}"), &run.slot(0, spec)[..len]);
        f.assert_golden(&format!("adamw.v{i}"), &run.slot(1, spec)[..len]);
    }
    let t: Vec<f64> = withheld.iter().map(|&w| if w { last.step_last } else { last.step } as f64).collect();
    f.assert_golden("adamw.t", &t);
    f.finish(who, &["adamw."], &[]);
}

fn sgd<F: Factory>(who: &str) {
    let f = Fixture::open("optim");
    walk::<F>(&f, "sgd.", Optimizer::Sgd(Sgd::PUBLISHED), "sgd.lr");
    f.finish(who, &["sgd."], &[]);
}

fn lars<F: Factory>(who: &str) {
    let f = Fixture::open("optim");
    walk::<F>(&f, "lars.", Optimizer::Lars(Lars::PUBLISHED), "lars.lr");
    f.finish(who, &["lars."], &[]);
}

/// LARS tells tensors by their number of axes, numbers come by the group: they agree, the gain of the prototypes (K, 1) included.
#[test]
fn lars_scales_tensors_of_several_axes_alone() {
    let run = roomy::<Reference<f32>>(4, Optimizer::Lars(Lars::PUBLISHED));
    let at = At { lr: 0.1, weight_decay: 0.2, step: 1 };
    for spec in run.specs() {
        let numbers = run.plan.config.optimizer.numbers(at, spec.group);
        let scaled = if spec.rank == 1 { [0.0, 0.0] } else { [0.2, 0.001] };
        assert_eq!([numbers[lars_block::DECAY], numbers[lars_block::ETA]], scaled, "{}", spec.name);
    }
    let gain = run.specs().into_iter().find(|spec| spec.name.leaf == "last_layer.weight_g").expect("a gain");
    assert_eq!((gain.rank, gain.group), (2, ParamGroup::LastDecay));
}

fn clip<F: Factory>(who: &str) {
    let f = Fixture::open("optim");
    let names = f.between("clip.g", "");
    let gradients: Vec<_> = names.iter().map(|i| f.get(&format!("clip.g{i}"))).collect();
    let mut run = roomy::<F>(gradients.iter().map(|g| g.data.len()).max().unwrap(), OPTIMIZER);
    let shapes: Vec<&[usize]> = gradients.iter().map(|g| g.shape.as_slice()).collect();
    let specs = stand_ins(&run, &shapes, &vec![false; shapes.len()]);
    run.set_hyper(&Hyper { clip_grad: f.get("clip.limit").scalar(), ..quiet() });
    let mut norms = Vec::new();
    for (g, spec) in gradients.iter().zip(&specs) {
        run.o.zero_grads();
        put_grad(&mut run.o, spec, &g.data);
        run.o.clip(run.plan.monitor, &run.plan.table, run.plan.hyper);
        norms.push(run.monitor(monitor::GRAD_NORM));
    }
    f.assert_golden("clip.norms", &norms);
    // All at once: each tensor by its own norm.
    for (g, spec) in gradients.iter().zip(&specs) {
        put_grad(&mut run.o, spec, &g.data);
    }
    run.o.clip(run.plan.monitor, &run.plan.table, run.plan.hyper);
    for ((i, g), spec) in names.iter().zip(&gradients).zip(&specs) {
        f.assert_golden(&format!("clip.out{i}"), &run.grad(spec)[..g.data.len()]);
    }
    f.finish(who, &["clip."], &[]);
}

fn ema<F: Factory>(who: &str) {
    let f = Fixture::open("optim");
    let (student, teacher) = (&f.get("ema.student").data, &f.get("ema.teacher").data);
    let mut run = roomy::<F>(student.len(), OPTIMIZER);
    run.set_hyper(&Hyper { momentum: f.get("ema.m").scalar(), ..quiet() });
    // Every parameter is averaged, a frozen one too.
    for spec in run.specs() {
        let len = spec.at.len();
        let repeat = |x: &[f64]| x.iter().copied().cycle().take(len).collect::<Vec<_>>();
        let (s, t) = (run.place(Net::Student, &spec), run.place(Net::Teacher, &spec));
        write(&mut run.o, s, &repeat(student));
        write(&mut run.o, t, &repeat(teacher));
    }
    run.o.ema(run.plan.monitor, &run.plan.table, run.plan.hyper);
    for spec in run.specs().into_iter().filter(|s| s.at.len() >= student.len()) {
        f.assert_golden("ema.out", &run.parameter(Net::Teacher, &spec)[..student.len()]);
        assert_eq!(run.parameter(Net::Student, &spec)[0], read_back::<F>(student[0]), "the student stays");
    }
    f.finish(who, &["ema."], &[]);
}

fn teacher_rates<F: Factory>(_: &str) {
    teacher_copies_and_keeps::<F>();
}

/// A number as the backend stores it.
fn read_back<F: Factory>(x: f64) -> f64 {
    let mut a = tests::backend::Arena::new();
    let at = a.state(&[x]);
    tests::backend::read(&mut a.build::<F>(), at)[0]
}

// ----------------------------------------------------------------------------------------------------------- schedules

#[test]
fn schedules() {
    let f = Fixture::open("optim");
    for name in f.between("cosine.", ".args") {
        let &[base, end, epochs, per_epoch, warmup, start] = f.get(&format!("cosine.{name}.args")).data.as_slice()
        else {
            panic!("six arguments");
        };
        let (steps, warmup) = ((epochs * per_epoch) as u64, (warmup * per_epoch) as u64);
        let schedule = Cosine { start, base, end, warmup, steps };
        f.assert_golden(&format!("cosine.{name}"), &(0..steps).map(|i| schedule.at(i)).collect::<Vec<_>>());
    }
    for name in f.between("teacher_temp.", ".args") {
        let &[warmup, end, epochs, all] = f.get(&format!("teacher_temp.{name}.args")).data.as_slice() else {
            panic!("four arguments");
        };
        let schedule = TeacherTemp { warmup, end, epochs: epochs as u64 };
        f.assert_golden(&format!("teacher_temp.{name}"), &(0..all as u64).map(|e| schedule.at(e)).collect::<Vec<_>>());
    }
    f.finish("schedules", &["cosine.", "teacher_temp."], &[]);
}

#[test]
fn every_golden_tensor_belongs_to_a_test() {
    let f = Fixture::open("optim");
    let all = ["adamw.", "sgd.", "lars.", "clip.", "ema.", "cosine.", "teacher_temp."];
    assert_eq!(f.outputs(&all), f.outputs(&[""]));
    let counts: BTreeMap<&str, usize> = all.iter().map(|&p| (p, f.outputs(&[p]).len())).collect();
    assert!(counts.values().all(|&n| n > 0), "{counts:?}");
}

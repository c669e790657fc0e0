//! Projection heads that differ from the published one, against PyTorch: rows, logits, loss, gradients, running statistics. What shapes do
//! not tell is in `V.cfg` and `V.shape` (`tests/cases/make_heads.py`).

use crate::golden_resnet::logits;
use dino_host::cpu::Cpu;
use dino_kernel::backend::{LossSpans, StudentRows, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::{Activation, Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::params::Buffer;
use dino_kernel::plan::{self, Plan};
use dino_kernel::scalars::monitor;
use dino_kernel::step::{self, Hyper};
use tests::backend::{Factory, Reference, read, write};
use tests::fixture::Fixture;
use tests::for_backends;
use tests::plans::ordinary;
use tests::training::{Net, Run, hyper_numbers};

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu] [every_head]);

fn every_head<F: Factory>(who: &str) {
    let f = Fixture::open("heads");
    let variants: Vec<String> = f.between("", ".shape").into_iter().map(String::from).collect();
    assert!(!variants.is_empty());
    variants.iter().for_each(|variant| one::<F>(&f, variant));
    f.finish(who, &[""], &[]);
}

fn head(f: &Fixture, variant: &str) -> Head {
    let [layers, hidden, bottleneck, relu, l2, gain] = f.get(&format!("{variant}.shape")).sizes()[..] else {
        panic!("six numbers")
    };
    let has = |name: &str| f.has(&format!("{variant}.student.{name}"));
    let rows = |name: &str| f.get(&format!("{variant}.student.{name}")).shape[0];
    let weight_norm = has("last_layer.weight_v");
    Head {
        inp: f.get(&format!("{variant}.x_student")).last(),
        layers,
        hidden,
        bottleneck,
        prototypes: rows(if weight_norm { "last_layer.weight_v" } else { "last_layer.weight" }),
        activation: if relu == 1 { Activation::Relu } else { Activation::Gelu },
        batch_norm: has("mlp.1.running_mean") || has("predictor.1.running_mean"),
        l2_norm: l2 == 1,
        weight_norm,
        train_gain: gain == 1,
        predictor: if has("predictor.0.weight") { rows("predictor.0.weight") } else { 0 },
    }
}

/// A plan whose backbone is not run: its rows are the fixture's.
fn plan(f: &Fixture, variant: &str) -> Plan {
    let head = head(f, variant);
    let cfg = f.get(&format!("{variant}.cfg")).sizes();
    let backbone = Backbone::Vit(Vit {
        image: 4,
        patch: 2,
        channels: 1,
        dim: head.inp,
        depth: 1,
        heads: 1,
        mlp: 4,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let group = |count, side| Group { count, height: side, width: side };
    let views = Crops::one(group(cfg[2], 4)).with(group(cfg[1] - cfg[2], 2));
    Plan::new(ordinary(backbone, head, views, [cfg[0], cfg[0]])).expect("a sound plan")
}

fn one<F: Factory>(f: &Fixture, variant: &str) {
    let plan = plan(f, variant);
    let mut run = Run::new::<F>(plan);
    let name = |part: &str, of: &str| format!("{variant}.{part}{}", of.strip_prefix("head.").unwrap_or(of));
    for (net, part) in [(Net::Student, "student."), (Net::Teacher, "teacher.")] {
        let tensors = run.specs_of(net).iter().filter(|spec| spec.name.part == "head.").count();
        let mut buffers = 0;
        let table = if net == Net::Student { plan.table } else { plan.table.of_teacher() };
        table.visit_buffers(|_| buffers += 1);
        assert_eq!(f.between(&format!("{variant}.{part}"), "").len(), tensors + buffers, "{variant}: no other tensors");
        run.load(net, |spec| {
            if spec.name.part != "head." {
                return vec![0.0; spec.at.len()];
            }
            let tensor = f.get(&name(part, &spec.name.to_string()));
            assert_eq!(tensor.shape, spec.shape(), "{variant}: shape of {}", spec.name);
            tensor.data.clone()
        });
    }
    let mut buffers: Vec<(&str, plan::Net, Buffer)> = Vec::new();
    plan.table.visit_buffers(|b| buffers.push(("student.", plan.student, b)));
    plan.table.of_teacher().visit_buffers(|b| buffers.push(("teacher.", plan.teacher, b)));
    for (part, net, b) in &buffers {
        write(&mut run.o, net.running.part(b.at.0.at, b.at.len()), &f.get(&name(part, &b.name.to_string())).data);
    }
    let temp = |key: &str| f.meta(key).as_f64().expect("a temperature");
    let h = Hyper { teacher_temp: temp("teacher_temp"), student_temp: temp("student_temp"), ..hyper_numbers() };
    run.set_hyper(&h);
    run.set_center(&f.get(&name("", "center")).data);

    step::begin(&mut run.o, &plan);
    let (shape, objective) = (plan.table.head, plan.config.objective);
    write(&mut run.o, plan.teacher_pass.y(), &f.get(&name("", "x_teacher")).data);
    shape.teacher().forward(&mut run.o, &plan.teacher.head_weights, &plan.teacher_head, plan.teacher_pass.y());
    objective.targets(&mut run.o, &plan.targets, plan.monitor, plan.hyper, plan.loss_dims());
    f.assert_golden(&name("", "z_teacher"), &read(&mut run.o, plan.teacher_head.z));
    f.assert_golden(&name("", "teacher_logits"), &logits::<F>(&mut run.o, &plan, &plan.teacher, plan.teacher_head.z));

    let pass = plan.passes().next().expect("all crops at once");
    let (s, x) = (&plan.student, pass.backbone.y());
    write(&mut run.o, x, &f.get(&name("", "x_student")).data);
    shape.forward(&mut run.o, &s.head_weights, &pass.head, x);
    f.assert_golden(&name("", "z_student"), &read(&mut run.o, pass.head.z));
    f.assert_golden(&name("", "student_logits"), &logits::<F>(&mut run.o, &plan, s, pass.head.z));
    let rows = StudentRows { z: pass.head.z, prototypes: shape.prototypes(&s.head_weights, s.scale) };
    let out = LossSpans { loss: pass.loss, lse: pass.lse, dz: pass.head_grads.dz };
    objective.loss(&mut run.o, out, rows, &plan.targets, plan.hyper, pass.dims);
    shape.backward(&mut run.o, &s.head_weights, &pass.head, &pass.head_grads, pass.backbone.dy(), x);
    run.o.sum_stat(plan.monitor.part(monitor::LOSS, 1), plan.loss);
    f.assert_golden(&name("", "loss"), &[run.loss()]);
    f.assert_golden(&name("", "dx"), &read(&mut run.o, pass.backbone.dy()));
    run.finish_grads();
    let specs = run.specs();
    for spec in specs.iter().filter(|spec| spec.name.part == "head." && !spec.frozen) {
        f.assert_golden(&name("grad.", &spec.name.to_string()), &run.grad(spec));
    }
    for (part, net, b) in &buffers {
        let moved = read(&mut run.o, net.moved.part(b.at.0.at, b.at.len()));
        f.assert_golden(&name(&format!("after.{part}"), &b.name.to_string()), &moved);
    }
}

//! Every head that a flag can ask for: gradients against finite differences in f64, the reference against the CPU op by op, memory.

use dino_host::cpu::Cpu;
use dino_kernel::backend::wrap::{Checked, Lockstep};
use dino_kernel::backend::{Memory, Op, Update};
use dino_kernel::mem::{Cursor, Pool, Span};
use dino_kernel::model::{Head, PlanError};
use dino_kernel::params::Spec;
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use tests::backend::{Factory, Reference, make_poisoned, read, read_span};
use tests::for_backends;
use tests::gpu::f32_bound;
use tests::plans::{heads, with_head};
use tests::training::{Net, Run, hyper_numbers, random_views};

const INP: usize = 6;

/// The loss along a random direction of every tensor of the head, and of the class token, through which the backbone hangs on it: the
/// gradient predicts it. (A ReLU has kinks: a step short enough meets none.)
#[test]
fn every_head_has_its_gradient() {
    let h = Hyper { student_temp: 0.5, teacher_temp: 0.4, ..hyper_numbers() };
    for head in heads([INP, 7, 5, 4, 11]) {
        let plan = Plan::new(with_head(head, [3, 3])).expect("a sound plan");
        let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), 5);
        let pixels = random_views(&plan, 20);
        run.accumulate(&h, &pixels);
        run.finish_grads();
        let of_head = |name: &str| name.starts_with("head.") || name == "cls_token";
        let specs = run.specs().into_iter().filter(|spec| of_head(&spec.name.to_string()) && !spec.frozen);
        let found: Vec<_> = specs.map(|spec| (spec, run.grad(&spec))).collect();
        let all = found.iter().flat_map(|(_, g)| g).map(|g| g * g).sum::<f64>().sqrt();
        run.check_slopes(&h, &pixels, &found, [1e-3, 1e-4, 1e-5], [1e-8, 1e-10]);
        // A bias in front of a batch norm has no gradient, whatever else has.
        let moves = found.iter().filter(|(_, g)| g.iter().any(|g| g.abs() > 1e-9 * all)).count();
        let still =
            if head.batch_norm { found.iter().filter(|(s, _)| before_norm(&s.name.to_string())).count() } else { 0 };
        assert!(moves + still >= found.len(), "{moves} of {} tensors have a gradient under {head:?}", found.len());
        assert_eq!(run.o.violation, None, "{head:?}");
    }
}

/// Whether a bias of a linear layer, of a list with batch norms: every third module from the first.
fn before_norm(name: &str) -> bool {
    name.strip_suffix(".bias")
        .and_then(|stem| stem.rsplit('.').next())
        .and_then(|i| i.parse::<usize>().ok())
        .is_some_and(|i| i % 3 == 0)
}

/// The plan has room for everything and for no more; the teacher has all but the predictor, and moves; two splits of a batch give the same
/// gradients.
#[test]
fn every_head_has_its_memory() {
    for head in heads([INP, 7, 5, 4, 11]) {
        let [once, twice] = [[4, 4], [4, 2]].map(|images| {
            let plan = Plan::new(Config { bn_group: Some(2), ..with_head(head, images) }).expect("a sound plan");
            let mut run = Run::random(plan, Checked::new(make_poisoned::<Reference<f64>>(plan.pools)), 5);
            let (before, h) = (teacher(&mut run), Hyper { clip_grad: 0.0, ..hyper_numbers() });
            run.step(&h, &random_views(&plan, 20));
            assert_eq!((run.o.violation, run.monitor(monitor::FINITE)), (None, 1.0), "{head:?}");
            for (pool, len) in [(Pool::Acts, plan.pools.acts), (Pool::Stats, plan.pools.stats)] {
                let content = read_span(&mut run.o, pool, Span { at: 0, len });
                let used = content.iter().rposition(|x| !x.is_nan()).map_or(0, |i| i + 1);
                assert_eq!(used.next_multiple_of(Cursor::ALIGN), len, "{pool:?} is as large as needed under {head:?}");
            }
            let (student, both) = (plan.table, plan.table.of_teacher());
            assert_eq!(plan.pools.weights, student.len() + both.len());
            assert_eq!(both.len() < student.len(), head.predictor > 0);
            assert_eq!(both.buffers_len(), plan.teacher.running.len());
            // Everything of the teacher's moves toward the student's tensor of the same name.
            let after = teacher(&mut run);
            for ((spec, old), (_, new)) in before.iter().zip(&after) {
                let own = run.parameter(Net::Student, spec);
                let nearer = |x: &[f64]| x.iter().zip(&own).map(|(x, s)| (x - s) * (x - s)).sum::<f64>();
                assert!(nearer(new) < nearer(old), "{} under {head:?}", spec.name);
            }
            let specs = run.specs();
            specs.iter().flat_map(|spec| run.grad(spec)).collect::<Vec<f64>>()
        });
        let scale = once.iter().fold(0.0f64, |m, g| m.max(g.abs()));
        let away = once.iter().zip(&twice).fold(0.0f64, |m, (a, b)| m.max((a - b).abs()));
        // Groups of a batch norm are the same images in either.
        assert!(away <= 1e-12 * scale, "{away:e} of {scale:e} under {head:?}");
    }
}

fn teacher<O: Update + Memory>(run: &mut Run<O>) -> Vec<(Spec, Vec<f64>)> {
    run.specs_of(Net::Teacher).into_iter().map(|spec| (spec, run.parameter(Net::Teacher, &spec))).collect()
}

for_backends!([reference: Reference<f32>, cpu: Cpu] [agrees_with_the_reference_op_by_op]);

fn agrees_with_the_reference_op_by_op<F: Factory>(who: &str) {
    // Every choice meets every other one.
    for head in heads([24, 40, 17, 33, 300]).into_iter().step_by(11) {
        let plan = Plan::new(with_head(head, [6, 3])).expect("a sound plan");
        let both = Lockstep::new(make_poisoned::<Reference<f32>>(plan.pools), make_poisoned::<F>(plan.pools));
        let mut run = Run::random(plan, both, 3);
        if head.batch_norm {
            // What a batch norm takes out, a bias in front of it or of all rows, has no gradient, so its error is measured by the terms of
            // the sum: by the loss's gradient.
            let pairs = plan.teachers() * (plan.views() - 1) * 6;
            for op in [Op::linear_backward, Op::layernorm_backward] {
                run.o.floor[op as usize][Pool::Grads as usize] = 3f64.sqrt() / (0.3 * pairs as f64);
            }
        }
        // Logits of rows that are not normalized are a few units apart, cosines less than one.
        let temp = if head.l2_norm { 0.3 } else { 2.0 };
        run.step(&Hyper { teacher_temp: temp, student_temp: temp, ..hyper_numbers() }, &random_views(&plan, 4));
        let (bound, worst) = (f32_bound(300.0), run.o.worst().expect("ops were called"));
        assert!(worst.error <= bound, "{who}: {worst:?} exceeds {bound:e} under {head:?}");
        assert_eq!(run.monitor(monitor::FINITE), 1.0, "{who}: {head:?}");
    }
}

/// A number that is not finite in a row stops the step, whatever is between it and the loss.
#[test]
fn what_is_not_finite_stops_the_step() {
    for head in heads([INP, 7, 5, 4, 11]) {
        let plan = Plan::new(with_head(head, [2, 2])).expect("a sound plan");
        let mut run = Run::random(plan, make_poisoned::<Reference<f64>>(plan.pools), 5);
        let mut views = random_views(&plan, 20);
        views[0].pixels[3] = f64::NAN;
        let before = read_span(&mut run.o, Pool::Weights, Span { at: 0, len: plan.pools.weights });
        run.step(&hyper_numbers(), &views);
        assert_eq!(run.monitor(monitor::FINITE), 0.0, "{head:?}");
        assert!(read_span(&mut run.o, Pool::Weights, Span { at: 0, len: plan.pools.weights }) == before, "{head:?}");
    }
}

#[test]
fn layers_have_a_limit_and_batch_norms_what_they_need() {
    let head = heads([INP, 7, 5, 4, 11]).into_iter().find(|head| head.batch_norm && head.layers == 1).expect("one");
    let plan = |head: Head, images, stream_crops| {
        Plan::new(Config { stream_crops, ..with_head(head, images) }).map(|plan| plan.pools.sums > 0)
    };
    for layers in [0, 9, usize::MAX] {
        for bottleneck in [0, 5] {
            let refused = plan(Head { layers, bottleneck, ..head }, [4, 2], false).unwrap_err();
            assert_eq!(refused, PlanError::HeadLayers { layers });
            assert!(refused.to_string().ends_with("not 1 to 8"), "{refused}");
        }
    }
    assert_eq!(plan(Head { layers: 8, bottleneck: 5, ..head }, [4, 2], false), Ok(true));
    // A single layer has no activation for a norm to be in front of, but its predictor has one.
    let single = Head { bottleneck: 5, predictor: 0, ..head };
    assert_eq!(plan(single, [4, 2], true), Ok(false));
    let predicts = Head { predictor: 4, ..single };
    assert_eq!(plan(predicts, [4, 2], true), Err(PlanError::StreamedHead));
    assert_eq!(plan(predicts, [4, 2], false), Ok(true));
    let run = Plan::new(with_head(predicts, [4, 2])).expect("a sound plan");
    assert!(run.student.running.len() > 0 && run.teacher.running.len() == 0, "the teacher has no norm");
    let mut run = Run::random(run, Checked::new(make_poisoned::<Reference<f64>>(run.pools)), 1);
    let (views, before) = (random_views(&run.plan, 1), read(&mut run.o, run.plan.student.running));
    run.step(&Hyper { momentum: 0.0, ..hyper_numbers() }, &views);
    assert!(read(&mut run.o, run.plan.student.running) != before);
    let huge = Head { predictor: usize::MAX / 2, ..single };
    assert_eq!(plan(huge, [4, 2], false), Err(PlanError::TooLarge));
}

//! A step leaves the host alone: it allocates nothing, waits for nothing, reads nothing back, and what it queues is the same however it is
//! launched. The emulation counts. One test, because its counts are the process's.

use dino_gpu::{Gpu, Launch, Options, Precision};
use dino_host::device::{Device, Part, QUEUE, Step};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::Pool;
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Backbone, Head, ResNet, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::monitor;
use tests::gpu::{Ground, emulation_count, ground};
use tests::plans::ordinary;
use tests::training::{OBJECTIVE, Run, hyper_numbers, normals};

/// What is run.
#[derive(Clone, Copy)]
struct Case {
    /// Micro-batches.
    parts: usize,
    stream_crops: bool,
    objective: Objective,
    /// A residual network with batch norms in its head, in the place of a transformer.
    residual: bool,
}

fn plan(Case { parts, stream_crops, objective, residual }: Case) -> Plan {
    let vit = Backbone::Vit(Vit {
        image: 16,
        patch: 8,
        channels: 3,
        dim: 16,
        depth: 2,
        heads: 2,
        mlp: 32,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let stage = |stride| Stage { width: 16, blocks: 1, stride };
    let stem = Stem { width: 8, kernel: 3, stride: 1, pool: true };
    let resnet = ResNet::new(16, 3, stem, Block::Basic).with(stage(1)).with(stage(2));
    let backbone = if residual { Backbone::ResNet(resnet) } else { vit };
    let (inp, batch_norm) = (backbone.dim(), residual && !stream_crops);
    let head = Head {
        inp,
        layers: 2,
        hidden: 16,
        bottleneck: 8,
        prototypes: 80,
        train_gain: false,
        batch_norm,
        ..Head::PUBLISHED
    };
    let views = Crops::one(Group { count: 2, height: 16, width: 16 }).with(Group { count: 1, height: 8, width: 16 });
    let ordinary = ordinary(backbone, head, views, [2 * parts, 2]);
    let bn_group = residual.then_some(2);
    Plan::new(Config { drop_path: !residual, stream_crops, objective, bn_group, ..ordinary }).expect("a valid plan")
}

/// Six steps, reports one step late as the trainer takes them: the monitors, the weights, and what the last four steps cost.
fn steps(launch: Launch, case: Case) -> (Vec<[f32; monitor::LEN]>, Vec<f32>, [i64; 5]) {
    let (plan, parts) = (plan(case), case.parts);
    let options = Options { precision: Precision::Bf16, launch, workspace: 128, ..Options::default() };
    let before = emulation_count(c"live_bytes");
    let gpu = Gpu::create(&options, plan.pools).expect("it fits");
    let mut gpu = Run::random(plan, gpu, 5).o;
    let hyper = hyper_numbers().numbers(&plan).map(|x| x as f32);
    let count = || {
        [c"allocations", c"synchronizations", c"pageable_copies", c"refused_in_capture", c"guard_violations"]
            .map(emulation_count)
    };
    let (mut queued, mut monitors, mut cost) = (0, Vec::new(), [0; 5]);
    for i in 0..6 {
        let data: Vec<Vec<f32>> = (0..parts)
            .map(|p| normals((10 * i + p) as u64, plan.pixels.len()).iter().map(|x| *x as f32).collect())
            .collect();
        let drop = vec![1.0; plan.drop.len()];
        let step = Step { hyper, parts: data.iter().map(|pixels| Part { drop: drop.clone(), pixels }).collect() };
        let before = count();
        gpu.step(&plan, &step).expect("a step");
        let after = count();
        if i >= 2 {
            (0..5).for_each(|k| cost[k] += after[k] - before[k]);
        }
        queued += 1;
        while let Some(m) = gpu.report(&plan, queued, false).expect("a report") {
            monitors.push(m);
            queued -= 1;
        }
        assert!(queued < QUEUE);
    }
    // What `plan` predicts is what there is, but for the parameter table.
    let (found, predicted) = (emulation_count(c"live_bytes") - before, Gpu::memory(&options, plan.pools));
    let predicted: u64 = predicted.iter().map(|(_, bytes)| bytes).sum();
    assert!((0..16 << 10).contains(&(found - predicted as i64)), "{found} bytes, predicted {predicted}");
    monitors.push(gpu.report(&plan, queued, true).expect("a report").expect("the last"));
    let mut weights = vec![0.0; plan.pools.weights];
    gpu.download(Pool::Weights, 0, &mut weights);
    gpu.sync().expect("no error");
    (monitors, weights, cost)
}

#[test]
fn a_step_leaves_the_host_alone() {
    match ground() {
        Ground::Emulation => (),
        other => {
            return eprintln!("SKIPPED a_step_leaves_the_host_alone: only the emulation counts, this is {other:?}");
        }
    }
    // The targets of the last depend on the full batch, whose micro-batches are sent twice.
    let whole = Objective { targets: Targets::SinkhornKnopp { iterations: 3 }, divergence: Divergence::SquaredError };
    let case = |parts, stream_crops, objective, residual| Case { parts, stream_crops, objective, residual };
    for case in [
        case(1, false, OBJECTIVE, false),
        case(1, true, OBJECTIVE, false),
        case(3, false, OBJECTIVE, false),
        case(3, true, OBJECTIVE, false),
        case(1, false, whole, false),
        case(3, true, whole, false),
        case(2, false, OBJECTIVE, true),
        case(1, true, OBJECTIVE, true),
    ] {
        let (parts, objective) = (case.parts, case.objective);
        let (monitors, weights, cost) = steps(Launch::Graph, case);
        assert_eq!(monitors.len(), 6);
        assert!(monitors.iter().all(|m| m[monitor::FINITE] == 1.0));
        // With several micro-batches the host may not run further ahead than the two pinned buffers: it waits for a copy, not for work.
        let sent = if objective.whole_batch() { 2 * parts } else { parts };
        let waits = if sent == 1 { 0 } else { 4 * sent as i64 };
        assert_eq!(cost[0], 0, "allocations");
        assert!(cost[1] <= waits, "{} waits in four steps", cost[1]);
        assert_eq!(cost[2..], [0; 3], "pageable copies, refusals in a capture, guards");

        let (direct, same, cost) = steps(Launch::Direct, case);
        assert_eq!(cost[0], 0, "allocations");
        assert_eq!(monitors, direct, "as graphs and kernel by kernel");
        assert!(weights == same, "as graphs and kernel by kernel: other weights");
    }
}

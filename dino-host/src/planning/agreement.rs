//! How far an op of another device may be from the CPU's, and training steps that show it: what `check` runs on a GPU. The bounds are
//! those of the tests, which take them from here.

use super::check::{Case, Owned};
use crate::device::{Device, Part, Step};
use crate::error::{Error, Result};
use dino_kernel::backend::wrap::{Lockstep, Mismatch};
use dino_kernel::backend::{Memory, Op};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::Pool;
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Activation, Backbone, Head, Output, ResNet, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{Lars, Optimizer, Sgd, TeacherRule};
use dino_kernel::plan::{Config, FeaturePlan, Plan};
use dino_kernel::rng::{Kind, Rng};

/// 8 eps sqrt(k) from the truth for either side, k the longest sum: the rows of a weight gradient, or the prototypes.
pub fn f32_bound(k: f64) -> f64 {
    16.0 * f32::EPSILON as f64 * k.sqrt()
}

/// Half a unit in the last place of bf16, relative: the most that rounding a result does. The operands are the same numbers on both
/// sides.
const HALF_ULP: f64 = 1.0 / 256.0;

/// What an op may differ by in bf16. Sums are f32, so what is kept in f32 (statistics, gradients, state) is as near as in f32, and
/// activations are a rounding further off. GELU sees the rounded sum; attention rounds its probabilities and their gradients on the
/// way; the loss the gradient of the logits, which the prototypes' gradients are made of as well.
pub fn bf16_bound(op: Op, pool: Pool, k: f64) -> f64 {
    let roundings = match (pool, op) {
        (Pool::Acts, Op::linear_gelu | Op::attention | Op::attention_backward | Op::dino_loss | Op::mse_loss) => 2.0,
        (Pool::Acts, _) | (Pool::Grads, Op::dino_loss | Op::mse_loss) => 1.0,
        _ => 0.0,
    };
    roundings * HALF_ULP + f32_bound(k)
}

/// The same where logits are sharpened. A logit enters as its difference from the largest: two cosines, each a sum of `bottleneck` terms
/// and two roundings more, on either side; divided by the lower temperature, that is how far a probability is off, as a part of itself.
/// (What bf16 drops is the same on both sides.)
pub fn sharpened(bound: f64, op: Op, coldest: f64, bottleneck: usize) -> f64 {
    match op {
        Op::teacher_lse | Op::dino_loss | Op::mse_loss | Op::sum_stat => {
            bound + (2.0 + (bottleneck as f64).sqrt()) * f32::EPSILON as f64 / coldest
        }
        _ => bound,
    }
}

/// What a written span counts as having at least, where its numbers are what cancellation leaves of larger ones.
pub fn set_floors<A: Memory, B: Memory>(both: &mut Lockstep<A, B>, plan: &Plan, student_temp: f64) {
    let config = &plan.config;
    // Where student and teacher are one-hot on the same prototype, the gradient p - q of a row is what cancellation leaves of the two, so
    // its error is measured by their size.
    let (images, pairs) = (config.micro_batch as f64, plan.teachers() * (plan.views() - 1) * config.batch);
    let size = images.sqrt() / (student_temp * pairs as f64);
    for op in [Op::dino_loss, Op::mse_loss] {
        for pool in [Pool::Acts, Pool::Grads] {
            both.floor[op as usize][pool as usize] = size;
        }
    }
    // A bias in front of a batch norm has no gradient, so its error is measured by the terms of the sum: by the loss's gradient.
    if config.head.batch_norm {
        both.floor[Op::linear_backward as usize][Pool::Grads as usize] = size;
    }
}

/// What an op of a step differed by at most, and may differ by.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// The difference.
    pub found: Mismatch,
    /// Relative, as the difference's error is.
    pub allowed: f64,
}

impl Compared {
    /// The error as a part of what is allowed; a NaN stays one.
    pub fn part(&self) -> f64 {
        self.found.error / self.allowed
    }
}

/// Every op of a step that ran in lockstep, against `bound(op, pool, longest sum)`.
pub fn compared<A, B>(
    both: &Lockstep<A, B>,
    plan: &Plan,
    coldest: f64,
    bound: impl Fn(Op, Pool, f64) -> f64,
) -> Vec<Compared> {
    let config = &plan.config;
    // The longest sum: the rows of a weight's gradient, or the prototypes.
    let rows = match config.backbone {
        Backbone::Vit(_) => config.backbone.cost(&plan.crops()),
        Backbone::ResNet(_) => plan.crops().pixels(),
    };
    let k = rows.max(config.head.prototypes) as f64;
    let found = both.worst.iter().flatten().flatten().copied();
    let allowed = |m: &Mismatch| sharpened(bound(m.op, m.access.pool, k), m.op, coldest, config.head.cols());
    found.map(|m| Compared { found: m, allowed: allowed(&m) }).collect()
}

/// Training steps that reach every op between them: what they are called, and their plans.
pub fn steps() -> [(&'static str, Config); 5] {
    let group = |count, height, width| Group { count, height, width };
    let (passes, all) = (super::check::tiny(true), super::check::tiny(false));
    let whole = Objective { targets: Targets::SinkhornKnopp { iterations: 3 }, divergence: Divergence::SquaredError };
    // Sizes at which tensor cores and cuBLASLt work on full tiles.
    let vit = Vit {
        image: 32,
        patch: 8,
        channels: 3,
        dim: 128,
        depth: 2,
        heads: 2,
        mlp: 256,
        positions: Interpolation::Published,
        eps: EPS,
    };
    let wide = Config {
        backbone: Backbone::Vit(vit),
        head: Head { inp: 128, hidden: 128, bottleneck: 64, prototypes: 520, ..all.head },
        views: Crops::one(group(2, 32, 32)).with(group(2, 16, 16)),
        ..all
    };
    let residual = |block, head: Head| {
        let stem = Stem { width: 8, kernel: 3, stride: 1, pool: true };
        let stage = |width, stride| Stage { width, blocks: 1, stride };
        let resnet = ResNet::new(16, 3, stem, block).with(stage(8, 1)).with(stage(12, 2));
        Config {
            backbone: Backbone::ResNet(resnet),
            head: Head { inp: resnet.dim(), ..head },
            views: Crops::one(group(2, 16, 16)).with(group(2, 8, 12)),
            batch: 8,
            micro_batch: 4,
            drop_path: false,
            bn_group: Some(4),
            ..all
        }
    };
    let sgd = Optimizer::Sgd(Sgd::PUBLISHED);
    let lars = Optimizer::Lars(Lars { eta: 1.0, ..Lars::PUBLISHED }); // updates as long as the parameters, or rounding hides errors
    let predicts = Head { batch_norm: true, predictor: 24, ..all.head };
    [
        ("a ViT, AdamW", all),
        (
            "a ViT whose crops go in several passes, targets of the full batch, SGD",
            Config { objective: whole, optimizer: sgd, teacher: TeacherRule::PreviousIteration, ..passes },
        ),
        ("a wider ViT, LARS", Config { optimizer: lars, ..wide }),
        ("a ResNet with batch norms in its head", residual(Block::Basic, predicts)),
        ("a ResNet of bottlenecks", residual(Block::Bottleneck, Head { activation: Activation::Relu, ..all.head })),
    ]
}

/// One training step of the reference and of a device in lockstep, and a pass for features, from weights that bf16 holds, so that both
/// multiply the same numbers.
///
/// # Errors
/// The device fails, or has no memory for the step.
pub fn step_beside_reference<D: Device>(
    options: &D::Options,
    config: Config,
    bound: impl Fn(Op, Pool, f64) -> f64,
) -> Result<Vec<Compared>> {
    let case = Case::in_bf16(plan(config)?);
    let (plan, [teacher_temp, student_temp]) = (&case.plan, Case::TEMPERATURES);
    let group = *plan.config.views.groups().first().ok_or_else(|| Error::new("a step has crops"))?;
    let dense = FeaturePlan::new(config.backbone, Crops::one(group), Output::Dense, 2);
    let dense = dense.map_err(|e| Error::new(e.to_string()))?;
    let mut all = Vec::new();
    for (pools, features) in [(plan.pools, false), (dense.pools, true)] {
        let mut owned = Owned::<f32>::new(&pools);
        let mut both = Lockstep::new(owned.backend(), D::new(options, pools)?);
        set_floors(&mut both, plan, student_temp);
        if features {
            case.features(&dense, &mut both);
        } else {
            // An optimizer in the middle of a run, whose second moments are not negative.
            let mut rng = Rng::new(4, 0, 0, 0, Kind::Test, 0);
            let slots: Vec<f64> = (0..pools.slots).map(|_| 0.01 * rng.uniform()).collect();
            both.write(Pool::Slots, 0, &slots);
            case.step(&mut both);
        }
        both.b.sync()?; // what it gave after an error means nothing
        all.extend(compared(&both, plan, teacher_temp.min(student_temp), &bound));
    }
    Ok(all)
}

/// The weights after `count` steps as the trainer takes them.
///
/// # Errors
/// The device fails, or has no memory for the steps.
pub fn weights_after<D: Device>(options: &D::Options, config: Config, count: usize) -> Result<Vec<f32>> {
    let case = Case::in_bf16(plan(config)?);
    let plan = &case.plan;
    let narrow = |values: &[f64]| values.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let mut device = D::new(options, plan.pools)?;
    device.upload(Pool::Weights, 0, &narrow(&case.weights));
    device.upload(Pool::State, 0, &narrow(&case.state));
    let parts: Vec<[Vec<f32>; 2]> =
        case.parts.iter().map(|part| part.each_ref().map(|values| narrow(values))).collect();
    let numbers = narrow(&case.state[plan.hyper.range()]);
    let hyper = numbers.try_into().map_err(|_| Error::new("a step has other numbers than its plan"))?;
    for _ in 0..count {
        let parts = parts.iter().map(|[pixels, drop]| Part { drop: drop.clone(), pixels }).collect();
        device.step(plan, &Step { hyper, parts })?;
        device.report(plan, 1, true)?;
    }
    let mut weights = vec![0.0; plan.pools.weights];
    device.download(Pool::Weights, 0, &mut weights);
    device.sync().map(|()| weights)
}

fn plan(config: Config) -> Result<Plan> {
    Plan::new(config).map_err(|e| Error::new(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use std::collections::BTreeSet;

    /// What exchanges between processes or shards, which one alone has not; what clears a pool as a whole, which shows in what is added to
    /// it; and logits, which no step makes.
    const BESIDES: [Op; 9] = [
        Op::enter,
        Op::spread,
        Op::all_gather,
        Op::all_reduce,
        Op::gradients_complete,
        Op::keep_sums,
        Op::add_sums,
        Op::zero_grads,
        Op::logits,
    ];

    #[test]
    fn the_steps_reach_every_op_and_the_cpu_passes() {
        let mut reached = BTreeSet::new();
        for (name, config) in steps() {
            for c in step_beside_reference::<Cpu>(&NoOptions {}, config, |_, _, k| f32_bound(k)).unwrap() {
                assert!(c.part() <= 1.0, "{name}: {c:?}");
                reached.insert(c.found.op.name());
            }
        }
        let missed: Vec<Op> = Op::ALL.iter().copied().filter(|op| !reached.contains(op.name())).collect();
        assert_eq!(missed.len(), BESIDES.len(), "{missed:?}");
        assert!(missed.iter().all(|op| BESIDES.contains(op)), "{missed:?}");
    }
}

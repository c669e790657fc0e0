//! `check`: is this machine's arithmetic what the program takes it for? Every gradient against finite differences in f64, every op
//! of the CPU backend against the reference, one thread against two.

use crate::config::Config;
use crate::cpu::{Cpu, NoOptions};
use crate::device::Device;
use dino_kernel::backend::reference::Train;
use dino_kernel::backend::wrap::Lockstep;
use dino_kernel::backend::{Memory, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::objective::Objective;
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{AdamW, Lars, Optimizer, Sgd, TeacherRule};
use dino_kernel::params::Spec;
use dino_kernel::plan::{self, FeaturePlan, Plan, Pools};
use dino_kernel::real::Real;
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::{hyper, monitor};
use dino_kernel::step::{self, Hyper};
use rayon::prelude::*;
use std::time::Instant;

/// Largest relative error of a directional derivative.
const GRADIENT: f64 = 1e-7;
/// Step along a unit direction: the stencil's own error falls with its fourth power, rounding grows as it shrinks.
const STEP: f64 = 1e-3;

/// A training step that takes every path, small enough for thousands of evaluations: stochastic depth, crops of three shapes (none
/// square, one with surplus pixels), two micro-batches, a trained gain. One after another they are 13 tokens, 13, 5 + 5, 5 + 4.
pub(super) fn tiny(stream_crops: bool) -> plan::Config {
    let backbone = Backbone::Vit(Vit {
        image: 12,
        patch: 3,
        channels: 3,
        dim: 24,
        depth: 3,
        heads: 3,
        mlp: 40,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let group = |count, height, width| Group { count, height, width };
    plan::Config {
        backbone,
        head: Head {
            inp: 24,
            layers: 3,
            hidden: 32,
            bottleneck: 12,
            prototypes: 67,
            train_gain: true,
            ..Head::PUBLISHED
        },
        objective: Objective::PUBLISHED,
        optimizer: Optimizer::AdamW(AdamW::PUBLISHED),
        teacher: TeacherRule::Ema { start: 0.99, end: 1.0 },
        views: Crops::one(group(2, 9, 12)).with(group(3, 7, 6)).with(group(1, 3, 10)),
        batch: 4,
        micro_batch: 2,
        drop_path: true,
        recompute: true,
        stream_crops,
        bn_group: None,
    }
}

/// A plan and all that a step of it reads, the same for every backend.
pub(super) struct Case {
    pub(super) plan: Plan,
    pub(super) weights: Vec<f64>,
    pub(super) state: Vec<f64>,
    /// Pixels and stochastic-depth scales of every micro-batch.
    pub(super) parts: Vec<[Vec<f64>; 2]>,
    /// What makes the loss of the monitor's sum.
    loss_scale: f64,
}

impl Case {
    /// Of the teacher and of the student.
    pub(super) const TEMPERATURES: [f64; 2] = [0.07, 0.1];

    fn new(plan: Plan) -> Case {
        let mut rng = Rng::new(1, 0, 0, 0, Kind::Test, 0);
        let len = plan.table.len();
        let mut weights = vec![0.0; 2 * len];
        for (seed, w) in weights.chunks_mut(len).enumerate() {
            init::weights(w, &plan.table, seed as u64, init::LINEAR_STD);
            // Zeros and ones hide errors that a trained network would show.
            plan.table.visit(|s| w[s.at.range()].iter_mut().for_each(|w| *w += 0.1 * rng.normal()));
        }
        weights.truncate(plan.pools.weights); // a teacher has no predictor, which comes last
        let hyper = Hyper {
            lr: 1e-3,
            weight_decay: 0.1,
            momentum: 0.99,
            teacher_temp: Case::TEMPERATURES[0],
            student_temp: Case::TEMPERATURES[1],
            clip_grad: 1.0,
            step: 1,
            step_last: 1,
            freeze_last: false,
        };
        let numbers = hyper.numbers(&plan);
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        state[plan.hyper.range()].copy_from_slice(&numbers);
        state[plan.targets.rows.offset.range()].iter_mut().for_each(|c| *c = 0.1 * rng.normal());
        let n = plan.config.micro_batch as u32;
        let part = |i: u32| {
            let pixels = (0..plan.pixels.len()).map(|_| rng.normal()).collect();
            let images: Vec<u32> = (i * n..(i + 1) * n).collect();
            let mut drop = vec![0.0; plan.drop.len()];
            plan.drop_path(&mut drop, 1, 0, &images, 0.3);
            [pixels, drop]
        };
        let parts = (0..plan.parts() as u32).map(part).collect();
        Case { plan, weights, state, parts, loss_scale: numbers[hyper::LOSS_SCALE] }
    }

    /// With weights that bf16 holds.
    pub(super) fn in_bf16(plan: Plan) -> Case {
        let mut case = Case::new(plan);
        case.weights.iter_mut().for_each(|w| *w = f64::from(half::bf16::from_f64(*w)));
        case
    }

    /// A full step, in a backend that is filled for it.
    pub(super) fn step(&self, o: &mut (impl Memory + Update)) {
        self.load(o);
        self.accumulate(o);
        step::commit(o, &self.plan);
    }

    /// A pass for features of images, with the attention of its last block where it has any, in a backend of that plan's pools.
    pub(super) fn features(&self, plan: &FeaturePlan, o: &mut (impl Memory + Update)) {
        let mut state = vec![0.0; plan.pools.state];
        plan.initial_state(&mut state);
        let mut rng = Rng::new(3, 0, 0, 0, Kind::Test, 0);
        let pixels: Vec<f64> = (0..plan.pixels.len()).map(|_| rng.normal()).collect();
        o.write(Pool::Weights, 0, &self.weights[..plan.pools.weights]);
        o.write(Pool::State, 0, &state);
        o.write(Pool::Acts, plan.pixels.0.at, &pixels);
        plan.forward(o);
        plan.pass.attention(o, plan.attention, 2);
    }

    /// Fills a backend.
    fn load(&self, o: &mut impl Memory) {
        o.write(Pool::Weights, 0, &self.weights);
        o.write(Pool::State, 0, &self.state);
    }

    /// A step up to the commit.
    fn accumulate(&self, o: &mut (impl Memory + Update)) {
        let p = &self.plan;
        step::begin(o, p);
        step::accumulate(o, p, |o, part| {
            let [pixels, drop] = &self.parts[part];
            o.write(Pool::Acts, p.pixels.0.at, pixels);
            o.write(Pool::State, p.drop.0.at, drop);
        });
    }

    fn loss(&self, o: &mut (impl Memory + Update)) -> f64 {
        self.accumulate(o);
        let mut sum = [0.0];
        o.read(Pool::State, self.plan.monitor.0.at + monitor::LOSS, &mut sum);
        sum[0] * self.loss_scale
    }
}

/// The reference backend's memory.
pub(super) struct Owned<T> {
    pools: [Vec<T>; 6],
}

impl<T: Real> Owned<T> {
    pub(super) fn new(n: &Pools) -> Owned<T> {
        Owned { pools: [n.weights, n.grads, n.slots, n.acts, n.stats, n.state].map(|len| vec![T::ZERO; len]) }
    }

    pub(super) fn backend(&mut self) -> Train<'_, T> {
        let [weights, grads, slots, acts, stats, state] = &mut self.pools;
        Train { weights, grads, slots, acts, stats, state }
    }
}

/// What one tensor's check found.
struct Found {
    key: String,
    elements: usize,
    slope: f64,
    error: f64,
}

/// Every tensor's gradient, along a random direction, against the loss at four points of it.
fn gradients(case: &Case) -> Vec<Found> {
    let plan = &case.plan;
    let mut owned = Owned::<f64>::new(&plan.pools);
    let mut o = owned.backend();
    case.load(&mut o);
    case.accumulate(&mut o);
    // The last layer's gradients are raw until the commit projects them.
    step::weight_norm_backward(&mut o, plan);
    let mut specs = Vec::new();
    plan.table.visit(|spec| specs.push(spec));
    let grads = &owned.pools[1];
    specs.par_iter().enumerate().map(|(i, spec)| gradient(case, grads, i as u32, spec)).collect()
}

fn gradient(case: &Case, grads: &[f64], i: u32, spec: &Spec) -> Found {
    let mut rng = Rng::new(2, 0, i, 0, Kind::Test, 0);
    let mut direction: Vec<f64> = (0..spec.at.len()).map(|_| rng.normal()).collect();
    let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
    direction.iter_mut().for_each(|d| *d /= length);
    let slope: f64 = direction.iter().zip(&grads[spec.at.range()]).map(|(d, g)| d * g).sum();

    let mut owned = Owned::<f64>::new(&case.plan.pools);
    let mut o = owned.backend();
    case.load(&mut o);
    let mut loss = |steps: f64| {
        let here = &case.weights[spec.at.range()];
        let moved: Vec<f64> = here.iter().zip(&direction).map(|(w, d)| w + steps * STEP * d).collect();
        o.write(Pool::Weights, spec.at.0.at, &moved);
        case.loss(&mut o)
    };
    let difference = (8.0 * (loss(1.0) - loss(-1.0)) - (loss(2.0) - loss(-2.0))) / (12.0 * STEP);
    let error = (difference - slope).abs() / slope.abs();
    Found { key: spec.name.to_string(), elements: spec.at.len(), slope, error }
}

/// Every optimizer.
const OPTIMIZERS: [Optimizer; 3] =
    [Optimizer::AdamW(AdamW::PUBLISHED), Optimizer::Sgd(Sgd::PUBLISHED), Optimizer::Lars(Lars::PUBLISHED)];

/// Largest error of any op of the CPU backend over a full step with each optimizer, which op, and what is allowed.
fn ops(config: plan::Config) -> (String, f64, f64) {
    let plans = OPTIMIZERS.map(|optimizer| Plan::new(plan::Config { optimizer, ..config }));
    let compared = plans.map(|plan| match plan {
        Ok(plan) => ops_of(&Case::new(plan)),
        Err(e) => (e.to_string(), f64::INFINITY, 0.0),
    });
    compared.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are optimizers")
}

/// The same with the plan's optimizer.
fn ops_of(case: &Case) -> (String, f64, f64) {
    let plan = &case.plan;
    let cpu = match Cpu::new(&NoOptions {}, plan.pools) {
        Ok(cpu) => cpu,
        Err(e) => return (e.message, f64::INFINITY, 0.0),
    };
    let mut owned = Owned::<f32>::new(&plan.pools);
    let mut both = Lockstep::new(owned.backend(), cpu);
    case.step(&mut both);
    // Both are f32 programs, each within 8 eps sqrt(k) of the truth for a sum of k numbers; the longest here are the tokens of a
    // weight's gradient and the prototypes.
    let k = plan.config.backbone.cost(&plan.crops()).max(plan.table.head.prototypes) as f64;
    let allowed = 16.0 * f32::EPSILON as f64 * k.sqrt();
    match both.worst() {
        Some(worst) => (worst.op.name().to_string(), worst.error, allowed),
        None => ("nothing was compared".into(), f64::INFINITY, allowed),
    }
}

/// Everything that a step on `threads` threads leaves behind, as bits.
fn bits(case: &Case, threads: usize) -> Result<Vec<u32>, String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
    pool.install(|| {
        let mut o = Cpu::new(&NoOptions {}, case.plan.pools).map_err(|e| e.message)?;
        case.step(&mut o);
        let n = case.plan.pools;
        let mut all = Vec::new();
        for (pool, len) in
            [(Pool::Weights, n.weights), (Pool::Grads, n.grads), (Pool::Slots, n.slots), (Pool::State, n.state)]
        {
            let mut values = vec![0.0; len];
            o.download(pool, 0, &mut values);
            all.extend(values.into_iter().map(f32::to_bits));
        }
        Ok(all)
    })
}

/// One and two threads on a step of the small preset, which is large enough to be cut into tasks.
fn threads() -> Result<(), String> {
    let config = Config { batch: 8, micro_batch: 4, drop_path_rate: 0.1, ..Config::small() };
    let plan = config.resolve().and_then(|c| c.plan(true)).map_err(|e| e.message)?;
    let case = Case::new(plan);
    let (one, two) = (bits(&case, 1)?, bits(&case, 2)?);
    match one.iter().zip(&two).filter(|(a, b)| a != b).count() {
        0 => Ok(()),
        n => Err(format!("{n} of {} numbers differ", one.len())),
    }
}

/// Prints what was compared and how well it agrees; true if all is within its bound.
pub fn run() -> bool {
    let started = Instant::now();
    let good = [false, true].map(agrees).into_iter().all(|good| good);
    let repeat = threads();
    let why = repeat.as_ref().err().map(|e| format!(": {e}")).unwrap_or_default();
    outln!("{}: the same bits on 1 thread and on 2{why}", outcome(repeat.is_ok()));

    let good = good && repeat.is_ok();
    outln!("{} ({:.1} s)", if good { "all good" } else { "FAILED" }, started.elapsed().as_secs_f64());
    good
}

fn outcome(good: bool) -> &'static str {
    if good { "good" } else { "FAILED" }
}

/// The part of it that depends on how the student runs over its crops: all at once, or in several passes.
fn agrees(stream_crops: bool) -> bool {
    let case = match Plan::new(tiny(stream_crops)) {
        Ok(plan) => Case::new(plan),
        Err(e) => {
            outln!("FAILED: {e}");
            return false;
        }
    };
    outln!("crops {}:", if stream_crops { "in several passes" } else { "all at once" });
    outln!("gradients in f64 against finite differences of the loss, one direction a tensor, allowed {GRADIENT:.0e}");
    outln!("{:<28} {:>8} {:>14} {:>10}", "tensor", "elements", "slope", "error");
    let found = gradients(&case);
    for f in &found {
        let mark = if f.error <= GRADIENT { "" } else { "  FAILED" };
        outln!("{:<28} {:>8} {:>14.6e} {:>10.1e}{mark}", f.key, f.elements, f.slope, f.error);
    }
    // A NaN is the worst of all.
    let worst = found.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    let exact = found.iter().all(|f| f.error <= GRADIENT);
    if let Some(f) = worst {
        outln!("{}: {} tensors, worst {:.1e} in {}", outcome(exact), found.len(), f.error, f.key);
    }

    let (worst, error, allowed) = ops(case.plan.config);
    let agree = error <= allowed;
    outln!(
        "{}: CPU and reference in f32, op by op, with every optimizer: worst {error:.1e} in {worst}, allowed {allowed:.1e}",
        outcome(agree)
    );
    exact && agree
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        assert!(run());
    }

    #[test]
    fn a_wrong_gradient_is_noticed() {
        let case = Case::new(Plan::new(tiny(false)).unwrap());
        let mut owned = Owned::<f64>::new(&case.plan.pools);
        let mut o = owned.backend();
        case.load(&mut o);
        case.accumulate(&mut o);
        // Without the projection the last layer's gradients are not those of the loss.
        let mut specs = Vec::new();
        case.plan.table.visit(|spec| specs.push(spec));
        let error = |key: &str| {
            let spec = specs.iter().find(|s| s.name.to_string() == key).unwrap();
            gradient(&case, &owned.pools[1], 0, spec).error
        };
        assert!(error("head.last_layer.weight_v") > 1e-3);
        assert!(error("norm.weight") <= GRADIENT);
    }
}

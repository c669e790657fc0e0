//! Full training runs over any backend that gives access to its memory.

use crate::backend::{Arena, Factory, make_poisoned, read, read_grad, read_span, write};
use crate::plans::smallest;
use dino_kernel::backend::{LossDims, LossSpans, Memory, Prototypes, Rows, StudentRows, TargetRows, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::mem::{Pool, Span, Weight};
use dino_kernel::objective::Objective;
use dino_kernel::optim::{AdamW, Lars, Optimizer, Sgd, TeacherRule};
use dino_kernel::params::Spec;
use dino_kernel::plan::Plan;
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::{hyper, monitor};
use dino_kernel::step::{self, Hyper};

/// What the student of a test learns, where it is not about that.
pub const OBJECTIVE: Objective = Objective::PUBLISHED;
/// The rules of a test's plan, where it is not about them.
pub const OPTIMIZER: Optimizer = Optimizer::AdamW(AdamW::PUBLISHED);
/// Every optimizer; LARS with updates as long as the parameters, or an error in one would be lost in the other's rounding.
pub const OPTIMIZERS: [Optimizer; 3] =
    [OPTIMIZER, Optimizer::Sgd(Sgd::PUBLISHED), Optimizer::Lars(Lars { eta: 1.0, ..Lars::PUBLISHED })];
/// See [`OPTIMIZER`].
pub const TEACHER: TeacherRule = TeacherRule::Ema { start: 0.9, end: 1.0 };
/// A teacher that moves after the optimizer, and one that moves before it: what a plan knows of its rule.
pub const TEACHERS: [TeacherRule; 2] = [TEACHER, TeacherRule::PreviousIteration];

/// Which network of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// The one that is trained.
    Student,
    /// The one that follows it.
    Teacher,
}

/// The crops of a batch, one entry a view: (images, channels, height, width).
#[derive(Clone, Debug)]
pub struct View {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// (images, channels, height, width).
    pub pixels: Vec<f64>,
}

/// Groups of one image's views: adjacent views of one size belong together.
pub fn groups(sizes: impl Iterator<Item = (usize, usize)>) -> Crops {
    let mut groups: Vec<Group> = Vec::new();
    for (height, width) in sizes {
        match groups.last_mut() {
            Some(g) if (g.height, g.width) == (height, width) => g.count += 1,
            _ => groups.push(Group { count: 1, height, width }),
        }
    }
    groups.into_iter().fold(Crops::EMPTY, Crops::with)
}

/// A plan and the backend it runs on.
pub struct Run<O> {
    /// The plan.
    pub plan: Plan,
    /// The backend.
    pub o: O,
    /// Rate of stochastic depth, where the plan reserves its scales.
    pub drop_rate: f64,
}

impl<O: Update + Memory> Run<O> {
    /// Pools of exactly the plan's sizes, activations and stats NaN.
    pub fn new<F: Factory<Backend = O>>(plan: Plan) -> Run<O> {
        Run::over(plan, make_poisoned::<F>(plan.pools))
    }

    /// The same over a backend of the caller's.
    pub fn over(plan: Plan, o: O) -> Run<O> {
        let mut run = Run { plan, o, drop_rate: 0.0 };
        let mut state = vec![0.0f64; plan.pools.state];
        plan.initial_state(&mut state);
        run.o.write(Pool::State, 0, &state);
        run
    }

    /// Ready for a step in which nothing has a special value: random parameters in both networks, a random center, stochastic depth.
    pub fn random(plan: Plan, o: O, seed: u64) -> Run<O> {
        let mut run = Run { drop_rate: 0.3, ..Run::over(plan, o) };
        random_parameters(&mut run, seed);
        // Cosines are what the center is a mean of: a larger one would make every teacher row one-hot.
        let center: Vec<f64> = normals(seed + 7, plan.targets.rows.offset.len()).iter().map(|x| 0.1 * x).collect();
        run.set_center(&center);
        run
    }

    /// All rows of the parameter table.
    pub fn specs(&self) -> Vec<Spec> {
        self.specs_of(Net::Student)
    }

    /// Those of a network: the teacher has no predictor.
    pub fn specs_of(&self, net: Net) -> Vec<Spec> {
        let table = if net == Net::Teacher { self.plan.table.of_teacher() } else { self.plan.table };
        let mut specs = Vec::new();
        table.visit(|s| specs.push(s));
        specs
    }

    /// Where a network's copy of a parameter is stored.
    pub fn place(&self, net: Net, spec: &Spec) -> Weight {
        match net {
            Net::Student => spec.at,
            Net::Teacher => self.plan.table.teacher(spec.at),
        }
    }

    /// Sets every parameter of a network.
    pub fn load(&mut self, net: Net, mut values: impl FnMut(&Spec) -> Vec<f64>) {
        for spec in self.specs_of(net) {
            let at = self.place(net, &spec);
            write(&mut self.o, at, &values(&spec));
        }
    }

    /// A parameter's values in one of the networks.
    pub fn parameter(&mut self, net: Net, spec: &Spec) -> Vec<f64> {
        let at = self.place(net, spec);
        read(&mut self.o, at)
    }

    /// A parameter's gradient.
    pub fn grad(&mut self, spec: &Spec) -> Vec<f64> {
        read_grad(&mut self.o, spec.at)
    }

    /// The loss along a random direction of each of these parameters is what its gradient predicts, for one of the `steps`: where the
    /// network has kinks, a step that is short enough meets none. An error may be `own` times the parameter's gradient and `all` times
    /// that of all of them together.
    pub fn check_slopes(
        &mut self,
        h: &Hyper,
        pixels: &[View],
        found: &[(Spec, Vec<f64>)],
        steps: [f64; 3],
        [own, all]: [f64; 2],
    ) {
        let norm = |g: &[f64]| g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let of_all = norm(&found.iter().map(|(_, g)| norm(g)).collect::<Vec<_>>());
        for (ordinal, (spec, gradient)) in found.iter().enumerate() {
            let start = self.parameter(Net::Student, spec);
            let direction = normals(ordinal as u64, start.len());
            let mut at = |by: f64| {
                let moved: Vec<f64> = start.iter().zip(&direction).map(|(x, d)| x + by * d).collect();
                self.o.write(Pool::Weights, spec.at.0.at, &moved);
                self.accumulate(h, pixels);
                self.loss()
            };
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            let mut along = |h: f64| (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
            let (most, mut errors) = (own * norm(gradient) + all * of_all, Vec::new());
            let near = steps.iter().any(|h| {
                errors.push((along(*h) - slope).abs());
                errors.last().is_some_and(|error| *error <= most)
            });
            self.o.write(Pool::Weights, spec.at.0.at, &start);
            assert!(
                near,
                "{}: the gradient's slope is {slope}, the loss's is {errors:?} away: {:?}",
                spec.name, self.plan.config
            );
        }
    }

    /// One of the optimizer's arrays of state, of a parameter.
    pub fn slot(&mut self, which: usize, spec: &Spec) -> Vec<f64> {
        let span = Span { at: which * self.plan.table.len() + spec.at.0.at, len: spec.at.len() };
        read_span(&mut self.o, Pool::Slots, span)
    }

    /// Sets the center (K).
    pub fn set_center(&mut self, center: &[f64]) {
        write(&mut self.o, self.plan.targets.rows.offset, center);
    }

    /// Writes a step's derived numbers.
    pub fn set_hyper(&mut self, h: &Hyper) {
        let h = h.numbers(&self.plan);
        write(&mut self.o, self.plan.hyper, &h);
    }

    /// One of the monitors.
    pub fn monitor(&mut self, which: usize) -> f64 {
        read(&mut self.o, self.plan.monitor)[which]
    }

    /// The loss of the step so far.
    pub fn loss(&mut self) -> f64 {
        self.monitor(monitor::LOSS) * read(&mut self.o, self.plan.hyper)[hyper::LOSS_SCALE]
    }

    /// Puts micro-batch `part` of the batch into place: its crops, and which of their branches are dropped.
    pub fn put_part(&mut self, views: &[View], part: usize) {
        put_part(&mut self.o, &self.plan, self.drop_rate, views, part);
    }

    /// Everything of a step but its commit: forward, loss, gradients; the prototypes' gradient is still the raw one.
    pub fn accumulate(&mut self, h: &Hyper, views: &[View]) {
        self.set_hyper(h);
        step::begin(&mut self.o, &self.plan);
        let (plan, drop_rate) = (self.plan, self.drop_rate);
        step::accumulate(&mut self.o, &plan, |o, part| put_part(o, &plan, drop_rate, views, part));
    }

    /// The first op of a commit: raw prototype gradients become those of directions and gains.
    pub fn finish_grads(&mut self) {
        step::weight_norm_backward(&mut self.o, &self.plan);
    }

    /// A full step.
    pub fn step(&mut self, h: &Hyper, views: &[View]) {
        self.accumulate(h, views);
        step::reduce(&mut self.o, &self.plan);
        step::commit(&mut self.o, &self.plan);
    }
}

/// See [`Run::put_part`].
fn put_part<O: Memory>(o: &mut O, plan: &Plan, drop_rate: f64, views: &[View], part: usize) {
    let mut pixels = Vec::with_capacity(plan.pixels.len());
    for view in views {
        let part_len = view.pixels.len() / plan.parts();
        pixels.extend_from_slice(&view.pixels[part * part_len..][..part_len]);
    }
    write(o, plan.pixels, &pixels);
    let (micro_batch, drop) = (plan.config.micro_batch, plan.drop);
    let images: Vec<u32> = (0..micro_batch).map(|i| (part * micro_batch + i) as u32).collect();
    let mut scales = vec![0.0; drop.len()];
    plan.drop_path(&mut scales, 1, 0, &images, drop_rate);
    write(o, drop, &scales);
}

/// What the loss ops give for given logits.
pub struct Losses {
    /// One a student row, not yet divided.
    pub loss: Vec<f64>,
    /// Gradient of the student's rows (rows, bottleneck).
    pub dz: Vec<f64>,
    /// One a teacher row.
    pub entropy: Vec<f64>,
    /// The center that follows.
    pub center: Vec<f64>,
}

/// The loss ops over given logits: the prototypes are the unit vectors (so `n.bottleneck` is `n.prototypes`) with scale 1, and
/// a row is its own logits. The dimensions' images are the full batch.
pub fn loss_over_logits<F: Factory>(
    n: LossDims,
    student: &[f64],
    teacher: &[f64],
    center: &[f64],
    h: &Hyper,
) -> Losses {
    assert_eq!(n.bottleneck, n.prototypes, "unit prototypes are square");
    let k = n.prototypes;
    let mut identity = vec![0.0; k * k];
    identity.iter_mut().step_by(k + 1).for_each(|x| *x = 1.0);
    let mut a = Arena::new();
    let (z, zt, dz) = (a.input(student), a.input(teacher), a.act(student.len()));
    let p = |a: &mut Arena| Prototypes { v: a.weight(&identity), scale: a.stats(&vec![1.0; k]) };
    let (ps, pt) = (p(&mut a), p(&mut a));
    let (loss, lse) = (a.stat(n.rows()), a.stat(2 * n.rows()));
    let (lse_teacher, entropy) = (a.stat(2 * n.images * n.teachers), a.stat(n.images * n.teachers));
    let views = student.len() / k / n.images + n.first_view;
    let hyper = a.state(&h.derive(OPTIMIZER, OBJECTIVE, n.images, views, n.teachers));
    let (center, sum) = (a.state(center), a.state(&vec![0.0; k]));
    let mut finite = [0.0; monitor::LEN];
    finite[monitor::FINITE] = 1.0;
    let monitor = a.state(&finite);
    let mut o = a.build::<F>();
    let targets = TargetRows { z: zt, lse: lse_teacher, prototypes: pt, offset: center };
    o.teacher_lse(entropy, targets, hyper, n);
    o.dino_loss(LossSpans { loss, lse, dz }, StudentRows { z, prototypes: ps }, targets, hyper, n);
    o.sum_rows(sum, zt, Rows { rows: n.images * n.teachers, cols: k });
    o.commit_center(center, monitor, sum, pt, hyper, Rows { rows: k, cols: k });
    Losses {
        loss: read(&mut o, loss),
        dz: read(&mut o, dz),
        entropy: read(&mut o, entropy),
        center: read(&mut o, center),
    }
}

/// The teacher's distributions (rows, K) as the loss rebuilds them: against the uniform student that zero logits give, the gradient
/// is (1 / K - q) times a known factor.
pub fn teacher_probs<F: Factory>(teacher: &[f64], center: &[f64], h: &Hyper) -> Vec<f64> {
    let k = center.len();
    let images = teacher.len() / k;
    let n = LossDims { images, first_view: 1, views: 1, teachers: 1, bottleneck: k, prototypes: k };
    let dz = loss_over_logits::<F>(n, &vec![0.0; teacher.len()], teacher, center, h).dz;
    let h = h.derive(OPTIMIZER, OBJECTIVE, images, 2, 1);
    let factor = h[hyper::INV_STUDENT_TEMP] * h[hyper::LOSS_SCALE];
    dz.into_iter().map(|d| 1.0 / k as f64 - d / factor).collect()
}

/// The schedules' values of a step for tests: temperatures at which no probability vanishes.
pub fn hyper_numbers() -> Hyper {
    Hyper {
        lr: 1e-3,
        weight_decay: 0.1,
        momentum: 0.9,
        teacher_temp: 0.2,
        student_temp: 0.3,
        clip_grad: 1.0,
        step: 1,
        step_last: 1,
        freeze_last: false,
    }
}

/// A rate of 1 copies the student and a rate of 0 keeps the teacher, to the bit, where the formula of the average does neither.
pub fn teacher_copies_and_keeps<F: Factory>() {
    let plan = smallest();
    let (len, mut run) = (plan.table.len(), Run::random(plan, make_poisoned::<F>(plan.pools), 1));
    write(&mut run.o, plan.monitor.part(monitor::FINITE, 1), &[1.0]);
    let [student, teacher] = [0, len].map(|at| Weight(Span { at, len }));
    let mut drawn = read(&mut run.o, teacher);
    drawn[7] = -0.0; // plus zero it is another zero
    let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let from = read(&mut run.o, student);
    let differs = |(&s, &t): (&f64, &f64)| t as f32 + (s as f32 - t as f32) != s as f32;
    let misses = from.iter().zip(&drawn).filter(|pair| differs(*pair)).count();
    assert!(misses > len / 10, "the formula misses {misses} of {len}");
    for (momentum, want) in [(1.0, &drawn), (0.0, &from)] {
        write(&mut run.o, teacher, &drawn);
        run.set_hyper(&Hyper { momentum, ..hyper_numbers() });
        run.o.ema(plan.monitor, &plan.table, plan.hyper);
        assert!(bits(&read(&mut run.o, teacher)) == bits(want), "momentum {momentum}");
        assert!(bits(&read(&mut run.o, student)) == bits(&from), "the student stays");
    }
}

/// Numbers of a test: normal, from the project's own generator.
pub fn normals(seed: u64, n: usize) -> Vec<f64> {
    let mut rng = Rng::new(seed, 0, 0, 0, Kind::Test, 0);
    (0..n).map(|_| rng.normal()).collect()
}

/// Random crops for a plan's batch.
pub fn random_views(plan: &Plan, seed: u64) -> Vec<View> {
    let config = &plan.config;
    let groups = config.views.groups().iter().flat_map(|g| std::iter::repeat_n(g, g.count));
    let view = |(i, g): (usize, &Group)| {
        let len = config.batch * config.backbone.channels() * g.height * g.width;
        View { height: g.height, width: g.width, pixels: normals(seed + i as u64, len) }
    };
    groups.enumerate().map(view).collect()
}

/// Random parameters in both networks that leave no gradient small: weights of order 1/sqrt(fan in), gains and norms around one.
fn random_parameters<O: Update + Memory>(run: &mut Run<O>, seed: u64) {
    for (net, seed) in [(Net::Student, seed), (Net::Teacher, seed + 1)] {
        let mut ordinal = 0;
        run.load(net, |spec| {
            ordinal += 1;
            let name = spec.name.to_string();
            // A vector named weight is the gain of a norm.
            let one = if spec.rank == 1 && name.ends_with("weight") || name.ends_with("weight_g") { 1.0 } else { 0.0 };
            let fan_in: usize = spec.shape()[1..].iter().product();
            let deviation = if spec.rank > 1 { 1.0 / (fan_in as f64).sqrt() } else { 0.3 };
            let deviation = if name.ends_with("weight_g") { 0.2 } else { deviation };
            normals(1000 * seed + ordinal, spec.at.len()).iter().map(|x| one + deviation * x).collect()
        });
    }
}

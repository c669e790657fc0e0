//! Objectives against their plain matrix forms in f64, where every logit and every target is there at once.

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::data::Splits;
use dino_host::data::builtin::{Builtin, Part};
use dino_host::train::LOG;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{self, Net, Plan};
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use serde_json::Value;
use tests::backend::{Factory, Reference, make_poisoned, read};
use tests::for_backends;
use tests::gpu::OnGpu;
use tests::plans::{objectives, ordinary};
use tests::runs::train;
use tests::training::{Run, hyper_numbers, random_views};

/// What may be off, relative to a tensor's norm, by what the backend computes in.
trait Tolerance {
    const RELATIVE: f64;
}

impl Tolerance for Reference<f64> {
    const RELATIVE: f64 = 1e-12;
}

impl Tolerance for Reference<f32> {
    const RELATIVE: f64 = 2e-5;
}

impl Tolerance for Cpu {
    const RELATIVE: f64 = 2e-5;
}

impl<const KIB: usize> Tolerance for OnGpu<false, KIB> {
    const RELATIVE: f64 = 2e-5;
}

for_backends!([reference_f64: Reference<f64>, reference_f32: Reference<f32>, cpu: Cpu, gpu: OnGpu<false, 256>] [
    every_objective_is_its_matrix_form, sharp_targets_are_their_matrix_form,
]);

/// A matrix of so many columns.
struct Matrix {
    cols: usize,
    of: Vec<f64>,
}

impl Matrix {
    fn rows(&self) -> std::slice::Chunks<'_, f64> {
        self.of.chunks(self.cols)
    }

    /// Every row divided by its sum.
    fn normalize_rows(&mut self) {
        for row in self.of.chunks_mut(self.cols) {
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
        }
    }

    /// Every column divided by its sum.
    fn normalize_columns(&mut self) {
        for k in 0..self.cols {
            let sum: f64 = self.rows().map(|row| row[k]).sum();
            self.of.iter_mut().skip(k).step_by(self.cols).for_each(|x| *x /= sum);
        }
    }

    fn map(mut self, f: impl Fn(usize, f64) -> f64) -> Matrix {
        let cols = self.cols;
        self.of.iter_mut().enumerate().for_each(|(i, x)| *x = f(i % cols, *x));
        self
    }
}

/// z v^T, times the prototypes' scales.
fn logits(z: &[f64], v: &[f64], scale: &[f64], c: usize) -> Matrix {
    let dot = |z: &[f64], v: &[f64]| z.iter().zip(v).map(|(z, v)| z * v).sum::<f64>();
    let of = z.chunks(c).flat_map(|z| v.chunks(c).zip(scale).map(move |(v, s)| dot(z, v) * s)).collect();
    Matrix { cols: scale.len(), of }
}

/// The targets as they are published, SwAV's loop for Sinkhorn-Knopp among them.
fn targets_of(targets: Targets, logits: Matrix, center: &[f64], temperature: f64) -> Matrix {
    let top = logits.of.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let x = match targets {
        Targets::Centered { .. } => logits.map(|k, t| ((t - center[k] - top) / temperature).exp()),
        Targets::SinkhornKnopp { .. } | Targets::Plain => logits.map(|_, t| ((t - top) / temperature).exp()),
    };
    let (mut x, iterations) = match targets {
        Targets::SinkhornKnopp { iterations } => (x, iterations),
        _ => (x, 0),
    };
    for _ in 0..iterations {
        x.normalize_columns();
        x.normalize_rows();
    }
    x.normalize_rows();
    x
}

fn relative(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (difference / want.iter().copied().map(square).sum::<f64>()).sqrt()
}

fn every_objective_is_its_matrix_form<F: Factory + Tolerance>(who: &str) {
    for objective in objectives() {
        is_its_matrix_form::<F>(who, objective, 0.2);
    }
}

/// Nearly one-hot rows, and prototypes that no row is near to.
fn sharp_targets_are_their_matrix_form<F: Factory + Tolerance>(who: &str) {
    for iterations in [1, 3, 10] {
        is_its_matrix_form::<F>(
            who,
            Objective { targets: Targets::SinkhornKnopp { iterations }, ..Objective::PUBLISHED },
            0.04,
        );
    }
}

/// The loss, the targets' entropy and the gradient of the student's rows.
fn is_its_matrix_form<F: Factory + Tolerance>(who: &str, objective: Objective, teacher_temp: f64) {
    let backbone = Backbone::Vit(Vit {
        image: 8,
        patch: 4,
        channels: 3,
        dim: 12,
        depth: 1,
        heads: 2,
        mlp: 20,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 12, layers: 2, hidden: 16, bottleneck: 9, prototypes: 301, train_gain: true, ..Head::PUBLISHED };
    let group = |count, side| Group { count, height: side, width: side };
    let views = Crops::one(group(2, 8)).with(group(2, 4));
    let (images, teachers, c) = (5, 2, head.bottleneck);
    let plan = Plan::new(plan::Config { objective, ..ordinary(backbone, head, views, [images, images]) })
        .expect("a valid plan");
    let mut run = Run::random(plan, make_poisoned::<F>(plan.pools), 4);
    let h = Hyper { teacher_temp, ..hyper_numbers() };
    run.accumulate(&h, &random_views(&plan, 8));

    let pass = plan.passes().next().expect("a pass");
    let mut network = |net: &Net, z| {
        let [z, v, scale] = [read(&mut run.o, z), read(&mut run.o, net.head_weights.v), read(&mut run.o, net.scale)];
        (logits(&z, &v, &scale, c), v, scale)
    };
    let (teacher, ..) = network(&plan.teacher, plan.targets.rows.z);
    let (student, v, scale) = network(&plan.student, pass.head.z);
    let center = read(&mut run.o, plan.targets.rows.offset);
    let q = targets_of(objective.targets, teacher, &center, teacher_temp);
    let mut p = student.map(|_, s| (s / h.student_temp).exp());
    p.normalize_rows();

    let rows: Vec<&[f64]> = q.rows().collect();
    let entropy: f64 = q.of.iter().map(|q| if *q > 0.0 { -q * q.ln() } else { 0.0 }).sum();
    let pairs = (images * teachers * (plan.views() - 1)) as f64;
    let (mut loss, mut dz) = (0.0, Vec::new());
    for (row, p) in p.rows().enumerate() {
        let (view, image) = (row / images, row % images);
        let mut dp = vec![0.0; p.len()];
        for i in (0..teachers).filter(|i| *i != view) {
            for ((dp, p), q) in dp.iter_mut().zip(p).zip(rows[i * images + image]) {
                match objective.divergence {
                    Divergence::CrossEntropy => (loss, *dp) = (loss - q * p.ln(), *dp - q / p),
                    Divergence::SquaredError => (loss, *dp) = (loss + (p - q) * (p - q), *dp + 2.0 * (p - q)),
                }
            }
        }
        let inner: f64 = dp.iter().zip(p).map(|(d, p)| d * p).sum();
        let mut own = vec![0.0; c];
        for (k, (dp, p)) in dp.iter().zip(p).enumerate() {
            let ds = p * (dp - inner) / h.student_temp / pairs * scale[k];
            own.iter_mut().zip(&v[k * c..]).for_each(|(own, v)| *own += ds * v);
        }
        dz.extend(own);
    }
    let found = [
        ("loss", relative(&[run.loss()], &[loss / pairs])),
        ("entropy", relative(&[run.monitor(monitor::ENTROPY)], &[entropy])),
        ("gradient", relative(&read(&mut run.o, pass.head_grads.dz), &dz)),
    ];
    println!("{who}: {objective:?}, temperature {teacher_temp}: {found:.2?}");
    for (what, error) in found {
        assert!(error <= F::RELATIVE, "{who}: {objective:?}: {what} is off by {error:.1e}, relative");
    }
}

/// Without a center one prototype takes everything; with one, or with equal shares of the batch, nothing else changed, it does not.
#[test]
fn collapse_is_named_where_it_happens() {
    let part = |count, part| Box::new(Builtin::new(32, count, part, 0));
    let splits =
        Splits { train: part(40, Part::Train), test: part(12, Part::Test), held_out: false, notes: Vec::new() };
    let verdict = |targets: &str, loss: &str| {
        let config = Config {
            embed_dim: 24,
            depth: 1,
            heads: 2,
            hidden: 32,
            out_dim: 64,
            bottleneck: 16,
            global_size: 20,
            momentum_teacher: 0.9,
            batch: 8,
            micro_batch: 4,
            epochs: 40,
            knn_every: 0,
            save_every: 0,
            targets: targets.into(),
            loss: loss.into(),
            ..Config::small()
        };
        let folder = tempfile::tempdir().unwrap();
        let config = config.resolve().unwrap();
        train::<Cpu>(&NoOptions {}, &splits, &config, folder.path(), false, false);
        let text = std::fs::read_to_string(folder.path().join(LOG)).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |kind: &str| rows.iter().rfind(|row| row["kind"] == kind).unwrap().clone();
        let (step, epoch) = (of("step"), of("epoch"));
        println!("{targets}, {loss}: loss {}, entropy {}, {}", step["loss"], step["teacher_entropy"], epoch["verdict"]);
        assert_eq!(step["kl"].is_null(), loss == "mse", "a squared error has no KL");
        epoch["verdict"].as_str().unwrap().to_string()
    };
    for loss in ["cross-entropy", "mse"] {
        assert_eq!(verdict("none", loss), "one-dimensional collapse");
        for targets in ["center", "sinkhorn-knopp"] {
            let name = verdict(targets, loss);
            assert!(!name.contains("collapse"), "{targets}, {loss}: {name}");
        }
    }
}

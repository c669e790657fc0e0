//! What every step reports: one table for the rows of `log.jsonl`, the scalars of TensorBoard and the charts of a report.

use crate::io::json::number;
use dino_kernel::objective::Divergence;
use dino_kernel::plan::Plan;
use dino_kernel::scalars::monitor;
use dino_kernel::step::Hyper;
use serde_json::{Map, Value};

/// What the device reports of a step, as means.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Cross-entropy of a pair of views, nats, or their squared error.
    pub loss: f64,
    /// Which of the two.
    pub divergence: Divergence,
    /// Entropy of the teacher's output, nats.
    pub entropy: f64,
    /// L2 norm of the student's gradient before clipping.
    pub grad_norm: f64,
    /// L2 norm of the center.
    pub center_norm: f64,
}

impl Report {
    /// From the sums of a plan's monitor.
    pub fn new(m: &[f32; monitor::LEN], plan: &Plan) -> Report {
        let (images, teachers) = (plan.config.batch, plan.teachers());
        Report {
            divergence: plan.config.objective.divergence,
            loss: m[monitor::LOSS] as f64 / (images * teachers * (plan.views() - 1)) as f64,
            entropy: m[monitor::ENTROPY] as f64 / (images * teachers) as f64,
            grad_norm: m[monitor::GRAD_NORM] as f64,
            center_norm: m[monitor::CENTER_NORM] as f64,
        }
    }
}

impl Report {
    /// The loss where it is a cross-entropy; what is formed of it in nats is no number of a squared error.
    fn nats(&self) -> f64 {
        match self.divergence {
            Divergence::CrossEntropy => self.loss,
            Divergence::SquaredError => f64::NAN,
        }
    }
}

/// What the numbers of a step's row are formed from.
pub struct Step<'a> {
    /// The device's numbers.
    pub report: Report,
    /// The step's rates and coefficients.
    pub hyper: &'a Hyper,
    /// ln of the number of prototypes.
    pub ln_k: f64,
    /// Images trained on per second.
    pub images_per_second: f64,
    /// The part of the step that was spent waiting for the loader.
    pub data_wait: f64,
}

/// A number of every step's row.
pub struct Metric {
    /// Key in `log.jsonl`.
    pub key: &'static str,
    /// Tag in TensorBoard.
    pub tag: &'static str,
    /// Unit; "" of a bare number.
    pub unit: &'static str,
    of: fn(&Step) -> f64,
}

macro_rules! metrics {
    ($($name:ident: $key:literal, $tag:literal, $unit:literal, $of:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Column { $($name,)* }

        $(
            /// Its row in [`METRICS`].
            pub const $name: usize = Column::$name as usize;
        )*

        /// The table; every metric is at the constant of its name.
        pub const METRICS: [Metric; [$($key,)*].len()] = [$(Metric { key: $key, tag: $tag, unit: $unit, of: $of },)*];
    };
}

metrics! {
    LOSS: "loss", "train/loss", "nats", |s| s.report.loss;
    LOSS_MINUS_LN_K: "loss_minus_ln_k", "train/loss_minus_ln_k", "nats", |s| s.report.nats() - s.ln_k;
    ENTROPY: "teacher_entropy", "train/teacher_entropy", "nats", |s| s.report.entropy;
    KL: "kl", "train/kl", "nats", |s| s.report.nats() - s.report.entropy;
    GRAD_NORM: "grad_norm", "train/grad_norm", "", |s| s.report.grad_norm;
    CENTER_NORM: "center_norm", "train/center_norm", "", |s| s.report.center_norm;
    LR: "lr", "train/lr", "", |s| s.hyper.lr;
    WEIGHT_DECAY: "wd", "train/weight_decay", "", |s| s.hyper.weight_decay;
    MOMENTUM: "momentum", "train/momentum", "", |s| s.hyper.momentum;
    TEACHER_TEMP: "teacher_temp", "train/teacher_temp", "", |s| s.hyper.teacher_temp;
    IMAGES_PER_SECOND: "images_per_second", "speed/images_per_second", "images per second", |s| s.images_per_second;
    DATA_WAIT: "data_wait", "speed/data_wait", "of a step", |s| s.data_wait;
}

/// A step's numbers for its row.
pub fn row(step: &Step) -> Map<String, Value> {
    METRICS.iter().map(|metric| (metric.key.into(), number((metric.of)(step)))).collect()
}

/// Which metric has this key.
pub fn column(key: &str) -> Option<usize> {
    METRICS.iter().position(|metric| metric.key == key)
}

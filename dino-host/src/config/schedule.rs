//! The recipe's numbers as functions of the step.

use super::Config;
use dino_kernel::optim::{AdamW, Lars, Optimizer, Sgd, TeacherRule};
use dino_kernel::schedule::{Cosine, TeacherTemp};
use dino_kernel::step::Hyper;

/// Values of `--optimizer`.
pub(super) const OPTIMIZERS: [&str; 3] = ["adamw", "sgd", "lars"];
/// Values of `--teacher`.
pub(super) const TEACHERS: [&str; 5] = ["ema", "previous-epoch", "previous-iteration", "student", "frozen"];

/// The schedules of a run, made once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedules {
    lr: Cosine,
    weight_decay: Cosine,
    teacher: TeacherRule,
    teacher_temp: TeacherTemp,
    student_temp: f64,
    clip_grad: f64,
    per_epoch: u64,
    steps: u64,
    /// Steps in which the prototypes do not move.
    frozen: u64,
}

impl Config {
    /// How gradients move parameters: AdamW where the value names no optimizer, which [`Config::resolve`] refuses.
    pub fn optimizer(&self) -> Optimizer {
        let momentum = self.sgd_momentum;
        match self.optimizer.as_str() {
            "sgd" => Optimizer::Sgd(Sgd { momentum }),
            "lars" => Optimizer::Lars(Lars { momentum, eta: self.lars_eta }),
            _ => Optimizer::AdamW(AdamW { beta1: self.beta1, beta2: self.beta2, eps: self.adam_eps }),
        }
    }

    /// Where the teacher comes from: an average where the value names no rule, which [`Config::resolve`] refuses.
    pub fn teacher(&self) -> TeacherRule {
        match self.teacher.as_str() {
            "previous-epoch" => TeacherRule::PreviousEpoch,
            "previous-iteration" => TeacherRule::PreviousIteration,
            "student" => TeacherRule::Student,
            "frozen" => TeacherRule::Frozen,
            _ => TeacherRule::Ema { start: self.momentum_teacher, end: self.momentum_teacher_end },
        }
    }

    /// The schedules, with `per_epoch` steps in an epoch.
    pub fn schedules(&self, per_epoch: u64) -> Schedules {
        let steps = self.epochs * per_epoch;
        Schedules {
            lr: Cosine {
                start: 0.0,
                base: self.lr * self.batch as f64 / 256.0,
                end: self.min_lr,
                warmup: self.warmup_epochs * per_epoch,
                steps,
            },
            weight_decay: Cosine::new(self.weight_decay, self.weight_decay_end, steps),
            teacher: self.teacher(),
            teacher_temp: TeacherTemp {
                warmup: self.warmup_teacher_temp,
                end: self.teacher_temp,
                epochs: self.warmup_teacher_temp_epochs,
            },
            student_temp: self.student_temp,
            clip_grad: self.clip_grad,
            per_epoch,
            steps,
            frozen: self.freeze_last_layer * per_epoch,
        }
    }
}

impl Schedules {
    /// The numbers of optimization step `step`, from 0.
    pub fn at(&self, step: u64) -> Hyper {
        Hyper {
            lr: self.lr.at(step),
            weight_decay: self.weight_decay.at(step),
            momentum: self.teacher.momentum(step, self.per_epoch, self.steps),
            teacher_temp: self.teacher_temp.at(step / self.per_epoch),
            student_temp: self.student_temp,
            clip_grad: self.clip_grad,
            step: step + 1,
            step_last: (step + 1).saturating_sub(self.frozen),
            freeze_last: step < self.frozen,
        }
    }
}

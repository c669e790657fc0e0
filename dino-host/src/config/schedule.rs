//! The numbers of every optimization step.

use super::Config;
use dino_kernel::schedule::{Cosine, TeacherTemp};
use dino_kernel::step::Hyper;

impl Config {
    /// The numbers of optimization step `step` (from 0), with `per_epoch` steps in an epoch.
    pub fn hyper(&self, step: u64, per_epoch: u64) -> Hyper {
        let (epoch, steps) = (step / per_epoch, self.epochs * per_epoch);
        let lr = Cosine {
            start: 0.0,
            base: self.lr * self.batch as f64 / 256.0,
            end: self.min_lr,
            warmup: self.warmup_epochs * per_epoch,
            steps,
        };
        let temp = TeacherTemp {
            warmup: self.warmup_teacher_temp,
            end: self.teacher_temp,
            epochs: self.warmup_teacher_temp_epochs,
        };
        let frozen = self.freeze_last_layer * per_epoch;
        Hyper {
            lr: lr.at(step),
            weight_decay: Cosine::new(self.weight_decay, self.weight_decay_end, steps).at(step),
            momentum: Cosine::new(self.momentum_teacher, 1.0, steps).at(step),
            teacher_temp: temp.at(epoch),
            student_temp: self.student_temp,
            clip_grad: self.clip_grad,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            step: step + 1,
            step_last: (step + 1).saturating_sub(frozen),
            freeze_last: step < frozen,
        }
    }
}

//! How the student moves the teacher: teacher += (1 - momentum)(student - teacher). Rules differ in the momentum of a step, and in
//! whether the teacher takes the student as it is before the optimizer's update or after it.

use crate::real::Real;
use crate::schedule::Cosine;

/// Where the teacher comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TeacherRule {
    /// An average of the student, whose momentum follows a cosine from `start` to `end`.
    Ema {
        /// Momentum of the first step.
        start: f64,
        /// Momentum that the last step comes near.
        end: f64,
    },
    /// The student as it was at the end of the epoch before; in the first epoch, as it began.
    PreviousEpoch,
    /// The student as it was before this step's update.
    PreviousIteration,
    /// The student itself.
    Student,
    /// What it began as.
    Frozen,
}

impl TeacherRule {
    /// Whether the teacher moves before the optimizer does. It is the same in every step, so that a step stays one graph.
    pub const fn before_update(&self) -> bool {
        matches!(self, TeacherRule::PreviousIteration)
    }

    /// How much of itself the teacher keeps in step `step` (from 0) of `steps`, `per_epoch` of which are an epoch: at 1 all of it, at 0
    /// nothing. What it takes of the student is the rest, the rate of [`blend`].
    pub fn momentum(&self, step: u64, per_epoch: u64, steps: u64) -> f64 {
        match *self {
            TeacherRule::Ema { start, end } => Cosine::new(start, end, steps).at(step),
            TeacherRule::PreviousEpoch if (step + 1).is_multiple_of(per_epoch) => 0.0,
            TeacherRule::PreviousIteration | TeacherRule::Student => 0.0,
            TeacherRule::PreviousEpoch | TeacherRule::Frozen => 1.0,
        }
    }
}

/// teacher += rate (student - teacher). A rate of 1 copies, where the formula would often miss the student by a rounding; at a rate of
/// 0 the teacher keeps its bits.
#[inline(always)]
pub fn blend<T: Real>(teacher: &mut [T], student: &[T], rate: T) {
    if rate == T::ONE {
        teacher.copy_from_slice(student);
    } else if rate != T::ZERO {
        for (t, &s) in teacher.iter_mut().zip(student) {
            *t += rate * (s - *t);
        }
    }
}

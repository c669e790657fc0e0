//! The numbers of a step that are kept in the state pool, slot by slot, and the bounds that backends share.

/// Most teacher views a plan accepts.
pub const MAX_TEACHERS: usize = 8;

/// A module of slots numbered in the order of the list, with their names and their count.
macro_rules! slots {
    ($(#[$doc:meta])* $list:ident { $($(#[$note:meta])* $name:ident,)* }) => {
        $(#[$doc])*
        pub mod $list {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            enum Slot { $($name,)* }

            $($(#[$note])* pub const $name: usize = Slot::$name as usize;)*

            /// The names, in order. Backends in other languages keep a list of their own, which a test compares with this one.
            pub const NAMES: &[&str] = &[$(stringify!($name),)*];
            /// How many there are.
            pub const LEN: usize = NAMES.len();
        }
    };
}

slots! {
    /// Slots of the `hyper` span: this step's derived numbers, formed in f64 and rounded once (in f32, 1 - 0.9999 is off by 1.7e-4).
    hyper {
        /// lr * weight decay.
        DECAY,
        /// lr / (1 - b1^t), with the step count of all layers but the last.
        STEP,
        /// 1 / sqrt(1 - b2^t), with the same count.
        BIAS2,
        /// [`STEP`] with the last layer's step count, which does not advance while the layer is frozen.
        STEP_LAST,
        /// [`BIAS2`] with the last layer's step count.
        BIAS2_LAST,
        /// 1 - b1 of Adam.
        RATE1,
        /// 1 - b2 of Adam.
        RATE2,
        /// eps of Adam.
        EPS,
        /// 1 - teacher momentum.
        EMA_RATE,
        /// 1 - momentum of the center.
        CENTER_RATE,
        /// 1 / teacher rows of the whole batch.
        INV_TEACHER_ROWS,
        /// 1 / student temperature.
        INV_STUDENT_TEMP,
        /// 1 / teacher temperature.
        INV_TEACHER_TEMP,
        /// 1 / (images of the whole batch * pairs).
        LOSS_SCALE,
        /// Per-tensor norm limit, 0 = off.
        CLIP,
        /// 1 while the last layer is withheld from the optimizer, else 0.
        FREEZE_LAST,
    }
}

slots! {
    /// Slots of the `monitor` span: what a step reports, read by the host when it likes (a GPU's host reads one step late).
    monitor {
        /// Sum over student rows of their loss; times LOSS_SCALE it is the loss.
        LOSS,
        /// Sum over teacher rows of their entropy.
        ENTROPY,
        /// 1 if loss and gradients were finite, and those of every step before, so that the step was taken; else 0.
        FINITE,
        /// Global gradient norm before clipping.
        GRAD_NORM,
        /// Norm of the center after the step.
        CENTER_NORM,
        /// 1 from the first step on that was not finite: a host that reads late has queued further steps, and they must change
        /// nothing. The last of the slots: the start of a step clears those before it, only the host clears this one.
        HALTED,
    }
}

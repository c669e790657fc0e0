//! The numbers of a step that are kept in the state pool, slot by slot, and the bounds that backends share.

/// Most teacher views a plan accepts.
pub const MAX_TEACHERS: usize = 8;

/// Most numbers that an optimizer has for a group of parameters.
pub const NUMBERS: usize = 7;
/// Slot of a group's block that follows the optimizer's numbers: 1 while the group is withheld from the optimizer, else 0.
pub const WITHHELD: usize = NUMBERS;
/// Length of a group's block.
pub const BLOCK: usize = NUMBERS + 1;

/// A module of slots in the order of the list, each of one number or of as many as it states, with their names and the length of all.
macro_rules! slots {
    ($(#[$doc:meta])* $list:ident { $($(#[$note:meta])* $name:ident $([$len:expr])?,)* }) => {
        $(#[$doc])*
        pub mod $list {
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            enum Slot { $($name,)* }

            const fn start(slot: usize) -> usize {
                let (lens, mut at, mut i) = ([$(1 $(* $len)?,)*], 0, 0);
                while i < slot {
                    at += lens[i];
                    i += 1;
                }
                at
            }

            $($(#[$note])* pub const $name: usize = start(Slot::$name as usize);)*

            /// Names and where they begin, in order. Backends in other languages keep lists of their own, which a test compares.
            pub const SLOTS: &[(&str, usize)] = &[$((stringify!($name), $name),)*];
            /// Numbers of all slots.
            pub const LEN: usize = start(SLOTS.len());
        }
    };
}
pub(crate) use slots;

slots! {
    /// Slots of the `hyper` span: this step's derived numbers, formed in f64 and rounded once (in f32, 1 - 0.9999 is off by 1.7e-4).
    hyper {
        /// 1 - teacher momentum.
        TEACHER_RATE,
        /// 1 - momentum of the center.
        CENTER_RATE,
        /// 1 / teacher rows of the full batch.
        INV_TEACHER_ROWS,
        /// 1 / student temperature.
        INV_STUDENT_TEMP,
        /// 1 / teacher temperature.
        INV_TEACHER_TEMP,
        /// 1 / (images of the full batch * pairs).
        LOSS_SCALE,
        /// Per-tensor norm limit, 0 = off.
        CLIP,
        /// A block for every [`ParamGroup`](crate::params::ParamGroup): the optimizer's [`NUMBERS`](super::NUMBERS), and whether the
        /// group is [`WITHHELD`](super::WITHHELD).
        GROUPS[crate::params::ParamGroup::ALL.len() * super::BLOCK],
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

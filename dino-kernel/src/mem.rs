//! Spans of flat pools, the typed handles over them, and the cursor that lays them out.
//!
//! A plan is arithmetic, never an allocation: a [`Cursor`] hands out consecutive spans, and where it stops is how large
//! the pool must be. Which pool a span indexes is part of its type, and the pool fixes the element type.

use core::ops::Range;

/// Elements `at .. at + len` of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first element.
    pub at: usize,
    /// Number of elements.
    pub len: usize,
}

impl Span {
    /// No elements.
    pub const EMPTY: Span = Span { at: 0, len: 0 };

    /// The elements as indices into the pool.
    pub const fn range(self) -> Range<usize> {
        self.at..self.at + self.len
    }

    /// The same length, `by` elements further on.
    pub const fn shift(self, by: usize) -> Span {
        Span { at: self.at + by, len: self.len }
    }

    /// Elements `from .. from + len` of this span.
    pub const fn part(self, from: usize, len: usize) -> Span {
        assert!(from + len <= self.len, "part reaches past its span");
        Span { at: self.at + from, len }
    }
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub Span);

        impl $name {
            /// No elements.
            pub const EMPTY: $name = $name(Span::EMPTY);
            /// Number of elements.
            #[allow(clippy::len_without_is_empty)]
            pub const fn len(self) -> usize { self.0.len }
            /// The elements as indices into the pool.
            pub const fn range(self) -> Range<usize> { self.0.range() }
            /// The same length, `by` elements further on.
            pub const fn shift(self, by: usize) -> $name { $name(self.0.shift(by)) }
            /// Elements `from .. from + len` of it.
            pub const fn part(self, from: usize, len: usize) -> $name { $name(self.0.part(from, len)) }
        }
    };
}

handle!(
    /// Activations and their gradients (may be bf16 on a GPU).
    Act
);
handle!(
    /// Parameters, student or teacher, in one pool. A gradient is stored at its student parameter's offset in the pool of gradients.
    Weight
);
handle!(
    /// f32 numbers that live for one step: mean, rstd, log-sum-exp, loss. (The reference backend uses its own real type.)
    Stat
);
handle!(
    /// f32 numbers that persist or are written by the host: center, its running sum, this step's scalars. (Reference: its own real type.)
    State
);

/// The memory that a handle points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Parameters of both networks ([`Weight`]).
    Weights,
    /// Gradients of the student's parameters.
    Grads,
    /// The optimizer's arrays of state, each as long as a network ([`crate::optim::Optimizer::slots`]).
    Slots,
    /// Activations and their gradients ([`Act`]).
    Acts,
    /// Numbers of one step in full precision ([`Stat`]).
    Stats,
    /// Numbers that outlive a step ([`State`]).
    State,
}

impl Pool {
    /// How many there are.
    pub const COUNT: usize = Pool::State as usize + 1;
}

/// Lays spans one after the other, each aligned to [`Cursor::ALIGN`] elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// Where the next span begins; at last the size of the pool.
    pub next: usize,
}

impl Cursor {
    /// Elements; 64 bytes of f32, a cache line, and enough for 16-byte vector loads of bf16.
    pub const ALIGN: usize = 16;

    /// Nothing is laid out yet.
    pub const fn new() -> Cursor {
        Cursor { next: 0 }
    }

    /// Takes the next `len` elements.
    pub const fn take(&mut self, len: usize) -> Span {
        let at = self.next;
        self.next = (at + len).next_multiple_of(Self::ALIGN);
        Span { at, len }
    }
}

/// What a plan has laid out of every pool so far: one cursor for each kind of memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// Parameters of one network.
    pub weights: Cursor,
    /// Activations and their gradients.
    pub acts: Cursor,
    /// Numbers of one step in full precision.
    pub stats: Cursor,
    /// Numbers that outlive a step.
    pub state: Cursor,
}

impl Layout {
    /// Nothing is laid out yet.
    pub const fn new() -> Layout {
        Layout { weights: Cursor::new(), acts: Cursor::new(), stats: Cursor::new(), state: Cursor::new() }
    }

    /// Takes `len` activations.
    pub const fn act(&mut self, len: usize) -> Act {
        Act(self.acts.take(len))
    }

    /// Takes `len` stats.
    pub const fn stat(&mut self, len: usize) -> Stat {
        Stat(self.stats.take(len))
    }

    /// Takes `len` elements of state.
    pub const fn state(&mut self, len: usize) -> State {
        State(self.state.take(len))
    }
}

pub(crate) const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

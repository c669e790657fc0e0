//! Spans of flat pools, the typed handles over them, and the cursor that lays them out.
//!
//! A plan is arithmetic, never an allocation: a [`Cursor`] hands out consecutive spans, and where it stops is how large
//! the pool must be. Which pool a span indexes is part of its type, and the pool fixes the element type.

use core::ops::Range;

/// Elements `at .. at + len` of one pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub at: usize,
    pub len: usize,
}

impl Span {
    pub const EMPTY: Span = Span { at: 0, len: 0 };

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
            pub const EMPTY: $name = $name(Span::EMPTY);
            /// Number of elements.
            #[allow(clippy::len_without_is_empty)]
            pub const fn len(self) -> usize { self.0.len }
            pub const fn range(self) -> Range<usize> { self.0.range() }
            pub const fn shift(self, by: usize) -> $name { $name(self.0.shift(by)) }
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
    Weights,
    Grads,
    /// The optimizer's arrays of state, each as long as a network ([`crate::optim::Optimizer::slots`]).
    Slots,
    Acts,
    Stats,
    State,
}

impl Pool {
    /// How many there are.
    pub const COUNT: usize = Pool::State as usize + 1;
}

/// Lays spans one after the other, each aligned to [`Cursor::ALIGN`] elements.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    pub next: usize,
}

impl Cursor {
    /// Elements; 64 bytes of f32, a cache line, and enough for 16-byte vector loads of bf16.
    pub const ALIGN: usize = 16;

    pub const fn new() -> Cursor {
        Cursor { next: 0 }
    }

    pub const fn take(&mut self, len: usize) -> Span {
        let at = self.next;
        self.next = (at + len).next_multiple_of(Self::ALIGN);
        Span { at, len }
    }
}

/// What a plan has laid out of every pool so far: one cursor for each kind of memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    pub weights: Cursor,
    pub acts: Cursor,
    pub stats: Cursor,
    pub state: Cursor,
}

impl Layout {
    pub const fn new() -> Layout {
        Layout { weights: Cursor::new(), acts: Cursor::new(), stats: Cursor::new(), state: Cursor::new() }
    }

    pub const fn act(&mut self, len: usize) -> Act {
        Act(self.acts.take(len))
    }

    pub const fn stat(&mut self, len: usize) -> Stat {
        Stat(self.stats.take(len))
    }

    pub const fn state(&mut self, len: usize) -> State {
        State(self.state.take(len))
    }
}

pub(crate) const fn max(a: usize, b: usize) -> usize {
    if a > b { a } else { b }
}

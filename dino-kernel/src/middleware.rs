//! Backends that wrap backends: [`Checked`] (spans in range and disjoint, first non-finite number named), [`Timed`] (a profile by
//! word), [`Lockstep`] (run two, compare after every word). None is known to the model.
//!
//! The list of words, with what each operand is for, stands once, in `words!`; the three wrappers are made from it.

use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Span, Stat, State, Weight};
use crate::model::Table;

/// The memory a handle points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    Weights,
    Grads,
    /// Adam's first moments, then its second.
    Moments,
    Acts,
    Stats,
    State,
}

impl Pool {
    /// How many there are.
    pub const COUNT: usize = Pool::State as usize + 1;
}

/// Reading and writing any pool, however the backend stores it. For wrappers and tests, not for steps.
pub trait Memory {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]);
    fn write(&mut self, pool: Pool, at: usize, values: &[f64]);
    /// Elements of the pool.
    #[allow(clippy::len_without_is_empty)]
    fn len(&mut self, pool: Pool) -> usize;
}

/// What a word does with an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Written; earlier content does not matter.
    Set,
    /// Read and written.
    Acc,
    /// Read.
    Get,
    /// A parameter that is read and whose gradient accumulates.
    Grad,
    /// A parameter of which only the gradient is touched.
    GradOnly,
}

/// One span a word touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    pub pool: Pool,
    pub span: Span,
    pub written: bool,
}

/// The spans one call touches.
#[derive(Clone, Copy, Debug)]
pub struct Touches {
    list: [Touch; 24],
    len: usize,
}

impl Touches {
    fn new() -> Touches {
        Touches { list: [Touch { pool: Pool::Acts, span: Span::EMPTY, written: false }; 24], len: 0 }
    }

    fn push(&mut self, pool: Pool, span: Span, written: bool) {
        if span.len > 0 {
            self.list[self.len] = Touch { pool, span, written };
            self.len += 1;
        }
    }

    /// All of them, in the order of the word's arguments.
    pub fn all(&self) -> &[Touch] {
        &self.list[..self.len]
    }
}

/// Anything a word can be handed.
trait Operand {
    fn touch(&self, access: Access, t: &mut Touches);
}

macro_rules! operand {
    ($handle:ty, $pool:expr) => {
        impl Operand for $handle {
            fn touch(&self, access: Access, t: &mut Touches) {
                t.push($pool, self.0, access != Access::Get);
            }
        }
    };
}
operand!(Act, Pool::Acts);
operand!(Stat, Pool::Stats);
operand!(State, Pool::State);

impl Operand for Weight {
    fn touch(&self, access: Access, t: &mut Touches) {
        if access != Access::GradOnly {
            t.push(Pool::Weights, self.0, false);
        }
        if access != Access::Get {
            t.push(Pool::Grads, self.0, true);
        }
    }
}

impl Operand for Prototypes {
    fn touch(&self, access: Access, t: &mut Touches) {
        self.v.touch(access, t);
        self.scale.touch(Access::Get, t);
    }
}

/// The optimiser's words touch whole pools.
impl Operand for &Table {
    fn touch(&self, access: Access, t: &mut Touches) {
        let len = self.len();
        if access == Access::GradOnly {
            t.push(Pool::Grads, Span { at: 0, len }, true);
        } else {
            t.push(Pool::Weights, Span { at: 0, len: 2 * len }, true);
            t.push(Pool::Moments, Span { at: 0, len: 2 * len }, true);
        }
    }
}

/// Calls `$make` with every word: its trait, its operands with their use, its other arguments.
macro_rules! words {
    ($make:ident) => {
        $make! {
            Forward {
                patchify(Set y: Act, Get x: Act; n: Patches);
                linear(Set y: Act, Get x: Act, Get w: Weight, Get b: Weight; n: Mat);
                gelu(Set y: Act, Get x: Act;);
                linear_gelu(Set y: Act, Set pre: Act, Get x: Act, Get w: Weight, Get b: Weight; n: Mat);
                layernorm(Set y: Act, Set mean: Stat, Set rstd: Stat, Get x: Act, Get w: Weight, Get b: Weight; n: LayerNorm);
                add(Set y: Act, Get x: Act, Get branch: Act;);
                add_scaled(Set y: Act, Get x: Act, Get branch: Act, Get scale: State; n: Ragged, cols: usize);
                add_layernorm(Set y: Act, Set mid: Act, Set mean: Stat, Set rstd: Stat, Get x: Act, Get branch: Act, Get w: Weight, Get b: Weight; n: LayerNorm);
                resize_positions(Set y: Act, Get table: Weight, Get rows: State, Get cols: State; n: Grid);
                embed(Set y: Act, Get patches: Act, Get class: Weight, Get class_position: Weight, Get positions: Act; n: Embed);
                attention(Set y: Act, Set lse: Stat, Get qkv: Act; n: Heads);
                attention_class(Set y: Act, Set lse: Stat, Get q: Act, Get kv: Act; n: Heads);
                attention_rows(Set y: Act, Get lse: Stat, Get qkv: Act; queries: usize, n: Heads);
                gather_class(Set y: Act, Get x: Act; n: Ragged, cols: usize);
                l2_normalise(Set y: Act, Set norm: Stat, Get x: Act; n: Rows);
                prototype_scale(Set scale: Stat, Get v: Weight, Get g: Weight; n: Rows);
                logits(Set y: Act, Get z: Act, Get p: Prototypes; n: Mat);
            }
            Backward {
                linear_backward(Set dx: Act, Get dy: Act, Get x: Act, Grad w: Weight, GradOnly b: Weight; n: Mat);
                linear_backward_params(Get dy: Act, Get x: Act, GradOnly w: Weight, GradOnly b: Weight; n: Mat);
                gelu_backward(Set dx: Act, Get dy: Act, Get x: Act;);
                layernorm_backward(Acc dx_acc: Act, Get dy: Act, Get x: Act, Get mean: Stat, Get rstd: Stat, Grad w: Weight, GradOnly b: Weight; n: Rows);
                scale_crops(Set y: Act, Get x: Act, Get scale: State; n: Ragged, cols: usize);
                attention_backward(Set dqkv: Act, Get dy: Act, Get y: Act, Get lse: Stat, Get qkv: Act; n: Heads);
                attention_class_backward(Set dq: Act, Set dkv: Act, Get dy: Act, Get y: Act, Get lse: Stat, Get q: Act, Get kv: Act; n: Heads);
                embed_backward(Set dpatches: Act, Set dpositions: Act, Get dy: Act, GradOnly class: Weight, GradOnly class_position: Weight; n: Embed);
                resize_positions_backward(Get dy: Act, GradOnly table: Weight, Get rows: State, Get cols: State; n: Grid);
                clear(Set x: Act;);
                scatter_class_acc(Acc dx_acc: Act, Get dy: Act; n: Ragged, cols: usize);
                l2_normalise_backward(Set dx: Act, Get dy: Act, Get y: Act, Get norm: Stat; n: Rows);
            }
            Update {
                zero_grads(;);
                zero(Set x: State;);
                teacher_lse(Set lse: Stat, Set entropy: Stat, Get z: Act, Get p: Prototypes, Get centre: State, Get hyper: State; n: LossDims);
                dino_loss(Set loss: Stat, Set lse: Stat, Set dz: Act, Get z: Act, Grad student: Prototypes, Get z_teacher: Act,
                    Get lse_teacher: Stat, Get teacher: Prototypes, Get centre: State, Get hyper: State; n: LossDims);
                sum_rows(Acc sum: State, Get x: Act; n: Rows);
                sum_stat(Acc sum: State, Get x: Stat;);
                weight_norm_backward(Grad v: Weight, Grad g: Weight, Get scale: Stat; train_gain: bool, n: Rows);
                clip(Acc monitor: State, GradOnly table: &Table, Get hyper: State;);
                commit_centre(Acc centre: State, Acc monitor: State, Get sum: State, Get teacher: Prototypes, Get hyper: State; n: Rows);
                adamw(Get monitor: State, Acc table: &Table, Get hyper: State;);
                ema(Get monitor: State, Acc table: &Table, Get hyper: State;);
            }
        }
    };
}

macro_rules! make_word {
    ($($tr:ident { $($word:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        /// A word of the vocabulary.
        #[allow(non_camel_case_types)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Word { $($($word,)*)* }

        impl Word {
            /// All of them.
            pub const ALL: &'static [Word] = &[$($(Word::$word,)*)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $($(Word::$word => stringify!($word),)*)* }
            }
        }
    };
}
words!(make_word);

/// What a call touches, from the list's operands.
macro_rules! touches {
    ($($use:ident $arg:ident),*) => {{
        #[allow(unused_mut)]
        let mut t = Touches::new();
        $($arg.touch(Access::$use, &mut t);)*
        t
    }};
}

// Wrappers can borrow what they wrap.
macro_rules! borrowed {
    ($($tr:ident { $($word:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr> $tr for &mut O {
            $(fn $word(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                (**self).$word($($arg,)* $($dim),*);
            })*
        })*
    };
}
words!(borrowed);

impl<O: Memory> Memory for &mut O {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        (**self).read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        (**self).write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        (**self).len(pool)
    }
}

// ---------------------------------------------------------------------------------------------------------------- Checked

/// The first thing a [`Checked`] backend found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A span reaches past its pool.
    Range(Touch),
    /// A written span overlaps another operand of the same call.
    Overlap(Touch, Touch),
    /// A written span holds a number that is not finite at this element.
    NonFinite(Touch, usize),
}

/// Refuses calls whose spans overlap or leave their pools, and notes the first number that is not finite.
pub struct Checked<O> {
    pub inner: O,
    /// The first fault, the word, and how many words had been said before it.
    pub fault: Option<(Fault, Word, u64)>,
    calls: u64,
}

impl<O: Memory> Checked<O> {
    pub fn new(inner: O) -> Self {
        Checked { inner, fault: None, calls: 0 }
    }

    /// Words said so far.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    fn note(&mut self, fault: Fault, word: Word) {
        if self.fault.is_none() {
            self.fault = Some((fault, word, self.calls));
        }
    }

    fn before(&mut self, word: Word, t: &Touches) {
        self.calls += 1;
        for (i, &x) in t.all().iter().enumerate() {
            if x.span.at + x.span.len > self.inner.len(x.pool) {
                self.note(Fault::Range(x), word);
            }
            for &y in &t.all()[..i] {
                let apart = x.span.at + x.span.len <= y.span.at || y.span.at + y.span.len <= x.span.at;
                if x.pool == y.pool && (x.written || y.written) && !apart {
                    self.note(Fault::Overlap(x, y), word);
                }
            }
        }
    }

    fn after(&mut self, word: Word, t: &Touches) {
        if self.fault.is_some() {
            return;
        }
        for &x in t.all().iter().filter(|x| x.written) {
            let mut buffer = [0.0; 256];
            for at in (0..x.span.len).step_by(buffer.len()) {
                let part = &mut buffer[..(x.span.len - at).min(256)];
                self.inner.read(x.pool, x.span.at + at, part);
                if let Some(i) = part.iter().position(|v| !v.is_finite()) {
                    return self.note(Fault::NonFinite(x, at + i), word);
                }
            }
        }
    }
}

impl<O: Memory> Memory for Checked<O> {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.inner.read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        self.inner.write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.inner.len(pool)
    }
}

macro_rules! checked {
    ($($tr:ident { $($word:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr + Memory> $tr for Checked<O> {
            $(fn $word(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                let t = touches!($($use $arg),*);
                self.before(Word::$word, &t);
                self.inner.$word($($arg,)* $($dim),*);
                self.after(Word::$word, &t);
            })*
        })*
    };
}
words!(checked);

// ------------------------------------------------------------------------------------------------------------------ Timed

/// Calls, time and work of one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub calls: u64,
    pub nanoseconds: u64,
    /// Floating-point operations of its matrix products, as its formula needs them, however often a backend makes them; of a word
    /// without products none, nor of `attention_rows`, which no step says.
    pub operations: u64,
}

/// What dimensions say about a word's work.
trait Work {
    fn operations(&self, _word: Word) -> u64 {
        0
    }
}

impl Work for Mat {
    fn operations(&self, word: Word) -> u64 {
        let product = 2 * (self.rows * self.inp * self.out) as u64;
        if word == Word::linear_backward { 2 * product } else { product }
    }
}

impl Work for Heads {
    fn operations(&self, word: Word) -> u64 {
        let square = self.crops.each().map(|(_, tokens)| (tokens * tokens) as u64).sum::<u64>();
        let (all, one) = (2 * self.cols() as u64 * square, 2 * (self.cols() * self.crops.rows()) as u64);
        match word {
            Word::attention => 2 * all,
            Word::attention_backward => 5 * all, // the scores again, and two products for each of the two forward
            Word::attention_class => 2 * one,
            Word::attention_class_backward => 5 * one,
            _ => 0,
        }
    }
}

impl Work for LossDims {
    fn operations(&self, word: Word) -> u64 {
        let product = |rows: usize| 2 * (rows * self.bottleneck * self.prototypes) as u64;
        let teacher = product(self.teachers * self.images);
        match word {
            Word::teacher_lse => teacher,
            // The teacher's logits again: once a micro-batch, whatever a student that sees its crops in turns makes of them.
            _ if self.first_view == 0 => 3 * product(self.rows()) + teacher,
            _ => 3 * product(self.rows()),
        }
    }
}

impl Work for Rows {}
impl Work for LayerNorm {}
impl Work for Patches {}
impl Work for Grid {}
impl Work for Embed {}
impl Work for Ragged {}
impl Work for usize {}
impl Work for bool {}

/// A profile by word. The clock is the caller's: the core has none.
pub struct Timed<O> {
    pub inner: O,
    pub tally: [Tally; Word::ALL.len()],
    clock: fn() -> u64,
}

impl<O> Timed<O> {
    /// `clock` returns nanoseconds since any fixed moment.
    pub fn new(inner: O, clock: fn() -> u64) -> Self {
        Timed { inner, tally: [Tally::default(); Word::ALL.len()], clock }
    }
}

macro_rules! timed {
    ($($tr:ident { $($word:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<O: $tr> $tr for Timed<O> {
            $(fn $word(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                let start = (self.clock)();
                self.inner.$word($($arg,)* $($dim),*);
                let tally = &mut self.tally[Word::$word as usize];
                tally.calls += 1;
                tally.nanoseconds += (self.clock)() - start;
                tally.operations += 0 $(+ $dim.operations(Word::$word))*;
            })*
        })*
    };
}
words!(timed);

// --------------------------------------------------------------------------------------------------------------- Lockstep

/// Where two backends differ most: |a - b| / |a| over a written span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mismatch {
    pub word: Word,
    pub touch: Touch,
    pub error: f64,
}

/// Runs two backends word by word and compares everything written, norm-wise; then gives both A's result, as B can hold it (B may keep
/// activations in fewer digits), so that drift hides nothing.
pub struct Lockstep<A, B> {
    pub a: A,
    pub b: B,
    /// The largest relative error of every word so far, pool by pool: what is kept in fewer digits hides nothing of what is not.
    pub worst: [[Option<Mismatch>; Pool::COUNT]; Word::ALL.len()],
}

impl<A: Memory, B: Memory> Lockstep<A, B> {
    pub fn new(a: A, b: B) -> Self {
        Lockstep { a, b, worst: [[None; Pool::COUNT]; Word::ALL.len()] }
    }

    /// The largest error of any word.
    pub fn worst(&self) -> Option<Mismatch> {
        let all = self.worst.iter().flatten().flatten().copied();
        all.reduce(|x, y| if y.error > x.error || y.error.is_nan() { y } else { x })
    }

    /// The same values on both sides.
    fn settle(&mut self, pool: Pool, at: usize, values: &mut [f64]) {
        self.b.write(pool, at, values);
        self.b.read(pool, at, values);
        self.a.write(pool, at, values);
    }

    fn after(&mut self, word: Word, t: &Touches) {
        for &touch in t.all().iter().filter(|x| x.written) {
            let (mut difference, mut size, mut alike) = (0.0, 0.0, true);
            let (mut a, mut b) = ([0.0; 256], [0.0; 256]);
            for at in (0..touch.span.len).step_by(256) {
                let len = (touch.span.len - at).min(256);
                self.a.read(touch.pool, touch.span.at + at, &mut a[..len]);
                self.b.read(touch.pool, touch.span.at + at, &mut b[..len]);
                for (x, y) in a[..len].iter().zip(&b[..len]) {
                    if x.is_finite() && y.is_finite() {
                        difference += (x - y) * (x - y);
                        size += x * x;
                    } else {
                        // Infinities must be the same infinity, NaN must be NaN.
                        alike &= x == y || (x.is_nan() && y.is_nan());
                    }
                }
                self.settle(touch.pool, touch.span.at + at, &mut a[..len]);
            }
            let error = match (alike, difference == 0.0) {
                (false, _) => f64::INFINITY,
                (true, true) => 0.0,
                (true, false) => libm::sqrt(difference / size),
            };
            let worst = &mut self.worst[word as usize][touch.pool as usize];
            if worst.is_none_or(|w| error > w.error) {
                *worst = Some(Mismatch { word, touch, error });
            }
        }
    }
}

impl<A: Memory, B: Memory> Memory for Lockstep<A, B> {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.a.read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        for (i, part) in values.chunks(256).enumerate() {
            let mut copy = [0.0; 256];
            let copy = &mut copy[..part.len()];
            copy.copy_from_slice(part);
            self.settle(pool, at + 256 * i, copy);
        }
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.a.len(pool)
    }
}

macro_rules! lockstep {
    ($($tr:ident { $($word:ident($($use:ident $arg:ident: $ty:ty),*; $($dim:ident: $dty:ty),*);)* })*) => {
        $(impl<A: $tr + Memory, B: $tr + Memory> $tr for Lockstep<A, B> {
            $(fn $word(&mut self, $($arg: $ty,)* $($dim: $dty),*) {
                self.a.$word($($arg,)* $($dim),*);
                self.b.$word($($arg,)* $($dim),*);
                self.after(Word::$word, &touches!($($use $arg),*));
            })*
        })*
    };
}
words!(lockstep);

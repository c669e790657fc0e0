//! Spans in range and disjoint, the first number that is not finite named.

use crate::backend::list::{touches, words};
use crate::backend::*;
use crate::crops::Ragged;
use crate::mem::{Act, Pool, Stat, State, Weight};
use crate::params::ParamTable;

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

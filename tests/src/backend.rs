//! Backends made to measure, and reading and writing their pools by handle.
//!
//! A test is written over a [`Factory`], so that another backend runs through it with one more line in [`crate::for_backends`]'s
//! list. Pools start out as NaN where nothing has been written: an op that reads what it should set, or leaves part of it
//! unset, shows.

use dino_host::cpu::{Cpu, NoOptions};
use dino_host::device::Device;
use dino_kernel::backend::reference::Train;
use dino_kernel::backend::{LossDims, Memory, Update};
use dino_kernel::mem::{Act, Layout, Pool, Span, Stat, State, Weight};
use dino_kernel::plan::Pools;
use dino_kernel::real::Real;
use std::marker::PhantomData;

/// Makes backends.
pub trait Factory {
    /// What it makes.
    type Backend: Update + Memory;
    /// Pools of exactly these sizes.
    fn make(pools: Pools) -> Self::Backend;
    /// Whether this machine can make it; prints why where not. `test`: the test that needs it.
    fn ready(_test: &str) -> bool {
        true
    }
}

/// The reference backend over the real type `T`.
pub struct Reference<T>(PhantomData<T>);

impl<T: Real> Factory for Reference<T> {
    type Backend = Train<'static, T>;

    /// The memory is never given back: a test makes few of them.
    fn make(pools: Pools) -> Train<'static, T> {
        fn pool<T: Real>(len: usize) -> &'static mut [T] {
            vec![T::ZERO; len].leak()
        }
        Train {
            weights: pool(pools.weights),
            grads: pool(pools.grads),
            slots: pool(pools.slots),
            acts: pool(pools.acts),
            stats: pool(pools.stats),
            state: pool(pools.state),
        }
    }
}

impl Factory for Cpu {
    type Backend = Cpu;

    fn make(pools: Pools) -> Cpu {
        Device::new(&NoOptions {}, pools).expect("a test's pools fit the memory")
    }
}

/// Makes one test of every named function for every named backend.
#[macro_export]
macro_rules! for_backends {
    ([$($backend:ident: $factory:ty),* $(,)?] $tests:tt) => {
        $($crate::for_backends!(@one $backend: $factory, $tests);)*
    };
    (@one $backend:ident: $factory:ty, [$($test:ident),* $(,)?]) => {
        mod $backend {
            #[allow(unused_imports)]
            use super::*;
            $(#[test]
            fn $test() {
                let name = concat!(stringify!($backend), "::", stringify!($test));
                if <$factory as $crate::backend::Factory>::ready(name) {
                    super::$test::<$factory>(name);
                }
            })*
        }
    };
}

/// A handle of a span of a pool.
pub trait Place: Copy {
    /// The pool.
    const POOL: Pool;
    /// The span in it.
    fn span(self) -> Span;
}

macro_rules! place {
    ($handle:ty, $pool:expr) => {
        impl Place for $handle {
            const POOL: Pool = $pool;
            fn span(self) -> Span {
                self.0
            }
        }
    };
}
place!(Act, Pool::Acts);
place!(Stat, Pool::Stats);
place!(State, Pool::State);
place!(Weight, Pool::Weights);

/// Elements of a span of any pool.
pub fn read_span<O: Memory>(o: &mut O, pool: Pool, span: Span) -> Vec<f64> {
    let mut out = vec![0.0; span.len];
    o.read(pool, span.at, &mut out);
    out
}

/// What is stored at a handle.
pub fn read<O: Memory, P: Place>(o: &mut O, handle: P) -> Vec<f64> {
    read_span(o, P::POOL, handle.span())
}

/// Sets a parameter's gradient.
pub fn write_grad<O: Memory>(o: &mut O, w: Weight, values: &[f64]) {
    assert_eq!(values.len(), w.len(), "as many values as the handle has elements");
    o.write(Pool::Grads, w.0.at, values);
}

/// Puts values at a handle of that very length.
pub fn write<O: Memory, P: Place>(o: &mut O, handle: P, values: &[f64]) {
    assert_eq!(values.len(), handle.span().len, "as many values as the handle has elements");
    o.write(P::POOL, handle.span().at, values);
}

/// A parameter's gradient.
pub fn read_grad<O: Memory>(o: &mut O, w: Weight) -> Vec<f64> {
    read_span(o, Pool::Grads, w.0)
}

/// Makes a backend whose activations and stats are NaN.
pub fn make_poisoned<F: Factory>(pools: Pools) -> F::Backend {
    let mut o = F::make(pools);
    for pool in [Pool::Acts, Pool::Stats] {
        let len = o.len(pool);
        o.write(pool, 0, &vec![f64::NAN; len]);
    }
    o
}

/// Lays out operands of a few ops by hand, then makes a backend that holds them.
#[derive(Default)]
pub struct Arena {
    layout: Layout,
    writes: Vec<(Pool, Span, Vec<f64>)>,
}

impl Arena {
    /// Nothing is laid out yet.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// Memory for activations.
    pub fn act(&mut self, len: usize) -> Act {
        self.layout.act(len)
    }

    /// Activations with content.
    pub fn input(&mut self, x: &[f64]) -> Act {
        let at = self.layout.act(x.len());
        self.writes.push((Pool::Acts, at.0, x.to_vec()));
        at
    }

    /// Memory for stats.
    pub fn stat(&mut self, len: usize) -> Stat {
        self.layout.stat(len)
    }

    /// Stats with content.
    pub fn stats(&mut self, x: &[f64]) -> Stat {
        let at = self.layout.stat(x.len());
        self.writes.push((Pool::Stats, at.0, x.to_vec()));
        at
    }

    /// State with content.
    pub fn state(&mut self, x: &[f64]) -> State {
        let at = self.layout.state(x.len());
        self.writes.push((Pool::State, at.0, x.to_vec()));
        at
    }

    /// A parameter with content; its gradient starts at zero.
    pub fn weight(&mut self, x: &[f64]) -> Weight {
        let at = Weight(self.layout.weights.take(x.len()));
        self.writes.push((Pool::Weights, at.0, x.to_vec()));
        at
    }

    /// Everything written so far in a backend of exactly this size.
    pub fn build<F: Factory>(self) -> F::Backend {
        self.build_in_lanes::<F>(1)
    }

    /// The same in a backend of several lanes, whose first has what was written.
    pub fn build_in_lanes<F: Factory>(self, lanes: usize) -> F::Backend {
        let l = self.layout;
        let pools = Pools {
            weights: l.weights.next,
            grads: l.weights.next,
            slots: 0,
            acts: l.acts.next,
            stats: l.stats.next,
            state: l.state.next,
            input: 0,
            loss: LossDims::NONE,
            longest: 0,
            head_dim: 0,
            widest: 0,
            // No filter is larger, and no batch norm has more partial sums.
            filters: l.weights.next,
            sums: 2 * l.acts.next,
            lanes,
            exchanged: if lanes > 1 { 2 * lanes * l.acts.next } else { 0 },
        };
        let mut o = make_poisoned::<F>(pools);
        for (pool, span, values) in self.writes {
            o.write(pool, span.at, &values);
        }
        o
    }
}

//! Sixteen f32 side by side in registers: what the innermost loops of matmuls add up in.
//!
//! The few instructions are named here, for what a compiler makes of loops over arrays is not to be relied on: of the same loops,
//! compiled for AVX-512, it stored every sum in every turn (a third of the speed there is now), or turned rows into gathers (a fortieth).
//! Nor is `map` of an array inlined: a fifth of a small ResNet's step.

/// Columns that go side by side.
pub const LANES: usize = 16;

/// Sixteen f32. An implementation is used only where [`Isa::available`] found its instructions, in functions that are compiled for them
/// ([`over_vectors`]).
pub trait Vector: Copy {
    /// How many of them a row of sums takes at most: registers are enough for six such rows, a row of the right factor and one number.
    const WIDE: usize;
    /// All `x`.
    fn splat(x: f32) -> Self;
    /// From memory.
    fn load(from: &[f32; LANES]) -> Self;
    /// Into memory.
    fn store(self, to: &mut [f32; LANES]);
    /// self + x.
    fn add(self, x: Self) -> Self;
    /// self - x.
    fn sub(self, x: Self) -> Self;
    /// Asks for the cache lines of these numbers, if there is an instruction for it.
    #[inline(always)]
    fn prefetch(_: &[f32]) {}
    /// self + x y, rounded once where multiply-adds are fused.
    fn add_product(self, x: Self, y: Self) -> Self;
}

/// Kinds of instructions that there are implementations for. Nothing but [`Isa::available`] makes one, so this processor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// One register of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Two registers of 256 bits, and fused multiply-adds.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every processor of the architecture has.
    Baseline,
}

impl Isa {
    /// Those of this processor, the widest first.
    pub fn available() -> &'static [Isa] {
        #[cfg(target_arch = "x86_64")]
        {
            const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Baseline];
            let fused = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            match () {
                () if fused && is_x86_feature_detected!("avx512f") => &ALL,
                () if fused => &ALL[1..],
                () => &ALL[2..],
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        &[Isa::Baseline]
    }

    /// The widest that this processor has.
    #[inline]
    pub fn best() -> Isa {
        Isa::available()[0]
    }

    /// See [`Vector::WIDE`].
    pub fn wide(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => std::arch::x86_64::__m512::WIDE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => <[std::arch::x86_64::__m256; 2]>::WIDE,
            Isa::Baseline => Baseline::WIDE,
        }
    }

    /// Whether a product and a sum are rounded once.
    #[cfg(test)]
    pub fn is_fused(self) -> bool {
        self != Isa::Baseline || FUSED
    }
}

/// Sixteen f32 as the compiler keeps them for any processor.
#[derive(Clone, Copy)]
pub struct Baseline([f32; LANES]);

/// Whether the baseline has fused multiply-adds: a call of a library function otherwise, a hundred times as slow.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

impl Vector for Baseline {
    const WIDE: usize = 1;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Baseline([x; LANES])
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Baseline(*from)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    fn add(self, x: Self) -> Self {
        Baseline(std::array::from_fn(|l| self.0[l] + x.0[l]))
    }

    #[inline(always)]
    fn sub(self, x: Self) -> Self {
        Baseline(std::array::from_fn(|l| self.0[l] - x.0[l]))
    }

    #[inline(always)]
    fn add_product(self, x: Self, y: Self) -> Self {
        let of = |l: usize| if FUSED { x.0[l].mul_add(y.0[l], self.0[l]) } else { x.0[l] * y.0[l] + self.0[l] };
        Baseline(std::array::from_fn(of))
    }
}

// SAFETY of every function here: the processor has the instructions, as the trait asks of its users; an array has the sixteen numbers
// that are read or written, and no alignment is assumed.
#[cfg(target_arch = "x86_64")]
#[expect(clippy::undocumented_unsafe_blocks, reason = "the same reason for all of them, above")]
mod x86 {
    use super::{LANES, Vector};
    use std::arch::x86_64::*;

    impl Vector for __m512 {
        const WIDE: usize = 4;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self) }
        }

        #[inline(always)]
        fn add(self, x: Self) -> Self {
            unsafe { _mm512_add_ps(self, x) }
        }

        #[inline(always)]
        fn sub(self, x: Self) -> Self {
            unsafe { _mm512_sub_ps(self, x) }
        }

        #[inline(always)]
        fn add_product(self, x: Self, y: Self) -> Self {
            unsafe { _mm512_fmadd_ps(x, y, self) }
        }

        #[inline(always)]
        fn prefetch(x: &[f32]) {
            for line in x.chunks(LANES) {
                unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) }
            }
        }
    }

    impl Vector for [__m256; 2] {
        const WIDE: usize = 1;

        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { [_mm256_set1_ps(x); 2] }
        }

        #[inline(always)]
        fn load(from: &[f32; LANES]) -> Self {
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())] }
        }

        #[inline(always)]
        fn store(self, to: &mut [f32; LANES]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self[0]);
                _mm256_storeu_ps(to[8..].as_mut_ptr(), self[1]);
            }
        }

        #[inline(always)]
        fn add(self, x: Self) -> Self {
            unsafe { [_mm256_add_ps(self[0], x[0]), _mm256_add_ps(self[1], x[1])] }
        }

        #[inline(always)]
        fn sub(self, x: Self) -> Self {
            unsafe { [_mm256_sub_ps(self[0], x[0]), _mm256_sub_ps(self[1], x[1])] }
        }

        #[inline(always)]
        fn add_product(self, x: Self, y: Self) -> Self {
            unsafe { [_mm256_fmadd_ps(x[0], y[0], self[0]), _mm256_fmadd_ps(x[1], y[1], self[1])] }
        }

        #[inline(always)]
        fn prefetch(x: &[f32]) {
            for line in x.chunks(LANES) {
                unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T0) }
            }
        }
    }
}

/// Defines a function whose body is written over any `L: Vector`: compiled for every kind of instructions, it runs the one that its first
/// argument, an [`Isa`], names. What the body calls must be `#[inline(always)]`, and no closure: those are functions of their own, without
/// the instructions.
macro_rules! over_vectors {
    ($(#[$doc:meta])* fn $name:ident<$vector:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        fn $name(isa: $crate::linalg::simd::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn any<$vector: $crate::linalg::simd::Vector>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn avx512($($arg: $ty),*) {
                any::<std::arch::x86_64::__m512>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                any::<[std::arch::x86_64::__m256; 2]>($($arg),*)
            }

            match isa {
                // SAFETY: an `Isa` is one that this processor has.
                #[cfg(target_arch = "x86_64")]
                $crate::linalg::simd::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::linalg::simd::Isa::Avx2 => unsafe { avx2($($arg),*) },
                $crate::linalg::simd::Isa::Baseline => any::<$crate::linalg::simd::Baseline>($($arg),*),
            }
        }
    };
}
pub(crate) use over_vectors;

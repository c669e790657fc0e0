//! What a matmul is, whoever runs it.

/// m, n, k of C (m, n) = A (m, k) B (k, n).
pub type Size = [usize; 3];

/// Which factor is transposed, row by row: C = A B^T, A B or A^T B.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A (m, k), B (n, k).
    Nt,
    /// A (m, k), B (k, n).
    Nn,
    /// A (k, m), B (k, n).
    Tn,
}

/// All that cuBLASLt's choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Matmul {
    /// Which factor is transposed.
    pub kind: Kind,
    /// m, n, k of C (m, n).
    pub size: Size,
    /// C in f32 instead of bf16.
    pub f32_out: bool,
    /// C += instead of C =.
    pub accumulate: bool,
    /// A bias (n) is added to every row of C.
    pub bias: bool,
}

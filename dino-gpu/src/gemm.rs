//! Matmuls: cuBLASLt where it is in use and takes them, else own kernels: which, which tile, how many splits. The latter are
//! chosen from the shape alone, so that their bits do not depend on the card.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::{Kernel, Shape};
use crate::matmul::{Kind, Matmul, Size};
use crate::options::Precision;

/// Where a matmul goes.
#[derive(Clone, Copy)]
pub enum Out {
    /// Activations.
    Act(u64),
    /// f32.
    F32(u64),
}

impl Out {
    fn at(self) -> u64 {
        match self {
            Out::Act(at) | Out::F32(at) => at,
        }
    }
}

/// Blocks that fill a large card twice: more tiles than this need no further splitting.
pub(crate) const FILL: usize = 264;
/// Least depth of a split, so that its tile is worth starting.
pub(crate) const DEPTH: usize = 512;

impl Gpu {
    /// The large tile where it makes enough blocks, else the small one, and the launch's shape.
    fn tile(&self, kernels: [&'static Kernel; 2], [m, n, _]: Size, splits: usize) -> (&'static Kernel, Shape) {
        let large = (m.div_ceil(128) * n.div_ceil(128) * splits >= FILL / 2) as usize;
        let (side, threads) = ([64, 128][large], [128, 256][large]);
        (kernels[large], Shape::new([n.div_ceil(side), m.div_ceil(side).min(65535), splits], [threads, 1]))
    }

    /// f32 by strides: a[i, p] at i * a.1 + p * a.2, b[p, j] at p * b.1 + j * b.2.
    fn plain(
        &mut self,
        c: (u64, usize),
        a: (u64, usize, usize),
        b: (u64, usize, usize),
        [m, n, k]: Size,
        bias: u64,
        gelu: u64,
        accumulate: bool,
        split: (usize, usize),
    ) {
        let (splits, stride) = split;
        let shape = Shape::new([n.div_ceil(64), m.div_ceil(64).min(65535), splits], [16, 16]);
        let long = |x: usize| x as i64;
        let depth = k.div_ceil(splits).max(1);
        self.launch(
            &self.kernels.gemm_f32,
            shape,
            args![
                c.0,
                long(c.1),
                a.0,
                long(a.1),
                long(a.2),
                b.0,
                long(b.1),
                long(b.2),
                m as i32,
                n as i32,
                k as i32,
                depth as i32,
                long(stride),
                bias,
                gelu,
                accumulate as i32
            ],
        );
    }

    /// y (m, n) = x (m, k) w^T + bias, w (n, k); with `gelu` that gets gelu(y). `bias` and `gelu` may be 0.
    pub(crate) fn matmul_nt(&mut self, y: Out, x: u64, w: u64, [m, n, k]: Size, bias: u64, gelu: u64) {
        let f32_out = matches!(y, Out::F32(_));
        let matmul = Matmul { kind: Kind::Nt, size: [m, n, k], f32_out, accumulate: false, bias: bias != 0 };
        if self.by_library(matmul, [y.at(), x, w, bias]) {
            if gelu != 0 {
                let shape = Shape::flat((m * n).div_ceil(4));
                self.launch(&self.kernels.gelu, shape, args![gelu, y.at(), (m * n) as i64]);
            }
            return;
        }
        match (self.precision, y) {
            (Precision::F32, Out::Act(y) | Out::F32(y)) => {
                self.plain((y, n), (x, k, 1), (w, 1, k), [m, n, k], bias, gelu, false, (1, 0));
            }
            (Precision::Bf16, Out::Act(at) | Out::F32(at)) => {
                let kernels = self.kernels;
                let (kernel, shape) = self.tile([&kernels.gemm_nt_bf16, &kernels.gemm_nt_bf16_128], [m, n, k], 1);
                self.launch(
                    kernel,
                    shape,
                    args![
                        at,
                        n as i32,
                        x,
                        k as i32,
                        w,
                        k as i32,
                        m as i32,
                        n as i32,
                        k as i32,
                        bias,
                        gelu,
                        f32_out as i32
                    ],
                );
            }
        }
    }

    /// y (m, n) = x (m, k) w, w (k, n); `accumulate` adds.
    pub(crate) fn matmul_nn(&mut self, y: Out, x: u64, w: u64, [m, n, k]: Size, accumulate: bool) {
        let f32_out = matches!(y, Out::F32(_));
        let matmul = Matmul { kind: Kind::Nn, size: [m, n, k], f32_out, accumulate, bias: false };
        if self.by_library(matmul, [y.at(), x, w, 0]) {
            return;
        }
        match (self.precision, y) {
            (Precision::F32, Out::Act(y) | Out::F32(y)) => {
                self.plain((y, n), (x, k, 1), (w, n, 1), [m, n, k], 0, 0, accumulate, (1, 0));
            }
            (Precision::Bf16, Out::Act(at) | Out::F32(at)) => {
                let kernels = self.kernels;
                let (kernel, shape) = self.tile([&kernels.gemm_nn_bf16, &kernels.gemm_nn_bf16_128], [m, n, k], 1);
                self.launch(
                    kernel,
                    shape,
                    args![
                        at,
                        n as i32,
                        x,
                        k as i32,
                        w,
                        n as i32,
                        m as i32,
                        n as i32,
                        k as i32,
                        f32_out as i32,
                        accumulate as i32
                    ],
                );
            }
        }
    }

    /// dw (m, n; f32) += dy^T x, dy (k, m), x (k, n). The long sum over rows is split where there are few tiles; the splits are in the
    /// first `available` bytes of the workspace and are added in order.
    pub(crate) fn matmul_tn(&mut self, dw: u64, dy: u64, x: u64, [m, n, k]: Size, available: usize) {
        let matmul = Matmul { kind: Kind::Tn, size: [m, n, k], f32_out: true, accumulate: true, bias: false };
        if self.by_library(matmul, [dw, dy, x, 0]) {
            return;
        }
        let kernels = self.kernels;
        let tiles = m.div_ceil(128) * n.div_ceil(128);
        let fit = available / (4 * m * n).max(1);
        let splits = FILL.div_ceil(tiles.max(1)).min(k.div_ceil(DEPTH)).min(fit).max(1);
        let (to, stride) = if splits == 1 { (dw, 0) } else { (self.workspace_at(), m * n) };
        match self.precision {
            Precision::F32 => {
                self.plain((to, n), (dy, 1, m), (x, n, 1), [m, n, k], 0, 0, splits == 1, (splits, stride))
            }
            Precision::Bf16 => {
                let (kernel, shape) = self.tile([&kernels.gemm_tn_bf16, &kernels.gemm_tn_bf16_128], [m, n, k], splits);
                // Full steps of 32, so that only the last split has a tail.
                let depth = k.div_ceil(splits).next_multiple_of(32);
                self.launch(
                    kernel,
                    shape,
                    args![
                        to,
                        n as i32,
                        dy,
                        m as i32,
                        x,
                        n as i32,
                        m as i32,
                        n as i32,
                        k as i32,
                        depth as i32,
                        (splits == 1) as i32,
                        stride as u64
                    ],
                );
            }
        }
        if splits > 1 {
            self.sum_parts(dw, to, m * n, splits, m * n);
        }
    }

    /// y (n) += the `count` parts of n at `parts`, `stride` apart, in order.
    pub(crate) fn sum_parts(&mut self, y: u64, parts: u64, n: usize, count: usize, stride: usize) {
        self.launch(
            &self.kernels.split_sum,
            Shape::flat(n),
            args![y, n as i32, parts, 1i32, n as i32, count as i32, stride as u64],
        );
    }
}

/// Arguments of a launch.
#[macro_export]
macro_rules! args {
    ($($x:expr),* $(,)?) => { &[$($crate::kernels::Argument::from($x)),*] };
}

//! The matmul alone: the ceiling that everything else is a share of, and the shapes of the workload.

use dino_host::linalg::gemm::{View, sgemm};
use rayon::prelude::*;
use std::time::Instant;

/// Matmuls (m, k, n) of the workload: what, whether a and b are transposed.
const SHAPES: [(&str, [usize; 3], bool, bool); 12] = [
    ("square", [256, 256, 256], false, false),
    ("square", [1024, 1024, 1024], false, false),
    ("ViT-S fc1", [1024, 384, 1536], false, true),
    ("ViT-S fc2", [1024, 1536, 384], false, true),
    ("ViT-S fc1, input gradient", [1024, 1536, 384], false, false),
    ("ViT-S fc1, weight gradient", [1536, 1024, 384], true, false),
    ("ViT-Ti fc1", [1024, 192, 768], false, true),
    ("ViT-Ti fc1, weight gradient", [768, 1024, 192], true, false),
    ("scores, 197 tokens", [197, 64, 197], false, true),
    ("scores, 37 tokens", [37, 64, 37], false, true),
    ("probabilities times values, 197", [197, 197, 64], false, false),
    ("prototypes, 10 rows", [10, 256, 256], false, true),
];

/// GFLOP/s of one matmul, the same on every thread at once; the best of some.
fn rate([m, k, n]: [usize; 3], ta: bool, tb: bool, threads: usize) -> f64 {
    let (a, b) = (vec![0.5f32; m * k], vec![0.25f32; k * n]);
    let view = |data, rows, cols, transposed: bool| {
        if transposed { View::transposed(data, rows) } else { View::rows(data, cols) }
    };
    let calls = (2e8 / (2 * m * k * n) as f64).ceil() as usize;
    let mut best = f64::INFINITY;
    for _ in 0..15 {
        let start = Instant::now();
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            let mut c = vec![0.0f32; m * n];
            for _ in 0..calls {
                sgemm(&mut c, n, view(&a, m, k, ta), view(&b, k, n, tb), [m, k, n], false);
            }
        });
        best = best.min(start.elapsed().as_secs_f64() / calls as f64);
    }
    threads as f64 * 2e-9 * (m * k * n) as f64 / best
}

/// The best rate of all threads together.
pub fn ceiling() -> f64 {
    let threads = rayon::current_num_threads();
    rate([1024, 512, 1024], false, false, threads).max(rate([1024, 384, 1536], false, true, threads))
}

/// Prints the rate of every shape.
pub fn shapes(threads: usize) {
    println!("| matmul | m x k x n | GFLOP/s, 1 thread | {threads} threads |");
    println!("| --- | --- | --- | --- |");
    for (what, size, ta, tb) in SHAPES {
        let [one, all] = [1, threads].map(|t| rate(size, ta, tb, t));
        println!("| {what} | {} x {} x {} | {one:.0} | {all:.0} |", size[0], size[1], size[2]);
    }
}

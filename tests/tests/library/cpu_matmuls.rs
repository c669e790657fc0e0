//! The CPU's small matmuls against sums in f64: odd sizes, tails, strides, extreme values.

use dino_host::linalg::gemm::View;
use dino_host::linalg::small::matmul;
use proptest::prelude::*;
use tests::training::normals;

/// Normal numbers times a power of ten.
fn factor(seed: u64, len: usize, power: i32) -> Vec<f32> {
    normals(seed, len).iter().map(|x| (x * f64::powi(10.0, power)) as f32).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// An element is off by at most k + 1 roundings of the sum of its terms' sizes, and nothing beside c is written.
    #[test]
    fn a_small_matmul_is_the_matmul(
        (m, k, n) in (1usize..40, 1usize..90, 1usize..150),
        gaps in prop::array::uniform3(0usize..5),
        powers in prop::array::uniform2(-15i32..15),
        transposed: bool,
        add: bool,
    ) {
        let (rows, cols) = if transposed { (k, m) } else { (m, k) };
        let (lda, ldb, ldc) = (cols + gaps[0], n + gaps[1], n + gaps[2]);
        let (a, b) = (factor(1, rows * lda, powers[0]), factor(2, k * ldb, powers[1]));
        let c = factor(3, m * ldc, powers[0] + powers[1]);
        let view = if transposed { View::transposed(&a, lda) } else { View::rows(&a, lda) };
        let mut got = c.clone();
        matmul(&mut got, ldc, view, &b, ldb, [m, k, n], add);
        for (i, j) in (0..m).flat_map(|i| (0..ldc).map(move |j| (i, j))) {
            let (got, before) = (got[i * ldc + j], c[i * ldc + j]);
            if j >= n {
                prop_assert_eq!(got, before);
                continue;
            }
            let terms = (0..k).map(|p| a[i * view.row + p * view.col] as f64 * b[p * ldb + j] as f64);
            let start = if add { before as f64 } else { 0.0 };
            let (want, size) = terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
            let bound = (k + 1) as f64 * f32::EPSILON as f64 * size + f32::MIN_POSITIVE as f64;
            prop_assert!((got as f64 - want).abs() <= bound, "{got}, not {want}, at ({i}, {j}) of {m} x {k} x {n}");
        }
    }
}

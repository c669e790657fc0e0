//! The strongest direction of a matrix.

use super::eigen;
use ndarray::{Array2, ArrayView2};

/// A v for the rows of A (n, c) and the unit vector v for which it is longest, the first right singular vector; of several rows the
/// largest number is positive. O(m³) for m = min(n, c), after O(n c m) for A Aᵀ or Aᵀ A.
pub fn projection(a: ArrayView2<f32>) -> Vec<f32> {
    let a: Array2<f64> = a.mapv(f64::from);
    let wide = a.nrows() <= a.ncols();
    let (values, vectors) = eigen::symmetric(if wide { a.dot(&a.t()) } else { a.t().dot(&a) });
    if values.is_empty() {
        return vec![];
    }
    let first = vectors.column(0);
    // A v = s u, and the eigenvalue is s².
    let along = if wide { &first * values[0].max(0.0).sqrt() } else { a.dot(&first) };
    let most = along.iter().fold(0.0, |most: f64, x| if x.abs() > most.abs() { *x } else { most });
    along.iter().map(|x| (if most < 0.0 { -x } else { *x }) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_projection_is_on_the_first_singular_vector() {
        // Rank one: rows 1, 2, 0 times (3, 4), of length 5.
        let a = array![[3.0f32, 4.0], [6.0, 8.0], [0.0, 0.0]];
        let near = |found: Vec<f32>, want: &[f32]| {
            assert!(
                found.len() == want.len() && found.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-5),
                "{found:?}"
            );
        };
        near(projection(a.view()), &[5.0, 10.0, 0.0]);
        near(projection(a.t()), &[6.7082, 8.944272]);
        // Two directions at right angles: the longer one.
        near(projection(array![[0.0f32, 2.0, 0.0], [1.0, 0.0, 0.0]].view()), &[2.0, 0.0]);
        near(projection(array![[0.0f32, 0.0]].view()), &[0.0]);
        near(projection(Array2::zeros((0, 4)).view()), &[]);
        // Numbers that are not negative give none that are (Perron, Frobenius), whichever side is the longer.
        for (rows, cols) in [(3, 7), (7, 3)] {
            let a = Array2::from_shape_fn((rows, cols), |(i, j)| ((i * 5 + j * 3) % 7) as f32);
            let found = projection(a.view());
            assert!(found.iter().all(|x| *x >= -1e-5) && found.iter().any(|x| *x > 1.0), "{found:?}");
        }
    }
}

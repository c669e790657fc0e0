//! Eigenvectors of a symmetric matrix, as nalgebra finds them (Householder's reduction to a tridiagonal matrix, then QR with implicit
//! shifts: Golub and Van Loan, *Matrix Computations*, 4th edition, section 8.3), in a fixed order and with fixed signs.

use nalgebra::{DMatrix, SymmetricEigen};
use ndarray::{Array1, Array2};

/// Sweeps for one eigenvalue; two are usual, and EISPACK gives up after 30.
const SWEEPS: usize = 60;

/// Eigenvalues, descending, and the eigenvectors of unit length that belong to them, as columns: `a` = V diag(values) Vᵀ.
///
/// Only the lower triangle of `a` (n, n) is read. Signs: the entry of a vector that is largest in magnitude (the first among equals)
/// is positive, as scikit-learn's PCA has it. O(n³), in one thread, so the numbers do not depend on how many there are. An entry that
/// is not finite makes every value and vector NaN, and so does a matrix for which the sweeps do not suffice. Panics where `a` is not
/// square.
pub fn symmetric(a: Array2<f64>) -> (Array1<f64>, Array2<f64>) {
    let n = a.nrows();
    assert_eq!(n, a.ncols(), "a symmetric matrix is square");
    let nan = || (Array1::from_elem(n, f64::NAN), Array2::from_elem((n, n), f64::NAN));
    if n == 0 {
        return (Array1::zeros(0), a);
    }
    if !a.iter().all(|x| x.is_finite()) {
        return nan();
    }
    let lower = DMatrix::from_fn(n, n, |i, j| a[[i.max(j), i.min(j)]]);
    drop(a);
    let Some(found) = SymmetricEigen::try_new(lower, f64::EPSILON, SWEEPS * n) else { return nan() };

    let values = &found.eigenvalues;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| values[j].total_cmp(&values[i]).then(i.cmp(&j)));
    let mut columns = Array2::zeros((n, n));
    for (mut column, &i) in columns.columns_mut().into_iter().zip(&order) {
        let vector = found.eigenvectors.column(i);
        let most = vector.iter().fold(0.0, |most: f64, x| if x.abs() > most.abs() { *x } else { most });
        column.iter_mut().zip(&vector).for_each(|(to, x)| *to = if most < 0.0 { -x } else { *x });
    }
    (order.iter().map(|&i| values[i]).collect(), columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dino_kernel::rng::{Kind, Rng};
    use ndarray::{array, s};

    fn random(n: usize, seed: u64) -> Array2<f64> {
        let mut rng = Rng::new(seed, 0, 0, 0, Kind::Test, 0);
        let x = Array2::from_shape_fn((n, n), |_| rng.normal());
        &x + &x.t()
    }

    fn largest(a: &Array2<f64>) -> f64 {
        a.iter().fold(0.0, |m: f64, x| if x.is_nan() { f64::NAN } else { m.max(x.abs()) })
    }

    /// A = V L Vᵀ and VᵀV = I, both to `within` of the largest entry.
    #[track_caller]
    fn holds(a: &Array2<f64>, within: f64) {
        let (values, vectors) = symmetric(a.clone());
        assert!(values.windows(2).into_iter().all(|w| w[0] >= w[1]), "{values}");
        let again = (&vectors * &values).dot(&vectors.t());
        assert!(largest(&(again - a)) <= within * largest(a), "A is not V L V^T");
        assert!(largest(&(vectors.t().dot(&vectors) - Array2::<f64>::eye(a.nrows()))) <= within, "V is not orthogonal");
        for column in vectors.columns() {
            let most = column.iter().fold(0.0, |m: f64, x| if x.abs() > m.abs() { *x } else { m });
            assert!(most > 0.0, "{column}");
        }
    }

    #[test]
    fn by_hand() {
        // (2 1; 1 2): 3 along (1, 1), 1 along (1, -1).
        let (values, vectors) = symmetric(array![[2.0, 1.0], [1.0, 2.0]]);
        let half = 0.5f64.sqrt();
        assert!((&values - array![3.0, 1.0]).iter().all(|x| x.abs() < 1e-15));
        let want = array![[half, half], [half, -half]];
        assert!((&vectors.mapv(f64::abs) - &want.mapv(f64::abs)).iter().all(|x| x.abs() < 1e-15), "{vectors}");
        assert!(vectors[[0, 0]] * vectors[[1, 0]] > 0.0 && vectors[[0, 1]] * vectors[[1, 1]] < 0.0);
        // The second difference (-1 2 -1) of n points: 2 - 2 cos(pi j / (n + 1)).
        let n = 9;
        let second = Array2::from_shape_fn((n, n), |(i, j)| [2.0, -1.0].get(i.abs_diff(j)).copied().unwrap_or(0.0));
        let (values, _) = symmetric(second);
        for (i, value) in values.iter().enumerate() {
            let angle = std::f64::consts::PI * (n - i) as f64 / (n + 1) as f64;
            assert!((value - (2.0 - 2.0 * angle.cos())).abs() < 1e-14, "{i}: {value}");
        }
        // Diagonal: the axes themselves, in order.
        let (values, vectors) = symmetric(array![[1.0, 0.0, 0.0], [0.0, -4.0, 0.0], [0.0, 0.0, 9.0]]);
        assert_eq!((values, vectors), (array![9.0, 1.0, -4.0], array![[0., 1., 0.], [0., 0., 1.], [1., 0., 0.]]));
        assert_eq!(symmetric(array![[-7.0]]), (array![-7.0], array![[1.0]]));
        assert_eq!(symmetric(Array2::zeros((0, 0))).0.len(), 0);
        assert_eq!(symmetric(Array2::zeros((3, 3))).0, Array1::<f64>::zeros(3));
    }

    #[test]
    fn the_parts_give_the_matrix_again() {
        for n in [2, 3, 5, 16, 33, 100] {
            holds(&random(n, n as u64), 1e-12);
        }
        // Of any size of numbers: their squares would not do.
        holds(&(random(12, 1) * 1e200), 1e-12);
        holds(&(random(12, 2) * 1e-200), 1e-12);
        // Equal eigenvalues: one direction, and everything across it alike.
        holds(&(Array2::eye(20) + Array2::<f64>::ones((20, 20))), 1e-12);
        // A covariance of fewer samples than numbers: rank 7 of 40.
        let x = random(40, 3).slice(s![..7, ..]).to_owned();
        let a = x.t().dot(&x);
        holds(&a, 1e-12);
        assert!(symmetric(a).0.iter().skip(7).all(|v| v.abs() < 1e-11));
    }

    #[test]
    fn the_width_of_a_vit_b_is_exact_enough_and_not_slow() {
        let begun = std::time::Instant::now();
        holds(&random(768, 4), 1e-10);
        // Seconds on one core; a method of another order would take minutes.
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }

    #[test]
    fn what_is_not_finite_gives_nan() {
        let (values, vectors) = symmetric(array![[1.0, f64::NAN], [0.0, 1.0]]);
        assert!(values.iter().chain(&vectors).all(|x| x.is_nan()));
    }
}

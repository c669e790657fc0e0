//! Eigenvectors of a symmetric matrix: Householder's reduction to three diagonals, then QL with implicit shifts (Golub and
//! Van Loan, *Matrix Computations*, 4th edition, sections 8.3.1 and 8.3.3).
//!
//! A = Q T Qᵀ with T tridiagonal, T = S L Sᵀ with L diagonal, so A = V L Vᵀ with V = Q S.

use ndarray::{Array1, Array2};

/// Sweeps for one eigenvalue; two are usual, and EISPACK gives up after 30.
const SWEEPS: usize = 60;

/// Eigenvalues, descending, and the eigenvectors of unit length that belong to them, as columns: `a` = V diag(values) Vᵀ.
///
/// Only the lower triangle of `a` (n, n) is read. Signs: the entry of a vector that is largest in magnitude (the first among equals)
/// is positive, as scikit-learn's PCA has it. O(n³), in one thread, so the numbers do not depend on how many there are. An entry that
/// is not finite makes every value and vector NaN. Panics where `a` is not square.
pub fn symmetric(a: Array2<f64>) -> (Array1<f64>, Array2<f64>) {
    let n = a.nrows();
    assert_eq!(n, a.ncols(), "a symmetric matrix is square");
    // To 1, so that no square of an entry is too large or too small for a number.
    let scale = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    if !a.iter().all(|x| x.is_finite()) {
        return (Array1::from_elem(n, f64::NAN), Array2::from_elem((n, n), f64::NAN));
    }
    if scale == 0.0 {
        return (Array1::zeros(n), Array2::eye(n));
    }
    let mut rows: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| a[if i < j { [j, i] } else { [i, j] }] / scale).collect()).collect();
    let (mut diagonal, mut beside, mut vectors) = tridiagonal(&mut rows);
    ql(&mut diagonal, &mut beside, &mut vectors);

    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| diagonal[i] * scale).collect();
    let mut columns = Array2::zeros((n, n));
    for (j, &i) in order.iter().enumerate() {
        let most = vectors[i].iter().fold(0.0, |most: f64, x| if x.abs() > most.abs() { *x } else { most });
        columns.column_mut(j).iter_mut().zip(&vectors[i]).for_each(|(to, x)| *to = if most < 0.0 { -x } else { *x });
    }
    (values, columns)
}

/// The diagonal of T, what stands beside it (n - 1 numbers and a 0), and the columns of Q, a `Vec` each.
///
/// Step k reflects what stands below entry (k, k) onto one axis: H = I - b v vᵀ, A <- H A H = A - v wᵀ - w vᵀ with p = b A v and
/// w = p - (b pᵀv / 2) v.
fn tridiagonal(a: &mut [Vec<f64>]) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let n = a.len();
    let mut beside = vec![0.0; n];
    let mut reflections = Vec::new();
    for k in 0..n.saturating_sub(1) {
        let from = k + 1;
        let mut v: Vec<f64> = a[from..].iter().map(|row| row[k]).collect();
        let length = dot(&v, &v).sqrt();
        if dot(&v[1..], &v[1..]) == 0.0 {
            beside[k] = v[0];
            reflections.push((v, 0.0));
            continue;
        }
        // The sign that adds, not the one that cancels.
        beside[k] = if v[0] > 0.0 { -length } else { length };
        v[0] -= beside[k];
        let b = 2.0 / dot(&v, &v);
        let mut w = vec![0.0; v.len()];
        a[from..].iter().zip(&v).for_each(|(row, &x)| add(&mut w, b * x, &row[from..]));
        let half = 0.5 * b * dot(&w, &v);
        add(&mut w, -half, &v);
        for (i, row) in a[from..].iter_mut().enumerate() {
            add(&mut row[from..], -v[i], &w);
            add(&mut row[from..], -w[i], &v);
        }
        reflections.push((v, b));
    }
    let diagonal = (0..n).map(|i| a[i][i]).collect();
    // Q = H_0 H_1 ... from the last to the first: each touches only what the later ones have filled.
    let mut q: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| (i == j) as u8 as f64).collect()).collect();
    for (k, (v, b)) in reflections.iter().enumerate().rev().filter(|(_, (_, b))| *b != 0.0) {
        for column in &mut q[k + 1..] {
            let column = &mut column[k + 1..];
            let share = b * dot(column, v);
            add(column, -share, v);
        }
    }
    (diagonal, beside, q)
}

/// Turns the tridiagonal matrix to a diagonal one by rotations of neighbouring axes, `columns` with it.
fn ql(diagonal: &mut [f64], beside: &mut [f64], columns: &mut [Vec<f64>]) {
    let n = diagonal.len();
    for l in 0..n {
        for _ in 0..SWEEPS {
            // The block that begins at l and ends where the matrix falls apart.
            let parts = |&m: &usize| beside[m].abs() <= f64::EPSILON * (diagonal[m].abs() + diagonal[m + 1].abs());
            let m = (l..n - 1).find(parts).unwrap_or(n - 1);
            if m == l {
                break;
            }
            // Wilkinson's shift: the eigenvalue of the corner's 2 x 2 matrix that is closer to the corner.
            let g = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
            let r = g.hypot(1.0).copysign(g);
            let mut g = diagonal[m] - diagonal[l] + beside[l] / (g + r);
            let (mut sine, mut cosine, mut shift) = (1.0, 1.0, 0.0);
            let mut early = false;
            for i in (l..m).rev() {
                let (f, b) = (sine * beside[i], cosine * beside[i]);
                let r = f.hypot(g);
                beside[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= shift;
                    beside[m] = 0.0;
                    early = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                let h = diagonal[i + 1] - shift;
                let t = (diagonal[i] - h) * sine + 2.0 * cosine * b;
                shift = sine * t;
                diagonal[i + 1] = h + shift;
                g = cosine * t - b;
                let (head, tail) = columns.split_at_mut(i + 1);
                for (x, y) in head[i].iter_mut().zip(&mut tail[0]) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
            if !early {
                diagonal[l] -= shift;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
}

/// Eight sums side by side, which the compiler turns to vector instructions.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    a.iter().zip(b).for_each(|(a, b)| (0..8).for_each(|i| sums[i] += a[i] * b[i]));
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// y += s x
fn add(y: &mut [f64], s: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += s * x);
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

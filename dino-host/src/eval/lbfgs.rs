//! L-BFGS (Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5) for smooth convex functions of many variables.
//!
//! The values and gradients may carry the rounding of f32 matmuls: a step is accepted by Wolfe's conditions up to `NOISE`.

/// Pairs of steps and gradient changes that are kept.
const MEMORY: usize = 10;
/// Armijo's and the curvature constant.
const C1: f64 = 1e-4;
const C2: f64 = 0.9;
/// By how much of its magnitude a value may be wrong: near the optimum decreases are smaller than that.
const NOISE: f64 = 1e-7;
/// Evaluations along a line.
const TRIES: usize = 30;

/// Where the search ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// Largest absolute element of the gradient there.
    pub gradient: f64,
    /// Steps taken.
    pub iterations: usize,
}

/// Searches from `x` until no element of the gradient is above `stop` in size, or for `most` steps, or until no step along the
/// descent direction makes the function smaller, which is where rounding ends the search. `f` writes the gradient and gives the value.
pub fn minimize(mut x: Vec<f64>, stop: f64, most: usize, mut f: impl FnMut(&[f64], &mut [f64]) -> f64) -> Optimum {
    let n = x.len();
    let (mut g, mut next, mut g_next) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let mut value = f(&x, &mut g);
    let mut pairs: Vec<Pair> = Vec::new();
    let mut iterations = 0;
    while iterations < most && largest(&g) > stop {
        let mut d = direction(&g, &pairs);
        let mut slope = dot(&d, &g);
        // Not downhill: rounding has spoiled the memory.
        if slope.is_nan() || slope >= 0.0 {
            pairs.clear();
            d = g.iter().map(|g| -g).collect();
            slope = -dot(&g, &g);
        }
        // The first step has no scale of its own: one unit long at most.
        let first = if pairs.is_empty() { (1.0 / dot(&g, &g).sqrt()).min(1.0) } else { 1.0 };
        let (mut t, [mut low, mut high]) = (first, [0.0, f64::INFINITY]);
        let (mut found, mut done) = (None, false);
        for _ in 0..TRIES {
            next.iter_mut().zip(x.iter().zip(&d)).for_each(|(y, (x, d))| *y = x + t * d);
            let there = f(&next, &mut g_next);
            // A value that is no number is too far as well.
            let lower = there <= value + C1 * t * slope + NOISE * value.abs();
            if !lower {
                high = t;
            } else if dot(&d, &g_next) < C2 * slope {
                low = t;
                found = Some((t, there));
            } else {
                (found, done) = (Some((t, there)), true);
                break;
            }
            t = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * t };
        }
        let Some((accepted, there)) = found else { break };
        if !done {
            // The last try was not the accepted one.
            next.iter_mut().zip(x.iter().zip(&d)).for_each(|(y, (x, d))| *y = x + accepted * d);
            f(&next, &mut g_next);
        }
        let s: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = g_next.iter().zip(&g).map(|(a, b)| a - b).collect();
        let curvature = dot(&s, &y);
        if curvature > 1e-12 * dot(&y, &y) {
            pairs.truncate(MEMORY - 1);
            pairs.insert(0, Pair { s, y, rho: 1.0 / curvature });
        }
        std::mem::swap(&mut x, &mut next);
        std::mem::swap(&mut g, &mut g_next);
        value = there;
        iterations += 1;
    }
    Optimum { gradient: largest(&g), x, value, iterations }
}

/// A step, the change of the gradient along it, and 1 / (their dot product).
struct Pair {
    s: Vec<f64>,
    y: Vec<f64>,
    rho: f64,
}

/// - H g by the two loops; the newest pair comes first.
fn direction(g: &[f64], pairs: &[Pair]) -> Vec<f64> {
    let mut q = g.to_vec();
    let mut alphas = Vec::with_capacity(pairs.len());
    for p in pairs {
        let alpha = p.rho * dot(&p.s, &q);
        add(&mut q, -alpha, &p.y);
        alphas.push(alpha);
    }
    if let Some(p) = pairs.first() {
        let scale = 1.0 / (p.rho * dot(&p.y, &p.y));
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for (p, alpha) in pairs.iter().zip(alphas).rev() {
        let beta = p.rho * dot(&p.y, &q);
        add(&mut q, alpha - beta, &p.s);
    }
    q.iter_mut().for_each(|q| *q = -*q);
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(y: &mut [f64], factor: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

/// The largest size of an element; a NaN counts as infinite.
fn largest(g: &[f64]) -> f64 {
    g.iter().map(|g| if g.is_nan() { f64::INFINITY } else { g.abs() }).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_of_wide_range_is_solved() {
        // sum c_i (x_i - i)^2 / 2 with c from 1 to 1e4: the optimum is known, and g = c (x - i).
        let c = |i: usize| 10f64.powf(4.0 * i as f64 / 19.0);
        let f = |x: &[f64], g: &mut [f64]| {
            (0..20).for_each(|i| g[i] = c(i) * (x[i] - i as f64));
            (0..20).map(|i| c(i) * (x[i] - i as f64).powi(2) / 2.0).sum()
        };
        // SciPy's L-BFGS-B with as many pairs takes 500 steps to the same gradient.
        let found = minimize(vec![0.0; 20], 1e-6, 750, f);
        assert!(found.gradient <= 1e-6, "{found:?}");
        assert!(found.x.iter().enumerate().all(|(i, x)| (x - i as f64).abs() <= 1e-6), "{found:?}");
    }

    #[test]
    fn ends_at_once_where_it_starts_well_and_in_time_where_there_is_no_optimum() {
        let found = minimize(vec![0.0], 1e-9, 10, |x, g| {
            g[0] = x[0];
            x[0] * x[0] / 2.0
        });
        assert_eq!((found.iterations, found.value), (0, 0.0));
        let found = minimize(vec![0.0], 1e-9, 10, |x, g| {
            g[0] = 1.0;
            x[0]
        });
        assert!(found.gradient == 1.0 && found.iterations <= 10);
        let nowhere = minimize(vec![0.0], 1e-9, 10, |_, g| {
            g[0] = f64::NAN;
            f64::NAN
        });
        assert!(nowhere.gradient.is_infinite());
    }
}

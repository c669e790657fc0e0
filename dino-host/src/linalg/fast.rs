//! exp and the normal distribution function in f32, written so that loops over them vectorize. Infinities and NaN come out as
//! they should. Every multiply-add is a fused one, written out, so that results are the same on every instruction set; where there
//! is no such instruction they are slow.

/// e^x, relative error below 2e-7, denormal results included.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // e^x = 2^n e^r, n = round(x / ln 2), |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-104.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let integer = shifted - ROUND;
    let r = integer.mul_add(-LN2_LOW, integer.mul_add(-LN2_HIGH, x));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_65);
    let p = p.mul_add(r, 0.5);
    let e = p.mul_add(r * r, r) + 1.0;
    // Two factors, so that 2^128 gives infinity and 2^-149 a denormal.
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    e * power(half) * power(n.wrapping_sub(half))
}

/// Beyond this Phi is taken as exactly 0 or 1; it is, to 2e-9.
const LIMIT: f32 = 5.92;

/// Phi(x), absolutely exact to 3e-7: 1/2 + x P(x^2) / Q(x^2), the weighted least-squares fit of degree 5 over 5 (its own error is
/// 1.2e-8, all its coefficients are positive, so nothing cancels; the rest is roundings of numbers near a half, worst at -5.6). Like
/// the form with erf, whose error is 6e-8, it is not exact relative to a small Phi: x Phi(x) is, to 2e-6 absolutely. A quotient
/// costs less than the exponential that the tail's usual forms need.
#[inline(always)]
pub fn normal_cdf(x: f32) -> f32 {
    let t = x.clamp(-LIMIT, LIMIT);
    let u = t * t;
    let p = 2.158_021_8e-8f32;
    let p = p.mul_add(u, 6.374_178_6e-6);
    let p = p.mul_add(u, 1.793_928_5e-4);
    let p = p.mul_add(u, 4.740_821_7e-3);
    let p = p.mul_add(u, 3.494_104e-2);
    let p = p.mul_add(u, 0.398_942_2);
    let q = 1.164_963_9e-6f32;
    let q = q.mul_add(u, 7.676_755e-5);
    let q = q.mul_add(u, 1.944_546_7e-3);
    let q = q.mul_add(u, 2.926_062e-2);
    let q = q.mul_add(u, 0.254_249_66);
    let q = q.mul_add(u, 1.0);
    0.5 + (t * p / q).clamp(-0.5, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere_and_keeps_the_special_values() {
        for i in -120_000..100_000 {
            let x = i as f32 * 1e-3;
            let (got, want) = (exp(x) as f64, libm::exp(x as f64));
            let error = (got - want).abs();
            // Half the spacing of denormals is the floor; beyond f32's range infinity is right.
            assert!(
                error <= 2e-7 * want + 1e-45 || (want > f32::MAX as f64 && got.is_infinite()),
                "exp({x}) = {got}, not {want}"
            );
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn normal_cdf_is_close_everywhere_and_keeps_the_special_values() {
        for i in -1_200_000..1_200_000 {
            let x = i as f32 * 1e-5;
            let want = 0.5 * libm::erfc(-x as f64 / std::f64::consts::SQRT_2);
            let error = (normal_cdf(x) as f64 - want).abs();
            assert!(error <= 3e-7, "Phi({x}) = {}, not {want}", normal_cdf(x));
        }
        // Exactly nothing and all, so that x Phi(x) does not creep away where x is large.
        for x in [LIMIT, 6.0, 1e30, f32::MAX, f32::INFINITY] {
            assert_eq!((normal_cdf(-x), normal_cdf(x)), (0.0, 1.0), "{x}");
        }
        assert!(normal_cdf(f32::NAN).is_nan());
    }
}

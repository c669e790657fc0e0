//! Color operations on planes of 8-bit pixels, `(channels, n)`, with Pillow's rounding: every step ends in 8 bits.
//!
//! Blends: y = trunc(clamp(base + f (x − base))) in f32, with base 0 (brightness), the mean luma (contrast) or the
//! pixel's luma (saturation). Hue: the 8-bit hue of HSV is shifted, modulo 256.
//!
//! Three channels are R G B. One is gray and its own luma: saturation, hue and graying leave it as it is. Any other number
//! are bands that have no color: every operation but [`solarize`] leaves them as they are, see [`Op::applies_to`].

use multiversion::multiversion;

/// The four operations of the color jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// [`brightness`]
    Brightness,
    /// [`contrast`]
    Contrast,
    /// [`saturation`]
    Saturation,
    /// [`hue`]
    Hue,
}

impl Op {
    /// In the order in which torchvision numbers them.
    pub const ALL: [Op; 4] = [Op::Brightness, Op::Contrast, Op::Saturation, Op::Hue];

    /// Applies the operation with its factor to planes of so many channels.
    pub fn apply(self, planes: &mut [u8], channels: usize, factor: f64) {
        match (self, channels) {
            (Op::Brightness, 1 | 3) => brightness(planes, factor),
            (Op::Contrast, 1 | 3) => contrast(planes, channels, factor),
            (Op::Saturation, 3) => saturation(planes, factor),
            (Op::Hue, 3) => hue(planes, factor),
            _ => {}
        }
    }

    /// Whether the operation can change planes of so many channels.
    pub fn applies_to(self, channels: usize) -> bool {
        channels == 3 || (channels == 1 && matches!(self, Op::Brightness | Op::Contrast))
    }
}

/// The planes R, G and B.
fn rgb(planes: &mut [u8]) -> [&mut [u8]; 3] {
    let (r, rest) = planes.split_at_mut(planes.len() / 3);
    let (g, b) = rest.split_at_mut(rest.len() / 2);
    [r, g, b]
}

/// Rec. 601 luma in 16-bit fixed point.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((r as u32 * 19_595 + g as u32 * 38_470 + b as u32 * 7_471 + 0x8000) >> 16) as u8
}

#[inline(always)]
fn blend(base: u8, x: u8, factor: f32) -> u8 {
    truncate((base as f32 + factor * (x as f32 - base as f32)).clamp(0.0, 255.0)) as u8
}

/// One base for all values.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn blend_all(planes: &mut [u8], base: u8, factor: f32) {
    for x in planes {
        *x = blend(base, *x, factor);
    }
}

/// Towards black (factor 0), or away from it.
pub fn brightness(planes: &mut [u8], factor: f64) {
    blend_all(planes, 0, factor as f32);
}

/// Towards the rounded mean luma of all pixels (factor 0), or away from it. One channel or three.
pub fn contrast(planes: &mut [u8], channels: usize, factor: f64) {
    let pixels = planes.len() / channels;
    let sum = if channels == 3 { sum_of_luma(planes) } else { planes.iter().map(|&x| x as u64).sum() };
    let mean = sum as f64 / pixels.max(1) as f64;
    blend_all(planes, (mean + 0.5) as u8, factor as f32);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn sum_of_luma(planes: &mut [u8]) -> u64 {
    // 2^16 values of 8 bits fit into 32.
    let [r, g, b] = rgb(planes).map(|plane| plane.chunks(1 << 16));
    let part = |((r, g), b): ((&[u8], &[u8]), &[u8])| {
        let pixels = r.iter().zip(g).zip(b);
        pixels.map(|((&r, &g), &b)| luma([r, g, b]) as u32).sum::<u32>() as u64
    };
    r.zip(g).zip(b).map(part).sum()
}

/// Towards each pixel's gray (factor 0), or away from it. Three channels.
pub fn saturation(planes: &mut [u8], factor: f64) {
    blend_with_luma(planes, factor as f32);
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn blend_with_luma(planes: &mut [u8], factor: f32) {
    let [r, g, b] = rgb(planes);
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let gray = luma([*r, *g, *b]);
        [*r, *g, *b] = [blend(gray, *r, factor), blend(gray, *g, factor), blend(gray, *b, factor)];
    }
}

/// Three equal channels; any other number is left as it is.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn grayscale(planes: &mut [u8], channels: usize) {
    if channels != 3 {
        return;
    }
    let [r, g, b] = rgb(planes);
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = [luma([*r, *g, *b]); 3];
    }
}

/// Inverts the values from `threshold` on.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
pub fn solarize(planes: &mut [u8], threshold: u8) {
    for x in planes {
        *x = if *x < threshold { *x } else { 255 - *x };
    }
}

/// Rotates the color circle by `shift` of a full rotation, in −0.5 ..= 0.5: the 8-bit hue moves by trunc(255 shift). A shift
/// of zero still rounds through HSV. Three channels.
pub fn hue(planes: &mut [u8], shift: f64) {
    rotate_hue(planes, (shift * 255.0) as i32); // modulo 256, so that negative shifts wrap around
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn rotate_hue(planes: &mut [u8], shift: i32) {
    let [r, g, b] = rgb(planes);
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        let [h, s, v] = rgb_to_hsv([*r as i32, *g as i32, *b as i32]);
        let rotated = hsv_to_rgb([(h + shift) & 255, s, v]);
        [*r, *g, *b] = [rotated[0] as u8, rotated[1] as u8, rotated[2] as u8];
    }
}

/// Pillow's conversion. Its roundings, some in f32 and some in f64, come to the same for every color as these, which are
/// vectorized (see the tests). All values are 0 ..= 255.
#[inline(always)]
fn rgb_to_hsv([r, g, b]: [i32; 3]) -> [i32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    // At least one, so that gray and black divide by something; both get no saturation below.
    let range = (max - min).max(1) as f32;
    let s = range / max.max(1) as f32;
    let m = (max + min + max - r - g - b) as f32 / range; // from the greatest of the three down to the middle one
    let h = if r == max {
        if g == min { m - 1.0 } else { 1.0 - m }
    } else if g == max {
        if b == min { 1.0 + m } else { 3.0 - m }
    } else {
        if r == min { 3.0 + m } else { 5.0 - m }
    } / 6.0;
    let hue = if h < 0.0 { h + 1.0 } else { h };
    let colored = (max != min) as i32;
    [truncate(hue * 255.0) * colored, truncate(s * 255.0) * colored, max]
}

/// A channel of hue h is v (1 − s w), where w grows from zero to one over a sixth of the circle, stays for two and falls again.
/// In integers, 255 to a one, and v (1 − s w) is never half-way between two of them.
#[inline(always)]
fn hsv_to_rgb([h, s, v]: [i32; 3]) -> [i32; 3] {
    const ONE: i32 = 255;
    let channel = |start: i32| {
        let angle = start + 6 * h;
        let angle = if angle >= 12 * ONE {
            angle - 12 * ONE
        } else if angle >= 6 * ONE {
            angle - 6 * ONE
        } else {
            angle
        };
        let w = angle.min(4 * ONE - angle).clamp(0, ONE);
        let parts = v as f32 * (ONE * ONE - s * w) as f32; // below 2^24, so without rounding
        truncate(parts * (1.0 / (ONE * ONE) as f32) + 0.5)
    };
    [channel(5 * ONE), channel(3 * ONE), channel(ONE)]
}

/// x as i32 for 0 <= x < 2^22: a plain cast minds values out of range, and is not vectorized.
#[inline(always)]
fn truncate(x: f32) -> i32 {
    const ULP_ONE: f32 = (1 << 23) as f32;
    let near = x + ULP_ONE; // rounded to an integer, which is in the low bits
    (near.to_bits() & 0x7f_ffff) as i32 - (near - ULP_ONE > x) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's C, where f32 and f64 alternate.
    fn pillow_hsv([r, g, b]: [i32; 3]) -> [i32; 3] {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return [0, 0, max];
        }
        let range = (max - min) as f32;
        let s = range / max as f32;
        let [rc, gc, bc] = [r, g, b].map(|x| ((max - x) as f32 / range) as f64);
        let h = if r == max {
            bc - gc
        } else if g == max {
            2.0 + rc - bc
        } else {
            4.0 + gc - rc
        } as f32;
        let hue = ((h as f64 / 6.0 + 1.0) % 1.0) as f32;
        [(hue as f64 * 255.0) as i32, (s as f64 * 255.0) as i32, max]
    }

    fn pillow_rgb([h, s, v]: [i32; 3]) -> [i32; 3] {
        let sector = h * 6 / 255;
        let f = (h as f32 * 6.0 / 255.0 - sector as f32) as f64;
        let (s, value) = ((s as f32 / 255.0) as f64, v as f64);
        let near = |x: f64| ((x as f32) as f64 + 0.5) as i32;
        let (p, q, t) = (near(value * (1.0 - s)), near(value * (1.0 - s * f)), near(value * (1.0 - s * (1.0 - f))));
        // Without saturation all four are v. A hue of 255 begins the circle again.
        match sector {
            1 => [q, v, p],
            2 => [p, v, t],
            3 => [p, q, v],
            4 => [t, p, v],
            5 => [v, p, q],
            _ => [v, t, p],
        }
    }

    #[test]
    fn every_color_is_converted_as_pillow_does() {
        for n in 0..1 << 24 {
            let color = [n & 255, n >> 8 & 255, n >> 16];
            assert_eq!(rgb_to_hsv(color), pillow_hsv(color), "{color:?} to HSV");
            assert_eq!(hsv_to_rgb(color), pillow_rgb(color), "{color:?} to RGB");
        }
    }
}

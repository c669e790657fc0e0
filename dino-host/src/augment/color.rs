//! Colour operations on 8-bit RGB pixels (R G B interleaved), with Pillow's rounding: every step ends in 8 bits.
//!
//! Blends: y = trunc(clamp(base + f (x − base))) in f32, with base 0 (brightness), the mean luma (contrast) or the
//! pixel's luma (saturation). Hue: the 8-bit hue of HSV is shifted, modulo 256.

/// The four operations of the colour jitter.
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

    /// Applies the operation with its factor.
    pub fn apply(self, pixels: &mut [u8], factor: f64) {
        match self {
            Op::Brightness => brightness(pixels, factor),
            Op::Contrast => contrast(pixels, factor),
            Op::Saturation => saturation(pixels, factor),
            Op::Hue => hue(pixels, factor),
        }
    }
}

/// Rec. 601 luma in 16-bit fixed point.
fn luma([r, g, b]: [u8; 3]) -> u8 {
    ((r as u32 * 19_595 + g as u32 * 38_470 + b as u32 * 7_471 + 0x8000) >> 16) as u8
}

fn blend(base: u8, x: u8, factor: f32) -> u8 {
    // A cast to u8 truncates and saturates: just what is wanted.
    (base as f32 + factor * (x as f32 - base as f32)) as u8
}

/// One base for all pixels: 256 blends, then a look-up.
fn blend_all(pixels: &mut [u8], base: u8, factor: f64) {
    let table: [u8; 256] = std::array::from_fn(|x| blend(base, x as u8, factor as f32));
    for x in pixels {
        *x = table[*x as usize];
    }
}

/// Towards black (factor 0), or away from it.
pub fn brightness(pixels: &mut [u8], factor: f64) {
    blend_all(pixels, 0, factor);
}

/// Towards the rounded mean luma of all `pixels` (factor 0), or away from it.
pub fn contrast(pixels: &mut [u8], factor: f64) {
    let (rgb, _) = pixels.as_chunks::<3>();
    let sum: u64 = rgb.iter().map(|p| luma(*p) as u64).sum();
    let mean = sum as f64 / rgb.len().max(1) as f64;
    blend_all(pixels, (mean + 0.5) as u8, factor);
}

/// Towards each pixel's grey (factor 0), or away from it.
pub fn saturation(pixels: &mut [u8], factor: f64) {
    for p in pixels.as_chunks_mut::<3>().0 {
        let grey = luma(*p);
        *p = p.map(|x| blend(grey, x, factor as f32));
    }
}

/// Three equal channels.
pub fn grayscale(pixels: &mut [u8]) {
    for p in pixels.as_chunks_mut::<3>().0 {
        *p = [luma(*p); 3];
    }
}

/// Inverts the values from `threshold` on.
pub fn solarize(pixels: &mut [u8], threshold: u8) {
    for x in pixels {
        *x = if *x < threshold { *x } else { 255 - *x };
    }
}

/// Turns the colour circle by `shift` of a full turn, in −0.5 ..= 0.5: the 8-bit hue moves by trunc(255 shift). A shift
/// of zero still rounds through HSV.
pub fn hue(pixels: &mut [u8], shift: f64) {
    let shift = (shift * 255.0) as i32 as u8; // negative shifts wrap around
    for p in pixels.as_chunks_mut::<3>().0 {
        let [h, s, v] = rgb_to_hsv(*p);
        *p = hsv_to_rgb([h.wrapping_add(shift), s, v]);
    }
}

/// Pillow's conversion, where f32 and f64 alternate as C's rules have it.
fn rgb_to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return [0, 0, max];
    }
    let range = (max - min) as f32;
    let s = range / max as f32;
    let away = |x: u8| (max - x) as f32 / range;
    let (rc, gc, bc) = (away(r), away(g), away(b));
    let h = if r == max {
        bc - gc
    } else if g == max {
        (2.0 + rc as f64 - bc as f64) as f32
    } else {
        (4.0 + gc as f64 - rc as f64) as f32
    };
    // h is in −1 ..= 5, so that the remainder modulo 1 is at most one subtraction, which is exact.
    let turn = h as f64 / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    [(turn as f64 * 255.0) as u8, (s as f64 * 255.0) as u8, max]
}

fn hsv_to_rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sector = h as u32 * 6 / 255;
    let f = (h as f32 * 6.0 / 255.0 - sector as f32) as f64;
    let (s, value) = ((s as f32 / 255.0) as f64, v as f64);
    let near = |x: f64| ((x as f32) as f64 + 0.5) as u8;
    let p = near(value * (1.0 - s));
    let q = near(value * (1.0 - s * f));
    let t = near(value * (1.0 - s * (1.0 - f)));
    match sector % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

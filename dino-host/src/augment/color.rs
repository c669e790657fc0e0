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

/// Pixels that [`hue`] works on at a time, plane by plane: a loop over them has no branch, so that it can be vectorised.
const LANES: usize = 32;

/// Turns the colour circle by `shift` of a full turn, in −0.5 ..= 0.5: the 8-bit hue moves by trunc(255 shift). A shift
/// of zero still rounds through HSV.
pub fn hue(pixels: &mut [u8], shift: f64) {
    let shift = (shift * 255.0) as i32; // modulo 256, so that negative shifts wrap around
    for pixels in pixels.as_chunks_mut::<3>().0.chunks_mut(LANES) {
        let mut planes = [[0; LANES]; 3];
        for (i, pixel) in pixels.iter().enumerate() {
            for c in 0..3 {
                planes[c][i] = pixel[c] as i32;
            }
        }
        let [r, g, b] = &mut planes;
        for i in 0..LANES {
            let [h, s, v] = rgb_to_hsv([r[i], g[i], b[i]]);
            [r[i], g[i], b[i]] = hsv_to_rgb([(h + shift) & 255, s, v]);
        }
        for (i, pixel) in pixels.iter_mut().enumerate() {
            *pixel = [0, 1, 2].map(|c| planes[c][i] as u8);
        }
    }
}

/// Pillow's conversion, where f32 and f64 alternate as C's rules have it. All values are 0 ..= 255.
#[inline(always)]
fn rgb_to_hsv([r, g, b]: [i32; 3]) -> [i32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    // At least one, so that grey and black divide by something; both get no saturation below.
    let range = (max - min).max(1) as f32;
    let s = range / max.max(1) as f32;
    let away = |x: i32| ((max - x) as f32 / range) as f64;
    let (rc, gc, bc) = (away(r), away(g), away(b));
    let h = if r == max {
        bc - gc
    } else if g == max {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    } as f32;
    // h is in −1 ..= 5, so that the remainder modulo 1 is at most one subtraction, which is exact.
    let turn = h as f64 / 6.0 + 1.0;
    let turn = (if turn >= 1.0 { turn - 1.0 } else { turn }) as f32;
    let coloured = (max != min) as i32;
    [(turn as f64 * 255.0) as i32 * coloured, (s as f64 * 255.0) as i32 * coloured, max]
}

#[inline(always)]
fn hsv_to_rgb([h, s, v]: [i32; 3]) -> [i32; 3] {
    let sector = h * 6 / 255;
    let f = (h as f32 * 6.0 / 255.0 - sector as f32) as f64;
    let (s, value) = ((s as f32 / 255.0) as f64, v as f64);
    let near = |x: f64| ((x as f32) as f64 + 0.5) as i32;
    let p = near(value * (1.0 - s));
    let q = near(value * (1.0 - s * f));
    let t = near(value * (1.0 - s * (1.0 - f)));
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

//! The built-in data set: patterned objects drawn over textured backgrounds, for a first run without any data.
//!
//! The class of an image is a property of its object alone: a silhouette and the pattern painted on it. Everything else
//! is free: position, size, proportions, tilt, the two paints (and which of them is the bright one), the pattern's
//! spacing and phase, the background's colors and texture, the fall of the light, the noise. Color and light vary
//! within an image far more than from image to image: two crops of one image then share little but the pattern, and a
//! model that searches for what they share cannot stop at the average color.
//!
//! Image `i` is a pure function of (seed, part, `i`, side): nothing is stored, and every platform draws the same bytes
//! (basic arithmetic and `libm` only).

use super::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::image::{Image, converted};
use core::f64::consts::TAU;
use dino_kernel::rng::{Kind, Rng};
use std::path::Path;

/// The name of the built-in set where a path is expected.
pub const BUILTIN: &str = "builtin";

/// The classes, in the order of their labels.
pub const CLASSES: [&str; 10] =
    ["target", "ball", "ladybird", "flag", "board", "leaf", "brick", "lattice", "ring", "star"];

/// Raised whenever the same arguments start to draw different bytes.
const VERSION: u32 = 2;

/// Samples along each side of a pixel.
const SAMPLES: usize = 2;

/// Lattice points along each side of the background's texture, at most.
const LATTICE: usize = 8;

/// Which of the two disjoint streams of scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The images to learn from, and the bank of the nearest-neighbor search.
    Train,
    /// The images to evaluate on.
    Test,
}

impl Part {
    /// The word used in names and in the fingerprint.
    pub const fn word(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// A balanced set of `count` drawn images of `side` times `side` pixels.
#[derive(Clone, Debug)]
pub struct Builtin {
    side: usize,
    channels: usize,
    count: usize,
    part: Part,
    seed: u64,
    classes: Vec<String>,
}

impl Builtin {
    /// Image `i` shows class `i % 10`. Parts with the same seed never share a scene.
    pub fn new(side: usize, count: usize, part: Part, seed: u64) -> Builtin {
        Builtin { side, channels: 3, count, part, seed, classes: CLASSES.map(String::from).to_vec() }
    }

    /// The same with so many channels; it is drawn in color, so that only 3 and 1 can be had.
    pub fn with(self, channels: usize) -> Builtin {
        Builtin { channels, ..self }
    }

    /// The scene of image `i` and the generator, which goes on to the noise of the pixels.
    fn scene(&self, i: usize) -> (Scene, Rng) {
        let mut rng = Rng::new(self.seed, 0, i as u32, 0, Kind::Scene, self.part as u32);
        (Scene::new(i % CLASSES.len(), &mut rng), rng)
    }

    fn check(&self, i: usize) -> Result<()> {
        if i < self.count {
            return Ok(());
        }
        Err(Error::new(format!("the built-in {} set has {} images, no image {i}", self.part.word(), self.count)))
    }
}

impl Dataset for Builtin {
    fn len(&self) -> usize {
        self.count
    }

    fn image(&self, i: usize) -> Result<Image> {
        self.check(i)?;
        let (scene, mut rng) = self.scene(i);
        let pixels = scene.render(self.side, true, &mut rng);
        let image = Image { width: self.side, height: self.side, channels: 3, pixels };
        converted(Path::new(BUILTIN), image, false, self.channels)
    }

    fn label(&self, i: usize) -> Option<u32> {
        (i < self.count).then_some((i % CLASSES.len()) as u32)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, i: usize) -> String {
        format!("builtin/{}/{i:06}", self.part.word())
    }

    fn mask(&self, i: usize) -> Option<Vec<bool>> {
        (i < self.count).then(|| self.scene(i).0.mask(self.side))
    }

    fn fingerprint(&self) -> String {
        let Builtin { side, count, part, seed, .. } = self;
        format!("builtin-v{VERSION} {} side {side} count {count} seed {seed}", part.word())
    }
}

/// Everything about one image but its noise. Lengths are fractions of the image's side, colors linear in 0 ..= 1.
struct Scene {
    class: usize,
    center: [f64; 2],
    /// Half the object's width and height, before the tilt.
    radius: [f64; 2],
    /// Cosine and sine of the tilt.
    rotation: [f64; 2],
    /// Repeats of the pattern relative to the class's usual number, and its shift along both axes in periods.
    pace: f64,
    phase: [f64; 2],
    /// The brightness of the two paints; their color varies from point to point.
    paint: [f64; 2],
    /// Cells of the background's texture along x and y, and the values at their corners.
    cells: [usize; 2],
    lattice: [[[f64; 3]; LATTICE]; LATTICE],
    /// Gain of each channel, and how the light falls off along x and y.
    gain: [f64; 3],
    slope: [f64; 2],
    grain: f64,
}

impl Scene {
    fn new(class: usize, rng: &mut Rng) -> Scene {
        let size = rng.range(0.27, 0.43);
        let aspect = libm::exp(rng.range(-0.18, 0.18));
        let radius = [size * aspect, size / aspect];
        let margin = 0.5 - 0.65 * size;
        let center = [0.5 + rng.range(-margin, margin), 0.5 + rng.range(-margin, margin)];
        let tilt = rng.range(-0.5, 0.5);
        let mut paint = [rng.range(0.7, 0.8), rng.range(0.2, 0.3)];
        if rng.chance(0.5) {
            paint.swap(0, 1);
        }
        let cells = [3 + rng.below(5) as usize, 3 + rng.below(5) as usize];
        let mut lattice = [[[0.0; 3]; LATTICE]; LATTICE];
        for pair in lattice.as_flattened_mut().chunks_exact_mut(2) {
            // A color and its complement, so that no image is bright or red overall.
            pair[0] = color(rng.range(0.28, 0.72), 0.15, rng);
            pair[1] = pair[0].map(|value| 1.0 - value);
        }
        let light = libm::exp(rng.range(-0.05, 0.05));
        let gain = [0, 1, 2].map(|_| light * rng.range(0.97, 1.03));
        Scene {
            class,
            center,
            radius,
            rotation: [libm::cos(tilt), libm::sin(tilt)],
            pace: libm::exp(rng.range(-0.15, 0.15)),
            phase: [rng.uniform(), rng.uniform()],
            paint,
            cells,
            lattice,
            gain,
            slope: [rng.range(-0.7, 0.7), rng.range(-0.7, 0.7)],
            grain: rng.range(0.0, 0.05),
        }
    }

    /// From the image to the object, whose silhouette is within -1 ..= 1.
    fn to_object(&self, x: f64, y: f64) -> [f64; 2] {
        let (dx, dy) = (x - self.center[0], y - self.center[1]);
        let [c, s] = self.rotation;
        [(c * dx + s * dy) / self.radius[0], (c * dy - s * dx) / self.radius[1]]
    }

    /// Whether the point is on the object.
    fn covers(&self, x: f64, y: f64) -> bool {
        let [u, v] = self.to_object(x, y);
        let square = u * u + v * v;
        match CLASSES[self.class] {
            "flag" | "brick" => u.abs() < 0.98 && v.abs() < 0.75,
            "board" | "lattice" => u.abs().max(v.abs()) < 0.86,
            "leaf" => (v.abs() + 0.45) * (v.abs() + 0.45) + u * u * 1.15 < 1.21,
            "ring" => (0.28..1.0).contains(&square),
            "star" => {
                let wedge = fold(libm::atan2(u, -v) * 5.0 / TAU);
                square < 1.0 && libm::sqrt(square) * (1.0 + 1.1 * wedge) < 1.0
            }
            _ => square < 1.0,
        }
    }

    /// Which of the two paints the point of the object has.
    fn paints(&self, x: f64, y: f64) -> usize {
        let [u, v] = self.to_object(x, y);
        let [a, b] = self.phase;
        let p = self.pace;
        let square = u * u + v * v;
        let second = match CLASSES[self.class] {
            "target" => wave(2.6 * p * libm::sqrt(square) + a),
            "ball" => wave(4.0 * libm::atan2(v, u) / TAU + a),
            "ladybird" => {
                let row = 2.3 * p * v + b;
                let (du, dv) = (2.0 * fold(2.3 * p * u + a + 0.5 * row.floor()) - 1.0, 2.0 * fold(row) - 1.0);
                du * du + dv * dv < 0.36
            }
            "flag" => wave(2.2 * p * v + a),
            "board" => wave(1.6 * p * u + a) != wave(1.6 * p * v + b),
            "leaf" => wave(2.2 * p * (u + v.abs()) + a),
            "brick" => {
                let row = 2.4 * p * v + b;
                fold(row) < 0.25 || fold(1.2 * p * u + a + 0.5 * row.floor()) < 0.12
            }
            "lattice" => fold(1.9 * p * u + a) < 0.25 || fold(1.9 * p * v + b) < 0.25,
            "ring" => !(0.4..=0.82).contains(&square),
            _ => square < 0.12,
        };
        usize::from(second)
    }

    /// The background's color; with the axes swapped, the tint of the object's paints.
    fn background(&self, x: f64, y: f64) -> [f64; 3] {
        let (i, s) = cell(x * self.cells[0] as f64);
        let (j, t) = cell(y * self.cells[1] as f64);
        let mix = |a: f64, b: f64, w: f64| a + (b - a) * w;
        let mut color = [0.0; 3];
        for c in 0..3 {
            let row = |j: usize| mix(self.lattice[j][i][c], self.lattice[j][i + 1][c], s);
            color[c] = mix(row(j), row(j + 1), t);
        }
        color
    }

    /// The pixels, with or without the object.
    fn render(&self, side: usize, object: bool, rng: &mut Rng) -> Vec<u8> {
        let mut pixels = Vec::with_capacity(side * side * 3);
        for row in 0..side {
            for column in 0..side {
                let (x, y) = ((column as f64 + 0.5) / side as f64, (row as f64 + 0.5) / side as f64);
                let ground = self.background(x, y);
                let tint = self.background(y, x);
                let mut sum = [0.0; 3];
                for [x, y] in samples(side, row, column) {
                    let level = (object && self.covers(x, y)).then(|| self.paint[self.paints(x, y)]);
                    for c in 0..3 {
                        sum[c] += level.map_or(ground[c], |level| level + 0.5 * (tint[c] - 0.5));
                    }
                }
                let light = (1.0 + self.slope[0] * (x - 0.5) + self.slope[1] * (y - 0.5)) / (SAMPLES * SAMPLES) as f64;
                let noise = rng.bits();
                for c in 0..3 {
                    let noise = ((noise >> (8 * c) & 255) as f64 - 127.5) / 127.5 * self.grain;
                    let value = sum[c] * light * self.gain[c] + noise;
                    pixels.push((255.0 * value.clamp(0.0, 1.0) + 0.5) as u8);
                }
            }
        }
        pixels
    }

    /// The pixels at least half of which the object covers.
    fn mask(&self, side: usize) -> Vec<bool> {
        let covered = |row, column| samples(side, row, column).filter(|&[x, y]| self.covers(x, y)).count();
        (0..side * side).map(|p| 2 * covered(p / side, p % side) >= SAMPLES * SAMPLES).collect()
    }
}

/// The sample points of a pixel, as fractions of the side.
fn samples(side: usize, row: usize, column: usize) -> impl Iterator<Item = [f64; 2]> {
    let at = move |pixel: usize, k: usize| (pixel as f64 + (k as f64 + 0.5) / SAMPLES as f64) / side as f64;
    (0..SAMPLES * SAMPLES).map(move |k| [at(column, k % SAMPLES), at(row, k / SAMPLES)])
}

/// A color of the given brightness and any hue.
fn color(level: f64, chroma: f64, rng: &mut Rng) -> [f64; 3] {
    let hue = TAU * rng.uniform();
    let chroma = chroma * rng.uniform();
    [0.0, 1.0, 2.0].map(|c| level + chroma * libm::cos(hue + c * TAU / 3.0))
}

/// The fractional part.
fn fract(t: f64) -> f64 {
    t - t.floor()
}

/// A triangle wave of period 1: 0 at the integers, 1 half-way between them.
fn fold(t: f64) -> f64 {
    1.0 - (2.0 * fract(t) - 1.0).abs()
}

/// A square wave of period 1.
fn wave(t: f64) -> bool {
    fract(t) < 0.5
}

/// The cell that contains a coordinate, and the smoothed position within it.
fn cell(t: f64) -> (usize, f64) {
    let i = (t as usize).min(LATTICE - 2);
    let f = (t - i as f64).min(1.0);
    (i, f * f * (3.0 - 2.0 * f))
}

/// The built-in set at `side` pixels, in color or gray: drawn, not read, so that a fresh machine needs nothing.
pub fn builtin(side: usize, channels: usize) -> Splits {
    let part = |count, part| Box::new(Builtin::new(side, count, part, 0).with(channels)) as Box<dyn Dataset>;
    Splits { train: part(4000, Part::Train), test: part(1000, Part::Test), held_out: false, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_and_depends_on_every_argument() {
        let pixels = |side, part, seed, i| Builtin::new(side, 40, part, seed).image(i).unwrap().pixels;
        let first = pixels(32, Part::Train, 1, 5);
        assert_eq!(first, pixels(32, Part::Train, 1, 5));
        assert_ne!(first, pixels(32, Part::Test, 1, 5));
        assert_ne!(first, pixels(32, Part::Train, 2, 5));
        assert_ne!(first, pixels(32, Part::Train, 1, 15));
        assert_eq!(pixels(40, Part::Train, 1, 5).len(), 40 * 40 * 3);
        // The number of images changes no image.
        assert_eq!(first, Builtin::new(32, 6, Part::Train, 1).image(5).unwrap().pixels);
    }

    /// The same bytes on every platform: a change here needs a new `VERSION`.
    #[test]
    fn bytes_are_fixed() {
        let set = Builtin::new(24, 20, Part::Train, 3);
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in (0..20).flat_map(|i| set.image(i).unwrap().pixels) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        assert_eq!((VERSION, hash), (2, 0x9b7b_1449_5ffe_fd52), "{hash:#x}");
    }

    #[test]
    fn classes_are_balanced() {
        let set = Builtin::new(16, 200, Part::Test, 0);
        let mut seen = [0; CLASSES.len()];
        (0..set.len()).for_each(|i| seen[set.label(i).unwrap() as usize] += 1);
        assert_eq!(seen, [200 / CLASSES.len(); CLASSES.len()]);
        assert_eq!(set.classes().len(), CLASSES.len());
        assert_eq!(set.label(200), None);
        assert!(set.image(200).is_err() && set.mask(200).is_none());
    }

    #[test]
    fn masks_have_a_sensible_area() {
        let set = Builtin::new(48, 300, Part::Train, 0);
        for i in 0..set.len() {
            let area = set.mask(i).unwrap().iter().filter(|&&on| on).count() as f64 / (48.0 * 48.0);
            assert!((0.08..0.7).contains(&area), "{}: {area}", set.name(i));
        }
    }

    /// Drawn once with the object and once without: they agree outside the mask and its border, and differ inside.
    #[test]
    fn masks_cover_the_object_and_nothing_else() {
        let (side, set) = (48, Builtin::new(48, 100, Part::Test, 9));
        for i in 0..set.len() {
            let draw = |object| {
                let (scene, mut rng) = set.scene(i);
                scene.render(side, object, &mut rng)
            };
            let (with, without, mask) = (draw(true), draw(false), set.mask(i).unwrap());
            assert_eq!(with, set.image(i).unwrap().pixels);
            let differs = |p: usize| with[3 * p..3 * p + 3] != without[3 * p..3 * p + 3];
            let near = |p: usize| {
                let (row, column) = (p / side, p % side);
                (row.saturating_sub(1)..(row + 2).min(side))
                    .any(|r| (column.saturating_sub(1)..(column + 2).min(side)).any(|c| mask[r * side + c]))
            };
            let inside = (0..side * side).filter(|&p| mask[p]);
            let (area, changed) = (inside.clone().count(), inside.filter(|&p| differs(p)).count());
            assert!(changed * 10 > area * 8, "{}: {changed} of {area} pixels of the mask show the object", set.name(i));
            assert!((0..side * side).all(|p| near(p) || !differs(p)), "{}: drawn outside its mask", set.name(i));
        }
    }

    #[test]
    fn parts_share_no_scene() {
        let set = |part| Builtin::new(16, 100, part, 4);
        let (train, test) = (set(Part::Train), set(Part::Test));
        let images: Vec<_> = (0..100).map(|i| test.image(i).unwrap().pixels).collect();
        assert!((0..100).all(|i| !images.contains(&train.image(i).unwrap().pixels)));
        assert_eq!(train.name(12), "builtin/train/000012");
        assert_ne!(train.fingerprint(), test.fingerprint());
    }
}

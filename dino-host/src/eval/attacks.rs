//! Copies of an image as they come about: compressed, cropped, rotated, blurred, recolored, and all at once. The kinds are those of
//! Copydays (Douze et al., "Evaluation of GIST descriptors for web-scale image search", 2009), made here so that any images will do;
//! the numbers are not comparable with that set's, whose strong attacks were made by hand.

use crate::error::{Error, Result};
use crate::image::augment::{blur, color};
use crate::image::planes::{self, mirror};
use crate::image::resize::{Filter, Region, resized_crop};
use crate::image::{Decode, Image, decode_bytes};
use dino_kernel::rng::{Kind, Rng};
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

/// One way to make a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// JPEG of this quality.
    Quality(u8),
    /// So many percent of the area cut away, the rest of the same shape, somewhere in the image.
    Crop(u8),
    /// Mirrored left to right.
    Flip,
    /// A Gaussian of a 40th of the shorter side.
    Blur,
    /// Rotated by 10 to 30 degrees to either side, the corners filled with the border's pixels.
    Turn,
    /// Brightness, contrast, saturation and hue, each far from what it was.
    Color,
    /// Crop of a half, rotation, flip, color, blur and JPEG of quality 30, one after the other.
    Strong,
}

impl Attack {
    /// Those that the self test makes, in the order of its table.
    pub const ALL: [Attack; 13] = [
        Attack::Quality(75),
        Attack::Quality(30),
        Attack::Quality(10),
        Attack::Quality(3),
        Attack::Crop(10),
        Attack::Crop(30),
        Attack::Crop(50),
        Attack::Crop(80),
        Attack::Flip,
        Attack::Turn,
        Attack::Blur,
        Attack::Color,
        Attack::Strong,
    ];

    /// The name of its block.
    pub fn name(self) -> String {
        match self {
            Attack::Quality(q) => format!("jpegqual/{q}"),
            Attack::Crop(percent) => format!("crops/{percent}"),
            other => format!("{other:?}").to_lowercase(),
        }
    }

    /// A copy of image number `i`: a function of the image, `i` and the attack alone. Images have 1 or 3 channels.
    ///
    /// # Errors
    /// The JPEG of a copy cannot be encoded or decoded.
    pub fn make(self, image: &Image, i: usize) -> Result<Image> {
        let block = Attack::ALL.iter().position(|a| *a == self).unwrap_or(Attack::ALL.len()) as u32;
        self.with(image, &mut Rng::new(0, 0, i as u32, 0, Kind::Augment, block))
    }

    fn with(self, image: &Image, rng: &mut Rng) -> Result<Image> {
        let (h, w, channels) = (image.height, image.width, image.channels);
        let on_planes = |change: &mut dyn FnMut(&mut [u8])| {
            let mut planes = planes::planes(image);
            change(&mut planes);
            Image { pixels: planes::interleaved(&planes, channels), ..image.clone() }
        };
        Ok(match self {
            Attack::Quality(quality) => compressed(image, quality)?,
            Attack::Crop(percent) => {
                let side = (1.0 - percent as f64 / 100.0).sqrt();
                let [height, width] = [h, w].map(|n| ((n as f64 * side).round() as usize).max(1));
                let (top, left) = (rng.below((h - height + 1) as u32), rng.below((w - width + 1) as u32));
                let region = Region { top: top as usize, left: left as usize, height, width };
                resized_crop(image, region, height, width, Filter::Box, Default::default())
            }
            Attack::Flip => on_planes(&mut |p| mirror(p, w)),
            Attack::Blur => {
                on_planes(&mut |p| blur::gaussian_blur(p, h, w, h.min(w) as f64 / 40.0, &mut Default::default()))
            }
            Attack::Turn => {
                let degrees = rng.range(10.0, 30.0) * if rng.chance(0.5) { 1.0 } else { -1.0 };
                rotated(image, degrees.to_radians())
            }
            Attack::Color => {
                // To one side or the other, never near what it was.
                let mut far = |near: f64, far: f64| {
                    let by = rng.range(near, far);
                    if rng.chance(0.5) { by } else { -by }
                };
                let by = [1.0 + far(0.2, 0.4), 1.0 + far(0.2, 0.4), 1.0 + far(0.3, 0.6), far(0.05, 0.2)];
                on_planes(&mut |p| {
                    for (op, by) in color::Op::ALL.into_iter().zip(by).filter(|(op, _)| op.applies_to(channels)) {
                        op.apply(p, channels, by);
                    }
                })
            }
            Attack::Strong => {
                let mut copy = image.clone();
                for step in
                    [Attack::Crop(50), Attack::Turn, Attack::Flip, Attack::Color, Attack::Blur, Attack::Quality(30)]
                {
                    copy = step.with(&copy, rng)?;
                }
                copy
            }
        })
    }
}

/// Through a JPEG file and back.
fn compressed(image: &Image, quality: u8) -> Result<Image> {
    let kind = match image.channels {
        1 => ExtendedColorType::L8,
        3 => ExtendedColorType::Rgb8,
        n => {
            return Err(Error::new(format!("images of {n} channels cannot be compressed as JPEG"))
                .hint("attacks are made on images of 1 or 3 channels"));
        }
    };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .write_image(&image.pixels, image.width as u32, image.height as u32, kind)
        .map_err(|e| Error::new(format!("cannot compress an image of {} x {}: {e}", image.width, image.height)))?;
    decode_bytes(Path::new("a compressed copy"), &bytes, Decode { channels: image.channels, ..Decode::default() })
}

/// The image rotated about its center, bilinear; what is outside repeats the border.
fn rotated(image: &Image, angle: f64) -> Image {
    let (h, w, n) = (image.height, image.width, image.channels);
    let (sin, cos) = (libm::sin(angle), libm::cos(angle));
    let (cy, cx) = ((h - 1) as f64 / 2.0, (w - 1) as f64 / 2.0);
    let tap = |x: f64, n: usize| {
        let x = x.clamp(0.0, (n - 1) as f64);
        let low = x as usize;
        (low, (low + 1).min(n - 1), x - low as f64)
    };
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for y in 0..h {
        for x in 0..w {
            let (dy, dx) = (y as f64 - cy, x as f64 - cx);
            let (top, bottom, down) = tap(cy + cos * dy + sin * dx, h);
            let (left, right, across) = tap(cx + cos * dx - sin * dy, w);
            for c in 0..n {
                let at = |y: usize, x: usize| image.pixels[(y * w + x) * n + c] as f64;
                let up = at(top, left) * (1.0 - across) + at(top, right) * across;
                let low = at(bottom, left) * (1.0 - across) + at(bottom, right) * across;
                pixels.push((up * (1.0 - down) + low * down + 0.5) as u8);
            }
        }
    }
    Image { pixels, ..image.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(w: usize, h: usize, channels: usize) -> Image {
        let pixel = |i: usize| ((i / channels % w * 5 + i / channels / w * 3 + i % channels * 40) % 256) as u8;
        Image { width: w, height: h, channels, pixels: (0..w * h * channels).map(pixel).collect() }
    }

    #[test]
    fn every_attack_changes_the_image_and_is_the_same_twice() {
        for channels in [1, 3] {
            let image = gradient(50, 40, channels);
            for attack in Attack::ALL {
                let copy = attack.make(&image, 3).unwrap();
                assert_eq!(copy.pixels.len(), copy.width * copy.height * channels);
                assert_ne!(copy, image, "{attack:?}");
                assert_eq!(copy, attack.make(&image, 3).unwrap(), "{attack:?}");
            }
            assert_ne!(Attack::Turn.make(&image, 3).unwrap(), Attack::Turn.make(&image, 4).unwrap());
        }
        // The least of images.
        Attack::ALL.iter().for_each(|a| drop(a.make(&gradient(1, 1, 3), 0).unwrap()));
        assert!(Attack::Quality(50).make(&gradient(8, 8, 5), 0).unwrap_err().to_string().contains("5 channels"));
    }

    #[test]
    fn a_crop_keeps_its_share_and_a_rotation_its_center() {
        let image = gradient(101, 81, 3);
        let crop = Attack::Crop(80).make(&image, 0).unwrap();
        let share = (crop.width * crop.height) as f64 / (101.0 * 81.0);
        assert!((share - 0.2).abs() < 0.01, "{share}");
        let center = (40 * 101 + 50) * 3;
        let around = rotated(&image, std::f64::consts::FRAC_PI_2);
        assert_eq!(around.pixels[center..center + 3], image.pixels[center..center + 3]);
        // A rotation by 90 degrees: the pixel to the right of the center comes from below or above it.
        let above = center - 303;
        let below = center + 303;
        let right = &around.pixels[center + 3..center + 6];
        assert!(right == &image.pixels[above..above + 3] || right == &image.pixels[below..below + 3]);
    }
}

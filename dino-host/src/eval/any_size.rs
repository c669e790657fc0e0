//! Images of any size for the dense evaluations: resized, and through a backbone that is ready for their size.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::planes::{self, normalize};
use crate::inference::dense::Dense;
use dino_kernel::crops::Group;
use dino_kernel::model::Backbone;

/// Most patches of an image: attention takes their square in time.
pub const PATCHES: usize = 1 << 16;

/// Checks the number of patches of an image of (height, width) pixels. `what` names it.
///
/// # Errors
/// The image holds no patch, or more than the limit.
pub fn check_patches(what: &str, [height, width]: [usize; 2], patch: usize) -> Result<()> {
    match (height / patch).saturating_mul(width / patch) {
        0 => Err(Error::new(format!("{what}: {width} x {height} pixels hold no patch of {patch} pixels"))
            .hint(format!("--size {patch} or more"))),
        n if n > PATCHES => Err(Error::new(format!("{what}: {width} x {height} pixels are {n} patches"))
            .hint(format!("up to {PATCHES} are taken: a smaller --size"))),
        _ => Ok(()),
    }
}

/// The same for any backbone: a residual network has no patches, but takes no more pixels than that many patches of 16 are.
///
/// # Errors
/// As [`check_patches`], or the image has no pixels.
pub fn check_size(what: &str, [height, width]: [usize; 2], backbone: &Backbone) -> Result<()> {
    const PIXELS: usize = PATCHES << 8;
    match (backbone, height.saturating_mul(width)) {
        (Backbone::Vit(vit), _) => check_patches(what, [height, width], vit.patch),
        (Backbone::ResNet(_), 0) => {
            Err(Error::new(format!("{what}: {width} x {height} pixels are none"))
                .hint("larger images, or a larger --size"))
        }
        (Backbone::ResNet(_), n) if n > PIXELS => {
            Err(Error::new(format!("{what}: {width} x {height} pixels are more than {PIXELS}"))
                .hint("a smaller --size"))
        }
        (Backbone::ResNet(_), _) => Ok(()),
    }
}

/// Planes (n, height, width) at another size, each pixel from the four around its place: output o is at (o + 1/2) `step` - 1/2,
/// held to the image (torch's `interpolate(mode="bilinear", align_corners=False)`, OpenCV's `resize`; nothing is widened when
/// shrinking). `from`, `to`, `step`: (vertical, horizontal).
pub fn bilinear(x: &[f32], from: [usize; 2], to: [usize; 2], step: [f64; 2]) -> Vec<f32> {
    let taps = |axis: usize| -> Vec<(usize, usize, f32)> {
        let last = from[axis] - 1;
        let tap = |o: usize| {
            let at = ((o as f64 + 0.5) * step[axis] - 0.5).max(0.0);
            let low = (at as usize).min(last);
            (low, (low + 1).min(last), (at - low as f64).min(1.0) as f32)
        };
        (0..to[axis]).map(tap).collect()
    };
    let (rows, columns) = (taps(0), taps(1));
    let mut y = Vec::with_capacity(x.len() / (from[0] * from[1]) * to[0] * to[1]);
    for plane in x.chunks_exact(from[0] * from[1]) {
        for &(top, bottom, down) in &rows {
            let (top, bottom) = (&plane[top * from[1]..][..from[1]], &plane[bottom * from[1]..][..from[1]]);
            y.extend(columns.iter().map(|&(left, right, across)| {
                let (up, low) = (mix(top[left], top[right], across), mix(bottom[left], bottom[right], across));
                mix(up, low, down)
            }));
        }
    }
    y
}

fn mix(a: f32, b: f32, part: f32) -> f32 {
    (1.0 - part) * a + part * b
}

/// Normalized pixels (channels, height, width) of an image, bilinear as OpenCV makes it: rounded to 8 bits.
pub fn resized_pixels(image: &Image, to: [usize; 2], config: &Config) -> Vec<f32> {
    let from = [image.height, image.width];
    let mut bytes = planes::planes(image);
    if from != to {
        let step = [from[0] as f64 / to[0] as f64, from[1] as f64 / to[1] as f64];
        let x: Vec<f32> = bytes.iter().map(|&b| b as f32).collect();
        bytes = bilinear(&x, from, to, step).iter().map(|&v| (v + 0.5) as u8).collect();
    }
    normalized(&bytes, config)
}

/// Planes of bytes with the run's mean and deviation.
pub fn normalized(planes: &[u8], config: &Config) -> Vec<f32> {
    let augment = config.augment();
    let mut pixels = vec![0.0; planes.len()];
    normalize(&mut pixels, planes, &augment.mean, &augment.std);
    pixels
}

/// A backbone that takes one image of any size at a time; it is set up anew where the size changes.
pub struct AnySize<'a, D: Device> {
    options: &'a D::Options,
    config: &'a Config,
    weights: &'a [f32],
    ready: Option<([usize; 2], Dense<D>)>,
}

impl<'a, D: Device> AnySize<'a, D> {
    /// `weights`: a backbone in the table's layout.
    pub fn new(options: &'a D::Options, config: &'a Config, weights: &'a [f32]) -> AnySize<'a, D> {
        AnySize { options, config, weights, ready: None }
    }

    /// Ready for images of (height, width).
    ///
    /// # Errors
    /// The device has no memory for this size.
    pub fn of(&mut self, size: [usize; 2]) -> Result<&mut Dense<D>> {
        if self.ready.as_ref().is_none_or(|(of, _)| *of != size) {
            // The old one goes first: two may not fit.
            self.ready = None;
            let group = Group { count: 1, height: size[0], width: size[1] };
            self.ready = Some((size, Dense::new(self.options, self.config, self.weights, group)?));
        }
        Ok(&mut self.ready.as_mut().expect("just set up").1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bilinear_by_hand() {
        // Twice the size: positions -1/4 (held to 0), 1/4, 3/4, 5/4.
        let up = bilinear(&[0.0, 4.0], [1, 2], [2, 4], [0.5, 0.5]);
        assert_eq!(up, [0.0, 1.0, 3.0, 4.0, 0.0, 1.0, 3.0, 4.0]);
        // Half the size: the mean of two.
        assert_eq!(bilinear(&[1.0, 3.0, 5.0, 9.0], [2, 2], [1, 1], [2.0, 2.0]), [4.5]);
    }

    #[test]
    fn images_without_a_patch_or_with_too_many_are_named() {
        assert!(check_patches("a", [16, 16], 8).is_ok());
        assert!(check_patches("a.png", [7, 900], 8).unwrap_err().to_string().contains("a.png: 900 x 7"));
        assert!(check_patches("a", [usize::MAX, usize::MAX], 8).unwrap_err().to_string().contains("smaller --size"));
    }
}

//! A set as the linear probe's training sees it: random crops, others every epoch, in the order of that epoch.

use crate::data::Dataset;
use crate::error::Result;
use crate::image::Image;
use crate::image::augment::random_resized_crop;
use dino_kernel::rng::{Kind, Rng};

/// The `crop` of the generator: no view of a training run has it.
const VIEW: u32 = 4095;

/// Some images of a set, each a random crop of the size that evaluation views have, so that those take it as it is.
pub struct Augmented<'s> {
    /// The full set.
    pub set: &'s dyn Dataset,
    /// Image `i` here is image `images[i]` of the set.
    pub images: &'s [u32],
    /// Pixels of a side.
    pub side: usize,
    /// With the epoch and the image what a crop depends on.
    pub seed: u64,
    /// Which epoch; none: the images as they are.
    pub epoch: Option<u32>,
}

impl Augmented<'_> {
    fn index(&self, i: usize) -> usize {
        self.images[i] as usize
    }
}

impl Dataset for Augmented<'_> {
    fn len(&self) -> usize {
        self.images.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        let image = self.set.image(self.index(i))?;
        let Some(epoch) = self.epoch else { return Ok(image) };
        let mut rng = Rng::new(self.seed, epoch, self.images[i], VIEW, Kind::Augment, 0);
        Ok(random_resized_crop(&image, self.side, &mut rng))
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.set.label(self.index(i))
    }
    fn classes(&self) -> &[String] {
        self.set.classes()
    }
    fn name(&self, i: usize) -> String {
        self.set.name(self.index(i))
    }
    fn fingerprint(&self) -> String {
        format!("{} seed {} epoch {:?}", self.set.fingerprint(), self.seed, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::builtin::{Builtin, Part};

    #[test]
    fn crops_have_the_size_and_depend_on_epoch_and_image_alone() {
        let set = Builtin::new(40, 6, Part::Train, 0);
        let of = |images: &'static [u32], epoch| Augmented { set: &set, images, side: 24, seed: 1, epoch: Some(epoch) };
        let (a, b) = (of(&[4, 1], 0), of(&[1, 2, 4], 0));
        let image = a.image(0).unwrap();
        assert_eq!((image.width, image.height, image.pixels.len()), (24, 24, 24 * 24 * 3));
        assert!(image == b.image(2).unwrap() && image != of(&[4], 1).image(0).unwrap());
        assert!(Augmented { epoch: None, ..of(&[4], 0) }.image(0).unwrap() == set.image(4).unwrap());
        assert_eq!((a.name(1), a.label(1), a.len()), (set.name(1), set.label(1), 2));
    }
}

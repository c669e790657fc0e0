//! The crops of every step, made ahead of the trainer by a thread of its own.
//!
//! A crop depends on (seed, epoch, image, view) alone, the order of images on (seed, epoch): the loader can start at any step.

use crate::data::{Dataset, Unreadable};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::augment::{Augment, ProbeView, Scratch};
use dino_kernel::rng::{Kind, Rng};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// Images tried for one position in a batch. Where nine in ten cannot be read, one batch of 64 in a thousand still fails.
const SUBSTITUTES: usize = 100;

/// One step's images and pixels.
pub struct Batch {
    /// Those instead of others that cannot be read included.
    pub images: Vec<u32>,
    /// Per micro-batch the plan's layout: view-major, `(view, image, channels, side, side)`.
    pub pixels: Vec<f32>,
}

thread_local! {
    /// A thread's own buffers, which keep their largest size: nothing is allocated for an image but what its decoder takes.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where every image's crops go: `pixels` cut into micro-batches, views and images, and handed out by image.
fn slots<'p>(pixels: &'p mut [f32], views: &[usize], batch: usize, micro_batch: usize) -> Vec<Vec<&'p mut [f32]>> {
    let mut slots: Vec<Vec<_>> = (0..batch).map(|_| Vec::with_capacity(views.len())).collect();
    let mut rest = pixels;
    for part in slots.chunks_mut(micro_batch) {
        for &len in views {
            for slot in part.iter_mut() {
                let (crop, tail) = rest.split_at_mut(len);
                slot.push(crop);
                rest = tail;
            }
        }
    }
    slots
}

/// What an image's crops are, and how they are made of it.
pub trait Cut: Clone + Send + Sync {
    /// Numbers of each crop.
    fn lens(&self) -> Vec<usize>;
    /// Writes the crop number `view`, normalized.
    fn cut(&self, scratch: &mut Scratch, image: &Image, view: usize, rng: &mut Rng, out: &mut [f32]);
}

impl Cut for Augment {
    fn lens(&self) -> Vec<usize> {
        self.crops_of().iter().map(|(side, _)| self.channels * side * side).collect()
    }

    fn cut(&self, scratch: &mut Scratch, image: &Image, view: usize, rng: &mut Rng, out: &mut [f32]) {
        self.crop_with(scratch, image, view, rng, out);
    }
}

impl Cut for ProbeView {
    fn lens(&self) -> Vec<usize> {
        vec![self.len()]
    }

    fn cut(&self, scratch: &mut Scratch, image: &Image, _view: usize, rng: &mut Rng, out: &mut [f32]) {
        self.crop_with(scratch, image, rng, out);
    }
}

/// What the loader needs to know.
#[derive(Clone)]
pub struct Recipe<C = Augment> {
    /// How crops are made.
    pub augment: C,
    /// Seed of the order of images and of the crops.
    pub seed: u64,
    /// Images of a step, of all processes.
    pub batch: usize,
    /// Which of them are this process's.
    pub own: Range<usize>,
    /// Images of a micro-batch; it divides `batch`.
    pub micro_batch: usize,
    /// Steps of an epoch.
    pub per_epoch: u64,
}

impl<C: Cut> Recipe<C> {
    /// Makes this process's crops of the `step`-th step; `order` is the step's epoch's.
    ///
    /// # Errors
    /// Under `strict` an image cannot be read; otherwise `SUBSTITUTES` images and the one drawn after them cannot.
    pub fn load(&self, set: &dyn Dataset, unreadable: &Unreadable, order: &[u32], step: u64) -> Result<Batch> {
        let (epoch, at) = (step / self.per_epoch, (step % self.per_epoch) as usize * self.batch);
        let views = self.augment.lens();
        let ids = &order[at..at + self.batch][self.own.clone()];
        let mut pixels = vec![0.0; ids.len() * views.iter().sum::<usize>()];
        let images: Result<Vec<u32>> = slots(&mut pixels, &views, ids.len(), self.micro_batch)
            .into_par_iter()
            .zip(ids)
            .map(|(crops, &id)| {
                let (id, image) = self.readable(set, unreadable, epoch as u32, id)?;
                SCRATCH.with_borrow_mut(|scratch| {
                    for (view, out) in crops.into_iter().enumerate() {
                        let mut rng = Rng::new(self.seed, epoch as u32, id, view as u32, Kind::Augment, 0);
                        self.augment.cut(scratch, &image, view, &mut rng, out);
                    }
                });
                Ok(id)
            })
            .collect();
        Ok(Batch { images: images?, pixels })
    }

    /// Image `id`, or, where it cannot be read, one that replaces it: drawn by (seed, epoch, id), so that the same files give
    /// the same steps in any order and after any resume.
    fn readable(&self, set: &dyn Dataset, unreadable: &Unreadable, epoch: u32, id: u32) -> Result<(u32, Image)> {
        let mut rng = Rng::new(self.seed, epoch, id, 0, Kind::Substitute, 0);
        let mut taken = id;
        for _ in 0..SUBSTITUTES {
            if let Some(image) = unreadable.image(set, taken as usize)? {
                return Ok((taken, image));
            }
            taken = rng.below(set.len() as u32);
        }
        // The last one's own error best explains what is wrong with them all.
        let image = set.image(taken as usize).map_err(|e| {
            let message = format!("{SUBSTITUTES} images drawn one after the other cannot be read: {}", e.message);
            Error { message, hint: e.hint }
        })?;
        Ok((taken, image))
    }

    /// A thread that makes the batches of `steps` in order, at most two ahead. It ends when the receiver is dropped.
    ///
    /// # Errors
    /// The receiver gets the error of [`Recipe::load`] as the last item.
    pub fn start<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        set: &'scope dyn Dataset,
        unreadable: &'scope Unreadable,
        steps: Range<u64>,
    ) -> (Receiver<Result<Batch>>, ScopedJoinHandle<'scope, ()>)
    where
        C: 'scope,
    {
        let (sender, receiver) = sync_channel(1);
        let thread = scope.spawn(move || {
            let mut epoch = None;
            let mut shuffled = Vec::new();
            for step in steps {
                if epoch != Some(step / self.per_epoch) {
                    epoch = Some(step / self.per_epoch);
                    shuffled = set.order(self.seed, step / self.per_epoch);
                }
                let batch = self.load(set, unreadable, &shuffled, step);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        });
        (receiver, thread)
    }
}

/// Refuses sets that cannot fill a batch.
///
/// # Errors
/// The set has fewer images than a batch.
pub fn check_size(set: &dyn Dataset, batch: usize) -> Result<u64> {
    match set.len() / batch {
        0 => Err(Error::new(format!("{} training images are fewer than a batch of {batch}", set.len()))
            .hint(format!("--batch {} or smaller", set.len().max(1)))),
        n => Ok(n as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::data::builtin::{Builtin, Part};
    use crate::data::order::order;

    /// The built-in set, of which some images cannot be read.
    struct Holes(Builtin, fn(usize) -> bool);

    impl Dataset for Holes {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn image(&self, i: usize) -> Result<Image> {
            if self.1(i) { Err(Error::new(format!("no image {i}"))) } else { self.0.image(i) }
        }
        fn label(&self, i: usize) -> Option<u32> {
            self.0.label(i)
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn name(&self, i: usize) -> String {
            self.0.name(i)
        }
        fn fingerprint(&self) -> String {
            self.0.fingerprint()
        }
    }

    /// The batches of two epochs, and the recipe.
    fn batches(holes: fn(usize) -> bool, unreadable: &Unreadable) -> Result<Vec<Batch>> {
        let set = Holes(Builtin::new(24, 40, Part::Train, 0), holes);
        let recipe = recipe();
        (0..10).map(|step| recipe.load(&set, unreadable, &order(40, 3, step / 5), step)).collect()
    }

    fn recipe() -> Recipe {
        Recipe { augment: Config::tiny().augment(), seed: 3, batch: 8, own: 0..8, micro_batch: 8, per_epoch: 5 }
    }

    #[test]
    fn a_crop_depends_on_its_own_image_alone() {
        let (bad, unreadable) = (|i| i % 3 == 0, Unreadable::default());
        let (complete, holed) = (batches(|_| false, &unreadable).unwrap(), batches(bad, &unreadable).unwrap());
        assert_eq!(unreadable.take(None).len(), 14);
        let side = recipe().augment.global_size;
        let first_view = |b: &Batch, at: usize| b.pixels[at * 3 * side * side..][..3 * side * side].to_vec();
        let mut substitutes = [0; 2];
        for (epoch, (complete, holed)) in complete.chunks(5).zip(holed.chunks(5)).enumerate() {
            let crop_of =
                |id: u32| complete.iter().find_map(|b| Some(first_view(b, b.images.iter().position(|i| *i == id)?)));
            for (w, h) in complete.iter().zip(holed) {
                for (at, (&was, &is)) in w.images.iter().zip(&h.images).enumerate() {
                    assert!(!bad(is as usize) && (bad(was as usize) || was == is), "{was} became {is}");
                    assert!(first_view(h, at) == crop_of(is).unwrap(), "the crop of {is} instead of {was}");
                    substitutes[epoch] = substitutes[epoch] * 41 % 1_000_003 + if was == is { 0 } else { is + 1 };
                }
            }
        }
        assert_ne!(substitutes[0], substitutes[1], "another epoch, other substitutes");
        // Processes that share a step have the same, each its part.
        for own in [0..2, 2..8] {
            let set = Holes(Builtin::new(24, 40, Part::Train, 0), bad);
            let recipe = Recipe { own: own.clone(), micro_batch: 2, ..recipe() };
            let shared = recipe.load(&set, &Unreadable::default(), &order(40, 3, 1), 8).unwrap();
            assert!(shared.images == holed[8].images[own.clone()]);
            assert!(shared.pixels[..3 * side * side] == first_view(&holed[8], own.start));
        }
        // A step made alone, as after a resume, is the same.
        let set = Holes(Builtin::new(24, 40, Part::Train, 0), bad);
        let alone = recipe().load(&set, &Unreadable::default(), &order(40, 3, 1), 8).unwrap();
        assert!(alone.images == holed[8].images && alone.pixels == holed[8].pixels);
    }

    #[test]
    fn strict_and_hopeless_sets_are_errors() {
        let strict = batches(|i| i == 7, &Unreadable::new(true)).err().expect("an image is missing");
        assert_eq!(strict.message, "no image 7");
        let none = batches(|_| true, &Unreadable::default()).err().expect("all are missing");
        assert!(none.message.contains("100 images") && none.message.contains("no image"), "{none}");
    }
}

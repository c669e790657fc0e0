//! The crops of every step, made ahead of the trainer by a thread of its own.
//!
//! A crop depends on (seed, epoch, image, view) alone, the order of images on (seed, epoch): the loader can start at any step.

use crate::augment::{Augment, Scratch};
use crate::data::Dataset;
use crate::error::{Error, Result};
use dino_kernel::rng::{Kind, Rng};
use rayon::prelude::*;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

/// The images of an epoch in training order (Fisher-Yates).
pub fn order(images: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..images as u32).collect();
    let mut rng = Rng::new(seed, epoch as u32, 0, 0, Kind::Shuffle, 0);
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u32 + 1) as usize);
    }
    order
}

/// One step's images and pixels.
pub struct Batch {
    pub images: Vec<u32>,
    /// Per micro-batch the plan's layout: view-major, `(view, image, 3, side, side)`.
    pub pixels: Vec<f32>,
}

/// What the loader needs to know.
#[derive(Clone)]
pub struct Recipe {
    pub augment: Augment,
    pub seed: u64,
    pub batch: usize,
    pub micro_batch: usize,
    pub per_epoch: u64,
}

impl Recipe {
    /// Makes the crops of the `step`-th step; `order` is the step's epoch's.
    pub fn load(&self, set: &dyn Dataset, order: &[u32], step: u64) -> Result<Batch> {
        let (epoch, at) = (step / self.per_epoch, (step % self.per_epoch) as usize * self.batch);
        let images = order[at..at + self.batch].to_vec();
        let views: Vec<usize> = self.augment.crops_of().iter().map(|(side, _)| 3 * side * side).collect();
        let wide: usize = views.iter().sum();
        let made: Vec<Vec<f32>> = images
            .par_iter()
            .map_init(Scratch::default, |scratch, &id| {
                let image = set.image(id as usize)?;
                let mut crops = vec![0.0; wide];
                let mut rest = &mut crops[..];
                for (view, &len) in views.iter().enumerate() {
                    let (out, tail) = rest.split_at_mut(len);
                    rest = tail;
                    let mut rng = Rng::new(self.seed, epoch as u32, id, view as u32, Kind::Augment, 0);
                    self.augment.crop_with(scratch, &image, view, &mut rng, out);
                }
                Ok(crops)
            })
            .collect::<Result<_>>()?;
        let mut pixels = Vec::with_capacity(self.batch * wide);
        for part in made.chunks(self.micro_batch) {
            let mut from = 0;
            for &len in &views {
                part.iter().for_each(|crops| pixels.extend_from_slice(&crops[from..from + len]));
                from += len;
            }
        }
        Ok(Batch { images, pixels })
    }

    /// A thread that makes the batches of `steps` in order, at most two ahead. It ends when the receiver is dropped.
    pub fn start<'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        set: &'scope dyn Dataset,
        steps: std::ops::Range<u64>,
    ) -> (Receiver<Result<Batch>>, ScopedJoinHandle<'scope, ()>) {
        let (sender, receiver) = sync_channel(1);
        let thread = scope.spawn(move || {
            let mut epoch = None;
            let mut shuffled = Vec::new();
            for step in steps {
                if epoch != Some(step / self.per_epoch) {
                    epoch = Some(step / self.per_epoch);
                    shuffled = set.order(self.seed, step / self.per_epoch);
                }
                let batch = self.load(set, &shuffled, step);
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
pub fn check_size(set: &dyn Dataset, batch: usize) -> Result<u64> {
    match set.len() / batch {
        0 => Err(Error::new(format!("{} training images are fewer than a batch of {batch}", set.len()))
            .hint(format!("--batch {} or smaller", set.len().max(1)))),
        n => Ok(n as u64),
    }
}

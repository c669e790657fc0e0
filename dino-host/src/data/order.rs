//! The order in which a training epoch goes through a set: a function of the set, the seed and the epoch alone.

use dino_kernel::rng::{Kind, Rng};

/// The images of an epoch in training order (Fisher-Yates).
pub fn order(images: usize, seed: u64, epoch: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..images as u32).collect();
    let mut rng = Rng::new(seed, epoch as u32, 0, 0, Kind::Shuffle, 0);
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u32 + 1) as usize);
    }
    order
}

/// Runs of images that are stored together on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The first image of every shard, ascending, and at the end the number of images.
    pub starts: Vec<usize>,
    /// How many shards are mixed with one another at most.
    pub together: usize,
}

impl Shards {
    /// Images that are mixed with one another at most.
    pub const BUFFER: usize = 4096;

    /// The shards in random order, their images through a buffer: it is filled with up to [`Shards::BUFFER`] images of up to
    /// `together` shards, shuffled, emptied, and filled again.
    ///
    /// (A buffer that is topped up after every image mixes no better and lets a few images wait for many shards: each would
    /// be a shard read, and perhaps decompressed, for one image.)
    pub fn order(&self, seed: u64, epoch: u64) -> Vec<u32> {
        let rng = |block| Rng::new(seed, epoch as u32, 0, 0, Kind::Shuffle, block);
        let mut shards: Vec<usize> = (0..self.starts.len().saturating_sub(1)).collect();
        shuffle(&mut shards, &mut rng(1));
        let mut rng = rng(2);
        let mut order = Vec::with_capacity(self.starts.last().copied().unwrap_or(0));
        let (mut buffer, mut mixed) = (Vec::new(), 0);
        for shard in shards {
            for image in self.starts[shard]..self.starts[shard + 1] {
                buffer.push(image as u32);
                if buffer.len() == Shards::BUFFER {
                    shuffle(&mut buffer, &mut rng);
                    order.append(&mut buffer);
                    mixed = 0;
                }
            }
            mixed += 1;
            if mixed == self.together {
                shuffle(&mut buffer, &mut rng);
                order.append(&mut buffer);
                mixed = 0;
            }
        }
        shuffle(&mut buffer, &mut rng);
        order.append(&mut buffer);
        order
    }
}

/// Fisher-Yates.
fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, rng.below(i as u32 + 1) as usize);
    }
}

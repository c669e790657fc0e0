//! Training on a data set of one's own, in memory: whatever gives images can be trained on.
//!
//!     cargo run --release -p dino-host --example custom_dataset -- OUT
//!
//! `OUT` is the folder of the run, which all other commands take. Expected output, # standing for numbers:
//!
//!     200 images to train on, 40 to evaluate with
//!     epoch 1/4: loss # (entropy #, KL #, ln K #), k-NN # % (student # %), feature rank #
//!     ...
//!     epoch 4/4: loss # (entropy #, KL #, ln K #), k-NN # % (student # %), feature rank #

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::data::{Dataset, Splits, Unreadable};
use dino_host::dist::Group;
use dino_host::error::Result;
use dino_host::image::Image;
use dino_host::train::{self, Run};
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Discs and squares of any color on a background of any color, drawn when they are asked for.
struct Shapes {
    images: usize,
    /// So that two sets have no image in common.
    first: usize,
    classes: Vec<String>,
}

impl Shapes {
    fn new(first: usize, images: usize) -> Shapes {
        Shapes { images, first, classes: vec!["disc".into(), "square".into()] }
    }
}

/// Numbers below `n` that look random, the same for the same `seed`.
fn draw(seed: usize, n: usize) -> usize {
    let mut x = (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 31).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((x >> 33) % n as u64) as usize
}

impl Dataset for Shapes {
    fn len(&self) -> usize {
        self.images
    }

    fn image(&self, i: usize) -> Result<Image> {
        let (side, seed) = (40, 100 * (self.first + i));
        let color = |k: usize| [0, 1, 2].map(|c| draw(seed + 10 * k + c, 256) as u8);
        let (ground, object) = (color(0), color(1));
        let (x, y, r) = (12 + draw(seed + 30, 16), 12 + draw(seed + 31, 16), 7 + draw(seed + 32, 4));
        let inside = |px: usize, py: usize| {
            let (dx, dy) = (px.abs_diff(x), py.abs_diff(y));
            if i.is_multiple_of(2) { dx * dx + dy * dy <= r * r } else { dx.max(dy) <= r }
        };
        let pixel = |p: usize| if inside(p % side, p / side) { object } else { ground };
        let pixels = (0..side * side).flat_map(pixel).collect();
        Ok(Image { width: side, height: side, channels: 3, pixels })
    }

    /// Read only where something is evaluated.
    fn label(&self, i: usize) -> Option<u32> {
        Some((i % 2) as u32)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn name(&self, i: usize) -> String {
        format!("shape {}", self.first + i)
    }

    /// A run goes on only with the images that it began with.
    fn fingerprint(&self) -> String {
        format!("shapes {} {}", self.first, self.images)
    }
}

fn run(out: PathBuf) -> Result<()> {
    let (train, test) = (Box::new(Shapes::new(0, 200)), Box::new(Shapes::new(200, 40)));
    println!("{} images to train on, {} to evaluate with", train.len(), test.len());
    let splits = Splits { train, test, held_out: false, notes: Vec::new() };
    let config = Config {
        epochs: 4,
        depth: 2,
        embed_dim: 32,
        heads: 2,
        patch_size: 8,
        batch: 20,
        knn_every: 1,
        ..Config::small()
    };
    let (unreadable, stop) = (Unreadable::new(true), AtomicBool::new(false));
    train::run(&Run::<Cpu> {
        device: &NoOptions {},
        config: config.resolve()?,
        splits: &splits,
        unreadable: &unreadable,
        out,
        resume: false,
        accept_changed_data: false,
        data: "shapes".into(),
        start: Cell::new(None),
        stop: &stop,
        time_limit: None,
        command: std::env::args().collect(),
        screen: None,
        group: Group::default(), // this process alone
    })?;
    Ok(())
}

fn main() {
    let Some(out) = std::env::args_os().nth(1) else {
        eprintln!("usage: custom_dataset OUT");
        std::process::exit(2);
    };
    if let Err(e) = run(out.into()) {
        eprintln!("custom_dataset: {e}");
        std::process::exit(2);
    }
}

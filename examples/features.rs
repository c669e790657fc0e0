//! Features of an image in ten lines: weights of any known kind, an image file of any kind, one vector.
//!
//!     cargo run --release -p dino-host --example features -- runs/1/teacher.safetensors IMAGE
//!
//! Expected output, with weights of `train --small`, # standing for numbers:
//!
//!     64 numbers: [#, #, #, #] ...

use dino_host::cpu::{Cpu, NoOptions};
use dino_host::error::Result;
use dino_host::image::augment::{EvalView, eval_view};
use dino_host::inference::dense::Dense;
use dino_host::{image, weights};
use dino_kernel::crops::Group;
use std::path::{Path, PathBuf};

fn features(file: &Path, path: &Path) -> Result<Vec<f32>> {
    let found = weights::read(file, "teacher", None, None)?;
    let (config, side) = (&found.config, found.config.global_size);
    let image = image::decode(path, config.decode())?;
    let mut pixels = vec![0.0; config.channels * side * side];
    eval_view(&image, side, EvalView::ResizeCrop, &config.mean, &config.std, &mut pixels);
    let group = Group { count: 1, height: side, width: side };
    let mut network = Dense::<Cpu>::new(&NoOptions {}, config, &found.backbone, group)?;
    Ok(network.rows(&pixels)?.images) // the class token; of a ResNet the average over the last map
}

fn main() {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [weights, image] = &files[..] else {
        eprintln!("usage: features WEIGHTS IMAGE");
        std::process::exit(2);
    };
    match features(weights, image) {
        Ok(row) => println!("{} numbers: {:.2?} ...", row.len(), &row[..4]),
        Err(e) => {
            eprintln!("features: {e}");
            std::process::exit(2);
        }
    }
}

//! What the teacher attends to as it learns: the same few images, drawn before the first step and after epochs 1, 2, 4, 8, … and the
//! last, into `gallery/` of the run.
//!
//! `images.png` is the images side by side, `images.json` names them, `start.png` and `epochNNNN.png` (epochs counted from 0)
//! are the mean attention of the last block over each, as heat; of a residual network the class activation of the last map.

use crate::config::Config;
use crate::data::{Dataset, Splits};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::inference::dense::{fit, patch};
use crate::io::atomic::write_atomically;
use crate::viz::attention;
use crate::viz::canvas::Canvas;
use crate::viz::neighbors::choose;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// The gallery's folder within the run's.
pub const FOLDER: &str = "gallery";
/// Images in a row.
pub const IMAGES: usize = 6;
/// Side of each, pixels.
pub const SIDE: usize = 128;

/// Is the gallery drawn after this epoch?
pub fn due(epoch: u64, epochs: u64) -> bool {
    (epoch + 1).is_power_of_two() || epoch + 1 == epochs
}

/// The images that are drawn, with their indices in the set: of the test part, or, where that is empty, of the train part; evenly
/// spread, and of as many classes as there are. Those that cannot be read are left out.
pub fn images(splits: &Splits) -> (&dyn Dataset, Vec<(usize, Image)>) {
    let set = if splits.test.is_empty() { &*splits.train } else { &*splits.test };
    (set, choose(set, IMAGES, None).into_iter().filter_map(|i| Some((i, set.image(i).ok()?))).collect())
}

/// The images side by side, as the network sees them.
///
/// # Errors
/// An image has no or too many patches.
pub fn plain(config: &Config, images: &[(usize, Image)]) -> Result<Canvas> {
    let output: Result<Vec<_>> = images
        .iter()
        .map(|(_, i)| Ok(row_of(&fit(i, config.global_size, patch(config, config.global_size))?)))
        .collect();
    Ok(side_by_side(&output?))
}

/// What a backbone (`weights` in the table's layout) attends to in them, or where its last map is active.
///
/// # Errors
/// An image has no or too many patches, or the device fails.
pub fn strip<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    images: &[(usize, Image)],
) -> Result<Canvas> {
    let images: Vec<&Image> = images.iter().map(|(_, image)| image).collect();
    let drawn = attention::gallery::<D>(options, config, weights, &images, 0)?;
    Ok(side_by_side(&drawn.iter().map(|p| row_of(&p.image())).collect::<Vec<_>>()))
}

fn row_of(image: &Image) -> Canvas {
    Canvas::thumbnail(image, SIDE)
}

fn side_by_side(figures: &[Canvas]) -> Canvas {
    let mut row = Canvas::new(figures.len() * SIDE, SIDE, [255; 3]);
    figures.iter().enumerate().for_each(|(i, p)| row.put(0, i * SIDE, p));
    row
}

/// Name of the figure after an epoch, or before the first.
pub fn file(epoch: Option<u64>) -> String {
    epoch.map_or("start.png".into(), |epoch| format!("epoch{epoch:04}.png"))
}

/// Draws into `out/gallery`.
///
/// # Errors
/// None of its images can be read, the device fails, or a file cannot be written.
pub fn draw<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    splits: &Splits,
    epoch: Option<u64>,
    out: &Path,
) -> Result<()> {
    let (set, images) = images(splits);
    if images.is_empty() {
        return Err(Error::new("none of the images of the gallery can be read"));
    }
    let folder = out.join(FOLDER);
    std::fs::create_dir_all(&folder)
        .map_err(|e| Error::new(format!("cannot make the folder {}: {e}", folder.display())))?;
    // Again each time, for a run may go on from a copy without them.
    let class = |i: usize| set.label(i).and_then(|c| set.classes().get(c as usize));
    let which: Vec<_> = images.iter().map(|(i, _)| json!({"name": set.name(*i), "class": class(*i)})).collect();
    write_atomically(&folder.join("images.json"), |f| writeln!(f, "{}", json!(which)))?;
    plain(config, &images)?.write(&folder.join("images.png"))?;
    strip::<D>(options, config, weights, &images)?.write(&folder.join(file(epoch)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use crate::data;
    use crate::image::{Decode, decode_bytes};
    use dino_kernel::init;

    #[test]
    fn powers_of_two_and_the_last_epoch_are_drawn() {
        let drawn = |epochs| (0..epochs).filter(|&e| due(e, epochs)).collect::<Vec<_>>();
        assert_eq!(drawn(1), [0]);
        assert_eq!(drawn(12), [0, 1, 3, 7, 11]);
        assert_eq!(drawn(100).len(), 8);
    }

    #[test]
    fn the_same_weights_draw_the_same_figures() {
        let config = Config { depth: 2, embed_dim: 24, ..Config::tiny() }.resolve().unwrap();
        let splits = data::builtin(40, 3);
        let table = config.table();
        let mut weights = vec![0.0; table.len()];
        init::weights(&mut weights, &table, 1, init::LINEAR_STD);
        weights.truncate(table.backbone_len());
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(FOLDER).join(name)).unwrap();
        draw::<Cpu>(&NoOptions {}, &config, &weights, &splits, None, dir.path()).unwrap();
        draw::<Cpu>(&NoOptions {}, &config, &weights, &splits, Some(3), dir.path()).unwrap();
        assert!(read("start.png") == read("epoch0003.png") && read("start.png") != read("images.png"));
        let figure = decode_bytes(Path::new("a"), &read("start.png"), Decode::default()).unwrap();
        assert_eq!((figure.width, figure.height), (IMAGES * SIDE, SIDE));
        let which: serde_json::Value = serde_json::from_slice(&read("images.json")).unwrap();
        assert_eq!((which.as_array().unwrap().len(), &which[1]["class"]), (IMAGES, &json!("ball")));
    }
}

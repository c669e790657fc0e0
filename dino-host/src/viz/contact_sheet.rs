//! Contact sheets of the crops that a run trains on, made by the loader itself: for people to check before they spend a day on a run.

use crate::config::Config;
use crate::data::loader::Recipe;
use crate::data::{Dataset, Unreadable};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::augment::Augment;
use crate::image::resize::{Filter, resize};
use crate::io::atomic::write_atomically;
use crate::io::tsv::tsv;
use crate::viz::canvas::{Canvas, WHITE, colored};
use std::io::Write;
use std::path::Path;

/// Images on a contact sheet, one below the other.
const ROWS: usize = 8;
/// Pixels between images.
const GAP: usize = 4;
/// Global crops are drawn at least this large, each pixel a square of so many as it takes.
const LEAST: usize = 128;

/// Draws the first `images` images of an epoch, in its order, as `DIR/sheet-000.png` and so on: the image itself, the global crops,
/// the local ones. `DIR/index.tsv` names them. Returns what to tell the user.
///
/// # Errors
/// There are no images or no such epoch, an image cannot be read, or a file cannot be written.
pub fn draw(
    config: &Config,
    set: &dyn Dataset,
    unreadable: &Unreadable,
    epoch: u64,
    images: usize,
    out: &Path,
) -> Result<String> {
    let images = images.min(set.len());
    if images == 0 {
        return Err(
            Error::new("there are no images to draw the crops of").hint("--images 1 or more, of a set that has some")
        );
    }
    if epoch > u32::MAX as u64 {
        return Err(Error::new(format!("there is no epoch {epoch}")).hint("epochs are counted from 0"));
    }
    std::fs::create_dir_all(out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("--out names another")
    })?;
    let order = set.order(config.data_seed(), epoch);
    let mut index = String::from("sheet\trow\timage\n");
    for (sheet, ids) in order[..images].chunks(ROWS).enumerate() {
        let augment = config.augment();
        let recipe = Recipe {
            augment,
            seed: config.data_seed(),
            batch: ids.len(),
            own: 0..ids.len(),
            micro_batch: 1,
            per_epoch: 1,
        };
        // An epoch of this one batch: crops depend on the epoch's number, not on its length.
        let batch = recipe.load(set, unreadable, ids, epoch)?;
        let wide = batch.pixels.len() / ids.len();
        let mut rows = Vec::new();
        for (&id, crops) in batch.images.iter().zip(batch.pixels.chunks(wide)) {
            // It could be read a moment ago.
            rows.push(row(&recipe.augment, &set.image(id as usize)?, crops));
            index += &format!("{sheet}\t{}\t{}\n", rows.len() - 1, tsv(&set.name(id as usize)));
        }
        stack(rows).write(&out.join(format!("sheet-{sheet:03}.png")))?;
    }
    write_atomically(&out.join("index.tsv"), |f| f.write_all(index.as_bytes()))?;
    let (size, locals) = (config.global_size, config.local_crops_number);
    Ok(format!(
        "{images} images of epoch {epoch} in {}: the image, 2 crops of {size} pixels, {locals} of {}; index.tsv names them",
        out.join("sheet-*.png").display(),
        config.local_size
    ))
}

/// The image and its crops, `crops` being those of one image, normalized, one after the other.
fn row(augment: &Augment, image: &Image, crops: &[f32]) -> Canvas {
    let (global, local) = (augment.global_size, augment.local_size);
    let scale = LEAST.div_ceil(global);
    let height = global * scale;
    // As high as a global crop, at most three times as wide.
    let fit = (height as f64 / image.height as f64).min(3.0 * height as f64 / image.width as f64);
    let fitted = |n: usize| ((n as f64 * fit).round() as usize).max(1);
    let shown = resize(&colored(image), fitted(image.height), fitted(image.width), Filter::Bicubic);
    // Local crops are drawn above each other in as many rows as fit.
    let down = ((height + GAP) / (local * scale + GAP)).max(1);
    let columns = augment.local_crops_number.div_ceil(down);
    let corner = |view: usize| match view {
        0 | 1 => (0, shown.width + GAP + view * (height + GAP)),
        _ => {
            let (column, row) = ((view - 2) / down, (view - 2) % down);
            (row * (local * scale + GAP), shown.width + GAP + 2 * (height + GAP) + column * (local * scale + GAP))
        }
    };
    let tall = height.max(local * scale);
    let wide = shown.width + 2 * (GAP + height) + columns * (GAP + local * scale);
    let mut canvas = Canvas::new(wide, tall, WHITE);
    canvas.put(0, 0, &Canvas::of(&shown, 1));
    let mut rest = crops;
    for (view, (side, _)) in augment.crops_of().into_iter().enumerate() {
        let (crop, tail) = rest.split_at(augment.channels * side * side);
        rest = tail;
        let (top, left) = corner(view);
        canvas.put(top, left, &Canvas::of(&pixels(augment, crop, side), scale));
    }
    canvas
}

/// A normalized crop (channels, side, side) as an image again.
fn pixels(augment: &Augment, crop: &[f32], side: usize) -> Image {
    let (channels, plane) = (augment.channels, side * side);
    let value = |i: usize| {
        let (pixel, c) = (i / channels, i % channels);
        let x = crop[c * plane + pixel] as f64 * augment.std[c] + augment.mean[c];
        (x * 255.0).round() as u8
    };
    Image { height: side, width: side, channels, pixels: (0..channels * plane).map(value).collect() }
}

/// Rows below each other.
fn stack(rows: Vec<Canvas>) -> Canvas {
    let width = rows.iter().map(|r| r.width).max().unwrap_or(0);
    let height = rows.iter().map(|r| r.height + GAP).sum::<usize>() - GAP;
    let (mut canvas, mut top) = (Canvas::new(width, height, WHITE), 0);
    for row in rows {
        canvas.put(top, 0, &row);
        top += row.height + GAP;
    }
    canvas
}

//! Pictures of what the class token of the last block attends to (official `visualize_attention.py`).
//!
//! Written to the folder, for heads h = 0, 1, …:
//! `image.png` (what the network saw), `head{h}.png` (attention, white = the head's largest), `head{h}-mask.png` (the patches that
//! hold `keep` of the head's attention, the rest darkened), `mean.png` (mean over heads), `overlay.png` (all on one sheet: image, heads
//! and mean as heat over the image, from the least to the greatest attention), `attention.json` (the numbers). Small images are enlarged by a whole factor.

use crate::augment::{normalize, planes};
use crate::config::Config;
use crate::data::Image;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::attention::{check_keep, enlarge, mask};
use crate::features::Dense;
use crate::log::{write_atomically, write_png};
use crate::resize::{Filter, Region, Resizer};
use crate::sheets;
use dino_kernel::crops::Group;
use serde_json::json;
use std::io::Write;
use std::path::Path;

/// Pictures are at least this wide.
const WIDTH: usize = 256;
/// Most patches of an image: attention takes their square in time.
const PATCHES: usize = 1 << 16;
/// Pixels between the pictures of a sheet.
const GAP: usize = 6;

/// Draws what a backbone (`weights` in the table's layout) attends to in `image`, its shorter side resized to `size` (0: the run's global
/// crop), both sides then cut to whole patches around the centre.
pub fn draw<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    image: &Image,
    size: usize,
    keep: f64,
    out: &Path,
) -> Result<()> {
    check_keep(keep)?;
    let (patch, augment) = (config.patch_size, config.augment());
    let image = fit(image, if size == 0 { config.global_size } else { size }, patch)?;
    let (height, width) = (image.height, image.width);
    let mut pixels = vec![0.0; config.channels * height * width];
    normalize(&mut pixels, &planes::planes(&image), &augment.mean, &augment.std);
    let mut network = Dense::<D>::new(options, config, weights, Group { count: 1, height, width })?;
    let rows = network.attention(&pixels)?;
    let (grid, cells) = (network.grid(), network.grid()[0] * network.grid()[1]);
    let heads: Vec<&[f32]> = rows.chunks(cells).collect();
    let mean: Vec<f32> = (0..cells).map(|i| heads.iter().map(|h| h[i]).sum::<f32>() / heads.len() as f32).collect();

    let scale = WIDTH.div_ceil(width);
    let shown = Canvas::of(&sheets::coloured(&image), scale);
    // One value a patch, `zero` to `one` as 0 to 1, to one a pixel of the pictures.
    let spread = |row: &[f32], zero: f32, one: f32| {
        let shares: Vec<f32> = row.iter().map(|x| (x - zero) / (one - zero).max(f32::MIN_POSITIVE)).collect();
        enlarge(&shares, grid, patch * scale, [shown.height, shown.width], 0.0)
    };
    let range = |row: &[f32]| row.iter().fold((f32::MAX, 0.0), |(a, b): (f32, f32), &x| (a.min(x), b.max(x)));
    // The grey map shows how even the attention is; heat goes from the least to the greatest, as in the published pictures.
    let maps = |row: &[f32]| {
        let (least, most) = range(row);
        (grey(&spread(row, 0.0, most), &shown), heat(&spread(row, least, most), &shown))
    };
    std::fs::create_dir_all(out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("--out names a folder")
    })?;
    shown.write(&out.join("image.png"))?;
    let mut sheet = vec![shown.clone()];
    for (h, row) in heads.iter().enumerate() {
        let (map, hot) = maps(row);
        let kept = enlarge(&mask(row, keep), grid, patch * scale, [shown.height, shown.width], false);
        map.write(&out.join(format!("head{h}.png")))?;
        shown.map(|i, p| if kept[i] { p } else { p.map(|x| x / 4) }).write(&out.join(format!("head{h}-mask.png")))?;
        sheet.push(hot);
    }
    let (map, hot) = maps(&mean);
    map.write(&out.join("mean.png"))?;
    sheet.push(hot);
    contact(&sheet).write(&out.join("overlay.png"))?;
    let numbers = json!({
        "width": width, "height": height, "patch": patch, "rows": grid[0], "cols": grid[1], "heads": heads.len(), "attention": heads,
    });
    write_atomically(&out.join("attention.json"), |f| writeln!(f, "{numbers}"))?;
    eprintln!(
        "{width} x {height} pixels, {} x {} patches, {} heads; all on one sheet: {}",
        grid[1],
        grid[0],
        heads.len(),
        out.join("overlay.png").display()
    );
    Ok(())
}

/// The image with its shorter side at `short`, bicubic, cut around the centre to whole patches.
fn fit(image: &Image, short: usize, patch: usize) -> Result<Image> {
    if short < patch {
        return Err(Error::new(format!("--size {short} holds no patch of {patch} pixels"))
            .hint(format!("--size {patch} or more; 0 takes the run's global crop")));
    }
    let (h, w) = (image.height, image.width);
    if h == 0 || w == 0 {
        return Err(Error::new(format!("an image of {w} x {h} pixels has nothing to attend to")));
    }
    // In 128 bits, so that no --size overflows; to the nearest, and the longer side is never the shorter one.
    let long = (short as u128 * h.max(w) as u128 + h.min(w) as u128 / 2) / h.min(w) as u128;
    let patches = (long / patch as u128) * (short / patch) as u128;
    if patches > PATCHES as u128 {
        return Err(Error::new(format!("--size {short} makes this image of {w} x {h} pixels {patches} patches"))
            .hint(format!("up to {PATCHES} are drawn: a smaller --size, or cut the image")));
    }
    let long = long as usize;
    let (height, width) = if h <= w { (short, long) } else { (long, short) };
    let [tall, wide] = [height, width].map(|n| n / patch * patch);
    let window = Region { top: (height - tall) / 2, left: (width - wide) / 2, height: tall, width: wide };
    let mut pixels = Vec::new();
    Resizer::default().run(&mut pixels, image, Region::whole(h, w), (height, width), window, Filter::Bicubic);
    Ok(Image {
        width: wide,
        height: tall,
        channels: image.channels,
        pixels: planes::interleaved(&pixels, image.channels),
    })
}

/// A picture in the making.
#[derive(Clone, Debug, PartialEq)]
struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    /// An image, every pixel a square of side `scale`.
    fn of(image: &Image, scale: usize) -> Canvas {
        let size = [image.height * scale, image.width * scale];
        let (rgb, _) = image.pixels.as_chunks::<3>();
        let pixels = enlarge(rgb, [image.height, image.width], scale, size, [0; 3]);
        Canvas { width: size[1], height: size[0], pixels }
    }

    fn map(&self, f: impl Fn(usize, [u8; 3]) -> [u8; 3]) -> Canvas {
        let pixels = self.pixels.iter().enumerate().map(|(i, &p)| f(i, p)).collect();
        Canvas { pixels, ..*self }
    }

    fn write(&self, path: &Path) -> Result<()> {
        write_png(path, [self.width, self.height], self.pixels.as_flattened())
    }
}

/// Values in 0 to 1, black to white.
fn grey(values: &[f32], like: &Canvas) -> Canvas {
    like.map(|i, _| [(255.0 * values[i]).round() as u8; 3])
}

/// Values in 0 to 1 as heat over the image: the image in grey below, the more opaque the hotter.
fn heat(values: &[f32], image: &Canvas) -> Canvas {
    image.map(|i, [r, g, b]| {
        let (hot, share) = (colour(values[i]), 0.2 + 0.55 * values[i]);
        let below = 0.299 * r as f32 + 0.587 * g as f32 + 0.114 * b as f32;
        hot.map(|hot| (share * hot + (1.0 - share) * below).round() as u8)
    })
}

/// Black over violet, red and orange to pale yellow (matplotlib's `inferno`, at eight points with straight lines between).
fn colour(value: f32) -> [f32; 3] {
    const POINTS: [[f32; 3]; 8] = [
        [0.0, 0.0, 4.0],
        [40.0, 11.0, 84.0],
        [101.0, 21.0, 110.0],
        [159.0, 42.0, 99.0],
        [212.0, 72.0, 66.0],
        [245.0, 125.0, 21.0],
        [250.0, 193.0, 39.0],
        [252.0, 255.0, 164.0],
    ];
    let at = value.clamp(0.0, 1.0) * (POINTS.len() - 1) as f32;
    let low = (at as usize).min(POINTS.len() - 2);
    std::array::from_fn(|c| POINTS[low][c] + (at - low as f32) * (POINTS[low + 1][c] - POINTS[low][c]))
}

/// Pictures of one size side by side, in rows, about as many down as across.
fn contact(pictures: &[Canvas]) -> Canvas {
    let across = (1..).find(|n| n * n >= pictures.len()).unwrap_or(1);
    let (w, h) = (pictures[0].width, pictures[0].height);
    let down = pictures.len().div_ceil(across);
    let (width, height) = (across * (w + GAP) + GAP, down * (h + GAP) + GAP);
    let mut pixels = vec![[255; 3]; width * height];
    for (i, picture) in pictures.iter().enumerate() {
        let (top, left) = (GAP + i / across * (h + GAP), GAP + i % across * (w + GAP));
        for (y, row) in picture.pixels.chunks(w).enumerate() {
            pixels[(top + y) * width + left..][..w].copy_from_slice(row);
        }
    }
    Canvas { width, height, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use crate::data;
    use dino_kernel::init;

    fn plain(width: usize, height: usize) -> Image {
        let pixels = (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect();
        Image { width, height, channels: 3, pixels }
    }

    #[test]
    fn both_sides_are_whole_patches_around_the_centre() {
        let size = |w, h, short| fit(&plain(w, h), short, 8).map(|i| (i.width, i.height));
        assert_eq!(size(100, 50, 20).unwrap(), (40, 16));
        assert_eq!(size(50, 100, 20).unwrap(), (16, 40));
        assert_eq!(size(31, 31, 32).unwrap(), (32, 32));
        assert_eq!(size(1, 3, 8).unwrap(), (8, 24));
        assert!(size(50, 50, 7).unwrap_err().to_string().contains("--size 8"));
        assert!(size(50, 50, usize::MAX).unwrap_err().to_string().contains("smaller --size"));
        assert!(size(1, 30_000, 480).unwrap_err().to_string().contains("cut the image"));
        // An image that fits is taken as it is.
        assert_eq!(fit(&plain(24, 16), 16, 8).unwrap(), plain(24, 16));
    }

    #[test]
    fn the_sheet_holds_every_picture() {
        let one = |x| Canvas { width: 2, height: 1, pixels: vec![[x; 3]; 2] };
        let sheet = contact(&[one(1), one(2), one(3)]);
        assert_eq!((sheet.width, sheet.height), (2 * (2 + GAP) + GAP, 2 * (1 + GAP) + GAP));
        assert_eq!((1..4).map(|x| sheet.pixels.iter().filter(|p| **p == [x; 3]).count()).sum::<usize>(), 6);
    }

    #[test]
    fn colours_run_from_dark_to_light() {
        let light = |v: f32| colour(v).iter().sum::<f32>();
        assert!((0..100).all(|i| light(i as f32 / 100.0) < light((i + 1) as f32 / 100.0)));
        assert_eq!(colour(f32::INFINITY), [252.0, 255.0, 164.0]);
    }

    #[test]
    fn every_picture_is_written_and_can_be_read() {
        let config = Config { depth: 2, embed_dim: 24, ..Config::tiny() }.resolve().unwrap();
        let table = config.table();
        let mut weights = vec![0.0; table.len()];
        init::weights(&mut weights, &table, 1, init::LINEAR_STD);
        weights.truncate(table.backbone_len());
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/folder");
        draw::<Cpu>(&NoOptions {}, &config, &weights, &plain(70, 40), 0, 0.6, &out).unwrap();
        for name in ["image", "head0", "head2", "head2-mask", "mean", "overlay"] {
            let picture = data::decode(&out.join(format!("{name}.png")), data::Decode::default()).unwrap();
            assert!(name == "overlay" || (picture.width, picture.height) == (56 * 5, 32 * 5), "{name}");
        }
        let text = std::fs::read_to_string(out.join("attention.json")).unwrap();
        let numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((numbers["rows"].as_u64(), numbers["cols"].as_u64()), (Some(4), Some(7)));
        assert_eq!(numbers["attention"][2].as_array().unwrap().len(), 28);
        let refused = draw::<Cpu>(&NoOptions {}, &config, &weights, &plain(70, 40), 0, 1.5, &out).unwrap_err();
        assert!(refused.to_string().contains("--keep"));
    }
}

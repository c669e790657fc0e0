//! Attention against the masks of a folder (the paper's figure 4 on Pascal VOC): as [`attention`](super::attention), for images of any
//! size.
//!
//! The shorter side of an image is resized to a given size, bicubic, and both are cut to full patches around the center; its mask goes
//! the same way, by nearest pixels. Everything but 0 is the object; 255 beside other numbers is not scored.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::any_size::{AnySize, check_patches, normalized};
use super::attention::{Jaccard, check_keep, mask, summary};
use super::measures::region;
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::enlarge::enlarge;
use crate::image::masks::Mask;
use crate::image::resize::{Filter, Region, Resizer};
use crate::image::{Image, decode, is_image_file};

/// An image and the mask of its object.
pub type Pair = (PathBuf, PathBuf);

/// The PNG files below `masks` and the images below `images` of the same path but for the ending. Images without a mask are left out.
///
/// # Errors
/// A folder cannot be listed, there is no mask, a mask has no image, or two images have one name.
pub fn pairs(images: &Path, masks: &Path) -> Result<Vec<Pair>> {
    let mut by_stem: HashMap<PathBuf, PathBuf> = HashMap::new();
    for path in files(images, &is_image_file)? {
        let stem = path.strip_prefix(images).unwrap_or(&path).with_extension("");
        if let Some(other) = by_stem.insert(stem, path.clone()) {
            return Err(Error::new(format!("{} and {} have one name", other.display(), path.display()))
                .hint("a mask belongs to the image of its name: leave one of the two"));
        }
    }
    let is_png = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
    let mut found = Vec::new();
    for path in files(masks, &is_png)? {
        let stem = path.strip_prefix(masks).unwrap_or(&path).with_extension("");
        let image = by_stem.get(&stem).ok_or_else(|| {
            Error::new(format!("there is no image for the mask {}", path.display()))
                .hint(format!("it would be {} with the ending of an image", images.join(&stem).display()))
        })?;
        found.push((image.clone(), path));
    }
    match found.is_empty() {
        true => Err(Error::new(format!("no mask in {}", masks.display()))
            .hint("masks are PNG files with the names of their images")),
        false => Ok(found),
    }
}

/// Files below a folder, sorted; links to folders are not followed.
fn files(root: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let (mut found, mut waiting) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = waiting.pop() {
        let entries = std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = entries.map_err(|e| {
            Error::new(format!("cannot list {}: {e}", folder.display())).hint("--images and --masks name folders")
        })?;
        for path in entries.iter().map(|e| e.path()) {
            let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
            match path.is_dir() {
                _ if hidden => (),
                true if !path.is_symlink() => waiting.push(path),
                false if wanted(&path) => found.push(path),
                _ => (),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Evaluates a backbone on pairs. Returns the means and how many pairs they are of: masks without an object are left out.
///
/// # Errors
/// `keep` is no fraction, an image or mask cannot be read or their sizes differ, no mask has an object, or the device fails.
pub fn evaluate<D: Device>(
    network: &mut AnySize<D>,
    config: &Config,
    pairs: &[Pair],
    size: usize,
    keep: f64,
    mut tick: impl FnMut(),
) -> Result<(Jaccard, usize)> {
    check_keep(keep)?;
    let mut scores = Vec::new();
    for (image, exact) in pairs {
        let exact_file = Mask::read(exact)?;
        let (exact_mask, scored) = exact_file.numbered(exact_file.white());
        let found = decode(image, config.decode())?;
        if (found.width, found.height) != (exact_mask.width, exact_mask.height) {
            return Err(Error::new(format!(
                "{} has {} x {} pixels, its image {} x {}",
                exact.display(),
                exact_mask.width,
                exact_mask.height,
                found.width,
                found.height
            ))
            .hint("a mask has the size of its image; --ignore-exif leaves images as they are stored in their files"));
        }
        tick();
        let (full, window) = fit(&image.display().to_string(), [found.height, found.width], size, config.patch_size)?;
        let object = cut(&exact_mask, full, window);
        let scored = Mask { ids: scored.iter().map(|&j| j as u8).collect(), ..exact_mask };
        let (object, scored) = (object, cut(&scored, full, window));
        if !object.iter().any(|o| *o) {
            continue;
        }
        let pixels = pixels(&found, full, window, config);
        let to = [window.height, window.width];
        let network = network.of(to)?;
        let (grid, rows) = (network.grid(), network.attention(&pixels)?);
        for row in rows.chunks(grid[0] * grid[1]) {
            let found = enlarge(&mask(row, keep), grid, config.patch_size, to, false);
            scores.push(region(&found, &object, &scored));
        }
    }
    match scores.len() / config.heads {
        0 => Err(Error::new("no mask has an object").hint("an object is what is not 0 in its mask")),
        n => Ok((summary(&scores, config.heads), n)),
    }
}

/// The size of the resized image and the part of it that is full patches.
fn fit(what: &str, [h, w]: [usize; 2], short: usize, patch: usize) -> Result<((usize, usize), Region)> {
    let (least, most) = (h.min(w).max(1) as u128, h.max(w) as u128);
    let long = usize::try_from((short as u128 * most + least / 2) / least).unwrap_or(usize::MAX);
    let (height, width) = if h <= w { (short, long) } else { (long, short) };
    check_patches(what, [height, width], patch)?;
    let [tall, wide] = [height, width].map(|n| n / patch * patch);
    let window = Region { top: (height - tall) / 2, left: (width - wide) / 2, height: tall, width: wide };
    Ok(((height, width), window))
}

/// What is not 0, in the window of the resized mask.
fn cut(mask: &Mask, (height, width): (usize, usize), window: Region) -> Vec<bool> {
    let full = mask.resized(width, height);
    let rows = full.ids.chunks(width).skip(window.top).take(window.height);
    rows.flat_map(|row| row[window.left..window.left + window.width].iter().map(|id| *id != 0)).collect()
}

fn pixels(image: &Image, full: (usize, usize), window: Region, config: &Config) -> Vec<f32> {
    let mut bytes = Vec::new();
    let all = Region::full(image.height, image.width);
    Resizer::default().run(&mut bytes, image, all, full, window, Filter::Bicubic);
    normalized(&bytes, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_goes_the_way_of_its_image() {
        // 20 x 10 to 16 x 8, of which patches of 6 leave 12 x 6 around the center.
        let (full, window) = fit("a", [10, 20], 8, 6).unwrap();
        assert_eq!((full, window), ((8, 16), Region { top: 1, left: 2, height: 6, width: 12 }));
        let ids = (0..200).map(|i| (i % 20 >= 10) as u8 * 255).collect();
        let object = cut(&Mask { width: 20, height: 10, ids }, full, window);
        assert!(object.chunks(12).all(|row| row.iter().enumerate().all(|(x, &o)| o == (x >= 6))));
        assert!(fit("a.jpg", [10, 20], 5, 6).unwrap_err().to_string().contains("a.jpg"));
        assert!(fit("a.jpg", [1, 20_000], 480, 8).is_err() && fit("a", [3, 4], usize::MAX, 8).is_err());
    }
}

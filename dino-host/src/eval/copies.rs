//! Copy detection (the paper's table 4, official `eval_copy_detection.py`): which original an image was made from.
//!
//! An image, squashed to a square, is its class token and the generalized mean of its patch tokens side by side (2C numbers), whitened
//! where there are images to learn that from. A residual network has the average over its last map and the map's rows in their place (the
//! generalized mean of a convolutional map is Radenović et al. 2018, section 3.2). The originals and distractors are ranked by cosine; what is below the first 20 does not
//! count. The blocks are those of Copydays.

use super::any_size::{check_size, normalized};
use super::attacks::Attack;
use super::ranking::average_precision;
use super::retrieval::{Files, rankings};
use crate::config::Config;
use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::resize::{Filter, resize};
use crate::image::{Decode, Image, is_image_file, planes};
use crate::inference::dense::Dense;
use crate::inference::features::Features;
use crate::linalg::eigen;
use dino_kernel::crops::{Crops, Group};
use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// The published clamp below which a token's value counts as this.
const LEAST: f32 = 1e-6;
/// Eigenvalues below this part of the largest count as it, as published.
const FLOOR: f64 = 1e-5;
/// Images that go through the network at once hold at most so many tokens.
const TOKENS: usize = 4096;

/// The generalized mean of each column of (patches, C): (mean of max(x, 1e-6)^p)^(1/p).
pub fn generalized_mean(patches: &[f32], c: usize, p: f64) -> Vec<f32> {
    let mut sums = vec![0.0f64; c];
    for row in patches.chunks(c) {
        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += libm::pow(x.max(LEAST) as f64, p));
    }
    let rows = (patches.len() / c) as f64;
    sums.iter().map(|sum| libm::pow(sum / rows, 1.0 / p) as f32).collect()
}

/// Descriptors (images, 2C) of a set: class token, then the generalized mean with exponent `p`; images are squashed to `size` x `size`.
///
/// # Errors
/// `size` holds no patch, the device fails, or, with `--strict`, an image is unreadable.
pub fn describe<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    set: &dyn Dataset,
    unreadable: &Unreadable,
    size: usize,
    p: f64,
    mut tick: impl FnMut(),
) -> Result<Features> {
    let backbone = config.table().backbone;
    check_size("--size", [size, size], &backbone)?;
    let one = Group { count: 1, height: size, width: size };
    let count = (TOKENS / backbone.cost(&Crops::one(one))).clamp(1, set.len().max(1));
    let mut network = Dense::<D>::new(options, config, weights, Group { count, ..one })?;
    let (c, cells) = (config.embed_dim, network.grid().into_iter().product::<usize>());
    let wide = config.channels * size * size;
    let mut pixels = vec![0.0; count * wide];
    let (mut rows, mut images) = (Vec::new(), Vec::new());
    for first in (0..set.len()).step_by(count) {
        let here = count.min(set.len() - first);
        let read: Result<Vec<bool>> = pixels[..here * wide]
            .par_chunks_mut(wide)
            .enumerate()
            .map(|(i, out)| {
                let Some(image) = unreadable.image(set, first + i)? else { return Ok(false) };
                let square = resize(&image, size, size, Filter::Bicubic);
                out.copy_from_slice(&normalized(&planes::planes(&square), config));
                Ok(true)
            })
            .collect();
        let found = network.rows(&pixels)?;
        let each = found.images.chunks(c).zip(found.cells.chunks(cells * c));
        for (i, ((image, cells), read)) in each.zip(read?).enumerate() {
            if read {
                rows.extend_from_slice(image);
                rows.extend(generalized_mean(cells, c, p));
                images.push(first + i);
            }
            tick();
        }
    }
    let rows = Array2::from_shape_vec((images.len(), 2 * c), rows).expect("a row an image");
    Ok(Features { rows, images })
}

/// Whitening learned from descriptors: x becomes L^(-1/2) Vᵀ (x - mean) with V L Vᵀ their covariance.
pub struct Whitening {
    mean: Array1<f64>,
    /// L^(-1/2) Vᵀ
    rotation: Array2<f64>,
}

impl Whitening {
    /// `uncentered`: the published covariance, of descriptors from which no mean was subtracted, though it is from those that are
    /// whitened.
    ///
    /// # Errors
    /// There are fewer than two descriptors, or all are the same.
    pub fn learn(from: &Array2<f32>, uncentered: bool) -> Result<Whitening> {
        let n = from.nrows();
        let few = || {
            Error::new(format!("whitening cannot be learned from {n} images that are the same or too few"))
                .hint("--whiten names a folder of at least two different images; thousands are usual")
        };
        let x = from.mapv(|v| v as f64);
        let mean = x.mean_axis(Axis(0)).filter(|_| n > 1).ok_or_else(few)?;
        let x = if uncentered { x } else { x - &mean };
        let (values, vectors) = eigen::symmetric(x.t().dot(&x) / n as f64);
        let most = values[0];
        if most.is_nan() || most <= 0.0 {
            return Err(few());
        }
        let mut rotation = vectors.reversed_axes();
        for (mut row, &value) in rotation.axis_iter_mut(Axis(0)).zip(&values) {
            row /= value.max(most * FLOOR).sqrt();
        }
        Ok(Whitening { mean, rotation })
    }

    /// Rows whitened.
    pub fn apply(&self, rows: &Array2<f32>) -> Array2<f32> {
        (rows.mapv(|v| v as f64) - &self.mean).dot(&self.rotation.t()).mapv(|v| v as f32)
    }
}

/// Copies of one kind.
pub struct Block {
    /// Its kind, as the folder is called.
    pub name: String,
    /// The copies themselves.
    pub set: Box<dyn Dataset>,
    /// For every image of the set the originals it may have been made from, as rows of the originals.
    pub originals: Vec<Vec<u32>>,
}

/// What a folder holds: the originals, and the blocks of copies, by name.
///
/// # Errors
/// A folder cannot be listed, there are no originals or no copies, or a copy's name matches no original.
pub fn layout(root: &Path, how: Decode) -> Result<(Files, Vec<Block>)> {
    const LAYOUT: &str = "originals in original/, copies in folders beside it such as jpegqual/20/ or strong/, with the original's \
                          name, or with its first four characters; --attack makes copies of any images";
    let unreadable = |p: &Path, e: std::io::Error| Error::new(format!("cannot list {}: {e}", p.display())).hint(LAYOUT);
    let originals = only_images(&root.join("original")).map_err(|e| unreadable(&root.join("original"), e))?;
    if originals.is_empty() {
        return Err(Error::new(format!("no image in {}", root.join("original").display())).hint(LAYOUT));
    }
    let mut blocks = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        let entries = std::fs::read_dir(&folder).map_err(|e| unreadable(&folder, e))?;
        let below = entries.filter_map(|e| Some(e.ok()?.path()));
        // Links are not followed: one could lead back here.
        waiting.extend(below.filter(|p| p.is_dir() && !p.is_symlink() && !stem(p).starts_with('.')));
        if folder == root {
            continue;
        }
        let paths = only_images(&folder).map_err(|e| unreadable(&folder, e))?;
        if paths.is_empty() {
            continue;
        }
        let parts = folder.strip_prefix(root).unwrap_or(&folder).components();
        let name = parts.map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
        let of = paths.iter().map(|p| matches(p, &originals)).collect::<Result<_>>()?;
        blocks.push(Block { name, set: Box::new(Files { paths, boxes: Vec::new(), how }), originals: of });
    }
    // jpegqual/8 before jpegqual/10; the originals first, as published: they find themselves.
    let key = |name: &str| {
        let (kind, number) = name.rsplit_once('/').unwrap_or((name, ""));
        (name != "original", kind.to_string(), number.parse::<u64>().unwrap_or(u64::MAX), number.to_string())
    };
    blocks.sort_by_key(|b| key(&b.name));
    if blocks.len() < 2 {
        return Err(Error::new(format!("there are no copies beside {}", root.join("original").display())).hint(LAYOUT));
    }
    Ok((Files { paths: originals, boxes: Vec::new(), how }, blocks))
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Images of a folder, by name.
fn only_images(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<std::io::Result<Vec<_>>>()?;
    let mut all: Vec<PathBuf> = entries.into_iter().filter(|p| p.is_file() && is_image_file(p)).collect();
    all.retain(|p| !stem(p).starts_with('.'));
    all.sort();
    Ok(all)
}

/// The originals of a copy: that of its name, or those whose first four characters it shares (`200001.jpg` is made from `200000.jpg`).
fn matches(copy: &Path, originals: &[PathBuf]) -> Result<Vec<u32>> {
    let name = stem(copy);
    let rows = |same: &dyn Fn(&str) -> bool| -> Vec<u32> {
        originals.iter().enumerate().filter(|(_, p)| same(&stem(p))).map(|(i, _)| i as u32).collect()
    };
    let exact = rows(&|s| s == name);
    let start = |s: &str| s.chars().take(4).collect::<String>();
    let found = if exact.is_empty() { rows(&|s| start(s) == start(&name)) } else { exact };
    if found.is_empty() {
        return Err(Error::new(format!("{} is a copy of no original", copy.display()))
            .hint("a copy has the name of its original, or its first four characters"));
    }
    Ok(found)
}

/// Copies of some images of a set, made when they are read.
pub struct Attacked<'a> {
    /// The originals.
    pub set: &'a dyn Dataset,
    /// How copies are made.
    pub attack: Attack,
    /// Which images.
    pub of: Vec<usize>,
}

impl Dataset for Attacked<'_> {
    fn len(&self) -> usize {
        self.of.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        self.attack.make(&self.set.image(self.of[i])?, self.of[i])
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn name(&self, i: usize) -> String {
        self.set.name(self.of[i])
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

/// The mean average precision of copies among the rows of a database, of which only the first `top` found count. `originals`: the
/// rows that a copy was made from; those with none (which could not be read) do not count.
///
/// # Errors
/// A feature is not finite, or no copy has an original.
pub fn mean_precision(database: &Array2<f32>, copies: &Array2<f32>, originals: &[Vec<u32>], top: usize) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    rankings(database.clone(), copies.clone(), |q, ranking| {
        let own = &originals[q];
        if !own.is_empty() {
            let first = &ranking[..top.min(ranking.len())];
            let ranks: Vec<usize> = (0..first.len()).filter(|&r| own.contains(&first[r])).collect();
            sum += average_precision(&ranks, own.len());
            count += 1;
        }
    })?;
    match count {
        0 => Err(Error::new("no copy's original could be read").hint("the warnings name the files")),
        n => Ok(sum / n as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generalised_mean_by_hand() {
        let got = generalized_mean(&[1.0, -5.0, 2.0, -1.0], 2, 4.0);
        assert!((got[0] - (17.0f32 / 2.0).powf(0.25)).abs() < 1e-6 && (got[1] - 1e-6).abs() < 1e-12, "{got:?}");
    }

    #[test]
    fn whitened_rows_have_the_unit_as_covariance() {
        let x = Array2::from_shape_fn((200, 3), |(i, j)| {
            let t = (i * (j + 3)) as f32;
            (t * 0.7).sin() * (j + 1) as f32 + 5.0 + if j == 2 { (i as f32 * 2.1).sin() } else { 0.0 }
        });
        let w = Whitening::learn(&x, false).unwrap().apply(&x).mapv(|v| v as f64);
        let covariance = w.t().dot(&w) / 200.0;
        assert!((covariance - Array2::<f64>::eye(3)).iter().all(|d| d.abs() < 1e-5));
        assert!(w.mean_axis(Axis(0)).unwrap().iter().all(|m| m.abs() < 1e-5));
        assert!(Whitening::learn(&Array2::zeros((1, 3)), false).is_err());
        assert!(Whitening::learn(&Array2::ones((5, 3)), false).is_err());
        assert!(Whitening::learn(&Array2::from_elem((5, 3), f32::NAN), true).is_err());
    }

    #[test]
    fn copies_are_matched_by_name_or_by_four_characters() {
        let originals: Vec<PathBuf> = ["200000.jpg", "200100.jpg", "200101.jpg"].map(PathBuf::from).into();
        assert_eq!(matches(Path::new("strong/200001.png"), &originals).unwrap(), [0]);
        assert_eq!(matches(Path::new("a/200101.jpg"), &originals).unwrap(), [2]);
        assert_eq!(matches(Path::new("a/200109.jpg"), &originals).unwrap(), [1, 2]);
        assert!(matches(Path::new("a/3.jpg"), &originals).unwrap_err().to_string().contains("a/3.jpg"));
    }

    #[test]
    fn only_the_first_found_count() {
        let database = ndarray::arr2(&[[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]]);
        let copies = ndarray::arr2(&[[1.0, 0.1], [1.0, 0.1]]);
        let of = |rows: [u32; 2], top| mean_precision(&database, &copies, &rows.map(|r| vec![r]), top).unwrap();
        // The first at its rank 0: 1; the last at rank 2: 1/6.
        assert_eq!(of([0, 0], 20), 1.0);
        assert!((of([0, 2], 20) - (1.0 + 1.0 / 6.0) / 2.0).abs() < 1e-12);
        assert_eq!(of([0, 2], 2), 0.5);
        assert!(mean_precision(&database, &copies, &[vec![], vec![]], 20).is_err());
    }
}

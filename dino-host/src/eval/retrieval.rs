//! Image retrieval by class tokens, of a residual network by averages over the last map (the paper's table 3, official `eval_image_retrieval.py`): the images of a bank by falling cosine.
//!
//! Images are made no longer than a given side (Pillow's `thumbnail`, Lanczos; its shortcut of decoding JPEG files at a fraction of
//! their size is not taken) and go through the network in full, or in three scales whose tokens are added and normalized.

use super::any_size::{AnySize, bilinear, check_size, normalized};
use super::knn::{neighbors, normalize};
use super::ranking::{Protocol, Scores, Truth, ranks};
use crate::config::Config;
use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::image::resize::{Filter, Region, resize, resized_crop};
use crate::image::{Image, planes};
use crate::inference::features::Features;
use ndarray::{Array2, s};
use serde::Deserialize;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The published scales.
pub const SCALES: [f64; 3] = [1.0, std::f64::consts::FRAC_1_SQRT_2, 0.5];
/// Queries that are ranked at once: a ranking is as long as the bank.
const BLOCK: usize = 64;

/// The image with its longer side at most `most`, as Pillow's `thumbnail` has it: never enlarged, the shorter side rounded to the
/// integer that changes the shape least.
pub fn thumbnail(image: &Image, most: usize) -> Image {
    let (w, h) = (image.width, image.height);
    if w.max(h) <= most {
        return image.clone();
    }
    let aspect = w as f64 / h as f64;
    let nearest = |exact: f64, off: &dyn Fn(f64) -> f64| {
        let (low, high) = (exact.floor().max(1.0), exact.ceil().max(1.0));
        if off(low) <= off(high) { low as usize } else { high as usize }
    };
    let most_f = most as f64;
    let (width, height) = if w >= h {
        (most, nearest(most_f / aspect, &|n| (aspect - most_f / n).abs()))
    } else {
        (nearest(most_f * aspect, &|n| (aspect - n / most_f).abs()), most)
    };
    resize(image, height, width, Filter::Lanczos)
}

/// The class token or average (C) of an image of any size; `multi`: the sum over [`SCALES`], of unit length, else as the network gives it.
/// `what` names the image.
///
/// # Errors
/// The image holds no patch at one of the scales, or the device fails.
pub fn token<D: Device>(
    network: &mut AnySize<D>,
    config: &Config,
    image: &Image,
    multi: bool,
    what: &str,
) -> Result<Vec<f32>> {
    let from = [image.height, image.width];
    let backbone = config.table().backbone;
    check_size(what, from, &backbone)?;
    let pixels = normalized(&planes::planes(image), config);
    let mut sum = vec![0.0f32; config.embed_dim];
    for &scale in if multi { &SCALES[..] } else { &SCALES[..1] } {
        let to = from.map(|n| (n as f64 * scale) as usize);
        check_size(&format!("{what}, scale {scale:.2}"), to, &backbone)?;
        let pixels = match scale {
            1.0 => pixels.clone(),
            _ => bilinear(&pixels, from, to, [1.0 / scale; 2]),
        };
        let row = network.of(to)?.rows(&pixels)?.images;
        sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += x);
    }
    if multi {
        let length = sum.iter().map(|&x| x as f64 * x as f64).sum::<f64>().sqrt().max(1e-12) as f32;
        sum.iter_mut().for_each(|x| *x /= length);
    }
    Ok(sum)
}

/// Class tokens of a set whose images are made at most `most` pixels long. Processes share the images, and all of them have all tokens.
///
/// # Errors
/// An image holds no patch, the device fails, or, with `--strict`, an image is unreadable.
pub fn tokens<D: Device>(
    network: &mut AnySize<D>,
    config: &Config,
    set: &dyn Dataset,
    unreadable: &Unreadable,
    most: usize,
    multi: bool,
    group: &Group,
    mut tick: impl FnMut(),
) -> Result<Features> {
    let mut of = |images: Range<usize>| -> Result<(Vec<f32>, Vec<usize>)> {
        let (mut rows, mut read) = (Vec::new(), Vec::new());
        for i in images {
            if let Some(image) = unreadable.image(set, i)? {
                rows.extend(token(network, config, &thumbnail(&image, most), multi, &set.name(i))?);
                read.push(i);
            }
            tick();
        }
        Ok((rows, read))
    };
    let (rows, images) = group.all(of(group.part_of(set.len())))?;
    let (rows, images) = (group.concat(rows)?, group.concat(images)?);
    let rows = Array2::from_shape_vec((images.len(), config.embed_dim), rows).expect("a row an image");
    Ok(Features { rows, images })
}

/// Every query's ranking of the bank, most alike first, `take`n in order. Rows need not be normalized.
///
/// # Errors
/// There are no queries or no bank, or features are not finite.
pub fn rankings(bank: Array2<f32>, queries: Array2<f32>, mut take: impl FnMut(usize, &[u32])) -> Result<()> {
    if bank.nrows() == 0 || queries.nrows() == 0 {
        return Err(Error::new(format!("{} queries and a bank of {} images", queries.nrows(), bank.nrows()))
            .hint("retrieval needs images on both sides; --leave-one-out takes one set for both"));
    }
    if bank.iter().chain(&queries).any(|x| !x.is_finite()) {
        return Err(Error::new("the features of an image are not finite").hint("are the weights valid?"));
    }
    let (bank, queries) = (normalize(bank), normalize(queries));
    for first in (0..queries.nrows()).step_by(BLOCK) {
        let block = queries.slice(s![first..(first + BLOCK).min(queries.nrows()), ..]);
        let found = neighbors(bank.view(), block, bank.nrows());
        found.indices.chunks(bank.nrows()).enumerate().for_each(|(i, ranking)| take(first + i, ranking));
    }
    Ok(())
}

/// Every image of a class belongs to every query of it. `leave_one_out`: the queries are the bank, and none finds itself.
///
/// # Errors
/// As [`rankings`], or no query shares its class with an image of the bank.
pub fn by_class(
    bank: Array2<f32>,
    bank_labels: &[u32],
    queries: Array2<f32>,
    labels: &[u32],
    leave_one_out: bool,
    ks: &[usize],
) -> Result<Scores> {
    let mut found = Vec::new();
    rankings(bank, queries, |q, ranking| {
        let own = |i: u32| leave_one_out && i as usize == q;
        let positive = |i: u32| bank_labels[i as usize] == labels[q] && !own(i);
        let all = (0..bank_labels.len() as u32).filter(|&i| positive(i)).count();
        found.push((ranks(ranking, positive, own), all));
    })?;
    match Scores::of(found, ks) {
        scores if scores.queries > 0 => Ok(scores),
        _ => Err(Error::new("no query shares its class with an image of the bank")
            .hint("several images a class are needed, in both parts")),
    }
}

/// The three protocols of the revisited benchmark, as far as queries have something to find in them.
///
/// # Errors
/// As [`rankings`].
pub fn by_truth(bank: Array2<f32>, queries: Array2<f32>, truth: &[Truth], ks: &[usize]) -> Result<[Scores; 3]> {
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    rankings(bank, queries, |q, ranking| {
        Protocol::ALL.iter().zip(&mut found).for_each(|(p, found)| found.push(p.ranks(ranking, &truth[q])));
    })?;
    Ok(found.map(|found| Scores::of(found, ks)))
}

/// The benchmark's ground truth: what `gnd_roxford5k.pkl` holds, as JSON.
///
/// `imlist`: names of the bank's images; `qimlist`: of the queries'; `gnd`: for every query `easy`, `hard`, `junk` (rows of `imlist`) and
/// `bbx` (left, top, right, bottom in pixels), the part of the image that is asked for, where there is one.
#[derive(Debug, Deserialize)]
pub struct GroundTruth {
    /// Names of the bank's images.
    pub imlist: Vec<String>,
    /// Names of the queries' images.
    pub qimlist: Vec<String>,
    /// One entry a query.
    pub gnd: Vec<Entry>,
}

/// One query's.
#[derive(Debug, Deserialize)]
pub struct Entry {
    /// The rows that belong to it.
    #[serde(flatten)]
    pub truth: Truth,
    /// Left, top, right, bottom in pixels: the region that is asked for.
    pub bbx: Option<[f64; 4]>,
}

impl GroundTruth {
    /// Reads and checks it.
    ///
    /// # Errors
    /// The file cannot be read, is no such JSON, names a row that is not there, or its lists differ in length.
    pub fn read(path: &Path) -> Result<GroundTruth> {
        const SCHEMA: &str = r#"{"imlist": [names], "qimlist": [names], "gnd": [{"easy": [rows], "hard": [rows], "junk": [rows], "bbx": [left, top, right, bottom]}, …]}; pickles are not read"#;
        let bad =
            |e: &dyn std::fmt::Display| Error::new(format!("{} is no ground truth: {e}", path.display())).hint(SCHEMA);
        let bytes =
            std::fs::read(path).map_err(|e| Error::new(format!("cannot read {}: {e}", path.display())).hint(SCHEMA))?;
        let truth: GroundTruth = serde_json::from_slice(&bytes).map_err(|e| bad(&e))?;
        if truth.gnd.len() != truth.qimlist.len() {
            return Err(bad(&format!("{} queries and {} entries in gnd", truth.qimlist.len(), truth.gnd.len())));
        }
        let rows = truth.imlist.len() as u32;
        for (query, entry) in truth.qimlist.iter().zip(&truth.gnd) {
            let Truth { easy, hard, junk } = &entry.truth;
            if let Some(row) = easy.iter().chain(hard).chain(junk).filter(|r| **r >= rows).min() {
                return Err(bad(&format!("{query} names row {row} of {rows}")));
            }
        }
        Ok(truth)
    }
}

/// The file of an image of the benchmark: with or without its ending, in the folder or in its `jpg`.
///
/// # Errors
/// There is no such file.
pub fn file(root: &Path, name: &str) -> Result<PathBuf> {
    let ends = ["", ".jpg", ".jpeg", ".png"];
    let folders = [root.join("jpg"), root.to_owned()];
    let mut all = folders.iter().flat_map(|p| ends.iter().map(move |end| p.join(format!("{name}{end}"))));
    all.find(|p| p.is_file()).ok_or_else(|| {
        Error::new(format!("there is no image {name} in {}", root.display()))
            .hint("it is looked for as NAME, NAME.jpg, NAME.jpeg and NAME.png, there and in jpg/")
    })
}

/// The part of an image that is asked for, rounded to full pixels and cut to the image.
///
/// # Errors
/// The box is empty.
pub fn cut(image: &Image, bbx: [f64; 4], what: &str) -> Result<Image> {
    let (w, h) = (image.width, image.height);
    let inside = |x: f64, n: usize| x.round_ties_even().clamp(0.0, n as f64) as usize;
    let [left, top, right, bottom] = [inside(bbx[0], w), inside(bbx[1], h), inside(bbx[2], w), inside(bbx[3], h)];
    if left >= right || top >= bottom {
        return Err(Error::new(format!("the box {bbx:?} of {what} ({w} x {h} pixels) is empty"))
            .hint("bbx is left, top, right, bottom in pixels"));
    }
    let region = Region { top, left, height: bottom - top, width: right - left };
    Ok(resized_crop(image, region, region.height, region.width, Filter::Box, Default::default()))
}

/// Files by their paths, for evaluations that name them.
pub struct Files {
    /// The files, in order.
    pub paths: Vec<PathBuf>,
    /// The part of each that is asked for; where there is none (or the list is shorter) the full image.
    pub boxes: Vec<Option<[f64; 4]>>,
    /// How they are decoded.
    pub how: crate::image::Decode,
}

impl Dataset for Files {
    fn len(&self) -> usize {
        self.paths.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        let image = crate::image::decode(&self.paths[i], self.how)?;
        match self.boxes.get(i).copied().flatten() {
            Some(bbx) => cut(&image, bbx, &self.name(i)),
            None => Ok(image),
        }
    }
    fn label(&self, _: usize) -> Option<u32> {
        None
    }
    fn classes(&self) -> &[String] {
        &[]
    }
    fn name(&self, i: usize) -> String {
        self.paths[i].display().to_string()
    }
    fn fingerprint(&self) -> String {
        String::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(width: usize, height: usize) -> Image {
        Image { width, height, channels: 3, pixels: (0..3 * width * height).map(|i| (i * 7 % 251) as u8).collect() }
    }

    #[test]
    fn thumbnails_have_pillows_sizes() {
        let size = |w, h, most| {
            let t = thumbnail(&plain(w, h), most);
            (t.width, t.height)
        };
        // Image.new("RGB", (w, h)).thumbnail((most, most)) of Pillow 13.
        assert_eq!(size(1024, 768, 224), (224, 168));
        assert_eq!(size(500, 333, 224), (224, 149));
        assert_eq!(size(333, 500, 224), (149, 224));
        assert_eq!(size(100, 50, 224), (100, 50));
        assert_eq!(size(300, 1, 20), (20, 1));
    }

    #[test]
    fn classes_by_hand() {
        let bank = ndarray::arr2(&[[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]);
        let labels = [0, 1, 1, 0];
        // The query of class 0 finds rows 0, 1, 3, 2: ranks 0 and 2 of its two.
        let got = by_class(bank.clone(), &labels, ndarray::arr2(&[[1.0, 0.01]]), &[0], false, &[1, 5]).unwrap();
        let want = ((1.0 + 1.0) + (1.0 / 2.0 + 2.0 / 3.0)) / 4.0;
        assert!((got.map - want).abs() < 1e-12 && got.precision == [1.0, 2.0 / 3.0], "{got:?}");
        // Without themselves: rank 1 of three for the queries 0 and 2, rank 2 for 1 and 3.
        let own = by_class(bank.clone(), &labels, bank.clone(), &labels, true, &[1]).unwrap();
        assert!((own.map - (0.25 + 1.0 / 6.0) / 2.0).abs() < 1e-12 && own.precision == [0.0], "{own:?}");
        assert!(by_class(bank.clone(), &[0, 1, 2, 3], bank.clone(), &[0, 1, 2, 3], true, &[1]).is_err());
        let none = Array2::zeros((0, 2));
        assert!(by_class(none, &[], bank, &labels, false, &[1]).unwrap_err().to_string().contains("4 queries"));
    }

    #[test]
    fn boxes_are_cut_and_empty_ones_named() {
        let image = plain(10, 8);
        let part = cut(&image, [2.0, 3.0, 6.4, 99.0], "a").unwrap();
        assert_eq!((part.width, part.height, &part.pixels[..3]), (4, 5, &image.pixels[3 * 32..][..3]));
        for bad in [[5.0, 0.0, 5.0, 8.0], [f64::NAN; 4], [11.0, 0.0, 20.0, 8.0]] {
            assert!(cut(&image, bad, "b.jpg").unwrap_err().to_string().contains("b.jpg"));
        }
    }
}

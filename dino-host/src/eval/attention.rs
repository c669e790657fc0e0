//! What the class token of the last block attends to, as rows over the patches and as masks, and how well those masks cover known
//! objects (the paper's figure 4).
//!
//! A head's mask keeps the fewest patches that together hold a given part of the attention that falls on patches; a patch
//! becomes a square of pixels. Jaccard index of two masks: |A and B| / |A or B|.

use crate::config::Config;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::enlarge::enlarge;
use crate::image::planes::{self, normalize};
use crate::inference::dense::Dense;
use crate::inference::features;
use dino_kernel::crops::Group;
use rayon::prelude::*;

/// Jaccard index of a set, mean over its images.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Jaccard {
    /// Of each head's mask.
    pub heads: Vec<f64>,
    /// Of every image's best head: as in the paper, which head covers the object may differ from image to image, and the exact
    /// mask chooses it. An upper bound of what a fixed head does.
    pub best: f64,
    /// The one head that is best over the full set, and its index: what can be had without knowing the masks one by one.
    pub best_head: usize,
    /// That head's Jaccard index, mean over the images.
    pub mean_best_head: f64,
}

/// Checks `--keep`, a fraction of the attention.
///
/// # Errors
/// It is not above 0 and up to 1.
pub fn check_keep(keep: f64) -> Result<()> {
    if keep > 0.0 && keep <= 1.0 {
        return Ok(());
    }
    Err(Error::new(format!("--keep {keep} makes no sense"))
        .hint("a part of the attention, above 0 and up to 1; published: 0.6"))
}

/// The fewest patches that hold the part `keep` of the row's sum: patches by falling attention (among equals the earlier first) until
/// their sum reaches it, the last one included. The published rule, read from the other end: it drops patches by rising attention
/// while their sum stays within 1 - keep.
pub fn mask(row: &[f32], keep: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let enough = keep * order.iter().map(|&i| row[i] as f64).sum::<f64>();
    let (mut kept, mut sum) = (vec![false; row.len()], 0.0);
    for i in order {
        if sum >= enough {
            break;
        }
        kept[i] = true;
        sum += row[i] as f64;
    }
    kept
}

/// |A and B| / |A or B|; 1 for two empty masks.
pub fn jaccard(a: &[bool], b: &[bool]) -> f64 {
    let count = |f: fn(bool, bool) -> bool| a.iter().zip(b).filter(|&(&a, &b)| f(a, b)).count();
    let (both, any) = (count(|a, b| a && b), count(|a, b| a || b));
    if any == 0 { 1.0 } else { both as f64 / any as f64 }
}

/// Evaluates the attention of a backbone on a set that knows its objects' masks and whose images have the run's global size.
///
/// # Errors
/// `keep` is no fraction, the set has no images or an image has no mask, or the device fails.
pub fn evaluate<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    set: &dyn Dataset,
    keep: f64,
) -> Result<Jaccard> {
    check_keep(keep)?;
    if set.is_empty() {
        return Err(Error::new("there are no images to evaluate the attention on"));
    }
    let side = config.global_size;
    exact_mask(set, 0)?;
    let count = features::batch(config).min(set.len());
    let mut network = Dense::<D>::new(options, config, weights, Group { count, height: side, width: side })?;
    let (grid, heads, patch) = (network.grid(), config.heads, config.patch_size);
    let (wide, cells) = (config.channels * side * side, grid[0] * grid[1]);
    let mut pixels = vec![0.0; count * wide];
    let mut scores = Vec::new(); // (images, heads)
    for first in (0..set.len()).step_by(count) {
        let here = count.min(set.len() - first);
        let fill = |(i, out): (usize, &mut [f32])| view(out, set, first + i, config);
        pixels[..here * wide].par_chunks_mut(wide).enumerate().try_for_each(fill)?;
        let rows = network.attention(&pixels)?;
        for (i, rows) in rows.chunks(heads * cells).take(here).enumerate() {
            let exact = exact_mask(set, first + i)?;
            for row in rows.chunks(cells) {
                let found = enlarge(&mask(row, keep), grid, patch, [side, side], false);
                scores.push(jaccard(&found, &exact));
            }
        }
    }
    Ok(summary(&scores, heads))
}

fn view(out: &mut [f32], set: &dyn Dataset, i: usize, config: &Config) -> Result<()> {
    let (image, side) = (set.image(i)?, config.global_size);
    let Image { width, height, .. } = image;
    if (width, height) != (side, side) {
        let name = set.name(i);
        return Err(Error::new(format!(
            "{name} has {width} x {height} pixels, the run's global crops {side} x {side}"
        ))
        .hint("exact masks are compared at the size they were made for"));
    }
    let augment = config.augment();
    normalize(out, &planes::planes(&image), &augment.mean, &augment.std);
    Ok(())
}

fn exact_mask(set: &dyn Dataset, i: usize) -> Result<Vec<bool>> {
    set.mask(i).ok_or_else(|| {
        Error::new(format!("{} has no exact mask of its object (data set {})", set.name(i), set.fingerprint()))
            .hint("--data builtin draws images whose masks are known")
    })
}

/// Means of `scores` (images, heads).
pub(super) fn summary(scores: &[f64], heads: usize) -> Jaccard {
    let images = (scores.len() / heads) as f64;
    let mean = |h: usize| scores.iter().skip(h).step_by(heads).sum::<f64>() / images;
    let of_heads: Vec<f64> = (0..heads).map(mean).collect();
    let best = scores.chunks(heads).map(|s| s.iter().copied().fold(0.0, f64::max)).sum::<f64>() / images;
    // Among equals the first.
    let best_head = (0..heads).rev().max_by(|&a, &b| of_heads[a].total_cmp(&of_heads[b])).unwrap_or(0);
    Jaccard { mean_best_head: of_heads[best_head], best_head, heads: of_heads, best }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use crate::data;
    use crate::image::Decode;
    use dino_kernel::init;

    #[test]
    fn the_mask_is_the_smallest_that_holds_enough() {
        let row = [0.1, 0.4, 0.05, 0.25, 0.2];
        let of = |keep| mask(&row, keep).iter().map(|&k| k as usize).collect::<Vec<_>>();
        assert_eq!(of(0.3), [0, 1, 0, 0, 0]);
        assert_eq!(of(0.6), [0, 1, 0, 1, 0]);
        assert_eq!(of(0.7), [0, 1, 0, 1, 1]);
        assert_eq!(of(1.0), [1, 1, 1, 1, 1]);
        assert_eq!(mask(&[0.0, 0.5, 0.0], 1.0), [false, true, false]);
        // Only relations count: the row need not sum to one. Equal patches go in their order.
        assert_eq!(mask(&[4.0, 4.0, 4.0, 4.0], 0.5), [true, true, false, false]);
    }

    /// The official code: ascending, cumulative share above 1 - keep.
    #[test]
    fn the_mask_is_the_published_one() {
        let mut rng = dino_kernel::rng::Rng::new(3, 0, 0, 0, dino_kernel::rng::Kind::Test, 0);
        for keep in [0.05, 0.3, 0.6, 0.9, 0.99] {
            let row: Vec<f32> = (0..49).map(|_| rng.normal().exp() as f32).collect();
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[a].total_cmp(&row[b]));
            let (total, mut sum, mut published) = (row.iter().map(|&x| x as f64).sum::<f64>(), 0.0, vec![false; 49]);
            for i in order {
                sum += row[i] as f64 / total;
                published[i] = sum > 1.0 - keep;
            }
            assert_eq!(mask(&row, keep), published, "keep {keep}");
        }
    }

    #[test]
    fn patches_become_squares_and_surplus_pixels_stay_out() {
        let found = enlarge(&[1, 2, 3, 4], [2, 2], 2, [5, 4], 0);
        assert_eq!(found, [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn overlap_by_hand() {
        let [t, f] = [true, false];
        assert_eq!(jaccard(&[t, t, f, f], &[f, t, t, f]), 1.0 / 3.0);
        assert_eq!((jaccard(&[t, f], &[f, t]), jaccard(&[f, f], &[f, f])), (0.0, 1.0));
        let s = summary(&[0.2, 0.6, 0.5, 0.3, 0.8, 0.6], 2);
        assert_eq!((s.heads, s.best_head, s.mean_best_head), (vec![0.5, 0.5], 0, 0.5));
        assert!((s.best - (0.6 + 0.5 + 0.8) / 3.0).abs() < 1e-15);
    }

    #[test]
    fn an_untrained_network_has_rows_of_attention_and_an_index() {
        let config = Config { depth: 2, embed_dim: 24, ..Config::tiny() }.resolve().unwrap();
        let table = config.table();
        let mut weights = vec![0.0; table.len()];
        init::weights(&mut weights, &table, 1, init::LINEAR_STD);
        weights.truncate(table.backbone_len());
        let set = data::builtin::Builtin::new(32, 70, data::builtin::Part::Test, 0);
        let found = evaluate::<Cpu>(&NoOptions {}, &config, &weights, &set, 0.6).unwrap();
        assert_eq!(found.heads.len(), 3);
        assert!(found.heads.iter().all(|&j| (0.05..found.best).contains(&j)) && found.best < 0.9, "{found:?}");
        let mut network =
            Dense::<Cpu>::new(&NoOptions {}, &config, &weights, Group { count: 2, height: 17, width: 26 }).unwrap();
        let rows = network.attention(&vec![0.5; 2 * 3 * 17 * 26]).unwrap();
        assert_eq!((network.grid(), rows.len()), ([2, 3], 2 * 3 * 6));
        assert!(rows.chunks(6).all(|r| (0.5..1.0).contains(&r.iter().sum::<f32>())), "{rows:?}");
        assert_eq!(rows[..18], rows[18..], "equal images attend alike");
    }

    #[test]
    fn other_sizes_and_sets_without_masks_are_refused() {
        let config = Config::tiny().resolve().unwrap();
        let weights = vec![0.0; config.table().backbone_len()];
        let set = data::builtin::Builtin::new(40, 3, data::builtin::Part::Test, 0);
        let message = |r: Result<Jaccard>| r.unwrap_err().to_string();
        let found = message(evaluate::<Cpu>(&NoOptions {}, &config, &weights, &set, 0.6));
        assert!(found.contains("40 x 40"), "{found}");
        let folder = tempfile::tempdir().unwrap();
        image::RgbImage::new(32, 32).save(folder.path().join("a.png")).unwrap();
        let found = message(evaluate::<Cpu>(
            &NoOptions {},
            &config,
            &weights,
            &*data::open(folder.path(), Decode::default()).unwrap().train,
            0.6,
        ));
        assert!(found.contains("a.png") && found.contains("exact mask"), "{found}");
        for keep in [0.0, -1.0, 1.01, f64::NAN] {
            assert!(message(evaluate::<Cpu>(&NoOptions {}, &config, &weights, &set, keep)).contains("--keep"));
        }
    }
}

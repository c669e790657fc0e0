//! What a report shows beyond the log: needs the run's weights, and mostly its images.

use crate::config::Config;
use crate::data::{Dataset, Splits, Unreadable, only_class};
use crate::device::Device;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::eval::knn::{self, TEMPERATURE};
use crate::eval::scores::{Labels, MOST_CLASSES};
use crate::inference::features::{self, Extractor, Features};
use crate::report::scatter::{self, Maps};
use crate::train::CHECKPOINT;
use crate::viz::canvas::Canvas;
use crate::viz::gallery;
use crate::viz::neighbors::{Members, choose, rows};
use crate::weights::checkpoint::Checkpoint;
use dino_kernel::init;
use ndarray::Array2;
use std::path::Path;

/// Of the vote, as in training.
const K: usize = 20;
/// Queries whose neighbors are shown, and how many of these.
const QUERIES: usize = 6;
const NEAREST: usize = 7;
/// Side of such an image, pixels.
const SIDE: usize = 72;
/// Rows of the gallery that are shown at most.
const DRAWN: usize = 10;
/// Pixels of all images as numbers take at most this many bytes.
const PIXELS: usize = 1 << 30;

/// Wrong answers that are shown.
const MISTAKES: usize = 8;

/// A wrong answer of the vote.
pub struct Mistake {
    /// The image, and the most similar one of the class that it was taken for.
    pub query: Shown,
    pub nearest: Shown,
    /// The part of the votes that this class had, 0 to 1.
    pub share: f64,
}

/// An image, and its caption.
pub struct Shown {
    pub png: Vec<u8>,
    pub class: Option<String>,
    pub name: String,
    pub similarity: f32,
    /// Of the query's class?
    pub same: Option<bool>,
}

#[derive(Default)]
pub struct Evidence {
    /// The images of the gallery, and which they are.
    pub images: Option<Vec<u8>>,
    pub image_names: Vec<String>,
    /// When, and what the teacher attended to.
    pub gallery: Vec<(String, Vec<u8>)>,
    /// The query first.
    pub neighbors: Vec<Vec<Shown>>,
    pub classes: Vec<String>,
    /// (class, taken for)
    pub confusion: Option<Array2<u64>>,
    /// The most confident first.
    pub mistakes: Vec<Mistake>,
    /// Where the features of the images asked lie.
    pub maps: Option<Maps>,
    /// Images voting, images asked, of how many there are.
    pub sizes: [usize; 4],
    /// k-NN of the teacher on these, of pixels, of a network that learned nothing; percent.
    pub teacher: Option<f64>,
    pub pixels: Option<f64>,
    pub random: Option<f64>,
    /// What is not shown, and why.
    pub missing: Vec<String>,
}

/// The gallery's files as they are stored there.
fn drawn(dir: &Path, found: &mut Evidence) -> Vec<(Option<u64>, Vec<u8>)> {
    let folder = dir.join(gallery::FOLDER);
    let png =
        |name: &str| std::fs::read(folder.join(name)).ok().filter(|b| b.starts_with(b"\x89PNG") && b.len() < 1 << 20);
    found.images = png("images.png");
    let text = std::fs::read_to_string(folder.join("images.json")).unwrap_or_default();
    let which: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let name = |v: &serde_json::Value| v["class"].as_str().or(v["name"].as_str()).unwrap_or("?").to_string();
    found.image_names = which.as_array().into_iter().flatten().map(name).collect();
    let mut epochs: Vec<u64> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().to_str()?.strip_prefix("epoch")?.strip_suffix(".png")?.parse().ok())
        .collect();
    epochs.sort();
    let all = std::iter::once(None).chain(epochs.into_iter().map(Some));
    all.filter_map(|epoch| Some((epoch, png(&gallery::file(epoch))?))).collect()
}

/// Epochs of the numbered checkpoints, ascending.
fn numbered(dir: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| e.ok()?.file_name().into_string().ok());
    let number = |n: String| n.strip_prefix("checkpoint")?.strip_suffix(".safetensors")?.parse().ok();
    let mut found: Vec<u64> = names.filter_map(number).collect();
    found.sort();
    found
}

fn initial(config: &Config) -> Vec<f32> {
    let table = config.table();
    let mut weights = vec![0.0; table.len()];
    init::weights(&mut weights, &table, config.seed, config.init_std);
    weights.truncate(table.backbone_len());
    weights
}

/// Gathers what can be shown of a run; what cannot is listed in `missing`. `splits` is the data, or why there is none; `most`: images
/// that vote and are asked at most.
pub fn gather<D: Device>(
    options: &D::Options,
    dir: &Path,
    last: Option<u64>,
    splits: Result<Splits>,
    most: usize,
) -> Evidence {
    let mut found = Evidence::default();
    let mut figures = drawn(dir, &mut found);
    let checkpoint = Checkpoint::open(&dir.join(CHECKPOINT));
    let ready = splits.and_then(|splits| Ok((splits, checkpoint?)));
    let (splits, checkpoint) = match ready {
        Ok(ready) => ready,
        Err(e) => {
            found.missing.push(format!(
                "Nearest neighbors, confusion and baselines need the run's images and weights: {}.",
                e.message
            ));
            label(&mut found, figures);
            return found;
        }
    };
    if figures.is_empty()
        && let Err(e) = redraw::<D>(options, dir, &checkpoint, last, &splits, &mut found, &mut figures)
    {
        found.missing.push(format!("Attention over training: {}.", e.message));
    }
    label(&mut found, figures);
    if let Err(e) = evaluate::<D>(options, &checkpoint, &splits, most, &mut found) {
        found.missing.push(format!("Nearest neighbors and confusion: {}.", e.message));
    }
    found
}

/// For a run without a gallery: from the checkpoints that there are.
fn redraw<D: Device>(
    options: &D::Options,
    dir: &Path,
    checkpoint: &Checkpoint,
    last: Option<u64>,
    splits: &Splits,
    found: &mut Evidence,
    figures: &mut Vec<(Option<u64>, Vec<u8>)>,
) -> Result<()> {
    let (set, images) = gallery::images(splits);
    if images.is_empty() {
        return Err(Error::new("none of the images can be read"));
    }
    let config = &checkpoint.config;
    let name =
        |i: usize| set.label(i).and_then(|c| set.classes().get(c as usize).cloned()).unwrap_or_else(|| set.name(i));
    found.image_names = images.iter().map(|(i, _)| name(*i)).collect();
    found.images = Some(gallery::plain(config, &images)?.png()?);
    let mut draw = |epoch, weights: &[f32]| {
        figures.push((epoch, gallery::strip::<D>(options, config, weights, &images)?.png()?));
        Ok::<(), Error>(())
    };
    draw(None, &initial(config))?;
    for epoch in spread(numbered(dir), DRAWN - 2).into_iter().filter(|e| Some(*e) != last) {
        let one = Checkpoint::open(&dir.join(format!("checkpoint{epoch:04}.safetensors")))?;
        if one.config.table().backbone_len() == config.table().backbone_len() {
            draw(Some(epoch), &one.backbone("teacher")?)?;
        }
    }
    last.map_or(Ok(()), |epoch| draw(Some(epoch), &checkpoint.backbone("teacher")?))
}

/// At most `most` of them, the first and the last always.
fn spread<T>(all: Vec<T>, most: usize) -> Vec<T> {
    let n = all.len();
    let kept = |i: usize| n <= most || (0..most).any(|j| j * (n - 1) / (most - 1) == i);
    all.into_iter().enumerate().filter(|(i, _)| kept(*i)).map(|x| x.1).collect()
}

fn label(found: &mut Evidence, figures: Vec<(Option<u64>, Vec<u8>)>) {
    let when =
        |epoch: Option<u64>| epoch.map_or("before training".into(), |epoch| format!("after epoch {}", epoch + 1));
    found.gallery = spread(figures, DRAWN).into_iter().map(|(epoch, png)| (when(epoch), png)).collect();
    if found.gallery.is_empty() {
        found.missing.push("Attention over training: the run has no gallery.".into());
    }
}

/// Neighbors, confusion and baselines.
fn evaluate<D: Device>(
    options: &D::Options,
    checkpoint: &Checkpoint,
    splits: &Splits,
    most: usize,
    found: &mut Evidence,
) -> Result<()> {
    let (train, test) = (&*splits.train, &*splits.test);
    let view = features::view_of(&checkpoint.config, train).name().into();
    let (config, unreadable) = (&Config { eval_view: view, ..checkpoint.config.clone() }, Unreadable::default());
    if train.is_empty() || test.is_empty() {
        return Err(Error::new("there is no test image"));
    }
    let [bank, asked] =
        [(train, most), (test, most.div_ceil(4))].map(|(set, most)| Members::of(set, &choose(set, most, None)));
    found.sizes = [bank.len(), asked.len(), train.len(), test.len()];
    let both = |weights: &[f32]| -> Result<[Features; 2]> {
        let mut extractor = Extractor::<D>::new(options, config, weights)?;
        Ok([extractor.run(&bank, &unreadable, |_| ())?, extractor.run(&asked, &unreadable, |_| ())?])
    };
    let [b, q] = both(&checkpoint.backbone("teacher")?)?;

    let class = |set: &dyn Dataset, i: usize| set.label(i).and_then(|c| set.classes().get(c as usize).cloned());
    let show = |set: &dyn Dataset, i: usize, similarity: f32| -> Result<Shown> {
        let png = Canvas::thumbnail(&set.image(i)?, SIDE).png()?;
        Ok(Shown { png, class: class(set, i), name: set.name(i), similarity, same: None })
    };
    let asked_for = choose(&asked, QUERIES, None);
    let chosen: Vec<usize> = (0..q.images.len()).filter(|&row| asked_for.contains(&q.images[row])).collect();
    let near = rows(b.rows.clone(), q.rows.select(ndarray::Axis(0), &chosen), NEAREST)?;
    for ((_, near), &row) in near.iter().zip(&chosen) {
        let own = q.images[row];
        let query = show(&asked, own, 1.0);
        let line: Result<Vec<_>> = std::iter::once(query)
            .chain(near.iter().map(|&(r, s)| {
                let shown = show(&bank, b.images[r], s)?;
                let same = class(&asked, own).zip(shown.class.clone()).map(|(a, b)| a == b);
                Ok(Shown { same, ..shown })
            }))
            .collect();
        found.neighbors.push(line?);
    }
    let mapped: Vec<usize> = choose(&asked, scatter::MOST, None);
    let mapped: Vec<usize> = (0..q.images.len()).filter(|&row| mapped.binary_search(&q.images[row]).is_ok()).collect();
    let labels_of =
        Labels::new(asked.classes(), &[], &mapped.iter().filter_map(|&r| asked.label(q.images[r])).collect::<Vec<_>>());
    let mut next = labels_of.test.iter().copied();
    let classes = mapped.iter().map(|&row| asked.label(q.images[row]).and_then(|_| next.next())).collect();
    found.maps = Some(Maps::of(q.rows.select(ndarray::Axis(0), &mapped).view(), classes, labels_of.classes));
    if let Some(class) = only_class(splits) {
        found.missing.push(format!("k-NN and confusion: there is one class, {class}."));
        return Ok(());
    }
    let Some((bank_labels, labels)) = b.labels(&bank).zip(q.labels(&asked)).filter(|(_, l)| !l.is_empty()) else {
        found.missing.push("k-NN and confusion: the images have no labels.".into());
        return Ok(());
    };
    let top1 = |[b, q]: [Features; 2]| -> Result<f64> {
        let (from, to) = b.labels(&bank).zip(q.labels(&asked)).ok_or_else(|| Error::new("no labels"))?;
        let scores = knn::evaluate(b.rows, &from, q.rows, &to, &[K], TEMPERATURE, &Group::default())?;
        Ok(scores.first().map_or(0.0, |s| s.top1))
    };
    // Classes that occur: labels may be few and far between.
    let known = Labels::new(train.classes(), &bank_labels, &labels);
    let nearest = knn::neighbors(knn::normalize(b.rows.clone()).view(), knn::normalize(q.rows.clone()).view(), K);
    let guess = knn::predict(&nearest, &known.train, K, TEMPERATURE);
    let mut wrong: Vec<(usize, f64)> = (0..guess.len())
        .filter(|&i| guess[i] != known.test[i])
        .map(|i| {
            let votes = nearest.answers(i, &known.train, K, TEMPERATURE);
            (i, 1.0 / votes.iter().map(|vote| (vote.1 - votes[0].1).exp()).sum::<f64>())
        })
        .collect();
    wrong.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for (i, share) in wrong.into_iter().take(MISTAKES) {
        let near = nearest.of(i).find(|&(row, _)| known.train[row] == guess[i]);
        let Some((row, similarity)) = near else { continue };
        let [query, nearest] = [show(&asked, q.images[i], 1.0)?, show(&bank, b.images[row], similarity)?];
        found.mistakes.push(Mistake { query, nearest, share });
    }
    if known.classes.len() <= MOST_CLASSES {
        found.confusion = Some(knn::confusion(&guess, &known.test, known.classes.len()));
    } else {
        found.missing.push(format!("Confusion: of {} classes it would not fit a page.", known.classes.len()));
    }
    found.classes = known.classes;
    found.teacher = Some(top1([b, q])?);
    found.random = Some(top1(both(&initial(config))?)?);
    if (bank.len() + asked.len()) * config.channels * config.global_size.pow(2) * 4 <= PIXELS {
        found.pixels = Some(top1([
            features::pixels(&bank, &unreadable, config)?,
            features::pixels(&asked, &unreadable, config)?,
        ])?);
    } else {
        found.missing.push("The baseline of plain pixels: so many would not fit into memory.".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn the_first_and_the_last_stay() {
        assert_eq!(spread((0..100).collect(), 4), [0, 33, 66, 99]);
        assert_eq!(spread((0..3).collect(), 4), [0, 1, 2]);
        assert!(spread(Vec::<u8>::new(), 4).is_empty());
    }
}

//! What a report shows of the features themselves: neighbours and confusion, of the teacher as it is now, beside random weights.

use crate::config::Config;
use crate::data::{Dataset, Faults, Splits};
use crate::device::Device;
use crate::error::Result;
use crate::eval::knn;
use crate::features::Extractor;
use crate::neighbours::{self, Members};
use dino_kernel::init;
use ndarray::{Array2, Axis};

/// The k of the vote, and its temperature: as in training.
const KNN: (usize, f64) = (20, 0.07);
/// Queries shown, and neighbours of each.
const SHOWN: [usize; 2] = [8, 8];

#[derive(Default)]
pub struct Evidence {
    /// A query's name, and it beside its neighbours as PNG.
    pub neighbours: Vec<(String, Vec<u8>)>,
    /// Whether there are labels.
    pub labelled: bool,
    pub classes: Vec<String>,
    /// (classes, classes), as [`knn::confusion`] counts.
    pub confusion: Option<Array2<u64>>,
    /// Top-1 of the vote with random weights, percent.
    pub random: Option<f64>,
    /// How much of the data this is, if not all.
    pub note: String,
}

/// At most `most` images of each part are looked at, evenly spread over the classes.
pub fn gather<D: Device>(
    options: &D::Options,
    config: &Config,
    teacher: &[f32],
    splits: &Splits,
    faults: &Faults,
    most: usize,
) -> Result<Evidence> {
    let [bank, queries] = [&*splits.train, &*splits.test].map(|set| some(set, most));
    let cut = bank.len() < splits.train.len() || queries.len() < splits.test.len();
    let note = match cut {
        true => format!(" Of {} training and {} test images, evenly chosen.", bank.len(), queries.len()),
        false => String::new(),
    };
    let mut evidence = Evidence { classes: splits.train.classes().to_vec(), note, ..Evidence::default() };
    let mut extractor = Extractor::<D>::new(options, config, teacher)?;
    let known = extractor.run(&bank, faults, |_| ())?;
    let asked = extractor.run(&queries, faults, |_| ())?;
    drop(extractor);
    if known.images.is_empty() || asked.images.is_empty() {
        return Ok(evidence);
    }
    let labels = known.labels(&bank).zip(asked.labels(&queries));
    evidence.labelled = labels.is_some();
    if let Some((bank_labels, labels)) = &labels {
        let classes =
            evidence.classes.len().max(1 + labels.iter().chain(bank_labels).copied().max().unwrap_or(0) as usize);
        let normal = |rows: &Array2<f32>| knn::normalise(rows.clone());
        let found = knn::neighbours(normal(&known.rows).view(), normal(&asked.rows).view(), KNN.0);
        let predicted = knn::predict(&found, bank_labels, KNN.0, KNN.1, classes);
        evidence.confusion = Some(knn::confusion(&predicted, labels, classes));

        let table = config.table();
        let mut random = vec![0.0; table.len()];
        init::weights(&mut random, &table, config.seed, config.init_std);
        random.truncate(table.backbone_len());
        let mut extractor = Extractor::<D>::new(options, config, &random)?;
        let rows = [&bank, &queries].map(|set| Ok(extractor.run(set, faults, |_| ())?.rows));
        let [bank_rows, query_rows] = rows;
        let scores = knn::evaluate(bank_rows?, bank_labels, query_rows?, labels, &[KNN.0], KNN.1)?;
        evidence.random = scores.first().map(|s| s.top1);
    }
    // The queries among those that could be read.
    let places = Members::of(&queries, &asked.images);
    let chosen = neighbours::choose(&places, SHOWN[0], None);
    for (i, near) in neighbours::rows(known.rows, asked.rows.select(Axis(0), &chosen), SHOWN[1])? {
        let query = asked.images[chosen[i]];
        let same = |image: usize| labels.is_some().then(|| bank.label(image) == queries.label(query));
        let found: Result<Vec<_>> =
            near.iter().map(|&(j, _)| Ok((bank.image(known.images[j])?, same(known.images[j])))).collect();
        let strip = neighbours::strip(&queries.image(query)?, &found?);
        evidence.neighbours.push((queries.name(query), strip.png()?));
    }
    Ok(evidence)
}

/// All of a set, or so many of it.
fn some(set: &dyn Dataset, most: usize) -> Members<'_> {
    match set.len() <= most {
        true => Members::all(&[set]),
        false => Members::of(set, &neighbours::choose(set, most, None)),
    }
}

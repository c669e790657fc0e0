//! Nearest neighbors, for people to inspect: which images a network takes for alike.
//!
//! Similarity is the cosine of two features, as in the k-nearest-neighbors vote.

use crate::data::{Dataset, Unreadable};
use crate::error::{Error, Result};
use crate::eval::knn;
use crate::image::Image;
use crate::inference::features::Features;
use crate::io::atomic::write_atomically;
use crate::viz::canvas::Canvas;
use dino_kernel::rng::{Kind, Rng};
use ndarray::{Array2, Axis};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Rows of the bank with their similarity, most similar first.
pub type Near = Vec<(usize, f32)>;
/// A query and its neighbors.
pub type Row = (usize, Near);

/// The `k` rows of `bank` nearest to each row of `queries`, (images, C) both, of any length; fewer if the bank has fewer. Among equals
/// the earlier comes first.
///
/// # Errors
/// The bank is empty, or numbers are not finite.
pub fn rows(bank: Array2<f32>, queries: Array2<f32>, k: usize) -> Result<Vec<Row>> {
    if bank.nrows() == 0 {
        return Err(Error::new("there are no images to be neighbors").hint("two images or more"));
    }
    if let Some(row) = bank.rows().into_iter().chain(queries.rows()).position(|r| r.iter().any(|x| !x.is_finite())) {
        return Err(Error::new(format!("the features in row {row} are not finite")).hint("are the weights valid?"));
    }
    if queries.nrows() == 0 || k == 0 {
        return Ok((0..queries.nrows()).map(|q| (q, Vec::new())).collect());
    }
    let k = k.min(bank.nrows());
    let found = knn::neighbors(knn::normalize(bank).view(), knn::normalize(queries).view(), k);
    let pairs: Near = found.indices.iter().map(|&i| i as usize).zip(found.similarities).collect();
    Ok(pairs.chunks(k).map(<[_]>::to_vec).enumerate().collect())
}

/// The `k` rows nearest to each of the rows `chosen`, among all rows but itself.
///
/// # Errors
/// There are fewer than two images, or numbers are not finite.
pub fn rows_within(all: Array2<f32>, chosen: &[usize], k: usize) -> Result<Vec<Row>> {
    if all.nrows() < 2 {
        return Err(Error::new("one image has no neighbors").hint("two images or more"));
    }
    let queries = all.select(Axis(0), chosen);
    // One more, for the row itself.
    let found = rows(all, queries, k.saturating_add(1))?;
    Ok(found
        .into_iter()
        .zip(chosen)
        .map(|((_, near), &own)| (own, near.into_iter().filter(|&(i, _)| i != own).take(k).collect()))
        .collect())
}

/// `count` images of a set as queries: with a seed at random, without one from class after class, each class's evenly spread over it
/// (without labels: evenly over the set). In the set's order; all of them where there are no more.
pub fn choose(set: &dyn Dataset, count: usize, seed: Option<u64>) -> Vec<usize> {
    let count = count.min(set.len());
    let mut chosen: Vec<usize> = match seed {
        Some(seed) => {
            let mut all: Vec<usize> = (0..set.len()).collect();
            let mut rng = Rng::new(seed, 0, 0, 0, Kind::Shuffle, 0);
            for i in 0..count {
                all.swap(i, i + rng.below((set.len() - i) as u32) as usize);
            }
            all[..count].to_vec()
        }
        None => {
            let mut classes = vec![Vec::new(); set.classes().len().max(1)];
            (0..set.len()).for_each(|i| classes[set.label(i).unwrap_or(0) as usize].push(i));
            // How many of each class: one after the other, as long as it has some.
            let mut shares = vec![0; classes.len()];
            let mut left = count;
            while left > 0 {
                for (share, class) in shares.iter_mut().zip(&classes) {
                    if left > 0 && *share < class.len() {
                        (*share, left) = (*share + 1, left - 1);
                    }
                }
            }
            classes.iter().zip(shares).flat_map(|(class, n)| (0..n).map(move |j| class[j * class.len() / n])).collect()
        }
    };
    chosen.sort();
    chosen
}

/// Green and red, told apart by people who do not see colors as most do as well: the green is the lighter one.
const SAME: [u8; 3] = [70, 200, 90];
const OTHER: [u8; 3] = [190, 30, 45];
/// Pixels of a frame, and of an image's side within it.
const FRAME: usize = 4;
/// Side of an image, pixels.
pub const SIDE: usize = 96;
/// Rows of a page.
const PAGE: usize = 12;

/// One row of a contact sheet: the query, a gap, its neighbors, each framed green where it is of the query's class, red where it is of
/// another, white where that is not known.
pub fn strip(query: &Image, found: &[(Image, Option<bool>)]) -> Canvas {
    let cell = SIDE + 2 * FRAME;
    let step = cell + FRAME;
    let mut strip = Canvas::new(cell + 3 * FRAME + found.len() * step, cell, [255; 3]);
    strip.put(FRAME, FRAME, &Canvas::thumbnail(query, SIDE));
    for (j, (image, same)) in found.iter().enumerate() {
        let color = same.map_or([255; 3], |same| if same { SAME } else { OTHER });
        strip.put(0, cell + 4 * FRAME + j * step - FRAME, &Canvas::thumbnail(image, SIDE).framed(FRAME, color));
    }
    strip
}

/// Some images of some sets, as one set. The first set names the classes.
pub struct Members<'a>(pub Vec<(&'a dyn Dataset, usize)>);

impl<'a> Members<'a> {
    /// All images of several sets.
    pub fn all(sets: &[&'a dyn Dataset]) -> Members<'a> {
        Members(sets.iter().flat_map(|set| (0..set.len()).map(|i| (*set, i))).collect())
    }

    /// Some images of one set.
    pub fn of(set: &'a dyn Dataset, images: &[usize]) -> Members<'a> {
        Members(images.iter().map(|&i| (set, i)).collect())
    }
}

impl Dataset for Members<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        self.0[i].0.image(self.0[i].1)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.0[i].0.label(self.0[i].1)
    }
    fn classes(&self) -> &[String] {
        self.0.first().map_or(&[], |(set, _)| set.classes())
    }
    fn name(&self, i: usize) -> String {
        self.0[i].0.name(self.0[i].1)
    }
    fn identity(&self, i: usize) -> usize {
        self.0.get(i).map_or(0, |(set, i)| set.identity(*i))
    }
    fn fingerprint(&self) -> String {
        let names: Vec<String> = (0..self.len()).map(|i| self.name(i)).collect();
        names.join("\n")
    }
}

/// What to draw: `k` neighbors each, of the images `queries`, or, where that is `None`, of the images `chosen` of the bank, each among
/// all others.
pub struct Ask<'a> {
    /// Neighbors of each query.
    pub k: usize,
    /// The images that neighbors are taken from.
    pub bank: &'a dyn Dataset,
    /// The images to find neighbors of.
    pub queries: Option<&'a dyn Dataset>,
    /// Rows of the bank to find neighbors of.
    pub chosen: Vec<usize>,
}

/// One kind of features: what it is called, and how a set becomes rows.
pub type Kinds<'a> = Vec<(&'a str, Box<dyn FnMut(&dyn Dataset) -> Result<Features> + 'a>)>;

/// Draws the neighbors of every query, a row for each of the `kinds` of features, as `out/sheet-000.png` and so on, twelve rows
/// each, and writes names and similarities to `out/neighbours.json`. Returns what the file holds.
///
/// # Errors
/// `k` is 0, no query can be read, features cannot be made, or a file cannot be written.
pub fn draw(ask: &Ask, kinds: Kinds, unreadable: &Unreadable, out: &Path) -> Result<Value> {
    if ask.k == 0 {
        return Err(Error::new("--k 0 asks for no neighbors").hint("--k 10 draws ten in a row"));
    }
    std::fs::create_dir_all(out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("--out names another")
    })?;
    let queries = ask.queries.unwrap_or(ask.bank);
    // (query, which features, neighbors), all by their indices in the sets.
    let mut lines: Vec<(usize, usize, Near)> = Vec::new();
    let mut names = Vec::new();
    for (kind, (name, mut extract)) in kinds.into_iter().enumerate() {
        names.push(name);
        let bank = extract(ask.bank)?;
        let found = match ask.queries {
            Some(queries) => {
                let asked = extract(queries)?;
                let found = rows(bank.rows, asked.rows, ask.k)?;
                found.into_iter().map(|(q, near)| (asked.images[q], near)).collect()
            }
            None => {
                let read = |i: &usize| bank.images.binary_search(i).ok();
                let chosen: Vec<usize> = ask.chosen.iter().filter_map(read).collect();
                let found = rows_within(bank.rows, &chosen, ask.k)?;
                found.into_iter().map(|(q, near)| (bank.images[q], near)).collect::<Vec<_>>()
            }
        };
        let of_set = |near: Near| near.into_iter().map(|(i, s)| (bank.images[i], s)).collect();
        lines.extend(found.into_iter().map(|(q, near)| (q, kind, of_set(near))));
    }
    unreadable.print();
    if lines.is_empty() {
        return Err(Error::new("none of the queries could be read").hint("--image names other images"));
    }
    lines.sort_by_key(|&(query, kind, _)| (query, kind));

    let class = |set: &dyn Dataset, i: usize| set.label(i).and_then(|c| set.classes().get(c as usize).cloned());
    let same = |q: usize, i: usize| Some(class(queries, q)? == class(ask.bank, i)?);
    for (page, lines) in lines.chunks(PAGE).enumerate() {
        let mut strips = Vec::new();
        for (query, _, near) in lines {
            let images: Result<Vec<_>> = near.iter().map(|&(i, _)| Ok((ask.bank.image(i)?, same(*query, i)))).collect();
            strips.push(strip(&queries.image(*query)?, &images?));
        }
        Canvas::grid(&strips, 1).write(&out.join(format!("sheet-{page:03}.png")))?;
    }
    let rows: Vec<Value> = lines
        .iter()
        .enumerate()
        .map(|(row, (query, kind, near))| {
            let near: Vec<Value> = near
                .iter()
                .map(|&(i, s)| {
                    json!({"image": ask.bank.name(i), "class": class(ask.bank, i), "similarity": s, "same": same(*query, i)})
                })
                .collect();
            json!({
                "sheet": row / PAGE, "row": row % PAGE, "features": names[*kind],
                "image": queries.name(*query), "class": class(queries, *query), "neighbours": near,
            })
        })
        .collect();
    let found = json!({"k": ask.k, "bank": ask.bank.len(), "leave_one_out": ask.queries.is_none(), "rows": rows});
    write_atomically(&out.join("neighbours.json"), |f| writeln!(f, "{found}"))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::builtin::{Builtin, Part};
    use ndarray::array;

    #[test]
    fn neighbors_by_hand() {
        // Angles of 0, 90, 45 and 180 degrees, of any length.
        let bank = array![[2.0, 0.0], [0.0, 0.1], [3.0, 3.0], [-1.0, 0.0]];
        let found = rows(bank.clone(), array![[1.0f32, 0.0], [0.0, 5.0]], 3).unwrap();
        let indices = |row: &Row| row.1.iter().map(|n| n.0).collect::<Vec<_>>();
        assert_eq!((found[0].0, indices(&found[0])), (0, vec![0, 2, 1]));
        // Rows 0 and 3 are equally far from the second query: the earlier comes first.
        assert_eq!((found[1].0, indices(&found[1])), (1, vec![1, 2, 0]));
        let want = [1.0, 0.5f32.sqrt(), 0.0];
        assert!(found[0].1.iter().zip(want).all(|(n, w)| (n.1 - w).abs() < 1e-6), "{found:?}");
        // Leave one out: nobody is his own neighbor.
        let found = rows_within(bank.clone(), &[0, 3], 2).unwrap();
        assert_eq!((found[0].0, indices(&found[0])), (0, vec![2, 1]));
        assert_eq!((found[1].0, indices(&found[1])), (3, vec![1, 2]));
        assert_eq!(indices(&rows_within(bank, &[2], 99).unwrap()[0]), [0, 1, 3]);
        // Copies of the query: itself is left out, not the first copy.
        assert_eq!(indices(&rows_within(Array2::ones((4, 2)), &[2], 2).unwrap()[0]), [0, 1]);
    }

    #[test]
    fn impossible_queries_are_refused() {
        let message = |r: Result<Vec<Row>>| r.unwrap_err().to_string();
        assert!(message(rows(Array2::zeros((0, 2)), Array2::zeros((1, 2)), 3)).contains("no images"));
        assert!(message(rows_within(Array2::zeros((1, 2)), &[0], 3)).contains("one image"));
        assert!(message(rows(array![[f32::NAN]], array![[1.0]], 1)).contains("not finite"));
        // No direction at all: similar to nothing.
        assert_eq!(rows(array![[1.0f32]], array![[0.0f32]], 1).unwrap(), [(0, vec![(0, 0.0)])]);
        assert_eq!(rows(array![[1.0f32]], Array2::zeros((0, 1)), 1).unwrap(), []);
    }

    #[test]
    fn queries_are_spread_over_the_classes_or_drawn_by_seed() {
        let set = Builtin::new(16, 95, Part::Test, 0);
        let classes = set.classes().len();
        let chosen = choose(&set, 2 * classes + 1, None);
        let of = |c: usize| chosen.iter().filter(|&&i| set.label(i) == Some(c as u32)).count();
        assert!((0..classes).all(|c| of(c) == 2 + (c == 0) as usize), "{chosen:?}");
        assert!(chosen.is_sorted_by(|a, b| a < b));
        assert_eq!(choose(&set, 999, None), (0..95).collect::<Vec<_>>());
        let (one, again, other) = (choose(&set, 9, Some(1)), choose(&set, 9, Some(1)), choose(&set, 9, Some(2)));
        assert!(one == again && one != other && one.is_sorted_by(|a, b| a < b) && one.len() == 9 && one[8] < 95);
        assert_eq!(choose(&set, 999, Some(3)), (0..95).collect::<Vec<_>>());
        assert_eq!(choose(&Members(Vec::new()), 3, None), [0usize; 0]);
    }

    #[test]
    fn a_strip_shows_the_query_and_frames_its_neighbors() {
        let image = |x| Image { width: 2, height: 2, channels: 1, pixels: vec![x; 4] };
        let strip = strip(&image(1), &[(image(2), Some(true)), (image(3), Some(false)), (image(4), None)]);
        let count = |p: [u8; 3]| strip.rgb.iter().filter(|q| **q == p).count();
        assert!((1..5).all(|x| count([x; 3]) == SIDE * SIDE));
        let frame = (SIDE + 2 * FRAME).pow(2) - SIDE * SIDE;
        assert_eq!((count(SAME), count(OTHER)), (frame, frame));
        assert_eq!(strip.height, SIDE + 2 * FRAME);
    }
}

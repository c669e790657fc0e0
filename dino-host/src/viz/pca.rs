//! Principal components of patch tokens as colors: patches of one color are alike to the network.
//!
//! Tokens x (C numbers each) of all patches of all images; m their mean, S = 1 / (n - 1) sum (x - m)(x - m)ᵀ = V L Vᵀ. A patch's
//! coordinates are Vᵀ(x - m); the first three become red, green and blue. Signs: the entry of a component that is largest in magnitude
//! is positive (scikit-learn's convention), so the same tokens give the same colors everywhere. A color runs from 0 at a
//! coordinate's 1st percentile to 1 at its 99th over all patches, so that single patches do not make the rest gray.
//!
//! With the foreground asked for, patches are first parted in two by their first coordinate, where the variance between the parts is
//! greatest (Otsu 1979); the part that holds the smaller share of the patches at the images' borders is the foreground, and the
//! components are then those of its patches alone (after Oquab et al. 2023, DINOv2, section 7.5, who choose the side by eye).

use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::enlarge::enlarge;
use crate::inference::dense::DenseExtractor;
use crate::io::atomic::write_atomically;
use crate::io::json::number;
use crate::io::npy;
use crate::io::progress::Progress;
use crate::io::spool::{Spool, Spooled};
use crate::linalg::eigen;
use crate::viz::attention::{folder, unused};
use crate::viz::canvas::Canvas;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// Components that become colors.
pub const COLORS: usize = 3;
/// Part of the patches below the darkest and above the lightest shade.
const TAIL: f64 = 0.01;
/// Eigenvalues that the report holds at most.
const NAMED: usize = 32;
/// Figures are at least this wide.
const WIDTH: usize = 256;
/// Images on a contact sheet, and a figure's side on it.
const PAGE: usize = 24;
const CELL: usize = 224;

/// Mean and covariance of rows that come in parts.
pub struct Scatter {
    rows: usize,
    mean: Array1<f64>,
    /// Sum of (x - mean)(x - mean)ᵀ.
    square: Array2<f64>,
}

impl Scatter {
    /// Of rows of `width` numbers, none yet.
    pub fn new(width: usize) -> Scatter {
        Scatter { rows: 0, mean: Array1::zeros(width), square: Array2::zeros((width, width)) }
    }

    /// Takes in rows (n, width). Sums of parts are put together without losing digits to a large mean (Chan, Golub and LeVeque 1979):
    /// M <- M + M' + d dᵀ n n' / (n + n'), d the difference of the means.
    pub fn add(&mut self, rows: ArrayView2<f32>) {
        let rows = rows.mapv(f64::from);
        let Some(mean) = rows.mean_axis(Axis(0)) else { return };
        let (a, b) = (self.rows as f64, rows.nrows() as f64);
        let centered = rows - &mean;
        let apart = &mean - &self.mean;
        self.square += &centered.t().dot(&centered);
        let column = apart.view().insert_axis(Axis(1));
        self.square.scaled_add(a * b / (a + b), &column.dot(&column.t()));
        self.mean.scaled_add(b / (a + b), &apart);
        self.rows += centered.nrows();
    }

    /// The components. Of fewer than two rows there is no variance: every value is 0.
    pub fn components(&self) -> Pca {
        let (values, vectors) = eigen::symmetric(&self.square / (self.rows.max(2) - 1) as f64);
        let wide = COLORS.min(values.len());
        // Rounding leaves tiny negative numbers where there is no variance.
        Pca {
            mean: self.mean.clone(),
            axes: vectors.slice(s![.., ..wide]).to_owned(),
            variance: values.mapv(|v| v.max(0.0)),
        }
    }
}

/// Principal components.
pub struct Pca {
    /// (C)
    pub mean: Array1<f64>,
    /// (C, 3), or fewer where C is; columns of unit length.
    pub axes: Array2<f64>,
    /// (C): variance along every component, descending.
    pub variance: Array1<f64>,
}

impl Pca {
    /// Coordinates (n, 3) of rows (n, C); of components that do not exist they are 0.
    pub fn coordinates(&self, rows: ArrayView2<f32>) -> Array2<f32> {
        let found = (rows.mapv(f64::from) - &self.mean).dot(&self.axes);
        let mut all = Array2::zeros((rows.nrows(), COLORS));
        all.slice_mut(s![.., ..found.ncols()]).assign(&found.mapv(|x| x as f32));
        all
    }

    /// The part of the variance along each component; 0 where there is none at all.
    pub fn ratio(&self) -> Array1<f64> {
        let total = self.variance.sum();
        self.variance.mapv(|v| if total > 0.0 { v / total } else { 0.0 })
    }
}

/// The quantile `at` (0 to 1) of sorted values, between two of them on the straight line (NumPy's default).
pub fn quantile(sorted: &[f32], at: f64) -> f64 {
    let position = at * (sorted.len() - 1) as f64;
    let (low, high) =
        (sorted[position as usize] as f64, sorted[(position.ceil() as usize).min(sorted.len() - 1)] as f64);
    low + (high - low) * position.fract()
}

/// The threshold that parts values in two with the greatest variance between the parts (Otsu 1979), halfway between two neighbors;
/// the value itself where all are equal.
pub fn otsu(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (n, total) = (sorted.len() as f64, sorted.iter().map(|&x| x as f64).sum::<f64>());
    let (mut below, mut best, mut threshold) = (0.0, 0.0, sorted.first().copied().unwrap_or(0.0));
    for (i, pair) in sorted.windows(2).enumerate() {
        let k = (i + 1) as f64;
        below += pair[0] as f64;
        let apart = below / k - (total - below) / (n - k);
        let between = k * (n - k) * apart * apart;
        if pair[0] < pair[1] && between > best {
            (best, threshold) = (between, 0.5 * (pair[0] + pair[1]));
        }
    }
    threshold
}

/// From coordinates to shades: the 1st and 99th percentile of each of the three.
pub fn scales(coordinates: ArrayView2<f32>) -> Vec<[f64; 2]> {
    let scale = |column: ndarray::ArrayView1<f32>| {
        let mut sorted = column.to_vec();
        sorted.sort_by(f32::total_cmp);
        if sorted.is_empty() { [0.0; 2] } else { [quantile(&sorted, TAIL), quantile(&sorted, 1.0 - TAIL)] }
    };
    coordinates.columns().into_iter().map(scale).collect()
}

/// A patch's color, 0 to 1, from its three coordinates. A scale without width gives the middle.
pub fn color(coordinates: [f32; 3], scales: &[[f64; 2]]) -> [f64; 3] {
    std::array::from_fn(|c| {
        let [low, high] = scales[c];
        if high > low { ((coordinates[c] as f64 - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    })
}

/// An image that could be read: its index in the set, and its patches in a column and in a row.
struct Member {
    index: usize,
    grid: [usize; 2],
}

/// Draws every image of `set` by the components of all their patches together: of one image `out/pca.png`, `pca.npy` (rows, columns,
/// 3 coordinates) and, with the foreground, `foreground.png`; of several, a folder each with the same, and `out/sheet-000.png` and so
/// on, image and colors beside each other. `out/pca.json` describes the components. Returns that.
///
/// # Errors
/// No image can be read, one has no or too many patches, the device fails, or a file cannot be written.
pub fn draw<D: Device>(
    extractor: &mut DenseExtractor<D>,
    set: &dyn Dataset,
    unreadable: &Unreadable,
    foreground: bool,
    out: &Path,
) -> Result<Value> {
    folder(out)?;
    let (width, patch) = (extractor.config.embed_dim, extractor.config.patch_size);
    let mut scatter = Scatter::new(width);
    let mut spool = Spool::new(out)?;
    let mut members = Vec::new();
    let mut progress = Progress::new(set.len(), "images");
    for i in 0..set.len() {
        progress.tick();
        let image = if set.len() == 1 { Some(set.image(0)?) } else { unreadable.image(set, i)? };
        let Some(image) = image else { continue };
        let named = |e: Error| Error { message: format!("{}: {}", set.name(i), e.message), ..e };
        let output = extractor.tokens(&image).map_err(named)?;
        scatter.add(rows(&output.numbers, width));
        spool.push(&output.numbers)?;
        members.push(Member { index: i, grid: output.grid });
    }
    unreadable.print();
    if members.is_empty() {
        return Err(
            Error::new("none of the images could be read").hint("--strict stops at the first one and reports why")
        );
    }

    let mut tokens = spool.rewind()?;
    let mut pca = scatter.components();
    let mut coordinates = project(&pca, &members, &mut tokens, width)?;
    let all: usize = coordinates.nrows();
    let mut part = vec![true; all];
    let mut threshold = None;
    if foreground {
        let first = coordinates.column(0).to_vec();
        let at = otsu(&first);
        part = front(&first.iter().map(|x| *x > at).collect::<Vec<_>>(), &members);
        threshold = Some(at);
        pca = components_of(&part, &members, &mut tokens, width)?;
        coordinates = project(&pca, &members, &mut tokens, width)?;
    }
    let kept: Vec<usize> = (0..all).filter(|&i| part[i]).collect();
    let scales = scales(coordinates.select(Axis(0), &kept).view());

    let (mut used, mut page, mut pages, mut from) = (HashSet::new(), Vec::new(), 0, 0);
    let mut images = Vec::new();
    for member in &members {
        let [height, wide] = member.grid;
        let mine = from..from + height * wide;
        from = mine.end;
        let name = set.name(member.index);
        let below = if set.len() == 1 { String::new() } else { unused(&name, &mut used) };
        let (top, out) = (out, out.join(&below));
        folder(&out)?;
        let here = coordinates.slice(s![mine.clone(), ..]);
        let numbers: Vec<f32> = here.iter().copied().collect();
        npy::write(&out.join("pca.npy"), &[height, wide, COLORS], &numbers)?;
        let shades = |i: usize| {
            let [r, g, b] = [0, 1, 2].map(|c| numbers[COLORS * i + c]);
            if part[mine.start + i] { color([r, g, b], &scales).map(|x| (255.0 * x).round() as u8) } else { [0; 3] }
        };
        let cell = patch * WIDTH.div_ceil(wide * patch);
        let large = |cells: &[[u8; 3]]| {
            let size = [height * cell, wide * cell];
            Canvas { width: size[1], height: size[0], rgb: enlarge(cells, member.grid, cell, size, [0; 3]) }
        };
        let figure = large(&(0..numbers.len() / COLORS).map(shades).collect::<Vec<_>>());
        figure.write(&out.join("pca.png"))?;
        if foreground {
            large(&part[mine.clone()].iter().map(|&p| [255 * p as u8; 3]).collect::<Vec<_>>())
                .write(&out.join("foreground.png"))?;
        }
        // It could be read a moment ago.
        let image = extractor.input(&set.image(member.index)?)?;
        let shown = Canvas::of(&image, cell / patch);
        let cell_of_sheet = (pages, page.len());
        images.push(json!({
            "image": name, "folder": below, "rows": height, "cols": wide, "sheet": cell_of_sheet.0, "place": cell_of_sheet.1,
            "foreground": foreground.then(|| part[mine.clone()].iter().filter(|p| **p).count()),
        }));
        if set.len() == 1 {
            Canvas::grid(&[shown, figure], 2).write(&out.join("sheet-000.png"))?;
        } else {
            let both = [shown, figure].map(|p| Canvas::thumbnail(&p.image(), CELL));
            page.push(Canvas::grid(&both, 2));
        }
        if page.len() == PAGE {
            Canvas::contact_sheet(&page).write(&top.join(format!("sheet-{pages:03}.png")))?;
            (page, pages) = (Vec::new(), pages + 1);
        }
    }
    if !page.is_empty() {
        Canvas::contact_sheet(&page).write(&out.join(format!("sheet-{pages:03}.png")))?;
    }
    let few = |values: &Array1<f64>| values.iter().take(NAMED).map(|&v| number(v)).collect::<Vec<_>>();
    let found = json!({
        "images": images, "patches": all, "width": width, "foreground": foreground, "threshold": threshold,
        "foreground_patches": kept.len(), "explained_variance": few(&pca.variance),
        "explained_variance_ratio": few(&pca.ratio()), "total_variance": number(pca.variance.sum()), "scales": scales,
        "signs": "the entry of a component that is largest in magnitude is positive",
    });
    write_atomically(&out.join("pca.json"), |f| writeln!(f, "{found}"))?;
    Ok(found)
}

fn rows(numbers: &[f32], width: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((numbers.len() / width, width), numbers).expect("a row a patch")
}

/// The components of some of the patches alone.
fn components_of(part: &[bool], members: &[Member], tokens: &mut Spooled, width: usize) -> Result<Pca> {
    let mut scatter = Scatter::new(width);
    tokens.rewind()?;
    let mut from = 0;
    for member in members {
        let n = member.grid[0] * member.grid[1];
        let kept: Vec<usize> = (0..n).filter(|i| part[from + i]).collect();
        let numbers = tokens.next(n * width)?;
        scatter.add(rows(&numbers, width).select(Axis(0), &kept).view());
        from += n;
    }
    Ok(scatter.components())
}

/// Coordinates of all patches of all images, from the start of what was spooled.
fn project(pca: &Pca, members: &[Member], tokens: &mut Spooled, width: usize) -> Result<Array2<f32>> {
    tokens.rewind()?;
    let mut all = Array2::zeros((0, COLORS));
    for member in members {
        let numbers = tokens.next(member.grid[0] * member.grid[1] * width)?;
        all.append(Axis(0), pca.coordinates(rows(&numbers, width)).view()).expect("three columns");
    }
    Ok(all)
}

/// Which of the two parts is the foreground: the one of which less is at the borders of the images. Where one part is empty,
/// everything is the foreground; where the shares are equal, the part above.
fn front(above: &[bool], members: &[Member]) -> Vec<bool> {
    let (mut edge, mut all) = ([0usize; 2], [0usize; 2]);
    let mut at = above.iter();
    for Member { grid: [rows, cols], .. } in members {
        for y in 0..*rows {
            for x in 0..*cols {
                let side = *at.next().expect("a patch each") as usize;
                all[side] += 1;
                edge[side] += (y == 0 || x == 0 || y + 1 == *rows || x + 1 == *cols) as usize;
            }
        }
    }
    if all.contains(&0) {
        return vec![true; above.len()];
    }
    let below = edge[0] * all[1] < edge[1] * all[0];
    above.iter().map(|a| *a != below).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn components_by_hand() {
        // Four points on a cross around (10, 20, 30): 2 away along (3, 4, 0) / 5, 1 away along (0, 0, 1); variance 8/3 and 2/3.
        let rows = array![[11.2f32, 21.6, 30.0], [8.8, 18.4, 30.0], [10.0, 20.0, 31.0], [10.0, 20.0, 29.0]];
        let mut scatter = Scatter::new(3);
        scatter.add(rows.view());
        let pca = scatter.components();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(pca.variance[0], 8.0 / 3.0) && near(pca.variance[1], 2.0 / 3.0) && pca.variance[2].abs() < 1e-6);
        assert!(near(pca.ratio()[0], 0.8) && near(pca.ratio().sum(), 1.0));
        let want = [[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.8, -0.6, 0.0]];
        for (j, want) in want.iter().enumerate() {
            assert!(pca.axes.column(j).iter().zip(want).all(|(a, b)| near(*a, *b)), "{j}: {}", pca.axes);
        }
        let found = pca.coordinates(rows.view());
        let want = [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]];
        for (found, want) in found.rows().into_iter().zip(want) {
            assert!(near(found[0] as f64, want[0]) && near(found[1] as f64, want[1]), "{found}");
        }
        // In parts, whatever they are, the same.
        let mut parts = Scatter::new(3);
        [0..1, 1..1, 1..4].into_iter().for_each(|r| parts.add(rows.slice(s![r, ..])));
        assert!((&parts.square - &scatter.square).iter().all(|x| x.abs() < 1e-9) && parts.rows == 4);
        assert!((&parts.mean - &scatter.mean).iter().all(|x| x.abs() < 1e-9));
    }

    #[test]
    fn without_variance_everything_is_the_middle() {
        for n in [0, 1, 7] {
            let mut scatter = Scatter::new(2);
            let rows = Array2::from_elem((n, 2), 3.0f32);
            scatter.add(rows.view());
            let pca = scatter.components();
            assert_eq!((pca.variance.clone(), pca.ratio()), (Array1::zeros(2), Array1::zeros(2)));
            let found = pca.coordinates(rows.view());
            assert_eq!(found, Array2::<f32>::zeros((n, 3)), "C = 2 has no third component");
            let scales = scales(found.view());
            assert_eq!(color([0.0; 3], &scales), [0.5; 3]);
        }
    }

    #[test]
    fn shades_run_between_percentiles() {
        let values: Vec<f32> = (0..=200).map(|i| i as f32).collect();
        assert_eq!((quantile(&values, 0.01), quantile(&values, 0.99), quantile(&values, 0.0)), (2.0, 198.0, 0.0));
        assert_eq!((quantile(&[1.0, 2.0], 0.25), quantile(&[5.0], 0.99)), (1.25, 5.0));
        let three = Array2::from_shape_fn((201, 3), |(i, c)| values[i] * (c + 1) as f32);
        let scales = scales(three.view());
        assert_eq!(scales, [[2.0, 198.0], [4.0, 396.0], [6.0, 594.0]]);
        assert_eq!(color([0.0, 200.0, 900.0], &scales), [0.0, 0.5, 1.0]);
    }

    #[test]
    fn the_threshold_parts_two_heaps() {
        assert_eq!(otsu(&[10.0, 1.0, 2.0, 11.0, 1.5]), 6.0);
        assert_eq!((otsu(&[3.0, 3.0]), otsu(&[3.0]), otsu(&[])), (3.0, 3.0, 0.0));
        // Equal values stay together.
        assert_eq!(otsu(&[0.0, 0.0, 0.0, 1.0]), 0.5);
    }

    #[test]
    fn the_foreground_touches_the_borders_less() {
        let member = |rows, cols| Member { index: 0, grid: [rows, cols] };
        // The middle of 3 x 3 is above, or below.
        let above: Vec<bool> = (0..9).map(|i| i == 4).collect();
        let below: Vec<bool> = above.iter().map(|a| !a).collect();
        assert_eq!(front(&above, &[member(3, 3)]), above);
        assert_eq!(front(&below, &[member(3, 3)]), above);
        assert_eq!(front(&[false; 4], &[member(2, 2)]), [true; 4]);
        // Two images count together: a line of patches is border all over.
        assert!(front(&[&above[..], &[true; 2]].concat(), &[member(3, 3), member(1, 2)])[4]);
    }

    fn floats(value: &Value) -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    /// Everything from tokens to colors as NumPy has it (`tests/golden/make_pictures.py`), over two images together.
    #[test]
    fn colors_are_those_of_numpy() {
        let golden: Value = serde_json::from_str(include_str!("../../../tests/golden/pictures.json")).unwrap();
        let width = golden["width"].as_u64().unwrap() as usize;
        let images = golden["images"].as_array().unwrap();
        let tokens: Vec<Vec<f32>> =
            images.iter().map(|i| floats(&i["tokens"]).iter().map(|&x| x as f32).collect()).collect();
        let grid = |image: &Value, key: &str| image[key].as_u64().unwrap() as usize;
        let members: Vec<Member> =
            images.iter().map(|i| Member { index: 0, grid: [grid(i, "rows"), grid(i, "cols")] }).collect();
        let mut part = vec![true; tokens.iter().map(|t| t.len() / width).sum()];
        for case in ["all", "foreground"] {
            let want = &golden[case];
            let (mut scatter, mut from) = (Scatter::new(width), 0);
            for tokens in &tokens {
                let rows = rows(tokens, width);
                let kept: Vec<usize> = (0..rows.nrows()).filter(|i| part[from + i]).collect();
                scatter.add(rows.select(Axis(0), &kept).view());
                from += rows.nrows();
            }
            let pca = scatter.components();
            let near = |found: f64, want: f64, what: &str| {
                assert!((found - want).abs() <= 1e-5 * want.abs().max(1.0), "{case} {what}: {found}, not {want}");
            };
            for (i, want) in floats(&want["variance"]).into_iter().enumerate() {
                near(pca.variance[i], want, "variance");
            }
            floats(&want["axes"]).iter().zip(&pca.axes).for_each(|(w, f)| near(*f, *w, "axes"));
            let found: Vec<f32> = tokens.iter().flat_map(|t| pca.coordinates(rows(t, width))).collect();
            let found = Array2::from_shape_vec((part.len(), COLORS), found).unwrap();
            floats(&want["coordinates"]).iter().zip(&found).for_each(|(w, f)| near(*f as f64, *w, "coordinates"));
            let kept: Vec<usize> = (0..part.len()).filter(|&i| part[i]).collect();
            let scales = scales(found.select(Axis(0), &kept).view());
            let colors = floats(&want["colours"]);
            assert_eq!(colors.len(), 3 * part.len());
            for (row, want) in found.rows().into_iter().zip(colors.chunks(3)) {
                let found = color([row[0], row[1], row[2]], &scales);
                (0..3).for_each(|c| near(found[c], want[c], "colours"));
            }
            if case == "all" {
                let first = found.column(0).to_vec();
                let at = otsu(&first);
                near(at as f64, golden["threshold"].as_f64().unwrap(), "threshold");
                part = front(&first.iter().map(|x| *x > at).collect::<Vec<_>>(), &members);
                let want: Vec<bool> = floats(&golden["part"]).iter().map(|x| *x > 0.0).collect();
                assert_eq!(part, want);
                assert!(part.contains(&true) && part.contains(&false));
            }
        }
    }
}

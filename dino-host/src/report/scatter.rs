//! Where the features of images lie, in a plane: their two principal components, and t-SNE, which keeps neighbors together.

use super::page::visible;
use crate::eval::knn::{self, normalize};
use crate::viz::pca;
use bhtsne::{Neighbor, tSNE};
use maud::{Markup, html};
use ndarray::{Array2, ArrayView2};

/// Points of a map at most.
pub const MOST: usize = 1000;
/// Points of which t-SNE has something to show.
const FEWEST: usize = 20;
/// Neighbors that t-SNE keeps near, about; with fewer points a sixth of them. Its own default is 20, scikit-learn's 30.
const PERPLEXITY: f32 = 30.0;
/// How coarsely it sums the forces of far points (Barnes and Hut).
const THETA: f32 = 0.5;
/// Colors, and shapes, by which classes are told apart; of more classes the last have none of their own.
const COLORS: usize = 8;
const SHAPES: usize = 3;
/// Side of a map, and its margin.
const SIDE: f64 = 400.0;
const MARGIN: f64 = 10.0;

/// The maps of some images' features.
pub struct Maps {
    /// Two coordinates an image.
    components: Vec<[f64; 2]>,
    /// The part of the variance along the two.
    part: f64,
    /// The same of t-SNE, where there are points enough.
    tsne: Vec<[f64; 2]>,
    /// The class of an image, by its number among `names`.
    classes: Vec<Option<u32>>,
    names: Vec<String>,
}

impl Maps {
    /// Of features (images, C), as the k-NN vote sees them: of unit length.
    pub fn of(rows: ArrayView2<f32>, classes: Vec<Option<u32>>, names: Vec<String>) -> Maps {
        let unit = normalize(rows.to_owned());
        let mut scatter = pca::Scatter::new(unit.ncols());
        scatter.add(unit.view());
        let found = scatter.components();
        let plane = found.coordinates(unit.view());
        let components = plane.rows().into_iter().map(|row| [row[0] as f64, row[1] as f64]).collect();
        Maps { components, part: found.ratio().iter().take(2).sum(), tsne: tsne(&unit, &plane), classes, names }
    }

    pub fn draw(&self) -> Markup {
        if self.components.is_empty() {
            return html! {};
        }
        let labeled = self.classes.iter().any(Option::is_some);
        html! {
            h2 { "Where the features lie" }
            p.soft {
                (self.components.len()) " test images"
                @if labeled { ", by class" }
                ": near each other where the features are alike. Principal components keep distances as far as two of them can; "
                "t-SNE keeps neighbors together, and means nothing by the distance of groups."
            }
            div.charts {
                (self.map(&format!("Principal components, {:.0} % of the variance", 100.0 * self.part), &self.components))
                @if !self.tsne.is_empty() { (self.map("t-SNE", &self.tsne)) }
            }
            @if labeled {
                p.legend {
                    @for (class, name) in self.names.iter().enumerate().take(COLORS * SHAPES) {
                        span class={ "c" (class % COLORS) } { (["●", "■", "▲"][class / COLORS]) " " (visible(name)) }
                    }
                    @if self.names.len() > COLORS * SHAPES { span.soft { "gray: all other classes" } }
                }
            }
        }
    }

    fn map(&self, title: &str, points: &[[f64; 2]]) -> Markup {
        let of = |axis: usize| {
            let (low, high) =
                points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), p| (a.min(p[axis]), b.max(p[axis])));
            (low, if high > low { high - low } else { 1.0 })
        };
        let (x, y) = (of(0), of(1));
        // One scale for both axes: distances are what a map shows.
        let (scale, inner) = (x.1.max(y.1), SIDE - 2.0 * MARGIN);
        let at = |v: f64, (low, range): (f64, f64)| MARGIN + inner * ((v - low) / scale + 0.5 * (1.0 - range / scale));
        html! {
            figure.card {
                figcaption { (title) }
                svg.map viewBox={ "0 0 " (SIDE) " " (SIDE) } role="img" aria-label={ (title) ", " (points.len()) " images" } {
                    @for (point, class) in points.iter().zip(&self.classes) {
                        (mark(at(point[0], x), SIDE - at(point[1], y), class.map(|c| c as usize)))
                    }
                }
            }
        }
    }
}

/// A point of a class: a disc, a square or a triangle.
fn mark(x: f64, y: f64, class: Option<usize>) -> Markup {
    let name = match class {
        Some(class) if class < COLORS * SHAPES => format!("dot c{}", class % COLORS),
        _ => "dot other".into(),
    };
    let round = |v: f64| (10.0 * v).round() / 10.0;
    let (x, y) = (round(x), round(y));
    match class.map(|class| class / COLORS) {
        Some(1) => html! { rect class=(name) x=(round(x - 2.4)) y=(round(y - 2.4)) width="4.8" height="4.8" {} },
        Some(2) => html! { path class=(name) d={ "M" (x) " " (round(y - 3.2)) "l3 5.4h-6z" } {} },
        _ => html! { circle class=(name) cx=(x) cy=(y) r="2.6" {} },
    }
}

/// t-SNE from the principal components `plane` (images, 2 or more) as the start, with neighbors of our own, which makes it the same each time.
fn tsne(unit: &Array2<f32>, plane: &Array2<f32>) -> Vec<[f64; 2]> {
    let n = unit.nrows();
    // As scikit-learn starts: a standard deviation of 1e-4 along the first component.
    let deviation = (plane.column(0).iter().map(|x| x * x).sum::<f32>() / n as f32).sqrt();
    if n < FEWEST || !(deviation > 0.0 && deviation.is_finite()) {
        return Vec::new(); // few images, or all alike
    }
    let start: Vec<f32> =
        plane.rows().into_iter().flat_map(|row| [row[0], row[1]]).map(|x| 1e-4 * x / deviation).collect();
    let perplexity = PERPLEXITY.min((n - 1) as f32 / 6.0);
    let near = knn::leave_one_out(unit.view(), (3.0 * perplexity) as usize);
    // Rows have length 1: the squared distance is twice what the cosine lacks of 1.
    let neighbor = |(index, cosine): (usize, f32)| Neighbor { index, distance: (2.0 - 2.0 * cosine).max(0.0).sqrt() };
    let near: Vec<Vec<Neighbor<f32>>> = (0..n).map(|i| near.of(i).map(neighbor).collect()).collect();
    // In one thread: sums of several have no order, and the descent makes another map of every order.
    let Ok(alone) = rayon::ThreadPoolBuilder::new().num_threads(1).build() else { return Vec::new() };
    let found = alone.install(|| {
        let rows = vec![(); n];
        let mut embedding: tSNE<f32, ()> = tSNE::new(&rows);
        embedding.perplexity(perplexity).initial_embedding(start).barnes_hut_with_neighbors(THETA, &near);
        embedding.embedding()
    });
    let points: Vec<[f64; 2]> = found.chunks_exact(2).map(|p| [p[0] as f64, p[1] as f64]).collect();
    if points.iter().flatten().all(|x| x.is_finite()) { points } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three groups of directions in twelve dimensions.
    fn groups() -> (Array2<f32>, Vec<Option<u32>>) {
        let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 997) as f32 / 997.0 - 0.5;
        let rows = Array2::from_shape_fn((90, 12), |(i, j)| noise(i, j) * 0.4 + if j % 3 == i % 3 { 1.0 } else { 0.0 });
        (rows, (0..90).map(|i| Some(i % 3)).collect())
    }

    #[test]
    fn groups_stay_together_and_the_map_is_the_same_each_time() {
        let (rows, classes) = groups();
        let names = ["<a>", "b", "c"].map(String::from).to_vec();
        let maps = Maps::of(rows.view(), classes, names.clone());
        for points in [&maps.components, &maps.tsne] {
            assert_eq!(points.len(), 90);
            // Nearest in the plane: of the same group.
            for (i, p) in points.iter().enumerate() {
                let near = (0..90).filter(|j| *j != i).min_by(|a, b| {
                    let d = |j: usize| (points[j][0] - p[0]).hypot(points[j][1] - p[1]);
                    d(*a).total_cmp(&d(*b))
                });
                assert_eq!(near.unwrap() % 3, i % 3, "{i}");
            }
        }
        let page = maps.draw().into_string();
        assert!(page == Maps::of(rows.view(), maps.classes.clone(), names).draw().into_string());
        assert!(page.contains("&lt;a&gt;") && page.matches("<circle").count() == 180, "{page}");
    }

    #[test]
    fn few_images_equal_images_and_many_classes_have_maps_too() {
        let few = Maps::of(Array2::from_elem((3, 4), 1.0).view(), vec![None; 3], vec![]);
        assert!(few.tsne.is_empty() && !few.draw().into_string().contains("NaN"));
        let alike = Maps::of(Array2::from_elem((40, 4), 1.0).view(), (0..40).map(Some).collect(), vec!["x".into(); 40]);
        let page = alike.draw().into_string();
        assert!(
            !page.contains("NaN")
                && page.contains("dot other")
                && page.contains("<rect")
                && page.contains("l3 5.4h-6z")
        );
    }
}

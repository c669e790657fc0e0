//! What a run sees: attention over training, nearest neighbors, where features lie, and what is taken for what.

use super::confusion::{MATRIX, table};
use super::page::{Page, data, percent, visible};
use maud::{Markup, html};

impl Page<'_> {
    pub(super) fn gallery(&self) -> Markup {
        let e = self.evidence;
        if e.gallery.is_empty() {
            return html! {};
        }
        let of = e.image_names.join(", ");
        let images = e.images.iter().map(|png| ("the images", png, format!("Images: {of}")));
        let resnet = self.config.is_some_and(|config| config.resnet().is_some());
        let [what, title, caption] = if resnet {
            [
                "Activation",
                "Where the teacher's last map is active",
                "Class activation of the last feature map (Eigen-CAM), for the same images as training goes on; light is most.",
            ]
        } else {
            [
                "Attention",
                "What the teacher attends to",
                "Mean attention of the last block's class token, for the same images as training goes on; light is most.",
            ]
        };
        let drawn = e.gallery.iter().map(|(when, png)| (when.as_str(), png, format!("{what} {when}, over: {of}")));
        html! {
            h2 { (title) }
            p.soft { (caption) }
            div.gallery {
                @for (when, png, alt) in images.chain(drawn) {
                    figure {
                        img alt=(visible(&alt)) src=(data(png));
                        figcaption { small { (visible(when)) } }
                    }
                }
            }
        }
    }

    pub(super) fn neighbors(&self) -> Markup {
        let lines = &self.evidence.neighbors;
        if lines.is_empty() {
            return html! {};
        }
        html! {
            h2 { "Nearest neighbors" }
            p.soft {
                "Test images, and the training images whose features are most similar (cosine). "
                "A full green frame and ✓: of the same class; a dashed red one and ✗: of another."
            }
            @for line in lines {
                div.near {
                    @for (i, shown) in line.iter().enumerate() {
                        @let (class, name) = (visible(shown.class.as_deref().unwrap_or("")), visible(&shown.name));
                        @let (kind, what) = match (i, shown.same) {
                            (0, _) => ("query", format!("Query: {class} ")),
                            (_, Some(true)) => ("same", format!("Same class: {class} ")),
                            (_, Some(false)) => ("other", format!("Other class: {class} ")),
                            _ => ("", String::new()),
                        };
                        figure class=(kind) {
                            img alt={ (what) (name) } src=(data(&shown.png));
                            figcaption { @match shown.same { Some(true) => "✓ ", Some(false) => "✗ ", None => "" } (class) " " @if i > 0 { (format_args!("{:.3}", shown.similarity)) } }
                        }
                    }
                }
            }
        }
    }

    pub(super) fn confusion(&self) -> Markup {
        let e = self.evidence;
        let Some(counts) = &e.confusion else { return html! {} };
        let [bank, asked, train, test] = e.sizes;
        let few = e.classes.len() <= MATRIX;
        html! {
            h2 { "Confusion of the k-NN vote" }
            p.soft {
                "k = 20, teacher, top-1 " (percent(e.teacher))
                @if bank < train || asked < test { ", " (bank) " of " (train) " and " (asked) " of " (test) " images" }
                ". "
                @if few { "Rows are what an image is, columns what it was taken for." }
                @else { "The commonest mistakes." }
            }
            (table(&e.classes, counts))
        }
    }

    /// The share of right answers by class, as bars: of many classes the worst and the best.
    pub(super) fn classes(&self) -> Markup {
        const MOST: usize = 40;
        let e = self.evidence;
        let Some(counts) = &e.confusion else { return html! {} };
        let mut all: Vec<(&str, u64, f64)> = (0..counts.nrows())
            .map(|c| (e.classes[c].as_str(), counts.row(c).sum(), counts[[c, c]] as f64))
            .filter(|(_, images, _)| *images > 0)
            .map(|(name, images, right)| (name, images, 100.0 * right / images as f64))
            .collect();
        all.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(b.0)));
        let left_out = all.len().saturating_sub(MOST);
        if left_out > 0 {
            all.drain(MOST / 2..MOST / 2 + left_out);
        }
        html! {
            h2 { "k-NN by class" }
            p.soft {
                "The share of each class's test images that is taken for what it is."
                @if left_out > 0 { " The " (MOST / 2) " best and the " (MOST / 2) " worst; " (left_out) " between them are left out." }
            }
            table.bars {
                tbody {
                    @for (name, images, top1) in all {
                        tr {
                            th scope="row" { (visible(name)) }
                            td { div style=(format_args!("width:{top1:.1}%")) {} }
                            td { (format_args!("{top1:.1} %")) small { " of " (images) } }
                        }
                    }
                }
            }
        }
    }

    /// What the vote is most sure of, and wrong about.
    pub(super) fn mistakes(&self) -> Markup {
        if self.evidence.mistakes.is_empty() {
            return html! {};
        }
        html! {
            h2 { "Most confident mistakes" }
            p.soft { "A test image, the class that it was taken for with its share of the votes, and the most similar training image of that class." }
            div.mistakes {
                @for mistake in &self.evidence.mistakes {
                    @let (query, nearest) = (&mistake.query, &mistake.nearest);
                    @let class = |shown: &super::evidence::Shown| visible(shown.class.as_deref().unwrap_or(""));
                    figure.card {
                        div.pair {
                            img alt={ "Is " (class(query)) ": " (visible(&query.name)) } src=(data(&query.png));
                            img alt={ "Taken for " (class(nearest)) ": " (visible(&nearest.name)) } src=(data(&nearest.png));
                        }
                        figcaption {
                            b { (class(query)) } " taken for " b { (class(nearest)) } " "
                            small { (format_args!("{:.0} % of the votes, similarity {:.3}", 100.0 * mistake.share, nearest.similarity)) }
                        }
                    }
                }
            }
        }
    }
}

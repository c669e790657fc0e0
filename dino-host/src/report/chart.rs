//! Line charts as SVG.

use maud::{Markup, html};
use std::borrow::Cow;

/// Most bins along a line. Where there are more points, neighboring ones share a bin, which keeps their mean and extremes.
const BINS: usize = 500;
/// Characters of a name that fits beside its line; where one is longer, all are below the chart.
const BESIDE: usize = 10;
/// Colors of lines, after which they begin again.
const COLORS: usize = 8;
/// The same of a wide chart, whose line is smooth.
const SMOOTH: usize = 120;
/// Size, and the margins left, above, right and below of the lines.
const NARROW: f64 = 400.0;
const WIDE: f64 = 1100.0;
const HEIGHT: f64 = 210.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 10.0;
const RIGHT: f64 = 66.0;
const BOTTOM: f64 = 34.0;

/// Neighboring points that share a bin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    pub x: f64,
    pub mean: f64,
    pub min: f64,
    pub max: f64,
}

/// Points in the order of x in at most `bins` bins of equally many neighboring points, each with their mean, least and greatest.
/// Points that are not finite are left out; where no point of a bin is finite, there is a gap (`None`).
pub fn thin(points: &[(f64, f64)], bins: usize) -> Vec<Option<Bin>> {
    let size = points.len().div_ceil(bins.max(1)).max(1);
    let bin = |part: &[(f64, f64)]| {
        let found: Vec<f64> = part.iter().map(|p| p.1).filter(|y| y.is_finite()).collect();
        (!found.is_empty()).then(|| Bin {
            x: part[part.len() / 2].0,
            mean: found.iter().sum::<f64>() / found.len() as f64,
            min: found.iter().copied().fold(f64::INFINITY, f64::min),
            max: found.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    };
    points.chunks(size).map(bin).collect()
}

pub struct Line {
    pub name: Cow<'static, str>,
    pub points: Vec<(f64, f64)>,
    /// Few points, each to be seen.
    pub dots: bool,
}

pub struct Chart {
    pub title: &'static str,
    /// Of the vertical axis.
    pub unit: &'static str,
    /// Of the horizontal axis.
    pub along: &'static str,
    pub lines: Vec<Line>,
    /// Lines that do not move: name, height.
    pub marks: Vec<(String, f64)>,
    /// As wide as the page, and smoothed.
    pub wide: bool,
}

/// A number short enough for an axis.
pub fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.1e}").replace(".0e", "e"),
        a => {
            let text = format!("{x:.*}", (3 - a.log10().floor() as i32).clamp(0, 6) as usize);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
    }
}

/// Round numbers from `low` to `high`, about four.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low) / 4.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= raw * 0.999).unwrap_or(raw);
    let first = (low / step - 1e-9).ceil();
    (0..12).map(|i| (first + i as f64) * step).take_while(|t| *t <= high + 1e-9 * step).map(|t| t + 0.0).collect()
}

impl Chart {
    /// A figure; nothing where there is not one finite point.
    pub fn draw(&self) -> Markup {
        let (width, bins) = if self.wide { (WIDE, SMOOTH) } else { (NARROW, BINS) };
        let lines: Vec<(&Line, Vec<Option<Bin>>)> = self.lines.iter().map(|l| (l, thin(&l.points, bins))).collect();
        let lines: Vec<_> = lines.into_iter().filter(|l| l.1.iter().any(Option::is_some)).collect();
        let bins = || lines.iter().flat_map(|l| l.1.iter().flatten());
        let Some(first) = bins().next() else { return html! {} };
        let (mut x0, mut x1, mut y0, mut y1) = (first.x, first.x, first.min, first.max);
        for p in bins() {
            (x0, x1, y0, y1) = (x0.min(p.x), x1.max(p.x), y0.min(p.min), y1.max(p.max));
        }
        self.marks.iter().for_each(|m| (y0, y1) = (y0.min(m.1), y1.max(m.1)));
        // From zero where that costs little height.
        if y0 > 0.0 && y0 < 0.5 * y1 {
            y0 = 0.0;
        }
        if y1 - y0 <= 1e-9 * y1.abs() {
            let slack = if y1 == 0.0 { 1.0 } else { 0.1 * y1.abs() };
            (y0, y1) = (y0 - slack, y1 + slack);
        }
        let (y0, y1) = if y0 == 0.0 { (0.0, y1 * 1.04) } else { (y0 - 0.04 * (y1 - y0), y1 + 0.04 * (y1 - y0)) };
        let (x0, x1) = if x1 > x0 { (x0, x1) } else { (x0 - 0.5, x0 + 0.5) };
        let at_x = |x: f64| LEFT + (x - x0) / (x1 - x0) * (width - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

        let mut texts = Vec::new();
        let named = lines.len() + self.marks.len() > 1;
        let legend = named && lines.iter().any(|(line, _)| line.name.chars().count() > BESIDE);
        // Height and class of what is written at the right end.
        let mut labels: Vec<(f64, String, &str)> = Vec::new();
        for (name, y) in &self.marks {
            labels.push((at_y(*y), "mark".into(), name));
            texts.push(format!("{name}: {}", short(*y)));
        }
        let mut hover = Vec::new();
        for (i, (line, bins)) in lines.iter().enumerate() {
            let found: Vec<&Bin> = bins.iter().flatten().collect();
            let (a, b) = (found[0], found[found.len() - 1]);
            let low = found.iter().fold(f64::INFINITY, |m, p| m.min(p.min));
            let high = found.iter().fold(f64::NEG_INFINITY, |m, p| m.max(p.max));
            let [a1, b1, low, high] = [a.mean, b.mean, low, high].map(short);
            texts.push(format!("{}: from {a1} to {b1}, least {low}, greatest {high}", line.name));
            if named && !legend {
                labels.push((at_y(b.mean), color(i), &line.name));
            }
            let numbers: Vec<String> =
                found.iter().map(|p| format!("{:.1} {} {}", at_x(p.x), short(p.x), short(p.mean))).collect();
            hover.push(format!("{},{}", line.name, numbers.join(",")));
        }
        // Labels keep apart.
        labels.sort_by(|a, b| a.0.total_cmp(&b.0));
        for i in 1..labels.len() {
            labels[i].0 = labels[i].0.max(labels[i - 1].0 + 13.0);
        }
        let over = labels.last().map_or(0.0, |l| l.0 - (HEIGHT - BOTTOM)).max(0.0);
        let right = width - RIGHT;
        // Elements of SVG have braces even where they are empty: an end tag, without which they would hold what follows them.
        html! {
            figure.card {
                figcaption {
                    (self.title)
                    @if !self.unit.is_empty() { " " small { (self.unit) } }
                    output {}
                }
                svg viewBox={ "0 0 " (width) " " (HEIGHT) } role="img"
                    aria-label={ (self.title) ". " (texts.join("; ")) }
                    data-along=(self.along) data-lines=(hover.join(";")) {
                    @for t in ticks(y0, y1) {
                        path.grid d={ "M" (LEFT) " " (tenths(at_y(t))) "H" (right) } {}
                        text.tick x=(LEFT - 6.0) y=(tenths(at_y(t) + 4.0)) text-anchor="end" { (short(t)) }
                    }
                    @for t in ticks(x0, x1) {
                        text.tick x=(tenths(at_x(t))) y=(HEIGHT - BOTTOM + 15.0) text-anchor="middle" { (short(t)) }
                    }
                    text.tick x=((LEFT + right) / 2.0) y=(HEIGHT - 4.0) text-anchor="middle" { (self.along) }
                    @for (_, y) in &self.marks {
                        path.mark d={ "M" (LEFT) " " (tenths(at_y(*y))) "H" (right) } {}
                    }
                    @for (i, (line, bins)) in lines.iter().enumerate() {
                        (curve(i, bins, line.dots, |x, y| (tenths(at_x(x)), tenths(at_y(y)))))
                    }
                    @for (y, class, name) in &labels {
                        text class={ "label " (class) } x=(right + 5.0) y=(tenths(y - over + 4.0)) { (name) }
                    }
                    path.cursor d="" {}
                }
                @if legend {
                    p.legend { @for (i, (line, _)) in lines.iter().enumerate() { span class=(color(i)) { (line.name) } } }
                }
            }
        }
    }
}

/// The class of line number `i`.
fn color(i: usize) -> String {
    format!("c{}", i % COLORS)
}

fn tenths(x: f64) -> String {
    format!("{x:.1}")
}

/// Line number `i`: bands from the least to the greatest, means, dots. `at` gives the coordinates in the drawing.
fn curve(i: usize, bins: &[Option<Bin>], dots: bool, at: impl Fn(f64, f64) -> (String, String)) -> Markup {
    let way = |points: &mut dyn Iterator<Item = (f64, f64)>| {
        let points: Vec<String> = points.map(|(x, y)| at(x, y)).map(|(x, y)| format!("{x} {y}")).collect();
        points.join("L")
    };
    // Ranges without gaps.
    let parts = bins.split(Option::is_none).filter(|p| !p.is_empty());
    let parts = parts.map(|p| p.iter().flatten().copied().collect::<Vec<Bin>>());
    html! {
        @for part in parts {
            @if part.iter().any(|p| p.max > p.min) {
                @let (above, below) = (part.iter().map(|p| (p.x, p.max)), part.iter().rev().map(|p| (p.x, p.min)));
                path class={ "band " (color(i)) } d={ "M" (way(&mut above.chain(below))) "Z" } {}
            }
            path class={ "line " (color(i)) } d={ "M" (way(&mut part.iter().map(|p| (p.x, p.mean)))) } {}
            @if (dots && part.len() <= 40) || part.len() == 1 {
                @for p in &part {
                    @let (x, y) = at(p.x, p.mean);
                    circle class={ "dot " (color(i)) } cx=(x) cy=(y) r="2.6" {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_extremes() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (i as f64, 1.0)).collect();
        points[777].1 = 55.0;
        points[5_001].1 = -3.0;
        points[9_999].1 = f64::NAN;
        (40..80).for_each(|i| points[i].1 = f64::NAN);
        let thinned = thin(&points, 500);
        assert_eq!(thinned.len(), 500);
        // 20 points a bin: by hand (19 * 1 + 55) / 20.
        assert_eq!(thinned[38], Some(Bin { x: 770.0, mean: 3.7, min: 1.0, max: 55.0 }));
        assert_eq!(thinned[250].unwrap().min, -3.0);
        assert_eq!((thinned[2], thinned[3], thinned[499].unwrap().max), (None, None, 1.0));
        assert_eq!(thin(&points[..3], 500).len(), 3);
        assert!(thin(&[], 500).is_empty());
    }

    /// However long the run, a chart has a few kilobytes, and the one outlier is still in it.
    #[test]
    fn a_chart_of_a_million_steps_is_small_and_keeps_the_outlier() {
        let draw = |steps: usize| {
            let mut points: Vec<(f64, f64)> = (0..steps).map(|i| (i as f64, 5.0 + (i % 7) as f64 / 10.0)).collect();
            points[steps / 3].1 = 1234.0;
            points[steps / 2].1 = -77.0;
            let lines = vec![Line { name: "loss".into(), points, dots: false }];
            Chart { title: "t", unit: "", along: "step", lines, marks: vec![], wide: false }.draw().into_string()
        };
        let (short, long) = (draw(1_000), draw(1_000_000));
        assert!(long.contains("least -77, greatest 1234"), "{long}");
        assert!(long.len() < 50_000 && long.len() < 2 * short.len(), "{} {}", long.len(), short.len());
    }

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(ticks(0.0, 100.0), [0.0, 25.0, 50.0, 75.0, 100.0]);
        assert_eq!(ticks(-0.5, 3.4), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(
            [0.0, 1.5, 73.4, 0.016, 2e-6, 1e6, 250.0].map(short),
            ["0", "1.5", "73.4", "0.016", "2e-6", "1e6", "250"]
        );
    }

    #[test]
    fn hard_numbers_still_make_a_chart() {
        let draw = |points: Vec<(f64, f64)>| {
            let lines = vec![Line { name: "a".into(), points, dots: true }];
            Chart { title: "<t>", unit: "", along: "step", lines, marks: vec![], wide: false }.draw().into_string()
        };
        assert_eq!(draw(vec![]), "");
        assert_eq!(draw(vec![(0.0, f64::NAN)]), "");
        for points in [vec![(0.0, 0.0)], vec![(1.0, 5.0), (2.0, 5.0)], vec![(0.0, 1e-30), (1.0, -1e30)]] {
            let svg = draw(points);
            assert!(svg.contains("&lt;t&gt;") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        // A gap makes two ranges.
        let gap = draw(vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 1.0), (3.0, 2.0)]);
        assert_eq!(gap.matches(r#"class="line c0""#).count(), 2);
    }
}

//! Line charts as SVG: axes, direct labels, and few enough points for a page.

use super::page::escape;
use std::fmt::Write;

/// Points a line keeps at most: the least and the greatest of each of half as many stretches.
const POINTS: usize = 600;
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 230.0;
/// Left, top, right, bottom of the plot within the picture.
const PLOT: [f64; 4] = [48.0, 12.0, 408.0, 196.0];

/// One line.
pub struct Line {
    pub name: &'static str,
    /// (x, y), x rising, all finite.
    pub points: Vec<[f64; 2]>,
    /// Points are marked: few, and what lies between them is not known.
    pub dots: bool,
}

/// A chart over steps.
pub struct Chart {
    pub title: &'static str,
    /// What the values are, with their unit.
    pub unit: &'static str,
    pub lines: Vec<Line>,
    /// Levels to compare with, by name.
    pub levels: Vec<(String, f64)>,
    /// The values start at zero.
    pub from_zero: bool,
}

impl Chart {
    /// A figure, or none where there is nothing to show.
    pub fn html(&self, last_step: f64) -> String {
        let lines: Vec<(&Line, Vec<[f64; 2]>)> =
            self.lines.iter().filter(|l| !l.points.is_empty()).map(|l| (l, thin(&l.points, POINTS))).collect();
        if lines.is_empty() {
            return String::new();
        }
        let values = lines.iter().flat_map(|l| &l.1).map(|p| p[1]).chain(self.levels.iter().map(|l| l.1));
        let (mut low, mut high) = values.fold((f64::MAX, f64::MIN), |(a, b), y| (a.min(y), b.max(y)));
        if self.from_zero {
            low = low.min(0.0);
        }
        if high - low < 1e-12 * high.abs().max(1e-300) {
            let room = if high == 0.0 { 1.0 } else { 0.1 * high.abs() };
            (low, high) = (low - room, high + room);
        }
        let (y_ticks, x_ticks) = (ticks(low, high, 5), ticks(0.0, last_step.max(1.0), 5));
        // The axis ends on a tick, so that every line has a number above it.
        let (low, high) = (low.min(y_ticks[0]), high.max(y_ticks[y_ticks.len() - 1]));
        let [left, top, right, bottom] = PLOT;
        let x = |v: f64| left + (right - left) * v / last_step.max(1.0);
        let y = |v: f64| bottom - (bottom - top) * (v - low) / (high - low);
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}: {}\">",
            escape(self.title),
            escape(&self.words(&lines))
        );
        for &v in &y_ticks {
            let at = y(v);
            let _ = write!(svg, "<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>");
            let _ = write!(svg, "<text x=\"{}\" y=\"{:.1}\" class=\"end\">{}</text>", left - 6.0, at + 4.0, number(v));
        }
        for &v in &x_ticks {
            // A number at the right edge ends there, so that none is cut off.
            let (at, class) = if x(v) > right - 12.0 { (right.min(x(v) + 12.0), "end") } else { (x(v), "mid") };
            let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{}\" class=\"{class}\">{}</text>", bottom + 16.0, number(v));
        }
        let _ = write!(svg, "<text x=\"{right}\" y=\"{}\" class=\"end\">step</text>", HEIGHT - 3.0);
        for (name, value) in &self.levels {
            let at = y(*value);
            let _ = write!(svg, "<path class=\"level\" d=\"M{left} {at:.1}H{right}\"/>");
            let _ = write!(
                svg,
                "<text x=\"{}\" y=\"{:.1}\" class=\"end\">{}</text>",
                right - 2.0,
                if at > top + 14.0 { at - 4.0 } else { at + 13.0 },
                escape(name)
            );
        }
        for (i, (line, points)) in lines.iter().enumerate() {
            let mut path = String::new();
            points.iter().for_each(|p| {
                let _ = write!(path, "{:.1},{:.1} ", x(p[0]), y(p[1]));
            });
            let _ = write!(svg, "<polyline class=\"line c{i}\" points=\"{}\"/>", path.trim_end());
            if line.dots || points.len() == 1 {
                points.iter().for_each(|p| {
                    let _ = write!(
                        svg,
                        "<circle class=\"dot c{i}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\"/>",
                        x(p[0]),
                        y(p[1])
                    );
                });
            }
        }
        svg.push_str("<path class=\"cursor\" d=\"\"/></svg>");
        let legend: String = lines
            .iter()
            .enumerate()
            .map(|(i, (line, points))| {
                let last = points[points.len() - 1][1];
                format!("<span class=\"key c{i}\">{} <b>{}</b></span>", escape(line.name), number(last))
            })
            .collect();
        let data: Vec<_> = lines.iter().map(|(line, points)| (line.name, points)).collect();
        let data = serde_json::json!({ "plot": PLOT, "width": WIDTH, "last": last_step.max(1.0), "lines": data });
        format!(
            "<figure class=\"card chart\" data-chart=\"{}\"><figcaption>{} <small>{}</small></figcaption>{svg}<p class=\"legend\">{legend}</p></figure>\n",
            escape(&data.to_string()),
            escape(self.title),
            escape(self.unit)
        )
    }

    /// The chart for those who do not see it.
    fn words(&self, lines: &[(&Line, Vec<[f64; 2]>)]) -> String {
        let said: Vec<String> = lines
            .iter()
            .map(|(line, p)| format!("{} from {} to {}", line.name, number(p[0][1]), number(p[p.len() - 1][1])))
            .collect();
        said.join("; ")
    }
}

/// At most `most` of the points: of each stretch of x the first least and the first greatest value, so that no peak is lost.
pub fn thin(points: &[[f64; 2]], most: usize) -> Vec<[f64; 2]> {
    if points.len() <= most {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(most / 2);
    let mut kept = Vec::with_capacity(most);
    for part in points.chunks(stretch) {
        let least = (0..part.len()).min_by(|&a, &b| part[a][1].total_cmp(&part[b][1])).unwrap_or(0);
        let most = (0..part.len()).rev().max_by(|&a, &b| part[a][1].total_cmp(&part[b][1])).unwrap_or(0);
        kept.push(part[least.min(most)]);
        if least != most {
            kept.push(part[least.max(most)]);
        }
    }
    kept
}

/// Round numbers, 1, 2 or 5 times a power of ten apart, about `count` of them, the first at or below `low`, the last at or above `high`.
fn ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= 0.999 * rough).unwrap_or(rough);
    let (first, last) = ((low / step + 1e-9).floor() as i64, (high / step - 1e-9).ceil() as i64);
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Up to four digits that count.
pub fn number(v: f64) -> String {
    let size = v.abs();
    let plain = |digits: usize| {
        let text = format!("{v:.digits$}");
        match text.contains('.') {
            true => text.trim_end_matches('0').trim_end_matches('.').into(),
            false => text,
        }
    };
    match () {
        () if v == 0.0 => "0".into(),
        () if !(1e-3..1e6).contains(&size) => format!("{v:.1e}"),
        () if size >= 1000.0 => plain(0),
        () if size >= 100.0 => plain(1),
        () if size >= 10.0 => plain(2),
        () if size >= 0.1 => plain(3),
        () => plain(5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_peaks_and_the_order() {
        let mut points: Vec<[f64; 2]> = (0..100_000).map(|i| [i as f64, (i as f64 * 0.01).sin()]).collect();
        points[54_321][1] = 9.0;
        points[77_777][1] = -9.0;
        let kept = thin(&points, 600);
        assert!(kept.len() <= 600 && kept.len() > 300, "{}", kept.len());
        assert!(kept.contains(&[54_321.0, 9.0]) && kept.contains(&[77_777.0, -9.0]));
        assert!(kept.is_sorted_by(|a, b| a[0] < b[0]));
        assert_eq!(thin(&points[..600], 600), points[..600]);
        // All equal: one a stretch, the first.
        let level: Vec<[f64; 2]> = (0..10).map(|i| [i as f64, 1.0]).collect();
        assert_eq!(thin(&level, 4), [[0.0, 1.0], [5.0, 1.0]]);
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        let close = |a: Vec<f64>, b: &[f64]| {
            assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}")
        };
        close(ticks(0.0, 10.0, 5), &[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        close(ticks(1.31, 5.6, 5), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        close(ticks(-0.02, 0.03, 5), &[-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]);
        close(ticks(0.0, 1.0, 5), &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    }

    #[test]
    fn numbers_are_short() {
        let found: Vec<String> = [0.0, 1.0, -0.25, 0.0005, 12.345, 123.45, 54321.0, 3.2e7, 0.016].map(number).into();
        assert_eq!(found, ["0", "1", "-0.25", "5.0e-4", "12.35", "123.5", "54321", "3.2e7", "0.016"]);
    }

    #[test]
    fn a_chart_of_one_point_or_a_level_line_is_finite() {
        for points in [vec![[0.0, 3.0]], vec![[0.0, 0.0], [5.0, 0.0]], vec![[0.0, 1e-30], [9.0, 1e30]]] {
            let lines = vec![Line { name: "a<b", points, dots: false }];
            let chart = Chart { title: "t", unit: "u", lines, levels: vec![("ln K".into(), 2.0)], from_zero: true };
            let html = chart.html(0.0);
            assert!(html.contains("a&lt;b") && !html.contains("NaN") && !html.contains("inf\""), "{html}");
        }
        let none = Chart { title: "t", unit: "u", lines: vec![], levels: vec![], from_zero: true };
        assert_eq!(none.html(5.0), "");
    }
}

//! How well a mask fits, as DAVIS measures it (Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object
//! Segmentation", CVPR 2016, section 4; `davis2017-evaluation/davis2017/metrics.py` and `utils.py`).
//!
//! J: region similarity, the Jaccard index. F: boundary measure, 2 P R / (P + R), P the part of the found boundary that is within a
//! tolerance of the true one, R the part of the true one within it of the found.

/// The published tolerance of F as a part of the image's diagonal.
pub const BOUNDARY: f64 = 0.008;

/// Jaccard index over the scored pixels: |A and B| / |A or B|; 1 for two empty masks.
pub fn region(found: &[bool], exact: &[bool], scored: &[bool]) -> f64 {
    let (mut both, mut any) = (0usize, 0usize);
    for ((&a, &b), _) in found.iter().zip(exact).zip(scored).filter(|(_, scored)| **scored) {
        both += (a && b) as usize;
        any += (a || b) as usize;
    }
    if any == 0 { 1.0 } else { both as f64 / any as f64 }
}

/// F of two masks (rows of `width`) over the scored pixels; others count as background. 1 for two masks without a boundary, 0 where one
/// has none. `part`: the tolerance, a part of the diagonal, rounded up to full pixels.
pub fn boundary(found: &[bool], exact: &[bool], scored: &[bool], width: usize, part: f64) -> f64 {
    let height = found.len() / width.max(1);
    let radius = libm::ceil(part * libm::sqrt((width * width + height * height) as f64)) as usize;
    let edge = |mask: &[bool]| edge(&mask.iter().zip(scored).map(|(&m, &j)| m && j).collect::<Vec<_>>(), width);
    let (found, exact) = (edge(found), edge(exact));
    let count = |mask: &[bool]| mask.iter().filter(|m| **m).count();
    let (of_found, of_exact) = (count(&found), count(&exact));
    match (of_found, of_exact) {
        (0, 0) => return 1.0,
        (0, _) | (_, 0) => return 0.0,
        _ => (),
    }
    let within = |edge: &[bool], other: &[bool]| {
        let near = dilated(other, width, radius);
        edge.iter().zip(&near).filter(|(e, n)| **e && **n).count() as f64
    };
    let (precision, recall) = (within(&found, &exact) / of_found as f64, within(&exact, &found) / of_exact as f64);
    if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

/// Pixels that differ from the one to the right, below, or both; in the last column and row only from the one below or to the right
/// (`seg2bmap`).
fn edge(mask: &[bool], width: usize) -> Vec<bool> {
    let height = mask.len() / width;
    let mut edge = vec![false; mask.len()];
    for y in 0..height {
        for x in 0..width {
            let at = y * width + x;
            let (right, below) = (x + 1 < width, y + 1 < height);
            edge[at] = right && mask[at] != mask[at + 1]
                || below && mask[at] != mask[at + width]
                || right && below && mask[at] != mask[at + width + 1];
        }
    }
    edge
}

/// Pixels at most `radius` from a set one. A row at a time: a set pixel reaches sqrt(r^2 - dy^2) columns far in the row dy away.
fn dilated(mask: &[bool], width: usize, radius: usize) -> Vec<bool> {
    let height = mask.len() / width;
    let reach: Vec<usize> = (0..=radius).map(|dy| (radius * radius - dy * dy).isqrt()).collect();
    let mut wide = vec![false; mask.len()];
    for (at, _) in mask.iter().enumerate().filter(|(_, set)| **set) {
        let (y, x) = (at / width, at % width);
        for row in y.saturating_sub(radius)..(y + radius + 1).min(height) {
            let reach = reach[row.abs_diff(y)];
            wide[row * width + x.saturating_sub(reach)..row * width + (x + reach + 1).min(width)].fill(true);
        }
    }
    wide
}

/// Mean, recall (the part of the frames above 0.5) and decay of one object's values over the scored frames, of which there is one at
/// least. Decay: mean of the first quarter less that of the last, the quarters sharing their border frames (`db_statistics`).
pub fn statistics(values: &[f64]) -> [f64; 3] {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let n = values.len();
    // linspace(1, n, 5), rounded (a half, shifted by 1e-10, goes up), less one.
    let border = |i: usize| libm::rint(1.0 + (n - 1) as f64 * i as f64 / 4.0 + 1e-10) as usize - 1;
    let quarter = |i: usize| mean(&values[border(i)..=border(i + 1)]);
    let recall = values.iter().filter(|v| **v > 0.5).count() as f64 / n as f64;
    [mean(values), recall, quarter(0) - quarter(3)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rectangle in an image of 12 x 8.
    fn block(top: usize, left: usize, height: usize, width: usize) -> Vec<bool> {
        let inside = |at: usize, from: usize, n: usize| (from..from + n).contains(&at);
        (0..96).map(|i| inside(i / 12, top, height) && inside(i % 12, left, width)).collect()
    }

    #[test]
    fn regions_by_hand() {
        let all = [true; 96];
        assert_eq!(region(&block(1, 1, 4, 4), &block(1, 3, 4, 4), &all), 8.0 / 24.0);
        assert_eq!(region(&block(0, 0, 0, 0), &block(0, 0, 0, 0), &all), 1.0);
        // The columns from 5 on are not scored: 8 of 16 pixels are common.
        let left: Vec<bool> = (0..96).map(|i| i % 12 < 5).collect();
        assert_eq!(region(&block(1, 1, 4, 4), &block(1, 3, 4, 4), &left), 0.5);
    }

    #[test]
    fn boundaries_by_hand() {
        let all = [true; 96];
        let f = |a: &[bool], b: &[bool], part| boundary(a, b, &all, 12, part);
        let (one, none) = (block(2, 2, 4, 4), block(0, 0, 0, 0));
        assert_eq!((f(&one, &one, 0.008), f(&none, &none, 0.008)), (1.0, 1.0));
        assert_eq!((f(&one, &none, 0.008), f(&none, &one, 0.008)), (0.0, 0.0));
        // Three columns away, the tolerance one pixel: of the 5 x 5 ring of 16, only the two rows reach each other's, where they overlap.
        let moved = block(2, 5, 4, 4);
        let ring = edge(&one, 12);
        assert_eq!(ring.iter().filter(|e| **e).count(), 16);
        assert!(ring[12 + 1] && ring[5 * 12 + 5] && !ring[2 * 12 + 2] && !ring[6 * 12 + 6]);
        let (p, n) = (f(&one, &moved, 0.008), 16.0);
        // Columns 3, 4, 5 of the rows 1 and 5 of the first ring (3 is one beside the other ring's column 4), rows 2 to 4 of column 5
        // (one beside column 4): 6 + 3; in the other ring columns 4, 5, 6 and column 4: 9 as well.
        assert_eq!(p, 9.0 / n);
        // A tolerance as wide as the image forgives everything.
        assert_eq!(f(&one, &moved, 1.0), 1.0);
    }

    #[test]
    fn a_dilated_pixel_is_a_disk() {
        let mut one = [false; 96];
        one[4 * 12 + 5] = true;
        let wide = dilated(&one, 12, 3);
        for i in 0..96usize {
            let (dy, dx) = ((i / 12).abs_diff(4), (i % 12).abs_diff(5));
            assert_eq!(wide[i], dy * dy + dx * dx <= 9, "{i}");
        }
    }

    #[test]
    fn decay_is_first_quarter_less_last() {
        // Nine frames: quarters are frames 0..=2, 2..=4, 4..=6, 6..=8.
        let values = [0.9, 0.9, 0.9, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3];
        let [mean, recall, decay] = statistics(&values);
        assert!((mean - 0.6).abs() < 1e-12 && (recall - 6.0 / 9.0).abs() < 1e-12 && (decay - 0.6).abs() < 1e-12);
        assert_eq!(statistics(&[0.7]), [0.7, 1.0, 0.0]);
    }
}

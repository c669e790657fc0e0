//! Figures in memory: what the drawing commands and the report make, to be written as PNG.

use crate::error::Result;
use crate::image::Image;
use crate::image::enlarge::enlarge;
use crate::image::png::{encode_png, write_png};
use crate::image::resize::{Filter, resize};
use std::path::Path;

/// Pixels between the figures of a contact sheet.
pub const GAP: usize = 6;
/// RGB of the background.
pub const WHITE: [u8; 3] = [255; 3];

/// An RGB figure, rows top to bottom.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// `height * width` pixels.
    pub rgb: Vec<[u8; 3]>,
}

impl Canvas {
    /// Of one color.
    pub fn new(width: usize, height: usize, color: [u8; 3]) -> Canvas {
        Canvas { width, height, rgb: vec![color; width * height] }
    }

    /// An image, every pixel a square of side `scale`. Of more than three channels the first three, of fewer the first one thrice.
    pub fn of(image: &Image, scale: usize) -> Canvas {
        let size = [image.height * scale, image.width * scale];
        let colored = colored(image);
        let (rgb, _) = colored.pixels.as_chunks::<3>();
        let rgb = enlarge(rgb, [image.height, image.width], scale, size, [0; 3]);
        Canvas { width: size[1], height: size[0], rgb }
    }

    /// An image as large as fits a square of `side` pixels, in the middle of that square, white around it.
    pub fn thumbnail(image: &Image, side: usize) -> Canvas {
        let fitted = |n: usize| ((n * side) as f64 / image.height.max(image.width) as f64).round().max(1.0) as usize;
        let small = Canvas::of(&resize(&colored(image), fitted(image.height), fitted(image.width), Filter::Bicubic), 1);
        let mut square = Canvas::new(side, side, WHITE);
        square.put((side - small.height) / 2, (side - small.width) / 2, &small);
        square
    }

    /// Every pixel by its index and color.
    pub fn map(&self, f: impl Fn(usize, [u8; 3]) -> [u8; 3]) -> Canvas {
        let rgb = self.rgb.iter().enumerate().map(|(i, &p)| f(i, p)).collect();
        Canvas { rgb, ..*self }
    }

    /// Draws `other` at (top, left), where it fits.
    pub fn put(&mut self, top: usize, left: usize, other: &Canvas) {
        for (y, row) in other.rgb.chunks(other.width.max(1)).enumerate() {
            self.rgb[(top + y) * self.width + left..][..other.width].copy_from_slice(row);
        }
    }

    /// With a border of `wide` pixels around it.
    pub fn framed(&self, wide: usize, color: [u8; 3]) -> Canvas {
        let mut framed = Canvas::new(self.width + 2 * wide, self.height + 2 * wide, color);
        framed.put(wide, wide, self);
        framed
    }

    /// Figures side by side, `across` in a row, in cells as large as the largest of them, on white.
    pub fn grid(figures: &[Canvas], across: usize) -> Canvas {
        let across = across.clamp(1, figures.len().max(1));
        let most = |f: fn(&Canvas) -> usize| figures.iter().map(f).max().unwrap_or(0);
        let (w, h) = (most(|p| p.width), most(|p| p.height));
        let down = figures.len().div_ceil(across);
        let mut grid = Canvas::new(across * (w + GAP) + GAP, down * (h + GAP) + GAP, WHITE);
        for (i, figure) in figures.iter().enumerate() {
            grid.put(GAP + i / across * (h + GAP), GAP + i % across * (w + GAP), figure);
        }
        grid
    }

    /// A contact sheet about as many figures down as across.
    pub fn contact_sheet(figures: &[Canvas]) -> Canvas {
        Canvas::grid(figures, (1..).find(|n| n * n >= figures.len()).unwrap_or(1))
    }

    /// The same, as an image.
    pub fn image(&self) -> Image {
        let pixels = self.rgb.as_flattened().to_vec();
        Image { width: self.width, height: self.height, channels: 3, pixels }
    }

    /// A PNG file's bytes.
    ///
    /// # Errors
    /// The encoder fails.
    pub fn png(&self) -> Result<Vec<u8>> {
        encode_png([self.width, self.height], self.rgb.as_flattened(), image::ExtendedColorType::Rgb8)
    }

    /// Writes a PNG file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_png(path, [self.width, self.height], self.rgb.as_flattened())
    }
}

/// Three channels: of more the first three, of fewer the first one thrice.
pub(crate) fn colored(image: &Image) -> Image {
    let colors = if image.channels >= 3 { [0, 1, 2] } else { [0; 3] };
    let pixels = image.pixels.chunks_exact(image.channels).flat_map(|p| colors.map(|c| p[c])).collect();
    Image { height: image.height, width: image.width, channels: 3, pixels }
}

/// Values in 0 to 1 as heat over the figure: the figure in gray below, the more opaque the hotter.
pub fn heat(values: &[f32], under: &Canvas) -> Canvas {
    under.map(|i, [r, g, b]| {
        let (hot, share) = (inferno(values[i]), 0.2 + 0.55 * values[i]);
        let below = 0.299 * r as f32 + 0.587 * g as f32 + 0.114 * b as f32;
        hot.map(|hot| (share * hot + (1.0 - share) * below).round() as u8)
    })
}

/// Black over violet, red and orange to pale yellow (matplotlib's `inferno`, at eight points with straight lines between).
pub fn inferno(value: f32) -> [f32; 3] {
    const POINTS: [[f32; 3]; 8] = [
        [0.0, 0.0, 4.0],
        [40.0, 11.0, 84.0],
        [101.0, 21.0, 110.0],
        [159.0, 42.0, 99.0],
        [212.0, 72.0, 66.0],
        [245.0, 125.0, 21.0],
        [250.0, 193.0, 39.0],
        [252.0, 255.0, 164.0],
    ];
    let at = value.clamp(0.0, 1.0) * (POINTS.len() - 1) as f32;
    let low = (at as usize).min(POINTS.len() - 2);
    std::array::from_fn(|c| POINTS[low][c] + (at - low as f32) * (POINTS[low + 1][c] - POINTS[low][c]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Decode, decode_bytes};

    #[test]
    fn a_sheet_holds_every_picture_where_it_belongs() {
        let one = |x| Canvas::new(2, 1, [x; 3]);
        let grid = Canvas::contact_sheet(&[one(1), one(2), one(3)]);
        assert_eq!((grid.width, grid.height), (2 * (2 + GAP) + GAP, 2 * (1 + GAP) + GAP));
        let at = |x: usize, y: usize| grid.rgb[y * grid.width + x][0];
        assert_eq!((at(GAP, GAP), at(2 * GAP + 2, GAP), at(GAP, 2 * GAP + 1)), (1, 2, 3));
        assert_eq!((1..4).map(|x| grid.rgb.iter().filter(|p| **p == [x; 3]).count()).sum::<usize>(), 6);
        // Other sizes: cells as large as the largest.
        let grid = Canvas::grid(&[Canvas::new(5, 1, [1; 3]), Canvas::new(1, 4, [2; 3])], 9);
        assert_eq!((grid.width, grid.height), (2 * (5 + GAP) + GAP, 4 + 2 * GAP));
        assert!(Canvas::contact_sheet(&[]).rgb.iter().all(|p| *p == WHITE));
    }

    #[test]
    fn frames_and_thumbnails() {
        let framed = Canvas::new(1, 1, [9; 3]).framed(1, [4, 5, 6]);
        assert_eq!((framed.width, framed.height), (3, 3));
        assert!(framed.rgb.iter().enumerate().all(|(i, p)| *p == if i == 4 { [9; 3] } else { [4, 5, 6] }));
        let wide = Image { width: 40, height: 10, channels: 1, pixels: vec![7; 400] };
        let small = Canvas::thumbnail(&wide, 8);
        let inside = |i: usize| (3..5).contains(&(i / 8));
        assert!(small.rgb.iter().enumerate().all(|(i, p)| *p == if inside(i) { [7; 3] } else { WHITE }), "{small:?}");
        // A line keeps a pixel of its width.
        let line = Image { width: 1, height: 300, channels: 3, pixels: vec![7; 900] };
        assert_eq!(Canvas::thumbnail(&line, 8).rgb.iter().filter(|p| **p == [7; 3]).count(), 8);
    }

    #[test]
    fn the_bytes_of_a_png_are_those_of_the_figure() {
        let figure = Canvas::new(3, 2, [0; 3]).map(|i, _| [i as u8, 200, 3]);
        let read = decode_bytes(Path::new("a.png"), &figure.png().unwrap(), Decode::default()).unwrap();
        assert_eq!(Canvas::of(&read, 1), figure);
        // Row 2 of the enlarged figure is row 1 of the figure.
        assert_eq!(Canvas::of(&read, 2).rgb[6 * 2 + 2], [4, 200, 3]);
    }

    #[test]
    fn colors_run_from_dark_to_light() {
        let light = |v: f32| inferno(v).iter().sum::<f32>();
        assert!((0..100).all(|i| light(i as f32 / 100.0) < light((i + 1) as f32 / 100.0)));
        assert_eq!(inferno(f32::INFINITY), [252.0, 255.0, 164.0]);
        assert_eq!(heat(&[0.0, 1.0], &Canvas::new(2, 1, [100; 3])).rgb, [[80, 80, 81], [214, 216, 148]]);
    }
}

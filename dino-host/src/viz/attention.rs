//! Figures of what the class token of a block attends to (official `visualize_attention.py`), or of the class activation of a residual
//! network's last map.
//!
//! Written to the folder, for heads h = 0, 1, ...:
//! `image.png` (what the network saw), `head{h}.png` (attention, white = the head's largest), `head{h}-mask.png` (the patches that
//! hold `keep` of the head's attention, the rest darkened), `head{h}-cutout.png` (the same patches, the rest transparent),
//! `head{h}-heat.png` (heat over the image, from the least to the greatest attention), `mean.png` and so on (of the mean over heads),
//! `overlay.png` (the image, all heads and the mean as heat on a contact sheet), `heads.png` (a color a head on the patches that it keeps),
//! `attention.npy` and `attention.json` (the numbers). Small images are enlarged by an integer factor. Of a class activation there is one
//! row, `cam`, in place of the heads and their mean.

use crate::config::Config;
use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::attention::{check_keep, mask};
use crate::image::Image;
use crate::image::enlarge::enlarge;
use crate::image::png::encode_png;
use crate::inference::dense::{DenseExtractor, DenseOutput};
use crate::io::atomic::write_atomically;
use crate::io::npy;
use crate::io::progress::Progress;
use crate::io::tsv::tsv;
use crate::viz::canvas::{Canvas, heat};
use clap::ValueEnum;
use image::ExtendedColorType;
use serde_json::json;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// Figures are at least this wide.
const WIDTH: usize = 256;
/// Images on a contact sheet.
const PAGE: usize = 24;
/// Side of a figure on a contact sheet.
const CELL: usize = 224;

/// What is written of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// image.png: what the network saw
    Image,
    /// headH-heat.png, mean-heat.png, and overlay.png with all of them
    Overlay,
    /// headH.png, mean.png: black to white
    Grey,
    /// headH-mask.png, mean-mask.png: the patches that hold --keep of the attention, the rest darkened
    Mask,
    /// headH-cutout.png, mean-cutout.png: the rest transparent
    Cutout,
    /// heads.png: a color a head on the patches that it keeps
    Heads,
    /// attention.npy: (heads, rows, columns), f32
    Npy,
    /// attention.json: the same as text
    Json,
}

/// What the rows of numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What each head of the class token attends to.
    Heads,
    /// The class activation of a residual network's last map.
    Activation,
}

impl Kind {
    /// What a backbone gives.
    pub fn of(config: &Config) -> Kind {
        if config.table().backbone.gives().attention { Kind::Heads } else { Kind::Activation }
    }
}

/// What an image's class token attends to, or where a map is active.
pub struct Attention {
    /// What the rows are.
    pub kind: Kind,
    /// Attention (heads, patches) or activation (1, cells), its grid and the network's input.
    pub output: DenseOutput,
    /// The image, enlarged by an integer factor where it is small.
    shown: Canvas,
    /// Side of a patch of `shown`, pixels.
    cell: usize,
}

/// Least and greatest of a row.
pub fn range(row: &[f32]) -> [f32; 2] {
    row.iter().fold([f32::MAX, 0.0], |[a, b], &x| [a.min(x), b.max(x)])
}

impl Attention {
    /// Of what a network with patches or cells of side `patch` saw.
    pub fn new(kind: Kind, output: DenseOutput, patch: usize) -> Attention {
        let scale = WIDTH.div_ceil(output.image.width);
        Attention { kind, shown: Canvas::of(&output.image, scale), cell: patch * scale, output }
    }

    /// Of an image, in a network's own way.
    ///
    /// # Errors
    /// The network does not give it, the image has no or too many patches, or the device fails.
    pub fn extract<D: Device>(extractor: &mut DenseExtractor<D>, kind: Kind, image: &Image) -> Result<Attention> {
        let output = match kind {
            Kind::Heads => extractor.attention(image)?,
            Kind::Activation => extractor.activation(image)?,
        };
        Ok(Attention::new(kind, output, extractor.cell()))
    }

    /// A row a head.
    pub fn heads(&self) -> Vec<&[f32]> {
        self.output.numbers.chunks(self.output.grid[0] * self.output.grid[1]).collect()
    }

    /// The rows that are drawn, by the names of their figures: every head and the mean, or the one activation.
    fn named(&self) -> Vec<(String, Vec<f32>)> {
        match self.kind {
            Kind::Activation => vec![("cam".into(), self.mean())],
            Kind::Heads => {
                let heads = self.heads().into_iter().enumerate().map(|(h, row)| (format!("head{h}"), row.to_vec()));
                heads.chain([("mean".to_string(), self.mean())]).collect()
            }
        }
    }

    /// Mean over the heads.
    pub fn mean(&self) -> Vec<f32> {
        let heads = self.heads();
        (0..heads[0].len()).map(|i| heads.iter().map(|h| h[i]).sum::<f32>() / heads.len() as f32).collect()
    }

    /// One value a patch to one a pixel of `shown`.
    fn spread<T: Copy>(&self, cells: &[T], rest: T) -> Vec<T> {
        enlarge(cells, self.output.grid, self.cell, [self.shown.height, self.shown.width], rest)
    }

    /// Shares of the way from `least` to `most`, a pixel each.
    fn shares(&self, row: &[f32], [least, most]: [f32; 2]) -> Vec<f32> {
        let share = |x: &f32| ((x - least) / (most - least).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
        self.spread(&row.iter().map(share).collect::<Vec<f32>>(), 0.0)
    }

    /// A row as heat over the image, from the least to the greatest of `range`.
    pub fn heat(&self, row: &[f32], range: [f32; 2]) -> Canvas {
        heat(&self.shares(row, range), &self.shown)
    }

    /// The image, every head and the mean (or the activation) as heat, on one contact sheet; `ranges`: of every one.
    pub fn contact_sheet(&self, ranges: &[[f32; 2]]) -> Canvas {
        let rows = self.named();
        let hot = rows.iter().zip(ranges).map(|((_, row), range)| self.heat(row, *range));
        Canvas::contact_sheet(&std::iter::once(self.shown.clone()).chain(hot).collect::<Vec<_>>())
    }

    /// The range of every head and of the mean, or of the activation.
    pub fn ranges(&self) -> Vec<[f32; 2]> {
        self.named().iter().map(|(_, row)| range(row)).collect()
    }

    /// The patches that hold the part `keep` of a row's attention, the rest of the image darkened.
    pub fn mask(&self, row: &[f32], keep: f64) -> Canvas {
        let kept = self.spread(&mask(row, keep), false);
        self.shown.map(|i, p| if kept[i] { p } else { p.map(|x| x / 4) })
    }

    /// Every head's mask in a color of its own over the image in gray; where masks overlap, the head that attends most.
    fn colors(&self, keep: f64) -> Canvas {
        let heads = self.heads();
        let masks: Vec<Vec<bool>> = heads.iter().map(|row| mask(row, keep)).collect();
        let most = |i: usize| {
            let kept = (0..heads.len()).filter(|&h| masks[h][i]);
            kept.max_by(|&a, &b| heads[a][i].total_cmp(&heads[b][i]).then(b.cmp(&a)))
        };
        let owner: Vec<Option<usize>> = (0..heads[0].len()).map(most).collect();
        let owner = self.spread(&owner, None);
        self.shown.map(|i, [r, g, b]| {
            let gray = 0.299 * r as f32 + 0.587 * g as f32 + 0.114 * b as f32;
            owner[i].map_or([(0.5 * gray).round() as u8; 3], |h| {
                hue(h, heads.len()).map(|c| (0.5 * gray + 0.5 * c).round() as u8)
            })
        })
    }

    /// Writes the `parts` to the folder `out`.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, keep: f64, parts: &[Part], out: &Path) -> Result<()> {
        folder(out)?;
        let has = |part| parts.contains(&part);
        let (heads, grid) = (self.heads(), self.output.grid);
        for (name, row) in self.named() {
            let row = &row[..];
            if has(Part::Grey) {
                // Shows how even the attention is; heat goes from the least to the greatest, as in the published figures.
                let shares = self.shares(row, [0.0, range(row)[1]]);
                let gray = self.shown.map(|i, _| [(255.0 * shares[i]).round() as u8; 3]);
                gray.write(&out.join(format!("{name}.png")))?;
            }
            if has(Part::Overlay) {
                self.heat(row, range(row)).write(&out.join(format!("{name}-heat.png")))?;
            }
            if has(Part::Mask) {
                self.mask(row, keep).write(&out.join(format!("{name}-mask.png")))?;
            }
            if has(Part::Cutout) {
                let kept = self.spread(&mask(row, keep), false);
                let pixels = self.shown.rgb.iter().zip(&kept);
                let rgba: Vec<[u8; 4]> = pixels.map(|(p, &k)| [p[0], p[1], p[2], 255 * k as u8]).collect();
                let size = [self.shown.width, self.shown.height];
                let png = encode_png(size, rgba.as_flattened(), ExtendedColorType::Rgba8)?;
                write_atomically(&out.join(format!("{name}-cutout.png")), |f| f.write_all(&png))?;
            }
        }
        if has(Part::Image) {
            self.shown.write(&out.join("image.png"))?;
        }
        if has(Part::Overlay) {
            self.contact_sheet(&self.ranges()).write(&out.join("overlay.png"))?;
        }
        if has(Part::Heads) && self.kind == Kind::Heads {
            self.colors(keep).write(&out.join("heads.png"))?;
        }
        if has(Part::Npy) {
            let shape = [heads.len(), grid[0], grid[1]];
            let (name, shape) = match self.kind {
                Kind::Heads => ("attention.npy", &shape[..]),
                Kind::Activation => ("cam.npy", &shape[1..]),
            };
            npy::write(&out.join(name), shape, &self.output.numbers)?;
        }
        if has(Part::Json) {
            let (width, height) = (self.output.image.width, self.output.image.height);
            let (name, numbers) = match self.kind {
                Kind::Activation => {
                    let numbers = json!({
                        "width": width, "height": height, "rows": grid[0], "cols": grid[1],
                        "activation": self.output.numbers,
                    });
                    ("cam.json", numbers)
                }
                Kind::Heads => {
                    let numbers = json!({
                        "width": width, "height": height, "patch": width / grid[1], "rows": grid[0], "cols": grid[1],
                        "heads": heads.len(), "attention": heads,
                    });
                    ("attention.json", numbers)
                }
            };
            write_atomically(&out.join(name), |f| writeln!(f, "{numbers}"))?;
        }
        Ok(())
    }
}

/// Color `h` of `n` around the circle of hues, full and light.
fn hue(h: usize, n: usize) -> [f32; 3] {
    let at = 6.0 * h as f32 / n.max(1) as f32;
    // Distance from red, green, blue, in sixths of the circle.
    [0.0, 2.0, 4.0].map(|c: f32| {
        let far = (at - c).abs().min(6.0 - (at - c).abs());
        255.0 * (2.0 - far).clamp(0.0, 1.0)
    })
}

/// Makes a folder for figures.
pub(crate) fn folder(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)
        .map_err(|e| Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("--out names a folder"))
}

/// The mean attention of the last block, or the activation of the last map, as heat over each image, for a gallery: `size` is the shorter
/// side, 0 the run's global crop.
///
/// # Errors
/// An image has no or too many patches, or the device fails.
pub fn gallery<D: Device>(
    options: &D::Options,
    config: &Config,
    weights: &[f32],
    images: &[&Image],
    size: usize,
) -> Result<Vec<Canvas>> {
    let mut extractor = DenseExtractor::<D>::new(options, config, weights, None, size)?;
    images
        .iter()
        .map(|image| {
            let attention = Attention::extract(&mut extractor, Kind::of(config), image)?;
            let mean = attention.mean();
            Ok(attention.heat(&mean, range(&mean)))
        })
        .collect()
}

/// Draws the `parts` of every image of `set`, of what `kind` states: of one into `out` itself, of several each into a folder of its own, named after it, with
/// `out/sheet-000.png` and so on (the mean attention of 24 images each, in their order) and `out/images.tsv`, which lists what is where.
/// Returns what to tell the user.
///
/// # Errors
/// `keep` is no fraction, no image can be read, one has no or too many patches, the device fails, or a file cannot be written.
pub fn draw<D: Device>(
    extractor: &mut DenseExtractor<D>,
    kind: Kind,
    set: &dyn Dataset,
    unreadable: &Unreadable,
    keep: f64,
    parts: &[Part],
    out: &Path,
) -> Result<String> {
    check_keep(keep)?;
    if set.len() == 1 {
        let attention = Attention::extract(extractor, kind, &set.image(0)?)?;
        attention.write(keep, parts, out)?;
        let ([rows, cols], heads) = (attention.output.grid, attention.heads().len());
        let Image { width, height, .. } = attention.output.image;
        let what = match kind {
            Kind::Heads => format!("{cols} x {rows} patches, {heads} heads"),
            Kind::Activation => format!("a last map of {cols} x {rows}"),
        };
        return Ok(format!(
            "{width} x {height} pixels, {what}; {}",
            match parts.contains(&Part::Overlay) {
                true => format!("all on one contact sheet: {}", out.join("overlay.png").display()),
                false => format!("in {}", out.display()),
            }
        ));
    }
    folder(out)?;
    let (mut used, mut page, mut pages, mut drawn) = (HashSet::new(), Vec::new(), 0, 0);
    let mut list = String::from("sheet\tplace\tfolder\timage\n");
    let mut progress = Progress::new(set.len(), "images");
    for i in 0..set.len() {
        progress.tick();
        let Some(image) = unreadable.image(set, i)? else { continue };
        let name = unused(&set.name(i), &mut used);
        let attention = Attention::extract(extractor, kind, &image)
            .map_err(|e| Error { message: format!("{}: {}", set.name(i), e.message), ..e })?;
        attention.write(keep, parts, &out.join(&name))?;
        let mean = attention.mean();
        let hot = attention.heat(&mean, range(&mean));
        page.push(Canvas::thumbnail(&hot.image(), CELL));
        list += &format!("{pages}\t{}\t{}\t{}\n", page.len() - 1, tsv(&name), tsv(&set.name(i)));
        drawn += 1;
        if page.len() == PAGE {
            Canvas::contact_sheet(&page).write(&out.join(format!("sheet-{pages:03}.png")))?;
            (page, pages) = (Vec::new(), pages + 1);
        }
    }
    if drawn == 0 {
        return Err(
            Error::new("none of the images could be read").hint("--strict stops at the first one and reports why")
        );
    }
    if !page.is_empty() {
        Canvas::contact_sheet(&page).write(&out.join(format!("sheet-{pages:03}.png")))?;
    }
    write_atomically(&out.join("images.tsv"), |f| f.write_all(list.as_bytes()))?;
    Ok(format!("{drawn} images, a folder each, and {}; images.tsv names them", out.join("sheet-*.png").display()))
}

/// A folder's name for an image: its file's name without the ending, with a number where that is taken.
pub(crate) fn unused(name: &str, used: &mut HashSet<String>) -> String {
    let stem = Path::new(name).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let stem = if stem.is_empty() { "image".into() } else { stem };
    // Names that differ in case alone are one name on some systems.
    let candidates = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
    candidates.into_iter().find(|name| used.insert(name.to_lowercase())).expect("numbers do not end")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use crate::image::{Decode, decode};
    use crate::inference::dense::tests::plain;
    use dino_kernel::init;

    fn network(depth: usize) -> (Config, Vec<f32>) {
        let config = Config { depth, embed_dim: 24, ..Config::tiny() }.resolve().unwrap();
        let table = config.table();
        let mut weights = vec![0.0; table.len()];
        init::weights(&mut weights, &table, 1, init::LINEAR_STD);
        weights.truncate(table.backbone_len());
        (config, weights)
    }

    fn read(path: &Path) -> Canvas {
        Canvas::of(&decode(path, Decode::default()).unwrap(), 1)
    }

    #[test]
    fn every_picture_is_written_and_can_be_read() {
        let (config, weights) = network(2);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new/folder");
        let image = plain(70, 40);
        let mut extractor = DenseExtractor::<Cpu>::new(&NoOptions {}, &config, &weights, None, 0).unwrap();
        let attention = Attention::new(Kind::Heads, extractor.attention(&image).unwrap(), config.patch_size);
        attention.write(0.6, Part::value_variants(), &out).unwrap();
        for name in ["image", "head0", "head2", "head2-mask", "head1-heat", "mean", "mean-heat", "heads", "overlay"] {
            let figure = read(&out.join(format!("{name}.png")));
            assert!(name == "overlay" || (figure.width, figure.height) == (56 * 5, 32 * 5), "{name}");
        }
        let text = std::fs::read_to_string(out.join("attention.json")).unwrap();
        let numbers: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((numbers["rows"].as_u64(), numbers["cols"].as_u64()), (Some(4), Some(7)));
        assert_eq!(numbers["attention"][2].as_array().unwrap().len(), 28);
        // The same numbers in both files, and a mask, a cutout and a figure of colors that agree.
        let npy = std::fs::read(out.join("attention.npy")).unwrap();
        assert_eq!((npy.len(), &npy[..128]), (128 + 4 * 3 * 28, &npy::header(&[3, 4, 7])[..]));
        let at = |h: usize, i: usize| f32::from_le_bytes(*npy[128 + 4 * (28 * h + i)..].first_chunk().unwrap());
        let (shown, dark) = (read(&out.join("image.png")), read(&out.join("head2-mask.png")));
        let cutout = image::open(out.join("head2-cutout.png")).unwrap().into_rgba8();
        let row: Vec<f32> = (0..28).map(|i| at(2, i)).collect();
        let kept = mask(&row, 0.6);
        for i in 0..28 {
            assert_eq!(numbers["attention"][2][i].as_f64().unwrap() as f32, row[i]);
            let (x, y) = (i % 7 * 40 + 20, i / 7 * 40 + 39);
            let p = shown.rgb[y * shown.width + x];
            assert_eq!(dark.rgb[y * shown.width + x], if kept[i] { p } else { p.map(|x| x / 4) });
            assert_eq!(cutout.get_pixel(x as u32, y as u32).0, [p[0], p[1], p[2], if kept[i] { 255 } else { 0 }]);
        }
        // The gallery's figure is the one that is written.
        let found = gallery::<Cpu>(&NoOptions {}, &config, &weights, &[&image], 0).unwrap();
        assert_eq!(found, [read(&out.join("mean-heat.png"))]);
    }

    #[test]
    fn blocks_are_told_apart_and_only_what_is_asked_for_is_written() {
        let (config, weights) = network(3);
        let output = |block| {
            let mut extractor = DenseExtractor::<Cpu>::new(&NoOptions {}, &config, &weights, block, 16).unwrap();
            extractor.attention(&plain(30, 20)).unwrap().numbers
        };
        assert_eq!(output(None), output(Some(3)));
        assert!(output(Some(1)) != output(Some(2)) && output(Some(2)) != output(Some(3)));
        for block in [0, 4] {
            let refused = DenseExtractor::<Cpu>::new(&NoOptions {}, &config, &weights, Some(block), 16).err().unwrap();
            assert!(refused.to_string().contains(&format!("no block {block}")), "{refused}");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut extractor = DenseExtractor::<Cpu>::new(&NoOptions {}, &config, &weights, None, 16).unwrap();
        let attention = Attention::new(Kind::Heads, extractor.attention(&plain(30, 20)).unwrap(), config.patch_size);
        attention.write(0.6, &[Part::Npy, Part::Mask], dir.path()).unwrap();
        let mut names: Vec<String> =
            std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["attention.npy", "head0-mask.png", "head1-mask.png", "head2-mask.png", "mean-mask.png"]);
    }

    #[test]
    fn heads_have_colors_of_their_own() {
        assert_eq!([0, 1, 2].map(|h| hue(h, 3)), [[255., 0., 0.], [0., 255., 0.], [0., 0., 255.]]);
        assert_eq!([1, 3, 5].map(|h| hue(h, 6)), [[255., 255., 0.], [0., 255., 255.], [255., 0., 255.]]);
        // Two patches, two heads: the first is kept by head 0 alone, the second by both, and head 1 attends to it more.
        let image = Image { width: 256, height: 128, channels: 3, pixels: vec![100; 3 * 256 * 128] };
        let output = DenseOutput { image, grid: [1, 2], numbers: vec![0.5, 0.5, 0.1, 0.9] };
        let colors = Attention::new(Kind::Heads, output, 128).colors(0.8);
        assert_eq!((colors.rgb[0], colors.rgb[255]), ([178, 50, 50], [50, 178, 178]));
    }

    #[test]
    fn folders_are_named_after_pictures_and_differ() {
        let mut used = HashSet::new();
        let found = ["a/x.png", "b/X.jpg", "x-2.png", "x.webp", ".."].map(|name| unused(name, &mut used));
        assert_eq!(found, ["x", "X-2", "x-2-2", "x-3", "image"]);
    }
}

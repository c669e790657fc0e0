//! Video object segmentation without training (the paper's table 5): the first frame's masks are carried on by the likeness of patches
//! ([`super::propagate`]) and scored as DAVIS does ([`super::measures`]).
//!
//! Published: shorter side 480, the other one cut to a multiple of 64 whatever that does to the image's shape (a quirk, `multiple`),
//! patch tokens of the last block. Every frame but the first and the last is scored.

use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

use super::any_size::{AnySize, check_patches, resized_pixels};
use super::measures::{self, BOUNDARY};
use super::propagate::{Params, Propagation, segment};
use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::image::masks::{Mask, White, palette};
use crate::image::png::write_png;
use crate::image::{Decode, Image, decode, is_image_file};

/// Frames and masks of one video.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// The folder's name.
    pub name: String,
    /// In the order of their names.
    pub frames: Vec<PathBuf>,
    /// Where there is one. The first frame has one.
    pub masks: Vec<Option<PathBuf>>,
}

/// How frames are read and masks carried on.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Shorter side, pixels.
    pub size: usize,
    /// The longer side is cut down to a multiple of this; where patches do not divide it, to full patches.
    pub multiple: usize,
    /// How masks are propagated.
    pub params: Params,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe { size: 480, multiple: 64, params: Params::default() }
    }
}

/// J and F of one object or the mean of several: mean, recall, decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Score {
    /// Region similarity.
    pub j: [f64; 3],
    /// Boundary measure.
    pub f: [f64; 3],
}

impl Score {
    /// The number that DAVIS ranks by.
    pub fn jf(&self) -> f64 {
        (self.j[0] + self.f[0]) / 2.0
    }

    /// The mean of several; `None` of none.
    pub fn mean<'a>(of: impl IntoIterator<Item = &'a Score>) -> Option<Score> {
        let (mut sum, mut n) = (Score::default(), 0);
        for s in of {
            (0..3).for_each(|i| {
                sum.j[i] += s.j[i];
                sum.f[i] += s.f[i];
            });
            n += 1;
        }
        let part = |x: [f64; 3]| x.map(|x| x / n as f64);
        (n > 0).then(|| Score { j: part(sum.j), f: part(sum.f) })
    }
}

/// The sequences of a folder in DAVIS' layout: `JPEGImages/RESOLUTION/NAME/00000.jpg …` and `Annotations/RESOLUTION/NAME/00000.png …`, the
/// same without a folder for the resolution. `only`: those with these names, all where there is none.
///
/// Sequences without a mask of the first frame are left out and given as the second.
///
/// # Errors
/// The folders are not there, they hold no sequence with a first mask, or a name of `only` is unknown.
pub fn sequences(root: &Path, resolution: &str, only: &[String]) -> Result<(Vec<Sequence>, Vec<String>)> {
    let layout = "JPEGImages/480p/NAME/00000.jpg and Annotations/480p/NAME/00000.png";
    let images = root.join("JPEGImages");
    let held = list(&images)
        .map_err(|e| Error::new(format!("{}: {e}", images.display())).hint(format!("a DAVIS folder holds {layout}")))?;
    let of_resolution = |name: &str| (images.join(name), root.join("Annotations").join(name));
    let (frames, masks) = if images.join(resolution).is_dir() {
        of_resolution(resolution)
    } else if held.iter().any(|p| p.is_dir() && folders(p).is_empty() && !files(p).is_empty()) {
        (images.clone(), root.join("Annotations"))
    } else {
        let there: Vec<String> = held.iter().filter(|p| p.is_dir()).map(|p| name(p)).collect();
        return Err(match there.is_empty() {
            true => Error::new(format!("no sequence in {}", images.display()))
                .hint(format!("a DAVIS folder holds {layout}")),
            false => Error::new(format!("there is no {}", images.join(resolution).display()))
                .hint(format!("--resolution is one of {}", there.join(", "))),
        });
    };
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    let known: Vec<String> = folders(&frames).iter().map(|p| name(p)).collect();
    if let Some(unknown) = only.iter().find(|n| !known.contains(n)) {
        return Err(Error::new(format!("there is no sequence {unknown} in {}", frames.display()))
            .hint(format!("there are {}", known.join(", "))));
    }
    for sequence in known.into_iter().filter(|n| only.is_empty() || only.contains(n)) {
        let frames = files(&frames.join(&sequence));
        let mask = |frame: &PathBuf| {
            let path = masks.join(&sequence).join(frame.file_stem().unwrap_or_default()).with_extension("png");
            path.is_file().then_some(path)
        };
        let masks: Vec<Option<PathBuf>> = frames.iter().map(mask).collect();
        match masks.first() {
            Some(Some(_)) => found.push(Sequence { name: sequence, frames, masks }),
            _ => left_out.push(sequence),
        }
    }
    if found.is_empty() {
        return Err(Error::new(format!("no sequence in {} has a mask of its first frame", frames.display()))
            .hint(format!("masks are PNG files: {layout}")));
    }
    Ok((found, left_out))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What a folder holds, by name, without names that begin with a dot.
fn list(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)?.map(|e| e.map(|e| e.path())).collect::<std::io::Result<_>>()?;
    all.retain(|p| !name(p).starts_with('.'));
    all.sort();
    Ok(all)
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    list(folder).unwrap_or_default().into_iter().filter(|p| p.is_dir()).collect()
}

/// Images of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    list(folder).unwrap_or_default().into_iter().filter(|p| p.is_file() && is_image_file(p)).collect()
}

/// (height, width) of a frame as the network sees it: the shorter side `size`, the longer one cut to a multiple, both full patches.
pub fn frame_size([height, width]: [usize; 2], recipe: &Recipe, patch: usize) -> [usize; 2] {
    let short = recipe.size / patch * patch;
    let step = if recipe.multiple.is_multiple_of(patch) && recipe.multiple > 0 { recipe.multiple } else { patch };
    let (least, most) = (height.min(width).max(1) as u128, height.max(width) as u128);
    let long = usize::try_from(recipe.size as u128 * most / least).unwrap_or(usize::MAX);
    // A small image is not cut to nothing.
    let long = if long / step == 0 { long / patch * patch } else { long / step * step };
    if height > width { [long, short] } else { [short, long] }
}

/// A sequence with its masks read.
pub struct Scorer {
    /// The first mask, numbered.
    first: Mask,
    white: White,
    /// The objects of the first mask, ascending.
    pub objects: Vec<u8>,
    /// Per frame that is scored: its index, the exact mask and the scored pixels.
    exact: Vec<(usize, Mask, Vec<bool>)>,
}

impl Scorer {
    /// Reads the masks: the first, and of the frames between it and the last those that have one (of two frames the second).
    ///
    /// # Errors
    /// The first frame has no mask, a mask cannot be read, or masks differ in size.
    pub fn new(sequence: &Sequence) -> Result<Scorer> {
        let read = |path: &Path| Mask::read(path);
        let path = sequence.masks[0].as_deref().ok_or_else(|| {
            Error::new(format!("{} has no mask of its first frame", sequence.name))
                .hint("it states which objects to follow")
        })?;
        let raw = read(path)?;
        let white = raw.white();
        let (first, _) = raw.numbered(white);
        let mut objects: Vec<u8> = first.ids.iter().copied().filter(|id| *id > 0).collect();
        objects.sort_unstable();
        objects.dedup();
        let n = sequence.frames.len();
        let scored = if n == 2 { 1..2 } else { 1..n.max(1) - usize::from(n > 1) };
        let mut exact = Vec::new();
        for i in scored {
            let Some(path) = &sequence.masks[i] else { continue };
            let mask = read(path)?;
            if (mask.width, mask.height) != (first.width, first.height) {
                return Err(Error::new(format!(
                    "{} has {} x {} pixels, the first mask {} x {}",
                    path.display(),
                    mask.width,
                    mask.height,
                    first.width,
                    first.height
                ))
                .hint("all frames and masks of a sequence have one size"));
            }
            let (mask, scored) = mask.numbered(white);
            exact.push((i, mask, scored));
        }
        Ok(Scorer { first, white, objects, exact })
    }

    /// Frames that are scored.
    pub fn frames(&self) -> usize {
        self.exact.len()
    }

    /// Of every object of `found`, a mask a frame; empty where no frame can be scored.
    pub fn scores(&self, found: &[Mask]) -> Vec<Score> {
        let of_object = |&id: &u8| {
            let of = |ids: &[u8]| ids.iter().map(|i| *i == id).collect::<Vec<bool>>();
            let values: Vec<[f64; 2]> = self
                .exact
                .par_iter()
                .map(|(i, exact, scored)| {
                    let (a, b) = (of(&found[*i].ids), of(&exact.ids));
                    [measures::region(&a, &b, scored), measures::boundary(&a, &b, scored, exact.width, BOUNDARY)]
                })
                .collect();
            let all = |k: usize| measures::statistics(&values.iter().map(|v| v[k]).collect::<Vec<_>>());
            Score { j: all(0), f: all(1) }
        };
        if self.exact.is_empty() { Vec::new() } else { self.objects.iter().map(of_object).collect() }
    }

    /// The baseline that no network is needed for: the first mask, in every frame.
    pub fn kept(&self, frames: usize) -> Vec<Mask> {
        vec![self.first.clone(); frames]
    }

    /// Masks as this sequence's files have them: one object in white stays white.
    pub fn as_file(&self, mask: &Mask) -> Mask {
        match self.white {
            White::Void => mask.clone(),
            White::Object => Mask { ids: mask.ids.iter().map(|id| if *id > 0 { 255 } else { 0 }).collect(), ..*mask },
        }
    }
}

/// The masks of every frame of a sequence, the first as it was given. `tick` is called once a frame.
///
/// # Errors
/// A frame cannot be read, has another size than the first mask or holds no patch, or the device fails.
pub fn follow<D: Device>(
    network: &mut AnySize<D>,
    config: &Config,
    sequence: &Sequence,
    scorer: &Scorer,
    recipe: &Recipe,
    mut tick: impl FnMut(),
) -> Result<Vec<Mask>> {
    let classes = scorer.objects.iter().copied().max().unwrap_or(0) as usize + 1;
    let full = [scorer.first.height, scorer.first.width];
    let mut found = vec![scorer.first.clone()];
    let mut propagation: Option<Propagation> = None;
    for path in &sequence.frames {
        let image = frame(path, config, full)?;
        let to = frame_size(full, recipe, config.patch_size);
        check_patches(&path.display().to_string(), to, config.patch_size)?;
        let network = network.of(to)?;
        let grid = network.grid();
        let tokens = network.tokens(&resized_pixels(&image, to, config))?;
        // The class token comes first and is no patch.
        let tokens = tokens[config.embed_dim..].to_vec();
        match &mut propagation {
            None => {
                let small = scorer.first.resized(grid[1], grid[0]);
                propagation = Some(Propagation::new(recipe.params, grid, tokens, &small.ids, classes));
            }
            Some(p) => found.push(segment(p.next(tokens), classes, grid, config.patch_size, full)),
        }
        tick();
    }
    Ok(found)
}

/// A frame, of the masks' size.
fn frame(path: &Path, config: &Config, [height, width]: [usize; 2]) -> Result<Image> {
    let image = decode(path, config.decode())?;
    if (image.width, image.height) != (width, height) {
        return Err(Error::new(format!(
            "{} has {} x {} pixels, the first mask {width} x {height}",
            path.display(),
            image.width,
            image.height
        ))
        .hint("all frames and masks of a sequence have one size"));
    }
    Ok(image)
}

/// Writes the masks to `out/NAME/STEM.png`, as DAVIS' own tools read results, and to `out/overlays/NAME/STEM.png` the frames with the
/// objects in their colors.
///
/// # Errors
/// A folder or file cannot be written, or a frame cannot be read.
pub fn write(out: &Path, sequence: &Sequence, scorer: &Scorer, found: &[Mask], config: &Config) -> Result<()> {
    let make = |folder: PathBuf| {
        fs::create_dir_all(&folder).map(|_| folder.clone()).map_err(|e| {
            Error::new(format!("cannot make the folder {}: {e}", folder.display())).hint("--out names another")
        })
    };
    let masks = make(out.join(&sequence.name))?;
    let overlays = make(out.join("overlays").join(&sequence.name))?;
    let colors = palette();
    for (path, mask) in sequence.frames.iter().zip(found) {
        let file = PathBuf::from(path.file_stem().unwrap_or_default()).with_extension("png");
        scorer.as_file(mask).write(&masks.join(&file))?;
        let how = Decode { channels: 3, ..config.decode() };
        let image = decode(path, how)?;
        let blend = |(p, id): (&[u8], &u8)| -> [u8; 3] {
            let color = colors[*id as usize];
            std::array::from_fn(|c| if *id == 0 { p[c] } else { ((p[c] as u16 + color[c] as u16) / 2) as u8 })
        };
        let pixels: Vec<u8> = image.pixels.chunks(3).zip(&mask.ids).flat_map(blend).collect();
        write_png(&overlays.join(&file), [image.width, image.height], &pixels)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_cut_as_published() {
        let recipe = Recipe::default();
        // 854 x 480 becomes 832 x 480, upright the same.
        assert_eq!(frame_size([480, 854], &recipe, 16), [480, 832]);
        assert_eq!(frame_size([854, 480], &recipe, 8), [832, 480]);
        assert_eq!(frame_size([480, 910], &recipe, 8), [480, 896]);
        // Patches that do not divide 64: full patches.
        assert_eq!(frame_size([480, 854], &Recipe { size: 240, ..recipe.clone() }, 5), [240, 425]);
        assert_eq!(frame_size([480, 854], &Recipe { size: 243, ..recipe.clone() }, 14), [238, 420]);
        assert_eq!(frame_size([480, 854], &Recipe { multiple: 0, ..recipe.clone() }, 16), [480, 848]);
        assert_eq!(frame_size([20, 20], &Recipe { size: 32, ..recipe.clone() }, 8), [32, 32]);
        let huge = frame_size([1, 1 << 14], &Recipe { size: usize::MAX, ..recipe }, 8);
        assert!(check_patches("a", huge, 8).is_err());
    }
}

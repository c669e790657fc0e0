//! Our side, on the calling thread.

use crate::median;
use dino_host::data::Dataset;
use dino_host::data::folder::ImageFolder;
use dino_host::image::augment::{Augment, Scratch, blur, color};
use dino_host::image::planes::{mirror, normalize};
use dino_host::image::resize::{Filter, Region, Resizer};
use dino_host::image::{Decode, Image};
use dino_kernel::rng::{Kind, Rng};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// Images of waves and noise, as JPEG files of quality 90.
///
/// # Errors
/// A file cannot be written.
pub fn write_files(folder: &Path, count: u64, width: u32, height: u32) -> Result<(), String> {
    for n in 0..count {
        let mut rng = Rng::new(n, 0, 0, 0, Kind::Test, 0);
        let mut wave = |x: u32, y: u32, c: u32| {
            let wave = (x * (c + 2) + y * (5 - c)) / 3 % 256;
            (wave.min(255 - wave) + rng.below(64)) as u8
        };
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([0, 1, 2].map(|c| wave(x, y, c))));
        let file = std::fs::File::create(folder.join(format!("{n}.jpg"))).map_err(|e| e.to_string())?;
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(file, 90);
        image.write_with_encoder(encoder).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Files, their images and the recipe of their crops.
pub struct Ours {
    files: ImageFolder,
    images: Vec<Image>,
    recipe: Augment,
}

/// Milliseconds of the call.
fn time(call: impl FnOnce()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64() * 1e3
}

impl Ours {
    /// All files, decoded.
    ///
    /// # Errors
    /// Those of [`Ours::decoded`], and an unreadable image.
    pub fn new(folder: &Path) -> Result<Ours, String> {
        let ours = Ours::decoded(folder, Decode::default())?;
        let images = (0..ours.files.len()).map(|i| ours.files.image(i)).collect::<Result<_, _>>();
        Ok(Ours { images: images.map_err(|e| e.to_string())?, ..ours })
    }

    /// The ten crops of an image, as the loader makes them.
    fn crops(&self, scratch: &mut Scratch, out: &mut [f32], image: &Image, number: u32) {
        for view in 0..2 + self.recipe.local_crops_number {
            let side = if view < 2 { self.recipe.global_size } else { self.recipe.local_size };
            let mut rng = Rng::new(0, 0, number, view as u32, Kind::Augment, 0);
            self.recipe.crop_with(scratch, image, view, &mut rng, &mut out[..3 * side * side]);
        }
        black_box(out);
    }

    /// Medians over 60 images: milliseconds of decoding and crops, of decoding alone.
    pub fn decode_and_crop(&self) -> [f64; 2] {
        let (mut scratch, mut out) = (Scratch::default(), vec![0.0; 3 * self.recipe.global_size.pow(2)]);
        let (mut all, mut decode) = (vec![], vec![]);
        for number in 0..64 {
            let mut image = None;
            let decoding = time(|| image = self.files.image(number % self.files.len()).ok());
            let crops =
                time(|| self.crops(&mut scratch, &mut out, image.as_ref().expect("decoded before"), number as u32));
            all.push(decoding + crops);
            decode.push(decoding);
        }
        [all, decode].map(|mut times| median(times.split_off(4)))
    }

    /// The same files, decoded another way.
    ///
    /// # Errors
    /// The folder is unreadable, or has no images.
    pub fn decoded(folder: &Path, how: Decode) -> Result<Ours, String> {
        let files = ImageFolder::read(folder, how).map_err(|e| e.to_string())?.ok_or("no files were written")?;
        Ok(Ours { files, images: Vec::new(), recipe: Augment::default() })
    }

    /// A table of the operations, each on what the ten crops of an image hand it on average.
    pub fn operations(&self, rounds: usize) {
        println!("| operation | ms | of it a crop of 224 | times an image |");
        println!("| --- | --- | --- | --- |");
        let best = |call: &mut dyn FnMut()| {
            call();
            (0..rounds * 8).map(|_| time(&mut *call)).fold(f64::INFINITY, f64::min)
        };
        let r = &self.recipe;
        let image = &self.images[0];
        let row = |name: &str, global: f64, local: f64, share: f64| {
            let all = share * (2.0 * global + r.local_crops_number as f64 * local);
            println!("| {name} | {all:.3} | {global:.3} | {share:.2} x all ten |");
        };
        // The middle of the scale, in the middle of the image.
        let source = |scale: [f64; 2]| {
            let part = ((scale[0] + scale[1]) / 2.0).sqrt();
            let [height, width] = [image.height, image.width].map(|n| (n as f64 * part) as usize);
            Region { top: (image.height - height) / 2, left: (image.width - width) / 2, height, width }
        };
        let views = [(r.global_size, source(r.global_crops_scale)), (r.local_size, source(r.local_crops_scale))];
        let (mut resizer, mut pixels) = (Resizer::default(), Vec::new());
        let [global, local] = views.map(|(side, from)| {
            let full = Region::full(side, side);
            best(&mut || resizer.run(&mut pixels, image, from, (side, side), full, Filter::Bicubic))
        });
        row("resize", global, local, 1.0);
        let crops = views.map(|(side, from)| {
            resizer.run(&mut pixels, image, from, (side, side), Region::full(side, side), Filter::Bicubic);
            (side, pixels.clone())
        });
        let on_both = |name: &str, share: f64, op: &mut dyn FnMut(&mut Vec<u8>, usize)| {
            let [global, local] = crops.each_ref().map(|(side, crop)| {
                let mut pixels = crop.clone();
                best(&mut || op(&mut pixels, *side))
            });
            row(name, global, local, share);
        };
        on_both("mirror", r.flip, &mut |p, side| mirror(p, side));
        for (op, factor) in color::Op::ALL.into_iter().zip([1.1, 0.9, 1.1, 0.05]) {
            on_both(&format!("{op:?}").to_lowercase(), r.jitter_prob, &mut |p, _| op.apply(p, 3, factor));
        }
        on_both("gray", r.gray_prob, &mut |p, _| color::grayscale(p, 3));
        let mut scratch = blur::Scratch::default();
        // By area: of the two global crops 1.1 are blurred, of the local ones half.
        on_both("blur", 0.53, &mut |p, side| blur::gaussian_blur(p, side, side, 1.2, &mut scratch));
        on_both("solarise", 0.06, &mut |p, _| color::solarize(p, 128));
        let mut out = vec![0.0; 3 * r.global_size.pow(2)];
        on_both("normalize", 1.0, &mut |p, _| normalize(&mut out[..p.len()], p, &r.mean, &r.std));

        let mut scratch = Scratch::default();
        let count = self.files.len();
        let decode = best(&mut || (0..count).for_each(|i| drop(black_box(self.files.image(i))))) / count as f64;
        // More images than files: what is drawn differs much from image to image.
        let mut many = || (0..32).for_each(|n| self.crops(&mut scratch, &mut out, &self.images[n % count], n as u32));
        let crops = (0..rounds).map(|_| time(&mut many)).fold(f64::INFINITY, f64::min) / 32.0;
        println!("| decode | {decode:.3} | | |");
        println!("| the ten crops | {crops:.3} | | |");
        println!("| decode and crops | {:.3} | | |", decode + crops);
    }
}

//! Resizing, colors, blur and the evaluation view against what Pillow makes of the same pixels, bit for bit.
//!
//! The cases are those of `image.safetensors` in `$DINO_FIXTURES`, or in `tests/golden` without it. Names, sizes and
//! settings are read from the file, so that any set of the same layout can be put in its place.

use std::path::PathBuf;

use dino_host::image::Image;
use dino_host::image::augment::{self, EvalView, blur, color};
use dino_host::image::planes::{interleaved, mirror, normalize, planes};
use dino_host::image::resize::{Filter, Order, Region, resized_crop};
use safetensors::{Dtype, SafeTensors};

struct Fixtures {
    bytes: Vec<u8>,
    json: serde_json::Value,
}

impl Fixtures {
    fn load() -> Fixtures {
        let golden = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden"));
        let folder = std::env::var_os("DINO_FIXTURES").map_or_else(golden, PathBuf::from);
        let read =
            |name: &str| std::fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name} in {folder:?}: {e}"));
        Fixtures { bytes: read("image.safetensors"), json: serde_json::from_slice(&read("image.json")).unwrap() }
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap()
    }

    /// The names `{prefix}0{suffix}`, `{prefix}1{suffix}`, ... with what is written for the number.
    fn numbered(&self, prefix: &str, suffix: &str) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .tensors()
            .names()
            .into_iter()
            .filter_map(|n| n.strip_prefix(prefix)?.strip_suffix(suffix)?.parse().ok())
            .collect();
        found.sort();
        assert!(!found.is_empty(), "no case {prefix}N{suffix}");
        found
    }

    fn image(&self, name: &str) -> Image {
        let tensors = self.tensors();
        let t = tensors.tensor(name).unwrap();
        assert_eq!((t.dtype(), t.shape()[2]), (Dtype::U8, 3), "{name}");
        Image { height: t.shape()[0], width: t.shape()[1], channels: 3, pixels: t.data().to_vec() }
    }

    fn words(&self, name: &str, dtype: Dtype) -> Vec<[u8; 4]> {
        let tensors = self.tensors();
        let t = tensors.tensor(name).unwrap();
        assert_eq!(t.dtype(), dtype, "{name}");
        t.data().as_chunks::<4>().0.to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, Dtype::F32).into_iter().map(f32::from_le_bytes).collect()
    }

    fn integers(&self, name: &str) -> Vec<usize> {
        self.words(name, Dtype::I32).into_iter().map(|w| i32::from_le_bytes(w) as usize).collect()
    }

    /// `got` must be the image `name`, bit for bit.
    fn expect(&self, name: &str, got: &Image) {
        let want = self.image(name);
        assert_eq!((got.height, got.width), (want.height, want.width), "{name}");
        let differing = got.pixels.iter().zip(&want.pixels).filter(|(a, b)| a != b).count();
        let most = got.pixels.iter().zip(&want.pixels).map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(differing, 0, "{name}: {differing} of {} values differ, by up to {most:?}", want.pixels.len());
    }

    /// What `op` makes of the planes of `small` (and their height and width) must be the image `name`.
    fn expect_of_small(&self, name: &str, mut op: impl FnMut(&mut [u8], usize, usize)) {
        let mut image = self.image("small");
        let mut pixels = planes(&image);
        op(&mut pixels, image.height, image.width);
        image.pixels = interleaved(&pixels, 3);
        self.expect(name, &image);
    }
}

#[test]
fn crop_and_resize() {
    let fixtures = Fixtures::load();
    let (image, mut pillow13) = (fixtures.image("src"), 0);
    for n in fixtures.numbered("resize", ".box") {
        let b = fixtures.integers(&format!("resize{n}.box"));
        let source = Region { top: b[0], left: b[1], height: b[2], width: b[3] };
        for (filter, name) in [(Filter::Bilinear, "bilinear"), (Filter::Bicubic, "bicubic")] {
            let name = format!("resize{n}.{name}");
            let crop = |order| resized_crop(&image, source, b[4], b[5], filter, order);
            fixtures.expect(&name, &crop(Order::Pillow12));
            // The set holds Pillow 13's where it differs.
            let (other, seen) = (format!("{name}.pillow13"), crop(Order::Pillow13));
            let differs = fixtures.tensors().tensor(&other).is_ok();
            fixtures.expect(if differs { &other } else { &name }, &seen);
            pillow13 += differs as usize;
        }
    }
    assert!(pillow13 > 0, "no case in which the order of the passes shows");
}

#[test]
fn gaussian_blur() {
    let fixtures = Fixtures::load();
    let mut scratch = blur::Scratch::default(); // one for all: nothing may be carried over
    for (n, sigma) in fixtures.floats("blur.sigmas").into_iter().enumerate() {
        fixtures.expect_of_small(&format!("blur.{n}"), |pixels, height, width| {
            blur::gaussian_blur(pixels, height, width, sigma as f64, &mut scratch);
        });
    }
}

const NAMES: [&str; 4] = ["brightness", "contrast", "saturation", "hue"];

#[test]
fn color_operations() {
    let fixtures = Fixtures::load();
    for (op, name) in color::Op::ALL.into_iter().zip(NAMES) {
        for (n, factor) in fixtures.floats(&format!("color.{name}.factors")).into_iter().enumerate() {
            fixtures.expect_of_small(&format!("color.{name}.{n}"), |p, _, _| op.apply(p, 3, factor as f64));
        }
    }
    fixtures.expect_of_small("gray", |p, _, _| color::grayscale(p, 3));
    fixtures.expect_of_small("solarize", |p, _, _| color::solarize(p, 128));
    fixtures.expect_of_small("hflip", |p, _, width| mirror(p, width));
}

#[test]
fn color_operations_in_a_row() {
    let fixtures = Fixtures::load();
    for n in fixtures.numbered("jitter", ".order") {
        let factors = fixtures.floats(&format!("jitter{n}.factors"));
        fixtures.expect_of_small(&format!("jitter{n}.out"), |pixels, _, _| {
            for op in fixtures.integers(&format!("jitter{n}.order")) {
                color::Op::ALL[op].apply(pixels, 3, factors[op] as f64);
            }
        });
    }
}

#[test]
fn normalized_planes() {
    let fixtures = Fixtures::load();
    let (image, want) = (fixtures.image("small"), fixtures.floats("normalized"));
    let published = augment::Augment::default();
    let mut got = vec![0.0; want.len()];
    normalize(&mut got, &planes(&image), &published.mean, &published.std);
    let tolerance = fixtures.json["tensors"]["normalized"]["atol"].as_f64().unwrap();
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(((got - want) as f64).abs() <= tolerance, "element {i}: {got}, not {want}");
    }
}

#[test]
fn evaluation_view() {
    let fixtures = Fixtures::load();
    let cfg = fixtures.integers("eval.cfg");
    fixtures.expect("eval.out", &augment::resize_and_center(&fixtures.image("src"), cfg[0], cfg[1]));
}

#[test]
fn evaluation_views_follow_their_rule_whatever_the_image() {
    let image = Fixtures::load().image("src");
    let (mean, std) = (&[0.0; 3], &[1.0; 3]);
    let normalized = |image: &Image| {
        let mut out = vec![0.0; image.pixels.len()];
        normalize(&mut out, &planes(image), mean, std);
        out
    };
    let mut out = vec![0.0; 3 * 224 * 224];
    augment::eval_view(&image, 224, EvalView::ResizeCrop, mean, std, &mut out);
    assert!(out == normalized(&augment::resize_and_center(&image, 256, 224)));

    let square =
        resized_crop(&image, Region::full(image.height, image.width), 32, 32, Filter::Bicubic, Order::Pillow12);
    let mut out = vec![0.0; 3 * 32 * 32];
    augment::eval_view(&square, 32, EvalView::Whole, mean, std, &mut out);
    assert!(out == normalized(&square));
    // The published rule reads no size.
    augment::eval_view(&square, 32, EvalView::ResizeCrop, mean, std, &mut out);
    assert!(out == normalized(&augment::resize_and_center(&square, 37, 32)));
    let oblong =
        resized_crop(&image, Region::full(image.height, image.width), 32, 40, Filter::Bicubic, Order::Pillow12);
    augment::eval_view(&oblong, 32, EvalView::ResizeCrop, mean, std, &mut out);
    assert!(out == normalized(&augment::resize_and_center(&oblong, 37, 32)));
    augment::eval_view(&oblong, 32, EvalView::Whole, mean, std, &mut out);
    assert!(out == normalized(&augment::resize_and_center(&oblong, 32, 32)));
}

#[test]
fn any_shape_can_be_resized() {
    for (h, w) in [(1, 1), (1, 300), (300, 1), (2, 3)] {
        let image = Image { height: h, width: w, channels: 3, pixels: vec![77; h * w * 3] };
        for size in [1, 2, 7, 33] {
            let crop = resized_crop(&image, Region::full(h, w), size, size + 1, Filter::Bicubic, Order::Pillow12);
            assert!(crop.pixels.len() == size * (size + 1) * 3 && crop.pixels.iter().all(|&x| x == 77));
            let mut out = vec![0.0; 3 * size * size];
            for view in [EvalView::ResizeCrop, EvalView::Whole] {
                augment::eval_view(&image, size, view, &[0.0; 3], &[1.0; 3], &mut out);
                assert!(out.iter().all(|&x| x == 77.0 / 255.0));
            }
        }
    }
}

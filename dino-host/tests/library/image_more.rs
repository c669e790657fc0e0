//! The box filter and gray images against Pillow, rectangles against torchvision's, and any number of channels against one.
//!
//! `image_more.json` and `random_resized_crop.json` are read from `$DINO_FIXTURES` where they are stored there, else from
//! `tests/golden`, beside the scripts that make them.

use dino_host::image::Image;
use dino_host::image::augment::{Augment, blur, color, region};
use dino_host::image::planes::{interleaved, mirror, normalize, planes};
use dino_host::image::resize::{Filter, Order, Region, resize, resized_crop};
use dino_kernel::rng::{Kind, Rng};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> Value {
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden")).join(name);
    let other = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join(name));
    let path = other.filter(|path| path.is_file()).unwrap_or(golden);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"))).unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("an integer") as usize
}

fn pair(value: &Value) -> [f64; 2] {
    [0, 1].map(|i| value[i].as_f64().expect("two numbers"))
}

fn image(value: &Value) -> Image {
    let hex = value["pixels"].as_str().expect("hexadecimal pixels");
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal pixels");
    let pixels: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let [height, width, channels] = ["height", "width", "channels"].map(|key| number(&value[key]));
    assert_eq!(pixels.len(), height * width * channels);
    Image { width, height, channels, pixels }
}

#[test]
fn box_filter_and_grey_images_are_pillows() {
    let fixture = fixture("image_more.json");
    let order = if fixture["order"] == "pillow13" { Order::Pillow13 } else { Order::Pillow12 };
    let cases = fixture["cases"].as_array().expect("cases");
    assert!(!cases.is_empty());
    for case in cases {
        let (op, of) = (case["op"].as_str().expect("an operation"), case["of"].as_str().expect("a source"));
        let (source, want) = (image(&fixture[of]), image(case));
        let (h, w, channels) = (source.height, source.width, source.channels);
        let factor = case["factor"].as_f64().unwrap_or(f64::NAN);
        let got = if op == "resize" {
            let filter = match case["filter"].as_str() {
                Some("box") => Filter::Box,
                Some("bilinear") => Filter::Bilinear,
                _ => Filter::Bicubic,
            };
            resized_crop(&source, Region::full(h, w), want.height, want.width, filter, order)
        } else {
            let mut p = planes(&source);
            match op {
                "brightness" => color::Op::Brightness.apply(&mut p, channels, factor),
                "contrast" => color::Op::Contrast.apply(&mut p, channels, factor),
                "saturation" => color::Op::Saturation.apply(&mut p, channels, factor),
                "hue" => color::Op::Hue.apply(&mut p, channels, factor),
                "gray" => color::grayscale(&mut p, channels),
                "solarize" => color::solarize(&mut p, 128),
                "mirror" => mirror(&mut p, w),
                "blur" => blur::gaussian_blur(&mut p, h, w, factor, &mut blur::Scratch::default()),
                _ => panic!("unknown operation {op}"),
            }
            Image { pixels: interleaved(&p, channels), ..source }
        };
        assert!(got == want, "{op} {} {factor} of {of} to {} x {}", case["filter"], want.height, want.width);
    }
}

/// torchvision takes the exponential in f32 of an f32 number; we draw in f64, so the test rounds where torchvision does.
#[test]
fn rectangles_are_torchvisions() {
    let fixture = fixture("random_resized_crop.json");
    let cases = fixture["cases"].as_array().expect("cases");
    let (mut fitted, mut central) = (0, 0);
    for case in cases {
        let [height, width] = [0, 1].map(|i| number(&case["size"][i]));
        let draws: Vec<f64> = case["uniform"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        let sides = draws
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[part, log_ratio]| region::sides(height, width, *part, libm::expf(*log_ratio as f32) as f64));
        let sides: Vec<_> = sides.collect();
        let (last, before) = sides.split_last().expect("at least one draw");
        assert!(before.iter().all(Option::is_none), "torchvision went on after {sides:?}: {case}");
        let got = match last {
            Some((height, width)) => {
                fitted += 1;
                let [top, left] = [0, 1].map(|i| number(&case["randint"][i]));
                Region { top, left, height: *height, width: *width }
            }
            None => {
                central += 1;
                assert_eq!(sides.len(), 10);
                region::central(height, width, pair(&case["ratio"]))
            }
        };
        let [top, left, tall, wide] = [0, 1, 2, 3].map(|i| number(&case["box"][i]));
        if tall == 0 || wide == 0 {
            // torchvision rounds to nothing, and fails at the resize; ours is one pixel high or wide.
            assert_eq!((got.height, got.width), (tall.max(1), wide.max(1)), "{case}");
        } else {
            assert_eq!(got, Region { top, left, height: tall, width: wide }, "{case}");
        }
    }
    assert!(fitted > 0 && central > 0, "{fitted} fitted, {central} central");
}

fn noise(height: usize, width: usize, channels: usize) -> Image {
    let mut rng = Rng::new(3, 0, 0, 0, Kind::Test, 0);
    let pixels = (0..height * width * channels).map(|_| rng.bits() as u8).collect();
    Image { width, height, channels, pixels }
}

/// One channel of an image as an image.
fn channel(image: &Image, c: usize) -> Image {
    let pixels = image.pixels[c..].iter().step_by(image.channels).copied().collect();
    Image { channels: 1, pixels, ..*image }
}

type Planewise<'a> = &'a dyn Fn(&mut [u8]);

#[test]
fn channels_do_not_mix() {
    for (channels, height, width) in [(3, 33, 50), (4, 20, 17), (7, 5, 40), (2, 1, 1)] {
        let all = noise(height, width, channels);
        let each: Vec<Image> = (0..channels).map(|c| channel(&all, c)).collect();
        for (h, w) in [(16, 16), (7, 61), (2, 3)] {
            for order in [Order::Pillow12, Order::Pillow13] {
                let full = Region::full(height, width);
                let resized = resized_crop(&all, full, h, w, Filter::Bicubic, order);
                for (c, one) in each.iter().enumerate() {
                    assert!(channel(&resized, c) == resized_crop(one, full, h, w, Filter::Bicubic, order));
                }
            }
        }
        let ops: [Planewise; 3] = [
            &|p| blur::gaussian_blur(p, height, width, 1.7, &mut blur::Scratch::default()),
            &|p| mirror(p, width),
            &|p| color::solarize(p, 100),
        ];
        for (n, op) in ops.iter().enumerate() {
            let mut together = planes(&all);
            op(&mut together);
            let apart = each.iter().flat_map(|one| {
                let mut plane = one.pixels.clone();
                op(&mut plane);
                plane
            });
            assert!(apart.eq(together), "operation {n}, {channels} channels");
        }
        let (mean, std): (Vec<f64>, Vec<f64>) = (0..channels).map(|c| (0.1 * c as f64, 0.2 + 0.1 * c as f64)).unzip();
        let mut together = vec![0.0; all.pixels.len()];
        normalize(&mut together, &planes(&all), &mean, &std);
        for (c, (plane, one)) in together.chunks(height * width).zip(&each).enumerate() {
            let mut apart = vec![0.0; one.pixels.len()];
            normalize(&mut apart, &one.pixels, &mean[c..=c], &std[c..=c]);
            assert!(apart == plane);
        }
    }
}

#[test]
fn operations_without_a_meaning_are_named_and_left_out() {
    let recipe = |channels| {
        let (mean, std) = (vec![0.0; channels], vec![1.0; channels]);
        Augment { channels, mean, std, global_size: 16, local_size: 8, ..Augment::default() }
    };
    assert!(recipe(3).left_out().is_empty());
    assert_eq!(recipe(1).left_out(), ["--saturation", "--hue", "--gray"]);
    assert_eq!(recipe(5).left_out(), ["--brightness", "--contrast", "--saturation", "--hue", "--gray"]);
    assert!(Augment { jitter_prob: 0.0, gray_prob: 0.0, ..recipe(5) }.left_out().is_empty());
    for channels in [1, 2, 4] {
        let image = noise(30, 40, channels);
        // The second global crop is left out: what is drawn for the jitter moves what is drawn for its solarization.
        for view in [0, 2] {
            let side = recipe(channels).crops_of()[view].0;
            let always = Augment { jitter_prob: 1.0, gray_prob: 1.0, blur_probs: [0.0; 3], ..recipe(channels) };
            let never = Augment { jitter_prob: 0.0, gray_prob: 0.0, ..always.clone() };
            let [with, without] = [always, never].map(|recipe| {
                let mut out = vec![f32::NAN; channels * side * side];
                recipe.crop(&image, view, &mut Rng::new(0, 0, 0, view as u32, Kind::Augment, 0), &mut out);
                assert!(out.iter().all(|x| (0.0..=1.0).contains(x)));
                out
            });
            assert_eq!(with == without, channels != 1, "{channels} channels, view {view}");
        }
    }
}

#[test]
fn a_size_that_stays_changes_nothing() {
    let image = noise(20, 30, 3);
    for filter in [Filter::Box, Filter::Bilinear, Filter::Bicubic] {
        assert!(resize(&image, 20, 30, filter) == image);
    }
}

//! The dense evaluations against PyTorch, numpy, SciPy and Pillow: `tests/golden/dense.json`, made by the script beside it.

use dino_host::eval::any_size::bilinear;
use dino_host::eval::copies::{Whitening, generalized_mean};
use dino_host::eval::knn::normalize;
use dino_host::eval::propagate::{Params, Propagation, segment};
use dino_host::eval::ranking::Truth;
use dino_host::eval::{measures, retrieval};
use dino_host::image::Image;
use dino_host::image::masks::Mask;
use dino_host::image::resize::{Filter, Order, Region, resized_crop};
use ndarray::Array2;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// As the goal of every comparison here.
const CLOSE: f64 = 1e-5;

/// `dense.json` in `$DINO_FIXTURES` where it is stored there, else the committed one.
fn fixture() -> Value {
    let other = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join("dense.json"));
    let golden = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/dense.json");
    let path = other.filter(|file| file.is_file()).unwrap_or_else(golden);
    serde_json::from_slice(&std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn numbers(value: &Value) -> Vec<f32> {
    list(value).iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

fn integer(value: &Value) -> usize {
    value.as_f64().expect("a number") as usize
}

fn rows(value: &Value, columns: usize) -> Array2<f32> {
    let x = numbers(value);
    Array2::from_shape_vec((x.len() / columns, columns), x).unwrap()
}

#[track_caller]
fn close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let off = got.iter().zip(want).map(|(a, b)| (a - b).abs() as f64).fold(0.0, f64::max);
    assert!(off <= CLOSE, "{what}: off by {off}");
}

#[test]
fn masks_are_propagated_as_published() {
    let fixture = fixture();
    assert_eq!(list(&fixture["videos"]).len(), 3);
    for (v, video) in list(&fixture["videos"]).iter().enumerate() {
        let pair = |key: &str| [integer(&video[key][0]), integer(&video[key][1])];
        let (grid, size, classes) = (pair("grid"), pair("size"), integer(&video["classes"]));
        let params = Params {
            previous: integer(&video["previous"]),
            radius: integer(&video["radius"]),
            top: integer(&video["top"]),
            temperature: video["temperature"].as_f64().unwrap(),
        };
        let ids = |key: &str| numbers(&video[key]).iter().map(|&x| x as u8).collect::<Vec<u8>>();
        let first = Mask { width: size[1], height: size[0], ids: ids("first") };
        let small = first.resized(grid[1], grid[0]);
        assert_eq!(small.ids, ids("small"), "video {v}");
        let features: Vec<Vec<f32>> = list(&video["features"]).iter().map(numbers).collect();
        let mut p = Propagation::new(params, grid, features[0].clone(), &small.ids, classes);
        let mut seen = 0;
        for (t, tokens) in features.iter().enumerate().skip(1) {
            let got = p.next(tokens.clone());
            close(got, &numbers(&video["segs"][t - 1]), &format!("video {v}, frame {t}"));
            let mask = segment(got, classes, grid, integer(&video["patch"]), size);
            let text: String = mask.ids.iter().map(|id| id.to_string()).collect();
            assert_eq!(text, video["masks"][t - 1].as_str().unwrap(), "video {v}, frame {t}");
            seen += 1;
        }
        assert!(seen >= 3);
    }
}

#[test]
fn regions_boundaries_and_statistics_are_davis() {
    let fixture = fixture();
    for pair in list(&fixture["pairs"]) {
        let of = |key: &str| pair[key].as_str().unwrap().bytes().map(|b| b == b'1').collect::<Vec<bool>>();
        let (a, b, width) = (of("a"), of("b"), integer(&pair["width"]));
        let scored = vec![true; a.len()];
        let (j, f) =
            (measures::region(&a, &b, &scored), measures::boundary(&a, &b, &scored, width, measures::BOUNDARY));
        let want = |key: &str| pair[key].as_f64().unwrap();
        assert!((j - want("j")).abs() < 1e-12 && (f - want("f")).abs() < 1e-12, "{width}: J {j}, F {f}, {pair}");
        assert!(want("f") > 0.1 && want("f") < 1.0, "a case that shows something");
    }
    for case in list(&fixture["statistics"]) {
        let values: Vec<f64> = list(&case["values"]).iter().map(|x| x.as_f64().unwrap()).collect();
        let (got, want) = (measures::statistics(&values), list(&case["of"]));
        for (got, want) in got.iter().zip(want) {
            assert!((got - want.as_f64().unwrap()).abs() < 1e-12, "{} values", values.len());
        }
    }
}

#[test]
fn average_precision_is_revisitops() {
    let r = &fixture()["retrieval"];
    let columns = integer(&r["columns"]);
    let truth: Vec<Truth> = serde_json::from_value(r["gnd"].clone()).unwrap();
    let ks: Vec<usize> = list(&r["k"]).iter().map(integer).collect();
    let got = retrieval::by_truth(rows(&r["bank"], columns), rows(&r["queries"], columns), &truth, &ks).unwrap();
    for (scores, protocol) in got.iter().zip(["easy", "medium", "hard"]) {
        let want = &r["scores"][protocol];
        assert_eq!(scores.queries, integer(&want["queries"]), "{protocol}");
        assert!((scores.map - want["map"].as_f64().unwrap()).abs() < CLOSE, "{protocol}: {scores:?}");
        for (got, want) in scores.precision.iter().zip(list(&want["precision"])) {
            assert!((got - want.as_f64().unwrap()).abs() < CLOSE, "{protocol}: {scores:?}");
        }
    }
    assert_eq!(got[2].queries, 4, "a query without hard images does not count");
}

#[test]
fn generalised_means_and_whitening_are_the_published() {
    let c = &fixture()["copies"];
    close(&generalized_mean(&numbers(&c["patches"]), 6, 4.0), &numbers(&c["gem"]), "the generalised mean");
    let columns = integer(&c["columns"]);
    for (uncentred, name) in [(false, "centred"), (true, "uncentred")] {
        let whitening = Whitening::learn(&rows(&c["learn"], columns), uncentred).unwrap();
        let white = normalize(whitening.apply(&rows(&c["rows"], columns)));
        let cosines = white.dot(&white.t());
        close(cosines.as_standard_layout().as_slice().unwrap(), &numbers(&c["cosines"][name]), name);
    }
    assert_ne!(c["cosines"]["centred"], c["cosines"]["uncentred"]);
}

#[test]
fn smaller_images_are_pillows_and_scales_are_torchs() {
    let fixture = fixture();
    let bytes = |v: &Value| -> Vec<u8> {
        let hex = v["pixels"].as_str().unwrap();
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    };
    let l = &fixture["lanczos"];
    let (height, width) = (integer(&l["height"]), integer(&l["width"]));
    let image = Image { width, height, channels: 3, pixels: bytes(l) };
    for case in list(&l["cases"]) {
        let (h, w) = (integer(&case["height"]), integer(&case["width"]));
        let all = Region::full(height, width);
        let got = resized_crop(&image, all, h, w, Filter::Lanczos, Order::Pillow13);
        assert_eq!(got.pixels, bytes(case), "{w} x {h}");
    }
    let m = &fixture["multi_scale"];
    for case in list(&m["cases"]) {
        let (scale, to) = (case["scale"].as_f64().unwrap(), [integer(&case["size"][0]), integer(&case["size"][1])]);
        assert_eq!(to, [13, 17].map(|n| (n as f64 * scale) as usize));
        let got = bilinear(&numbers(&m["x"]), [13, 17], to, [1.0 / scale; 2]);
        close(&got, &numbers(&case["y"]), &format!("scale {scale}"));
    }
}

//! The linear probe against torch, logistic regression against scikit-learn (`tests/golden/make_probes.py`), and what both must do
//! with any data.

use dino_host::data::order::order;
use dino_host::eval::linear::{self, Head, Heads, Recipe};
use dino_host::eval::logistic::{self, Few, Scale};
use dino_host::eval::{head_file, scores};
use dino_kernel::rng::{Kind, Rng};
use ndarray::{Array2, ArrayView2};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// `probes.safetensors` in `$DINO_FIXTURES` where it is stored there, else the committed one.
static FIXTURE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let other = std::env::var_os("DINO_FIXTURES").map(|folder| PathBuf::from(folder).join("probes.safetensors"));
    let golden = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/probes.safetensors");
    std::fs::read(other.filter(|file| file.is_file()).unwrap_or_else(golden)).unwrap()
});

fn bytes(name: &str) -> (Vec<usize>, Vec<u8>) {
    let file = SafeTensors::deserialize(&FIXTURE).unwrap();
    let tensor = file.tensor(name).unwrap();
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

fn f32s(name: &str) -> Vec<f32> {
    bytes(name).1.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn f64s(name: &str) -> Vec<f64> {
    bytes(name).1.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect()
}

fn integers(name: &str) -> Vec<u32> {
    bytes(name).1.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
}

fn rows(name: &str) -> Array2<f32> {
    let shape = bytes(name).0;
    Array2::from_shape_vec((shape[0], shape[1]), f32s(name)).unwrap()
}

fn furthest(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Every head of a grid takes the steps it would take alone in torch.
#[test]
fn steps_are_those_of_torch() {
    let (x, labels, orders) = (rows("linear.x"), integers("linear.labels"), integers("linear.orders"));
    let (rates, first) = (f64s("linear.rates"), rows("linear.first"));
    let recipe = Recipe { epochs: orders.len() / labels.len(), batch: 20, rates: rates.clone(), seed: 0 };
    let mut heads = Heads::from(&rates, &Head { bias: vec![0.0; first.nrows()], weight: first });
    for (epoch, order) in orders.chunks(labels.len()).enumerate() {
        heads.steps(x.view(), &labels, order, recipe.batch, recipe.factor(epoch));
    }
    let scores = heads.evaluate(x.view(), &labels);
    for h in 0..rates.len() {
        let (head, weight) = (heads.head(h), f32s(&format!("linear.weight{h}")));
        let w = furthest(head.weight.iter().map(|&w| w as f64), weight.iter().map(|&w| w as f64));
        let bias = f32s(&format!("linear.bias{h}"));
        let b = furthest(head.bias.iter().map(|&b| b as f64), bias.iter().map(|&b| b as f64));
        let loss = (scores[h].loss - f64s(&format!("linear.loss{h}"))[0]).abs();
        assert!(w < 1e-5 && b < 1e-5 && loss < 1e-5, "rate {}: {w:e} {b:e} {loss:e}", rates[h]);
        // The rates differ enough that one's weights would not pass for the other's.
        let other = f32s(&format!("linear.weight{}", 1 - h));
        assert!(furthest(weight.iter().map(|&w| w as f64), other.iter().map(|&w| w as f64)) > 0.1);
    }
}

#[test]
fn a_head_of_a_grid_is_what_it_would_be_alone() {
    let (x, labels) = (rows("linear.x"), integers("linear.labels"));
    // The highest rate overflows, and the others do not notice.
    let all = Recipe { epochs: 7, batch: 16, rates: vec![0.01, 3.0, 1e40], seed: 5 };
    let together = linear::train(x.view(), &labels, 4, &all, || ());
    for (i, &rate) in all.rates.iter().enumerate().take(2) {
        let alone = linear::train(x.view(), &labels, 4, &Recipe { rates: vec![rate], ..all.clone() }, || ());
        assert_eq!(together.head(i), alone.head(0), "rate {rate}");
    }
    let scores = together.evaluate(x.view(), &labels);
    assert!(!scores[2].loss.is_finite() && linear::best(&scores) < 2, "{scores:?}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let mut rng = Rng::new(4, 0, 0, 0, Kind::Test, 0);
    let (n, width, classes) = (700, 96, 7);
    let labels: Vec<u32> = (0..n).map(|_| rng.below(classes)).collect();
    let x = Array2::from_shape_fn((n, width), |(i, j)| {
        (rng.normal() + if j as u32 % classes == labels[i] { 0.5 } else { 0.0 }) as f32
    });
    let recipe = Recipe { epochs: 3, batch: 300, rates: linear::RATES.to_vec(), seed: 1 };
    let solve = logistic(Scale::L2, &[1e-2, 1e-4]);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let heads = linear::train(x.view(), &labels, classes as usize, &recipe, || ());
            let fit = logistic::fit(x.view(), &labels, classes as usize, 1e-3, &solve, None);
            let drawn: Vec<usize> = (0..n).step_by(5).collect();
            let out = logistic::outcome(x.view(), &labels, &drawn, x.view(), &labels, classes as usize, &solve);
            let heads: Vec<Head> = (0..recipe.rates.len()).map(|i| heads.head(i)).collect();
            (heads, fit.weight, fit.bias, out.predicted, out.l2, out.gradient)
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}

fn logistic(scale: Scale, l2: &[f64]) -> logistic::Recipe {
    logistic::Recipe { scale, l2: l2.to_vec(), stop: 1e-6, most: 1000, seed: 0 }
}

/// f is l2-strongly convex in the weights, so whoever stops at a gradient g is at most |g| / l2 away from the optimum.
#[test]
fn the_optimum_is_that_of_scikit_learn() {
    let (x, labels) = (rows("logistic.x"), integers("logistic.labels"));
    let recipe = logistic(Scale::None, &[1.0]);
    for (k, l2) in f64s("logistic.l2").into_iter().enumerate() {
        let fit = logistic::fit(x.view(), &labels, 3, l2, &recipe, None);
        assert!(fit.gradient <= recipe.stop, "l2 {l2}: {} after {}", fit.gradient, fit.iterations);
        let (weight, bias) = (f64s(&format!("logistic.weight{k}")), f64s(&format!("logistic.bias{k}")));
        let distance = fit.weight.iter().zip(&weight).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let elements = (fit.weight.len() + fit.bias.len()) as f64;
        // The gradient at the stop, and what f32 matmuls may have hidden of it.
        let bound = (fit.gradient + 1e-7) * elements.sqrt() / l2;
        assert!(distance <= bound, "l2 {l2}: weights off by {distance:e}, bound {bound:e}");
        // Biases are only fixed up to what all of them share; both start from zero, where their sum stays.
        let off = furthest(fit.bias.iter().copied(), bias.iter().copied());
        assert!(off <= bound, "l2 {l2}: biases off by {off:e}");
        let loss = f64s(&format!("logistic.loss{k}"))[0];
        assert!((fit.loss - loss).abs() <= 1e-6 * loss, "l2 {l2}: loss {} instead of {loss}", fit.loss);
    }
}

#[test]
fn a_stronger_penalty_makes_smaller_weights_and_a_start_changes_nothing() {
    let (x, labels) = (rows("logistic.x"), integers("logistic.labels"));
    let recipe = logistic(Scale::None, &[1.0]);
    let [strong, weak] = [0.1, 1e-2].map(|l2| logistic::fit(x.view(), &labels, 3, l2, &recipe, None));
    let length = |f: &logistic::Fit| f.weight.iter().map(|w| w * w).sum::<f64>().sqrt();
    assert!(length(&strong) < 0.7 * length(&weak));
    let again = logistic::fit(x.view(), &labels, 3, 1e-2, &recipe, Some(&strong));
    let bound = (again.gradient + weak.gradient + 2e-7) * 21f64.sqrt() / 1e-2;
    assert!(furthest(again.weight.iter().copied(), weak.weight.iter().copied()) <= bound);
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("c{i}")).collect()
}

#[test]
fn a_draw_takes_what_was_asked_of_every_class() {
    let labels: Vec<u32> = (0..100).map(|i| if i < 80 { 0 } else { 1 + (i % 2) }).collect();
    let draw = |few, n| logistic::draw(&labels, &names(4), few, 3, n);
    let count = |drawn: &[usize]| [0, 1, 2].map(|c| drawn.iter().filter(|&&i| labels[i] == c).count());
    assert_eq!(count(&draw(Few::Shots(4), 0).unwrap()), [4, 4, 4]);
    assert_eq!(count(&draw(Few::Fraction(0.2), 0).unwrap()), [16, 2, 2]);
    // One at least, and all of them.
    assert_eq!(count(&draw(Few::Fraction(0.001), 0).unwrap()), [1, 1, 1]);
    assert_eq!(draw(Few::Fraction(1.0), 0).unwrap(), (0..100).collect::<Vec<_>>());
    assert_eq!(draw(Few::Shots(4), 1).unwrap(), draw(Few::Shots(4), 1).unwrap());
    assert_ne!(draw(Few::Shots(4), 1).unwrap(), draw(Few::Shots(4), 2).unwrap());
    let refused = draw(Few::Shots(11), 0).unwrap_err().to_string();
    assert!(refused.contains("class c1 has 10 images") && refused.contains("--shots 10"), "{refused}");
}

/// Separated clouds are told apart from one image a class; a class that was not drawn never is.
#[test]
fn outcomes_of_easy_and_of_degenerate_data() {
    let labels: Vec<u32> = (0..60).map(|i| i % 3).collect();
    let mut rng = Rng::new(9, 0, 0, 0, Kind::Test, 0);
    let x = Array2::from_shape_fn((60, 5), |(i, j)| (if j == i % 3 { 4.0 } else { 0.0 } + 0.2 * rng.normal()) as f32);
    let run = |x: ArrayView2<f32>, labels: &[u32], drawn: &[usize], classes, recipe: &logistic::Recipe| {
        logistic::outcome(x, labels, drawn, x, labels, classes, recipe)
    };
    for scale in [Scale::L2, Scale::Standard, Scale::None] {
        let all = run(x.view(), &labels, &(0..30).collect::<Vec<_>>(), 3, &logistic(scale, &logistic::GRID));
        assert!(all.chosen && all.converged && all.top1 == 100.0, "{scale:?}: {all:?}");
    }
    // One image a class: nothing to choose a penalty by.
    let one = run(x.view(), &labels, &[0, 1, 2], 3, &logistic(Scale::L2, &[1e-2, 1e-3]));
    assert_eq!((one.top1, one.chosen, one.l2), (100.0, false, logistic::FALLBACK));
    // Class 2 is unknown: its third is lost, also among the first five.
    let two = run(x.view(), &labels, &[0, 1, 3, 4], 3, &logistic(Scale::L2, &[1e-2]));
    assert!((two.top1 - 200.0 / 3.0).abs() < 1e-9 && two.top1 == two.top5, "{two:?}");
    // A single class, a single image, features that do not vary.
    let zero = vec![0; 60];
    let single = run(x.view(), &zero, &[7], 1, &logistic(Scale::Standard, &logistic::GRID));
    assert_eq!((single.top1, single.converged, single.iterations), (100.0, true, 0));
    let same = Array2::from_elem((60, 5), 3.0);
    let flat = run(same.view(), &labels, &(0..12).collect::<Vec<_>>(), 3, &logistic(Scale::Standard, &[1e-2]));
    assert!((flat.top1 - 100.0 / 3.0).abs() < 1e-9, "{flat:?}");
}

#[test]
fn mean_and_deviation_by_hand() {
    let [mean, std] = logistic::mean_std(&[1.0, 2.0, 6.0]);
    assert!(mean == 3.0 && (std - 7f64.sqrt()).abs() < 1e-15);
    assert_eq!(logistic::mean_std(&[5.0]), [5.0, 0.0]);
}

#[test]
fn features_that_are_no_numbers_and_recipes_without_steps_are_refused() {
    let mut x = rows("linear.x");
    x[[3, 2]] = f32::NAN;
    let text = scores::check(x.view(), "training").unwrap_err().to_string();
    assert!(text.contains("training image 3") && text.contains("not finite"), "{text}");
    assert!(scores::check(Array2::zeros((0, 4)).view(), "test").unwrap_err().to_string().contains("no test images"));
    let recipe = Recipe { epochs: 1, batch: 8, rates: vec![0.1], seed: 0 };
    assert!(recipe.check().is_ok());
    for bad in [
        Recipe { epochs: 0, ..recipe.clone() },
        Recipe { batch: 0, ..recipe.clone() },
        Recipe { rates: vec![], ..recipe.clone() },
        Recipe { rates: vec![0.1, f64::NAN], ..recipe.clone() },
        Recipe { rates: vec![-1.0], ..recipe.clone() },
    ] {
        assert!(bad.check().unwrap_err().hint.is_some(), "{bad:?}");
    }
    for l2 in [&[][..], &[0.0], &[f64::INFINITY]] {
        assert!(logistic(Scale::L2, l2).check().is_err(), "{l2:?}");
    }
}

/// Published: the rate at epoch e of 100 with batch 1024 is 0.001 * 4 * (1 + cos(pi e / 100)) / 2.
#[test]
fn rates_fall_by_the_cosine_once_an_epoch() {
    let recipe = Recipe { epochs: 100, batch: 1024, rates: vec![0.001], seed: 0 };
    let rate = [0, 25, 50, 99].map(|e| 0.001 * recipe.factor(e));
    let expected = [4e-3, 4e-3 * (0.5 + 0.125f64.sqrt()), 2e-3, 4e-3 * 2.467_198_171_342_000_6e-4];
    assert!(furthest(rate, expected) < 1e-9, "{rate:?}");
    let first = Heads::new(&[0.1, 0.2], 100, 300, 8);
    let [mean, std] = logistic::mean_std(&first.head(0).weight.iter().map(|&w| w as f64).collect::<Vec<_>>());
    assert!(mean.abs() < 5.0 * 0.01 / 30_000f64.sqrt() && (std - 0.01).abs() < 5.0 * 0.01 / 60_000f64.sqrt());
    assert!(first.head(0) == first.head(1) && first.head(0).bias == [0.0; 100]);
    assert_eq!(order(50, 1, 2), order(50, 1, 2));
}

#[test]
fn heads_travel_through_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("head.safetensors");
    let head = Head { weight: rows("linear.first"), bias: vec![0.5, -1.0, 2.0, 0.0] };
    let order = head_file::Order::Concatenated;
    let about = head_file::About { blocks: 4, mean_patch: true, order, classes: names(4) };
    head_file::save(&path, &head, &about).unwrap();
    let written = std::fs::read(&path).unwrap();
    assert_eq!(head_file::load(&path).unwrap(), (head.clone(), Some(about.clone())));
    head_file::save(&path, &head, &about).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), written, "equal heads, equal files");
    // By name, in whatever order the set has them.
    let wanted: Vec<String> = ["c2", "c0"].map(String::from).to_vec();
    assert_eq!(head_file::rows(&path, &head, Some(&about), &wanted).unwrap(), [2, 0]);
    let unknown = head_file::rows(&path, &head, Some(&about), &["zebra".to_string()]).unwrap_err().to_string();
    assert!(unknown.contains("zebra") && unknown.contains("c0, c1"), "{unknown}");
    assert_eq!(head_file::rows(&path, &head, None, &names(4)).unwrap(), [0, 1, 2, 3]);
    assert!(head_file::rows(&path, &head, None, &names(3)).unwrap_err().to_string().contains("4 classes, the set 3"));
    // No file cut short, and no flipped bit of the header, is a panic.
    for cut in (0..written.len()).step_by(7) {
        std::fs::write(&path, &written[..cut]).unwrap();
        assert!(head_file::load(&path).unwrap_err().hint.is_some(), "cut at {cut}");
    }
    for at in 0..written.len().min(300) {
        let mut bytes = written.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let _ = head_file::load(&path);
    }
}

#[test]
fn heads_of_others_are_read_and_misshapen_ones_refused() {
    use safetensors::tensor::{Dtype, TensorView};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("head.safetensors");
    let write = |tensors: &[(&str, &[usize], &[f32])]| {
        let data: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
        let views =
            tensors.iter().zip(&data).map(|(t, data)| (t.0, TensorView::new(Dtype::F32, t.1.to_vec(), data).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        head_file::load(&path)
    };
    let (w, b) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [7.0, 8.0]);
    for stem in ["module.linear.", "linear.", "fc.", "head.", ""] {
        let (weight, bias) = (format!("{stem}weight"), format!("{stem}bias"));
        let (head, about) = write(&[(&weight, &[2, 3], &w), (&bias, &[2], &b)]).unwrap();
        assert_eq!((head.weight.row(1).to_vec(), head.bias, about), (vec![4.0, 5.0, 6.0], b.to_vec(), None));
    }
    assert_eq!(write(&[("fc.weight", &[2, 3], &w)]).unwrap().0.bias, [0.0; 2]);
    let refused = |tensors: &[(&str, &[usize], &[f32])]| write(tensors).unwrap_err().to_string();
    assert!(refused(&[("linear.weight", &[6], &w)]).contains("[6]"));
    assert!(refused(&[("linear.weight", &[0, 3], &[])]).contains("[0, 3]"));
    assert!(refused(&[("linear.weight", &[2, 3], &w), ("linear.bias", &[3], &w[..3])]).contains("2 rows"));
    assert!(refused(&[("linear.weight", &[1, 2], &[1.0, f32::NAN])]).contains("not finite"));
    assert!(refused(&[("something", &[2], &b)]).contains("no linear.weight"));
}

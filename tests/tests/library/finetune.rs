//! Fine-tuning: a step beside PyTorch's, gradients against finite differences, layer-wise decay, frozen blocks, MixUp and CutMix.

use dino_host::cpu::Cpu;
use dino_kernel::backend::{Memory, Rows, Update};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::finetune::mix::{self, Mix, Mixed};
use dino_kernel::finetune::step::{self, Hyper};
use dino_kernel::finetune::{Config, Plan};
use dino_kernel::mem::{Pool, Span};
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Backbone, PlanError, ResNet, Vit};
use dino_kernel::ops::cross_entropy;
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{AdamW, Optimizer};
use dino_kernel::params::{ParamTable, Spec};
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::scalars::monitor;
use tests::backend::{Factory, Reference, make_poisoned, read, read_grad, read_span, write};
use tests::fixture::Fixture;
use tests::for_backends;
use tests::training::normals;

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu] [two_steps]);

fn vit(image: usize, patch: usize, dim: usize, depth: usize, heads: usize, mlp: usize) -> Backbone {
    let positions = Interpolation::Published;
    Backbone::Vit(Vit { image, patch, channels: 3, dim, depth, heads, mlp, positions, eps: EPS })
}

fn resnet() -> Backbone {
    let stages = [Stage { width: 4, blocks: 1, stride: 1 }, Stage { width: 6, blocks: 2, stride: 2 }];
    Backbone::ResNet(stages.into_iter().fold(ResNet::new(8, 3, Stem::small(4), Block::Basic), ResNet::with))
}

/// Everything trained, norms and GELU computed again.
fn config(backbone: Backbone, classes: usize, batch: usize) -> Config {
    let side = backbone.image();
    Config {
        backbone,
        classes,
        image: [side; 2],
        batch,
        micro_batch: batch,
        drop_path: false,
        recompute: true,
        optimizer: Optimizer::AdamW(AdamW::PUBLISHED),
        blocks: None,
        by_layer: true,
        bn_group: None,
    }
}

const HYPER: Hyper = Hyper { lr: 0.01, layer_decay: 0.65, weight_decay: 0.05, clip_grad: 0.0, step: 1 };

fn specs(p: &Plan) -> Vec<(usize, Spec)> {
    let mut all = Vec::new();
    p.table.visit_layers(&mut |layer, spec| all.push((layer, spec)));
    all
}

/// A backend with drawn weights in it.
fn filled<F: Factory>(p: &Plan) -> F::Backend {
    let mut o = make_poisoned::<F>(p.pools);
    let mut state = vec![0.0f64; p.pools.state];
    p.initial_state(&mut state);
    o.write(Pool::State, 0, &state);
    o.write(Pool::Slots, 0, &vec![0.0; p.pools.slots]);
    for (i, (_, spec)) in specs(p).iter().enumerate() {
        let gain = if spec.rank == 1 && spec.name.leaf.ends_with("weight") { 1.0 } else { 0.0 };
        let values: Vec<f64> = normals(70 + i as u64, spec.at.len()).into_iter().map(|x| gain + 0.3 * x).collect();
        write(&mut o, spec.at, &values);
    }
    o
}

/// The loss of a batch, its gradient at the logits; `n` rows at once.
fn forward<O: Update + Memory>(o: &mut O, p: &Plan, pixels: &[f64], targets: &[f64]) -> f64 {
    let n = Rows { rows: p.config.micro_batch, cols: p.config.classes };
    write(o, p.pixels, pixels);
    step::forward(o, p);
    let logits = read(o, p.logits);
    let (mut losses, mut d) = (vec![0.0; n.rows], vec![0.0; logits.len()]);
    cross_entropy::forward_backward(&mut losses, &mut d, &logits, targets, 1.0 / p.config.batch as f64, n);
    write(o, p.d_logits, &d);
    losses.iter().sum::<f64>() / p.config.batch as f64
}

/// A full step: the loss.
fn take<O: Update + Memory>(o: &mut O, p: &Plan, h: &Hyper, pixels: &[f64], targets: &[f64]) -> f64 {
    let mut numbers = vec![0.0; p.hyper.len()];
    h.fill(p, &mut numbers);
    write(o, p.hyper, &numbers);
    step::begin(o, p);
    let mut loss = 0.0;
    let of_part = pixels.len() / p.parts();
    for (pixels, targets) in pixels.chunks(of_part).zip(targets.chunks(targets.len() / p.parts())) {
        loss += forward(o, p, pixels, targets);
        step::backward(o, p);
    }
    write(o, p.loss(), &[loss * p.config.batch as f64]);
    step::commit(o, p);
    loss
}

/// Two steps of PyTorch's, the first mixed by MixUp, the second by CutMix.
fn two_steps<F: Factory>(who: &str) {
    let Some(f) = Fixture::find("finetune") else {
        println!("SKIPPED {who}: this set of fixtures has no finetune.safetensors");
        return;
    };
    let size = |key: &str| f.meta(key).as_u64().unwrap() as usize;
    let number = |key: &str| f.meta(key).as_f64().unwrap();
    let backbone = vit(size("image"), size("patch"), size("dim"), size("depth"), size("heads"), size("mlp"));
    let (classes, batch, smoothing) = (size("classes"), size("batch"), number("smoothing"));
    let p = Plan::new(config(backbone, classes, batch)).unwrap();
    let mut o = filled::<F>(&p);
    for (_, spec) in specs(&p) {
        let init = f.get(&format!("init.{}", spec.name));
        assert_eq!(init.shape, spec.shape());
        write(&mut o, spec.at, &init.data);
    }
    let of_box: Vec<usize> = f.meta("box").as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let [top, left, height, width] = of_box[..] else { panic!("a box has four numbers") };
    let (lr, layer_decay, weight_decay) = (number("lr"), number("layer_decay"), number("weight_decay"));
    for (i, mixed) in [Mixed::Blend(number("share")), Mixed::Paste { top, left, height, width }].into_iter().enumerate()
    {
        let key = |name: &str| format!("{i}.{name}");
        let (mut pixels, labels) = (f.get(&key("pixels")).data.clone(), f.get(&key("labels")).sizes());
        let labels: Vec<u32> = labels.into_iter().map(|l| l as u32).collect();
        mixed.apply(&mut pixels, batch, p.config.image);
        f.assert_golden(&key("mixed"), &pixels);
        let mut targets = vec![0.0; batch * classes];
        mix::targets(&mut targets, &labels, classes, mixed.share(p.config.image), smoothing);
        f.assert_golden(&key("targets"), &targets);
        let h = Hyper { lr, layer_decay, weight_decay, clip_grad: 0.0, step: 1 + i as u64 };
        let loss = take(&mut o, &p, &h, &pixels, &targets);
        f.assert_golden(&key("loss"), &[loss]);
        let logits = read(&mut o, p.logits);
        f.assert_golden(&key("logits"), &logits);
        if i == 0 {
            specs(&p).iter().for_each(|(_, s)| f.assert_golden(&format!("grad.{}", s.name), &read_grad(&mut o, s.at)));
        }
    }
    for (layer, spec) in specs(&p) {
        let (init, after) = (format!("init.{}", spec.name), format!("after.{}", spec.name));
        f.assert_parameter(&after, f.get(&init), &read(&mut o, spec.at));
        let scale = f.note(&init, "scale").unwrap();
        assert!((p.table.scale(layer_decay, layer) - scale).abs() < 1e-12, "{}: {scale}", spec.name);
        assert_eq!(spec.group.decays(), f.note(&init, "decayed").unwrap() == 1.0, "{}", spec.name);
    }
    f.finish(who, &["0.", "1.", "grad.", "after."], &[]);
}

/// Every gradient of the loss, of a ViT and of a ResNet, in f64.
#[test]
fn gradients_are_those_of_finite_differences() {
    for (backbone, drop_path) in [(vit(8, 4, 6, 2, 2, 7), true), (resnet(), false)] {
        let p = Plan::new(Config { drop_path, ..config(backbone, 3, 4) }).unwrap();
        let mut o = filled::<Reference<f64>>(&p);
        let drop: Vec<f64> = (0..p.drop.len()).map(|i| [1.25, 0.0, 1.25][i % 3]).collect();
        write(&mut o, p.drop, &drop);
        let pixels = normals(5, p.pixels.len());
        let mut targets = vec![0.0; 4 * 3];
        mix::targets(&mut targets, &[0, 2, 1, 2], 3, 0.7, 0.1);
        step::begin(&mut o, &p);
        forward(&mut o, &p, &pixels, &targets);
        step::backward(&mut o, &p);
        let grads: Vec<Vec<f64>> = specs(&p).iter().map(|(_, spec)| read_grad(&mut o, spec.at)).collect();
        for ((_, spec), got) in specs(&p).iter().zip(grads) {
            // A few elements of every tensor. A ReLU's corner must not be within the step.
            let (h, bound) = if matches!(backbone, Backbone::Vit(_)) { (1e-3, 1e-7) } else { (1e-6, 1e-6) };
            let (mut difference, mut size) = (0.0, 0.0);
            for i in (0..spec.at.len()).step_by(spec.at.len().div_ceil(5)) {
                let at = spec.at.0.at + i;
                let x = read_span(&mut o, Pool::Weights, Span { at, len: 1 })[0];
                let mut value = |by: f64| {
                    o.write(Pool::Weights, at, &[x + by * h]);
                    step::begin(&mut o, &p);
                    forward(&mut o, &p, &pixels, &targets)
                };
                let slope = (8.0 * (value(1.0) - value(-1.0)) - (value(2.0) - value(-2.0))) / (12.0 * h);
                o.write(Pool::Weights, at, &[x]);
                difference += (slope - got[i]).powi(2);
                size += slope.powi(2);
            }
            // The key third of a bias has no gradient.
            let error = difference.sqrt() / size.sqrt().max(1e-4);
            assert!(error < bound, "{}: relative error {error:.1e}", spec.name);
        }
    }
}

/// The loss and its gradient, by hand, and over logits that overflow an exponential.
#[test]
fn cross_entropy_by_hand() {
    let n = Rows { rows: 2, cols: 2 };
    let (mut loss, mut d) = ([0.0f64; 2], [0.0f64; 4]);
    let x = [1.0f64.ln(), 3.0f64.ln(), 2000.0, 0.0];
    cross_entropy::forward_backward(&mut loss, &mut d, &x, &[0.5, 0.5, 0.0, 1.0], 0.5, n);
    // p = (1/4, 3/4): -(ln 1/4 + ln 3/4) / 2.
    assert!((loss[0] + 0.5 * (0.25f64.ln() + 0.75f64.ln())).abs() < 1e-12 && loss[1] == 2000.0, "{loss:?}");
    let want = [0.5 * (0.25 - 0.5), 0.5 * (0.75 - 0.5), 0.5, -0.5];
    assert!(d.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{d:?}");
}

/// lr decay^(depth + 1 - layer), embeddings lowest, the norm and the classifier in full; and the optimizer obeys.
#[test]
fn layers_have_the_rates_of_the_literature() {
    let p = Plan::new(config(vit(8, 4, 6, 12, 2, 7), 3, 2)).unwrap();
    let scale_of = |start: &str| {
        let (layer, _) = specs(&p).into_iter().find(|(_, s)| s.name.to_string().starts_with(start)).unwrap();
        p.table.scale(0.75, layer)
    };
    assert_eq!(p.table.layers(), 14);
    assert_eq!(scale_of("cls_token"), 0.75f64.powi(13));
    assert_eq!(scale_of("patch_embed"), 0.75f64.powi(13));
    assert_eq!(scale_of("blocks.0."), 0.75f64.powi(12));
    assert_eq!(scale_of("blocks.11."), 0.75);
    assert_eq!((scale_of("norm."), scale_of("head.")), (1.0, 1.0));
    // A ResNet's stem, its three blocks, its classifier.
    let p = Plan::new(config(resnet(), 3, 4)).unwrap();
    let layers: Vec<(usize, String)> = specs(&p).into_iter().map(|(l, s)| (l, s.name.to_string())).collect();
    let of = |name: &str| layers.iter().find(|(_, n)| n == name).unwrap_or_else(|| panic!("{name}: {layers:?}")).0;
    assert_eq!([of("conv1.weight"), of("bn1.bias"), of("layer1.0.bn2.bias")], [0, 0, 1]);
    assert_eq!([of("layer2.0.downsample.0.weight"), of("layer2.1.conv1.weight"), of("fc.weight")], [2, 3, 4]);
    // Adam's first step without decay is as long as the rate, wherever there is a gradient.
    let (mut o, h) = (filled::<Reference<f64>>(&p), Hyper { weight_decay: 0.0, ..HYPER });
    let before: Vec<Vec<f64>> = specs(&p).iter().map(|(_, s)| read(&mut o, s.at)).collect();
    take(&mut o, &p, &h, &normals(5, p.pixels.len()), &[0.2, 0.5, 0.3].repeat(4));
    for ((layer, spec), before) in specs(&p).iter().zip(before) {
        let moved = read(&mut o, spec.at).iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let rate = h.lr * p.table.scale(h.layer_decay, *layer);
        assert!((moved / rate - 1.0).abs() < 1e-3, "{}: {moved:e}, rate {rate:e}", spec.name);
    }
}

/// What is frozen keeps its bits, what is trained moves as it does where everything is, and a rate for all is one for every layer.
#[test]
fn frozen_blocks_do_not_move() {
    for backbone in [vit(8, 4, 6, 3, 2, 7), resnet()] {
        let after = |blocks: Option<usize>, by_layer: bool| {
            let p = Plan::new(Config { blocks, by_layer, ..config(backbone, 3, 4) }).unwrap();
            let mut o = filled::<Reference<f32>>(&p);
            let before: Vec<Vec<f64>> = specs(&p).iter().map(|(_, s)| read(&mut o, s.at)).collect();
            let h = Hyper { layer_decay: if by_layer { 1.0 } else { 0.5 }, ..HYPER };
            take(&mut o, &p, &h, &normals(5, p.pixels.len()), &[0.2, 0.5, 0.3].repeat(4));
            assert_eq!(read(&mut o, p.monitor)[monitor::FINITE], 1.0);
            let after: Vec<Vec<f64>> = specs(&p).iter().map(|(_, s)| read(&mut o, s.at)).collect();
            let frozen: Vec<bool> = specs(&p).iter().map(|(_, s)| s.frozen).collect();
            (before, after, frozen)
        };
        let (_, all, none) = after(None, true);
        assert!(none.iter().all(|frozen| !frozen));
        assert_eq!(after(None, false).1, all, "one rate");
        for blocks in 0..=3 {
            let (before, moved, frozen) = after(Some(blocks), true);
            let names: Vec<String> =
                specs(&Plan::new(config(backbone, 3, 4)).unwrap()).iter().map(|(_, s)| s.name.to_string()).collect();
            assert_eq!(frozen.iter().filter(|f| !**f).count() == 2, blocks == 0, "the classifier alone");
            for (i, name) in names.iter().enumerate() {
                let trained = match name.as_str() {
                    "head.weight" | "head.bias" | "fc.weight" | "fc.bias" => true,
                    "norm.weight" | "norm.bias" => blocks > 0,
                    _ => {
                        // Blocks of the ResNet: layer1.0, layer2.0, layer2.1.
                        let number = |s: &str| s.split('.').nth(1).and_then(|n| n.parse::<usize>().ok());
                        let block = match name.get(..6) {
                            Some("blocks") => number(name),
                            Some("layer1") => Some(0),
                            Some("layer2") => number(name).map(|i| i + 1),
                            _ => None,
                        };
                        block.is_some_and(|block| block + blocks >= 3)
                    }
                };
                assert_eq!(frozen[i], !trained, "{blocks}: {name}");
                assert_eq!(before[i] == moved[i], !trained, "{blocks}: {name}");
                // With no block trained a ResNet goes by its running statistics: another computation.
                if trained && blocks > 0 {
                    assert_eq!(moved[i], all[i], "{blocks}: {name}");
                }
            }
        }
    }
}

/// A step that is not finite changes nothing, running statistics included.
#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let p = Plan::new(config(resnet(), 3, 4)).unwrap();
    let mut o = filled::<Reference<f32>>(&p);
    let state = |o: &mut _| [read(o, p.running), read_span(o, Pool::Weights, Span { at: 0, len: p.table.len() })];
    let before = state(&mut o);
    take(&mut o, &p, &HYPER, &vec![f64::NAN; p.pixels.len()], &[0.2, 0.5, 0.3].repeat(4));
    assert_eq!(read(&mut o, p.monitor)[monitor::FINITE], 0.0);
    let bits = |x: Vec<f64>| x.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert!(state(&mut o).map(bits) == before.map(bits));
}

/// Micro-batches of a ViT add up to the batch; a ResNet's groups are not cut, nor sizes that make no sense accepted.
#[test]
fn splits_add_up_or_are_refused() {
    let sums = |micro_batch| {
        let p = Plan::new(Config { micro_batch, ..config(vit(8, 4, 6, 2, 2, 7), 3, 4) }).unwrap();
        let mut o = filled::<Reference<f64>>(&p);
        let targets: Vec<f64> = (0..12).map(|i| (i % 5) as f64 / 7.0).collect();
        let loss = take(&mut o, &p, &HYPER, &normals(5, 4 * 3 * 64), &targets);
        let grads: Vec<f64> = specs(&p).iter().flat_map(|(_, s)| read_grad(&mut o, s.at)).collect();
        (loss, grads)
    };
    let (whole, split) = (sums(4), sums(1));
    assert!((whole.0 - split.0).abs() < 1e-12);
    assert!(whole.1.iter().zip(&split.1).all(|(a, b)| (a - b).abs() < 1e-12));
    let refused = |c: Config| Plan::new(c).expect_err("refused");
    let (vit, resnet) = (config(vit(8, 4, 6, 2, 2, 7), 3, 4), config(resnet(), 3, 4));
    assert_eq!(refused(Config { blocks: Some(3), ..vit }), PlanError::Blocks { blocks: 3, depth: 2 });
    assert_eq!(refused(Config { micro_batch: 3, ..vit }), PlanError::MicroBatch { batch: 4, micro_batch: 3 });
    assert_eq!(refused(Config { image: [3, 8], ..vit }), PlanError::SmallCrop { side: 3, patch: 4 });
    assert!(matches!(refused(Config { classes: 0, ..vit }), PlanError::Zero(_)));
    assert_eq!(refused(Config { classes: usize::MAX, ..vit }), PlanError::TooLarge);
    assert!(matches!(refused(Config { micro_batch: 2, ..resnet }), PlanError::BatchGroup { .. }));
    assert!(Plan::new(Config { micro_batch: 2, bn_group: Some(2), ..resnet }).is_ok());
    assert!(
        Plan::new(Config { micro_batch: 2, blocks: Some(0), ..resnet }).is_ok(),
        "running statistics have no groups"
    );
    // An image of another size than the position table is made for.
    assert!(Plan::new(Config { image: [12, 8], ..vit }).is_ok());
    assert_eq!(Crops::one(Group { count: 4, height: 12, width: 8 }).pixels(), 4 * 96);
}

/// Targets are distributions that state how much of an image is its own, and that is what the pixels hold.
#[test]
fn mixed_targets_hold_the_right_area() {
    let (images, channels, size, classes) = (5, 2, [6, 9], 4);
    let labels = [0u32, 3, 1, 1, 2];
    let mut kinds = [0; 3];
    for draw in 0..400 {
        let mix = Mix { mixup: 0.8, cutmix: 1.0, prob: 0.9, switch: 0.5 };
        let mixed = mix.draw(&mut Rng::new(1, 0, draw, 0, Kind::Mix, 0), size);
        kinds[match mixed {
            Mixed::Apart => 0,
            Mixed::Blend(_) => 1,
            Mixed::Paste { .. } => 2,
        }] += 1;
        let share = mixed.share(size);
        assert!((0.0..=1.0).contains(&share));
        // Image i is all i: after mixing its mean tells how much of it is its own.
        let len = channels * size[0] * size[1];
        let mut pixels: Vec<f64> = (0..images * len).map(|i| (i / len) as f64).collect();
        mixed.apply(&mut pixels, images, size);
        let mut targets = vec![0.0; images * classes];
        mix::targets(&mut targets, &labels, classes, share, 0.1);
        for i in 0..images {
            let mean = pixels[i * len..][..len].iter().sum::<f64>() / len as f64;
            let other = images - 1 - i;
            assert!((mean - (share * i as f64 + (1.0 - share) * other as f64)).abs() < 1e-9, "{mixed:?}");
            let row = &targets[i * classes..][..classes];
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let own = 0.1 / 4.0 + 0.9 * if labels[i] == labels[other] { 1.0 } else { share };
            assert!((row[labels[i] as usize] - own).abs() < 1e-12, "{mixed:?}: {row:?}");
        }
    }
    assert!(kinds[0] > 10 && kinds[1] > 120 && kinds[2] > 120, "{kinds:?}");
    let always = |mix: Mix| (0..50).map(move |i| mix.draw(&mut Rng::new(1, 0, i, 0, Kind::Mix, 0), [6, 9]));
    let mixup = Mix { mixup: 0.2, cutmix: 0.0, prob: 1.0, switch: 0.5 };
    assert!(always(mixup).all(|m| matches!(m, Mixed::Blend(_))));
    assert!(always(Mix { mixup: 0.0, cutmix: 2.0, ..mixup }).all(|m| matches!(m, Mixed::Paste { .. })));
    assert!(always(Mix { mixup: 0.0, ..mixup }).chain(always(Mix { prob: 0.0, ..mixup })).all(|m| m == Mixed::Apart));
    // Beta(a, a) has the mean 1/2 and the variance 1 / (8 a + 4); at a tiny a it is 0 or 1.
    for alpha in [0.3, 1.0, 5.0] {
        let draw = |i| match (Mix { mixup: alpha, ..mixup }).draw(&mut Rng::new(2, 0, i, 0, Kind::Mix, 0), [1, 1]) {
            Mixed::Blend(share) => share,
            other => panic!("{other:?}"),
        };
        let all: Vec<f64> = (0..4000).map(draw).collect();
        let mean = all.iter().sum::<f64>() / 4000.0;
        let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4000.0;
        assert!(
            (mean - 0.5).abs() < 0.03 && (variance * (8.0 * alpha + 4.0) - 1.0).abs() < 0.1,
            "{alpha}: {mean} {variance}"
        );
    }
    let tiny = Mix { mixup: 1e-9, ..mixup };
    assert!(always(tiny).all(|m| matches!(m, Mixed::Blend(share) if (0.0..=1.0).contains(&share))));
}

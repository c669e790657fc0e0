//! Any sizes, dealt to any shards and processes: a plan is made or refused, never a panic; a small one takes a full step on the
//! reference backend, every op checked for spans that overlap, leave their pool, or hold numbers that are not finite.
#![no_main]

use arbitrary::{Arbitrary, Unstructured};
use dino_kernel::backend::Memory;
use dino_kernel::backend::reference::Train;
use dino_kernel::backend::wrap::Checked;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::init;
use dino_kernel::mem::Pool;
use dino_kernel::model::resnet::{Block, ResNet, Stage, Stem};
use dino_kernel::model::{Activation, Backbone, Head, Vit};
use dino_kernel::objective::{Divergence, Objective, Targets};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::optim::{AdamW, Lars, Optimizer, Sgd, TeacherRule};
use dino_kernel::plan::{Config, Plan, Sharding};
use dino_kernel::rng::{Kind, Rng};
use dino_kernel::step::{self, Hyper};
use libfuzzer_sys::fuzz_target;

/// A size: mostly small, sometimes anything.
fn size(u: &mut Unstructured) -> arbitrary::Result<usize> {
    Ok(match u.arbitrary::<u8>()? {
        0 => u.arbitrary()?,
        1 => u.arbitrary::<u32>()? as usize,
        x => (x % 16) as usize,
    })
}

const OPTIMIZERS: [Optimizer; 3] =
    [Optimizer::AdamW(AdamW::PUBLISHED), Optimizer::Sgd(Sgd::PUBLISHED), Optimizer::Lars(Lars::PUBLISHED)];

const TEACHERS: [TeacherRule; 5] = [
    TeacherRule::Ema { start: 0.99, end: 1.0 },
    TeacherRule::PreviousEpoch,
    TeacherRule::PreviousIteration,
    TeacherRule::Student,
    TeacherRule::Frozen,
];

/// A residual network of up to three stages.
fn resnet(u: &mut Unstructured) -> arbitrary::Result<ResNet> {
    let stem = Stem { width: size(u)?, kernel: size(u)?, stride: size(u)?, pool: u.arbitrary()? };
    let block = if u.arbitrary()? { Block::Basic } else { Block::Bottleneck };
    let mut resnet = ResNet::new(size(u)?, size(u)?, stem, block);
    for _ in 0..u.int_in_range(0..=3)? {
        resnet = resnet.with(Stage { width: size(u)?, blocks: size(u)?, stride: size(u)? });
    }
    Ok(resnet)
}

#[derive(Debug)]
struct Sizes(Config, Sharding);

impl<'a> Arbitrary<'a> for Sizes {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Sizes> {
        let positions = if u.arbitrary()? { Interpolation::Published } else { Interpolation::Size };
        let (heads, patch) = (size(u)?, size(u)?);
        // Mostly sizes that fit together, or nothing would get past the first checks.
        let dim = if u.ratio(9, 10)? { heads.wrapping_mul(size(u)?) } else { size(u)? };
        let side = |u: &mut Unstructured| -> arbitrary::Result<usize> {
            Ok(patch.wrapping_mul(size(u)?).wrapping_add(size(u)?))
        };
        let backbone = Backbone::Vit(Vit {
            image: side(u)?,
            patch,
            channels: size(u)?,
            dim,
            depth: size(u)?,
            heads,
            mlp: size(u)?,
            positions,
            eps: EPS,
        });
        let backbone = if u.ratio(1, 3)? { Backbone::ResNet(resnet(u)?) } else { backbone };
        let dim = backbone.dim();
        let mut views = Crops::EMPTY;
        for _ in 0..u.int_in_range(0..=2)? {
            views = views.with(Group { count: size(u)?, height: side(u)?, width: side(u)? });
        }
        let inp = if u.ratio(9, 10)? { dim } else { size(u)? };
        let (layers, hidden, bottleneck, prototypes) =
            (size(u)?, size(u)?, if u.ratio(1, 3)? { 0 } else { size(u)? }, size(u)?);
        let head = Head {
            inp,
            layers,
            hidden,
            bottleneck,
            prototypes,
            train_gain: u.arbitrary()?,
            activation: if u.arbitrary()? { Activation::Relu } else { Activation::Gelu },
            batch_norm: u.arbitrary()?,
            l2_norm: u.arbitrary()?,
            weight_norm: u.arbitrary()?,
            predictor: if u.ratio(1, 3)? { size(u)? } else { 0 },
        };
        let micro_batch = size(u)?;
        let batch = if u.ratio(9, 10)? { micro_batch.wrapping_mul(size(u)?) } else { size(u)? };
        let targets = match u.int_in_range(0..=3u8)? {
            0 => Targets::Plain,
            1 => Targets::SinkhornKnopp { iterations: u.int_in_range(0..=4)? },
            _ => Targets::Centered { momentum: 0.9 },
        };
        let divergence = if u.arbitrary()? { Divergence::SquaredError } else { Divergence::CrossEntropy };
        let sharding = match u.ratio(1, 2)? {
            true => Sharding::SOLO,
            false => Sharding { shards: size(u)?, ranks: if u.arbitrary()? { 1 } else { size(u)? } },
        };
        let config = Config {
            backbone,
            head,
            objective: Objective { targets, divergence },
            optimizer: *u.choose(&OPTIMIZERS)?,
            teacher: *u.choose(&TEACHERS)?,
            views,
            batch,
            micro_batch,
            drop_path: u.arbitrary()?,
            recompute: u.arbitrary()?,
            stream_crops: u.arbitrary()?,
            bn_group: if u.arbitrary()? { Some(size(u)?) } else { None },
        };
        Ok(Sizes(config, sharding))
    }
}

const HYPER: Hyper = Hyper {
    lr: 1e-3,
    weight_decay: 0.1,
    momentum: 0.99,
    teacher_temp: 0.05,
    student_temp: 0.1,
    clip_grad: 1.0,
    step: 1,
    step_last: 1,
    freeze_last: false,
};

fuzz_target!(|sizes: Sizes| {
    let Ok(p) = Plan::sharded(sizes.0, sizes.1) else { return };
    // The reference backend is one process with one lane. Sizes come first, their product may be beyond any integer: every number that
    // a step holds takes part in about as many products as the widest row has columns, or the longest crop tokens.
    let small = p.pools.total() <= 200_000 && p.parts() <= 3 && p.sharding.ranks == 1 && p.pools.lanes == 1;
    if !small || p.pools.total() * p.parts() * p.pools.widest.max(p.pools.longest) > 2_000_000 {
        return;
    }
    let n = p.pools;
    let [mut weights, mut grads, mut slots, mut acts, mut stats, mut state] =
        [n.weights, n.grads, n.slots, n.acts, n.stats, n.state].map(|len| vec![0f64; len]);
    let mut rng = Rng::new(1, 0, 0, 0, Kind::Test, 0);
    let len = p.table.len();
    init::weights(&mut weights[..len], &p.table, 1, init::LINEAR_STD);
    init::weights(&mut weights[len..], &p.table.of_teacher(), 2, init::LINEAR_STD);
    p.initial_state(&mut state);
    let images: Vec<u32> = (0..p.config.micro_batch as u32).collect();
    p.drop_path(&mut state[p.drop.range()], 1, 0, &images, 0.3);
    state[p.hyper.range()].copy_from_slice(&HYPER.numbers(&p));
    let pixels: Vec<f64> = (0..p.pixels.len()).map(|_| rng.normal()).collect();
    let mut o = Checked::new(Train {
        weights: &mut weights[..],
        grads: &mut grads,
        slots: &mut slots,
        acts: &mut acts,
        stats: &mut stats,
        state: &mut state,
    });
    step::begin(&mut o, &p);
    step::accumulate(&mut o, &p, |o, _| o.inner.write(Pool::Acts, p.pixels.0.at, &pixels));
    step::commit(&mut o, &p);
    assert!(o.violation.is_none(), "{:?} under {:?}", o.violation, p.config);
});

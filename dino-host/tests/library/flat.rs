//! A backbone as one flat blob, as firmware reads it.

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::inference::dense::Dense;
use dino_host::weights::flat::write;
use dino_kernel::backend::reference::Infer;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::flat::{Flat, FlatError};
use dino_kernel::init;
use dino_kernel::model::{Backbone, Output};
use dino_kernel::plan::{FeaturePlan, PlanError};

/// The blob of a configuration and the numbers that are in it, running statistics too.
fn blob_of(config: Config) -> (Config, Vec<f32>, Vec<u8>) {
    let config = config.resolve().unwrap();
    let table = config.table();
    let mut weights = vec![0.0; table.len()];
    init::weights(&mut weights, &table, 1, init::LINEAR_STD);
    weights.truncate(table.backbone_len());
    // Running means around 0 and variances around 1.
    let mut buffers = vec![0.0; table.backbone.buffers_len()];
    table.visit_buffers(|b| {
        let around = |i: usize| b.value as f32 + 0.2 * (i as f32 * 0.37).sin();
        buffers[b.at.range()].iter_mut().enumerate().for_each(|(i, x)| *x = around(i));
    });
    weights.extend(buffers);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dino.flat");
    write(&path, &config, &weights).unwrap();
    let bytes = std::fs::read(path).unwrap();
    (config, weights, bytes)
}

fn blob() -> (Config, Vec<f32>, Vec<u8>) {
    let mean = vec![0.5, 0.25, 0.125];
    let small = Config::small();
    let config =
        Config { patch_size: 8, embed_dim: 96, depth: 2, heads: 3, mean, global_size: 32, local_size: 16, ..small };
    blob_of(config)
}

/// Bottlenecks behind torchvision's stem, or basic blocks behind a small one.
fn resnets() -> [Config; 2] {
    let (mean, std) = (vec![0.5, 0.25, 0.125], vec![0.5, 0.25, 0.25]);
    let small = Config { arch: "resnet_small".into(), mean, std, global_size: 32, local_size: 16, ..Config::small() };
    let (widths, stage_blocks) = (vec![8, 8, 12], vec![1, 2, 1]);
    let (block_kind, stem) = ("bottleneck".into(), "7x7".into());
    [
        Config { widths, stage_blocks, block_kind, stem, ..small.clone() },
        Config { widths: vec![8, 16], stage_blocks: vec![1, 1], ..small },
    ]
}

/// What firmware does, beside what the trainer gives for the same image.
#[test]
fn a_blob_gives_the_features_of_the_network_it_was_made_of() {
    let (config, weights, bytes) = blob();
    // Aligned, as flash would be.
    let mut aligned = vec![0u32; bytes.len() / 4];
    bytemuck::cast_slice_mut(&mut aligned).copy_from_slice(&bytes);
    let flat = Flat::parse(bytemuck::cast_slice(&aligned)).unwrap();
    assert_eq!(
        (flat.backbone, flat.statistics(0), flat.statistics(2)),
        (config.table().backbone, [0.5, 0.25], [0.125, 0.25])
    );
    let in_place = flat.weights().unwrap();
    assert_eq!(in_place, weights);
    let mut copy = vec![0.0; weights.len()];
    flat.copy(&mut copy);
    assert_eq!(copy, weights);

    let side = config.global_size;
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i as f32 * 0.37).sin()).collect();
    let group = Group { count: 1, height: side, width: side };
    let found = infer(&flat, in_place, &pixels, group);
    let all = Dense::<Cpu>::new(&NoOptions {}, &config, &weights, group).unwrap().tokens(&pixels).unwrap();
    let error = found.iter().zip(&all).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == config.embed_dim && error < 1e-5, "{error}");
}

/// The features of an image, as firmware computes them.
fn infer(flat: &Flat, weights: &[f32], pixels: &[f32], group: Group) -> Vec<f32> {
    let plan = FeaturePlan::new(flat.backbone, Crops::one(group), Output::Class, 0).unwrap();
    let pools = plan.pools;
    let (mut acts, mut stats, mut state) = (vec![0.0; pools.acts], vec![0.0; pools.stats], vec![0.0; pools.state]);
    flat.initial_state(&plan, &mut state);
    acts[plan.pixels.range()].copy_from_slice(pixels);
    let mut o =
        Infer { weights, grads: &mut [], slots: &mut [], acts: &mut acts, stats: &mut stats, state: &mut state };
    plan.forward(&mut o);
    o.acts[plan.pass.y().range()].to_vec()
}

/// The same of a residual network, whose running statistics are in the blob as well.
#[test]
fn a_blob_of_a_resnet_gives_its_features() {
    for config in resnets() {
        let (config, numbers, bytes) = blob_of(config);
        let flat = Flat::parse(&bytes).unwrap();
        assert_eq!((flat.backbone, flat.statistics(2)), (config.table().backbone, [0.125, 0.25]));
        let mut weights = vec![0.0; flat.len()];
        flat.copy(&mut weights);
        assert_eq!(weights, numbers[..flat.len()]);
        for [height, width] in [[32, 32], [20, 27]] {
            let group = Group { count: 1, height, width };
            let pixels: Vec<f32> = (0..3 * height * width).map(|i| (i as f32 * 0.37).sin()).collect();
            let found = infer(&flat, &weights, &pixels, group);
            let want =
                Dense::<Cpu>::new(&NoOptions {}, &config, &numbers, group).unwrap().rows(&pixels).unwrap().images;
            let most = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            let error = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(found.len() == config.embed_dim && most > 0.01 && error < 1e-5 * most, "{error} of {most}");
        }
        // Changed, and the checksum made to fit.
        let sealed = |at: usize, value: u32| {
            let mut changed = bytes.clone();
            changed[at..at + 4].copy_from_slice(&value.to_le_bytes());
            let sum = crc32fast::hash(&changed[16..]);
            changed[12..16].copy_from_slice(&sum.to_le_bytes());
            Flat::parse(&changed).map(|flat| flat.backbone).unwrap_err()
        };
        assert_eq!([36, 40, 44].map(|at| sealed(at, 9)), [FlatError::Kind; 3]);
        assert!(matches!(sealed(28, 4), FlatError::Shape(PlanError::EvenKernel { kernel: 4 })));
        for at in [48, 52] {
            assert!(matches!(sealed(at, 1), FlatError::Weights { found: 1, .. }), "{at}");
        }
        // A large stride is a shape: one cell of a small image is left.
        for at in [16, 20, 24, 28, 56, 60, 68, 72] {
            let refused = sealed(at, u32::MAX);
            assert!(matches!(refused, FlatError::Shape(_) | FlatError::Weights { .. }), "{at}: {refused:?}");
        }
        for n in [0, 20, 60, 151, 160, bytes.len() - 4] {
            assert!(Flat::parse(&bytes[..n]).is_err(), "{n}");
        }
    }
}

/// Blobs of the published epsilon are as they always were; another one is in the header.
#[test]
fn the_epsilon_is_in_the_blob() {
    let (config, weights, published) = blob();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dino.flat");
    let other = Config { norm_eps: 1e-12, ..config.clone() };
    write(&path, &other, &weights).unwrap();
    let bytes = std::fs::read(path).unwrap();
    assert_eq!((published[8], bytes[8], published.len()), (1, 2, bytes.len()));
    for (blob, eps) in [(&published, 1e-6), (&bytes, 1e-12)] {
        let flat = Flat::parse(blob).unwrap();
        let Backbone::Vit(vit) = flat.backbone else { panic!("the blob of a ViT") };
        assert_eq!((vit.eps, flat.len(), flat.statistics(2)), (eps, weights.len(), [0.125, 0.25]));
        let mut copy = vec![0.0; weights.len()];
        flat.copy(&mut copy);
        assert_eq!(copy, weights);
    }
    for eps in [0.0, -1e-6, f64::NAN, f64::INFINITY] {
        let mut bytes = bytes.clone();
        bytes[52..60].copy_from_slice(&eps.to_le_bytes());
        let sum = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Flat::parse(&bytes).unwrap_err(), FlatError::Epsilon, "{eps}");
    }
}

#[test]
fn a_blob_that_was_changed_is_refused() {
    let (_, _, bytes) = blob();
    let found = |bytes: &[u8]| Flat::parse(bytes).map(|flat| flat.backbone).unwrap_err();
    assert_eq!((found(b""), found(&bytes[1..])), (FlatError::Magic, FlatError::Magic));
    assert_eq!(found(&bytes[..40]), FlatError::Length { found: 40, needed: 52 });
    for at in [16, 50, 60, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert_eq!(found(&changed), FlatError::Checksum, "byte {at}");
    }
    // Changed, and the checksum made to fit.
    let sealed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = bytes.clone();
        change(&mut changed);
        let mut sum = flate2::Crc::new();
        sum.update(&changed[16..]);
        changed[12..16].copy_from_slice(&sum.sum().to_le_bytes());
        found(&changed)
    };
    let set = |at: usize, value: u32| move |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&value.to_le_bytes());
    assert_eq!(sealed(&set(8, 4)), FlatError::Version(4));
    assert_eq!(sealed(&set(44, 7)), FlatError::Positions(7));
    assert!(matches!(sealed(&set(36, 5)), FlatError::Shape(PlanError::Heads { heads: 5, .. })));
    assert!(matches!(sealed(&set(48, 1)), FlatError::Weights { found: 1, .. }));
    let shorter = sealed(&|b: &mut Vec<u8>| b.truncate(bytes.len() - 4));
    assert_eq!(shorter, FlatError::Length { found: bytes.len() - 4, needed: bytes.len() });
    for at in [16, 20, 24, 28, 32, 36, 40] {
        let refused = sealed(&set(at, u32::MAX));
        assert!(matches!(refused, FlatError::Shape(_) | FlatError::Weights { .. }), "{at}: {refused:?}");
    }
}

//! Any bytes as a file of weights: `.pth` of both kinds (the pickle within executes nothing), safetensors, another's names or ours. And
//! as a flat blob, its checksum made to fit.
#![no_main]

use dino_host::weights::{self, Options, Side};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::flat::{Flat, FlatError};
use dino_kernel::model::Output;
use dino_kernel::plan::FeaturePlan;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { head: true, classifier: true, allow_extra: true, ..Options::default() };
    if let Ok(opened) = weights::parse("fuzz".into(), bytes.to_vec(), &Side::default(), &options) {
        let (fits, report) = (opened.report.check().is_ok(), opened.report.lines());
        match opened.strict() {
            Ok(found) => {
                assert_eq!(found.backbone.len(), found.config.table().backbone_numbers());
                if let Some(c) = found.classifier {
                    assert_eq!(c.weight.len(), c.classes.len() * found.config.embed_dim);
                    assert_eq!(c.bias.len(), c.classes.len());
                }
            }
            Err(e) => assert!(!fits || !e.to_string().is_empty(), "{report:?}"),
        }
    }
    let mut blob = bytes.to_vec();
    if blob.len() >= 16 {
        blob[..8].copy_from_slice(b"DINOFLAT");
        let version = u32::from(1 + blob[8].wrapping_sub(1) % 3);
        blob[8..12].copy_from_slice(&version.to_le_bytes());
        let sum = crc32fast::hash(&blob[16..]);
        blob[12..16].copy_from_slice(&sum.to_le_bytes());
    }
    match Flat::parse(&blob) {
        Ok(flat) => {
            let mut copy = vec![0.0; flat.len()];
            flat.copy(&mut copy);
            let group = Group { count: 1, height: flat.backbone.image(), width: flat.backbone.image() };
            let plan =
                FeaturePlan::new(flat.backbone, Crops::one(group), Output::Class, 0).expect("parsed with this plan");
            // A shape of few weights may have a plan for large images.
            if plan.pools.state < 1 << 20 {
                let mut state = vec![0.0f32; plan.pools.state];
                flat.initial_state(&plan, &mut state);
            }
        }
        Err(e) => assert!(e != FlatError::Checksum, "it was made to fit"),
    }
});

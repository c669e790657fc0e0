//! Any bytes as a checkpoint file: opened, and every network asked for.
#![no_main]

use dino_host::weights::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(checkpoint) = Checkpoint::parse("fuzz".into(), bytes.to_vec()) else { return };
    for network in ["teacher", "student"] {
        if let Ok(weights) = checkpoint.backbone(network) {
            assert!(weights.iter().all(|x| x.is_finite()));
            assert_eq!(weights.len(), checkpoint.config.table().backbone_numbers());
        }
    }
});

//! Any bytes as a picture: decoded, and what decodes is cropped.
#![no_main]

use dino_host::augment::Augment;
use dino_host::data::decode_bytes;
use dino_kernel::rng::{Kind, Rng};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = decode_bytes(Path::new("fuzz"), bytes) else { return };
    assert!(image.width > 0 && image.height > 0);
    assert_eq!(image.pixels.len(), 3 * image.width * image.height);
    let recipe = Augment { global_size: 16, local_size: 8, local_crops_number: 1, ..Augment::default() };
    let mut crop = vec![f32::NAN; 3 * 16 * 16];
    for view in 0..3 {
        let crop = &mut crop[..if view < 2 { 3 * 16 * 16 } else { 3 * 8 * 8 }];
        recipe.crop(&image, view, &mut Rng::new(1, 0, 0, view as u32, Kind::Augment, 0), crop);
        assert!(crop.iter().all(|x| x.is_finite()));
    }
});

//! Any bytes as an image: decoded in every way, and what decodes is cropped. The last byte selects how; images do not mind it.
#![no_main]

use dino_host::image::augment::Augment;
use dino_host::image::{Decode, decode_bytes};
use dino_kernel::rng::{Kind, Rng};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let choice = bytes.last().copied().unwrap_or(0);
    let channels = [3, 1, 4, 2, 5, 3, 3, 3][(choice & 7) as usize];
    let fast = [None, Some(1), Some(6), Some(usize::MAX)][(choice >> 3 & 3) as usize];
    let white = [u16::MAX, 4095][(choice >> 6 & 1) as usize];
    let how = Decode { channels, orient: choice & 32 == 0, fast, white };
    let Ok(image) = decode_bytes(Path::new("fuzz"), bytes, how) else { return };
    assert!(image.width > 0 && image.height > 0 && image.channels == channels);
    assert_eq!(image.pixels.len(), channels * image.width * image.height);
    if channels != 3 {
        return;
    }
    let recipe = Augment { global_size: 16, local_size: 8, local_crops_number: 1, ..Augment::default() };
    let mut crop = vec![f32::NAN; 3 * 16 * 16];
    for view in 0..3 {
        let crop = &mut crop[..if view < 2 { 3 * 16 * 16 } else { 3 * 8 * 8 }];
        recipe.crop(&image, view, &mut Rng::new(1, 0, 0, view as u32, Kind::Augment, 0), crop);
        assert!(crop.iter().all(|x| x.is_finite()));
    }
});

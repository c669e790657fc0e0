//! The ten crops of a fixed image, held to the bits they have always had: a faster way must give the same ones.

use dino_host::image::Image;
use dino_host::image::augment::Augment;
use dino_kernel::rng::{Kind, Rng};

/// Waves with noise on top: smooth parts, edges and all colors.
fn drawn(height: usize, width: usize) -> Image {
    let mut rng = Rng::new(1, 0, 0, 0, Kind::Test, 0);
    let mut pixels = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..3 {
                let wave = (x * (c + 2) + y * (5 - c)) % 511;
                let step = if (x / 37 + y / 23) % 5 == c { 60 } else { 0 };
                pixels.push((wave.min(510 - wave) as u32 * 3 / 4 + step + rng.below(24)).min(255) as u8);
            }
        }
    }
    Image { width, height, channels: 3, pixels }
}

/// FNV-1a of the bits.
fn hash(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3))
}

#[test]
fn the_published_crops_keep_their_bits() {
    let (recipe, image) = (Augment::default(), drawn(375, 500));
    for (seed, want) in
        [(0, 0xc1be_fa14_53ba_8278), (1, 0x9d25_32c0_16f8_6b33), (2, 0xf665_4d38_4b88_2ce8), (3, 0xb8cc_c72c_a78d_722e)]
    {
        let mut all = Vec::new();
        for (view, (size, _)) in recipe.crops_of().into_iter().enumerate() {
            let mut out = vec![0.0; 3 * size * size];
            recipe.crop(&image, view, &mut Rng::new(seed, 0, 7, view as u32, Kind::Augment, 0), &mut out);
            all.extend(out);
        }
        assert_eq!(hash(&all), want, "seed {seed}: {:#018x}", hash(&all));
    }
}

//! Images are stored pixel by pixel, crops plane by plane, as the network reads them; every operation on a crop works on planes.

use crate::image::Image;

/// `(channels, height, width)` of an image.
pub fn planes(image: &Image) -> Vec<u8> {
    let plane = |c| image.pixels[c..].iter().step_by(image.channels).copied();
    (0..image.channels.min(image.pixels.len())).flat_map(plane).collect()
}

/// `(pixels, channels)` of planes.
pub fn interleaved(planes: &[u8], channels: usize) -> Vec<u8> {
    let pixels = planes.len() / channels;
    (0..planes.len()).map(|i| planes[i % channels * pixels + i / channels]).collect()
}

/// Swaps left and right of every row, whatever plane it is of.
pub fn mirror(planes: &mut [u8], width: usize) {
    planes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
}

/// out = (x / 255 − mean) / std in f32, `(channels, n)` both; a mean and a deviation a channel.
pub fn normalize(out: &mut [f32], planes: &[u8], mean: &[f64], std: &[f64]) {
    assert!(out.len() == planes.len() && mean.len() == std.len(), "a value a pixel, a mean and a deviation a channel");
    let pixels = (planes.len() / mean.len()).max(1);
    for ((out, plane), (mean, std)) in out.chunks_mut(pixels).zip(planes.chunks(pixels)).zip(mean.iter().zip(std)) {
        let table: [f32; 256] = std::array::from_fn(|x| (x as f32 / 255.0 - *mean as f32) / *std as f32);
        for (y, x) in out.iter_mut().zip(plane) {
            *y = table[*x as usize];
        }
    }
}

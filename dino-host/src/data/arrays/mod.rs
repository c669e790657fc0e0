//! Images of one size in memory, and their labels: what the files of MNIST and NumPy's archives hold.

pub mod cifar;
mod cifar_python;
pub mod idx;
pub(crate) mod npz;
pub(crate) mod stl10;

use std::path::Path;

use super::fingerprint::Fnv;
use super::labels::renumbered;
use super::{Dataset, Splits};
use crate::error::{Error, Result};
use crate::image::limits::{MAX_BYTES, MAX_SIDE};
use crate::image::{Decode, Image, converted};

/// Largest array, unpacked: EMNIST's largest has 0.6 GB.
pub(crate) const MAX_ARRAY: u64 = 8 << 30;

/// The layout of an image's numbers, the last index fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// (height, width, channels)
    Rows,
    /// (channels, height, width)
    Planes,
    /// (channels, width, height): every channel transposed.
    Columns,
}

/// Images of one size.
pub(crate) struct Arrays {
    /// What the images' names begin with.
    pub name: String,
    pub pixels: Vec<u8>,
    /// n, height, width, channels.
    pub dims: [usize; 4],
    pub layout: Layout,
    pub labels: Option<Vec<u32>>,
    pub classes: Vec<String>,
    pub how: Decode,
}

/// Refuses sizes that are no images', before anything is allocated for them.
pub(crate) fn check_dims(path: &Path, [n, height, width, channels]: [usize; 4]) -> Result<()> {
    // Saturating: next to no images at all, the other three can be anything.
    let size = [height, width, channels].iter().fold(1u64, |size, &d| size.saturating_mul(d as u64));
    if n == 0 || size == 0 || height.max(width) > MAX_SIDE as usize || size > MAX_BYTES {
        return Err(Error::new(format!(
            "{} claims {n} images of {width} x {height} pixels and {channels} channels",
            path.display()
        ))
        .hint(format!("images of up to {MAX_SIDE} pixels a side and {} MiB are read", MAX_BYTES >> 20)));
    }
    Ok(())
}

/// The pixels of one image as (height, width, channels).
pub(crate) fn rows(stored: &[u8], [height, width, channels]: [usize; 3], layout: Layout) -> Vec<u8> {
    let offset = |y: usize, x: usize, c: usize| match layout {
        Layout::Rows => (y * width + x) * channels + c,
        Layout::Planes => (c * height + y) * width + x,
        Layout::Columns => (c * width + x) * height + y,
    };
    let mut pixels = Vec::with_capacity(stored.len());
    for y in 0..height {
        for x in 0..width {
            pixels.extend((0..channels).map(|c| stored[offset(y, x, c)]));
        }
    }
    pixels
}

/// One set or two of one folder, the training part first, as a data set: their labels become indices of the classes.
pub(crate) fn splits(folder: &Path, mut sets: Vec<Arrays>, notes: Vec<String>) -> Result<Splits> {
    let labels: Vec<&mut u32> = sets.iter_mut().flat_map(|set| set.labels.iter_mut().flatten()).collect();
    if !labels.is_empty() {
        let classes = renumbered(&[folder], labels)?;
        sets.iter_mut().for_each(|set| set.classes.clone_from(&classes));
    }
    let test = sets.len().checked_sub(2).and_then(|_| sets.pop());
    Ok(Splits::of(sets.remove(0), test, notes))
}

impl Dataset for Arrays {
    fn len(&self) -> usize {
        self.dims[0]
    }
    fn image(&self, i: usize) -> Result<Image> {
        let [_, height, width, channels] = self.dims;
        let size = height * width * channels;
        let stored = &self.pixels[i * size..(i + 1) * size];
        let pixels = match self.layout {
            Layout::Rows => stored.to_vec(),
            layout => rows(stored, [height, width, channels], layout),
        };
        converted(Path::new(&self.name), Image { width, height, channels, pixels }, false, self.how.channels)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.labels.as_ref().map(|labels| labels[i])
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// File and image, as in `train/00042`.
    fn name(&self, i: usize) -> String {
        format!("{}/{i:05}", self.name)
    }
    /// Everything. Transposed images differ from the same bytes as they are stored: a run that saw the stored layout is not
    /// resumed with others.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.text(&self.name);
        self.dims.iter().for_each(|&d| hash.number(d as u64));
        self.classes.iter().for_each(|class| hash.text(class));
        for &label in self.labels.iter().flatten() {
            match u8::try_from(label) {
                Ok(byte) => hash.bytes(&[byte]),
                Err(_) => hash.number(u64::from(label)),
            }
        }
        hash.bytes(&self.pixels);
        match self.layout {
            Layout::Rows => (),
            Layout::Planes => hash.text("planes"),
            Layout::Columns => hash.text("columns"),
        }
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_is_the_same_image() {
        let [height, width, channels] = [2, 3, 2];
        let value = |y: usize, x: usize, c: usize| (100 * c + 10 * y + x) as u8;
        let mut stored = [vec![0; 12], vec![0; 12], vec![0; 12]];
        for (y, x, c) in (0..12).map(|i| (i / 6, i / 2 % 3, i % 2)) {
            stored[0][(y * width + x) * channels + c] = value(y, x, c);
            stored[1][c * height * width + y * width + x] = value(y, x, c);
            stored[2][c * height * width + x * height + y] = value(y, x, c);
        }
        for (stored, layout) in stored.iter().zip([Layout::Rows, Layout::Planes, Layout::Columns]) {
            assert_eq!(rows(stored, [height, width, channels], layout), stored_rows(), "{layout:?}");
        }
        fn stored_rows() -> Vec<u8> {
            vec![0, 100, 1, 101, 2, 102, 10, 110, 11, 111, 12, 112]
        }
    }
}

//! Masks of objects as files: PNG whose pixels are object numbers (a palette is only their colors), or one object in white.
//!
//! Images are decoded to colors elsewhere; here a pixel is the number that the file holds, as DAVIS and Pascal VOC mean it.

use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use png::{BitDepth, ColorType, Decoder, Encoder, Limits, Transformations};
use std::fs::File;
use std::io::{BufReader, Write};
use std::path::Path;

/// The number that means "one object in white" or, beside other numbers, "not scored".
pub const VOID: u8 = 255;

/// Largest side that is read: a small file can claim any size.
const MAX_SIDE: u32 = 1 << 14;

/// An object number a pixel; 0 is the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width` numbers, rows top to bottom.
    pub ids: Vec<u8>,
}

/// What 255 means in a mask, or in all masks of a video: their first one decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum White {
    /// The one object (DAVIS-2016): no other number occurs.
    Object,
    /// Pixels that are not scored (the borders of Pascal VOC and DAVIS-2017).
    Void,
}

/// The 256 colors of Pascal VOC and DAVIS: the bits of a number dealt out to red, green and blue, the lowest to the highest.
pub fn palette() -> [[u8; 3]; 256] {
    std::array::from_fn(|id| {
        let mut color = [0; 3];
        for bit in 0..8 {
            color[bit % 3] |= ((id >> bit & 1) as u8) << (7 - bit / 3);
        }
        color
    })
}

impl Mask {
    /// Reads a PNG file: gray or palette of 1 to 8 bits (the numbers as they are), or colors, which must be those of [`palette`],
    /// or black and white.
    ///
    /// # Errors
    /// The file is unreadable, no PNG, damaged, too large, of 16 bits, or has a color outside the palette; the error names it.
    pub fn read(path: &Path) -> Result<Mask> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(format!("cannot read the mask {}: {e}", path.display()))
                .hint("masks are PNG files of 8 bits: a number a pixel, 0 the background, or 255 for one object")
        };
        let file = File::open(path).map_err(|e| failed(&e))?;
        let limits = Limits { bytes: 1 << 30 };
        let mut decoder = Decoder::new_with_limits(BufReader::new(file), limits);
        decoder.set_transformations(Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(|e| failed(&e))?;
        let info = reader.info();
        let (width, height, depth) = (info.width, info.height, info.bit_depth);
        let channels = info.color_type.samples();
        let colored = matches!(info.color_type, ColorType::Rgb | ColorType::Rgba);
        if width.max(height) > MAX_SIDE || width == 0 || height == 0 {
            return Err(failed(&format!("it claims {width} x {height} pixels")));
        }
        if depth == BitDepth::Sixteen {
            return Err(failed(&"it has 16 bits a number"));
        }
        let bytes = reader.output_buffer_size().ok_or_else(|| failed(&"it is too large"))?;
        let mut packed = vec![0; bytes];
        let frame = reader.next_frame(&mut packed).map_err(|e| failed(&e))?;
        let (width, height, bits) = (width as usize, height as usize, depth as u8 as usize);
        // White of a one-bit mask is one object all the same.
        let mut ids = Vec::with_capacity(width * height);
        for row in packed.chunks(frame.line_size).take(height) {
            for x in 0..width {
                ids.push(match bits {
                    8 if colored => {
                        let c = &row[x * channels..][..3];
                        number([c[0], c[1], c[2]])
                            .ok_or_else(|| failed(&format!("its color {c:?} is not that of an object")))?
                    }
                    8 => row[x * channels],
                    _ => row[x * bits / 8] >> (8 - bits - x * bits % 8) & ((1u16 << bits) - 1) as u8,
                });
            }
        }
        Ok(Mask { width, height, ids })
    }

    /// What 255 means here.
    pub fn white(&self) -> White {
        if self.ids.iter().all(|&id| id == 0 || id == VOID) { White::Object } else { White::Void }
    }

    /// 255 as object 1 where it is one, as 0 where it is not scored; the second gives the pixels that are scored.
    pub fn numbered(&self, white: White) -> (Mask, Vec<bool>) {
        let id = |&id: &u8| match (id, white) {
            (VOID, White::Object) => 1,
            (VOID, White::Void) => 0,
            _ => id,
        };
        let scored = self.ids.iter().map(|&id| id != VOID || white == White::Object).collect();
        (Mask { ids: self.ids.iter().map(id).collect(), ..*self }, scored)
    }

    /// At another size, each pixel from the nearest (Pillow's `NEAREST`): output o reads input floor((o + 1/2) n_in / n_out), the indices
    /// summed up step by step in f64 as there, which decides where they are integers.
    pub fn resized(&self, width: usize, height: usize) -> Mask {
        let indices = |n: usize, all: usize| {
            let step = all as f64 / n as f64;
            let mut at = step * 0.5;
            let index = move |_| {
                let here = (at as usize).min(all - 1);
                at += step;
                here
            };
            (0..n).map(index).collect::<Vec<usize>>()
        };
        let (rows, columns) = (indices(height, self.height), indices(width, self.width));
        let mut ids = Vec::with_capacity(width * height);
        for y in rows {
            let row = &self.ids[y * self.width..][..self.width];
            ids.extend(columns.iter().map(|&x| row[x]));
        }
        Mask { width, height, ids }
    }

    /// Writes it as a PNG with the colors of [`palette`], as DAVIS' own tools read it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::new();
        let mut encoded = || -> std::result::Result<(), png::EncodingError> {
            let mut encoder = Encoder::new(&mut bytes, self.width as u32, self.height as u32);
            encoder.set_color(ColorType::Indexed);
            encoder.set_depth(BitDepth::Eight);
            encoder.set_palette(palette().as_flattened().to_vec());
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.ids)?;
            writer.finish()
        };
        encoded().map_err(|e| Error::new(format!("cannot write {}: {e}", path.display())))?;
        write_atomically(path, |f| f.write_all(&bytes))
    }
}

/// The object whose color it is.
fn number(color: [u8; 3]) -> Option<u8> {
    if color == [255; 3] {
        return Some(VOID);
    }
    palette().iter().position(|c| *c == color).map(|id| id as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_palette_is_vocs() {
        let p = palette();
        assert_eq!(p[..4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]);
        assert_eq!((p[8], p[15], p[255]), ([64, 0, 0], [192, 128, 128], [224, 224, 192]));
    }

    #[test]
    fn numbers_survive_a_file_whatever_their_form() {
        let dir = tempfile::tempdir().unwrap();
        let mask = Mask { width: 3, height: 2, ids: vec![0, 1, 2, 255, 0, 7] };
        let path = dir.path().join("a.png");
        mask.write(&path).unwrap();
        assert_eq!(Mask::read(&path).unwrap(), mask);
        // The same in the palette's colors; white for what is not scored.
        let colors: Vec<u8> =
            mask.ids.iter().flat_map(|&id| if id == 255 { [255; 3] } else { palette()[id as usize] }).collect();
        image::RgbImage::from_raw(3, 2, colors).unwrap().save(&path).unwrap();
        assert_eq!(Mask::read(&path).unwrap(), mask);
        image::RgbImage::from_raw(1, 1, vec![1, 2, 3]).unwrap().save(&path).unwrap();
        assert!(Mask::read(&path).unwrap_err().to_string().contains("[1, 2, 3]"));
        // Packed into bits: 0 1 2 3 0 in two bits each.
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 5, 1);
        encoder.set_color(ColorType::Indexed);
        encoder.set_depth(BitDepth::Two);
        encoder.set_palette(vec![0; 12]);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0b0001_1011, 0]).unwrap();
        writer.finish().unwrap();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Mask::read(&path).unwrap().ids, [0, 1, 2, 3, 0]);
        for bad in [&b""[..], b"not an image", &std::fs::read(&path).unwrap()[..40]] {
            std::fs::write(&path, bad).unwrap();
            assert!(Mask::read(&path).unwrap_err().to_string().contains("a.png"));
        }
    }

    #[test]
    fn white_is_an_object_alone_and_void_beside_others() {
        let alone = Mask { width: 3, height: 1, ids: vec![0, 255, 0] };
        assert_eq!(alone.white(), White::Object);
        assert_eq!(alone.numbered(White::Object), (Mask { ids: vec![0, 1, 0], ..alone.clone() }, vec![true; 3]));
        let beside = Mask { width: 3, height: 1, ids: vec![4, 255, 0] };
        assert_eq!(beside.white(), White::Void);
        let (numbered, scored) = beside.numbered(White::Void);
        assert_eq!((numbered.ids, scored), (vec![4, 0, 0], vec![true, false, true]));
    }

    #[test]
    fn the_nearest_pixel_is_pillows() {
        let row = |width| Mask { width: 5, height: 1, ids: vec![0, 1, 2, 3, 4] }.resized(width, 1).ids;
        // From Pillow: Image.fromarray([[0, 1, 2, 3, 4]]).resize((n, 1), NEAREST).
        assert_eq!(row(2), [1, 3]);
        assert_eq!(row(3), [0, 2, 4]);
        assert_eq!(row(7), [0, 1, 1, 2, 3, 3, 4]);
    }
}

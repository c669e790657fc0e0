//! The strips and tiles of a TIFF, unpacked and placed.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::Path;

use ::tiff::decoder::{ChunkType, Decoder, DecodingResult};
use ::tiff::tags::Tag;

use super::{RGB, YCBCR, failed, numbers};
use crate::error::Result;
use crate::image::decode::jpeg_pixels;
use crate::image::limits::{check_size, damaged, unsupported};

/// Values of Compression.
const PLAIN: u64 = 1;
const FAX4: u64 = 4;
const LZW: u64 = 5;
const JPEG: u64 = 7;
const DEFLATE: [u64; 2] = [8, 32946];
const PACKBITS: u64 = 32773;
const ZSTD: u64 = 50000;

pub(crate) struct Chunks<'a> {
    bytes: &'a [u8],
    width: usize,
    height: usize,
    samples: usize,
    bits: usize,
    photometric: u16,
    compression: u64,
    /// Samples are differences to their left neighbor.
    differences: bool,
    /// The bits of every byte are in the other order.
    bits_reversed: bool,
    big_endian: bool,
    /// Planes one after the other, each in chunks of its own.
    planes: bool,
    /// Width and height of a chunk, that of a strip the image's width.
    chunk: (usize, usize),
    /// Where the chunks begin in the file, and their lengths.
    spans: Vec<(u64, u64)>,
    tables: Vec<u8>,
}

impl<'a> Chunks<'a> {
    /// Reads the tags that describe the strips or tiles.
    ///
    /// # Errors
    /// A tag cannot be read, the chunks have no size, or the compression, predictor or layout is not supported.
    pub fn read(
        path: &Path,
        bytes: &'a [u8],
        decoder: &mut Decoder<Cursor<&'a [u8]>>,
        (width, height): (usize, usize),
        samples: usize,
        bits: usize,
        photometric: u16,
    ) -> Result<Chunks<'a>> {
        let tiles = decoder.get_chunk_type() == ChunkType::Tile;
        let mut tag = |tag: Tag| numbers(path, decoder, tag);
        let one = |found: Vec<u64>, default: u64| found.first().copied().unwrap_or(default);
        let compression = one(tag(Tag::Compression)?, PLAIN);
        let predictor = one(tag(Tag::Predictor)?, 1);
        let known = DEFLATE.contains(&compression) || [PLAIN, FAX4, LZW, JPEG, PACKBITS, ZSTD].contains(&compression);
        if !known {
            return Err(unsupported(path, &format!("a TIFF of compression {compression}")));
        }
        if !matches!((predictor, bits), (1, _) | (2, 8 | 16)) {
            return Err(unsupported(path, &format!("predictor {predictor} for samples of {bits} bits")));
        }
        let subsampled = tag(Tag::ChromaSubsampling)? != [1, 1];
        let planes = one(tag(Tag::PlanarConfiguration)?, 1) == 2 && samples > 1;
        if photometric == YCBCR && compression != JPEG && subsampled {
            return Err(unsupported(path, &"chroma subsampling of YCbCr color"));
        }
        if compression == JPEG && (bits != 8 || planes) {
            return Err(unsupported(path, &format!("JPEG of {bits} bits or in planes, within a TIFF")));
        }
        let chunk = if tiles {
            (one(tag(Tag::TileWidth)?, 0) as usize, one(tag(Tag::TileLength)?, 0) as usize)
        } else {
            (width, one(tag(Tag::RowsPerStrip)?, height as u64).min(height as u64) as usize)
        };
        if chunk.0 == 0 || chunk.1 == 0 {
            return Err(damaged(path, &format!("chunks of {} x {} pixels", chunk.0, chunk.1)));
        }
        let [starts, lengths] = if tiles {
            [tag(Tag::TileOffsets)?, tag(Tag::TileByteCounts)?]
        } else {
            [tag(Tag::StripOffsets)?, tag(Tag::StripByteCounts)?]
        };
        Ok(Chunks {
            bytes,
            width,
            height,
            samples,
            bits,
            photometric,
            compression,
            differences: predictor == 2,
            bits_reversed: one(tag(Tag::FillOrder)?, 1) == 2,
            big_endian: bytes.starts_with(b"MM"),
            planes,
            chunk,
            spans: starts.into_iter().zip(lengths).collect(),
            tables: tag(Tag::JPEGTables)?.into_iter().map(|x| x as u8).collect(),
        })
    }

    pub fn are_jpeg(&self) -> bool {
        self.compression == JPEG
    }

    pub fn are_fax(&self) -> bool {
        self.compression == FAX4
    }

    /// All samples, pixel by pixel: a byte each, of fewer bits without being spread; 16 bits are two bytes in this machine's order.
    ///
    /// # Errors
    /// Strips or tiles are missing, damaged or too large.
    pub fn placed(&self, path: &Path, decoder: &mut Decoder<Cursor<&'a [u8]>>) -> Result<Vec<u8>> {
        let wide = self.bits.div_ceil(8);
        let (across, down) = (self.width.div_ceil(self.chunk.0), self.height.div_ceil(self.chunk.1));
        let (planes, together) = if self.planes { (self.samples, 1) } else { (1, self.samples) };
        let count = across * down * planes;
        if self.spans.len() < count {
            return Err(damaged(path, &format!("{} of {count} strips or tiles", self.spans.len())));
        }
        let row_bytes = (self.chunk.0 * together).checked_mul(self.bits).map_or(usize::MAX, |bits| bits.div_ceil(8));
        let chunk_bytes = row_bytes.saturating_mul(self.chunk.1.min(self.height)) as u64;
        check_size(path, (self.width as u32, self.height as u32), chunk_bytes)?;
        let mut out = vec![0; self.width * self.height * self.samples * wide];
        for index in 0..count {
            let (plane, position) = (index / (across * down), index % (across * down));
            let (left, top) = (position % across * self.chunk.0, position / across * self.chunk.1);
            let (columns, rows) = (self.chunk.0.min(self.width - left), self.chunk.1.min(self.height - top));
            let (chunk, row_bytes) = self.unpacked(path, decoder, index, row_bytes, rows)?;
            for (y, row) in chunk.chunks_exact(row_bytes).take(rows).enumerate() {
                let row = self.row(row, together, columns * together);
                let start = ((top + y) * self.width + left) * self.samples * wide;
                if together == self.samples {
                    out[start..start + row.len()].copy_from_slice(&row);
                } else {
                    for (x, value) in row.chunks_exact(wide).enumerate() {
                        out[start + (x * self.samples + plane) * wide..][..wide].copy_from_slice(value);
                    }
                }
            }
        }
        Ok(out)
    }

    /// A chunk's bytes, at least `rows` rows of them, and the bytes of a row.
    fn unpacked(
        &self,
        path: &Path,
        decoder: &mut Decoder<Cursor<&'a [u8]>>,
        index: usize,
        row_bytes: usize,
        rows: usize,
    ) -> Result<(Vec<u8>, usize)> {
        let (start, length) = self.spans[index];
        let end = start.saturating_add(length);
        let stored = usize::try_from(start).ok().zip(usize::try_from(end).ok()).and_then(|(a, b)| self.bytes.get(a..b));
        let stored =
            stored.ok_or_else(|| damaged(path, &format!("strip or tile {index} is beyond the end of the file")))?;
        let in_order = |stored: &'a [u8]| match self.bits_reversed {
            true => Cow::Owned(stored.iter().map(|b| b.reverse_bits()).collect::<Vec<u8>>()),
            false => Cow::Borrowed(stored),
        };
        let mut out = vec![0; row_bytes * rows];
        let reached = match self.compression {
            JPEG => {
                let image = jpeg_pixels(path, &self.jpeg(stored))?;
                let fits =
                    image.height >= rows && image.channels == self.samples && image.width * image.channels >= row_bytes;
                return match fits {
                    true => Ok((image.pixels, image.width * image.channels)),
                    false => Err(damaged(
                        path,
                        &format!("strip or tile {index} has another size than the image header states"),
                    )),
                };
            }
            FAX4 => match decoder.read_chunk(index as u32).map_err(|e| failed(path, e))? {
                DecodingResult::U8(bits) => {
                    // The crate leaves out what is beyond the image.
                    let found = bits.len() / rows;
                    return Ok((bits, found.max(1)));
                }
                _ => 0,
            },
            LZW => lzw(&in_order(stored), &mut out),
            PACKBITS => packbits(&in_order(stored), &mut out),
            PLAIN => {
                let stored = in_order(stored);
                let n = stored.len().min(out.len());
                out[..n].copy_from_slice(&stored[..n]);
                n
            }
            ZSTD => match ruzstd::decoding::StreamingDecoder::new(stored) {
                Ok(decoder) => filled(decoder, &mut out),
                Err(_) => 0,
            },
            _ => filled(flate2::read::ZlibDecoder::new(&*in_order(stored)), &mut out),
        };
        match reached == out.len() {
            true => Ok((out, row_bytes)),
            false => Err(damaged(path, &format!("strip or tile {index} has {reached} bytes of {}", out.len()))),
        }
    }

    /// The first `count` samples of a row as they are placed.
    fn row(&self, row: &[u8], together: usize, count: usize) -> Vec<u8> {
        match self.bits {
            16 => {
                let number =
                    |b: &[u8; 2]| if self.big_endian { u16::from_be_bytes(*b) } else { u16::from_le_bytes(*b) };
                let mut values: Vec<u16> = row.as_chunks().0.iter().take(count).map(number).collect();
                if self.differences {
                    (together..values.len()).for_each(|i| values[i] = values[i].wrapping_add(values[i - together]));
                }
                values.into_iter().flat_map(u16::to_ne_bytes).collect()
            }
            8 => {
                let mut values = row[..count].to_vec();
                if self.differences {
                    (together..values.len()).for_each(|i| values[i] = values[i].wrapping_add(values[i - together]));
                }
                values
            }
            bits => {
                let value = |i: usize| row[i * bits / 8] >> (8 - bits - i * bits % 8) & ((1 << bits) - 1);
                (0..count).map(value).collect()
            }
        }
    }

    /// A strip or tile as a JPEG file: with the tables that all share, and a marker that states what the components are.
    fn jpeg(&self, stored: &[u8]) -> Vec<u8> {
        let tables = self.tables.strip_prefix(&[0xff, 0xd8]).map(|t| t.strip_suffix(&[0xff, 0xd9]).unwrap_or(t));
        let adobe = [b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0".as_slice(), &[u8::from(self.photometric != RGB)]].concat();
        let colors = if matches!(self.photometric, RGB | YCBCR) { adobe } else { Vec::new() };
        let rest = stored.strip_prefix(&[0xff, 0xd8]).unwrap_or(stored);
        [&[0xff, 0xd8], tables.unwrap_or_default(), &colors, rest].concat()
    }
}

/// Each fills `out` as far as the data reaches and returns how far.
fn lzw(data: &[u8], out: &mut [u8]) -> usize {
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let (mut read, mut filled) = (0, 0);
    while filled < out.len() {
        let step = decoder.decode_bytes(&data[read..], &mut out[filled..]);
        (read, filled) = (read + step.consumed_in, filled + step.consumed_out);
        if !matches!(step.status, Ok(weezl::LzwStatus::Ok)) {
            break;
        }
    }
    filled
}

fn filled(mut decoder: impl Read, out: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < out.len() {
        match decoder.read(&mut out[filled..]) {
            Ok(n @ 1..) => filled += n,
            _ => break,
        }
    }
    filled
}

fn packbits(mut data: &[u8], out: &mut [u8]) -> usize {
    let mut filled = 0;
    while let Some((&head, rest)) = data.split_first() {
        let left = out.len() - filled;
        match head as i8 {
            -128 => data = rest,
            n @ 0.. => {
                let n = (n as usize + 1).min(rest.len());
                let taken = n.min(left);
                out[filled..filled + taken].copy_from_slice(&rest[..taken]);
                filled += taken;
                data = &rest[n..];
            }
            n => {
                let Some((&value, rest)) = rest.split_first() else { break };
                let taken = (1 - isize::from(n)) as usize;
                let taken = taken.min(left);
                out[filled..filled + taken].fill(value);
                filled += taken;
                data = rest;
            }
        }
    }
    filled
}

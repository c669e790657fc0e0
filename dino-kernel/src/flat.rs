//! A backbone as one flat blob, for firmware: it may be stored in flash and is used in place.
//!
//! All numbers are little-endian, the blob's start is aligned to 4 bytes:
//!
//! | offset | what |
//! | --- | --- |
//! | 0 | `DINOFLAT` |
//! | 8 | u32: version, 1, or 2 of networks with another epsilon than the published one, or 3 of residual networks |
//! | 12 | u32: CRC-32 (IEEE) of everything from offset 16 on |
//! | 16 | u32 each: image, patch, channels, dim, depth, heads, mlp, rule for positions (0 published, 1 size), as in [`crate::model::Vit`] |
//! | 48 | u32: number of weights |
//! | 52 | of version 2: f64, what LayerNorms add to the variance; in version 1 it is 1e-6 and the rest is 8 bytes earlier |
//! | 60 | channels f32: mean of every channel, of values in 0 to 1; then as many: their standard deviation |
//! | then, at the next multiple of 64 | the weights, f32, in the table's layout |
//!
//! Of version 3 it has, from offset 16 on:
//!
//! | offset | what |
//! | --- | --- |
//! | 16 | u32 each: image, channels, width, kernel and stride of the stem, its max pool (0 or 1), blocks (0 basic, 1 bottleneck), number of stages, as in [`crate::model::ResNet`] |
//! | 48 | u32: number of weights |
//! | 52 | u32: number of running means and variances |
//! | 56 | u32 each: width, blocks and stride of each of 8 stages, 0 of those that are not there |
//! | 152 | means and deviations of the channels, as above |
//! | then, at the next multiple of 64 | the weights, then the running means and variances, f32, in the table's layout |
//!
//! Inference, the arenas being the caller's (their sizes are in `plan.pools`):
//!
//! ```
//! use dino_kernel::{backend::reference::Infer, crops::{Crops, Group}, flat::Flat, model::Output, plan::FeaturePlan};
//!
//! fn features(out: &mut [f32], blob: &[u8], pixels: &[f32], arenas: [&mut [f32]; 3]) -> Result<(), &'static str> {
//!     let flat = Flat::parse(blob).map_err(|_| "the blob")?;
//!     let side = flat.backbone.image();
//!     let group = Group { count: 1, height: side, width: side };
//!     let plan = FeaturePlan::new(flat.backbone, Crops::one(group), Output::Class, 0).map_err(|_| "the plan")?;
//!     let [acts, stats, state] = arenas;
//!     flat.initial_state(&plan, state);
//!     acts[plan.pixels.range()].copy_from_slice(pixels);
//!     let weights = flat.weights().ok_or("the blob is not aligned to 4 bytes")?;
//!     let mut o = Infer { weights, grads: &mut [], slots: &mut [], acts, stats, state };
//!     plan.forward(&mut o);
//!     out.copy_from_slice(&o.acts[plan.pass.y().range()]);
//!     Ok(())
//! }
//! ```

use crate::crops::{Crops, Group};
use crate::model::resnet::MAX_STAGES;
use crate::model::{Backbone, FlatShape, Output, UnknownShape};
use crate::ops::layernorm::EPS;
use crate::plan::{FeaturePlan, PlanError};
use crate::real::Real;
use core::fmt;

/// The first bytes.
pub const MAGIC: &[u8; 8] = b"DINOFLAT";
/// The version of vision transformers with the published epsilon, of those with another one, and of residual networks.
pub const VERSIONS: [u32; 3] = [1, 2, 3];
/// What [`header`] writes has at most so many bytes, and 8 a channel.
pub const HEADER: usize = 216;
/// The offset of what follows the sizes and the number of weights: in version 1 the channel means.
const FIELDS: usize = 52;
/// The weights begin at a multiple of this.
const ALIGN: usize = 64;

/// Why a blob was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlatError {
    /// It does not begin with [`MAGIC`].
    Magic,
    /// None of [`VERSIONS`].
    Version(u32),
    /// Its length is not what its header asks for.
    Length {
        /// Bytes of the blob.
        found: usize,
        /// Bytes that the header asks for.
        needed: usize,
    },
    /// It was changed after it was written.
    Checksum,
    /// No rule for positions has this number.
    Positions(u32),
    /// Its stages are too many, or no kind of blocks or pool has its number.
    Kind,
    /// What LayerNorms would add to the variance is no small number above 0.
    Epsilon,
    /// The shape has no plan.
    Shape(PlanError),
    /// The shape has another number of weights, or of running means and variances.
    Weights {
        /// Weights that the header states.
        found: usize,
        /// Weights of the shape.
        needed: usize,
    },
}

impl fmt::Display for FlatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            FlatError::Magic => f.write_str("it does not begin with DINOFLAT"),
            FlatError::Version(v) => write!(f, "it has version {v}, here are {VERSIONS:?}"),
            FlatError::Length { found, needed } => write!(f, "it has {found} bytes, its header asks for {needed}"),
            FlatError::Checksum => f.write_str("its checksum does not fit: it was changed after it was written"),
            FlatError::Positions(n) => write!(f, "no rule for positions has the number {n}"),
            FlatError::Kind => f.write_str("it has too many stages, or an unknown kind of blocks or pool"),
            FlatError::Epsilon => f.write_str("its epsilon is none"),
            FlatError::Shape(e) => write!(f, "its shape: {e}"),
            FlatError::Weights { found, needed } => write!(f, "it has {found} weights, its shape has {needed}"),
        }
    }
}

impl core::error::Error for FlatError {}

/// A valid blob.
#[derive(Clone, Copy, Debug)]
pub struct Flat<'a> {
    /// The shape that the header states.
    pub backbone: Backbone,
    statistics: &'a [u8],
    weights: &'a [u8],
    buffers: &'a [u8],
}

/// The f32 at the start of four bytes.
fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Where the channel means begin.
const fn means(version: u32) -> usize {
    FIELDS
        + match version {
            1 => 0,
            2 => 8,
            _ => 4 + 12 * MAX_STAGES,
        }
}

/// Bytes before the weights.
const fn head(version: u32, channels: usize) -> usize {
    (means(version) + 8 * channels).next_multiple_of(ALIGN)
}

impl<'a> Flat<'a> {
    /// Checks everything that can be checked; afterwards nothing fails.
    ///
    /// # Errors
    /// The blob is of another format or version, cut short or too long, changed since it was written, or its shape has no plan.
    pub fn parse(blob: &'a [u8]) -> Result<Flat<'a>, FlatError> {
        if !blob.starts_with(MAGIC) {
            return Err(FlatError::Magic);
        }
        let short = |needed| FlatError::Length { found: blob.len(), needed };
        if blob.len() < FIELDS {
            return Err(short(FIELDS));
        }
        let field = |at: usize| u32::from_le_bytes([blob[at], blob[at + 1], blob[at + 2], blob[at + 3]]);
        let version = field(8);
        if !VERSIONS.contains(&version) {
            return Err(FlatError::Version(version));
        }
        if blob.len() < means(version) {
            return Err(short(means(version)));
        }
        if field(12) != crc32(&blob[16..]) {
            return Err(FlatError::Checksum);
        }
        let sizes = core::array::from_fn(|i| field(16 + 4 * i) as usize);
        let shape = match version {
            3 => {
                let stage = |i| core::array::from_fn(|j| field(FIELDS + 4 + 12 * i + 4 * j) as usize);
                FlatShape::ResNet { sizes, stages: core::array::from_fn(stage) }
            }
            2 => {
                let eps = f64::from_bits(u64::from(field(FIELDS)) | u64::from(field(FIELDS + 4)) << 32);
                FlatShape::Vit { sizes, eps }
            }
            _ => FlatShape::Vit { sizes, eps: EPS },
        };
        if let FlatShape::Vit { eps, .. } = shape
            && !(eps > 0.0 && eps < 1.0)
        {
            return Err(FlatError::Epsilon);
        }
        let backbone = Backbone::from_flat(shape).map_err(|unknown| match unknown {
            UnknownShape::Positions(rule) => FlatError::Positions(rule as u32),
            UnknownShape::Kind => FlatError::Kind,
        })?;
        // A plan for the native image bounds every product of sizes.
        let group = Group { count: 1, height: backbone.image(), width: backbone.image() };
        FeaturePlan::new(backbone, Crops::one(group), Output::Class, 0).map_err(FlatError::Shape)?;
        let buffers = if version == 3 { field(FIELDS) as usize } else { 0 };
        for (found, needed) in [(field(48) as usize, backbone.len()), (buffers, backbone.buffers_len())] {
            if found != needed {
                return Err(FlatError::Weights { found, needed });
            }
        }
        let (channels, first) = (backbone.channels(), head(version, backbone.channels()));
        let needed = first + 4 * (backbone.len() + buffers);
        if blob.len() != needed {
            return Err(short(needed));
        }
        let (weights, buffers) = blob[first..].split_at(4 * backbone.len());
        Ok(Flat { backbone, statistics: &blob[means(version)..][..8 * channels], weights, buffers })
    }

    /// Number of weights.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.weights.len() / 4
    }

    /// Mean and standard deviation of a channel's values, 0 to 1, that the pixels are normalized with.
    pub fn statistics(&self, channel: usize) -> [f32; 2] {
        let at = |i: usize| float(&self.statistics[4 * i..]);
        [at(channel), at(self.backbone.channels() + channel)]
    }

    /// The weights in place: `None` on a big-endian machine, or where the blob is not aligned to 4 bytes.
    pub fn weights(&self) -> Option<&'a [f32]> {
        bytemuck::try_cast_slice(self.weights).ok().filter(|_| cfg!(target_endian = "little"))
    }

    /// A copy of the weights, for where they cannot be used in place. `to` has as many elements.
    pub fn copy(&self, to: &mut [f32]) {
        for (to, bytes) in to.iter_mut().zip(self.weights.chunks_exact(4)) {
            *to = float(bytes);
        }
    }

    /// What the state pool of a plan of this backbone holds: the running means and variances, where it has any.
    pub fn initial_state<T: Real>(&self, plan: &FeaturePlan, state: &mut [T]) {
        plan.initial_state(state);
        let running = &mut state[plan.network.running().range()];
        for (to, bytes) in running.iter_mut().zip(self.buffers.chunks_exact(4)) {
            *to = T::of(f64::from(float(bytes)));
        }
    }
}

/// Writes what comes before the weights to the first bytes of `out`; returns how many these are. `mean` and `std`: a number a channel;
/// `weights`: the backbone in the table's layout, its parameters and then its buffers ([`crate::model::Table::backbone_numbers`]). `out` must have at
/// least [`HEADER`] bytes and 8 a channel.
pub fn header(out: &mut [u8], backbone: &Backbone, mean: &[f32], std: &[f32], weights: &[f32]) -> usize {
    let (version, sizes) = match backbone.flat() {
        FlatShape::Vit { sizes, eps } => (if eps == EPS { 1 } else { 2 }, sizes),
        FlatShape::ResNet { sizes, .. } => (3u32, sizes),
    };
    let (first, end) = (means(version), head(version, backbone.channels()));
    out[..end].fill(0);
    let mut put = |at: usize, n: usize| out[at..at + 4].copy_from_slice(&(n as u32).to_le_bytes());
    sizes.into_iter().enumerate().for_each(|(i, n)| put(16 + 4 * i, n));
    put(48, backbone.len());
    match backbone.flat() {
        FlatShape::Vit { .. } if version == 1 => {}
        FlatShape::Vit { eps, .. } => out[FIELDS..first].copy_from_slice(&eps.to_le_bytes()),
        FlatShape::ResNet { stages, .. } => {
            put(FIELDS, backbone.buffers_len());
            stages.as_flattened().iter().enumerate().for_each(|(i, &n)| put(FIELDS + 4 + 4 * i, n));
        }
    }
    let statistics = mean.iter().chain(std).map(|x| x.to_le_bytes());
    for (to, from) in out[first..end].chunks_exact_mut(4).zip(statistics) {
        to.copy_from_slice(&from);
    }
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&version.to_le_bytes());
    let numbers = weights.iter().fold(crc_step(!0, &out[16..end]), |crc, x| crc_step(crc, &x.to_le_bytes()));
    out[12..16].copy_from_slice(&(!numbers).to_le_bytes());
    end
}

/// CRC-32 of IEEE 802.3 (reflected, polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    !crc_step(!0, bytes)
}

/// Four bits at a time: a table of 16 entries costs firmware 64 bytes.
fn crc_step(mut crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 16] = {
        let (mut table, mut i) = ([0u32; 16], 0);
        while i < 16 {
            let (mut x, mut bit) = (i as u32, 0);
            while bit < 4 {
                x = if x & 1 == 1 { x >> 1 ^ 0xEDB8_8320 } else { x >> 1 };
                bit += 1;
            }
            table[i] = x;
            i += 1;
        }
        table
    };
    for &byte in bytes {
        for nibble in [byte & 15, byte >> 4] {
            crc = crc >> 4 ^ TABLE[((crc ^ nibble as u32) & 15) as usize];
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_usual_one() {
        assert_eq!((crc32(b""), crc32(b"123456789")), (0, 0xCBF4_3926));
    }
}

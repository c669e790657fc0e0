//! Attention pictures.
use crate::config::Config;
use crate::data::Image;
use crate::device::Device;
use crate::error::Result;
use std::path::Path;

/// Draws.
pub fn draw<D: Device>(
    _config: &Config,
    _weights: &[f32],
    _image: &Image,
    _size: usize,
    _keep: f64,
    _out: &Path,
) -> Result<()> {
    Ok(())
}

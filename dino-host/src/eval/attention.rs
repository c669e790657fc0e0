//! Attention masks against exact masks.
use crate::config::Config;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::Result;

/// Jaccard index, mean over images: of each head, and of every image's best head.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Jaccard {
    pub heads: Vec<f64>,
    pub best: f64,
}

/// Judges.
pub fn evaluate<D: Device>(_config: &Config, _weights: &[f32], _set: &dyn Dataset, _keep: f64) -> Result<Jaccard> {
    Ok(Jaccard { heads: vec![], best: 0.0 })
}

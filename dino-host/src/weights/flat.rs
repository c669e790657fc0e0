//! Writes a backbone as one flat blob for firmware, see [`dino_kernel::flat`].

use crate::config::Config;
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use dino_kernel::flat;
use std::io::{BufWriter, Write};
use std::path::Path;

/// `weights`: a backbone in the table's layout, with the running statistics of a residual network.
///
/// # Errors
/// The weights are more than a blob holds, or the file cannot be written.
pub fn write(path: &Path, config: &Config, weights: &[f32]) -> Result<()> {
    let backbone = config.table().backbone;
    if weights.len() > (u32::MAX / 4) as usize {
        return Err(Error::new(format!("{} weights are more than a blob of 4 GB holds", weights.len()))
            .hint("--to official takes any number"));
    }
    let [mean, std] = [&config.mean, &config.std].map(|v| v.iter().map(|&x| x as f32).collect::<Vec<f32>>());
    let mut head = vec![0; flat::HEADER + 8 * backbone.channels()];
    let len = flat::header(&mut head, &backbone, &mean, &std, weights);
    write_atomically(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&head[..len])?;
        weights.iter().try_for_each(|x| file.write_all(&x.to_le_bytes()))?;
        file.flush()
    })
}

//! The seam between the trainer and the hardware: what a backend offers beyond the vocabulary.

use crate::error::Result;
use dino_kernel::backend::Update;
use dino_kernel::middleware::{Memory, Pool};
use dino_kernel::plan::Pools;

/// A backend that owns its pools. Training, evaluation and checkpoints are generic over it.
pub trait Device: Update + Memory + Sized {
    /// Allocates the pools, zeroed. The error says how much was wanted.
    fn new(pools: Pools) -> Result<Self>;
    /// Host to device. Queued: the source may be reused at once, later words see the new values.
    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]);
    /// Device to host; waits for the words before it.
    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]);
    /// Waits for everything queued, and reports a fault that happened on the way.
    fn sync(&mut self) -> Result<()>;
    /// For logs: what this is.
    fn name(&self) -> String;
}

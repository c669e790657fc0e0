//! The three parts of a step as graphs: captured once, replayed.

use super::Gpu;
use crate::cuda::Graph;
use dino_host::error::Result;
use dino_kernel::plan::Plan;
use dino_kernel::step;

impl Gpu {
    pub(super) fn capture(&mut self, plan: &Plan) -> Result<[Graph; 3]> {
        let mut graph = |issue: fn(&mut Gpu, &Plan)| {
            self.stream.capture()?;
            self.capturing = true;
            issue(self, plan);
            self.capturing = false;
            self.stream.captured()
        };
        Ok([graph(step::begin)?, graph(step::micro_batch)?, graph(step::commit)?])
    }

    /// One of the three parts of a step.
    pub(super) fn issue(&mut self, part: usize, plan: &Plan) -> Result<()> {
        if let Some(graphs) = &self.graphs {
            return self.stream.replay(&graphs[part]);
        }
        [step::begin, step::micro_batch, step::commit][part](self, plan);
        Ok(())
    }
}

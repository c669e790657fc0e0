//! The parts of a step as graphs: captured once, replayed.

use super::Gpu;
use crate::cuda::Graph;
use dino_host::error::Result;
use dino_kernel::plan::Plan;
use dino_kernel::step;

/// The parts of a step that are captured.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Begin,
    MicroBatch,
    Commit,
    /// These two only where the targets depend on the full batch.
    TeacherRows,
    Offsets,
}

/// What issues them, in the order of [`Part`].
const ISSUE: [fn(&mut Gpu, &Plan); 5] =
    [step::begin, step::micro_batch, step::commit, step::teacher_rows, step::offsets];

impl Gpu {
    pub(super) fn capture(&mut self, plan: &Plan) -> Result<Vec<Graph>> {
        let parts = if plan.config.objective.whole_batch() { &ISSUE[..] } else { &ISSUE[..3] };
        let graph = |issue: &fn(&mut Gpu, &Plan)| {
            self.stream.capture()?;
            self.capturing = true;
            issue(self, plan);
            self.capturing = false;
            self.stream.captured()
        };
        parts.iter().map(graph).collect()
    }

    /// One of the parts of a step.
    pub(super) fn issue(&mut self, part: Part, plan: &Plan) -> Result<()> {
        if let Some(graphs) = &self.graphs {
            return self.stream.replay(&graphs[part as usize]);
        }
        ISSUE[part as usize](self, plan);
        Ok(())
    }
}

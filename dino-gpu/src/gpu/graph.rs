//! The parts of a step as graphs: captured once, replayed.

use super::Gpu;
use crate::cuda::Graph;
use crate::options::Launch;
use dino_host::error::Result;
use dino_kernel::backend::wrap::Lanes;
use dino_kernel::plan::Plan;
use dino_kernel::step;

/// The parts of a step that are captured.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Begin,
    MicroBatch,
    /// The last one of a step, where gradients are summed over processes while others are computed.
    LastMicroBatch,
    Commit,
    /// These two only where the targets depend on the full batch.
    TeacherRows,
    Offsets,
}

impl Part {
    /// All of them, in the order of their numbers.
    const ALL: [Part; 6] =
        [Part::Begin, Part::MicroBatch, Part::LastMicroBatch, Part::Commit, Part::TeacherRows, Part::Offsets];

    /// What issues it.
    fn issue(self) -> fn(&mut Gpu, &Plan) {
        match self {
            Part::Begin => step::begin,
            Part::MicroBatch => micro_batch,
            Part::LastMicroBatch => last_micro_batch,
            Part::Commit => commit,
            Part::TeacherRows => teacher_rows,
            Part::Offsets => offsets,
        }
    }
}

fn micro_batch(gpu: &mut Gpu, plan: &Plan) {
    step::micro_batch(&mut Lanes::new(gpu, plan.pools.lanes), plan);
}

fn teacher_rows(gpu: &mut Gpu, plan: &Plan) {
    step::teacher_rows(&mut Lanes::new(gpu, plan.pools.lanes), plan);
}

fn offsets(gpu: &mut Gpu, plan: &Plan) {
    step::offsets(&mut Lanes::new(gpu, plan.pools.lanes), plan);
}

/// A process with one shard has one lane. Within the last of its passes, what is complete of the gradients may be summed.
fn last_micro_batch(gpu: &mut Gpu, plan: &Plan) {
    let (passes, len) = (plan.passes().count(), plan.table.len());
    step::micro_batch_each(gpu, plan, |gpu, pass| {
        if pass.map_or(0, |pass| pass + 1) + 1 == passes {
            gpu.begin_overlap(len);
        }
    });
    gpu.end_overlap(len);
}

fn commit(gpu: &mut Gpu, plan: &Plan) {
    step::reduce(gpu, plan);
    step::commit(gpu, plan);
}

impl Gpu {
    /// A graph for every part that the plan has. Where a driver or a library does not let one be captured, the run goes on kernel by
    /// kernel, with the same bits: if what failed was the device, the next launch reports that.
    pub(super) fn capture(&mut self, plan: &Plan) {
        match self.graphs_of(plan) {
            Ok(graphs) => self.graphs = Some(graphs),
            Err(e) => {
                self.launch = Launch::Direct;
                dino_host::errln!("steps are launched kernel by kernel, for they cannot be captured ({})", e.message);
            }
        }
    }

    fn graphs_of(&mut self, plan: &Plan) -> Result<Vec<Option<Graph>>> {
        let (overlaps, whole_batch) = (self.overlaps(plan), plan.config.objective.whole_batch());
        let graph = |part: Part| {
            let used = match part {
                Part::Begin | Part::Commit => true,
                Part::MicroBatch => !overlaps || plan.parts() > 1,
                Part::LastMicroBatch => overlaps,
                Part::TeacherRows | Part::Offsets => whole_batch,
            };
            if !used {
                return Ok(None);
            }
            self.stream.capture()?;
            self.capturing = true;
            part.issue()(self, plan);
            self.capturing = false;
            // Also where an op has failed, so that the stream is not left in a capture.
            let graph = self.stream.captured();
            self.first_error.take().map_or(graph.map(Some), Err)
        };
        Part::ALL.into_iter().map(graph).collect()
    }

    /// One of the parts of a step.
    pub(super) fn issue(&mut self, part: Part, plan: &Plan) -> Result<()> {
        if let Some(graph) = self.graphs.as_ref().and_then(|graphs| graphs[part as usize].as_ref()) {
            return self.stream.replay(graph);
        }
        part.issue()(self, plan);
        Ok(())
    }
}

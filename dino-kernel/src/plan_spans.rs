//! The names of everything a plan lays out, for printed plans.

use crate::mem::Span;
use crate::middleware::Pool;
use crate::model::vit::spans::pass_on;
use crate::plan::Plan;
use crate::spec::Name;

impl Plan {
    /// Calls `f` for every span of activations, statistics and state of a training step. Together they are the pools, alignment
    /// aside. Names begin with whose they are: `step.`, `student.`, `teacher.` or `gradient.`. The teacher's pass comes before the
    /// student's and its activations lie where the student's and the gradients will; so do the pixels, until they are patch rows.
    pub fn visit_spans(&self, mut f: impl FnMut(Name, Pool, Span)) {
        let (depth, f) = (self.table.backbone.depth, &mut f);
        pass_on(f, "step.", "", 0, [("pixels", Pool::Acts, self.pixels.0), ("cols", Pool::Acts, self.cols.0)]);
        for (part, n) in [("teacher.", &self.teacher), ("student.", &self.student)] {
            n.positions.visit(part, f);
            n.acts.visit(depth, part, f);
            n.head.visit(part, f);
            pass_on(f, part, "", 0, [("head.scale", Pool::Stats, n.scale.0)]);
        }
        self.head_grads.visit("gradient.", f);
        self.grads.visit("gradient.", f);
        let spans = [
            ("loss", Pool::Stats, self.loss.0),
            ("lse", Pool::Stats, self.lse.0),
            ("lse_teacher", Pool::Stats, self.lse_teacher.0),
            ("entropy", Pool::Stats, self.entropy.0),
            ("centre", Pool::State, self.centre.0),
            ("teacher_sum", Pool::State, self.teacher_sum.0),
            ("hyper", Pool::State, self.hyper.0),
            ("monitor", Pool::State, self.monitor.0),
        ];
        pass_on(f, "step.", "", 0, spans);
    }
}

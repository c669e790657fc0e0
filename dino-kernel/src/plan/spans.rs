//! The names of everything a plan lays out, for printed plans.

use super::Plan;
use crate::crops::Ragged;
use crate::mem::{Pool, Span};
use crate::model::spans::pass_on;
use crate::params::Name;

impl Plan {
    /// Calls `f` for every span of activations, statistics and state of a training step. Together they are the pools, alignment
    /// aside. Names begin with whose they are: `step.`, `student.`, `teacher.` or `gradient.`; the number is that of the student's
    /// pass, for spans of one. The student's passes run one after another in the same scratch, the teacher's before them; the pixels are
    /// there too, until they are patches.
    pub fn visit_spans(&self, mut f: impl FnMut(Option<usize>, Name, Pool, Span)) {
        let mut step = |name, pool, span, _| f(None, name, pool, span);
        let none = Ragged::EMPTY;
        let spans = [("pixels", Pool::Acts, self.pixels.0), ("patches", Pool::Acts, self.student.backbone.input().0)];
        pass_on(&mut step, "step.", "", 0, none, spans);
        for (part, n) in [("teacher.", &self.teacher), ("student.", &self.student)] {
            n.backbone.spans(part, &mut step);
            let spans = [
                ("head.scale", Pool::Stats, n.scale.0),
                ("running", Pool::State, n.running.0),
                ("running.moved", Pool::State, n.moved.0),
            ];
            pass_on(&mut step, part, "", 0, none, spans);
        }
        self.teacher_pass.spans("teacher.", &mut step);
        self.teacher_head.visit("teacher.", &mut step);
        let (targets, centered) = (&self.targets, self.config.objective.has_center());
        let own = if targets.batch.own == targets.batch.z { Span::EMPTY } else { targets.batch.own.0 };
        let spans = [
            ("drop_path", Pool::State, self.drop.0),
            ("loss", Pool::Stats, self.loss.0),
            ("lse", Pool::Stats, self.lse.0),
            ("lse_teacher", Pool::Stats, targets.rows.lse.0),
            ("entropy", Pool::Stats, targets.entropy.0),
            (if centered { "center" } else { "offset" }, Pool::State, targets.rows.offset.0),
            ("teacher_sum", Pool::State, targets.sum.0),
            ("batch_rows", Pool::Acts, targets.batch.z.0),
            ("own_rows", Pool::Acts, own),
            ("batch_lse", Pool::Stats, targets.batch.lse.0),
            ("batch_entropy", Pool::Stats, targets.batch.entropy.0),
            ("shard_sums", Pool::State, self.shard_sums.0),
            ("hyper", Pool::State, self.hyper.0),
            ("monitor", Pool::State, self.monitor.0),
        ];
        pass_on(&mut step, "step.", "", 0, none, spans);
        for (i, pass) in self.passes().enumerate() {
            let mut student = |name, pool, span, _| f(Some(i), name, pool, span);
            pass.backbone.spans("student.", &mut student);
            pass.head.visit("student.", &mut student);
            pass.head_grads.visit("gradient.", &mut student);
            pass.backbone.gradient_spans("gradient.", &mut student);
        }
    }
}

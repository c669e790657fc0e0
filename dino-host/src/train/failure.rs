//! Errors of a run: what was saved before they end it, and what can be done.

use super::{BEFORE_FAILURE, Pending, Trainer};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::weights::checkpoint::{self, Unsaved};
use dino_kernel::backend::Op;
use dino_kernel::backend::wrap::{Checked, Violation};
use dino_kernel::mem::Pool;
use dino_kernel::scalars::monitor;
use dino_kernel::step;
use std::path::PathBuf;

/// Two errors, the second met while the first was dealt with.
pub fn both(first: Error, second: Error) -> Error {
    let hint = first.hint.or(second.hint);
    Error { message: format!("{}; {}", first.message, second.message), hint }
}

impl<D: Device> Trainer<'_, D> {
    /// An error after which nothing is saved any more: it names what there is to go on from.
    pub fn lost(&self, error: Error) -> Error {
        let Some(step) = self.saved_step else { return error };
        let message = format!("{}; the run is saved as it was after step {step}", error.message);
        Error::new(message).hint(error.hint.unwrap_or_else(|| self.resume_hint()))
    }

    pub fn resume_hint(&self) -> String {
        format!("go on with: train --resume --out {}", self.run.out.display())
    }

    /// A save that was refused or failed.
    pub fn unsaved(&self, why: Unsaved) -> Error {
        match why {
            Unsaved::Failed(error) => self.lost(error),
            Unsaved::Spoilt(which) => {
                let message = format!("after step {} {which}", self.progress.step);
                self.lost(Error::new(message).hint(self.advice()))
            }
        }
    }

    /// A step was not finite. Whatever may change on a resume, the same weights and images would give the same: so the state is kept
    /// aside, and the run stays saved as it was before. All processes come here together, for the step was so for all of them.
    pub fn not_finite(&mut self, step: &Pending) -> Error {
        let (path, group) = (self.run.out.join(BEFORE_FAILURE), &self.run.group);
        let kept = group.from_first(|| {
            match checkpoint::save(&path, &mut self.device, &self.plan, &self.run.config, self.progress) {
                Ok(()) => Ok(Ok(true)),
                Err(Unsaved::Failed(_)) => Ok(Ok(false)),
                Err(Unsaved::Spoilt(which)) => Ok(Err(which)),
            }
        });
        let kept = match kept {
            Ok(Ok(kept)) => kept,
            // The update of the step before has spoiled them.
            Ok(Err(which)) => return self.unsaved(Unsaved::Spoilt(which)),
            Err(e) => return self.lost(e),
        };
        let found = match self.explain(step) {
            Ok(found) => found,
            Err(e) => return self.lost(e),
        };
        let aside = if kept { format!(" (the state before it is in {BEFORE_FAILURE})") } else { String::new() };
        let step = self.step_at(step.number);
        let message = format!("a number stopped being finite in step {step}: {found}{aside}");
        self.lost(Error::new(message).hint(self.advice()))
    }

    /// What to do when the numbers of a run have run away.
    fn advice(&self) -> String {
        // Two digits are enough for a proposal, which is never beyond what is usual.
        let (out, lr) = (self.run.out.display(), (self.run.config.lr / 10.0).min(1e-3));
        let lr = format!("{lr:.1e}");
        let earlier = self.numbered_checkpoint();
        let go_on = format!("train --resume --lr {lr} --out {out}");
        let go_back = match earlier {
            Some(path) => format!("cp {} {out}/{}, then {go_on}", path.display(), super::CHECKPOINT),
            None => format!("begin anew with --lr {lr} in another --out"),
        };
        if self.saved_step == Some(self.progress.step) {
            return format!("the weights themselves have run away: {go_back}");
        }
        format!(
            "a lower rate from there on: {go_on} (--clip-grad, --warmup-epochs, --teacher-temp and the like may change too); \
             if that fails soon again: {go_back}"
        )
    }

    /// The latest of the numbered checkpoints.
    pub(super) fn numbered_checkpoint(&self) -> Option<PathBuf> {
        let files = std::fs::read_dir(&self.run.out).ok()?.flatten().map(|entry| entry.path());
        let number = |path: &PathBuf| {
            let name = path.file_name()?.to_str()?;
            let digits = name.strip_prefix("checkpoint")?.strip_suffix(".safetensors")?;
            digits.parse::<u64>().ok()
        };
        files.filter_map(|path| Some((number(&path)?, path))).max().map(|(_, path)| path)
    }

    /// Where the first number was that was not finite: of the process that had one in the earliest of its ops, as others get it from there
    /// by what they exchange, and of several the first.
    fn explain(&mut self, step: &Pending) -> Result<String> {
        let own = self.replay(step);
        let group = &self.run.group;
        let all = group.gather_each(&own)?;
        group.end_together();
        let found = all.into_iter().enumerate().filter_map(|(rank, found)| Some((rank, found?)));
        let first = found.min_by_key(|(rank, (op, _))| (*op, *rank)).map(|(rank, (_, found))| group.named(rank, found));
        Ok(first.unwrap_or_else(|| "only in the sum of all gradients, which overflowed".into()))
    }

    /// Replays a step that was not finite under a backend that checks every number, and names the first bad one and how many ops came
    /// before it. Each process replays its own part, without the sum of all ([`step::reduce`]).
    fn replay(&mut self, step: &Pending) -> Option<(u64, String)> {
        let (data, plan) = (self.data(step), &self.plan);
        self.device.upload(Pool::State, plan.monitor.0.at + monitor::HALTED, &[0.0]);
        self.device.upload(Pool::State, plan.hyper.0.at, &data.hyper);
        let mut checked = Checked::new(&mut self.device);
        step::begin(&mut checked, plan);
        // The micro-batch and the pass that the violation came in; none if no crop had been seen.
        let mut during = None;
        let mut innocent = checked.violation.is_none();
        let put = |o: &mut Checked<&mut D>, part: usize| {
            o.inner.upload(Pool::State, plan.drop.0.at, &data.parts[part].drop);
            o.inner.upload(Pool::Acts, plan.pixels.0.at, data.parts[part].pixels);
        };
        step::accumulate_each(&mut checked, plan, put, |o, part, pass| {
            if innocent && o.violation.is_some() {
                (during, innocent) = (Some((part, pass)), false);
            }
        });
        step::commit(&mut checked, plan);
        let lane = checked.lane;
        match checked.violation? {
            (Violation::NonFinite(access, index), op, number) => {
                let during = during.filter(|_| access.pool == Pool::Acts && op != Op::patchify);
                let image = during.and_then(|(part, pass)| {
                    let (view, i) = plan.locate(pass, access.span, index)?;
                    let part = part + lane * plan.shard_parts();
                    let id = step.batch.images[part * plan.config.micro_batch + i];
                    Some(format!(", crop {view} of image {}", self.run.splits.train.name(id as usize)))
                });
                Some((number, format!("first in {} (op {number}){}", op.name(), image.unwrap_or_default())))
            }
            (violation, op, number) => Some((number, format!("{violation:?} in {} (op {number})", op.name()))),
        }
    }
}

//! Steps: what goes in and out beside them, and how they are queued, captured and replayed. The host runs one step ahead.

use super::Gpu;
use super::graph::Part;
use crate::args;
use crate::cuda::{Buffer, Event, Pinned, Stream};
use crate::kernels::Shape;
use crate::options::Launch;
use dino_host::error::{Error, Result};
use dino_kernel::backend::wrap::Lanes;
use dino_kernel::plan::Plan;
use dino_kernel::scalars::{hyper, monitor};
use dino_kernel::step;

/// What goes in and out beside the steps: two of each, so that one is filled while the other is used.
pub(super) struct Staging {
    copies: Stream,
    /// A micro-batch's pixels and stochastic-depth scales, on the host and, as f32, on the device.
    pinned: [Pinned; 2],
    staged: [Buffer; 2],
    /// Pinned is free again; staged is full; staged is free again.
    copied: [Event; 2],
    consumed: [Event; 2],
    hyper: [Pinned; 2],
    report: [Pinned; 2],
    reported: [Event; 2],
    /// Micro-batches staged so far, and how many of them belong to steps whose report was read: those are done.
    parts: usize,
    done: usize,
    /// Micro-batches staged when the last two steps were queued.
    ends: [usize; 2],
}

impl Staging {
    fn new(part: usize) -> Result<Staging> {
        let pair = |len: usize| Ok([Pinned::new(len)?, Pinned::new(len)?]);
        let events = || Ok([Event::new()?, Event::new()?]);
        Ok(Staging {
            copies: Stream::new()?,
            pinned: pair(part)?,
            staged: [Buffer::new(4 * part)?, Buffer::new(4 * part)?],
            copied: events()?,
            consumed: events()?,
            hyper: pair(hyper::LEN)?,
            report: pair(monitor::LEN)?,
            reported: events()?,
            parts: 0,
            done: 0,
            ends: [0; 2],
        })
    }

    /// Waits for the copies.
    pub(super) fn wait(&self) -> Result<()> {
        self.copies.wait()
    }
}

impl Gpu {
    /// Queues one step; `hyper` this step's numbers, `parts` the micro-batches' (stochastic-depth scales, pixels). Where the targets depend
    /// on the full batch, they are sent twice.
    ///
    /// # Errors
    /// The device fails, or failed before, or has no memory for the staging buffers.
    pub fn run_step<'a>(
        &mut self,
        plan: &Plan,
        numbers: &[f32; hyper::LEN],
        parts: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
    ) -> Result<()> {
        self.check()?;
        let staging = self.staging.take().map_or_else(|| Staging::new(plan.pools.input), Ok);
        let mut staging = match staging {
            Ok(staging) => staging,
            Err(e) => {
                self.note(Err(e));
                return self.check();
            }
        };
        // The first step finds what it must allocate; the second is captured.
        if self.launch == Launch::Graph && self.steps == 1 {
            self.capture(plan);
        }
        let r = self.queue_step(plan, numbers, parts, &mut staging);
        self.staging = Some(staging);
        self.note(r);
        self.steps += 1;
        self.check()
    }

    fn queue_step<'a>(
        &mut self,
        plan: &Plan,
        numbers: &[f32; hyper::LEN],
        parts: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
        staging: &mut Staging,
    ) -> Result<()> {
        // The slot was that of the step before the last: free, unless the caller has not read its report.
        let slot = self.steps % 2;
        if self.steps >= 2 && staging.done < staging.ends[slot] {
            self.wait_for(&staging.reported[slot])?;
        }
        staging.hyper[slot].get_mut().copy_from_slice(numbers);
        // SAFETY: pinned, of that length, and left alone until this step's report is read.
        unsafe { self.stream.upload(self.state(plan.hyper), staging.hyper[slot].address(), 4 * hyper::LEN)? };
        let lanes = plan.pools.lanes;
        let own = plan.parts() / lanes;
        self.issue(Part::Begin, plan)?;
        if plan.config.objective.whole_batch() {
            for number in 0..own {
                self.send_parts(plan, parts.clone(), number, staging)?;
                self.issue(Part::TeacherRows, plan)?;
                step::keep_rows(&mut Lanes::new(self, lanes), plan, number);
            }
            self.issue(Part::Offsets, plan)?;
        }
        for number in 0..own {
            self.send_parts(plan, parts.clone(), number, staging)?;
            // Between two graphs, for the rows of every part are kept at another address.
            step::take_rows(&mut Lanes::new(self, lanes), plan, number);
            let last = number + 1 == own && self.overlaps(plan);
            self.issue(if last { Part::LastMicroBatch } else { Part::MicroBatch }, plan)?;
            step::end_part(self, plan, number);
        }
        self.issue(Part::Commit, plan)?;
        // SAFETY: pinned, of that length, and read only after `reported`.
        unsafe { self.stream.download(staging.report[slot].address(), self.state(plan.monitor), 4 * monitor::LEN)? };
        staging.ends[slot] = staging.parts;
        self.stream.record(&staging.reported[slot])
    }

    /// Micro-batch `number` of every lane.
    fn send_parts<'a>(
        &mut self,
        plan: &Plan,
        parts: impl Iterator<Item = (&'a [f32], &'a [f32])>,
        number: usize,
        staging: &mut Staging,
    ) -> Result<()> {
        let of_lanes = parts.skip(number).step_by(plan.parts() / plan.pools.lanes);
        let sent = of_lanes.enumerate().try_for_each(|(lane, part)| {
            self.take_lane(lane);
            self.send_part(plan, part, staging)
        });
        self.take_lane(0);
        sent
    }

    /// Queues the copies of a micro-batch's stochastic-depth scales and pixels to where the plan has them.
    fn send_part(&mut self, plan: &Plan, (scales, values): (&[f32], &[f32]), staging: &mut Staging) -> Result<()> {
        let (pixels, drop) = (plan.pixels, plan.drop);
        let slot = staging.parts % 2;
        // The slot's last copy is done if its step is; within a step of many micro-batches the host keeps two ahead.
        if staging.parts >= staging.done + 2 {
            self.wait_for(&staging.copied[slot])?;
        }
        let host = staging.pinned[slot].get_mut();
        host[..values.len()].copy_from_slice(values);
        host[pixels.len()..][..scales.len()].copy_from_slice(scales);
        staging.copies.wait_for(&staging.consumed[slot])?;
        let staged = &staging.staged[slot];
        // SAFETY: pinned, of that length, and left alone until `copied`.
        unsafe { staging.copies.upload(staged.at, staging.pinned[slot].address(), staged.bytes)? };
        staging.copies.record(&staging.copied[slot])?;
        self.stream.wait_for(&staging.copied[slot])?;
        let arguments = args![self.act(pixels), staged.at, pixels.len() as i64];
        self.kernels.from_f32.launch(&self.stream, Shape::flat(pixels.len()), arguments)?;
        if !scales.is_empty() {
            self.stream.copy(self.state(drop), staged.at + 4 * pixels.len() as u64, 4 * scales.len())?;
        }
        self.stream.record(&staging.consumed[slot])?;
        staging.parts += 1;
        Ok(())
    }

    /// The monitor of the oldest of the last `queued` steps (one or two), once it has run.
    ///
    /// # Errors
    /// The device fails, or failed before, or no step was queued.
    pub fn take_report(&mut self, queued: usize) -> Result<[f32; monitor::LEN]> {
        self.check()?;
        let Some(mut staging) = self.staging.take() else { return Err(Error::new("no step was queued")) };
        let slot = (self.steps - queued) % 2;
        let came = self.wait_for(&staging.reported[slot]);
        let mut m = [0.0; monitor::LEN];
        if came.is_ok() {
            m.copy_from_slice(staging.report[slot].get());
            staging.done = staging.ends[slot];
        }
        self.staging = Some(staging);
        self.note(came);
        self.check().map(|()| m)
    }
}

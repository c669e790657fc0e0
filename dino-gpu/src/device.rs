//! The GPU as the trainer's device.

use crate::cuda::Card;
use crate::gpu::{Gpu, pools};
use crate::options::{Options, act_bytes};
use dino_host::device::{Device, QUEUE, Step};
use dino_host::error::{Error, Result};
use dino_kernel::mem::Pool;
use dino_kernel::plan::{Plan, Pools};
use dino_kernel::scalars::monitor;

impl Device for Gpu {
    type Options = Options;
    const KIND: &'static str = "cuda";
    /// Enough rows to fill a large card: ViT-S/16 with the published crops takes a batch of 64 at once.
    const MICRO_BATCH_TOKENS: usize = 65536;

    fn ready(_options: &Options) -> Result<()> {
        Card::get().map(|_| ())
    }

    fn element_bytes(options: &Options, pool: Pool) -> u64 {
        if pool == Pool::Acts { act_bytes(options.precision) as u64 } else { 4 }
    }

    fn memory(options: &Options, pools: Pools) -> Vec<(&'static str, u64)> {
        pools::memory(options, pools)
    }

    fn new(options: &Options, pools: Pools) -> Result<Gpu> {
        Gpu::create(options, pools)
    }

    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]) {
        self.put(pool, at, values);
    }

    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        self.take(pool, at, values);
    }

    fn sync(&mut self) -> Result<()> {
        self.wait()
    }

    fn name(&self) -> String {
        self.describe()
    }

    fn step(&mut self, plan: &Plan, step: &Step) -> Result<()> {
        let parts = step.parts.iter().map(|p| (&p.drop[..], p.pixels));
        self.run_step(plan, &step.hyper, parts)
    }

    fn report(&mut self, _plan: &Plan, queued: usize, wait: bool) -> Result<Option<[f32; monitor::LEN]>> {
        if queued > QUEUE {
            return Err(Error::new(format!("{queued} steps are queued, the queue holds {QUEUE}")));
        }
        // While one step is under way, the one before it has been left to finish: the host reads one step late.
        if queued == 0 || (queued < QUEUE && !wait) {
            return Ok(None);
        }
        self.take_report(queued).map(Some)
    }
}

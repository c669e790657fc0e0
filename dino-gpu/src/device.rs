//! The GPU as the trainer's device.

use crate::cuda::Card;
use crate::gpu::{Gpu, Sharing, pools};
use crate::nccl::engine::Nccl;
use crate::options::{Gpus, Options, act_bytes};
use dino_host::device::{Device, QUEUE, Step};
use dino_host::dist::launch::{Launch, Launcher};
use dino_host::dist::{Engine, Group};
use dino_host::error::{Error, Result};
use dino_kernel::mem::Pool;
use dino_kernel::plan::{Plan, Pools};
use dino_kernel::scalars::monitor;

/// The GPU of the `local`-th process of this machine.
fn number(options: &Options, local: usize) -> Result<u32> {
    let count = Card::count()?;
    let number = match &options.gpus {
        Some(Gpus::List(list)) => *list.get(local).ok_or_else(|| {
            Error::new(format!("process {local} of this machine has no GPU: --gpus names {}", list.len()))
                .hint("as many processes on a machine as GPUs")
        })?,
        // A launcher may leave each process one GPU to see, which is the first one to each.
        _ if count == 1 => 0,
        _ => local as u32,
    };
    if number >= count {
        return Err(Error::new(format!("there is no GPU {number}: the driver sees {count}")).hint(
            "numbers begin with 0, and CUDA_VISIBLE_DEVICES hides GPUs; as many processes on a machine as GPUs",
        ));
    }
    Ok(number)
}

impl Device for Gpu {
    type Options = Options;
    const KIND: &'static str = "cuda";
    /// Enough rows to fill a large card: ViT-S/16 with the published crops takes a batch of 64 at once.
    const MICRO_BATCH_TOKENS: usize = 65536;

    fn processes(options: &Options) -> Result<usize> {
        let processes = match &options.gpus {
            None => 1,
            Some(Gpus::All) => Card::count()? as usize,
            Some(Gpus::List(list)) => list.len(),
        };
        if processes > 1 {
            (0..processes).try_for_each(|local| number(options, local).map(drop))?; // for all of them, before they are started
        }
        Ok(processes)
    }

    fn engine(options: &Options, launch: &Launch) -> Result<Box<dyn Engine>> {
        let rank = launch.place.map_or(0, |(rank, _)| rank);
        let local = std::env::var("LOCAL_RANK").ok().filter(|_| launch.by == Launcher::Torchrun);
        Card::choose(number(options, local.and_then(|local| local.parse().ok()).unwrap_or(rank))?);
        Ok(Box::new(Nccl::join(launch)?))
    }

    fn ready(options: &Options, local: usize) -> Result<()> {
        Card::choose(number(options, local)?);
        Card::get().map(|_| ())
    }

    fn check() -> Option<Result<()>> {
        Some(crate::check::run())
    }

    fn element_bytes(options: &Options, pool: Pool) -> u64 {
        if pool == Pool::Acts { act_bytes(options.precision) as u64 } else { 4 }
    }

    fn memory(options: &Options, pools: Pools) -> Vec<(&'static str, u64)> {
        pools::memory(options, pools)
    }

    fn sum_memory(ranks: usize, _machines: usize) -> u64 {
        if ranks > 1 { Sharing::MEMORY } else { 0 }
    }

    fn cannot(plan: &Plan) -> Option<&'static str> {
        let groups = plan.table.batch_statistics() && plan.sharding.ranks > 1 && !plan.shares_statistics();
        groups.then_some("share batch norms over groups of images (--bn-group) among processes")
    }

    fn new(options: &Options, pools: Pools) -> Result<Gpu> {
        Gpu::create(options, pools)
    }

    fn join(&mut self, group: Group) -> Result<()> {
        if group.size() > 1 {
            self.share(group)?;
        }
        Ok(())
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

//! The seam between the trainer and the hardware: what a backend offers beyond the ops.

use crate::dist::launch::Launch;
use crate::dist::{self, Engine, Group};
use crate::error::{Error, Result};
use dino_kernel::backend::{Memory, Update};
use dino_kernel::mem::Pool;
use dino_kernel::plan::{Plan, Pools};
use dino_kernel::scalars::{hyper, monitor};
use dino_kernel::step;

/// Rows of the token matrix that a micro-batch chosen for the user makes at most, on a CPU: enough for the matmuls to run at full
/// speed, few enough for the activations of the published model to stay below two gigabytes.
pub const MICRO_BATCH_TOKENS: usize = 8192;

/// Steps that may be queued before the report of the oldest must have been taken: the device works on one while the host makes ready
/// the next.
pub const QUEUE: usize = 2;

/// The data of one optimization step.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// This step's derived numbers.
    pub hyper: [f32; hyper::LEN],
    /// This process's micro-batches, as many as the plan has parts.
    pub parts: Vec<Part<'a>>,
}

/// The data of one micro-batch.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// The stochastic-depth scales, as `plan.drop` lays them out; empty without stochastic depth.
    pub drop: Vec<f32>,
    /// The crops, as `plan.pixels` lays them out.
    pub pixels: &'a [f32],
}

/// A backend that owns its pools. Training, evaluation and checkpoints are generic over it.
pub trait Device: Update + Memory + Sized {
    /// Flags of this device on the command line, beside everyone's. (`--device` is taken, by `plan`.)
    type Options: clap::Args + Clone + Default + std::fmt::Debug + Send + Sync + 'static;
    /// What `plan --device` and errors call it: "cpu", "cuda".
    const KIND: &'static str;
    /// Tokens that a micro-batch makes at most where the user leaves its size to the program.
    const MICRO_BATCH_TOKENS: usize = MICRO_BATCH_TOKENS;

    /// Whether a training step keeps little and computes it again: three eighths less memory for activations, for two more passes over
    /// them a block. Off where memory is plenty, or where an op made again from rounded numbers would not give the same bits.
    const RECOMPUTE: bool = false;

    /// How many processes these options ask for: where it is more than one and no launcher has started them, the program does.
    ///
    /// # Errors
    /// The devices that they name are not there.
    fn processes(_options: &Self::Options) -> Result<usize> {
        Ok(1)
    }

    /// What moves bytes between the processes of a launcher that brings no MPI.
    ///
    /// # Errors
    /// The processes cannot be joined.
    fn engine(_options: &Self::Options, launch: &Launch) -> Result<Box<dyn Engine>> {
        Ok(Box::new(dist::sockets::Sockets::join(launch)?))
    }

    /// Whether the device is there, for a process that is the `local`-th (from 0) of its group on this machine. Called first of all:
    /// nothing has been opened or written yet.
    ///
    /// # Errors
    /// The device is missing, or cannot be used with these options.
    fn ready(_options: &Self::Options, _local: usize) -> Result<()> {
        Ok(())
    }

    /// Prints what the device is and how its ops agree with the reference, for `check`; None on a CPU, which has a check of its own.
    ///
    /// An error: the device cannot be used, or gives other numbers.
    fn check() -> Option<Result<()>> {
        None
    }

    /// Bytes of an element of a pool.
    fn element_bytes(_options: &Self::Options, _pool: Pool) -> u64 {
        4
    }

    /// What [`Device::new`] will allocate for these pools, by name, in bytes. Allocates nothing.
    fn memory(options: &Self::Options, pools: Pools) -> Vec<(&'static str, u64)>;

    /// Bytes that every worker thread takes for itself at most while it computes with these pools: all devices of a process share
    /// them, so they are no part of [`Device::memory`].
    fn thread_scratch(_pools: Pools) -> u64 {
        0
    }

    /// Bytes that [`Device::join`] allocates for sums over so many processes on so many machines.
    fn sum_memory(ranks: usize, machines: usize) -> u64 {
        4 * dist::scratch_len(ranks, machines) as u64
    }

    /// What of a plan the device cannot do, if anything.
    fn cannot(_plan: &Plan) -> Option<&'static str> {
        None
    }

    /// Allocates the pools, zeroed.
    ///
    /// # Errors
    /// The memory is not available; the error states how much was requested.
    fn new(options: &Self::Options, pools: Pools) -> Result<Self>;

    /// Joins the processes that share every batch, and with it its plan's shards: from then on a step ends with the sum over them.
    ///
    /// # Errors
    /// The device only trains alone, or the group cannot be joined.
    fn join(&mut self, group: Group) -> Result<()> {
        match group.size() {
            1 => Ok(()),
            n => Err(Error::new(format!("device {} trains in one process only, there are {n}", Self::KIND))
                .hint("start it without a launcher")),
        }
    }

    /// Host to device. Queued: the source may be reused at once, later ops see the new values.
    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]);

    /// Device to host; waits for the ops before it. What it gives after a device error means nothing: [`Device::sync`] reports it.
    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]);

    /// Waits for everything queued, and reports a device error that happened on the way. After one the device is lost: every later
    /// call of this, of [`Device::step`] and of [`Device::report`] is an error too.
    ///
    /// # Errors
    /// A queued op failed, now or before.
    fn sync(&mut self) -> Result<()>;

    /// For logs: what this is.
    fn name(&self) -> String;

    /// What the bits of a result depend on: hardware, libraries and precision, not the number of threads.
    fn arithmetic(&self) -> String {
        self.name()
    }

    /// Issues the ops of `work` from the thread where they cost least: a CPU's is one of its pool, as one from outside would be put
    /// to sleep and woken for every op.
    fn run(&mut self, work: impl FnOnce(&mut Self) + Send) {
        work(self);
    }

    /// Queues one full optimization step; `step` may be reused at once.
    ///
    /// # Errors
    /// The device is lost, or the step cannot be queued.
    fn step(&mut self, plan: &Plan, step: &Step) -> Result<()> {
        self.run(|device| issue_step(device, plan, step, Self::upload));
        Ok(())
    }

    /// The monitor of the oldest of the `queued` steps whose report has not been taken (at most [`QUEUE`]); `None` if there is no such
    /// step, or while it may still be running, unless `wait`.
    ///
    /// This default is for a device that works at once: it always has it.
    ///
    /// # Errors
    /// The device reports an error.
    fn report(&mut self, plan: &Plan, queued: usize, _wait: bool) -> Result<Option<[f32; monitor::LEN]>> {
        if queued == 0 {
            return Ok(None);
        }
        self.sync()?;
        let mut found = [0.0; monitor::LEN];
        self.download(Pool::State, plan.monitor.0.at, &mut found);
        Ok(Some(found))
    }
}

/// Issues the ops of one full step to a backend; `put` uploads.
pub fn issue_step<O: Update>(o: &mut O, plan: &Plan, step: &Step, mut put: impl FnMut(&mut O, Pool, usize, &[f32])) {
    put(o, Pool::State, plan.hyper.0.at, &step.hyper);
    step::begin(o, plan);
    step::accumulate(o, plan, |o, part| {
        put(o, Pool::State, plan.drop.0.at, &step.parts[part].drop);
        put(o, Pool::Acts, plan.pixels.0.at, step.parts[part].pixels);
    });
    step::reduce(o, plan);
    step::commit(o, plan);
}

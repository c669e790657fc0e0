//! The CPU as the trainer's device.

use super::{Cpu, Lane, NoOptions, attention, conv, loss};
use crate::device::{self, Device, Step};
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::linalg::gemm;
use dino_kernel::mem::Pool;
use dino_kernel::plan::{Plan, Pools};

impl Device for Cpu {
    type Options = NoOptions;
    const KIND: &'static str = "cpu";
    /// Larger micro-batches are faster: see the table in BENCHMARKS.md.
    const RECOMPUTE: bool = true;

    fn memory(_: &NoOptions, n: Pools) -> Vec<(&'static str, u64)> {
        // One buffer serves all ops.
        let (of_loss, of_maps) = (loss::scratch_len(n.loss), conv::scratch_len(n.filters).max(n.sums));
        let scratch = match of_loss > of_maps {
            true => ("scratch of the loss", of_loss),
            false => ("scratch of convolutions and batch norms", of_maps),
        };
        let mut pools = vec![
            ("weights", n.weights),
            ("gradients", n.lanes * n.grads),
            ("optimizer state", n.slots),
            ("activations", n.lanes * n.acts),
            ("statistics", n.lanes * n.stats),
            ("state", n.lanes * n.state),
            scratch,
        ];
        if n.exchanged > 0 {
            pools.push(("exchanged statistics", n.exchanged));
        }
        pools.into_iter().map(|(name, len)| (name, 4 * len as u64)).collect()
    }

    fn thread_scratch(pools: Pools) -> u64 {
        let scratch =
            attention::scratch_len(pools).max(gemm::scratch_len(pools.widest)).max(loss::transposed_len(pools.loss));
        let gathered = if pools.filters > 0 { conv::buffer_len() } else { 0 };
        4 * (scratch + gathered + gemm::packed_len(pools.widest)) as u64
    }

    fn new(_: &NoOptions, pools: Pools) -> Result<Cpu> {
        // Zero pages of the system take memory only once they are accessed. (Asking for huge ones made no difference to a step.)
        let fits = |len: usize| {
            let mut reserved = Vec::<f32>::new();
            let found = reserved.try_reserve_exact(len).is_ok();
            std::hint::black_box(reserved.as_ptr()); // a reservation that is never read may be left out
            found
        };
        let zeros = |len: usize| {
            match fits(len) {
            true => Ok(vec![0.0; len]),
            false => Err(Error::new(format!(
                "not enough memory: the plan takes {:.2} GiB",
                Cpu::memory(&NoOptions {}, pools).iter().map(|item| item.1).sum::<u64>() as f64 / f64::powi(2.0, 30)
            ))
            .hint("a smaller --micro-batch or --stream-crops takes less, and --mem-limit chooses; `dino-host plan` shows what takes how much")),
        }
        };
        Ok(Cpu {
            weights: zeros(pools.weights)?,
            grads: zeros(pools.grads)?,
            slots: zeros(pools.slots)?,
            acts: zeros(pools.acts)?,
            stats: zeros(pools.stats)?,
            state: zeros(pools.state)?,
            scratch: zeros(loss::scratch_len(pools.loss))?,
            lanes: Lane::several(pools, &zeros)?,
            entered: 0,
            group: Group::default(),
            exchanged: Vec::new(),
            moves: Default::default(),
            failure: None,
        })
    }

    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]) {
        self.pool(pool)[at..][..values.len()].copy_from_slice(values);
    }

    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        let len = values.len();
        values.copy_from_slice(&self.pool(pool)[at..][..len]);
    }

    fn run(&mut self, work: impl FnOnce(&mut Self) + Send) {
        rayon::scope(|_| work(self));
    }

    fn join(&mut self, group: Group) -> Result<()> {
        self.group = group;
        Ok(())
    }

    fn step(&mut self, plan: &Plan, step: &Step) -> Result<()> {
        self.sync()?;
        self.run(|cpu| device::issue_step(cpu, plan, step, Self::upload));
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        match self.failure {
            None => Ok(()),
            Some(e) => Err(self.group.explain(e)),
        }
    }

    fn name(&self) -> String {
        format!("{}, {} threads", self.arithmetic(), rayon::current_num_threads())
    }

    fn arithmetic(&self) -> String {
        format!("CPU, {}", gemm::instructions())
    }
}

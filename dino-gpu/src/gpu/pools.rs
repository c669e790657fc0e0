//! The pools in device memory: what they take, and the way there and back.

use super::Gpu;
use crate::args;
use crate::cuda::Buffer;
use crate::kernels::Shape;
use crate::options::{Options, Precision, act_bytes};
use dino_host::error::Result;
use dino_kernel::backend::Memory;
use dino_kernel::mem::Pool;
use dino_kernel::plan::Pools;
use half::bf16;

/// Bytes that so many lanes of so many bytes take, each beginning where matmuls may.
pub fn in_lanes(bytes: usize, lanes: usize) -> usize {
    if lanes == 1 { bytes } else { bytes.next_multiple_of(256) * lanes }
}

/// What [`Gpu::create`] and the first step will allocate for these pools, by name. Not counted: the driver's context, a few hundred
/// MiB, and the parameter table's chunks, a ten-thousandth of the weights.
pub fn memory(options: &Options, pools: Pools) -> Vec<(&'static str, u64)> {
    let f32s = |n: usize| 4 * n as u64;
    let mut list = vec![
        ("weights", f32s(pools.weights)),
        ("gradients", in_lanes(4 * pools.grads, pools.lanes) as u64),
        ("optimizer state", f32s(pools.slots)),
        ("activations", in_lanes(pools.acts * act_bytes(options.precision), pools.lanes) as u64),
        ("stats", in_lanes(4 * pools.stats, pools.lanes) as u64),
        ("state", in_lanes(4 * pools.state, pools.lanes) as u64),
        ("workspace", (options.workspace << 10) as u64),
        ("input, staged twice", 2 * f32s(pools.input)),
    ];
    if pools.exchanged > 0 {
        list.push(("exchanged statistics", f32s(pools.exchanged)));
    }
    if pools.filters + pools.sums > 0 {
        list.push(("scratch of convolutions and batch norms", f32s(pools.filters + pools.sums)));
    }
    if options.precision == Precision::Bf16 {
        list.push(("weights as bf16", 2 * pools.weights as u64));
    }
    list
}

impl Gpu {
    fn buffer(&self, pool: Pool) -> &Buffer {
        match pool {
            Pool::Weights => &self.weights,
            Pool::Grads => &self.grads,
            Pool::Slots => &self.slots,
            Pool::Acts => &self.acts,
            Pool::Stats => &self.stats,
            Pool::State => &self.state,
        }
    }

    /// Where a pool begins, of the lane that is entered.
    fn base(&self, pool: Pool) -> u64 {
        let buffer = self.buffer(pool);
        if matches!(pool, Pool::Weights | Pool::Slots) { buffer.at } else { self.of_lane(buffer) }
    }

    fn element(&self, pool: Pool) -> usize {
        if pool == Pool::Acts { self.act_bytes() } else { 4 }
    }

    /// In front of a copy from or to memory that is not pinned, for which the driver itself waits: without end, if other ranks do not come.
    fn before_copy(&self) -> Result<()> {
        if self.sharing.is_some() { self.drain() } else { Ok(()) }
    }

    fn send(&self, pool: Pool, at: usize, values: &[f32]) -> Result<()> {
        self.before_copy()?;
        let element = self.element(pool);
        let to = self.base(pool) + (at * element) as u64;
        if element == 2 {
            let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            // SAFETY: the vector has those bytes and outlives the wait.
            unsafe { self.stream.upload(to, values.as_ptr().cast(), 2 * values.len())? };
            return self.drain();
        }
        // SAFETY: as above.
        unsafe { self.stream.upload(to, values.as_ptr().cast(), 4 * values.len())? };
        self.drain()?;
        if pool == Pool::Weights && self.weights_bf16.bytes > 0 {
            let arguments = args![self.weights_bf16.at + 2 * at as u64, to, values.len() as i64];
            self.kernels.shadow_weights.launch(&self.stream, Shape::flat(values.len()), arguments)?;
        }
        Ok(())
    }

    fn fetch(&self, pool: Pool, at: usize, values: &mut [f32]) -> Result<()> {
        self.before_copy()?;
        let element = self.element(pool);
        let from = self.base(pool) + (at * element) as u64;
        if element == 2 {
            let mut halves = vec![bf16::ZERO; values.len()];
            // SAFETY: the vector has those bytes and outlives the wait.
            unsafe { self.stream.download(halves.as_mut_ptr().cast(), from, 2 * halves.len())? };
            self.drain()?;
            values.iter_mut().zip(halves).for_each(|(v, h)| *v = h.to_f32());
            return Ok(());
        }
        // SAFETY: the slice has those bytes and outlives the wait.
        unsafe { self.stream.download(values.as_mut_ptr().cast(), from, 4 * values.len())? };
        self.drain()
    }

    /// Host to device; waits, for memory that is not pinned must stay until it was read. Steps are staged in pinned memory.
    pub fn put(&mut self, pool: Pool, at: usize, values: &[f32]) {
        if !values.is_empty() {
            let r = self.send(pool, at, values);
            self.note(r);
        }
    }

    /// Device to host; waits. After an error, NaN.
    pub fn take(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        if values.is_empty() {
            return;
        }
        if let Err(e) = self.fetch(pool, at, values) {
            self.fail(e);
            values.fill(f32::NAN);
        }
    }
}

impl Memory for Gpu {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        let mut values = vec![0.0; out.len()];
        self.take(pool, at, &mut values);
        out.iter_mut().zip(values).for_each(|(o, v)| *o = v as f64);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        self.put(pool, at, &values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        let n = self.pools;
        match pool {
            Pool::Weights => n.weights,
            Pool::Grads => n.grads,
            Pool::Slots => n.slots,
            Pool::Acts => n.acts,
            Pool::Stats => n.stats,
            Pool::State => n.state,
        }
    }
}

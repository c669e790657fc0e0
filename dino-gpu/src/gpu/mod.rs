//! The CUDA backend: pools in device memory, ops as launches on one stream, a step as graphs that are captured once and replayed.

mod graph;
pub(crate) mod params;
pub(crate) mod pools;
mod sharing;
mod staging;

use crate::cuda::cublaslt::CublasLt;
use crate::cuda::{Buffer, Card, Graph, Stream};
use crate::kernels::{Argument, Kernel, Kernels, Shape};
use crate::matmul::Matmul;
use crate::options::{Launch, Options, Overlap, Precision, act_bytes};
use dino_host::error::{Error, Result};
use dino_kernel::mem::{Act, Stat, State, Weight};
use dino_kernel::optim::{Optimizer, SLOTS};
use dino_kernel::plan::Pools;
use params::DeviceTable;
use pools::{in_lanes, memory};
pub use sharing::Sharing;
use staging::Staging;
use std::sync::{Mutex, OnceLock};

/// What is left free for the driver: graphs, cuBLASLt's own modules, the parameter table.
const SLACK: u64 = 256 << 20;

/// The pools on a GPU, and everything a step needs there.
pub struct Gpu {
    pub(crate) card: &'static Card,
    pub(crate) kernels: &'static Kernels,
    pub(crate) precision: Precision,
    launch: Launch,
    stream: Stream,
    pools: Pools,
    weights: Buffer,
    /// The bf16 copy of the weights, for matmuls; empty in f32.
    weights_bf16: Buffer,
    grads: Buffer,
    slots: Buffer,
    acts: Buffer,
    stats: Buffer,
    state: Buffer,
    workspace: Buffer,
    /// The shards that go through a step side by side, each with gradients, activations, stats and state of its own; the one that ops mean.
    lanes: usize,
    lane: usize,
    /// What shards exchange for a batch norm.
    exchanged: Buffer,
    /// A convolution's filter as a matmul's factor, or a part of its gradient; a batch norm's partial sums. Empty without any.
    filters: Buffer,
    sums: Buffer,
    /// cuBLASLt, where matmuls go there; it has the workspace's end.
    pub(crate) cublaslt: Option<CublasLt>,
    /// Whether launches are being recorded.
    capturing: bool,
    table: Option<DeviceTable>,
    staging: Option<Staging>,
    graphs: Option<Vec<Option<Graph>>>,
    overlap: Overlap,
    /// After the graphs, which use its communicator.
    sharing: Option<Sharing>,
    /// Steps queued so far.
    steps: usize,
    /// The first thing that went wrong; ops cannot fail, so it waits for `sync`.
    first_error: Option<Error>,
}

/// The kernels of a precision, loaded once.
fn kernels(card: &'static Card, precision: Precision) -> Result<&'static Kernels> {
    static LOADED: [OnceLock<&'static Kernels>; 2] = [OnceLock::new(), OnceLock::new()];
    static LOADING: Mutex<()> = Mutex::new(());
    let slot = &LOADED[precision as usize];
    let _one = LOADING.lock().unwrap_or_else(|e| e.into_inner());
    if slot.get().is_none() {
        let suffix = if precision == Precision::Bf16 { "_bf16" } else { "_f32" };
        let _ = slot.set(Box::leak(Box::new(Kernels::new(card, suffix)?)));
    }
    Ok(slot.get().expect("set above"))
}

impl Gpu {
    /// Allocates the pools, zeroed.
    ///
    /// # Errors
    /// There is no GPU, the pools do not fit its free memory, or cuBLASLt is asked for and is not there.
    pub fn create(options: &Options, pools: Pools) -> Result<Gpu> {
        let card = Card::get()?;
        let wanted: u64 = memory(options, pools).iter().map(|(_, bytes)| bytes).sum();
        let (free, total) = card.free()?;
        if wanted + SLACK > free {
            let gib = |b: u64| b as f64 / f64::powi(2.0, 30);
            return Err(Error::new(format!(
                "not enough memory on the GPU: the plan takes {:.2} GiB, {} has {:.2} of {:.2} GiB free",
                gib(wanted),
                card.name,
                gib(free),
                gib(total)
            ))
            .hint("a smaller --micro-batch or --stream-crops takes less, and --mem-limit chooses; `dino-gpu plan` shows what takes how much"));
        }
        let floats = |n: usize| Buffer::new(4 * n);
        let workspace = Buffer::new(options.workspace << 10)?;
        let cublaslt = CublasLt::open(options.gemm, options.precision, (workspace.at, workspace.bytes))?;
        let gpu = Gpu {
            card,
            kernels: kernels(card, options.precision)?,
            precision: options.precision,
            launch: options.launch,
            stream: Stream::new()?,
            pools,
            weights: floats(pools.weights)?,
            weights_bf16: Buffer::new(if options.precision == Precision::Bf16 { 2 * pools.weights } else { 0 })?,
            grads: Buffer::new(in_lanes(4 * pools.grads, pools.lanes))?,
            slots: floats(pools.slots)?,
            acts: Buffer::new(in_lanes(pools.acts * act_bytes(options.precision), pools.lanes))?,
            stats: Buffer::new(in_lanes(4 * pools.stats, pools.lanes))?,
            state: Buffer::new(in_lanes(4 * pools.state, pools.lanes))?,
            lanes: pools.lanes,
            lane: 0,
            exchanged: floats(pools.exchanged)?,
            workspace,
            filters: floats(pools.filters)?,
            sums: floats(pools.sums)?,
            cublaslt,
            capturing: false,
            table: None,
            staging: None,
            graphs: None,
            overlap: options.overlap,
            sharing: None,
            steps: 0,
            first_error: None,
        };
        for b in [&gpu.weights, &gpu.weights_bf16, &gpu.grads, &gpu.slots, &gpu.acts, &gpu.stats, &gpu.state] {
            gpu.stream.clear(b.at, b.bytes)?;
        }
        Ok(gpu)
    }

    /// For logs: card, driver, precision, and what runs the matmuls.
    pub(crate) fn describe(&self) -> String {
        let (c, precision) = (self.card, if self.precision == Precision::Bf16 { "bf16" } else { "f32" });
        let (major, minor) = c.capability;
        let matmuls = self.cublaslt.as_ref().map_or("own kernels".into(), |p| format!("cuBLASLt {}", p.version()));
        let (driver, minor_driver) = (c.driver / 1000, c.driver % 1000 / 10);
        format!(
            "{}, compute capability {major}.{minor}, CUDA {driver}.{minor_driver}, {precision}, matmuls by {matmuls}",
            c.name
        )
    }

    /// Matmuls that went to cuBLASLt so far; one that is captured counts once.
    pub fn library_matmuls(&self) -> usize {
        self.cublaslt.as_ref().map_or(0, CublasLt::launched)
    }

    // Addresses of handles.

    pub(crate) fn act_bytes(&self) -> usize {
        act_bytes(self.precision)
    }

    pub(crate) fn act(&self, a: Act) -> u64 {
        self.act_at(a, 0)
    }

    pub(crate) fn act_at(&self, a: Act, from: usize) -> u64 {
        self.of_lane(&self.acts) + ((a.0.at + from) * self.act_bytes()) as u64
    }

    pub(crate) fn stat(&self, s: Stat) -> u64 {
        self.stat_at(s, 0)
    }

    pub(crate) fn stat_at(&self, s: Stat, from: usize) -> u64 {
        self.of_lane(&self.stats) + 4 * (s.0.at + from) as u64
    }

    pub(crate) fn state(&self, s: State) -> u64 {
        self.of_lane(&self.state) + 4 * s.0.at as u64
    }

    /// A parameter in f32.
    pub(crate) fn weight(&self, w: Weight) -> u64 {
        self.weights.at + 4 * w.0.at as u64
    }

    /// A parameter as a factor of a matmul: in the type of the activations.
    pub(crate) fn factor(&self, w: Weight) -> u64 {
        match self.precision {
            Precision::F32 => self.weight(w),
            Precision::Bf16 => self.weights_bf16.at + 2 * w.0.at as u64,
        }
    }

    pub(crate) fn grad(&self, w: Weight) -> u64 {
        self.of_lane(&self.grads) + 4 * w.0.at as u64
    }

    /// All gradients of a lane: address, bytes.
    pub(crate) fn all_grads(&self) -> (u64, usize) {
        (self.of_lane(&self.grads), self.grads.bytes / self.lanes)
    }

    /// Where a lane's part of a buffer begins.
    fn of_lane(&self, buffer: &Buffer) -> u64 {
        buffer.at + (self.lane * (buffer.bytes / self.lanes)) as u64
    }

    /// How many lanes there are.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes
    }

    /// The ops after this one work on this lane.
    pub(crate) fn take_lane(&mut self, lane: usize) {
        assert!(lane < self.lanes, "lane {lane} of {}", self.lanes);
        self.lane = lane;
    }

    /// Memory for what shards exchange for a batch norm: address, bytes.
    pub(crate) fn exchanged(&self) -> (u64, usize) {
        (self.exchanged.at, self.exchanged.bytes)
    }

    /// An optimizer's arrays of state for a network of `len` elements; 0 where it keeps no more.
    pub(crate) fn slots(&self, rule: Optimizer, len: usize) -> [u64; SLOTS] {
        std::array::from_fn(|i| if i < rule.slots().len() { self.slots.at + 4 * (i * len) as u64 } else { 0 })
    }

    /// The weights from element `from` on, in f32 and as bf16 (0 where there are none).
    pub(crate) fn networks(&self, from: usize) -> [u64; 2] {
        let weights_bf16 = if self.weights_bf16.bytes > 0 { self.weights_bf16.at + 2 * from as u64 } else { 0 };
        [self.weights.at + 4 * from as u64, weights_bf16]
    }

    pub(crate) fn workspace_at(&self) -> u64 {
        self.workspace.at
    }

    /// Without what is cuBLASLt's.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.bytes - self.cublaslt.as_ref().map_or(0, CublasLt::scratch)
    }

    /// Memory for the largest filter: address, bytes.
    pub(crate) fn filters(&self) -> (u64, usize) {
        (self.filters.at, self.filters.bytes)
    }

    /// Memory for a batch norm's partial sums: address, bytes.
    pub(crate) fn sums(&self) -> (u64, usize) {
        (self.sums.at, self.sums.bytes)
    }

    // Queueing.

    /// Keeps the first error.
    pub(crate) fn fail(&mut self, e: Error) {
        self.first_error.get_or_insert(e);
    }

    /// An op needs this many bytes of workspace, and there are fewer.
    pub(crate) fn too_small(&mut self, bytes: usize) {
        let message = format!("an op needs {bytes} bytes of workspace, there are {}", self.workspace_bytes());
        self.fail(Error::new(message).hint("a larger --workspace, a smaller --micro-batch or --stream-crops"));
    }

    fn note(&mut self, r: Result<()>) {
        if let Err(e) = r {
            self.fail(e);
        }
    }

    pub(crate) fn launch(&mut self, kernel: &'static Kernel, shape: Shape, arguments: &[Argument]) {
        let r = kernel.launch(&self.stream, shape, arguments);
        self.note(r);
    }

    /// Gives a matmul to cuBLASLt; false where that is not used or does not take it. Nothing may be made during a capture, so a shape
    /// that is met there for the first time is not taken.
    pub(crate) fn by_library(&mut self, matmul: Matmul, [c, a, b, bias]: [u64; 4]) -> bool {
        let Some(cublaslt) = &mut self.cublaslt else { return false };
        // The library wants the bias in the result's type, which the weights are kept in too.
        if matmul.bias && matmul.f32_out {
            return false;
        }
        let bias = if matmul.bias { self.weights_bf16.at + (bias - self.weights.at) / 2 } else { 0 };
        let r = cublaslt.multiply(&self.stream, matmul, [c, a, b, bias], !self.capturing);
        r.unwrap_or_else(|e| {
            self.fail(e);
            true
        })
    }

    pub(crate) fn copy_bytes(&mut self, to: u64, from: u64, bytes: usize) {
        let r = self.stream.copy(to, from, bytes);
        self.note(r);
    }

    pub(crate) fn clear_bytes(&mut self, at: u64, bytes: usize) {
        let r = self.stream.clear(at, bytes);
        self.note(r);
    }

    // Host and device.

    /// Waits for everything queued.
    ///
    /// # Errors
    /// The device fails, or failed before: the first error ever.
    pub fn wait(&mut self) -> Result<()> {
        let r = self.drain();
        self.note(r);
        self.check()
    }

    /// The first error. It stays: what a device holds after one means nothing.
    fn check(&self) -> Result<()> {
        self.first_error.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.leave();
        // Nothing may run in memory that is about to go; a device that is lost runs nothing.
        let _ = self.stream.wait();
        if let Some(staging) = &self.staging {
            let _ = staging.wait();
        }
    }
}

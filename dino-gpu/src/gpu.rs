//! The CUDA backend: pools in device memory, words as launches on one stream, a step as graphs that are captured once and replayed.

mod feed;

use crate::args;
use crate::cublaslt::Products;
use crate::cuda::{Buffer, Card, Graph, Stream};
use crate::gemm::Product;
use crate::kernels::{Argument, Kernel, Kernels, Shape};
use dino_host::error::{Error, Result};
use dino_kernel::backend::Memory;
use dino_kernel::mem::{Act, Pool, Stat, State, Weight};
use dino_kernel::params::{ParamTable, Role, Spec};
use dino_kernel::plan::Pools;
use feed::Feed;
use half::bf16;
use std::sync::{Mutex, OnceLock};

/// What activations, and the weights that meet them in a product, are kept as. Statistics, gradients of weights, weights and
/// optimiser are f32 in either.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Precision {
    #[default]
    Bf16,
    F32,
}

/// How a step reaches the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Launch {
    /// Captured once, replayed.
    #[default]
    Graph,
    /// Kernel by kernel.
    Direct,
}

/// What runs the products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Gemm {
    /// cuBLASLt in bf16 where it is found, else own kernels.
    #[default]
    Auto,
    /// Own kernels: the bits depend on no library.
    Own,
    /// cuBLASLt, or an error.
    Cublaslt,
}

/// Flags of the GPU.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Activations and products: bf16 on the tensor cores, or f32 for tight agreement with the CPU
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// How a step is launched
    #[arg(long, value_enum, default_value_t = Launch::Graph)]
    pub launch: Launch,
    /// Partial sums and tiles of the loss, KiB; their order, and so the last bits of a run, depends on it
    #[arg(long, value_name = "KIB", default_value_t = 64 << 10, value_parser = workspace)]
    pub workspace: usize,
    /// What runs the products
    #[arg(long, value_enum, default_value_t = Gemm::Auto)]
    pub gemm: Gemm,
}

/// A workspace that holds the partial sums of any word.
fn workspace(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(kib @ 64..=4_194_304) => Ok(kib),
        _ => Err("between 64 and 4194304 KiB".into()),
    }
}

impl Default for Options {
    fn default() -> Options {
        Options { precision: Precision::Bf16, launch: Launch::Graph, workspace: 64 << 10, gemm: Gemm::Auto }
    }
}

/// The pools on a GPU, and everything a step needs there.
pub struct Gpu {
    pub(crate) card: &'static Card,
    pub(crate) kernels: &'static Kernels,
    pub(crate) precision: Precision,
    launch: Launch,
    stream: Stream,
    pools: Pools,
    weights: Buffer,
    /// The weights as bf16, for products; empty in f32.
    shadow: Buffer,
    grads: Buffer,
    moments: Buffer,
    acts: Buffer,
    stats: Buffer,
    state: Buffer,
    workspace: Buffer,
    /// cuBLASLt, where products go there; it has the workspace's end.
    pub(crate) products: Option<Products>,
    /// Whether launches are being recorded.
    capturing: bool,
    optimiser: Option<(Vec<Spec>, Optimiser)>,
    feed: Option<Feed>,
    graphs: Option<[Graph; 3]>,
    /// Steps queued so far.
    steps: usize,
    /// The first thing that went wrong; words cannot fail, so it waits for `sync`.
    fault: Option<Error>,
}

/// The parameter table on the device, in pieces of equal work.
struct Optimiser {
    pieces: Pieces,
    _memory: [Buffer; 5],
}

/// Addresses and numbers for the launches over the flat pools.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    pub pieces: u64,
    pub first: u64,
    pub squares: u64,
    pub tensor_squares: u64,
    pub factors: u64,
    pub count: usize,
    pub tensors: usize,
}

/// A piece as `optim.cu` has it.
#[repr(C)]
struct Piece {
    at: i64,
    len: i32,
    tensor: i32,
    flags: i32,
    pad: i32,
}

/// Elements of a piece: 64 a thread.
const PIECE: usize = 1 << 14;

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

/// Bytes of an activation.
pub fn act_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

/// What [`Gpu::create`] and the first step will allocate for these pools, by name. Not counted: the driver's context, a few hundred
/// MiB, and the parameter table's pieces, a ten-thousandth of the weights.
pub fn memory(options: &Options, pools: Pools) -> Vec<(&'static str, u64)> {
    let f32s = |n: usize| 4 * n as u64;
    let mut list = vec![
        ("weights", f32s(pools.weights)),
        ("gradients", f32s(pools.grads)),
        ("moments", f32s(pools.moments)),
        ("activations", (pools.acts * act_bytes(options.precision)) as u64),
        ("stats", f32s(pools.stats)),
        ("state", f32s(pools.state)),
        ("workspace", (options.workspace << 10) as u64),
        ("input, staged twice", 2 * f32s(pools.input)),
    ];
    if options.precision == Precision::Bf16 {
        list.push(("weights as bf16", 2 * pools.weights as u64));
    }
    list
}

/// What is left free for the driver: graphs, cuBLASLt's own modules, the parameter table.
const SLACK: u64 = 256 << 20;

impl Gpu {
    /// Allocates the pools, zeroed.
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
        let products = Products::open(options.gemm, options.precision, (workspace.at, workspace.bytes))?;
        let gpu = Gpu {
            card,
            kernels: kernels(card, options.precision)?,
            precision: options.precision,
            launch: options.launch,
            stream: Stream::new()?,
            pools,
            weights: floats(pools.weights)?,
            shadow: Buffer::new(if options.precision == Precision::Bf16 { 2 * pools.weights } else { 0 })?,
            grads: floats(pools.grads)?,
            moments: floats(pools.moments)?,
            acts: Buffer::new(pools.acts * act_bytes(options.precision))?,
            stats: floats(pools.stats)?,
            state: floats(pools.state)?,
            workspace,
            products,
            capturing: false,
            optimiser: None,
            feed: None,
            graphs: None,
            steps: 0,
            fault: None,
        };
        for b in [&gpu.weights, &gpu.shadow, &gpu.grads, &gpu.moments, &gpu.acts, &gpu.stats, &gpu.state] {
            gpu.stream.clear(b.at, b.bytes)?;
        }
        Ok(gpu)
    }

    /// For logs: card, driver, precision, and what runs the products.
    pub(crate) fn describe(&self) -> String {
        let (c, precision) = (self.card, if self.precision == Precision::Bf16 { "bf16" } else { "f32" });
        let (major, minor) = c.capability;
        let products = self.products.as_ref().map_or("own kernels".into(), |p| format!("cuBLASLt {}", p.version()));
        let (driver, minor_driver) = (c.driver / 1000, c.driver % 1000 / 10);
        format!(
            "{}, compute capability {major}.{minor}, CUDA {driver}.{minor_driver}, {precision}, products by {products}",
            c.name
        )
    }

    /// Products that went to cuBLASLt so far; one that is captured counts once.
    pub fn library_products(&self) -> usize {
        self.products.as_ref().map_or(0, Products::launched)
    }

    // Addresses of handles.

    pub(crate) fn act_bytes(&self) -> usize {
        act_bytes(self.precision)
    }

    pub(crate) fn act(&self, a: Act) -> u64 {
        self.act_at(a, 0)
    }

    pub(crate) fn act_at(&self, a: Act, from: usize) -> u64 {
        self.acts.at + ((a.0.at + from) * self.act_bytes()) as u64
    }

    pub(crate) fn stat(&self, s: Stat) -> u64 {
        self.stat_at(s, 0)
    }

    pub(crate) fn stat_at(&self, s: Stat, from: usize) -> u64 {
        self.stats.at + 4 * (s.0.at + from) as u64
    }

    pub(crate) fn state(&self, s: State) -> u64 {
        self.state.at + 4 * s.0.at as u64
    }

    /// A parameter in f32.
    pub(crate) fn weight(&self, w: Weight) -> u64 {
        self.weights.at + 4 * w.0.at as u64
    }

    /// A parameter as a factor of a product: in the type of the activations.
    pub(crate) fn factor(&self, w: Weight) -> u64 {
        match self.precision {
            Precision::F32 => self.weight(w),
            Precision::Bf16 => self.shadow.at + 2 * w.0.at as u64,
        }
    }

    pub(crate) fn grad(&self, w: Weight) -> u64 {
        self.grads.at + 4 * w.0.at as u64
    }

    /// All gradients: address, bytes.
    pub(crate) fn all_grads(&self) -> (u64, usize) {
        (self.grads.at, self.grads.bytes)
    }

    /// Adam's moments, first and second, of a network of `len` elements.
    pub(crate) fn moments(&self, len: usize) -> [u64; 2] {
        [self.moments.at, self.moments.at + 4 * len as u64]
    }

    /// The weights from element `from` on, in f32 and as bf16 (0 where there are none).
    pub(crate) fn networks(&self, from: usize) -> [u64; 2] {
        let shadow = if self.shadow.bytes > 0 { self.shadow.at + 2 * from as u64 } else { 0 };
        [self.weights.at + 4 * from as u64, shadow]
    }

    pub(crate) fn workspace_at(&self) -> u64 {
        self.workspace.at
    }

    /// Without what is cuBLASLt's.
    pub(crate) fn workspace_bytes(&self) -> usize {
        self.workspace.bytes - self.products.as_ref().map_or(0, Products::scratch)
    }

    // Queueing.

    /// Keeps the first error.
    pub(crate) fn fail(&mut self, e: Error) {
        self.fault.get_or_insert(e);
    }

    /// A word needs this many bytes of workspace, and there are fewer.
    pub(crate) fn too_small(&mut self, bytes: usize) {
        let message = format!("a word needs {bytes} bytes of workspace, there are {}", self.workspace_bytes());
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

    /// Gives a product to cuBLASLt; false where that is not used or does not take it. Nothing may be made during a capture, so a shape
    /// that is met there for the first time is not taken.
    pub(crate) fn by_library(&mut self, product: Product, [c, a, b, bias]: [u64; 4]) -> bool {
        let Some(products) = &mut self.products else { return false };
        // The library wants the bias in the result's type, which the weights are kept in too.
        if product.bias && product.f32_out {
            return false;
        }
        let bias = if product.bias { self.shadow.at + (bias - self.weights.at) / 2 } else { 0 };
        let r = products.multiply(&self.stream, product, [c, a, b, bias], !self.capturing);
        r.unwrap_or_else(|e| {
            self.fail(e);
            true
        })
    }

    pub(crate) fn clear_bytes(&mut self, at: u64, bytes: usize) {
        let r = self.stream.clear(at, bytes);
        self.note(r);
    }

    /// The table's pieces on the device. Made at its first use, which a captured step is never.
    pub(crate) fn pieces(&mut self, table: &dyn ParamTable) -> Option<Pieces> {
        let mut tensors = Vec::new();
        table.visit(&mut |spec| tensors.push(spec));
        if let Some((known, o)) = &self.optimiser
            && *known == tensors
        {
            return Some(o.pieces);
        }
        match self.lay_out(&tensors) {
            Ok(o) => {
                let pieces = o.pieces;
                self.optimiser = Some((tensors, o));
                Some(pieces)
            }
            Err(e) => {
                self.fail(e);
                None
            }
        }
    }

    fn lay_out(&self, tensors: &[Spec]) -> Result<Optimiser> {
        let (mut pieces, mut first) = (Vec::new(), vec![0i32]);
        for spec in tensors {
            let flags = match spec.role {
                Role::Decay => 1,
                Role::Plain => 0,
                Role::Frozen => 2,
            } + if spec.last_layer { 4 } else { 0 };
            for from in (0..spec.at.len()).step_by(PIECE) {
                let len = PIECE.min(spec.at.len() - from) as i32;
                pieces.push(Piece {
                    at: (spec.at.0.at + from) as i64,
                    len,
                    tensor: first.len() as i32 - 1,
                    flags,
                    pad: 0,
                });
            }
            first.push(pieces.len() as i32);
        }
        let tensors = first.len() - 1;
        let memory = [
            Buffer::new(size_of_val(&pieces[..]))?,
            Buffer::new(size_of_val(&first[..]))?,
            Buffer::new(8 * pieces.len())?,
            Buffer::new(8 * tensors)?,
            Buffer::new(4 * tensors)?,
        ];
        // SAFETY: the vectors have those bytes and outlive the wait.
        unsafe {
            self.stream.upload(memory[0].at, pieces.as_ptr().cast(), memory[0].bytes)?;
            self.stream.upload(memory[1].at, first.as_ptr().cast(), memory[1].bytes)?;
        }
        self.stream.wait()?;
        let [a, b, c, d, e] = [0, 1, 2, 3, 4].map(|i| memory[i].at);
        let count = pieces.len();
        let pieces = Pieces { pieces: a, first: b, squares: c, tensor_squares: d, factors: e, count, tensors };
        Ok(Optimiser { pieces, _memory: memory })
    }

    // Host and device.

    fn buffer(&self, pool: Pool) -> &Buffer {
        match pool {
            Pool::Weights => &self.weights,
            Pool::Grads => &self.grads,
            Pool::Moments => &self.moments,
            Pool::Acts => &self.acts,
            Pool::Stats => &self.stats,
            Pool::State => &self.state,
        }
    }

    fn element(&self, pool: Pool) -> usize {
        if pool == Pool::Acts { self.act_bytes() } else { 4 }
    }

    fn send(&self, pool: Pool, at: usize, values: &[f32]) -> Result<()> {
        let element = self.element(pool);
        let to = self.buffer(pool).at + (at * element) as u64;
        if element == 2 {
            let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            // SAFETY: the vector has those bytes and outlives the wait.
            unsafe { self.stream.upload(to, values.as_ptr().cast(), 2 * values.len())? };
            return self.stream.wait();
        }
        // SAFETY: as above.
        unsafe { self.stream.upload(to, values.as_ptr().cast(), 4 * values.len())? };
        self.stream.wait()?;
        if pool == Pool::Weights && self.shadow.bytes > 0 {
            let arguments = args![self.shadow.at + 2 * at as u64, to, values.len() as i64];
            self.kernels.shadow_weights.launch(&self.stream, Shape::flat(values.len()), arguments)?;
        }
        Ok(())
    }

    fn fetch(&self, pool: Pool, at: usize, values: &mut [f32]) -> Result<()> {
        let element = self.element(pool);
        let from = self.buffer(pool).at + (at * element) as u64;
        if element == 2 {
            let mut halves = vec![bf16::ZERO; values.len()];
            // SAFETY: the vector has those bytes and outlives the wait.
            unsafe { self.stream.download(halves.as_mut_ptr().cast(), from, 2 * halves.len())? };
            self.stream.wait()?;
            values.iter_mut().zip(halves).for_each(|(v, h)| *v = h.to_f32());
            return Ok(());
        }
        // SAFETY: the slice has those bytes and outlives the wait.
        unsafe { self.stream.download(values.as_mut_ptr().cast(), from, 4 * values.len())? };
        self.stream.wait()
    }

    /// Host to device; waits, for memory that is not pinned must stay until it was read. Steps feed from pinned memory.
    pub fn put(&mut self, pool: Pool, at: usize, values: &[f32]) {
        if !values.is_empty() {
            let r = self.send(pool, at, values);
            self.note(r);
        }
    }

    /// Device to host; waits. After a fault, NaN.
    pub fn take(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        if values.is_empty() {
            return;
        }
        if let Err(e) = self.fetch(pool, at, values) {
            self.fail(e);
            values.fill(f32::NAN);
        }
    }

    /// Waits for everything queued; the first thing that ever went wrong.
    pub fn wait(&mut self) -> Result<()> {
        let r = self.stream.wait();
        self.note(r);
        self.sound()
    }

    /// The first fault. It stays: what a device holds after one means nothing.
    fn sound(&self) -> Result<()> {
        self.fault.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Nothing may run in memory that is about to go; a device that is lost runs nothing.
        let _ = self.stream.wait();
        if let Some(feed) = &self.feed {
            let _ = feed.wait();
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
            Pool::Moments => n.moments,
            Pool::Acts => n.acts,
            Pool::Stats => n.stats,
            Pool::State => n.state,
        }
    }
}

//! The card, and what `cust` 0.3.2 lacks over it, thinly: non-blocking streams, events between streams, pinned memory, capture and graphs.
//!
//! `cust` opens devices, contexts and modules. Its streams cannot be non-blocking and its graphs are private, so those are here, over
//! `cust::sys`. Every driver call that can fail returns what it was for.

pub mod cublaslt;
pub mod driver;
pub mod fatbin;
pub mod libraries;

use cust::context::Context;
use cust::device::{Device, DeviceAttribute};
use cust::error::CudaError;
use cust::function::Function;
use cust::module::Module;
use cust::sys::{self, CUresult};
use dino_host::error::{Error, Result};
use fatbin::FATBIN;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::OnceLock;

/// What a driver call came to. Out of memory and a lost device get messages of their own, for they are not errors of the program.
///
/// # Errors
/// The code is not success; `what` begins the message.
pub fn check(code: CUresult, what: &str) -> Result<()> {
    use CUresult::*;
    let hint = match code {
        CUDA_SUCCESS => return Ok(()),
        CUDA_ERROR_OUT_OF_MEMORY => {
            "a smaller --micro-batch or --stream-crops takes less, and --mem-limit chooses; `dino-gpu plan` shows what takes how much"
        }
        CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "the kernels need compute capability 8.0 (Ampere) or later, and a driver of CUDA 12 (525 or later)"
        }
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED | CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => {
            "a step did what cannot be captured; --launch direct goes on without graphs"
        }
        _ => {
            "if the device is lost, nvidia-smi and the kernel's log tell why; train --resume goes on from the last checkpoint"
        }
    };
    let name = match (code, driver::last_unknown()) {
        (CUDA_ERROR_UNKNOWN, Some(number)) => format!("CUDA error {number}"),
        (code, _) => format!("{code:?} ({})", code as u32),
    };
    Err(Error::new(format!("{what}: {name}")).hint(hint))
}

/// The same for what `cust` reports.
fn of_cust(e: CudaError, what: &str) -> Error {
    Error::new(format!("{what}: {e}")).hint("dino-host trains on the CPU with the same commands")
}

/// One GPU, opened once for the process and never closed: its context and its kernels.
pub struct Card {
    context: Context,
    module: Module,
    /// As the driver names it.
    pub name: String,
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Compute capability.
    pub capability: (i32, i32),
    /// As the driver counts: 13000 is CUDA 13.0.
    pub driver: i32,
    /// No other GPU has it.
    pub uuid: [u8; 16],
}

// SAFETY: a primary context and a module belong to the process, and the driver's functions may be called from any thread.
unsafe impl Send for Card {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Card {}

/// The kernels: the code that is made for the card, or where the driver does not take that, the PTX, which it compiles. So neither what
/// an old driver reads of a fat binary nor what a new one reads of an old cubin ends a run.
fn load() -> std::result::Result<Module, CudaError> {
    Module::from_fatbin(FATBIN, &[]).or_else(|e| {
        let module = fatbin::ptx().and_then(|ptx| Module::from_ptx(ptx, &[]).ok()).ok_or(e)?;
        dino_host::errln!("the driver compiled the kernels from PTX, for it does not take them as they come ({e})");
        Ok(module)
    })
}

/// The number of the GPU that is opened, if not the first.
static CHOSEN: OnceLock<u32> = OnceLock::new();

impl Card {
    /// How many GPUs there are (CUDA_VISIBLE_DEVICES chooses among those of the machine).
    ///
    /// # Errors
    /// There is no driver or GPU.
    pub fn count() -> Result<u32> {
        if let Some(why) = driver::missing() {
            return Err(Error::new(format!("no NVIDIA driver found ({why})"))
                .hint("dino-host trains on the CPU with the same commands"));
        }
        cust::init(cust::CudaFlags::empty()).map_err(|e| of_cust(e, "the NVIDIA driver finds no usable GPU"))?;
        let count = Device::num_devices().map_err(|e| of_cust(e, "cannot count the GPUs"))?;
        if count == 0 {
            return Err(Error::new("the NVIDIA driver sees no GPU")
                .hint("is CUDA_VISIBLE_DEVICES empty? dino-host trains on the CPU with the same commands"));
        }
        Ok(count)
    }

    /// Which one [`Card::get`] opens, from 0. Only the first call counts.
    pub fn choose(number: u32) {
        let _ = CHOSEN.set(number);
    }

    /// The GPU that was chosen, or the first, made current for this thread.
    ///
    /// # Errors
    /// There is no driver or GPU, or the GPU is too old or does not load the kernels; the error names what is missing.
    pub fn get() -> Result<&'static Card> {
        static CARD: OnceLock<Result<Card>> = OnceLock::new();
        let card = CARD.get_or_init(Card::open).as_ref().map_err(Error::clone)?;
        cust::context::CurrentContext::set_current(&card.context).map_err(|e| of_cust(e, "cannot use the GPU"))?;
        Ok(card)
    }

    fn open() -> Result<Card> {
        Card::count()?;
        let device = Device::get_device(*CHOSEN.get_or_init(|| 0)).map_err(|e| of_cust(e, "cannot open the GPU"))?;
        let name = device.name().map_err(|e| of_cust(e, "cannot read the GPU's name"))?;
        let number = |a| device.get_attribute(a).map_err(|e| of_cust(e, "cannot read the GPU's attributes"));
        let capability =
            (number(DeviceAttribute::ComputeCapabilityMajor)?, number(DeviceAttribute::ComputeCapabilityMinor)?);
        if capability < (8, 0) {
            return Err(Error::new(format!(
                "{name} has compute capability {}.{}, which is too old",
                capability.0, capability.1
            ))
            .hint("the kernels need 8.0 (Ampere) or later; dino-host trains on the CPU with the same commands"));
        }
        let context = Context::new(device).map_err(|e| of_cust(e, "cannot make a context on the GPU"))?;
        let module = load().map_err(|e| {
            let (major, minor) = capability;
            Error::new(format!("{name} (compute capability {major}.{minor}) does not take the kernels: {e}"))
                .hint("they need a driver of CUDA 12 (525 or later), and the driver must know the card")
        })?;
        let mut driver = 0;
        // SAFETY: writes one number.
        check(unsafe { sys::cuDriverGetVersion(&mut driver) }, "cannot read the driver's version")?;
        let mut found = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: writes sixteen bytes.
        check(unsafe { sys::cuDeviceGetUuid(&mut found, device.as_raw()) }, "cannot read the GPU's number")?;
        let uuid = found.bytes.map(|byte| byte as u8);
        let memory = device.total_memory().map_err(|e| of_cust(e, "cannot read the GPU's memory"))? as u64;
        let processors = number(DeviceAttribute::MultiprocessorCount)? as u32;
        Ok(Card { context, module, name, processors, memory, capability, driver, uuid })
    }

    /// A kernel by name.
    ///
    /// # Errors
    /// The kernels have none of that name.
    pub fn function(&'static self, name: &str) -> Result<Function<'static>> {
        self.module.get_function(name).map_err(|e| Error::new(format!("the kernels lack {name}: {e}")))
    }

    /// Free and total bytes.
    ///
    /// # Errors
    /// The device fails.
    pub fn free(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cannot read the GPU's free memory")?;
        Ok((free as u64, total as u64))
    }
}

/// What the driver tells of the GPU that was opened.
///
/// # Errors
/// The device fails, or has no such attribute.
pub fn attribute(attribute: DeviceAttribute) -> Result<i32> {
    let device = Device::get_device(*CHOSEN.get_or_init(|| 0)).map_err(|e| of_cust(e, "cannot open the GPU"))?;
    device.get_attribute(attribute).map_err(|e| of_cust(e, "cannot read the GPU's attributes"))
}

/// Device memory, freed when dropped.
pub struct Buffer {
    /// The address; 0 of an empty one.
    pub at: u64,
    /// Its size.
    pub bytes: usize,
}

impl Buffer {
    /// Not initialized. An empty one takes nothing.
    ///
    /// # Errors
    /// The device has no such memory free.
    pub fn new(bytes: usize) -> Result<Buffer> {
        let mut at = 0;
        if bytes > 0 {
            // SAFETY: writes the address of the new block.
            check(unsafe { sys::cuMemAlloc_v2(&mut at, bytes) }, &format!("cannot allocate {bytes} bytes on the GPU"))?;
        }
        Ok(Buffer { at, bytes })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated above, freed once. A device that is lost has nothing to free.
            unsafe { sys::cuMemFree_v2(self.at) };
        }
    }
}

/// Page-locked host memory: what copies to and from the device run beside the host.
pub struct Pinned {
    at: *mut f32,
    len: usize,
}

// SAFETY: memory of its own, which any thread may use.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `len` zeros.
    ///
    /// # Errors
    /// The host's memory cannot be pinned.
    pub fn new(len: usize) -> Result<Pinned> {
        let mut at = null_mut();
        let bytes = len.max(1) * size_of::<f32>();
        // SAFETY: writes the address of the new block.
        check(unsafe { sys::cuMemHostAlloc(&mut at, bytes, 0) }, &format!("cannot pin {bytes} bytes of host memory"))?;
        // SAFETY: the block has that many bytes.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Pinned { at: at.cast(), len })
    }

    /// Of the first float.
    pub fn address(&self) -> *mut c_void {
        self.at.cast()
    }

    /// Only when no queued copy uses it.
    pub fn get(&self) -> &[f32] {
        // SAFETY: allocated with this length; f32 has no invalid values.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// Only when no queued copy uses it.
    pub fn get_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Pinned {
    /// The same as bytes; only when no queued copy uses it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; bytes have no invalid values and no alignment.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), 4 * self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated above, freed once.
        unsafe { sys::cuMemFreeHost(self.at.cast()) };
    }
}

/// A mark in a stream, for another stream or the host to wait for.
pub struct Event(sys::CUevent);

// SAFETY: the driver's functions may be called with a handle from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Without a time, and the host sleeps while it waits: the loader's threads want its core.
    const FLAGS: u32 = 2 | 1;

    /// An event that is not recorded yet.
    ///
    /// # Errors
    /// The device fails.
    pub fn new() -> Result<Event> {
        let mut event = null_mut();
        // SAFETY: writes the new handle.
        check(unsafe { sys::cuEventCreate(&mut event, Self::FLAGS) }, "cannot make an event")?;
        Ok(Event(event))
    }

    /// The host waits. An event that was never recorded is not waited for.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: a live event.
        check(unsafe { sys::cuEventSynchronize(self.0) }, "the GPU failed")
    }

    /// Whether everything in front of it is done. An event that was never recorded is.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: a live event.
        match unsafe { sys::cuEventQuery(self.0) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code, "the GPU failed").map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made above, destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

/// An ordered queue of work that waits for no other.
pub struct Stream(sys::CUstream);

// SAFETY: as an event's.
unsafe impl Send for Stream {}

impl Stream {
    const NON_BLOCKING: u32 = 1;

    /// A stream with nothing queued.
    ///
    /// # Errors
    /// The device fails.
    pub fn new() -> Result<Stream> {
        let mut stream = null_mut();
        // SAFETY: writes the new handle.
        check(unsafe { sys::cuStreamCreateWithPriority(&mut stream, Self::NON_BLOCKING, 0) }, "cannot make a stream")?;
        Ok(Stream(stream))
    }

    /// The driver's handle.
    pub fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// The host waits for everything queued.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamSynchronize(self.0) }, "the GPU failed")
    }

    /// Records the event behind what is queued.
    ///
    /// # Errors
    /// The device fails.
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: live handles.
        check(unsafe { sys::cuEventRecord(event.0, self.0) }, "cannot record an event")
    }

    /// What is queued from here on waits for the event.
    ///
    /// # Errors
    /// The device fails.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: live handles.
        check(unsafe { sys::cuStreamWaitEvent(self.0, event.0, 0) }, "cannot wait for an event")
    }

    /// Host to device. Pinned memory is read when the copy runs, other memory at the latest then.
    ///
    /// # Safety
    /// `from` has that many bytes, and keeps them until the copy has run.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub unsafe fn upload(&self, to: u64, from: *const c_void, bytes: usize) -> Result<()> {
        // SAFETY: the caller's; the driver checks the device's side.
        check(unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.0) }, "cannot copy to the GPU")
    }

    /// Device to host.
    ///
    /// # Safety
    /// `to` has memory for that many bytes until the copy has run.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub unsafe fn download(&self, to: *mut c_void, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's; the driver checks the device's side.
        check(unsafe { sys::cuMemcpyDtoHAsync_v2(to, from, bytes, self.0) }, "cannot copy from the GPU")
    }

    /// Device to device.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        // SAFETY: the driver checks both sides.
        check(unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0) }, "cannot copy on the GPU")
    }

    /// Zeros.
    ///
    /// # Errors
    /// The device fails, now or in work queued earlier.
    pub fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the driver checks the range.
        check(unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.0) }, "cannot clear memory on the GPU")
    }

    /// Runs a kernel.
    ///
    /// # Safety
    /// `arguments` point at values of the kernel's parameter types, and what they address is the kernel's to access.
    ///
    /// # Errors
    /// The shape is more than the device takes, or the device fails.
    pub unsafe fn launch(
        &self,
        kernel: &Function,
        grid: [u32; 3],
        block: [u32; 2],
        shared: u32,
        arguments: &[*mut c_void],
    ) -> Result<()> {
        let list = arguments.as_ptr().cast_mut();
        // SAFETY: the caller's.
        let code = unsafe {
            sys::cuLaunchKernel(
                kernel.to_raw(),
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                1,
                shared,
                self.0,
                list,
                null_mut(),
            )
        };
        check(code, "cannot launch a kernel")
    }

    /// From here on, what is queued is recorded instead of run, until [`Stream::captured`].
    ///
    /// # Errors
    /// A capture is under way already.
    pub fn capture(&self) -> Result<()> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a live stream.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.0, mode) }, "cannot begin a capture")
    }

    /// What was recorded, ready to run.
    ///
    /// # Errors
    /// Something queued cannot be captured, or the graph cannot be made.
    pub fn captured(&self) -> Result<Graph> {
        let (mut graph, mut ready) = (null_mut(), null_mut());
        // SAFETY: writes the new handle.
        check(unsafe { sys::cuStreamEndCapture(self.0, &mut graph) }, "cannot capture a step")?;
        // SAFETY: a live graph; it may go once it is instantiated.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0) };
        // SAFETY: made above, destroyed once.
        unsafe { sys::cuGraphDestroy(graph) };
        check(code, "cannot make a graph of a step")?;
        Ok(Graph(ready))
    }

    /// Replays what was captured.
    ///
    /// # Errors
    /// The device fails.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: live handles; the addresses in the graph are those of pools that live as long as it does.
        check(unsafe { sys::cuGraphLaunch(graph.0, self.0) }, "cannot replay a step")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made above, destroyed once; the driver finishes its work first.
        unsafe { sys::cuStreamDestroy_v2(self.0) };
    }
}

/// Captured work, ready to run again.
pub struct Graph(sys::CUgraphExec);

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by a capture, destroyed once.
        unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}

/// Lets a kernel take this much dynamic shared memory, bytes; above 48 KiB it must be asked for.
///
/// # Errors
/// The device has less.
pub fn allow_shared(kernel: &Function, bytes: u32) -> Result<()> {
    let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: a live function.
    let code = unsafe { sys::cuFuncSetAttribute(kernel.to_raw(), attribute, bytes as i32) };
    check(code, &format!("a kernel cannot have {bytes} bytes of shared memory"))
}

/// Bytes of a kernel's parameters, in order, where the driver can tell (CUDA 12.4 and later).
pub fn parameters(kernel: &Function) -> Option<Vec<usize>> {
    let address = driver::symbol(c"cuFuncGetParamInfo")?;
    // SAFETY: the driver's function of that name has this signature.
    let info: unsafe extern "C" fn(sys::CUfunction, usize, *mut usize, *mut usize) -> u32 =
        unsafe { std::mem::transmute(address) };
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: writes two numbers; beyond the last parameter it only reports that.
        if unsafe { info(kernel.to_raw(), sizes.len(), &mut offset, &mut size) } != 0 {
            return Some(sizes);
        }
        sizes.push(size);
    }
}

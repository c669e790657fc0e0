//! The CUDA driver, found at run time.
//!
//! `cust` calls the driver as plain `extern "C"` symbols. This file defines those symbols; each finds its function in
//! libcuda.so.1 on first use. Nothing links against the driver, so one binary starts on a machine that has none and reports that. A
//! symbol that is forgotten here is a link error, never a surprise at run time.

use cust::sys::*;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_ushort, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};

/// Where the driver is, if not `libcuda.so.1` in the loader's path: the variable that names it.
pub const DRIVER_VARIABLE: &str = "DINO_LIBCUDA";

static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// Takes the driver from this file. Only before its first use; false if it was too late.
pub fn use_library(path: PathBuf) -> bool {
    NAMED.set(path).is_ok()
}

fn library() -> &'static Result<Library, String> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let name = std::env::var_os(DRIVER_VARIABLE).unwrap_or_else(|| "libcuda.so.1".into());
        let name = NAMED.get_or_init(|| name.into());
        // SAFETY: running a driver's initializers is what loading it means.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|e| std::error::Error::source(&e).unwrap_or(&e).to_string())
    })
}

/// Whether the driver is one that was named, by the variable or by [`use_library`]: perhaps an emulation.
pub fn named() -> bool {
    let _ = library();
    NAMED.get().is_some_and(|name| name.as_os_str() != "libcuda.so.1")
}

/// Why the driver cannot be loaded, if so.
pub fn missing() -> Option<&'static str> {
    library().as_ref().err().map(String::as_str)
}

/// As the driver counts: 12080 is CUDA 12.8. None without a driver.
pub fn version() -> Option<i32> {
    let mut version = 0;
    // SAFETY: writes one number; needs no device, and not that the driver was initialized.
    let code = unsafe { cuDriverGetVersion(&mut version) };
    (code == CUresult::CUDA_SUCCESS).then_some(version)
}

/// Address of a driver function, also of those that `cust`'s bindings (CUDA 11.4) lack.
pub fn symbol(name: &CStr) -> Option<*mut c_void> {
    let library = library().as_ref().ok()?;
    // SAFETY: only the address is taken; the caller gives it its type.
    let symbol = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) };
    symbol.ok().map(|s| s.into_raw()).filter(|p| !p.is_null())
}

/// The last code the driver returned that CUDA 11.4 does not know; 0: none yet.
static LAST_UNKNOWN: AtomicU32 = AtomicU32::new(0);

/// The driver's own number for what it last answered with, where the bindings have no name for it.
pub fn last_unknown() -> Option<u32> {
    Some(LAST_UNKNOWN.load(Relaxed)).filter(|code| *code != 0)
}

/// `CUresult` is a Rust enum of CUDA 11.4: a newer driver's code outside it would be undefined behavior.
fn result(raw: u32) -> CUresult {
    match raw {
        0..=8 | 34 | 100..=102 | 200..=202 | 205..=224 | 300..=304 | 400 | 401 | 500 | 600 | 700..=705 | 708..=720
        // SAFETY: these are the values of the enum.
        | 800..=809 | 900..=911 | 999 => unsafe { std::mem::transmute::<u32, CUresult>(raw) },
        _ => {
            LAST_UNKNOWN.store(raw, Relaxed);
            CUresult::CUDA_ERROR_UNKNOWN
        }
    }
}

/// The function's address, looked up once; null where there is no driver or it lacks the function.
fn find(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let mut address = slot.load(Relaxed);
    if address.is_null() {
        address = symbol(name).unwrap_or(std::ptr::null_mut());
        slot.store(address, Relaxed);
    }
    address
}

macro_rules! forward {
    ($(fn $name:ident($($a:ident: $t:ty),*);)*) => {$(
        // SAFETY: the name and the signature are those of the driver's C interface.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($a: $t),*) -> CUresult {
            static SLOT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!("a name without a nul inside"),
            };
            let address = find(&SLOT, NAME);
            if address.is_null() {
                return match library() {
                    Ok(_) => CUresult::CUDA_ERROR_NOT_FOUND,
                    Err(_) => CUresult::CUDA_ERROR_SHARED_OBJECT_INIT_FAILED,
                };
            }
            // SAFETY: the driver's function of that name has this signature; its status is read as a number.
            let f: unsafe extern "C" fn($($t),*) -> u32 = unsafe { std::mem::transmute(address) };
            // SAFETY: the caller's arguments, as they came.
            result(unsafe { f($($a),*) })
        }
    )*
    /// Every function that is forwarded.
    pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

#[rustfmt::skip]
forward! {
    fn cuArray3DCreate_v2(a0: *mut CUarray, a1: *const CUDA_ARRAY3D_DESCRIPTOR);
    fn cuArray3DGetDescriptor_v2(a0: *mut CUDA_ARRAY3D_DESCRIPTOR, a1: CUarray);
    fn cuArrayDestroy(a0: CUarray);
    fn cuCtxCreate_v2(a0: *mut CUcontext, a1: c_uint, a2: CUdevice);
    fn cuCtxDestroy_v2(a0: CUcontext);
    fn cuCtxEnablePeerAccess(a0: CUcontext, a1: c_uint);
    fn cuCtxGetApiVersion(a0: CUcontext, a1: *mut c_uint);
    fn cuCtxGetCacheConfig(a0: *mut CUfunc_cache);
    fn cuCtxGetCurrent(a0: *mut CUcontext);
    fn cuCtxGetDevice(a0: *mut CUdevice);
    fn cuCtxGetFlags(a0: *mut c_uint);
    fn cuCtxGetLimit(a0: *mut usize, a1: CUlimit);
    fn cuCtxGetSharedMemConfig(a0: *mut CUsharedconfig);
    fn cuCtxGetStreamPriorityRange(a0: *mut c_int, a1: *mut c_int);
    fn cuCtxPopCurrent_v2(a0: *mut CUcontext);
    fn cuCtxPushCurrent_v2(a0: CUcontext);
    fn cuCtxSetCacheConfig(a0: CUfunc_cache);
    fn cuCtxSetCurrent(a0: CUcontext);
    fn cuCtxSetLimit(a0: CUlimit, a1: usize);
    fn cuCtxSetSharedMemConfig(a0: CUsharedconfig);
    fn cuCtxSynchronize();
    fn cuDestroyExternalMemory(a0: CUexternalMemory);
    fn cuDeviceCanAccessPeer(a0: *mut c_int, a1: CUdevice, a2: CUdevice);
    fn cuDeviceGet(a0: *mut CUdevice, a1: c_int);
    fn cuDeviceGetAttribute(a0: *mut c_int, a1: CUdevice_attribute, a2: CUdevice);
    fn cuDeviceGetCount(a0: *mut c_int);
    fn cuDeviceGetDefaultMemPool(a0: *mut CUmemoryPool, a1: CUdevice);
    fn cuDeviceGetName(a0: *mut c_char, a1: c_int, a2: CUdevice);
    fn cuDeviceGetPCIBusId(a0: *mut c_char, a1: c_int, a2: CUdevice);
    fn cuDeviceGetUuid(a0: *mut CUuuid, a1: CUdevice);
    fn cuDevicePrimaryCtxRelease_v2(a0: CUdevice);
    fn cuDevicePrimaryCtxReset_v2(a0: CUdevice);
    fn cuDevicePrimaryCtxRetain(a0: *mut CUcontext, a1: CUdevice);
    fn cuDevicePrimaryCtxSetFlags_v2(a0: CUdevice, a1: c_uint);
    fn cuDeviceTotalMem_v2(a0: *mut usize, a1: CUdevice);
    fn cuDriverGetVersion(a0: *mut c_int);
    fn cuEventCreate(a0: *mut CUevent, a1: c_uint);
    fn cuEventDestroy_v2(a0: CUevent);
    fn cuEventElapsedTime(a0: *mut f32, a1: CUevent, a2: CUevent);
    fn cuEventQuery(a0: CUevent);
    fn cuEventRecord(a0: CUevent, a1: CUstream);
    fn cuEventSynchronize(a0: CUevent);
    fn cuExternalMemoryGetMappedBuffer(a0: *mut CUdeviceptr, a1: CUexternalMemory, a2: *const CUDA_EXTERNAL_MEMORY_BUFFER_DESC);
    fn cuFuncGetAttribute(a0: *mut c_int, a1: CUfunction_attribute, a2: CUfunction);
    fn cuFuncSetAttribute(a0: CUfunction, a1: CUfunction_attribute, a2: c_int);
    fn cuFuncSetCacheConfig(a0: CUfunction, a1: CUfunc_cache);
    fn cuFuncSetSharedMemConfig(a0: CUfunction, a1: CUsharedconfig);
    fn cuGraphAddKernelNode(a0: *mut CUgraphNode, a1: CUgraph, a2: *const CUgraphNode, a3: usize, a4: *const CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphCreate(a0: *mut CUgraph, a1: c_uint);
    fn cuGraphDebugDotPrint(a0: CUgraph, a1: *const c_char, a2: c_uint);
    fn cuGraphDestroy(a0: CUgraph);
    fn cuGraphExecDestroy(a0: CUgraphExec);
    fn cuGraphGetEdges(a0: CUgraph, a1: *mut CUgraphNode, a2: *mut CUgraphNode, a3: *mut usize);
    fn cuGraphGetNodes(a0: CUgraph, a1: *mut CUgraphNode, a2: *mut usize);
    fn cuGraphInstantiateWithFlags(a0: *mut CUgraphExec, a1: CUgraph, a2: c_ulonglong);
    fn cuGraphKernelNodeGetParams(a0: CUgraphNode, a1: *mut CUDA_KERNEL_NODE_PARAMS);
    fn cuGraphLaunch(a0: CUgraphExec, a1: CUstream);
    fn cuGraphNodeGetType(a0: CUgraphNode, a1: *mut CUgraphNodeType);
    fn cuGraphUpload(a0: CUgraphExec, a1: CUstream);
    fn cuImportExternalMemory(a0: *mut CUexternalMemory, a1: *const CUDA_EXTERNAL_MEMORY_HANDLE_DESC);
    fn cuInit(a0: c_uint);
    fn cuLaunchCooperativeKernel(a0: CUfunction, a1: c_uint, a2: c_uint, a3: c_uint, a4: c_uint, a5: c_uint, a6: c_uint, a7: c_uint, a8: CUstream, a9: *mut *mut c_void);
    fn cuLaunchHostFunc(a0: CUstream, a1: CUhostFn, a2: *mut c_void);
    fn cuLaunchKernel(a0: CUfunction, a1: c_uint, a2: c_uint, a3: c_uint, a4: c_uint, a5: c_uint, a6: c_uint, a7: c_uint, a8: CUstream, a9: *mut *mut c_void, a10: *mut *mut c_void);
    fn cuLinkAddData_v2(a0: CUlinkState, a1: CUjitInputType, a2: *mut c_void, a3: usize, a4: *const c_char, a5: c_uint, a6: *mut CUjit_option, a7: *mut *mut c_void);
    fn cuLinkComplete(a0: CUlinkState, a1: *mut *mut c_void, a2: *mut usize);
    fn cuLinkCreate_v2(a0: c_uint, a1: *mut CUjit_option, a2: *mut *mut c_void, a3: *mut CUlinkState);
    fn cuLinkDestroy(a0: CUlinkState);
    fn cuMemAdvise(a0: CUdeviceptr, a1: usize, a2: CUmem_advise, a3: CUdevice);
    fn cuMemAllocAsync(a0: *mut CUdeviceptr, a1: usize, a2: CUstream);
    fn cuMemAllocFromPoolAsync(a0: *mut CUdeviceptr, a1: usize, a2: CUmemoryPool, a3: CUstream);
    fn cuMemAllocHost_v2(a0: *mut *mut c_void, a1: usize);
    fn cuMemAllocManaged(a0: *mut CUdeviceptr, a1: usize, a2: c_uint);
    fn cuMemAlloc_v2(a0: *mut CUdeviceptr, a1: usize);
    fn cuMemFreeAsync(a0: CUdeviceptr, a1: CUstream);
    fn cuMemFreeHost(a0: *mut c_void);
    fn cuMemFree_v2(a0: CUdeviceptr);
    fn cuMemGetInfo_v2(a0: *mut usize, a1: *mut usize);
    fn cuMemHostAlloc(a0: *mut *mut c_void, a1: usize, a2: c_uint);
    fn cuMemHostRegister_v2(a0: *mut c_void, a1: usize, a2: c_uint);
    fn cuMemHostUnregister(a0: *mut c_void);
    fn cuMemPoolSetAttribute(a0: CUmemoryPool, a1: CUmemPool_attribute, a2: *mut c_void);
    fn cuMemPoolTrimTo(a0: CUmemoryPool, a1: usize);
    fn cuMemPrefetchAsync(a0: CUdeviceptr, a1: usize, a2: CUdevice, a3: CUstream);
    fn cuMemcpy2DAsync_v2(a0: *const CUDA_MEMCPY2D, a1: CUstream);
    fn cuMemcpy2D_v2(a0: *const CUDA_MEMCPY2D);
    fn cuMemcpyAsync(a0: CUdeviceptr, a1: CUdeviceptr, a2: usize, a3: CUstream);
    fn cuMemcpyAtoH_v2(a0: *mut c_void, a1: CUarray, a2: usize, a3: usize);
    fn cuMemcpyDtoDAsync_v2(a0: CUdeviceptr, a1: CUdeviceptr, a2: usize, a3: CUstream);
    fn cuMemcpyDtoD_v2(a0: CUdeviceptr, a1: CUdeviceptr, a2: usize);
    fn cuMemcpyDtoHAsync_v2(a0: *mut c_void, a1: CUdeviceptr, a2: usize, a3: CUstream);
    fn cuMemcpyDtoH_v2(a0: *mut c_void, a1: CUdeviceptr, a2: usize);
    fn cuMemcpyHtoA_v2(a0: CUarray, a1: usize, a2: *const c_void, a3: usize);
    fn cuMemcpyHtoDAsync_v2(a0: CUdeviceptr, a1: *const c_void, a2: usize, a3: CUstream);
    fn cuMemcpyHtoD_v2(a0: CUdeviceptr, a1: *const c_void, a2: usize);
    fn cuMemcpyPeerAsync(a0: CUdeviceptr, a1: CUcontext, a2: CUdeviceptr, a3: CUcontext, a4: usize, a5: CUstream);
    fn cuMemsetD16Async(a0: CUdeviceptr, a1: c_ushort, a2: usize, a3: CUstream);
    fn cuMemsetD16_v2(a0: CUdeviceptr, a1: c_ushort, a2: usize);
    fn cuMemsetD2D8Async(a0: CUdeviceptr, a1: usize, a2: c_uchar, a3: usize, a4: usize, a5: CUstream);
    fn cuMemsetD32Async(a0: CUdeviceptr, a1: c_uint, a2: usize, a3: CUstream);
    fn cuMemsetD32_v2(a0: CUdeviceptr, a1: c_uint, a2: usize);
    fn cuMemsetD8Async(a0: CUdeviceptr, a1: c_uchar, a2: usize, a3: CUstream);
    fn cuMemsetD8_v2(a0: CUdeviceptr, a1: c_uchar, a2: usize);
    fn cuModuleGetFunction(a0: *mut CUfunction, a1: CUmodule, a2: *const c_char);
    fn cuModuleGetGlobal_v2(a0: *mut CUdeviceptr, a1: *mut usize, a2: CUmodule, a3: *const c_char);
    fn cuModuleLoad(a0: *mut CUmodule, a1: *const c_char);
    fn cuModuleLoadData(a0: *mut CUmodule, a1: *const c_void);
    fn cuModuleLoadDataEx(a0: *mut CUmodule, a1: *const c_void, a2: c_uint, a3: *mut CUjit_option, a4: *mut *mut c_void);
    fn cuModuleUnload(a0: CUmodule);
    fn cuOccupancyAvailableDynamicSMemPerBlock(a0: *mut usize, a1: CUfunction, a2: c_int, a3: c_int);
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(a0: *mut c_int, a1: CUfunction, a2: c_int, a3: usize);
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(a0: *mut c_int, a1: CUfunction, a2: c_int, a3: usize, a4: c_uint);
    fn cuOccupancyMaxPotentialBlockSize(a0: *mut c_int, a1: *mut c_int, a2: CUfunction, a3: CUoccupancyB2DSize, a4: usize, a5: c_int);
    fn cuProfilerStart();
    fn cuProfilerStop();
    fn cuStreamBeginCapture_v2(a0: CUstream, a1: CUstreamCaptureMode);
    fn cuStreamCreateWithPriority(a0: *mut CUstream, a1: c_uint, a2: c_int);
    fn cuStreamDestroy_v2(a0: CUstream);
    fn cuStreamEndCapture(a0: CUstream, a1: *mut CUgraph);
    fn cuStreamGetFlags(a0: CUstream, a1: *mut c_uint);
    fn cuStreamGetPriority(a0: CUstream, a1: *mut c_int);
    fn cuStreamIsCapturing(a0: CUstream, a1: *mut CUstreamCaptureStatus);
    fn cuStreamQuery(a0: CUstream);
    fn cuStreamSynchronize(a0: CUstream);
    fn cuStreamWaitEvent(a0: CUstream, a1: CUevent, a2: c_uint);
    fn cuSurfObjectCreate(a0: *mut CUsurfObject, a1: *const CUDA_RESOURCE_DESC);
    fn cuSurfObjectDestroy(a0: CUsurfObject);
    fn cuSurfObjectGetResourceDesc(a0: *mut CUDA_RESOURCE_DESC, a1: CUsurfObject);
    fn cuTexObjectCreate(a0: *mut CUtexObject, a1: *const CUDA_RESOURCE_DESC, a2: *const CUDA_TEXTURE_DESC, a3: *const CUDA_RESOURCE_VIEW_DESC);
    fn cuTexObjectDestroy(a0: CUtexObject);
    fn cuTexObjectGetResourceDesc(a0: *mut CUDA_RESOURCE_DESC, a1: CUtexObject);
    fn cuTexObjectGetResourceViewDesc(a0: *mut CUDA_RESOURCE_VIEW_DESC, a1: CUtexObject);
}

/// `cust`'s `Display` of errors calls this; without a driver it must still answer.
// SAFETY: the name and the signature are those of the driver's C interface.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: CUresult, out: *mut *const c_char) -> CUresult {
    match symbol(c"cuGetErrorString") {
        Some(address) => {
            // SAFETY: the driver's function of that name has this signature.
            let f: unsafe extern "C" fn(u32, *mut *const c_char) -> u32 = unsafe { std::mem::transmute(address) };
            // SAFETY: the caller's arguments, as they came.
            result(unsafe { f(code as u32, out) })
        }
        None => {
            // SAFETY: the caller passes memory for one pointer.
            unsafe { *out = c"no NVIDIA driver found".as_ptr() };
            CUresult::CUDA_SUCCESS
        }
    }
}

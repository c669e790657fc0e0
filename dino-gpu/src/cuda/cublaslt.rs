//! Matmuls through NVIDIA's cuBLASLt, opened at run time where it is there. Nothing links against it.
//!
//! The library is asked once a shape for an algorithm, at the shape's first use, and the answer is kept as long as the [`CublasLt`]
//! live: every step of a run, launched or replayed, sums in the same order. The choice follows from library version, card and shape,
//! which `run.json` names (NVIDIA restores an algorithm within one version only): a run that resumes where one of them is another
//! prints so. With `--gemm own` no bit depends on the library.

use crate::cuda::libraries::{Wanted, functions};
use crate::cuda::{Stream, driver};
use crate::matmul::{Kind, Matmul};
use crate::options::{Gemm, Precision};
use dino_host::error::{Error, Result};
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Once, OnceLock};

/// Where cuBLASLt is, if not where it is looked for: the variable that names the file.
pub const VARIABLE: &str = "DINO_CUBLASLT";

static NAMED: OnceLock<PathBuf> = OnceLock::new();

/// Takes cuBLASLt from this file. Only before its first use; false if it was too late.
pub fn use_library(path: PathBuf) -> bool {
    NAMED.set(path).is_ok()
}

/// A handle or a pointer of the library.
type P = *mut c_void;

type SetAttribute = unsafe extern "C" fn(P, c_int, *const c_void, usize) -> c_int;

// Since CUDA 11.
functions! {
    fn version = cublasLtGetVersion() -> usize;
    fn create = cublasLtCreate(*mut P) -> c_int;
    fn destroy = cublasLtDestroy(P) -> c_int;
    fn desc_create = cublasLtMatmulDescCreate(*mut P, c_int, c_int) -> c_int;
    fn desc_destroy = cublasLtMatmulDescDestroy(P) -> c_int;
    fn desc_set = cublasLtMatmulDescSetAttribute(P, c_int, *const c_void, usize) -> c_int;
    fn layout_create = cublasLtMatrixLayoutCreate(*mut P, c_int, u64, u64, i64) -> c_int;
    fn layout_destroy = cublasLtMatrixLayoutDestroy(P) -> c_int;
    fn preference_create = cublasLtMatmulPreferenceCreate(*mut P) -> c_int;
    fn preference_destroy = cublasLtMatmulPreferenceDestroy(P) -> c_int;
    fn preference_set = cublasLtMatmulPreferenceSetAttribute(P, c_int, *const c_void, usize) -> c_int;
    fn heuristic = cublasLtMatmulAlgoGetHeuristic(P, P, P, P, P, P, P, c_int, *mut Heuristic, *mut c_int) -> c_int;
    fn matmul = cublasLtMatmul(
        P, P, *const c_void, u64, P, u64, P, *const c_void, u64, P, u64, P, *const Algorithm, u64, usize, P) -> c_int;
}

/// A library of CUDA 13 needs a driver of CUDA 13; one of CUDA 12 runs on either.
fn files(driver: Option<i32>) -> &'static [&'static str] {
    match driver {
        Some(..13000) => &["libcublasLt.so.12"],
        _ => &["libcublasLt.so.13", "libcublasLt.so.12"],
    }
}

fn functions() -> std::result::Result<&'static Functions, &'static str> {
    static FUNCTIONS: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
    FUNCTIONS
        .get_or_init(|| {
            let files = files(driver::version());
            let wheels = &["cu13/lib", "cublas/lib"];
            Functions::load(Wanted { variable: VARIABLE, named: NAMED.get().cloned(), files, wheels })
        })
        .as_ref()
        .map_err(String::as_str)
}

/// Why the library cannot be loaded, if so.
pub fn missing() -> Option<&'static str> {
    functions().err()
}

/// Version and file of the library that is loaded, or why it cannot be.
///
/// # Errors
/// What [`missing`] tells.
pub fn found() -> std::result::Result<(String, &'static Path), &'static str> {
    functions().map(|functions| (functions.version_text(), functions.library.1.as_path()))
}

impl Functions {
    /// Such as 13.0.2.
    fn version_text(&self) -> String {
        // SAFETY: only returns a number.
        let v = unsafe { (self.version)() };
        format!("{}.{}.{}", v / 10000, v / 100 % 100, v % 100)
    }
}

// Numbers of cublasLt.h, library_types.h and cublas_api.h.
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
/// f32 sums, never by way of TF32.
const COMPUTE_32F: c_int = 68;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
/// Of the epilogues only this one: the library's GELU is the tanh form, DINO's is erf.
const EPILOGUE_BIAS: u32 = 4;
const PREF_WORKSPACE: c_int = 1;
const PREF_REDUCTIONS: c_int = 3;
/// Of A, B, C, D: 5 to 8.
const PREF_ALIGNMENT: c_int = 5;
/// Splits of a sum meet in f32, not in the type of the result.
const REDUCTION_COMPUTE_TYPE: u32 = 2;
/// Bytes on which every matrix and every row of one begins.
const ALIGNMENT: usize = 16;
/// What the lack of the library costs: 1,125 images a second instead of 2,174 (`BENCHMARKS.md`).
pub const COST: &str = "on an H200, ViT-S/16 trains half as fast without it";
/// Most bytes of scratch memory: what NVIDIA recommends for Hopper.
const SCRATCH: usize = 32 << 20;

/// `cublasLtMatmulAlgo_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Default)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// A status other than 0.
type Tried<T> = std::result::Result<T, c_int>;

fn tried(status: c_int) -> Tried<()> {
    if status == 0 { Ok(()) } else { Err(status) }
}

/// Something the library made, and what destroys it.
struct Object(P, unsafe extern "C" fn(P) -> c_int);

impl Object {
    fn new(destroy: unsafe extern "C" fn(P) -> c_int, make: impl FnOnce(*mut P) -> c_int) -> Tried<Object> {
        let mut at = null_mut();
        tried(make(&mut at))?;
        Ok(Object(at, destroy))
    }

    fn set<T>(&self, set: SetAttribute, attribute: c_int, value: T) -> Tried<()> {
        // SAFETY: a live object; the value has the attribute's type and is copied.
        tried(unsafe { set(self.0, attribute, (&raw const value).cast(), size_of::<T>()) })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: made by the library, destroyed once; queued work does not refer to it.
        unsafe { (self.1)(self.0) };
    }
}

impl Matmul {
    /// The factors as the library sees them, B then A: rows, columns, whether transposed. A row-major matrix is its own transpose in
    /// column-major order, so C^T = B^T A^T is what is asked for; a leading dimension is the number of rows.
    fn factors(&self) -> [(usize, usize, bool); 2] {
        let [m, n, k] = self.size;
        match self.kind {
            Kind::Nt => [(k, n, true), (k, m, false)],
            Kind::Nn => [(n, k, false), (k, m, false)],
            Kind::Tn => [(n, k, false), (m, k, true)],
        }
    }

    /// Whether every row begins on [`ALIGNMENT`] bytes.
    fn aligned(&self) -> bool {
        let [b, a] = self.factors().map(|(rows, ..)| 2 * rows);
        let c = if self.f32_out { 4 } else { 2 } * self.size[1];
        [a, b, c].iter().all(|bytes| bytes.is_multiple_of(ALIGNMENT))
    }
}

/// How a matmul is run.
struct Chosen {
    desc: Object,
    /// B, A, C.
    layouts: [Object; 3],
    algorithm: Algorithm,
}

/// The library at work for one [`crate::Gpu`].
pub struct CublasLt {
    functions: &'static Functions,
    /// None: the library does not take it.
    chosen: HashMap<Matmul, Option<Chosen>>,
    preference: Object,
    handle: Object,
    /// Address and bytes.
    scratch: (u64, usize),
    launched: usize,
}

impl CublasLt {
    /// What `gemm` asks for; None is own kernels. Half of the workspace (address, bytes) at most, its end, becomes the library's.
    ///
    /// # Errors
    /// The library is asked for by name, and cannot be opened or the precision is f32.
    pub fn open(gemm: Gemm, precision: Precision, workspace: (u64, usize)) -> Result<Option<CublasLt>> {
        static REPORTED: Once = Once::new();
        if gemm == Gemm::Own || (gemm == Gemm::Auto && precision == Precision::F32) {
            return Ok(None);
        }
        if precision == Precision::F32 {
            return Err(Error::new("cuBLASLt is used for bf16 only").hint("--gemm own, or --precision bf16"));
        }
        let made = functions().map_err(str::to_string).and_then(|functions| {
            CublasLt::new(functions, workspace).map_err(|status| format!("it does not start: status {status}"))
        });
        match made {
            Ok(cublaslt) => {
                REPORTED.call_once(|| {
                    let from = cublaslt.functions.library.1.display();
                    dino_host::errln!("matmuls run on cuBLASLt {} ({from})", cublaslt.version());
                });
                Ok(Some(cublaslt))
            }
            Err(why) if gemm == Gemm::Cublaslt => Err(Error::new(format!("no cuBLASLt ({why})")).hint(format!(
                "{VARIABLE}=FILE names libcublasLt.so.13 or .12, which is in the CUDA toolkit and in PyPI's nvidia-cublas and \
                 nvidia-cublas-cu12; --gemm own does without"
            ))),
            Err(why) => {
                if !driver::named() {
                    REPORTED.call_once(|| {
                        dino_host::errln!("matmuls run on own kernels: no cuBLASLt ({why}); {COST}; {VARIABLE}=FILE names it");
                    });
                }
                Ok(None)
            }
        }
    }

    fn new(functions: &'static Functions, (at, bytes): (u64, usize)) -> Tried<CublasLt> {
        // SAFETY: writes the new handle; the calling thread has the GPU's context.
        let handle = Object::new(functions.destroy, |at| unsafe { (functions.create)(at) })?;
        // SAFETY: writes the new object.
        let preference = Object::new(functions.preference_destroy, |at| unsafe { (functions.preference_create)(at) })?;
        // Full chunks of 256 bytes, so that it begins on as many.
        let scratch = SCRATCH.min(bytes / 2) / 256 * 256;
        preference.set(functions.preference_set, PREF_WORKSPACE, scratch as u64)?;
        preference.set(functions.preference_set, PREF_REDUCTIONS, REDUCTION_COMPUTE_TYPE)?;
        for matrix in 0..4 {
            preference.set(functions.preference_set, PREF_ALIGNMENT + matrix, ALIGNMENT as u32)?;
        }
        let scratch = (at + (bytes - scratch) as u64, scratch);
        Ok(CublasLt { functions, chosen: HashMap::new(), preference, handle, scratch, launched: 0 })
    }

    /// Bytes of the workspace's end that are the library's.
    pub fn scratch(&self) -> usize {
        self.scratch.1
    }

    /// Matmuls given to the library so far; one that is captured counts once.
    pub fn launched(&self) -> usize {
        self.launched
    }

    /// Such as 13.0.2.
    pub fn version(&self) -> String {
        self.functions.version_text()
    }

    fn choose(&self, p: Matmul, bias: u64) -> Tried<Chosen> {
        let f = self.functions;
        // SAFETY: writes the new object.
        let desc = Object::new(f.desc_destroy, |at| unsafe { (f.desc_create)(at, COMPUTE_32F, R_32F) })?;
        let layout = |ty, rows: usize, cols: usize| {
            // SAFETY: writes the new object.
            Object::new(f.layout_destroy, |at| unsafe {
                (f.layout_create)(at, ty, rows as u64, cols as u64, rows as i64)
            })
        };
        let ([b, a], [m, n, _]) = (p.factors(), p.size);
        desc.set(f.desc_set, DESC_TRANSA, b.2 as i32)?;
        desc.set(f.desc_set, DESC_TRANSB, a.2 as i32)?;
        if p.bias {
            // The bias has the type of the result: NVIDIA lists no f32 bias of a bf16 one.
            desc.set(f.desc_set, DESC_EPILOGUE, EPILOGUE_BIAS)?;
            // The library reads from the pointer how the bias is aligned, and the answer is kept for every bias of this shape: so it is
            // asked with one that is on 16 bytes and no more, near by.
            desc.set(f.desc_set, DESC_BIAS_POINTER, bias / 256 * 256 + ALIGNMENT as u64)?;
        }
        let c = if p.f32_out { R_32F } else { R_16BF };
        let layouts = [layout(R_16BF, b.0, b.1)?, layout(R_16BF, a.0, a.1)?, layout(c, n, m)?];
        let (mut found, mut count) = (Heuristic::default(), 0);
        let [b, a, c] = layouts.each_ref().map(|l| l.0);
        // SAFETY: live objects; there is memory for the one result asked for.
        let status =
            unsafe { (f.heuristic)(self.handle.0, desc.0, b, a, c, c, self.preference.0, 1, &mut found, &mut count) };
        tried(status)?;
        tried(found.state)?;
        if count < 1 || found.workspace > self.scratch.1 {
            return Err(15); // not supported
        }
        Ok(Chosen { desc, layouts, algorithm: found.algorithm })
    }

    /// Queues C = A B, all row by row; addresses of C, A, B and the bias (bf16). False: not queued, for the library does not take it, or it
    /// would have to be asked first and `ask` forbids that.
    ///
    /// # Errors
    /// The library fails to queue a matmul that it has an algorithm for.
    pub fn multiply(&mut self, stream: &Stream, p: Matmul, [c, a, b, bias]: [u64; 4], ask: bool) -> Result<bool> {
        if p.size.contains(&0) || !p.aligned() || [c, a, b, bias].iter().any(|at| at % ALIGNMENT as u64 != 0) {
            return Ok(false);
        }
        if !self.chosen.contains_key(&p) {
            if !ask {
                return Ok(false);
            }
            let chosen = self.choose(p, bias).ok();
            self.chosen.insert(p, chosen);
        }
        let Some(chosen) = &self.chosen[&p] else { return Ok(false) };
        let (f, desc, [to_b, to_a, to_c]) = (self.functions, &chosen.desc, chosen.layouts.each_ref().map(|l| l.0));
        let (alpha, beta) = (1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        let (alpha, beta): (*const f32, *const f32) = (&alpha, &beta);
        let (alpha, beta, algorithm, (scratch, scratch_bytes)) =
            (alpha.cast(), beta.cast(), &chosen.algorithm, self.scratch);
        let (handle, stream) = (self.handle.0, stream.raw().cast());
        let bound = if p.bias { desc.set(f.desc_set, DESC_BIAS_POINTER, bias) } else { Ok(()) };
        let queued = bound.and_then(|()| {
            // SAFETY: live objects; alpha and beta live, and are read before this returns; the plan keeps every span inside its pool, and
            // the scratch memory is nobody else's.
            tried(unsafe {
                (f.matmul)(
                    handle,
                    desc.0,
                    alpha,
                    b,
                    to_b,
                    a,
                    to_a,
                    beta,
                    c,
                    to_c,
                    c,
                    to_c,
                    algorithm,
                    scratch,
                    scratch_bytes,
                    stream,
                )
            })
        });
        self.launched += 1;
        queued.map(|()| true).map_err(|status| {
            Error::new(format!("cuBLASLt fails a matmul of {:?} (m, n, k): status {status}", p.size))
                .hint("--gemm own does without cuBLASLt")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_of_cuda_12_takes_no_library_of_cuda_13() {
        for driver in [12000, 12080, 12090] {
            assert_eq!(files(Some(driver)), ["libcublasLt.so.12"]);
        }
        for driver in [Some(13000), Some(13010), None] {
            assert_eq!(files(driver), ["libcublasLt.so.13", "libcublasLt.so.12"]);
        }
    }
}

//! Where cuBLASLt is named but not there. A process of its own, for the library is looked for once.

use dino_gpu::cuda::cublaslt;
use dino_gpu::{Gemm, Gpu, Options, Precision};
use dino_host::device::Device;
use dino_kernel::backend::LossDims;
use dino_kernel::plan::Pools;
use tests::gpu::ready;

#[test]
fn auto_runs_on_own_kernels_and_a_demand_is_refused() {
    if !ready("auto_runs_on_own_kernels_and_a_demand_is_refused") {
        return;
    }
    assert!(cublaslt::use_library("/nowhere/libcublasLt.so.13".into()));
    assert!(cublaslt::missing().is_some_and(|why| why.contains("/nowhere")));
    let pools = Pools {
        weights: 16,
        grads: 16,
        slots: 32,
        acts: 16,
        stats: 16,
        state: 16,
        input: 0,
        loss: LossDims::NONE,
        longest: 0,
        head_dim: 0,
        widest: 0,
        filters: 0,
        sums: 0,
        lanes: 1,
        exchanged: 0,
    };
    let make = |precision, gemm| Gpu::create(&Options { precision, gemm, workspace: 256, ..Options::default() }, pools);
    for (precision, gemm) in [(Precision::Bf16, Gemm::Auto), (Precision::F32, Gemm::Auto), (Precision::Bf16, Gemm::Own)]
    {
        let gpu = make(precision, gemm).expect("own kernels need no library");
        assert!(gpu.name().ends_with("matmuls by own kernels"), "{}", gpu.name());
    }
    let refused = |precision| make(precision, Gemm::Cublaslt).err().expect("no library").to_string();
    let text = refused(Precision::Bf16);
    assert!(["/nowhere", "DINO_CUBLASLT", "--gemm own"].iter().all(|part| text.contains(part)), "{text}");
    assert!(refused(Precision::F32).contains("--precision bf16"), "{}", refused(Precision::F32));
}

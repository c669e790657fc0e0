//! Flags of the GPU.

/// What activations, and the weights that meet them in a matmul, are kept as. Statistics, gradients of weights, weights and
/// optimizer are f32 in either.
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

/// What runs the matmuls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Gemm {
    /// cuBLASLt in bf16 where it is found, else own kernels.
    #[default]
    Auto,
    /// This program's kernels: the bits depend on no library.
    Own,
    /// cuBLASLt, or an error.
    Cublaslt,
}

/// Flags of the GPU.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// Precision of activations and matmuls: bf16 on the tensor cores, or f32 for tight agreement with the CPU
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// How a step is launched
    #[arg(long, value_enum, default_value_t = Launch::Graph)]
    pub launch: Launch,
    /// Memory for partial sums and tiles of the loss, KiB; their order, and so the last bits of a run, depends on it
    #[arg(long, value_name = "KIB", default_value_t = 64 << 10, value_parser = workspace)]
    pub workspace: usize,
    /// Which kernels run the matmuls
    #[arg(long, value_enum, default_value_t = Gemm::Auto)]
    pub gemm: Gemm,
}

/// A workspace that holds the partial sums of any op.
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

/// Bytes of an activation.
pub fn act_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

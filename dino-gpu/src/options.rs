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

/// Which GPUs work on a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// All that the driver sees.
    All,
    /// These, by their numbers.
    List(Vec<u32>),
}

impl std::str::FromStr for Gpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Gpus, String> {
        if text == "all" {
            return Ok(Gpus::All);
        }
        let numbers: Option<Vec<u32>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
        let numbers = numbers.ok_or("`all`, or numbers such as 0,1,2,3")?;
        match (1..numbers.len()).find(|&i| numbers[..i].contains(&numbers[i])) {
            Some(i) => Err(format!("GPU {} is named twice", numbers[i])),
            None => Ok(Gpus::List(numbers)),
        }
    }
}

/// When the sum of gradients over several GPUs begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Overlap {
    /// As soon as some of them are complete, beside the rest of the backward pass.
    #[default]
    On,
    /// After the backward pass.
    Off,
}

/// Flags of the GPU.
#[derive(Clone, Debug, clap::Args)]
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
    /// The GPUs: `all`, or numbers as in 0,1,2,3, a process for each, which share the work; with one number, that GPU. Processes that
    /// a launcher has started take one of them each, by their number on the machine [default: the first]
    #[arg(long, value_name = "LIST")]
    pub gpus: Option<Gpus>,
    /// When several GPUs begin to sum their gradients; no bit depends on it
    #[arg(long, value_enum, default_value_t = Overlap::On)]
    pub overlap: Overlap,
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
        Options {
            precision: Precision::Bf16,
            launch: Launch::Graph,
            workspace: 64 << 10,
            gemm: Gemm::Auto,
            gpus: None,
            overlap: Overlap::On,
        }
    }
}

/// Bytes of an activation.
pub fn act_bytes(precision: Precision) -> usize {
    match precision {
        Precision::Bf16 => 2,
        Precision::F32 => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_gpus() {
        assert_eq!("all".parse(), Ok(Gpus::All));
        assert_eq!("3, 1".parse(), Ok(Gpus::List(vec![3, 1])));
        for (text, why) in
            [("", "all"), ("0,,1", "all"), ("-1", "all"), ("0-3", "all"), ("1,0,1", "GPU 1 is named twice")]
        {
            assert!(text.parse::<Gpus>().unwrap_err().contains(why), "{text}");
        }
    }
}

//! The `dino-gpu` program: the command line of `dino-host` on an NVIDIA GPU.

use std::process::ExitCode;

fn main() -> ExitCode {
    dino_host::cli::main::<dino_gpu::Gpu>("dino-gpu")
}

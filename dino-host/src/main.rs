//! The `dino-host` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    dino_host::cli::main::<dino_host::cpu::Cpu>("dino-host")
}

//! The `dino-host` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    dino_host::cli::on_cpu()
}

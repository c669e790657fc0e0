//! The `dino-gpu` program: the command line of `dino-host` on an NVIDIA GPU. Its backend is not built yet, and it says so.

fn main() {
    eprintln!(
        "dino-gpu: the CUDA backend is not built yet\n  hint: dino-host takes the same commands and trains on the CPU"
    );
    std::process::exit(2);
}

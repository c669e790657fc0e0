//! The flags of both benchmarks in one file: `cargo bench -p dino-host -- FLAGS` hands the same ones to each, so each knows the
//! other's and passes over them. The test of the documents reads command lines by it.

#![allow(dead_code)] // each of its readers uses a part

use clap::{Args, Parser, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;

/// What the benchmark of the CPU times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Case {
    Cifar6,
    Cifar12,
    Tiny16,
    Small16,
    #[value(name = "resnet50")]
    ResNet50,
    #[value(name = "resnet_small")]
    ResNetSmall,
    Feat1,
    Feat16,
    Knn,
}

/// A mode of `bench_step.py`, and whether glibc's allocator is told to keep its memory.
#[derive(Clone, Debug)]
pub struct Mode {
    /// `plain`, `tuned` or `compile`.
    pub mode: String,
    /// Whether the allocator keeps its memory.
    pub malloc: bool,
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(text: &str) -> Result<Mode, String> {
        let (mode, malloc) = text.strip_suffix("+malloc").map_or((text, false), |mode| (mode, true));
        if !["plain", "tuned", "compile"].contains(&mode) {
            return Err("plain, tuned or compile, each with +malloc or without".into());
        }
        Ok(Mode { mode: mode.into(), malloc })
    }
}

/// What is compared with, and how often.
#[derive(Args, Clone, Debug)]
pub struct Both {
    /// The folder of the reference's bench_step.py; without it, $DINO_REFERENCE
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// A Python that has PyTorch and torchvision, enough for the ResNets; without it, $DINO_PYTHON, else python3
    #[arg(long, value_name = "FILE")]
    pub python: Option<PathBuf>,
    /// Rounds: pairs of every case and mode
    #[arg(long)]
    pub rounds: Option<usize>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

impl Both {
    /// The reference's folder, if there is one.
    pub fn reference(&self) -> Option<PathBuf> {
        self.reference.clone().or_else(|| std::env::var_os("DINO_REFERENCE").map(PathBuf::from))
    }

    /// Whether a Python is named.
    pub fn names_python(&self) -> bool {
        self.python.is_some() || std::env::var_os("DINO_PYTHON").is_some()
    }

    /// The Python that runs it.
    pub fn python(&self) -> PathBuf {
        let named = self.python.clone().or_else(|| std::env::var_os("DINO_PYTHON").map(PathBuf::from));
        named.unwrap_or_else(|| "python3".into())
    }
}

/// What is timed on the CPU, and how.
#[derive(Args, Clone, Debug)]
pub struct Timed {
    /// Only these cases, by commas: cifar6, cifar12, tiny16, small16, resnet50, resnet_small, feat1, feat16, knn
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Case>,
    /// The reference's modes, by commas: plain, tuned, compile; +malloc makes glibc keep its memory
    #[arg(long, value_delimiter = ',', default_value = "plain,tuned,compile,tuned+malloc,compile+malloc")]
    pub modes: Vec<Mode>,
    /// Steps that are timed in a process, after two that are not
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
    /// Threads on both sides
    #[arg(long, default_value_t = 2)]
    pub threads: usize,
    /// Images that go through the model at once; 0 = as many as fit in a quarter of PyTorch's memory
    #[arg(long, default_value_t = 0)]
    pub micro_batch: usize,
    /// Crops go through the student one after another
    #[arg(long)]
    pub stream_crops: bool,
    /// A step of this case op by op
    #[arg(long, value_name = "CASE")]
    pub profile: Option<Case>,
    /// The matmul on the shapes of the workload
    #[arg(long)]
    pub sgemm: bool,
    /// One JSON line of ours alone, in this process
    #[arg(long, value_name = "CASE", hide = true)]
    pub ours: Option<Case>,
}

/// Times training steps, features and k-NN on the CPU, beside PyTorch
#[derive(Parser, Clone, Debug)]
pub struct Cpu {
    #[command(flatten)]
    pub both: Both,
    #[command(flatten)]
    pub timed: Timed,
}

/// Times the way from a JPEG file to its crops, beside Pillow and torchvision
#[derive(Parser, Clone, Debug)]
pub struct Crops {
    #[command(flatten)]
    pub both: Both,
    #[command(flatten)]
    other: Timed,
}

impl Crops {
    /// Whether the flags ask for something that only the other benchmark has.
    pub fn of_the_other(&self) -> bool {
        let Timed { only, profile, sgemm, ours, .. } = &self.other;
        !only.is_empty() || profile.is_some() || *sgemm || ours.is_some()
    }
}

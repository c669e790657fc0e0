//! Every command of the documents, run on tiny data: what a reader copies must work.
//!
//! Of a document the fenced blocks are taken in their order, in a folder of its own. A block in `sh` is commands, one a line; a block in
//! `toml` is the file that [`PATHS`] calls `FILE.toml`; a block in `text` is what a program prints. Any other block is an error, and so
//! is a line that is neither run nor named in [`NOT_RUN`]. The names of [`PATHS`] are written for small made data, and [`TINY`] makes the
//! work small. Flags and links in the prose are checked as well.

use crate::common::*;
use clap::{CommandFactory, Parser};
use dino_host::ablate::Comparison;
use dino_host::config::Config;
use image::ImageFormat::{Jpeg, Png};
use image::{ImageBuffer, Luma};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;
use tempfile::TempDir;

#[path = "../../benches/flags.rs"]
mod flags;

/// What is written in commands for something of the reader's, and what it is here.
const PATHS: &[(&str, &str)] = &[
    ("PATH", "a folder with `train` and `val`, three classes, images of 40 pixels"),
    ("RUN", "the folder of the last run that the document has trained; before that, of one that is finished"),
    ("OTHER", "the folder of another run, which is finished"),
    ("OUT", "a new folder or file"),
    ("WEIGHTS", "the checkpoint of a finished run"),
    ("FILE.toml", "the document's last block in `toml`"),
    ("TUNED", "the folder of the document's fine-tuning"),
    ("HEAD", "a file that one command writes and another one reads"),
    ("A.jpg", "an image"),
    ("B.jpg", "another one"),
    ("FRAMES", "a folder of three frames"),
    ("DAVIS", "a folder in DAVIS' layout, one sequence"),
    ("IMAGES", "a folder of images"),
    ("MASKS", "their masks, under the same names"),
];

/// The shape and length of a run that takes a second.
const RUN: &str = "--embed-dim 24 --depth 2 --heads 2 --patch-size 8 --out-dim 64 --hidden 32 --bottleneck 16 --batch 16 \
                   --warmup-epochs 1 --knn-images 300 --global-size 32 --local-size 16 --epochs 1";

/// Flags that make a command's work small: what a line of the command has is replaced, what it lacks is added.
const TINY: &[(&str, &str)] = &[
    ("ablate", "--rows loss --seeds 1"),
    ("finetune", "--epochs 1 --batch 16 --warmup-epochs 1"),
    ("eval linear", "--epochs 2"),
    ("eval video", "--size 32"),
    ("eval copies", "--size 32 --queries 3"),
    ("crops", "--images 2"),
    ("neighbours", "--queries 2"),
];

/// Lines that are not run, by their beginning, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("cargo test", "this test is a part of it"),
    ("cargo build", "the tests are built by it"),
    ("cargo check", "CI runs it"),
    ("cargo clippy", "CI runs it"),
    ("cargo fmt", "CI runs it"),
    (".ci/run", "it runs this test"),
    ("cargo install", "it writes outside of the project"),
    ("cargo +nightly fuzz", "it needs a nightly compiler; CI runs every target"),
    ("cargo run --release -p dino-gpu --example", "it is a program of another crate"),
    ("cargo bench -p tests", "it is a program of another crate"),
    ("python3 dino-gpu/emulate/mutations.py", "it takes minutes"),
    ("dino-host watch", "it goes on until Ctrl-C; tests/cli/report.rs runs it"),
    ("apt install", "it installs"),
    ("run=(", "it is of a script for a cluster"),
    ("[[ -e", "it is of a script for a cluster"),
    ("srun", "it is of a script for a cluster"),
];

/// Flags of other programs.
const FOREIGN: &[(&str, &str)] = &[
    (
        "cargo",
        "--workspace --release --all --all-targets --check --lib --test --bench --example --path --locked --version",
    ),
    (
        "dino-gpu and its example step_time",
        "--precision --launch --gemm --workspace --gpus --overlap --tiny --check-driver",
    ),
    ("mutations.py", "--only"),
    ("tensorboard", "--logdir"),
    ("mpirun", "-n --host --bind-to --map-by"),
    ("torchrun", "--no-python --nproc-per-node"),
    ("Slurm", "--nodes --ntasks-per-node --gpus-per-node --cpus-per-task --time --signal --mpi"),
    ("any", "--help"),
];

/// Flags with which a line of `dino-gpu` is one of its own; any other is tried with `dino-host`, which takes the same commands.
const OF_A_GPU: &[&str] = &["--precision", "--launch", "--gemm", "--workspace", "--gpus", "--overlap"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The documents, relative to the root.
fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    let pages = pages.filter(|p| p.extension().is_some_and(|e| e == "md"));
    let pages = pages.map(|p| p.strip_prefix(root()).unwrap().to_owned());
    let mut all: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"].map(PathBuf::from).into();
    all.extend(pages);
    all.sort();
    all
}

/// What all documents and examples work on, made once.
pub struct Inputs {
    dir: TempDir,
}

static INPUTS: LazyLock<Inputs> = LazyLock::new(Inputs::make);

impl Inputs {
    fn make() -> Inputs {
        let mut files = Vec::new();
        for (c, class) in ["cat", "dog", "owl"].into_iter().enumerate() {
            for i in 0..16 {
                let part = if i < 12 { "train" } else { "val" };
                files.push((format!("data/{part}/{class}/{i}.png"), image_bytes(Png, 20 * c as u32 + i)));
            }
        }
        for i in 0..3 {
            files.push((format!("frames/{i:03}.jpg"), image_bytes(Jpeg, 7)));
            files.push((format!("davis/JPEGImages/480p/bear/{i:05}.jpg"), image_bytes(Jpeg, 7)));
            files.push((format!("davis/Annotations/480p/bear/{i:05}.png"), mask()));
            files.push((format!("images/{i}.jpg"), image_bytes(Jpeg, 7)));
            files.push((format!("masks/{i}.png"), mask()));
        }
        files.push(("a.jpg".into(), image_bytes(Jpeg, 1)));
        files.push(("b.jpg".into(), image_bytes(Jpeg, 2)));
        let dir = folder(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>());
        let (data, run) = (dir.path().join("data"), dir.path().join("run"));
        succeeds(&format!("train --small {RUN} --data {{}} --out {{}}"), &[&data, &run]);
        Inputs { dir }
    }

    /// The one that there is.
    pub fn get() -> &'static Inputs {
        &INPUTS
    }

    /// A file or folder of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// An object on a background, of the size of `image_bytes(_, 7)`.
fn mask() -> Vec<u8> {
    let mask = ImageBuffer::from_fn(40, 36, |x, y| Luma([u8::from((10..25).contains(&x) && (8..28).contains(&y))]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    mask.write_to(&mut bytes, Png).unwrap();
    bytes.into_inner()
}

/// A fenced block.
struct Block {
    language: String,
    /// The number of the line before, from 1.
    line: usize,
    text: String,
}

/// The fenced blocks of a document, and the document without them.
fn blocks(text: &str) -> (Vec<Block>, String) {
    let (mut found, mut prose, mut open) = (Vec::new(), String::new(), None::<Block>);
    for (i, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block { language: language.trim().into(), line: i + 1, text: String::new() })
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.text += &format!("{line}\n"),
            (None, None) => prose += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    (found, prose)
}

/// The arguments of a line of `sh`, comment and single quotes taken away.
fn shell(line: &str) -> Vec<String> {
    let code = if line.starts_with('#') { "" } else { line.split(" #").next().unwrap_or("") };
    code.split_whitespace().map(|argument| argument.trim_matches('\'').to_string()).collect()
}

/// Sets flags: those that are there get other values, the others are added.
fn set(arguments: &mut Vec<String>, flags: &str) {
    for (flag, value) in flags.split_whitespace().collect::<Vec<_>>().chunks(2).map(|c| (c[0], c[1])) {
        match arguments.iter().position(|w| w == flag) {
            Some(i) => arguments[i + 1] = value.into(),
            None => arguments.extend([flag.to_string(), value.to_string()]),
        }
    }
}

/// Where a document's commands are run, and what they have left.
struct Desk {
    dir: TempDir,
    run: Option<PathBuf>,
    /// How often it was gone on with: every time for an epoch more.
    resumed: u64,
    toml: Option<PathBuf>,
    made: usize,
}

impl Desk {
    fn new() -> Desk {
        Desk { dir: tempfile::tempdir().unwrap(), run: None, resumed: 0, toml: None, made: 0 }
    }

    fn fresh(&mut self, name: &str) -> PathBuf {
        self.made += 1;
        self.dir.path().join(format!("{name}{}", self.made))
    }

    /// The run that is there: a copy, for commands write into it.
    fn run(&mut self) -> PathBuf {
        if self.run.is_none() {
            let copy = self.fresh("run");
            fs::create_dir(&copy).unwrap();
            let finished = INPUTS.path("run");
            for (path, bytes) in content(&finished) {
                let to = copy.join(path.strip_prefix(&finished).unwrap());
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::write(to, bytes).unwrap();
            }
            (self.run, self.resumed) = (Some(copy), 0);
        }
        self.run.clone().unwrap()
    }

    /// What an argument of a command is here.
    fn path_of(&mut self, argument: &str) -> String {
        let fixed: HashMap<&str, &str> = HashMap::from([
            ("PATH", "data"),
            ("OTHER", "run"),
            ("WEIGHTS", "run/checkpoint.safetensors"),
            ("A.jpg", "a.jpg"),
            ("B.jpg", "b.jpg"),
            ("FRAMES", "frames"),
            ("DAVIS", "davis"),
            ("IMAGES", "images"),
            ("MASKS", "masks"),
        ]);
        let (first, rest) = argument.split_once('/').map_or((argument, ""), |(first, rest)| (first, rest));
        let path = match first {
            "RUN" => self.run(),
            "OUT" => self.fresh("out"),
            "TUNED" => self.dir.path().join("tuned"),
            "HEAD" => self.dir.path().join("head.safetensors"),
            "FILE.toml" => self.toml.clone().expect("a block in toml before it"),
            name => match fixed.get(name) {
                Some(name) => INPUTS.path(name),
                None => return argument.into(),
            },
        };
        if rest.is_empty() { path } else { path.join(rest) }.to_str().unwrap().into()
    }

    /// Runs the program with these arguments, made small.
    fn dino(&mut self, mut arguments: Vec<String>) -> Result<(), String> {
        let has = |arguments: &[String], flag: &str| arguments.iter().any(|w| w == flag);
        let command = arguments.iter().take_while(|w| !w.starts_with('-')).cloned().collect::<Vec<_>>().join(" ");
        if command == "train" && has(&arguments, "--resume") {
            self.run();
            self.resumed += 1;
            set(&mut arguments, &format!("--epochs {}", 1 + self.resumed));
        } else if command == "train" {
            let out = self.fresh("run");
            (self.run, self.resumed) = (Some(out), 0);
            set(&mut arguments, RUN);
        } else if command == "ablate" {
            set(&mut arguments, RUN);
        }
        let tiny = TINY.iter().filter(|(of, _)| command == *of || command.starts_with(&format!("{of} ")));
        tiny.for_each(|(_, flags)| set(&mut arguments, flags));
        let sized = (command == "attend", "24"); // these have a size of their own only where a line gives it
        for (asked, size) in [sized, (command.starts_with("eval retrieval"), "32")] {
            if asked && has(&arguments, "--size") {
                set(&mut arguments, &format!("--size {size}"));
            }
        }
        if has(&arguments, "--images") && has(&arguments, "--masks") {
            set(&mut arguments, "--size 32");
        }
        let arguments: Vec<String> = arguments.iter().map(|w| self.path_of(w)).collect();
        let done = command_of(&arguments).current_dir(self.dir.path()).output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        match done.status.code() {
            Some(0) if !err.contains("panicked") => Ok(()),
            code => Err(format!("exit code {code:?} of {}\n{err}", arguments.join(" "))),
        }
    }

    /// Deals with a line of `sh`.
    fn line(&mut self, line: &str) -> Result<(), String> {
        let arguments = shell(line);
        let text = arguments.join(" ");
        let after = |start: &str| text.strip_prefix(start).map(|rest| rest.split(' ').map(str::to_string).collect());
        if arguments.is_empty() {
            return Ok(());
        }
        if let Some((_, why)) = NOT_RUN.iter().find(|(start, _)| text.starts_with(start)) {
            return skipped(line, why);
        }
        if let Some(arguments) = after("dino-host ").or(after("cargo run --release -p dino-host -- ")) {
            return self.dino(arguments);
        }
        // `mpi.rs` starts several, and so does `gpus.rs`; here the program's own arguments are tried.
        if text.starts_with("mpirun ") || text.starts_with("torchrun ") {
            let programs = [" dino-host ", " dino-gpu "];
            let at = programs.iter().find_map(|program| text.find(program)).ok_or("it starts no program of ours")?;
            return self.line(&text[at + 1..]);
        }
        if let Some(arguments) = after("dino-gpu ") {
            let own = OF_A_GPU.iter().find(|flag| arguments.iter().any(|w| w == *flag));
            return match own {
                Some(flag) => skipped(line, &format!("{flag} is of a GPU")),
                None => self.dino(arguments),
            };
        }
        if let Some(arguments) = after("cargo bench -p dino-host") {
            let flags: Vec<String> = arguments.into_iter().skip_while(|w| w != "--").skip(1).collect();
            let flags = || ["bench".to_string()].into_iter().chain(flags.clone());
            flags::Cpu::try_parse_from(flags()).map_err(|e| e.to_string())?;
            flags::Crops::try_parse_from(flags()).map_err(|e| e.to_string())?;
            return skipped(line, "it takes minutes; both benchmarks know its flags");
        }
        Err("it is neither run nor listed as not run".into())
    }

    /// Deals with a block.
    fn block(&mut self, block: &Block) -> Result<(), String> {
        match block.language.as_str() {
            "sh" => {
                let lines = block.text.replace("\\\n", " ");
                lines.lines().try_for_each(|line| {
                    let started = Instant::now();
                    self.line(line).map_err(|e| format!("`{line}`: {e}"))?;
                    eprintln!("{:6.2} s  {line}", started.elapsed().as_secs_f64());
                    Ok(())
                })
            }
            "toml" => {
                let path = self.fresh("config").with_extension("toml");
                fs::write(&path, &block.text).unwrap();
                // Keys, or variants of them.
                let keys = Config::parse("the block", &block.text);
                keys.map(drop).or_else(|e| Comparison::from_file(&path).map(drop).map_err(|_| e.to_string()))?;
                self.toml = Some(path);
                Ok(())
            }
            "text" => match block.text.lines().find(|line| is_command(line)) {
                Some(line) => Err(format!("`{line}` is a command: the block is one in sh")),
                None => Ok(()),
            },
            other => Err(format!("a block in {other:?}, which is none of sh, toml and text")),
        }
    }
}

/// Whether a line is one of `sh`.
fn is_command(line: &str) -> bool {
    let rest = ["dino-host ", "dino-gpu ", "cargo "].iter().find_map(|start| line.strip_prefix(start));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// The program with these arguments.
fn command_of(arguments: &[String]) -> std::process::Command {
    let mut command = command("", &[]);
    command.args(arguments);
    command
}

fn skipped(line: &str, why: &str) -> Result<(), String> {
    eprintln!("SKIPPED: `{line}`: {why}");
    Ok(())
}

/// Runs the commands of one document.
#[track_caller]
fn works(document: &str) {
    let text = fs::read_to_string(root().join(document)).unwrap();
    let (blocks, _) = blocks(&text);
    let mut desk = Desk::new();
    for block in blocks {
        if let Err(e) = desk.block(&block) {
            panic!("{document}, the block at line {}: {e}", block.line);
        }
    }
}

/// A test a document, so that they share the cores.
macro_rules! documents {
    ($($test:ident $document:literal)*) => {
        $(#[test]
        fn $test() {
            works($document);
        })*

        #[test]
        fn every_document_is_among_them() {
            let known: BTreeSet<PathBuf> = [$($document),*].into_iter().map(PathBuf::from).collect();
            assert_eq!(documents().into_iter().collect::<BTreeSet<_>>(), known);
        }
    };
}

documents! {
    commands_of_the_readme "README.md"
    commands_for_contributors "CONTRIBUTING.md"
    commands_of_the_architecture "ARCHITECTURE.md"
    commands_about_data "docs/data.md"
    commands_of_evaluations "docs/evaluations.md"
    commands_for_a_gpu "docs/gpu.md"
    commands_of_fine_tuning "docs/fine-tuning.md"
    commands_of_reading_a_run "docs/reading-a-run.md"
    commands_for_several_processes "docs/clusters.md"
    commands_of_training "docs/training.md"
    commands_of_weights "docs/weights.md"
}

/// The arguments that begin with two dashes.
fn flags_in(text: &str) -> BTreeSet<String> {
    let arguments = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    let flag = |w: &&str| w.starts_with("--") && w[2..].starts_with(|c: char| c.is_ascii_lowercase());
    arguments.filter(flag).map(str::to_string).collect()
}

#[test]
fn every_flag_that_is_named_exists() {
    let commands = ["train", "eval knn", "eval linear", "eval logistic", "eval retrieval", "eval copies", "eval video"];
    let more = [
        "ablate",
        "finetune",
        "classify",
        "eval attention",
        "features",
        "convert",
        "attend",
        "pca",
        "neighbours",
        "crops",
        "report",
        "plan",
    ];
    let mut known: BTreeSet<String> = FOREIGN.iter().flat_map(|(_, flags)| flags_in(flags)).collect();
    known.extend(flags_in(&flags::Cpu::command().render_help().to_string()));
    for command in commands.into_iter().chain(more) {
        known.extend(flags_in(&succeeds(&format!("{command} --help"), &[])));
    }
    for document in documents() {
        let text = fs::read_to_string(root().join(&document)).unwrap();
        let unknown: Vec<_> = flags_in(&text).difference(&known).cloned().collect();
        assert!(unknown.is_empty(), "{}: {unknown:?} are flags of nothing", document.display());
    }
}

#[test]
fn links_lead_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(root().join(&document)).unwrap();
        let (_, prose) = blocks(&text);
        for link in prose.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap();
            if !path.is_empty() && !link.contains("://") {
                let to = root().join(&document).with_file_name("").join(path);
                assert!(to.exists(), "{}: {link} leads nowhere", document.display());
            }
        }
    }
}

/// What is listed as a path occurs somewhere, and the test's own names are those of the documents.
#[test]
fn every_place_is_used() {
    let all: String = documents().iter().map(|d| fs::read_to_string(root().join(d)).unwrap()).collect();
    for (name, what) in PATHS {
        assert!(all.contains(name), "no document has {name} ({what})");
    }
}

//! The command line, generic over the device: `dino-host` runs it on the CPU.

mod ablate;
mod arguments;
mod attend;
mod classify;
mod convert;
mod crops;
mod eval;
mod features;
mod finetune;
mod help;
mod neighbours;
mod pca;
mod plan;
mod report;
mod shared;
mod train;
mod watch;

use crate::device::Device;
use crate::dist::{self, Group, launch};
use crate::error::{Error, Result};
use crate::io::output;
use crate::planning::check;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// DINO v1: self-distillation with no labels
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli<O: Args> {
    /// Print results and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command<O>,
}

#[derive(Subcommand)]
enum Command<O: Args> {
    /// Train a student and its teacher
    Train(train::Train<O>),
    /// Train the paper's variants of a configuration and compare what comes of them
    Ablate(ablate::Ablate<O>),
    /// Train a backbone and a classifier on labeled images
    Finetune(finetune::Finetune<O>),
    /// Print the most probable classes of images, by a fine-tuned network
    Classify(classify::Classify<O>),
    /// Evaluate features
    #[command(subcommand)]
    Eval(eval::Eval<O>),
    /// Write the features of every image, for other programs
    Features(features::Features<O>),
    /// Convert weights of any known format to that of another program
    Convert(convert::Convert),
    /// Draw what the class token of a block attends to, in an image or over the frames of a video
    Attend(attend::Attend<O>),
    /// Color patches by the first three principal components of their tokens
    Pca(pca::Pca<O>),
    /// Draw the images whose features are most similar
    Neighbours(neighbours::Neighbours<O>),
    /// Draw the crops that a run would see, a row an image
    Crops(crops::Crops),
    /// Write what a run did and what its features can do as one HTML page
    Report(report::Report<O>),
    /// Show a run in the browser while it goes on: the page of `report`, on this machine alone
    Watch(watch::Watch<O>),
    /// Print every pool and tensor of a training step and their bytes; allocates nothing
    Plan(plan::Plan<O>),
    /// Print a shell's completions of all commands and flags
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Write a manual page for each command
    Man {
        /// Folder to write them to
        #[arg(long, value_name = "DIR")]
        out: std::path::PathBuf,
    },
    /// Check this machine: every gradient against finite differences in f64; on a GPU what is found there, and every op against the CPU
    Check,
}

impl<O: Args> Command<O> {
    /// The device's flags, of a command whose work several processes share; none of another.
    fn device(&self) -> Option<&O> {
        match self {
            Command::Train(args) => Some(&args.shared.device),
            Command::Features(args) => Some(&args.shared.device),
            Command::Eval(what) => what.device(),
            _ => None,
        }
    }
}

/// The `dino-host` program. It is compiled here, in the library, so that it is compiled once, beside everything else, and the program
/// itself is a call.
pub fn on_cpu() -> ExitCode {
    main::<crate::cpu::Cpu>("dino-host")
}

/// Runs the program on device `D`: 0 done, 1 a check failed, 2 an error, 130 interrupted.
pub fn main<D: Device>(program: &str) -> ExitCode {
    // Of processes that a launcher started, one prints.
    let place = launch::from_environment().and_then(|launch| launch.place);
    let rank = place.map_or(0, |(rank, _)| rank);
    if rank > 0 {
        output::silence();
    }
    match parse::<D>(program) {
        Ok(cli) => {
            output::set_quiet(cli.quiet);
            start::<D>(program, cli.command).unwrap_or_else(|e| {
                print_for_one(rank);
                failln!("{program}: {e}");
                ExitCode::from(2)
            })
        }
        // Help and version are not errors.
        Err(e) if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let text = e.render().to_string();
            if e.use_stderr() {
                errln!("{}", text.trim_end());
                return ExitCode::from(2);
            }
            outln!("{}", text.trim_end());
            match output::finish() {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    failln!("{program}: {e}");
                    ExitCode::from(2)
                }
            }
        }
        Err(e) => {
            failln!("{program}: {}", brief(&e.render().to_string()));
            ExitCode::from(2)
        }
    }
}

/// The arguments, with names of flags that other programs have taken for ours.
fn parse<D: Device>(program: &str) -> Result<Cli<D::Options>, clap::Error> {
    let arguments = arguments::ours(std::env::args_os());
    let mut command = described::<D>(program);
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

/// All commands and flags, with complete help.
fn described<D: Device>(program: &str) -> clap::Command {
    let version = format!("{} ({})", env!("CARGO_PKG_VERSION"), crate::linalg::gemm::instructions());
    help::completed(Cli::<D::Options>::command().name(program.to_string()).version(version))
}

/// Runs a command: in the group of processes that a launcher has started, in as many as the device's flags ask for, or alone.
fn start<D: Device>(program: &str, command: Command<D::Options>) -> Result<ExitCode> {
    let shared = command.device();
    let group = Group::join(|launch| D::engine(shared.unwrap_or(&D::Options::default()), launch))?;
    if let Some(options) = shared.filter(|_| group.size() == 1) {
        let processes = D::processes(options)?;
        if processes > 1 {
            return dist::start::start(processes).map(ExitCode::from);
        }
    }
    Ok(together::<D>(program, command, &group))
}

/// Runs a command in a group of processes, which may be one alone.
fn together<D: Device>(program: &str, command: Command<D::Options>, group: &Group) -> ExitCode {
    if !group.is_first() {
        output::silence();
    }
    match dispatch::<D>(program, command, group).and_then(|code| output::finish().map(|()| code)) {
        Ok(code) => {
            group.finish(code);
            ExitCode::from(code)
        }
        Err(e) if group.ends_together() => {
            failln!("{program}: {e}");
            group.finish(2);
            ExitCode::from(2)
        }
        // The others have no error, and would wait for this one.
        Err(Error { message, hint }) => {
            print_for_one(group.rank());
            failln!("{program}: {}", Error { message: group.named(group.rank(), message), hint });
            group.abort(2);
            ExitCode::from(2)
        }
    }
}

/// From now on this process prints, for it has an error of its own; unless all have the same, which the first one has printed by then, and
/// whoever started them has ended them.
fn print_for_one(rank: usize) {
    thread::sleep(Duration::from_millis(if rank == 0 { 0 } else { 300 + 20 * rank as u64 }));
    output::print_again();
}

/// Refuses several processes for a command that works in one.
fn alone(group: &Group) -> Result<()> {
    if group.size() == 1 {
        return Ok(());
    }
    group.end_together();
    let named = std::env::args().skip(1).take_while(|argument| !argument.starts_with('-')).take(2);
    let command = named.collect::<Vec<_>>().join(" ");
    Err(Error::new(format!("{command} works in one process, and {} were launched", group.size())).hint(
        "start it without a launcher; train, features and eval knn, linear, logistic and retrieval share their work",
    ))
}

/// The parser's message of several lines as one, and a hint.
fn brief(text: &str) -> Error {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let (mut message, mut hint) = (Vec::new(), "--help lists the commands and flags".to_string());
    for line in lines.by_ref().take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more")) {
        match line.strip_prefix("tip: ").or(line.strip_prefix("[").and_then(|l| l.strip_suffix("]"))) {
            Some(tip) => hint = tip.into(),
            None => message.push(line.trim_start_matches("error: ")),
        }
    }
    let message = message.join(" ");
    // "unexpected argument '--num-workers' found"
    let instead =
        message.split('\'').nth(1).filter(|_| message.contains("unexpected argument")).and_then(arguments::instead);
    Error::new(message).hint(instead.map_or(hint, String::from))
}

/// Writes a manual page for each command into a folder.
fn manual(command: clap::Command, out: &std::path::Path) -> Result<u8> {
    let cannot = |e: std::io::Error| {
        Error::new(format!("cannot write the manual to {}: {e}", out.display())).hint("--out names another folder")
    };
    std::fs::create_dir_all(out).map_err(cannot)?;
    clap_mangen::generate_to(command, out).map_err(cannot)?;
    errln!("{}: man -l {}", out.display(), out.join("*.1").display());
    Ok(0)
}

fn dispatch<D: Device>(program: &str, command: Command<D::Options>, group: &Group) -> Result<u8> {
    if command.device().is_none() {
        alone(group)?;
    }
    match command {
        Command::Train(args) => train::run::<D>(args, group),
        Command::Ablate(args) => ablate::run::<D>(args),
        Command::Finetune(args) => finetune::run::<D>(args),
        Command::Classify(args) => classify::run::<D>(args),
        Command::Eval(what) => eval::run::<D>(what, group),
        Command::Features(args) => features::run::<D>(args, group),
        Command::Convert(args) => convert::run(args),
        Command::Attend(args) => attend::run::<D>(args),
        Command::Pca(args) => pca::run::<D>(args),
        Command::Neighbours(args) => neighbours::run::<D>(args),
        Command::Crops(args) => crops::run::<D>(args),
        Command::Report(args) => report::run::<D>(args),
        Command::Watch(args) => watch::run::<D>(args),
        Command::Plan(args) => plan::run::<D>(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut described::<D>(program), program, &mut script);
            outln!("{}", String::from_utf8_lossy(&script).trim_end());
            Ok(0)
        }
        Command::Man { out } => manual(described::<D>(program), &out),
        Command::Check => match D::check() {
            Some(checked) => checked.map(|()| 0),
            None => Ok(if check::run() { 0 } else { 1 }),
        },
    }
}

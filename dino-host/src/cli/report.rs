//! The command `report`.

use super::shared::{Shared, open, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::report;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Args)]
pub struct Report<O: Args> {
    /// Folder of a run; of several, their curves are laid over each other, beside the settings that differ
    #[arg(value_name = "DIR", required = true, num_args = 1..)]
    dirs: Vec<PathBuf>,
    /// Where the run's images are now [default: where they were]
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// The page [default: DIR/report.html; of several runs comparison.html]
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Most training images used for neighbors and confusion; a quarter as many test images are the queries
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    images: usize,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    shared: Shared<O>,
}

/// Runs the command `report`; returns the exit code.
///
/// # Errors
/// The device is not there, the run or its images cannot be read, or the page cannot be written.
pub fn run<D: Device>(args: Report<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    let [dir] = args.dirs.as_slice() else {
        let out = args.out.unwrap_or_else(|| "comparison.html".into());
        errln!("{}", report::compare(&args.dirs, &out)?);
        if args.open {
            browse(&out);
        }
        return Ok(0);
    };
    let out = args.out.unwrap_or_else(|| dir.join("report.html"));
    let message = report::write::<D>(&args.shared.device, dir, &out, args.images.max(1), |recorded, config| {
        let data = args.data.as_deref().or(recorded);
        let (Some(data), Some(config)) = (data, config) else {
            return Err(Error::new("there is no run.json that names them").hint("--data PATH names the images"));
        };
        open(data, config)
    })?;
    if let Err(e) = report::events(dir) {
        errln!("note: no event file for TensorBoard: {e}");
    }
    errln!("{message}");
    if args.open {
        browse(&out);
    }
    Ok(0)
}

/// Opens a page with the system's browser. That there is none is no error of the report.
fn browse(page: &Path) {
    let program = match std::env::consts::OS {
        "macos" => "open",
        "windows" => "explorer",
        _ => "xdg-open",
    };
    let mut command = Command::new(program);
    let quiet = command.arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Err(e) = quiet.spawn() {
        errln!("note: {program} did not start: {e}");
    }
}

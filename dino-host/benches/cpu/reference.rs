//! PyTorch's side: `bench_step.py` of the reference, and `reference_resnet.py` beside this file; a process a measurement.

use crate::flags::{Case, Mode};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

impl Mode {
    /// As the flag has it.
    pub fn name(&self) -> String {
        format!("{}{}", self.mode, if self.malloc { "+malloc" } else { "" })
    }

    /// Whether PyTorch is run without tuning.
    pub fn plain(&self) -> bool {
        self.mode == "plain"
    }
}

/// What the reference reports of itself.
pub struct Theirs {
    /// Of a step or a pass.
    pub median_ms: f64,
    import_mib: f64,
    peak_mib: f64,
}

impl Theirs {
    /// As `Measured::memory_mib`, without what importing PyTorch takes.
    pub fn memory_mib(&self, case: Case, weights_mib: f64) -> f64 {
        if case.config().is_some() { self.peak_mib - self.import_mib - 5.0 * weights_mib } else { self.peak_mib }
    }
}

/// The scripts and the Python that runs them.
pub struct Reference {
    script: Option<PathBuf>,
    python: PathBuf,
}

impl Reference {
    /// The script in `folder`, without which only ResNets have a reference.
    ///
    /// # Errors
    /// There is no `bench_step.py` in the folder.
    pub fn new(folder: Option<&Path>, python: &Path) -> Result<Reference, String> {
        let script = folder.map(|folder| folder.join("bench_step.py"));
        match script {
            Some(script) if !script.is_file() => Err(format!("--reference: there is no {}", script.display())),
            script => Ok(Reference { script, python: python.into() }),
        }
    }

    /// The script of a case.
    pub fn script(&self, case: Case) -> Option<PathBuf> {
        let resnet = || Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/cpu/reference_resnet.py");
        if case.is_resnet() { Some(resnet()) } else { self.script.clone() }
    }

    /// One measurement.
    ///
    /// # Errors
    /// The script cannot be run, fails, or prints no result.
    pub fn run(&self, case: Case, mode: &Mode, threads: usize, steps: usize) -> Result<Theirs, String> {
        let script =
            self.script(case).ok_or_else(|| format!("--reference names no folder, which {} takes", case.name()))?;
        let mut command = Command::new(&self.python);
        command.arg(&script).arg(case.name()).args(["--mode", &mode.mode, "--limit", "30"]);
        command.args(["--threads", &threads.to_string(), "--steps", &steps.to_string()]);
        if mode.malloc {
            command.env("MALLOC_MMAP_THRESHOLD_", "8589934592").env("MALLOC_TRIM_THRESHOLD_", "17179869184");
            command.env("MALLOC_TOP_PAD_", "67108864");
        }
        let failed = |why: String| format!("{} {}: {why}", self.python.display(), script.display());
        let done = command.output().map_err(|e| failed(e.to_string()))?;
        if !done.status.success() {
            return Err(failed(String::from_utf8_lossy(&done.stderr).into_owned()));
        }
        // Several lines are several ways of doing the same (k-NN by chunks), or parts of it, which have no `clean` count of their own.
        let text = String::from_utf8_lossy(&done.stdout);
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let rows = rows.filter(|row| row["part"].is_null());
        let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let best = rows.min_by(|a, b| number(a, "median_ms").total_cmp(&number(b, "median_ms")));
        let row = best.ok_or_else(|| failed(format!("no result in {text}")))?;
        let [median_ms, import_mib, peak_mib] =
            ["median_ms", "rss_import_mib", "rss_peak_mib"].map(|key| number(&row, key));
        Ok(Theirs { median_ms, import_mib, peak_mib })
    }
}

//! Pillow's and torchvision's side: `bench_step.py aug` of the reference, a process a measurement.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The script and the Python that runs it.
pub struct Reference {
    script: PathBuf,
    python: PathBuf,
}

/// Writes the files that `bench_step.py aug` decodes: its `synthetic_jpeg` is taken out of the script, which is a program and
/// cannot be imported.
const WRITE: &str = "
import ast, io, sys, numpy as np
text = open(sys.argv[1]).read()
wanted = [f for f in ast.parse(text).body if getattr(f, 'name', '') == 'synthetic_jpeg']
exec(ast.get_source_segment(text, wanted[0]))
for seed in range(4):
    open(f'{sys.argv[2]}/{seed}.jpg', 'wb').write(synthetic_jpeg(seed=seed))
";

impl Reference {
    /// The script in `folder`.
    ///
    /// # Errors
    /// There is no `bench_step.py` in the folder.
    pub fn new(folder: &Path, python: &Path) -> Result<Reference, String> {
        let script = folder.join("bench_step.py");
        if !script.is_file() {
            return Err(format!("--reference: there is no {}", script.display()));
        }
        Ok(Reference { script, python: python.into() })
    }

    fn output(&self, command: &mut Command) -> Result<String, String> {
        let failed = |why: String| format!("{} {}: {why}", self.python.display(), self.script.display());
        let done = command.output().map_err(|e| failed(e.to_string()))?;
        if !done.status.success() {
            return Err(failed(String::from_utf8_lossy(&done.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// Writes the files that both sides decode.
    ///
    /// # Errors
    /// Python cannot be run, or fails.
    pub fn write_files(&self, folder: &Path) -> Result<(), String> {
        self.output(Command::new(&self.python).args(["-c", WRITE]).arg(&self.script).arg(folder)).map(drop)
    }

    /// Milliseconds an image: decoding and crops, decoding alone.
    ///
    /// # Errors
    /// The script cannot be run, fails, or prints no such numbers.
    pub fn run(&self) -> Result<[f64; 2], String> {
        let mut command = Command::new(&self.python);
        command.arg(&self.script).args(["aug", "--threads", "1", "--limit", "10"]);
        let text = self.output(&mut command)?;
        let row: Value = serde_json::from_str(text.trim()).map_err(|e| format!("{e}: {text}"))?;
        let number = |key: &str| row[key].as_f64().ok_or(format!("no {key} in {text}"));
        Ok([number("median_ms")?, number("decode_ms")?])
    }
}

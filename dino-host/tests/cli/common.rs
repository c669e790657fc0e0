//! The program as a process, and folders for it to work on.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A model that trains hundreds of steps in a second.
pub const TINY: &str = "--small --embed-dim 24 --depth 2 --heads 2 --patch-size 8 --out-dim 64 --hidden 32 --bottleneck 16 \
                        --batch 8 --warmup-epochs 1";
/// Training images of [`cifar`], and steps of an epoch of [`TINY`].
pub const TRAIN: usize = 72;
/// Steps of an epoch.
pub const STEPS: usize = TRAIN / 8;
/// Test images of [`cifar`].
pub const TEST: usize = 16;

/// What a process did.
pub struct Done {
    /// The exit code.
    pub code: i32,
    /// What it wrote to stdout.
    pub out: String,
    /// What it wrote to stderr.
    pub err: String,
}

/// The arguments of a command line; `{}` stands for the next path.
pub fn arguments(line: &str, paths: &[&Path]) -> Vec<String> {
    let mut paths = paths.iter();
    let argument = |w: &str| if w == "{}" { paths.next().unwrap().to_str().unwrap().into() } else { w.to_string() };
    line.split_whitespace().map(argument).collect()
}

/// The program with the arguments of `line`.
pub fn command(line: &str, paths: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dino-host"));
    command.args(arguments(line, paths)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    #[cfg(unix)]
    hear_signals(&mut command);
    command
}

/// A signal that is ignored where the tests run (a shell ignores SIGINT for what it starts in the background) would stay ignored in
/// the program that is tested.
#[cfg(unix)]
pub fn hear_signals(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let all = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2, libc::SIGXCPU];
    let reset = move || {
        for signal in all {
            // SAFETY: signal(2) may be called between fork and exec; the default action needs no handler of ours.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock, and calls nothing but signal(2).
    unsafe { command.pre_exec(reset) };
}

/// Runs the program to its end. It must not panic, whatever it is given.
#[track_caller]
pub fn dino(line: &str, paths: &[&Path]) -> Done {
    let done = command(line, paths).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(done.stdout), text(done.stderr));
    assert!(!err.contains("panicked"), "{line}: {err}");
    Done { code: done.status.code().unwrap_or_else(|| panic!("{line}: {}: {err}", done.status)), out, err }
}

/// Runs the program, which must succeed; gives what it printed.
#[track_caller]
pub fn succeeds(line: &str, paths: &[&Path]) -> String {
    let done = dino(line, paths);
    assert_eq!(done.code, 0, "{line}: {}", done.err);
    done.out
}

/// Runs the program, which must refuse: exit code 2, nothing on stdout, one line that states what and one that states what to do, last
/// on stderr. Gives the two.
#[track_caller]
pub fn refuses(line: &str, paths: &[&Path]) -> String {
    let done = dino(line, paths);
    assert_eq!((done.code, done.out.as_str()), (2, ""), "{line}: {}", done.err);
    let at = done.err.find("dino-host: ").unwrap_or_else(|| panic!("{line}: {}", done.err));
    let last: Vec<&str> = done.err[at..].lines().collect();
    assert!(last.len() == 2 && last[1].starts_with("  hint: ") && last[1].len() > 12, "{line}: {}", done.err);
    last.join("\n")
}

/// [`refuses`], and every one of `expected` is in the message.
#[track_caller]
pub fn refuses_with(line: &str, paths: &[&Path], expected: &[&str]) {
    let text = refuses(line, paths);
    expected.iter().for_each(|s| assert!(text.contains(s), "{s:?} is not reported by {line}: {text}"));
}

/// CIFAR-10 records with pixels that differ.
pub fn records(count: usize, seed: u32) -> Vec<u8> {
    let mut x = seed;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    let mut record = |i: usize| {
        let (base, slope) = (next(), next() % 8);
        let pixel = |p: usize| base.wrapping_add(((p / 32) as u8).wrapping_mul(slope)).wrapping_add((p % 32) as u8);
        [vec![(i % 10) as u8], (0..3072).map(|p| pixel(p) ^ (next() >> 4)).collect()].concat()
    };
    (0..count).flat_map(&mut record).collect()
}

/// A folder with [`TRAIN`] and [`TEST`] images in CIFAR-10's format.
pub fn cifar() -> TempDir {
    folder(&[("train.bin", records(TRAIN, 1)), ("test.bin", records(TEST, 2))])
}

/// A folder with these files.
pub fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// An image of a colored gradient, encoded.
pub fn image_bytes(format: image::ImageFormat, seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(40 + seed % 7, 36, |x, y| {
        image::Rgb([(5 * x + 31 * seed) as u8, (7 * y) as u8, (x * y + seed) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// Every file below a folder and its bytes.
pub fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(content(&path)) } else { files.push((path.clone(), fs::read(path).unwrap())) }
    }
    files.sort();
    files
}

/// The rows of a run's log.
pub fn log(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same without what a clock gives.
pub fn log_without_clock(run: &Path) -> Vec<Value> {
    let mut rows = log(run);
    for row in rows.iter_mut().filter_map(Value::as_object_mut) {
        for clock in ["images_per_second", "data_wait", "seconds", "time"] {
            row.remove(clock);
        }
    }
    rows
}

/// The header of a safetensors file.
pub fn header(bytes: &[u8]) -> Value {
    let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    serde_json::from_slice(&bytes[8..8 + n]).unwrap()
}

/// The file with another header before the same data.
pub fn with_header(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut header = header(bytes);
    change(&mut header);
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + n..]].concat()
}

//! `dino-gpu check`: what there is on this machine, and whether the GPU computes what the CPU does.

use crate::cuda::fatbin::{self, FATBIN, Image};
use crate::cuda::{Card, cublaslt, driver};
use crate::options::{Gemm, Launch, Options, Precision};
use crate::{Gpu, cuda};
use cust::device::DeviceAttribute;
use dino_host::error::{Error, Result};
use dino_host::outln;
use dino_host::planning::agreement::{self, Compared, bf16_bound, f32_bound};
use std::collections::BTreeSet;
use std::time::Instant;

/// A workspace of KiB that small sizes cut into strips and tiles too, as the tests have it.
const WORKSPACE: usize = 256;

/// Prints what was found and how near the CPU the GPU is.
///
/// # Errors
/// There is no GPU that can be used, it fails, or an op differs from the CPU's by more than rounding explains.
pub fn run() -> Result<()> {
    let started = Instant::now();
    let card = found()?;
    compare(card)?;
    outln!("all good: {} computes what the CPU does ({:.1} s)", card.name, started.elapsed().as_secs_f64());
    Ok(())
}

/// Prints driver, card, kernels and cuBLASLt, line by line, so that what is there is known where the next is not.
fn found() -> Result<&'static Card> {
    let count = Card::count()?;
    let version = driver::version().unwrap_or(0);
    let release = std::fs::read_to_string("/sys/module/nvidia/version").ok().filter(|_| !driver::named());
    let release = release.map_or(String::new(), |release| format!("{}, ", release.trim()));
    outln!("driver: {release}CUDA {}.{}", version / 1000, version % 1000 / 10);
    let card = Card::get()?;
    let gib = |bytes: u64| bytes as f64 / f64::powi(2.0, 30);
    let (free, total) = card.free()?;
    let ((major, minor), processors) = (card.capability, card.processors);
    outln!(
        "GPU: {}, the first of {count}, compute capability {major}.{minor}, {processors} multiprocessors",
        card.name
    );
    // The driver puts the size of a MIG slice into its name.
    let slice = if card.name.contains("MIG") { "a MIG slice" } else { "no MIG slice by its name" };
    let ecc = match cuda::attribute(DeviceAttribute::EccEnabled)? {
        0 => "ECC off",
        _ => "ECC on",
    };
    outln!("memory: {:.2} of {:.2} GiB free, {ecc}, {slice}", gib(free), gib(total));
    let images = fatbin::images(FATBIN).unwrap_or_default();
    outln!("kernels: {}", fatbin::image_for(&images, card.capability).map_or("none fits".into(), image));
    match cublaslt::found() {
        Ok((version, file)) => outln!("cuBLASLt: {version}, {}", file.display()),
        Err(why) => outln!("cuBLASLt: none ({why}): {}; {} names its file", cublaslt::COST, cublaslt::VARIABLE),
    }
    Ok(card)
}

fn image(image: &Image) -> String {
    let (major, minor, own) = (image.card / 10, image.card % 10, if image.exact { "a" } else { "" });
    match image.version {
        (major, minor) if image.ptx => format!("PTX {major}.{minor}, which the driver compiles at the first start"),
        _ => format!("the code for compute capability {major}.{minor}{own}"),
    }
}

/// Every op of a few training steps beside the CPU's reference, in each precision and with each kind of matmul; then steps as graphs.
fn compare(card: &Card) -> Result<()> {
    let direct = |precision, gemm| Options {
        precision,
        gemm,
        launch: Launch::Direct,
        workspace: WORKSPACE,
        ..Options::default()
    };
    let mut ways = vec![("f32", direct(Precision::F32, Gemm::Own)), ("bf16", direct(Precision::Bf16, Gemm::Own))];
    if cublaslt::found().is_ok() {
        ways.push(("bf16 with cuBLASLt", direct(Precision::Bf16, Gemm::Cublaslt)));
    }
    let mut differ: Option<(String, Compared)> = None;
    for (way, options) in &ways {
        for (name, config) in agreement::steps() {
            let bound =
                |op, pool, k| if options.precision == Precision::Bf16 { bf16_bound(op, pool, k) } else { f32_bound(k) };
            let ops = agreement::step_beside_reference::<Gpu>(options, config, bound)?;
            let worst = ops.iter().max_by(|a, b| a.part().total_cmp(&b.part())).copied();
            let worst = worst.ok_or_else(|| Error::new("a training step called no op"))?;
            let (good, op) = (worst.part() <= 1.0, worst.found.op.name());
            let mark = if good { "good" } else { "DIFFERS" };
            let (count, part) = (ops.iter().map(|c| c.found.op.name()).collect::<BTreeSet<_>>().len(), worst.part());
            outln!("{mark}: {way}, {name}: {count} ops, at most {part:.2} of what rounding explains, in {op}");
            if !good && differ.is_none() {
                differ = Some((format!("{way}, {name}: {op}"), worst));
            }
        }
    }
    let (_, config) = agreement::steps()[0];
    let steps = |launch| agreement::weights_after::<Gpu>(&Options { launch, ..ways[1].1.clone() }, config, 4);
    let same = steps(Launch::Graph)? == steps(Launch::Direct)?;
    outln!(
        "{}: steps replayed as graphs have the bits of steps launched kernel by kernel",
        if same { "good" } else { "DIFFERS" }
    );
    let hint = "a card or a driver at fault shows in other programs too (ECC errors in nvidia-smi -q); else please report it with \
        what is printed above";
    if let Some((what, worst)) = differ {
        let (error, allowed) = (worst.found.error, worst.allowed);
        let message = format!("{} differs from the CPU: {what} by {error:.1e}, allowed {allowed:.1e}", card.name);
        return Err(Error::new(message).hint(hint));
    }
    if !same {
        return Err(Error::new(format!("{} gives other bits when steps are replayed as graphs", card.name)).hint(hint));
    }
    Ok(())
}

//! The command `convert`.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::weights::onnx::{self, Size};
use crate::weights::{self, Naming, Options, Report, Weights, flat, write};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::{Path, PathBuf};

/// What weights are converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// A safetensors file under the published names
    Official,
    /// A safetensors file for timm's VisionTransformer or ResNet
    Timm,
    /// A folder for Hugging Face's ViTModel or ResNetModel: model.safetensors, config.json, preprocessor_config.json
    Hf,
    /// A folder with one array a tensor
    Npy,
    /// A safetensors file with this program's configuration, as a run's teacher.safetensors
    SafetensorsOwn,
    /// An ONNX model, any number of images; of which size: --height, --width
    Onnx,
    /// One flat blob for firmware, read by `dino_kernel::flat`
    Flat,
}

#[derive(Args)]
pub struct Convert {
    /// Weights of any known kind: a file, or a folder of Hugging Face's
    #[arg(value_name = "IN")]
    from: PathBuf,
    /// What to convert them to
    #[arg(long, value_name = "KIND")]
    to: Target,
    /// File or folder to write
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Whose weights, of a file that has both
    #[arg(long, default_value = "teacher", value_parser = ["teacher", "student"])]
    which: String,
    /// Use the network whose tensor names begin with this prefix instead: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX", conflicts_with = "which")]
    network: Option<String>,
    /// Height of the images that an ONNX model takes, pixels; without it and --width any size
    #[arg(long, value_name = "PIXELS", requires = "width")]
    height: Option<usize>,
    /// Their width
    #[arg(long, value_name = "PIXELS", requires = "height")]
    width: Option<usize>,
    /// Keep the projection head, where there is one
    #[arg(long)]
    head: bool,
    /// Naming convention of the file; detected if not given
    #[arg(long = "dialect", value_name = "DIALECT")]
    naming: Option<Naming>,
    /// Number of attention heads, for a file that does not state it [default: heads 64 wide]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Leave out what changes no feature (a pooler) instead of refusing it, and a classifier instead of taking it along
    #[arg(long)]
    allow_extra: bool,
    /// Print the report as JSON, also where the file is refused
    #[arg(long)]
    json: bool,
}

/// Runs the command `convert`; returns the exit code.
///
/// # Errors
/// The weights cannot be read, a tensor is unknown, missing or of another shape, an option does not fit the target, or the output
/// cannot be written.
pub fn run(args: Convert) -> Result<u8> {
    let network = Some(if args.which == "student" { "student" } else { "teacher" });
    let (naming, called, allow_extra) = (args.naming, args.network.clone(), args.allow_extra);
    let classifier = !allow_extra;
    let options = Options { naming, network, called, heads: args.heads, head: args.head, classifier, allow_extra };
    let opened = weights::open(&args.from, &options)?;
    let report = opened.report.clone();
    let weights = match opened.strict() {
        Ok(weights) => weights,
        Err(e) => {
            if args.json {
                outln!("{}", report.json());
            } else {
                report.lines().iter().for_each(|line| outln!("{line}"));
            }
            return Err(e);
        }
    };
    if args.head && weights.head.is_none() {
        return Err(Error::new(format!("{} has no projection head", args.from.display())).hint("leave --head out"));
    }
    if args.head && matches!(args.to, Target::Onnx | Target::Flat) {
        return Err(Error::new("models and blobs hold the backbone alone").hint("leave --head out"));
    }
    if args.height.is_some() && args.to != Target::Onnx {
        return Err(Error::new("--height and --width are of an ONNX model").hint("--to onnx, or leave them out"));
    }
    let size = args.height.zip(args.width).map_or(Size::Free, |(height, width)| Size::Fixed { height, width });
    let lines = write_to(args.to, &weights, size, &args.out)?;
    print(&report, &weights, &lines, args.json);
    Ok(0)
}

/// Writes weights; returns the lines to print.
fn write_to(target: Target, weights: &Weights, size: Size, out: &Path) -> Result<Vec<String>> {
    match target {
        Target::Official => write::safetensors(Naming::Official, weights, out),
        Target::Timm => write::safetensors(Naming::Timm, weights, out),
        Target::Hf => write::safetensors(Naming::Hf, weights, out),
        Target::SafetensorsOwn => write::safetensors(Naming::Own, weights, out),
        Target::Npy => write::npy(weights, out),
        Target::Onnx => {
            onnx::write_classifier(out, &weights.config, &weights.backbone, weights.classifier.as_ref(), size)?;
            let resnet = weights.config.resnet().is_some();
            let images = match size {
                Size::Free if resnet => "any size".into(),
                Size::Free => format!("any size, positions by the rule {}", weights.config.position_resize),
                Size::Fixed { height, width } => format!("{width} x {height} pixels"),
            };
            let dense = if resnet { "map (batch, C, rows, columns)" } else { "tokens (batch, 1 + patches, C)" };
            Ok(vec![
                format!("ONNX, operator set 17, any number of images of {images}: {}", out.display()),
                format!("outputs: features (batch, C), {dense}; its metadata states how pixels are normalized"),
            ]
            .into_iter()
            .chain(weights.classifier.iter().map(|c| {
                format!("a further output: logits (batch, {}); its metadata names the classes", c.classes.len())
            }))
            .collect())
        }
        Target::Flat => {
            flat::write(out, &weights.config, &weights.backbone)?;
            let left_out = weights.classifier.iter().map(|_| "the classifier is left out: a blob is a backbone".into());
            let written = format!("a flat blob for dino_kernel::flat: {}", out.display());
            Ok([written].into_iter().chain(left_out).collect())
        }
    }
}

fn print(report: &Report, weights: &Weights, lines: &[String], as_json: bool) {
    let (c, tensors) = (&weights.config, weights.tensors());
    if as_json {
        let mut all = report.json();
        all["architecture"] = match c.resnet() {
            None => json!({
                "embed_dim": c.embed_dim, "depth": c.depth, "heads": c.heads, "heads_stated": weights.heads_stated,
                "patch_size": c.patch_size, "global_size": c.global_size, "channels": c.channels,
                "mlp": c.mlp(),
            }),
            Some(_) => json!({
                "arch": c.arch, "embed_dim": c.embed_dim, "block_kind": c.block_kind, "widths": c.widths,
                "stage_blocks": c.stage_blocks, "stem": c.stem, "stem_stride": c.stem_stride,
                "global_size": c.global_size, "channels": c.channels,
            }),
        };
        all["tensors"] = json!(tensors);
        all["classes"] = json!(weights.classifier.as_ref().map(|c| &c.classes));
        all["said"] = json!(lines);
        outln!("{all}");
        return;
    }
    outln!("read\t{}, {} names, {tensors} tensors", report.format.name(), report.naming.name());
    let architecture = match c.resnet() {
        None => {
            let heads = if weights.heads_stated { "" } else { " (not stated in the file)" };
            let Config { embed_dim, depth, heads: n, patch_size, .. } = c;
            format!("width {embed_dim}, {depth} blocks, {n} heads{heads}, patches of {patch_size} pixels")
        }
        Some(_) => format!(
            "{}, width {}, {} blocks of {:?} channels and kind {}, stem {} with stride {}",
            c.arch,
            c.embed_dim,
            c.stage_blocks.iter().map(usize::to_string).collect::<Vec<_>>().join(" + "),
            c.widths,
            c.block_kind,
            c.stem,
            c.stem_stride
        ),
    };
    outln!("is\t{architecture}, images of {} x {1} x {1}", c.channels, c.global_size);
    if let Some(classifier) = &weights.classifier {
        outln!("with\ta classifier of {} classes", classifier.classes.len());
    }
    report.left_out.iter().for_each(|part| outln!("left out\t{part}"));
    report.notes.iter().chain(lines).for_each(|note| outln!("note\t{note}"));
}

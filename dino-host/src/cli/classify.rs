//! The command `classify`.

use super::shared::{Shared, Tolerance, start};
use crate::data::Dataset;
use crate::data::files::Files;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::finetune::{logits, probabilities};
use crate::inference::features::Extractor;
use crate::weights::{self, Options, Weights};
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Classify<O: Args> {
    /// Weights with a classifier: classifier.safetensors of `finetune`, or other programs' (timm, torchvision, Hugging Face)
    #[arg(long, value_name = "FILE")]
    checkpoint: PathBuf,
    /// Images of any size, folders of images, or patterns such as 'a/*.jpg'
    #[arg(long, value_name = "PATH", num_args = 1.., required = true)]
    image: Vec<PathBuf>,
    /// Classes to print, the most probable first
    #[arg(long, default_value_t = 5, value_name = "N")]
    top: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Use the network whose tensor names begin with this prefix: `backbone`, `state_dict_ema`
    #[arg(long, value_name = "PREFIX")]
    network: Option<String>,
    /// Number of attention heads, for a file that does not state it [default: heads 64 wide]
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    #[command(flatten)]
    shared: Shared<O>,
    #[command(flatten)]
    tolerance: Tolerance,
}

/// Runs the command `classify`; returns the exit code.
///
/// # Errors
/// The device is not there, the weights cannot be read or have no classifier, or no image can be read.
pub fn run<D: Device>(args: Classify<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    if args.top == 0 {
        return Err(Error::new("--top 0 prints nothing").hint("--top 1 prints the most probable class"));
    }
    let (called, heads) = (args.network.clone(), args.heads);
    let options = Options { called, heads, classifier: true, allow_extra: true, ..Options::default() };
    let Weights { config, backbone, classifier, report, .. } = weights::open(&args.checkpoint, &options)?.strict()?;
    let classifier = classifier.ok_or_else(|| {
        Error::new(format!("{} has no classifier", args.checkpoint.display()))
            .hint("`finetune --checkpoint FILE --data PATH --out DIR` trains one: DIR/classifier.safetensors")
    })?;
    if report.naming != weights::Naming::Own {
        report.notes.iter().for_each(|note| errln!("note: {note}"));
    }
    let (files, unreadable) = (Files::open(&args.image, config.decode())?, args.tolerance.unreadable());
    let mut extractor = Extractor::<D>::new(&args.shared.device, &config, &backbone)?;
    let found = extractor.run(&files, &unreadable, |_| ());
    unreadable.print();
    let found = found?;
    if found.images.is_empty() {
        return Err(Error::new("none of the images can be read").hint("PNG, JPEG, WebP, GIF, BMP, PNM or TIFF files"));
    }
    let mut all = Vec::new();
    for (row, &image) in logits(&classifier, found.rows.view()).rows().into_iter().zip(&found.images) {
        let p = probabilities(&row.to_vec());
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
        order.truncate(args.top);
        let name = files.name(image);
        if args.json {
            let top: Vec<Value> =
                order.iter().map(|&c| json!({"class": classifier.classes[c], "probability": p[c]})).collect();
            all.push(json!({"image": name, "top": top}));
            continue;
        }
        outln!("{name}");
        order.iter().for_each(|&c| outln!("  {:6.2} %  {}", 100.0 * p[c], classifier.classes[c]));
    }
    if args.json {
        outln!("{}", json!(all));
    }
    Ok(0)
}

//! The command `eval video`.

use crate::cli::shared::{Shared, Source, Tolerance, Which, networks, start};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::any_size::AnySize;
use crate::eval::knn::check_temperature;
use crate::eval::propagate::Params;
use crate::eval::video::{self, Recipe, Score, Scorer};
use crate::inference::require;
use crate::io::progress::Progress;
use clap::Args;
use dino_kernel::model::Gives;
use serde_json::{Value, json};
use std::path::PathBuf;

#[derive(Args)]
pub struct Video<O: Args> {
    #[command(flatten)]
    model: crate::cli::shared::Model,
    #[command(flatten)]
    shared: Shared<O>,
    /// checkpoint.safetensors or teacher.safetensors of a run; its configuration is used
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// A folder in DAVIS' layout: JPEGImages/480p/NAME/*.jpg and Annotations/480p/NAME/*.png
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The folder of that name in JPEGImages and Annotations
    #[arg(long, default_value = "480p")]
    resolution: String,
    /// Only these sequences, a list
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    sequences: Vec<String>,
    /// Whose patches, a list for one table [default: teacher with --checkpoint, else random]
    #[arg(long, value_delimiter = ',')]
    which: Vec<Which>,
    /// Take the network whose tensor names begin with this prefix (`backbone`, `state_dict_ema`) for the teacher
    #[arg(long, value_name = "PREFIX", requires = "checkpoint")]
    network: Option<String>,
    /// Shorter side of the frames, pixels; cropped to a multiple of the patch
    #[arg(long, default_value_t = 480)]
    size: usize,
    /// The longer side is resized to a multiple of this, as published, which squashes the frame a little; 0, or where patches do not
    /// divide it: to a multiple of the patch
    #[arg(long, default_value_t = 64)]
    multiple: usize,
    /// Number of preceding frames whose masks a frame takes its classes from, besides the first frame
    #[arg(long, default_value_t = 7)]
    previous: usize,
    /// Largest distance of a source patch, in rows and in columns; 0 = any
    #[arg(long, default_value_t = 12)]
    radius: usize,
    /// Number of most similar patches that a patch takes its class from
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Weight of a source: exp(cosine / temperature)
    #[arg(long, default_value_t = 0.1)]
    temperature: f64,
    /// Write the masks and overlays to this folder (of several networks, to a folder each in it)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command `eval video`; returns the exit code.
///
/// # Errors
/// The device, the weights or the sequences are not usable, an option is outside its range, or the masks cannot be written.
pub fn run<D: Device>(args: Video<D::Options>) -> Result<u8> {
    start::<D>(&args.shared)?;
    if args.top == 0 {
        return Err(Error::new("--top is above 0").hint("published: --top 5"));
    }
    check_temperature(args.temperature, 0.1)?;
    let params = Params { previous: args.previous, radius: args.radius, top: args.top, temperature: args.temperature };
    let recipe = Recipe { size: args.size, multiple: args.multiple, params };
    let (model, shared, checkpoint, network) = (args.model, args.shared, args.checkpoint, args.network);
    let data = crate::data::BUILTIN.to_string();
    let (json, tolerance) = (args.json, Tolerance { strict: true });
    let source = Source { model, shared, checkpoint, network, data, json, tolerance };
    let (config, networks) = networks::<D>(&source, &args.which)?;
    let config = config.decoding_whole();
    require(&config.table().backbone, Gives { tokens: true, attention: false })?;
    let (sequences, left_out) = video::sequences(&args.data, &args.resolution, &args.sequences)?;
    if !left_out.is_empty() {
        errln!("note: without a mask of the first frame, left out: {}", left_out.join(", "));
    }
    let scorers = sequences.iter().map(Scorer::new).collect::<Result<Vec<_>>>()?;
    // Named before minutes of work.
    for (sequence, scorer) in sequences.iter().zip(&scorers) {
        if scorer.objects.is_empty() {
            errln!("note: the first mask of {} has no object: it is not scored", sequence.name);
        } else if scorer.frames() == 0 {
            errln!("note: {} has no mask between its first and last frame: it is not scored", sequence.name);
        }
    }
    let frames: usize = sequences.iter().map(|s| s.frames.len()).sum();
    let mut progress = Progress::new(frames * networks.len(), "frames");
    let mut tables = Vec::new();
    for (name, weights) in &networks {
        let mut network = AnySize::<D>::new(&source.shared.device, &config, weights);
        let mut rows = Vec::new();
        for (sequence, scorer) in sequences.iter().zip(&scorers) {
            let found = video::follow(&mut network, &config, sequence, scorer, &recipe, || progress.tick())?;
            rows.push(scorer.scores(&found));
            if let Some(out) = &args.out {
                let out = if networks.len() > 1 { out.join(name) } else { out.clone() };
                video::write(&out, sequence, scorer, &found, &config)?;
            }
        }
        tables.push((name.clone(), rows));
    }
    let kept = sequences.iter().zip(&scorers).map(|(s, j)| j.scores(&j.kept(s.frames.len()))).collect();
    tables.push(("first mask kept".into(), kept));
    if args.json {
        let tables: Vec<Value> = tables.iter().map(|(name, rows)| as_json(name, &sequences, rows)).collect();
        let json = json!({
            "size": args.size, "previous": args.previous, "radius": args.radius, "top": args.top,
            "temperature": args.temperature, "judged_frames": scorers.iter().map(Scorer::frames).collect::<Vec<_>>(),
            "networks": tables,
        });
        outln!("{json}");
        return Ok(0);
    }
    outln!("Video object segmentation, {} sequences, {frames} frames, shorter side {}", sequences.len(), args.size);
    for (name, rows) in &tables {
        outln!(
            "\n{name:<20} {:>6} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8}",
            "J&F",
            "J",
            "F",
            "J rec.",
            "J decay",
            "F rec.",
            "F decay"
        );
        sequences.iter().zip(rows).for_each(|(s, row)| match Score::mean(row) {
            Some(row) => line(&s.name, &row),
            None => outln!("{:<20} not scored", s.name),
        });
        // As DAVIS has it, over the objects of all sequences.
        match Score::mean(rows.iter().flatten()) {
            Some(mean) => line("mean", &mean),
            None => outln!("{:<20} nothing to score", "mean"),
        }
    }
    Ok(0)
}

/// In percent.
fn line(name: &str, s: &Score) {
    let [jf, j, f, jr, jd, fr, fd] = [s.jf(), s.j[0], s.f[0], s.j[1], s.j[2], s.f[1], s.f[2]].map(|x| 100.0 * x);
    outln!("{name:<20} {jf:>6.1} {j:>6.1} {f:>6.1} {jr:>8.1} {jd:>8.1} {fr:>8.1} {fd:>8.1}");
}

fn as_json(name: &str, sequences: &[video::Sequence], rows: &[Vec<Score>]) -> Value {
    // Mean, recall, decay each.
    let one = |s: Option<Score>| s.map(|s| json!({"jf": s.jf(), "j": s.j, "f": s.f}));
    let each = sequences
        .iter()
        .zip(rows)
        .map(|(s, row)| json!({"sequence": s.name, "objects": row.len(), "score": one(Score::mean(row))}));
    json!({"which": name, "sequences": each.collect::<Vec<_>>(), "mean": one(Score::mean(rows.iter().flatten()))})
}

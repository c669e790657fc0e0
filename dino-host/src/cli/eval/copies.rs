//! The command `eval copies`.

use crate::cli::shared::{Named, Source, Which, networks, open, start};
use crate::config::Config;
use crate::data::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::attacks::Attack;
use crate::eval::copies::{self, Attacked, Whitening};
use crate::inference::features::Features;
use crate::io::progress::Progress;
use clap::Args;
use ndarray::{Array2, Axis, concatenate};
use serde_json::json;

#[derive(Args)]
pub struct Copies<O: Args> {
    #[command(flatten)]
    source: Source<O>,
    /// Whose tokens, a list for one table [default: teacher with --checkpoint, else random]
    #[arg(long, value_delimiter = ',')]
    which: Vec<Which>,
    /// Make copies of images of --data (any data set), and search for their originals in it. Otherwise --data is a folder like Copydays:
    /// original/, and copies in strong/, jpegqual/20/, …
    #[arg(long)]
    attack: bool,
    /// With --attack: the number of images to copy, evenly spaced over the set
    #[arg(long, default_value_t = 157)]
    queries: usize,
    /// Images that are no originals, to be told apart from them (any data set)
    #[arg(long, value_name = "PATH")]
    distractors: Option<String>,
    /// Images to learn whitening from (any data set) [default: no whitening]
    #[arg(long, value_name = "PATH")]
    whiten: Option<String>,
    /// Learn whitening from descriptors whose mean was not subtracted, as the published code does
    #[arg(long)]
    uncentred: bool,
    /// Side of the square that images are squashed to, pixels
    #[arg(long, default_value_t = 320)]
    size: usize,
    /// Exponent of the patch tokens' generalized mean
    #[arg(long, default_value_t = 4.0)]
    gem: f64,
    /// An original counts as found when it is among the first N
    #[arg(long, default_value_t = 20)]
    top: usize,
}

/// The queries and the images they are searched in, for any network.
struct Task<'a> {
    originals: &'a dyn Dataset,
    /// Name, images, and the originals' indices of each.
    blocks: Vec<(String, &'a dyn Dataset, Vec<Vec<u32>>)>,
    distractors: Vec<Box<dyn Dataset>>,
    whiten: Vec<Box<dyn Dataset>>,
}

/// Runs the command `eval copies`; returns the exit code.
///
/// # Errors
/// The device, the weights or the data sets are not usable, `--data` has no originals and copies, or an option is outside its range.
pub fn run<D: Device>(args: Copies<D::Options>) -> Result<u8> {
    start::<D>(&args.source.shared)?;
    if args.top == 0 || args.queries == 0 || !(args.gem > 0.0 && args.gem.is_finite()) {
        return Err(Error::new("--top, --queries and --gem are above 0").hint("published: --top 20 --gem 4"));
    }
    let (config, networks) = networks::<D>(&args.source, &args.which)?;
    let config = config.decoding_whole();
    let both_parts = |data: &Option<String>| -> Result<Vec<Box<dyn Dataset>>> {
        let Some(data) = data else { return Ok(Vec::new()) };
        let splits = open(data, &config)?;
        Ok(vec![splits.train, splits.test])
    };
    let (distractors, whiten) = (both_parts(&args.distractors)?, both_parts(&args.whiten)?);
    if args.attack {
        let set = BothParts(both_parts(&Some(args.source.data.clone()))?);
        let count = args.queries.min(set.len());
        let of: Vec<usize> = (0..count).map(|i| i * set.len() / count).collect();
        let attacked: Vec<(String, Attacked)> =
            Attack::ALL.map(|attack| (attack.name(), Attacked { set: &set, attack, of: of.clone() })).into();
        let rows: Vec<Vec<u32>> = of.iter().map(|&i| vec![i as u32]).collect();
        let blocks = attacked.iter().map(|(name, set)| (name.clone(), set as &dyn Dataset, rows.clone())).collect();
        return evaluate::<D>(&args, &config, &networks, &Task { originals: &set, blocks, distractors, whiten });
    }
    if args.source.data == crate::data::BUILTIN {
        return Err(Error::new("--data names no folder of originals and copies")
            .hint("a folder like Copydays, or --attack, which makes copies of any set's images"));
    }
    let (originals, blocks) = copies::layout(std::path::Path::new(&args.source.data), config.decode())?;
    let blocks = blocks.iter().map(|b| (b.name.clone(), &*b.set, b.originals.clone())).collect();
    evaluate::<D>(&args, &config, &networks, &Task { originals: &originals, blocks, distractors, whiten })
}

/// Both parts of a data set, one after the other.
struct BothParts(Vec<Box<dyn Dataset>>);

impl BothParts {
    fn at(&self, i: usize) -> (&dyn Dataset, usize) {
        let first = self.0[0].len();
        if i < first { (&*self.0[0], i) } else { (&*self.0[1], i - first) }
    }
}

impl Dataset for BothParts {
    fn len(&self) -> usize {
        self.0.iter().map(|s| s.len()).sum()
    }
    fn image(&self, i: usize) -> Result<crate::image::Image> {
        let (set, i) = self.at(i);
        set.image(i)
    }
    fn label(&self, i: usize) -> Option<u32> {
        let (set, i) = self.at(i);
        set.label(i)
    }
    fn classes(&self) -> &[String] {
        self.0[0].classes()
    }
    fn name(&self, i: usize) -> String {
        let (set, i) = self.at(i);
        set.name(i)
    }
    fn fingerprint(&self) -> String {
        self.0.iter().map(|s| s.fingerprint()).collect::<Vec<_>>().join(" ")
    }
}

fn evaluate<D: Device>(args: &Copies<D::Options>, config: &Config, networks: &[Named], task: &Task) -> Result<u8> {
    let unreadable = args.source.tolerance.unreadable();
    let sets = std::iter::once(task.originals).chain(task.blocks.iter().map(|b| b.1));
    let rest = task.distractors.iter().chain(&task.whiten).map(|s| s.len());
    let images: usize = sets.map(|s| s.len()).chain(rest).sum();
    let mut progress = Progress::new(images * networks.len(), "images");
    let mut tables = Vec::new();
    for (_, weights) in networks {
        let mut describe = |set: &dyn Dataset| -> Result<Features> {
            let options = &args.source.shared.device;
            copies::describe::<D>(options, config, weights, set, &unreadable, args.size, args.gem, || progress.tick())
        };
        let mut several = |sets: &[Box<dyn Dataset>]| -> Result<Vec<Array2<f32>>> {
            sets.iter().filter(|s| !s.is_empty()).map(|s| Ok(describe(&**s)?.rows)).collect()
        };
        let stacked = |rows: &[Array2<f32>]| {
            concatenate(Axis(0), &rows.iter().map(|r| r.view()).collect::<Vec<_>>())
                .map_err(|e| Error::new(format!("the sets' features do not fit one another: {e}")))
        };
        let whitening = match several(&task.whiten)? {
            rows if rows.is_empty() => None,
            rows => Some(Whitening::learn(&stacked(&rows)?, args.uncentred)?),
        };
        let white = |rows: Array2<f32>| whitening.as_ref().map_or(rows.clone(), |w| w.apply(&rows));
        let mut database = several(&task.distractors)?;
        let originals = describe(task.originals)?;
        database.insert(0, originals.rows);
        let database = white(stacked(&database)?);
        // Originals that could not be read have no row.
        let row = |original: &u32| originals.images.binary_search(&(*original as usize)).ok().map(|r| r as u32);
        let mut table = Vec::new();
        for (_, set, of) in &task.blocks {
            let copies = describe(*set)?;
            let of: Vec<Vec<u32>> = copies.images.iter().map(|&i| of[i].iter().filter_map(row).collect()).collect();
            table.push((of.len(), copies::mean_precision(&database, &white(copies.rows), &of, args.top)?));
        }
        tables.push((database.nrows(), table));
    }
    unreadable.print();
    let database = tables[0].0;
    if args.source.json {
        let mut per_network = Vec::new();
        for ((name, _), (_, table)) in networks.iter().zip(&tables) {
            let blocks = task.blocks.iter().zip(table);
            let blocks: Vec<_> =
                blocks.map(|((block, ..), (n, map))| json!({"block": block, "copies": n, "map": map})).collect();
            per_network.push(json!({"which": name, "blocks": blocks}));
        }
        let json = json!({
            "database": database, "size": args.size, "gem": args.gem, "top": args.top, "whitened": args.whiten.is_some(),
            "uncentred": args.uncentred, "networks": per_network,
        });
        outln!("{json}");
        return Ok(0);
    }
    outln!("Copy detection, {database} images to choose from, mean average precision in percent");
    let names: String = networks.iter().map(|(name, _)| format!(" {name:>9}")).collect();
    outln!("{:<16} {:>7}{names}", "copies", "");
    for (i, (block, ..)) in task.blocks.iter().enumerate() {
        let maps: String = tables.iter().map(|(_, t)| format!(" {:>9.2}", 100.0 * t[i].1)).collect();
        outln!("{block:<16} {:>7}{maps}", tables[0].1[i].0);
    }
    Ok(0)
}

//! `--mem-limit`: the coarsest split of a batch, into micro-batches and passes over their crops, whose plan a device has memory for.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::inference::{dense, features};
use bytesize::ByteSize;
use dino_kernel::plan::Plan;
use indicatif::BinaryBytes;

/// A micro-batch chosen for the user has no more images than this, so that the search ends for any batch.
const MOST: usize = 1 << 20;

/// Bytes of a size such as 2GiB, 512 MiB or 24GB: a number above 0 and a unit, powers of 1024 with an i, of 1000 without.
///
/// # Errors
/// It is no such number, or the unit is unknown.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim_end();
    // `ByteSize` also reads a number without a unit and a unit without its B, and takes what is too large for the largest size.
    let read = |&ByteSize(bytes): &ByteSize| text.ends_with(['b', 'B']) && 0 < bytes && bytes < u64::MAX;
    let size: Option<ByteSize> = text.parse().ok().filter(read);
    size.map(|size| size.as_u64()).ok_or_else(|| "a number and a unit, such as 2GiB, 512MiB or 24GB".into())
}

/// What a run allocates on `D`, by name, in bytes: the training step's own, the second network that scores and draws the teacher
/// between steps while the first one stays, and the scratch of as many threads as there are. Not counted are the images: crops on
/// their way to a step, and the features that a score is made of.
pub fn items<D: Device>(options: &D::Options, config: &Config, plan: &Plan) -> Vec<(&'static str, u64)> {
    let mut items = D::memory(options, plan.pools);
    let sum = |items: Vec<(&str, u64)>| items.iter().fold(0u64, |sum, item| sum.saturating_add(item.1));
    // A plan that cannot be made is an error of the evaluation itself.
    let others = [features::scoring_pools(config).filter(|_| config.knn_every > 0), dense::drawing_pools(config)];
    let others = others.into_iter().flatten();
    items
        .push(("scoring between steps", others.clone().map(|pools| sum(D::memory(options, pools))).max().unwrap_or(0)));
    let scratch = others.chain([plan.pools]).map(D::thread_scratch).max().unwrap_or(0);
    if scratch > 0 {
        items.push(("scratch of the threads", rayon::current_num_threads() as u64 * scratch));
    }
    items
}

/// What a run takes, and the largest item of it.
struct Need {
    total: u64,
    largest: (&'static str, u64),
}

fn need<D: Device>(options: &D::Options, config: &Config, plan: &Plan) -> Need {
    let items = items::<D>(options, config, plan);
    let total = items.iter().fold(0u64, |sum, item| sum.saturating_add(item.1));
    let largest = items.into_iter().max_by_key(|item| item.1).unwrap_or(("nothing", 0));
    Need { total, largest }
}

fn too_much(need: &Need, config: &Config, limit: u64) -> String {
    let (name, bytes) = need.largest;
    let streamed = if config.stream_crops { ", crops in several passes," } else { "" };
    format!(
        "micro-batches of {}{streamed} take {}, {} of it {name}: more than --mem-limit {}",
        config.micro_batch,
        BinaryBytes(need.total),
        BinaryBytes(bytes),
        BinaryBytes(limit)
    )
}

/// The configuration of each of `ranks` processes with the split of its batch, and of its crops where `streams` allows that, that takes
/// at most `limit` bytes on `D` and has the fewest of the student's passes a step, for each of them reads all weights. With as many, all
/// crops at once: that is less memory and as fast within 5 %, measured on a CPU.
///
/// # Errors
/// The finest split takes more than `limit`, or has no plan.
pub fn fit<D: Device>(
    options: &D::Options,
    config: Config,
    streams: &[bool],
    limit: u64,
    ranks: usize,
) -> Result<Config> {
    let sized = |micro_batch, stream_crops| Config { micro_batch, stream_crops, ..config.clone() };
    let divisors = (1..=config.batch.min(MOST)).rev().filter(|m| config.batch.is_multiple_of(*m));
    let fitting = divisors.flat_map(|m| streams.iter().map(move |&s| (m, s))).filter_map(|(m, s)| {
        let config = sized(m, s);
        // A plan that cannot be made is one that no memory holds: the rest of the configuration is valid.
        let plan = config.plan_of(D::RECOMPUTE, ranks).ok()?;
        let need = need::<D>(options, &config, &plan);
        (need.total <= limit).then(|| (plan.parts().saturating_mul(plan.passes().count()), s, config, need.total))
    });
    if let Some((_, _, config, total)) = fitting.min_by_key(|f| (f.0, f.1)) {
        let (m, total, limit) = (config.micro_batch, BinaryBytes(total), BinaryBytes(limit));
        let streamed = if config.stream_crops { " --stream-crops" } else { "" };
        errln!("--mem-limit {limit}: --micro-batch {m}{streamed} takes {total}");
        return Ok(config);
    }
    // The finest split that has a plan: batch norms take their groups of images as they are, and a head with them all crops.
    let divisors = (1..=config.batch.min(MOST)).filter(|m| config.batch.is_multiple_of(*m));
    let mut finest = divisors.flat_map(|m| streams.iter().rev().map(move |&s| sized(m, s)));
    let least = finest.find(|c| c.plan_of(D::RECOMPUTE, ranks).is_ok()).unwrap_or(sized(1, streams.contains(&true)));
    let need = need::<D>(options, &least, &least.plan_of(D::RECOMPUTE, ranks)?);
    Err(Error::new(too_much(&need, &least, limit))
        .hint("that is the finest split: a smaller --out-dim, --arch or crops, fewer --threads, --knn-every 0 (which scores nothing), or a higher limit"))
}

/// Checks that a run's own micro-batch takes at most `limit` bytes on `D`, in each of `ranks` processes.
///
/// # Errors
/// It takes more, or has no plan.
pub fn check<D: Device>(options: &D::Options, config: &Config, limit: u64, ranks: usize) -> Result<()> {
    let need = need::<D>(options, config, &config.plan_of(D::RECOMPUTE, ranks)?);
    if need.total <= limit {
        return Ok(());
    }
    Err(Error::new(format!("this run cannot go on within that: {}", too_much(&need, config, limit)))
        .hint("a run keeps its micro-batch and passes: a higher --mem-limit, none, or a new run"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("512MiB", 512 << 20),
            ("24GB", 24_000_000_000),
            ("1.5 kib", 1536),
            ("7B", 7),
            ("3kB", 3000),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "2", "GiB", "-2GiB", "2G", "2Gi", "2XB", "0GiB", "1.2.3GB", "nanGB", "1e9B", "99999999TiB"] {
            assert!(parse(text).unwrap_err().contains("512MiB"), "{text}");
        }
    }

    #[test]
    fn the_coarsest_split_that_fits_is_taken() {
        let config = Config { batch: 60, ..Config::tiny() }.resolve().unwrap();
        let take = |micro_batch, stream_crops| {
            let config = Config { micro_batch, stream_crops, ..config.clone() };
            need::<Cpu>(&NoOptions {}, &config, &config.plan(Cpu::RECOMPUTE).unwrap()).total
        };
        let fit_as = |streams: &[bool], limit| {
            fit::<Cpu>(&NoOptions {}, config.clone(), streams, limit, 1).map(|c| (c.micro_batch, c.stream_crops))
        };
        let fit = |limit| fit_as(&[false, true], limit);
        // A pass of all crops, or three: either global crop, the two local ones.
        assert_eq!(fit(u64::MAX).unwrap(), (60, false));
        assert_eq!(fit(take(60, false) - 1).unwrap(), (30, false));
        // Three passes either way.
        assert!(take(60, true) < take(30, false) && take(20, false) < take(60, true));
        assert_eq!(fit(take(30, false) - 1).unwrap(), (20, false));
        // 60 passes of one image at once, 45 of four one after another.
        assert!(take(1, false) < take(4, true) && take(4, true) < take(2, false));
        assert_eq!(fit(take(4, true)).unwrap(), (4, true));
        // 7 would fit and does not divide.
        assert_eq!(fit_as(&[false], take(10, false) - 1).unwrap(), (6, false));
        assert_eq!(fit(take(1, true)).unwrap(), (1, true));
        let text = fit(take(1, true) - 1).unwrap_err().to_string();
        assert!(
            text.contains("micro-batches of 1, crops in several passes, take")
                && text.contains("scoring between steps"),
            "{text}"
        );
        // Or as the user sets it.
        assert_eq!(fit_as(&[true], u64::MAX).unwrap(), (60, true));
        let text = fit_as(&[false], take(1, false) - 1).unwrap_err().to_string();
        assert!(text.contains("micro-batches of 1 take"), "{text}");
        let at_once = take(config.micro_batch, false);
        assert!(check::<Cpu>(&NoOptions {}, &config, at_once, 1).is_ok());
        let text = check::<Cpu>(&NoOptions {}, &config, at_once - 1, 1).unwrap_err().to_string();
        assert!(text.contains("cannot go on"), "{text}");
        // A batch beyond all sense is answered at once.
        assert!(fit_any(usize::MAX) <= MOST && fit_any((1 << 61) - 1) == 1);
    }

    /// Shards that exchange in the middle of a step have all but weights and the optimizer's state for themselves: a process with fewer of them
    /// takes less.
    #[test]
    fn shards_side_by_side_are_counted() {
        let config = Config { batch: 8, shards: 4, use_bn_in_head: true, ..Config::tiny() }.resolve().unwrap();
        assert_eq!(config.micro_batch, 2);
        let [one, two, four] = [4, 2, 1].map(|ranks| {
            let plan = config.plan_of(Cpu::RECOMPUTE, ranks).unwrap();
            assert_eq!(plan.pools.lanes, 4 / ranks);
            let n = plan.pools;
            let own = 4 * (n.grads + n.acts + n.stats + n.state) as u64;
            (need::<Cpu>(&NoOptions {}, &config, &plan).total, own)
        });
        // A lane of a process alone has the same pools, and keeps no sums aside.
        assert_eq!((two.0 - one.0, four.0 - two.0), (one.1, 2 * one.1));
        let fit =
            |limit, ranks| fit::<Cpu>(&NoOptions {}, config.clone(), &[false], limit, ranks).map(|c| c.micro_batch);
        assert_eq!((fit(one.0, 4).unwrap(), fit(four.0, 1).unwrap()), (2, 2));
        assert!(fit(four.0 - 1, 1).unwrap_err().to_string().contains("micro-batches of 2 take"));
    }

    fn fit_any(batch: usize) -> usize {
        let config = Config { batch, micro_batch: 1, ..Config::tiny() };
        fit::<Cpu>(&NoOptions {}, config, &[false, true], u64::MAX, 1).unwrap().micro_batch
    }
}

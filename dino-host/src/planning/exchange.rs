//! `plan --ranks`: what processes that share every batch exchange in a step, and how long that takes at least.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::planning::memory;
use crate::train;
use clap::Args;
use dino_kernel::model::Table;
use dino_kernel::plan::Plan;
use indicatif::BinaryBytes;
use serde_json::{Value, json};
use std::str::FromStr;

/// Flags of `plan` for a run on several processes.
#[derive(Args, Clone, Debug)]
pub struct Ranks {
    /// Print what this many processes that share every batch exchange, and the memory of each
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// How many of them are on one machine, whose link to the others they share [default: all]
    #[arg(long, alias = "gpus-per-node", value_name = "N", requires = "ranks")]
    pub ranks_per_node: Option<usize>,
    /// What a machine can send to the others: 100Gbit, 1Gbit, 12GB (a second)
    #[arg(long, value_name = "RATE", requires = "ranks")]
    pub link: Option<Rate>,
    /// Images a second that one such process trains on alone, as its log states them: to see the exchange beside the step
    #[arg(long, value_name = "X", requires = "ranks")]
    pub images_per_second: Option<f64>,
}

impl Ranks {
    /// Refuses numbers that mean nothing.
    ///
    /// # Errors
    /// There are no processes, none on a machine, or the pace is no number above 0.
    pub fn check(&self) -> Result<()> {
        if self.ranks == Some(0) || self.ranks_per_node == Some(0) {
            return Err(Error::new("a run has one process at least, and a machine too").hint("--ranks 1 or more"));
        }
        match self.images_per_second {
            Some(pace) if !(pace > 0.0 && pace.is_finite()) => {
                Err(Error::new(format!("--images-per-second {pace} makes no sense")).hint("a number above 0"))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let units = [("Gbit", 1e9 / 8.0), ("Mbit", 1e6 / 8.0), ("GB", 1e9), ("MB", 1e6)];
        let text = text.trim().trim_end_matches("/s");
        let found = units.iter().find_map(|(unit, bytes)| {
            let number: f64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            (number > 0.0 && number.is_finite()).then_some(Rate(number * bytes))
        });
        found.ok_or_else(|| "a number and a unit, such as 100Gbit, 1Gbit or 12GB".into())
    }
}

/// What a step exchanges.
struct Exchange {
    ranks: usize,
    machines: usize,
    own_shards: usize,
    own_images: usize,
    /// Bytes that are summed.
    summed: u64,
    /// Bytes that are gathered for targets that depend on the full batch and for batch norms.
    gathered: u64,
    /// How many times processes wait for each other for them.
    exchanges: usize,
    /// Bytes that a rank sends, and those of them that leave its machine.
    sent: u64,
    leaving: u64,
    memory: u64,
    /// Seconds on the link, at least.
    link: Option<f64>,
    /// Seconds of a rank's own work.
    work: Option<f64>,
}

/// Bytes that all processes bring to each other beside the sums of a step, and in how many exchanges.
fn gathered(plan: &Plan) -> (u64, usize) {
    let (table, teacher) = (&plan.table, plan.table.of_teacher());
    let (mut numbers, mut exchanges) = (0, 0);
    if plan.config.objective.whole_batch() {
        (numbers, exchanges) = (plan.targets.batch.z.len(), 1);
    }
    // Of every column and size of crops two numbers, in a head of all crops together; the teacher's crops are of one size.
    let sizes = plan.config.views.len();
    let student = sizes * table.backbone.buffers_len() + table.buffers_len() - table.backbone.buffers_len();
    if plan.shares_statistics() {
        let norms = |table: &Table| {
            let mut buffers = 0;
            table.visit_buffers(|_| buffers += 1);
            buffers / 2 // mean and variance
        };
        numbers += plan.sharding.shards * (teacher.buffers_len() + 2 * student);
        exchanges += norms(&teacher) + 2 * plan.passes().count() * norms(table);
    } else if table.batch_statistics() {
        numbers += plan.config.batch / plan.config.group() * (teacher.buffers_len() + student);
        exchanges += 1;
    }
    (4 * numbers as u64, exchanges)
}

fn exchange<D: Device>(options: &D::Options, config: &Config, flags: &Ranks, ranks: usize) -> Result<Exchange> {
    let plan = train::plan::<D>(config, ranks)?;
    let here = flags.ranks_per_node.unwrap_or(ranks);
    if !ranks.is_multiple_of(here) {
        return Err(Error::new(format!("{ranks} processes are not equally many machines of {here} each"))
            .hint("--ranks-per-node divides --ranks"));
    }
    let sums = plan.sums();
    let summed = 4 * (plan.table.len() + sums.teacher.len() + sums.losses.len()) as u64;
    let (gathered, exchanges) = if ranks > 1 { gathered(&plan) } else { (0, 0) };
    // Each sends to every other a part of it to be summed, and then its own part of the sum; of what is gathered its own.
    let to_one = (2 * summed + gathered) / ranks as u64;
    let (sent, leaving) = (to_one * (ranks - 1) as u64, to_one * (ranks - here) as u64);
    let own_images = config.batch / ranks;
    Ok(Exchange {
        ranks,
        machines: ranks / here,
        own_shards: plan.sharding.own(),
        own_images,
        summed,
        gathered,
        exchanges,
        sent,
        leaving,
        memory: memory::items::<D>(options, config, &plan).iter().map(|item| item.1).sum::<u64>()
            + D::sum_memory(ranks, ranks / here),
        link: flags.link.filter(|_| leaving > 0).map(|rate| (leaving * here as u64) as f64 / rate.0),
        work: flags.images_per_second.map(|pace| own_images as f64 / pace),
    })
}

/// What `--json` prints of it.
///
/// # Errors
/// The configuration cannot be shared by so many processes; the error names the numbers that fit.
pub fn json<D: Device>(options: &D::Options, config: &Config, flags: &Ranks) -> Result<Value> {
    let Some(ranks) = flags.ranks else { return Ok(Value::Null) };
    let e = exchange::<D>(options, config, flags, ranks)?;
    Ok(json!({
        "ranks": e.ranks, "machines": e.machines, "shards_a_rank": e.own_shards, "images_a_rank": e.own_images,
        "summed_bytes": e.summed, "gathered_bytes": e.gathered, "exchanges": e.exchanges, "sent_bytes_a_rank": e.sent, "leaving_bytes_a_rank": e.leaving,
        "memory_a_rank": e.memory, "link_seconds": e.link, "work_seconds": e.work,
    }))
}

/// The same as lines.
///
/// # Errors
/// As [`json()`].
pub fn lines<D: Device>(options: &D::Options, config: &Config, flags: &Ranks) -> Result<Vec<String>> {
    let Some(ranks) = flags.ranks else { return Ok(Vec::new()) };
    let e = exchange::<D>(options, config, flags, ranks)?;
    let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut lines = vec![
        format!(
            "--ranks {} on {}: each has {} of {}, and takes {}",
            e.ranks,
            many(e.machines, "machine"),
            many(e.own_shards, "shard"),
            many(e.own_images / e.own_shards, "image"),
            BinaryBytes(e.memory)
        ),
        format!(
            "a step sums {}{}: a process sends {}, {} of it to other machines",
            BinaryBytes(e.summed),
            if e.gathered > 0 { format!(" and gathers {}", BinaryBytes(e.gathered)) } else { String::new() },
            BinaryBytes(e.sent),
            BinaryBytes(e.leaving)
        ),
    ];
    if e.exchanges > 0 {
        lines.push(format!(
            "besides, processes wait for each other {} a step, a message's way each time, which --link does not count",
            many(e.exchanges, "time")
        ));
    }
    match (e.link, e.work) {
        (Some(link), None) => lines.push(format!(
            "at least {:.3} s of a step are on the link (--images-per-second of one process alone shows it beside the step)",
            link
        )),
        (Some(link), Some(work)) => lines.push(format!(
            "at least {link:.3} s of a step are on the link, beside {work:.3} s of work: {:.0} % of {} times one process's speed",
            100.0 * work / (work + link),
            e.ranks
        )),
        (None, _) if e.leaving > 0 => lines.push("--link 100Gbit shows how long that takes".into()),
        _ => (),
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use crate::dist;

    #[test]
    fn rates() {
        for (text, bytes) in
            [("100Gbit", 12.5e9), ("1 Gbit/s", 1.25e8), ("12GB", 12e9), ("800Mbit", 1e8), ("5MB/s", 5e6)]
        {
            assert_eq!(text.parse(), Ok(Rate(bytes)), "{text}");
        }
        for text in ["", "100", "Gbit", "-1Gbit", "0GB", "1Tbit", "nanGB"] {
            assert!(text.parse::<Rate>().unwrap_err().contains("100Gbit"), "{text}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_sum_by_exchange_and_gathering() {
        let config = Config { batch: 16, micro_batch: 2, shards: 8, ..Config::tiny() }.resolve().unwrap();
        let flags =
            Ranks { ranks: Some(8), ranks_per_node: Some(4), link: Some(Rate(1e6)), images_per_second: Some(4.0) };
        let e = exchange::<Cpu>(&NoOptions {}, &config, &flags, 8).unwrap();
        let numbers = config.table().len() + config.bottleneck + 2;
        assert_eq!((e.machines, e.own_shards, e.own_images, e.summed), (2, 1, 2, 4 * numbers as u64));
        // Of eight parts seven go to others, four of them to the other machine; twice, and four ranks share the link.
        assert_eq!((e.sent, e.leaving), (2 * e.summed / 8 * 7, 2 * e.summed / 8 * 4));
        assert_eq!((e.link, e.work), (Some((4 * e.leaving) as f64 / 1e6), Some(0.5)));
        // On one machine nothing leaves it. Two shards a rank: one sum is kept aside, and there are fewer to exchange with.
        let flags = Ranks { ranks_per_node: None, ..flags };
        let [one, two] = [8, 4].map(|ranks| exchange::<Cpu>(&NoOptions {}, &config, &flags, ranks).unwrap());
        let scratch = |ranks| 4 * dist::scratch_len(ranks, 1) as u64;
        assert!(two.memory - scratch(4) >= one.memory - scratch(8) + two.summed);
        assert!((two.own_shards, two.leaving) == (2, 0) && two.link.is_none());
        // Targets that depend on the full batch bring the teacher's rows to all: of 16 images two each.
        let whole = Config { targets: "softmax-batch".into(), ..config.clone() };
        let rows = exchange::<Cpu>(&NoOptions {}, &whole, &flags, 8).unwrap();
        assert_eq!((rows.gathered, one.gathered), (4 * (16 * 2 * config.bottleneck) as u64, 0));
        assert_eq!((rows.exchanges, one.exchanges), (1, 0));
        assert_eq!(rows.sent, one.sent + rows.gathered / 8 * 7);
        // Two batch norms of 32 columns in the head of a shard, over two networks, the student's with their gradients; or only what
        // the running statistics of eight groups move by.
        let norms = Config { use_bn_in_head: true, hidden: 32, ..config.clone() };
        let [norms, groups] = [0, 2].map(|bn_group| {
            let norms = Config { bn_group, ..norms.clone() };
            exchange::<Cpu>(&NoOptions {}, &norms, &flags, 8).unwrap()
        });
        assert_eq!((norms.exchanges, norms.gathered), (3 * 2, 4 * 8 * 3 * 2 * 2 * 32));
        assert_eq!((groups.exchanges, groups.gathered), (1, 4 * 8 * 2 * 2 * 2 * 32));
        for bad in [
            Ranks { ranks: Some(0), ..flags.clone() },
            Ranks { ranks_per_node: Some(0), ..flags.clone() },
            Ranks { images_per_second: Some(-1.0), ..flags.clone() },
            Ranks { images_per_second: Some(f64::NAN), ..flags.clone() },
        ] {
            assert!(flags.check().is_ok() && bad.check().is_err(), "{bad:?}");
        }
        let text = exchange::<Cpu>(&NoOptions {}, &config, &flags, 3).err().unwrap().to_string();
        assert!(text.contains("3 processes"), "{text}");
    }
}

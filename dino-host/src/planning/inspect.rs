//! `plan`: what a training step takes, tensor by tensor, span by span, without allocating any of it.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::planning::exchange::{self, Ranks};
use crate::planning::memory;
use crate::train;
use dino_kernel::mem::Pool;
use dino_kernel::params::{Part, Spec};
use dino_kernel::plan::Plan;
use serde_json::{Value, json};
use std::io::{self, Write};

/// A range of a pool.
struct Row {
    name: String,
    /// The name of its pool.
    pool: &'static str,
    /// Shape and role for parameters, empty else.
    shape: Vec<usize>,
    role: String,
    at: usize,
    len: usize,
    bytes: u64,
}

/// A pool or a file.
struct Size {
    name: String,
    elements: usize,
    bytes: u64,
}

/// Everything there is to print.
struct Report {
    pools: Vec<Size>,
    /// What the device allocates: the pools, in its own element types, and whatever else it needs.
    kind: &'static str,
    memory: Vec<(&'static str, u64)>,
    tensors: Vec<Row>,
    spans: Vec<Row>,
    backbone: usize,
    head: usize,
    /// The tensors of a run's checkpoint, and of the teacher's.
    checkpoints: [Size; 2],
    /// Values of `--optimizer` and `--teacher`.
    optimizer: String,
    teacher: String,
}

/// How the optimizer treats a parameter.
fn role(s: &Spec) -> String {
    let role = match (s.frozen, s.group.decays()) {
        (true, _) => "frozen",
        (false, true) => "decay",
        (false, false) => "plain",
    };
    format!("{role}{}", if s.group.is_last_layer() { ", last layer" } else { "" })
}

fn report<D: Device>(options: &D::Options, config: &Config, plan: &Plan) -> Report {
    let bytes = |pool, len: usize| len as u64 * D::element_bytes(options, pool);
    let (table, pools) = (&plan.table, &plan.pools);
    let (mut tensors, mut spans, mut backbone) = (Vec::new(), Vec::new(), 0);
    table.visit(|s| {
        let in_backbone = s.part == Part::Backbone;
        backbone += if in_backbone { s.at.len() } else { 0 };
        tensors.push(Row {
            name: format!("{}{}", if in_backbone { "backbone." } else { "" }, s.name),
            pool: "weights",
            shape: s.shape().to_vec(),
            role: role(&s),
            at: s.at.0.at,
            len: s.at.len(),
            bytes: bytes(Pool::Weights, s.at.len()),
        });
    });
    plan.visit_spans(|pass, name, pool, span| {
        let named = match pool {
            Pool::Acts => "activations",
            Pool::Stats => "statistics",
            _ => "state",
        };
        spans.push(Row {
            name: pass.filter(|_| plan.config.stream_crops).map_or(name.to_string(), |i| format!("pass.{i}.{name}")),
            pool: named,
            shape: vec![],
            role: String::new(),
            at: span.at,
            len: span.len,
            bytes: bytes(pool, span.len),
        });
    });
    // Buffers are in both networks, a predictor in the student alone.
    let (parameters, both, mut buffers) = (table.parameters(), table.of_teacher(), [0; 2]);
    table.visit_buffers(|b| buffers[0] += b.at.len());
    both.visit_buffers(|b| buffers[1] += b.at.len());
    let pool = |name: &str, pool, elements| Size { name: name.into(), elements, bytes: bytes(pool, elements) };
    // Checkpoints are f32 whatever the device computes in.
    let file = |name: &str, elements| Size { name: name.into(), elements, bytes: 4 * elements as u64 };
    let slots = plan.config.optimizer.slots();
    let mut sizes = vec![
        pool("student weights", Pool::Weights, table.len()),
        pool("teacher weights", Pool::Weights, pools.weights - table.len()),
        pool("gradients", Pool::Grads, pools.lanes * pools.grads),
    ];
    sizes.extend(slots.iter().map(|name| pool(&format!("optimizer {name}"), Pool::Slots, table.len())));
    sizes.extend([
        pool("activations", Pool::Acts, pools.lanes * pools.acts),
        pool("statistics", Pool::Stats, pools.lanes * pools.stats),
        pool("state", Pool::State, pools.lanes * pools.state),
    ]);
    let center = if plan.config.objective.has_center() { plan.targets.rows.offset.len() } else { 0 };
    Report {
        pools: sizes,
        kind: D::KIND,
        memory: memory::items::<D>(options, config, plan),
        tensors,
        spans,
        backbone,
        head: parameters - backbone,
        checkpoints: [
            file(
                "checkpoint.safetensors",
                (1 + slots.len()) * parameters + both.parameters() + buffers.iter().sum::<usize>() + center,
            ),
            file("teacher.safetensors", backbone),
        ],
        optimizer: config.optimizer.clone(),
        teacher: config.teacher.clone(),
    }
}

impl Report {
    fn all_pools(&self) -> Size {
        let sum = |of: fn(&Size) -> u64| self.pools.iter().map(of).sum::<u64>();
        Size { name: "all pools".into(), elements: sum(|p| p.elements as u64) as usize, bytes: sum(|p| p.bytes) }
    }

    fn all_memory(&self) -> u64 {
        self.memory.iter().map(|item| item.1).sum()
    }
}

/// Checks the name of `plan --device`.
///
/// # Errors
/// This program does not run on the device; the hint names the one that does.
pub fn check_kind<D: Device>(name: &str) -> Result<()> {
    if name == D::KIND {
        return Ok(());
    }
    let hint = match name {
        "cpu" => "dino-host plan",
        "cuda" => "dino-gpu plan --device cuda",
        _ => "the devices are cpu (dino-host plan) and cuda (dino-gpu plan --device cuda)",
    };
    Err(Error::new(format!("--device {name}: this program runs on {}", D::KIND)).hint(hint))
}

/// Prints every pool, parameter and span of a training step, of one of the processes, as a table or as JSON.
///
/// # Errors
/// The configuration has no plan, `ranks` cannot share it, or the table cannot be written.
pub fn print<D: Device>(options: &D::Options, config: &Config, ranks: &Ranks, json: bool) -> Result<()> {
    let plan = train::plan::<D>(config, ranks.ranks.unwrap_or(1))?;
    let report = report::<D>(options, config, &plan);
    if json {
        let mut json = as_json(&report);
        json["processes"] = exchange::json::<D>(options, config, ranks)?;
        outln!("{json}");
        return Ok(());
    }
    let shared = exchange::lines::<D>(options, config, ranks)?;
    let mut table = Vec::new();
    let written = as_table(&mut table, &plan, &report);
    written.map_err(|e| Error::new(format!("the table cannot be written: {e}")))?;
    outln!("{}", String::from_utf8_lossy(&table).trim_end_matches('\n'));
    shared.iter().for_each(|line| outln!("{line}"));
    Ok(())
}

fn as_json(r: &Report) -> Value {
    let row = |x: &Row| {
        let mut row = json!({"name": x.name, "pool": x.pool, "offset": x.at, "elements": x.len, "bytes": x.bytes});
        if !x.shape.is_empty() {
            (row["shape"], row["role"]) = (json!(x.shape), json!(x.role));
        }
        row
    };
    let sized = |s: &Size| json!({"name": s.name, "elements": s.elements, "bytes": s.bytes});
    let item = |&(name, bytes): &(&str, u64)| json!({"name": name, "bytes": bytes});
    json!({
        "pools": r.pools.iter().map(sized).collect::<Vec<_>>(),
        "total": sized(&r.all_pools()),
        "device": r.kind,
        "memory": r.memory.iter().map(item).collect::<Vec<_>>(),
        "memory_total": r.all_memory(),
        "parameters": {"backbone": r.backbone, "head": r.head, "all": r.backbone + r.head},
        "optimizer": r.optimizer,
        "teacher": r.teacher,
        "checkpoints": r.checkpoints.iter().map(sized).collect::<Vec<_>>(),
        "tensors": r.tensors.iter().map(row).collect::<Vec<_>>(),
        "spans": r.spans.iter().map(row).collect::<Vec<_>>(),
    })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// The long lists first: what counts is then last on the screen.
fn as_table(out: &mut impl Write, plan: &Plan, r: &Report) -> io::Result<()> {
    let widest = |rows: &[Row]| rows.iter().map(|x| x.name.len()).max().unwrap_or(0);
    let w = widest(&r.tensors);
    writeln!(out, "parameters of the student; the teacher's are stored {} elements later", plan.table.len())?;
    writeln!(out, "{:<w$}  {:<16}  {:<18} {:>12} {:>14} {:>10}", "key", "shape", "role", "offset", "bytes", "MiB")?;
    for x in &r.tensors {
        let (shape, bytes, size) = (format!("{:?}", x.shape), x.bytes, mib(x.bytes));
        writeln!(out, "{:<w$}  {shape:<16}  {:<18} {:>12} {bytes:>14} {size:>10.3}", x.name, x.role, x.at)?;
    }
    let w = widest(&r.spans);
    writeln!(
        out,
        "\nwhat a step writes; the teacher's activations share memory with the student's and their gradients"
    )?;
    if plan.config.stream_crops {
        writeln!(out, "the student's passes over the crops (pass.0., pass.1., ...) reuse the same memory")?;
    }
    if plan.pools.lanes > 1 {
        let lanes = plan.pools.lanes;
        writeln!(
            out,
            "batch norms take {lanes} shards side by side, each with memory of its own for this and the gradients"
        )?;
    }
    writeln!(out, "{:<w$}  {:<12} {:>12} {:>14} {:>10}", "name", "pool", "offset", "bytes", "MiB")?;
    for x in &r.spans {
        let (bytes, size) = (x.bytes, mib(x.bytes));
        writeln!(out, "{:<w$}  {:<12} {:>12} {bytes:>14} {size:>10.3}", x.name, x.pool, x.at)?;
    }
    let line = |out: &mut dyn Write, s: &Size| {
        writeln!(out, "{:<24} {:>14} {:>16} {:>12.2}", s.name, s.elements, s.bytes, mib(s.bytes))
    };
    writeln!(out, "\n{:<24} {:>14} {:>16} {:>12}", "pool", "elements", "bytes", "MiB")?;
    for pool in &r.pools {
        line(out, pool)?;
    }
    line(out, &r.all_pools())?;
    writeln!(out, "\n{:<24} {:>14} {:>16} {:>12}", format!("allocated on {}", r.kind), "", "bytes", "MiB")?;
    for (name, bytes) in r.memory.iter().copied().chain([("all", r.all_memory())]) {
        writeln!(out, "{name:<24} {:>14} {bytes:>16} {:>12.2}", "", mib(bytes))?;
    }
    writeln!(out)?;
    for file in &r.checkpoints {
        line(out, file)?;
    }
    let (b, h, c) = (r.backbone, r.head, &plan.config);
    writeln!(out, "(tensors alone: a header of some KiB comes on top)\n")?;
    writeln!(out, "parameters: {b} backbone + {h} head = {}, in {} tensors", b + h, r.tensors.len())?;
    writeln!(out, "optimizer: {}; teacher: {}", r.optimizer, r.teacher)?;
    writeln!(
        out,
        "a step: {} images in {} parts of {}, {} crops each{}",
        c.batch,
        plan.parts(),
        c.micro_batch,
        plan.views(),
        if c.stream_crops {
            format!(", which the student runs over in {} passes", plan.passes().count())
        } else {
            String::new()
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Cpu, NoOptions};
    use dino_kernel::mem::Cursor;

    fn configs() -> [Config; 9] {
        let published = Config::published();
        [
            Config::tiny(),
            Config { stream_crops: true, drop_path_rate: 0.1, ..Config::tiny() },
            Config { stream_crops: true, batch: 16, ..published.clone() },
            Config { predictor: true, use_bn_in_head: true, activation: "relu".into(), ..Config::tiny() },
            Config { bottleneck: 0, predictor: true, head_layers: 1, ..Config::tiny() },
            Config { bottleneck: 0, head_layers: 4, ..Config::tiny() },
            Config { drop_path_rate: 0.1, head_layers: 5, depth: 2, norm_last_layer: false, ..Config::tiny() },
            Config { head_layers: 1, local_crops_number: 0, batch: 2, ..Config::tiny() },
            Config { batch: 16, ..published },
        ]
    }

    /// No span is forgotten and none is invented: together they are the pools.
    #[test]
    fn the_named_spans_fill_every_pool() {
        for config in configs() {
            let config = config.resolve().unwrap();
            let plan = config.plan(true).unwrap();
            let r = report::<Cpu>(&NoOptions {}, &config, &plan);
            let sizes =
                [("activations", plan.pools.acts), ("statistics", plan.pools.stats), ("state", plan.pools.state)];
            for (pool, size) in sizes.into_iter().chain([("weights", plan.table.len())]) {
                let rows = if pool == "weights" { &r.tensors } else { &r.spans };
                let mut ends: Vec<(usize, usize)> =
                    rows.iter().filter(|x| x.pool == pool).map(|x| (x.at, x.at + x.len)).collect();
                ends.sort_unstable();
                let reached = ends.into_iter().fold(0usize, |reached, (at, end)| {
                    assert!(
                        at <= reached.next_multiple_of(Cursor::ALIGN),
                        "nothing named at {reached}..{at} of {pool}"
                    );
                    reached.max(end)
                });
                assert_eq!(reached.next_multiple_of(Cursor::ALIGN), size, "{pool}");
            }
        }
    }

    /// What is the student's or the gradients' outlives the pass, so nothing of it overlaps anything else of it. Pixels are dead once
    /// they are im2col patches: they may overlap what a pass writes, not the patches or what was made before them.
    #[test]
    fn what_training_keeps_does_not_overlap() {
        for config in configs() {
            let config = config.resolve().unwrap();
            let plan = config.plan(true).unwrap();
            let mut rows = report::<Cpu>(&NoOptions {}, &config, &plan).spans;
            let pixels = rows.iter().position(|x| x.name == "step.pixels").map(|at| rows.remove(at)).unwrap();
            let earlier = |x: &&Row| x.name == "step.patches" || x.name.contains("positions");
            let earlier: Vec<&Row> = rows.iter().filter(earlier).filter(|x| x.pool == pixels.pool).collect();
            assert!(earlier.len() > 2, "patch rows, and either network's positions");
            for x in earlier {
                assert!(x.at + x.len <= pixels.at, "{} and the pixels overlap", x.name);
            }
            let teachers_pass = |x: &Row| x.name.starts_with("teacher.") && !x.name.contains("head");
            rows.retain(|x| x.pool == "state" || x.name.contains("positions") || !teachers_pass(x));
            rows.sort_by_key(|x| (x.pool, x.at));
            // The student's passes reuse one memory one after another; what is of none stays.
            assert_eq!(rows.iter().any(|x| x.name.starts_with("pass.1.")), plan.config.stream_crops);
            for pass in 0..plan.passes().count() {
                let here = format!("pass.{pass}.");
                let live: Vec<_> =
                    rows.iter().filter(|x| !x.name.starts_with("pass.") || x.name.starts_with(&here)).collect();
                for pair in live.windows(2) {
                    let apart = pair[0].pool != pair[1].pool || pair[0].at + pair[0].len <= pair[1].at;
                    assert!(apart, "{} and {} overlap", pair[0].name, pair[1].name);
                }
            }
        }
    }

    #[test]
    fn an_optimizer_takes_what_its_state_is() {
        let states = |optimizer: &str| {
            let config = Config { optimizer: optimizer.into(), ..Config::tiny() }.resolve().unwrap();
            let plan = config.plan(true).unwrap();
            let json = as_json(&report::<Cpu>(&NoOptions {}, &config, &plan));
            assert_eq!((&json["optimizer"], &json["teacher"]), (&optimizer.into(), &"ema".into()));
            let pools = json["pools"].as_array().unwrap();
            let names = pools.iter().filter_map(|p| p["name"].as_str().unwrap().strip_prefix("optimizer "));
            let names: Vec<String> = names.map(String::from).collect();
            let file = json["checkpoints"][0]["elements"].as_u64().unwrap() as usize;
            let networks = plan.table.parameters() * (2 + names.len()) + plan.targets.rows.offset.len();
            assert_eq!((plan.pools.slots, file), (names.len() * plan.table.len(), networks));
            names
        };
        assert_eq!(states("adamw"), ["exp_avg", "exp_avg_sq"]);
        assert_eq!(states("sgd"), ["momentum_buffer"]);
        assert_eq!(states("lars"), ["mu"]);
    }

    #[test]
    fn the_json_adds_up() {
        let config = Config::published().resolve().unwrap();
        let plan = config.plan(true).unwrap();
        let json = as_json(&report::<Cpu>(&NoOptions {}, &config, &plan));
        assert_eq!(json["parameters"]["backbone"], 21_665_664);
        let bytes: u64 = json["pools"].as_array().unwrap().iter().map(|p| p["bytes"].as_u64().unwrap()).sum();
        assert_eq!(json["total"]["bytes"], bytes);
        let memory = json["memory"].as_array().unwrap();
        let beside = ["scratch of the loss", "scoring between steps", "scratch of the threads"]
            .map(|name| memory.iter().find(|item| item["name"] == name).unwrap()["bytes"].as_u64().unwrap());
        assert_eq!(json["memory_total"], bytes + beside.iter().sum::<u64>());
        assert!(beside.iter().all(|&bytes| bytes > 0));
        let first = &json["tensors"][0];
        assert_eq!((first["name"].as_str(), first["bytes"].as_u64()), (Some("backbone.cls_token"), Some(4 * 384)));
    }
}

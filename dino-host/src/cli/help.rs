//! The help that is printed: every key with its values, the keys of training only where something is trained, and `-h` short.

use crate::config::Config;
use clap::{Arg, Command};
use serde_json::{Value, json};

/// Keys that `-h` has, beside the flags of a command itself.
const MOST_USED: [&str; 14] = [
    "arch",
    "patch_size",
    "out_dim",
    "batch",
    "epochs",
    "lr",
    "optimizer",
    "seed",
    "teacher_temp",
    "momentum_teacher",
    "global_size",
    "local_crops_number",
    "knn_every",
    "save_every",
];
/// Flags of a command that `-h` leaves to `--help`.
const SELDOM: [&str; 12] = [
    "rank_timeout",
    "init_head",
    "init_channels",
    "network",
    "accept_changed_data",
    "mem_limit",
    "strict",
    "detail",
    "predictions",
    "range",
    "show",
    "fps",
];
/// Commands that train or plan a training.
const TRAINING: [&str; 4] = ["train", "ablate", "plan", "crops"];
/// Headings of keys that weights bring with them: other commands take them, but do not list them.
const OF_TRAINING: [&str; 5] = ["Model", "Head", "Teacher", "Training", "Crops"];

/// Two command lines of each command.
fn examples(command: &str) -> Option<&'static str> {
    Some(match command {
        "train" => "dino-host train --small --data PATH --out RUN\n  dino-host train --resume --out RUN",
        "ablate" => {
            "dino-host ablate --small --rows teacher,loss --data PATH --out OUT\n  dino-host ablate --small --variants FILE.toml --choose-on train-split --data PATH --out OUT"
        }
        "finetune" => {
            "dino-host finetune --checkpoint RUN --data PATH --out TUNED\n  dino-host finetune --which random --small --data PATH --out TUNED"
        }
        "classify" => {
            "dino-host classify --checkpoint TUNED/checkpoint.safetensors --image A.jpg\n  dino-host classify --checkpoint TUNED/checkpoint.safetensors --image IMAGES --json"
        }
        "features" => {
            "dino-host features --checkpoint RUN --data PATH --out OUT\n  dino-host features --checkpoint RUN --tokens patches --data PATH --out OUT"
        }
        "convert" => "dino-host convert WEIGHTS --to timm OUT\n  dino-host convert WEIGHTS --to onnx OUT",
        "attend" => {
            "dino-host attend --checkpoint RUN --image A.jpg B.jpg --out OUT\n  dino-host attend --cam --checkpoint RUN --image A.jpg --out OUT"
        }
        "pca" => {
            "dino-host pca --checkpoint RUN --image A.jpg B.jpg --out OUT\n  dino-host pca --checkpoint RUN --image IMAGES --size 448 --out OUT"
        }
        "neighbours" => {
            "dino-host neighbours --checkpoint RUN --data PATH --out OUT\n  dino-host neighbours --pixels --data PATH --out OUT"
        }
        "crops" => {
            "dino-host crops --small --data PATH --out OUT\n  dino-host crops --checkpoint RUN --epoch 3 --data PATH --out OUT"
        }
        "report" => "dino-host report RUN\n  dino-host report RUN OTHER --out OUT",
        "watch" => "dino-host watch RUN\n  dino-host watch RUN --port 0",
        "plan" => "dino-host plan --arch vit_small\n  dino-host plan --arch vit_small --mem-limit 2GiB",
        "knn" => {
            "dino-host eval knn --checkpoint RUN --which teacher,random,pixels --data PATH\n  dino-host eval knn --which pixels --data PATH"
        }
        "linear" => {
            "dino-host eval linear --checkpoint RUN --data PATH\n  dino-host eval linear --checkpoint RUN --epochs 20 --data PATH"
        }
        "logistic" => {
            "dino-host eval logistic --checkpoint RUN --data PATH\n  dino-host eval logistic --which pixels --data PATH"
        }
        _ => return None,
    })
}

/// A value as the command line takes it.
fn written(value: &Value) -> String {
    match value {
        Value::Array(all) if all.is_empty() => "none".into(),
        Value::Array(all) => all.iter().map(written).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The command with the help of its flags made complete.
pub fn completed(command: Command) -> Command {
    let of = |config: Config| json!(config);
    changed(command, &of(Config::published()), &of(Config::small()), false)
}

fn changed(command: Command, published: &Value, small: &Value, trains: bool) -> Command {
    let name = command.get_name().to_string();
    let trains = trains || TRAINING.contains(&name.as_str());
    let command = command
        .mut_args(|arg| changed_arg(arg, published, small, trains))
        .mut_subcommands(|sub| changed(sub, published, small, trains));
    let lists_none = !trains && command.get_arguments().any(|arg| arg.get_id() == "teacher_temp");
    let keys = if lists_none {
        "The keys of a network and of its training are taken here as well, for --which random; weights bring theirs. `train --help` lists them.\n\n"
    } else {
        ""
    };
    match examples(&name) {
        Some(examples) => command.after_long_help(format!("{keys}Examples:\n  {examples}")),
        None if lists_none => command.after_long_help(keys.trim_end().to_string()),
        None => command,
    }
}

fn changed_arg(arg: Arg, published: &Value, small: &Value, trains: bool) -> Arg {
    let id = arg.get_id().to_string();
    let key = id.replace('_', "-");
    let heading = arg.get_help_heading().unwrap_or_default().to_string();
    let Some(value) = published.get(&key).filter(|_| !heading.is_empty()) else {
        return if SELDOM.contains(&id.as_str()) { arg.hide_short_help(true) } else { arg };
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let other = small.get(&key).filter(|small| *small != value);
    let other = other.map_or(String::new(), |small| format!("; --small: {}", written(small)));
    let arg = arg.help(format!("{help} [default: {}{other}]", written(value)));
    let arg = if MOST_USED.contains(&id.as_str()) { arg } else { arg.hide_short_help(true) };
    arg.hide(!trains && OF_TRAINING.contains(&heading.as_str()))
}

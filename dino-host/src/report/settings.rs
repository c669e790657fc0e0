//! The settings of a run: first those that differ from what it started from, then all.

use super::page::{Page, plain, visible};
use crate::config::{Config, PRESETS};
use maud::{Markup, html};
use serde_json::{Value, json};

/// A key with the value that it would have, and the one that it has.
pub type Difference = (String, Value, Value);

/// A value as a page has it: lists with commas, and not too long.
pub fn text(value: &Value) -> String {
    let text = match value {
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(", "),
        one => plain(one),
    };
    if text.chars().count() > 400 { text.chars().take(400).chain(['…']).collect() } else { text }
}

/// The keys in which two configurations differ, as `run.json` has them; what was left to the images (`auto`) differs in nothing.
pub fn differences(from: &Value, to: &Value) -> Vec<Difference> {
    let keys = to.as_object().into_iter().flatten();
    let differ = keys.filter(|(key, value)| {
        !from[key.as_str()].is_null() && from[key.as_str()] != "auto" && from[key.as_str()] != **value
    });
    differ.map(|(key, value)| (key.clone(), from[key.as_str()].clone(), value.clone())).collect()
}

/// What a run of this command started from, by name, and how its configuration differs from it: of several that the command can mean
/// (`--small` is chosen by the images), the nearest.
pub fn from_preset(command: &[&str], config: &Value) -> Option<(String, Vec<Difference>)> {
    let named = command.windows(2).find(|pair| pair[0] == "--preset").map(|pair| pair[1]);
    let named = named.or(command.iter().find_map(|argument| argument.strip_prefix("--preset=")));
    let small = command.contains(&"--small");
    let mut from: Vec<(String, Config)> = Vec::new();
    if small {
        let all = [Config::small(), Config::small_32(), Config::small_32_vit(), Config::small_64()];
        from.extend(all.map(|config| ("--small".into(), config)));
    }
    for preset in PRESETS.iter().filter(|preset| named == Some(preset.name)) {
        let mut config = Config::published();
        config.set(&Config::preset(preset.name).ok()?);
        from.push((format!("--preset {}", preset.name), config));
    }
    if from.is_empty() {
        from.push(("the published recipe".into(), Config::published()));
    }
    let resolved = from.into_iter().filter_map(|(name, start)| {
        // What depends on other keys is filled in by the run's own network: a preset of another one is not nearer for it.
        let start = json!(start.resolve().ok()?);
        Some((name, differences(&start, config)))
    });
    resolved.min_by_key(|(_, differences)| differences.len())
}

impl Page<'_> {
    /// What differs from the preset, and, folded away, the whole manifest.
    pub(super) fn settings(&self) -> Markup {
        let m = self.manifest;
        if !m.is_object() {
            return html! {};
        }
        let command: Vec<&str> = m["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let found = from_preset(&command, &m["config"]).filter(|_| m["config"].is_object());
        html! {
            @if let Some((name, differences)) = found {
                h2 { "Settings" }
                @if differences.is_empty() {
                    p { "Those of " (name) ", all of them." }
                } @else {
                    p.soft { "What differs from " (name) ":" }
                    div.wide {
                        table.text {
                            thead { tr { th { "key" } th { "here" } th { (name) } } }
                            tbody {
                                @for (key, from, to) in &differences {
                                    tr { th scope="row" { "--" (visible(key)) } td { (visible(&text(to))) } td { (visible(&text(from))) } }
                                }
                            }
                        }
                    }
                }
            }
            h2 { "Manifest" }
            details {
                summary { "All keys" }
                dl.keys {
                    @for (key, value) in self.keys() {
                        div { dt { (visible(&key)) } dd { (visible(&value)) } }
                    }
                }
            }
        }
    }

    /// Keys and values of the manifest, those of the configuration last.
    fn keys(&self) -> Vec<(String, String)> {
        let m = self.manifest;
        let mut keys = Vec::new();
        let mut row = |key: &str, value: &Value| {
            keys.push((key.to_string(), text(value)));
        };
        let all = m.as_object().into_iter().flatten();
        for (key, value) in all.filter(|(k, v)| *k != "command" && *k != "config" && !v.is_null()) {
            match value.as_object() {
                Some(inner) => inner.iter().for_each(|(k, v)| row(&format!("{key} {k}"), v)),
                None => row(key, value),
            }
        }
        m["config"].as_object().into_iter().flatten().for_each(|(k, v)| row(k, v));
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_compared_with_the_nearest_that_the_command_can_mean() {
        let of = |config: Config| json!(config.resolve().unwrap());
        let (name, found) = from_preset(&["dino-host", "train", "--small"], &of(Config::small_32())).unwrap();
        assert_eq!((name.as_str(), found.len()), ("--small", 0));
        let changed = of(Config { lr: 0.25, ..Config::small_64() });
        let (_, found) = from_preset(&["dino-host", "train", "--small"], &changed).unwrap();
        assert_eq!(found, [("lr".to_string(), json!(0.4), json!(0.25))]);
        let published = of(Config { epochs: 7, ..Config::published() });
        let (name, found) = from_preset(&["dino-host", "train"], &published).unwrap();
        assert_eq!((name.as_str(), found.len(), found[0].0.as_str()), ("the published recipe", 1, "epochs"));
        let (name, _) = from_preset(&["train", "--preset", "resnet50-sgd"], &published).unwrap();
        assert_eq!(name, "--preset resnet50-sgd");
    }
}

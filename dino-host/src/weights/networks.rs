//! Where in a file its networks are stored: checkpoints hold them under any words in any order (`state_dict.module.momentum_encoder.`).

use super::File;
use super::names::Family;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Words that programs put into names anywhere and that tell nothing: DataParallel's, torch.compile's, FSDP's, those of activation
/// checkpoints, DeepSpeed's and VISSL's.
const WORDLESS: [&str; 6] =
    ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_feature_blocks"];

/// Words of the network that others teach with: an average over steps.
const AVERAGED: [&str; 7] = ["teacher", "momentum", "ema", "target", "shadow", "averaged", "swa"];

/// Networks that an error line names.
const SHOWN: usize = 6;

/// A network in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What its names are those of.
    pub family: Family,
    /// What precedes its names, without words that tell nothing: `teacher.backbone.`, or "".
    pub path: String,
    /// The same as the file has it.
    pub raw: String,
}

impl Network {
    /// How it is called in a message, and what `--network` takes.
    pub fn shown(&self) -> &str {
        self.raw.trim_end_matches('.')
    }

    fn segments(&self) -> impl Iterator<Item = &str> {
        self.path.split_terminator('.')
    }

    /// Whether some part of a segment of its path is one of these.
    fn is_any_of(&self, names: &[&str]) -> bool {
        self.segments().any(|segment| segment == "encoder_k" || segment.split('_').any(|part| names.contains(&part)))
    }

    /// Whether `wanted` is the path or some full segments of it.
    fn is_called(&self, wanted: &str) -> bool {
        let wanted = plain(wanted.trim_matches('.'));
        let has = |path: &str| format!(".{path}").contains(&format!(".{wanted}."));
        has(&self.path)
    }
}

/// A name without the words that tell nothing.
pub fn plain(name: &str) -> String {
    let kept: Vec<&str> = name.split('.').filter(|segment| !WORDLESS.contains(segment)).collect();
    kept.join(".")
}

/// The networks of a file, by path: where two of the tensors are that a family is known by.
pub fn all(file: &File) -> Vec<Network> {
    let mut found: BTreeMap<(String, Family), (String, BTreeSet<usize>)> = BTreeMap::new();
    for key in file.tensors.keys() {
        let name = plain(key);
        for family in Family::ALL {
            let marks = family.names().marks;
            for (mark, tensor) in marks {
                let Some(path) = name.strip_suffix(mark).filter(|path| path.is_empty() || path.ends_with('.')) else {
                    continue;
                };
                // One program's names may end with another's.
                if marks.iter().any(|(longer, _)| longer.len() > mark.len() && name.ends_with(longer)) {
                    continue;
                }
                let raw = key.strip_suffix(mark).unwrap_or(path).to_owned();
                found.entry((path.to_owned(), family)).or_insert((raw, BTreeSet::new())).1.insert(*tensor);
            }
        }
    }
    let networks = found.into_iter().filter(|(_, (_, tensors))| tensors.len() > 1);
    networks.map(|((path, family), (raw, _))| Network { family, path, raw }).collect()
}

fn listed(networks: &[Network]) -> String {
    let names: Vec<String> = networks.iter().take(SHOWN).map(|n| format!("`{}`", n.shown())).collect();
    let more = networks.len() - names.len();
    format!("{}{}", names.join(", "), if more > 0 { format!(" and {more} more") } else { String::new() })
}

/// The network that is asked for: by its path (`--network`), or "teacher" (as without a word) or "student". Of a file that has an
/// average and the network that it is of, they are the teacher and the student, whatever their names. And what to print about the choice.
///
/// # Errors
/// The file has no network or several of the path `called`, not the one that is `wanted`, or several that it may be.
pub fn choose(file: &File, wanted: Option<&str>, called: Option<&str>) -> Result<(Network, Vec<String>)> {
    let networks = all(file);
    let only = |some: Vec<&Network>| if let [one] = some[..] { Some(one.clone()) } else { None };
    if let Some(called) = called {
        let fit: Vec<&Network> = networks.iter().filter(|n| n.is_called(called)).collect();
        let chosen =
            only(fit.clone()).or(only(fit.into_iter().filter(|n| n.segments().next() == Some(called)).collect()));
        return match chosen {
            Some(chosen) => Ok((chosen, vec![])),
            None if networks.is_empty() => {
                Err(Error::new(format!("{} has no network of a kind that this program knows", file.name))
                    .hint("leave --network out to see what is in it"))
            }
            None => Err(Error::new(format!(
                "{} has not one network called {called}: it has {}",
                file.name,
                listed(&networks)
            ))
            .hint(format!("--network {}", networks[0].shown()))),
        };
    }
    let averaged = |n: &&Network| n.is_any_of(&AVERAGED);
    let student = wanted == Some("student");
    let none = |what: &str| {
        Err(Error::new(format!("{} has no {what}", file.name)).hint("--which names the network that it holds"))
    };
    let chosen = match &networks[..] {
        // None that is known: what a vision transformer lacks is reported.
        [] => Network { family: Family::Vit, path: String::new(), raw: String::new() },
        [one] if student && averaged(&one) => return none("student"),
        [one] if student && !one.is_any_of(&["student"]) => {
            return Err(Error::new(format!("{} holds one network alone, no student beside a teacher", file.name))
                .hint("--which teacher takes it"));
        }
        [one] if !student && one.is_any_of(&["student"]) => return none("teacher"),
        [one] => one.clone(),
        several => {
            let split: (Vec<&Network>, Vec<&Network>) = several.iter().partition(averaged);
            // Where nothing is an average, `state_dict` is the network and what is beside it something else.
            let candidates = if student || split.0.is_empty() { split.1 } else { split.0 };
            let first =
                |word: &str| only(candidates.iter().copied().filter(|n| n.segments().next() == Some(word)).collect());
            let word = if student { "student" } else { "teacher" };
            let known = only(candidates.clone()).or_else(|| [word, "state_dict", "model"].into_iter().find_map(first));
            known.ok_or_else(|| {
                Error::new(format!("{} has {} networks: {}", file.name, several.len(), listed(several)))
                    .hint(format!("--network {} takes the first", several[0].shown()))
            })?
        }
    };
    let said = match networks.len() {
        0 | 1 if chosen.raw.is_empty() => vec![],
        1 => vec![format!("the network is taken that lies under `{}`", chosen.shown())],
        n => vec![format!(
            "of its {n} networks, {}, `{}` is taken; --network names another",
            listed(&networks),
            chosen.shown()
        )],
    };
    Ok((chosen, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with the marks of a network under every prefix.
    fn file(prefixes: &[&str]) -> File {
        let names = prefixes
            .iter()
            .flat_map(|p| Family::Vit.names().marks[..3].iter().map(move |(mark, _)| format!("{p}{mark}")));
        let header: serde_json::Map<String, serde_json::Value> = names
            .map(|name| (name, serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})))
            .collect();
        let header = serde_json::to_vec(&header).unwrap();
        File::parse("file".into(), [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap()
    }

    #[test]
    fn networks_are_found_under_any_words_and_chosen_by_their_role() {
        for (prefixes, teacher, student) in [
            (&["student.module.backbone.", "teacher.backbone."][..], "teacher.backbone.", "student.module.backbone."),
            (
                &["state_dict.student_backbone.", "state_dict.teacher_backbone."],
                "state_dict.teacher_backbone.",
                "state_dict.student_backbone.",
            ),
            (
                &["state_dict.backbone.", "state_dict.momentum_backbone."],
                "state_dict.momentum_backbone.",
                "state_dict.backbone.",
            ),
            (
                &["state_dict.module.base_encoder.", "state_dict.module.momentum_encoder."],
                "state_dict.module.momentum_encoder.",
                "state_dict.module.base_encoder.",
            ),
            (&["model.", "model_ema.module."], "model_ema.module.", "model."),
            (&["state_dict.", "state_dict_ema."], "state_dict_ema.", "state_dict."),
            (&["model.encoder_q.", "model.encoder_k."], "model.encoder_k.", "model.encoder_q."),
        ] {
            let file = file(prefixes);
            assert_eq!(all(&file).len(), 2, "{prefixes:?}");
            for (wanted, raw) in [(None, teacher), (Some("teacher"), teacher), (Some("student"), student)] {
                let (chosen, said) = choose(&file, wanted, None).unwrap();
                assert_eq!(chosen.raw, raw);
                assert!(said[0].contains(chosen.shown()) && said[0].contains("--network"), "{said:?}");
            }
            // By its full path, with and without what tells nothing, and by a part.
            for raw in [teacher, student] {
                let parts = [raw.to_owned(), raw.trim_end_matches('.').to_owned(), plain(raw)];
                for part in parts.iter().filter(|p| !p.trim_matches('.').is_empty()) {
                    assert_eq!(choose(&file, None, Some(part)).unwrap().0.raw, raw, "{part}");
                }
            }
        }
        for (prefix, path) in [
            ("", ""),
            ("module.", ""),
            ("module._orig_mod.backbone.", "backbone."),
            ("_orig_mod.module.backbone.module.", "backbone."),
            ("classy_state_dict.base_model.model.trunk._feature_blocks.", "classy_state_dict.base_model.model.trunk."),
            ("model_state_dict.encoder.", "model_state_dict.encoder."),
        ] {
            let (chosen, said) = choose(&file(&[prefix]), None, None).unwrap();
            assert_eq!((chosen.path.as_str(), chosen.raw.as_str()), (path, prefix));
            assert_eq!(said.is_empty(), prefix.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_chosen_is_listed() {
        let several = file(&["left.", "right.", "middle.module."]);
        let said = choose(&several, None, None).unwrap_err().to_string();
        assert!(
            said.contains("3 networks: `left`, `middle.module`, `right`") && said.contains("--network left"),
            "{said}"
        );
        assert_eq!(choose(&several, None, Some("right")).unwrap().0.raw, "right.");
        let said = choose(&several, None, Some("up")).unwrap_err().to_string();
        assert!(said.contains("called up") && said.contains("`left`"), "{said}");
        assert!(choose(&several, Some("student"), None).is_err());
        assert_eq!(choose(&file(&["state_dict.", "other."]), None, None).unwrap().0.raw, "state_dict.");
        let said = choose(&file(&["student.backbone."]), None, None).unwrap_err().to_string();
        assert!(said.contains("has no teacher"), "{said}");
        let said = choose(&file(&["teacher."]), Some("student"), None).unwrap_err().to_string();
        assert!(said.contains("has no student"), "{said}");
        assert!(choose(&file(&["state_dict."]), Some("student"), None).is_err());
        // No network at all: what is reported of the keys comes later.
        assert_eq!(choose(&file(&[]), None, None).unwrap().0.raw, "");
        assert!(choose(&file(&[]), None, Some("x")).is_err());
    }
}

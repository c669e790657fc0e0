//! What a vision transformer's tensors are called: the published names, which are this program's and timm's too, and Hugging Face's.

use super::{Names, Naming, TensorPart};

/// A vision transformer's.
pub static NAMES: Names = Names {
    marks: &[
        ("cls_token", 0),
        ("pos_embed", 1),
        ("patch_embed.proj.weight", 2),
        ("embeddings.cls_token", 0),
        ("embeddings.position_embeddings", 1),
        ("embeddings.patch_embeddings.projection.weight", 2),
    ],
    attribute: "vit.",
    reads: "it reads plain vision transformers with a class token and learned positions, as DINO's are",
    is_hf,
    published,
    spelled,
    is_ours,
    foreign,
};

/// Hugging Face's names outside the blocks, and ours, without `.weight` and `.bias`.
const OUTSIDE: [(&str, &str); 4] = [
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layernorm", "norm"),
];

/// Those inside: in files, in the memory of transformers 5 (whose `state_dict()` may have been saved as it is), and ours.
const INSIDE: [(&str, &str, &str, Option<usize>); 8] = [
    ("layernorm_before", "layernorm_before", "norm1", None),
    ("attention.attention.query", "attention.q_proj", "attn.qkv", Some(0)),
    ("attention.attention.key", "attention.k_proj", "attn.qkv", Some(1)),
    ("attention.attention.value", "attention.v_proj", "attn.qkv", Some(2)),
    ("attention.output.dense", "attention.o_proj", "attn.proj", None),
    ("layernorm_after", "layernorm_after", "norm2", None),
    ("intermediate.dense", "mlp.fc1", "mlp.fc1", None),
    ("output.dense", "mlp.fc2", "mlp.fc2", None),
];

/// `.weight` or `.bias`, and what precedes it.
fn ending(name: &str) -> (&str, &str) {
    match name.rsplit_once('.') {
        Some((stem, "weight")) => (stem, ".weight"),
        Some((stem, "bias")) => (stem, ".bias"),
        _ => (name, ""),
    }
}

fn is_hf(name: &str) -> bool {
    name.starts_with("embeddings.") || name.starts_with("encoder.layer.")
}

fn published(naming: Naming, name: &str) -> Option<TensorPart> {
    match naming {
        Naming::Hf => from_hf(name),
        Naming::Official | Naming::Timm | Naming::Own => Some(TensorPart { name: name.into(), third: None }),
    }
}

fn spelled(naming: Naming, name: &str) -> Vec<String> {
    match naming {
        Naming::Hf => to_hf(name),
        Naming::Official | Naming::Timm | Naming::Own => vec![name.into()],
    }
}

/// Which tensor of ours Hugging Face calls `name`.
fn from_hf(name: &str) -> Option<TensorPart> {
    let (stem, end) = ending(name);
    if let Some((_, ours)) = OUTSIDE.iter().find(|(hf, _)| *hf == stem) {
        return Some(TensorPart { name: format!("{ours}{end}"), third: None });
    }
    let in_files = stem.strip_prefix("encoder.layer.");
    let (index, leaf) = in_files.or(stem.strip_prefix("layers."))?.split_once('.')?;
    let index: usize = index.parse().ok()?;
    let row = INSIDE.iter().find(|row| leaf == if in_files.is_some() { row.0 } else { row.1 })?;
    Some(TensorPart { name: format!("blocks.{index}.{}{end}", row.2), third: row.3 })
}

/// What Hugging Face's files call a tensor of ours: three names for one that holds query, key and value.
fn to_hf(name: &str) -> Vec<String> {
    let (stem, end) = ending(name);
    if let Some((hf, _)) = OUTSIDE.iter().find(|(_, ours)| *ours == stem) {
        return vec![format!("{hf}{end}")];
    }
    let inside = stem.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    let Some((index, leaf)) = inside else { return vec![] };
    let rows = INSIDE.iter().filter(|row| row.2 == leaf);
    rows.map(|row| format!("encoder.layer.{index}.{}{end}", row.0)).collect()
}

fn is_ours(name: &str) -> bool {
    let stem = name.strip_suffix(".weight").or(name.strip_suffix(".bias"));
    let leaf = |leaf: &str| ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"].contains(&leaf);
    let block = |stem: &str| stem.strip_prefix("blocks.").and_then(|s| s.split_once('.')).is_some_and(|(_, l)| leaf(l));
    matches!(name, "cls_token" | "pos_embed")
        || stem.is_some_and(|s| s == "patch_embed.proj" || s == "norm" || block(s))
}

fn foreign(name: &str) -> Option<&'static str> {
    let parts = |word: &str| name.split('.').any(|part| part == word);
    let holds = |word: &str| name.contains(word);
    let within = |words: &str| format!(".{name}").contains(words);
    Some(if holds("reg_token") || holds("register_tokens") {
        "register tokens"
    } else if parts("ls1") || parts("ls2") || holds("layer_scale") || parts("gamma_1") || holds("lambda1") {
        "layer scale"
    } else if holds("mlp.w12") || holds("mlp.w3") || holds("fc1_g") || holds("mlp.weights_in") {
        "a gated MLP (SwiGLU)"
    } else if holds("rope") || holds("relative_position") {
        "rotary or relative positions"
    } else if parts("q_norm") || parts("k_norm") {
        "norms of queries and keys"
    } else if parts("norm_pre") || parts("fc_norm") {
        "another place of the norm"
    } else if holds("dist_token") || holds("distillation_token") || parts("head_dist") {
        "a distillation token"
    } else if within(".layer1.0.") || within(".layer4.0.") || name.starts_with("conv1.") {
        "a convolutional network"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use dino_kernel::params::Part;

    #[test]
    fn every_tensor_has_hugging_face_names_that_lead_back() {
        let table = Config::tiny().resolve().unwrap().table();
        let mut seen = 0;
        table.visit(|spec| {
            let name = spec.name.to_string();
            let back: Vec<TensorPart> = to_hf(&name).iter().map(|hf| from_hf(hf).unwrap()).collect();
            let thirds: Vec<Option<usize>> = if spec.part != Part::Backbone {
                vec![]
            } else if name.contains("qkv") {
                vec![Some(0), Some(1), Some(2)]
            } else {
                vec![None]
            };
            assert_eq!(
                back,
                thirds.into_iter().map(|third| TensorPart { name: name.clone(), third }).collect::<Vec<_>>()
            );
            seen += back.len();
        });
        assert_eq!(seen, 4 + 4 * 16 + 2);
        assert_eq!(
            from_hf("layers.2.attention.k_proj.bias"),
            Some(TensorPart { name: "blocks.2.attn.qkv.bias".into(), third: Some(1) })
        );
        assert_eq!(from_hf("layers.2.attention.attention.key.bias"), None);
        assert_eq!(from_hf("encoder.layer.x.layernorm_before.bias"), None);
    }
}

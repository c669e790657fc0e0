//! What a vision transformer's tensors are called: the published names, which are this program's and timm's too, and Hugging Face's.

use clap::ValueEnum;

/// A way of naming tensors, and what else its program does differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Naming {
    /// The published checkpoints: a backbone, or a run with `student` and `teacher`
    Official,
    /// timm's VisionTransformer: the published names
    Timm,
    /// Hugging Face's ViTModel: query, key and value apart, and a config.json beside the weights
    Hf,
    /// checkpoint.safetensors or teacher.safetensors of this program
    Own,
}

impl Naming {
    /// For reports.
    pub fn name(self) -> &'static str {
        match self {
            Naming::Official => "official",
            Naming::Timm => "timm",
            Naming::Hf => "Hugging Face",
            Naming::Own => "own",
        }
    }

    /// How its program resizes positions, as the key `position-resize` has it. (timm's own way, smoothed and with a = -0.5, is not
    /// offered: it was never what such weights were trained with.)
    pub fn position_resize(self) -> &'static str {
        if self == Naming::Hf { "size" } else { "published" }
    }
}

/// A tensor of ours, or the query's, key's or value's third (0, 1, 2) of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorPart {
    /// The published name.
    pub name: String,
    /// Which third of its rows; `None` for all of it.
    pub third: Option<usize>,
}

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

/// Which tensor of ours Hugging Face calls `name`.
pub fn from_hf(name: &str) -> Option<TensorPart> {
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
pub fn to_hf(name: &str) -> Vec<String> {
    let (stem, end) = ending(name);
    if let Some((hf, _)) = OUTSIDE.iter().find(|(_, ours)| *ours == stem) {
        return vec![format!("{hf}{end}")];
    }
    let inside = stem.strip_prefix("blocks.").and_then(|rest| rest.split_once('.'));
    let Some((index, leaf)) = inside else { return vec![] };
    let rows = INSIDE.iter().filter(|row| row.2 == leaf);
    rows.map(|row| format!("encoder.layer.{index}.{}{end}", row.0)).collect()
}

/// What a name tells of a network that this program does not have.
pub fn foreign(name: &str) -> Option<&'static str> {
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

/// Tensors after the backbone, whose absence changes no feature.
pub fn harmless(name: &str) -> Option<&'static str> {
    let first = name.split('.').next().unwrap_or_default();
    match first {
        "pooler" => Some("the pooler"),
        "classifier" | "fc" => Some("a classifier"),
        "mask_token" | "masked_embed" => Some("a mask token"),
        "embeddings" if name == "embeddings.mask_token" => Some("a mask token"),
        "decoder_embed" | "decoder_pos_embed" | "decoder_blocks" | "decoder_norm" | "decoder_pred" => Some("a decoder"),
        "head" if matches!(name, "head.weight" | "head.bias") => Some("a classifier"),
        _ => None,
    }
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

//! What tensors are called, by this program and by others. A family of networks has a file here, and an arm in [`Family::names`].

mod resnet;
mod vit;

use super::classifier::HARMLESS;
use clap::ValueEnum;
use dino_kernel::model::Backbone;

/// A way of naming tensors, and what else its program does differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Naming {
    /// The published checkpoints: a backbone, or a run with `student` and `teacher`
    Official,
    /// timm's VisionTransformer or ResNet: the published names
    Timm,
    /// Hugging Face's ViTModel (query, key and value apart) or ResNetModel, and a config.json beside the weights
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
}

/// A tensor of ours, or the query's, key's or value's third (0, 1, 2) of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorPart {
    /// The published name.
    pub name: String,
    /// Which third of its rows; `None` for all of it.
    pub third: Option<usize>,
}

/// What the tensors of a family of networks are called, parameters or not: a published name is one that the list of the family's tensors
/// has (`entries.rs`).
pub struct Names {
    /// Names that every such network has, in each way of naming, and which of its tensors each is: where a file has two of these tensors
    /// under one prefix, it has such a network there.
    pub marks: &'static [(&'static str, usize)],
    /// The attribute under which Hugging Face's models with a classifier hold the network, with its dot.
    pub attribute: &'static str,
    /// Which networks of the family this program has, for a hint.
    pub reads: &'static str,
    /// Whether only Hugging Face calls a tensor so.
    pub is_hf: fn(&str) -> bool,
    /// Which tensor of ours a program calls so.
    pub published: fn(Naming, &str) -> Option<TensorPart>,
    /// What a program's files call a tensor of ours: several names where they store its rows in equal parts, one below the other.
    pub spelled: fn(Naming, &str) -> Vec<String>,
    /// Whether a published name is one of a backbone's tensors.
    pub is_ours: fn(&str) -> bool,
    /// What a name tells of a network of the family that this program does not have.
    pub foreign: fn(&str) -> Option<&'static str>,
}

/// A family of networks: what [`Backbone`] has with its shape. That of a file is known by its names before its shape is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Vision transformers.
    Vit,
    /// Residual networks.
    ResNet,
}

impl Family {
    /// All of them, in the order in which a file is searched for them.
    pub const ALL: [Family; 2] = [Family::Vit, Family::ResNet];

    /// The family of a shape.
    pub fn of(backbone: &Backbone) -> Family {
        match backbone {
            Backbone::Vit(_) => Family::Vit,
            Backbone::ResNet(_) => Family::ResNet,
        }
    }

    /// What its tensors are called.
    pub fn names(self) -> &'static Names {
        match self {
            Family::Vit => &vit::NAMES,
            Family::ResNet => &resnet::NAMES,
        }
    }
}

/// Tensors after the backbone, whose absence changes no feature.
pub fn harmless(name: &str) -> Option<&'static str> {
    let first = name.split('.').next().unwrap_or_default();
    match first {
        "pooler" => Some("the pooler"),
        "classifier" | "fc" => Some(HARMLESS),
        "mask_token" | "masked_embed" => Some("a mask token"),
        "embeddings" if name == "embeddings.mask_token" => Some("a mask token"),
        "decoder_embed" | "decoder_pos_embed" | "decoder_blocks" | "decoder_norm" | "decoder_pred" => Some("a decoder"),
        "head" if matches!(name, "head.weight" | "head.bias") => Some(HARMLESS),
        _ => None,
    }
}

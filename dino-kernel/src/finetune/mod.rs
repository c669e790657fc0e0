//! Supervised fine-tuning (paper, table 6, which follows DeiT): a backbone, a linear classifier on its output row (the class token of a
//! ViT, the average-pooled feature of a ResNet), cross-entropy with soft targets, an optimizer whose learning rate may differ from layer
//! to layer.
//!
//! [`Plan`] is to this what [`crate::plan::Plan`] is to self-distillation, over the same networks, passes and ops. [`step`] has its
//! step, [`table`] its parameters by layer, [`mix`] what MixUp and CutMix make of a batch and its labels.

pub mod mix;
mod plan;
pub mod step;
pub mod table;

pub use plan::{Config, Plan};
pub use table::Table;

//! The architecture of a foreign file, read off the shapes of its tensors and off what is stored beside it.

mod vit;

pub(super) use vit::{SETTINGS, config};

//! A trained backbone at work: features of a data set, dense features of single images, and their files.

pub mod dense;
pub mod export;
pub mod features;

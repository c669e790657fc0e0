//! Figures for people: attention maps and videos, principal components, nearest neighbors, contact sheets.

pub mod animation;
pub mod attention;
pub mod canvas;
pub mod contact_sheet;
pub mod gallery;
pub mod neighbors;
pub mod pca;
pub mod video;

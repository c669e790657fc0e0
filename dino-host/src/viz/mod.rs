//! Figures for people: attention maps and videos, principal components, nearest neighbours, contact sheets.

pub mod animate;
pub mod attend;
pub mod film;
pub mod gallery;
pub mod neighbours;
pub mod pca;
pub mod picture;
pub mod sheets;

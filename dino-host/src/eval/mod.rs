//! What features can do: the k-nearest-neighbours vote, where the attention falls, what patches follow in a video, which images
//! are alike, which are copies.

pub mod attacks;
pub mod attention;
pub mod copies;
pub mod knn;
pub mod measures;
pub mod outlines;
pub mod propagate;
pub mod ranking;
pub mod retrieval;
pub mod sized;
pub mod video;

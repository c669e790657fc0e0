//! What features can do: the k-nearest-neighbours vote, where the attention falls, what patches follow in a video.

pub mod attention;
pub mod knn;
pub mod measures;
pub mod propagate;
pub mod sized;
pub mod video;

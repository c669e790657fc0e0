//! What features can do: the k-nearest-neighbors vote, linear classifiers, where the attention falls, what patches follow in a video,
//! which images are alike, which are copies.

pub mod any_size;
pub mod attacks;
pub mod attention;
pub mod augmented;
pub mod copies;
pub mod head_file;
pub mod knn;
pub mod lbfgs;
pub mod linear;
pub mod logistic;
pub mod measures;
pub mod outlines;
pub mod propagate;
pub mod ranking;
pub mod retrieval;
pub mod sampling;
pub mod scores;
pub mod video;

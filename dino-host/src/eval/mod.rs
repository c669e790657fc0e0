//! What features can do: the k-nearest-neighbours vote, linear classifiers, and where the attention falls.

pub mod attention;
pub mod augmented;
pub mod head_file;
pub mod judged;
pub mod knn;
pub mod lbfgs;
pub mod linear;
pub mod logistic;

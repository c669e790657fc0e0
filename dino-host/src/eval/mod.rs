//! What features can do: the k-nearest-neighbours vote, and where the attention falls.

pub mod attention;
pub mod knn;

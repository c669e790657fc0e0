//! A trained backbone at work: features of a data set, dense features of single images, and their files.

pub mod dense;
pub mod export;
pub mod features;

use crate::error::{Error, Result};
use dino_kernel::model::{Backbone, Gives};

/// Checks that a backbone has what is needed. Whatever reads more of it than one row an image calls this.
pub(crate) fn require(backbone: &Backbone, needed: Gives) -> Result<()> {
    let gives = backbone.gives();
    let missing = match (needed.tokens && !gives.tokens, needed.attention && !gives.attention) {
        (false, false) => return Ok(()),
        (true, _) => "has one row of features an image and none for its patches",
        (false, true) => "has no attention of a class token",
    };
    Err(Error::new(format!("this backbone {missing}")).hint(match backbone {
        Backbone::Vit(_) => "another vision transformer has both",
        Backbone::ResNet(_) => {
            "weights of a vision transformer have both; of a ResNet, attend --cam draws the last feature map, and eval knn, \
             linear, logistic, retrieval and copies read its features"
        }
    }))
}

/// Checks that a backbone has a last feature map whose class activation can be drawn.
pub(crate) fn require_map(backbone: &Backbone) -> Result<()> {
    match backbone {
        Backbone::ResNet(_) => Ok(()),
        Backbone::Vit(_) => {
            Err(Error::new("a vision transformer has no last feature map, whose class activation --cam draws")
                .hint("attend without --cam draws what its class token attends to"))
        }
    }
}

//! How many images k-NN is scored with while a network trains, so that scoring stays a small part of an epoch.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Sets of up to so many images, both parts together, are scored in full: those of CIFAR's and MNIST's size, which takes seconds.
const SMALL: usize = 70_000;

/// Of larger ones an epoch's scoring takes at most this part of the images that it trains on. An image that is scored is read, cut once
/// and passed through one network once; one that is trained on is read, cut into two crops at least, and passed through teacher and
/// student, and back through the student: never less work in any of these, whichever it is that the epoch waits for.
const PART: usize = 10;

/// How many training images vote at most, and how many test images are queries: the key `knn-images`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum KnnImages {
    /// So many that scoring stays below a tenth of an epoch, and all of a small set.
    Auto,
    /// So many; 0: all.
    Most(usize),
}

/// As it is written in files: a number or `auto`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(usize),
    Keyword(String),
}

impl From<KnnImages> for Written {
    fn from(images: KnnImages) -> Written {
        match images {
            KnnImages::Auto => Written::Keyword("auto".into()),
            KnnImages::Most(n) => Written::Number(n),
        }
    }
}

impl TryFrom<Written> for KnnImages {
    type Error = String;
    fn try_from(written: Written) -> Result<KnnImages, String> {
        match written {
            Written::Number(n) => Ok(KnnImages::Most(n)),
            Written::Keyword(text) => text.parse(),
        }
    }
}

impl FromStr for KnnImages {
    type Err = String;
    fn from_str(text: &str) -> Result<KnnImages, String> {
        match text {
            "auto" => Ok(KnnImages::Auto),
            _ => text.parse().map(KnnImages::Most).map_err(|_| format!("{text:?} is neither a number nor auto")),
        }
    }
}

impl KnnImages {
    /// How many of so many training images vote, and how many of so many test images are queries.
    pub fn of(self, train: usize, test: usize) -> [usize; 2] {
        let most = match self {
            KnnImages::Most(0) => return [train, test],
            KnnImages::Most(n) => n,
            KnnImages::Auto => {
                let both = SMALL.max(train / PART);
                // Test images that are few leave more votes.
                both - test.min(both / 2)
            }
        };
        [train.min(most), test.min(most)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sets_are_scored_whole_and_large_ones_by_a_tenth_of_the_epoch() {
        let auto = |train, test| KnnImages::Auto.of(train, test);
        for (train, test) in [(4000, 1000), (50_000, 10_000), (60_000, 10_000), (1, 0), (35_000, 35_000)] {
            assert_eq!(auto(train, test), [train, test]);
        }
        // ImageNet: the full test part, and the rest of a tenth.
        assert_eq!(auto(1_281_167, 50_000), [78_116, 50_000]);
        for train in [70_001, 100_000, 1_281_167, 14_000_000] {
            for test in [0, 10, 10_000, 50_000, 700_000, train] {
                let [bank, asked] = auto(train, test);
                assert!(bank + asked <= SMALL.max(train / 10) && bank >= SMALL / 2, "{train} {test}");
                assert!(asked == test || asked >= SMALL / 2);
            }
        }
        assert_eq!(KnnImages::Most(0).of(1 << 40, 1 << 30), [1 << 40, 1 << 30]);
        assert_eq!(KnnImages::Most(500).of(4000, 100), [500, 100]);
        assert_eq!(KnnImages::Most(500).of(400, 1000), [400, 500]);
    }

    #[test]
    fn the_key_is_a_number_or_a_keyword() {
        for (images, text) in [(KnnImages::Auto, "\"auto\""), (KnnImages::Most(0), "0"), (KnnImages::Most(64), "64")] {
            assert_eq!(serde_json::to_string(&images).unwrap(), text);
            assert_eq!(serde_json::from_str::<KnnImages>(text).unwrap(), images);
            assert_eq!(text.trim_matches('"').parse::<KnnImages>().unwrap(), images);
        }
        for bad in ["\"all\"", "-1", "1.5", "null", "\"12\"x"] {
            assert!(serde_json::from_str::<KnnImages>(bad).is_err(), "{bad}");
        }
        assert!("many".parse::<KnnImages>().unwrap_err().contains("neither a number nor auto"));
    }
}

//! What the parts of a data set are called: one list of names for folders, lists and shards.

/// What a part is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)]
pub(super) enum Part {
    /// To learn from.
    Train,
    /// To judge by. Of several the one of the lowest rank is taken: validation parts come before test parts, whose labels are
    /// often kept back.
    Test {
        /// Place in the list of names.
        rank: usize,
    },
}

const TRAIN: [&str; 3] = ["train", "training", "trn"];
const TEST: [&str; 14] = [
    "val",
    "valid",
    "validation",
    "dev",
    "devel",
    "development",
    "eval",
    "evaluation",
    "test",
    "testing",
    "tst",
    "holdout",
    "heldout",
    "query",
];

/// What the name of a folder, or that of a file without its ending, says, in any case; `None` where it is no part's name.
#[allow(dead_code)]
pub(super) fn of(name: &str) -> Option<Part> {
    let place = |names: &[&str]| names.iter().position(|known| name.eq_ignore_ascii_case(known));
    match place(&TRAIN) {
        Some(_) => Some(Part::Train),
        None => place(&TEST).map(|rank| Part::Test { rank }),
    }
}

//! What the parts of a data set are called: one list of names for folders, lists and shards; and which files of a folder are of
//! which part.

/// What a part is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(dead_code)]
pub(super) enum Part {
    /// To learn from.
    Train,
    /// To evaluate on. Of several the one of the lowest rank is taken: validation parts come before test parts, whose labels are
    /// often kept back.
    Test {
        /// Index in the list of names.
        rank: usize,
    },
}

const TRAIN: [&str; 4] = ["train", "training", "trn", "trainval"];
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
/// Where in that list other words begin to mean something else: validation, development, evaluation, test, held out, queries.
const SYNONYMS: [usize; 6] = [0, 3, 6, 8, 11, 13];
/// Words that mean nothing beside a part's name, as in `train_images`, `TestSet`, `val-data`; so does a year, as in `train2017`.
const PLAIN: [&str; 12] =
    ["set", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "data", "split", "part", "folder"];
/// The same in names of lists, as in `train_labels.csv`, `testlist`, `LOC_val_solution.csv`. (A folder `train_labels` holds no
/// training images.)
const PLAIN_OF_LISTS: [&str; 20] = [
    "labels",
    "label",
    "list",
    "lists",
    "annotations",
    "annotation",
    "files",
    "filelist",
    "filenames",
    "index",
    "meta",
    "metadata",
    "map",
    "gt",
    "ground",
    "truth",
    "loc",
    "solution",
    "ilsvrc",
    "imagenet",
];

/// The part that the name of a folder, or that of a file without its ending, means, in any case; `None` where it is no part's name.
pub(super) fn of(name: &str) -> Option<Part> {
    read(name, &PLAIN).map(|(part, _)| part)
}

/// The same of a list's name without its ending.
pub(super) fn of_list(name: &str) -> Option<Part> {
    read_list(name).map(|(part, _)| part)
}

/// Whether two names mean one part: `val` and `validation` do, `val` and `test` do not.
pub(super) fn same(a: Part, b: Part) -> bool {
    let first = |part: Part| match part {
        Part::Train => None,
        Part::Test { rank } => Some(SYNONYMS.iter().rposition(|first| *first <= rank)),
    };
    first(a) == first(b)
}

/// The part, and the name with a star for it: `train_2017` and `val_2017` agree in that.
pub(super) fn named(name: &str) -> Option<(Part, String)> {
    read(name, &PLAIN)
}

/// The same of a list's name without its ending.
pub(super) fn read_list(name: &str) -> Option<(Part, String)> {
    read(name, &[&PLAIN[..], &PLAIN_OF_LISTS].concat())
}

fn read(name: &str, plain: &[&str]) -> Option<(Part, String)> {
    let name = name.to_ascii_lowercase();
    let part = |word: &str| match TRAIN.contains(&word) {
        true => Some(Part::Train),
        false => TEST.iter().position(|known| *known == word).map(|rank| Part::Test { rank }),
    };
    if let Some(found) = part(&name) {
        return Some((found, "*".into()));
    }
    let has_no_meaning = |word: &str| {
        let year = word.len() == 4 && (word.starts_with("19") || word.starts_with("20"));
        plain.contains(&word) || year && word.bytes().all(|b| b.is_ascii_digit())
    };
    let mut rest = words(&name).filter(|word| !has_no_meaning(word));
    let (word, None) = (rest.next()?, rest.next()) else { return None };
    // Words may be written as one: `trainset`, `testimages`.
    let exact = part(word).map(|found| (found, word));
    let (found, word) = exact.or_else(|| {
        let shorter = plain.iter().filter_map(|end| word.strip_suffix(end));
        shorter.filter_map(|word| Some((part(word)?, word))).next()
    })?;
    Some((found, name.replacen(word, "*", 1)))
}

/// Runs of letters and runs of digits.
fn words(name: &str) -> impl Iterator<Item = &str> {
    let kind = |c: char| if c.is_ascii_digit() { 1 } else { c.is_alphabetic() as u8 * 2 };
    let mut rest = name;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c| kind(c) == 0);
        let first = kind(rest.chars().next()?);
        let end = rest.find(|c| kind(c) != first).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}

/// The part that a word of a file's name means, and the other words; words are cut at `-`, `_`, `.` and spaces, so that
/// `imagenet-train-0001` is of the train part, and `imagenet` and `0001` are left.
pub(super) fn in_name(name: &str) -> (Option<Part>, Vec<&str>) {
    let mut words: Vec<&str> = name.split(['-', '_', '.', ' ']).filter(|word| !word.is_empty()).collect();
    let part = words.iter().position(|word| of(word).is_some()).map(|at| words.remove(at));
    (part.and_then(of), words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_people_use() {
        for name in
            ["train", "Train", "TRAIN", "training", "training_set", "train_images", "images_train", "trainset", "trn"]
        {
            assert_eq!(of(name), Some(Part::Train), "{name}");
        }
        for name in ["train2017", "train_2017", "train data", "trainval", "TrainImages", "train-split", "img_train"] {
            assert_eq!(of(name), Some(Part::Train), "{name}");
        }
        let rank = |name: &str| match of(name) {
            Some(Part::Test { rank }) => rank,
            other => panic!("{name}: {other:?}"),
        };
        let ranks: Vec<_> =
            ["val", "valid", "Validation_Set", "dev", "eval", "test_images", "HoldOut"].map(rank).to_vec();
        assert!(ranks.is_sorted() && rank("val2017") == rank("val") && rank("testset") == rank("TEST"), "{ranks:?}");
        for name in
            ["trains", "train_station", "test tube", "invalid", "training_labels", "images", "2017", "", "valley"]
        {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn lists_have_names_of_their_own_and_pairs_agree_in_the_rest() {
        for name in ["train_labels", "trainlist", "training_annotations", "train.meta"] {
            assert_eq!(of_list(name), Some(Part::Train), "{name}");
        }
        for name in ["LOC_val_solution", "ILSVRC2012_validation_ground_truth", "val_annotations", "valid_labels"] {
            assert!(matches!(of_list(name), Some(Part::Test { .. })), "{name}");
        }
        assert_eq!(of_list("sample_submission"), None);
        let rest = |name: &str| named(name).unwrap().1;
        assert_eq!((rest("train2017"), rest("Val2017")), ("*2017".into(), "*2017".into()));
        assert_ne!(rest("train2014"), rest("val2017"));
        let same = |a: &str, b: &str| same(of_list(a).unwrap(), of_list(b).unwrap());
        assert!(same("val", "ILSVRC2012_validation_ground_truth") && same("testing", "tst") && same("train", "trn"));
        assert!(!same("val", "test") && !same("dev", "eval") && !same("train", "val") && !same("holdout", "query"));
    }
}

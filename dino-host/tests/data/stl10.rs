//! STL-10.

use crate::*;

const IMAGE: usize = 3 * 96 * 96;

/// Images whose value at (channel, column, row), as it is stored in the file, is a function of all of them and the image.
fn images(n: usize) -> Vec<u8> {
    let value = |i: usize, c: usize, x: usize, y: usize| (40 * i + 80 * c + 3 * x + y) as u8;
    (0..n).flat_map(|i| (0..IMAGE).map(move |p| value(i, p / 9216, p / 96 % 96, p % 96))).collect()
}

#[test]
fn published_files() {
    let files = [
        ("train_X.bin", images(4)),
        ("train_y.bin", vec![1, 10, 2, 3]),
        ("test_X.bin", images(2)),
        ("test_y.bin", vec![5, 6]),
        ("unlabeled_X.bin", images(30)),
        ("class_names.txt", b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n".to_vec()),
        ("fold_indices.txt", b"0 1\n".to_vec()),
    ];
    let dir = folder(&files);
    let outer = folder(
        &files
            .each_ref()
            .map(|(n, b)| (["stl10_binary/", n].concat(), b.clone()))
            .each_ref()
            .map(|(n, b)| (n.as_str(), b.clone())),
    );
    for path in [dir.path(), outer.path(), &dir.path().join("train_X.bin")] {
        let splits = open(path).unwrap();
        assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (4, 2, false));
        assert_eq!(labels(&*splits.train), [0, 9, 1, 2].map(Some));
        assert_eq!((splits.test.label(1), splits.train.classes()[9].as_str()), (Some(5), "truck"));
        noted(&splits, &["not used", "unlabeled_X.bin", "name this file"]);
        let image = splits.train.image(3).unwrap();
        assert_eq!((image.width, image.height, splits.train.name(3)), (96, 96, "train/00003".into()));
        for (y, x, c) in [(0, 0, 0), (0, 95, 1), (95, 0, 2), (17, 60, 0)] {
            assert_eq!(image.pixels[(y * 96 + x) * 3 + c], (40 * 3 + 80 * c + 3 * x + y) as u8);
        }
        assert_ne!(splits.train.fingerprint(), splits.test.fingerprint());
    }
    let unlabeled = open(&dir.path().join("unlabeled_X.bin")).unwrap();
    assert!(unlabeled.held_out && unlabeled.notes.is_empty() && unlabeled.train.label(0).is_none());
    assert_eq!(unlabeled.train.len() + unlabeled.test.len(), 30);
    assert!(
        open(&dir.path().join("test_X.bin")).unwrap().held_out,
        "a test part that is asked for by name is trained on"
    );
}

#[test]
fn files_that_are_not_right() {
    let reports = |images: Vec<u8>, labels: Vec<u8>, named: &str| {
        refusal(folder(&[("train_X.bin", images), ("train_y.bin", labels)]).path(), named)
    };
    assert!(reports(images(2)[1..].to_vec(), vec![1, 1], "train_X.bin").contains("not a multiple of 27648"));
    reports(vec![], vec![], "train_X.bin");
    assert!(reports(images(2), vec![1], "train_y.bin").contains("fewer labels than 2"));
    assert!(reports(images(2), vec![1, 1, 1], "train_y.bin").contains("more labels"));
    for bad in [0, 11] {
        assert!(reports(images(2), vec![1, bad], "train_y.bin").contains(&format!("label 1 is {bad}")));
    }
    let dir = folder(&[("train_X.bin", images(2)), ("train_y.bin", vec![1, 1]), ("test_X.bin", images(1))]);
    assert!(refusal(dir.path(), "test has none").contains("test_y.bin"));
    let set = open(&dir.path().join("test_X.bin")).unwrap().train;
    fs::write(dir.path().join("test_X.bin"), []).unwrap();
    assert!(set.image(0).unwrap_err().to_string().contains("test_X.bin"));
}

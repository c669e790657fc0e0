//! MNIST and its relatives.

use crate::*;
use std::io::Write;

/// A file of `dims` and bytes that count up, wrapping at 251.
fn idx(dims: &[u32]) -> Vec<u8> {
    let bytes = (0..dims.iter().product::<u32>()).map(|i| (i % 251) as u8);
    header(dims).into_iter().chain(bytes).collect()
}

fn header(dims: &[u32]) -> Vec<u8> {
    let dims_bytes = dims.iter().flat_map(|d| d.to_be_bytes());
    [0, 0, 8, dims.len() as u8].into_iter().chain(dims_bytes).collect()
}

fn with_labels(labels: &[u8]) -> Vec<u8> {
    [&header(&[labels.len() as u32])[..], labels].concat()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn published_files_packed_or_not() {
    let plain = folder(&[
        ("train-images-idx3-ubyte", idx(&[5, 3, 4])),
        ("train-labels-idx1-ubyte", with_labels(&[7, 0, 1, 9, 3])),
        ("t10k-images-idx3-ubyte", idx(&[2, 3, 4])),
        ("t10k-labels-idx1-ubyte", with_labels(&[11, 2])),
    ]);
    let packed = folder(&[
        ("train-images-idx3-ubyte.gz", gz(&idx(&[5, 3, 4]))),
        ("train-labels-idx1-ubyte.gz", gz(&with_labels(&[7, 0, 1, 9, 3]))),
        ("t10k-images.idx3-ubyte", idx(&[2, 3, 4])), // a dot, as some programs unpack it
        ("t10k-labels-idx1-ubyte.gz", gz(&with_labels(&[11, 2]))),
    ]);
    let file = packed.path().join("train-images-idx3-ubyte.gz");
    for path in [plain.path(), packed.path(), &file, &plain.path().join("train-labels-idx1-ubyte")] {
        let Splits { train, test, held_out, .. } = open(path).unwrap();
        assert_eq!((train.len(), test.len(), held_out), (5, 2, false));
        assert_eq!(labels(&*train), [7, 0, 1, 9, 3].map(Some));
        assert_eq!((test.label(0), train.classes().len(), test.classes()), (Some(11), 12, train.classes()));
        assert_eq!((train.name(4), test.name(0)), ("train/00004".into(), "t10k/00000".into()));
        let image = train.image(1).unwrap();
        assert_eq!((image.width, image.height, image.channels), (4, 3, 3));
        assert_eq!(image.pixels, (12..24).flat_map(|i| [i; 3]).collect::<Vec<u8>>());
        assert_eq!(train.fingerprint(), open(plain.path()).unwrap().train.fingerprint());
        assert_ne!(train.fingerprint(), test.fingerprint());
    }
    put(plain.path(), "classnames.txt", b"zero\none\n");
    assert!(refusal(plain.path(), "classnames.txt").contains("label 11"));
    put(plain.path(), "classnames.txt", (0..12).map(|i| format!("class {i}\n")).collect::<String>().as_bytes());
    assert_eq!(open(plain.path()).unwrap().train.classes()[11], "class 11");
}

#[test]
fn channels_lone_pairs_and_relatives() {
    let how = |channels| Decode { channels, ..Decode::default() };
    let dir = folder(&[("some-images-idx4-ubyte", idx(&[3, 2, 2, 5]))]);
    let splits = data::open(dir.path(), how(5)).unwrap();
    assert!(splits.held_out && splits.train.classes().is_empty() && splits.train.label(0).is_none());
    assert_eq!(splits.train.image(0).unwrap().channels, 5);
    let text = everything(dir.path()).image(0).unwrap_err().to_string();
    assert!(text.contains("5 channels") && text.contains("--channels 3"), "{text}");
    let gray = folder(&[("images-idx3-ubyte", idx(&[3, 2, 2]))]);
    let image = data::open(gray.path(), how(1)).unwrap().train.image(0).unwrap();
    assert_eq!((image.channels, image.pixels), (1, vec![0, 1, 2, 3]));
    // Three channels to one is the luma.
    let color = folder(&[("images-idx4-ubyte", [&header(&[2, 1, 1, 3])[..], &[255, 0, 0, 0, 255, 0]].concat())]);
    let splits = data::open(color.path(), how(1)).unwrap();
    let gray = [splits.train.image(0).unwrap().pixels, splits.test.image(0).unwrap().pixels].concat();
    assert!(gray == [76, 150] || gray == [150, 76], "{gray:?}");

    let set = |name: &str| {
        [("train", 4), ("test", 2)]
            .map(|(part, n)| (format!("emnist-{name}-{part}-images-idx3-ubyte"), idx(&[n, 2, 2])))
    };
    let files = [set("letters"), set("digits")].concat();
    let dir = folder(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.clone())).collect::<Vec<_>>());
    assert!(refusal(dir.path(), "emnist-letters-train").contains("several sets"));
    let splits = open(&dir.path().join("emnist-letters-train-images-idx3-ubyte")).unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (4, 2));
    assert_eq!(splits.test.name(1), "emnist-letters-test/00001");
    // A test part that is asked for by name is trained on.
    assert!(open(&dir.path().join("emnist-digits-test-images-idx3-ubyte")).unwrap().held_out);
}

/// A matrix of 32-bit numbers, as QMNIST's labels are.
fn matrix(rows: &[[i32; 3]]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0x0c, 2];
    [rows.len() as u32, 3].iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    rows.iter().flatten().for_each(|x| bytes.extend(x.to_be_bytes()));
    bytes
}

#[test]
fn labels_of_qmnist_and_of_other_types() {
    let splits = open(&case("qmnist")).unwrap();
    let label = |path: &str, i: usize| {
        i32::from_be_bytes(*fs::read(case("qmnist").join(path)).unwrap()[12 + 32 * i..].first_chunk().unwrap())
    };
    for (set, path) in [(&splits.train, "qmnist-train-labels-idx2-int"), (&splits.test, "qmnist-test-labels-idx2-int")]
    {
        assert_eq!(set.len(), 8);
        assert!((0..8).all(|i| set.label(i) == Some(label(path, i) as u32)), "{path}");
    }
    noted(&splits, &["qmnist-train-labels-idx2-int", "column 0 of 8"]);
    let images = ("train-images-idx3-ubyte", idx(&[2, 2, 2]));
    let with = |name: &str, bytes: Vec<u8>| folder(&[images.clone(), (name, bytes)]);
    let short = [&[0, 0, 0x0b, 1, 0, 0, 0, 2][..], &[1, 44, 0, 7]].concat();
    let signed = [&[0, 0, 0x09, 1, 0, 0, 0, 2][..], &[3, 0]].concat();
    // Of numbers that are large and few only those that occur are classes.
    for (name, bytes, highest, classes) in [
        ("train-labels-idx2-int", matrix(&[[5, 9, 9], [300, 9, 9]]), 300, 301),
        ("train-labels.idx2-int", matrix(&[[5, 9, 9], [70_000, 9, 9]]), 1, 2),
        ("train-labels-idx1-short", short, 300, 301),
        ("train-labels-idx1-byte", signed, 3, 4),
    ] {
        let dir = with(name, bytes);
        let set = everything(dir.path());
        assert_eq!(labels(&*set).into_iter().flatten().max(), Some(highest), "{name}");
        assert_eq!(set.classes().len(), classes, "{name}");
    }
    let text = refusal(with("train-labels-idx2-int", matrix(&[[5, 0, 0], [-1, 0, 0]])).path(), "train-labels-idx2-int");
    assert!(text.contains("label 1 is -1"), "{text}");
    let float = [&[0, 0, 0x0d, 1, 0, 0, 0, 2][..], &[0; 8]].concat();
    assert!(refusal(with("train-labels-idx1-int", float).path(), "train-labels").contains("0x0d"));
    refusal(with("train-labels-idx2-int", [&[0, 0, 0x0c, 2, 0, 0, 0, 2][..], &[0; 4]].concat()).path(), "no column");
}

#[test]
fn emnist_is_transposed_back_with_a_note() {
    let files = |set: &str| {
        folder(&[
            (&format!("{set}-letters-train-images-idx3-ubyte"), idx(&[2, 2, 3])),
            (&format!("{set}-letters-train-labels-idx1-ubyte"), with_labels(&[1, 26])),
            (&format!("{set}-letters-test-images-idx3-ubyte.gz"), gz(&idx(&[1, 2, 3]))),
            (&format!("{set}-letters-test-labels-idx1-ubyte.gz"), gz(&with_labels(&[3]))),
        ])
    };
    let (dir, other) = (files("emnist"), files("kuzushiji"));
    let how = Decode { channels: 1, ..Decode::default() };
    let splits = data::open(dir.path(), how).unwrap();
    noted(&splits, &["transposed"]);
    let image = splits.train.image(1).unwrap();
    assert_eq!((image.width, image.height, image.pixels), (2, 3, vec![6, 9, 7, 10, 8, 11]));
    assert_eq!((splits.train.classes().len(), splits.test.label(0)), (27, Some(3)));
    let plain = data::open(other.path(), how).unwrap();
    assert!(plain.notes.is_empty());
    assert_eq!(plain.train.image(1).unwrap().pixels, [6, 7, 8, 9, 10, 11]);
    // A run on the pixels as they were stored is not resumed with transposed ones: the fingerprint is another one than that of before.
    assert_eq!(plain.train.fingerprint().len(), 16);
    assert_ne!(splits.train.fingerprint(), LYING);
}

/// The fingerprint of the images of the test above when they were not transposed.
const LYING: &str = "c314b38fe832bd7c";

#[test]
fn other_sets_beside_are_named() {
    let dir = folder(&[
        ("qmnist-train-images-idx3-ubyte", idx(&[3, 2, 2])),
        ("qmnist-test-images-idx3-ubyte", idx(&[2, 2, 2])),
        ("xnist-images-idx3-ubyte", idx(&[4, 2, 2])),
    ]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (3, 2));
    noted(&splits, &["not used", "xnist-images"]);
}

#[test]
fn files_that_are_not_right() {
    let images = "train-images-idx3-ubyte";
    let reports = |name: &str, bytes: Vec<u8>| refusal(folder(&[(name, bytes)]).path(), name);
    let good = idx(&[5, 3, 4]);
    for cut in [0, 3, 4, 15] {
        assert!(reports(images, good[..cut].to_vec()).contains("cut short"), "{cut}");
    }
    let text = reports(images, good[..16 + 59].to_vec());
    assert!(text.contains("cut short") && text.contains("59") && text.contains("60 bytes"), "{text}");
    assert!(reports(images, [&good[..], &[0]].concat()).contains("too long"));
    assert!(reports(images, gz(&good)).contains("is it packed"));
    assert!(reports("train-images-idx3-ubyte.gz", good.clone()).contains("cannot unpack"));
    let packed = gz(&good);
    for cut in 0..packed.len() {
        reports("train-images-idx3-ubyte.gz", packed[..cut].to_vec());
    }
    assert!(reports("train-images-idx3-ubyte.gz", gz(&[&good[..], &[0; 9]].concat())).contains("too long"));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    assert!(reports(images, with(1, 1)).contains("begins with"));
    assert!(reports(images, with(2, 0x0d)).contains("0x0d"));
    assert!(reports(images, with(3, 1)).contains("1 dimensions"));
    assert!(reports(images, with(4, 0xff)).contains("dimensions"));
    assert!(reports(images, header(&[0, 3, 4])).contains("0 images"));
    assert!(reports("images-idx4-ubyte", header(&[0, u32::MAX, u32::MAX, u32::MAX])).contains("0 images"));
    assert!(reports(images, header(&[7, 0, 4])).contains("4 x 0"));
    // Claims of any size are refused without being allocated.
    for dims in [[u32::MAX; 3], [1, 60_000, 60_000], [100, 60_000, 1_000]] {
        reports(images, header(&dims));
        reports("train-images-idx3-ubyte.gz", gz(&header(&dims)));
    }
    let long = [&header(&[1, 40_000, 1])[..], &[0; 40_000]].concat();
    assert!(reports(images, long).contains("32768"));

    let pair = |labels: Vec<u8>| folder(&[(images, good.clone()), ("train-labels-idx1-ubyte", labels)]);
    let text = refusal(pair(with_labels(&[1, 2])).path(), "train-labels");
    assert!(text.contains("2 labels") && text.contains("5 images"), "{text}");
    refusal(pair(good.clone()).path(), "train-labels");
    let dir = pair(with_labels(&[0, 1, 0, 1, 0]));
    put(dir.path(), "t10k-images-idx3-ubyte", &good);
    assert!(refusal(dir.path(), "t10k").contains("has none"));
    let dir = folder(&[("train-labels-idx1-ubyte", with_labels(&[1]))]);
    refusal(&dir.path().join("train-labels-idx1-ubyte"), "train-labels");
}

#[test]
fn the_held_out_tenth_says_which_classes_it_misses() {
    let labels = [&[0, 0, 8, 1, 0, 0, 0, 12][..], &(0..12).collect::<Vec<u8>>()].concat();
    let dir = folder(&[("train-images-idx3-ubyte", idx(&[12, 2, 2])), ("train-labels-idx1-ubyte", labels)]);
    reports(&open(dir.path()).unwrap(), &["held-out tenth", "of 12 classes"]);
}

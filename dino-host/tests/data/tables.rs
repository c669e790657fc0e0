//! NumPy's arrays and parquet tables. The inputs were written by NumPy and pyarrow, see `cases/tables/make.py`.

use crate::*;
use std::path::PathBuf;

fn table(name: &str) -> PathBuf {
    case("../tables").join(name)
}

/// Pixels of image `i` of an array: they count up from `i`.
fn counted(i: usize, size: usize) -> Vec<u8> {
    (i..i + size).map(|x| x as u8).collect()
}

#[test]
fn archives_of_arrays() {
    for (name, rest) in [("medmnist.npz", "test_images"), ("packed.npz", "test_images"), ("keras.npz", "")] {
        let how = Decode { channels: if rest.is_empty() { 1 } else { 3 }, ..Decode::default() };
        let splits = data::open(&table(name), how).unwrap();
        let test = if rest.is_empty() { 2 } else { 3 };
        assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (6, test, false), "{name}");
        assert_eq!(labels(&*splits.train), [0, 1, 2, 0, 1, 2].map(Some));
        assert_eq!(splits.train.classes(), ["0", "1", "2"]);
        let image = splits.test.image(1).unwrap();
        let width = if rest.is_empty() { 6 } else { 4 };
        assert_eq!((image.width, image.height, image.pixels), (width, 5, counted(1, 5 * width * how.channels)));
        let part = if rest.is_empty() { "x_test/00001" } else { "val_images/00001" };
        assert_eq!(splits.test.name(1), part);
        match rest {
            "" => assert!(splits.notes.is_empty(), "{:?}", splits.notes),
            rest => noted(&splits, &["not used", rest, "and 1 more"]),
        }
    }
    let fingerprint = |name: &str| open(&table(name)).unwrap().train.fingerprint();
    assert_eq!(fingerprint("medmnist.npz"), fingerprint("packed.npz"));
    // Names of their own, planes, labels that are integers as floats.
    let set = everything(&table("unnamed.npz"));
    let at = (0..5).find(|&i| set.name(i) == "arr_0/00003").unwrap();
    let image = set.image(at).unwrap();
    assert_eq!((image.width, image.height, set.label(at)), (5, 6, Some(0)));
    let stored = counted(3, 90);
    assert_eq!(image.pixels, (0..30).flat_map(|p| [stored[p], stored[30 + p], stored[60 + p]]).collect::<Vec<_>>());
    // Fourteen labels an image are none.
    let splits = open(&table("many-labels.npz")).unwrap();
    assert!(splits.train.label(0).is_none());
    noted(&splits, &["no labels", "train_labels", "[4, 14]"]);
}

#[test]
fn arrays_in_files_of_their_own() {
    let file = table("npy/x_train.npy");
    for path in [table("npy"), file.clone()] {
        let splits = open(&path).unwrap();
        assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (6, 2, false));
        assert_eq!((labels(&*splits.train), splits.test.label(1)), ([0, 1, 2, 0, 1, 2].map(Some).to_vec(), Some(1)));
        assert_eq!(splits.train.image(2).unwrap().pixels[..6], [2, 2, 2, 3, 3, 3]);
    }
    assert!(open(&table("npy/x_test.npy")).unwrap().held_out, "a test part that is asked for by name is trained on");
    let dir = tempfile::tempdir().unwrap();
    fs::copy(&file, dir.path().join("faces.npy")).unwrap();
    let splits = open(&dir.path().join("faces.npy")).unwrap();
    assert!(splits.held_out && splits.train.label(0).is_none());
    // Archives of one array each, as Kuzushiji-MNIST comes.
    let kmnist = tempfile::tempdir().unwrap();
    for part in ["train", "test"] {
        for kind in ["imgs", "labels"] {
            let bytes = fs::read(table(&format!("npy/{}_{part}.npy", if kind == "imgs" { 'x' } else { 'y' }))).unwrap();
            let mut zip =
                zip::ZipWriter::new(fs::File::create(kmnist.path().join(format!("kmnist-{part}-{kind}.npz"))).unwrap());
            let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            zip.start_file("arr_0.npy", stored).unwrap();
            std::io::Write::write_all(&mut zip, &bytes).unwrap();
            zip.finish().unwrap();
        }
    }
    for path in [kmnist.path().to_path_buf(), kmnist.path().join("kmnist-train-imgs.npz")] {
        let splits = open(&path).unwrap();
        assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (6, 2, false));
        assert_eq!((labels(&*splits.train), splits.test.label(1)), ([0, 1, 2, 0, 1, 2].map(Some).to_vec(), Some(1)));
        assert_eq!(splits.train.name(0), "kmnist-train-imgs/00000");
    }
    // Two archives of one kind in a folder are two sets; a folder of other arrays is none.
    for name in ["medmnist.npz", "packed.npz"] {
        fs::copy(table(name), dir.path().join(name)).unwrap();
    }
    fs::remove_file(dir.path().join("faces.npy")).unwrap();
    assert!(refusal(dir.path(), "medmnist").contains("several sets"));
    fs::remove_file(dir.path().join("packed.npz")).unwrap();
    assert_eq!(open(dir.path()).unwrap().test.len(), 3);
}

#[test]
fn arrays_that_are_no_pictures() {
    for (name, words) in [
        ("float", "astype('uint8')"),
        ("short", "<u2"),
        ("fortran", "ascontiguousarray"),
        ("volumes", "no axis is that of the channels"),
        ("either", "both axes may be the channels"),
        ("flat", "no array of images"),
        ("objects", "no array of images"),
    ] {
        let text = refusal(&table(&format!("no/{name}.npy")), &format!("{name}.npy"));
        assert!(text.contains(words), "{text}");
    }
    // Five channels, if five are asked for.
    let how = Decode { channels: 5, ..Decode::default() };
    assert!(data::open(&table("no/volumes.npy"), how).unwrap_err().to_string().contains("both axes"));
    for name in ["medmnist.npz", "packed.npz", "npy/x_train.npy"] {
        let complete = fs::read(table(name)).unwrap();
        let file = if name.ends_with("npz") { "a.npz" } else { "a.npy" };
        for cut in (0..complete.len()).step_by(41).chain([complete.len() - 1]) {
            refusal(&folder(&[(file, complete[..cut].to_vec())]).path().join(file), file);
        }
    }
    // A claim of any size is refused before anything is allocated for it.
    let text = "{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000, 1000, 1000), }";
    let claim = [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
    assert!(refusal(folder(&[("a.npy", claim)]).path(), "a.npy").contains("GiB"));
}

/// Every image of the table is the one that its row states.
#[track_caller]
fn check(set: &dyn Dataset, first: usize) {
    for i in 0..set.len() {
        assert_eq!(set.image(i).unwrap().pixels[0], 10 * (first + i) as u8, "{}", set.name(i));
    }
}

#[test]
fn tables_of_hugging_face() {
    for path in ["hub", "hub/data"] {
        let splits = open(&table(path)).unwrap();
        assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (11, 3, false));
        check(&*splits.train, 0);
        check(&*splits.test, 11);
        assert_eq!(splits.train.classes(), ["ant", "bee", "cat"]);
        assert!((0..11).all(|i| splits.train.label(i) == Some(i as u32 % 3)));
        assert_eq!(splits.train.name(8), "train-00001-of-00002/000001");
        noted(&splits, &["not used", "test-00000-of-00001.parquet", "validation-00000-of-00001.parquet"]);
        let shards = splits.train.shards().unwrap();
        assert_eq!(shards.starts, [0, 3, 6, 7, 10, 11]);
        let mut order = splits.train.order(3, 1);
        order.sort();
        assert_eq!(order, (0..11).collect::<Vec<_>>());
        assert_ne!(splits.train.fingerprint(), splits.test.fingerprint());
    }
    // A file by itself finds its test part; what else there is is printed.
    let splits = open(&table("hub/data/train-00000-of-00002.parquet")).unwrap();
    assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (7, 3, false));
    noted(&splits, &["not used, for one file was named", "train-00001-of-00002.parquet"]);
    // Labels that were kept back are none.
    let splits = open(&table("kept-back")).unwrap();
    assert_eq!((splits.train.label(1), splits.test.label(1), splits.test.classes().len()), (Some(1), None, 0));
    check(&*splits.test, 4);
    noted(&splits, &["test.parquet", "without labels"]);
    // Another name of the column, and what is not read of the others.
    let splits = open(&table("fine.parquet")).unwrap();
    noted(&splits, &["image and fine_label", "not used: coarse_label"]);
    assert_eq!(labels(&*everything(&table("fine.parquet"))).len(), 3);
    assert_eq!(splits.train.classes(), ["ant", "bee", "cat"]);
    // A configuration's folder around it; two of them are two sets.
    let dir = tempfile::tempdir().unwrap();
    let copy = |to: &str| {
        fs::create_dir_all(dir.path().join(to)).unwrap();
        fs::copy(table("fine.parquet"), dir.path().join(to).join("train-00000-of-00001.parquet")).unwrap();
    };
    copy("plain_text");
    assert_eq!(everything(dir.path()).len(), 3);
    copy("other");
    assert!(refusal(dir.path(), "plain_text").contains("several sets"));
}

#[test]
fn other_tables() {
    let set = everything(&table("plain.parquet"));
    assert_eq!((set.len(), set.classes()), (4, &["a", "b", "c"].map(String::from)[..]));
    for i in 0..4 {
        let row: usize = set.name(i).strip_prefix("plain/").unwrap().parse().unwrap();
        assert_eq!((set.image(i).unwrap().pixels[0], set.label(i)), (10 * row as u8, Some([1, 0, 1, 2][row])));
    }
    let set = everything(&table("null.parquet"));
    for i in 0..3 {
        match set.image(i) {
            Ok(_) => assert!(!set.name(i).ends_with("000001")),
            Err(e) => assert!(e.to_string().contains("null.parquet/000001 has no bytes"), "{e}"),
        }
    }
    let text = refusal(&table("zstd.parquet"), "zstd.parquet");
    assert!(text.contains("ZSTD") && text.contains("compression='snappy'"), "{text}");
    assert!(refusal(&table("urls.parquet"), "urls.parquet").contains("no column of images, but url, label"));
    let complete = fs::read(table("plain.parquet")).unwrap();
    for cut in (0..complete.len()).step_by(13).chain([complete.len() - 1]) {
        refusal(&folder(&[("a.parquet", complete[..cut].to_vec())]).path().join("a.parquet"), "a.parquet");
    }
    // Damaged anywhere: an error where it shows, and never a panic.
    for at in 0..complete.len() {
        let mut bytes = complete.clone();
        bytes[at] ^= 0x55;
        let dir = folder(&[("a.parquet", bytes)]);
        if let Ok(splits) = open(&dir.path().join("a.parquet")) {
            (0..splits.train.len()).for_each(|i| drop(splits.train.image(i)));
        }
    }
}

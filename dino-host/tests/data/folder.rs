//! Folders of images, and the held-out tenth.

use crate::*;
use std::collections::HashSet;
use std::path::PathBuf;

#[test]
fn class_folders_with_a_test_part() {
    let dir = folder(&[
        ("train/dog/a.PNG", png(1)),
        ("train/dog/more/b.jpeg", jpeg()),
        ("train/cat/c.JpG", jpeg()),
        ("train/ant/d.png", png(2)),
        ("train/ant/notes.txt", vec![]),
        ("train/.cache/e.png", png(9)),
        ("val/dog/x.png", png(3)),
        ("val/cat/y.png", png(4)),
        ("test/nobody/z.png", png(4)), // val/ is taken where both are there
    ]);
    for path in [dir.path().to_path_buf(), dir.path().join("train"), dir.path().join("train/.")] {
        let Splits { train, test, held_out, .. } = open(&path).unwrap();
        assert!(!held_out);
        assert_eq!(train.classes(), ["ant", "cat", "dog"]);
        assert_eq!(names(&*train), ["ant/d.png", "cat/c.JpG", "dog/a.PNG", "dog/more/b.jpeg"]);
        assert_eq!(labels(&*train), [Some(0), Some(1), Some(2), Some(2)]);
        // "ant" has no test image: the others keep their numbers.
        assert_eq!((test.classes(), labels(&*test)), (train.classes(), vec![Some(1), Some(2)]));
    }
    let train = open(dir.path()).unwrap().train;
    let red = train.image(2).unwrap();
    assert_eq!((red.width, red.height, red.pixels), (4, 3, [1, 0, 0].repeat(12)));
    assert_eq!(train.image(3).unwrap().width, 40);

    // A class that the training part does not have cannot be scored.
    put(dir.path(), "val/bird/new.png", &png(0));
    let splits = open(dir.path()).unwrap();
    assert_eq!(names(&*splits.test), ["cat/y.png", "dog/x.png"]);
    reports(&splits, &["1 of 3 classes", "val", "bird", "1 image left out"]);
}

#[test]
fn a_test_folder_will_do_as_well_as_val() {
    let dir = folder(&[("train/a/1.png", png(1)), ("test/a/2.png", png(2))]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((names(&*splits.test), splits.held_out), (vec!["a/2.png".to_string()], false));
    let dir = folder(&[("val/a/1.png", png(1))]);
    refusal(dir.path(), "train/");
    assert_eq!(open(&dir.path().join("val")).unwrap().train.classes(), ["a"]);
}

#[test]
fn classes_may_be_called_train_and_test() {
    let trains: Vec<_> = (0..30).map(|i| format!("train/{i}.png")).collect();
    let mut files: Vec<_> = trains.iter().map(|n| (n.as_str(), png(1))).collect();
    files.extend([("car/1.png", png(1)), ("plane/1.png", png(1))]);
    assert_eq!(open(folder(&files).path()).unwrap().train.classes(), ["car", "plane", "train"]);
    let dir = folder(&[("oven/1.png", png(1)), ("test/1.png", png(2))]);
    assert_eq!(open(dir.path()).unwrap().train.classes(), ["oven", "test"]);
}

#[test]
fn a_flat_folder_has_no_labels() {
    let dir = folder(&[("b.png", png(1)), ("a.jpg", jpeg()), ("c.svg", vec![1])]);
    let splits = open(dir.path()).unwrap();
    let mut all = [names(&*splits.train), names(&*splits.test)].concat();
    all.sort();
    assert_eq!(all, ["a.jpg", "b.png"]);
    assert!(splits.train.classes().is_empty() && splits.train.label(0).is_none() && splits.held_out);

    let dir = folder(&[("train/b.png", png(1)), ("train/a.png", png(2)), ("val/c.png", png(3))]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (2, 1, false));
    assert_eq!((splits.train.label(0), splits.test.label(0)), (None, None));
}

#[test]
fn folders_that_are_not_right() {
    let dir = folder(&[]);
    let root = dir.path().file_name().unwrap().to_str().unwrap().to_string();
    refusal(dir.path(), &root);
    refusal(&dir.path().join("nothing here"), "nothing here");
    put(dir.path(), "notes.txt", b"");
    refusal(dir.path(), &root);
    refusal(&dir.path().join("notes.txt"), "notes.txt");
    fs::create_dir_all(dir.path().join("train/a")).unwrap();
    refusal(dir.path(), &root);

    let dir = folder(&[("a/1.png", png(1)), ("b/notes.txt", vec![])]);
    assert!(refusal(dir.path(), "class folder").contains(dir.path().join("b").to_str().unwrap()));
    let dir = folder(&[("a/1.png", png(1)), ("stray.png", png(1))]);
    refusal(dir.path(), "stray.png");
    let dir = folder(&[("train/a/1.png", png(1)), ("val/notes.txt", vec![])]);
    refusal(dir.path(), "val");
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_in_circles() {
    use std::os::unix::fs::symlink;
    let dir = folder(&[("a/1.png", png(1)), ("b/2.png", png(2)), ("c/3.png", png(3))]);
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    symlink(dir.path(), at("a/root")).unwrap();
    symlink(at("a"), at("a/self")).unwrap();
    symlink("knot", at("b/knot")).unwrap();
    symlink(at("gone.txt"), at("b/gone.txt")).unwrap();
    let elsewhere = folder(&[("4.png", png(4)), ("deep/5.png", png(5))]);
    symlink(elsewhere.path(), at("d")).unwrap();
    symlink(elsewhere.path().join("4.png"), at("c/link.png")).unwrap();
    let splits = open(dir.path()).unwrap();
    let mut all = [names(&*splits.train), names(&*splits.test)].concat();
    all.sort();
    assert_eq!(all, ["a/1.png", "b/2.png", "c/3.png", "c/link.png", "d/4.png", "d/deep/5.png"]);

    // One unreadable image does not stop a run: it is a member, and reports what is wrong when it is asked for.
    symlink(at("gone.png"), at("b/gone.png")).unwrap();
    symlink("ring.png", at("b/ring.png")).unwrap();
    put(dir.path(), "b/empty.png", b"");
    let set = everything(dir.path());
    assert_eq!(names(&*set).len(), 9);
    for (bad, reports) in
        [("b/gone.png", "No such file"), ("b/ring.png", "symbolic links"), ("b/empty.png", "is empty")]
    {
        let i = names(&*set).iter().position(|name| name == bad).expect(bad);
        assert_eq!(set.label(i), Some(1));
        let text = set.image(i).expect_err(bad).to_string();
        assert!(text.contains(bad) && text.contains(reports), "{text}");
    }

    let dir = folder(&[("train/a/1.png", png(1))]);
    symlink(dir.path().join("train"), dir.path().join("val")).unwrap();
    assert!(refusal(dir.path(), "val").contains("same folder"));
}

#[test]
fn the_held_out_tenth_depends_on_names_alone() {
    let files: Vec<_> = (0..400).map(|i| (format!("{}/img{i}.png", ["cat", "dog"][i % 2]), png(1))).collect();
    let write = |root: &Path, some: &[(String, Vec<u8>)]| some.iter().for_each(|(name, bytes)| put(root, name, bytes));
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(one.path(), &files);
    write(&two.path().join("elsewhere/train"), &files[..300]);
    let all = open(one.path()).unwrap();
    let some = open(&two.path().join("elsewhere")).unwrap();

    let test: HashSet<_> = names(&*all.test).into_iter().collect();
    assert!(names(&*all.train).iter().all(|name| !test.contains(name)), "an image is in both parts");
    assert_eq!(all.train.len() + all.test.len(), 400);
    assert!((20..60).contains(&all.test.len()), "{} of 400 held out", all.test.len());
    for name in names(&*some.test) {
        assert!(test.contains(&name), "{name} changed sides");
    }
    assert!(names(&*some.train).iter().all(|name| !test.contains(name)), "an image changed sides");
    // Fixed for all time: a run that is resumed with a later build must find the same parts.
    let first: Vec<_> = names(&*all.test).into_iter().take(3).collect();
    assert_eq!(first, ["cat/img104.png", "cat/img108.png", "cat/img118.png"]);
    // Labels and images stay with their names.
    for i in 0..all.test.len() {
        let class = &all.test.classes()[all.test.label(i).unwrap() as usize];
        assert!(all.test.name(i).starts_with(class.as_str()) && all.test.image(i).is_ok());
    }
    assert_ne!(all.train.fingerprint(), all.test.fingerprint());
    assert_eq!(all.train.fingerprint(), open(one.path()).unwrap().train.fingerprint());
    assert_ne!(all.train.fingerprint(), some.train.fingerprint());
}

#[test]
fn small_sets_are_split_too() {
    for n in 1..12 {
        let names: Vec<_> = (0..n).map(|i| format!("{i}.png")).collect();
        let dir = folder(&names.iter().map(|name| (name.as_str(), png(1))).collect::<Vec<_>>());
        let splits = open(dir.path()).unwrap();
        assert_eq!(splits.train.len() + splits.test.len(), n);
        assert!(!splits.train.is_empty() && (n == 1) == splits.test.is_empty(), "{n} images: {splits:?}");
    }
}

#[test]
fn fingerprints_tell_contents_apart() {
    let print = |files: &[(&str, Vec<u8>)]| open(folder(files).path()).unwrap().train.fingerprint();
    let base = print(&[("train/a/1.png", png(1)), ("test/a/1.png", png(1))]);
    assert_eq!(base, print(&[("train/a/1.png", png(1)), ("test/a/2.png", png(9))]), "the place must not matter");
    assert_ne!(base, print(&[("train/b/1.png", png(1)), ("test/b/1.png", png(1))]), "class");
    assert_ne!(base, print(&[("train/a/2.png", png(1)), ("test/a/1.png", png(1))]), "name");
    assert_ne!(base, print(&[("train/a/1.png", jpeg()), ("test/a/1.png", png(1))]), "size");
    let mut other = records(20);
    let cifar = |bytes: &[u8]| print(&[("train.bin", bytes.to_vec()), ("test.bin", records(1))]);
    let base = cifar(&other);
    other[5000] ^= 1;
    assert_ne!(base, cifar(&other), "one bit of one pixel");
    assert_eq!(base.len(), 16);
}

#[cfg(unix)]
#[test]
fn names_and_endings() {
    use std::os::unix::ffi::OsStrExt;
    let dir =
        folder(&[("a.PNG", png(1)), ("b.tiff", png(2)), ("c.Tif", png(3)), ("d.WebP", png(4)), ("e.bmp", png(5))]);
    put(dir.path(), "f.jpx", b"");
    assert_eq!(everything(dir.path()).len(), 5);
    // A file that is no image may be called what it likes; an image's name goes into records as text.
    let name = |bytes: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(bytes));
    fs::write(name(b"\xff.txt"), b"").unwrap();
    assert_eq!(everything(dir.path()).len(), 5);
    fs::write(name(b"\xff.png"), png(6)).unwrap();
    assert!(refusal(dir.path(), ".png").contains("not UTF-8"));
}

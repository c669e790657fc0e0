//! Folders as they are met: other programs' data sets as they unpack, and the inputs of `tests/cases/data`.

use crate::*;
use std::path::PathBuf;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data").join(name)
}

/// A folder with an image of its own for every name.
fn images(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    names.iter().enumerate().for_each(|(i, name)| put(dir.path(), name, &png(i as u8)));
    dir
}

/// The class names of a set's images.
fn named(set: &dyn Dataset) -> Vec<String> {
    let name = |label: Option<u32>| label.map_or("-".into(), |label| set.classes()[label as usize].clone());
    labels(set).into_iter().map(name).collect()
}

#[test]
fn tiny_imagenet_as_it_unpacks() {
    for path in [case("tiny-imagenet"), case("tiny-imagenet/train")] {
        let splits = open(&path).unwrap();
        assert_eq!(
            (splits.train.len(), splits.train.classes()),
            (8, &["n01443537".to_string(), "n01629819".into()][..])
        );
        assert_eq!(names(&*splits.test), [0, 1, 2, 3].map(|i| format!("images/val_{i}.JPEG")));
        assert_eq!(labels(&*splits.test), [Some(0), Some(1), Some(0), Some(1)]);
        reports(&splits, &["labels", "val_annotations.txt"]);
        reports(&splits, &["not used", "test"]);
    }
}

#[test]
fn a_test_part_that_does_not_fit_is_without_labels() {
    let dir = images(&["train/ant/1.png", "train/bee/2.png", "val/images/3.png", "val/images/4.png"]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.test.len(), named(&*splits.test)), (2, vec!["-".to_string(); 2]));
    assert!(splits.test.classes().is_empty() && splits.train.classes().len() == 2 && !splits.held_out);
    reports(&splits, &["no class of", "val", "images", "without labels"]);
    let dir = images(&["train/ant/1.png", "train/bee/2.png", "val/3.png"]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.test.len(), splits.test.label(0)), (1, None));
    reports(&splits, &["val has no labels"]);
}

#[test]
fn imagenet_as_it_unpacks() {
    let val = |i: usize| format!("val/ILSVRC2012_val_0000000{i}.JPEG");
    let files = [val(1), val(2), val(3)];
    let flat = || {
        let dir = images(&["train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG", "train/n03/n03_1.JPEG"]);
        files.iter().enumerate().for_each(|(i, name)| put(dir.path(), name, &png(20 + i as u8)));
        dir
    };
    let right = ["n03", "n01", "n02"];
    let caffe = "ILSVRC2012_val_00000001.JPEG 2\nILSVRC2012_val_00000003.JPEG 1\nILSVRC2012_val_00000002.JPEG 0\n";
    let solution = "ImageId,PredictionString\nILSVRC2012_val_00000003,n02 1 2 3 4 n02 5 6 7 8 \n\
                    ILSVRC2012_val_00000002,n01 1 2 3 4 \nILSVRC2012_val_00000001,n03 1 2 3 4 \n";
    let folders = "file,wnid,more\r\nval/ILSVRC2012_val_00000001.JPEG,n03,1\r\nval/ILSVRC2012_val_00000002.JPEG,n01,2\r\n\
                   val/ILSVRC2012_val_00000003.JPEG,n02,3\r\ntrain/n01_1.JPEG,n01,4\r\n";
    for (list, text) in [
        ("val.txt", caffe),
        ("val/val.txt", caffe),
        ("LOC_val_solution.csv", solution),
        ("labels.csv", folders),
        ("validation_labels.csv", folders),
    ] {
        let dir = flat();
        put(dir.path(), list, text.as_bytes());
        let splits = open(dir.path()).unwrap();
        assert_eq!(named(&*splits.test), right, "{list}");
        reports(&splits, &["the labels of", list.rsplit('/').next().unwrap()]);
    }
    // Kaggle's list is above all the folders.
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "LOC_val_solution.csv", solution.as_bytes());
    let deep = dir.path().join("ILSVRC/Data/CLS-LOC");
    fs::create_dir_all(deep.parent().unwrap()).unwrap();
    fs::rename(flat().keep(), &deep).unwrap();
    assert_eq!(named(&*open(&deep).unwrap().test), right);

    // What cannot be made sense of is reported.
    let dir = flat();
    put(dir.path(), "ILSVRC2012_validation_ground_truth.txt", b"490\n361\n171\n");
    let splits = open(dir.path()).unwrap();
    assert_eq!(named(&*splits.test), ["-"; 3]);
    reports(&splits, &["ground_truth.txt is not used", "meta.mat"]);
    put(dir.path(), "val.txt", &caffe.as_bytes()[..62]);
    let splits = open(dir.path()).unwrap();
    assert_eq!(named(&*splits.test), ["-"; 3]);
    reports(&splits, &["val.txt is not used", "2 of 3 images"]);
}

#[test]
fn parts_by_any_name() {
    let splits = open(&case("valid")).unwrap();
    assert_eq!((splits.train.len(), splits.test.len(), splits.held_out), (10, 6, false));
    for test in ["valid", "Validation", "VAL", "dev", "eval", "Test", "test_set", "val_images"] {
        let t = |name: &str| format!("{test}/{name}");
        let dir = images(&["Train/ant/1.png", "Train/bee/2.png", &t("ant/3.png"), &t("bee/4.png"), "extra/x/5.png"]);
        for path in [dir.path().to_path_buf(), dir.path().join("Train")] {
            let splits = open(&path).unwrap();
            assert_eq!(
                (splits.train.len(), named(&*splits.test)),
                (2, vec!["ant".into(), "bee".to_string()]),
                "{test}"
            );
        }
        reports(&open(dir.path()).unwrap(), &["not used", "extra"]);
        // Without classes as well.
        let dir = images(&["training/1.png", "training/2.png", &t("3.png")]);
        let splits = open(dir.path()).unwrap();
        assert_eq!((splits.train.len(), splits.test.len(), splits.train.classes().len()), (2, 1, 0), "{test}");
    }
    // The part that is called alike, and an image that belongs nowhere.
    let dir = images(&["train2017/1.png", "val2014/2.png", "val2017/3.png", "stray.png"]);
    let splits = open(dir.path()).unwrap();
    assert_eq!(names(&*splits.test), ["3.png"]);
    reports(&splits, &["not used", "val2014"]);
    reports(&splits, &["1 image beside the parts is not used", "stray.png"]);
    // Half a set, and classes that only resemble parts.
    let dir = images(&["valid/a/1.png"]);
    assert!(refusal(dir.path(), "valid").contains("no train/"));
    let dir = images(&["valid/1.png", "invalid/2.png"]);
    assert_eq!(open(dir.path()).unwrap().train.classes(), ["invalid", "valid"]);
}

#[test]
fn labels_by_a_list_beside_the_images() {
    let four = ["0.png", "1.png", "2.png", "3.png"];
    for (list, text) in [
        ("metadata.csv", "file_name,label\n0.png,x\n1.png,y\n2.png,x\n3.png,y\n"),
        ("labels.txt", "3.png y\n2.png x\n1.png y\n0.png x\n"),
        ("train.csv", "image_id,label\n0,x\n1,y\n2,x\n3,y\n"),
        (
            "metadata.jsonl",
            "{\"file_name\": \"0.png\", \"label\": \"x\"}\n{\"file_name\": \"1.png\", \"label\": \"y\"}\n\
             {\"file_name\": \"2.png\", \"label\": \"x\"}\n{\"file_name\": \"3.png\", \"label\": \"y\"}\n",
        ),
    ] {
        let dir = images(&four);
        put(dir.path(), list, text.as_bytes());
        let set = everything(dir.path());
        for (name, class) in names(&*set).iter().zip(named(&*set)) {
            let right = if ["0.png", "2.png"].contains(&name.as_str()) { "x" } else { "y" };
            assert_eq!(class, right, "{list} {name}");
        }
        reports(&open(dir.path()).unwrap(), &["labels", list]);
    }
    for (list, text, why) in [
        ("metadata.csv", "file_name,text\n0.png,one\n1.png,two\n2.png,three\n3.png,four\n", "no column of labels"),
        ("labels.csv", "file,label\n0.png,x\n1.png,y\n2.png,x\n", "3 of 4 images"),
        ("labels.csv", "file,label\n0.png,x\n0.png,y\n1.png,y\n2.png,x\n3.png,x\n", "line 3 names 0.png again"),
        ("labels.csv", "file,a,b\n0.png,x,u\n1.png,y,u\n2.png,x,u\n3.png,y,v\n", "which column is the label: a, b?"),
    ] {
        let dir = images(&four);
        put(dir.path(), list, text.as_bytes());
        let splits = open(dir.path()).unwrap();
        assert!(splits.train.classes().is_empty(), "{text}");
        reports(&splits, &[list, why]);
    }
    // Kaggle's way: ids, a part without labels, lists that have nothing to tell.
    let dir = images(&["train/0a.jpg", "train/1b.jpg", "train/2c.jpg", "test/3d.jpg"]);
    put(dir.path(), "train.csv", b"id,breed\n0a,pug\n1b,lab\n2c,pug\n");
    put(dir.path(), "sample_submission.csv", b"id,lab,pug\n3d,0.5,0.5\n");
    let splits = open(dir.path()).unwrap();
    assert_eq!(
        (named(&*splits.train), named(&*splits.test)),
        (vec!["pug".into(), "lab".into(), "pug".into()], vec!["-".into()])
    );
    reports(&splits, &["test has no labels"]);
    put(dir.path(), "labels.csv", b"id,breed\n0a,lab\n1b,lab\n2c,pug\n3d,lab\n");
    let splits = open(dir.path()).unwrap();
    assert_eq!((named(&*splits.train)[0].as_str(), named(&*splits.test)[0].as_str()), ("pug", "lab"));
    reports(&splits, &["labels.csv has other labels"]);
    // A text that is no list has nothing to do with it.
    let dir = images(&four);
    put(dir.path(), "readme.txt", b"Pictures of nothing, such as 7.png\n");
    assert_eq!(open(dir.path()).unwrap().notes, Vec::<String>::new());
}

#[test]
fn images_in_both_parts_are_counted() {
    let splits = open(&case("lists/train.csv")).unwrap();
    reports(&splits, &["4 of 4 test images are training images as well", "0.png"]);
    let dir = images(&["0.png", "1.png", "2.png"]);
    put(dir.path(), "train.csv", b"0.png\n1.png\n");
    put(dir.path(), "val.csv", b"./1.png\n2.png\n");
    reports(&open(&dir.path().join("train.csv")).unwrap(), &["1 of 2 test images", "./1.png"]);
    put(dir.path(), "val.csv", format!("{}\n1.png\n", dir.path().join("0.png").display()).as_bytes());
    assert!(refusal(&dir.path().join("train.csv"), "").contains("the same 2 files"));

    let dir = images(&["train/a/0.png", "train/b/1.png", "train/b/2.png", "val/a/3.png", "val/b/4.png"]);
    assert_eq!(open(dir.path()).unwrap().notes, Vec::<String>::new());
    fs::copy(dir.path().join("train/b/2.png"), dir.path().join("val/b/copy.png")).unwrap();
    let splits = open(dir.path()).unwrap();
    reports(&splits, &["1 of 3 test images are copies", "b/copy.png of b/2.png"]);
    assert_eq!(splits.notes.len(), 1);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(dir.path().join("train/a/0.png"), dir.path().join("val/a/link.png")).unwrap();
        let splits = open(dir.path()).unwrap();
        reports(&splits, &["1 of 4 test images are training images as well", "a/link.png"]);
        reports(&splits, &["1 of 4 test images are copies"]);
        // A folder within the other part.
        std::os::unix::fs::symlink(dir.path().join("train/b"), dir.path().join("val/a/more")).unwrap();
        reports(&open(dir.path()).unwrap(), &["3 of 6 test images are training images as well"]);
    }
    // In one folder, on both sides of the tenth that is held out.
    let dir = tempfile::tempdir().unwrap();
    (0..200).for_each(|i| put(dir.path(), &format!("{i}.png"), &png(i as u8 % 100)));
    let splits = open(dir.path()).unwrap();
    reports(&splits, &["copies of training images"]);
}

/// However many images have one length, few are read.
#[test]
fn looking_for_copies_ends_soon() {
    let dir = tempfile::tempdir().unwrap();
    let bitmap = |i: usize| [&i.to_le_bytes()[..], &[0; 92]].concat();
    for i in 0..3000 {
        put(dir.path(), &format!("train/{i:04}.bmp"), &bitmap(i));
        put(dir.path(), &format!("val/{i:04}.bmp"), &bitmap(i + if i % 2 == 0 { 0 } else { 9000 }));
    }
    reports(&open(dir.path()).unwrap(), &["at least 1024 of 3000 test images are copies"]);
}

#[cfg(unix)]
#[test]
fn links_make_images_of_several_classes() {
    use std::os::unix::fs::symlink;
    let dir = images(&["ant/1.png", "bee/2.png"]);
    let pool = images(&["3.png", "deep/4.png"]);
    symlink(pool.path(), dir.path().join("ant/pool")).unwrap();
    symlink(pool.path(), dir.path().join("bee/pool")).unwrap();
    symlink(dir.path().join("ant"), dir.path().join("ant/pool2")).unwrap();
    let set = everything(dir.path());
    let mut all: Vec<String> = names(&*set).into_iter().zip(named(&*set)).map(|(n, c)| format!("{n} {c}")).collect();
    all.sort();
    let right =
        ["ant/1.png ant", "ant/pool/3.png ant", "ant/pool/deep/4.png ant", "bee/2.png bee", "bee/pool/3.png bee"];
    assert_eq!((&all[..5], all.len()), (&right.map(String::from)[..], 6));
    reports(&open(dir.path()).unwrap(), &["2 images are in several classes", "ant", "bee"]);

    symlink("bee", dir.path().join("cat")).unwrap();
    let splits = open(dir.path()).unwrap();
    reports(&splits, &["bee and cat are one folder", "3 images"]);
    assert_eq!(splits.train.classes(), ["ant", "bee", "cat"]);
}

#[test]
fn one_class_is_reported() {
    let splits = open(&case("nested")).unwrap();
    assert_eq!((data::only_class(&splits), splits.train.classes().len()), (Some("images"), 1));
    reports(&splits, &["one class, images", "no accuracy", "nested/images/2024 has several folders"]);
    assert_eq!(data::several_below(&case("nested")), Some(case("nested/images/2024")));
    assert!(data::only_class(&open(&case("nested/images/2024")).unwrap()).is_none());
    // Of a list; and numbers of which one occurs.
    let dir = images(&["0.png", "1.png"]);
    put(dir.path(), "set.csv", b"0.png,4\n1.png,4\n");
    assert_eq!(data::only_class(&open(&dir.path().join("set.csv")).unwrap()), Some("4"));
    // Outlines beside images are no class, and a loop has an end.
    let dir = images(&["images/0.png"]);
    put(dir.path(), "labels/0.txt", b"0 1 1 1 1");
    let splits = open(dir.path()).unwrap();
    reports(&splits, &["labels holds no image"]);
    reports(&splits, &["one class, images"]);
    #[cfg(unix)]
    {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("again")).unwrap();
        assert_eq!(data::several_below(dir.path()), None);
    }
}

#[test]
fn files_that_are_not_read_are_counted() {
    let dir = images(&["ant/0.png", "bee/1.png", "bee/2.png"]);
    for (name, bytes) in [("ant/a.jp2", &b"x"[..]), ("ant/b.JP2", b"x"), ("bee/c.jp2", b"x"), ("bee/d.avif", b"x")] {
        put(dir.path(), name, bytes);
    }
    put(dir.path(), "bee/0001", &png(9));
    put(dir.path(), "bee/notes.md", b"");
    put(dir.path(), "bee/.hidden.jp2", b"");
    let splits = open(dir.path()).unwrap();
    assert_eq!(splits.train.len() + splits.test.len(), 3);
    reports(&splits, &["3 files end in .jp2", "ant/a.jp2"]);
    reports(&splits, &["1 file ends in .avif", "bee/d.avif"]);
    reports(&splits, &["1 file", "bee/0001", "rename"]);
    let dir = folder(&[("a.jp2", vec![1]), ("b.jp2", vec![1])]);
    assert!(refusal(dir.path(), "2 files end in .jp2").contains("no images found"));
}

#[test]
fn names_are_compared_composed() {
    let (composed, apart) = ("caf\u{e9}", "cafe\u{301}");
    let dir = images(&[&format!("train/{composed}/0.png"), "train/tea/1.png", &format!("val/{apart}/2.png")]);
    let splits = open(dir.path()).unwrap();
    assert_eq!((named(&*splits.test), splits.notes.len()), (vec![composed.to_string()], 0));
}

#[test]
fn texts_with_a_byte_order_mark() {
    assert_eq!(everything(&case("bom")).classes(), ["ant", "bee"]);
    let set = everything(&case("lists/hash.txt"));
    let mut all = names(&*set);
    all.sort();
    assert_eq!(all, ["#8.png", "1.png", "2.png"]);
    assert!((0..3).all(|i| set.image(i).is_ok()));
}

#[test]
fn the_held_out_tenth_says_which_classes_it_misses() {
    let dir = images(&["ant/0.png", "ant/1.png", "bee/2.png", "bee/3.png", "cat/4.png", "cat/5.png"]);
    let splits = open(dir.path()).unwrap();
    let held: std::collections::HashSet<String> = named(&*splits.test).into_iter().collect();
    let missed: Vec<&str> = ["ant", "bee", "cat"].into_iter().filter(|c| !held.contains(*c)).collect();
    assert!(!missed.is_empty(), "{held:?}");
    reports(
        &splits,
        &["held-out tenth", &format!("no image of {} of 3 classes ({})", missed.len(), missed.join(", "))],
    );
    // Nothing is printed of a set that is large enough.
    let names: Vec<String> = (0..300).map(|i| format!("{}/{i}.png", ["ant", "bee"][i % 2])).collect();
    let dir = tempfile::tempdir().unwrap();
    names.iter().enumerate().for_each(|(i, n)| put(dir.path(), n, &[png(i as u8), vec![0; i]].concat()));
    assert_eq!(open(dir.path()).unwrap().notes, Vec::<String>::new());
}

#[test]
fn what_systems_leave_beside_pictures_is_no_class() {
    let dir = images(&["ant/1.png", "ant/@eaDir/thumb.png", "bee/2.png", "lost+found/3.png"]);
    put(dir.path(), "__MACOSX/ant/._1.png", &[0, 5, 22, 7]);
    put(dir.path(), "Thumbs.db", b"x");
    let splits = open(dir.path()).unwrap();
    assert_eq!((splits.train.len() + splits.test.len(), splits.train.classes().len()), (2, 2));
}

#[test]
fn a_train_folder_that_is_a_class_is_reported() {
    let splits = open(images(&["train/1.png", "train/2.png", "unlabeled/3.png"]).path()).unwrap();
    assert_eq!(splits.train.classes(), ["train", "unlabeled"]);
    reports(&splits, &["train is taken for a class", "unlabeled"]);
}

#[test]
fn packed_sets_and_addresses_are_told_what_to_do() {
    let dir = images(&["a/1.png", "a/2.png"]);
    put(dir.path(), "set.zip", b"PK");
    put(dir.path(), "far.csv", b"https://example.com/1.png,x\n");
    put(dir.path(), "twice.csv", b"a/1.png,x\n./a/1.png,y\na/2.png,x\n");
    for (name, words) in [
        ("set.zip", ["packed", "unpack it"]),
        ("far.csv", ["line 1", "download"]),
        ("twice.csv", ["line 2", "in line 1 already"]),
    ] {
        let error = open(&dir.path().join(name)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

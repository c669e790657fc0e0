//! Lists of files.

use crate::*;

fn listed(name: &str, text: &str) -> TempDir {
    folder(&[(name, text.as_bytes().to_vec()), ("a/1.png", png(1)), ("b/2.png", png(2)), ("c 3.jpg", jpeg())])
}

#[test]
fn paths_with_and_without_labels() {
    let dir = listed("set.csv", "# a comment\n\na/1.png, dog\r\nb/2.png,ant\n  c 3.jpg,dog\n");
    let path = dir.path().join("set.csv");
    let set = everything(&path);
    let mut all: Vec<_> = (0..3).map(|i| (set.name(i), set.label(i))).collect();
    all.sort();
    assert_eq!(all, [("a/1.png".into(), Some(1)), ("b/2.png".into(), Some(0)), ("c 3.jpg".into(), Some(1))]);
    assert_eq!(set.classes(), ["ant", "dog"]);
    assert!(open(&path).unwrap().held_out);
    let one = names(&*set).iter().position(|n| n == "a/1.png").unwrap();
    assert_eq!(set.image(one).unwrap().pixels[..3], [1, 0, 0]);

    let dir = listed("SET.TXT", "\u{feff}a/1.png\nb/2.png\nnot there.png\n");
    let set = everything(&dir.path().join("SET.TXT"));
    assert_eq!((set.len(), set.classes().len(), set.label(0)), (3, 0, None));
    let gone = names(&*set).iter().position(|n| n == "not there.png").unwrap();
    assert!(set.image(gone).unwrap_err().to_string().contains("not there.png"), "a member like any other");

    let dir =
        listed("set.tsv", &format!("a/1.png\tone, two\n{}\tone\n", listed("x.txt", "").path().join("2.png").display()));
    assert_eq!(everything(&dir.path().join("set.tsv")).classes(), ["one", "one, two"]);
}

#[test]
fn numbers_are_the_classes_numbers() {
    let dir = listed("set.csv", "a/1.png,5\nb/2.png,0\n");
    let set = everything(&dir.path().join("set.csv"));
    assert_eq!(set.classes(), ["0", "1", "2", "3", "4", "5"]);
    let mut found = labels(&*set);
    found.sort();
    assert_eq!(found, [Some(0), Some(5)]);
    let dir = listed("set.csv", "a/1.png,5\nb/2.png,x\n");
    assert_eq!(everything(&dir.path().join("set.csv")).classes(), ["5", "x"]);
    // Numbers of something else: those that occur are the classes.
    let dir = listed("set.csv", "a/1.png,4000000000\nb/2.png,7\n");
    let set = everything(&dir.path().join("set.csv"));
    assert_eq!(set.classes(), ["7", "4000000000"]);
    let one = names(&*set).iter().position(|n| n == "a/1.png").unwrap();
    assert_eq!(set.label(one), Some(1));
    // Too long for any number: a name.
    let dir = listed("set.csv", "a/1.png,99999999999999999999999\nb/2.png,1\n");
    assert_eq!(everything(&dir.path().join("set.csv")).classes().len(), 2);
}

#[test]
fn a_train_list_has_its_test_part_beside_it() {
    let dir = listed("train.csv", "a/1.png,dog\nb/2.png,ant\n");
    let path = dir.path().join("train.csv");
    assert!(open(&path).unwrap().held_out);
    put(dir.path(), "test.csv", b"c 3.jpg,dog\n");
    let splits = open(&path).unwrap();
    assert_eq!((names(&*splits.test), splits.test.label(0), splits.held_out), (vec!["c 3.jpg".into()], Some(1), false));
    put(dir.path(), "val.csv", b"c 3.jpg,dog\na/1.png,ant\n");
    assert_eq!(open(&path).unwrap().test.len(), 2, "val goes before test");
    assert!(open(&dir.path().join("val.csv")).unwrap().held_out);
    put(dir.path(), "val.csv", b"# none\nc 3.jpg,cat\n");
    let splits = open(&path).unwrap();
    assert_eq!((splits.test.len(), splits.test.label(0), splits.test.classes().len()), (1, None, 0));
    reports(&splits, &["no class of", "val.csv", "cat", "without accuracy"]);
    put(dir.path(), "val.csv", b"c 3.jpg,cat\na/1.png,ant\n");
    let splits = open(&path).unwrap();
    assert_eq!((names(&*splits.test), splits.test.label(0)), (vec!["a/1.png".to_string()], Some(0)));
    reports(&splits, &["1 of 2 classes", "cat", "1 image left out"]);
    put(dir.path(), "val.csv", b"c 3.jpg\n");
    let splits = open(&path).unwrap();
    assert_eq!((splits.test.label(0), splits.test.classes().len(), splits.train.classes().len()), (None, 0, 2));
    reports(&splits, &["val.csv has no labels"]);
    put(dir.path(), "val.csv", b"");
    refusal(&path, "val.csv");
    put(dir.path(), "train.csv", b"a/1.png,0\nb/2.png,1\n");
    put(dir.path(), "val.csv", b"c 3.jpg,7\n");
    assert_eq!(open(&path).unwrap().train.classes().len(), 8, "numbers count over both parts");
}

#[test]
fn errors_name_the_line() {
    let reports = |text: &[u8], line: usize| {
        let dir = folder(&[("set.csv", text.to_vec())]);
        refusal(&dir.path().join("set.csv"), &format!("set.csv line {line}"))
    };
    assert!(reports(b"one,two\nthree,four\n", 1).contains("one does not have the ending of an image"));
    assert!(reports(b"1.png,a\n2.jp2,a\n", 2).contains("not read (.jp2)"));
    assert!(reports(b"path,label\n1.png,a\n2.png\n", 3).contains("no label"));
    assert!(reports(b"path,label\n1.png,a\n,a\n", 3).contains("no path"));
    assert!(reports(b"path,label\n1.png,a\n1.png,b\n", 3).contains("line 2 already"));
    assert!(reports(b"path,label\n\"1.png,a\n2.png,b\n", 2).contains("a quote is not closed"));
    let text = reports(b"path,animal,colour\n1.png,a,r\n2.png,b,r\n3.png,b,s\n", 2);
    assert!(text.contains("which column is the label: animal, colour?"), "{text}");
    let text = reports(b"picture 1,picture 2\n1.png,2.png\n", 2);
    assert!(text.contains("which column is the path: picture 1, picture 2?"), "{text}");
    assert!(reports(b"1.png,a\n\n# x\n2.png\n", 4).contains("no label, but line 1 has a label"));
    assert!(reports(b"1.png\n2.png,a\n", 2).contains("a label, but line 1 has no label"));
    assert!(reports(b"1.png,a\n2.png,\n", 2).contains("no label after"));
    assert!(reports(b"1.png,a\n,a\n", 2).contains("no path"));
    assert!(reports(b"1.png,a,b\n", 1).contains("more than"));
    assert!(reports(b"1.png,a\n2.png,a\n1.png,b\n", 3).contains("line 1 already"));
    assert!(reports(b"1.png,a\n2\xff.png,a\n", 2).contains("UTF-8"));
    for text in [&b""[..], b"\n\n", b"# nothing\n", b"path,label\n"] {
        let dir = folder(&[("set.csv", text.to_vec())]);
        assert!(refusal(&dir.path().join("set.csv"), "set.csv").contains("names no file"));
    }
}

/// Tables that all state the same: 0.png and 2.png are `x`, 1.png and 3.png are `y`.
#[test]
fn tables_as_people_have_them() {
    let wide = |text: &str| format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let tables: [(&str, Vec<u8>); 16] = [
        ("plain.csv", b"path,label\n0.png,x\n1.png,y\n2.png,x\n3.png,y\n".into()),
        ("order.csv", b"Class Name,file_name\nx,0.png\ny,1.png\nx,2.png\ny,3.png\n".into()),
        ("pandas.csv", b",path,label\n0,0.png,x\n1,1.png,y\n2,2.png,x\n3,3.png,y\n".into()),
        ("unnamed.csv", b"Unnamed: 0,label,path\n9,x,0.png\n8,y,1.png\n7,x,2.png\n6,y,3.png\n".into()),
        ("counted.csv", b"1,0.png,x\n2,1.png,y\n3,2.png,x\n4,3.png,y\n".into()),
        ("semicolons.csv", b"0.png;x\n1.png;y\n2.png;x\n3.png;y\n".into()),
        ("excel.csv", b"filename;class\r\n\"0.png\";x\r\n1.png;\"y\"\r\n2.png;x\r\n3.png;y\r\n".into()),
        ("quoted.csv", b"\"0.png\",\"x\"\n\"1.png\",\"y\"\n\"2.png\",\"x\"\n\"3.png\",\"y\"\n".into()),
        ("caffe.txt", b"# of Caffe\n0.png x\n1.png  y\n2.png x\n3.png y\n".into()),
        ("wide.csv", wide("path\tlabel\r\n0.png\tx\r\n1.png\ty\r\n2.png\tx\r\n3.png\ty\r\n")),
        ("ids.csv", b"breed,id\nx,0\ny,1\nx,2\ny,3\n".into()),
        ("prose.csv", b"file_name,text,label\n0.png,\"a, b\",x\n1.png,c,y\n2.png,,x\n3.png,\"d\ne\",y\n".into()),
        ("both.csv", b"image,label,class_name\n0.png,0,x\n1.png,1,y\n2.png,0,x\n3.png,1,y\n".into()),
        (
            "kaggle.csv",
            b"ImageId,PredictionString\n0,x 1 2 3 4 x 5 6 7 8\n1,y 1 1 1 1\n2,x 0 0 0 0\n3,y 0 0 0 0\n".into(),
        ),
        (
            "lines.jsonl",
            b"{\"file_name\":\"0.png\",\"label\":\"x\"}\n{\"label\":\"y\",\"file_name\":\"1.png\"}\n\n\
          {\"file_name\":\"2.png\",\"label\":\"x\",\"box\":[1]}\n{\"file_name\":\"3.png\",\"label\":\"y\"}\n"
                .into(),
        ),
        ("bars.txt", b"path|label\n0.png|x\n1.png|y\n2.png|x\n3.png|y\n".into()),
    ];
    for (name, text) in tables {
        let dir = folder(&[(name, text), ("0.png", png(0)), ("1.png", png(1)), ("2.png", png(2)), ("3.png", png(3))]);
        let set = everything(&dir.path().join(name));
        assert_eq!((set.classes(), set.len()), (&["x".to_string(), "y".into()][..], 4), "{name}");
        for i in 0..4 {
            let red = set.image(i).unwrap_or_else(|e| panic!("{name}: {e}")).pixels[0];
            assert_eq!((set.label(i), set.name(i).as_bytes()[0]), (Some(red as u32 % 2), b'0' + red), "{name}");
        }
    }
}

#[test]
fn paths_as_people_write_them() {
    let there = [("a/0.png", png(0)), ("b c/1.png", png(1)), ("#2.png", png(2)), ("train/3.jpg", jpeg())];
    for (name, text, all) in [
        ("set.csv", "a\\0.png,x\nb c\\1.png,y\n", 2),
        ("set.txt", "a/0.png 5\nb c/1.png 6\n", 2),
        ("set.txt", "#2.png\n#gone.png\n# a comment\na/0.png\n", 2),
        ("set.csv", "#2.png,x\n#2,x\na/0.png,y\n", 2),
        ("train.csv", "image_id,label\n3,x\n", 1),
        ("train.csv", "3.jpg,x\n", 1),
    ] {
        let dir = folder(&there);
        put(dir.path(), name, text.as_bytes());
        let set = everything(&dir.path().join(name));
        assert_eq!(set.len(), all, "{text}");
        (0..all).for_each(|i| assert!(set.image(i).is_ok(), "{text}: {}", set.name(i)));
    }
    // macOS decomposes what a keyboard composes.
    let (composed, apart) = ("caf\u{e9}", "cafe\u{301}");
    for (on_disk, listed) in [(composed, apart), (apart, composed)] {
        let dir = folder(&[(&format!("{on_disk}.png"), png(7))]);
        put(dir.path(), "set.csv", format!("{listed}.png,x\n").as_bytes());
        assert_eq!(everything(&dir.path().join("set.csv")).image(0).unwrap().pixels[0], 7);
    }
}

#[test]
fn parts_of_lists() {
    let files = [("0.png", png(0)), ("1.png", png(1)), ("2.png", png(2)), ("3.png", png(3))];
    for (train, test) in [
        ("Train.csv", "VALID.csv"),
        ("train_labels.csv", "val_labels.csv"),
        ("training.txt", "dev.csv"),
        ("train2017.csv", "val2017.csv"),
    ] {
        let dir = folder(&files);
        put(dir.path(), train, b"0.png,x\n1.png,y\n");
        put(dir.path(), test, b"2.png,y\n");
        put(dir.path(), "val_other.csv", b"nothing of use");
        let splits = open(&dir.path().join(train)).unwrap();
        assert_eq!((names(&*splits.test), splits.test.label(0)), (vec!["2.png".into()], Some(1)), "{train}");
    }
    let dir = folder(&files);
    put(dir.path(), "train.csv", b"0.png,x\n");
    put(dir.path(), "test.csv", b"1.png,x\n");
    put(dir.path(), "valid.csv", b"2.png,x\n3.png,x\n");
    let splits = open(&dir.path().join("train.csv")).unwrap();
    assert_eq!(splits.test.len(), 2);
    reports(&splits, &["not used", "valid.csv", "test.csv"]);

    put(dir.path(), "all.csv", b"file,class,split\n0.png,x,train\n1.png,y,train\n2.png,y,val\n3.png,x,test\n");
    let splits = open(&dir.path().join("all.csv")).unwrap();
    assert_eq!(
        (names(&*splits.train), names(&*splits.test)),
        (vec!["0.png".into(), "1.png".into()], vec!["2.png".into()])
    );
    reports(&splits, &["1 line of a third part"]);
}

#[test]
fn numbers_are_named_by_a_file_beside_the_list() {
    let dir = listed("set.csv", "a/1.png,1\nb/2.png,0\n");
    put(dir.path(), "classnames.txt", "\u{feff}ant\r\nbee\r\n".as_bytes());
    assert_eq!(everything(&dir.path().join("set.csv")).classes(), ["ant", "bee"]);
    put(dir.path(), "classnames.txt", b"ant\n");
    refusal(&dir.path().join("set.csv"), "classnames.txt");
}

#[test]
fn numbers_are_classes_of_their_own_where_few_of_them_occur() {
    let classes = |labels: &[u64]| {
        let lines: String = labels.iter().enumerate().map(|(i, label)| format!("{i}.png,{label}\n")).collect();
        let dir = folder(&[("set.csv", lines.into_bytes())]);
        let set = everything(&dir.path().join("set.csv"));
        let of = |i: usize| set.classes()[set.label(i).unwrap() as usize].parse::<u64>().unwrap();
        (0..labels.len()).for_each(|i| assert_eq!(of(i), labels[set.name(i)[..1].parse::<usize>().unwrap()]));
        set.classes().len()
    };
    // As before: the numbers of a set of ImageNet's kind, whatever part of it there is.
    assert_eq!((classes(&[7, 999]), classes(&[0, 5]), classes(&[0, 1, 2])), (1000, 6, 3));
    assert_eq!((classes(&[7, 1000]), classes(&[7, 47_219, 7]), classes(&[12_345_678_901])), (2, 2, 1));
}

#[test]
fn things_that_are_no_data_set() {
    let dir = listed("set.dat", "hello");
    for name in ["set.dat", "a/1.png", "c 3.jpg"] {
        let text = refusal(&dir.path().join(name), name);
        assert!(text.contains("single image") == name.ends_with('g'), "{text}");
        let formats = ["PNG", "WebP", "TIFF", "CIFAR-100", "idx3", ".csv", ".tar.zst", "train/"];
        assert!(formats.iter().all(|f| text.contains(f)), "{text}");
    }
    if Path::new("/dev/null").exists() {
        assert!(refusal(Path::new("/dev/null"), "/dev/null").contains("neither"));
    }
}

/// What is no file is never read: a pipe would be waited for, a device has no end.
#[cfg(unix)]
#[test]
fn devices_and_folders_named_like_images() {
    use std::os::unix::fs::symlink;
    let dir = listed("set.txt", "zero.png\nfolder.png\na/1.png\n");
    symlink("/dev/zero", dir.path().join("zero.png")).unwrap();
    fs::create_dir(dir.path().join("folder.png")).unwrap();
    let set = everything(&dir.path().join("set.txt"));
    for i in 0..3 {
        let name = set.name(i);
        match set.image(i) {
            Ok(_) => assert_eq!(name, "a/1.png"),
            Err(e) => assert!(e.to_string().contains(&format!("{name} is no file")), "{e}"),
        }
    }
    // Nor are they members of a folder or a set of shards.
    symlink("/dev/zero", dir.path().join("a/zero.png")).unwrap();
    assert_eq!(everything(&dir.path().join("a")).len(), 1);
    symlink("/dev/zero", dir.path().join("a/zero.tar")).unwrap();
    fs::remove_file(dir.path().join("a/1.png")).unwrap();
    assert!(refusal(&dir.path().join("a"), "/a").contains("no images found"));
    symlink("gone", dir.path().join("a/gone.tar")).unwrap();
    refusal(&dir.path().join("a"), "gone.tar");
    refusal(&dir.path().join("a/zero.tar"), "zero.tar");
}

/// As root there is no folder that cannot be read.
#[cfg(unix)]
#[test]
fn folders_without_permission() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder(&[("a/1.png", png(1)), ("b/2.png", png(2))]);
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for closed in [dir.path().to_path_buf(), dir.path().join("b")] {
        set(&closed, 0);
        let readable = fs::read_dir(&closed).is_ok();
        let opened = open(dir.path());
        set(&closed, 0o755);
        match opened {
            Ok(splits) => assert!(readable && splits.train.len() + splits.test.len() == 2),
            Err(e) => assert!(!readable && e.to_string().contains(closed.to_str().unwrap()), "{e}"),
        }
    }
}

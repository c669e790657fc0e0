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
    let dir = listed("set.csv", "a/1.png,4000000000\n");
    assert!(refusal(&dir.path().join("set.csv"), "set.csv line 1").contains("4000000000"));
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
    let text = refusal(&path, "val.csv line 2");
    assert!(text.contains("class cat") && text.contains("ant, dog"), "{text}");
    put(dir.path(), "val.csv", b"c 3.jpg\n");
    refusal(&path, "val.csv line 1");
    put(dir.path(), "val.csv", b"");
    refusal(&path, "val.csv");
    put(dir.path(), "train.csv", b"a/1.png,0\nb/2.png,1\n");
    put(dir.path(), "val.csv", b"c 3.jpg,7\n");
    assert_eq!(open(&path).unwrap().train.classes().len(), 8, "numbers count over both parts");
}

#[test]
fn errors_name_the_line() {
    let says = |text: &[u8], line: usize| {
        let dir = folder(&[("set.csv", text.to_vec())]);
        refusal(&dir.path().join("set.csv"), &format!("set.csv line {line}"))
    };
    assert!(says(b"path,label\n1.png,a\n", 1).contains("path is not named as a picture"));
    assert!(says(b"1.png,a\n\n# x\n2.png\n", 4).contains("no label, but line 1 has a label"));
    assert!(says(b"1.png\n2.png,a\n", 2).contains("a label, but line 1 has no label"));
    assert!(says(b"1.png,a\n2.png,\n", 2).contains("no label after"));
    assert!(says(b"1.png,a\n,a\n", 2).contains("no path"));
    assert!(says(b"1.png,a,b\n", 1).contains("more than"));
    assert!(says(b"1.png,a\n2.png,a\n1.png,b\n", 3).contains("line 1 already"));
    assert!(says(b"1.png,a\n2\xff.png,a\n", 2).contains("UTF-8"));
    for text in [&b""[..], b"\n\n", b"# nothing\n"] {
        let dir = folder(&[("set.csv", text.to_vec())]);
        assert!(refusal(&dir.path().join("set.csv"), "set.csv").contains("names no file"));
    }
}

#[test]
fn things_that_are_no_data_set() {
    let dir = listed("set.dat", "hello");
    for name in ["set.dat", "a/1.png", "c 3.jpg"] {
        let text = refusal(&dir.path().join(name), name);
        assert!(text.contains("single picture") == name.ends_with('g'), "{text}");
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
fn devices_and_folders_called_pictures() {
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

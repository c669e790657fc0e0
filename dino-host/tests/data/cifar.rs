//! CIFAR-10 and CIFAR-100.

use crate::*;

#[test]
fn cifar_in_published_files() {
    let dir = folder(&[
        ("data_batch_1.bin", records(12)),
        ("data_batch_2.bin", records(3)),
        ("test_batch.bin", records(5)),
        ("readme.html", b"hello".to_vec()),
    ]);
    let Splits { train, test, held_out, .. } = open(dir.path()).unwrap();
    assert_eq!((train.len(), test.len(), held_out), (15, 5, false));
    assert_eq!(train.classes()[9], "truck");
    assert_eq!((train.label(11), train.label(12), train.label(14)), (Some(1), Some(0), Some(2)));
    assert_eq!((train.name(11), train.name(12)), ("data_batch_1/00011".into(), "data_batch_2/00000".into()));
    let image = train.image(14).unwrap();
    assert_eq!((image.width, image.height, image.pixels), (32, 32, [1, 2, 3].repeat(1024)));
    assert_ne!(train.fingerprint(), test.fingerprint());

    // The folder around the unpacked one is understood too.
    let outer = tempfile::tempdir().unwrap();
    put(outer.path(), "cifar-10-batches-bin/train.bin", &records(4));
    assert!(open(outer.path()).unwrap().held_out);
}

#[test]
fn cifar_planes_and_rows_keep_their_places() {
    let mut record = vec![7];
    record.extend((0..3072u32).map(|i| (i % 251) as u8));
    let dir = folder(&[("train.bin", record.clone()), ("test.bin", record.clone())]);
    let image = open(dir.path()).unwrap().test.image(0).unwrap();
    for (y, x, c) in [(0, 0, 0), (0, 5, 1), (31, 31, 2), (17, 3, 0)] {
        assert_eq!(image.pixels[(y * 32 + x) * 3 + c], record[1 + c * 1024 + y * 32 + x]);
    }
}

#[test]
fn cifar_class_names_come_from_the_file() {
    let two = b"cat\r\ndog\n\n".to_vec();
    let dir = folder(&[("train.bin", records(2)), ("test.bin", records(2)), ("batches.meta.txt", two.clone())]);
    assert_eq!(open(dir.path()).unwrap().train.classes(), ["cat", "dog"]);
    let dir = folder(&[("train.bin", records(3)), ("batches.meta.txt", two)]);
    assert!(refusal(dir.path(), "train.bin").contains("record 2 has label 2"));
    let dir = folder(&[("train.bin", records(3)), ("batches.meta.txt", vec![])]);
    refusal(dir.path(), "batches.meta.txt");
    let dir = folder(&[("train.bin", records(3)), ("batches.meta.txt", vec![0xff, 0xfe, 0x80])]);
    refusal(dir.path(), "batches.meta.txt");
}

#[test]
fn cifar_files_that_are_not_right() {
    let dir = folder(&[("train.bin", vec![])]);
    assert!(refusal(dir.path(), "train.bin").contains("0 bytes"));
    let dir = folder(&[("train.bin", records(3)[..2 * RECORD + 100].to_vec())]);
    let text = refusal(dir.path(), "train.bin");
    assert!(text.contains("6246 bytes") && text.contains("6146") && text.contains("9219"), "{text}");
    let dir = folder(&[("data_batch_1.bin", vec![0; 3074 * 2])]);
    assert!(refusal(dir.path(), "data_batch_1.bin").contains("fits CIFAR-100"));
    let mut bad = records(4);
    bad[2 * RECORD] = 10;
    let dir = folder(&[("train.bin", records(4)), ("test.bin", bad)]);
    assert!(refusal(dir.path(), "test.bin").contains("record 2 has label 10"));
    let dir = folder(&[("data_batch_1.bin", records(1)), ("data_batch_3.bin", records(1))]);
    refusal(dir.path(), "data_batch_2.bin");
    let dir = folder(&[("test_batch.bin", records(1))]);
    refusal(dir.path(), "test_batch.bin");
}

/// CIFAR-100 records with coarse label 19 and fine labels 99, 98, ...
fn hundred(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| [vec![19, 99 - i as u8], vec![1; 1024], vec![2; 1024], vec![3; 1024]].concat()).collect()
}

#[test]
fn cifar_100_by_its_length() {
    let dir = folder(&[("train.bin", hundred(12)), ("test.bin", hundred(3))]);
    let Splits { train, test, held_out, .. } = open(dir.path()).unwrap();
    assert_eq!((train.len(), test.len(), held_out, train.classes().len()), (12, 3, false, 100));
    assert_eq!((train.label(0), train.label(11), train.classes()[88].as_str()), (Some(99), Some(88), "88"));
    assert_eq!(train.image(11).unwrap().pixels, [1, 2, 3].repeat(1024));

    // The published folder's names; the folder around it is understood too.
    let names: String = (0..100).map(|i| format!("fine{i}\n")).collect();
    let outer = folder(&[
        ("cifar-100-binary/train.bin", hundred(4)),
        ("cifar-100-binary/fine_label_names.txt", names.clone().into_bytes()),
        ("cifar-100-binary/coarse_label_names.txt", b"a\nb\n".to_vec()),
    ]);
    assert_eq!(open(outer.path()).unwrap().train.classes()[99], "fine99");
    put(outer.path(), "cifar-10-batches-bin/train.bin", &records(3));
    assert!(refusal(outer.path(), "both").contains("cifar-10-batches-bin"));
    let dir = folder(&[("train.bin", hundred(2)), ("fine_label_names.txt", b"only\ntwo\n".to_vec())]);
    assert!(refusal(dir.path(), "train.bin").contains("label 99"));
}

#[test]
fn a_length_that_fits_both_is_cifar_10_unless_something_says_otherwise() {
    // 3,073 records of 3,074 bytes, or the other way round: all zeros are valid as either.
    let bytes = vec![0; 3073 * 3074];
    let count = |dir: &Path| everything(dir).len();
    let dir = folder(&[("train.bin", bytes.clone())]);
    assert_eq!(count(dir.path()), 3074);
    put(dir.path(), "fine_label_names.txt", b"apple\n");
    assert_eq!(count(dir.path()), 3073);
    let dir = folder(&[("cifar-100-binary/train.bin", bytes.clone())]);
    assert_eq!((count(dir.path()), count(&dir.path().join("cifar-100-binary"))), (3073, 3073));
    // What does not fit is reported with what it was taken for, and why.
    let mut bad = bytes;
    bad[0] = 77;
    let dir = folder(&[("train.bin", bad)]);
    assert!(refusal(dir.path(), "train.bin").contains("read as CIFAR-10"));
    let dir = folder(&[("train.bin", records(2)), ("fine_label_names.txt", b"apple\n".to_vec())]);
    let text = refusal(dir.path(), "train.bin");
    assert!(text.contains("fits CIFAR-10.") && text.contains("fine_label_names.txt"), "{text}");
}

#[test]
fn cifar_in_grey() {
    let dir = folder(&[("train.bin", records(3))]);
    let how = |channels| Decode { channels, ..Decode::default() };
    let gray = data::open(dir.path(), how(1)).unwrap().train.image(0).unwrap();
    assert_eq!((gray.channels, gray.pixels), (1, vec![2; 1024]));
    let text = data::open(dir.path(), how(4)).unwrap().train.image(0).unwrap_err().to_string();
    assert!(text.contains("3 channels") && text.contains("--channels 4"), "{text}");
}

/// A pickle as Python 2's cPickle wrote the published files: texts and the matrix alike are strings of bytes.
fn pickled(labels: &[(&str, Vec<u8>)], data: &[u8]) -> Vec<u8> {
    let text = |s: &str| [&[b'U', s.len() as u8][..], s.as_bytes()].concat();
    let mut out = b"\x80\x02}q\x01(".to_vec();
    out.extend([text("batch_label"), text("training batch 1 of 5")].concat());
    for (key, labels) in labels {
        out.extend([text(key), b"](".to_vec()].concat());
        labels.iter().for_each(|&label| out.extend([b'K', label]));
        out.push(b'e');
    }
    let rows = (data.len() / 3072) as u8;
    out.extend(text("data"));
    out.extend(b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09(K\x01K");
    out.extend([rows, b'M', 0, 12]);
    out.extend(
        b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T",
    );
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out.extend([b"tb".to_vec(), text("filenames"), b"](".to_vec()].concat());
    (0..rows).for_each(|i| out.extend(text(&format!("leptodactylus_pentadactylus_s_{i:06}.png"))));
    out.extend(b"eu.");
    out
}

/// A list of names, as in `batches.meta`.
fn meta(key: &str, names: &[String]) -> Vec<u8> {
    let text = |s: &str| [&[b'U', s.len() as u8][..], s.as_bytes()].concat();
    let names: Vec<u8> = names.iter().flat_map(|name| text(name)).collect();
    [b"\x80\x02}(".to_vec(), text("num_vis"), b"M\x00\x0c".to_vec(), text(key), b"](".to_vec(), names, b"eu.".to_vec()]
        .concat()
}

#[test]
fn the_python_version_is_the_binary_one() {
    // Bytes of every value, which are no UTF-8.
    let pixels = |n: u32, from: u32| (0..n * 3072).map(|i| ((i * 7 + from) % 256) as u8).collect::<Vec<u8>>();
    let binary = |labels: &[&[u8]], data: &[u8]| {
        let records = data
            .chunks(3072)
            .enumerate()
            .map(|(i, p)| [labels.iter().map(|l| l[i]).collect::<Vec<_>>(), p.to_vec()].concat());
        records.flatten().collect::<Vec<u8>>()
    };
    let names: Vec<String> = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        .map(String::from)
        .to_vec();
    let (one, two, test) = (pixels(3, 0), pixels(2, 5), pixels(1, 9));
    let python = folder(&[
        ("cifar-10-batches-py/data_batch_1", pickled(&[("labels", vec![9, 0, 3])], &one)),
        ("cifar-10-batches-py/data_batch_2", pickled(&[("labels", vec![1, 1])], &two)),
        ("cifar-10-batches-py/test_batch", pickled(&[("labels", vec![5])], &test)),
        ("cifar-10-batches-py/batches.meta", meta("label_names", &names)),
        ("cifar-10-batches-py/readme.html", b"hello".to_vec()),
    ]);
    let other = folder(&[
        ("data_batch_1.bin", binary(&[&[9, 0, 3]], &one)),
        ("data_batch_2.bin", binary(&[&[1, 1]], &two)),
        ("test_batch.bin", binary(&[&[5]], &test)),
    ]);
    let below = python.path().join("cifar-10-batches-py");
    let fine: Vec<String> = (0..100).map(|i| format!("fine {i}")).collect();
    let hundred = folder(&[
        (
            "cifar-100-python/train",
            pickled(&[("coarse_labels", vec![1, 2, 3]), ("fine_labels", vec![99, 0, 50])], &one),
        ),
        ("cifar-100-python/test", pickled(&[("coarse_labels", vec![1]), ("fine_labels", vec![7])], &test)),
        ("cifar-100-python/meta", meta("fine_label_names", &fine)),
        ("cifar-100-python/file.txt~", vec![]),
    ]);
    let other_hundred = folder(&[
        ("train.bin", binary(&[&[1, 2, 3], &[99, 0, 50]], &one)),
        ("test.bin", binary(&[&[1], &[7]], &test)),
        ("fine_label_names.txt", fine.iter().flat_map(|name| format!("{name}\n").into_bytes()).collect()),
    ]);
    let pairs = [(python.path(), other.path()), (&below, other.path()), (hundred.path(), other_hundred.path())];
    for (python, binary) in pairs {
        let (python, binary) = (open(python).unwrap(), open(binary).unwrap());
        for (a, b) in [(&python.train, &binary.train), (&python.test, &binary.test)] {
            assert_eq!(
                (a.classes(), labels(&**a), crate::names(&**a)),
                (b.classes(), labels(&**b), crate::names(&**b))
            );
            assert!((0..a.len()).all(|i| a.image(i).unwrap() == b.image(i).unwrap()));
            assert_eq!(a.fingerprint(), b.fingerprint());
        }
    }
}

#[test]
fn python_files_that_are_not_right() {
    // What Python 3 makes of them is read as well.
    let set = everything(&case("../tables/cifar"));
    assert_eq!(
        (set.len(), set.label(0), set.label(1), set.name(1)),
        (2, Some(3), Some(9), "data_batch_1/00001".into())
    );
    assert_eq!((set.image(0).unwrap().pixels, set.image(1).unwrap().pixels), (vec![7; 3072], vec![200; 3072]));

    let reports = |bytes: Vec<u8>| refusal(folder(&[("data_batch_1", bytes)]).path(), "data_batch_1");
    let (data, complete) = (vec![1; 6144], pickled(&[("labels", vec![1, 2])], &[1; 6144]));
    assert!(reports(pickled(&[("labels", vec![1])], &data)).contains("1 labels for 2 images"));
    assert!(reports(pickled(&[("fine_labels", vec![1, 2])], &data)).contains("`labels`"));
    assert!(reports(pickled(&[("labels", vec![1, 10])], &data)).contains("record 1 has label 10"));
    for cut in [2, 10, 100, 200, 300, complete.len() - 1] {
        reports(complete[..cut].to_vec());
    }
    let mut narrow = complete.clone();
    let at = narrow.windows(3).position(|w| w == [b'M', 0, 12]).unwrap();
    narrow[at + 1] = 1;
    assert!(reports(narrow).contains("3072 columns"));
    let dir = folder(&[("data_batch_1", complete.clone()), ("data_batch_3", complete.clone())]);
    assert!(refusal(dir.path(), "data_batch_2").contains("cifar-10-python.tar.gz"));
    let archive = {
        let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(complete.len() as u64);
        builder.append_data(&mut header, "cifar-10-batches-py/data_batch_1", &complete[..]).unwrap();
        builder.into_inner().unwrap().finish().unwrap()
    };
    let dir = folder(&[("cifar-10-python.tar.gz", archive)]);
    assert!(refusal(dir.path(), "cifar-10-python.tar.gz").contains("unpack it: tar -xf"));
}

#[test]
fn a_stray_file_beside_pictures_is_passed_over() {
    let stray = |name: &str, bytes: Vec<u8>| {
        let dir = folder(&[("ant/1.png", png(1)), ("ant/2.png", png(2)), ("bee/1.png", png(3)), (name, bytes)]);
        open(dir.path()).unwrap()
    };
    for name in ["train.bin", "test.bin", "data_batch_1.bin", "test_batch.bin"] {
        for bytes in [vec![], vec![7; 1000], vec![7; RECORD + 5]] {
            let splits = stray(name, bytes);
            assert_eq!((splits.train.len() + splits.test.len(), splits.train.classes().len()), (3, 2));
            noted(&splits, &["not used", name]);
        }
    }
    // Beside other formats as well; and without any it is what is wrong.
    let dir = folder(&[
        ("train-images-idx3-ubyte", [&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1][..], &[1, 2]].concat()),
        ("train.bin", vec![7; 1000]),
    ]);
    noted(&open(dir.path()).unwrap(), &["not used", "train.bin"]);
    fs::remove_file(dir.path().join("train-images-idx3-ubyte")).unwrap();
    refusal(dir.path(), "train.bin");
}

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
    // What does not fit says what it was taken for, and why.
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
    let grey = data::open(dir.path(), how(1)).unwrap().train.image(0).unwrap();
    assert_eq!((grey.channels, grey.pixels), (1, vec![2; 1024]));
    let text = data::open(dir.path(), how(4)).unwrap().train.image(0).unwrap_err().to_string();
    assert!(text.contains("3 channels") && text.contains("--channels 4"), "{text}");
}

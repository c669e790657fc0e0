//! Data sets on disk: formats told apart, labels, the held-out tenth, and what is said about files that are not right.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use dino_host::data::{self, Dataset, Splits};
use tempfile::TempDir;

const RECORD: usize = 3073;

/// CIFAR records whose labels count 0, 1, ... 9, 0, ... and whose planes are all 1, all 2, all 3.
fn records(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| [vec![(i % 10) as u8], vec![1; 1024], vec![2; 1024], vec![3; 1024]].concat()).collect()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        put(dir.path(), name, bytes);
    }
    dir
}

fn put(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// An image of one colour, encoded.
fn encoded(format: image::ImageFormat, width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb(colour)).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(colour: u8) -> Vec<u8> {
    encoded(image::ImageFormat::Png, 4, 3, [colour, 0, 0])
}

fn jpeg() -> Vec<u8> {
    encoded(image::ImageFormat::Jpeg, 40, 30, [200, 100, 50])
}

fn names(set: &dyn Dataset) -> Vec<String> {
    (0..set.len()).map(|i| set.name(i)).collect()
}

fn labels(set: &dyn Dataset) -> Vec<Option<u32>> {
    (0..set.len()).map(|i| set.label(i)).collect()
}

/// The whole text of the error that opening gives; it must name the path that ends in `named`.
#[track_caller]
fn refusal(path: &Path, named: &str) -> String {
    let text = data::open(path).expect_err("must not open").to_string();
    assert!(text.contains(named), "{named:?} is not named in {text:?}");
    assert!(text.contains("hint:"), "no hint in {text:?}");
    text
}

#[test]
fn cifar_in_published_files() {
    let dir = folder(&[
        ("data_batch_1.bin", records(12)),
        ("data_batch_2.bin", records(3)),
        ("test_batch.bin", records(5)),
        ("readme.html", b"hello".to_vec()),
    ]);
    let Splits { train, test, held_out } = data::open(dir.path()).unwrap();
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
    assert!(data::open(outer.path()).unwrap().held_out);
}

#[test]
fn cifar_planes_and_rows_keep_their_places() {
    let mut record = vec![7];
    record.extend((0..3072u32).map(|i| (i % 251) as u8));
    let dir = folder(&[("train.bin", record.clone()), ("test.bin", record.clone())]);
    let image = data::open(dir.path()).unwrap().test.image(0).unwrap();
    for (y, x, c) in [(0, 0, 0), (0, 5, 1), (31, 31, 2), (17, 3, 0)] {
        assert_eq!(image.pixels[(y * 32 + x) * 3 + c], record[1 + c * 1024 + y * 32 + x]);
    }
}

#[test]
fn cifar_class_names_come_from_the_file() {
    let two = b"cat\r\ndog\n\n".to_vec();
    let dir = folder(&[("train.bin", records(2)), ("test.bin", records(2)), ("batches.meta.txt", two.clone())]);
    assert_eq!(data::open(dir.path()).unwrap().train.classes(), ["cat", "dog"]);
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
    let dir = folder(&[("train.bin", vec![0; 3074 * 2])]);
    assert!(refusal(dir.path(), "train.bin").contains("CIFAR-100"));
    let mut bad = records(4);
    bad[2 * RECORD] = 10;
    let dir = folder(&[("train.bin", records(4)), ("test.bin", bad)]);
    assert!(refusal(dir.path(), "test.bin").contains("record 2 has label 10"));
    let dir = folder(&[("data_batch_1.bin", records(1)), ("data_batch_3.bin", records(1))]);
    refusal(dir.path(), "data_batch_2.bin");
    let dir = folder(&[("test_batch.bin", records(1))]);
    refusal(dir.path(), "test_batch.bin");
}

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
        let Splits { train, test, held_out } = data::open(&path).unwrap();
        assert!(!held_out);
        assert_eq!(train.classes(), ["ant", "cat", "dog"]);
        assert_eq!(names(&*train), ["ant/d.png", "cat/c.JpG", "dog/a.PNG", "dog/more/b.jpeg"]);
        assert_eq!(labels(&*train), [Some(0), Some(1), Some(2), Some(2)]);
        // "ant" has no test image: the others keep their numbers.
        assert_eq!((test.classes(), labels(&*test)), (train.classes(), vec![Some(1), Some(2)]));
    }
    let train = data::open(dir.path()).unwrap().train;
    let red = train.image(2).unwrap();
    assert_eq!((red.width, red.height, red.pixels), (4, 3, [1, 0, 0].repeat(12)));
    assert_eq!(train.image(3).unwrap().width, 40);

    put(dir.path(), "val/bird/new.png", &png(0));
    let text = refusal(dir.path(), "val");
    assert!(text.contains("class bird") && text.contains("ant, cat, dog"), "{text}");
}

#[test]
fn a_test_folder_will_do_as_well_as_val() {
    let dir = folder(&[("train/a/1.png", png(1)), ("test/a/2.png", png(2))]);
    let splits = data::open(dir.path()).unwrap();
    assert_eq!((names(&*splits.test), splits.held_out), (vec!["a/2.png".to_string()], false));
    let dir = folder(&[("val/a/1.png", png(1))]);
    refusal(dir.path(), "train/");
    assert_eq!(data::open(&dir.path().join("val")).unwrap().train.classes(), ["a"]);
}

#[test]
fn classes_may_be_called_train_and_test() {
    let trains: Vec<_> = (0..30).map(|i| format!("train/{i}.png")).collect();
    let mut files: Vec<_> = trains.iter().map(|n| (n.as_str(), png(1))).collect();
    files.extend([("car/1.png", png(1)), ("plane/1.png", png(1))]);
    assert_eq!(data::open(folder(&files).path()).unwrap().train.classes(), ["car", "plane", "train"]);
    let dir = folder(&[("oven/1.png", png(1)), ("test/1.png", png(2))]);
    assert_eq!(data::open(dir.path()).unwrap().train.classes(), ["oven", "test"]);
}

#[test]
fn a_flat_folder_has_no_labels() {
    let dir = folder(&[("b.png", png(1)), ("a.jpg", jpeg()), ("c.gif", vec![1])]);
    let splits = data::open(dir.path()).unwrap();
    let mut all = [names(&*splits.train), names(&*splits.test)].concat();
    all.sort();
    assert_eq!(all, ["a.jpg", "b.png"]);
    assert!(splits.train.classes().is_empty() && splits.train.label(0).is_none() && splits.held_out);

    let dir = folder(&[("train/b.png", png(1)), ("train/a.png", png(2)), ("val/c.png", png(3))]);
    let splits = data::open(dir.path()).unwrap();
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

#[test]
fn files_that_cannot_be_decoded_are_named() {
    let (png, jpeg) = (encoded(image::ImageFormat::Png, 64, 64, [1, 2, 3]), jpeg());
    let mut flipped = png.clone();
    flipped[20] ^= 0x40; // in the header, which has a checksum
    // A header that claims 30,000 x 30,000 pixels (2.5 GB), and one of 100,000 x 1, with valid checksums.
    let bomb = |w: u32, h: u32| {
        let mut png = png.clone();
        png[16..20].copy_from_slice(&w.to_be_bytes());
        png[20..24].copy_from_slice(&h.to_be_bytes());
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        png
    };
    let mut big_jpeg = jpeg.clone();
    let frame = big_jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    big_jpeg[frame + 5..frame + 9].fill(0xff); // 65,535 x 65,535
    let cases = [
        ("empty.png", vec![], "empty"),
        ("empty.jpg", vec![], "empty"),
        ("short.png", png[..png.len() / 2].to_vec(), ""),
        ("stub.png", png[..10].to_vec(), ""),
        ("short.jpg", jpeg[..jpeg.len() - 20].to_vec(), "cut short"),
        ("header.jpg", jpeg[..jpeg.len() / 3].to_vec(), ""),
        ("stub.jpg", jpeg[..3].to_vec(), ""),
        ("flipped.png", flipped, ""),
        ("garbage.jpg", (0..5000u32).map(|i| (i * i / 7) as u8).collect(), ""),
        ("marked.jpg", [&[0xff, 0xd8, 0xff][..], &[0x55; 300], &[0xff, 0xd9]].concat(), ""),
        ("really.png", b"GIF89a__________".to_vec(), "PNG and JPEG"),
        ("bomb.png", bomb(30_000, 30_000), "512 MiB"),
        ("long.png", bomb(100_000, 1), "32768"),
        ("bomb.jpg", big_jpeg, "32768"),
    ];
    let mut files: Vec<_> = cases.iter().map(|(name, bytes, _)| (*name, bytes.clone())).collect();
    files.push(("fine.png", png.clone()));
    let dir = folder(&files);
    for (name, _, says) in &cases {
        let text = data::decode(&dir.path().join(name)).expect_err(name).to_string();
        assert!(text.contains(name) && text.contains(says) && text.contains("hint:"), "{name}: {text}");
    }
    assert!(data::decode(&dir.path().join("fine.png")).is_ok());
    assert!(data::decode(&dir.path().join("missing.png")).unwrap_err().to_string().contains("missing.png"));
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ byte as u32, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[test]
fn every_cut_of_a_file_is_refused_or_whole() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("a.png", png(7)), ("a.jpg", jpeg())] {
        let path = dir.path().join(name);
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            if let Err(e) = data::decode(&path) {
                assert!(e.to_string().contains(name), "cut at {cut}: {e}");
            } else {
                // All pixels of a PNG can be there without its last chunk.
                assert!(name == "a.png" && cut >= bytes.len() - 20, "{name} cut at {cut} of {} decodes", bytes.len());
            }
        }
    }
}

#[test]
fn grey_alpha_palette_depth_and_wrong_endings() {
    use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, image: DynamicImage, format| {
        let path = dir.path().join(name);
        image.save_with_format(&path, format).unwrap();
        data::decode(&path).unwrap().pixels
    };
    let grey = ImageBuffer::from_pixel(2, 2, Luma([90u8]));
    assert_eq!(save("l.png", grey.clone().into(), ImageFormat::Png), [90; 12]);
    assert_eq!(save("l.jpg", grey.clone().into(), ImageFormat::Jpeg), [90; 12]);
    assert_eq!(save("really-a-png.jpg", grey.into(), ImageFormat::Png), [90; 12]);
    let alpha = ImageBuffer::from_pixel(2, 2, Rgba([1u8, 2, 3, 0]));
    assert_eq!(save("rgba.png", alpha.into(), ImageFormat::Png), [1, 2, 3].repeat(4));
    let both = ImageBuffer::from_pixel(2, 2, LumaA([8u8, 100]));
    assert_eq!(save("la.png", both.into(), ImageFormat::Png), [8; 12]);
    let deep = ImageBuffer::from_pixel(2, 2, Rgb([0x1234u16, 0xffff, 0]));
    assert_eq!(save("deep.png", deep.into(), ImageFormat::Png), [0x12, 0xff, 0].repeat(4));
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
    let splits = data::open(dir.path()).unwrap();
    let mut all = [names(&*splits.train), names(&*splits.test)].concat();
    all.sort();
    assert_eq!(all, ["a/1.png", "b/2.png", "c/3.png", "c/link.png", "d/4.png", "d/deep/5.png"]);

    symlink(at("gone.png"), at("b/gone.png")).unwrap();
    assert!(data::open(dir.path()).unwrap_err().to_string().contains("gone.png"));

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
    let all = data::open(one.path()).unwrap();
    let some = data::open(&two.path().join("elsewhere")).unwrap();

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
    assert_eq!(all.train.fingerprint(), data::open(one.path()).unwrap().train.fingerprint());
    assert_ne!(all.train.fingerprint(), some.train.fingerprint());
}

#[test]
fn small_sets_are_split_too() {
    for n in 1..12 {
        let names: Vec<_> = (0..n).map(|i| format!("{i}.png")).collect();
        let dir = folder(&names.iter().map(|name| (name.as_str(), png(1))).collect::<Vec<_>>());
        let splits = data::open(dir.path()).unwrap();
        assert_eq!(splits.train.len() + splits.test.len(), n);
        assert!(!splits.train.is_empty() && (n == 1) == splits.test.is_empty(), "{n} images: {splits:?}");
    }
}

#[test]
fn fingerprints_tell_contents_apart() {
    let print = |files: &[(&str, Vec<u8>)]| data::open(folder(files).path()).unwrap().train.fingerprint();
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

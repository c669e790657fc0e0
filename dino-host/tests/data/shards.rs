//! Tar shards.

use crate::*;
use dino_host::data::Shards;
use std::collections::HashSet;
use std::io::Write;

type Members<'a> = &'a [(&'a str, Vec<u8>)];

fn tarred(members: Members) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// With the checksum that `zstd` writes and ruzstd's encoder writes too.
fn zst(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// Samples `from .. to` with labels, other members and a long name among them.
fn shard(from: u8, to: u8) -> Vec<u8> {
    let long = format!("{}/", "folder".repeat(30));
    let mut members = vec![];
    for i in from..to {
        let key = if i % 4 == 3 { format!("{long}{i:03}") } else { format!("./{i:03}") };
        members.push((format!("{key}.json"), b"{}".to_vec()));
        members.push((format!("{key}.PNG"), png(i)));
        members.push((format!("{key}.second.png"), png(255)));
        members.push((format!("{key}.cls"), format!("{}\n", i % 3).into_bytes()));
    }
    let members: Vec<_> = members.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    tarred(&members)
}

/// Every image of the set is the one that its name states, and every name is there once.
#[track_caller]
fn check(set: &dyn Dataset, images: usize) {
    assert_eq!(set.len(), images);
    let unique: HashSet<_> = names(set).into_iter().collect();
    assert_eq!(unique.len(), images);
    for i in 0..set.len() {
        let name = set.name(i);
        let number: u8 = name[name.len() - 7..name.len() - 4].parse().expect(&name);
        assert_eq!((set.image(i).unwrap().pixels[0], set.label(i)), (number, Some(u32::from(number % 3))), "{name}");
    }
}

#[test]
fn one_shard_packed_or_not() {
    let tar = shard(0, 20);
    let plain = folder(&[("some.tar", tar.clone())]);
    check(&*everything(&plain.path().join("some.tar")), 20);
    check(&*everything(plain.path()), 20);
    let splits = open(plain.path()).unwrap();
    assert!(splits.held_out && splits.train.classes() == ["0", "1", "2"]);
    assert!(names(&*splits.train).contains(&"some/000.PNG".to_string()), "{:?}", names(&*splits.train));
    // Two frames or members, as parallel packers make them.
    let (a, b) = tar.split_at(tar.len() / 2);
    let files = [
        ("a.tar.gz", gz(&tar)),
        ("b.TGZ", gz(&tar)),
        ("c.tar.zst", zst(&tar)),
        ("d.tar.gz", [gz(a), gz(b)].concat()),
        ("e.tar.zst", [zst(a), b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), zst(b)].concat()),
    ];
    let dir = folder(&files);
    for (name, _) in &files {
        check(&*everything(&dir.path().join(name)), 20);
    }
    assert_eq!(everything(dir.path()).len(), 100);
}

#[test]
fn folders_of_shards_and_their_test_parts() {
    let dir = folder(&[
        ("train-000.tar", shard(0, 5)),
        ("train-001.tar", shard(5, 9)),
        ("val-000.tar", shard(9, 12)),
        ("test-000.tar", shard(12, 20)),
        ("classnames.txt", b"ant\nbee\ncat\n".to_vec()),
        ("._train-000.tar", b"rubbish".to_vec()),
    ]);
    let Splits { train, test, held_out, .. } = open(dir.path()).unwrap();
    assert_eq!((train.classes(), held_out), (&["ant", "bee", "cat"].map(String::from)[..], false));
    check(&*train, 9);
    check(&*test, 3);
    let below = folder(&[
        ("train/a.tar", shard(0, 5)),
        ("train/b.tar.gz", gz(&shard(5, 9))),
        ("test/a.tar", shard(9, 12)),
        ("train/classnames.txt", b"ant\nbee\ncat\n".to_vec()),
    ]);
    let splits = open(below.path()).unwrap();
    assert_eq!(splits.test.classes()[1], "bee");
    check(&*splits.train, 9);
    check(&*splits.test, 3);
    assert!(open(&below.path().join("train")).unwrap().held_out);
    // Images go before shards: the archive that they came in may be beside them.
    put(below.path(), "train/ant/1.png", &png(1));
    put(below.path(), "test/ant/2.png", &png(1));
    assert_eq!(open(below.path()).unwrap().train.len(), 1);
}

#[test]
fn shards_that_are_not_right() {
    let reports = |bytes: Vec<u8>| {
        // The same for a packed one, but for the name.
        let dir = folder(&[("bad.tar", bytes.clone()), ("bad2.tar.gz", gz(&bytes)), ("bad3.tar.zst", zst(&bytes))]);
        refusal(&dir.path().join("bad2.tar.gz"), "bad2.tar.gz");
        refusal(&dir.path().join("bad3.tar.zst"), "bad3.tar.zst");
        refusal(&dir.path().join("bad.tar"), "bad.tar")
    };
    let text = reports(tarred(&[("x/1.png", png(1)), ("x/2.cls", b"3".to_vec()), ("x/3.png", png(1))]));
    assert!(text.contains("x/2 has no image"), "{text}");
    assert!(reports(tarred(&[("readme", vec![])])).contains("holds no images: readme has no image"));
    assert!(reports(tarred(&[])).contains("no images"));
    assert!(
        reports(tarred(&[("1.png", png(1)), ("2.png", png(1)), ("1.cls", b"1".to_vec())])).contains("1 do not follow")
    );
    for label in ["", "x", "-1", "1.5", "99999999", &" ".repeat(100)] {
        let text = reports(tarred(&[("1.png", png(1)), ("1.cls", label.into())]));
        assert!(text.contains("1.cls is not the number"), "{text}");
    }
    let text = reports(tarred(&[("1.png", png(1)), ("1.cls", b"1".to_vec()), ("2.png", png(1))]));
    assert!(text.contains("2.png has no label"), "{text}");
    reports(vec![]);
    reports(b"this is no archive".repeat(100));
    let good = tarred(&[("1.png", png(1)), ("2.png", png(2))]);
    assert!(reports([&good[..], &good].concat()).contains("goes on after its end"));
    for cut in (0..2048).step_by(97).chain([512, 1024, 1536, 2048]) {
        reports(good[..cut].to_vec());
    }
    let (packed, packed_zst) = (gz(&good), zst(&good));
    for (name, bytes) in [("cut.tar.gz", packed), ("cut.tar.zst", packed_zst)] {
        for cut in 0..bytes.len() {
            let dir = folder(&[(name, bytes[..cut].to_vec())]);
            refusal(&dir.path().join(name), name);
        }
        let mut flipped = bytes.clone();
        let end = flipped.len() - 5;
        flipped[end] ^= 1; // of the checksum or the length
        let dir = folder(&[(name, flipped)]);
        refusal(&dir.path().join(name), name);
    }
    let dir = folder(&[("a.tar", good.clone()), ("a.tar.gz", gz(&good))]);
    assert!(refusal(dir.path(), "a.tar.gz").contains("one name"));
    let dir = folder(&[("val-0.tar", good.clone())]);
    refusal(dir.path(), "val-0.tar");
    let dir = folder(&[("train/0.tar", good.clone()), ("val/readme", vec![])]);
    refusal(dir.path(), "val");
    let dir = folder(&[("train-0.tar", shard(0, 3)), ("val-0.tar", good)]);
    assert!(refusal(dir.path(), "val-0.tar").contains("has none"));
    let dir = folder(&[("0.tar", shard(0, 3)), ("classnames.txt", b"one\n".to_vec())]);
    assert!(refusal(dir.path(), "classnames.txt").contains("label 2"));
}

#[test]
fn a_bad_image_in_a_shard_is_a_member_like_any_other() {
    let tar = tarred(&[("1.png", png(1)), ("2.png", vec![]), ("3.jpg", jpeg()[..40].to_vec())]);
    let dir = folder(&[("some.tar", tar.clone()), ("packed.tgz", gz(&tar))]);
    for file in ["some.tar", "packed.tgz"] {
        let set = everything(&dir.path().join(file));
        for i in 0..3 {
            let name = set.name(i);
            match set.image(i) {
                Ok(_) => assert!(name.ends_with("1.png")),
                Err(e) => assert!(e.to_string().contains(&format!("{file}/{}", &name[name.len() - 5..])), "{e}"),
            }
        }
    }
    // A shard that goes away is an error, not a panic.
    let set = open(&dir.path().join("some.tar")).unwrap().train;
    fs::remove_file(dir.path().join("some.tar")).unwrap();
    assert!(set.image(0).unwrap_err().to_string().contains("some.tar"));
}

/// A tar of 2 GiB and a bit, which gzip makes 2 MB of: refused by what it unpacks to.
#[test]
fn packed_shards_of_any_size_are_refused() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&tarred(&[("1.png", png(1))])).unwrap();
    let zeros = vec![0; 1 << 24];
    (0..129).for_each(|_| packed.write_all(&zeros).unwrap());
    let dir = folder(&[("large.tar.gz", packed.finish().unwrap())]);
    assert!(refusal(dir.path(), "large.tar.gz").contains("more than 2 GiB"));
}

#[test]
fn an_epoch_reads_every_image_once_and_nearly_in_order() {
    let sizes = [3000usize, 1, 5000, 70, 2000, 4096, 12];
    let starts: Vec<usize> = (0..=sizes.len()).map(|i| sizes[..i].iter().sum()).collect();
    let total = *starts.last().unwrap();
    let shard_of = |image: u32| starts.partition_point(|&s| s <= image as usize) - 1;
    for together in [usize::MAX, 2] {
        let shards = Shards { starts: starts.clone(), together };
        let order = shards.order(1, 2);
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..total as u32).collect::<Vec<_>>());
        assert_eq!(order, shards.order(1, 2));
        assert_ne!(order, shards.order(1, 3));
        assert_ne!(order, shards.order(2, 2));
        // An image never waits longer than the buffer holds: its shard is done within as many images.
        for shard in 0..sizes.len() {
            let places: Vec<usize> = (0..total).filter(|&p| shard_of(order[p]) == shard).collect();
            let spread = places[places.len() - 1] - places[0];
            assert!(spread < sizes[shard] + 2 * Shards::BUFFER, "shard {shard}: {spread}");
        }
        if together == 2 {
            // In any range of a buffer there are few shards.
            let seen = order.windows(50).map(|w| w.iter().map(|&i| shard_of(i)).collect::<HashSet<_>>().len()).max();
            assert!(seen.unwrap() <= 4, "{seen:?}");
        }
    }
    // Fixed for all time: a run that is resumed with a later build must go on in the same order.
    let fixed = Shards { starts: vec![0, 3, 4, 6, 9], together: 2 };
    assert_eq!(fixed.order(7, 1), [2, 0, 4, 5, 1, 8, 3, 7, 6]);
    // A set that fits the buffer is shuffled all at once: no image has a place of its own.
    let small = Shards { starts: vec![0, 10, 20], together: usize::MAX };
    let firsts: HashSet<u32> = (0..400).map(|epoch| small.order(0, epoch)[0]).collect();
    assert_eq!(firsts.len(), 20);
}

#[test]
fn a_held_out_part_keeps_the_shards_order() {
    let dir = folder(&[("a.tar", shard(0, 60)), ("b.tar", shard(60, 120)), ("c.tgz", gz(&shard(120, 180)))]);
    let Splits { train, test, held_out, .. } = open(dir.path()).unwrap();
    assert!(held_out && train.len() > 120 && !test.is_empty());
    for set in [&*train, &*test] {
        let shards = set.shards().expect("a part of a set in shards is in shards");
        assert_eq!((shards.starts.len(), *shards.starts.last().unwrap()), (4, set.len()));
        for (k, name) in ["a/", "b/", "c/"].iter().enumerate() {
            let all = shards.starts[k]..shards.starts[k + 1];
            assert!(all.clone().all(|i| set.name(i).starts_with(name)), "{k}: {all:?}");
        }
        let mut order = set.order(3, 1);
        assert_eq!(order, shards.order(3, 1));
        order.sort();
        assert_eq!(order, (0..set.len() as u32).collect::<Vec<_>>());
    }
    // Other sets: as ever.
    let dir = folder(&[("train.bin", records(30)), ("test.bin", records(1))]);
    let set = open(dir.path()).unwrap().train;
    assert_eq!(set.order(5, 1), dino_host::data::order::order(30, 5, 1));
}

/// Twelve packed shards, more than are kept, read by many threads at once in any order.
#[test]
fn threads_share_unpacked_shards() {
    let files: Vec<_> = (0..12u8).map(|k| (format!("{k:02}.tar.gz"), gz(&shard(20 * k, 20 * k + 12)))).collect();
    let dir = folder(&files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>());
    let set = everything(dir.path());
    std::thread::scope(|scope| {
        for t in 0..8 {
            let set = &set;
            scope.spawn(move || {
                for k in 0..set.len() {
                    let i = (k * 37 + t * 11) % set.len();
                    let name = set.name(i);
                    let number: u8 = name[name.len() - 7..name.len() - 4].parse().unwrap();
                    assert_eq!(set.image(i).unwrap().pixels[0], number);
                }
            });
        }
    });
}

#[cfg(unix)]
#[test]
fn one_shard_in_both_parts_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "train-0.tar", &tarred(&[("a.png", png(1)), ("b.png", png(2))]));
    std::os::unix::fs::symlink("train-0.tar", dir.path().join("val-0.tar")).unwrap();
    assert!(open(dir.path()).unwrap_err().message.contains("are the same file"));
}

#[test]
fn the_held_out_tenth_says_which_classes_it_misses() {
    let names: Vec<(String, String)> = (0..12).map(|i| (format!("{i:02}.png"), format!("{i:02}.cls"))).collect();
    let members = names.iter().enumerate();
    let members: Vec<(&str, Vec<u8>)> = members
        .flat_map(|(i, (image, label))| [(image.as_str(), png(i as u8)), (label, i.to_string().into_bytes())])
        .collect();
    let dir = folder(&[("set.tar", tarred(&members))]);
    reports(&open(dir.path()).unwrap(), &["held-out tenth", "of 12 classes"]);
}

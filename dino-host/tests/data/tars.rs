//! Tar archives as programs write them: names, headers, members that are no images.

use crate::*;
use tar::{Builder, EntryType, Header};

/// A file, or another kind of member.
fn append(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, bytes: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, bytes).unwrap();
}

fn tarred(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    members.iter().for_each(|(name, bytes)| append(&mut builder, EntryType::Regular, name, bytes));
    builder.into_inner().unwrap()
}

/// The set of one shard, and the splits for its notes.
fn shard(bytes: Vec<u8>) -> (Vec<String>, Splits) {
    let dir = folder(&[("s.tar", bytes)]);
    let path = dir.path().join("s.tar");
    let mut found = names(&*everything(&path));
    found.sort();
    (found, open(&path).unwrap())
}

/// `(name, color)` of members, all images.
fn images(names: &[&str]) -> Vec<u8> {
    tarred(&names.iter().enumerate().map(|(i, n)| (*n, png(i as u8))).collect::<Vec<_>>())
}

#[test]
fn the_picture_with_the_plain_ending_is_the_samples() {
    let splits = open(&case("depth.tar")).unwrap();
    let all = everything(&case("depth.tar"));
    let mut found = names(&*all);
    found.sort();
    assert_eq!(found, (0..6).map(|i| format!("depth/s{i}.jpg")).collect::<Vec<_>>());
    assert!((0..6).all(|i| all.image(i).unwrap().pixels[0] > 200), "red, not blue");
    noted(&splits, &["6 images are not used", "s0.depth.png beside s0.jpg"]);

    // A choice that remains is printed, once for all samples.
    let views = |i: u8| {
        ["left.png", "right.png", "json"].map(|end| (format!("{i}.{end}"), if end == "json" { vec![] } else { png(i) }))
    };
    let members: Vec<_> = (0..5).flat_map(views).collect();
    let (found, splits) = shard(tarred(&members.iter().map(|(n, b)| (n.as_str(), b.clone())).collect::<Vec<_>>()));
    assert_eq!((found.len(), found[0].as_str(), splits.notes.len()), (5, "s/0.left.png", 1));
    noted(&splits, &["5 samples have several images", "0.left.png and not 0.right.png"]);
    let (found, splits) = shard(images(&["a.jpg", "a.png", "b.png"]));
    assert_eq!(found, ["s/a.jpg", "s/b.png"]);
    noted(&splits, &["1 sample has several images", "a.jpg and not a.png"]);
}

#[test]
fn dots_in_names_lose_no_picture() {
    let splits = open(&case("dots.tar")).unwrap();
    assert_eq!(splits.train.len() + splits.test.len(), 8);
    noted(&splits, &["8 images' names have more than one dot", "scan_0.5mm_00.png"]);

    // Whatever order they come in, with labels or without.
    let (found, _) = shard(images(&["x/a.1.png", "x/b.1.png", "x/a.2.png", "x/b.2.png"]));
    assert_eq!(found, ["s/x/a.1.png", "s/x/a.2.png", "s/x/b.1.png", "s/x/b.2.png"]);
    let labeled = tarred(&[
        ("v1.0_a.cls", b"1".to_vec()),
        ("v1.0_a.png", png(1)),
        ("v1.0_b.cls", b"0".to_vec()),
        ("v1.0_b.png", png(0)),
    ]);
    let dir = folder(&[("s.tar", labeled)]);
    let set = everything(&dir.path().join("s.tar"));
    for i in 0..2 {
        assert_eq!(set.label(i), Some(u32::from(set.image(i).unwrap().pixels[0])), "{}", set.name(i));
    }
    // One name with dots alone is not reported.
    assert!(shard(images(&["a.b.png", "c.png"])).1.notes.is_empty());
}

#[test]
fn what_belongs_to_no_picture_is_passed_over() {
    let (found, splits) = shard(tarred(&[
        ("LICENSE", vec![]),
        ("README.md", b"hello".to_vec()),
        ("__index__.json", b"{}".to_vec()),
        ("a.png", png(1)),
        ("a.txt", b"a caption".to_vec()),
        ("b.json", b"{}".to_vec()),
        ("b.txt", b"not an image".to_vec()),
        ("c.png", png(1)),
    ]));
    assert_eq!(found, ["s/a.png", "s/c.png"]);
    noted(&splits, &["5 members of shards belong to no image", "LICENSE"]);

    let mut builder = Builder::new(Vec::new());
    append(&mut builder, EntryType::Directory, "d/", &[]);
    append(&mut builder, EntryType::Regular, "d/1.png", &png(1));
    for (kind, name) in [(EntryType::Link, "d/2.png"), (EntryType::Symlink, "d/3.png")] {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, "1.png").unwrap();
    }
    for (kind, name) in [(EntryType::Char, "d/4.png"), (EntryType::Fifo, "d/5.png"), (EntryType::Block, "d/6.png")] {
        append(&mut builder, kind, name, &[]);
    }
    append(&mut builder, EntryType::Continuous, "d/7.png", &png(7));
    let (found, splits) = shard(builder.into_inner().unwrap());
    assert_eq!(found, ["s/d/1.png", "s/d/7.png"]);
    assert_eq!(splits.notes.len(), 1);
    noted(&splits, &["5 members of shards are links, devices or sparse files", "d/2.png"]);
}

/// A header's checksum is put right.
fn block(mut header: Header) -> Vec<u8> {
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn header(kind: EntryType, name: &str, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

const END: [u8; 1024] = [0; 1024];

#[test]
fn sparse_files_are_skipped_entirely() {
    // GNU's own: where its chunks are stored takes a block more, and its name is in the header.
    let mut gnu = Header::new_gnu();
    gnu.set_entry_type(EntryType::GNUSparse);
    gnu.set_path("hole.png").unwrap();
    gnu.set_size(5);
    gnu.set_mode(0o644);
    gnu.as_gnu_mut().unwrap().set_is_extended(true);
    let after =
        [block(header(EntryType::Regular, "a.png", png(3).len() as u64)), padded(&png(3)), END.to_vec()].concat();
    let (found, splits) = shard([block(gnu), vec![0; 512], padded(b"12345"), after.clone()].concat());
    assert_eq!(found, ["s/a.png"]);
    noted(&splits, &["1 member of a shard is a link, a device or a sparse file", "hole.png"]);
    // PAX's: a plain file whose attributes state so.
    let record = b"25 GNU.sparse.realsize=9\n";
    let pax = [block(header(EntryType::XHeader, "x", 25)), padded(record)].concat();
    let hole = [block(header(EntryType::Regular, "GNUSparseFile.0/hole.png", 5)), padded(b"12345")].concat();
    let (found, splits) = shard([pax, hole, after].concat());
    assert_eq!(found, ["s/a.png"]);
    noted(&splits, &["sparse", "hole.png"]);
}

#[test]
fn long_names_in_every_dialect_and_bounded() {
    let (data, size) = (padded(&png(9)), png(9).len() as u64);
    let long = format!("{}1.png", "folder/".repeat(20));
    let gnu = [block(header(EntryType::GNULongName, "././@LongLink", long.len() as u64 + 1)), padded(long.as_bytes())];
    let record = format!(" path={long}\n");
    let record = format!("{}{record}", record.len() + 3);
    // Attributes with line feeds and bytes of any kind come before; the size there wins over the header's.
    let more = [b"28 SCHILY.xattr.user.x=\n\xff\n7\n".as_slice(), format!("12 size={size:03}\n").as_bytes()].concat();
    assert_eq!(more.len(), 40);
    let pax_bytes = [&more[..], record.as_bytes()].concat();
    let pax = [block(header(EntryType::XHeader, "x", pax_bytes.len() as u64)), padded(&pax_bytes)];
    let mut old = Header::new_old();
    old.set_path("old/1.png").unwrap();
    old.set_size(size);
    old.set_mode(0o644);
    let file = |size| block(header(EntryType::Regular, "short", size));
    let ustar = block(header(EntryType::Regular, &long, size)); // fits the prefix and the name
    for (bytes, name) in [
        ([gnu.concat(), file(size), data.clone(), END.to_vec()].concat(), long.as_str()),
        ([pax.concat(), file(0), data.clone(), END.to_vec()].concat(), &long),
        ([ustar, data.clone(), END.to_vec()].concat(), &long),
        ([block(old), data.clone(), END.to_vec()].concat(), "old/1.png"),
    ] {
        let dir = folder(&[("s.tar", bytes)]);
        let set = everything(&dir.path().join("s.tar"));
        assert_eq!((set.len(), set.name(0)), (1, format!("s/{name}")));
        assert_eq!(set.image(0).unwrap().pixels[0], 9);
    }
    // A name of a terabyte, in a file that has as many bytes, none of them on the disk.
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader, EntryType::XGlobalHeader] {
        let dir = folder(&[("s.tar", block(header(kind, "x", 5 << 30)))]);
        let path = dir.path().join("s.tar");
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(6 << 30).unwrap();
        assert!(refusal(&path, "s.tar").contains("5368709120 bytes before member 1"));
    }
    for pax in
        ["", "x", "9 path=a\n", "99 path=a\n", "0 path=a\n", "9 size=x\n", "3 \n", "99999999999999999999999 a=b\n"]
    {
        let head = [block(header(EntryType::XHeader, "x", pax.len() as u64)), padded(pax.as_bytes())].concat();
        let dir = folder(&[("s.tar", [head, file(size), data.clone(), END.to_vec()].concat())]);
        if pax.is_empty() || pax == "9 path=a\n" {
            assert!(refusal(dir.path(), "s.tar").contains("no images"), "{pax:?}");
        } else {
            assert!(refusal(dir.path(), "s.tar").contains("PAX header is damaged"), "{pax:?}");
        }
    }
}

#[test]
fn parts_by_any_name_in_any_case() {
    let one = |name: &str| {
        let key = name.replace(['.', '/'], "");
        images(&[&format!("{key}1.png"), &format!("{key}2.png")])
    };
    let lengths = |names: &[&str], path: &str| {
        let files: Vec<_> = names.iter().map(|n| (*n, one(n))).collect();
        let dir = folder(&files);
        let splits = open(&dir.path().join(path)).unwrap();
        (splits.train.len(), splits.test.len(), splits.held_out, splits.notes.join("; "))
    };
    let reported = |found: (usize, usize, bool, String), train, test, words: &[&str]| {
        assert_eq!((found.0, found.1, found.2), (train, test, false), "{found:?}");
        assert!(words.iter().all(|word| found.3.contains(word)) && found.3.is_empty() == words.is_empty(), "{found:?}");
    };
    reported(
        lengths(&["imagenet-train-000000.tar", "imagenet-train-000001.tar", "imagenet-validation-000000.tar"], ""),
        4,
        2,
        &[],
    );
    reported(
        lengths(&["Train_00.tar", "Valid_00.tar", "TEST_00.tar"], ""),
        2,
        2,
        &["not used", "TEST_00.tar", "Valid_00.tar"],
    );
    reported(lengths(&["train.tar", "dev.tar", "extra.tar"], ""), 4, 2, &["taken for training", "extra.tar"]);
    reported(lengths(&["Training/a.tar", "valid/a.tar", "test/a.tar"], ""), 2, 2, &["not used", "test/a.tar"]);
    // A file by itself finds its test part, and what else there is is printed.
    reported(lengths(&["train.tar", "val.tar"], "train.tar"), 2, 2, &[]);
    reported(lengths(&["train.tar", "Validation.tar", "test.tar", "other-val.tar"], "train.tar"), 2, 2, &["test.tar"]);
    let several = ["a-train-0.tar", "a-train-1.tar", "a-val-0.tar", "a-val-1.tar", "b-val-0.tar"];
    reported(lengths(&several, "a-train-0.tar"), 2, 4, &["not used, for one file was named", "a-train-1.tar"]);
    assert!(lengths(&several, "a-val-0.tar").2, "a test part that is asked for by name is trained on");
    assert!(lengths(&["some.tar", "val.tar"], "some.tar").2);
}

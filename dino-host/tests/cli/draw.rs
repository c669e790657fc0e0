//! The commands that draw: attention, videos, principal components, neighbors.

use crate::common::*;
use image::ImageFormat::{Jpeg, Png};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use tempfile::TempDir;

/// A run of an epoch: two heads, patches of 8 pixels, two blocks.
static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let (data, dir) = (cifar(), tempfile::tempdir().unwrap());
    succeeds(&format!("train {TINY} --epochs 1 --data {{}} --out {{}}"), &[data.path(), dir.path()]);
    dir
});

fn checkpoint() -> PathBuf {
    RUN.path().join("checkpoint.safetensors")
}

/// The files below a folder, by their paths in it.
fn names(dir: &Path) -> Vec<String> {
    let below = |path: PathBuf| path.strip_prefix(dir).unwrap().to_str().unwrap().replace('\\', "/");
    content(dir).into_iter().map(|(path, _)| below(path)).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn rgb(path: &Path) -> image::RgbImage {
    image::open(path).unwrap().into_rgb8()
}

/// An image of one color.
fn constant(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(width, height, image::Rgb([90, 120, 30])).write_to(&mut bytes, Png).unwrap();
    bytes.into_inner()
}

#[test]
fn several_images_get_a_folder_each_and_bad_ones_a_warning() {
    let cut = image_bytes(Png, 1)[..80].to_vec();
    let data = folder(&[
        ("p10.png", image_bytes(Png, 10)),
        ("p9.jpg", image_bytes(Jpeg, 9)),
        ("p9.png", constant(40, 40)),
        ("p11.png", cut),
        ("one.png", constant(1, 1)),
    ]);
    let (file, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let done = dino("attend --checkpoint {} --image {} --out {} --size 24", &[&file, data.path(), out.path()]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.err.matches("p11.png").count(), 1, "{}", done.err);
    let list = fs::read_to_string(out.path().join("images.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let found: Vec<[&str; 3]> = rows.iter().map(|r| [r[0], r[1], r[2]]).collect();
    assert_eq!(found, [["0", "0", "one"], ["0", "1", "p9"], ["0", "2", "p9-2"], ["0", "3", "p10"]]);
    assert!(rows[3][3].ends_with("p10.png"));
    // A folder holds what a single image gives.
    let single = tempfile::tempdir().unwrap();
    let one = data.path().join("p10.png");
    succeeds("attend --checkpoint {} --image {} --out {} --size 24 --threads 1", &[&file, &one, single.path()]);
    let all = ["attention.json", "attention.npy", "head0-cutout.png", "head0-heat.png", "head0-mask.png", "head0.png"];
    assert!(all.iter().all(|name| names(single.path()).contains(&name.to_string())), "{:?}", names(single.path()));
    for name in names(single.path()) {
        let [a, b] = [single.path().join(&name), out.path().join("p10").join(&name)].map(|p| fs::read(p).unwrap());
        assert!(a == b, "{name} depends on what is drawn beside it");
    }
    assert_eq!(names(out.path()).len(), 4 * names(single.path()).len() + 2);

    let line = "attend --checkpoint {} --image {} --out {}";
    refuses_with(&format!("{line} --strict"), &[&file, data.path(), out.path()], &["p11.png"]);
    let empty = folder(&[("readme.txt", b"x".to_vec()), ("bad/a.png", vec![]), ("bad/b.png", vec![])]);
    refuses_with(line, &[&file, empty.path(), out.path()], &["no images in"]);
    refuses_with(line, &[&file, &empty.path().join("bad"), out.path()], &["none of the images"]);
    refuses_with(line, &[&file, &empty.path().join("bad/a.png"), out.path()], &["a.png"]);
    refuses_with(line, &[&file, &empty.path().join("gone.png"), out.path()], &["gone.png"]);
}

/// A run with fast decoding: its images are decoded at full size all the same where they are drawn larger than its crops.
#[test]
fn fast_decoding_is_not_for_larger_sizes() {
    let image = image::RgbImage::from_fn(800, 600, |x, y| image::Rgb([(x * y / 7) as u8, (x / 2) as u8, y as u8]));
    let (dir, mut jpeg) = (tempfile::tempdir().unwrap(), std::io::Cursor::new(Vec::new()));
    image.write_to(&mut jpeg, Jpeg).unwrap();
    let (image, fast) = (dir.path().join("a.jpg"), dir.path().join("fast.safetensors"));
    fs::write(&image, jpeg.into_inner()).unwrap();
    let bytes = with_header(&fs::read(checkpoint()).unwrap(), |h| {
        let config = h["__metadata__"]["config"].as_str().unwrap().to_string();
        assert!(config.contains(r#""fast-decode":false"#), "{config}");
        h["__metadata__"]["config"] = config.replace(r#""fast-decode":false"#, r#""fast-decode":true"#).into();
    });
    fs::write(&fast, bytes).unwrap();
    for (command, file) in [("attend --write npy", "attention.npy"), ("pca", "pca.json")] {
        let [plain, fast] = [&checkpoint(), &fast].map(|checkpoint| {
            let out = tempfile::tempdir().unwrap();
            let line = format!("{command} --size 240 --checkpoint {{}} --image {{}} --out {{}}");
            succeeds(&line, &[checkpoint, &image, out.path()]);
            fs::read(out.path().join(file)).unwrap()
        });
        assert!(plain == fast, "{command}");
    }
}

/// Every line of the tables has as many fields as its first, whatever images and classes are called.
#[cfg(unix)]
#[test]
fn names_do_not_break_tables() {
    let (class, name) = ("a\tb", "x\ny\\t\r.png");
    let files = [(format!("{class}/{name}"), image_bytes(Png, 1)), (format!("{class}/z.png"), image_bytes(Png, 2))];
    let data = folder(&files.each_ref().map(|(name, bytes)| (name.as_str(), bytes.clone())));
    let (file, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let table = |line: &str, data: &Path, name: &str| {
        succeeds(line, &[&file, data, out.path()]);
        let text = fs::read_to_string(out.path().join(name)).unwrap();
        let rows: Vec<Vec<String>> = text.lines().map(|l| l.split('\t').map(String::from).collect()).collect();
        assert!(rows.iter().all(|row| row.len() == rows[0].len()) && !text.contains('\r'), "{text:?}");
        rows
    };
    let (class, name) = ("a\\tb", "x\\ny\\\\t\\r");
    let rows = table("features --checkpoint {} --data {} --out {}", data.path(), "images.tsv");
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().any(|row| row[1] == class && row[2] == format!("{class}/{name}.png")), "{rows:?}");
    let rows = table("crops --checkpoint {} --data {} --out {}", data.path(), "index.tsv");
    assert!(rows.len() == 2 && rows[1][2].starts_with(&format!("{class}/")), "{rows:?}");
    let rows = table("attend --checkpoint {} --image {} --out {}", &data.path().join("a\tb"), "images.tsv");
    assert_eq!(rows.len(), 3);
    assert!(rows[1][2] == name && rows[1][3].ends_with(&format!("{class}/{name}.png")), "{rows:?}");
}

#[test]
fn blocks_networks_and_parts_can_be_chosen() {
    let data = folder(&[("a.png", image_bytes(Png, 3))]);
    let (file, image) = (checkpoint(), data.path().join("a.png"));
    let numbers = |flags: &str| {
        let out = tempfile::tempdir().unwrap();
        let line = format!("attend --checkpoint {{}} --image {{}} --out {{}} --write npy {flags}");
        succeeds(&line, &[&file, &image, out.path()]);
        assert_eq!(names(out.path()), ["attention.npy"]);
        fs::read(out.path().join("attention.npy")).unwrap()
    };
    let last = numbers("");
    // 43 x 36 pixels at the run's 40 are 47.8 x 40.
    assert!(last[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 5, 6, ), }"));
    assert_eq!(last.len(), 128 + 4 * 2 * 30);
    assert!(last == numbers("--block 2") && last == numbers("--which teacher"));
    assert!(last != numbers("--block 1") && last != numbers("--which student"));
    let out = tempfile::tempdir().unwrap();
    let line = "attend --checkpoint {} --image {} --out {}";
    for (flags, expected) in [("--block 0", "no block 0"), ("--block 3", "no block 3"), ("--keep 2", "--keep 2")] {
        refuses_with(&format!("{line} {flags}"), &[&file, &image, out.path()], &[expected]);
    }
    refuses_with(&format!("{line} --animate gif"), &[&file, &image, out.path()], &["--animate", "--image"]);
    let teacher = RUN.path().join("teacher.safetensors");
    refuses_with(&format!("{line} --which student"), &[&teacher, &image, out.path()], &["teacher"]);
}

/// Frames as video programs number them, one of them damaged, one of another shape.
fn frames() -> TempDir {
    let dir = folder(&[]);
    for i in 8..13u32 {
        let image =
            image::RgbImage::from_fn(60, 40, |x, y| image::Rgb([(x * i) as u8, (4 * y) as u8, (x + 9 * i) as u8]));
        image.save(dir.path().join(format!("frame{i}.png"))).unwrap();
    }
    fs::write(dir.path().join("frame10.png"), b"\x89PNG\r\n\x1a\n and no more").unwrap();
    fs::write(dir.path().join("frame12.png"), constant(90, 31)).unwrap();
    dir
}

const VIDEO: &str = "attend --checkpoint {} --frames {} --out {} --size 24";

#[test]
fn a_video_is_an_animated_png_whose_first_frame_is_the_still_figure() {
    let (file, data) = (checkpoint(), frames());
    let still = tempfile::tempdir().unwrap();
    let first = data.path().join("frame8.png");
    succeeds("attend --checkpoint {} --image {} --out {} --size 24", &[&file, &first, still.path()]);
    for (show, name) in [("mean", "mean-heat.png"), ("heads", "overlay.png"), ("mask", "mean-mask.png")] {
        let out = tempfile::tempdir().unwrap();
        let line = format!("{VIDEO} --animate apng --fps 12 --range frame --show {show}");
        let done = dino(&line, &[&file, data.path(), out.path()]);
        assert_eq!(done.code, 0, "{}", done.err);
        assert_eq!(done.err.matches("WARNING").count(), 1, "{}", done.err);
        assert!(done.err.contains("frame10.png") && done.err.contains("1 frames of another size"), "{}", done.err);
        assert_eq!(names(out.path()), ["attention.npy", "attention.png", "frames.txt"]);
        let listed = fs::read_to_string(out.path().join("frames.txt")).unwrap();
        let listed: Vec<&str> = listed.lines().map(|l| l.rsplit('/').next().unwrap()).collect();
        assert_eq!(listed, ["frame8.png", "frame9.png", "frame11.png", "frame12.png"]);

        let want = rgb(&still.path().join(name));
        let opened = fs::File::open(out.path().join("attention.png")).unwrap();
        let mut reader = png::Decoder::new(std::io::BufReader::new(opened)).read_info().unwrap();
        assert_eq!(reader.info().animation_control().unwrap().num_frames, 4);
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let mut seen: Vec<Vec<u8>> = Vec::new();
        for _ in 0..4 {
            let info = reader.next_frame(&mut bytes).unwrap();
            assert_eq!((info.width, info.height), want.dimensions());
            let control = reader.info().frame_control().unwrap();
            assert_eq!((control.delay_num, control.delay_den), (1, 12));
            assert!(!seen.contains(&bytes), "a frame twice");
            seen.push(bytes.clone());
        }
        assert!(seen[0] == *want.as_raw(), "{show}");
        // The numbers: frames, heads, rows, columns, those of the first frame first.
        let npy = fs::read(out.path().join("attention.npy")).unwrap();
        assert!(npy[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 2, 3, 4, ), }"));
        let one = fs::read(still.path().join("attention.npy")).unwrap();
        assert!(npy[128..].starts_with(&one[128..]) && npy.len() - 128 == 4 * (one.len() - 128));
    }
    let strict = tempfile::tempdir().unwrap();
    let line = format!("{VIDEO} --animate apng --strict");
    refuses_with(&line, &[&file, data.path(), strict.path()], &["frame10.png"]);
    assert!(names(strict.path()).is_empty());
}

#[test]
fn colors_of_a_video_may_mean_the_same_in_every_frame() {
    let (file, data) = (checkpoint(), frames());
    let videos = ["--range film --threads 1", "--range film --threads 2", "--range frame"].map(|flags| {
        let out = tempfile::tempdir().unwrap();
        let line = format!("{VIDEO} --animate gif --fps 30 --write image {flags}");
        succeeds(&line, &[&file, &data.path().join("frame*[0-9].png"), out.path()]);
        assert_eq!(names(out.path()), ["attention.gif", "frames.txt"]);
        fs::read(out.path().join("attention.gif")).unwrap()
    });
    assert!(videos[0] == videos[1] && videos[0] != videos[2]);
    let mut decoder = gif::DecodeOptions::new().read_info(&videos[0][..]).unwrap();
    let mut delays = Vec::new();
    while let Some(frame) = decoder.read_next_frame().unwrap() {
        delays.push(frame.delay);
    }
    assert_eq!((delays, decoder.repeat()), (vec![3, 4, 3, 3], gif::Repeat::Infinite));
    let out = tempfile::tempdir().unwrap();
    refuses_with(&format!("{VIDEO} --animate gif --fps 60"), &[&file, data.path(), out.path()], &["--fps 50"]);
    refuses_with(&format!("{VIDEO} --animate apng --fps 0"), &[&file, data.path(), out.path()], &["--fps 30"]);
    let wrong = format!("{VIDEO} --animate apng --keep 0");
    refuses_with(&wrong, &[&file, data.path(), out.path()], &["--keep 0"]);
    refuses_with(VIDEO, &[&file, data.path(), out.path()], &["--animate"]);
    let bad = folder(&[("a.png", vec![1]), ("b.png", vec![])]);
    let line = format!("{VIDEO} --animate apng");
    refuses_with(&line, &[&file, bad.path(), out.path()], &["none of the frames"]);
    refuses_with(&line, &[&file, &bad.path().join("*.jpg"), out.path()], &["no images in"]);
}

/// A program called ffmpeg that runs a script.
#[cfg(unix)]
fn ffmpeg(script: &str) -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = folder(&[("ffmpeg", format!("#!/bin/sh\n{script}\n").into_bytes())]);
    fs::set_permissions(dir.path().join("ffmpeg"), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

#[cfg(unix)]
#[test]
fn mp4_goes_through_ffmpeg_or_says_that_there_is_none() {
    let (file, data) = (checkpoint(), frames());
    let run = |path: &Path, out: &Path| {
        let line = format!("{VIDEO} --animate mp4 --fps 24 --write image");
        let done = command(&line, &[&file, data.path(), out]).env("PATH", path).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    let out = tempfile::tempdir().unwrap();
    let nothing = tempfile::tempdir().unwrap();
    let (code, text) = run(nothing.path(), out.path());
    assert_eq!(code, Some(2), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("none on PATH") && lines[1].contains("--animate apng"), "{text}");
    assert!(names(out.path()).is_empty());

    // It notes its arguments and gives back the frames as they come.
    let fake = ffmpeg(
        r#"[ "$1" = -version ] && exit 0
printf '%s\n' "$@" > "$0.args"
for last; do :; done
/bin/cat > "$last""#,
    );
    let (code, text) = run(fake.path(), out.path());
    assert_eq!(code, Some(0), "{text}");
    let args = fs::read_to_string(fake.path().join("ffmpeg.args")).unwrap();
    let args: Vec<&str> = args.lines().collect();
    for pair in [["-f", "rawvideo"], ["-pix_fmt", "rgb24"], ["-r", "24"], ["-i", "-"], ["-c:v", "libx264"]] {
        assert!(args.windows(2).any(|w| w == pair), "{pair:?} is not in {args:?}");
    }
    let size = args[args.iter().position(|a| *a == "-s").unwrap() + 1];
    let [w, h]: [usize; 2] = size.split('x').map(|n| n.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap();
    let raw = fs::read(out.path().join("attention.mp4")).unwrap();
    assert_eq!((raw.len(), names(out.path()).len()), (4 * 3 * w * h, 2));
    // The same frames as the exact video's.
    let exact = tempfile::tempdir().unwrap();
    succeeds(&format!("{VIDEO} --animate apng"), &[&file, data.path(), exact.path()]);
    assert!(raw[..3 * w * h] == **rgb(&exact.path().join("attention.png")).as_raw());

    // One that fails, at the end or at once, reports why, and leaves nothing.
    let out = tempfile::tempdir().unwrap();
    for script in ["/bin/cat > /dev/null", ":"] {
        let fake =
            ffmpeg(&format!("[ \"$1\" = -version ] && exit 0\n{script}\necho Unknown encoder libx264 >&2\nexit 3"));
        let (code, text) = run(fake.path(), out.path());
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("Unknown encoder libx264") && text.contains("hint"), "{text}");
        assert!(names(out.path()).is_empty(), "{:?}", names(out.path()));
    }
}

#[test]
fn principal_components_mean_the_same_in_all_images_of_a_call() {
    let data =
        folder(&[("a.png", image_bytes(Png, 3)), ("b.png", image_bytes(Png, 40)), ("sub/a.png", image_bytes(Png, 3))]);
    let [a, b, copy] = ["a.png", "b.png", "sub/a.png"].map(|name| data.path().join(name));
    let (file, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let line = "pca --checkpoint {} --image {} --image {} --image {} --out {} --size 32 --json";
    let text = succeeds(line, &[&file, &a, &b, &copy, out.path()]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(found, json(&out.path().join("pca.json")));
    let folders: Vec<&str> =
        found["images"].as_array().unwrap().iter().map(|i| i["folder"].as_str().unwrap()).collect();
    assert_eq!(folders, ["a", "b", "a-2"]);
    let bytes = |name: &str| fs::read(out.path().join(name)).unwrap();
    for name in ["pca.png", "pca.npy"] {
        assert!(bytes(&format!("a/{name}")) == bytes(&format!("a-2/{name}")), "{name}");
        assert!(bytes(&format!("a/{name}")) != bytes(&format!("b/{name}")), "{name}");
    }
    // 32 x 38 pixels are 4 x 4 patches, 32 x 40 are 4 x 5.
    assert_eq!((&found["patches"], &found["width"]), (&52.into(), &24.into()));
    let variance: Vec<f64> =
        found["explained_variance"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert!(variance.len() == 24 && variance.is_sorted_by(|a, b| a >= b) && variance[2] > 0.0, "{variance:?}");
    let ratio = found["explained_variance_ratio"].as_array().unwrap();
    assert!((ratio.iter().map(|r| r.as_f64().unwrap()).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(names(out.path()).contains(&"sheet-000.png".into()));

    // The foreground: as many white patches as are stated, the others black in both figures.
    let front = tempfile::tempdir().unwrap();
    let line = "pca --checkpoint {} --image {} --out {} --size 40 --foreground --block 1 --threads";
    succeeds(&format!("{line} 1"), &[&file, &b, front.path()]);
    let found = json(&front.path().join("pca.json"));
    let [white, colors] = ["foreground.png", "pca.png"].map(|name| rgb(&front.path().join(name)));
    let count = white.pixels().filter(|p| p.0 == [255; 3]).count();
    let (rows, cols) = (found["images"][0]["rows"].as_u64().unwrap(), found["images"][0]["cols"].as_u64().unwrap());
    let cell = (white.width() as u64 / cols).pow(2);
    let patches = found["foreground_patches"].as_u64().unwrap();
    assert_eq!((count as u64, white.pixels().len() as u64), (patches * cell, rows * cols * cell));
    assert!(patches > 0 && patches < rows * cols, "{found}");
    assert!(white.pixels().zip(colors.pixels()).all(|(w, c)| w.0 == [255; 3] || c.0 == [0; 3]));
    let again = tempfile::tempdir().unwrap();
    succeeds(&format!("{line} 2"), &[&file, &b, again.path()]);
    for name in names(front.path()) {
        let [one, two] = [&front, &again].map(|dir| fs::read(dir.path().join(&name)).unwrap());
        assert!(one == two, "{name} depends on the number of threads");
    }
}

#[test]
fn components_of_hostile_images() {
    let data = folder(&[("dot.png", constant(1, 1)), ("bad.png", vec![7; 99]), ("flat.png", constant(50, 30))]);
    let (file, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let line = "pca --checkpoint {} --image {} --out {}";
    let done = dino(line, &[&file, data.path(), out.path()]);
    assert_eq!((done.code, done.err.matches("WARNING").count()), (0, 1), "{}", done.err);
    // One patch: no variance, every color in the middle.
    let one = data.path().join("dot.png");
    succeeds(&format!("{line} --size 8 --foreground"), &[&file, &one, out.path()]);
    assert!(rgb(&out.path().join("pca.png")).pixels().all(|p| p.0 == [128; 3]));
    assert_eq!(json(&out.path().join("pca.json"))["total_variance"], 0.0);
    refuses_with(&format!("{line} --strict"), &[&file, data.path(), out.path()], &["bad.png"]);
    refuses_with(line, &[&file, &data.path().join("bad.png"), out.path()], &["bad.png"]);
    refuses_with(&format!("{line} --block 9"), &[&file, &one, out.path()], &["no block 9"]);
    refuses_with(&format!("{line} --size 7"), &[&file, &one, out.path()], &["--size 8"]);
}

#[test]
fn neighbors_of_labeled_images() {
    let (data, file) = (cifar(), checkpoint());
    let out = tempfile::tempdir().unwrap();
    let line = "neighbours --checkpoint {} --data {} --out {} --k 4 --queries 11 --pixels --json";
    let found: Value = serde_json::from_str(&succeeds(line, &[&file, data.path(), out.path()])).unwrap();
    assert_eq!(found, json(&out.path().join("neighbours.json")));
    assert_eq!((&found["bank"], &found["leave_one_out"]), (&TRAIN.into(), &false.into()));
    let rows = found["rows"].as_array().unwrap();
    // Eleven queries over ten classes, a row by features and one by pixels each, twelve rows a page.
    assert_eq!(rows.len(), 22);
    assert_eq!(names(out.path()), ["neighbours.json", "sheet-000.png", "sheet-001.png"]);
    let mut classes = std::collections::HashSet::new();
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((&row["sheet"], &row["row"]), (&(i / 12).into(), &(i % 12).into()));
        assert_eq!(row["features"], ["teacher", "pixels"][i % 2]);
        assert_eq!(row["image"], rows[i / 2 * 2]["image"]);
        classes.insert(row["class"].as_str().unwrap());
        let near = row["neighbours"].as_array().unwrap();
        let similar: Vec<f64> = near.iter().map(|n| n["similarity"].as_f64().unwrap()).collect();
        assert!(near.len() == 4 && similar.is_sorted_by(|a, b| a >= b) && similar[0] <= 1.0 + 1e-6, "{row}");
        assert!(near.iter().all(|n| n["same"] == (n["class"] == row["class"])), "{row}");
    }
    assert_eq!(classes.len(), 10);
    // Frames: as many green ones as neighbors of the query's class.
    let same =
        rows[..12].iter().flat_map(|r| r["neighbours"].as_array().unwrap()).filter(|n| n["same"] == true).count();
    let green = rgb(&out.path().join("sheet-000.png")).pixels().filter(|p| p.0 == [70, 200, 90]).count();
    assert_eq!(green, same * (104 * 104 - 96 * 96));
    // A seed chooses others, always the same.
    let chosen = |seed: u32| {
        let line = format!("neighbours --data {{}} --out {{}} --which pixels --k 1 --queries 3 --choose {seed} --json");
        let out = tempfile::tempdir().unwrap();
        serde_json::from_str::<Value>(&succeeds(&line, &[data.path(), out.path()])).unwrap()
    };
    assert!(chosen(1) == chosen(1) && chosen(1) != chosen(2));
    refuses_with("neighbours --data {} --out {} --k 0", &[data.path(), out.path()], &["--k 10"]);
}

#[test]
fn neighbors_of_unlabeled_images_leave_the_query_out() {
    let data = folder(&[("bad.png", vec![1, 2, 3])]);
    for i in 0..12 {
        fs::write(data.path().join(format!("{i:02}.png")), image_bytes(Png, i)).unwrap();
    }
    // A copy: its own nearest neighbor.
    fs::write(data.path().join("copy.png"), image_bytes(Png, 5)).unwrap();
    let (file, out) = (checkpoint(), tempfile::tempdir().unwrap());
    let line = "neighbours --checkpoint {} --data {} --out {} --queries 99 --k 99 --json";
    let done = dino(line, &[&file, data.path(), out.path()]);
    assert_eq!((done.code, done.err.matches("WARNING").count()), (0, 1), "{}", done.err);
    let found: Value = serde_json::from_str(&done.out).unwrap();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &found["leave_one_out"]), (13, &true.into()));
    for row in rows {
        let near: Vec<&str> =
            row["neighbours"].as_array().unwrap().iter().map(|n| n["image"].as_str().unwrap()).collect();
        assert!(near.len() == 12 && !near.contains(&row["image"].as_str().unwrap()), "{row}");
        assert!(row["class"].is_null() && row["neighbours"][0]["same"].is_null());
        if row["image"] == "05.png" {
            assert_eq!(near[0], "copy.png");
            assert!((row["neighbours"][0]["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-6);
        }
    }
    // Images from elsewhere as queries.
    let other = folder(&[("x.png", image_bytes(Png, 7)), ("dot.png", constant(1, 1))]);
    let line = "neighbours --checkpoint {} --data {} --image {} --out {} --k 2 --json";
    let text = succeeds(line, &[&file, data.path(), other.path(), out.path()]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&found["rows"].as_array().unwrap().len(), &found["leave_one_out"]), (&2, &false.into()));
    assert!(found["rows"][1]["image"].as_str().unwrap().ends_with("x.png"));
    assert_eq!(found["rows"][1]["neighbours"][0]["image"], "07.png");

    let lonely = folder(&[("a.png", image_bytes(Png, 1))]);
    refuses_with("neighbours --data {} --out {}", &[lonely.path(), out.path()], &["one image has no neighbors"]);
    let empty = folder(&[("readme.txt", b"x".to_vec())]);
    refuses_with("neighbours --data {} --out {}", &[empty.path(), out.path()], &["no images found"]);
    let bad = folder(&[("x.png", vec![9])]);
    let line = "neighbours --data {} --image {} --out {}";
    refuses_with(line, &[data.path(), bad.path(), out.path()], &["none of the queries"]);
}

//! Image files: what decodes, to which pixels, and what is reported of those that do not.

use crate::*;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
}

/// All images in that folder but the expected ones.
fn goldens() -> Vec<String> {
    let names = fs::read_dir(golden("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| n != "make.py" && n.matches('.').count() == 1).collect();
    names.sort();
    assert!(names.len() > 35);
    names
}

#[test]
fn pixels_are_those_of_pillow() {
    let mut lossless = 0;
    for name in goldens() {
        if !golden(&format!("{name}.png")).exists() {
            continue;
        }
        let (found, expected) = (decode(&golden(&name)).unwrap(), decode(&golden(&format!("{name}.png"))).unwrap());
        assert_eq!((found.width, found.height, found.channels), (expected.width, expected.height, 3), "{name}");
        let largest = found.pixels.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // Two ways to round a cosine transform; 4:2:0 also has two ways to spread the chroma.
        let bound = match name.as_str() {
            "420.jpg" | "jpeg-420.tif" => 6,
            "jpeg-rgb.tif" => 2,
            "ycc.tif" | "100.ppm" | "plain.pgm" => 1, // halves go one way or the other
            name if name.ends_with(".jpg") => 2,
            _ => 0,
        };
        assert!(largest <= bound, "{name}: {largest}");
        lossless += usize::from(bound == 0);
    }
    assert!(lossless >= 50, "{lossless}");
}

/// Largest and mean difference.
#[track_caller]
fn difference(found: &Image, expected: &Image) -> (u8, f64) {
    assert_eq!((found.width, found.height, found.channels), (expected.width, expected.height, expected.channels));
    let off: Vec<u8> = found.pixels.iter().zip(&expected.pixels).map(|(a, b)| a.abs_diff(*b)).collect();
    let sum: f64 = off.iter().map(|x| f64::from(*x)).sum();
    (*off.iter().max().unwrap(), sum / off.len() as f64)
}

/// The JPEG files of unusual layouts, those that are refused apart.
fn rare(refused: bool) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/jpeg");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().unwrap() == "jpg");
    paths.retain(|p| p.file_name().unwrap().to_str().unwrap().starts_with("refused-") == refused);
    paths.sort();
    paths
}

#[test]
fn rare_jpegs_are_right_or_refused() {
    assert!(rare(false).len() >= 28);
    for path in rare(false) {
        let expected = decode(&path.with_extension("png")).unwrap();
        let (largest, mean) = difference(&decode(&path).unwrap(), &expected);
        assert!(largest <= 6 && mean < 0.6, "{}: {largest}, {mean}", path.display());
        // Decoded small, it is the same image.
        let small = dino_host::image::decode(&path, Decode { fast: Some(9), ..Decode::default() }).unwrap();
        let average = |image: &Image, c: usize| {
            let values = image.pixels.iter().skip(c).step_by(3).map(|x| f64::from(*x));
            values.sum::<f64>() / (image.pixels.len() / 3) as f64
        };
        for c in 0..3 {
            let off = average(&small, c) - average(&expected, c);
            assert!(off.abs() < 8.0, "{}: {off} in channel {c} of {} x {}", path.display(), small.width, small.height);
        }
    }
    let words = ["component 3", "12 bits", "arithmetic", "4x1, 2x1, 1x1 in 3 scans", "height is told after"];
    let refused = rare(true);
    let texts: Vec<String> = refused.iter().map(|path| decode(path).expect_err("is refused").to_string()).collect();
    assert_eq!(texts.len(), words.len());
    for word in words {
        assert_eq!(texts.iter().filter(|t| t.contains(word) && t.contains("hint:")).count(), 1, "{word} in {texts:#?}");
    }
}

#[test]
fn images_from_the_field() {
    let case = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data/pictures").join(name);
    for (name, most) in [("420-three-scans.jpg", 1.0), ("tiles-planar.tif", 0.0), ("bigtiff.tif", 0.0)] {
        let stem = name.split('.').next().unwrap();
        let expected = decode(&case(&format!("{stem}.right.png"))).unwrap();
        let (_, mean) = difference(&decode(&case(name)).unwrap(), &expected);
        assert!(mean <= most, "{name}: {mean}");
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data/endings");
    let splits = open(&folder).unwrap();
    assert_eq!(splits.train.len() + splits.test.len(), 12, "PPM is read");
    for (set, i) in [&splits.train, &splits.test].iter().flat_map(|set| (0..set.len()).map(move |i| (set, i))) {
        set.image(i).unwrap();
    }
}

/// What is reported of a file that is read through a data set, and its image.
fn with_remark(name: &str, bytes: &[u8]) -> (Option<Image>, Option<String>) {
    let dir = folder(&[(name, bytes.to_vec())]);
    let files = data::files::Files::open(&[dir.path().join(name)], Decode::default()).unwrap();
    let unreadable = data::Unreadable::default();
    let image = unreadable.image(&files, 0).unwrap();
    let remark = unreadable.endless();
    assert_eq!(unreadable.endless(), None, "it is reported once");
    (image, remark)
}

#[test]
fn a_file_without_its_end_mark_is_used_and_reported() {
    let endless = |name: &str, bytes: &[u8], expected: &Image| {
        let (image, remark) = with_remark(name, bytes);
        assert!(
            image.as_ref() == Some(expected),
            "{name}: {}",
            if image.is_some() { "another image" } else { "unreadable" }
        );
        let remark = remark.unwrap_or_else(|| panic!("{name}: nothing is reported"));
        assert!(remark.contains(name) && remark.contains("lacks its end mark"), "{remark}");
    };
    let jpegs = rare(false).into_iter().chain(["420.jpg", "progressive.jpg", "grey.jpg", "ycck.jpg"].map(golden));
    for path in jpegs {
        let (bytes, expected) = (fs::read(&path).unwrap(), decode(&path).unwrap());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(with_remark(name, &bytes) == (Some(expected.clone()), None), "{name}");
        let end = bytes.len() - 2;
        endless(name, &bytes[..end], &expected);
        endless(name, &bytes[..end + 1], &expected);
        for cut in end.saturating_sub(60)..end {
            let error = decode_bytes(&path, &bytes[..cut], Decode::default()).expect_err(name).to_string();
            assert!(error.contains("cut short"), "{name} at {cut}: {error}");
        }
        // What a download leaves that was given its space on the disk before.
        let zeros = [&bytes[..end - 20], &[0; 4000]].concat();
        assert!(decode_bytes(&path, &zeros, Decode::default()).is_err(), "{name}: zeros are no data");
    }
    let read = |name: &str| (fs::read(golden(name)).unwrap(), decode(&golden(name)).unwrap());
    let (png, image) = read("rgb.png");
    endless("rgb.png", &png[..png.len() - 12], &image);
    endless("rgb.png", &png[..png.len() - 5], &image);
    assert!(with_remark("rgb.png", &png[..png.len() - 13]).0.is_none(), "the pixels' checksum is cut");
    for name in ["grey.gif", "animated.gif"] {
        let (gif, image) = read(name);
        assert_eq!(with_remark(name, &gif).1, None);
        endless(name, &gif[..gif.len() - 1], &image);
    }
    let (mut webp, image) = read("lossless.webp");
    let length = u32::from_le_bytes(webp[4..8].try_into().unwrap());
    webp[4..8].copy_from_slice(&(length + 8).to_le_bytes());
    endless("lossless.webp", &webp, &image);
}

#[test]
fn sixteen_bits_have_a_white() {
    let path = Path::new("deep");
    let values = [0u16, 8, 9, 2048, 4095, 60000];
    let at = |bytes: &[u8], white, channels| {
        decode_bytes(path, bytes, Decode { white, channels, ..Decode::default() }).unwrap().pixels
    };
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(3, 2, values.to_vec()).unwrap();
    image::DynamicImage::ImageLuma16(image).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let little: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let big: Vec<u8> = values.iter().flat_map(|x| x.to_be_bytes()).collect();
    let tiff = tiff(3, 2, 1, 16, 1, false, &little);
    let pgm = [b"P5 3 2 65535\n".as_slice(), &big].concat();
    for (what, bytes) in [("png", png.get_ref()), ("tiff", &tiff), ("pgm", &pgm)] {
        assert_eq!(at(bytes, u16::MAX, 1), [0, 0, 0, 8, 16, 233], "{what}");
        assert_eq!(at(bytes, 4095, 1), [0, 0, 1, 128, 255, 255], "{what}");
    }
    // A head that names the greatest value states what is white, unless less is asked for.
    let told = [b"P5 3 2 4095\n".as_slice(), &big[..10], &[0, 9]].concat();
    assert_eq!(at(&told, u16::MAX, 1), [0, 0, 1, 128, 255, 1]);
    assert_eq!(at(&told, 4095, 1), [0, 0, 1, 128, 255, 1]);
    assert_eq!(at(&told, 2048, 1), [0, 1, 1, 255, 255, 1]);
    assert_eq!(at(b"P2 2 1 1000 500 1000", u16::MAX, 1), [128, 255]);

    // Transparency keeps its range, and 8 bits know no white.
    let mut png = std::io::Cursor::new(Vec::new());
    let image = image::ImageBuffer::<image::LumaA<u16>, _>::from_raw(1, 1, vec![2048, 65535]).unwrap();
    image::DynamicImage::ImageLumaA16(image).write_to(&mut png, image::ImageFormat::Png).unwrap();
    assert_eq!(at(png.get_ref(), 4095, 2), [128, 255]);
    let rgb = fs::read(golden("rgb.png")).unwrap();
    assert_eq!(at(&rgb, 100, 3), at(&rgb, u16::MAX, 3));
}

#[test]
fn the_range_of_a_set_is_looked_at() {
    let deep = |highest: u16| {
        let mut png = std::io::Cursor::new(Vec::new());
        let image = image::ImageBuffer::from_fn(16, 16, |x, y| image::Luma([highest / 255 * (16 * y + x) as u16]));
        image::DynamicImage::ImageLuma16(image).write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    };
    let names: Vec<String> = (0..30).map(|i| format!("{i:02}.png")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|n| (n.as_str(), deep(4080))).collect();
    let dir = folder(&files);
    let range = |white| {
        let splits = data::open(dir.path(), Decode { white, ..Decode::default() }).unwrap();
        data::Range::of(&*splits.train, 1000).map(|range| (splits.train.len(), range, range.note(white)))
    };
    let (train, found, note) = range(u16::MAX).unwrap();
    assert_eq!((found.images, found.highest, found.levels), (train, 4080, 17));
    let note = note.unwrap();
    assert!(note.starts_with("17 of 256 levels") && note.contains("--white 4080"), "{note}");
    let (_, found, note) = range(4080).unwrap();
    assert_eq!((found.highest, found.levels, note), (4080, 256, None));
    let plain = folder(&[("a.png", png(1)), ("b.png", png(2)), ("c.png", png(3))]);
    assert_eq!(data::Range::of(&*open(plain.path()).unwrap().train, 1000), None);
}

#[test]
fn orientation_is_followed_or_not() {
    let upright = decode(&golden("turned1.jpg")).unwrap();
    for tag in 1..=8 {
        let path = golden(&format!("turned{tag}.jpg"));
        let raw = dino_host::image::decode(&path, Decode { orient: false, ..Decode::default() }).unwrap();
        let sideways = if tag < 5 { (40, 24) } else { (24, 40) };
        assert_eq!((raw.width, raw.height), sideways);
        assert!((tag == 1) == (raw == upright), "{tag}");
        let rotated = decode(&path).unwrap();
        assert_eq!((rotated.width, rotated.height), (40, 24));
        // The red corner is back at the top left.
        assert!(rotated.pixels[3 * (2 * 40 + 5)] > 200 && rotated.pixels[3 * (2 * 40 + 5) + 1] < 60, "{tag}");
    }
}

#[test]
fn channels_are_what_is_asked_for() {
    let as_channels =
        |name: &str, channels| dino_host::image::decode(&golden(name), Decode { channels, ..Decode::default() });
    let gray = as_channels("rgb.png", 1).unwrap();
    assert_eq!((gray.channels, &gray), (1, &as_channels("rgb.png.grey.png", 1).unwrap()), "Pillow's luma, to the bit");
    assert_eq!(as_channels("la.png", 1).unwrap(), gray);
    assert_eq!(as_channels("rgba.png", 1).unwrap(), gray);
    assert_eq!(as_channels("rgba.png", 3).unwrap(), as_channels("rgb.png", 3).unwrap());
    for name in ["rgba.png", "rgba.tif", "alpha.webp"] {
        let four = as_channels(name, 4).unwrap();
        assert_eq!((four.channels, four.pixels.len()), (4, 4 * 40 * 24), "{name}");
        assert_eq!(four.pixels[3], gray.pixels[0], "{name}: the transparency is the gray image");
    }
    let two = as_channels("la.png", 2).unwrap();
    assert_eq!((&two.pixels[..2], two.pixels.len()), (&[gray.pixels[0]; 2][..], 2 * 40 * 24));
    for (name, has, asked) in [("rgb.png", 3, 4), ("grey.jpg", 1, 2), ("rgba.png", 4, 2), ("rgb.png", 3, 13)] {
        let text = as_channels(name, asked).unwrap_err().to_string();
        let expected =
            [format!("has {has} channels"), format!("{asked} are asked"), format!("--channels {asked}"), name.into()];
        assert!(expected.iter().all(|s| text.contains(s)), "{text}");
    }
}

/// A TIFF without compression: `bands` of 8 or 16 bits, called gray (1) or RGB (2), pixel by pixel or plane after plane.
fn tiff(width: u32, height: u32, bands: u16, bits: u16, photometric: u16, planes: bool, data: &[u8]) -> Vec<u8> {
    let strips = if planes { u32::from(bands) } else { 1 };
    let strip = data.len() as u32 / strips;
    let after = 8 + 2 + 11 * 12 + 4;
    let depths = after;
    let offsets = depths + 2 * u32::from(bands);
    let counts = offsets + 4 * strips;
    let extras = counts + 4 * strips;
    let colors = if photometric == 2 { 3 } else { 1 };
    let extra = u32::from(bands - colors);
    let start = extras + 2 * extra;
    let place = |n: u32, value: u32, at: u32| if n == 1 { value } else { at };
    let entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, u32::from(bands), if bands < 3 { u32::from(bits) * 0x1_0001 } else { depths }),
        (259, 3, 1, 1),
        (262, 3, 1, photometric.into()),
        (273, 4, strips, place(strips, start, offsets)),
        (277, 3, 1, bands.into()),
        (278, 4, 1, height),
        (279, 4, strips, place(strips, strip, counts)),
        (284, 3, 1, 1 + u32::from(planes)),
        (338, 3, extra, if extra < 3 { 0 } else { extras }),
    ];
    let mut out = b"II*\0\x08\0\0\0".to_vec();
    out.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        out.extend((tag as u16).to_le_bytes());
        out.extend((kind as u16).to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend(value.to_le_bytes());
    }
    out.extend([0; 4]);
    (0..bands).for_each(|_| out.extend(bits.to_le_bytes()));
    (0..strips).for_each(|i| out.extend((start + i * strip).to_le_bytes()));
    (0..strips).for_each(|_| out.extend(strip.to_le_bytes()));
    (0..extra).for_each(|_| out.extend([0; 2]));
    assert_eq!(out.len() as u32, start);
    out.extend(data);
    out
}

#[test]
fn tiff_has_any_number_of_bands() {
    let path = Path::new("bands.tif");
    let as_channels = |bytes: &[u8], channels| decode_bytes(path, bytes, Decode { channels, ..Decode::default() });
    for (bands, photometric) in [(1u16, 1), (2, 1), (3, 2), (4, 1), (5, 1), (13, 1)] {
        let pixels: Vec<u8> = (0..6 * u32::from(bands)).map(|i| (i * 7 % 251) as u8).collect();
        let channels = usize::from(bands);
        let by_plane: Vec<u8> = (0..channels).flat_map(|c| pixels.iter().skip(c).step_by(channels)).copied().collect();
        for (planes, stored) in [(false, &pixels), (true, &by_plane)] {
            let file = tiff(3, 2, bands, 8, photometric, planes, stored);
            let what = format!("{bands} bands, {photometric}, {planes}");
            let image = as_channels(&file, channels).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!((image.width, image.height, image.channels, &image.pixels), (3, 2, channels, &pixels), "{what}");
            if channels > 3 {
                let text = as_channels(&file, 3).expect_err(&what).to_string();
                assert!(text.contains(&format!("{bands} channels")) && text.contains("--channels 3"), "{text}");
            }
            // 16 bits: the same values in the high byte, and low bytes that round down and up.
            let wide: Vec<u8> = stored.iter().enumerate().flat_map(|(i, &x)| [(i % 2 * 200) as u8, x]).collect();
            let rounded = |(x, low): (u8, u32)| ((u32::from(x) * 256 + low + 128) / 257) as u8;
            let low = |i: usize| (i % 2 * 200) as u32;
            let expected: Vec<u8> = stored.iter().enumerate().map(|(i, &x)| rounded((x, low(i)))).collect();
            let deep = as_channels(&tiff(3, 2, bands, 16, photometric, planes, &wide), channels).expect(&what);
            let deep_by_plane: Vec<u8> = if planes {
                (0..channels).flat_map(|c| deep.pixels.iter().skip(c).step_by(channels)).copied().collect()
            } else {
                deep.pixels
            };
            assert_eq!(deep_by_plane, expected, "{what}");
        }
    }
    // What is called RGB has three or, with transparency, four.
    let text = as_channels(&tiff(3, 2, 5, 8, 2, false, &[0; 30]), 5).unwrap_err().to_string();
    assert!(text.contains("5 bands") && text.contains("MINISBLACK"), "{text}");
    let floats = tiff(3, 2, 1, 32, 1, false, &[0; 24]);
    let text = as_channels(&floats, 3).unwrap_err().to_string();
    assert!(text.contains("32 bits") && text.contains("hint:"), "{text}");
}

/// Small files that claim 60,000 x 60,000 pixels: refused by what they claim, before anything is allocated for it.
#[test]
fn small_files_that_claim_large_images() {
    let read = |name: &str| fs::read(golden(name)).unwrap();
    let side = 60_000u32;
    let mut png = read("rgb.png");
    png[16..20].copy_from_slice(&side.to_be_bytes());
    png[20..24].copy_from_slice(&side.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    let jpeg = |name: &str, marker: u8| {
        let mut jpeg = read(name);
        let frame = jpeg.windows(2).position(|w| w == [0xff, marker]).unwrap();
        jpeg[frame + 5..frame + 7].copy_from_slice(&(side as u16).to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&(side as u16).to_be_bytes());
        jpeg
    };
    let mut bmp = read("rgb.bmp");
    bmp[18..22].copy_from_slice(&side.to_le_bytes());
    bmp[22..26].copy_from_slice(&side.to_le_bytes());
    // Three bytes each, less one.
    let canvas = [&(side - 1).to_le_bytes()[..3], &(side - 1).to_le_bytes()[..3]].concat();
    let body = [&b"WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &canvas, &read("lossless.webp")[12..]].concat();
    let webp = [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    // Nearly the largest that fits: 14 bits each, less one.
    let mut lossless = read("lossless.webp");
    lossless[21..25].copy_from_slice(&(0x3ffe_u32 << 14 | 0x3ffe).to_le_bytes());
    let cases = [
        ("bomb.png", png),
        ("bomb.jpg", jpeg("baseline.jpg", 0xc0)),
        ("progressive.jpg", jpeg("progressive.jpg", 0xc2)),
        ("bomb.bmp", bmp),
        ("bomb.webp", webp),
        ("lossless.webp", lossless),
        ("bomb.gif", {
            let mut gif = read("grey.gif");
            gif[6..10].fill(0xff);
            gif
        }),
        ("bomb.ppm", b"P6 60000 60000 255\n________".to_vec()),
        ("deep.pgm", b"P5 30000 30000 65535\n________".to_vec()),
        ("plain.pgm", b"P2 1000000000 1 255\n1 2 3".to_vec()),
        ("bomb.tif", tiff(side, side, 3, 8, 2, false, &[0; 300])),
        ("bands.tif", tiff(20_000, 20_000, 200, 8, 1, true, &[0; 400])),
    ];
    for (name, bytes) in cases {
        for fast in [None, Some(224)] {
            let started = std::time::Instant::now();
            let how = Decode { fast, ..Decode::default() };
            let text = decode_bytes(Path::new(name), &bytes, how).expect_err(name).to_string();
            assert!(text.contains(name) && text.contains("claims") && text.contains("32768"), "{name}: {text}");
            assert!(started.elapsed().as_secs() < 5, "{name}");
        }
    }
}

#[test]
fn a_fast_decode_is_a_smaller_one() {
    let large = image::RgbImage::from_fn(400, 300, |x, y| {
        image::Rgb([(x * 255 / 400) as u8, (y * 255 / 300) as u8, ((x + y) % 128) as u8 + 60])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95).encode_image(&large).unwrap();
    let bytes = bytes.into_inner();
    let at = |fast| decode_bytes(Path::new("large.jpg"), &bytes, Decode { fast, ..Decode::default() }).unwrap();
    let full = at(None);
    for (fast, scale) in [(300, 1), (151, 1), (150, 2), (76, 2), (75, 4), (39, 4), (38, 8), (1, 8)] {
        let small = at(Some(fast));
        assert_eq!((small.width, small.height), (400usize.div_ceil(scale), 300usize.div_ceil(scale)), "{fast}");
        assert!(small.height >= fast);
        if scale == 1 {
            assert_eq!(small, full);
            continue;
        }
        // Against the mean of the pixels that it replaces.
        let mut off = 0.0;
        for (y, x, c) in (0..300 / scale).flat_map(|y| (0..400 / scale).flat_map(move |x| [0, 1].map(|c| (y, x, c)))) {
            let square = (0..scale * scale).map(|i| (y * scale + i / scale) * 400 + x * scale + i % scale);
            let mean = square.map(|p| f64::from(full.pixels[3 * p + c])).sum::<f64>() / (scale * scale) as f64;
            off += (f64::from(small.pixels[3 * (y * small.width + x) + c]) - mean).abs();
        }
        off /= (400 / scale * (300 / scale) * 2) as f64;
        assert!(off < 1.5, "1/{scale}: {off}");
    }
    // Rotated, gray, CMYK, progressive, cut short.
    let fast = |name: &str| dino_host::image::decode(&golden(name), Decode { fast: Some(6), ..Decode::default() });
    for name in ["turned6.jpg", "grey.jpg", "progressive.jpg"] {
        let image = fast(name).unwrap();
        assert_eq!((image.width, image.height, image.channels), (10, 6, 3), "{name}");
    }
    assert_eq!(fast("cmyk.jpg").unwrap(), decode(&golden("cmyk.jpg")).unwrap());
    assert_eq!(fast("rgb.png").unwrap(), decode(&golden("rgb.png")).unwrap());
    let cut = &bytes[..bytes.len() / 2];
    let how = Decode { fast: Some(38), ..Decode::default() };
    assert!(decode_bytes(Path::new("cut.jpg"), cut, how).unwrap_err().to_string().contains("cut short"));
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
        ("really.png", b"qoif____________".to_vec(), "PNG, JPEG, WebP"),
        ("header.gif", b"GIF89a__________".to_vec(), ""),
        ("header.ppm", b"P6 4 4".to_vec(), ""),
        ("short.ppm", b"P6 4 4 255\n123456".to_vec(), ""),
        ("bomb.png", bomb(30_000, 30_000), "512 MiB"),
        ("long.png", bomb(100_000, 1), "32768"),
        ("bomb.jpg", big_jpeg, "32768"),
    ];
    let mut files: Vec<_> = cases.iter().map(|(name, bytes, _)| (*name, bytes.clone())).collect();
    files.push(("fine.png", png.clone()));
    let dir = folder(&files);
    for (name, _, expected) in &cases {
        let text = decode(&dir.path().join(name)).expect_err(name).to_string();
        assert!(text.contains(name) && text.contains(expected) && text.contains("hint:"), "{name}: {text}");
    }
    assert!(decode(&dir.path().join("fine.png")).is_ok());
    assert!(decode(&dir.path().join("missing.png")).unwrap_err().to_string().contains("missing.png"));
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, &byte: &u8| {
        (0..8).fold(crc ^ byte as u32, |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[test]
fn every_cut_of_a_file_is_refused_or_complete() {
    let mut complete = 0;
    for name in goldens() {
        let path = golden(&name);
        let bytes = fs::read(&path).unwrap();
        let Ok(expected) = decode(&path) else { continue };
        for cut in 0..bytes.len() {
            match decode_bytes(&path, &bytes[..cut], Decode::default()) {
                Err(e) => assert!(e.to_string().contains(&name), "{name} cut at {cut}: {e}"),
                // All pixels can be there without what comes after them: of a JPEG, that is its end mark.
                // The last number of a text can lose a digit and be a number.
                Ok(found) if name.starts_with("plain.") && cut + 3 >= bytes.len() => {
                    let n = expected.pixels.len() - 3;
                    assert!(found.pixels[..n] == expected.pixels[..n], "{name} cut at {cut}");
                }
                Ok(found) => {
                    let end = !name.ends_with("jpg") || cut >= bytes.len() - 2;
                    assert!(found == expected && end, "{name} cut at {cut} of {}", bytes.len());
                    complete += 1;
                }
            }
        }
    }
    assert!(complete > 0);
}

#[test]
fn grey_alpha_palette_depth_and_wrong_endings() {
    use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};
    let dir = tempfile::tempdir().unwrap();
    let save = |name: &str, image: DynamicImage, format| {
        let path = dir.path().join(name);
        image.save_with_format(&path, format).unwrap();
        decode(&path).unwrap().pixels
    };
    let gray = ImageBuffer::from_pixel(2, 2, Luma([90u8]));
    assert_eq!(save("l.png", gray.clone().into(), ImageFormat::Png), [90; 12]);
    assert_eq!(save("l.jpg", gray.clone().into(), ImageFormat::Jpeg), [90; 12]);
    assert_eq!(save("really-a-png.jpg", gray.into(), ImageFormat::Png), [90; 12]);
    let alpha = ImageBuffer::from_pixel(2, 2, Rgba([1u8, 2, 3, 0]));
    assert_eq!(save("rgba.png", alpha.into(), ImageFormat::Png), [1, 2, 3].repeat(4));
    let both = ImageBuffer::from_pixel(2, 2, LumaA([8u8, 100]));
    assert_eq!(save("la.png", both.into(), ImageFormat::Png), [8; 12]);
    let deep = ImageBuffer::from_pixel(2, 2, Rgb([0x1234u16, 0xffff, 0]));
    assert_eq!(save("deep.png", deep.into(), ImageFormat::Png), [0x12, 0xff, 0].repeat(4));
}

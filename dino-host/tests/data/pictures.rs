//! Picture files: what decodes, to which pixels, and what is said of those that do not.

use crate::*;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
}

/// All pictures in that folder but the expected ones.
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
            "420.jpg" => 6,
            name if name.ends_with(".jpg") => 2,
            _ => 0,
        };
        assert!(largest <= bound, "{name}: {largest}");
        lossless += usize::from(bound == 0);
    }
    assert!(lossless >= 15, "{lossless}");
    let text = decode(&golden("palette.tif")).unwrap_err().to_string();
    assert!(text.contains("palette.tif") && text.contains("no palette"), "{text}");
}

#[test]
fn orientation_is_followed_or_not() {
    let upright = decode(&golden("turned1.jpg")).unwrap();
    for tag in 1..=8 {
        let path = golden(&format!("turned{tag}.jpg"));
        let raw = data::decode(&path, Decode { orient: false, ..Decode::default() }).unwrap();
        let sideways = if tag < 5 { (40, 24) } else { (24, 40) };
        assert_eq!((raw.width, raw.height), sideways);
        assert!((tag == 1) == (raw == upright), "{tag}");
        let turned = decode(&path).unwrap();
        assert_eq!((turned.width, turned.height), (40, 24));
        // The red corner is back at the top left.
        assert!(turned.pixels[3 * (2 * 40 + 5)] > 200 && turned.pixels[3 * (2 * 40 + 5) + 1] < 60, "{tag}");
    }
}

#[test]
fn channels_are_what_is_asked_for() {
    let as_channels = |name: &str, channels| data::decode(&golden(name), Decode { channels, ..Decode::default() });
    let grey = as_channels("rgb.png", 1).unwrap();
    assert_eq!((grey.channels, &grey), (1, &as_channels("rgb.png.grey.png", 1).unwrap()), "Pillow's luma, to the bit");
    assert_eq!(as_channels("la.png", 1).unwrap(), grey);
    assert_eq!(as_channels("rgba.png", 1).unwrap(), grey);
    assert_eq!(as_channels("rgba.png", 3).unwrap(), as_channels("rgb.png", 3).unwrap());
    for name in ["rgba.png", "rgba.tif", "alpha.webp"] {
        let four = as_channels(name, 4).unwrap();
        assert_eq!((four.channels, four.pixels.len()), (4, 4 * 40 * 24), "{name}");
        assert_eq!(four.pixels[3], grey.pixels[0], "{name}: the transparency is the grey picture");
    }
    let two = as_channels("la.png", 2).unwrap();
    assert_eq!((&two.pixels[..2], two.pixels.len()), (&[grey.pixels[0]; 2][..], 2 * 40 * 24));
    for (name, has, asked) in [("rgb.png", 3, 4), ("grey.jpg", 1, 2), ("rgba.png", 4, 2), ("rgb.png", 3, 13)] {
        let text = as_channels(name, asked).unwrap_err().to_string();
        let says =
            [format!("has {has} channels"), format!("{asked} are asked"), format!("--channels {asked}"), name.into()];
        assert!(says.iter().all(|s| text.contains(s)), "{text}");
    }
}

/// A TIFF without compression: `bands` of 8 or 16 bits, called grey (1) or RGB (2), pixel by pixel or plane after plane.
fn tiff(width: u32, height: u32, bands: u16, bits: u16, photometric: u16, planes: bool, data: &[u8]) -> Vec<u8> {
    let strips = if planes { u32::from(bands) } else { 1 };
    let strip = data.len() as u32 / strips;
    let after = 8 + 2 + 11 * 12 + 4;
    let depths = after;
    let offsets = depths + 2 * u32::from(bands);
    let counts = offsets + 4 * strips;
    let extras = counts + 4 * strips;
    let colours = if photometric == 2 { 3 } else { 1 };
    let extra = u32::from(bands - colours);
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
    let as_channels =
        |bytes: &[u8], channels| data::decode_bytes(path, bytes, Decode { channels, ..Decode::default() });
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
fn small_files_that_claim_large_pictures() {
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
        ("bomb.tif", tiff(side, side, 3, 8, 2, false, &[0; 300])),
        ("bands.tif", tiff(20_000, 20_000, 200, 8, 1, true, &[0; 400])),
    ];
    for (name, bytes) in cases {
        for fast in [None, Some(224)] {
            let started = std::time::Instant::now();
            let how = Decode { fast, ..Decode::default() };
            let text = data::decode_bytes(Path::new(name), &bytes, how).expect_err(name).to_string();
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
    let at = |fast| data::decode_bytes(Path::new("large.jpg"), &bytes, Decode { fast, ..Decode::default() }).unwrap();
    let full = at(None);
    for (fast, scale) in [(300, 1), (151, 1), (150, 2), (76, 2), (75, 4), (39, 4), (38, 8), (1, 8)] {
        let small = at(Some(fast));
        assert_eq!((small.width, small.height), (400usize.div_ceil(scale), 300usize.div_ceil(scale)), "{fast}");
        assert!(small.height >= fast);
        if scale == 1 {
            assert_eq!(small, full);
            continue;
        }
        // Against the mean of the pixels that it stands for.
        let mut off = 0.0;
        for (y, x, c) in (0..300 / scale).flat_map(|y| (0..400 / scale).flat_map(move |x| [0, 1].map(|c| (y, x, c)))) {
            let square = (0..scale * scale).map(|i| (y * scale + i / scale) * 400 + x * scale + i % scale);
            let mean = square.map(|p| f64::from(full.pixels[3 * p + c])).sum::<f64>() / (scale * scale) as f64;
            off += (f64::from(small.pixels[3 * (y * small.width + x) + c]) - mean).abs();
        }
        off /= (400 / scale * (300 / scale) * 2) as f64;
        assert!(off < 1.5, "1/{scale}: {off}");
    }
    // Turned, grey, CMYK, progressive, cut short.
    let fast = |name: &str| data::decode(&golden(name), Decode { fast: Some(6), ..Decode::default() });
    for name in ["turned6.jpg", "grey.jpg", "progressive.jpg"] {
        let image = fast(name).unwrap();
        assert_eq!((image.width, image.height, image.channels), (10, 6, 3), "{name}");
    }
    assert_eq!(fast("cmyk.jpg").unwrap(), decode(&golden("cmyk.jpg")).unwrap());
    assert_eq!(fast("rgb.png").unwrap(), decode(&golden("rgb.png")).unwrap());
    let cut = &bytes[..bytes.len() / 2];
    let how = Decode { fast: Some(38), ..Decode::default() };
    assert!(data::decode_bytes(Path::new("cut.jpg"), cut, how).unwrap_err().to_string().contains("cut short"));
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
        ("really.png", b"GIF89a__________".to_vec(), "PNG, JPEG, WebP"),
        ("bomb.png", bomb(30_000, 30_000), "512 MiB"),
        ("long.png", bomb(100_000, 1), "32768"),
        ("bomb.jpg", big_jpeg, "32768"),
    ];
    let mut files: Vec<_> = cases.iter().map(|(name, bytes, _)| (*name, bytes.clone())).collect();
    files.push(("fine.png", png.clone()));
    let dir = folder(&files);
    for (name, _, says) in &cases {
        let text = decode(&dir.path().join(name)).expect_err(name).to_string();
        assert!(text.contains(name) && text.contains(says) && text.contains("hint:"), "{name}: {text}");
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
fn every_cut_of_a_file_is_refused_or_whole() {
    let mut whole = 0;
    for name in goldens() {
        let path = golden(&name);
        let bytes = fs::read(&path).unwrap();
        let Ok(expected) = decode(&path) else { continue };
        for cut in 0..bytes.len() {
            match data::decode_bytes(&path, &bytes[..cut], Decode::default()) {
                Err(e) => assert!(e.to_string().contains(&name), "{name} cut at {cut}: {e}"),
                // All pixels can be there without what comes after them. Of a JPEG, nothing may be missing.
                Ok(found) => {
                    assert!(found == expected && !name.ends_with("jpg"), "{name} cut at {cut} of {}", bytes.len());
                    whole += 1;
                }
            }
        }
    }
    assert!(whole > 0);
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

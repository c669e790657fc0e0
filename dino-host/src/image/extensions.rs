//! Which files are images, by the ends of their names.

use std::path::Path;

/// What an image file's name ends in, in any case.
const ENDINGS: [&str; 17] = [
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff", "pbm", "pgm", "ppm",
    "pnm", "pam",
];

/// What the names of images end in that are not read.
#[rustfmt::skip]
const UNSUPPORTED: [&str; 48] = [
    "jp2", "j2k", "j2c", "jpf", "jpx", "jpm", "jxl", "jxr", "avif", "heic", "heif", "psd", "psb", "xcf", "svg", "svgz", "eps",
    "exr", "hdr", "pfm", "dds", "tga", "ico", "cur", "icns", "pcx", "ff", "qoi", "dcm", "nef", "nrw", "cr2", "cr3", "crw",
    "arw", "sr2", "dng", "raf", "orf", "rw2", "pef", "srw", "raw", "3fr", "iiq", "x3f", "fits", "wmf",
];

fn ending(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Whether the name is an image file's.
pub(crate) fn is_image_file(path: &Path) -> bool {
    ENDINGS.contains(&ending(path).as_str())
}

/// The ending, in lower case, of an image's name in a format that is not read.
pub(crate) fn unsupported_extension(path: &Path) -> Option<String> {
    Some(ending(path)).filter(|ending| UNSUPPORTED.contains(&ending.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_that_are_read_and_that_are_not() {
        let both = |name: &str| (is_image_file(Path::new(name)), unsupported_extension(Path::new(name)));
        for name in ["a.jfif", "b.JPE", "c.gif", "d.ppm", "e.PGM", "f.pbm", "g.TIFF", "h.png"] {
            assert_eq!(both(name), (true, None), "{name}");
        }
        for (name, ending) in
            [("a.jp2", "jp2"), ("b.AVIF", "avif"), ("c.d.heic", "heic"), ("e.Psd", "psd"), ("f.CR2", "cr2")]
        {
            assert_eq!(both(name), (false, Some(ending.into())), "{name}");
        }
        for name in ["a.txt", "jp2", ".avif", "b.json", "c.png.txt", ""] {
            assert_eq!(both(name), (false, None), "{name}");
        }
    }
}

//! Files whose end mark alone is missing: all pixels are there, so the image is used, and a note is printed.

use std::borrow::Cow;

/// What is to be decoded of a PNG, and whether its last chunk is there; `None` where another one is cut short.
pub(crate) fn png(bytes: &[u8]) -> Option<(Cow<'_, [u8]>, bool)> {
    const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";
    let mut at = 8;
    while let Some(head) = bytes.get(at..at + 8) {
        if &head[4..] == b"IEND" {
            break;
        }
        at = at.checked_add(12)?.checked_add(u32::from_be_bytes(*head.first_chunk()?) as usize)?;
    }
    let rest = bytes.get(at..)?;
    if rest.starts_with(END) {
        return Some((Cow::Borrowed(bytes), true));
    }
    // A part of the last chunk, or nothing.
    END.starts_with(rest).then(|| (Cow::Owned([&bytes[..at], END].concat()), false))
}

/// What is to be decoded of a WebP file, and whether its length is what its head states; `None` where a chunk is cut short, or the
/// orientation is missing, which comes last.
///
/// Some writers count a filling byte that is not there, or the head itself: then the length is set right.
pub(crate) fn webp(bytes: &[u8]) -> Option<(Cow<'_, [u8]>, bool)> {
    let told = u32::from_le_bytes(*bytes.get(4..8)?.first_chunk()?);
    if bytes.len() as u64 >= 8 + u64::from(told) {
        return Some((Cow::Borrowed(bytes), true));
    }
    let (mut at, mut kinds) = (12, Vec::new());
    while let Some(head) = bytes.get(at..at + 8) {
        let size = u32::from_le_bytes(*head[4..].first_chunk()?) as usize;
        bytes.get(at + 8..(at + 8).checked_add(size)?)?;
        kinds.push(&head[..4]);
        at += 8 + size.next_multiple_of(2);
    }
    let wants_exif = kinds.first() == Some(&b"VP8X".as_slice()) && bytes[20] & 8 != 0;
    if kinds.is_empty() || wants_exif && !kinds.contains(&b"EXIF".as_slice()) {
        return None;
    }
    let mut mended = bytes.to_vec();
    mended.resize(at.max(bytes.len()), 0);
    let length = (mended.len() - 8) as u32;
    mended[4..8].copy_from_slice(&length.to_le_bytes());
    Some((Cow::Owned(mended), false))
}

/// Whether a GIF has its last byte where its blocks end.
pub(crate) fn gif_ended(bytes: &[u8]) -> bool {
    let table = |flags: u8| if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) };
    let walk = || {
        let mut at = 13 + table(*bytes.get(10)?);
        loop {
            at += match *bytes.get(at)? {
                0x3b => return Some(()),
                0x2c => 11 + table(*bytes.get(at + 9)?), // an image: its position, colors and code size
                0x21 => 2,                               // an extension: its kind
                _ => return None,
            };
            // Blocks of up to 255 bytes, the last of none.
            while *bytes.get(at)? != 0 {
                at += 1 + usize::from(bytes[at]);
            }
            at += 1;
        }
    };
    walk().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
        [kind, &(body.len() as u32).to_le_bytes()[..], body].concat()
    }

    fn riff(length: u32, chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"RIFF", &length.to_le_bytes()[..], b"WEBP", &chunks.concat()].concat()
    }

    #[test]
    fn a_png_gets_its_last_chunk_and_nothing_else() {
        let chunk = |kind: &[u8; 4], body: &[u8]| {
            [&(body.len() as u32).to_be_bytes(), &kind[..], body, &[7; 4]].concat() // the checksum is not checked here
        };
        let body = [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &[1; 13]), chunk(b"IDAT", &[2; 9])].concat();
        let complete = [&body, &b"\0\0\0\0IEND\xae\x42\x60\x82"[..]].concat();
        assert_eq!(png(&complete), Some((Cow::Borrowed(&complete[..]), true)));
        assert!(png(&[&complete, &b"after"[..]].concat()).unwrap().1);
        for cut in body.len()..complete.len() {
            assert_eq!(png(&complete[..cut]), Some((Cow::Owned(complete.clone()), false)), "{cut}");
        }
        // (Cut within the first three bytes of the pixels' chunk, zeros, it looks like the last one: then there are no pixels.)
        for cut in body.len() - 17..body.len() {
            assert_eq!(png(&complete[..cut]), None, "{cut}");
        }
        assert_eq!(png(&complete[..3]), None);
        assert_eq!(png(&[&complete[..8], &[0xff; 100]].concat()), None);
    }

    #[test]
    fn lengths_of_webp_are_set_right_where_all_chunks_are_there() {
        let one = chunk(b"VP8 ", &[7; 3]);
        let right = riff(16, &[one.clone(), vec![0]]);
        assert_eq!(webp(&right), Some((Cow::Borrowed(&right[..]), true)));
        // Without the filling byte, and with the head counted.
        assert_eq!(webp(&riff(16, std::slice::from_ref(&one))), Some((Cow::Owned(right.clone()), false)));
        assert_eq!(webp(&riff(24, &[one.clone(), vec![0]])), Some((Cow::Owned(right), false)));
        assert_eq!(webp(&riff(16, &[one[..10].to_vec()])), None);
        assert_eq!(webp(&riff(16, &[])), None);
        // An orientation that the head announces and that is missing.
        let head = |flags| chunk(b"VP8X", &[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(webp(&riff(99, &[head(8), one.clone()])), None);
        assert!(webp(&riff(99, &[head(0), one.clone()])).is_some());
        assert!(webp(&riff(99, &[head(8), one, vec![0], chunk(b"EXIF", &[0; 4])])).is_some());
    }
}

//! Text files as editors and spreadsheets save them, and names as file systems keep them.

use std::borrow::Cow;

use unicode_normalization::{UnicodeNormalization, is_nfc};

/// The text of a file without its byte order mark: UTF-8, or UTF-16 where a mark, or a zero within the first letter, shows it.
///
/// # Errors
/// The first line, counted from 1, that is neither.
pub fn decoded(bytes: Vec<u8>) -> Result<String, usize> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks(2).map(|pair| pair.try_into().map_or(0xd800, unit)).collect();
        // Half a letter, or an odd byte at the end, is none.
        let mut text = String::with_capacity(units.len());
        for letter in char::decode_utf16(units) {
            text.push(letter.map_err(|_| text.matches('\n').count() + 1)?);
        }
        Ok(text)
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [first, 0, ..] if *first > 0 => wide(&bytes, u16::from_le_bytes),
        [0, second, ..] if *second > 0 => wide(&bytes, u16::from_be_bytes),
        _ => match String::from_utf8(bytes) {
            Ok(text) => Ok(text.strip_prefix('\u{feff}').map(String::from).unwrap_or(text)),
            Err(e) => Err(e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1),
        },
    }
}

/// A name in its composed form (NFC), in which names that look alike are alike: macOS and some archives decompose what others
/// compose.
pub fn composed(name: &str) -> Cow<'_, str> {
    if name.is_ascii() || is_nfc(name) { Cow::Borrowed(name) } else { Cow::Owned(name.nfc().collect()) }
}

/// The same in its decomposed form (NFD).
pub fn decomposed(name: &str) -> String {
    name.nfd().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn marks_are_taken_off_and_wide_letters_read() {
        let text = "ant\r\nb\u{e9}e\u{1f41d}\n";
        let marked = format!("\u{feff}{text}");
        assert_eq!(decoded(text.into()), Ok(text.to_string()));
        assert_eq!(decoded(marked.clone().into()), Ok(text.to_string()));
        for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
            assert_eq!(decoded(utf16(&marked, bytes)), Ok(text.to_string()));
            assert_eq!(decoded(utf16(text, bytes)), Ok(text.to_string()));
        }
        assert_eq!(decoded(Vec::new()), Ok(String::new()));
        assert_eq!(decoded(b"\xef\xbb\xbf".to_vec()), Ok(String::new()));
    }

    #[test]
    fn what_is_no_text_is_named_by_its_line() {
        assert_eq!(decoded(b"a\nb\xff\n".to_vec()), Err(2));
        let mut half = utf16("\u{feff}a\nb\n", u16::to_le_bytes);
        half.push(b'c');
        assert_eq!(decoded(half), Err(3));
        assert_eq!(decoded(vec![0xff, 0xfe, 0x00, 0xdc]), Err(1));
    }

    #[test]
    fn composed_and_decomposed_names_are_alike() {
        assert_eq!(composed("cafe\u{301}"), "caf\u{e9}");
        assert_eq!(composed("caf\u{e9}"), "caf\u{e9}");
        assert_eq!(decomposed("caf\u{e9}"), "cafe\u{301}");
        assert!(matches!(composed("plain"), Cow::Borrowed(_)));
    }
}

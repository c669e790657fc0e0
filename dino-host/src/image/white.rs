//! Images of 16 bits a channel: which value becomes 255, and what is left of a range that is not used to its end.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The value of a 16-bit channel that becomes 255. Cameras of 10, 12 and 14 bits leave most of the range unused.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum White {
    /// This one, and all above it.
    Value(NonZeroU16),
    /// The highest value that is found in the training images.
    Found(Auto),
}

/// The value that means [`White::Found`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    #[allow(missing_docs)]
    Auto,
}

impl White {
    /// The full range.
    pub const FULL: White = White::Value(NonZeroU16::MAX);
    /// To be found.
    pub const AUTO: White = White::Found(Auto::Auto);

    /// The number, once it is known: until then the full range's.
    pub fn value(self) -> u16 {
        match self {
            White::Value(value) => value.get(),
            White::Found(_) => u16::MAX,
        }
    }
}

impl fmt::Display for White {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            White::Value(value) => write!(f, "{value}"),
            White::Found(_) => f.write_str("auto"),
        }
    }
}

/// As the flag's value is written: errors show it so.
impl fmt::Debug for White {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for White {
    type Err = String;
    fn from_str(text: &str) -> Result<White, String> {
        match text {
            "auto" => Ok(White::AUTO),
            number => number.parse().map(White::Value).map_err(|_| "1 to 65535, or auto".into()),
        }
    }
}

/// 16 bits to 8, rounded to the nearest; `white` and all above it are 255. With `alpha`, the last of every `channels` values is
/// transparency, which has the full range.
pub(crate) fn narrowed(samples: &[u16], white: u16, channels: usize, alpha: bool) -> Vec<u8> {
    let white = u32::from(white.max(1));
    let level = |x: u16| ((u32::from(x) * 255 + white / 2) / white).min(255) as u8;
    let byte = |x: u16| ((u32::from(x) + 128) / 257) as u8;
    if white == u32::from(u16::MAX) {
        samples.iter().map(|&x| byte(x)).collect()
    } else {
        let of = |(i, &x): (usize, &u16)| if alpha && i % channels == channels - 1 { byte(x) } else { level(x) };
        samples.iter().enumerate().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_range_is_rounded_as_ever() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let buffer = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(256, 256, all.clone()).unwrap();
        let expected = image::DynamicImage::ImageLuma16(buffer).into_luma8().into_raw();
        assert_eq!(narrowed(&all, u16::MAX, 1, false), expected);
        // The general formula is the same one.
        let general = all.iter().map(|&x| ((u32::from(x) * 255 + 32767) / 65535) as u8);
        assert!(general.eq(expected));
    }

    #[test]
    fn white_and_what_is_above_it_become_255() {
        assert_eq!(
            narrowed(&[0, 8, 9, 2048, 4094, 4095, 4096, 65535], 4095, 1, false),
            [0, 0, 1, 128, 255, 255, 255, 255]
        );
        assert_eq!(
            narrowed(&[4095, 4095, 100, 65535], 4095, 2, true),
            [255, 16, 6, 255],
            "transparency has the full range"
        );
        assert_eq!(narrowed(&[0, 1, 2], 1, 1, false), [0, 255, 255]);
    }

    #[test]
    fn white_is_a_number_or_a_word_everywhere() {
        for (text, json, white) in [
            ("4095", "4095", White::Value(NonZeroU16::new(4095).unwrap())),
            ("65535", "65535", White::FULL),
            ("auto", "\"auto\"", White::AUTO),
        ] {
            assert_eq!(text.parse(), Ok(white));
            assert_eq!((white.to_string().as_str(), format!("{white:?}").as_str()), (text, text));
            assert_eq!(serde_json::to_string(&white).unwrap(), json);
            assert_eq!(serde_json::from_str::<White>(json).unwrap(), white);
        }
        for wrong in ["0", "65536", "-1", "", "Auto", "4095.0"] {
            assert!(wrong.parse::<White>().is_err(), "{wrong}");
        }
        for wrong in ["0", "65536", "\"4095\"", "true"] {
            assert!(serde_json::from_str::<White>(wrong).is_err(), "{wrong}");
        }
    }
}

//! Keys out of TOML and JSON, one at a time.
//!
//! A derived reader of a struct with this many fields is one function of all of them for every format, and the optimizer spends more
//! time on these few than on the rest of this folder together. Here a format's part is a `match` on a dozen types.

use super::{Config, Flags, KnnImages, Switch};
use crate::image::White;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use std::fmt;

/// Declares the types that a key can have.
macro_rules! places {
    ($($name:ident: $ty:ty,)*) => {
        /// Where the value of a key goes.
        pub(super) enum Place<'a> {
            $($name(&'a mut Option<$ty>),)*
        }

        $(impl<'a> From<&'a mut Option<$ty>> for Place<'a> {
            fn from(place: &'a mut Option<$ty>) -> Self {
                Place::$name(place)
            }
        })*

        impl Place<'_> {
            fn is_taken(&self) -> bool {
                match self {
                    $(Place::$name(place) => place.is_some(),)*
                }
            }
        }

        impl<'de> DeserializeSeed<'de> for Place<'_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
                match self {
                    $(Place::$name(place) => *place = Some(<$ty>::deserialize(from)?),)*
                }
                Ok(())
            }
        }
    };
}

places! {
    Text: String,
    Size: usize,
    Count: u64,
    Iterations: u32,
    Level: u8,
    Number: f64,
    Bool: bool,
    Sizes: Vec<usize>,
    Numbers: Vec<f64>,
    Switch: Switch,
    KnnImages: KnnImages,
    White: White,
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Flags;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("keys with values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Flags, A::Error> {
        let mut flags = Flags::default();
        while let Some(place) = map.next_key_seed(Name(&mut flags))? {
            map.next_value_seed(place)?;
        }
        Ok(flags)
    }
}

/// The name of a key, which becomes the place of its value in these flags. It is looked up while it is read, so that TOML's error
/// has its line.
struct Name<'a>(&'a mut Flags);

impl<'de, 'a> DeserializeSeed<'de> for Name<'a> {
    type Value = Place<'a>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Place<'a>, D::Error> {
        let key = String::deserialize(from)?;
        match self.0.place(&key) {
            Some(place) if place.is_taken() => Err(D::Error::custom(format!("duplicate field `{key}`"))),
            Some(place) => Ok(place),
            None => {
                let names = Flags::names().map(|name| format!("`{name}`")).join(", ");
                Err(D::Error::custom(format!("unknown field `{key}`, expected one of {names}")))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Flags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Flags, D::Error> {
        from.deserialize_map(Keys)
    }
}

/// A key that is not there (in a checkpoint older than the key) has what runs did before there was the key.
impl From<Flags> for Config {
    fn from(flags: Flags) -> Config {
        let mut config = Config::before_keys();
        config.set(&flags);
        config
    }
}

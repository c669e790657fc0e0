//! A yes or no that other keys may decide.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// `auto`, `true` or `false`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub enum Switch {
    /// As other keys decide.
    Auto,
    /// As the user does.
    Set(bool),
}

/// As it is written in files.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Value(bool),
    Keyword(String),
}

impl From<Switch> for Written {
    fn from(switch: Switch) -> Written {
        match switch {
            Switch::Auto => Written::Keyword("auto".into()),
            Switch::Set(value) => Written::Value(value),
        }
    }
}

impl TryFrom<Written> for Switch {
    type Error = String;
    fn try_from(written: Written) -> Result<Switch, String> {
        match written {
            Written::Value(value) => Ok(Switch::Set(value)),
            Written::Keyword(text) => text.parse(),
        }
    }
}

impl FromStr for Switch {
    type Err = String;
    fn from_str(text: &str) -> Result<Switch, String> {
        match text {
            "auto" => Ok(Switch::Auto),
            "true" => Ok(Switch::Set(true)),
            "false" => Ok(Switch::Set(false)),
            _ => Err(format!("{text:?} is none of auto, true and false")),
        }
    }
}

impl Switch {
    /// Its value, `default` where other keys decide.
    pub fn or(self, default: bool) -> bool {
        match self {
            Switch::Auto => default,
            Switch::Set(value) => value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_a_bool_or_auto() {
        for (switch, text) in [(Switch::Auto, "\"auto\""), (Switch::Set(true), "true"), (Switch::Set(false), "false")] {
            assert_eq!(serde_json::to_string(&switch).unwrap(), text);
            assert_eq!(serde_json::from_str::<Switch>(text).unwrap(), switch);
            assert_eq!(text.trim_matches('"').parse::<Switch>().unwrap(), switch);
        }
        for bad in ["\"yes\"", "1", "null", "[]"] {
            assert!(serde_json::from_str::<Switch>(bad).is_err(), "{bad}");
        }
        assert!("maybe".parse::<Switch>().unwrap_err().contains("none of auto, true and false"));
        assert!(Switch::Auto.or(true) && !Switch::Set(false).or(true));
    }
}

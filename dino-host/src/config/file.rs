//! Configuration files.

use super::{Config, Flags};
use crate::error::{Error, Result};
use crate::io::text;
use serde::de::DeserializeOwned;
use std::path::Path;

impl Config {
    /// Reads keys from a TOML file.
    ///
    /// # Errors
    /// The file cannot be read or is no text; otherwise as [`Config::parse`].
    pub fn file(path: &Path) -> Result<Flags> {
        Config::parse(&path.display().to_string(), &Config::text(path)?)
    }

    /// The text of a TOML file.
    ///
    /// # Errors
    /// The file cannot be read or is no text.
    pub fn text(path: &Path) -> Result<String> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::new(format!("cannot read the configuration {}: {e}", path.display()))
                .hint("--config and --variants take TOML files")
        };
        let bytes = std::fs::read(path).map_err(|e| failed(&e))?;
        text::decoded(bytes).map_err(|line| failed(&format!("line {line} is no text")))
    }

    /// The same for a file's text; `name` is for the errors.
    ///
    /// # Errors
    /// The text is no TOML, a key is unknown, or a value is of another type; the error names the line.
    pub fn parse(name: &str, text: &str) -> Result<Flags> {
        parse(name, text, "keys are the long flags without dashes in front, such as `batch = 64`")
    }
}

/// Reads TOML; `name` is for the errors, `hint` their next step.
///
/// # Errors
/// The text is no TOML or not what is asked for; the error names the line.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str, hint: &str) -> Result<T> {
    toml::from_str(text).map_err(|e: toml::de::Error| {
        let before = e.span().map_or(0, |s| s.start.min(text.len()));
        let line = text.as_bytes()[..before].iter().filter(|b| **b == b'\n').count();
        // A file that is something else may hold what a terminal obeys.
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let shown: String = text.lines().nth(line).unwrap_or_default().chars().map(plain).take(60).collect();
        Error::new(format!("{name}, line {}, `{}`: {}", line + 1, shown.trim(), e.message().replace('\n', " ")))
            .hint(hint)
    })
}

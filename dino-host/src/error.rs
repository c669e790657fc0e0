//! One error type for everything a user can get wrong: what happened, and what to do about it.

use std::fmt;

/// A message of one line (which file, which shape, which flag) and a hint (what would fit).
#[derive(Debug, Clone)]
pub struct Error {
    /// What happened, with the facts.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// The result of whatever a user can get wrong.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a hint.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), hint: None }
    }

    /// Adds the next step.
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

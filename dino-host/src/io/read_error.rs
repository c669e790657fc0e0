//! Files that cannot be read.

use crate::error::Error;
use std::path::Path;

/// Why a file cannot be read.
pub(crate) fn read_error(path: &Path, error: &std::io::Error) -> Error {
    Error::new(format!("cannot read {}: {error}", path.display())).hint("is it there, and may this user read it?")
}

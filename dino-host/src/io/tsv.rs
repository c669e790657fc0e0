//! Tables of tabs and lines.

/// A name as a field of a table of tabs and lines: `\t`, `\n`, `\r` and `\\` replace what would break it, and themselves.
pub fn tsv(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

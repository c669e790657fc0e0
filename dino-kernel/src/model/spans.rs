//! Spans with names, for printed plans, and with their rows, to find the crop that an element is of.

use crate::crops::Ragged;
use crate::mem::{Pool, Span};
use crate::params::Name;

/// A span, its pool, and the last part of its name.
pub(crate) type Named = (&'static str, Pool, Span);

/// Passes `spans` on under `part` + `list` + `index`, each a matrix of so many `rows` a crop; empty ones are left out.
pub(crate) fn pass_on<const N: usize>(
    f: &mut impl FnMut(Name, Pool, Span, Ragged),
    part: &'static str,
    list: &'static str,
    index: usize,
    rows: Ragged,
    spans: [Named; N],
) {
    for (leaf, pool, span) in spans {
        if span.len > 0 {
            f(Name { part, list, index, leaf }, pool, span, rows);
        }
    }
}

/// The search for the matrix that a span of activations is, or is a part of.
pub(crate) struct Lookup {
    span: Span,
    found: Option<(Span, Ragged)>,
}

impl Lookup {
    pub(crate) fn of(span: Span) -> Lookup {
        Lookup { span, found: None }
    }

    /// A matrix that it may be: the smallest that contains the span is the one.
    pub(crate) fn offer(&mut self, matrix: Span, rows: Ragged) {
        let contains = matrix.at <= self.span.at && self.span.at + self.span.len <= matrix.at + matrix.len;
        if contains && self.found.is_none_or(|(found, _)| matrix.len < found.len) {
            self.found = Some((matrix, rows));
        }
    }

    /// The crop that element `index` of the span is of; none if no matrix was found, or one that has no crops.
    pub(crate) fn crop(&self, index: usize) -> Option<usize> {
        let (matrix, rows) = self.found?;
        let cols = matrix.len.checked_div(rows.rows())?;
        rows.crop_of((self.span.at + index - matrix.at) / cols)
    }
}

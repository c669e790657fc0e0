//! Spans with names, for printed plans.

use crate::mem::{Pool, Span};
use crate::params::Name;

/// A span, its pool, and the last part of its name.
pub(crate) type Named = (&'static str, Pool, Span);

/// Passes `spans` on under `part` + `list` + `index`; empty ones are left out.
pub(crate) fn pass_on<const N: usize>(
    f: &mut impl FnMut(Name, Pool, Span),
    part: &'static str,
    list: &'static str,
    index: usize,
    spans: [Named; N],
) {
    for (leaf, pool, span) in spans {
        if span.len > 0 {
            f(Name { part, list, index, leaf }, pool, span);
        }
    }
}

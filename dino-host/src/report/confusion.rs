//! Which class was taken for which, as a table.

use super::page::visible;
use maud::{Markup, html};
use ndarray::Array2;

/// Classes of which a matrix is drawn; of more, the commonest mistakes are listed.
pub const MATRIX: usize = 20;

/// `counts`: (class, taken for), images.
pub fn table(classes: &[String], counts: &Array2<u64>) -> Markup {
    let name = |c: usize| visible(classes.get(c).map_or("?", String::as_str));
    html! { div.wide { @if classes.len() <= MATRIX { (matrix(counts, name)) } @else { (mistakes(counts, name)) } } }
}

fn matrix(counts: &Array2<u64>, name: impl Fn(usize) -> String) -> Markup {
    html! {
        table.confusion {
            thead {
                tr {
                    th scope="col" { "class" }
                    @for c in 0..counts.ncols() { th scope="col" { (name(c)) } }
                }
            }
            tbody {
                @for (c, row) in counts.rows().into_iter().enumerate() {
                    @let sum = row.sum().max(1) as f64;
                    tr {
                        th scope="row" { (name(c)) }
                        @for n in row {
                            @let part = 0.6 * *n as f64 / sum;
                            td style=(format_args!("background:rgba(var(--tint),{part:.2})")) { (n) }
                        }
                    }
                }
            }
        }
    }
}

fn mistakes(counts: &Array2<u64>, name: impl Fn(usize) -> String) -> Markup {
    let mut wrong: Vec<_> = counts.indexed_iter().filter(|((a, b), n)| a != b && **n > 0).collect();
    wrong.sort_by_key(|((a, b), n)| (u64::MAX - **n, *a, *b));
    html! {
        table {
            thead { tr { th { "is" } th { "taken for" } th { "images" } } }
            tbody {
                @for ((a, b), n) in wrong.into_iter().take(20) {
                    tr { th scope="row" { (name(a)) } td { (name(b)) } td { (n) } }
                }
            }
        }
    }
}

//! The rows of the table, by what the ops are about.

mod attention;
mod conv;
mod embed;
mod linear;
mod loss;
mod norm;
mod residual;

use super::Row;

/// All rows.
pub static TABLE: &[&[Row]] =
    &[linear::ROWS, norm::ROWS, residual::ROWS, embed::ROWS, attention::ROWS, loss::ROWS, conv::ROWS];

//! The comparisons on one page: a table and curves over each other for each.

use super::results::{COLUMNS, Table};
use crate::report::chart::{Chart, Line};
use crate::report::page::{framed, visible};
use maud::html;

/// The page. `command` made it; `seeds`: how many runs a variant has.
pub fn write(tables: &[Table], command: &str, data: &str, seeds: u64) -> String {
    let runs =
        if seeds == 1 { "one run a variant".into() } else { format!("{seeds} runs a variant, their mean and range") };
    let body = html! {
           h1 { "Comparisons" }
           p.soft { "On " (visible(data)) "; " (runs) "."
               @if tables.iter().any(|table| table.paper.is_some()) { " The paper's figures are those of ViT-S/16 on ImageNet." }
           }
           pre { (visible(command)) }
           @for table in tables {
               @let lines = table.lines.iter().map(|line| Line {
                   name: if line.base { "base".into() } else { line.name.clone().into() },
                   points: line.curve(),
                   dots: true,
               });
               h2 { (table.name) }
               @if let Some(source) = table.paper { p.soft { "Paper: " (source) "." } }
               div.charts.one {
                   (Chart {
                       title: "k-NN accuracy of the teacher",
                       unit: "%, k = 20",
                       along: "epochs done",
                       lines: lines.collect(),
                       marks: vec![],
    wide: false,
                   }.draw())
               }
               div.wide {
                   table.text {
                       thead { tr { @for name in COLUMNS { th { (name) } } } }
                       tbody {
                           @for line in &table.lines {
                               tr { @for cell in line.cells() { td { (visible(&cell)) } } }
                           }
                       }
                   }
               }
           }
       };
    framed("DINO, comparisons", None, body)
}

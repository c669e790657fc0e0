//! The numbers of a run over its steps, as charts: what is looked at first, large; how fast it goes; and, folded away, what is a formula.

use super::chart::{Chart, Line};
use super::log::Epoch;
use super::page::Page;
use crate::train::metrics::*;
use dino_kernel::objective::Divergence;
use maud::{Markup, html};

impl Page<'_> {
    pub(super) fn charts(&self) -> Markup {
        let rows = self.rows;
        let per_epoch = rows.per_epoch().filter(|_| rows.epochs.len() > 1);
        let along = if per_epoch.is_some() { "epochs done" } else { "step" };
        let x = |step: u64| per_epoch.map_or(step as f64, |n| (step + 1) as f64 / n);
        let line = |name: &'static str, column: usize| {
            let points = rows.steps.iter().map(|r| (x(r.0), r.1[column] as f64)).collect();
            Line { name: name.into(), points, dots: false }
        };
        let scored = |name: &'static str, f: fn(&Epoch) -> Option<f64>| {
            let points = rows.epochs.iter().filter_map(|e| Some((x(e.step), f(e)?))).collect();
            Line { name: name.into(), points, dots: true }
        };
        let unit = |column: usize| METRICS[column].unit;
        let chart =
            |title, unit, lines, marks| Chart { title, unit, along, lines, marks, wide: title == "Loss" }.draw();
        let ln_k = || self.ln_k().map(|y| ("ln K".to_string(), y)).into_iter().collect::<Vec<_>>();
        let known = [("pixels", self.pixels()), ("untrained", self.untrained())];
        let baselines = known.into_iter().filter_map(|(name, y)| Some((name.to_string(), y?))).collect();
        let mut wait = line("", DATA_WAIT);
        wait.points.iter_mut().for_each(|p| p.1 *= 100.0);
        let loss = html! {
            @if self.objective().divergence == Divergence::CrossEntropy {
                (chart("Loss", unit(LOSS), vec![line("loss", LOSS)], ln_k()))
            } @else {
                (chart("Loss", "squared error", vec![line("loss", LOSS)], vec![]))
            }
        };
        let learned = html! {
            (chart(
                "k-NN accuracy",
                "%, k = 20",
                vec![scored("teacher", |e| e.teacher), scored("student", |e| e.student)],
                baselines,
            ))
            (chart("Teacher entropy and KL", unit(KL), vec![line("entropy", ENTROPY), line("KL", KL)], ln_k()))
            (chart("Feature rank", "directions", vec![scored("", |e| e.rank)], vec![]))
            (chart("Spread of cosines", "between images", vec![scored("", |e| e.spread)], vec![]))
            (chart("Gradient norm", unit(GRAD_NORM), vec![line("", GRAD_NORM)], vec![]))
        };
        let machine = html! {
            (chart("Throughput", unit(IMAGES_PER_SECOND), vec![line("", IMAGES_PER_SECOND)], vec![]))
            (chart("Waiting for data", "% of a step", vec![wait], vec![]))
        };
        let formulas = html! {
            (chart("Learning rate", unit(LR), vec![line("", LR)], vec![]))
            (chart("Weight decay", unit(WEIGHT_DECAY), vec![line("", WEIGHT_DECAY)], vec![]))
            (chart("Teacher momentum", unit(MOMENTUM), vec![line("", MOMENTUM)], vec![]))
            (chart("Teacher temperature", unit(TEACHER_TEMP), vec![line("", TEACHER_TEMP)], vec![]))
        };
        html! {
            @if [&loss, &learned, &machine, &formulas].iter().all(|part| part.0.is_empty()) {
                p { "There are no numbers to draw." }
            } @else {
                h2 { "Training" }
                @if !loss.0.is_empty() { div.charts.full { (loss) } }
                div.charts { (learned) }
                p.soft { "Lines are means of neighboring steps, bands their least and greatest." }
                @if !machine.0.is_empty() {
                    details { summary { "Throughput, and waiting for data" } div.charts { (machine) } }
                }
                @if !formulas.0.is_empty() {
                    details { summary { "Schedules: learning rate, weight decay, the teacher's momentum and temperature" } div.charts { (formulas) } }
                }
            }
        }
    }
}

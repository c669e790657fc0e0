//! Batch norms: a launch for the rows of all crops of one size, whose sums are formed in strips and added in order.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::{Affine, BatchNorm, NormStats, Running};
use dino_kernel::mem::Act;
use dino_kernel::ops::batchnorm::MOMENTUM;

/// The rows of all crops of one size. See `kernels/batchnorm.cu`.
#[derive(Clone, Copy)]
struct Size {
    /// Its number, and its first row.
    number: usize,
    first: usize,
    /// Groups of images, views of each, rows of a group in a view, and how far apart views are.
    parts: usize,
    views: usize,
    segment: usize,
    view_rows: usize,
}

impl Size {
    /// Rows of a group in all views.
    fn group_rows(&self) -> usize {
        self.views * self.segment
    }
}

/// Segments cut into strips of so many rows.
#[derive(Clone, Copy)]
struct Strips {
    rows: usize,
    count: usize,
}

fn sizes(n: BatchNorm) -> impl Iterator<Item = Size> {
    let mut first = 0;
    (0..n.rows.len()).map(move |number| {
        let [crops, rows] = n.rows.group(number);
        let (views, view_rows) = (crops / n.images, n.images * rows);
        let size = Size { number, first, parts: n.images / n.group, views, segment: n.group * rows, view_rows };
        first += crops * rows;
        size
    })
}

/// Strips whose sums are kept: enough to fill a large card, at most as many as the plan has memory for ([`BatchNorm::blocks`]).
fn of_sums(size: &Size, n: BatchNorm) -> Strips {
    let most = (256 / size.views).max(1);
    let rows = size.segment.div_ceil(size.segment.div_ceil(n.block()).min(most));
    Strips { rows, count: size.segment.div_ceil(rows) }
}

/// Strips of a pass over the elements: eight rows a thread, more where a grid would have too many blocks.
fn of_rows(size: &Size, cols: usize) -> Strips {
    let rows = (8 * Shape::across(cols)[1]).max(size.group_rows().div_ceil(32768));
    Strips { rows, count: size.segment.div_ceil(rows) }
}

impl Gpu {
    fn strips_shape(&self, size: &Size, strips: Strips, cols: usize) -> Shape {
        let [across, down] = Shape::across(cols);
        let grid = [cols.div_ceil(4 * across), size.views * strips.count, size.parts.min(65535)];
        Shape::new(grid, [across as u32, down as u32])
    }

    /// Memory for the sums of every strip: two a column.
    fn strip_sums(&mut self, size: &Size, strips: Strips, cols: usize) -> Option<u64> {
        let wanted = 4 * 2 * cols * size.parts * size.views * strips.count;
        let (at, bytes) = self.sums();
        if bytes < wanted {
            self.too_small(wanted);
            return None;
        }
        Some(at)
    }

    /// Mean and rstd of every group; the running ones move in the order of groups.
    pub(super) fn group_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        let (mean, rstd) = (self.stat(stats.mean), self.stat(stats.rstd));
        let (running_mean, running_var) = (self.state(running.mean), self.state(running.var));
        let parts = n.images / n.group;
        // Groups of the first images of every size come before those of the next ones; of one size they follow each other.
        let together = if n.rows.len() == 1 { parts } else { 1 };
        for part in (0..parts).step_by(together) {
            for size in sizes(n) {
                let strips = of_sums(&size, n);
                let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
                let here = Size { first: size.first + part * size.segment, parts: together, ..size };
                let arguments = args![
                    sums,
                    self.act_at(x, here.first * n.cols),
                    n.cols as i32,
                    size.segment as i32,
                    size.view_rows as i64,
                    strips.rows as i32,
                    strips.count as i32,
                    together as i32
                ];
                self.launch(&self.kernels.batch_moments, self.strips_shape(&here, strips, n.cols), arguments);
                let (rows, slots) = (size.group_rows() as f64, size.views * strips.count);
                let at = (part * n.rows.len() * n.cols * 4) as u64;
                let arguments = args![
                    mean + at,
                    rstd + at,
                    running_mean,
                    running_var,
                    sums,
                    n.cols as i32,
                    size.segment as i32,
                    strips.rows as i32,
                    strips.count as i32,
                    slots as i32,
                    together as i32,
                    size.number as i32,
                    n.rows.len() as i32,
                    (1.0 - MOMENTUM) as f32,
                    MOMENTUM as f32,
                    (MOMENTUM * rows / (rows - 1.0).max(1.0)) as f32,
                    n.eps as f32
                ];
                let shape = Shape::new([n.cols.div_ceil(32), 1, 1], [32, 8]);
                self.launch(&self.kernels.batch_statistics, shape, arguments);
            }
        }
    }

    /// Mean and rstd of the running ones.
    pub(super) fn of_running(&mut self, stats: NormStats, running: Running, eps: f64) {
        let cols = running.mean.len();
        let arguments = args![
            self.stat(stats.mean),
            self.stat(stats.rstd),
            self.state(running.mean),
            self.state(running.var),
            cols as i32,
            eps as f32
        ];
        self.launch(&self.kernels.running_statistics, Shape::flat(cols), arguments);
    }

    /// y = (x - mean) * rstd * w + b + residual, then its ReLU if `n` has one.
    pub(super) fn normalize_columns(
        &mut self,
        y: Act,
        x: Act,
        residual: Act,
        stats: NormStats,
        w: Affine,
        n: BatchNorm,
    ) {
        let (mean, rstd) = (self.stat(stats.mean), self.stat(stats.rstd));
        let (gain, bias) = (self.weight(w.w), self.weight(w.b));
        for size in sizes(n) {
            let (at, strips) = (size.first * n.cols, of_rows(&size, n.cols));
            let residual = if residual.len() == 0 { 0 } else { self.act_at(residual, at) };
            let arguments = args![
                self.act_at(y, at),
                self.act_at(x, at),
                residual,
                mean,
                rstd,
                gain,
                bias,
                n.cols as i32,
                size.segment as i32,
                size.view_rows as i64,
                strips.rows as i32,
                strips.count as i32,
                size.parts as i32,
                size.number as i32,
                n.rows.len() as i32,
                n.relu as i32
            ];
            self.launch(&self.kernels.batch_normalize, self.strips_shape(&size, strips, n.cols), arguments);
        }
    }

    /// dx from dy, which leaves as the gradient in front of the ReLU; gain and bias accumulate.
    pub(super) fn normalize_columns_backward(
        &mut self,
        [dx, dy]: [Act; 2],
        [x, y]: [Act; 2],
        stats: NormStats,
        w: Affine,
        n: BatchNorm,
    ) {
        let (mean, rstd, gain) = (self.stat(stats.mean), self.stat(stats.rstd), self.weight(w.w));
        let (dw, db) = (self.grad(w.w), self.grad(w.b));
        for size in sizes(n) {
            let (at, strips) = (size.first * n.cols, of_sums(&size, n));
            let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
            let (dx, dy, x) = (self.act_at(dx, at), self.act_at(dy, at), self.act_at(x, at));
            let y = if n.relu { self.act_at(y, at) } else { 0 };
            let arguments = args![
                sums,
                dy,
                x,
                y,
                mean,
                rstd,
                n.cols as i32,
                size.segment as i32,
                size.view_rows as i64,
                strips.rows as i32,
                strips.count as i32,
                size.parts as i32,
                size.number as i32,
                n.rows.len() as i32
            ];
            self.launch(&self.kernels.batch_gradient_strips, self.strips_shape(&size, strips, n.cols), arguments);
            let slots = size.views * strips.count;
            let arguments = args![dw, db, sums, n.cols as i32, slots as i32, size.parts as i32];
            let shape = Shape::new([n.cols.div_ceil(32), 1, 1], [32, 8]);
            self.launch(&self.kernels.batch_gradient_sums, shape, arguments);
            let strips = of_rows(&size, n.cols);
            let arguments = args![
                dx,
                dy,
                x,
                sums,
                mean,
                rstd,
                gain,
                n.cols as i32,
                size.segment as i32,
                size.view_rows as i64,
                strips.rows as i32,
                strips.count as i32,
                size.parts as i32,
                size.number as i32,
                n.rows.len() as i32,
                slots as i32,
                (1.0 / size.group_rows() as f64) as f32
            ];
            self.launch(&self.kernels.batch_gradient, self.strips_shape(&size, strips, n.cols), arguments);
        }
    }
}

//! Batch norms: a launch for the rows of all crops of one size, whose sums are formed in strips and added in order.

use crate::args;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_host::error::Error;
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

    /// Moments of the strips of some groups of one size, from their first row on.
    fn strip_moments(&mut self, sums: u64, x: Act, size: &Size, strips: Strips, n: BatchNorm) {
        let arguments = args![
            sums,
            self.act_at(x, size.first * n.cols),
            n.cols as i32,
            size.segment as i32,
            size.view_rows as i64,
            strips.rows as i32,
            strips.count as i32,
            size.parts as i32
        ];
        self.launch(&self.kernels.batch_moments, self.strips_shape(size, strips, n.cols), arguments);
    }

    /// Mean and rstd of `parts` groups, from the moments of their `slots` strips: mean and rstd of the first one go to these addresses.
    #[allow(clippy::too_many_arguments)] // those of a launch
    fn statistics_of(
        &mut self,
        [mean, rstd]: [u64; 2],
        running: Running,
        moments: u64,
        [segment, strip, strips, slots, parts]: [usize; 5],
        rows: f64,
        size: &Size,
        n: BatchNorm,
    ) {
        let arguments = args![
            mean,
            rstd,
            self.state(running.mean),
            self.state(running.var),
            moments,
            n.cols as i32,
            segment as i32,
            strip as i32,
            strips as i32,
            slots as i32,
            parts as i32,
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

    /// Mean and rstd of every group; the running ones move in the order of groups.
    pub(super) fn group_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        if n.shards > 1 {
            return self.shared_statistics(stats, running, x, n);
        }
        let (mean, rstd) = (self.stat(stats.mean), self.stat(stats.rstd));
        let parts = n.images / n.group;
        // Groups of the first images of every size come before those of the next ones; of one size they follow each other.
        let together = if n.rows.len() == 1 { parts } else { 1 };
        for part in (0..parts).step_by(together) {
            for size in sizes(n) {
                let strips = of_sums(&size, n);
                let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
                let here = Size { first: size.first + part * size.segment, parts: together, ..size };
                self.strip_moments(sums, x, &here, strips, n);
                let at = (part * n.rows.len() * n.cols * 4) as u64;
                let layout = [size.segment, strips.rows, strips.count, size.views * strips.count, together];
                self.statistics_of([mean + at, rstd + at], running, sums, layout, size.group_rows() as f64, &size, n);
            }
        }
    }

    /// The same where every group is the full batch, of which each shard has a part: once for all lanes, whose first has the running ones.
    fn shared_statistics(&mut self, stats: NormStats, running: Running, x: Act, n: BatchNorm) {
        let Some(all) = self.exchange_memory(n) else { return };
        let of_size = |size: &Size| all + (size.number * n.shards * 8 * n.cols) as u64;
        for size in sizes(n) {
            let strips = of_sums(&size, n);
            let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
            self.in_lanes(|gpu, lane| {
                gpu.strip_moments(sums, x, &size, strips, n);
                let to = of_size(&size) + (gpu.shard(lane) * 8 * n.cols) as u64;
                let slots = (size.views * strips.count) as i32;
                let [segment, rows, count] = [size.segment, strips.rows, strips.count].map(|n| n as i32);
                let arguments = args![to, sums, n.cols as i32, segment, rows, count, slots];
                gpu.launch(&gpu.kernels.shard_moments, Shape::new([n.cols.div_ceil(32), 1, 1], [32, 8]), arguments);
            });
        }
        self.gather_over_ranks(sizes(n).map(|size| of_size(&size)), self.lanes() * 8 * n.cols);
        for size in sizes(n) {
            let (mean, rstd, rows) = (self.stat(stats.mean), self.stat(stats.rstd), size.group_rows());
            let layout = [rows, rows, 1, n.shards, 1];
            self.statistics_of([mean, rstd], running, of_size(&size), layout, (rows * n.shards) as f64, &size, n);
        }
        for s in [stats.mean, stats.rstd] {
            self.spread_bytes(4 * s.len(), |gpu| gpu.stat(s));
        }
    }

    /// Where shards put two numbers a column each, size by size.
    fn exchange_memory(&mut self, n: BatchNorm) -> Option<u64> {
        let ((at, bytes), wanted) = (self.exchanged(), 8 * n.cols * n.shards * n.rows.len());
        if bytes < wanted {
            self.fail(Error::new(format!("shards exchange {wanted} bytes for a batch norm, the plan has {bytes}")));
            return None;
        }
        Some(at)
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
        if n.shards > 1 {
            return self.shared_backward([dx, dy], [x, y], stats, w, n);
        }
        for size in sizes(n) {
            let strips = of_sums(&size, n);
            let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
            self.gradient_sums(sums, dy, [x, y], stats, w, &size, strips, n);
            self.gradient_of_rows(dx, [dy, x], stats, w, [sums, (size.views * strips.count) as u64], &size, n);
        }
    }

    /// The same where every group is the full batch: once for all lanes, whose gains' and biases' gradients are those of their own rows.
    fn shared_backward(&mut self, [dx, dy]: [Act; 2], [x, y]: [Act; 2], stats: NormStats, w: Affine, n: BatchNorm) {
        let Some(all) = self.exchange_memory(n) else { return };
        let bytes = 8 * n.cols;
        let of_size = |size: &Size| all + (size.number * n.shards * bytes) as u64;
        for size in sizes(n) {
            let strips = of_sums(&size, n);
            let Some(sums) = self.strip_sums(&size, strips, n.cols) else { return };
            self.in_lanes(|gpu, lane| {
                gpu.gradient_sums(sums, dy, [x, y], stats, w, &size, strips, n);
                gpu.copy_bytes(of_size(&size) + (gpu.shard(lane) * bytes) as u64, sums, bytes);
            });
        }
        self.gather_over_ranks(sizes(n).map(|size| of_size(&size)), self.lanes() * bytes);
        for size in sizes(n) {
            let sums = of_size(&size);
            let (shape, arguments) = (Shape::flat(2 * n.cols), args![sums, n.shards as i32, 2 * n.cols as i64]);
            self.launch(&self.kernels.add_by_halves, shape, arguments);
            self.in_lanes(|gpu, _| gpu.gradient_of_rows(dx, [dy, x], stats, w, [sums, 1], &size, n));
        }
    }

    /// Sums over the groups of one size, in the place of their first strips; dy becomes the gradient in front of the ReLU, and the sums
    /// are added to the gradients of gain and bias.
    #[allow(clippy::too_many_arguments)] // those of the op, and where the sums go
    fn gradient_sums(
        &mut self,
        sums: u64,
        dy: Act,
        [x, y]: [Act; 2],
        stats: NormStats,
        w: Affine,
        size: &Size,
        strips: Strips,
        n: BatchNorm,
    ) {
        let (at, slots) = (size.first * n.cols, size.views * strips.count);
        let arguments = args![
            sums,
            self.act_at(dy, at),
            self.act_at(x, at),
            if n.relu { self.act_at(y, at) } else { 0 },
            self.stat(stats.mean),
            self.stat(stats.rstd),
            n.cols as i32,
            size.segment as i32,
            size.view_rows as i64,
            strips.rows as i32,
            strips.count as i32,
            size.parts as i32,
            size.number as i32,
            n.rows.len() as i32
        ];
        self.launch(&self.kernels.batch_gradient_strips, self.strips_shape(size, strips, n.cols), arguments);
        let (dw, db) = (self.grad(w.w), self.grad(w.b));
        let arguments = args![dw, db, sums, n.cols as i32, slots as i32, size.parts as i32];
        let shape = Shape::new([n.cols.div_ceil(32), 1, 1], [32, 8]);
        self.launch(&self.kernels.batch_gradient_sums, shape, arguments);
    }

    /// dx of the groups of one size, whose sums are `slots` apart.
    #[allow(clippy::too_many_arguments)] // those of the op, and where the sums are
    fn gradient_of_rows(
        &mut self,
        dx: Act,
        [dy, x]: [Act; 2],
        stats: NormStats,
        w: Affine,
        [sums, slots]: [u64; 2],
        size: &Size,
        n: BatchNorm,
    ) {
        let (at, strips) = (size.first * n.cols, of_rows(size, n.cols));
        let arguments = args![
            self.act_at(dx, at),
            self.act_at(dy, at),
            self.act_at(x, at),
            sums,
            self.stat(stats.mean),
            self.stat(stats.rstd),
            self.weight(w.w),
            n.cols as i32,
            size.segment as i32,
            size.view_rows as i64,
            strips.rows as i32,
            strips.count as i32,
            size.parts as i32,
            size.number as i32,
            n.rows.len() as i32,
            slots as i32,
            (1.0 / (size.group_rows() * n.shards) as f64) as f32
        ];
        self.launch(&self.kernels.batch_gradient, self.strips_shape(size, strips, n.cols), arguments);
    }
}

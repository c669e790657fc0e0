//! Pools over feature maps, a launch a group.

use super::groups;
use crate::args;
use crate::gpu::Gpu;
use crate::kernels::{Kernel, Shape};
use dino_kernel::backend::MaxPool;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::Act;

impl Gpu {
    /// Calls the kernel for every group with what it writes (at output pixels, or with `backward` at input pixels), what it reads, and x.
    fn pooled(&mut self, kernel: &'static Kernel, [written, read]: [Act; 2], x: Option<Act>, n: MaxPool) {
        let backward = x.is_some();
        let ([mut from, mut to], output) = ([0; 2], n.window.over(n.maps));
        for (maps, out) in n.maps.groups().iter().zip(output.groups()) {
            let [pixels, outs] = [maps, out].map(|g| g.count * g.height * g.width);
            let ([at, other], rows) = if backward { ([from, to], pixels) } else { ([to, from], outs) };
            let (written, read) = (self.act_at(written, at * n.cols), self.act_at(read, other * n.cols));
            let [count, height, width] = [maps.count, maps.height, maps.width].map(|x| x as i32);
            let [side, stride, padding] = [n.window.kernel, n.window.stride, n.window.padding].map(|x| x as i32);
            let (cols, shape) = (n.cols as i32, Shape::columns(rows, n.cols));
            match x {
                Some(x) => {
                    let x = self.act_at(x, from * n.cols);
                    let arguments = args![written, read, x, count, height, width, side, stride, padding, cols];
                    self.launch(kernel, shape, arguments);
                }
                None => {
                    let arguments = args![written, read, count, height, width, side, stride, padding, cols];
                    self.launch(kernel, shape, arguments);
                }
            }
            (from, to) = (from + pixels, to + outs);
        }
    }

    /// y = the largest of x over every window.
    pub(super) fn pool_largest(&mut self, y: Act, x: Act, n: MaxPool) {
        self.pooled(&self.kernels.max_pool, [y, x], None, n);
    }

    /// dx = dy where x was the first largest of a window.
    pub(super) fn pool_largest_backward(&mut self, dx: Act, dy: Act, x: Act, n: MaxPool) {
        self.pooled(&self.kernels.max_pool_backward, [dx, dy], Some(x), n);
    }

    /// y (crops, cols) = the mean of every crop's rows.
    pub(super) fn pool_average(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        for [crop, count, row, rows] in groups(n) {
            let (y, x) = (self.act_at(y, crop * cols), self.act_at(x, row * cols));
            let shape = Shape::new([cols.div_ceil(128), count.div_ceil(8).min(65535), 1], [32, 8]);
            let inverse = (1.0 / rows as f64) as f32;
            let arguments = args![y, x, count as i32, rows as i32, cols as i32, inverse];
            self.launch(&self.kernels.average_pool, shape, arguments);
        }
    }

    /// dx = dy / rows of the crop.
    pub(super) fn pool_average_backward(&mut self, dx: Act, dy: Act, n: Ragged, cols: usize) {
        for [crop, count, row, rows] in groups(n) {
            let (dx, dy) = (self.act_at(dx, row * cols), self.act_at(dy, crop * cols));
            let inverse = (1.0 / rows as f64) as f32;
            let arguments = args![dx, dy, count as i32, rows as i32, cols as i32, inverse];
            self.launch(&self.kernels.average_pool_backward, Shape::columns(count * rows, cols), arguments);
        }
    }
}

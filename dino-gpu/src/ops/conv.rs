//! Convolutions: matmuls whose factor of windows is gathered as it is read, one group of maps after the other. A 1 x 1 convolution without a
//! stride is a plain matmul.

use crate::args;
use crate::gemm::{DEPTH, FILL, Out};
use crate::gpu::Gpu;
use crate::kernels::{Kernel, Shape};
use crate::options::Precision;
use dino_kernel::backend::{Conv, Window};
use dino_kernel::crops::Group;
use dino_kernel::mem::{Act, Weight};

/// Whether every pixel is read by itself.
fn is_pointwise(w: Window) -> bool {
    w == Window { kernel: 1, stride: 1, padding: 0 }
}

/// The maps of every group, their pixels and where those begin: of the input, of the output.
fn groups(n: Conv) -> impl Iterator<Item = [(Group, usize, usize); 2]> {
    let ([maps, output], mut first) = ([n.maps, n.output()], [0; 2]);
    (0..maps.len()).map(move |i| {
        let [read, written] = [maps.group(i), output.group(i)].map(|g| (g, g.count * g.height * g.width));
        let begin = first;
        first = [begin[0] + read.1, begin[1] + written.1];
        [(read.0, read.1, begin[0]), (written.0, written.1, begin[1])]
    })
}

impl Gpu {
    /// The tile of 128 where both sides have more than half of one and there are enough of them, else that of 64; and the launch's shape.
    fn conv_tile(&self, kernels: [&'static Kernel; 2], [m, n]: [usize; 2], deep: usize) -> (&'static Kernel, Shape) {
        let large = m.min(n) > 64 && m.div_ceil(128) * n.div_ceil(128) * deep >= FILL / 2;
        let (side, threads) = if large { (128, 256) } else { (64, 128) };
        (kernels[large as usize], Shape::new([n.div_ceil(side), m.div_ceil(side).min(65535), deep], [threads, 1]))
    }

    /// The filter as a factor of a matmul, in scratch memory: (out, taps, inp), or for the gradient of the input (inp, taps, out).
    fn pack_filter(&mut self, w: Weight, n: Conv, backward: bool) -> Option<u64> {
        let (len, Window { kernel, stride, padding }) = (n.filter() * n.out, n.window);
        let (to, bytes) = self.filters();
        if bytes < self.act_bytes() * len {
            self.too_small(self.act_bytes() * len);
            return None;
        }
        let ([channels, n_step, channel_step], window) = match backward {
            false => ([n.inp, n.filter(), kernel * kernel], [kernel, 1, 0]),
            true => ([n.out, kernel * kernel, n.filter()], [kernel, stride, padding]),
        };
        let ([channels, n_step, channel_step], [kernel, stride, padding]) =
            ([channels, n_step, channel_step].map(|x| x as i32), window.map(|x| x as i32));
        let arguments = args![to, self.factor(w), channels, n_step, channel_step, kernel, stride, padding, len as i64];
        self.launch(&self.kernels.pack_filter, Shape::flat(len), arguments);
        Some(to)
    }

    /// y from x, or with `backward` dx (`y`) from dy (`x`); with `accumulate` it is added.
    fn windows(&mut self, y: Act, x: Act, w: Weight, n: Conv, backward: bool, accumulate: bool) {
        let Some(filter) = self.pack_filter(w, n, backward) else { return };
        let (k, Window { kernel, stride, padding }) = (self.kernels, n.window);
        let (cols, channels) = if backward { (n.inp, n.out) } else { (n.out, n.inp) };
        for [(maps, _, from), (_, pixels, to)] in groups(n) {
            let (rows, classes, [written, read]) = match backward {
                false => (pixels, 1, [to, from]),
                true => (
                    maps.count * maps.height.div_ceil(stride) * maps.width.div_ceil(stride),
                    stride * stride,
                    [from, to],
                ),
            };
            let (kernel_of, shape) = match self.precision {
                Precision::Bf16 => self.conv_tile([&k.conv_bf16_64, &k.conv_bf16_128], [rows, cols], classes),
                Precision::F32 => {
                    let grid = [cols.div_ceil(64), rows.div_ceil(64).min(65535), classes];
                    (&k.conv_f32, Shape::new(grid, [16, 16]))
                }
            };
            let (y, x) = (self.act_at(y, written * cols), self.act_at(x, read * channels));
            self.launch(
                kernel_of,
                shape,
                args![
                    y,
                    x,
                    filter,
                    cols as i32,
                    channels as i32,
                    maps.count as i32,
                    maps.height as i32,
                    maps.width as i32,
                    kernel as i32,
                    stride as i32,
                    padding as i32,
                    backward as i32,
                    accumulate as i32
                ],
            );
        }
    }

    /// y = the convolution of x.
    pub(super) fn convolution(&mut self, y: Act, x: Act, w: Weight, n: Conv) {
        if is_pointwise(n.window) {
            let (y, x, w) = (self.act(y), self.act(x), self.factor(w));
            return self.matmul_nt(Out::Act(y), x, w, [n.maps.pixels(), n.out, n.inp], 0, 0);
        }
        self.windows(y, x, w, n, false, false);
    }

    /// dx = its transpose of dy, or += that.
    pub(super) fn convolution_input(&mut self, dx: Act, dy: Act, w: Weight, n: Conv, accumulate: bool) {
        if is_pointwise(n.window) {
            let (dx, dy, w) = (self.act(dx), self.act(dy), self.factor(w));
            return self.matmul_nn(Out::Act(dx), dy, w, [n.maps.pixels(), n.inp, n.out], accumulate);
        }
        self.windows(dx, dy, w, n, true, accumulate);
    }

    /// dw += the gradient of the filter. The long sum over pixels is split; its parts are added in order, group by group.
    pub(super) fn convolution_filter(&mut self, dy: Act, x: Act, w: Weight, n: Conv) {
        let (dw, available) = (self.grad(w), self.workspace_bytes());
        if is_pointwise(n.window) {
            let (dy, x) = (self.act(dy), self.act(x));
            return self.matmul_tn(dw, dy, x, [n.out, n.inp, n.maps.pixels()], available);
        }
        let (k, filter, Window { kernel, stride, padding }) = (self.kernels, n.filter(), n.window);
        let len = filter * n.out;
        // One part at least fits the memory for filters.
        let fit = available / (4 * len);
        let (parts, bytes) = if fit == 0 { self.filters() } else { (self.workspace_at(), available) };
        if bytes < 4 * len {
            return self.too_small(4 * len);
        }
        let tiles = n.out.div_ceil(128) * filter.div_ceil(128);
        for [(maps, _, from), (_, pixels, to)] in groups(n) {
            let splits = FILL.div_ceil(tiles).min(pixels.div_ceil(DEPTH)).min(fit).max(1);
            let depth = pixels.div_ceil(splits).next_multiple_of(32);
            let (kernel_of, shape) = match self.precision {
                Precision::Bf16 => {
                    self.conv_tile([&k.conv_weight_bf16_64, &k.conv_weight_bf16_128], [n.out, filter], splits)
                }
                Precision::F32 => {
                    let grid = [filter.div_ceil(64), n.out.div_ceil(64).min(65535), splits];
                    (&k.conv_weight_f32, Shape::new(grid, [16, 16]))
                }
            };
            let (dy, x) = (self.act_at(dy, to * n.out), self.act_at(x, from * n.inp));
            self.launch(
                kernel_of,
                shape,
                args![
                    parts,
                    dy,
                    x,
                    n.out as i32,
                    n.inp as i32,
                    maps.count as i32,
                    maps.height as i32,
                    maps.width as i32,
                    kernel as i32,
                    stride as i32,
                    padding as i32,
                    depth as i32
                ],
            );
            let arguments = args![dw, parts, splits as i32, n.inp as i32, (kernel * kernel) as i32, len as i64];
            self.launch(&self.kernels.filter_sum, Shape::flat(len), arguments);
        }
    }
}

//! The words, as launches. Nothing here waits, allocates or looks at the device; where a launch fails, the first error is kept for `sync`.

use crate::args;
use crate::gemm::Out;
use crate::gpu::{Gpu, Precision};
use crate::kernels::Shape;
use dino_host::error::Error;
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::mem::{Act, Stat, State, Weight};
use dino_kernel::model::Table;
use dino_kernel::step::hyper;

/// (first crop, crops, first row, tokens) of every group.
fn groups(n: Ragged) -> impl Iterator<Item = [usize; 4]> {
    let (mut crop, mut row, mut i) = (0, 0, 0);
    std::iter::from_fn(move || {
        let &[count, tokens] = n.groups().get(i)?;
        let group = [crop, count, row, tokens];
        (crop, row, i) = (crop + count, row + count * tokens, i + 1);
        Some(group)
    })
}

/// Queries, keys and values of one attention word: addresses and row strides, and the output's address.
#[derive(Clone, Copy)]
struct Projections {
    q: (u64, usize),
    k: u64,
    v: u64,
    stride: usize,
}

impl Gpu {
    /// [q | k | v] from element `at` of a packed matrix on.
    fn packed(&self, qkv: Act, at: usize, c: usize) -> Projections {
        let part = |i: usize| self.act(qkv) + ((at + i * c) * self.act_bytes()) as u64;
        Projections { q: (part(0), 3 * c), k: part(1), v: part(2), stride: 3 * c }
    }

    /// One query a crop, and [k | v].
    fn class_packed(&self, q: Act, q_at: usize, kv: Act, kv_at: usize, c: usize) -> Projections {
        let kv = |i: usize| self.act(kv) + ((kv_at + i * c) * self.act_bytes()) as u64;
        Projections { q: (self.act_at(q, q_at), c), k: kv(0), v: kv(1), stride: 2 * c }
    }

    /// Whether the tensor cores take these heads: bf16, rows on 16 bytes, and heads of at most 128.
    fn flashes(&self, n: Heads) -> bool {
        self.precision == Precision::Bf16 && n.head_dim.is_multiple_of(8) && n.head_dim <= 128
    }

    fn attend(&mut self, y: u64, lse: u64, p: Projections, [crops, queries, tokens]: [usize; 3], n: Heads) {
        self.launch(
            &self.kernels.attend,
            Shape::warps(crops * queries * n.heads),
            args![
                y,
                lse,
                p.q.0,
                p.q.1 as i32,
                p.k,
                p.v,
                p.stride as i32,
                crops as i32,
                queries as i32,
                tokens as i32,
                n.heads as i32,
                n.head_dim as i32,
                scale(n)
            ],
        );
    }

    /// `d` has dq, dk and dv where `p` has q, k and v; `dy`, `y` (crops * queries, C), lse (crops * queries, heads).
    fn attend_backward(
        &mut self,
        d: Projections,
        [dy, y, lse]: [u64; 3],
        p: Projections,
        [crops, queries, tokens]: [usize; 3],
        n: Heads,
    ) {
        self.launch(
            &self.kernels.attend_dq,
            Shape::warps(crops * queries * n.heads),
            args![
                d.q.0,
                dy,
                y,
                lse,
                p.q.0,
                p.q.1 as i32,
                p.k,
                p.v,
                p.stride as i32,
                crops as i32,
                queries as i32,
                tokens as i32,
                n.heads as i32,
                n.head_dim as i32,
                scale(n)
            ],
        );
        self.launch(
            &self.kernels.attend_dkv,
            Shape::warps(crops * tokens * n.heads),
            args![
                d.k,
                d.v,
                dy,
                y,
                lse,
                p.q.0,
                p.q.1 as i32,
                p.k,
                p.v,
                p.stride as i32,
                crops as i32,
                queries as i32,
                tokens as i32,
                n.heads as i32,
                n.head_dim as i32,
                scale(n)
            ],
        );
    }

    /// dw and db += column sums over rows, in strips that lie in the workspace: of dy x^ and dy, or of dy alone.
    fn column_sums(&mut self, dw: Option<(u64, [u64; 3])>, db: u64, dy: u64, n: Rows) {
        let kinds = if dw.is_some() { 2 } else { 1 };
        let room = self.workspace_bytes() / (4 * kinds * n.cols);
        let strips = n.rows.div_ceil(128).min(room).clamp(1, 512);
        let strip = n.rows.div_ceil(strips);
        let strips = n.rows.div_ceil(strip.max(1)).max(1);
        let parts = self.workspace_at();
        let [x, mean, rstd] = dw.map_or([0; 3], |(_, read)| read);
        self.launch(
            &self.kernels.column_sums,
            Shape::new([n.cols.div_ceil(32), strips, 1], [32, 8]),
            args![parts, dy, x, mean, rstd, n.rows as i32, n.cols as i32, strip as i32],
        );
        match dw {
            Some((dw, _)) => {
                self.sum_parts(dw, parts, n.cols, strips, 2 * n.cols);
                self.sum_parts(db, parts + 4 * n.cols as u64, n.cols, strips, 2 * n.cols);
            }
            None => self.sum_parts(db, parts, n.cols, strips, n.cols),
        }
    }
}

/// 1 / sqrt(D).
fn scale(n: Heads) -> f32 {
    (1.0 / (n.head_dim as f64).sqrt()) as f32
}

impl Forward for Gpu {
    fn patchify(&mut self, y: Act, x: Act, n: Patches) {
        let (mut from, mut to) = (0, 0);
        for g in n.crops.groups() {
            let [rows, cols] = g.grid(n.patch);
            let len = g.count * rows * cols * n.channels * n.patch * n.patch;
            let (y, x) = (self.act_at(y, to), self.act_at(x, from));
            self.launch(
                &self.kernels.patchify,
                Shape::flat(len),
                args![
                    y,
                    x,
                    len as i64,
                    n.channels as i32,
                    g.height as i32,
                    g.width as i32,
                    n.patch as i32,
                    rows as i32,
                    cols as i32
                ],
            );
            from += g.count * n.channels * g.height * g.width;
            to += len;
        }
    }

    fn linear(&mut self, y: Act, x: Act, w: Weight, b: Weight, n: Mat) {
        let (y, x, w, b) = (self.act(y), self.act(x), self.factor(w), self.weight(b));
        self.product_nt(Out::Act(y), x, w, [n.rows, n.out, n.inp], b, 0);
    }

    fn gelu(&mut self, y: Act, x: Act) {
        let len = y.len();
        let (y, x) = (self.act(y), self.act(x));
        self.launch(&self.kernels.gelu, Shape::flat(len.div_ceil(4)), args![y, x, len as i64]);
    }

    fn linear_gelu(&mut self, y: Act, pre: Act, x: Act, w: Weight, b: Weight, n: Mat) {
        let (y, pre, x, w, b) = (self.act(y), self.act(pre), self.act(x), self.factor(w), self.weight(b));
        self.product_nt(Out::Act(pre), x, w, [n.rows, n.out, n.inp], b, y);
    }

    fn layernorm(&mut self, y: Act, mean: Stat, rstd: Stat, x: Act, w: Weight, b: Weight, n: Rows) {
        let (y, x) = (self.act(y), self.act(x));
        self.normalise(y, 0, mean, rstd, x, 0, w, b, n);
    }

    fn add(&mut self, y: Act, x: Act, branch: Act) {
        let len = y.len();
        let (y, x, branch) = (self.act(y), self.act(x), self.act(branch));
        self.launch(&self.kernels.add, Shape::flat(len.div_ceil(4)), args![y, x, branch, len as i64]);
    }

    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (at, len) = (row * cols, count * tokens * cols);
            let (y, x, branch) = (self.act_at(y, at), self.act_at(x, at), self.act_at(branch, at));
            let scale = self.state(scale) + 4 * crop as u64;
            let kernel = &self.kernels.add_scaled;
            self.launch(kernel, Shape::flat(len), args![y, x, branch, scale, len as i64, (tokens * cols) as i32]);
        }
    }

    fn add_layernorm(
        &mut self,
        y: Act,
        mid: Act,
        mean: Stat,
        rstd: Stat,
        x: Act,
        branch: Act,
        w: Weight,
        b: Weight,
        n: Rows,
    ) {
        let (y, mid, x, branch) = (self.act(y), self.act(mid), self.act(x), self.act(branch));
        self.normalise(y, mid, mean, rstd, x, branch, w, b, n);
    }

    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (y, table, rows, cols) = (self.act(y), self.weight(table), self.state(rows), self.state(cols));
        let [from, to] = [n.from, n.to].map(|g| g.map(|x| x as i32));
        let arguments = args![y, table, rows, cols, from[0], from[1], to[0], to[1], n.cols as i32];
        self.launch(&self.kernels.resize_positions, Shape::flat(n.to[0] * n.to[1] * n.cols), arguments);
    }

    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed) {
        let len = n.crops * (1 + n.patches) * n.cols;
        let (y, patches, positions) = (self.act(y), self.act(patches), self.act(positions));
        let (class, class_position) = (self.weight(class), self.weight(class_position));
        let arguments =
            args![y, patches, class, class_position, positions, len as i64, n.patches as i32, n.cols as i32];
        self.launch(&self.kernels.embed, Shape::flat(len), arguments);
    }

    fn attention(&mut self, y: Act, lse: Stat, qkv: Act, n: Heads) {
        let c = n.cols();
        for [_, crops, row, tokens] in groups(n.crops) {
            let (y, lse, p) =
                (self.act_at(y, row * c), self.stat_at(lse, row * n.heads), self.packed(qkv, row * 3 * c, c));
            if self.flashes(n) {
                let [kernel, ..] = self.kernels.flash(n.head_dim);
                let shape = Shape::new([crops * tokens.div_ceil(64), n.heads, 1], [128, 1]);
                let (heads, d) = (n.heads as i32, n.head_dim as i32);
                self.launch(kernel, shape, args![y, lse, p.q.0, tokens as i32, heads, d, scale(n)]);
            } else {
                self.attend(y, lse, p, [crops, tokens, tokens], n);
            }
        }
    }

    fn attention_class(&mut self, y: Act, lse: Stat, q: Act, kv: Act, n: Heads) {
        let c = n.cols();
        for [crop, crops, row, tokens] in groups(n.crops) {
            let p = self.class_packed(q, crop * c, kv, row * 2 * c, c);
            let (y, lse) = (self.act_at(y, crop * c), self.stat_at(lse, crop * n.heads));
            self.attend(y, lse, p, [crops, 1, tokens], n);
        }
    }

    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads) {
        let (c, mut to) = (n.cols(), 0);
        for [_, crops, row, tokens] in groups(n.crops) {
            let queries = queries.min(tokens);
            let len = crops * n.heads * queries * tokens;
            let (y, lse, qkv) = (self.act_at(y, to), self.stat_at(lse, row * n.heads), self.act_at(qkv, row * 3 * c));
            self.launch(
                &self.kernels.attention_rows,
                Shape::flat(len),
                args![
                    y,
                    lse,
                    qkv,
                    len as i64,
                    queries as i32,
                    tokens as i32,
                    n.heads as i32,
                    n.head_dim as i32,
                    scale(n)
                ],
            );
            to += len;
        }
    }

    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (y, x, len) = (self.act_at(y, crop * cols), self.act_at(x, row * cols), count * cols);
            let kernel = &self.kernels.gather_class;
            self.launch(kernel, Shape::flat(len), args![y, x, len as i64, tokens as i32, cols as i32]);
        }
    }

    fn l2_normalise(&mut self, y: Act, norm: Stat, x: Act, n: Rows) {
        let (y, norm, x) = (self.act(y), self.stat(norm), self.act(x));
        let arguments = args![y, norm, x, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.l2_normalise, Shape::warps(n.rows), arguments);
    }

    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows) {
        let (scale, v, g) = (self.stat(scale), self.weight(v), self.weight(g));
        let arguments = args![scale, v, g, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.prototype_scale, Shape::warps(n.rows), arguments);
    }

    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat) {
        let block = (self.workspace_bytes() / (4 * n.out)).clamp(1, n.rows.max(1));
        let (scale, v, products) = (self.stat(p.scale), self.factor(p.v), self.workspace_at());
        for first in (0..n.rows).step_by(block) {
            let rows = block.min(n.rows - first);
            let (y, z) = (self.act_at(y, first * n.out), self.act_at(z, first * n.inp));
            self.product_nt(Out::F32(products), z, v, [rows, n.out, n.inp], 0, 0);
            let len = rows * n.out;
            let arguments = args![y, products, scale, len as i64, n.out as i32];
            self.launch(&self.kernels.scale_columns, Shape::flat(len), arguments);
        }
    }
}

impl Gpu {
    /// y = layernorm(x), or of mid = x + branch where there is one (not 0).
    fn normalise(
        &mut self,
        y: u64,
        mid: u64,
        mean: Stat,
        rstd: Stat,
        x: u64,
        branch: u64,
        w: Weight,
        b: Weight,
        n: Rows,
    ) {
        let (mean, rstd, w, b) = (self.stat(mean), self.stat(rstd), self.weight(w), self.weight(b));
        let arguments = args![y, mid, mean, rstd, x, branch, w, b, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.layernorm, Shape::warps(n.rows), arguments);
    }
}

impl Backward for Gpu {
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Weight, b: Weight, n: Mat) {
        let (to, from, factor) = (self.act(dx), self.act(dy), self.factor(w));
        self.product_nn(Out::Act(to), from, factor, [n.rows, n.inp, n.out], false);
        self.linear_backward_params(dy, x, w, b, n);
    }

    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Weight, b: Weight, n: Mat) {
        let (dy, x, dw, db) = (self.act(dy), self.act(x), self.grad(w), self.grad(b));
        self.product_tn(dw, dy, x, [n.out, n.inp, n.rows], self.workspace_bytes());
        self.column_sums(None, db, dy, Rows { rows: n.rows, cols: n.out });
    }

    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let len = dx.len();
        let (dx, dy, x) = (self.act(dx), self.act(dy), self.act(x));
        self.launch(&self.kernels.gelu_backward, Shape::flat(len.div_ceil(4)), args![dx, dy, x, len as i64]);
    }

    fn layernorm_backward(
        &mut self,
        dx_acc: Act,
        dy: Act,
        x: Act,
        mean: Stat,
        rstd: Stat,
        w: Weight,
        b: Weight,
        n: Rows,
    ) {
        let (dx, dy, x, mean, rstd) = (self.act(dx_acc), self.act(dy), self.act(x), self.stat(mean), self.stat(rstd));
        let arguments = args![dx, dy, x, mean, rstd, self.weight(w), n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.layernorm_backward, Shape::warps(n.rows), arguments);
        let (dw, db) = (self.grad(w), self.grad(b));
        self.column_sums(Some((dw, [x, mean, rstd])), db, dy, n);
    }

    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (at, len) = (row * cols, count * tokens * cols);
            let (y, x, scale) = (self.act_at(y, at), self.act_at(x, at), self.state(scale) + 4 * crop as u64);
            let kernel = &self.kernels.add_scaled;
            self.launch(kernel, Shape::flat(len), args![y, 0u64, x, scale, len as i64, (tokens * cols) as i32]);
        }
    }

    fn attention_backward(&mut self, dqkv: Act, dy: Act, y: Act, lse: Stat, qkv: Act, n: Heads) {
        let c = n.cols();
        for [_, crops, row, tokens] in groups(n.crops) {
            let (d, p) = (self.packed(dqkv, row * 3 * c, c), self.packed(qkv, row * 3 * c, c));
            let read = [self.act_at(dy, row * c), self.act_at(y, row * c), self.stat_at(lse, row * n.heads)];
            let rows = crops * tokens;
            if self.flashes(n) && 4 * rows * n.heads <= self.workspace_bytes() {
                let [dy, y, lse] = read;
                let (delta, heads, dim) = (self.workspace_at(), n.heads as i32, n.head_dim as i32);
                let sums = Shape::blocks((rows * n.heads).div_ceil(32));
                self.launch(&self.kernels.attention_delta_bf16, sums, args![delta, y, dy, rows as i32, heads, dim]);
                let [_, queries, keys] = self.kernels.flash(n.head_dim);
                let shape = Shape::new([crops * tokens.div_ceil(64), n.heads, 1], [128, 1]);
                let arguments = args![d.q.0, dy, p.q.0, lse, delta, tokens as i32, heads, dim, scale(n)];
                self.launch(queries, shape, arguments);
                self.launch(keys, shape, arguments);
            } else {
                self.attend_backward(d, read, p, [crops, tokens, tokens], n);
            }
        }
    }

    fn attention_class_backward(&mut self, dq: Act, dkv: Act, dy: Act, y: Act, lse: Stat, q: Act, kv: Act, n: Heads) {
        let c = n.cols();
        for [crop, crops, row, tokens] in groups(n.crops) {
            let d = self.class_packed(dq, crop * c, dkv, row * 2 * c, c);
            let p = self.class_packed(q, crop * c, kv, row * 2 * c, c);
            let read = [self.act_at(dy, crop * c), self.act_at(y, crop * c), self.stat_at(lse, crop * n.heads)];
            self.attend_backward(d, read, p, [crops, 1, tokens], n);
        }
    }

    fn embed_backward(
        &mut self,
        dpatches: Act,
        dpositions: Act,
        dy: Act,
        class: Weight,
        class_position: Weight,
        n: Embed,
    ) {
        let (dpatches, dpositions, dy) = (self.act(dpatches), self.act(dpositions), self.act(dy));
        let (class, class_position) = (self.grad(class), self.grad(class_position));
        let arguments =
            args![dpatches, dpositions, class, class_position, dy, n.crops as i32, n.patches as i32, n.cols as i32];
        self.launch(&self.kernels.embed_backward, Shape::flat((1 + n.patches) * n.cols), arguments);
    }

    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid) {
        let (dy, table, rows, cols) = (self.act(dy), self.grad(table), self.state(rows), self.state(cols));
        let [from, to] = [n.from, n.to].map(|g| g.map(|x| x as i32));
        let arguments = args![table, dy, rows, cols, from[0], from[1], to[0], to[1], n.cols as i32];
        self.launch(&self.kernels.resize_positions_backward, Shape::flat(n.from[0] * n.from[1] * n.cols), arguments);
    }

    fn clear(&mut self, x: Act) {
        let (at, bytes) = (self.act(x), x.len() * self.act_bytes());
        self.clear_bytes(at, bytes);
    }

    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize) {
        for [crop, count, row, tokens] in groups(n) {
            let (dx, dy, len) = (self.act_at(dx_acc, row * cols), self.act_at(dy, crop * cols), count * cols);
            let kernel = &self.kernels.scatter_class_acc;
            self.launch(kernel, Shape::flat(len), args![dx, dy, len as i64, tokens as i32, cols as i32]);
        }
    }

    fn l2_normalise_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows) {
        let (dx, dy, y, norm) = (self.act(dx), self.act(dy), self.act(y), self.stat(norm));
        let arguments = args![dx, dy, y, norm, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.l2_normalise_backward, Shape::warps(n.rows), arguments);
    }
}

impl Update for Gpu {
    fn zero_grads(&mut self) {
        let (at, bytes) = self.all_grads();
        self.clear_bytes(at, bytes);
    }

    fn zero(&mut self, x: State) {
        let at = self.state(x);
        self.clear_bytes(at, 4 * x.len());
    }

    fn teacher_lse(
        &mut self,
        lse: Stat,
        entropy: Stat,
        z: Act,
        p: Prototypes,
        centre: State,
        hyper: State,
        n: LossDims,
    ) {
        let (lse, entropy) = (self.stat(lse), self.stat(entropy));
        let slope = self.state(hyper) + 4 * hyper::INV_TEACHER_TEMP as u64;
        let centre = self.state(centre);
        self.sweep(lse, entropy, z, p, centre, slope, n.teachers * n.images, n);
    }

    fn dino_loss(
        &mut self,
        loss: Stat,
        lse: Stat,
        dz: Act,
        z: Act,
        student: Prototypes,
        z_teacher: Act,
        lse_teacher: Stat,
        teacher: Prototypes,
        centre: State,
        hyper: State,
        n: LossDims,
    ) {
        let (rows, rows_teacher, c) = (n.rows(), n.teachers * n.images, n.bottleneck);
        let slope = self.state(hyper) + 4 * hyper::INV_STUDENT_TEMP as u64;
        let lse = self.stat(lse);
        self.sweep(lse, 0, z, student, 0, slope, rows, n);

        // The workspace: dz's sums, then a tile's student products, targets, gradients and scaled gradients.
        let element = self.act_bytes();
        let fixed = 4 * rows * c;
        let tile = self.loss_tile(fixed, rows * (4 + 2 * element) + rows_teacher * 4, n.prototypes);
        let mut next = self.workspace_at();
        let mut take = |bytes: usize| {
            let at = next;
            next += bytes.next_multiple_of(256) as u64;
            at
        };
        let (sums, s, t) = (take(fixed), take(4 * rows * tile), take(4 * rows_teacher * tile));
        let (ds, ds_scaled) = (take(element * rows * tile), take(element * rows * tile));
        let (zs, zt, loss, lse_teacher) = (self.act(z), self.act(z_teacher), self.stat(loss), self.stat(lse_teacher));
        let (hyper, centre, grad) = (self.state(hyper), self.state(centre), self.grad(student.v));
        let (vs, vt) = (self.factor(student.v), self.factor(teacher.v));
        for at in (0..n.prototypes).step_by(tile) {
            let width = tile.min(n.prototypes - at);
            let v_at = (at * c * element) as u64;
            let (scale, scale_t) = (self.stat_at(student.scale, at), self.stat_at(teacher.scale, at));
            self.product_nt(Out::F32(s), zs, vs + v_at, [rows, width, c], 0, 0);
            self.product_nt(Out::F32(t), zt, vt + v_at, [rows_teacher, width, c], 0, 0);
            let arguments = args![t, lse_teacher, scale_t, centre + 4 * at as u64, hyper, width as i32];
            self.launch(&self.kernels.loss_targets, Shape::blocks(rows_teacher), arguments);
            self.launch(
                &self.kernels.loss_gradient,
                Shape::blocks(rows),
                args![
                    loss,
                    ds,
                    ds_scaled,
                    s,
                    t,
                    lse,
                    scale,
                    hyper,
                    width as i32,
                    n.images as i32,
                    n.first_view as i32,
                    n.teachers as i32,
                    (at == 0) as i32
                ],
            );
            self.product_tn(grad + 4 * (at * c) as u64, ds, zs, [width, c, rows], 0); // the workspace is taken
            self.product_nn(Out::F32(sums), ds_scaled, vs + v_at, [rows, c, width], at > 0);
        }
        let dz = self.act(dz);
        self.launch(&self.kernels.from_f32, Shape::flat(rows * c), args![dz, sums, (rows * c) as i64]);
    }

    fn sum_rows(&mut self, sum: State, x: Act, n: Rows) {
        let (sum, x) = (self.state(sum), self.act(x));
        self.launch(&self.kernels.sum_rows, Shape::flat(n.cols), args![sum, x, n.rows as i32, n.cols as i32]);
    }

    fn sum_stat(&mut self, sum: State, x: Stat) {
        let (sum, at) = (self.state(sum), self.stat(x));
        self.launch(&self.kernels.sum_stat, Shape::blocks(1), args![sum, at, x.len() as i32]);
    }

    fn weight_norm_backward(&mut self, v: Weight, g: Weight, scale: Stat, train_gain: bool, n: Rows) {
        let (dv, dg) = (self.grad(v), if train_gain { self.grad(g) } else { 0 });
        let (v, scale) = (self.weight(v), self.stat(scale));
        let arguments = args![dv, dg, v, scale, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.weight_norm_backward, Shape::warps(n.rows), arguments);
    }

    fn clip(&mut self, monitor: State, table: &Table, hyper: State) {
        let Some(p) = self.pieces(table) else { return };
        let (monitor, hyper, grads) = (self.state(monitor), self.state(hyper), self.all_grads().0);
        let k = self.kernels;
        self.launch(&k.clip_squares, Shape::blocks(p.count), args![p.squares, p.pieces, grads]);
        let arguments = args![p.factors, p.tensor_squares, p.squares, p.first, hyper];
        self.launch(&k.clip_factors, Shape::blocks(p.tensors), arguments);
        self.launch(&k.clip_verdict, Shape::blocks(1), args![monitor, p.tensor_squares, p.tensors as i32]);
        self.launch(&k.clip_apply, Shape::blocks(p.count), args![grads, p.pieces, p.factors]);
    }

    fn commit_centre(&mut self, centre: State, monitor: State, sum: State, teacher: Prototypes, hyper: State, n: Rows) {
        let (at, monitor, sum, hyper) = (self.state(centre), self.state(monitor), self.state(sum), self.state(hyper));
        let (v, scale) = (self.weight(teacher.v), self.stat(teacher.scale));
        let arguments = args![at, sum, v, scale, monitor, hyper, n.rows as i32, n.cols as i32];
        self.launch(&self.kernels.commit_centre, Shape::warps(n.rows), arguments);
        self.launch(&self.kernels.centre_norm, Shape::blocks(1), args![monitor, at, centre.len() as i32]);
    }

    fn adamw(&mut self, monitor: State, table: &Table, hyper: State) {
        let Some(p) = self.pieces(table) else { return };
        let (monitor, hyper, grads) = (self.state(monitor), self.state(hyper), self.all_grads().0);
        let ([weights, shadow], [first, second]) = (self.networks(0), self.moments(table.len()));
        let arguments = args![weights, shadow, first, second, grads, p.pieces, monitor, hyper];
        self.launch(&self.kernels.adamw, Shape::blocks(p.count), arguments);
    }

    fn ema(&mut self, monitor: State, table: &Table, hyper: State) {
        let len = table.len();
        let ([student, _], [teacher, shadow]) = (self.networks(0), self.networks(len));
        let (monitor, hyper) = (self.state(monitor), self.state(hyper));
        self.launch(&self.kernels.ema, Shape::flat(len), args![teacher, shadow, student, monitor, hyper, len as i64]);
    }
}

impl Gpu {
    /// Prototypes of a tile, such that `fixed` bytes and `each` bytes a prototype fit the workspace: whole blocks of 64 where they do.
    fn loss_tile(&mut self, fixed: usize, each: usize, prototypes: usize) -> usize {
        let room = self.workspace_bytes().saturating_sub(fixed + 5 * 256) / each.max(1);
        if room == 0 {
            self.fail(
                Error::new(format!("a workspace of {} bytes holds no tile of the loss", self.workspace_bytes()))
                    .hint("a larger --workspace, or a smaller --micro-batch"),
            );
        }
        let tile = if room >= 64 { room / 64 * 64 } else { room.max(1) };
        tile.min(8192).min(prototypes)
    }

    /// The running softmax of every row over all prototypes: lse (rows, 2), and the entropy unless 0. `centre` may be 0.
    fn sweep(
        &mut self,
        lse: u64,
        entropy: u64,
        z: Act,
        p: Prototypes,
        centre: u64,
        slope: u64,
        rows: usize,
        n: LossDims,
    ) {
        let fixed = 12 * rows;
        let tile = self.loss_tile(fixed, 4 * rows, n.prototypes);
        let (running, z, v) = (self.workspace_at(), self.act(z), self.factor(p.v));
        let s = running + fixed.next_multiple_of(256) as u64;
        for at in (0..n.prototypes).step_by(tile) {
            let width = tile.min(n.prototypes - at);
            let v = v + (at * n.bottleneck * self.act_bytes()) as u64;
            self.product_nt(Out::F32(s), z, v, [rows, width, n.bottleneck], 0, 0);
            let (scale, last) = (self.stat_at(p.scale, at), at + width == n.prototypes);
            let centre = if centre == 0 { 0 } else { centre + 4 * at as u64 };
            self.launch(
                &self.kernels.loss_running,
                Shape::blocks(rows),
                args![running, lse, entropy, s, scale, centre, slope, width as i32, (at == 0) as i32, last as i32],
            );
        }
    }
}

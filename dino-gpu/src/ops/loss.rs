//! The loss, streamed over tiles of prototypes that are stored in the workspace.

use crate::args;
use crate::gemm::Out;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::*;
use dino_kernel::mem::{Act, Stat, State};
use dino_kernel::scalars::hyper;

/// Addresses of the loss's part of the workspace, for tiles of `tile` prototypes.
struct Tile {
    tile: usize,
    sums: u64,
    more: u64,
    s: u64,
    t: u64,
    ds: u64,
    ds_scaled: u64,
}

impl Gpu {
    /// See [`Update::teacher_lse`].
    pub(super) fn streamed_teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims) {
        let TargetRows { z, lse, prototypes, offset } = targets;
        let out = [self.stat(lse), self.stat(entropy)];
        let slope = self.state(hyper) + 4 * hyper::INV_TEACHER_TEMP as u64;
        let offset = self.state(offset);
        self.sweep(out, StudentRows { z, prototypes }, offset, slope, n.teachers * n.images, n);
    }

    /// See [`Update::dino_loss`].
    pub(super) fn streamed_loss(
        &mut self,
        out: LossSpans,
        student: StudentRows,
        targets: TargetRows,
        hyper: State,
        n: LossDims,
    ) {
        let rows = n.rows();
        let slope = self.state(hyper) + 4 * hyper::INV_STUDENT_TEMP as u64;
        let lse = self.stat(out.lse);
        self.sweep([lse, 0], student, 0, slope, rows, n);

        let Some(w) = self.tiles(0, n) else { return };
        let (loss, hyper_at) = (self.stat(out.loss), self.state(hyper));
        for at in (0..n.prototypes).step_by(w.tile) {
            let width = w.tile.min(n.prototypes - at);
            self.tile_forward(&w, at, width, student, targets, hyper, n);
            let scale = self.stat_at(student.prototypes.scale, at);
            self.launch(
                &self.kernels.loss_gradient,
                Shape::blocks(rows),
                args![
                    loss,
                    w.ds,
                    w.ds_scaled,
                    w.s,
                    w.t,
                    lse,
                    scale,
                    hyper_at,
                    width as i32,
                    n.images as i32,
                    n.first_view as i32,
                    n.teachers as i32,
                    (at == 0) as i32
                ],
            );
            self.tile_backward(&w, at, width, student, n);
        }
        self.set_dz(&w, out.dz, n);
    }

    /// See [`Update::mse_loss`]: the tiles once for the loss and every row's inner product, once for the gradient.
    pub(super) fn streamed_mse(
        &mut self,
        out: LossSpans,
        student: StudentRows,
        targets: TargetRows,
        hyper: State,
        n: LossDims,
    ) {
        let rows = n.rows();
        let slope = self.state(hyper) + 4 * hyper::INV_STUDENT_TEMP as u64;
        let lse = self.stat(out.lse);
        self.sweep([lse, 0], student, 0, slope, rows, n);

        let Some(w) = self.tiles(4 * rows, n) else { return };
        let (loss, hyper_at, inner) = (self.stat(out.loss), self.state(hyper), w.more);
        let dims = [n.images, n.first_view, n.teachers].map(|n| n as i32);
        let shape = Shape::blocks(rows);
        for gradient in [false, true] {
            for at in (0..n.prototypes).step_by(w.tile) {
                let width = w.tile.min(n.prototypes - at);
                self.tile_forward(&w, at, width, student, targets, hyper, n);
                let (scale, tile, [images, first_view, teachers]) =
                    (self.stat_at(student.prototypes.scale, at), width as i32, dims);
                if gradient {
                    let arguments = args![
                        w.ds,
                        w.ds_scaled,
                        inner,
                        w.s,
                        w.t,
                        lse,
                        scale,
                        hyper_at,
                        tile,
                        images,
                        first_view,
                        teachers
                    ];
                    self.launch(&self.kernels.mse_gradient, shape, arguments);
                    self.tile_backward(&w, at, width, student, n);
                } else {
                    let arguments = args![
                        loss,
                        inner,
                        w.s,
                        w.t,
                        lse,
                        scale,
                        hyper_at,
                        tile,
                        images,
                        first_view,
                        teachers,
                        (at == 0) as i32
                    ];
                    self.launch(&self.kernels.mse_inner, shape, arguments);
                }
            }
        }
        self.set_dz(&w, out.dz, n);
    }

    /// See [`Update::column_lse`].
    pub(super) fn streamed_column_lse(
        &mut self,
        offset: State,
        z: Act,
        lse: Stat,
        p: Prototypes,
        hyper: State,
        n: LossDims,
        block: usize,
    ) {
        let (c, rows) = (n.bottleneck, n.teachers * n.images);
        // The workspace: a tile's running sums of 16 bytes a prototype, then its logits.
        let Some(tile) = self.loss_tile(0, 16 + 4 * block, n.prototypes) else { return };
        let (running, v) = (self.workspace_at(), self.factor(p.v));
        let s = running + (16 * tile).next_multiple_of(256) as u64;
        let slope = self.state(hyper) + 4 * hyper::INV_TEACHER_TEMP as u64;
        for at in (0..n.prototypes).step_by(tile) {
            let width = tile.min(n.prototypes - at);
            let v = v + (at * c * self.act_bytes()) as u64;
            let (scale, offset) = (self.stat_at(p.scale, at), self.state(offset) + 4 * at as u64);
            for first in (0..rows).step_by(block) {
                let here = block.min(rows - first);
                self.matmul_nt(Out::F32(s), self.act_at(z, first * c), v, [here, width, c], 0, 0);
                let lse = if lse.len() == 0 { 0 } else { self.stat_at(lse, 2 * first) };
                let (start, finish) = ((first == 0) as i32, (first + here == rows) as i32);
                let arguments = args![running, offset, s, lse, scale, slope, here as i32, width as i32, start, finish];
                self.launch(&self.kernels.column_running, Shape::flat(width), arguments);
            }
        }
    }

    /// Lays out the workspace for a tile: dz's sums, `more` bytes that last for the op, the tile's student logits, targets, gradients and
    /// scaled gradients.
    fn tiles(&mut self, more: usize, n: LossDims) -> Option<Tile> {
        let (rows, rows_teacher, element) = (n.rows(), n.teachers * n.images, self.act_bytes());
        let fixed = 4 * rows * n.bottleneck;
        let each = rows * (4 + 2 * element) + rows_teacher * 4;
        let reserved = if more > 0 { more.next_multiple_of(256) } else { 0 };
        let tile = self.loss_tile(fixed + reserved, each, n.prototypes)?;
        let mut next = self.workspace_at();
        let mut take = |bytes: usize| {
            let at = next;
            next += bytes.next_multiple_of(256) as u64;
            at
        };
        let (sums, more, s, t) = (take(fixed), take(more), take(4 * rows * tile), take(4 * rows_teacher * tile));
        let (ds, ds_scaled) = (take(element * rows * tile), take(element * rows * tile));
        Some(Tile { tile, sums, more, s, t, ds, ds_scaled })
    }

    /// The student's logits of prototypes `at .. at + width`, and the teacher's probabilities.
    fn tile_forward(
        &mut self,
        w: &Tile,
        at: usize,
        width: usize,
        student: StudentRows,
        targets: TargetRows,
        hyper: State,
        n: LossDims,
    ) {
        let (rows, rows_teacher, c) = (n.rows(), n.teachers * n.images, n.bottleneck);
        let v_at = (at * c * self.act_bytes()) as u64;
        let (vs, vt) = (self.factor(student.prototypes.v) + v_at, self.factor(targets.prototypes.v) + v_at);
        let (zs, zt) = (self.act(student.z), self.act(targets.z));
        self.matmul_nt(Out::F32(w.s), zs, vs, [rows, width, c], 0, 0);
        self.matmul_nt(Out::F32(w.t), zt, vt, [rows_teacher, width, c], 0, 0);
        let (lse, offset) = (self.stat(targets.lse), self.state(targets.offset) + 4 * at as u64);
        let scale = self.stat_at(targets.prototypes.scale, at);
        let arguments = args![w.t, lse, scale, offset, self.state(hyper), width as i32];
        self.launch(&self.kernels.loss_targets, Shape::blocks(rows_teacher), arguments);
    }

    /// From the gradient of the tile's logits: that of its prototypes, and its part of dz.
    fn tile_backward(&mut self, w: &Tile, at: usize, width: usize, student: StudentRows, n: LossDims) {
        let (rows, c) = (n.rows(), n.bottleneck);
        let (v, zs) = (student.prototypes.v, self.act(student.z));
        let (grad, vs) = (self.grad(v) + 4 * (at * c) as u64, self.factor(v) + (at * c * self.act_bytes()) as u64);
        self.matmul_tn(grad, w.ds, zs, [width, c, rows], 0); // the workspace is taken
        self.matmul_nn(Out::F32(w.sums), w.ds_scaled, vs, [rows, c, width], at > 0);
    }

    /// dz from the sums over all tiles.
    fn set_dz(&mut self, w: &Tile, dz: Act, n: LossDims) {
        let len = n.rows() * n.bottleneck;
        let dz = self.act(dz);
        self.launch(&self.kernels.from_f32, Shape::flat(len), args![dz, w.sums, len as i64]);
    }

    /// Prototypes of a tile, such that `fixed` bytes and `each` bytes a prototype fit the workspace: full blocks of 64 where they do.
    /// None, and an error, where not one fits.
    fn loss_tile(&mut self, fixed: usize, each: usize, prototypes: usize) -> Option<usize> {
        let fit = self.workspace_bytes().saturating_sub(fixed + 5 * 256) / each.max(1);
        if fit == 0 {
            self.too_small(fixed + 5 * 256 + each);
            return None;
        }
        let tile = if fit >= 64 { fit / 64 * 64 } else { fit };
        Some(tile.min(8192).min(prototypes))
    }

    /// The running softmax of every row over all prototypes: lse (rows, 2), and the entropy unless 0. `offset` may be 0.
    fn sweep(
        &mut self,
        [lse, entropy]: [u64; 2],
        StudentRows { z, prototypes }: StudentRows,
        offset: u64,
        slope: u64,
        rows: usize,
        n: LossDims,
    ) {
        let fixed = 12 * rows;
        let Some(tile) = self.loss_tile(fixed, 4 * rows, n.prototypes) else { return };
        let (running, z, v) = (self.workspace_at(), self.act(z), self.factor(prototypes.v));
        let s = running + fixed.next_multiple_of(256) as u64;
        for at in (0..n.prototypes).step_by(tile) {
            let width = tile.min(n.prototypes - at);
            let v = v + (at * n.bottleneck * self.act_bytes()) as u64;
            self.matmul_nt(Out::F32(s), z, v, [rows, width, n.bottleneck], 0, 0);
            let (scale, last) = (self.stat_at(prototypes.scale, at), at + width == n.prototypes);
            let offset = if offset == 0 { 0 } else { offset + 4 * at as u64 };
            self.launch(
                &self.kernels.loss_running,
                Shape::blocks(rows),
                args![running, lse, entropy, s, scale, offset, slope, width as i32, (at == 0) as i32, last as i32],
            );
        }
    }
}

//! The loss, streamed over tiles of prototypes that are stored in the workspace.

use crate::args;
use crate::gemm::Out;
use crate::gpu::Gpu;
use crate::kernels::Shape;
use dino_kernel::backend::*;
use dino_kernel::mem::{Stat, State};
use dino_kernel::scalars::hyper;

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
        let (rows, rows_teacher, c) = (n.rows(), n.teachers * n.images, n.bottleneck);
        let slope = self.state(hyper) + 4 * hyper::INV_STUDENT_TEMP as u64;
        let lse = self.stat(out.lse);
        self.sweep([lse, 0], student, 0, slope, rows, n);

        // The workspace: dz's sums, then a tile's student logits, targets, gradients and scaled gradients.
        let element = self.act_bytes();
        let fixed = 4 * rows * c;
        let each = rows * (4 + 2 * element) + rows_teacher * 4;
        let Some(tile) = self.loss_tile(fixed, each, n.prototypes) else { return };
        let mut next = self.workspace_at();
        let mut take = |bytes: usize| {
            let at = next;
            next += bytes.next_multiple_of(256) as u64;
            at
        };
        let (sums, s, t) = (take(fixed), take(4 * rows * tile), take(4 * rows_teacher * tile));
        let (ds, ds_scaled) = (take(element * rows * tile), take(element * rows * tile));
        let (own, others) = (student.prototypes, targets.prototypes);
        let (zs, zt, loss) = (self.act(student.z), self.act(targets.z), self.stat(out.loss));
        let (lse_teacher, offset) = (self.stat(targets.lse), self.state(targets.offset));
        let (hyper, grad) = (self.state(hyper), self.grad(own.v));
        let (vs, vt) = (self.factor(own.v), self.factor(others.v));
        for at in (0..n.prototypes).step_by(tile) {
            let width = tile.min(n.prototypes - at);
            let v_at = (at * c * element) as u64;
            let (scale, scale_t) = (self.stat_at(own.scale, at), self.stat_at(others.scale, at));
            self.matmul_nt(Out::F32(s), zs, vs + v_at, [rows, width, c], 0, 0);
            self.matmul_nt(Out::F32(t), zt, vt + v_at, [rows_teacher, width, c], 0, 0);
            let arguments = args![t, lse_teacher, scale_t, offset + 4 * at as u64, hyper, width as i32];
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
            self.matmul_tn(grad + 4 * (at * c) as u64, ds, zs, [width, c, rows], 0); // the workspace is taken
            self.matmul_nn(Out::F32(sums), ds_scaled, vs + v_at, [rows, c, width], at > 0);
        }
        let dz = self.act(out.dz);
        self.launch(&self.kernels.from_f32, Shape::flat(rows * c), args![dz, sums, (rows * c) as i64]);
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

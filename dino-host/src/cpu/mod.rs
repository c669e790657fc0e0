//! The CPU backend: rayon over tiles, crops and blocks of rows, `matrixmultiply` inside, row kernels that vectorise. Ops that cost nothing run
//! through the reference backend.
//!
//! Same bits for any number of threads: every sum has a fixed order, whichever thread or tile it falls to.

mod attention;
pub mod fast;
pub mod gemm;
mod loss;
pub mod rows;
pub mod small;
mod turn;

use crate::device::{self, Device, Step};
use crate::dist::Group;
use crate::error::{Error, Result};
use dino_kernel::backend::reference::Train;
use dino_kernel::backend::*;
use dino_kernel::crops::Ragged;
use dino_kernel::group::{GroupError, ProcessGroup};
use dino_kernel::mem::{Act, Pool, Span, Stat, State, Weight};
use dino_kernel::ops;
use dino_kernel::ops::loss::LossOut;
use dino_kernel::params::{ParamTable, Role};
use dino_kernel::plan::{Plan, Pools};
use dino_kernel::scalars::{hyper, monitor};
use rayon::prelude::*;
use std::cell::RefCell;

/// The pools, in f32.
pub struct Cpu {
    weights: Vec<f32>,
    grads: Vec<f32>,
    moments: Vec<f32>,
    acts: Vec<f32>,
    stats: Vec<f32>,
    state: Vec<f32>,
    /// Partial sums of one op; grows to the largest need and stays.
    scratch: Vec<f32>,
    group: Group,
    /// Why the group's last sum was not formed; ops cannot fail, so it waits for `sync`.
    failure: Option<GroupError>,
}

/// The CPU takes no flags of its own.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct NoOptions {}

/// Elements per task of an elementwise op: large enough to hide the task, small enough for a cache.
const CHUNK: usize = 1 << 14;

/// Distinct spans of one pool as slices.
fn split<const N: usize>(pool: &mut [f32], spans: [Span; N]) -> [&mut [f32]; N] {
    match pool.get_disjoint_mut(spans.map(Span::range)) {
        Ok(parts) => parts,
        Err(_) => panic!("the plan hands an op overlapping or out-of-pool spans: {spans:?}"),
    }
}

/// Cuts a packed matrix of `width` elements a token into its crops.
fn crops(mut data: &mut [f32], n: Ragged, width: usize) -> Vec<&mut [f32]> {
    n.each().map_while(|(_, tokens)| data.split_off_mut(..tokens * width)).collect()
}

/// The same for a matrix that is read.
fn crops_of(data: &[f32], n: Ragged, width: usize) -> Vec<&[f32]> {
    n.each().map(|(first, tokens)| &data[first * width..][..tokens * width]).collect()
}

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `len` elements of this thread's scratch, which keeps its largest size, from a cache line's start on. One user at a time: `f` may
/// not ask for scratch again, as `gemm::sgemm` does.
fn with_scratch(len: usize, f: impl FnOnce(&mut [f32])) {
    SCRATCH.with_borrow_mut(|s| {
        if s.len() < len + 15 {
            s.resize(len + 15, 0.0);
        }
        let first = s.as_ptr().align_offset(64);
        f(&mut s[first..][..len])
    })
}

impl Cpu {
    fn reference(&mut self) -> Train<'_, f32> {
        Train {
            weights: &mut self.weights,
            grads: &mut self.grads,
            moments: &mut self.moments,
            acts: &mut self.acts,
            stats: &mut self.stats,
            state: &mut self.state,
        }
    }

    fn hyper(&self, h: State) -> [f32; hyper::LEN] {
        let mut numbers = [0.0; hyper::LEN];
        numbers.copy_from_slice(&self.state[h.range()]);
        numbers
    }

    fn finite(&self, m: State) -> bool {
        self.state[m.0.at + monitor::FINITE] == 1.0
    }

    fn pool(&mut self, pool: Pool) -> &mut Vec<f32> {
        match pool {
            Pool::Weights => &mut self.weights,
            Pool::Grads => &mut self.grads,
            Pool::Moments => &mut self.moments,
            Pool::Acts => &mut self.acts,
            Pool::Stats => &mut self.stats,
            Pool::State => &mut self.state,
        }
    }
}

impl Forward for Cpu {
    fn patchify(&mut self, y: Act, x: Act, n: Patches) {
        self.reference().patchify(y, x, n);
    }

    fn linear(&mut self, y: Act, x: Act, w: Affine, n: Mat) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        gemm::linear(y, x, &self.weights[w.w.range()], &self.weights[w.b.range()], n.inp);
    }

    fn gelu(&mut self, y: Act, x: Act) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| rows::gelu(y, x));
    }

    fn linear_gelu(&mut self, y: Act, pre: Act, x: Act, w: Affine, n: Mat) {
        let [y, pre, x] = split(&mut self.acts, [y.0, pre.0, x.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        gemm::linear_gelu(y, pre, x, w, b, n.inp);
    }

    fn layernorm(&mut self, y: Act, stats: NormStats, x: Act, w: Affine, n: LayerNorm) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        let block = gemm::row_block(n.rows);
        let kept = mean.par_chunks_mut(block).zip(rstd.par_chunks_mut(block));
        y.par_chunks_mut(block * n.cols)
            .zip(x.par_chunks(block * n.cols))
            .zip(kept)
            .for_each(|((y, x), (mean, rstd))| rows::layernorm(y, mean, rstd, x, w, b, n.eps));
    }

    fn add(&mut self, y: Act, x: Act, branch: Act) {
        let [y, x, b] = split(&mut self.acts, [y.0, x.0, branch.0]);
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .zip(b.par_chunks(CHUNK))
            .for_each(|((y, x), b)| rows::add(y, x, b));
    }

    fn add_scaled(&mut self, y: Act, x: Act, branch: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x, b] = split(&mut self.acts, [y.0, x.0, branch.0]);
        let read = crops_of(x, n, cols).into_par_iter().zip(crops_of(b, n, cols)).zip(&self.state[scale.range()]);
        crops(y, n, cols).into_par_iter().zip(read).for_each(|(y, ((x, b), &s))| rows::add_scaled(y, x, b, s));
    }

    fn add_layernorm(&mut self, y: Act, sum: Act, stats: NormStats, x: Act, branch: Act, w: Affine, n: LayerNorm) {
        let [y, sum, x, branch] = split(&mut self.acts, [y.0, sum.0, x.0, branch.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (w, b) = (&self.weights[w.w.range()], &self.weights[w.b.range()]);
        let block = gemm::row_block(n.rows);
        let wide = block * n.cols;
        let kept = mean.par_chunks_mut(block).zip(rstd.par_chunks_mut(block));
        let written = y.par_chunks_mut(wide).zip(sum.par_chunks_mut(wide)).zip(kept);
        written.zip(x.par_chunks(wide)).zip(branch.par_chunks(wide)).for_each(
            |((((y, sum), (mean, rstd)), x), branch)| {
                rows::add(sum, x, branch);
                rows::layernorm(y, mean, rstd, sum, w, b, n.eps);
            },
        );
    }

    fn resize_positions(&mut self, y: Act, table: Weight, rows: State, cols: State, n: Grid) {
        self.reference().resize_positions(y, table, rows, cols, n);
    }

    fn embed(&mut self, y: Act, patches: Act, class: Weight, class_position: Weight, positions: Act, n: Embed) {
        self.reference().embed(y, patches, class, class_position, positions, n);
    }

    fn attention(&mut self, out: Attention, qkv: Act, n: Heads) {
        let [y, qkv] = split(&mut self.acts, [out.y.0, qkv.0]);
        attention::forward(y, &mut self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class(&mut self, out: Attention, x: ClassQkv, n: Heads) {
        let [y, q, kv] = split(&mut self.acts, [out.y.0, x.q.0, x.kv.0]);
        attention::class_forward(y, &mut self.stats[out.lse.range()], q, kv, n);
    }

    fn attention_rows(&mut self, y: Act, lse: Stat, qkv: Act, queries: usize, n: Heads) {
        self.reference().attention_rows(y, lse, qkv, queries, n);
    }

    fn gather_class(&mut self, y: Act, x: Act, n: Ragged, cols: usize) {
        self.reference().gather_class(y, x, n, cols);
    }

    fn l2_normalize(&mut self, y: Act, norm: Stat, x: Act, n: Rows) {
        self.reference().l2_normalize(y, norm, x, n);
    }

    fn prototype_scale(&mut self, scale: Stat, v: Weight, g: Weight, n: Rows) {
        let (v, g) = (&self.weights[v.range()], &self.weights[g.range()]);
        let scale = self.stats[scale.range()].par_chunks_mut(256);
        scale
            .zip(v.par_chunks(256 * n.cols))
            .zip(g.par_chunks(256))
            .for_each(|((scale, v), g)| rows::prototype_scale(scale, v, g, n.cols));
    }

    fn logits(&mut self, y: Act, z: Act, p: Prototypes, n: Mat) {
        let [y, z] = split(&mut self.acts, [y.0, z.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        let block = gemm::row_block(n.rows);
        y.par_chunks_mut(block * n.out).zip(z.par_chunks(block * n.inp)).for_each(|(y, z)| {
            let size = [y.len() / n.out, n.inp, n.out];
            gemm::sgemm(y, n.out, gemm::View::rows(z, n.inp), gemm::View::transposed(v, n.inp), size, 0.0);
            y.chunks_mut(n.out).for_each(|row| rows::scale_columns(row, scale));
        });
    }
}

impl Backward for Cpu {
    fn linear_backward(&mut self, dx: Act, dy: Act, x: Act, w: Affine, n: Mat) {
        {
            let [dx, dy] = split(&mut self.acts, [dx.0, dy.0]);
            gemm::input_gradient(dx, dy, &self.weights[w.w.range()], n.inp, n.out);
        }
        self.linear_backward_params(dy, x, w, n);
    }

    fn linear_backward_params(&mut self, dy: Act, x: Act, w: Affine, n: Mat) {
        let [dw, db] = split(&mut self.grads, [w.w.0, w.b.0]);
        gemm::weight_gradient(dw, db, &self.acts[dy.range()], &self.acts[x.range()], n.inp);
    }

    fn gelu_backward(&mut self, dx: Act, dy: Act, x: Act) {
        let [dx, dy, x] = split(&mut self.acts, [dx.0, dy.0, x.0]);
        dx.par_chunks_mut(CHUNK)
            .zip(dy.par_chunks(CHUNK))
            .zip(x.par_chunks(CHUNK))
            .for_each(|((dx, dy), x)| rows::gelu_backward(dx, dy, x));
    }

    fn layernorm_backward(&mut self, dx_acc: Act, dy: Act, x: Act, stats: NormStats, w: Affine, n: Rows) {
        let [dx, dy, x] = split(&mut self.acts, [dx_acc.0, dy.0, x.0]);
        let [mean, rstd] = split(&mut self.stats, [stats.mean.0, stats.rstd.0]);
        let (mean, rstd, weight) = (&*mean, &*rstd, &self.weights[w.w.range()]);
        let block = gemm::row_block(n.rows);
        let wide = block * n.cols;
        self.scratch.clear();
        self.scratch.resize(n.rows.div_ceil(block) * 2 * n.cols, 0.0);
        let read = dy.par_chunks(wide).zip(x.par_chunks(wide)).zip(mean.par_chunks(block).zip(rstd.par_chunks(block)));
        dx.par_chunks_mut(wide).zip(self.scratch.par_chunks_mut(2 * n.cols)).zip(read).for_each(
            |((dx, sums), ((dy, x), (mean, rstd)))| {
                let (dw, db) = sums.split_at_mut(n.cols);
                rows::layernorm_backward(dx, dw, db, dy, x, mean, rstd, weight);
            },
        );
        let [dw, db] = split(&mut self.grads, [w.w.0, w.b.0]);
        for sums in self.scratch.chunks(2 * n.cols) {
            rows::add_assign(dw, &sums[..n.cols]);
            rows::add_assign(db, &sums[n.cols..]);
        }
    }

    fn scale_crops(&mut self, y: Act, x: Act, scale: State, n: Ragged, cols: usize) {
        let [y, x] = split(&mut self.acts, [y.0, x.0]);
        let read = crops_of(x, n, cols).into_par_iter().zip(&self.state[scale.range()]);
        crops(y, n, cols).into_par_iter().zip(read).for_each(|(y, (x, &s))| rows::scaled(y, x, s));
    }

    fn attention_backward(&mut self, dqkv: Act, dy: Act, out: Attention, qkv: Act, n: Heads) {
        let [dqkv, dy, y, qkv] = split(&mut self.acts, [dqkv.0, dy.0, out.y.0, qkv.0]);
        attention::backward(dqkv, dy, y, &self.stats[out.lse.range()], qkv, n);
    }

    fn attention_class_backward(&mut self, dx: ClassQkv, dy: Act, out: Attention, x: ClassQkv, n: Heads) {
        let [dq, dkv, dy, y, q, kv] = split(&mut self.acts, [dx.q.0, dx.kv.0, dy.0, out.y.0, x.q.0, x.kv.0]);
        attention::class_backward(dq, dkv, dy, y, &self.stats[out.lse.range()], q, kv, n);
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
        self.reference().embed_backward(dpatches, dpositions, dy, class, class_position, n);
    }

    fn resize_positions_backward(&mut self, dy: Act, table: Weight, rows: State, cols: State, n: Grid) {
        self.reference().resize_positions_backward(dy, table, rows, cols, n);
    }

    fn clear(&mut self, x: Act) {
        self.acts[x.range()].fill(0.0);
    }

    fn scatter_class_acc(&mut self, dx_acc: Act, dy: Act, n: Ragged, cols: usize) {
        self.reference().scatter_class_acc(dx_acc, dy, n, cols);
    }

    fn l2_normalize_backward(&mut self, dx: Act, dy: Act, y: Act, norm: Stat, n: Rows) {
        self.reference().l2_normalize_backward(dx, dy, y, norm, n);
    }
}

impl Collective for Cpu {
    fn all_reduce(&mut self, table: &dyn ParamTable, sums: Sums) {
        let [teacher, losses] = split(&mut self.state, [sums.teacher.0, sums.losses.0]);
        let mut all = [&mut self.grads[..table.len()], teacher, losses];
        if let Err(e) = all.iter_mut().try_for_each(|x| self.group.sum(x)) {
            let [.., losses] = all;
            losses.fill(f32::NAN);
            self.failure = Some(e);
        }
    }
}

impl Update for Cpu {
    fn zero_grads(&mut self) {
        self.grads.par_chunks_mut(CHUNK).for_each(|g| g.fill(0.0));
    }

    fn zero(&mut self, x: State) {
        self.state[x.range()].fill(0.0);
    }

    fn teacher_lse(&mut self, entropy: Stat, targets: TargetRows, hyper: State, n: LossDims) {
        let h = self.hyper(hyper);
        let TargetRows { z, lse, prototypes, offset } = targets;
        let [lse, entropy, scale] = split(&mut self.stats, [lse.0, entropy.0, prototypes.scale.0]);
        let rows = loss::Rows { z: &self.acts[z.range()], v: &self.weights[prototypes.v.range()], scale };
        loss::teacher_lse(lse, entropy, rows, &self.state[offset.range()], &h, n, &mut self.scratch);
    }

    fn dino_loss(&mut self, out: LossSpans, student: StudentRows, targets: TargetRows, hyper: State, n: LossDims) {
        let h = self.hyper(hyper);
        let (own, others) = (student.prototypes, targets.prototypes);
        let [dz, z, z_teacher] = split(&mut self.acts, [out.dz.0, student.z.0, targets.z.0]);
        let [loss, lse, lse_teacher, scale, scale_teacher] =
            split(&mut self.stats, [out.loss.0, out.lse.0, targets.lse.0, own.scale.0, others.scale.0]);
        let out = LossOut { loss, lse, dz, dw: &mut self.grads[own.v.range()] };
        let student = loss::Rows { z, v: &self.weights[own.v.range()], scale };
        let rows = loss::Rows { z: z_teacher, v: &self.weights[others.v.range()], scale: scale_teacher };
        let targets = loss::Targets { rows, lse: lse_teacher, offset: &self.state[targets.offset.range()] };
        loss::forward_backward(out, student, targets, &h, n, &mut self.scratch);
    }

    fn sum_rows(&mut self, sum: State, x: Act, n: Rows) {
        self.reference().sum_rows(sum, x, n);
    }

    fn sum_stat(&mut self, sum: State, x: Stat) {
        self.reference().sum_stat(sum, x);
    }

    fn keep_sums(&mut self, kept: State, table: &dyn ParamTable, sums: Sums) {
        let [kept, teacher, losses] = split(&mut self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at_mut(table.len());
        let read = self.grads[..table.len()].par_chunks(CHUNK);
        grads.par_chunks_mut(CHUNK).zip(read).for_each(|(kept, g)| kept.copy_from_slice(g));
        let (kept_teacher, kept_losses) = rest.split_at_mut(teacher.len());
        kept_teacher.copy_from_slice(teacher);
        kept_losses.copy_from_slice(losses);
    }

    fn add_sums(&mut self, table: &dyn ParamTable, sums: Sums, kept: State) {
        let [kept, teacher, losses] = split(&mut self.state, [kept.0, sums.teacher.0, sums.losses.0]);
        let (grads, rest) = kept.split_at(table.len());
        let written = self.grads[..table.len()].par_chunks_mut(CHUNK);
        written.zip(grads.par_chunks(CHUNK)).for_each(|(g, kept)| rows::add_assign(g, kept));
        let (kept_teacher, kept_losses) = rest.split_at(teacher.len());
        rows::add_assign(teacher, kept_teacher);
        rows::add_assign(losses, kept_losses);
    }

    fn weight_norm_backward(&mut self, p: Prototypes, g: Weight, train_gain: bool, n: Rows) {
        let (wide, cols) = (256 * n.cols, n.cols);
        let [dv, dg] = split(&mut self.grads, [p.v.0, g.0]);
        let (v, scale) = (&self.weights[p.v.range()], &self.stats[p.scale.range()]);
        let tiles = dv.par_chunks_mut(wide).zip(v.par_chunks(wide)).zip(scale.par_chunks(256));
        tiles.zip(dg.par_chunks_mut(256)).for_each(|(((dv, v), scale), dg)| {
            rows::weight_norm_backward(dv, train_gain.then_some(dg), v, scale, cols);
        });
    }

    fn clip(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let limit = self.hyper(hyper)[hyper::CLIP] as f64;
        let mut total = 0.0;
        table.visit(&mut |spec| {
            let g = &mut self.grads[spec.at.range()];
            let parts: Vec<f64> = g.par_chunks(CHUNK).map(rows::sum_squares).collect();
            let square: f64 = parts.iter().sum();
            total += square;
            let factor = ops::optim::clip_factor(square.sqrt(), limit) as f32;
            if factor < 1.0 {
                g.par_chunks_mut(CHUNK).for_each(|g| rows::scale(g, factor));
            }
        });
        let m = &mut self.state[m.range()];
        let finite = total.is_finite() && m[monitor::LOSS].is_finite();
        m[monitor::FINITE] = if finite && m[monitor::HALTED] == 0.0 { 1.0 } else { 0.0 };
        if !finite {
            m[monitor::HALTED] = 1.0;
        }
        m[monitor::GRAD_NORM] = total.sqrt() as f32;
    }

    fn commit_center(&mut self, center: State, m: State, sum: State, teacher: Prototypes, hyper: State, n: Rows) {
        let h = self.hyper(hyper);
        if !self.finite(m) {
            return;
        }
        let [center, m, sum] = split(&mut self.state, [center.0, m.0, sum.0]);
        let (sum, v, scale) = (&*sum, &self.weights[teacher.v.range()], &self.stats[teacher.scale.range()]);
        center
            .par_chunks_mut(256)
            .zip(v.par_chunks(256 * n.cols))
            .zip(scale.par_chunks(256))
            .for_each(|((center, v), scale)| rows::commit_center(center, sum, v, scale, &h));
        m[monitor::CENTER_NORM] = rows::sum_squares(center).sqrt() as f32;
    }

    fn adamw(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let h = self.hyper(hyper);
        if !self.finite(m) {
            return;
        }
        let (first, second) = self.moments.split_at_mut(table.len());
        let frozen = h[hyper::FREEZE_LAST] != 0.0;
        table.visit(&mut |spec| {
            let (last, at) = (spec.last_layer, spec.at.range());
            if spec.role == Role::Frozen || (last && frozen) {
                return;
            }
            let decay = if spec.role == Role::Decay { h[hyper::DECAY] } else { 0.0 };
            let (step, bias2) = if last { (hyper::STEP_LAST, hyper::BIAS2_LAST) } else { (hyper::STEP, hyper::BIAS2) };
            let p = self.weights[at.clone()].par_chunks_mut(CHUNK);
            let (m, v) = (first[at.clone()].par_chunks_mut(CHUNK), second[at.clone()].par_chunks_mut(CHUNK));
            let g = self.grads[at].par_chunks(CHUNK);
            p.zip(m).zip(v).zip(g).for_each(|(((p, m), v), g)| rows::adamw(p, m, v, g, decay, h[step], h[bias2], &h));
        });
    }

    fn ema(&mut self, m: State, table: &dyn ParamTable, hyper: State) {
        let rate = self.hyper(hyper)[hyper::EMA_RATE];
        if self.finite(m) {
            let (student, teacher) = self.weights.split_at_mut(table.len());
            let student = student.par_chunks(CHUNK);
            teacher.par_chunks_mut(CHUNK).zip(student).for_each(|(t, s)| rows::ema(t, s, rate));
        }
    }
}

impl Memory for Cpu {
    fn read(&mut self, pool: Pool, at: usize, out: &mut [f64]) {
        self.reference().read(pool, at, out);
    }

    fn write(&mut self, pool: Pool, at: usize, values: &[f64]) {
        self.reference().write(pool, at, values);
    }

    fn len(&mut self, pool: Pool) -> usize {
        self.pool(pool).len()
    }
}

impl Device for Cpu {
    type Options = NoOptions;
    const KIND: &'static str = "cpu";
    /// Larger micro-batches are faster: see the table in BENCHMARKS.md.
    const RECOMPUTE: bool = true;

    fn memory(_: &NoOptions, n: Pools) -> Vec<(&'static str, u64)> {
        let pools = [
            ("weights", n.weights),
            ("gradients", n.grads),
            ("Adam's moments", n.moments),
            ("activations", n.acts),
            ("statistics", n.stats),
            ("state", n.state),
            ("scratch of the loss", loss::scratch_len(n.loss)),
        ];
        pools.map(|(name, len)| (name, 4 * len as u64)).to_vec()
    }

    fn thread_scratch(pools: Pools) -> u64 {
        let scratch =
            attention::scratch_len(pools).max(gemm::scratch_len(pools.widest)).max(loss::turned_len(pools.loss));
        4 * (scratch + gemm::packed_len(pools.widest)) as u64
    }

    fn new(_: &NoOptions, pools: Pools) -> Result<Cpu> {
        // Zero pages of the system take room only once they are touched. (Asking for huge ones made no difference to a step.)
        let room = |len: usize| {
            let mut room = Vec::<f32>::new();
            let found = room.try_reserve_exact(len).is_ok();
            std::hint::black_box(room.as_ptr()); // a reservation that nobody looks at may be left out
            found
        };
        let zeros = |len: usize| {
            match room(len) {
            true => Ok(vec![0.0; len]),
            false => Err(Error::new(format!(
                "not enough memory: the plan takes {:.2} GiB",
                Cpu::memory(&NoOptions {}, pools).iter().map(|item| item.1).sum::<u64>() as f64 / f64::powi(2.0, 30)
            ))
            .hint("a smaller --micro-batch or --stream-crops takes less, and --mem-limit chooses; `dino-host plan` shows what takes how much")),
        }
        };
        Ok(Cpu {
            weights: zeros(pools.weights)?,
            grads: zeros(pools.grads)?,
            moments: zeros(pools.moments)?,
            acts: zeros(pools.acts)?,
            stats: zeros(pools.stats)?,
            state: zeros(pools.state)?,
            scratch: zeros(loss::scratch_len(pools.loss))?,
            group: Group::default(),
            failure: None,
        })
    }

    fn upload(&mut self, pool: Pool, at: usize, values: &[f32]) {
        self.pool(pool)[at..][..values.len()].copy_from_slice(values);
    }

    fn download(&mut self, pool: Pool, at: usize, values: &mut [f32]) {
        let len = values.len();
        values.copy_from_slice(&self.pool(pool)[at..][..len]);
    }

    fn run(&mut self, work: impl FnOnce(&mut Self) + Send) {
        rayon::scope(|_| work(self));
    }

    fn join(&mut self, group: Group) -> Result<()> {
        self.group = group;
        Ok(())
    }

    fn step(&mut self, plan: &Plan, step: &Step) -> Result<()> {
        self.sync()?;
        self.run(|cpu| device::say(cpu, plan, step, Self::upload));
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        match self.failure {
            None => Ok(()),
            Some(e) => Err(self.group.explain(e)),
        }
    }

    fn name(&self) -> String {
        format!("{}, {} threads", self.arithmetic(), rayon::current_num_threads())
    }

    fn arithmetic(&self) -> String {
        format!("CPU, {}", gemm::instructions())
    }
}

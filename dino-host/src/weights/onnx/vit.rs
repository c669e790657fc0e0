//! A vision transformer's graph.

use super::Size;
use super::graph::{DOUBLE, FLOAT, Graph, INT64, Raw, int, ints, value};
use crate::error::{Error, Result};
use crate::weights::entries::entries;
use dino_kernel::backend::Grid;
use dino_kernel::crops::Group;
use dino_kernel::model::{Table, Vit};
use dino_kernel::ops::position::{self, Interpolation};
use dino_kernel::params::Part;

/// The full network, as `dino_kernel::model::vit` has it.
///
/// # Errors
/// A fixed size holds no patch.
pub(super) fn network<'a>(g: &mut Graph<'a>, vit: &Vit, table: &Table, weights: &'a [f32], size: Size) -> Result<()> {
    let (patch, c) = (vit.patch, vit.dim as i64);
    if let Size::Fixed { height, width } = size
        && height.min(width) < patch
    {
        return Err(Error::new(format!("images of {width} x {height} pixels hold no patch of {patch}"))
            .hint(format!("sides of {patch} pixels or more")));
    }
    g.properties.push(("patch_size", patch.to_string()));
    let mut pos_embed = &weights[..0];
    for entry in entries(table).into_iter().filter(|entry| entry.part == Part::Backbone) {
        let values = &weights[entry.at];
        if entry.name == "pos_embed" {
            pos_embed = values;
        }
        // Resized ones are written below.
        if entry.name != "pos_embed" || size == Size::Free {
            g.tensor(&entry.name, FLOAT, &entry.shape, Raw::Weights(values));
        }
    }
    let [height, width] = match size {
        Size::Fixed { height, width } => [Ok(height), Ok(width)],
        Size::Free => [Err("height"), Err("width")],
    };

    let patches = [ints("kernel_shape", &[patch as i64; 2]), ints("strides", &[patch as i64; 2])];
    let grid = g.op("Conv", &["pixels", "patch_embed.proj.weight", "patch_embed.proj.bias"], &patches);
    let x = g.reshape(&grid, &[0, c, -1]);
    let x = g.transpose(&x, &[0, 2, 1]);
    let shape = g.op("Shape", &["pixels"], &[]);
    let (from, to) = (g.ints(&[0]), g.ints(&[1]));
    let images = g.op("Slice", &[&shape, &from, &to], &[]);
    let rest = g.ints(&[1, c]);
    let one = g.op("Concat", &[&images, &rest], &[int("axis", 0)]);
    let class = g.op("Expand", &["cls_token", &one], &[]);
    let x = g.op("Concat", &[&class, &x], &[int("axis", 1)]);
    let positions = match size {
        Size::Free => free_positions(g, vit, &grid),
        Size::Fixed { height, width } => {
            let group = Group { count: 1, height, width };
            let raw = fixed_positions(vit, pos_embed, group);
            let [rows, cols] = group.grid(patch);
            g.tensor("pos_embed", FLOAT, &[1, 1 + rows * cols, vit.dim], raw);
            "pos_embed".into()
        }
    };
    let mut x = g.op("Add", &[&x, &positions], &[]);

    for i in 0..vit.depth {
        let of = |leaf: &str| format!("blocks.{i}.{leaf}");
        let y = g.layernorm(None, &x, &of("norm1"));
        let y = attention(g, &y, &of("attn"), vit.heads, vit.dim);
        x = g.op("Add", &[&x, &y], &[]);
        let y = g.layernorm(None, &x, &of("norm2"));
        let y = g.linear(&y, &of("mlp.fc1"));
        let y = gelu(g, &y);
        let y = g.linear(&y, &of("mlp.fc2"));
        x = g.op("Add", &[&x, &y], &[]);
    }
    g.layernorm(Some("tokens"), &x, "norm");
    let first = g.constant(INT64, &[], 0i64.to_le_bytes().to_vec());
    g.named("features", "Gather", &["tokens", &first], &[int("axis", 1)]);

    let tokens = match size {
        Size::Fixed { height, width } => Ok(1 + (height / patch) * (width / patch)),
        Size::Free => Err("tokens"),
    };
    let dim = Ok(vit.dim);
    g.nodes = std::mem::take(&mut g.nodes)
        .bytes(2, "dino")
        .bytes(11, value("pixels", &[Err("batch"), Ok(vit.channels), height, width]))
        .bytes(12, value("features", &[Err("batch"), dim]))
        .bytes(12, value("tokens", &[Err("batch"), tokens, dim]));
    Ok(())
}

fn attention(g: &mut Graph, x: &str, name: &str, heads: usize, dim: usize) -> String {
    let each = dim / heads;
    let qkv = g.linear(x, &format!("{name}.qkv"));
    let qkv = g.reshape(&qkv, &[0, 0, 3, heads as i64, each as i64]);
    let qkv = g.transpose(&qkv, &[2, 0, 3, 1, 4]); // (3, batch, heads, tokens, D)
    let [q, k, v] = [0, 1, 2].map(|i| g.pick(&qkv, i, 0));
    let scale = g.float((each as f64).powf(-0.5) as f32);
    let q = g.op("Mul", &[&q, &scale], &[]);
    let k = g.transpose(&k, &[0, 1, 3, 2]);
    let p = g.op("MatMul", &[&q, &k], &[]);
    let p = g.op("Softmax", &[&p], &[int("axis", -1)]);
    let y = g.op("MatMul", &[&p, &v], &[]);
    let y = g.transpose(&y, &[0, 2, 1, 3]);
    let y = g.reshape(&y, &[0, 0, dim as i64]);
    g.linear(&y, &format!("{name}.proj"))
}

/// x (1 + erf(x / sqrt 2)) / 2.
fn gelu(g: &mut Graph, x: &str) -> String {
    let [root, one, half] = [std::f32::consts::FRAC_1_SQRT_2, 1.0, 0.5].map(|v| g.float(v));
    let y = g.op("Mul", &[x, &root], &[]);
    let y = g.op("Erf", &[&y], &[]);
    let y = g.op("Add", &[&y, &one], &[]);
    let y = g.op("Mul", &[x, &y], &[]);
    g.op("Mul", &[&y, &half], &[])
}

/// The class token's position and the others' for one size of images.
fn fixed_positions<'a>(vit: &Vit, all: &'a [f32], group: Group) -> Raw<'a> {
    let (side, to, c) = (vit.image / vit.patch, group.grid(vit.patch), vit.dim);
    if position::is_native(group, vit.patch, side) {
        return Raw::Weights(all);
    }
    let [rows, cols] = to.map(|n| {
        let mut m = vec![0.0f32; n * side];
        position::matrix(&mut m, side, n, Some(vit.positions));
        m
    });
    let mut y = vec![0.0; to[0] * to[1] * c];
    position::forward(&mut y, &all[c..], &rows, &cols, Grid { from: [side; 2], to, cols: c });
    Raw::Bytes(all[..c].iter().chain(&y).flat_map(|x| x.to_le_bytes()).collect())
}

/// The same for any size, by the graph: the two small matrices of `dino_kernel::ops::position`, in doubles as there, and their
/// matmuls with the table.
fn free_positions(g: &mut Graph, vit: &Vit, grid: &str) -> String {
    let (side, c) = (vit.image / vit.patch, vit.dim as i64);
    let shape = g.op("Shape", &[grid], &[]);
    let [rows, cols] = [2, 3].map(|axis| g.pick(&shape, axis, 0));
    let pixels = g.op("Shape", &["pixels"], &[]);
    let [height, width] = [2, 3].map(|axis| g.pick(&pixels, axis, 0));
    // The table is used as it is where the image is square and has as many patches.
    let patches = g.op("Mul", &[&rows, &cols], &[]);
    let own = g.constant(INT64, &[], ((side * side) as i64).to_le_bytes().to_vec());
    let [square, many] = [[&height, &width], [&patches, &own]].map(|[a, b]| g.op("Equal", &[a, b], &[]));
    let native = g.op("And", &[&square, &many], &[]);
    let [rows, cols] = [rows, cols].map(|n| position_matrix(g, &n, side, vit.positions, &native));

    let [zero, one, end, axis] = [[0], [1], [i64::MAX], [1]].map(|v| g.ints(&v));
    let class = g.op("Slice", &["pos_embed", &zero, &one, &axis], &[]);
    let table = g.op("Slice", &["pos_embed", &one, &end, &axis], &[]);
    let y = g.reshape(&table, &[side as i64, -1]);
    let y = g.op("MatMul", &[&rows, &y], &[]); // (rows, side C)
    let y = g.reshape(&y, &[-1, side as i64, c]);
    let y = g.op("MatMul", &[&cols, &y], &[]); // (rows, cols, C)
    let y = g.reshape(&y, &[1, -1, c]);
    g.op("Concat", &[&class, &y], &[int("axis", 1)])
}

/// (n, side): bicubic weights, a = -0.75, taps clamped at the edge; the identity where `native`.
fn position_matrix(g: &mut Graph, n: &str, side: usize, interpolation: Interpolation, native: &str) -> String {
    const A: f64 = -0.75;
    let scalar = |g: &mut Graph, x: f64| g.doubles(&[], &[x]);
    let [zero, one, half, sides, last] = [0.0, 1.0, 0.5, side as f64, side as f64 - 1.0].map(|x| scalar(g, x));
    let n = g.cast(n, DOUBLE);
    let i = g.op("Range", &[&zero, &n, &one], &[]);
    let offset = scalar(g, if interpolation == Interpolation::Published { 0.1 } else { 0.0 });
    let stretched = g.op("Add", &[&n, &offset], &[]);
    let source = g.op("Add", &[&i, &half], &[]);
    let source = g.op("Mul", &[&source, &sides], &[]);
    let source = g.op("Div", &[&source, &stretched], &[]);
    let source = g.op("Sub", &[&source, &half], &[]);
    let base = g.op("Floor", &[&source], &[]);
    let t = g.op("Sub", &[&source, &base], &[]);
    let [base, t] = [base, t].map(|x| g.unsqueeze(&x, &[1]));
    // The four taps, and of each distance x the polynomial ((a3 x + a2) x + a1) x + a0: far, near, near, far.
    let taps = g.doubles(&[4], &[-1.0, 0.0, 1.0, 2.0]);
    let x = g.op("Sub", &[&t, &taps], &[]);
    let x = g.op("Abs", &[&x], &[]);
    let coefficients = [[A, A + 2.0], [-5.0 * A, -(A + 3.0)], [8.0 * A, 0.0], [-4.0 * A, 1.0]]
        .map(|[far, near]| [far, near, near, far]);
    let mut weight = g.doubles(&[4], &coefficients[0]);
    for more in &coefficients[1..] {
        let more = g.doubles(&[4], more);
        weight = g.op("Mul", &[&weight, &x], &[]);
        weight = g.op("Add", &[&weight, &more], &[]);
    }
    let at = g.op("Add", &[&base, &taps], &[]);
    let at = g.op("Clip", &[&at, &zero, &last], &[]);
    // Scattered over the table's side, and the taps added up.
    let places: Vec<f64> = (0..side).map(|i| i as f64).collect();
    let places = g.doubles(&[side], &places);
    let [at, weight] = [at, weight].map(|x| g.unsqueeze(&x, &[2]));
    let here = g.op("Equal", &[&at, &places], &[]);
    let here = g.cast(&here, DOUBLE);
    let m = g.op("Mul", &[&here, &weight], &[]);
    let axis = g.ints(&[1]);
    let m = g.op("ReduceSum", &[&m, &axis], &[int("keepdims", 0)]);
    let rows = g.unsqueeze(&i, &[1]);
    let identity = g.op("Equal", &[&rows, &places], &[]);
    let identity = g.cast(&identity, DOUBLE);
    let m = g.op("Where", &[native, &identity, &m], &[]);
    g.cast(&m, FLOAT)
}

//! A residual network's graph.

use super::Size;
use super::graph::{FLOAT, Graph, Raw, float, int, ints, value};
use super::proto::Message;
use crate::weights::entries::entries;
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::resnet::Block;
use dino_kernel::model::{ResNet, Table};
use dino_kernel::ops::batchnorm::EPS;
use dino_kernel::params::Part;

/// The full network with its running statistics, as `dino_kernel::model::resnet` has it in evaluation.
pub(super) fn network<'a>(g: &mut Graph<'a>, resnet: &ResNet, table: &Table, weights: &'a [f32], size: Size) {
    let mut shortcuts = vec![];
    for entry in entries(table).into_iter().filter(|entry| entry.part == Part::Backbone) {
        g.tensor(&entry.name, FLOAT, &entry.shape, Raw::Weights(&weights[entry.in_part(table)]));
        shortcuts.extend(entry.name.strip_suffix("downsample.0.weight").map(String::from));
    }
    let stem = resnet.stem;
    let x = convolve(g, "pixels", "conv1", stem.kernel, stem.stride);
    let x = norm(g, &x, "bn1");
    let mut x = g.op("Relu", &[&x], &[]);
    if stem.pool {
        x = g.op("MaxPool", &[&x], &window(3, 2));
    }
    let last = resnet.stages().len() - 1;
    for (i, stage) in resnet.stages().iter().enumerate() {
        for j in 0..stage.blocks {
            let (at, stride) = (format!("layer{}.{j}.", i + 1), if j == 0 { stage.stride } else { 1 });
            let ends = i == last && j + 1 == stage.blocks;
            x = block(g, &x, &at, resnet, stride, shortcuts.contains(&at), ends.then_some("map"));
        }
    }
    let pooled = g.op("GlobalAveragePool", &["map"], &[]);
    g.named("features", "Flatten", &[&pooled], &[int("axis", 1)]);

    let (dim, [height, width], map) = match size {
        Size::Fixed { height, width } => {
            let map = resnet.last_maps(Crops::one(Group { count: 1, height, width })).group(0);
            (Ok(resnet.dim()), [Ok(height), Ok(width)], [Ok(map.height), Ok(map.width)])
        }
        Size::Free => (Ok(resnet.dim()), [Err("height"), Err("width")], [Err("rows"), Err("columns")]),
    };
    g.nodes = std::mem::take(&mut g.nodes)
        .bytes(2, "dino")
        .bytes(11, value("pixels", &[Err("batch"), Ok(resnet.channels), height, width]))
        .bytes(12, value("features", &[Err("batch"), dim]))
        .bytes(12, value("map", &[Err("batch"), dim, map[0], map[1]]));
}

/// The block whose tensors' names begin with `at`: relu(branch(x) + shortcut(x)). `output`: the name of what it gives, if it has one.
fn block(
    g: &mut Graph,
    x: &str,
    at: &str,
    resnet: &ResNet,
    stride: usize,
    shortcut: bool,
    output: Option<&str>,
) -> String {
    // Sides and strides of the filters; the stride is that of a 3 x 3.
    let filters = match resnet.block {
        Block::Basic => &[(3, stride), (3, 1)][..],
        Block::Bottleneck => &[(1, 1), (3, stride), (1, 1)][..],
    };
    let mut y = x.to_string();
    for (i, &(kernel, stride)) in filters.iter().enumerate() {
        y = convolve(g, &y, &format!("{at}conv{}", i + 1), kernel, stride);
        y = norm(g, &y, &format!("{at}bn{}", i + 1));
        if i + 1 < filters.len() {
            y = g.op("Relu", &[&y], &[]);
        }
    }
    let mut rest = x.to_string();
    if shortcut {
        rest = convolve(g, x, &format!("{at}downsample.0"), 1, stride);
        rest = norm(g, &rest, &format!("{at}downsample.1"));
    }
    let y = g.op("Add", &[&y, &rest], &[]);
    match output {
        None => g.op("Relu", &[&y], &[]),
        Some(output) => {
            g.named(output, "Relu", &[&y], &[]);
            output.into()
        }
    }
}

/// A window of odd side with half of it as padding.
fn window(kernel: usize, stride: usize) -> [Message; 3] {
    let [kernel, stride] = [kernel, stride].map(|n| n as i64);
    [ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[kernel / 2; 4])]
}

fn convolve(g: &mut Graph, x: &str, name: &str, kernel: usize, stride: usize) -> String {
    g.op("Conv", &[x, &format!("{name}.weight")], &window(kernel, stride))
}

/// By running statistics. (Runtimes fold it into the convolution.)
fn norm(g: &mut Graph, x: &str, name: &str) -> String {
    let [w, b, mean, var] = ["weight", "bias", "running_mean", "running_var"].map(|leaf| format!("{name}.{leaf}"));
    g.op("BatchNormalization", &[x, &w, &b, &mean, &var], &[float("epsilon", EPS as f32)])
}

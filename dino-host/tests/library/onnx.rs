//! ONNX models: their structure, and, where there is a Python with onnxruntime ($DINO_PYTHON), what they compute.

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::inference::dense::Dense;
use dino_host::weights::onnx::{self, Size};
use dino_kernel::crops::Group;
use dino_kernel::init;
use dino_kernel::mem::Layout;
use dino_kernel::params::Part;
use dino_kernel::rng::{Kind, Rng};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};
use std::process::Command;

fn config(arch: &str, patch_size: usize, global_size: usize, position_resize: &str) -> Config {
    let position_resize = position_resize.into();
    let mut config = Config { arch: arch.into(), patch_size, global_size, position_resize, ..Config::published() };
    (config.out_dim, config.local_size) = (64, patch_size);
    if arch == "vit_tiny" {
        (config.embed_dim, config.depth, config.heads) = (48, 3, 3);
    }
    config.resolve().unwrap()
}

/// Weights that keep the size of what passes through them, and everything that starts at 0 or 1 moved from there, so that all of it
/// counts.
fn weights(config: &Config) -> Vec<f32> {
    let table = config.table();
    let mut weights = vec![0.0; table.len()];
    init::weights(&mut weights, &table, 1, (config.embed_dim as f64).powf(-0.5));
    weights.truncate(table.backbone_len());
    let mut rng = Rng::new(2, 0, 0, 0, Kind::Test, 0);
    weights.iter_mut().for_each(|w| *w += (0.02 * rng.normal()) as f32);
    // Running means around 0 and variances around 1.
    table.visit_buffers(|b| {
        weights.resize(table.backbone_len() + b.at.0.at, 0.0);
        weights.extend((0..b.at.len()).map(|_| (b.value + 0.2 * rng.normal().abs()) as f32));
    });
    weights.resize(table.backbone_numbers(), 0.0);
    weights
}

/// Bottlenecks behind torchvision's stem, or basic blocks behind a small one.
fn resnet(block_kind: &str, stem: &str) -> Config {
    let (arch, block_kind, stem) = ("resnet_small".into(), block_kind.into(), stem.into());
    let (widths, stage_blocks, out_dim) = (vec![8, 8, 12], vec![1, 2, 1], 64);
    let config = Config { arch, block_kind, stem, widths, stage_blocks, out_dim, batch: 8, ..Config::published() };
    Config { global_size: 32, local_size: 16, ..config }.resolve().unwrap()
}

fn save(path: &Path, tensors: &[(&str, &[usize], &[f32])]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|t| t.2.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views =
        tensors.iter().zip(&bytes).map(|(t, b)| (t.0, TensorView::new(Dtype::F32, t.1.to_vec(), b).expect("a tensor")));
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).unwrap();
}

/// Random images and what the CPU backend makes of them.
fn case(path: &Path, config: &Config, weights: &[f32], group: Group) {
    let Group { count, height, width } = group;
    let mut rng = Rng::new(3, height as u32, width as u32, 0, Kind::Test, 0);
    let pixels: Vec<f32> = (0..count * config.channels * height * width).map(|_| rng.normal() as f32).collect();
    let mut network = Dense::<Cpu>::new(&NoOptions {}, config, weights, group).unwrap();
    let c = config.embed_dim;
    if config.resnet().is_some() {
        let (found, [rows, columns]) = (network.rows(&pixels).unwrap(), network.grid());
        // Channels first, as ONNX has images.
        let cells = rows * columns;
        let map: Vec<f32> = (0..count * c * cells)
            .map(|i| found.cells[(i / (c * cells) * cells + i % cells) * c + i / cells % c])
            .collect();
        return save(
            path,
            &[
                ("pixels", &[count, config.channels, height, width], &pixels),
                ("features", &[count, c], &found.images),
                ("map", &[count, c, rows, columns], &map),
            ],
        );
    }
    let tokens = network.tokens(&pixels).unwrap();
    let many = tokens.len() / count / c;
    let features: Vec<f32> = tokens.chunks(many * c).flat_map(|image| image[..c].to_vec()).collect();
    save(
        path,
        &[
            ("pixels", &[count, config.channels, height, width], &pixels),
            ("features", &[count, c], &features),
            ("tokens", &[count, many, c], &tokens),
        ],
    );
}

/// A Python with what the check needs, or a line on the screen.
fn python() -> Option<PathBuf> {
    let Some(python) = std::env::var_os("DINO_PYTHON").map(PathBuf::from) else {
        println!("SKIPPED: what ONNX models compute: DINO_PYTHON names no Python");
        return None;
    };
    let found = Command::new(&python).args(["-c", "import onnx, onnxruntime, safetensors"]).status();
    if found.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    println!("SKIPPED: what ONNX models compute: {} has no onnx, onnxruntime and safetensors", python.display());
    None
}

fn check(python: &Path, config: &Config, size: Size, groups: &[[usize; 3]]) {
    let folder = tempfile::tempdir().unwrap();
    let (model, weights) = (folder.path().join("dino.onnx"), weights(config));
    onnx::write(&model, config, &weights, size).unwrap();
    let cases: Vec<PathBuf> = groups
        .iter()
        .enumerate()
        .map(|(i, &[count, height, width])| {
            let path = folder.path().join(format!("{i}.safetensors"));
            case(&path, config, &weights, Group { count, height, width });
            path
        })
        .collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/check_onnx.py");
    let ran = Command::new(python).arg(script).arg(&model).args(&cases).output().unwrap();
    println!("{size:?}\n{}", String::from_utf8_lossy(&ran.stdout));
    assert!(ran.status.success(), "{size:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn the_runtime_computes_what_we_compute() {
    let Some(python) = python() else { return };
    for rule in ["published", "size"] {
        let config = config("vit_tiny", 8, 32, rule);
        let fixed = |height, width| Size::Fixed { height, width };
        check(&python, &config, fixed(32, 32), &[[1, 32, 32], [5, 32, 32]]);
        check(&python, &config, fixed(48, 40), &[[2, 48, 40]]);
        // Native by its number of patches, and yet not square; a size that is no multiple of the patch; one patch; larger; smaller.
        let sizes = [[1, 32, 32], [5, 32, 32], [1, 16, 64], [2, 37, 39], [1, 8, 8], [1, 96, 104], [3, 24, 24]];
        check(&python, &config, Size::Free, &sizes);
    }
}

/// The published shape, at the published sizes.
#[test]
fn the_runtime_computes_vit_small() {
    let Some(python) = python() else { return };
    check(
        &python,
        &config("vit_small", 16, 224, "published"),
        Size::Free,
        &[[1, 224, 224], [2, 96, 96], [1, 480, 320]],
    );
}

#[test]
fn the_runtime_computes_resnets() {
    let Some(python) = python() else { return };
    for (block, stem) in [("bottleneck", "7x7"), ("basic", "3x3")] {
        let config = resnet(block, stem);
        check(&python, &config, Size::Fixed { height: 48, width: 40 }, &[[2, 48, 40]]);
        check(
            &python,
            &config,
            Size::Free,
            &[[1, 32, 32], [5, 32, 32], [1, 16, 64], [2, 37, 39], [1, 1, 1], [1, 96, 104]],
        );
    }
}

// ------------------------------------------------------------------------------------------------------- structure

/// The fields of a message: number, and either a number or bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (first, rest) = bytes.split_first().expect("a message that ends");
            *bytes = rest;
            value |= (*first as u64 & 0x7F) << shift;
            shift += 7;
            if first & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (number, content) = match key & 7 {
            0 => (varint(&mut bytes), &bytes[..0]),
            2 => {
                let len = varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(len);
                bytes = rest;
                (0, content)
            }
            5 => {
                let (content, rest) = bytes.split_at(4);
                bytes = rest;
                (0, content)
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, number, content));
    }
    found
}

fn text<'a>(message: &[(u64, u64, &'a [u8])], field: u64) -> Vec<&'a str> {
    message.iter().filter(|f| f.0 == field).map(|f| std::str::from_utf8(f.2).unwrap()).collect()
}

type Fields<'a> = Vec<(u64, u64, &'a [u8])>;

/// The tensors of a graph, the names of all values and the kinds of all nodes. Every input of a node is a tensor, the graph's input, or
/// what an earlier node gave.
fn ordered<'a>(graph: &Fields<'a>) -> (Vec<Fields<'a>>, Vec<String>, Vec<String>) {
    let mut known = vec!["pixels".to_string()];
    let tensors: Vec<_> = graph.iter().filter(|f| f.0 == 5).map(|f| fields(f.2)).collect();
    known.extend(tensors.iter().map(|t| text(t, 8)[0].to_string()));
    let mut kinds = Vec::new();
    for node in graph.iter().filter(|f| f.0 == 1).map(|f| fields(f.2)) {
        for input in text(&node, 1) {
            assert!(known.iter().any(|k| k == input), "{input} is used before it is there");
        }
        known.extend(text(&node, 2).into_iter().map(String::from));
        kinds.push(text(&node, 4)[0].to_string());
    }
    (tensors, known, kinds)
}

/// The same of a residual network: its parameters and running statistics under torchvision's names.
#[test]
fn a_model_of_a_resnet_holds_its_statistics() {
    let folder = tempfile::tempdir().unwrap();
    for (block, stem, convolutions, pools) in [("bottleneck", "7x7", 16, 1), ("basic", "3x3", 11, 0)] {
        let config = resnet(block, stem);
        let (weights, table) = (weights(&config), config.table());
        for size in [Size::Free, Size::Fixed { height: 33, width: 64 }] {
            let path = folder.path().join("model");
            onnx::write(&path, &config, &weights, size).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let model = fields(&bytes);
            let graph = fields(model.iter().find(|f| f.0 == 7).unwrap().2);
            let (tensors, known, kinds) = ordered(&graph);
            assert!(known.contains(&"features".into()) && known.contains(&"map".into()));
            let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
            assert_eq!(
                (count("Conv"), count("BatchNormalization"), count("MaxPool")),
                (convolutions, convolutions, pools)
            );
            assert_eq!((count("Add"), count("GlobalAveragePool")), (4, 1));
            let mut seen = 0;
            let mut holds = |name: String, shape: &[usize], values: &[f32]| {
                let tensor = tensors.iter().find(|t| text(t, 8) == [&name]).unwrap_or_else(|| panic!("no {name}"));
                let found: Vec<usize> = tensor.iter().filter(|f| f.0 == 1).map(|f| f.1 as usize).collect();
                let expected: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                assert!(found == shape && tensor.iter().find(|f| f.0 == 9).unwrap().2 == expected, "{name}");
                seen += 1;
            };
            table.backbone.params(&mut Layout::new(), &mut |spec| {
                holds(spec.name.to_string(), spec.shape(), &weights[spec.at.range()]);
            });
            table.backbone.buffers(&mut Layout::new(), &mut |b| {
                holds(b.name.to_string(), &[b.at.len()], &weights[table.backbone_len()..][b.at.range()]);
            });
            assert_eq!((seen, tensors.len()), (5 * convolutions, 5 * convolutions));
        }
    }
}

#[test]
fn a_model_holds_the_published_tensors_and_a_valid_graph() {
    let config = config("vit_tiny", 8, 32, "published");
    let weights = weights(&config);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, size| {
        let path = folder.path().join(name);
        onnx::write(&path, &config, &weights, size).unwrap();
        std::fs::read(path).unwrap()
    };
    let native = Size::Fixed { height: 32, width: 32 };
    assert_eq!(write("a", native), write("b", native), "the same weights give the same bytes");
    for size in [native, Size::Fixed { height: 16, width: 64 }, Size::Free] {
        let bytes = write("c", size);
        let model = fields(&bytes);
        assert_eq!(model.iter().find(|f| f.0 == 1).unwrap().1, 8, "version of the format");
        let opset = fields(model.iter().find(|f| f.0 == 8).unwrap().2);
        assert_eq!(opset.iter().find(|f| f.0 == 2).unwrap().1, 17);
        let graph = fields(model.iter().find(|f| f.0 == 7).unwrap().2);
        let (tensors, known, kinds) = ordered(&graph);
        assert!(known.contains(&"features".into()) && known.contains(&"tokens".into()));
        let count = |kind: &str| kinds.iter().filter(|k| *k == kind).count();
        assert_eq!((count("LayerNormalization"), count("Erf"), count("Softmax"), count("Conv")), (7, 3, 3, 1));
        // The published tensors, to the bit.
        config.table().visit(|spec| {
            let name = spec.name.to_string();
            if spec.part != Part::Backbone || (name == "pos_embed" && size == (Size::Fixed { height: 16, width: 64 })) {
                return;
            }
            let tensor = tensors.iter().find(|t| text(t, 8) == [&name]).unwrap_or_else(|| panic!("no {name}"));
            let shape: Vec<usize> = tensor.iter().filter(|f| f.0 == 1).map(|f| f.1 as usize).collect();
            assert_eq!(shape, spec.shape(), "{name}");
            let raw = tensor.iter().find(|f| f.0 == 9).unwrap().2;
            let expected: Vec<u8> = weights[spec.at.range()].iter().flat_map(|x| x.to_le_bytes()).collect();
            assert!(raw == expected, "{name}");
        });
    }
}

#[test]
fn images_without_a_patch_are_refused() {
    let config = config("vit_tiny", 8, 32, "published");
    let size = Size::Fixed { height: 7, width: 32 };
    let refused = onnx::write(Path::new("never"), &config, &weights(&config), size).unwrap_err();
    assert!(refused.to_string().contains("32 x 7"), "{refused}");
    for config in [config, resnet("basic", "3x3")] {
        for [height, width] in [[0, 32], [32, 0], [usize::MAX, 2], [usize::MAX, usize::MAX]] {
            let size = Size::Fixed { height, width };
            let refused = onnx::write(Path::new("never"), &config, &weights(&config), size).unwrap_err();
            assert!(refused.to_string().contains("have none, or more than"), "{refused}");
        }
    }
}

//! Residual networks against golden tensors: convolutions, pools, batch norms, blocks, and one training step of a small network with
//! batch norms in its head.

use dino_host::cpu::Cpu;
use dino_kernel::backend::*;
use dino_kernel::crops::{Crops, Group, Ragged};
use dino_kernel::mem::{Act, Layout, State};
use dino_kernel::model::resnet::{Block, Stage, Stem};
use dino_kernel::model::{Backbone, Head, Output, Pass, ResNet, Save, Statistics};
use dino_kernel::ops::batchnorm::EPS;
use dino_kernel::params::{Buffer, Spec};
use dino_kernel::plan::{self, Config, Plan, Pools};
use dino_kernel::step::{self, Hyper};
use tests::backend::{Arena, Factory, Reference, make_poisoned, read, read_grad, write};
use tests::fixture::{Fixture, Tensor};
use tests::for_backends;
use tests::gpu::OnGpu;
use tests::plans::ordinary;
use tests::training::{Net, Run, View, groups, hyper_numbers};

for_backends!([reference_f32: Reference<f32>, reference_f64: Reference<f64>, cpu: Cpu, gpu: OnGpu<false, 256>] [
    convolutions, max_pool, average_pool, batch_norm, basic_block, basic_block_down, bottleneck_down, training_step,
]);

#[test]
fn every_golden_tensor_belongs_to_a_test() {
    let f = Fixture::open("convnet");
    let all = ["conv", "maxpool.", "avgpool.", "batchnorm", "basicblock", "bottleneck", "mini."];
    assert_eq!(f.outputs(&all), f.outputs(&[""]));
}

/// (images, channels, height, width) to rows of channels, a row for every pixel.
fn rows(x: &Tensor) -> Vec<f64> {
    let (channels, map) = (x.shape[1], x.shape[2..].iter().product::<usize>());
    let image = |image: &[f64]| {
        (0..map).flat_map(|i| (0..channels).map(move |c| c * map + i)).map(|at| image[at]).collect::<Vec<_>>()
    };
    x.data.chunks(channels * map).flat_map(image).collect()
}

/// The way back, to the shape of `like`.
fn images(rows: &[f64], like: &Tensor) -> Vec<f64> {
    let (channels, map) = (like.shape[1], like.shape[2..].iter().product::<usize>());
    let image = |image: &[f64]| {
        (0..channels).flat_map(|c| (0..map).map(move |i| i * channels + c)).map(|at| image[at]).collect::<Vec<_>>()
    };
    rows.chunks(channels * map).flat_map(image).collect()
}

/// The maps of such a tensor.
fn maps(x: &Tensor) -> Crops {
    Crops::one(Group { count: x.shape[0], height: x.shape[2], width: x.shape[3] })
}

/// Stride and padding as the file states them: "[6, 3, 7, 7], stride 2, zero padding 3, no bias".
fn window(f: &Fixture, key: &str) -> Window {
    let meaning = f.text(key, "doc");
    let number = |after: &str| -> usize {
        let rest = meaning.split_once(after).unwrap_or_else(|| panic!("{key}: {meaning}")).1;
        rest.trim().split(',').next().and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("{key}: {meaning}"))
    };
    Window { kernel: f.get(key).last(), stride: number("stride"), padding: number("padding") }
}

fn convolutions<F: Factory>(who: &str) {
    let f = Fixture::open("convnet");
    for case in f.between("conv", ".w") {
        let key = |k: &str| format!("conv{case}.{k}");
        let get = |k: &str| f.get(&key(k));
        let (x, w) = (get("x"), get("w"));
        let n = Conv { maps: maps(x), window: window(&f, &key("w")), inp: w.shape[1], out: w.shape[0] };
        assert_eq!(n.output(), maps(get("y")));
        let mut a = Arena::new();
        let (at, dy) = (a.input(&rows(x)), a.input(&rows(get("dy"))));
        let (y, dx, acc) = (a.act(dy.len()), a.act(at.len()), a.input(&vec![2.0; at.len()]));
        let [weight, again, alone] = [(); 3].map(|()| a.weight(&w.data));
        let mut o = a.build::<F>();
        o.convolve(y, at, weight, n);
        o.convolve_backward(dx, dy, at, weight, n);
        o.convolve_backward_acc(acc, dy, at, again, n);
        o.convolve_backward_params(dy, at, alone, n);
        f.assert_golden(&key("y"), &images(&read(&mut o, y), get("y")));
        f.assert_golden(&key("dx"), &images(&read(&mut o, dx), x));
        let added: Vec<f64> = read(&mut o, acc).iter().map(|x| x - 2.0).collect();
        f.assert_golden(&key("dx"), &images(&added, x));
        for w in [weight, again, alone] {
            f.assert_golden(&key("dw"), &read_grad(&mut o, w));
        }
    }
    f.finish(who, &["conv"], &[]);
}

fn max_pool<F: Factory>(who: &str) {
    let f = Fixture::open("convnet");
    let get = |k: &str| f.get(&format!("maxpool.{k}"));
    let x = get("x");
    let n = MaxPool { maps: maps(x), window: Window { kernel: 3, stride: 2, padding: 1 }, cols: x.shape[1] };
    let mut a = Arena::new();
    let (at, dy) = (a.input(&rows(x)), a.input(&rows(get("dy"))));
    let (y, dx) = (a.act(dy.len()), a.act(at.len()));
    let mut o = a.build::<F>();
    o.max_pool(y, at, n);
    o.max_pool_backward(dx, dy, at, n);
    f.assert_golden("maxpool.y", &images(&read(&mut o, y), get("y")));
    f.assert_golden("maxpool.dx", &images(&read(&mut o, dx), x));
    f.finish(who, &["maxpool."], &[]);
}

fn average_pool<F: Factory>(who: &str) {
    let f = Fixture::open("convnet");
    let get = |k: &str| f.get(&format!("avgpool.{k}"));
    let (x, n) = (get("x"), maps(get("x")).maps());
    let mut a = Arena::new();
    let (at, dy) = (a.input(&rows(x)), a.input(&get("dy").data));
    let (y, dx) = (a.act(dy.len()), a.act(at.len()));
    let mut o = a.build::<F>();
    o.average_pool(y, at, n, x.shape[1]);
    o.average_pool_backward(dx, dy, n, x.shape[1]);
    f.assert_golden("avgpool.y", &read(&mut o, y));
    f.assert_golden("avgpool.dx", &images(&read(&mut o, dx), x));
    f.finish(who, &["avgpool."], &[]);
}

fn batch_norm<F: Factory>(who: &str) {
    let f = Fixture::open("convnet");
    for case in f.between("batchnorm", ".x") {
        let key = |k: &str| format!("batchnorm{case}.{k}");
        let get = |k: &str| f.get(&key(k));
        let (x, cols) = (get("x"), get("w").data.len());
        let crops = x.shape[0];
        let group = Ragged::single(x.data.len() / cols);
        let n = BatchNorm {
            rows: group,
            images: group.rows(),
            group: group.rows(),
            shards: 1,
            cols,
            eps: EPS,
            relu: false,
        };
        assert!(n.rows.rows().is_multiple_of(crops));
        let mut a = Arena::new();
        let (at, dy) = (a.input(&rows(x)), a.input(&rows(get("dy"))));
        let [y, dx, evaluated] = [(); 3].map(|()| a.act(at.len()));
        let affine = Affine { w: a.weight(&get("w").data), b: a.weight(&get("b").data) };
        let [stats, of_running] = [(); 2].map(|()| NormStats { mean: a.stat(cols), rstd: a.stat(cols) });
        let running = Running { mean: a.state(&get("rm").data), var: a.state(&get("rv").data) };
        let mut o = a.build::<F>();
        o.running_statistics(of_running, running, EPS);
        o.batch_normalize(evaluated, at, Act::EMPTY, of_running, affine, n);
        o.batch_statistics(stats, running, at, n);
        o.batch_normalize(y, at, Act::EMPTY, stats, affine, n);
        o.batch_normalize_backward(dx, dy, at, Act::EMPTY, stats, affine, n);
        f.assert_golden(&key("y_eval"), &images(&read(&mut o, evaluated), x));
        f.assert_golden(&key("y"), &images(&read(&mut o, y), x));
        f.assert_golden(&key("dx"), &images(&read(&mut o, dx), x));
        f.assert_golden(&key("dw"), &read_grad(&mut o, affine.w));
        f.assert_golden(&key("db"), &read_grad(&mut o, affine.b));
        f.assert_golden(&key("rm_new"), &read(&mut o, running.mean));
        f.assert_golden(&key("rv_new"), &read(&mut o, running.var));
    }
    f.finish(who, &["batchnorm"], &[]);
}

// ------------------------------------------------------------------------------------------------------------- blocks

fn basic_block<F: Factory>(who: &str) {
    block::<F>(who, "basicblock", Block::Basic, 1);
}

fn basic_block_down<F: Factory>(who: &str) {
    block::<F>(who, "basicblock_down", Block::Basic, 2);
}

fn bottleneck_down<F: Factory>(who: &str) {
    block::<F>(who, "bottleneck_down", Block::Bottleneck, 2);
}

/// The only block of a network whose stem gives what it reads, in passes that keep all and that compute again.
fn block<F: Factory>(who: &str, case: &str, block: Block, stride: usize) {
    let f = &Fixture::open("convnet");
    let key = |k: &str| format!("{case}.{k}");
    let get = |k: &str| f.get(&key(k));
    let shape = &get("param.conv1.weight").shape;
    let resnet = ResNet::new(224, 3, Stem::small(shape[1]), block).with(Stage { width: shape[0], blocks: 1, stride });
    for save in [Save::All, Save::Least] {
        let (backbone, crops) = (Backbone::ResNet(resnet), maps(get("x")));
        let images_of = crops.count();
        let mut l = Layout::new();
        let running = l.state(backbone.buffers_len());
        let statistics = Statistics::Groups { images: images_of, group: images_of, shards: 1 };
        let network = backbone.network(crops, statistics, running, &mut l);
        let pass = network.pass([0, images_of], Output::Class, save, State::EMPTY, &mut l).with_gradients(&mut l);
        let mut o = make_poisoned::<F>(pools(&backbone, crops, &l));
        let Pass::ResNet(pass) = pass else { panic!("a ResNet") };
        let (specs, buffers) = lists(&backbone, "layer1.0.");
        for (name, spec) in &specs {
            write(&mut o, spec.at, &get(&format!("param.{name}")).data);
        }
        for (name, b) in &buffers {
            write(&mut o, running.part(b.at.0.at, b.at.len()), &get(&format!("param.{name}")).data);
        }
        write(&mut o, pass.stream(0), &rows(get("x")));
        pass.forward_block(&mut o, 0);
        f.assert_golden(&key("y"), &images(&read(&mut o, pass.stream(1)), get("y")));
        let [dy, free] = pass.grads.dx;
        let dy = dy.part(0, get("dy").data.len());
        write(&mut o, dy, &rows(get("dy")));
        let dx = pass.backward_block(&mut o, 0, [dy, free]);
        f.assert_golden(&key("dx"), &images(&read(&mut o, dx), get("x")));
        for (name, spec) in &specs {
            f.assert_golden(&key(&format!("grad.{name}")), &read_grad(&mut o, spec.at));
        }
        for (name, b) in &buffers {
            f.assert_golden(&key(&format!("after.{name}")), &read(&mut o, running.part(b.at.0.at, b.at.len())));
        }
    }
    f.finish(who, &[&format!("{case}.")], &[]);
}

/// Rows of a list, by name.
type Named<T> = Vec<(String, T)>;

/// Parameters and buffers whose names begin so, under the rest of their names.
fn lists(backbone: &Backbone, prefix: &str) -> (Named<Spec>, Named<Buffer>) {
    let (mut specs, mut buffers) = (Vec::new(), Vec::new());
    let rest = |name: String| name.strip_prefix(prefix).map(str::to_owned);
    backbone.params(&mut Layout::new(), &mut |s| specs.extend(rest(s.name.to_string()).map(|name| (name, s))));
    backbone.buffers(&mut Layout::new(), &mut |b| buffers.extend(rest(b.name.to_string()).map(|name| (name, b))));
    (specs, buffers)
}

/// Pools of a pass that was laid out by hand, with gradients.
fn pools(backbone: &Backbone, crops: Crops, l: &Layout) -> Pools {
    let extents = backbone.extents(&crops, Some(1));
    Pools {
        weights: l.weights.next,
        grads: l.weights.next,
        slots: 0,
        acts: l.acts.next,
        stats: l.stats.next,
        state: l.state.next,
        input: 0,
        loss: LossDims::NONE,
        longest: 0,
        head_dim: 0,
        widest: extents.widest,
        filters: extents.filters,
        sums: extents.sums,
        lanes: 1,
        exchanged: 0,
    }
}

// ---------------------------------------------------------------------------------------------------------------- step

/// The name of a tensor of the small network: the file keeps the backbone's prefix.
fn mini(part: &str, name: &str) -> String {
    let prefix = if name.starts_with("head.") { "" } else { "backbone." };
    format!("mini.{part}.{prefix}{name}")
}

/// A batch through student and teacher, both in training mode: features, logits, loss, every gradient, and the running statistics, which
/// the passes of a step move only in a copy until it is committed.
fn training_step<F: Factory>(who: &str) {
    let f = Fixture::open("convnet");
    let shape = |name: &str| &f.get(&mini("param", name)).shape;
    let stem = Stem::published(shape("conv1.weight")[0]);
    let stage = |i: usize, stride| Stage { width: shape(&format!("layer{i}.0.conv1.weight"))[0], blocks: 1, stride };
    let resnet = ResNet::new(224, 3, stem, Block::Basic).with(stage(1, 1)).with(stage(2, 2));
    let head = Head {
        inp: resnet.dim(),
        layers: 3,
        hidden: shape("head.mlp.0.weight")[0],
        bottleneck: shape("head.mlp.6.weight")[0],
        prototypes: shape("head.last_layer.weight_v")[0],
        train_gain: false,
        batch_norm: true,
        ..Head::PUBLISHED
    };
    let cfg = f.get("mini.cfg").sizes();
    let view = |i: usize| {
        let x = f.get(&format!("mini.crop{i}"));
        View { height: x.shape[2], width: x.shape[3], pixels: x.data.clone() }
    };
    let views: Vec<View> = (0..cfg[1] + cfg[2]).map(view).collect();
    let crops = groups(views.iter().map(|v| (v.height, v.width)));
    let h = Hyper { teacher_temp: 0.04, student_temp: 0.1, clip_grad: 0.0, ..hyper_numbers() };
    for recompute in [false, true] {
        let backbone = Backbone::ResNet(resnet);
        let plan =
            Plan::new(Config { recompute, ..ordinary(backbone, head, crops, [cfg[0], cfg[0]]) }).expect("a sound plan");
        let mut run = Run::new::<F>(plan);
        for net in [Net::Student, Net::Teacher] {
            run.load(net, |spec| {
                let tensor = f.get(&mini("param", &spec.name.to_string()));
                assert_eq!(tensor.shape, spec.shape(), "published shape of {}", spec.name);
                tensor.data.clone()
            });
        }
        let mut buffers = Vec::new();
        plan.table.visit_buffers(|b| buffers.push(b));
        assert_eq!(f.between("mini.param.", "").len(), plan.table.tensors() + buffers.len(), "no other tensors");
        let of = |net: &plan::Net, b: &Buffer| net.running.part(b.at.0.at, b.at.len());
        for (net, b) in [&plan.student, &plan.teacher].into_iter().flat_map(|net| buffers.iter().map(move |b| (net, b)))
        {
            write(&mut run.o, of(net, b), &f.get(&mini("param", &b.name.to_string())).data);
        }
        run.accumulate(&h, &views);
        let pass = plan.passes().next().expect("all crops at once");
        f.assert_golden("mini.features", &read(&mut run.o, pass.backbone.y()));
        f.assert_golden("mini.loss", &[run.loss()]);
        let student = logits::<F>(&mut run.o, &plan, &plan.student, pass.head.z);
        let teacher = logits::<F>(&mut run.o, &plan, &plan.teacher, plan.teacher_head.z);
        f.assert_golden("mini.student_logits", &student);
        f.assert_golden("mini.teacher_logits", &teacher);
        run.finish_grads();
        for spec in run.specs().into_iter().filter(|spec| !spec.frozen) {
            f.assert_golden(&mini("grad", &spec.name.to_string()), &run.grad(&spec));
        }
        for b in &buffers {
            let before = f.get(&mini("param", &b.name.to_string()));
            let kept: Vec<f32> = read(&mut run.o, of(&plan.student, b)).iter().map(|&x| x as f32).collect();
            assert!(kept.iter().zip(&before.data).all(|(&x, &y)| x == y as f32), "{} moves at the commit", b.name);
        }
        step::commit(&mut run.o, &plan);
        for (part, net) in [("after_student", &plan.student), ("after_teacher", &plan.teacher)] {
            for b in &buffers {
                f.assert_golden(&mini(part, &b.name.to_string()), &read(&mut run.o, of(net, b)));
            }
        }
    }
    f.finish(who, &["mini."], &[]);
}

/// Training streams the logits; here they are made of a network's rows z, in memory of their own.
pub(crate) fn logits<F: Factory>(o: &mut F::Backend, plan: &Plan, net: &plan::Net, z: Act) -> Vec<f64> {
    let (k, cols, z) = (plan.table.head.prototypes, plan.table.head.cols(), read(o, z));
    let mut a = Arena::new();
    let (y, at) = (a.act(z.len() / cols * k), a.input(&z));
    let (v, scale) = (a.weight(&read(o, net.head_weights.v)), a.stats(&read(o, net.scale)));
    let mut o = a.build::<F>();
    o.logits(y, at, Prototypes { v, scale }, Mat { rows: z.len() / cols, inp: cols, out: k });
    read(&mut o, y)
}

//! The small preset, half as deep to save time, learns: after four epochs on the built-in set the teacher's features are better than
//! those of a random backbone and than pixels, by far more than chance.

use dino_host::config::Config;
use dino_host::cpu::{Cpu, NoOptions};
use dino_host::data::{self, Unreadable};
use dino_host::dist::Group;
use dino_host::eval::knn;
use dino_host::inference::features;
use dino_host::train::{self, Outcome, Run};
use dino_kernel::init;
use std::sync::atomic::AtomicBool;

#[test]
fn four_epochs_beat_random_features_and_pixels() {
    let config = Config { epochs: 4, depth: 2, weight_decay: 0.04, weight_decay_end: 0.4, ..Config::small() }
        .resolve()
        .expect("the small preset is valid");
    let splits = data::builtin(config.global_size, 3);
    let table = config.table();
    let mut random = vec![0.0; table.len()];
    init::weights(&mut random, &table, config.seed, config.init_std);
    random.truncate(table.backbone_len());
    let random =
        train::evaluate::<Cpu>(&NoOptions {}, &config, &random, &splits, &Unreadable::default(), &Group::default())
            .expect("features")
            .top1;
    let [(bank, bank_labels), (queries, labels)] = [&*splits.train, &*splits.test].map(|set| {
        let pixels = features::pixels(set, &Unreadable::new(true), &config).expect("pixels");
        let labels = pixels.labels(set).expect("the built-in set has labels");
        (pixels.rows, labels)
    });
    let pixels =
        knn::evaluate(bank, &bank_labels, queries, &labels, &[20], 0.07, &Group::default()).expect("a vote")[0].top1;

    let out = tempfile::tempdir().expect("a scratch folder");
    let stop = AtomicBool::new(false);
    let run = Run {
        device: &NoOptions {},
        config,
        splits: &splits,
        unreadable: &Unreadable::default(),
        out: out.path().join("run"),
        resume: false,
        accept_changed_data: false,
        data: "builtin".into(),
        start: None.into(),
        stop: &stop,
        time_limit: None,
        command: Vec::new(),
        screen: None,
        group: Default::default(),
    };
    assert_eq!(train::run::<Cpu>(&run).expect("a run"), Outcome::Finished);
    let log = std::fs::read_to_string(run.out.join(train::LOG)).expect("a log");
    let row = |line: Option<&str>| serde_json::from_str::<serde_json::Value>(line.expect("rows")).expect("JSON");
    let (first, last) = (row(log.lines().next()), row(log.lines().last()));
    assert_eq!((first["knn_before"].as_f64(), first["knn_pixels"].as_f64()), (random, Some(pixels)), "{first}");
    let teacher = last["knn_top1"].as_f64().expect("an epoch row ends the log");
    println!("k-NN: teacher {teacher:.1} %, random {:.1} %, pixels {pixels:.1} %", random.unwrap_or(0.0));
    assert!(teacher > random.expect("labels").max(pixels) + 10.0, "{last}");
}

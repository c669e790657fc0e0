//! Runs of the trainer in a folder.

use dino_host::config::Config;
use dino_host::data::{Splits, Unreadable};
use dino_host::device::Device;
use dino_host::eval::scores::Labels;
use dino_host::finetune::{self, Flags};
use dino_host::train::{self, Outcome, Run};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Trains on `splits` in `out` until the run is done, or for one step.
pub fn train<D: Device>(
    device: &D::Options,
    splits: &Splits,
    config: &Config,
    out: &Path,
    resume: bool,
    one_step: bool,
) -> Outcome {
    let stop = AtomicBool::new(one_step);
    let run = Run {
        device,
        config: config.clone(),
        splits,
        unreadable: &Unreadable::default(),
        out: out.into(),
        resume,
        accept_changed_data: false,
        data: "test".into(),
        start: None.into(),
        stop: &stop,
        time_limit: None,
        command: Vec::new(),
        screen: None,
        group: Default::default(),
    };
    train::run::<D>(&run).unwrap()
}

/// Fine-tunes a backbone that is drawn on `splits`, in `out`, to the end.
pub fn finetune<D: Device>(device: &D::Options, splits: &Splits, config: &Config, flags: &Flags, out: &Path) {
    let [train, test] = [&splits.train, &splits.test].map(|set| finetune::labels(&**set).expect("labeled images"));
    let run = finetune::Run::<D> {
        device,
        config: config.clone(),
        recipe: flags.resolve(config, 40).expect("a valid recipe"),
        labels: Labels::new(splits.train.classes(), &train, &test),
        splits,
        unreadable: &Unreadable::default(),
        out: out.into(),
        resume: None,
        data: "test".into(),
        start: None.into(),
        source: Value::Null,
        stop: &AtomicBool::new(false),
        time_limit: None,
        command: Vec::new(),
    };
    assert_eq!(finetune::run(&run).unwrap(), Outcome::Finished);
}

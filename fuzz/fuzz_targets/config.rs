//! Any text as a configuration file: read, laid over a preset, resolved, planned; and as a `--time-limit`.
#![no_main]

use dino_host::config::Config;
use dino_host::train::Limit;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(limit) = text.parse::<Limit>() {
        assert_eq!(limit.to_string().parse::<Limit>().expect("its own text"), limit);
    }
    let Ok(flags) = Config::parse("fuzz", text) else { return };
    for mut config in [Config::small(), Config::published()] {
        config.set(&flags);
        let Ok(config) = config.resolve() else { continue };
        let plan = config.plan(true).expect("a resolved configuration has a plan");
        assert_eq!(plan.config.batch % plan.config.micro_batch, 0);
        for per_epoch in [1, u32::MAX as u64] {
            let steps = config.epochs * per_epoch;
            for step in [0, steps / 2, steps - 1] {
                let h = config.schedules(per_epoch).at(step);
                assert!(h.lr >= 0.0 && h.teacher_temp > 0.0 && (0.0..=1.0).contains(&h.momentum), "{h:?}");
            }
        }
        // What is written to a checkpoint is what is read from it.
        let mut again = Config::published();
        let copy = toml_of(&config);
        again.set(&Config::parse("again", &copy).expect("its own text"));
        assert_eq!(again.resolve().expect("its own values"), config);
    }
});

fn toml_of(config: &Config) -> String {
    toml::to_string(config).expect("a configuration is plain data")
}

//! What a configuration allows, and hardly anybody means.

use super::Config;

impl Config {
    /// Schedules that do not arrive where they are meant to go within the run, and keys that hardly anybody means, a line each.
    pub fn never_arrives(&self) -> Vec<String> {
        let (epochs, warmup, frozen) = (self.epochs, self.warmup_epochs, self.freeze_last_layer);
        let mut notes = Vec::new();
        match warmup {
            _ if self.lr == 0.0 => notes.push("--lr 0: nothing is learned".into()),
            0 => (),
            n if n > epochs => notes.push(format!(
                "the learning rate warms up over {n} epochs, the run has {epochs}: it reaches {:.0} % of --lr at most",
                100.0 * epochs as f64 / n as f64
            )),
            n if n == epochs => {
                notes
                    .push(format!("the learning rate warms up over the entire run (epochs: {epochs}): it never falls"));
            }
            _ => (),
        }
        let highest = self.lr * self.batch as f64 / 256.0;
        if self.lr > 0.0 && self.min_lr > highest {
            let scaled = format!("{} a step of {} images", self.lr, self.batch);
            notes.push(format!(
                "the learning rate rises: --lr {scaled} is {highest:.1e}, below --min-lr {:.1e}",
                self.min_lr
            ));
        }
        let temps = self.warmup_teacher_temp_epochs;
        if temps > epochs && self.warmup_teacher_temp != self.teacher_temp {
            notes.push(format!(
                "the teacher's temperature warms up over {temps} epochs, the run has {epochs}: \
                 it does not reach --teacher-temp {}",
                self.teacher_temp
            ));
        }
        if frozen >= epochs {
            notes.push(format!(
                "the prototypes are frozen for {frozen} epochs, the run has {epochs}: they never move \
                 (--freeze-last-layer {} lets them)",
                epochs - 1
            ));
        }
        match (self.teacher.as_str(), self.momentum_teacher, self.momentum_teacher_end) {
            ("ema", 1.0, 1.0) => notes.push("--momentum-teacher 1: the teacher stays as it begins".into()),
            ("ema", start, end) if end < start => {
                notes.push(format!("the teacher's momentum falls, from {start} to --momentum-teacher-end {end}"));
            }
            _ => (),
        }
        if self.arch == "resnet50" && self.optimizer == "adamw" {
            notes.push(
                "the published ResNet-50s were trained with LARS or SGD: --preset resnet50 and resnet50-sgd".into(),
            );
        }
        if self.center_momentum == 1.0 {
            notes.push("--center-momentum 1: the center stays at 0".into());
        }
        let published = Config::published();
        let constants = [
            ("beta1", self.beta1, published.beta1, &["adamw"][..]),
            ("beta2", self.beta2, published.beta2, &["adamw"]),
            ("adam-eps", self.adam_eps, published.adam_eps, &["adamw"]),
            ("sgd-momentum", self.sgd_momentum, published.sgd_momentum, &["sgd", "lars"]),
            ("lars-eta", self.lars_eta, published.lars_eta, &["lars"]),
        ];
        for (key, value, published, optimizers) in constants {
            if value != published && !optimizers.contains(&self.optimizer.as_str()) {
                notes.push(format!(
                    "--{key} {value} changes nothing: --optimizer {} has no such constant",
                    self.optimizer
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_arrives_is_said_and_nothing_else() {
        assert_eq!(Config::published().never_arrives(), [""; 0]);
        assert_eq!(Config::small().never_arrives(), [""; 0]);
        assert_eq!(Config::small_32().never_arrives(), [""; 0]);
        let noted = |change: fn(&mut Config), text: &str| {
            let mut config = Config { epochs: 5, warmup_epochs: 1, ..Config::published() };
            change(&mut config);
            let notes = config.never_arrives();
            assert!(notes.len() == 1 && notes[0].contains(text), "{text}: {notes:?}");
        };
        noted(|c| c.warmup_epochs = 10, "over 10 epochs, the run has 5: it reaches 50 %");
        noted(|c| c.warmup_epochs = 5, "never falls");
        noted(|c| c.lr = 0.0, "nothing is learned");
        noted(|c| c.lr = 1e-9, "rises");
        noted(|c| (c.warmup_teacher_temp_epochs, c.teacher_temp) = (30, 0.07), "--teacher-temp 0.07");
        noted(|c| c.freeze_last_layer = 5, "--freeze-last-layer 4");
        noted(|c| c.arch = "resnet50".into(), "--preset resnet50 and resnet50-sgd");
        noted(|c| c.momentum_teacher = 1.0, "stays as it begins");
        noted(|c| c.momentum_teacher_end = 0.9, "falls, from 0.996 to --momentum-teacher-end 0.9");
        noted(|c| c.center_momentum = 1.0, "center");
        noted(|c| c.lars_eta = 0.01, "--lars-eta 0.01 changes nothing");
        noted(|c| (c.optimizer, c.beta2) = ("sgd".into(), 0.99), "--beta2 0.99 changes nothing");
        let used = Config { optimizer: "lars".into(), sgd_momentum: 0.8, lars_eta: 0.01, ..Config::published() };
        assert_eq!(used.never_arrives(), [""; 0]);
        let frozen = Config { teacher: "frozen".into(), momentum_teacher: 1.0, ..Config::published() };
        assert_eq!(frozen.never_arrives(), [""; 0]);
    }
}

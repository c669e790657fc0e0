//! What to think of a run: one verdict for the terminal, the log, the report and the table of an ablation, with the numbers that it rests on
//! and what to change.
//!
//! That entropy and KL look sound does not show that anything useful is learned: features may be nearly the same for all images, or no
//! better than pixels. So the features themselves are read as well, and compared with what there was before training.

use super::collapse::{Health, Means};
use dino_kernel::objective::{Divergence, Targets};

/// How a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing is wrong.
    Good,
    /// It learns, but less than it should.
    Weak,
    /// What it learns is of no use.
    Bad,
}

/// What is known of a run at the end of an epoch.
#[derive(Clone, Debug)]
pub struct Signs {
    /// What the watch over the steps reports.
    pub health: Health,
    /// Teacher entropy and KL over the last steps, once there is a step.
    pub means: Option<Means>,
    /// ln K.
    pub ln_k: f64,
    /// What the student learns from, and how it is compared.
    pub targets: Targets,
    /// See [`Signs::targets`].
    pub divergence: Divergence,
    /// The part of the run that is done, 0 to 1.
    pub done: f64,
    /// Directions that the features use, and columns that they have.
    pub rank: Option<f64>,
    /// See [`Signs::rank`].
    pub width: usize,
    /// Standard deviation of the cosines between features of two images.
    pub spread: Option<f64>,
    /// k-NN accuracy, percent: of the teacher, the student, pixels, and the teacher before training.
    pub teacher: Option<f64>,
    /// See [`Signs::teacher`].
    pub student: Option<f64>,
    /// See [`Signs::teacher`].
    pub pixels: Option<f64>,
    /// See [`Signs::teacher`].
    pub before: Option<f64>,
    /// How many images were asked.
    pub asked: usize,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Good, weak or bad.
    pub level: Level,
    /// In two or three words, for a table.
    pub name: &'static str,
    /// The numbers that it rests on.
    pub because: String,
    /// What to change; empty where nothing is wrong.
    pub change: String,
}

impl Verdict {
    /// Whether a verdict of this name is of a run that is worth going on with.
    pub fn is_sound(name: &str) -> bool {
        ["healthy", "weak", "not yet better", "teacher behind"].contains(&name)
    }
}

/// Cosines between images that spread less than this are the same for every vote: its weights are exp(cosine / 0.07).
const ALIKE: f64 = 0.007;
/// And where they spread less than this, the vote's weights differ by less than e within two standard deviations.
const CLOSE: f64 = 0.035;

impl Signs {
    /// Two standard errors of a score of so many images, in points.
    fn error(&self, score: f64) -> f64 {
        let p = (score / 100.0).clamp(0.0, 1.0);
        200.0 * (p * (1.0 - p) / self.asked.max(1) as f64).sqrt()
    }

    /// The better of pixels and of the weights before training, with its name.
    fn bar(&self) -> Option<(f64, &'static str)> {
        let known = [(self.pixels, "pixels"), (self.before, "the weights before training")];
        known.into_iter().filter_map(|(x, name)| Some((x?, name))).max_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// The verdict; its words name every number that decided.
    pub fn verdict(&self) -> Verdict {
        let facts = self.facts();
        let of = |level, name, why: String, change: &str| {
            let because = [why, facts.clone()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            Verdict { level, name, because: because.join("; "), change: change.into() }
        };
        if self.health != Health::Healthy {
            let why = self.health.meaning().to_string();
            return of(Level::Bad, self.health.name(), why, self.health.remedy(self.targets));
        }
        let begun = self.done > 0.1;
        if let Some(spread) = self.spread.filter(|s| begun && *s < ALIKE) {
            let why = format!("the features of all images are alike (their cosines spread by {spread:.4})");
            let change = "look at the crops (crops), use images that differ, lower --lr or raise --teacher-temp";
            return of(Level::Bad, "features alike", why, change);
        }
        if let (Some(means), Divergence::CrossEntropy, true) = (self.means, self.divergence, begun)
            && means.are_settled()
            && means.entropy + means.kl > self.ln_k
            && !means.are_flat(self.ln_k)
        {
            let why = format!(
                "the student predicts the teacher worse than a uniform guess would (loss {:.2} above ln K {:.2})",
                means.entropy + means.kl,
                self.ln_k
            );
            return of(Level::Bad, "worse than a guess", why, "lower --lr, raise --teacher-temp or --warmup-epochs");
        }
        let close = || match self.close(begun) {
            Some(why) => of(Level::Weak, "weak", why, CLOSER),
            None => of(Level::Good, "healthy", String::new(), ""),
        };
        let Some(teacher) = self.teacher else { return close() };
        if let Some((bar, name)) = self.bar().filter(|(bar, _)| teacher < bar + self.error(teacher)) {
            // Much of a short schedule is spent below pixels.
            let (level, short, word) = match self.done < 1.0 {
                true => (Level::Weak, "not yet better", "not yet"),
                false => (Level::Bad, "no better", "not"),
            };
            let why = format!("k-NN is {word} better than that of {name} ({teacher:.1} %, {bar:.1} %)");
            return of(level, short, why, "train longer (--epochs), look at the crops (crops), or change --lr");
        }
        if let Some(student) = self.student.filter(|s| self.done >= 1.0 && *s > teacher + self.error(teacher)) {
            let why = format!("the teacher stayed behind its student ({teacher:.1} %, {student:.1} %)");
            return of(Level::Weak, "teacher behind", why, "lower --momentum-teacher-end, or train longer");
        }
        close()
    }

    /// Whether features are sound, but few directions or small differences are all that they have.
    fn close(&self, begun: bool) -> Option<String> {
        let narrow =
            self.rank.filter(|rank| begun && *rank < 2.0).map(|_| "features use hardly more than one direction");
        let near = self.spread.filter(|s| begun && *s < CLOSE).map(|_| "features of different images are close");
        narrow.or(near).map(String::from)
    }

    /// All numbers that are known.
    fn facts(&self) -> String {
        let percent = |name: &str, x: Option<f64>| x.map(|x| format!("{name} {x:.1} %"));
        let baselines = [percent("pixels", self.pixels), percent("before training", self.before)];
        let baselines: Vec<String> = baselines.into_iter().flatten().collect();
        let knn = self.teacher.map(|x| match baselines.is_empty() {
            true => format!("k-NN {x:.1} %"),
            false => format!("k-NN {x:.1} % ({})", baselines.join(", ")),
        });
        let unlabeled = self.teacher.is_none().then(|| "no vote by labels".to_string());
        let rank = self.rank.map(|rank| format!("feature rank {rank:.1} of {}", self.width));
        let spread = self.spread.map(|s| format!("cosines spread by {s:.3}"));
        let means = self.means.map(|m| match self.divergence {
            Divergence::CrossEntropy => {
                format!("entropy {:.2} and KL {:.2} of ln K {:.2}", m.entropy, m.kl, self.ln_k)
            }
            Divergence::SquaredError => format!("entropy {:.2} of ln K {:.2}", m.entropy, self.ln_k),
        });
        [knn.or(unlabeled), rank, spread, means].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

const CLOSER: &str = "train longer (--epochs), raise --out-dim, or use images that differ more";

impl Verdict {
    /// One line: the name, the reasons, what to change.
    pub fn line(&self) -> String {
        match self.change.as_str() {
            "" => format!("{}: {}", self.name, self.because),
            change => format!("{}: {}. What to change: {change}", self.name, self.because),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run that went well.
    fn good() -> Signs {
        Signs {
            health: Health::Healthy,
            means: Some(Means { entropy: 0.6, kl: 0.9, steps: 1500 }),
            ln_k: 5.545,
            targets: Targets::Centered { momentum: 0.9 },
            divergence: Divergence::CrossEntropy,
            done: 1.0,
            rank: Some(5.6),
            width: 64,
            spread: Some(0.3),
            teacher: Some(79.0),
            student: Some(80.0),
            pixels: Some(35.7),
            before: Some(32.4),
            asked: 1000,
        }
    }

    fn named(change: impl FnOnce(&mut Signs)) -> (Level, &'static str) {
        let mut signs = good();
        change(&mut signs);
        let verdict = signs.verdict();
        assert_eq!(verdict.change.is_empty(), verdict.level == Level::Good, "{verdict:?}");
        (verdict.level, verdict.name)
    }

    #[test]
    fn every_number_that_is_out_of_place_decides() {
        assert_eq!(named(|_| ()), (Level::Good, "healthy"));
        assert_eq!(named(|s| s.health = Health::Uniform), (Level::Bad, "uniform collapse"));
        assert_eq!(named(|s| s.spread = Some(0.001)), (Level::Bad, "features alike"));
        assert_eq!(
            named(|s| s.means = Some(Means { entropy: 3.0, kl: 2.6, steps: 1500 })),
            (Level::Bad, "worse than a guess")
        );
        // On the way into the uniform collapse the loss is above ln K by a hair.
        let flat = Means { entropy: 5.53, kl: 0.03, steps: 125 };
        assert_eq!(named(|s| (s.means, s.done) = (Some(flat), 0.5)), (Level::Good, "healthy"));
        assert_eq!(named(|s| s.teacher = Some(37.0)), (Level::Bad, "no better"));
        assert_eq!(named(|s| (s.teacher, s.done) = (Some(37.0), 0.3)), (Level::Weak, "not yet better"));
        assert_eq!(named(|s| s.before = Some(78.0)), (Level::Bad, "no better"));
        assert_eq!(named(|s| s.student = Some(86.0)), (Level::Weak, "teacher behind"));
        assert_eq!(named(|s| s.spread = Some(0.02)), (Level::Weak, "weak"));
        assert_eq!(named(|s| s.rank = Some(1.3)), (Level::Weak, "weak"));
        // The first epoch is too early for most of it.
        assert_eq!(named(|s| (s.spread, s.done) = (Some(0.001), 0.05)), (Level::Good, "healthy"));
    }

    #[test]
    fn what_is_not_known_does_not_decide_and_is_not_named() {
        let unlabeled =
            Signs { teacher: None, student: None, pixels: None, before: None, spread: None, rank: None, ..good() };
        let verdict = unlabeled.verdict();
        assert_eq!((verdict.level, verdict.name), (Level::Good, "healthy"));
        assert_eq!(verdict.because, "no vote by labels, entropy 0.60 and KL 0.90 of ln K 5.54");
        let verdict = good().verdict();
        assert_eq!(
            verdict.because,
            "k-NN 79.0 % (pixels 35.7 %, before training 32.4 %), feature rank 5.6 of 64, cosines spread by 0.300, \
             entropy 0.60 and KL 0.90 of ln K 5.54"
        );
    }

    #[test]
    fn few_images_decide_less() {
        // Ten points above pixels, of a thousand images and of twenty.
        let of = |asked| named(|s| (s.teacher, s.student, s.asked) = (Some(46.0), None, asked)).0;
        assert_eq!((of(1000), of(20)), (Level::Good, Level::Bad));
    }
}

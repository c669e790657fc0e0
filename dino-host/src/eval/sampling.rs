//! Some images of a set, as many of every class.

use crate::data::Dataset;
use dino_kernel::rng::{Kind, Rng};

/// The `block` of the generator that draws.
const DRAW: u32 = 18;

/// `count` images of a set, as many of every class as it has them, drawn by `seed`; without labels any. Ascending; all of them where
/// there are no more.
pub fn draw(set: &dyn Dataset, count: usize, seed: u64) -> Vec<usize> {
    if count >= set.len() {
        return (0..set.len()).collect();
    }
    let mut classes = vec![Vec::new(); set.classes().len().max(1)];
    (0..set.len()).for_each(|i| classes[set.label(i).unwrap_or(0) as usize].push(i));
    classes.retain(|class| !class.is_empty());
    // The rarest first: what it lacks of an equal share is the others'.
    classes.sort_by_key(Vec::len);
    let (mut drawn, mut waiting) = (Vec::with_capacity(count), classes.len());
    for mut class in classes {
        let share = (count - drawn.len()).div_ceil(waiting).min(class.len()).min(count - drawn.len());
        // Named by its first image: classes keep their draws, whatever order they come in.
        let mut rng = Rng::new(seed, 0, class[0] as u32, 0, Kind::Shuffle, DRAW);
        for i in 0..share {
            let other = i + rng.below((class.len() - i) as u32) as usize;
            class.swap(i, other);
        }
        drawn.extend(&class[..share]);
        waiting -= 1;
    }
    drawn.sort_unstable();
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::image::Image;

    /// So many images of each class, one class after the other.
    struct Counts(Vec<usize>, Vec<String>);

    impl Counts {
        fn new(counts: &[usize]) -> Counts {
            Counts(counts.to_vec(), (0..counts.len()).map(|c| c.to_string()).collect())
        }
    }

    impl Dataset for Counts {
        fn len(&self) -> usize {
            self.0.iter().sum()
        }
        fn image(&self, _: usize) -> Result<Image> {
            unreachable!("a draw looks at no image")
        }
        fn label(&self, i: usize) -> Option<u32> {
            let mut end = 0;
            let ends = self.0.iter().map(|n| {
                end += n;
                end
            });
            ends.into_iter().position(|end| i < end).map(|c| c as u32)
        }
        fn classes(&self) -> &[String] {
            &self.1
        }
        fn name(&self, i: usize) -> String {
            i.to_string()
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    #[test]
    fn a_draw_is_balanced_and_fixed_by_the_seed() {
        let set = Counts::new(&[50, 3, 0, 200, 1]);
        let count =
            |drawn: &[usize]| [0, 1, 2, 3, 4].map(|c| drawn.iter().filter(|&&i| set.label(i) == Some(c)).count());
        for (n, want) in
            [(20, [8, 3, 0, 8, 1]), (100, [48, 3, 0, 48, 1]), (150, [50, 3, 0, 96, 1]), (2, [0, 1, 0, 0, 1])]
        {
            let drawn = draw(&set, n, 7);
            assert_eq!(count(&drawn), want, "{n}");
            assert!(drawn.is_sorted_by(|a, b| a < b));
            assert_eq!(drawn, draw(&set, n, 7));
        }
        assert_ne!(draw(&set, 20, 7), draw(&set, 20, 8));
        assert_eq!(draw(&set, 254, 7), (0..254).collect::<Vec<_>>());
        assert_eq!(draw(&set, 999, 7), (0..254).collect::<Vec<_>>());
        // Not the first images of a class.
        assert!(draw(&set, 100, 7).iter().filter(|i| (53..253).contains(*i)).max() > Some(&150));
        let none = Counts(vec![30], vec![]);
        assert_eq!(draw(&none, 10, 0).len(), 10);
        assert_eq!(draw(&Counts::new(&[]), 10, 0), [0; 0]);
    }
}

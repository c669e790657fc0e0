//! Images that cannot be read: each is named once and counted, and the run goes on without it.

use super::Dataset;
use crate::dist::Group;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::image::remark::remarked;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard};

/// What could not be read so far. Shared by all threads of a run.
#[derive(Default)]
pub struct Unreadable {
    strict: bool,
    seen: Mutex<Seen>,
}

/// An image of a set: the set's address in memory, and the image's name, which is unique in its set alone.
type Key = (usize, String);

#[derive(Default)]
struct Seen {
    /// Every image that cannot be read.
    found: HashSet<Key>,
    /// Those that [`Unreadable::take`] has not given out yet, and why.
    fresh: Vec<(Key, Error)>,
    /// Of the test part or not, and the names of those that an earlier part of the run has named already.
    before: HashSet<(bool, String)>,
    /// Those given out.
    count: usize,
    /// Their messages.
    causes: HashSet<String>,
    /// Names of images whose file lacks its end mark and was decoded all the same, and how many of them [`Unreadable::endless`] has
    /// reported.
    endless: BTreeSet<String>,
    told: usize,
}

/// An image that cannot be read.
#[derive(Clone, Debug)]
pub struct UnreadableImage {
    /// Whether it is of the test part.
    pub of_test: bool,
    /// [`Dataset::name`]
    pub image: String,
    /// Why not; names the file.
    pub error: Error,
    /// How many images there are, this one counted.
    pub count: usize,
    /// No image before had the same message: that of a missing shard covers many.
    pub first_of_cause: bool,
}

/// What a process has found, on its way to the one that reports it.
#[derive(Default, Serialize, Deserialize)]
struct Found {
    /// Whether it is of the test part, the image, why it cannot be read, and what to do.
    unreadable: Vec<(bool, String, String, Option<String>)>,
    /// Images whose file lacks its end mark.
    endless: Vec<String>,
}

impl Unreadable {
    /// `strict`: the first image that cannot be read is an error.
    pub fn new(strict: bool) -> Unreadable {
        Unreadable { strict, ..Unreadable::default() }
    }

    /// Whether the first image that cannot be read is an error.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// Image `i` of the set; `None` where it cannot be read, which is noted.
    ///
    /// # Errors
    /// The image cannot be read and the run is strict.
    pub fn image(&self, set: &dyn Dataset, i: usize) -> Result<Option<Image>> {
        let (found, remark) = remarked(|| set.image(i));
        if remark.endless && found.is_ok() {
            self.seen().endless.insert(set.name(i));
        }
        match found {
            Ok(image) => Ok(Some(image)),
            Err(e) if self.strict => Err(e),
            Err(error) => {
                let (key, mut seen) = ((set.identity(i), set.name(i)), self.seen());
                if seen.found.insert(key.clone()) {
                    seen.fresh.push((key, error));
                }
                Ok(None)
            }
        }
    }

    /// Counts an image that an earlier part of the run has named already. (A log from before images were named has none.)
    pub fn know(&self, of_test: bool, image: Option<&str>) {
        let Some(image) = image else { return };
        let mut seen = self.seen();
        seen.count += seen.before.insert((of_test, image.into())) as usize;
    }

    /// The images found since the last call, by name: the order in which threads come upon them means nothing. `test`: the set that is
    /// the test part, where it matters.
    pub fn take(&self, test: Option<&dyn Dataset>) -> Vec<UnreadableImage> {
        let mut seen = self.seen();
        let fresh = std::mem::take(&mut seen.fresh).into_iter();
        let mut fresh: Vec<_> = fresh
            .map(|((set, image), error)| (image, test.is_some_and(|test| set == test.identity(0)), error))
            .collect();
        fresh.retain(|(image, of_test, _)| !seen.before.contains(&(*of_test, image.clone())));
        fresh.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut entry = |(image, of_test, error): (String, bool, Error)| {
            seen.count += 1;
            let first_of_cause = seen.causes.insert(error.message.clone());
            UnreadableImage { of_test, image, error, count: seen.count, first_of_cause }
        };
        fresh.into_iter().map(&mut entry).collect()
    }

    /// The note on the images whose file lacks its end mark, if there are more than were reported.
    pub fn endless(&self) -> Option<String> {
        let mut seen = self.seen();
        let (n, told) = (seen.endless.len(), seen.told);
        seen.told = n;
        let first = seen.endless.first().filter(|_| n > told)?;
        Some(match n {
            1 => format!("WARNING: {first} lacks its end mark; all its pixels are there, and it is used"),
            _ => format!(
                "WARNING: {n} images lack their end mark, {first} is one; all their pixels are there, and they are used"
            ),
        })
    }

    /// Whether images have been found that [`Unreadable::take`] has not given out.
    pub fn has_news(&self) -> bool {
        !self.seen().fresh.is_empty()
    }

    /// What every process of the group has found goes to the first one, which reports it.
    ///
    /// # Errors
    /// The group fails.
    pub fn collect_at_first(&self, group: &Group, train: &dyn Dataset, test: &dyn Dataset) -> Result<()> {
        if group.size() == 1 {
            return Ok(());
        }
        let own = if group.is_first() { Found::default() } else { self.give(test) };
        let found = group.gather_each(&own)?;
        if group.is_first() {
            found.into_iter().for_each(|found| self.add(found, train, test));
        }
        Ok(())
    }

    fn give(&self, test: &dyn Dataset) -> Found {
        let mut seen = self.seen();
        let fresh = std::mem::take(&mut seen.fresh).into_iter();
        let unreadable = fresh.map(|((set, image), e)| (set == test.identity(0), image, e.message, e.hint)).collect();
        let endless = if seen.endless.len() > seen.told { seen.endless.iter().cloned().collect() } else { Vec::new() };
        seen.told = seen.endless.len();
        Found { unreadable, endless }
    }

    fn add(&self, found: Found, train: &dyn Dataset, test: &dyn Dataset) {
        let mut seen = self.seen();
        for (of_test, image, message, hint) in found.unreadable {
            let key = (if of_test { test } else { train }.identity(0), image);
            if seen.found.insert(key.clone()) {
                seen.fresh.push((key, Error { message, hint }));
            }
        }
        seen.endless.extend(found.endless);
    }

    /// Prints those on stderr: for commands without a screen of their own.
    pub fn print(&self) {
        lines(&self.take(None)).iter().for_each(|line| errln!("{line}"));
        self.endless().iter().for_each(|line| errln!("{line}"));
    }

    /// A thread that panicked while it held the lock has left nothing half done.
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The lines on images that were found together: one for each cause that has not been reported yet.
pub fn lines(unreadable: &[UnreadableImage]) -> Vec<String> {
    let first = unreadable.iter().filter(|entry| entry.first_of_cause);
    let line = |entry: &UnreadableImage| {
        let same = unreadable.iter().rev().find(|other| other.error.message == entry.error.message);
        let (message, count) = (&entry.error.message, same.map_or(entry.count, |last| last.count));
        let many = if count == 1 { "" } else { "s" };
        format!("WARNING: {message}; left out, {count} image{many} so far (--strict stops instead)")
    };
    first.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images none of which can be read, for one reason.
    struct Gone(&'static str);

    impl Dataset for Gone {
        fn len(&self) -> usize {
            3
        }
        fn image(&self, _: usize) -> Result<Image> {
            Err(Error::new(self.0))
        }
        fn label(&self, _: usize) -> Option<u32> {
            None
        }
        fn classes(&self) -> &[String] {
            &[]
        }
        fn name(&self, i: usize) -> String {
            format!("{i}.png")
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    fn found(unreadable: &Unreadable, set: &dyn Dataset, images: &[usize]) {
        images.iter().for_each(|i| assert!(unreadable.image(set, *i).unwrap().is_none()));
    }

    #[test]
    fn images_are_counted_and_causes_are_reported() {
        let (train, test, unreadable) = (Gone("a.tar is gone"), Gone("b.tar is gone"), Unreadable::default());
        found(&unreadable, &train, &[2, 0, 0]);
        found(&unreadable, &test, &[0]);
        let first = unreadable.take(Some(&test));
        let named: Vec<_> = first.iter().map(|f| (f.image.as_str(), f.of_test, f.count)).collect();
        assert_eq!(named, [("0.png", false, 1), ("0.png", true, 2), ("2.png", false, 3)]);
        let text = lines(&first);
        assert!(text.len() == 2 && text[0].contains("a.tar is gone; left out, 3 images"), "{text:?}");
        found(&unreadable, &train, &[0, 1, 2]);
        let more = unreadable.take(Some(&test));
        assert_eq!((more.len(), more[0].count), (1, 4));
        assert!(lines(&more).is_empty(), "the cause has been reported");
    }

    /// The set has been moved, so that its messages are others.
    #[test]
    fn what_was_named_before_a_resume_is_not_named_again() {
        let (train, test, unreadable) =
            (Gone("moved/a.tar is gone"), Gone("moved/b.tar is gone"), Unreadable::default());
        (0..2).for_each(|_| unreadable.know(false, Some("1.png")));
        unreadable.know(true, Some("2.png"));
        unreadable.know(false, None);
        found(&unreadable, &train, &[1, 2]);
        found(&unreadable, &test, &[2]);
        let now = unreadable.take(Some(&test));
        assert_eq!((now.len(), now[0].image.as_str(), now[0].of_test, now[0].count), (1, "2.png", false, 3));
    }
}

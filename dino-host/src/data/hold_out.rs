//! A tenth of the images of a set, taken out of training: to be tested on where there is no test part, or to choose settings by.

use super::fingerprint::Fnv;
use super::{Dataset, Shards, Splits, labels};
use crate::error::Result;
use crate::image::Image;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Takes a tenth of the images out of training, to evaluate on.
///
/// Which ones depends on each image's name alone: not on its position in the list, on the other images or on where the set
/// is stored, so that the parts are the same on every machine and an image never changes sides as a set grows. The tenth is
/// therefore approximate. Where no name falls into it, one image is taken; a set of a single image is only trained on. Classes that
/// it misses, as it may in a small set, are named in a note: images taken for their sake would change sides as the set grows.
pub fn hold_out(set: Box<dyn Dataset>) -> Splits {
    take_tenth(set, |hash| hash)
}

/// Takes another tenth of the training images out, in place of the test images, which are left alone: settings that are chosen on
/// it have not seen what is reported. The tenth is drawn as by [`hold_out`], apart from that one.
pub fn to_choose_on(splits: Splits) -> Splits {
    let chosen = take_tenth(splits.train, |hash| hash / 10);
    Splits { held_out: splits.held_out, notes: [splits.notes, chosen.notes].concat(), ..chosen }
}

/// The images whose hash, after `digits`, is a multiple of ten.
fn take_tenth(set: Box<dyn Dataset>, digits: fn(u64) -> u64) -> Splits {
    let set: Arc<dyn Dataset> = Arc::from(set);
    let hashes: Vec<u64> = (0..set.len()).map(|i| digits(name_hash(&set.name(i)))).collect();
    let mut held: HashSet<usize> = (0..set.len()).filter(|&i| hashes[i].is_multiple_of(10)).collect();
    let by_hash = |&i: &usize| hashes[i];
    if set.len() < 2 {
        held.clear();
    } else if held.is_empty() {
        held.extend((0..set.len()).min_by_key(by_hash));
    } else if held.len() == set.len() {
        let back = (0..set.len()).max_by_key(by_hash);
        held.retain(|&i| Some(i) != back);
    }
    let notes = missed(&*set, &held);
    let part = |of_test| (0..set.len()).filter(|i| held.contains(i) == of_test).collect();
    let subset = |indices| Box::new(Subset { all: set.clone(), indices });
    Splits { train: subset(part(false)), test: subset(part(true)), held_out: true, notes }
}

/// The note on classes of which all images or none are held out.
fn missed(set: &dyn Dataset, held: &HashSet<usize>) -> Vec<String> {
    // (images, held out) of every class that occurs.
    let mut counts = BTreeMap::new();
    for i in 0..set.len() {
        if let Some(label) = set.label(i) {
            let (images, out): &mut (usize, usize) = counts.entry(label).or_default();
            *images += 1;
            *out += held.contains(&i) as usize;
        }
    }
    let named = |part: &dyn Fn(&(usize, usize)) -> bool| -> Vec<&str> {
        let of = counts.iter().filter(|(_, count)| part(count));
        of.filter_map(|(label, _)| set.classes().get(*label as usize).map(String::as_str)).collect()
    };
    let (none, all) = (named(&|(_, out)| *out == 0), named(&|(images, out)| images == out));
    let mut notes = Vec::new();
    if !none.is_empty() && !held.is_empty() {
        let (missed, all) = (none.len(), counts.len());
        let some = labels::some(&none);
        notes.push(format!(
            "the held-out tenth ({}) has no image of {missed} of {all} classes ({some})",
            labels::counted(held.len(), "image")
        ));
    }
    if !all.is_empty() {
        let (classes, some) = (labels::counted(all.len(), "class"), labels::some(&all));
        notes.push(format!("all images of {classes} are held out ({some}): nothing is learned of them"));
    }
    notes
}

/// Some images of a set, in the set's order. Labels and classes stay the full set's.
pub struct Subset {
    all: Arc<dyn Dataset>,
    /// Image `i` here is image `indices[i]` of the full set; ascending.
    indices: Vec<usize>,
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        self.all.image(self.indices[i])
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.all.label(self.indices[i])
    }
    fn classes(&self) -> &[String] {
        self.all.classes()
    }
    fn name(&self, i: usize) -> String {
        self.all.name(self.indices[i])
    }
    fn path(&self, i: usize) -> Option<PathBuf> {
        self.all.path(self.indices[i])
    }
    fn mask(&self, i: usize) -> Option<Vec<bool>> {
        self.all.mask(self.indices[i])
    }
    fn shards(&self) -> Option<Shards> {
        let Shards { starts, together } = self.all.shards()?;
        let starts = starts.iter().map(|&start| self.indices.partition_point(|&i| i < start)).collect();
        Some(Shards { starts, together })
    }
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        hash.text(&self.all.fingerprint());
        for i in 0..self.len() {
            hash.text(&self.name(i));
        }
        hash.hex()
    }
}

/// FNV-1a leaves the low bits of similar names alike; two rounds of multiply and shift (MurmurHash3's) even them out.
fn name_hash(name: &str) -> u64 {
    let mut hash = Fnv::new();
    hash.bytes(name.as_bytes());
    let x = (hash.0 ^ hash.0 >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::builtin::{Builtin, Part};

    /// Names of a set's images.
    fn names(set: &dyn Dataset) -> HashSet<String> {
        (0..set.len()).map(|i| set.name(i)).collect()
    }

    #[test]
    fn the_tenth_to_choose_on_is_another_one_than_the_one_held_out() {
        let set = || Box::new(Builtin::new(8, 1000, Part::Train, 0));
        let (held, all) = (hold_out(set()), names(&*set()));
        let tested = names(&*held.test);
        let chosen = to_choose_on(held);
        let (learned, choice) = (names(&*chosen.train), names(&*chosen.test));
        assert!(chosen.held_out && (60..140).contains(&choice.len()), "{}", choice.len());
        assert!(tested.is_disjoint(&choice) && learned.is_disjoint(&choice) && learned.is_disjoint(&tested));
        assert_eq!(learned.len() + choice.len() + tested.len(), all.len());
    }
}

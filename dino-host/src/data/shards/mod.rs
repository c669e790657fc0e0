//! Folders of tar shards: their parts, and the images in them.
//!
//! `.tar` is read by offset, member by member. `.tar.gz` (`.tgz`) and `.tar.zst` are unpacked in full, a few shards at a time.

pub(crate) mod shard;
mod tar;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::cache::{Cache, Size, UNPACKED};
use super::fingerprint::Fnv;
use super::labels::renumbered;
use super::shards::shard::{Packing, Passed, Sample, Scan, Shard, packing};
use super::{Dataset, Shards, Splits, part_files};
use crate::error::{Error, Result};
use crate::image::limits::MAX_BYTES;
use crate::image::{Decode, Image, decode_bytes};
use crate::io::read_error;

/// Packed shards whose images are mixed with one another at most, see [`Shards`].
const TOGETHER: usize = 4;

/// The images of some shards, in the shards' order by name.
pub struct ShardSet {
    shards: Vec<Shard>,
    samples: Vec<Sample>,
    /// The first sample of every shard, and at the end the number of samples.
    starts: Vec<usize>,
    classes: Vec<String>,
    how: Decode,
    /// Shards that are mixed with one another at most.
    together: usize,
    /// The size of every shard unpacked, and the unpacked ones in use.
    unpacked: Vec<u64>,
    kept: Cache<Vec<u8>>,
    passed: Passed,
}

/// `None` when the folder has no shards, neither directly nor in `train/`.
pub(crate) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let stem = |path: &Path| packing(path).map_or("", |(_, name)| name).to_string();
    let Some(parts) = part_files::find(folder, "shards", &|folder| shard_files(folder), &stem)? else {
        return Ok(None);
    };
    let below = parts.train[0].parent().unwrap_or(folder).to_path_buf();
    splits(&[folder, &below], parts.train, parts.test, parts.notes, how).map(Some)
}

/// `None` when the file's name does not end as a shard's. Its test part is what is stored beside it under the name of one.
pub(crate) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    if packing(path).is_none() {
        return Ok(None);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let stem = |path: &Path| packing(path).map_or("", |(_, name)| name).to_string();
    let (test, notes) = part_files::beside(path, shard_files(folder)?, &stem);
    splits(&[folder], vec![path.to_path_buf()], test, notes, how).map(Some)
}

/// The shards in a folder, sorted by name. Names that begin with a dot are left out.
fn shard_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| read_error(folder, &e))? {
        let path = entry.map_err(|e| read_error(folder, &e))?.path();
        // A link to nothing counts: a shard that is gone must not go unnoticed.
        let file = || fs::metadata(&path).map_or(true, |kind| kind.is_file());
        if packing(&path).is_some_and(|(_, name)| !name.starts_with('.')) && file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn splits(
    folders: &[&Path],
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
    mut notes: Vec<String>,
    how: Decode,
) -> Result<Splits> {
    part_files::apart(&train, &test)?;
    let mut train = ShardSet::read(train, how)?;
    let mut test = if test.is_empty() { None } else { Some(ShardSet::read(test, how)?) };
    if let Some(test) = &test {
        let labeled = |set: &ShardSet| set.samples[0].label.is_some();
        if labeled(&train) != labeled(test) {
            let (with, without) = if labeled(&train) { (&train, test) } else { (test, &train) };
            let path = |set: &ShardSet| set.shards[0].path.display().to_string();
            return Err(Error::new(format!("{} has labels, {} has none", path(with), path(without)))
                .hint("a label is a member .cls beside the image"));
        }
    }
    let samples = train.samples.iter_mut().chain(test.iter_mut().flat_map(|t| &mut t.samples));
    let labels: Vec<&mut u32> = samples.filter_map(|s| s.label.as_mut()).collect();
    if !labels.is_empty() {
        let classes = renumbered(folders, labels)?;
        train.classes.clone_from(&classes);
        test.iter_mut().for_each(|test| test.classes.clone_from(&classes));
    }
    let mut passed = std::mem::take(&mut train.passed);
    if let Some(test) = &mut test {
        passed.join(std::mem::take(&mut test.passed));
    }
    notes.extend(passed.notes());
    Ok(Splits::of(train, test, notes))
}

impl ShardSet {
    /// Reads the headers of the shards (of packed ones everything); no image is decoded.
    ///
    /// Errors name the shard and, where there is one, the sample: unreadable, no tar, cut short, a sample without an image
    /// or, where others have one, without a label; no sample at all; two shards of one name.
    fn read(paths: Vec<PathBuf>, how: Decode) -> Result<ShardSet> {
        let mut shards: Vec<Shard> = Vec::new();
        for path in paths {
            let Some((packing, name)) = packing(&path) else { continue };
            let name = name.to_string();
            if let Some(other) = shards.iter().find(|s| s.name == name) {
                return Err(Error::new(format!("{} and {} have one name", other.path.display(), path.display()))
                    .hint("remove the one that is a copy"));
            }
            shards.push(Shard { path, name, packing });
        }
        let scanned: Vec<Scan> = shards.par_iter().map(Shard::scan).collect::<Result<_>>()?;
        let (mut samples, mut starts, mut unpacked) = (Vec::new(), vec![0], Vec::new());
        let (mut together, mut passed) = (usize::MAX, Passed::default());
        for (shard, scan) in shards.iter().zip(scanned) {
            let bytes = scan.bytes;
            samples.extend(scan.samples);
            starts.push(samples.len());
            unpacked.push(bytes);
            passed.join(scan.passed);
            if shard.packing != Packing::Plain {
                together = together.min((UNPACKED / bytes.max(1)).clamp(1, TOGETHER as u64) as usize);
            }
        }
        let (classes, kept) = (Vec::new(), Cache::new(together));
        let set = ShardSet { shards, samples, starts, classes, how, together, unpacked, kept, passed };
        let labeled = |i: &usize| set.samples[*i].label.is_some();
        if let (Some(with), Some(without)) = ((0..set.len()).find(labeled), (0..set.len()).find(|i| !labeled(i))) {
            let path = |i| set.shards[set.shard_of(i)].path.join(&set.samples[i].member).display().to_string();
            return Err(Error::new(format!("{} has no label, {} has one", path(without), path(with)))
                .hint("a label is a member .cls beside the image; all samples have one or none has"));
        }
        Ok(set)
    }

    fn shard_of(&self, i: usize) -> usize {
        self.starts.partition_point(|&start| start <= i) - 1
    }
}

impl Dataset for ShardSet {
    fn len(&self) -> usize {
        self.samples.len()
    }
    fn image(&self, i: usize) -> Result<Image> {
        let at = self.shard_of(i);
        let (shard, sample) = (&self.shards[at], &self.samples[i]);
        let path = shard.path.join(&sample.member);
        if sample.bytes > MAX_BYTES {
            return Err(Error::new(format!("{} has {} bytes", path.display(), sample.bytes))
                .hint(format!("files of up to {MAX_BYTES} bytes are read")));
        }
        if shard.packing != Packing::Plain {
            let size = Size { images: self.starts[at + 1] - self.starts[at], bytes: self.unpacked[at] };
            let unpacked = self.kept.get(at, size, || shard.unpack());
            let bytes = unpacked.get().expect("it was just made").as_ref().map_err(Clone::clone)?;
            let bytes =
                usize::try_from(sample.at + sample.bytes).ok().and_then(|end| bytes.get(sample.at as usize..end));
            let bytes = bytes.ok_or_else(|| Error::new(format!("{} has changed", shard.path.display())))?;
            return decode_bytes(&path, bytes, self.how);
        }
        // Opened for every image: thousands of shards must not hold thousands of files open.
        let mut bytes = vec![0; sample.bytes as usize];
        fs::File::open(&shard.path)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(sample.at))?;
                file.read_exact(&mut bytes)
            })
            .map_err(|e| read_error(&path, &e))?;
        decode_bytes(&path, &bytes, self.how)
    }
    fn label(&self, i: usize) -> Option<u32> {
        self.samples[i].label
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    /// Shard and member, as in `train-0001/n01440764_42.jpg`.
    fn name(&self, i: usize) -> String {
        format!("{}/{}", self.shards[self.shard_of(i)].name, self.samples[i].member)
    }
    fn shards(&self) -> Option<Shards> {
        Some(Shards { starts: self.starts.clone(), together: self.together })
    }
    /// Names, labels, offsets and sizes; the pixels are not read.
    fn fingerprint(&self) -> String {
        let mut hash = Fnv::new();
        self.classes.iter().for_each(|class| hash.text(class));
        for (i, sample) in self.samples.iter().enumerate() {
            hash.text(&self.name(i));
            hash.number(sample.label.map_or(u64::MAX, u64::from));
            hash.number(sample.at);
            hash.number(sample.bytes);
        }
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::data::Unreadable;
    use crate::data::loader::Recipe;
    use std::sync::atomic::Ordering;

    /// `shards` gzipped shards of `images` images each.
    fn packed(shards: usize, images: usize) -> (tempfile::TempDir, ShardSet) {
        let dir = tempfile::tempdir().unwrap();
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(4, 4).write_to(&mut png, image::ImageFormat::Png).unwrap();
        for shard in 0..shards {
            let file = fs::File::create(dir.path().join(format!("{shard:03}.tar.gz"))).unwrap();
            let mut tar = ::tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
            for image in 0..images {
                let mut header = ::tar::Header::new_gnu();
                header.set_size(png.get_ref().len() as u64);
                tar.append_data(&mut header, format!("{image:03}.png"), &png.get_ref()[..]).unwrap();
            }
            tar.into_inner().unwrap().finish().unwrap();
        }
        let set = ShardSet::read(shard_files(dir.path()).unwrap(), Decode::default()).unwrap();
        (dir, set)
    }

    /// A batch that needs many shards at once, and threads at as many positions in it.
    #[test]
    fn every_packed_shard_is_unpacked_once_an_epoch() {
        let (_dir, set) = packed(200, 50);
        assert_eq!((set.len(), set.together), (10_000, TOGETHER));
        let mut recipe = Recipe {
            augment: Config::tiny().augment(),
            seed: 1,
            batch: 1024,
            own: 0..1024,
            micro_batch: 1024,
            per_epoch: 9,
        };
        recipe.augment.local_crops_number = 0;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
        let unreadable = Unreadable::new(true);
        let mut before = 0;
        for epoch in 0..2 {
            let order = set.order(1, epoch);
            pool.install(|| {
                for step in 0..recipe.per_epoch {
                    recipe.load(&set, &unreadable, &order, epoch * recipe.per_epoch + step).unwrap();
                }
            });
            let made = set.kept.made.load(Ordering::Relaxed);
            // Some are left of the epoch before, and some have no part in what fills a batch.
            assert!(made - before <= 200, "{} times one of 200 was unpacked", made - before);
            assert!(epoch > 0 || made >= 150, "{made}: the test reads too little");
            before = made;
        }
    }
}

//! Tar shards in the layout of WebDataset: members whose names agree up to the first dot of the last part are one sample. Its
//! image is the first member with a picture's ending, its label the number in the member `.cls`; all else is left alone.
//!
//! `.tar` is read by offset, member by member. `.tar.gz` (`.tgz`) and `.tar.zst` are unpacked whole, a few shards at a time.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flate2::read::MultiGzDecoder;
use rayon::prelude::*;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use tar::{Archive, Entries};

use super::picture::{MAX_BYTES, decode_bytes, is_picture, unreadable};
use super::{Dataset, Decode, Fnv, Image, MAX_CLASSES, Shards, Splits, hold_out, renumbered};
use crate::error::{Error, Result};

/// Largest unpacked size of a packed shard.
const MAX_UNPACKED: u64 = 2 << 30;
/// Packed shards whose images are mixed with one another at most, see [`Shards`].
const TOGETHER: usize = 4;
/// Unpacked bytes that are mixed with one another at most, but for a shard that is larger by itself. Twice as much is kept: the
/// shards of this buffer and those of the next, which a batch may need at once.
const UNPACKED: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// What the ending of a file's name says, and the name without it.
fn packing(path: &Path) -> Option<(Packing, &str)> {
    let name = path.file_name()?.to_str()?;
    let endings =
        [(".tar", Packing::Plain), (".tar.gz", Packing::Gzip), (".tgz", Packing::Gzip), (".tar.zst", Packing::Zstd)];
    endings.into_iter().find_map(|(ending, packing)| {
        let at = name.len().checked_sub(ending.len())?;
        let fits = at > 0 && name.get(at..)?.eq_ignore_ascii_case(ending);
        fits.then(|| (packing, &name[..at]))
    })
}

struct Shard {
    path: PathBuf,
    /// The file's name without its ending.
    name: String,
    packing: Packing,
}

/// An image in a shard.
struct Sample {
    /// The member's name.
    member: String,
    /// Where it begins in the unpacked shard, and its length.
    at: u64,
    bytes: u64,
    label: Option<u32>,
}

/// An unpacked shard, or why it is none; made once, whoever comes first.
type Unpacked = Arc<OnceLock<Result<Vec<u8>>>>;

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
    /// The unpacked shards in use, the latest last.
    kept: Mutex<VecDeque<(usize, Unpacked)>>,
}

/// `None` when the folder has no shards, neither directly nor in `train/`.
pub(super) fn open(folder: &Path, how: Decode) -> Result<Option<Splits>> {
    let begins = |path: &PathBuf, part: &str| {
        let name = packing(path).map_or("", |(_, name)| name);
        name.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_', '.']))
    };
    let here = shard_files(folder)?;
    let (test, mut train): (Vec<_>, Vec<_>) = here.into_iter().partition(|p| begins(p, "val") || begins(p, "test"));
    let mut test = match test.iter().any(|p| begins(p, "val")) {
        true => test.into_iter().filter(|p| begins(p, "val")).collect(),
        false => test,
    };
    let below = folder.join("train");
    if train.is_empty() && test.is_empty() && below.is_dir() {
        train = shard_files(&below)?;
        let parts = ["val", "test"].map(|part| folder.join(part));
        if let Some(part) = parts.iter().find(|p| p.is_dir()).filter(|_| !train.is_empty()) {
            test = shard_files(part)?;
            if test.is_empty() {
                return Err(Error::new(format!("no shards found in {}", part.display()))
                    .hint(format!("it was taken for the test part of {}", below.display())));
            }
        }
    }
    match (train.is_empty(), test.first()) {
        (true, None) => Ok(None),
        (true, Some(test)) => Err(Error::new(format!("{} has no training part beside it", test.display()))
            .hint("shards that begin with val- or test- are the test part; pass the file itself to train on it")),
        (false, _) => splits(&[folder, &below], train, test, how).map(Some),
    }
}

/// `None` when the file's name does not end as a shard's.
pub(super) fn open_file(path: &Path, how: Decode) -> Result<Option<Splits>> {
    if packing(path).is_none() {
        return Ok(None);
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    splits(&[folder], vec![path.to_path_buf()], Vec::new(), how).map(Some)
}

/// The shards in a folder, sorted by name. Names that begin with a dot are left out.
fn shard_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| unreadable(folder, &e))? {
        let path = entry.map_err(|e| unreadable(folder, &e))?.path();
        // A link to nothing counts: a shard that is gone must not go unnoticed.
        let file = || fs::metadata(&path).map_or(true, |kind| kind.is_file());
        if packing(&path).is_some_and(|(_, name)| !name.starts_with('.')) && file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn splits(folders: &[&Path], train: Vec<PathBuf>, test: Vec<PathBuf>, how: Decode) -> Result<Splits> {
    let mut train = ShardSet::read(train, how)?;
    let mut test = if test.is_empty() { None } else { Some(ShardSet::read(test, how)?) };
    if let Some(test) = &test {
        let labelled = |set: &ShardSet| set.samples[0].label.is_some();
        if labelled(&train) != labelled(test) {
            let (with, without) = if labelled(&train) { (&train, test) } else { (test, &train) };
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
    Ok(match test {
        Some(test) => Splits { train: Box::new(train), test: Box::new(test), held_out: false, notes: Vec::new() },
        None => hold_out(Box::new(train)),
    })
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
        let scanned: Vec<(Vec<Sample>, u64)> = shards.par_iter().map(Shard::scan).collect::<Result<_>>()?;
        let (mut samples, mut starts, mut together) = (Vec::new(), vec![0], usize::MAX);
        for (shard, (found, bytes)) in shards.iter().zip(scanned) {
            samples.extend(found);
            starts.push(samples.len());
            if shard.packing != Packing::Plain {
                together = together.min((UNPACKED / bytes.max(1)).clamp(1, TOGETHER as u64) as usize);
            }
        }
        let set = ShardSet { shards, samples, starts, classes: Vec::new(), how, together, kept: Mutex::default() };
        let labelled = |i: &usize| set.samples[*i].label.is_some();
        if let (Some(with), Some(without)) = ((0..set.len()).find(labelled), (0..set.len()).find(|i| !labelled(i))) {
            let path = |i| set.shards[set.shard_of(i)].path.join(&set.samples[i].member).display().to_string();
            return Err(Error::new(format!("{} has no label, {} has one", path(without), path(with)))
                .hint("a label is a member .cls beside the image; all samples have one or none has"));
        }
        Ok(set)
    }

    fn shard_of(&self, i: usize) -> usize {
        self.starts.partition_point(|&start| start <= i) - 1
    }

    /// The unpacked shard, which another thread may be unpacking just now.
    fn unpacked(&self, shard: usize) -> Unpacked {
        let slot = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let slot = match kept.iter().position(|(s, _)| *s == shard) {
                Some(at) => kept.remove(at).expect("it was found there"),
                None => (shard, Unpacked::default()),
            };
            kept.push_back(slot.clone());
            if kept.len() > self.together.saturating_mul(2) {
                kept.pop_front();
            }
            slot.1
        };
        slot.get_or_init(|| self.shards[shard].unpack());
        slot
    }
}

impl Shard {
    fn failed(&self, error: &std::io::Error) -> Error {
        Error::new(format!("cannot read {}: {error}", self.path.display()))
            .hint("is it a tar archive, and whole? Copy it again")
    }

    /// The unpacked bytes, one more than are allowed at most.
    fn reader(&self) -> Result<Counted<Box<dyn Read>>> {
        let file = BufReader::new(fs::File::open(&self.path).map_err(|e| self.failed(&e))?);
        let reader: Box<dyn Read> = match self.packing {
            Packing::Plain => Box::new(file),
            Packing::Gzip => Box::new(MultiGzDecoder::new(file).take(MAX_UNPACKED + 1)),
            Packing::Zstd => {
                Box::new(Zstd { source: file, decoder: FrameDecoder::new(), open: false }.take(MAX_UNPACKED + 1))
            }
        };
        Ok(Counted { reader, count: 0 })
    }

    fn too_large(&self) -> Error {
        Error::new(format!("{} has more than {} GiB unpacked", self.path.display(), MAX_UNPACKED >> 30))
            .hint("unpack it to a plain .tar, which is read without a copy in memory, or make smaller shards")
    }

    fn unpack(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes).map_err(|e| self.failed(&e))?;
        if bytes.len() as u64 > MAX_UNPACKED { Err(self.too_large()) } else { Ok(bytes) }
    }

    /// The samples, and the size of the unpacked shard.
    fn scan(&self) -> Result<(Vec<Sample>, u64)> {
        if self.packing == Packing::Plain {
            let file = fs::File::open(&self.path).map_err(|e| self.failed(&e))?;
            let length = file.metadata().map_err(|e| self.failed(&e))?.len();
            let mut archive = Archive::new(BufReader::new(file));
            let (samples, end) = self.index(archive.entries_with_seek(), length)?;
            let mut file = archive.into_inner();
            file.seek(SeekFrom::Start(end)).map_err(|e| self.failed(&e))?;
            return self.check_end(&mut file).map(|()| (samples, length));
        }
        let mut archive = Archive::new(self.reader()?);
        let found = self.index(archive.entries(), u64::MAX);
        let mut reader = archive.into_inner();
        let (samples, end) = match found {
            Err(_) if reader.count > MAX_UNPACKED => return Err(self.too_large()),
            found => found?,
        };
        // The block of zeros that ended the listing is read already.
        let first = [0; 512];
        let first = &first[..reader.count.saturating_sub(end).min(512) as usize];
        let checked = self.check_end(&mut first.chain(&mut reader));
        if reader.count > MAX_UNPACKED { Err(self.too_large()) } else { checked.map(|()| (samples, reader.count)) }
    }

    /// A tar ends in zeros: without them it is cut short between two members; and what comes after them is never read.
    fn check_end(&self, rest: &mut dyn Read) -> Result<()> {
        let (mut buffer, mut zeros) = ([0; 8192], 0);
        loop {
            let n = rest.read(&mut buffer).map_err(|e| self.failed(&e))?;
            if buffer[..n].iter().any(|&b| b != 0) {
                return Err(Error::new(format!("{} goes on after its end", self.path.display()))
                    .hint("archives that are put together with cat are not read; unpack and pack them again"));
            }
            zeros += n;
            if n == 0 && zeros < 512 {
                return Err(Error::new(format!("{} is cut short: a tar without an end", self.path.display()))
                    .hint("copy it again"));
            }
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// The samples, and where the last member ends.
    fn index<R: Read>(&self, entries: std::io::Result<Entries<'_, R>>, length: u64) -> Result<(Vec<Sample>, u64)> {
        let shard = self.path.display();
        let (mut samples, mut end) = (Vec::new(), 0);
        let mut keys = HashSet::new();
        let mut group = Group::default();
        for entry in entries.map_err(|e| self.failed(&e))? {
            let mut entry = entry.map_err(|e| self.failed(&e))?;
            let (at, bytes) = (entry.raw_file_position(), entry.size());
            let stop = at.checked_add(bytes).and_then(|stop| stop.checked_next_multiple_of(512));
            end = match stop {
                Some(stop) if at + bytes <= length => stop.max(end),
                _ => {
                    return Err(Error::new(format!("{shard} is cut short: {length} bytes")).hint("copy it again"));
                }
            };
            let kind = entry.header().entry_type();
            let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(|e| {
                let name = String::from_utf8_lossy(e.as_bytes()).into_owned();
                Error::new(format!("{shard}: the name {name} is not UTF-8")).hint("rename it")
            })?;
            let name = name.trim_start_matches("./");
            let file = name.rfind('/').map_or(0, |slash| slash + 1);
            if kind.is_gnu_sparse() {
                return Err(Error::new(format!("{shard}: {name} is a sparse file")).hint("pack it without --sparse"));
            }
            if !kind.is_file() || name[file..].starts_with('.') {
                continue;
            }
            let (key, ending) = match name[file..].find('.') {
                Some(dot) => (&name[..file + dot], &name[file + dot + 1..]),
                None => (name, ""),
            };
            if group.key.as_deref() != Some(key) {
                samples.extend(std::mem::take(&mut group).finish(&shard)?);
                if !keys.insert(key.to_string()) {
                    return Err(Error::new(format!("{shard}: the members of {key} do not follow one another"))
                        .hint("sort them by name, as tar --sort=name does"));
                }
                group.key = Some(key.to_string());
            }
            if ending == "cls" {
                group.label = Some(label(&mut entry).ok_or_else(|| {
                    Error::new(format!("{shard}: {name} is not the number of a class"))
                        .hint(format!("it is a whole number below {MAX_CLASSES} as text"))
                })?);
            } else if group.image.is_none() && is_picture(Path::new(name)) {
                group.image = Some((name.to_string(), at, bytes));
            }
        }
        samples.extend(group.finish(&shard)?);
        if samples.is_empty() {
            return Err(Error::new(format!("{shard} holds no images"))
                .hint("a sample is NAME.jpg (or .png, .webp, .bmp, .tif) and perhaps NAME.cls"));
        }
        Ok((samples, end))
    }
}

/// The members of one sample, as they come.
#[derive(Default)]
struct Group {
    key: Option<String>,
    image: Option<(String, u64, u64)>,
    label: Option<u32>,
}

impl Group {
    fn finish(self, shard: &dyn std::fmt::Display) -> Result<Option<Sample>> {
        let Some(key) = self.key else { return Ok(None) };
        let Some((member, at, bytes)) = self.image else {
            return Err(Error::new(format!("{shard}: the sample {key} has no image"))
                .hint("a sample is NAME.jpg (or .png, .webp, .bmp, .tif) and perhaps NAME.cls"));
        };
        Ok(Some(Sample { member, at, bytes, label: self.label }))
    }
}

fn label(member: &mut dyn Read) -> Option<u32> {
    let mut text = String::new();
    member.take(64).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|&label| (label as usize) < MAX_CLASSES)
}

/// Counts what is read.
struct Counted<R> {
    reader: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.count += n as u64;
        Ok(n)
    }
}

/// All frames of a file: `pzstd` and `cat` make several, which the crate leaves to its caller.
struct Zstd {
    source: BufReader<fs::File>,
    decoder: FrameDecoder,
    /// Within a frame.
    open: bool,
}

impl Read for Zstd {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.open {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let block = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.source, block).map_err(std::io::Error::other)?;
                }
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(buffer);
                }
                let sum = self.decoder.get_checksum_from_data();
                if sum.is_some() && sum != self.decoder.get_calculated_checksum() {
                    return Err(std::io::Error::other("its checksum is wrong"));
                }
                self.open = false;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => self.open = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    std::io::copy(&mut (&mut self.source).take(u64::from(length)), &mut std::io::sink())?;
                }
                Err(e) => return Err(std::io::Error::other(e)),
            }
        }
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
            let unpacked = self.unpacked(at);
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
            .map_err(|e| unreadable(&path, &e))?;
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
    /// Names, labels, places and sizes; the pixels are not read.
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

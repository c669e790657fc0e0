//! One tar shard, plain or packed: which members are samples, and where they are stored.
//!
//! Members whose names agree up to the first dot of the last part are one sample, as WebDataset has it: `0001.jpg`, `0001.cls`,
//! `0001.depth.png`. Where nothing is called by such a beginning and one ending alone, the dots are part of the names
//! (`scan_0.5mm_00.png`), and they are cut at the last one instead.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::tar;
use crate::data::labels::MAX_CLASSES;
use crate::error::{Error, Result};
use crate::image::is_image_file;

/// Largest unpacked size of a packed shard.
const MAX_UNPACKED: u64 = 2 << 30;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// The packing that the ending of a file's name means, and the name without it.
pub(crate) fn packing(path: &Path) -> Option<(Packing, &str)> {
    let name = path.file_name()?.to_str()?;
    let endings =
        [(".tar", Packing::Plain), (".tar.gz", Packing::Gzip), (".tgz", Packing::Gzip), (".tar.zst", Packing::Zstd)];
    endings.into_iter().find_map(|(ending, packing)| {
        let at = name.len().checked_sub(ending.len())?;
        let fits = at > 0 && name.get(at..)?.eq_ignore_ascii_case(ending);
        fits.then(|| (packing, &name[..at]))
    })
}

pub(crate) struct Shard {
    pub path: PathBuf,
    /// The file's name without its ending.
    pub name: String,
    pub packing: Packing,
}

/// An image in a shard.
pub(crate) struct Sample {
    /// The member's name.
    pub member: String,
    /// Where it begins in the unpacked shard, and its length.
    pub at: u64,
    pub bytes: u64,
    pub label: Option<u32>,
}

/// What was found in a shard.
pub(crate) struct Scan {
    pub samples: Vec<Sample>,
    /// Size of the unpacked shard.
    pub bytes: u64,
    pub passed: Passed,
}

/// How often something came up, and the first time.
#[derive(Default)]
pub(crate) struct Count {
    pub number: usize,
    pub first: String,
}

impl Count {
    pub fn add(&mut self, number: usize, first: impl FnOnce() -> String) {
        if self.number == 0 && number > 0 {
            self.first = first();
        }
        self.number += number;
    }
}

/// What was passed over in a shard, or decided.
#[derive(Default)]
pub(crate) struct Passed {
    /// Members that belong to no image.
    pub no_image: Count,
    /// Links, devices, sparse files.
    pub no_file: Count,
    /// Samples with several images, none or several of which are called by one ending alone.
    pub choices: Count,
    /// Images beside the one that is called by its ending alone.
    pub beside: Count,
    /// Images whose names have dots.
    pub dots: Count,
}

impl Passed {
    pub fn join(&mut self, other: Passed) {
        let ours = [&mut self.no_image, &mut self.no_file, &mut self.choices, &mut self.beside, &mut self.dots];
        let theirs = [other.no_image, other.no_file, other.choices, other.beside, other.dots];
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            ours.add(theirs.number, || theirs.first);
        }
    }

    /// A line each.
    pub fn notes(&self) -> Vec<String> {
        let line = |count: &Count, one: &str, many: &str, rest: &str| match count.number {
            0 => None,
            1 => Some(format!("1 {one}{rest}: {}", count.first)),
            n => Some(format!("{n} {many}{rest}, such as {}", count.first)),
        };
        [
            line(
                &self.no_image,
                "member of a shard belongs to no image and is skipped",
                "members of shards belong to no image and are skipped",
                "",
            ),
            line(
                &self.no_file,
                "member of a shard is a link, a device or a sparse file and is passed over",
                "members of shards are links, devices or sparse files and are passed over",
                "; tar --dereference --hard-dereference packs what links point to",
            ),
            line(
                &self.choices,
                "sample has",
                "samples have",
                " several images, and none of them is named by the sample's name and an ending alone; the first is taken",
            ),
            line(&self.beside, "image is", "images are", " not used, as another one is named by the sample's name alone"),
            line(
                &self.dots,
                "image's name has",
                "images' names have",
                " more than one dot and nothing beside that is called by what comes before the first: each is a sample",
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

const SAMPLE: &str = "a sample is NAME.jpg (or .png, .webp, .bmp, .tif) and perhaps NAME.cls";

impl Shard {
    pub fn failed(&self, error: &std::io::Error) -> Error {
        Error::new(format!("cannot read {}: {error}", self.path.display()))
            .hint("is it a tar archive, and complete? Copy it again")
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

    /// The unpacked bytes of the shard.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is too large unpacked.
    pub fn unpack(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes).map_err(|e| self.failed(&e))?;
        if bytes.len() as u64 > MAX_UNPACKED { Err(self.too_large()) } else { Ok(bytes) }
    }

    /// Finds the samples; of a packed shard everything is read. No image is decoded.
    ///
    /// # Errors
    /// The file is unreadable, no tar or truncated; a label has no image or is no number; the members of a sample do not follow one
    /// another; there is no sample. The error names the shard and, where there is one, the member.
    pub fn scan(&self) -> Result<Scan> {
        let (listing, bytes) = if self.packing == Packing::Plain {
            let file = fs::File::open(&self.path).map_err(|e| self.failed(&e))?;
            let length = file.metadata().map_err(|e| self.failed(&e))?.len();
            (tar::list(&mut BufReader::new(file), length), length)
        } else {
            let mut reader = self.reader()?;
            let listing = tar::list(&mut reader, u64::MAX);
            if reader.count > MAX_UNPACKED {
                return Err(self.too_large());
            }
            (listing, reader.count)
        };
        let listing = listing.map_err(|e| match e {
            tar::Wrong::Io(e) => self.failed(&e),
            tar::Wrong::Tar { what, hint } => Error::new(format!("{} {what}", self.path.display())).hint(hint),
        })?;
        let (samples, passed) = self.samples(listing)?;
        Ok(Scan { samples, bytes, passed })
    }

    fn samples(&self, listing: tar::Listing) -> Result<(Vec<Sample>, Passed)> {
        let shard = self.path.display();
        let mut passed = Passed { no_file: listing.no_file, ..Passed::default() };
        let members: Vec<tar::Member> =
            listing.members.into_iter().filter(|m| !file_name(&m.name).starts_with('.')).collect();
        let plain_keys: HashSet<&str> = members
            .iter()
            .map(|m| cut(&m.name, str::find))
            .filter(|cut| !cut.1.contains('.'))
            .map(|cut| cut.0)
            .collect();
        let (mut samples, mut keys) = (Vec::new(), HashSet::new());
        let mut dotted: HashMap<&str, Vec<&str>> = HashMap::new();
        let mut group = Group::default();
        for member in &members {
            let (mut key, mut ending) = cut(&member.name, str::find);
            if !plain_keys.contains(key) {
                if is_image_file(Path::new(&member.name)) {
                    dotted.entry(key).or_default().push(&member.name);
                }
                (key, ending) = cut(&member.name, str::rfind);
            }
            if group.key != Some(key) {
                samples.extend(std::mem::take(&mut group).finish(&shard, &mut passed)?);
                if !keys.insert(key) {
                    return Err(Error::new(format!("{shard}: the members of {key} do not follow one another"))
                        .hint("sort them by name, as tar --sort=name does"));
                }
                group.key = Some(key);
            }
            group.members += 1;
            if ending == "cls" {
                group.label = Some(member.text.as_deref().and_then(label).ok_or_else(|| {
                    Error::new(format!("{shard}: {} is not the number of a class", member.name))
                        .hint(format!("it is an integer below {MAX_CLASSES} as text"))
                })?);
            } else if is_image_file(Path::new(&member.name)) {
                group.images.push((member, !ending.contains('.')));
            }
        }
        samples.extend(group.finish(&shard, &mut passed)?);
        let mut dotted: Vec<Vec<&str>> = dotted.into_values().filter(|names| names.len() > 1).collect();
        dotted.sort();
        dotted.iter().for_each(|names| passed.dots.add(names.len(), || names[0].to_string()));
        if samples.is_empty() {
            let first = match passed.no_image.first.as_str() {
                "" => String::new(),
                first => format!(": {first} has no image beside it"),
            };
            let published = ["cifar-10", "cifar-100", "stl10_binary"].iter().any(|name| first.contains(name));
            let hint =
                if published { format!("unpack it: tar -xf {shard}; the folder is read") } else { SAMPLE.into() };
            return Err(Error::new(format!("{shard} holds no images{first}")).hint(hint));
        }
        Ok((samples, passed))
    }
}

fn file_name(member: &str) -> &str {
    &member[member.rfind('/').map_or(0, |slash| slash + 1)..]
}

/// What comes before and after the dot of the last part that `find` finds; all of it and nothing where there is none.
fn cut(member: &str, find: fn(&str, char) -> Option<usize>) -> (&str, &str) {
    let start = member.len() - file_name(member).len();
    match find(&member[start..], '.') {
        Some(dot) => (&member[..start + dot], &member[start + dot + 1..]),
        None => (member, ""),
    }
}

/// The members of one sample, as they come.
#[derive(Default)]
struct Group<'a> {
    key: Option<&'a str>,
    members: usize,
    /// And whether it is called by the key and one ending alone.
    images: Vec<(&'a tar::Member, bool)>,
    label: Option<u32>,
}

impl Group<'_> {
    fn finish(self, shard: &dyn std::fmt::Display, passed: &mut Passed) -> Result<Option<Sample>> {
        let Some(key) = self.key else { return Ok(None) };
        let Some(first) = self.images.iter().find(|p| p.1).or(self.images.first()) else {
            if self.label.is_some() {
                return Err(Error::new(format!("{shard}: the sample {key} has no image")).hint(SAMPLE));
            }
            passed.no_image.add(self.members, || key.to_string());
            return Ok(None);
        };
        let others = || self.images.iter().map(|p| p.0).filter(|other| !std::ptr::eq(*other, first.0));
        if let Some(other) = others().next() {
            if self.images.iter().filter(|p| p.1).count() == 1 {
                passed.beside.add(others().count(), || format!("{} beside {}", other.name, first.0.name));
            } else {
                passed.choices.add(1, || format!("{} and not {}", first.0.name, other.name));
            }
        }
        Ok(Some(Sample { member: first.0.name.clone(), at: first.0.at, bytes: first.0.bytes, label: self.label }))
    }
}

fn label(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|&label| (label as usize) < MAX_CLASSES)
}

impl<R: Read> tar::Input for Counted<R> {
    fn pass(&mut self, bytes: u64) -> std::io::Result<()> {
        match std::io::copy(&mut self.by_ref().take(bytes), &mut std::io::sink())? {
            n if n == bytes => Ok(()),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Counts what is read.
pub(crate) struct Counted<R> {
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

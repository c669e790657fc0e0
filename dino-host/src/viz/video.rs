//! What a network attends to over the frames of a video (official `video_generation.py`).
//!
//! Two passes: the network runs on every frame once and its attention goes to a file; then the frames are drawn one by one, when the
//! least and the greatest attention of the entire video are known. Memory holds one frame, however long the video is.
//!
//! The published script scales the colors frame by frame, which makes a video flicker and hides where attention grows: here that is
//! [`Range::Frame`], and [`Range::Video`] is the default.

use crate::data::{Dataset, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::attention::check_keep;
use crate::inference::dense::{DenseExtractor, DenseOutput};
use crate::io::progress::Progress;
use crate::io::spool::Spool;
use crate::viz::animation::{Format, Video};
use crate::viz::attention::{Attention, Kind, folder, range};
use crate::viz::canvas::Canvas;
use clap::ValueEnum;
use std::path::Path;

/// Which attention the colors range over, from the least to the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Range {
    /// The entire video: a color means the same in every frame
    #[value(name = "film")]
    Video,
    /// Every frame by itself, as published
    Frame,
}

/// What a frame of the video shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Show {
    /// Mean attention as heat over the frame
    Mean,
    /// The frame, every head and the mean, on one contact sheet
    Heads,
    /// The patches that hold --keep of the mean attention, the rest darkened
    Mask,
}

/// How a video is made.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// The file's format.
    pub format: Format,
    /// Frames a second.
    pub fps: u16,
    /// What the colors are scaled over.
    pub range: Range,
    /// What is drawn of the attention.
    pub show: Show,
    /// Part of the mean attention that a mask keeps.
    pub keep: f64,
    /// Also write the numbers, `attention.npy` (frames, heads, rows, columns).
    pub keep_numbers: bool,
}

/// Draws the frames of `set`, in its order, as `out/attention.png` (.gif, .mp4), and the frames' names to `out/frames.txt`. Frames of
/// other sizes than the first one's are scaled and cut around the center to its size. Returns what to tell the user.
///
/// # Errors
/// No frame can be read, the format or `keep` is refused, the device fails, or a file cannot be written.
pub fn draw<D: Device>(
    extractor: &mut DenseExtractor<D>,
    set: &dyn Dataset,
    unreadable: &Unreadable,
    style: Style,
    out: &Path,
) -> Result<String> {
    style.format.check(style.fps)?;
    check_keep(style.keep)?;
    folder(out)?;
    let patch = extractor.config.patch_size;
    let mut first: Option<([usize; 2], [usize; 2])> = None;
    let mut others = 0;
    let mut spool = Spool::new(out)?;
    let mut frames = Vec::new();
    let (mut ranges, mut numbers) = (Vec::<[f32; 2]>::new(), 0);
    let mut progress = Progress::new(set.len(), "frames");
    for i in 0..set.len() {
        progress.tick();
        let Some(image) = unreadable.image(set, i)? else { continue };
        let original = [image.height, image.width];
        let (size, like) = *first.get_or_insert((extractor.size(&image)?, original));
        others += (original != like) as usize;
        let named = |e: Error| Error { message: format!("{}: {}", set.name(i), e.message), ..e };
        let attention = Attention::new(Kind::Heads, extractor.attention_at(&image, size).map_err(named)?, patch);
        let found = attention.ranges();
        let wider = |[a, b]: [f32; 2], [c, d]: [f32; 2]| [a.min(c), b.max(d)];
        ranges =
            if ranges.is_empty() { found } else { ranges.into_iter().zip(found).map(|(a, b)| wider(a, b)).collect() };
        numbers = attention.output.numbers.len();
        spool.push(&attention.output.numbers)?;
        frames.push(i);
    }
    unreadable.print();
    let Some((size, _)) = first else {
        return Err(
            Error::new("none of the frames could be read").hint("--strict stops at the first one and reports why")
        );
    };
    if others > 0 {
        errln!(
            "note: {others} frames of another size were scaled and cut to the first one's {} x {}",
            size[1],
            size[0]
        );
    }

    let mut spool = spool.rewind()?;
    let grid = size.map(|n| n / patch);
    if style.keep_numbers {
        let heads = numbers / (grid[0] * grid[1]);
        spool.save(&out.join("attention.npy"), &[frames.len(), heads, grid[0], grid[1]])?;
    }
    let path = out.join(format!("attention.{}", style.format.ending()));
    let mut video: Option<Video> = None;
    let mut progress = Progress::new(frames.len(), "frames drawn");
    let mut names = String::new();
    for &i in &frames {
        // It could be read a moment ago.
        let image = extractor.covering(&set.image(i)?, size)?;
        let attention = Attention::new(Kind::Heads, DenseOutput { image, grid, numbers: spool.next(numbers)? }, patch);
        let figure = frame(&attention, style, &ranges);
        let video = match &mut video {
            Some(video) => video,
            none => {
                let size = [figure.width, figure.height];
                none.insert(Video::create(style.format, &path, size, style.fps, frames.len())?)
            }
        };
        video.frame(&figure)?;
        names += &format!("{}\n", set.name(i));
        progress.tick();
    }
    video.map_or(Ok(()), Video::finish)?;
    crate::io::atomic::write_atomically(&out.join("frames.txt"), |f| std::io::Write::write_all(f, names.as_bytes()))?;
    Ok(format!(
        "{} frames of {} x {} pixels, {} x {} patches, {} a second: {}",
        frames.len(),
        size[1],
        size[0],
        grid[1],
        grid[0],
        style.fps,
        path.display()
    ))
}

/// `ranges`: of every head and of the mean, over the entire video.
fn frame(attention: &Attention, style: Style, ranges: &[[f32; 2]]) -> Canvas {
    let mean = attention.mean();
    match (style.show, style.range) {
        (Show::Mean, Range::Video) => attention.heat(&mean, ranges[ranges.len() - 1]),
        (Show::Mean, Range::Frame) => attention.heat(&mean, range(&mean)),
        (Show::Heads, Range::Video) => attention.contact_sheet(ranges),
        (Show::Heads, Range::Frame) => attention.contact_sheet(&attention.ranges()),
        (Show::Mask, _) => attention.mask(&mean, style.keep),
    }
}

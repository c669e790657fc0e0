//! Animated images, written frame by frame: a video of any length takes no more memory than a frame of it.

use crate::error::{Error, Result};
use crate::viz::canvas::Canvas;
use clap::ValueEnum;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

/// A file format of animated images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Animated PNG: every color exact, opens in browsers
    Apng,
    /// GIF: 256 colors a frame, times in hundredths of a second, opens everywhere
    Gif,
    /// H.264, by the ffmpeg on PATH: the smallest file
    Mp4,
}

impl Format {
    /// How the file's name ends. (A viewer that does not know APNG shows the first frame of a .png.)
    pub fn ending(self) -> &'static str {
        match self {
            Format::Apng => "png",
            Format::Gif => "gif",
            Format::Mp4 => "mp4",
        }
    }

    /// Whether videos of `fps` frames a second can be made here: to be asked before the long work.
    ///
    /// # Errors
    /// `fps` is 0, or above 50 for a GIF, or there is no ffmpeg for an mp4.
    pub fn check(self, fps: u16) -> Result<()> {
        if fps == 0 {
            return Err(Error::new("--fps 0 never shows a second frame").hint("--fps 30 is the published speed"));
        }
        if self == Format::Gif && fps > 50 {
            // A delay of 1/100 s is shown as one of 1/10 s by most viewers.
            return Err(Error::new(format!("a GIF of --fps {fps} would be shown slower than it is meant"))
                .hint("--fps 50 or less, or --animate apng"));
        }
        if self == Format::Mp4 {
            let found = Command::new(FFMPEG).arg("-version").stdin(Stdio::null()).output();
            if !found.is_ok_and(|done| done.status.success()) {
                return Err(Error::new("mp4 is written by ffmpeg, and there is none on PATH")
                    .hint("install ffmpeg, or take --animate apng or gif, which need no other program"));
            }
        }
        Ok(())
    }
}

const FFMPEG: &str = "ffmpeg";

/// A video in the making, written aside and renamed by [`Video::finish`]; dropped before that, it leaves nothing.
pub struct Video {
    path: PathBuf,
    aside: PathBuf,
    size: [usize; 2],
    fps: u16,
    written: usize,
    writer: Option<Writer>,
}

enum Writer {
    Apng(Box<png::Writer<BufWriter<File>>>),
    Gif(gif::Encoder<BufWriter<File>>),
    Ffmpeg(Child, JoinHandle<String>),
}

impl Video {
    /// `frames` frames of `size` = (width, height), `fps` of them a second, over and over.
    ///
    /// # Errors
    /// As [`Format::check`], the file cannot be written, a GIF would be too large, or ffmpeg does not start.
    pub fn create(format: Format, path: &Path, size: [usize; 2], fps: u16, frames: usize) -> Result<Video> {
        format.check(fps)?;
        let aside = path.with_extension(format!("part.{}", format.ending()));
        let failed = |e: &dyn std::fmt::Display| unwritable(path, e);
        let file = || File::create(&aside).map(BufWriter::new).map_err(|e| failed(&e));
        let [width, height] = size;
        let writer = match format {
            Format::Apng => {
                let mut encoder = png::Encoder::new(file()?, width as u32, height as u32);
                encoder.set_color(png::ColorType::Rgb);
                encoder.set_compression(png::Compression::Fast);
                let repeats = 0; // for ever
                encoder.set_animated(frames as u32, repeats).map_err(|e| failed(&e))?;
                encoder.set_frame_delay(1, fps).map_err(|e| failed(&e))?;
                Writer::Apng(Box::new(encoder.write_header().map_err(|e| failed(&e))?))
            }
            Format::Gif => {
                let [width, height] = size.map(u16::try_from);
                let (Ok(width), Ok(height)) = (width, height) else {
                    return Err(failed(&"a GIF has up to 65535 pixels a side").hint("--size: a smaller one"));
                };
                let mut encoder = gif::Encoder::new(file()?, width, height, &[]).map_err(|e| failed(&e))?;
                encoder.set_repeat(gif::Repeat::Infinite).map_err(|e| failed(&e))?;
                Writer::Gif(encoder)
            }
            Format::Mp4 => {
                let mut child = Command::new(FFMPEG)
                    .args(["-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"])
                    .args(["-s", &format!("{width}x{height}"), "-r", &fps.to_string(), "-i", "-", "-an"])
                    // H.264 with 4:2:0 colors, which every player knows, has even sides.
                    .args(["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-c:v", "libx264", "-pix_fmt", "yuv420p"])
                    .args(["-movflags", "+faststart", "-f", "mp4"])
                    .arg(&aside)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .map_err(|e| failed(&format!("ffmpeg does not start: {e}")))?;
                let mut stderr = child.stderr.take().expect("it is piped");
                // Read beside the frames: a full pipe would stop ffmpeg, and us with it.
                let messages = std::thread::spawn(move || {
                    let mut text = Vec::new();
                    let _ = stderr.read_to_end(&mut text);
                    String::from_utf8_lossy(&text).into_owned()
                });
                Writer::Ffmpeg(child, messages)
            }
        };
        Ok(Video { path: path.into(), aside, size, fps, written: 0, writer: Some(writer) })
    }

    /// The next frame, which must have the video's size.
    ///
    /// # Errors
    /// The frame cannot be written, or ffmpeg has ended.
    pub fn frame(&mut self, figure: &Canvas) -> Result<()> {
        assert_eq!([figure.width, figure.height], self.size, "all frames have one size");
        let (path, rgb) = (&self.path, figure.rgb.as_flattened());
        let failed = |e: &dyn std::fmt::Display| unwritable(path, e);
        match self.writer.as_mut().expect("there until the end") {
            Writer::Apng(writer) => writer.write_image_data(rgb).map_err(|e| failed(&e))?,
            Writer::Gif(encoder) => {
                let [width, height] = self.size.map(|n| n as u16);
                // 10 of 1 to 30: the encoder's own choice between speed and colors.
                let mut frame = gif::Frame::from_rgb_speed(width, height, rgb, 10);
                frame.delay = hundredths(self.written, self.fps);
                encoder.write_frame(&frame).map_err(|e| failed(&e))?;
            }
            Writer::Ffmpeg(child, _) => {
                let pipe = child.stdin.as_mut().expect("it is piped");
                if pipe.write_all(rgb).is_err() {
                    // It has ended, and prints why.
                    return Err(self.ffmpeg_failed());
                }
            }
        }
        self.written += 1;
        Ok(())
    }

    /// Renames the finished video to its path.
    ///
    /// # Errors
    /// The file cannot be completed or renamed, or ffmpeg has failed.
    pub fn finish(mut self) -> Result<()> {
        let path = self.path.clone();
        let failed = |e: &dyn std::fmt::Display| unwritable(&path, e);
        match self.writer.take().expect("there until the end") {
            Writer::Apng(writer) => writer.finish().map_err(|e| failed(&e))?,
            Writer::Gif(encoder) => {
                let mut file = encoder.into_inner().map_err(|e| failed(&e))?;
                file.flush().map_err(|e| failed(&e))?;
            }
            Writer::Ffmpeg(mut child, messages) => {
                drop(child.stdin.take());
                let done = child.wait().map_err(|e| failed(&e))?;
                if !done.success() {
                    return Err(ffmpeg_error(&path, done, messages));
                }
            }
        }
        let renamed = File::open(&self.aside).and_then(|f| f.sync_all()).and_then(|()| fs::rename(&self.aside, &path));
        renamed.map_err(|e| failed(&e))
    }

    fn ffmpeg_failed(&mut self) -> Error {
        match self.writer.take() {
            Some(Writer::Ffmpeg(mut child, messages)) => {
                drop(child.stdin.take());
                match child.wait() {
                    Ok(done) => ffmpeg_error(&self.path, done, messages),
                    Err(e) => unwritable(&self.path, &e),
                }
            }
            _ => unwritable(&self.path, &"ffmpeg has ended"),
        }
    }
}

impl Drop for Video {
    fn drop(&mut self) {
        if let Some(Writer::Ffmpeg(mut child, _)) = self.writer.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Gone already where the video is finished.
        let _ = fs::remove_file(&self.aside);
    }
}

fn unwritable(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(format!("cannot write {}: {why}", path.display()))
        .hint("is there space left on the disk, and do you have the right to write there?")
}

/// What ffmpeg printed last, in one line.
fn ffmpeg_error(path: &Path, done: std::process::ExitStatus, messages: JoinHandle<String>) -> Error {
    let text = messages.join().unwrap_or_default();
    let last = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("and printed nothing");
    Error::new(format!("ffmpeg could not write {}: {last} ({done})", path.display()))
        .hint("does this ffmpeg have libx264? --animate apng or gif need no other program")
}

/// How long frame `i` is shown, such that the video keeps its time: 3, 4, 3, 3, 4, ... for 30 a second.
fn hundredths(i: usize, fps: u16) -> u16 {
    let until = |i: usize| (200 * i + fps as usize) / (2 * fps as usize);
    (until(i + 1) - until(i)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of 5 x 3 pixels, few colors, none like another.
    fn frame(i: usize) -> Canvas {
        Canvas::new(5, 3, [0; 3]).map(|p, _| [(40 * i) as u8, if p % 2 == 0 { 255 } else { 0 }, (p / 8 * 90) as u8])
    }

    fn video(format: Format, dir: &Path, fps: u16) -> PathBuf {
        let path = dir.join(format!("video.{}", format.ending()));
        let mut video = Video::create(format, &path, [5, 3], fps, 4).unwrap();
        (0..4).for_each(|i| video.frame(&frame(i)).unwrap());
        video.finish().unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing stays beside the video");
        path
    }

    #[test]
    fn an_animated_png_holds_every_frame_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = video(Format::Apng, dir.path(), 25);
        let decoder = png::Decoder::new(std::io::BufReader::new(File::open(&path).unwrap()));
        let mut reader = decoder.read_info().unwrap();
        let animation = *reader.info().animation_control().unwrap();
        assert_eq!((animation.num_frames, animation.num_plays), (4, 0));
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        for i in 0..4 {
            let info = reader.next_frame(&mut bytes).unwrap();
            assert_eq!((info.width, info.height), (5, 3));
            assert_eq!(&bytes[..45], frame(i).rgb.as_flattened(), "frame {i}");
            let control = reader.info().frame_control().unwrap();
            assert_eq!((control.delay_num, control.delay_den), (1, 25));
        }
        assert!(reader.next_frame(&mut bytes).is_err());
        // For those that do not know animations it is the first frame.
        let still = image::open(&path).unwrap().into_rgb8();
        assert_eq!(still.as_raw(), frame(0).rgb.as_flattened());
    }

    #[test]
    fn a_gif_keeps_frames_times_and_few_colors() {
        let dir = tempfile::tempdir().unwrap();
        let path = video(Format::Gif, dir.path(), 30);
        let mut options = gif::DecodeOptions::new();
        options.set_color_output(gif::ColorOutput::RGBA);
        let mut decoder = options.read_info(File::open(&path).unwrap()).unwrap();
        assert_eq!((decoder.width(), decoder.height(), decoder.repeat()), (5, 3, gif::Repeat::Infinite));
        let mut delays = Vec::new();
        for i in 0..4 {
            let found = decoder.read_next_frame().unwrap().unwrap();
            delays.push(found.delay);
            // No more than 256 colors, so none is lost.
            let rgb: Vec<[u8; 3]> = found.buffer.chunks(4).map(|p| [p[0], p[1], p[2]]).collect();
            assert_eq!(rgb, frame(i).rgb, "frame {i}");
        }
        assert!(decoder.read_next_frame().unwrap().is_none());
        assert_eq!(delays, [3, 4, 3, 3]);
    }

    #[test]
    fn a_gif_does_not_drift() {
        for fps in [1, 7, 24, 30, 50] {
            assert_eq!((0..7 * fps as usize).map(|i| hundredths(i, fps) as usize).sum::<usize>(), 700, "{fps}");
            assert!((0..500).all(|i| hundredths(i, fps) >= 2), "{fps}");
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for format in [Format::Apng, Format::Gif] {
            let mut video = Video::create(format, &dir.path().join("a"), [5, 3], 9, 2).unwrap();
            video.frame(&frame(0)).unwrap();
            drop(video);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{format:?}");
        }
        assert!(Format::Gif.check(51).unwrap_err().to_string().contains("--fps 50"));
        assert!(Format::Apng.check(0).is_err() && Format::Apng.check(51).is_ok());
        let nowhere = dir.path().join("none/a.png");
        assert!(Video::create(Format::Apng, &nowhere, [5, 3], 9, 2).is_err());
    }
}

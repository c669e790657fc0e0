//! Arrays of f32 for NumPy, and arrays that wait on the disk because there may be more of them than memory.
//!
//! The header is written here: of the crates for it, `ndarray-npy` 0.10 writes arrays that are in memory and `npyz` 0.9 streams but
//! must know the shape first, while features are written before their number is known. Both read Python's literals for it through a
//! parser generator, 17 crates and more than 40 seconds of compiling (measured) for the ten lines below.

use crate::error::{Error, Result};
use crate::log::write_atomically;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// What stands before the numbers of an `.npy` file, version 1: magic, length of the rest, a Python dictionary, padding, a line feed;
/// 128 bytes in all, whatever the shape, so that it can be written again when the shape is known.
pub fn header(shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    [b"\x93NUMPY\x01\x00".as_slice(), &118u16.to_le_bytes(), format!("{text:<117}\n").as_bytes()].concat()
}

/// Writes an array of this shape, the last index fastest.
pub fn write(path: &Path, shape: &[usize], numbers: &[f32]) -> Result<()> {
    assert_eq!(shape.iter().product::<usize>(), numbers.len(), "{shape:?}");
    write_atomically(path, |f| {
        f.write_all(&header(shape))?;
        f.write_all(&bytes(numbers))
    })
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Numbers on their way from one pass to the next, in a file without a name that is gone when this is.
pub struct Spool {
    file: BufWriter<File>,
}

/// The same, to be read from the start.
pub struct Spooled {
    file: BufReader<File>,
}

fn failed(e: std::io::Error) -> Error {
    Error::new(format!("cannot keep numbers in a file: {e}")).hint("is there room on the disk of --out?")
}

impl Spool {
    /// On the disk of the folder `beside`.
    pub fn new(beside: &Path) -> Result<Spool> {
        Ok(Spool { file: BufWriter::new(tempfile::tempfile_in(beside).map_err(failed)?) })
    }

    pub fn push(&mut self, numbers: &[f32]) -> Result<()> {
        self.file.write_all(&bytes(numbers)).map_err(failed)
    }

    pub fn rewind(self) -> Result<Spooled> {
        let mut file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Spooled { file: BufReader::new(file) })
    }
}

impl Spooled {
    /// The next `count` numbers.
    pub fn next(&mut self, count: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; 4 * count];
        self.file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Reading starts over.
    pub fn rewind(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(0)).map(drop).map_err(failed)
    }

    /// Writes all of it as an array of this shape; reading starts over.
    pub fn save(&mut self, path: &Path, shape: &[usize]) -> Result<()> {
        self.rewind()?;
        write_atomically(path, |f| {
            f.write_all(&header(shape))?;
            std::io::copy(&mut self.file, f).map(drop)
        })?;
        self.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spooled_comes_back_and_becomes_an_array() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path()).unwrap();
        spool.push(&[1.5, -2.0, f32::MIN_POSITIVE]).unwrap();
        spool.push(&[4.0]).unwrap();
        let mut spool = spool.rewind().unwrap();
        assert_eq!(spool.next(1).unwrap(), [1.5]);
        let path = dir.path().join("a.npy");
        spool.save(&path, &[2, 2]).unwrap();
        assert_eq!(spool.next(4).unwrap(), [1.5, -2.0, f32::MIN_POSITIVE, 4.0]);
        assert!(spool.next(1).is_err());
        let spooled = std::fs::read(&path).unwrap();
        write(&path, &[2, 2], &[1.5, -2.0, f32::MIN_POSITIVE, 4.0]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), spooled);
        assert_eq!((spooled.len(), &spooled[128..132]), (128 + 16, &1.5f32.to_le_bytes()[..]));
        drop(spool);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing stays beside the array");
    }
}

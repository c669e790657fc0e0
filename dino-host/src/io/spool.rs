//! Numbers that wait on the disk because there may be more of them than memory.

use super::npy::{bytes, header};
use crate::error::{Error, Result};
use crate::io::atomic::write_atomically;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Numbers on their way from one pass to the next, in a file without a name that is gone when this is.
pub struct Spool {
    file: BufWriter<File>,
}

/// The same, to be read from the start.
pub struct Spooled {
    file: BufReader<File>,
}

fn failed(e: std::io::Error) -> Error {
    Error::new(format!("cannot keep numbers in a file: {e}")).hint("is there space left on the disk of --out?")
}

impl Spool {
    /// A file on the disk of the folder `beside`.
    ///
    /// # Errors
    /// The folder takes no temporary file.
    pub fn new(beside: &Path) -> Result<Spool> {
        Ok(Spool { file: BufWriter::new(tempfile::tempfile_in(beside).map_err(failed)?) })
    }

    /// Appends numbers.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written.
    pub fn push(&mut self, numbers: &[f32]) -> Result<()> {
        self.file.write_all(&bytes(numbers)).map_err(failed)
    }

    /// Ends writing; reading begins at the first number.
    ///
    /// # Errors
    /// The last numbers cannot be written.
    pub fn rewind(self) -> Result<Spooled> {
        let mut file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Spooled { file: BufReader::new(file) })
    }
}

impl Spooled {
    /// The next `count` numbers.
    ///
    /// # Errors
    /// Fewer numbers are left, or the file cannot be read.
    pub fn next(&mut self, count: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; 4 * count];
        self.file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Reading starts over.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rewind(&mut self) -> Result<()> {
        self.file.seek(SeekFrom::Start(0)).map(drop).map_err(failed)
    }

    /// Writes all of it as an array of this shape; reading starts over.
    ///
    /// # Errors
    /// The numbers cannot be read, or the array cannot be written.
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
    use crate::io::npy;

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
        npy::write(&path, &[2, 2], &[1.5, -2.0, f32::MIN_POSITIVE, 4.0]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), spooled);
        assert_eq!((spooled.len(), &spooled[128..132]), (128 + 16, &1.5f32.to_le_bytes()[..]));
        drop(spool);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing stays beside the array");
    }
}

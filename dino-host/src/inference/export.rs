//! Features for other programs: one array of f32 in NumPy's or safetensors' format, and a list of whose rows they are.

use crate::config::Config;
use crate::data::{Dataset, Splits, Unreadable};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::inference::features::{Extractor, Tokens};
use crate::io::atomic::write_atomically;
use crate::io::npy;
use crate::io::progress::Progress;
use crate::io::tsv::tsv;
use clap::ValueEnum;
use dino_kernel::crops::Group;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// File format of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// features.npy
    Npy,
    /// features.safetensors, one tensor called `features`
    Safetensors,
}

impl Format {
    /// What is written before the numbers, of the same length for any number of rows: it is written again when that is known.
    pub(crate) fn header(self, shape: &[usize]) -> Vec<u8> {
        match self {
            Format::Npy => npy::header(shape),
            // Length of the rest, JSON padded with spaces; 256 bytes in all.
            Format::Safetensors => {
                let bytes = 4 * shape.iter().product::<usize>();
                let text = format!(r#"{{"features":{{"dtype":"F32","shape":{shape:?},"data_offsets":[0,{bytes}]}}}}"#);
                [&248u64.to_le_bytes(), format!("{text:<248}").as_bytes()].concat()
            }
        }
    }

    fn file(self) -> &'static str {
        match self {
            Format::Npy => "features.npy",
            Format::Safetensors => "features.safetensors",
        }
    }
}

/// Writes the features of both parts of a set to the folder `out`: `features.npy`, shape (images, C) or (images, rows, columns, C) of
/// the patches, and `images.tsv`, a line an image: part, label, name (as [`tsv`] writes them). Returns what to tell the user.
///
/// # Errors
/// A file cannot be written, none of the images can be read, features are not finite, or the device fails.
pub fn write<D: Device>(
    extractor: &mut Extractor<D>,
    config: &Config,
    tokens: Tokens,
    splits: &Splits,
    unreadable: &Unreadable,
    format: Format,
    out: &Path,
) -> Result<String> {
    std::fs::create_dir_all(out).map_err(|e| {
        Error::new(format!("cannot make the folder {}: {e}", out.display())).hint("--out names another")
    })?;
    let side = config.global_size;
    let [rows, columns] = config.table().backbone.grid(Group { count: 1, height: side, width: side });
    let shape = |images: usize| match tokens {
        Tokens::Class => vec![images, config.embed_dim],
        Tokens::Patches => vec![images, rows, columns, config.embed_dim],
    };
    let mut list = String::from("part\tlabel\timage\n");
    let mut images = 0;
    let mut failed = None;
    let parts: [(&str, &dyn Dataset); 2] = [("train", &*splits.train), ("test", &*splits.test)];
    let mut progress = Progress::new(splits.train.len() + splits.test.len(), "images");
    let (path, list_path) = (out.join(format.file()), out.join("images.tsv"));
    write_atomically(&path, |file: &mut File| {
        file.write_all(&format.header(&shape(0)))?;
        let mut numbers = BufWriter::new(&mut *file);
        for (part, set) in parts {
            let done = extractor.each(set, unreadable, |i, row| {
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                numbers.write_all(&bytes).map_err(|e| Error::new(format!("cannot write {}: {e}", path.display())))?;
                let label = set.label(i).map_or(String::new(), |label| set.classes()[label as usize].clone());
                list += &format!("{part}\t{}\t{}\n", tsv(&label), tsv(&set.name(i)));
                images += 1;
                progress.tick();
                Ok(())
            });
            // It tells more than an error of the file.
            if let Err(e) = done {
                failed = Some(e);
                return Err(std::io::ErrorKind::Other.into());
            }
        }
        numbers.flush()?;
        drop(numbers);
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&format.header(&shape(images)))?;
        if images == 0 {
            failed = Some(
                Error::new("none of the images could be read").hint("--strict stops at the first one and reports why"),
            );
            return Err(std::io::ErrorKind::Other.into());
        }
        // Both are complete on the disk before either has its name, and an old array goes first: killed in between, no array is
        // beside the list of another.
        file.sync_all()?;
        let listed = write_atomically(&list_path, |f| {
            f.write_all(list.as_bytes())?;
            f.sync_all()?;
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            }
        });
        listed.map_err(|e| {
            failed = Some(e);
            std::io::ErrorKind::Other.into()
        })
    })
    .map_err(|e| failed.unwrap_or(e))?;
    let shape: Vec<String> = shape(images).iter().map(usize::to_string).collect();
    Ok(format!("{} in {}; images.tsv names its rows", shape.join(" x "), path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_one_length_and_are_read_by_the_libraries() {
        for format in [Format::Npy, Format::Safetensors] {
            let most = [usize::MAX >> 12, 1000, 1000, 3];
            let lengths = [&[0, 1][..], &[7, 384], &most[..1]].map(|shape| format.header(shape).len());
            assert!(lengths.iter().all(|n| *n == lengths[0] && n % 64 == 0), "{format:?}: {lengths:?}");
        }
        let numbers = [1.5f32, -2.0, 0.25, 3.0, 4.0, 5.0];
        let bytes: Vec<u8> = Format::Safetensors
            .header(&[3, 2])
            .into_iter()
            .chain(numbers.iter().flat_map(|x| x.to_le_bytes()))
            .collect();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensor = read.tensor("features").unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (&[3, 2][..], &bytes[256..]));
        let npy = Format::Npy.header(&[3, 2]);
        assert_eq!(&npy[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(
            npy[10..].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, ), }")
                && npy.ends_with(b" \n")
        );
    }
}

//! Arrays of f32 for NumPy.
//!
//! The header is written here: of the crates for it, `ndarray-npy` 0.10 writes arrays that are in memory and `npyz` 0.9 streams but
//! must know the shape first, while features are written before their number is known. Both read Python's literals for it through a
//! parser generator, 17 crates and more than 40 seconds of compiling (measured) for the ten lines below.

use crate::error::Result;
use crate::io::atomic::write_atomically;
use std::io::Write;
use std::path::Path;

/// What is written before the numbers of an `.npy` file, version 1: magic, length of the rest, a Python dictionary, padding, a line feed;
/// 128 bytes in all, whatever the shape, so that it can be written again when the shape is known.
pub fn header(shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}");
    [b"\x93NUMPY\x01\x00".as_slice(), &118u16.to_le_bytes(), format!("{text:<117}\n").as_bytes()].concat()
}

/// Writes an array of this shape, the last index fastest.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, shape: &[usize], numbers: &[f32]) -> Result<()> {
    assert_eq!(shape.iter().product::<usize>(), numbers.len(), "{shape:?}");
    write_atomically(path, |f| {
        f.write_all(&header(shape))?;
        f.write_all(&bytes(numbers))
    })
}

/// As files hold them: little-endian.
pub(super) fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

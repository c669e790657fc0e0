//! Memory for a pool: zero pages straight from the system. They take room only once they are touched, so that what is laid out and
//! never used costs nothing, and they are huge where the system has such pages: a product walks over more rows than the processor
//! remembers small pages.

use crate::error::{Error, Result};
use memmap2::MmapMut;
use std::ops::{Deref, DerefMut};

/// `len` numbers.
pub struct Floats {
    pages: MmapMut,
    len: usize,
}

impl Floats {
    /// Zeroes.
    pub fn new(len: usize) -> Result<Floats> {
        let bytes = len.checked_mul(4);
        let pages = bytes.ok_or_else(|| std::io::ErrorKind::OutOfMemory.into());
        let pages = pages.and_then(|bytes| MmapMut::map_anon(bytes.max(1)));
        let pages = pages.map_err(|e| {
            let size = len as f64 * 4.0 / f64::powi(2.0, 30);
            Error::new(format!("not enough memory: {size:.2} GiB in one piece ({e})"))
                .hint("a smaller --micro-batch takes less; `dino-host plan` shows what takes how much")
        })?;
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage); // where there are none, small ones do
        Ok(Floats { pages, len })
    }
}

impl Deref for Floats {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.pages[..4 * self.len])
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.pages[..4 * self.len])
    }
}

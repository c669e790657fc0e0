//! Nothing to find: `dino-gpu` opens the driver at run time.

pub fn include_cuda() {}

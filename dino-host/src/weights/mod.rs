pub mod dialect;
pub mod file;
pub mod pickle;
pub mod pth;

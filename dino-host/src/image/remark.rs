//! What a decoder reports about an image beside its pixels.

use std::cell::Cell;

/// What a decoder reports about an image beside its pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remark {
    /// The file's end mark is missing, though all its pixels are there.
    pub endless: bool,
    /// The highest value of a channel, where channels have 16 bits.
    pub highest: Option<u16>,
}

thread_local! {
    /// Of the images that this thread decodes: they pass through data sets of every kind, which know nothing of it.
    static REMARK: Cell<Remark> = const { Cell::new(Remark { endless: false, highest: None }) };
}

/// What `read` gives, and the remark on the image that it decodes.
pub(crate) fn remarked<T>(read: impl FnOnce() -> T) -> (T, Remark) {
    REMARK.take();
    let found = read();
    (found, REMARK.take())
}

/// The file of the image that is being decoded lacks its end mark.
pub(super) fn set_endless() {
    REMARK.set(Remark { endless: true, ..REMARK.get() });
}

/// The highest value of the image that is being decoded, which has 16 bits a channel.
pub(super) fn set_highest(highest: Option<u16>) {
    REMARK.set(Remark { highest, ..REMARK.get() });
}

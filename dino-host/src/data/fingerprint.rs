//! The hash that distinguishes data sets.

/// FNV-1a, 64 bits: enough to notice another data set, and the same on every machine. Not against intent.
pub(crate) struct Fnv(pub(super) u64);

impl Fnv {
    pub(crate) fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ b as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    pub(crate) fn number(&mut self, x: u64) {
        self.bytes(&x.to_le_bytes());
    }
    /// The length goes first, so that "ab", "c" and "a", "bc" differ.
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

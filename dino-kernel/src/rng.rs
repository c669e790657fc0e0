//! The counter-based generator: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! A number depends only on (seed, epoch, image, crop, purpose, draw). The same numbers come out on any device, for any
//! number of threads and after a resume, because nothing is carried from one draw to the next.

/// What a number is drawn for. Part of the counter, so that no two uses ever share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Initial weights; `image` is the index of the element, `block` the tensor's ordinal.
    Init = 1,
    /// The order of the images of an epoch.
    Shuffle = 2,
    /// Crop position, flip, color, blur, solarize.
    Augment = 3,
    /// Stochastic depth; `block` = 2 * block + branch.
    DropPath = 4,
    /// Images drawn by the built-in data set.
    Scene = 5,
    /// Everything a test or a check wants.
    Test = 6,
    /// Which image replaces one that cannot be read.
    Substitute = 7,
    /// How a batch of fine-tuning is mixed; `image` is the step within the epoch.
    Mix = 8,
}

/// The generator of one (seed, epoch, image, crop, kind, block): a stream of draws.
#[derive(Clone, Copy, Debug)]
pub struct Rng {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Rng {
    /// `crop` and `block` are below 4096.
    pub const fn new(seed: u64, epoch: u32, image: u32, crop: u32, kind: Kind, block: u32) -> Rng {
        assert!(crop < 4096 && block < 4096, "crop and block are 12 bits of the counter each");
        let purpose = (kind as u32) << 24 | crop << 12 | block;
        Rng { key: [seed as u32, (seed >> 32) as u32], counter: [0, purpose, image, epoch], block: [0; 4], used: 4 }
    }

    /// 32 uniform bits.
    pub const fn bits(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.key, self.counter);
            self.counter[0] += 1;
            self.used = 0;
        }
        let x = self.block[self.used];
        self.used += 1;
        x
    }

    /// Uniform in [0, 1), 53 bits.
    pub const fn uniform(&mut self) -> f64 {
        let (high, low) = ((self.bits() >> 5) as u64, (self.bits() >> 6) as u64);
        ((high << 26) | low) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [low, high).
    pub const fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Uniform integer in 0 .. n, without bias beyond 2^-32 relative (multiply-shift).
    pub const fn below(&mut self, n: u32) -> u32 {
        ((self.bits() as u64 * n as u64) >> 32) as u32
    }

    /// True with probability `p`.
    pub const fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Standard normal (Box-Muller; the second value is not kept, so that every draw uses the same number of bits).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * core::f64::consts::PI * v)
    }
}

/// Ten rounds of Philox4x32.
pub const fn philox(mut key: [u32; 2], mut c: [u32; 4]) -> [u32; 4] {
    let mut round = 0;
    while round < 10 {
        let (a, b) = (c[0] as u64 * 0xD251_1F53, c[2] as u64 * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        round += 1;
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors published with the Random123 library.
    #[test]
    fn known_answers() {
        assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 2], [!0; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = ([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(philox(pi.0, pi.1), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn a_purpose_has_its_own_stream_and_repeats() {
        let draw = |crop, kind, block| Rng::new(7, 3, 11, crop, kind, block).bits();
        assert_eq!(draw(1, Kind::Augment, 0), draw(1, Kind::Augment, 0));
        assert_ne!(draw(1, Kind::Augment, 0), draw(2, Kind::Augment, 0));
        assert_ne!(draw(1, Kind::Augment, 0), draw(1, Kind::DropPath, 0));
        assert_ne!(draw(1, Kind::DropPath, 0), draw(1, Kind::DropPath, 1));
    }

    #[test]
    fn moments() {
        let mut r = Rng::new(1, 0, 0, 0, Kind::Test, 0);
        let n = 20_000;
        let (mut mean, mut square) = (0.0, 0.0);
        for _ in 0..n {
            let x = r.normal();
            mean += x / n as f64;
            square += x * x / n as f64;
        }
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "mean {mean}, second moment {square}");
    }
}

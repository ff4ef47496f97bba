//! Numbers that look random and are the same in every run.

/// A sequence of numbers (xorshift).
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        let mut noise = Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        // Similar seeds begin alike.
        for _ in 0..4 {
            noise.word();
        }
        noise
    }

    /// The next number.
    pub fn word(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 >> 32).unwrap_or_default()
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        u64::from(self.word()) % end
    }
}

//! Pseudo-random numbers for functions, which have no source of chance of their own.
//!
//! The sequence is the one that EDGELESS functions use, `x ← (1103515245 x + 12345) mod 2³¹`: the same
//! seed gives the same numbers in every implementation. It is good enough for made-up data and for
//! nothing else.

/// A sequence of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Random(u32);

impl Random {
    const MODULUS: u32 = 1 << 31;

    /// The sequence of a seed.
    pub const fn new(seed: u32) -> Self {
        Random(seed % Self::MODULUS)
    }

    /// The next number, below 2³¹.
    pub const fn number(&mut self) -> u32 {
        // The modulus divides 2³², so that wrapping around loses nothing.
        self.0 = self.0.wrapping_mul(1_103_515_245).wrapping_add(12_345) % Self::MODULUS;
        self.0
    }

    /// The next number as a fraction, from 0 to below 1.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.number()) / f64::from(Self::MODULUS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_one_that_others_have() {
        let mut random = Random::new(1);
        assert_eq!([random.number(), random.number(), random.number()], [1_103_527_590, 377_401_575, 662_824_084]);
    }

    #[test]
    fn fractions_spread_over_their_range() {
        let mut random = Random::new(42);
        let fractions: Vec<f64> = (0..10_000).map(|_| random.fraction()).collect();
        assert!(fractions.iter().all(|fraction| (0.0..1.0).contains(fraction)));
        let mean = fractions.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}

//! Inputs that are nearly right: those that are, changed in a few places.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// A generator that makes the same inputs from the same seed.
#[derive(Clone, Debug)]
pub struct Random(SmallRng);

/// Numbers at which things change.
const EDGES: [u64; 12] =
    [0, 1, 2, 15, 16, 0x7f, 0x80, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0x7fff_ffff_ffff_ffff];

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// A number below another one; 0 below 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// Whether one of so many times is this one.
    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let index = self.below(all.len());
        all.get(index).expect("something to pick from")
    }

    /// A number, often one of those at which things change.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.0.next_u64(),
            1 => self.below(100) as u64,
            2 => u64::MAX - self.below(3) as u64,
            _ => *self.pick(&EDGES),
        }
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.below(most + 1)];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    /// Changes bytes in a few places; pieces of `words` get among them.
    pub(crate) fn mutate(&mut self, bytes: &mut Vec<u8>, words: &[&[u8]]) {
        for _ in 0..=self.below(4) {
            let (at, other) = (self.below(bytes.len() + 1), self.below(bytes.len() + 1));
            let (from, to) = (at.min(other), at.max(other).min(at.min(other) + 64));
            match self.below(8) {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                1 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = self.0.next_u32().to_le_bytes()[0];
                    }
                }
                2 => drop(bytes.drain(from..to)),
                3 => {
                    let piece = bytes.get(from..to).unwrap_or_default().to_vec();
                    let at = self.below(bytes.len() + 1);
                    bytes.splice(at..at, piece);
                }
                4 => bytes.truncate(at),
                5 | 6 if !words.is_empty() => {
                    let word = self.pick(words).to_vec();
                    let end = if self.one_in(2) { from } else { to };
                    bytes.splice(from..end, word);
                }
                _ => {
                    let number = self.number().to_string();
                    bytes.splice(from..from, number.into_bytes());
                }
            }
        }
    }
}

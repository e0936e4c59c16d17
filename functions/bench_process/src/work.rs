//! What takes the time and the memory.

use std::collections::TryReserveError;

/// Numbers are kept in pieces of so many values, the lowest first.
const PIECE: u64 = 1_000_000_000_000_000_000;

/// The Fibonacci number of `n`, in full, as pieces.
fn fibonacci(n: usize) -> Vec<u64> {
    let (mut current, mut next) = (vec![0], vec![1]);
    for _ in 0..n {
        add(&mut current, &next);
        std::mem::swap(&mut current, &mut next);
    }
    current
}

/// Adds to a number one that is not shorter.
fn add(number: &mut Vec<u64>, other: &[u64]) {
    number.resize(other.len(), 0);
    let mut carry = 0;
    for (piece, other) in number.iter_mut().zip(other) {
        let sum = *piece + other + carry;
        (*piece, carry) = (sum % PIECE, sum / PIECE);
    }
    if carry > 0 {
        number.push(carry);
    }
}

/// The last digit of the Fibonacci number of `n`.
pub(crate) fn fibonacci_last_digit(n: usize) -> u8 {
    // The whole number is the work, even though little of it is asked for.
    let number = std::hint::black_box(fibonacci(n));
    number.first().and_then(|lowest| u8::try_from(lowest % 10).ok()).unwrap_or_default()
}

/// Writes so many bytes of memory and reads them again.
pub(crate) fn touch(bytes: usize) -> Result<(), TryReserveError> {
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(bytes)?;
    memory.extend((0..=u8::MAX).cycle().take(bytes));
    let sum: u64 = std::hint::black_box(&memory).iter().map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
    Ok(())
}

/// Every digit goes up by `shift`; whatever is no digit stays.
pub(crate) fn shifted(digits: &str, shift: u8) -> String {
    let up = |c: char| match c.to_digit(10) {
        Some(digit) => char::from_digit((digit + u32::from(shift)) % 10, 10).unwrap_or(c),
        None => c,
    };
    digits.chars().map(up).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fibonacci_numbers_are_exact_however_long() {
        let small: Vec<_> = (0..10).map(|n| fibonacci(n)[0]).collect();
        assert_eq!(small, [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]);
        // 354 224 848 179 261 915 075, the first that needs more than 64 bits being the 94th.
        assert_eq!(fibonacci(100), [224_848_179_261_915_075, 354]);
        let thousandth = fibonacci(1000);
        assert_eq!((thousandth.len(), thousandth[0] % 1_000_000_000), (12, 849_228_875));
        assert_eq!(fibonacci_last_digit(1000), 5);
    }

    #[test]
    fn memory_beyond_all_bounds_is_an_error() {
        assert!(touch(1 << 20).is_ok());
        assert!(touch(usize::MAX).is_err());
    }
}

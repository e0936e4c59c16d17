//! Splits data into parts and puts the results together: what a stage remembers between events.

use std::collections::BTreeMap;

use edgeless_function::log;

/// Transactions that wait for their parts. A part that was lost would otherwise be waited for, and its
/// transaction kept, for ever.
const WAITING_MAX: usize = 64;

/// A stage with its workers.
pub(crate) struct Stage {
    fan_out: usize,
    /// By transaction, the results that are there.
    waiting: BTreeMap<u64, Vec<Option<String>>>,
}

/// What came of a message.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    /// It was data: outputs and what each gets.
    Split(Vec<(String, String)>),
    /// It was a result, and others are still to come.
    Part,
    /// It was the last result.
    Joined { transaction: u64, digits: String },
}

impl Stage {
    pub(crate) fn new(fan_out: usize) -> Self {
        Stage { fan_out, waiting: BTreeMap::new() }
    }

    /// Takes data or the result for a part; an error says why it is of no use.
    pub(crate) fn take(&mut self, message: &str) -> Result<Taken, String> {
        let (head, digits) = message.split_once('\n').ok_or("there is no line with data behind it")?;
        let (transaction, part) = head.split_once(' ').map_or((head, None), |(number, part)| (number, Some(part)));
        let transaction =
            transaction.parse().map_err(|_| format!("'{transaction}' is not the number of a transaction"))?;
        match part {
            None => Ok(Taken::Split(self.split(transaction, digits))),
            Some(part) => self.put(transaction, part, digits),
        }
    }

    fn split(&mut self, transaction: u64, digits: &str) -> Vec<(String, String)> {
        self.waiting.insert(transaction, vec![None; self.fan_out]);
        if self.waiting.len() > WAITING_MAX
            && let Some((lost, _)) = self.waiting.pop_first()
        {
            log::warn!("transaction {lost} is given up: its parts did not come back");
        }
        let digits: Vec<char> = digits.chars().collect();
        // Data that is too short for all leaves nothing for the last ones, which answer all the same.
        let mut pieces = digits.chunks(digits.len().div_ceil(self.fan_out).max(1));
        let part = |index: usize| {
            let piece: String = pieces.next().unwrap_or_default().iter().collect();
            (format!("part-{index}"), format!("{transaction} {index}\n{piece}"))
        };
        (0..self.fan_out).map(part).collect()
    }

    fn put(&mut self, transaction: u64, part: &str, digits: &str) -> Result<Taken, String> {
        let unknown = || format!("nobody waits for part {part} of transaction {transaction}");
        let parts = self.waiting.get_mut(&transaction).ok_or_else(unknown)?;
        let place = part.parse().ok().and_then(|index: usize| parts.get_mut(index)).ok_or_else(unknown)?;
        *place = Some(digits.to_owned());
        if parts.iter().any(Option::is_none) {
            return Ok(Taken::Part);
        }
        let digits = self.waiting.remove(&transaction).into_iter().flatten().flatten().collect();
        Ok(Taken::Joined { transaction, digits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the number of workers, what they all return unchanged is the data.
    #[test]
    fn parts_put_together_are_the_whole() {
        for (fan_out, digits) in [(1, "123"), (2, "123"), (3, "1234567"), (4, "12345"), (5, "12"), (3, "")] {
            let mut stage = Stage::new(fan_out);
            let Ok(Taken::Split(parts)) = stage.take(&format!("9\n{digits}")) else { panic!("no parts") };
            assert_eq!(parts.len(), fan_out);
            let mut taken: Vec<_> = parts.iter().rev().map(|(_, part)| stage.take(part).unwrap()).collect();
            assert_eq!(taken.pop(), Some(Taken::Joined { transaction: 9, digits: digits.to_owned() }));
            assert!(taken.iter().all(|taken| *taken == Taken::Part));
            assert!(stage.waiting.is_empty());
        }
    }

    #[test]
    fn what_was_lost_is_not_kept_for_ever() {
        let mut stage = Stage::new(2);
        for transaction in 0..1000 {
            stage.take(&format!("{transaction}\n12")).unwrap();
        }
        assert_eq!(stage.waiting.len(), WAITING_MAX);
        assert!(stage.take("1 0\n1").is_err(), "it was given up");
        assert_eq!(stage.take("999 0\n1"), Ok(Taken::Part));
    }

    #[test]
    fn what_belongs_nowhere_is_refused() {
        let mut stage = Stage::new(2);
        stage.take("1\n12").unwrap();
        for message in ["", "1", "x\n1", "1 2\n1", "1 x\n1", "2 0\n1", "-1\n1"] {
            assert!(stage.take(message).is_err(), "{message}");
        }
    }
}

//! Dead letters: events that were given up, for users to look at, to send again or to drop.

use std::cmp::Reverse;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

use crate::id::{ComponentId, WorkflowId};

/// The most dead letters that one answer tells of.
pub const MOST: usize = 1000;
/// The most dead letters that one request names.
pub const NAMED: usize = 1000;
/// The bytes of a payload that are shown.
pub const SHOWN: usize = 4 << 10;
/// What went wrong that one answer tells of.
const TROUBLES: usize = 32;

/// Names a dead letter, wherever its component runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LetterId {
    /// Whose number it has.
    pub outbox: Uuid,
    /// Its number.
    pub number: u64,
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.outbox, self.number)
    }
}

/// A text that is not the id of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the id of a dead letter: `edgeless_cli events dead list` shows them")]
pub struct LetterIdError(String);

impl FromStr for LetterId {
    type Err = LetterIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(outbox, number)| {
            Some(Self { outbox: Uuid::try_parse(outbox).ok()?, number: number.parse().ok()? })
        });
        parsed.ok_or_else(|| LetterIdError(text.chars().take(80).collect()))
    }
}

/// An event that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// What it is called.
    pub id: LetterId,
    /// Which component sent it.
    pub component: ComponentId,
    /// What that is called in its workflow.
    pub name: String,
    /// The workflow; only the controller says it.
    pub workflow: Option<WorkflowId>,
    /// The output that it was sent on.
    pub output: String,
    /// The beginning of what it says.
    pub payload: Bytes,
    /// How long all of it is, bytes.
    pub size: u64,
    /// When it was sent.
    pub sent: SystemTime,
    /// How often its target had it and did not handle it.
    pub tries: u32,
    /// Why it was given up.
    pub reason: String,
}

/// Some dead letters, those sent last first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetters {
    /// The newest.
    pub letters: Vec<DeadLetter>,
    /// How many there are besides.
    pub more: u64,
    /// Who could not be asked.
    pub troubles: Vec<String>,
}

impl DeadLetters {
    /// All of these together, at most so many.
    pub fn together(parts: impl IntoIterator<Item = Self>, most: usize) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.letters.extend(part.letters);
            all.more = all.more.saturating_add(part.more);
            add_troubles(&mut all.troubles, part.troubles);
        }
        all.letters.sort_by_key(|letter| (Reverse(letter.sent), Reverse(letter.id)));
        let spare = all.letters.len().saturating_sub(most);
        all.letters.truncate(most);
        all.more = all.more.saturating_add(u64::try_from(spare).unwrap_or(u64::MAX));
        all
    }

    /// Nothing but that somebody could not be asked.
    pub fn trouble(reason: String) -> Self {
        Self { troubles: vec![reason], ..Self::default() }
    }
}

/// What is to become of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// They are sent again.
    Retry,
    /// They are removed.
    Drop,
}

/// Which dead letters are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Letters {
    /// All there are.
    All,
    /// These.
    Named(Vec<LetterId>),
}

impl Letters {
    /// Whether this one is meant.
    pub fn has(&self, id: &LetterId) -> bool {
        match self {
            Self::All => true,
            Self::Named(ids) => ids.contains(id),
        }
    }
}

/// What has become of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// So many were sent again or removed.
    pub count: u64,
    /// What could not be done: there may be more to do then.
    pub troubles: Vec<String>,
}

impl Resolved {
    /// All of these together.
    pub fn together(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::default(), |mut all, part| {
            all.count = all.count.saturating_add(part.count);
            add_troubles(&mut all.troubles, part.troubles);
            all
        })
    }

    /// Nothing but that somebody could not be asked, or refused.
    pub fn trouble(reason: String) -> Self {
        Self { count: 0, troubles: vec![reason] }
    }
}

fn add_troubles(all: &mut Vec<String>, more: Vec<String>) {
    let room = TROUBLES.saturating_sub(all.len());
    all.extend(more.into_iter().take(room));
}

/// Whose dead letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of this workflow, or of all.
    pub workflow: Option<WorkflowId>,
    /// Of the component with this name there, or of all.
    pub component: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn letter(number: u64) -> DeadLetter {
        DeadLetter {
            id: LetterId { outbox: Uuid::nil(), number },
            component: ComponentId(Uuid::nil()),
            name: String::new(),
            workflow: None,
            output: String::new(),
            payload: Bytes::new(),
            size: 0,
            sent: UNIX_EPOCH + Duration::from_secs(number),
            tries: 1,
            reason: String::new(),
        }
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let id = LetterId { outbox: Uuid::from_u128(7), number: 12 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "x/1", "00000000-0000-0000-0000-000000000007", "00000000-0000-0000-0000-000000000007/x"] {
            assert!(wrong.parse::<LetterId>().unwrap_err().to_string().contains("is not the id of a dead letter"));
        }
    }

    #[test]
    fn the_newest_of_all_are_told_and_the_rest_is_counted() {
        let part = |numbers: &[u64], more, trouble: &str| DeadLetters {
            letters: numbers.iter().copied().map(letter).collect(),
            more,
            troubles: vec![trouble.to_string()],
        };
        let all = DeadLetters::together([part(&[5, 1], 2, "a"), part(&[9, 4, 3], 1, "b")], 3);
        let numbers: Vec<_> = all.letters.iter().map(|letter| letter.id.number).collect();
        assert_eq!((numbers, all.more), (vec![9, 5, 4], 5));
        assert_eq!(all.troubles, ["a", "b"]);
    }

    #[test]
    fn troubles_are_bounded() {
        let parts = (0..100).map(|n| Resolved { count: 1, troubles: vec![n.to_string()] });
        let all = Resolved::together(parts);
        assert_eq!((all.count, all.troubles.len()), (100, TROUBLES));
    }
}

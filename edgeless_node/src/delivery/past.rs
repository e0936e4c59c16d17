//! What was kept of the events of a component before: by the process before, or where the component ran before.

use std::collections::HashMap;

use bytes::Bytes;
use edgeless_api::Error;
use edgeless_api::journal::{Belongings, Handled, OutboxEvent, OutboxNumbers};
use edgeless_daemon::store::Change;
use uuid::Uuid;

use super::dead::Known;
use super::{DEAD, HANDLED, Key, NUMBERS, OUTBOX, numbered, of_outbox};
use crate::records::Records;

/// What was kept of the events of one component.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Whose numbers its events have.
    pub numbers: Option<OutboxNumbers>,
    /// What it sent and was not handled.
    pub events: Vec<(u64, OutboxEvent)>,
    /// What it handled.
    pub handled: Vec<(Uuid, Handled)>,
    /// What was given up.
    pub dead: Vec<(u64, Letter)>,
}

/// A dead letter of the past.
#[derive(Clone, Debug)]
pub enum Letter {
    /// The letter, which has come from elsewhere.
    Whole(OutboxEvent),
    /// What is known of one in the store.
    Stored(Known),
}

impl Letter {
    /// What is known of it, once it is in the store.
    pub fn known(self) -> Known {
        match self {
            Self::Whole(event) => Known::stored(&event),
            Self::Stored(known) => known,
        }
    }

    fn whole(self) -> Option<OutboxEvent> {
        match self {
            Self::Whole(event) => Some(event),
            Self::Stored(_) => None,
        }
    }
}

impl Past {
    /// What a component has brought along, and its state.
    pub fn of(belongings: Belongings) -> (Self, Option<Bytes>) {
        let Belongings { state, numbers, events, handled, dead } = belongings;
        let dead = dead.into_iter().map(|(number, event)| (number, Letter::Whole(event))).collect();
        (Self { numbers, events, handled, dead }, state)
    }

    /// What a component takes along, with its state.
    pub fn with(self, state: Option<Bytes>) -> Belongings {
        let Self { numbers, events, handled, dead } = self;
        let dead = dead.into_iter().filter_map(|(number, letter)| Some((number, letter.whole()?))).collect();
        Belongings { state, numbers, events, handled, dead }
    }

    /// What is to be written down, so that it is kept here.
    pub fn changes(&self, key: &Key) -> Vec<Change> {
        let numbers = self.numbers.map(|numbers| Change::put(NUMBERS, Bytes::copy_from_slice(key), numbers.encode()));
        let event = |(number, event): &(u64, OutboxEvent)| Change::put(OUTBOX, numbered(key, *number), event.encode());
        let handled =
            |(outbox, handled): &(Uuid, Handled)| Change::put(HANDLED, of_outbox(key, *outbox), handled.encode());
        let dead = |(number, letter): &(u64, Letter)| match letter {
            Letter::Whole(event) => Some(Change::put(DEAD, numbered(key, *number), event.encode())),
            Letter::Stored(_) => None,
        };
        let of_events = self.events.iter().map(event).chain(self.dead.iter().filter_map(dead));
        numbers.into_iter().chain(of_events).chain(self.handled.iter().map(handled)).collect()
    }
}

/// Splits the key of a record into that of its component and the rest.
fn split<const N: usize>(key: &[u8]) -> Option<(Key, [u8; N])> {
    let (component, rest) = key.split_first_chunk()?;
    Some((*component, rest.try_into().ok()?))
}

/// What the process before has kept, by the keys of the components. A record that cannot be read is removed, and said.
///
/// # Errors
/// The file cannot be read.
pub async fn read(records: &Records) -> Result<HashMap<Key, Past>, Error> {
    let mut pasts: HashMap<Key, Past> = HashMap::new();
    let mut damaged = Vec::new();
    for (key, record) in records.all(NUMBERS).await? {
        match (split::<0>(&key), OutboxNumbers::decode(&record)) {
            (Some((of, _)), Ok(numbers)) => pasts.entry(of).or_default().numbers = Some(numbers),
            _ => damaged.push(Change::remove(NUMBERS, key)),
        }
    }
    for (key, record) in records.all(OUTBOX).await? {
        match (split(&key), OutboxEvent::decode(&record)) {
            (Some((of, number)), Ok(event)) => {
                pasts.entry(of).or_default().events.push((u64::from_be_bytes(number), event));
            }
            _ => damaged.push(Change::remove(OUTBOX, key)),
        }
    }
    for (key, record) in records.all(HANDLED).await? {
        match (split(&key), Handled::decode(&record)) {
            (Some((of, outbox)), Ok(handled)) => {
                pasts.entry(of).or_default().handled.push((Uuid::from_bytes(outbox), handled));
            }
            _ => damaged.push(Change::remove(HANDLED, key)),
        }
    }
    // One by one: there may be many, and all of them are seldom wanted.
    for key in records.keys(DEAD).await? {
        let event = records.get(DEAD, &key).await?.map(|record| OutboxEvent::decode(&record));
        match (split(&key), event) {
            (Some((of, number)), Some(Ok(event))) => {
                let letter = Letter::Stored(Known::stored(&event));
                pasts.entry(of).or_default().dead.push((u64::from_be_bytes(number), letter));
            }
            (_, None) => {}
            _ => damaged.push(Change::remove(DEAD, key)),
        }
    }
    if !damaged.is_empty() {
        tracing::error!(count = damaged.len(), "records of events cannot be read and are removed");
        records.write(damaged).await?;
    }
    Ok(pasts)
}

/// Removes all records of the events of a component.
///
/// # Errors
/// They cannot be read or removed.
pub async fn forget(records: &Records, key: &Key) -> Result<(), Error> {
    let mut changes = Vec::new();
    for table in [NUMBERS, OUTBOX, HANDLED, DEAD] {
        let keys = records.keys_from(table, Bytes::copy_from_slice(key)).await?;
        changes.extend(keys.into_iter().map(|key| Change::remove(table, key)));
    }
    if changes.is_empty() { Ok(()) } else { records.write(changes).await }
}

/// Removes all records of events.
///
/// # Errors
/// They cannot be read or removed.
pub async fn forget_all(records: &Records) -> Result<(), Error> {
    let mut changes = Vec::new();
    for table in [NUMBERS, OUTBOX, HANDLED, DEAD] {
        changes.extend(records.keys(table).await?.into_iter().map(|key| Change::remove(table, key)));
    }
    if changes.is_empty() { Ok(()) } else { records.write(changes).await }
}

//! Dead letters: what a component sent and its targets did not handle, until a user sends it again or drops it.
//!
//! They are in the node's store; what is known of them without looking there is here. A letter that is being written can
//! neither be seen nor be sent again: whatever becomes of it is written after it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::Error;
use edgeless_api::dead::{LetterId, Letters, Treatment};
use edgeless_api::journal::OutboxEvent;
use edgeless_daemon::store::Change;
use uuid::Uuid;

use super::{Custody, DEAD, Key, lock, numbered};
use crate::outputs::Outputs;

/// Dead letters of one component: so many, and so many bytes of payloads; one is kept, however large.
const LETTERS: usize = 1000;
const BYTES: usize = 16 << 20;
/// What is sent again with one commit: so many, and so many bytes of payloads.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 4 << 20;

/// The dead letters of one component.
#[derive(Debug, Default)]
pub struct Dead {
    letters: BTreeMap<u64, Known>,
    /// Of the payloads.
    bytes: usize,
}

/// What is known of a letter.
#[derive(Clone, Debug)]
pub struct Known {
    /// When it was sent.
    pub sent: SystemTime,
    /// The size of its payload.
    pub size: usize,
    /// The letter itself, as long as it is not in the store.
    event: Option<OutboxEvent>,
}

impl Known {
    /// Of a letter in the store.
    pub fn stored(event: &OutboxEvent) -> Self {
        Self { sent: event.sent, size: event.payload.len(), event: None }
    }
}

impl Dead {
    /// Those that are in the store.
    pub fn new(letters: impl IntoIterator<Item = (u64, Known)>) -> Self {
        let letters: BTreeMap<_, _> = letters.into_iter().collect();
        let bytes = letters.values().map(|known| known.size).sum();
        Self { letters, bytes }
    }

    /// A letter that is about to be written. Returns those that there is no room for any more.
    pub fn add(&mut self, number: u64, event: OutboxEvent) -> Vec<u64> {
        self.bytes += event.payload.len();
        self.letters.insert(number, Known { event: Some(event.clone()), ..Known::stored(&event) });
        let mut spare = Vec::new();
        while self.letters.len() > LETTERS || (self.letters.len() > 1 && self.bytes > BYTES) {
            let oldest = self.letters.iter().find(|(own, known)| **own != number && known.event.is_none());
            let Some(oldest) = oldest.map(|(oldest, _)| *oldest) else { break };
            self.remove(oldest);
            spare.push(oldest);
        }
        spare
    }

    /// A letter was written.
    pub fn written(&mut self, number: u64) {
        if let Some(known) = self.letters.get_mut(&number) {
            known.event = None;
        }
    }

    /// A letter is gone.
    pub fn remove(&mut self, number: u64) {
        if let Some(known) = self.letters.remove(&number) {
            self.bytes -= known.size;
        }
    }

    /// Those that are in the store, oldest first.
    pub fn stored(&self) -> impl DoubleEndedIterator<Item = (u64, &Known)> {
        self.letters.iter().filter(|(_, known)| known.event.is_none()).map(|(number, known)| (*number, known))
    }

    /// Those that are not.
    fn unwritten(&self) -> impl Iterator<Item = (u64, &OutboxEvent)> {
        self.letters.iter().filter_map(|(number, known)| Some((*number, known.event.as_ref()?)))
    }
}

/// What is shown of one letter of many, before the store is asked.
#[derive(Debug)]
pub struct Heading {
    /// Its number.
    pub number: u64,
    /// When it was sent.
    pub sent: SystemTime,
}

impl Custody {
    /// The newest dead letters, those sent last first, and how many there are.
    pub fn dead(&self, most: usize) -> (Vec<Heading>, usize) {
        let dead = lock(&self.dead);
        let mut all: Vec<_> = dead.stored().map(|(number, known)| Heading { number, sent: known.sent }).collect();
        all.sort_by_key(|heading| std::cmp::Reverse((heading.sent, heading.number)));
        let count = all.len();
        all.truncate(most);
        (all, count)
    }

    /// What its dead letters are called by.
    pub fn outbox_id(&self) -> Uuid {
        lock(&self.outbox).id()
    }

    /// One of them, unless it is gone.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn dead_letter(&self, number: u64) -> Result<Option<OutboxEvent>, Error> {
        let record = self.records.get(DEAD, &numbered(&self.key, number)).await?;
        record.map(|record| OutboxEvent::decode(&record)).transpose()
    }

    fn chosen(&self, letters: &Letters) -> Vec<u64> {
        let outbox = self.outbox_id();
        let dead = lock(&self.dead);
        dead.stored()
            .map(|(number, _)| number)
            .filter(|number| letters.has(&LetterId { outbox, number: *number }))
            .collect()
    }

    /// All of them, to travel with their component.
    pub(super) async fn all_dead(&self) -> Vec<(u64, OutboxEvent)> {
        let (stored, mut all) = {
            let dead = lock(&self.dead);
            let stored: Vec<_> = dead.stored().map(|(number, _)| number).collect();
            let unwritten: Vec<_> = dead.unwritten().map(|(number, event)| (number, event.clone())).collect();
            (stored, unwritten)
        };
        for number in stored {
            match self.dead_letter(number).await {
                Ok(event) => all.extend(event.map(|event| (number, event))),
                Err(error) => tracing::warn!(number, %error, "a dead letter cannot be read and does not move along"),
            }
        }
        all
    }
}

fn removed(key: &Key, number: u64) -> Change {
    Change::remove(DEAD, numbered(key, number))
}

impl Outputs {
    /// Writes down that an event is a dead letter; the oldest make room for it.
    pub(super) fn bury(&self, number: u64, event: OutboxEvent, mut changes: Vec<Change>) {
        let Some(custody) = self.custody().cloned() else { return };
        let spare = lock(&custody.dead).add(number, event);
        if !spare.is_empty() {
            let component = self.id().function;
            tracing::warn!(%component, count = spare.len(), "the oldest dead letters are dropped: there are too many");
        }
        changes.extend(spare.into_iter().map(|spare| removed(&custody.key, spare)));
        self.router().spawn(async move {
            match custody.records.write(changes).await {
                Ok(()) => {
                    lock(&custody.dead).written(number);
                    lock(&custody.outbox).buried(number);
                }
                Err(error) => {
                    // It is still in the outbox on the disk, and sent again by the next process.
                    lock(&custody.dead).remove(number);
                    tracing::warn!(%error, "it could not be written down that an event is a dead letter");
                }
            }
        });
    }

    /// Sends dead letters again, or drops them, and returns how many. Those that are gone are left out.
    ///
    /// # Errors
    /// Some of them could not be; they stay. The number is of those that could.
    pub async fn resolve_dead(&self, letters: &Letters, treatment: Treatment) -> Result<u64, (u64, Error)> {
        let Some(custody) = self.custody().cloned() else { return Ok(0) };
        let _turn = custody.burial.lock().await;
        let mut waiting = custody.chosen(letters).into_iter().peekable();
        let mut count = 0;
        while waiting.peek().is_some() {
            let done = match treatment {
                Treatment::Drop => {
                    let batch: Vec<_> = waiting.by_ref().take(BATCH).collect();
                    custody.drop_dead(&batch).await
                }
                Treatment::Retry => self.retry_dead(&mut waiting).await,
            };
            count += done.map_err(|error| (count, error))?;
        }
        Ok(count)
    }

    /// Sends some of these again, with one commit that also removes them from the dead.
    async fn retry_dead(&self, waiting: &mut impl Iterator<Item = u64>) -> Result<u64, Error> {
        let Some(custody) = self.custody().cloned() else { return Ok(0) };
        let options = self.router().options();
        if custody.is_closed.load(Ordering::Acquire) {
            return Err(Error::unavailable("it is being moved or stopped: try again"));
        }
        if !custody.has_room(options.queued, 1, options.emit_wait).await {
            return Err(Error::unavailable("its outbox is full: try again when its targets have handled some"));
        }
        let (mut numbers, mut events, mut bytes) = (Vec::new(), Vec::new(), 0);
        while numbers.len() < BATCH && bytes < BATCH_BYTES {
            let Some(number) = waiting.next() else { break };
            let Some(event) = custody.dead_letter(number).await? else {
                lock(&custody.dead).remove(number);
                continue;
            };
            bytes += event.payload.len();
            numbers.push(number);
            events.push(OutboxEvent { tries: 0, reason: String::new(), ..event });
        }
        if events.is_empty() {
            return Ok(0);
        }
        let also = numbers.iter().map(|number| removed(&custody.key, *number)).collect();
        let events = events.into_iter().map(|event| self.outgoing(event)).collect();
        let (written, done) = tokio::sync::oneshot::channel();
        self.commit(also, None, events, None, Box::new(move |result| _ = written.send(result))).await;
        done.await.map_err(|_| Error::unavailable("the node is shutting down"))??;
        custody.gone(&numbers)
    }
}

impl Custody {
    async fn drop_dead(&self, numbers: &[u64]) -> Result<u64, Error> {
        self.records.write(numbers.iter().map(|number| removed(&self.key, *number)).collect()).await?;
        self.gone(numbers)
    }

    fn gone(&self, numbers: &[u64]) -> Result<u64, Error> {
        let mut dead = lock(&self.dead);
        numbers.iter().for_each(|number| dead.remove(*number));
        u64::try_from(numbers.len()).map_err(Error::bug)
    }
}

/// The beginning of a payload.
pub fn shown(payload: &Bytes) -> Bytes {
    payload.slice(..payload.len().min(edgeless_api::dead::SHOWN))
}

#[cfg(test)]
mod tests {
    use edgeless_api::event::Trace;

    use super::*;

    fn event(size: usize) -> OutboxEvent {
        OutboxEvent {
            output: "out".into(),
            payload: vec![b'x'; size].into(),
            trace: Trace::default(),
            sent: SystemTime::UNIX_EPOCH,
            tries: 2,
            reason: "the target has failed".into(),
        }
    }

    #[test]
    fn the_oldest_make_room_and_what_is_being_written_stays() {
        let mut dead = Dead::default();
        for number in 0..LETTERS as u64 {
            assert!(dead.add(number, event(1)).is_empty());
        }
        assert!(dead.add(5000, event(1)).is_empty(), "none of them is written");
        assert_eq!((dead.stored().count(), dead.unwritten().count()), (0, LETTERS + 1));
        for number in [3, 4, 5000] {
            dead.written(number);
        }
        assert_eq!(dead.add(5001, event(1)), [3, 4]);
        assert_eq!(dead.stored().map(|(number, _)| number).collect::<Vec<_>>(), [5000]);
    }

    #[test]
    fn room_is_for_bytes_too_and_one_is_kept_however_large() {
        let mut dead = Dead::new([(1, Known::stored(&event(BYTES / 2))), (2, Known::stored(&event(BYTES / 2)))]);
        assert_eq!(dead.add(3, event(1)), [1]);
        assert_eq!(dead.add(4, event(BYTES + 1)), [2], "the third is being written");
        dead.written(3);
        dead.written(4);
        assert_eq!(dead.add(5, event(1)), [3, 4]);
        dead.remove(5);
        dead.remove(5);
        assert_eq!((dead.bytes, dead.letters.len()), (0, 0));
    }
}

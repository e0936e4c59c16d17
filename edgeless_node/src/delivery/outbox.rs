//! What a component has sent on outputs that deliver at least once, until it is handled.
//!
//! Each event has a number, which only grows, also over restarts and moves: targets know a repeat by it. This is the data;
//! when it is written and when it is sent is decided [outside](super).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use edgeless_api::EventId;
use edgeless_api::journal::{OutboxEvent, OutboxNumbers};
use edgeless_daemon::store::Change;
use uuid::Uuid;

use super::{DEAD, Key, NUMBERS, OUTBOX, numbered};
use crate::books::{Books, Entry};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// Events that one component may have on their way.
pub const EVENTS: usize = 4096;
/// Numbers that are reserved at once.
const BLOCK: u64 = 4096;
/// The wait before an event is sent again: the first, and how often it doubles.
const FIRST_BACK_OFF: Duration = Duration::from_millis(20);
const DOUBLINGS: u32 = 7;

/// The outbox of one component.
#[derive(Debug)]
pub struct Outbox {
    numbers: OutboxNumbers,
    /// So many of the reserved numbers are on the disk.
    kept: u64,
    next: u64,
    items: BTreeMap<u64, Item>,
    /// Of the payloads.
    bytes: usize,
    /// Handled, and their records still there.
    settled: Vec<u64>,
    /// Given up, and that is not on the disk yet: the next process would send them again.
    dying: BTreeSet<u64>,
}

#[derive(Debug)]
struct Item {
    event: OutboxEvent,
    entry: Option<Entry>,
    /// How often it came back in a row, whatever the reason.
    returns: u32,
}

/// An event that is about to be sent.
#[derive(Debug)]
pub struct Outgoing {
    /// What is written down.
    pub event: OutboxEvent,
    /// Where it is counted.
    pub entry: Entry,
}

/// What was taken in, and goes to the disk with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// The numbers of the events.
    pub numbers: Range<u64>,
    /// Settled events whose records are removed.
    pub settled: Vec<u64>,
    /// Up to which number all are reserved; 0: that is not among it.
    pub reserved: u64,
}

/// What is to be done about an event whose fate is known.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing more.
    Done,
    /// It is sent again after this time.
    Again(Duration),
    /// It was tried often enough: the dead letter, and what is to be written down about it.
    Dead(Box<OutboxEvent>, Box<[Change; 2]>),
}

impl Outbox {
    /// An outbox with what was in it before.
    pub fn new(
        numbers: Option<OutboxNumbers>,
        events: impl IntoIterator<Item = (u64, OutboxEvent)>,
        books: impl Fn(&str) -> Entry,
    ) -> Self {
        let numbers = numbers.unwrap_or_else(|| OutboxNumbers { outbox: Uuid::new_v4(), reserved: 0 });
        let item = |event: OutboxEvent| Item { entry: Some(books(&event.output)), event, returns: 0 };
        let items: BTreeMap<_, _> = events.into_iter().map(|(number, event)| (number, item(event))).collect();
        let bytes = items.values().map(|item| item.event.payload.len()).sum();
        // What was reserved may have been used.
        let next = items.last_key_value().map_or(0, |(number, _)| *number).max(numbers.reserved) + 1;
        Self { kept: numbers.reserved, numbers, next, items, bytes, settled: Vec::new(), dying: BTreeSet::new() }
    }

    /// Whose numbers its events have.
    pub fn id(&self) -> Uuid {
        self.numbers.outbox
    }

    /// Whether it has ever been used.
    pub fn is_used(&self) -> bool {
        self.next > 1
    }

    /// Events that are not handled.
    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    /// Whether there is room for more events; `most` bytes of payloads may wait. So many times as much may wait
    /// because of what must not be refused.
    pub fn has_room(&self, most: usize, times: usize) -> bool {
        let (events, bytes) = (EVENTS.saturating_mul(times), most.saturating_mul(times));
        self.items.len() < events && (self.items.is_empty() || self.bytes < bytes)
    }

    /// The payloads that wait, bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The numbers of all that is in it.
    pub fn all(&self) -> Vec<u64> {
        self.items.keys().copied().collect()
    }

    /// Takes events in, and says what is to be written down, settled events included.
    pub fn admit(&mut self, key: &Key, events: Vec<Outgoing>, changes: &mut Vec<Change>) -> Admitted {
        let first = self.next;
        for Outgoing { event, entry } in events {
            changes.push(Change::put(OUTBOX, numbered(key, self.next), event.encode()));
            self.bytes += event.payload.len();
            self.items.insert(self.next, Item { event, entry: Some(entry), returns: 0 });
            self.next += 1;
        }
        if self.next > first && self.next - 1 > self.numbers.reserved {
            self.numbers.reserved = self.next - 1 + BLOCK;
        }
        // Again until it is known to be on the disk: a write before this one may fail.
        let mut reserved = 0;
        if self.next > first && self.next - 1 > self.kept {
            reserved = self.numbers.reserved;
            changes.push(Change::put(NUMBERS, Bytes::copy_from_slice(key), self.numbers.encode()));
        }
        let settled = self.clear_settled(key, changes);
        Admitted { numbers: first..self.next, settled, reserved }
    }

    /// What is to be written down about settled events.
    pub fn clear_settled(&mut self, key: &Key, changes: &mut Vec<Change>) -> Vec<u64> {
        let settled = std::mem::take(&mut self.settled);
        changes.extend(settled.iter().map(|number| Change::remove(OUTBOX, numbered(key, *number))));
        settled
    }

    /// Events that are settled and whose records are still there.
    pub fn settled(&self) -> usize {
        self.settled.len()
    }

    /// What [`admit`](Self::admit) said could not be written down.
    pub fn take_back(&mut self, Admitted { numbers, settled, .. }: Admitted) {
        for number in numbers {
            if let Some(item) = self.remove(number)
                && let Some(entry) = item.entry
            {
                entry.settle(Fate::Dropped(Dropped::NotKept));
            }
        }
        self.settled.extend(settled);
    }

    /// What [`admit`](Self::admit) said is written down.
    pub fn written(&mut self, admitted: &Admitted) {
        self.kept = self.kept.max(admitted.reserved);
    }

    /// It is written down that an event was given up.
    pub fn buried(&mut self, number: u64) {
        self.dying.remove(&number);
    }

    fn remove(&mut self, number: u64) -> Option<Item> {
        let item = self.items.remove(&number)?;
        self.bytes -= item.event.payload.len();
        Some(item)
    }

    /// An event, and what its target shall know it by.
    pub fn get(&self, number: u64) -> Option<(&OutboxEvent, EventId)> {
        let event = &self.items.get(&number)?.event;
        let oldest = self.items.first_key_value().map_or(number, |(oldest, _)| *oldest);
        let oldest = self.dying.first().map_or(oldest, |dying| oldest.min(*dying));
        Some((event, EventId { outbox: self.numbers.outbox, number, oldest }))
    }

    /// An event came to this end. It may be tried so many times.
    pub fn settle(&mut self, key: &Key, number: u64, fate: Fate, most: u32) -> Verdict {
        let Some(item) = self.items.get_mut(&number) else { return Verdict::Done };
        let cause = match fate {
            Fate::Handled | Fate::HandedOver => {
                self.settled.push(number);
                if let Some(entry) = self.remove(number).and_then(|item| item.entry) {
                    entry.settle(fate);
                }
                return Verdict::Done;
            }
            Fate::Dropped(cause) => cause,
            Fate::Expired => Dropped::Expired,
            Fate::Unknown => Dropped::PeerLost,
        };
        item.event.reason = cause.to_string();
        // Whoever could not be reached has not refused it.
        let most = match cause {
            Dropped::TooLarge => 1,
            Dropped::TargetFailed | Dropped::Unmapped => most,
            _ => u32::MAX,
        };
        if most < u32::MAX {
            item.event.tries += 1;
        }
        if item.event.tries < most {
            let back_off = FIRST_BACK_OFF.saturating_mul(1 << item.returns.min(DOUBLINGS));
            item.returns += 1;
            return Verdict::Again(back_off);
        }
        let Some(Item { event, entry, .. }) = self.remove(number) else { return Verdict::Done };
        if let Some(entry) = entry {
            entry.settle(Fate::Dropped(Dropped::DeadLetter));
        }
        self.dying.insert(number);
        let key = numbered(key, number);
        let changes = [Change::remove(OUTBOX, key.clone()), Change::put(DEAD, key, event.encode())];
        Verdict::Dead(Box::new(event), Box::new(changes))
    }

    /// What it takes along when its component moves.
    pub fn contents(&self) -> (OutboxNumbers, Vec<(u64, OutboxEvent)>) {
        let numbers = OutboxNumbers { reserved: self.next - 1, ..self.numbers };
        (numbers, self.items.iter().map(|(number, item)| (*number, item.event.clone())).collect())
    }

    /// Gives up what is in it. Returns how much that is.
    pub fn lose(&mut self, cause: Dropped) -> usize {
        let items = std::mem::take(&mut self.items);
        self.bytes = 0;
        let count = items.len();
        for entry in items.into_values().filter_map(|item| item.entry) {
            entry.settle(Fate::Dropped(cause));
        }
        count
    }
}

/// An event on this output, in its books.
pub fn outgoing(event: OutboxEvent, books: &std::sync::Arc<Books>) -> Outgoing {
    Outgoing { event, entry: books.open() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use edgeless_api::event::Trace;

    use super::*;

    const KEY: Key = [7; 16];

    fn event(payload: &'static str) -> OutboxEvent {
        let payload = Bytes::from_static(payload.as_bytes());
        let sent = SystemTime::UNIX_EPOCH;
        OutboxEvent { output: "out".into(), payload, trace: Trace::default(), sent, tries: 0, reason: String::new() }
    }

    fn empty() -> (Outbox, Arc<Books>) {
        let books = Arc::new(Books::default());
        let opened = books.clone();
        (Outbox::new(None, [], move |_| opened.open()), books)
    }

    fn admit(outbox: &mut Outbox, books: &Arc<Books>, payloads: &[&'static str]) -> (Admitted, Vec<Change>) {
        let mut changes = Vec::new();
        let events = payloads.iter().map(|payload| outgoing(event(payload), books)).collect();
        (outbox.admit(&KEY, events, &mut changes), changes)
    }

    #[test]
    fn numbers_are_never_used_twice() {
        let (mut outbox, books) = empty();
        assert!(!outbox.is_used());
        let (numbers, changes) = admit(&mut outbox, &books, &["a", "b"]);
        assert_eq!(numbers.numbers, 1..3);
        outbox.written(&numbers);
        assert_eq!(changes.len(), 3, "two events, and the numbers that are reserved");
        let reserved = OutboxNumbers::decode(changes[2].value.as_ref().unwrap()).unwrap();
        assert_eq!(reserved.reserved, 2 + BLOCK);
        assert_eq!(admit(&mut outbox, &books, &["c"]).1.len(), 1);
        let mut next = Outbox::new(Some(reserved), [(3, event("c"))], |_| books.open());
        assert_eq!(
            admit(&mut next, &books, &["d"]).0.numbers,
            3 + BLOCK..4 + BLOCK,
            "the process before may have used them"
        );
        let (numbers, events) = next.contents();
        assert_eq!((numbers.outbox, numbers.reserved, events.len()), (reserved.outbox, 3 + BLOCK, 2));
    }

    #[test]
    fn what_could_not_be_written_was_never_sent() {
        let (mut outbox, books) = empty();
        let (numbers, _) = admit(&mut outbox, &books, &["a"]);
        outbox.settle(&KEY, 1, Fate::Handled, 3);
        let (second, changes) = admit(&mut outbox, &books, &["b"]);
        assert_eq!((numbers.numbers, changes.len()), (1..2, 3), "the settled one is removed with it");
        assert_eq!(second.settled, [1]);
        outbox.take_back(second);
        assert_eq!((outbox.waiting(), outbox.settled()), (0, 1));
        assert_eq!(books.read("out").dropped["NotKept"], 1);
        let (third, changes) = admit(&mut outbox, &books, &["c"]);
        assert_eq!((third.numbers.clone(), changes.len()), (3..4, 3), "and numbers are reserved again");
        outbox.written(&third);
        assert_eq!(admit(&mut outbox, &books, &["d"]).1.len(), 1);
    }

    #[test]
    fn an_event_is_sent_until_it_is_handled_or_was_refused_too_often() {
        let (mut outbox, books) = empty();
        admit(&mut outbox, &books, &["a", "b"]);
        assert_eq!(outbox.get(2).unwrap().1.oldest, 1);
        for _ in 0..1000 {
            assert!(matches!(outbox.settle(&KEY, 1, Fate::Unknown, 2), Verdict::Again(_)), "it did not arrive");
        }
        let again = outbox.settle(&KEY, 1, Fate::Dropped(Dropped::NoInstance), 2);
        assert_eq!(again, Verdict::Again(FIRST_BACK_OFF * (1 << DOUBLINGS)));
        let refused = Fate::Dropped(Dropped::TargetFailed);
        assert!(matches!(outbox.settle(&KEY, 1, refused, 2), Verdict::Again(_)));
        let Verdict::Dead(_, changes) = outbox.settle(&KEY, 1, refused, 2) else { panic!("it was tried twice") };
        assert_eq!(changes[0], Change::remove(OUTBOX, numbered(&KEY, 1)));
        let dead = OutboxEvent::decode(changes[1].value.as_ref().unwrap()).unwrap();
        assert_eq!((dead.tries, dead.reason.as_str(), dead.payload.as_ref()), (2, "the target has failed", &b"a"[..]));
        assert_eq!(outbox.get(2).unwrap().1.oldest, 1, "it may still be sent again");
        outbox.buried(1);
        assert_eq!(outbox.get(2).unwrap().1.oldest, 2);
        assert_eq!(outbox.settle(&KEY, 2, Fate::Handled, 2), Verdict::Done);
        assert_eq!(outbox.settle(&KEY, 2, Fate::Unknown, 2), Verdict::Done, "it is settled once");
        let read = books.read("out");
        assert_eq!((read.produced, read.handled, read.dropped["DeadLetter"], read.queued), (2, 1, 1, 0));
    }

    #[test]
    fn room_is_for_a_number_of_events_and_of_bytes() {
        let (mut outbox, books) = empty();
        assert!(outbox.has_room(0, 1), "one event has room, however large");
        admit(&mut outbox, &books, &["abc"]);
        assert!(outbox.has_room(4, 1) && !outbox.has_room(3, 1) && outbox.has_room(3, 2));
        for _ in 1..EVENTS {
            admit(&mut outbox, &books, &["x"]);
        }
        assert!(!outbox.has_room(usize::MAX, 1));
        assert_eq!(outbox.lose(Dropped::Stopping), EVENTS);
        assert_eq!(books.read("out").dropped["Stopping"], EVENTS as u64);
    }
}

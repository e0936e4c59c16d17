//! The books of an output: what was sent, and what became of it.
//!
//! Every event that an instance sends has an [`Entry`] in the books of its output. The entry travels
//! with the event, or stays in the node's hands while the event is on another node, and is closed
//! exactly once. So at any quiet moment
//!
//! ```text
//! produced = handled + expired + dropped + unknown + handed over      (and nothing is outstanding)
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use edgeless_api::status::OutputBooks;

use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// The sender writes in one cache line and the receivers in others, so that they do not wait for each
/// other.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Apart<T>(T);

/// The books of one output.
#[derive(Debug, Default)]
pub struct Books {
    produced: Apart<AtomicU64>,
    delayed: AtomicU64,
    handled: Apart<AtomicU64>,
    in_hand: AtomicU64,
    expired: AtomicU64,
    unknown: AtomicU64,
    handed_over: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Books {
    /// Notes an event that is being sent.
    pub fn open(self: &Arc<Self>) -> Entry {
        self.produced.0.fetch_add(1, Ordering::Relaxed);
        Entry { books: Some(self.clone()), place: Place::OnItsWay }
    }

    /// What they say now.
    pub fn read(&self, output: &str) -> OutputBooks {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        let dropped = |cause: Dropped| {
            let count = self.dropped.get(cause as usize).map(read).unwrap_or_default();
            (count > 0).then(|| (cause.name().to_string(), count))
        };
        let (handled, expired) = (read(&self.handled.0), read(&self.expired));
        let (unknown, handed_over) = (read(&self.unknown), read(&self.handed_over));
        let dropped: BTreeMap<_, _> = Dropped::ALL.into_iter().filter_map(dropped).collect();
        let settled = handled + expired + unknown + handed_over + dropped.values().sum::<u64>();
        // What is settled was read first, and what was sent is read last: an event that moves on meanwhile
        // is counted where it was, and never twice.
        let (in_flight, delayed) = (read(&self.in_hand), read(&self.delayed));
        let produced = read(&self.produced.0);
        let queued = produced.saturating_sub(settled + delayed + in_flight);
        let output = output.to_string();
        OutputBooks { output, produced, handled, queued, in_flight, delayed, expired, dropped, unknown, handed_over }
    }

    fn count(&self, fate: Fate) {
        let counter = match fate {
            Fate::Handled => &self.handled.0,
            Fate::Expired => &self.expired,
            Fate::Unknown => &self.unknown,
            Fate::HandedOver => &self.handed_over,
            Fate::Dropped(cause) => match self.dropped.get(cause as usize) {
                Some(counter) => counter,
                // There is one for each cause.
                None => &self.unknown,
            },
        };
        counter.fetch_add(1, Ordering::Release);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    OnItsWay,
    Delayed,
    InHand,
}

/// The books of all outputs of one component.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<String, Arc<Books>>>);

impl Ledger {
    /// The books of one output.
    pub fn of(&self, output: &str) -> Arc<Books> {
        let mut outputs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outputs.get(output) {
            Some(books) => books.clone(),
            None => outputs.entry(output.to_string()).or_default().clone(),
        }
    }

    /// What they say now, by the names of the outputs.
    pub fn read(&self) -> Vec<OutputBooks> {
        let outputs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outputs.iter().map(|(output, books)| books.read(output)).collect()
    }
}

/// One event in the books. Dropped without a word, it counts as given up by its sender.
#[derive(Debug)]
pub struct Entry {
    /// `None` once it is closed.
    books: Option<Arc<Books>>,
    place: Place,
}

impl Entry {
    /// The event waits for its time.
    #[must_use]
    pub fn delayed(mut self) -> Self {
        self.move_to(Place::Delayed);
        self
    }

    /// The event is on its way.
    #[must_use]
    pub fn due(mut self) -> Self {
        self.move_to(Place::OnItsWay);
        self
    }

    /// The event is entered elsewhere: here it never was.
    pub fn withdraw(mut self) {
        if let Some(books) = self.books.take() {
            leave(&books, self.place);
            books.produced.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A handler has the event.
    pub fn begin(&mut self) {
        self.move_to(Place::InHand);
    }

    fn move_to(&mut self, place: Place) {
        if let Some(books) = &self.books {
            leave(books, self.place);
            match place {
                Place::OnItsWay => {}
                Place::Delayed => _ = books.delayed.fetch_add(1, Ordering::Relaxed),
                Place::InHand => _ = books.in_hand.fetch_add(1, Ordering::Relaxed),
            }
            self.place = place;
        }
    }

    fn close(&mut self, fate: Fate) {
        if let Some(books) = self.books.take() {
            leave(&books, self.place);
            books.count(fate);
        }
    }
}

fn leave(books: &Books, place: Place) {
    match place {
        Place::OnItsWay => {}
        Place::Delayed => _ = books.delayed.fetch_sub(1, Ordering::Relaxed),
        Place::InHand => _ = books.in_hand.fetch_sub(1, Ordering::Relaxed),
    }
}

impl Ticket for Entry {
    fn settle(mut self, fate: Fate) {
        self.close(fate);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close(Fate::Dropped(Dropped::SenderGone));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_somewhere_and_in_the_end_has_one_fate() {
        let books = Arc::new(Books::default());
        let (delayed, mut in_hand, queued) = (books.open().delayed(), books.open(), books.open());
        in_hand.begin();
        let now = books.read("out");
        assert_eq!((now.produced, now.delayed, now.in_flight, now.queued), (3, 1, 1, 1));
        in_hand.settle(Fate::Handled);
        delayed.due().settle(Fate::Dropped(Dropped::MailboxFull));
        drop(queued);
        books.open().settle(Fate::Unknown);
        let end = books.read("out");
        assert_eq!((end.produced, end.handled, end.unknown), (4, 1, 1));
        assert_eq!((end.delayed, end.in_flight, end.queued), (0, 0, 0));
        assert_eq!(end.dropped.values().sum::<u64>(), 2);
        assert_eq!(end.dropped["MailboxFull"], 1);
    }
}

//! What a component has handled of the events that may be repeated.
//!
//! For each outbox that sends to it there are the numbers that were handled, as ranges, from the oldest that may still be
//! repeated. An outbox has a bounded number of events on their way, and so the ranges are few.

use std::collections::HashMap;

use edgeless_api::EventId;
use edgeless_api::journal::Handled;
use uuid::Uuid;

/// Outboxes that a component knows what it has handled of. Of more than these, those that sent last.
const OUTBOXES: usize = 1024;
/// Ranges that are kept of one outbox: as many as it may have events on their way.
const RANGES: usize = super::outbox::EVENTS;

/// What is known of an event that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was not here before.
    New,
    /// A handler has it, or had it, and that is not on the disk yet.
    InHand,
    /// It was handled.
    Handled,
}

/// What one component has handled.
#[derive(Debug, Default)]
pub struct Inbox {
    outboxes: HashMap<Uuid, Of>,
    turn: u64,
}

/// What was handled of one outbox.
#[derive(Debug, Default)]
struct Of {
    handled: Handled,
    in_hand: Vec<u64>,
    /// When it sent last.
    turn: u64,
}

impl Inbox {
    /// What was handled before.
    pub fn new(handled: impl IntoIterator<Item = (Uuid, Handled)>) -> Self {
        let of = |handled| Of { handled, ..Of::default() };
        Self { outboxes: handled.into_iter().map(|(outbox, handled)| (outbox, of(handled))).collect(), turn: 0 }
    }

    /// All that was handled.
    pub fn handled(&self) -> impl Iterator<Item = (Uuid, &Handled)> {
        self.outboxes.iter().map(|(outbox, of)| (*outbox, &of.handled))
    }

    /// An event arrives. If it is new, it is in hand from here on. Returns also the outbox that is forgotten for it.
    pub fn arrive(&mut self, id: &EventId) -> (Arrival, Option<Uuid>) {
        self.turn += 1;
        let is_known = self.outboxes.contains_key(&id.outbox);
        let forgotten = if is_known { None } else { self.make_room() };
        let of = self.outboxes.entry(id.outbox).or_default();
        of.turn = self.turn;
        let arrival = if of.in_hand.contains(&id.number) {
            Arrival::InHand
        } else if of.handled.contains(id.number) {
            Arrival::Handled
        } else {
            of.in_hand.push(id.number);
            Arrival::New
        };
        (arrival, forgotten)
    }

    fn make_room(&mut self) -> Option<Uuid> {
        if self.outboxes.len() < OUTBOXES {
            return None;
        }
        let idle = self.outboxes.iter().filter(|(_, of)| of.in_hand.is_empty()).min_by_key(|(_, of)| of.turn);
        let idle = idle.map(|(outbox, _)| *outbox)?;
        self.outboxes.remove(&idle);
        Some(idle)
    }

    /// An event was handled: what is to be written down. It stays in hand until that [is done](Self::written).
    pub fn handle(&mut self, id: &EventId) -> &Handled {
        let of = self.outboxes.entry(id.outbox).or_default();
        of.handled.forget(id.oldest);
        of.handled.insert(id.number);
        &of.handled
    }

    /// It is written down that an event was handled.
    pub fn written(&mut self, id: &EventId) {
        if let Some(of) = self.outboxes.get_mut(&id.outbox) {
            of.in_hand.retain(|number| *number != id.number);
        }
    }

    /// An event was not handled, or that could not be written down.
    pub fn give_up(&mut self, id: &EventId) {
        self.written(id);
        if let Some(of) = self.outboxes.get_mut(&id.outbox) {
            of.handled.remove(id.number);
        }
    }
}

/// Sets of numbers, as ranges.
trait Numbers {
    fn contains(&self, number: u64) -> bool;
    fn insert(&mut self, number: u64);
    fn remove(&mut self, number: u64);
    fn forget(&mut self, below: u64);
}

impl Numbers for Handled {
    fn contains(&self, number: u64) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= number);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        number < self.oldest || range.is_some_and(|(_, last)| number <= *last)
    }

    fn insert(&mut self, number: u64) {
        if self.contains(number) {
            return;
        }
        let at = self.ranges.partition_point(|(first, _)| *first <= number);
        self.ranges.insert(at, (number, number));
        // With its neighbours it may become one.
        for left in [at, at.saturating_sub(1)] {
            if let (Some(&(first, end)), Some(&(begin, last))) = (self.ranges.get(left), self.ranges.get(left + 1))
                && end.checked_add(1) == Some(begin)
            {
                self.ranges.remove(left + 1);
                if let Some(range) = self.ranges.get_mut(left) {
                    *range = (first, last);
                }
            }
        }
        // A sender that breaks what was agreed may have its events handled again.
        if self.ranges.len() > RANGES {
            self.ranges.remove(0);
        }
    }

    fn remove(&mut self, number: u64) {
        let after = self.ranges.partition_point(|(first, _)| *first <= number);
        let Some(at) = after.checked_sub(1) else { return };
        let Some(&(first, last)) = self.ranges.get(at).filter(|(_, last)| number <= *last) else { return };
        let parts = [(first < number).then(|| (first, number - 1)), (number < last).then(|| (number + 1, last))];
        self.ranges.splice(at..=at, parts.into_iter().flatten());
    }

    fn forget(&mut self, below: u64) {
        if below <= self.oldest {
            return;
        }
        self.oldest = below;
        self.ranges.retain_mut(|(first, last)| {
            *first = below.max(*first);
            first <= last
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    const OUTBOX: Uuid = Uuid::from_u128(1);

    fn id(number: u64, oldest: u64) -> EventId {
        EventId { outbox: OUTBOX, number, oldest }
    }

    #[test]
    fn a_repeat_is_known_once_its_event_was_handled() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.arrive(&id(1, 1)), (Arrival::New, None));
        assert_eq!(inbox.arrive(&id(1, 1)).0, Arrival::InHand);
        assert_eq!(inbox.handle(&id(1, 1)).ranges, [(1, 1)]);
        assert_eq!(inbox.arrive(&id(1, 1)).0, Arrival::InHand, "it is not on the disk yet");
        inbox.written(&id(1, 1));
        assert_eq!(inbox.arrive(&id(1, 1)).0, Arrival::Handled);
        assert_eq!(inbox.arrive(&id(2, 1)).0, Arrival::New);
        inbox.handle(&id(2, 1));
        inbox.give_up(&id(2, 1));
        assert_eq!(inbox.arrive(&id(2, 1)).0, Arrival::New, "it could not be written down");
        let mut next = Inbox::new(inbox.handled().map(|(outbox, handled)| (outbox, handled.clone())));
        assert_eq!(next.arrive(&id(1, 1)).0, Arrival::Handled);
    }

    #[test]
    fn of_too_many_outboxes_the_one_that_sent_longest_ago_is_forgotten() {
        let mut inbox = Inbox::default();
        let of = |outbox: usize| EventId { outbox: Uuid::from_u128(outbox as u128), number: 1, oldest: 1 };
        for outbox in 0..OUTBOXES {
            assert_eq!(inbox.arrive(&of(outbox)), (Arrival::New, None));
            if outbox > 0 {
                inbox.handle(&of(outbox));
                inbox.written(&of(outbox));
            }
        }
        let forgotten = Some(of(1).outbox);
        assert_eq!(inbox.arrive(&of(OUTBOXES)), (Arrival::New, forgotten), "what is in hand is not forgotten");
    }

    /// Against a set of numbers that has them all.
    #[test]
    fn ranges_are_the_set_that_they_stand_for() {
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut ranges, mut set, mut oldest) = (Handled::default(), BTreeSet::new(), 0);
            for _ in 0..300 {
                let number = rng.random_range(0..60);
                match rng.random_range(0..20) {
                    0 => {
                        oldest = oldest.max(rng.random_range(0..20));
                        ranges.forget(oldest);
                        set.retain(|known| *known >= oldest);
                    }
                    1..5 => {
                        ranges.remove(number);
                        set.remove(&number);
                    }
                    _ if number >= oldest => {
                        ranges.insert(number);
                        set.insert(number);
                    }
                    _ => {}
                }
                for number in 0..62 {
                    assert_eq!(ranges.contains(number), number < oldest || set.contains(&number), "seed {seed}");
                }
                let apart = ranges.ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0);
                assert!(apart && Handled::decode(&ranges.encode()).unwrap() == ranges, "seed {seed}: {ranges:?}");
            }
        }
    }
}

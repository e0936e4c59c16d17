//! One sender and one receiver on disks that lose what was not written, over a network that loses, repeats and reorders:
//! whatever is on the sender's disk is handled once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::EventId;
use edgeless_api::event::Trace;
use edgeless_api::journal::{Handled, OutboxEvent, OutboxNumbers};
use edgeless_daemon::store::Change;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::inbox::{Arrival, Inbox};
use super::outbox::{Admitted, Outbox, Verdict, outgoing};
use super::{HANDLED, Key, NUMBERS, OUTBOX, of_outbox};
use crate::books::Books;
use crate::fate::Fate;
use crate::metrics::Dropped;

const KEY: Key = [9; 16];
const RUNS: u64 = 500;
/// What the receiver has done, by a number of its own.
const DONE: &str = "done";

#[derive(Default)]
struct Disk(BTreeMap<(&'static str, Bytes), Bytes>);

impl Disk {
    fn write(&mut self, changes: Vec<Change>) {
        for Change { table, key, value } in changes {
            match value {
                Some(value) => self.0.insert((table, key), value),
                None => self.0.remove(&(table, key)),
            };
        }
    }

    fn all(&self, table: &'static str) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.0.iter().filter(move |((of, _), _)| *of == table).map(|((_, key), value)| (key, value))
    }
}

/// What the sender is about to write.
struct Sends {
    changes: Vec<Change>,
    admitted: Admitted,
}

/// What the receiver is about to write.
struct Handles {
    changes: Vec<Change>,
    id: EventId,
}

struct World {
    rng: StdRng,
    books: Arc<Books>,
    outbox: Outbox,
    sent: Vec<Sends>,
    sender: Disk,
    inbox: Inbox,
    handling: Vec<Handles>,
    receiver: Disk,
    network: Vec<(Bytes, EventId)>,
    fates: Vec<(u64, Fate)>,
    emitted: u64,
    done: u64,
    /// What has ever been on the sender's disk.
    accepted: Vec<Bytes>,
}

impl World {
    fn new(seed: u64) -> Self {
        let books = Arc::new(Books::default());
        Self {
            rng: StdRng::seed_from_u64(seed),
            outbox: Outbox::new(None, [], |_| books.open()),
            books,
            sent: Vec::new(),
            sender: Disk::default(),
            inbox: Inbox::default(),
            handling: Vec::new(),
            receiver: Disk::default(),
            network: Vec::new(),
            fates: Vec::new(),
            emitted: 0,
            done: 0,
            accepted: Vec::new(),
        }
    }

    fn any<T>(rng: &mut StdRng, from: &mut Vec<T>) -> Option<T> {
        if from.is_empty() { None } else { Some(from.swap_remove(rng.random_range(0..from.len()))) }
    }

    fn emit(&mut self) {
        self.emitted += 1;
        let payload = Bytes::from(self.emitted.to_string());
        let (sent, trace) = (SystemTime::UNIX_EPOCH, Trace::default());
        let event = OutboxEvent { output: "out".into(), payload, trace, sent, tries: 0, reason: String::new() };
        let mut changes = Vec::new();
        let admitted = self.outbox.admit(&KEY, vec![outgoing(event, &self.books)], &mut changes);
        self.sent.push(Sends { changes, admitted });
    }

    fn send(&mut self, number: u64) {
        if let Some((event, id)) = self.outbox.get(number) {
            self.network.push((event.payload.clone(), id));
        }
    }

    /// The sender's disk takes what waits longest, or fails at all that waits.
    fn write_sent(&mut self, is_failing: bool) {
        if is_failing {
            for Sends { admitted, .. } in std::mem::take(&mut self.sent) {
                self.outbox.take_back(admitted);
            }
        } else if !self.sent.is_empty() {
            let Sends { changes, admitted } = self.sent.remove(0);
            self.sender.write(changes);
            self.outbox.written(&admitted);
            for number in admitted.numbers {
                self.accepted.extend(self.outbox.get(number).map(|(event, _)| event.payload.clone()));
                self.send(number);
            }
        }
    }

    fn deliver(&mut self, payload: Bytes, id: EventId) {
        match self.inbox.arrive(&id).0 {
            Arrival::New => {
                let handled = self.inbox.handle(&id).encode();
                self.done += 1;
                let done = Bytes::copy_from_slice(&self.done.to_be_bytes());
                let changes =
                    vec![Change::put(HANDLED, of_outbox(&KEY, id.outbox), handled), Change::put(DONE, done, payload)];
                self.handling.push(Handles { changes, id });
            }
            Arrival::InHand => self.fates.push((id.number, Fate::Dropped(Dropped::MailboxFull))),
            Arrival::Handled => self.fates.push((id.number, Fate::Handled)),
        }
    }

    fn write_handled(&mut self, is_failing: bool) {
        if is_failing {
            for Handles { id, .. } in std::mem::take(&mut self.handling) {
                self.inbox.give_up(&id);
                self.fates.push((id.number, Fate::Dropped(Dropped::NotKept)));
            }
        } else if !self.handling.is_empty() {
            let Handles { changes, id } = self.handling.remove(0);
            self.receiver.write(changes);
            self.inbox.written(&id);
            self.fates.push((id.number, Fate::Handled));
        }
    }

    fn settle(&mut self, number: u64, fate: Fate) {
        match self.outbox.settle(&KEY, number, fate, 3) {
            Verdict::Again(_) => self.send(number),
            Verdict::Done => {}
            Verdict::Dead(..) => panic!("nothing is refused here"),
        }
    }

    fn crash_sender(&mut self) {
        self.sent.clear();
        self.fates.clear();
        let numbers = self.sender.all(NUMBERS).map(|(_, record)| OutboxNumbers::decode(record).unwrap()).next();
        let events = self.sender.all(OUTBOX).map(|(key, record)| {
            (u64::from_be_bytes(key[16..].try_into().unwrap()), OutboxEvent::decode(record).unwrap())
        });
        let books = self.books.clone();
        self.outbox = Outbox::new(numbers, events.collect::<Vec<_>>(), move |_| books.open());
        for number in self.outbox.all() {
            self.send(number);
        }
    }

    fn crash_receiver(&mut self) {
        // The link to it ends: nobody knows what became of what was on its way.
        for Handles { id, .. } in std::mem::take(&mut self.handling) {
            self.fates.push((id.number, Fate::Unknown));
        }
        let handled = self
            .receiver
            .all(HANDLED)
            .map(|(key, record)| (Uuid::from_slice(&key[16..]).unwrap(), Handled::decode(record).unwrap()));
        self.inbox = Inbox::new(handled.collect::<Vec<_>>());
    }

    fn step(&mut self, is_calm: bool) {
        let one_in = |rng: &mut StdRng, n: u32| !is_calm && rng.random_range(0..n) == 0;
        match self.rng.random_range(0..8) {
            0 | 1 if !is_calm => self.emit(),
            2 => {
                let is_failing = one_in(&mut self.rng, 20);
                self.write_sent(is_failing);
            }
            3 => {
                let is_failing = one_in(&mut self.rng, 20);
                self.write_handled(is_failing);
            }
            4 | 5 => {
                let Some((payload, id)) = Self::any(&mut self.rng, &mut self.network) else { return };
                if one_in(&mut self.rng, 10) {
                    self.fates.push((id.number, Fate::Unknown));
                } else {
                    if one_in(&mut self.rng, 10) {
                        self.network.push((payload.clone(), id));
                    }
                    self.deliver(payload, id);
                }
            }
            6 => {
                if let Some((number, fate)) = Self::any(&mut self.rng, &mut self.fates) {
                    self.settle(number, fate);
                }
            }
            _ if one_in(&mut self.rng, 40) => self.crash_sender(),
            _ if one_in(&mut self.rng, 40) => self.crash_receiver(),
            _ => {}
        }
    }

    fn is_quiet(&self) -> bool {
        self.sent.is_empty() && self.network.is_empty() && self.handling.is_empty() && self.fates.is_empty()
    }
}

#[test]
fn what_is_on_the_senders_disk_is_handled_once() {
    simulate(0..RUNS);
}

#[test]
#[ignore = "ten thousand seeds take minutes: make nightly"]
fn it_is_in_any_of_many_runs() {
    simulate(1000..11_000);
}

fn simulate(seeds: Range<u64>) {
    for seed in seeds {
        let mut world = World::new(seed);
        for _ in 0..world.rng.random_range(50..800) {
            world.step(false);
        }
        let mut calm = 0;
        while !world.is_quiet() {
            world.step(true);
            calm += 1;
            assert!(calm < 1_000_000, "seed {seed}: it does not come to an end");
        }
        assert_eq!(world.outbox.waiting(), 0, "seed {seed}: an event waits for ever");
        let mut done: Vec<_> = world.receiver.all(DONE).map(|(_, payload)| payload.clone()).collect();
        done.sort();
        world.accepted.sort();
        assert_eq!(done, world.accepted, "seed {seed}");
        let read = world.books.read("out");
        assert_eq!((read.queued, read.in_flight), (0, 0), "seed {seed}: {read:?}");
    }
}

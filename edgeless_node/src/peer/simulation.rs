//! Two sessions over links that break, cross, and lose what is on them: seeded, without time.
//!
//! Whatever happens, every ticket is settled once, no event comes twice, and each pair of source and
//! target keeps its order. If no side restarts or gives up, nothing is lost either.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::NodeId;
use edgeless_api::event::{Reply as Answer, Trace};
use edgeless_api::peer::{Call, Event, Fate as Said, Frame, Hello, Reply, Window};
use uuid::Uuid;

use super::receiving::Receipt;
use super::session::{Arrival, Attempt, LinkId, Next, Options, Session};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// Names an event: who sent it, and a number.
type Name = (usize, u64);

/// What became of every ticket.
type Books = Arc<Mutex<BTreeMap<Name, Vec<Fate>>>>;

struct Slip(Name, Books);

impl Ticket for Slip {
    fn settle(self, fate: Fate) {
        self.1.lock().unwrap().entry(self.0).or_default().push(fate);
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }
}

const OPTIONS: Options = Options {
    window: Window { events: 8, bytes: 400, total: 24 },
    max_payload: 300,
    queue: 128,
    queue_bytes: 1 << 20,
    frame_items: 5,
    frame_bytes: 1500,
};
const TARGETS: usize = 4;

/// A link as the network has it.
struct Wire {
    dialler: usize,
    attempt: Attempt,
    /// On the way to each side.
    queues: [VecDeque<Message>; 2],
    /// What each side calls it, once it agreed.
    ids: [Option<LinkId>; 2],
    is_cut: bool,
}

enum Message {
    Hello(Hello),
    Frame(Frame),
}

struct Side {
    session: Session<Slip>,
    held: Vec<(Event, Receipt)>,
    settled: Vec<(Receipt, Said)>,
}

struct World {
    rng: Rng,
    sides: [Side; 2],
    wires: Vec<Wire>,
    books: Books,
    /// How many events each side has sent, and each pair of source and target.
    sent: [u64; 2],
    /// The last that came, by sender, source and target.
    last: BTreeMap<(usize, Uuid, Uuid), u64>,
    /// What came, and what its receiver said of it.
    came: BTreeMap<Name, Option<Fate>>,
    replies: BTreeMap<Name, u32>,
    is_faithful: bool,
}

fn node(side: usize) -> NodeId {
    NodeId(Uuid::from_u128(1 + side as u128))
}

fn instance(number: usize) -> Uuid {
    Uuid::from_u128(100 + number as u128)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut side = |number: usize| Side {
            session: Session::new(node(number), node(1 - number), OPTIONS, rng.next()),
            held: Vec::new(),
            settled: Vec::new(),
        };
        Self {
            sides: [side(0), side(1)],
            rng,
            wires: Vec::new(),
            books: Books::default(),
            sent: [0; 2],
            last: BTreeMap::new(),
            came: BTreeMap::new(),
            replies: BTreeMap::new(),
            is_faithful: true,
        }
    }

    fn send(&mut self, side: usize) {
        let (source, target) = (instance(self.rng.below(3)), instance(self.rng.below(TARGETS)));
        let number = self.sent[side] + 1;
        let mut payload = vec![0; 8 + if self.rng.one_in(5) { 280 } else { 0 }];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        let call = self.rng.one_in(3).then_some(Call { stream: number, remaining: None });
        let (created, trace) = (SystemTime::UNIX_EPOCH, Trace::default());
        let payload = Bytes::from(payload);
        let event = Event { source, source_node: None, target, payload, call, created, trace, id: None };
        let session = &mut self.sides[side].session;
        if session.check_room(&event, false).is_ok() {
            session.push(event, Slip((side, number), self.books.clone()));
            self.sent[side] = number;
        }
    }

    /// A side dials; also again, while an attempt before is still on its way, if it is impatient.
    fn dial(&mut self, side: usize, is_impatient: bool) {
        let is_pending = |wire: &Wire| wire.dialler == side && wire.ids[side].is_none() && !wire.is_cut;
        if !is_impatient && self.wires.iter().any(is_pending) {
            return;
        }
        let Side { session, settled, .. } = &mut self.sides[side];
        session.collect(settled);
        if session.is_linked() || !session.needs_link() || self.wires.len() > 6 {
            return;
        }
        let (attempt, hello) = session.dial();
        let mut queues = [VecDeque::new(), VecDeque::new()];
        queues[1 - side].push_back(Message::Hello(hello));
        self.wires.push(Wire { dialler: side, attempt, queues, ids: [None; 2], is_cut: false });
    }

    /// One side writes a frame to the link that it has.
    fn write(&mut self, wire: usize, side: usize) {
        let Some(id) = self.wires[wire].ids[side] else { return };
        let Side { session, settled, .. } = &mut self.sides[side];
        match session.next_frame(id, settled) {
            Next::Frame(frame) => {
                assert!(frame.items.len() <= OPTIONS.frame_items);
                self.wires[wire].queues[1 - side].push_back(Message::Frame(frame));
            }
            Next::Nothing => {}
            Next::Ended => self.wires[wire].is_cut = true,
        }
        self.tell(side);
    }

    fn tell(&mut self, side: usize) {
        let mut told = Vec::new();
        self.sides[side].session.take_told(&mut told);
        for (slip, fate) in told {
            slip.settle(fate);
        }
    }

    /// The next message of a link reaches a side.
    fn read(&mut self, wire: usize, side: usize) {
        if self.wires[wire].is_cut {
            return;
        }
        let Some(message) = self.wires[wire].queues[side].pop_front() else { return };
        let nonce = self.rng.next();
        let (attempt, is_dialler) = (self.wires[wire].attempt, self.wires[wire].dialler == side);
        let session = &mut self.sides[side].session;
        match message {
            Message::Hello(hello) if is_dialler => match session.answered(attempt, &hello) {
                Ok(id) => self.wires[wire].ids[side] = Some(id),
                Err(super::session::Refusal::Hello(why)) => panic!("an honest answer is refused: {why}"),
                Err(_) => self.wires[wire].is_cut = true,
            },
            Message::Hello(hello) => match session.accept(&hello, nonce) {
                Ok((id, answer)) => {
                    self.wires[wire].ids[side] = Some(id);
                    self.wires[wire].queues[1 - side].push_back(Message::Hello(answer));
                }
                Err(super::session::Refusal::Hello(why)) => panic!("an honest hello is refused: {why}"),
                Err(_) => self.wires[wire].is_cut = true,
            },
            Message::Frame(frame) => {
                let id = self.wires[wire].ids[side].unwrap();
                let mut arrivals = Vec::new();
                let taken = session.on_frame(id, frame, &mut arrivals);
                taken.unwrap_or_else(|violation| panic!("an honest frame is refused: {violation}"));
                for arrival in arrivals {
                    self.arrive(side, arrival);
                }
            }
        }
        self.tell(side);
    }

    fn arrive(&mut self, side: usize, arrival: Arrival) {
        match arrival {
            Arrival::Event(event, receipt) => {
                let number = u64::from_be_bytes(event.payload[..8].try_into().unwrap());
                let name = (1 - side, number);
                assert_eq!(self.came.insert(name, None), None, "{name:?} came twice");
                let last = self.last.insert((1 - side, event.source, event.target), number);
                assert!(last < Some(number), "{name:?} came after {last:?}");
                self.sides[side].held.push((event, receipt));
                // Handlers also have in hand what sessions before this one brought.
                let same = |(held, _): &&(Event, Receipt)| held.target == instance(0);
                let held = self.sides[side].held.iter().filter(same).count();
                assert!(held <= 8 || !self.is_faithful, "more than the window");
            }
            Arrival::Reply(reply) => *self.replies.entry((side, reply.stream)).or_default() += 1,
        }
    }

    /// A handler is through with one event.
    fn handle(&mut self, side: usize) {
        let Side { held, settled, session } = &mut self.sides[side];
        if held.is_empty() {
            return;
        }
        let (event, receipt) = held.swap_remove(self.rng.below(held.len()));
        if let Some(call) = event.call {
            let (source, target, stream) = (event.target, event.source, call.stream);
            session.reply(Reply { source, target, stream, reply: Answer::Empty, trace: Trace::default() }).unwrap();
        }
        let fate = if self.rng.one_in(6) { Fate::Expired } else { Fate::Handled };
        let number = u64::from_be_bytes(event.payload[..8].try_into().unwrap());
        self.came.insert((1 - side, number), Some(fate));
        settled.push((receipt, fate.into()));
    }

    /// A side learns that a link is over, sooner or later.
    fn bury(&mut self) {
        for wire in &mut self.wires {
            if wire.is_cut {
                wire.queues = [VecDeque::new(), VecDeque::new()];
                for side in 0..2 {
                    if let Some(id) = wire.ids[side]
                        && self.rng.one_in(3)
                    {
                        self.sides[side].session.ended(id);
                        wire.ids[side] = None;
                    }
                }
            }
        }
        self.wires.retain(|wire| !wire.is_cut || wire.ids != [None; 2]);
    }

    fn restart(&mut self, side: usize) {
        self.is_faithful = false;
        let session = Session::new(node(side), node(1 - side), OPTIONS, self.rng.next());
        self.sides[side] = Side { session, held: Vec::new(), settled: Vec::new() };
        self.last.retain(|(sender, ..), _| *sender != side);
        for wire in &mut self.wires {
            wire.ids[side] = None;
            wire.is_cut = true;
        }
    }

    fn step(&mut self, rude: bool) {
        let side = self.rng.below(2);
        let wire = (!self.wires.is_empty()).then(|| self.rng.below(self.wires.len()));
        match (self.rng.below(16), wire) {
            (0..=3, _) => self.send(side),
            (4..=5, _) => self.handle(side),
            (6, _) => {
                let is_impatient = self.rng.one_in(4);
                self.dial(side, is_impatient);
            }
            (7..=9, Some(wire)) => self.write(wire, side),
            (10..=14, Some(wire)) => self.read(wire, side),
            (15, Some(wire)) if self.rng.one_in(8) => self.wires[wire].is_cut = true,
            (15, _) if rude && self.rng.one_in(20) => self.restart(side),
            (15, _) if rude && self.rng.one_in(20) => {
                self.is_faithful = false;
                let nonce = self.rng.next();
                self.sides[side].session.lose(nonce, Dropped::PeerLost);
                self.tell(side);
            }
            _ => {}
        }
        self.bury();
        for side in &self.sides {
            let counts = side.session.counts();
            assert!(counts.held <= 128 && counts.unsettled + counts.queued <= 24, "{counts:?}");
            assert!(counts.targets <= TARGETS && counts.targets_here <= TARGETS, "{counts:?}");
            assert!(counts.unsettled_here <= 24 && counts.settlements <= 24 && counts.replies <= 48, "{counts:?}");
            assert!(counts.sent <= 128 && (side.held.len() <= 24 || !self.is_faithful), "{counts:?}");
        }
    }

    /// No more faults: what can be done is done.
    fn quiesce(&mut self) {
        for round in 0.. {
            assert!(round < 2000, "no rest: {:?}", [0, 1].map(|side| self.sides[side].session.counts()));
            let mut is_quiet = true;
            for side in 0..2 {
                self.handle(side);
                self.dial(side, false);
                for wire in 0..self.wires.len() {
                    self.write(wire, side);
                    self.read(wire, side);
                }
                let Side { session, held, settled } = &self.sides[side];
                let counts = session.counts();
                let is_empty = counts.queued + counts.unsettled + counts.settlements == 0;
                is_quiet &= is_empty && held.is_empty() && settled.is_empty();
            }
            self.bury();
            let agree =
                |side: usize, wire: &Wire| wire.ids[side].is_some_and(|id| self.sides[side].session.has_link(id));
            let is_still = |wire: &Wire| {
                agree(0, wire) && agree(1, wire) && !wire.is_cut && wire.queues.iter().all(VecDeque::is_empty)
            };
            if is_quiet && self.wires.iter().all(is_still) {
                break;
            }
        }
        let linked = [0, 1].map(|side| self.sides[side].session.is_linked());
        assert_eq!(linked[0], linked[1]);
        let links: Vec<_> = self.wires.iter().map(|wire| (wire.dialler, wire.ids)).collect();
        assert!(links.len() <= 1, "a pair of nodes has the links {links:?}");
    }

    fn check(&self) {
        let books = self.books.lock().unwrap();
        for side in 0..2 {
            for number in 1..=self.sent[side] {
                let name = (side, number);
                let fates = books.get(&name).map_or(&[][..], Vec::as_slice);
                let [fate] = fates else { panic!("{name:?} has the fates {fates:?}") };
                let came = self.came.get(&name);
                match fate {
                    Fate::Handled | Fate::Expired => assert_eq!(came, Some(&Some(*fate)), "{name:?}"),
                    Fate::Dropped(Dropped::PeerLost | Dropped::SenderGone) => assert_eq!(came, None, "{name:?}"),
                    Fate::Unknown => {}
                    other => panic!("{name:?} has the fate {other:?} between two that keep to the rules"),
                }
                if self.is_faithful {
                    assert!(matches!(fate, Fate::Handled | Fate::Expired), "{name:?} is lost: {fate:?}");
                }
            }
        }
        assert!(self.replies.values().all(|count| *count == 1), "a reply came twice");
        for side in &self.sides {
            let counts = side.session.counts();
            // The last few acceptances ride on what comes next.
            assert!(counts.held < 64 && counts.replies < 64 && counts.targets == 0, "{counts:?}");
        }
    }
}

/// Runs one world from its first event to its rest.
fn live(seed: u64, rude: bool) -> [u64; 2] {
    let outcome = std::panic::catch_unwind(|| {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step(rude);
        }
        world.quiesce();
        world.check();
        world.sent
    });
    outcome.unwrap_or_else(|_| panic!("seed {seed} fails, rude: {rude}"))
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice_while_links_break() {
    let mut sent = 0;
    for seed in 0..3000 {
        sent += live(seed, false).iter().sum::<u64>();
    }
    assert!(sent > 100_000, "only {sent} events were sent");
}

#[test]
fn every_ticket_is_settled_once_when_sides_restart_or_give_up() {
    for seed in 0..3000 {
        live(seed, true);
    }
}

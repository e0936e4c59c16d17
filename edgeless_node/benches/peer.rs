//! What one event costs on its way between two nodes, without the sockets.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::time::SystemTime;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use edgeless_api::NodeId;
use edgeless_api::event::Trace;
use edgeless_api::peer::{Event, Fate as Said, Frame, Item};
use edgeless_node::fate::{Fate, Ticket};
use edgeless_node::peer::session::{Arrival, LinkId, Next, Options, Session};
use uuid::Uuid;

fn main() {
    divan::main();
}

struct Slip;

impl Ticket for Slip {
    fn settle(self, fate: Fate) {
        assert_eq!(divan::black_box(fate), Fate::Handled);
    }
}

const SOURCE: Uuid = Uuid::from_u128(1);

fn event(target: u128, payload: &Bytes) -> Event {
    Event {
        source: SOURCE,
        source_node: None,
        target: Uuid::from_u128(target),
        payload: payload.clone(),
        call: None,
        created: SystemTime::UNIX_EPOCH,
        trace: Trace { trace_id: 1 << 100, span_id: 1 << 50 },
        id: None,
    }
}

/// Two sessions with a link between them.
struct Pair {
    ours: Session<Slip>,
    theirs: Session<Slip>,
    ids: [LinkId; 2],
    told: Vec<(Slip, Fate)>,
}

impl Pair {
    fn new() -> Self {
        let [one, two] = [NodeId::random(), NodeId::random()];
        let mut ours = Session::new(one, two, Options::default(), 1);
        let mut theirs = Session::new(two, one, Options::default(), 2);
        let (attempt, hello) = ours.dial();
        let (there, answer) = theirs.accept(&hello, 3).unwrap();
        let here = ours.answered(attempt, &answer).unwrap();
        Self { ours, theirs, ids: [here, there], told: Vec::new() }
    }

    /// Events to as many targets, in frames of up to 1024, until their senders know that they were
    /// handled.
    fn carry(&mut self, events: usize, targets: u128, payload: &Bytes, over: impl Fn(Frame) -> Frame) {
        let (mut arrivals, mut settled, mut none) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..events {
            let event = event(number as u128 % targets, payload);
            self.ours.check_room(&event, false).unwrap();
            self.ours.push(event, Slip);
        }
        while let Next::Frame(frame) = self.ours.next_frame(self.ids[0], &mut none) {
            self.theirs.on_frame(self.ids[1], over(frame), &mut arrivals).unwrap();
            for arrival in arrivals.drain(..) {
                if let Arrival::Event(_, receipt) = arrival {
                    settled.push((receipt, Said::Handled));
                }
            }
            while let Next::Frame(frame) = self.theirs.next_frame(self.ids[1], &mut settled) {
                self.ours.on_frame(self.ids[0], over(frame), &mut arrivals).unwrap();
            }
            self.ours.take_told(&mut self.told);
            for (slip, fate) in self.told.drain(..) {
                slip.settle(fate);
            }
        }
    }
}

/// Both sessions, without the encoding. The argument is how many events there are in a frame.
#[divan::bench(args = [1, 16, 256, 1024])]
fn sessions(bencher: Bencher<'_, '_>, events: usize) {
    let payload = Bytes::from(vec![7; 64]);
    let mut pair = Pair::new();
    bencher.counter(ItemsCount::new(events)).bench_local(move || pair.carry(events, 8, &payload, |frame| frame));
}

/// Both sessions and the encoding.
#[divan::bench(args = [1, 16, 256, 1024])]
fn sessions_and_wire(bencher: Bencher<'_, '_>, events: usize) {
    let payload = Bytes::from(vec![7; 64]);
    let mut pair = Pair::new();
    let over = |frame: Frame| Frame::decode(frame.encode()).unwrap();
    bencher.counter(ItemsCount::new(events)).bench_local(move || pair.carry(events, 8, &payload, over));
}

fn frame(payload: usize) -> Frame {
    let payload = Bytes::from(vec![7; payload]);
    let items = (0..256).map(|target| Item::Event(event(target, &payload))).collect();
    Frame { first: 1 << 40, items, accepted: 1 << 40, ..Frame::default() }
}

/// Frames of 256 events with payloads of so many bytes.
#[divan::bench(args = [0, 64, 1024])]
fn encode(bencher: Bencher<'_, '_>, payload: usize) {
    bencher.counter(ItemsCount::new(256_usize)).with_inputs(|| frame(payload)).bench_local_values(Frame::encode);
}

#[divan::bench(args = [0, 64, 1024])]
fn decode(bencher: Bencher<'_, '_>, payload: usize) {
    let bytes = frame(payload).encode();
    bencher
        .counter(ItemsCount::new(256_usize))
        .with_inputs(|| bytes.clone())
        .bench_local_values(|bytes| Frame::decode(bytes).unwrap());
}

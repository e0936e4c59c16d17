//! The receiving half of a session: what was taken, what is held here, and what is to be answered.
//!
//! The other side is not trusted: each target holds what the window lets it hold, and all together
//! hold no more than the window's total, or the link ends.

use edgeless_api::peer::{Event, Fate as Said, Settled, Window};
use uuid::Uuid;

use super::Map;
use super::sending::ranges;
use super::session::{Options, Violation};

/// Items that may be taken before their acceptance is sent without anything else to send.
const ITEMS: u64 = 64;
/// Bytes of payloads that may be.
const BYTES: usize = 256 << 10;

/// An event that is settled, or will be.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// Which numbering its sequence is of; others are of no interest any more.
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) target: Uuid,
    pub(super) size: usize,
}

/// What one target holds.
#[derive(Debug, Default)]
struct Held {
    events: u32,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Receiving {
    window: Window,
    max_payload: usize,
    epoch: u64,
    taken: u64,
    /// Taken since the last acceptance was sent.
    unaccepted: u64,
    unaccepted_bytes: usize,
    targets: Map<Uuid, Held>,
    /// Events taken, until the other side is known to have their settlement.
    unsettled: u64,
    /// Settled, and not in a range yet.
    settled: Vec<(u64, Said)>,
}

impl Receiving {
    pub(super) fn new(options: Options) -> Self {
        Self {
            window: options.window,
            max_payload: options.max_payload,
            epoch: 0,
            taken: 0,
            unaccepted: 0,
            unaccepted_bytes: 0,
            targets: Map::default(),
            unsettled: 0,
            settled: Vec::new(),
        }
    }

    /// The last sequence that was taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Begins with a new numbering.
    pub(super) fn start_again(&mut self) {
        self.epoch += 1;
        self.taken = 0;
        (self.unaccepted, self.unaccepted_bytes) = (0, 0);
        self.targets.clear();
        self.unsettled = 0;
        self.settled.clear();
    }

    /// Whether the item with this sequence is the next one; otherwise it was taken before.
    pub(super) fn is_new(&mut self, sequence: u64) -> bool {
        let is_new = sequence == self.taken + 1;
        if is_new {
            self.taken = sequence;
            self.unaccepted += 1;
        }
        is_new
    }

    /// Takes the event that has just become the last one. `None`: it is settled already.
    pub(super) fn take(&mut self, event: &Event) -> Result<Option<Receipt>, Violation> {
        if self.unsettled >= u64::from(self.window.total) {
            return Err(Violation("it sends more than the window has room for"));
        }
        self.unsettled += 1;
        let (target, size, sequence) = (event.target, event.payload.len(), self.taken);
        self.unaccepted_bytes += size;
        if size > self.max_payload {
            self.settled.push((sequence, Said::TooLarge));
            return Ok(None);
        }
        let held = self.targets.entry(target).or_default();
        let fits = held.events < self.window.events && held.bytes.saturating_add(size as u64) <= self.window.bytes;
        if held.events > 0 && !fits {
            self.settled.push((sequence, Said::MailboxFull));
            return Ok(None);
        }
        held.events += 1;
        held.bytes += size as u64;
        Ok(Some(Receipt { epoch: self.epoch, sequence, target, size }))
    }

    /// A reply was taken.
    pub(super) fn count(&mut self, size: usize) {
        self.unaccepted_bytes += size;
    }

    /// Turns what was settled here into ranges to send.
    pub(super) fn collect(&mut self, receipts: &mut Vec<(Receipt, Said)>) -> impl Iterator<Item = Settled> {
        for (receipt, fate) in receipts.drain(..) {
            if receipt.epoch != self.epoch {
                continue;
            }
            if let Some(held) = self.targets.get_mut(&receipt.target) {
                held.events = held.events.saturating_sub(1);
                held.bytes = held.bytes.saturating_sub(receipt.size as u64);
                if held.events == 0 {
                    self.targets.remove(&receipt.target);
                }
            }
            self.settled.push((receipt.sequence, fate));
        }
        ranges(&mut self.settled)
    }

    /// The other side has the settlement of so many events.
    pub(super) fn forget(&mut self, settled: u64) {
        self.unsettled = self.unsettled.saturating_sub(settled);
    }

    /// Whether the other side should hear what was taken even if there is nothing else to say. Two
    /// idle nodes would go on for ever if each acceptance had to be accepted.
    pub(super) fn owes_acceptance(&self) -> bool {
        self.unaccepted >= ITEMS || self.unaccepted_bytes >= BYTES
    }

    /// The other side will hear what was taken.
    pub(super) fn accepted(&mut self) -> u64 {
        (self.unaccepted, self.unaccepted_bytes) = (0, 0);
        self.taken
    }

    pub(super) fn counts(&self, counts: &mut super::session::Counts) {
        counts.targets_here = self.targets.len();
        counts.unsettled_here = self.unsettled;
    }
}

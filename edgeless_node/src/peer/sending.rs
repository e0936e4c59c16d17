//! The sending half of a session: what waits, what is on its way, and what may follow.
//!
//! ```text
//!  events  --+                    (sequence)          accepted
//!  replies --+--> next frame --> sent, kept to resend ---------> forgotten
//!  settled --+                 \
//!                               +-> unsettled: ticket, credit --> told, freed
//!                                                       settled
//! ```
//! An event uses up the credit of its target from the moment it is queued until it is settled, so
//! that a slow target stops its own senders and nobody else.

use std::collections::VecDeque;

use edgeless_api::event::Reply as Answer;
use edgeless_api::peer::{Event, Fate as Said, Frame, Item, Reply, Settled, Window};
use uuid::Uuid;

use super::Map;
use super::session::{Options, Violation};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// No item is larger on the wire than its payload and this.
const OVERHEAD: usize = 192;

/// What a sender has to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The target has as much unsettled as it may.
    Target,
    /// As much waits for the node as may.
    Queue,
}

/// What one target has queued and unsettled, and how many senders wait for it.
#[derive(Debug, Default)]
struct Credit {
    events: u32,
    bytes: u64,
    waiting: u32,
}

/// What is on its way and not settled.
#[derive(Debug)]
struct Unsettled<T> {
    target: Uuid,
    size: usize,
    ticket: T,
}

#[derive(Debug)]
pub(super) struct Sending<T: Ticket> {
    options: Options,
    /// What the other side lets us have unsettled, and what we want at most.
    window: Window,
    /// The largest payload, and the largest frame, that the other side takes.
    max_payload: usize,
    max_frame: usize,
    events: VecDeque<(Event, T)>,
    replies: VecDeque<Reply>,
    settled: VecDeque<Settled>,
    /// What has a sequence and is not accepted, oldest first. The last of them has the sequence `last`.
    sent: VecDeque<Item>,
    last: u64,
    /// How many of `sent` were written to the present link.
    written: usize,
    /// Events queued, or sent and not accepted; and their payloads.
    held: usize,
    held_bytes: usize,
    /// The same of replies.
    replies_held: usize,
    reply_bytes: usize,
    unsettled: Map<u64, Unsettled<T>>,
    targets: Map<Uuid, Credit>,
    /// Targets with new credit for which somebody waits.
    pub(super) freed: Vec<Uuid>,
    /// Whose fate is decided, but not told yet.
    pub(super) told: Vec<(T, Fate)>,
}

/// The payload of an answer, bytes.
fn size_of(reply: &Reply) -> usize {
    match &reply.reply {
        Answer::Message(payload) => payload.len(),
        Answer::Empty | Answer::Error => 0,
    }
}

fn wire_size(item: &Item) -> usize {
    OVERHEAD
        + match item {
            Item::Event(event) => event.payload.len(),
            Item::Reply(reply) => size_of(reply),
            Item::Settled(_) => 0,
        }
}

impl<T: Ticket> Sending<T> {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            window: options.window,
            max_payload: options.max_payload,
            max_frame: options.frame_bytes,
            events: VecDeque::new(),
            replies: VecDeque::new(),
            settled: VecDeque::new(),
            sent: VecDeque::new(),
            last: 0,
            written: 0,
            held: 0,
            held_bytes: 0,
            replies_held: 0,
            reply_bytes: 0,
            unsettled: Map::default(),
            targets: Map::default(),
            freed: Vec::new(),
            told: Vec::new(),
        }
    }

    /// Whether an event of this size may be queued for a target. Whoever has waited goes before
    /// whoever has not.
    pub(super) fn check(&self, target: Uuid, size: usize, has_waited: bool) -> Result<(), Full> {
        if let Some(credit) = self.targets.get(&target) {
            let fits = credit.bytes.saturating_add(size as u64) <= self.window.bytes;
            let has_credit = credit.events == 0 || credit.events < self.window.events && fits;
            if !has_credit || credit.waiting > 0 && !has_waited {
                return Err(Full::Target);
            }
        }
        if self.has_room(size) { Ok(()) } else { Err(Full::Queue) }
    }

    pub(super) fn has_room(&self, size: usize) -> bool {
        let fits = self.held < self.options.queue && self.held_bytes.saturating_add(size) <= self.options.queue_bytes;
        (self.held == 0 || fits) && self.events.len() + self.unsettled.len() < self.options.window.total as usize
    }

    /// Whether events wait to be sent.
    pub(super) fn has_queued(&self) -> bool {
        !self.events.is_empty()
    }

    /// Queues an event that [`check`](Self::check) let pass.
    pub(super) fn push(&mut self, event: Event, ticket: T) {
        let size = event.payload.len();
        let credit = self.targets.entry(event.target).or_default();
        credit.events += 1;
        credit.bytes += size as u64;
        self.held += 1;
        self.held_bytes += size;
        self.events.push_back((event, ticket));
    }

    /// Queues a reply. One that finds no room for its payload becomes an error, so that its caller
    /// does not wait in vain.
    pub(super) fn reply(&mut self, mut reply: Reply) -> Result<(), Dropped> {
        if self.replies_held >= self.options.window.total as usize {
            return Err(Dropped::MailboxFull);
        }
        let size = size_of(&reply);
        if size > self.options.max_payload
            || self.reply_bytes > 0 && self.reply_bytes.saturating_add(size) > self.options.queue_bytes
        {
            reply.reply = Answer::Error;
        }
        self.replies_held += 1;
        self.reply_bytes += size_of(&reply);
        self.replies.push_back(reply);
        Ok(())
    }

    pub(super) fn settle(&mut self, settled: impl Iterator<Item = Settled>) {
        self.settled.extend(settled);
    }

    /// Somebody waits for a target.
    pub(super) fn wait(&mut self, target: Uuid) {
        self.targets.entry(target).or_default().waiting += 1;
    }

    /// Somebody no longer waits for a target. Whether somebody else does who could go on.
    pub(super) fn end_wait(&mut self, target: Uuid) -> bool {
        let Some(credit) = self.targets.get_mut(&target) else { return false };
        credit.waiting = credit.waiting.saturating_sub(1);
        if credit.waiting == 0 && credit.events == 0 {
            self.targets.remove(&target);
            return false;
        }
        credit.waiting > 0 && (credit.events == 0 || credit.events < self.window.events)
    }

    fn release(&mut self, target: Uuid, size: usize) {
        let Some(credit) = self.targets.get_mut(&target) else { return };
        credit.events = credit.events.saturating_sub(1);
        credit.bytes = credit.bytes.saturating_sub(size as u64);
        if credit.waiting > 0 {
            self.freed.push(target);
        } else if credit.events == 0 {
            self.targets.remove(&target);
        }
    }

    /// What the other side offers. Nobody gets more than we want ourselves: its word is no reason to
    /// grow.
    pub(super) fn set_limits(&mut self, window: Window, max_payload: u64) {
        let own = self.options.window;
        self.window = Window {
            events: window.events.clamp(1, own.events),
            bytes: window.bytes.min(own.bytes),
            total: window.total.clamp(1, own.total),
        };
        let max_payload = usize::try_from(max_payload).unwrap_or(usize::MAX);
        self.max_payload = max_payload.min(self.options.max_payload);
        self.max_frame = self.options.frame_bytes.min(max_payload.saturating_mul(2).saturating_add(64 << 10));
    }

    /// Whether the other side can have taken so much. Less than it has accepted is no offence: what it
    /// says may be older.
    pub(super) fn can_resume(&self, taken: u64) -> bool {
        taken <= self.last
    }

    /// Goes on over a new link, behind what the other side has taken. Returns how many events were
    /// settled in what it has taken.
    pub(super) fn resume(&mut self, taken: u64) -> u64 {
        self.written = self.sent.len();
        let settled = self.forget(taken);
        self.written = 0;
        settled
    }

    /// The other side has taken all up to a sequence. Returns how many events were settled in it.
    pub(super) fn accepted(&mut self, sequence: u64) -> Result<u64, Violation> {
        // More than was written to this link it may have taken from the one before.
        if sequence > self.last {
            return Err(Violation("it accepts what was not sent"));
        }
        Ok(self.forget(sequence))
    }

    fn forget(&mut self, sequence: u64) -> u64 {
        let mut settled = 0;
        while self.last - (self.sent.len() as u64) < sequence {
            let Some(item) = self.sent.pop_front() else { break };
            self.written = self.written.saturating_sub(1);
            match item {
                Item::Event(event) => {
                    self.held -= 1;
                    self.held_bytes -= event.payload.len();
                }
                Item::Reply(reply) => {
                    self.replies_held -= 1;
                    self.reply_bytes -= size_of(&reply);
                }
                Item::Settled(range) => settled += range.count,
            }
        }
        settled
    }

    /// The other side tells the fate of events.
    pub(super) fn on_settled(&mut self, settled: Settled) -> Result<(), Violation> {
        let end = settled.first.checked_add(settled.count).ok_or(Violation("it settles beyond all numbers"))?;
        // What was sent is unsettled only once, so that no honest range is longer than all of it.
        if settled.first == 0 || end > self.last + 1 || settled.count > self.unsettled.len() as u64 {
            return Err(Violation("it settles what is not unsettled"));
        }
        for sequence in settled.first..end {
            if let Some(event) = self.unsettled.remove(&sequence) {
                self.release(event.target, event.size);
                self.told.push((event.ticket, settled.fate.into()));
            }
        }
        Ok(())
    }

    /// Puts into a frame what was not written to this link yet, as much as a frame may have.
    pub(super) fn fill(&mut self, frame: &mut Frame) {
        frame.first = self.last - self.sent.len() as u64 + self.written as u64 + 1;
        let mut size = 0;
        while let Some(item) = self.sent.get(self.written) {
            if !self.fits(frame, &mut size, wire_size(item)) {
                return;
            }
            frame.items.push(item.clone());
            self.written += 1;
        }
        while let Some(settled) = self.settled.front() {
            let item = Item::Settled(*settled);
            if !self.fits(frame, &mut size, wire_size(&item)) {
                return;
            }
            self.settled.pop_front();
            self.write(frame, item);
        }
        while let Some(reply) = self.replies.front() {
            if !self.fits(frame, &mut size, OVERHEAD + size_of(reply)) {
                return;
            }
            let Some(mut reply) = self.replies.pop_front() else { return };
            if size_of(&reply) > self.max_payload {
                self.reply_bytes -= size_of(&reply);
                reply.reply = Answer::Error;
            }
            self.write(frame, Item::Reply(reply));
        }
        while let Some((event, _)) = self.events.front() {
            let payload = event.payload.len();
            let has_room = self.unsettled.len() < self.window.total as usize;
            if !has_room || !self.fits(frame, &mut size, OVERHEAD + payload) {
                return;
            }
            let Some((event, ticket)) = self.events.pop_front() else { return };
            if payload > self.max_payload {
                self.held -= 1;
                self.held_bytes -= payload;
                self.release(event.target, payload);
                self.told.push((ticket, Fate::Dropped(Dropped::TooLarge)));
                continue;
            }
            let unsettled = Unsettled { target: event.target, size: payload, ticket };
            self.write(frame, Item::Event(event));
            self.unsettled.insert(self.last, unsettled);
        }
    }

    /// Whether a frame may have one more item: the first always.
    fn fits(&self, frame: &Frame, size: &mut usize, item: usize) -> bool {
        *size += item;
        frame.items.is_empty() || frame.items.len() < self.options.frame_items && *size <= self.max_frame
    }

    fn write(&mut self, frame: &mut Frame, item: Item) {
        frame.items.push(item.clone());
        self.sent.push_back(item);
        self.written += 1;
        self.last += 1;
    }

    /// Whether there is anything that needs a link: to be sent, or to be answered.
    pub(super) fn needs_link(&self) -> bool {
        !(self.events.is_empty()
            && self.replies.is_empty()
            && self.settled.is_empty()
            && self.sent.is_empty()
            && self.unsettled.is_empty())
    }

    /// The other side has forgotten all. What was sent may have run; what was not stays queued.
    pub(super) fn forget_sent(&mut self) {
        for (_, event) in std::mem::take(&mut self.unsettled) {
            self.release(event.target, event.size);
            self.told.push((event.ticket, Fate::Unknown));
        }
        self.sent.clear();
        self.settled.clear();
        self.replies.clear();
        (self.replies_held, self.reply_bytes) = (0, 0);
        (self.last, self.written) = (0, 0);
        self.held = self.events.len();
        self.held_bytes = self.events.iter().map(|(event, _)| event.payload.len()).sum();
    }

    /// The next queued event, for another way; only while no link carries it.
    pub(super) fn pop(&mut self) -> Option<(Event, T)> {
        let (event, ticket) = self.events.pop_front()?;
        self.held -= 1;
        self.held_bytes -= event.payload.len();
        self.release(event.target, event.payload.len());
        Some((event, ticket))
    }

    /// The next queued reply, for another way.
    pub(super) fn pop_reply(&mut self) -> Option<Reply> {
        let reply = self.replies.pop_front()?;
        self.replies_held -= 1;
        self.reply_bytes -= size_of(&reply);
        Some(reply)
    }

    /// Drops what is queued.
    pub(super) fn drop_queue(&mut self, cause: Dropped) {
        while let Some((_, ticket)) = self.pop() {
            self.told.push((ticket, Fate::Dropped(cause)));
        }
    }

    /// What is kept, for whoever measures.
    pub(super) fn counts(&self, counts: &mut super::session::Counts) {
        counts.queued = self.events.len();
        counts.queued_bytes = self.held_bytes;
        counts.held = self.held;
        counts.unsettled = self.unsettled.len();
        counts.sent = self.sent.len();
        counts.targets = self.targets.len();
        counts.replies = self.replies_held;
        counts.settlements = self.settled.len();
    }
}

impl<T: Ticket> Drop for Sending<T> {
    fn drop(&mut self) {
        self.forget_sent();
        self.drop_queue(Dropped::SenderGone);
        for (ticket, fate) in self.told.drain(..) {
            ticket.settle(fate);
        }
    }
}

/// Puts what was settled into ranges: one for all that follow each other and share their fate.
pub(super) fn ranges(settled: &mut Vec<(u64, Said)>) -> impl Iterator<Item = Settled> {
    settled.sort_unstable_by_key(|(sequence, _)| *sequence);
    let mut single = settled.drain(..).peekable();
    std::iter::from_fn(move || {
        let (first, fate) = single.next()?;
        let mut count = 1;
        while single.next_if(|next| *next == (first + count, fate)).is_some() {
            count += 1;
        }
        Some(Settled { first, count, fate })
    })
}

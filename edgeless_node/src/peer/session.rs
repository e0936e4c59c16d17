//! What two nodes know of each other, across the links between them.
//!
//! Pure: no clock, no I/O, no tasks; `link` does those. A session numbers what it sends and keeps it
//! until the other side has taken it, so that a new link goes on where the old one broke: nothing is
//! lost, nothing comes twice. It ends when one side restarts or gives the other up. What was sent
//! and not settled may then have run; what was not sent waits for the next session.
//!
//! The dialler speaks first. The other side answers with what it knows by then, so that the dialler
//! sees in one hello whether the two still know each other.

use edgeless_api::NodeId;
use edgeless_api::peer::{Event, Fate as Said, Frame, Hello, Item, Reply, Window};
use uuid::Uuid;

pub use super::receiving::Receipt;
use super::receiving::Receiving;
pub use super::sending::Full;
use super::sending::Sending;
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// How much a session may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What a target may have unsettled, here and there; and all targets of one node together.
    pub window: Window,
    /// The largest payload, bytes.
    pub max_payload: usize,
    /// Events that wait for one node or were not taken by it yet.
    pub queue: usize,
    /// Their payloads, bytes; and the payloads of replies.
    pub queue_bytes: usize,
    /// Items in one frame; no node takes more than 4096.
    pub frame_items: usize,
    /// Bytes in one frame. One item it may always have.
    pub frame_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: Window { events: 256, bytes: 8 << 20, total: 1 << 16 },
            max_payload: 4 << 20,
            queue: 8192,
            queue_bytes: 16 << 20,
            frame_items: 1024,
            frame_bytes: 256 << 10,
        }
    }
}

impl Options {
    /// The same, with room in the queue for what a receiver takes without a word, and one event more:
    /// otherwise the acceptance and the room could wait for each other.
    #[must_use]
    pub(super) fn sound(self) -> Self {
        Self {
            queue: self.queue.max(128),
            queue_bytes: self.queue_bytes.max(self.max_payload.saturating_add(512 << 10)),
            frame_items: self.frame_items.clamp(1, 4096),
            ..self
        }
    }
}

/// The other side does what it must not, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub(super) &'static str);

/// Why a link does not come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Both sides dialled, and the other link survives.
    #[error("another link crossed this one")]
    Crossed,
    /// What was known when the link was dialled no longer holds.
    #[error("the session has changed meanwhile")]
    Stale,
    /// The hello cannot be right.
    #[error("the hello is wrong: {0}")]
    Hello(Violation),
}

/// Names one link of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkId(u64);

/// Names one attempt to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt(u64);

/// The link that carries the frames at present.
#[derive(Debug)]
struct Active {
    id: LinkId,
    /// By this side.
    is_dialled: bool,
    /// How many links the other side had had when it agreed to this one.
    their_links: u64,
    /// A frame has come.
    is_heard: bool,
}

/// What a frame brought for this node.
#[derive(Debug)]
pub enum Arrival {
    /// An event, and what its settlement will need.
    Event(Event, Receipt),
    /// A reply.
    Reply(Reply),
}

/// What is to be written to a link.
#[derive(Debug)]
pub enum Next {
    /// This.
    Frame(Frame),
    /// Nothing at present.
    Nothing,
    /// Nothing any more.
    Ended,
}

/// How much a session holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events that wait to be sent.
    pub queued: usize,
    /// Payloads of events that wait or were not taken yet, bytes.
    pub queued_bytes: usize,
    /// Events that wait or were not taken yet.
    pub held: usize,
    /// Events that were sent and not settled.
    pub unsettled: usize,
    /// Items that were sent and not taken yet.
    pub sent: usize,
    /// Targets there with events queued or unsettled, or with senders that wait.
    pub targets: usize,
    /// Replies that wait or were not taken yet.
    pub replies: usize,
    /// Ranges of settled events that wait to be sent.
    pub settlements: usize,
    /// Targets here that hold events.
    pub targets_here: usize,
    /// Events taken whose sender is not known to have heard their fate.
    pub unsettled_here: u64,
    /// How many links there were.
    pub links: u64,
}

/// One of the two sides.
#[derive(Debug)]
pub struct Session<T: Ticket> {
    node: NodeId,
    peer: NodeId,
    options: Options,
    /// The name of our numbering.
    own: u64,
    /// The name of theirs, once we have heard it.
    theirs: Option<u64>,
    links: u64,
    active: Option<Active>,
    attempts: u64,
    /// What was known of the other side when it was dialled last.
    dialled: Option<(Attempt, Option<u64>)>,
    sending: Sending<T>,
    receiving: Receiving,
}

impl<T: Ticket> Session<T> {
    /// A session of `node` with `peer`. The nonce is random and not 0.
    pub fn new(node: NodeId, peer: NodeId, options: Options, nonce: u64) -> Self {
        let options = options.sound();
        Self {
            node,
            peer,
            options,
            own: nonce.max(1),
            theirs: None,
            links: 0,
            active: None,
            attempts: 0,
            dialled: None,
            sending: Sending::new(options),
            receiving: Receiving::new(options),
        }
    }

    // Links.

    /// Begins to dial. The answer to any attempt before this one is too late.
    pub fn dial(&mut self) -> (Attempt, Hello) {
        self.attempts += 1;
        let attempt = Attempt(self.attempts);
        self.dialled = Some((attempt, self.theirs));
        (attempt, self.hello())
    }

    fn hello(&self) -> Hello {
        Hello {
            node: self.node,
            session: self.own,
            known: self.theirs.unwrap_or(0),
            taken: self.receiving.taken(),
            window: self.options.window,
            max_payload: self.options.max_payload as u64,
            links: self.links,
            invocation_url: None,
        }
    }

    /// The other side has dialled. Returns the link and the answer; `nonce` is for a new session, if
    /// one begins.
    ///
    /// # Errors
    /// There is no such link; nothing has changed.
    pub fn accept(&mut self, hello: &Hello, nonce: u64) -> Result<(LinkId, Hello), Refusal> {
        let resumes = self.theirs == Some(hello.session);
        if let Some(active) = &self.active
            && resumes
            && hello.links < active.their_links
        {
            // It was sent before the other side had the link that we have now: late if that is one of
            // its own, crossed otherwise. Of two that cross, that of the lower id survives.
            match active.is_dialled {
                false => return Err(Refusal::Stale),
                true if self.node < self.peer => return Err(Refusal::Crossed),
                true => {}
            }
        }
        // One that never got our hello has taken nothing.
        let taken = if hello.known == self.own { hello.taken } else { 0 };
        self.check(hello, resumes, taken)?;
        if self.theirs.is_some() && !resumes {
            self.forget(nonce);
        }
        let link = self.begin(hello, resumes, taken, false);
        Ok((link, self.hello()))
    }

    /// The other side has answered.
    ///
    /// # Errors
    /// There is no such link; nothing has changed.
    pub fn answered(&mut self, attempt: Attempt, hello: &Hello) -> Result<LinkId, Refusal> {
        let Some((last, theirs)) = self.dialled else { return Err(Refusal::Stale) };
        // The answer is newer than what was known when it was asked for, and nothing else is sure.
        if attempt != last || self.theirs != theirs && self.theirs != Some(hello.session) {
            return Err(Refusal::Stale);
        }
        if self.active.as_ref().is_some_and(|active| !active.is_dialled) && self.node > self.peer {
            return Err(Refusal::Crossed);
        }
        if hello.known != self.own {
            return Err(Refusal::Hello(Violation("it answers somebody else")));
        }
        let resumes = self.theirs == Some(hello.session);
        self.check(hello, resumes, hello.taken)?;
        if self.theirs.is_some() && !resumes {
            // The name of our numbering stays: the other side has just heard it for the first time.
            self.forget(self.own);
        }
        Ok(self.begin(hello, resumes, hello.taken, true))
    }

    fn check(&self, hello: &Hello, resumes: bool, taken: u64) -> Result<(), Refusal> {
        let wrong = |reason| Err(Refusal::Hello(Violation(reason)));
        if hello.node != self.peer {
            return wrong("it comes from another node");
        }
        if resumes && !self.sending.can_resume(taken) {
            return wrong("it has taken what was not sent");
        }
        if !resumes && taken > 0 {
            // It speaks of a session before this one.
            return Err(Refusal::Stale);
        }
        Ok(())
    }

    fn begin(&mut self, hello: &Hello, resumes: bool, taken: u64, is_dialled: bool) -> LinkId {
        if !resumes {
            self.receiving.start_again();
        }
        let settled = self.sending.resume(taken);
        self.receiving.forget(settled);
        self.receiving.accepted();
        self.sending.set_limits(hello.window, hello.max_payload);
        self.theirs = Some(hello.session);
        self.links += 1;
        let id = LinkId(self.links);
        self.active = Some(Active { id, is_dialled, their_links: hello.links, is_heard: false });
        id
    }

    /// A link is over. Whether it was the present one.
    pub fn ended(&mut self, link: LinkId) -> bool {
        let is_active = self.has_link(link);
        if is_active {
            self.active = None;
        }
        is_active
    }

    /// Whether this is the present link.
    pub fn has_link(&self, link: LinkId) -> bool {
        self.active.as_ref().is_some_and(|active| active.id == link)
    }

    /// Whether there is a link at present.
    pub fn is_linked(&self) -> bool {
        self.active.is_some()
    }

    /// Whether anything has come over the present link.
    pub fn is_heard(&self) -> bool {
        self.active.as_ref().is_some_and(|active| active.is_heard)
    }

    /// Takes note of what was settled here.
    pub fn collect(&mut self, settled: &mut Vec<(Receipt, Said)>) {
        let ranges = self.receiving.collect(settled);
        self.sending.settle(ranges);
    }

    /// Whether there is anything that needs a link, of what was [collected](Self::collect).
    pub fn needs_link(&self) -> bool {
        self.sending.needs_link()
    }

    /// Ends the session: the other side has forgotten it.
    fn forget(&mut self, nonce: u64) {
        self.own = nonce.max(1);
        self.theirs = None;
        self.active = None;
        self.dialled = None;
        self.sending.forget_sent();
        self.receiving.start_again();
    }

    /// Gives the other side up. What was sent may have run, what was not is dropped.
    pub fn lose(&mut self, nonce: u64, cause: Dropped) {
        self.forget(nonce);
        self.sending.drop_queue(cause);
    }

    /// Ends the session because the other side is found not to speak this protocol: what is queued
    /// stays, for [`pop`](Self::pop).
    pub fn hand_over(&mut self, nonce: u64) {
        let mut replies = Vec::new();
        while let Some(reply) = self.sending.pop_reply() {
            replies.push(reply);
        }
        self.forget(nonce);
        for reply in replies {
            // There was room for it before.
            self.sending.reply(reply).ok();
        }
    }

    /// The next event that was never sent.
    pub fn pop(&mut self) -> Option<(Event, T)> {
        self.sending.pop()
    }

    /// The next reply that was never sent.
    pub fn pop_reply(&mut self) -> Option<Reply> {
        self.sending.pop_reply()
    }

    // Senders.

    /// Whether [`push`](Self::push) may follow. Whoever has waited goes first.
    ///
    /// # Errors
    /// What has to be waited for.
    pub fn check_room(&self, event: &Event, has_waited: bool) -> Result<(), Full> {
        self.sending.check(event.target, event.payload.len(), has_waited)
    }

    /// Whether there is room for an event of this size, whatever its target.
    pub fn has_room(&self, size: usize) -> bool {
        self.sending.has_room(size)
    }

    /// Queues an event.
    pub fn push(&mut self, event: Event, ticket: T) {
        self.sending.push(event, ticket);
    }

    /// Queues a reply.
    ///
    /// # Errors
    /// More wait than the other side can have called for.
    pub fn reply(&mut self, reply: Reply) -> Result<(), Dropped> {
        self.sending.reply(reply)
    }

    /// Somebody begins to wait for a target.
    pub fn wait(&mut self, target: Uuid) {
        self.sending.wait(target);
    }

    /// Somebody ends to wait for a target. Whether the next one should look.
    pub fn end_wait(&mut self, target: Uuid) -> bool {
        self.sending.end_wait(target)
    }

    /// Targets that have room again and for which somebody waits, since the last call.
    pub fn freed(&mut self) -> std::vec::Drain<'_, Uuid> {
        self.sending.freed.drain(..)
    }

    /// The events whose fate was decided since the last call, put behind those in `told`.
    pub fn take_told(&mut self, told: &mut Vec<(T, Fate)>) {
        told.append(&mut self.sending.told);
    }

    /// Whether there is a fate to tell.
    pub fn has_told(&self) -> bool {
        !self.sending.told.is_empty()
    }

    // Frames.

    /// Whether the other side should hear soon what was taken.
    pub fn owes_acceptance(&self) -> bool {
        self.receiving.owes_acceptance()
    }

    /// Whether events wait to be sent.
    pub fn has_queued(&self) -> bool {
        self.sending.has_queued()
    }

    /// What to write to a link now. `settled` is what was settled here since the last call.
    pub fn next_frame(&mut self, link: LinkId, settled: &mut Vec<(Receipt, Said)>) -> Next {
        if !self.has_link(link) {
            return Next::Ended;
        }
        self.collect(settled);
        let mut frame = Frame::default();
        self.sending.fill(&mut frame);
        if frame.items.is_empty() && !self.receiving.owes_acceptance() {
            return Next::Nothing;
        }
        frame.accepted = self.receiving.accepted();
        Next::Frame(frame)
    }

    /// A frame has come over a link. What it brings for this node is put into `arrivals`, in order,
    /// also if an error follows.
    ///
    /// # Errors
    /// The link has to end.
    pub fn on_frame(&mut self, link: LinkId, frame: Frame, arrivals: &mut Vec<Arrival>) -> Result<(), Violation> {
        match &mut self.active {
            Some(active) if active.id == link => active.is_heard = true,
            // Another link has taken over; whatever this is will come again.
            _ => return Ok(()),
        }
        if frame.hello.is_some() {
            return Err(Violation("it says hello again"));
        }
        let settled = self.sending.accepted(frame.accepted)?;
        self.receiving.forget(settled);
        if frame.first > self.receiving.taken() + 1 {
            return Err(Violation("items are missing"));
        }
        for (sequence, item) in (frame.first..).zip(frame.items) {
            if !self.receiving.is_new(sequence) {
                continue;
            }
            match item {
                Item::Event(event) => {
                    if let Some(receipt) = self.receiving.take(&event)? {
                        arrivals.push(Arrival::Event(event, receipt));
                    }
                }
                Item::Reply(reply) => {
                    if let edgeless_api::event::Reply::Message(payload) = &reply.reply {
                        self.receiving.count(payload.len());
                    }
                    arrivals.push(Arrival::Reply(reply));
                }
                Item::Settled(settled) => self.sending.on_settled(settled)?,
            }
        }
        Ok(())
    }

    /// How much is held at present.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { links: self.links, ..Counts::default() };
        self.sending.counts(&mut counts);
        self.receiving.counts(&mut counts);
        counts
    }
}

//! The link to one other node: the tasks and the sockets around a [session](super::session).
//!
//! ```text
//!  send ---> session ---> frames, when the transport asks for one ---> the other node
//!    ^          |                                                          |
//!  ticket <-----+------ reader: never waits, hands on to Deliver <---------+
//! ```
//! There is no queue of frames: the transport pulls one whenever it has room, and it holds all that
//! is queued by then. So nothing waits for a timer, and what is slow makes larger frames. One task
//! dials while there is no link and something needs one.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use edgeless_api::client::{Connection, Invocation, Options as CallOptions, PeerStream};
use edgeless_api::error::Code;
use edgeless_api::event::{Kind, Reply as Answer, Trace};
use edgeless_api::peer::{self, Frame, Hello};
use edgeless_api::server::Values;
use edgeless_api::{Error, Event, InstanceId, Limits, NodeId, Url};
use futures_util::stream::{self, Stream, StreamExt};
use futures_util::{FutureExt, future};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::sending::Full;
use super::session::{self, Arrival, Attempt, Counts, LinkId, Next, Refusal, Session};
use super::settler::{Desk, Settler};
use super::unary::{self, Unary};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// How much may wait for one node, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What a session holds.
    pub session: session::Options,
    /// How long a sender waits for room.
    pub emit_wait: Duration,
    /// How long a node may be out of reach while something waits for it.
    pub lost_after: Duration,
    /// How long a link may take to come to be.
    pub connect: Duration,
    /// The first and the longest time between two attempts.
    pub retry: [Duration; 2],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            session: session::Options::default(),
            emit_wait: Duration::from_secs(2),
            lost_after: Duration::from_secs(10),
            connect: Duration::from_secs(2),
            retry: [Duration::from_millis(20), Duration::from_secs(2)],
        }
    }
}

/// Takes what comes from other nodes. Nothing here may block: a link reads no further until it
/// returns.
pub trait Deliver: Send + Sync + 'static {
    /// An event has come. What becomes of it is said by the settler, sooner or later, and makes room
    /// for another.
    fn deliver(&self, from: NodeId, event: Event, settler: Settler);
    /// The reply to a call has come. Whether it was called for has to be checked.
    fn reply(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Answer);
    /// A node did what it must not, and its link was ended.
    fn refused(&self, from: NodeId, error: &Error);
}

/// The way to one other node; cheap to clone. The last one that is dropped ends the link.
#[derive(Debug)]
pub struct Link<T: Ticket> {
    shared: Arc<Shared<T>>,
    _ends: Arc<DropGuard>,
}

impl<T: Ticket> Clone for Link<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _ends: self._ends.clone() }
    }
}

struct Shared<T: Ticket> {
    node: NodeId,
    peer: NodeId,
    /// Where this node takes events, for those that do not know it.
    own_url: Arc<OnceLock<Url>>,
    options: Options,
    deliver: Arc<dyn Deliver>,
    state: Mutex<State<T>>,
    desk: Arc<Desk>,
    /// Held from the taking of a frame to the delivery of what it brought, so that two links that
    /// follow each other do not mix theirs.
    reading: Mutex<Reading>,
    /// Senders that wait for room in the queue.
    room: Arc<Notify>,
    /// The link is over, or a new address is known: something for whoever dials.
    changed: Notify,
    cancel: CancellationToken,
}

/// Kept between frames for its memory.
#[derive(Default)]
struct Reading {
    arrivals: Vec<Arrival>,
}

struct State<T: Ticket> {
    session: Session<T>,
    url: Url,
    /// Senders that wait for a target.
    gates: HashMap<Uuid, Arc<Notify>>,
    waiting_for_room: usize,
    /// How often there was room again.
    room_made: u64,
    /// Nobody is about to look for something to write.
    is_idle: bool,
    is_closed: bool,
    /// The way to a node that knows no links.
    unary: Option<Arc<Unary<T>>>,
    /// Since when the node is out of reach while it is needed.
    down_since: Option<Instant>,
    up_since: Instant,
    /// Something has come since the last look.
    was_heard: bool,
    /// Ends the reader of the present link.
    reader: CancellationToken,
}

impl<T: Ticket> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// What became of an offer.
enum Offered<T: Ticket> {
    Queued,
    Refused(Dropped),
    Full(Unsent<T>),
    Unary(Arc<Unary<T>>, Unsent<T>),
}

/// An event in the hands of its sender. If the sender goes away, its ticket says so.
struct Unsent<T: Ticket>(Option<(peer::Event, T)>);

impl<T: Ticket> Unsent<T> {
    fn drop_for(mut self, cause: Dropped) -> Dropped {
        if let Some((_, ticket)) = self.0.take() {
            ticket.settle(Fate::Dropped(cause));
        }
        cause
    }
}

impl<T: Ticket> Drop for Unsent<T> {
    fn drop(&mut self) {
        if let Some((_, ticket)) = self.0.take() {
            ticket.settle(Fate::Dropped(Dropped::SenderGone));
        }
    }
}

/// A place among those who wait. Whoever leaves it lets the next one look, whatever the reason: there
/// may be room for several.
struct Place<'s, T: Ticket> {
    shared: &'s Shared<T>,
    target: Option<Uuid>,
    gate: Arc<Notify>,
}

impl<T: Ticket> Drop for Place<'_, T> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let is_over = state.is_closed || state.unary.is_some();
        let next = match self.target {
            Some(target) => {
                let next = state.session.end_wait(target);
                if Arc::strong_count(&self.gate) <= 2 {
                    state.gates.remove(&target);
                }
                next
            }
            None => {
                state.waiting_for_room -= 1;
                state.waiting_for_room > 0 && state.session.has_room(0)
            }
        };
        if next || is_over {
            self.gate.notify_one();
        }
    }
}

/// An event of `node` as it goes over a link, or one that it passes on.
fn wire_event(node: NodeId, event: Event) -> Option<peer::Event> {
    let (payload, call) = match event.kind {
        Kind::Cast(payload) => (payload, None),
        Kind::Call { payload, stream, remaining } => (payload, Some(peer::Call { stream, remaining })),
        Kind::Reply { .. } => return None,
    };
    let (source, target) = (event.source.function, event.target.function);
    let source_node = (event.source.node != node).then_some(event.source.node);
    let Event { created, trace, id, .. } = event;
    Some(peer::Event { source, source_node, target, payload, call, created, trace, id })
}

/// An event as it goes to a node that sends replies to the source of a call, wherever that is: that of a
/// call that is passed on has to come back here.
fn unary_event(node: NodeId, peer: NodeId, event: peer::Event) -> Event {
    let source_node = event.source_node.filter(|_| event.call.is_none());
    event_between(node, peer, peer::Event { source_node, ..event })
}

fn event_between(source: NodeId, target: NodeId, event: peer::Event) -> Event {
    let kind = match event.call {
        None => Kind::Cast(event.payload),
        Some(peer::Call { stream, remaining }) => Kind::Call { payload: event.payload, stream, remaining },
    };
    Event {
        source: InstanceId { node: event.source_node.unwrap_or(source), function: event.source },
        target: InstanceId { node: target, function: event.target },
        kind,
        created: event.created,
        trace: event.trace,
        id: event.id,
    }
}

impl<T: Ticket> Link<T> {
    /// A link of `node` to `peer`, which is dialled at `url` when that is needed. Must be called in a
    /// tokio runtime.
    pub fn new(
        node: NodeId,
        peer: NodeId,
        url: Url,
        options: Options,
        deliver: Arc<dyn Deliver>,
        own_url: Arc<OnceLock<Url>>,
    ) -> Self {
        let cancel = CancellationToken::new();
        let state = State {
            session: Session::new(node, peer, options.session, rand::random()),
            url,
            gates: HashMap::new(),
            waiting_for_room: 0,
            room_made: 0,
            is_idle: false,
            is_closed: false,
            unary: None,
            down_since: None,
            up_since: Instant::now(),
            was_heard: false,
            reader: CancellationToken::new(),
        };
        let shared = Arc::new(Shared {
            node,
            peer,
            own_url,
            options,
            deliver,
            state: Mutex::new(state),
            desk: Arc::default(),
            reading: Mutex::default(),
            room: Arc::default(),
            changed: Notify::new(),
            cancel: cancel.clone(),
        });
        tokio::spawn(keep(shared.clone()));
        Self { shared, _ends: Arc::new(cancel.drop_guard()) }
    }

    /// Puts an event on its way, and waits for room as long as a sender may. The ticket is told the
    /// fate in any case, also if this is dropped before it returns; the error is for whoever cannot
    /// go on.
    ///
    /// # Errors
    /// There was no room in time, the payload is too large, or the node is forgotten.
    pub async fn send(&self, event: Event, ticket: T) -> Result<(), Dropped> {
        let Some(event) = wire_event(self.shared.node, event) else {
            // A reply has no ticket and is sent as a reply.
            ticket.settle(Fate::Dropped(Dropped::Unmapped));
            return Err(Dropped::Unmapped);
        };
        match self.shared.offer(Unsent(Some((event, ticket))), false) {
            Offered::Queued => Ok(()),
            Offered::Refused(cause) => Err(cause),
            Offered::Full(unsent) => self.shared.wait(unsent).await,
            Offered::Unary(unary, unsent) => self.shared.send_unary(&unary, unsent).await,
        }
    }

    /// Sends the reply to a call. Waits for nothing.
    ///
    /// # Errors
    /// More replies wait than calls can have come, or the node is forgotten.
    pub fn reply(&self, callee: Uuid, caller: Uuid, stream: u64, reply: Answer, trace: Trace) -> Result<(), Dropped> {
        let reply = peer::Reply { source: callee, target: caller, stream, reply, trace };
        let mut state = self.shared.lock();
        if let Some(unary) = &state.unary {
            return unary.reply(reply_between(self.shared.node, self.shared.peer, reply));
        }
        if state.is_closed {
            return Err(Dropped::PeerLost);
        }
        state.session.reply(reply)?;
        self.shared.wake(state);
        Ok(())
    }

    /// The other node has dialled: takes its hello and the frames that follow, and returns what goes
    /// back.
    ///
    /// # Errors
    /// The link is refused.
    pub fn accept(&self, hello: &Hello, frames: Values<Frame>) -> Result<Values<Frame>, Error> {
        let mut state = self.shared.lock();
        if state.is_closed {
            return Err(Error::unavailable("this node has forgotten the other"));
        }
        let accepted = state.session.accept(hello, rand::random());
        let (link, answer) = accepted.map_err(|refusal| self.shared.refusal(refusal))?;
        state.unary = None;
        let outbound = self.shared.begin(state, link, frames);
        let first = Frame { hello: Some(answer), ..Frame::default() };
        Ok(Box::pin(stream::iter([Ok(first)]).chain(outbound.map(Ok))))
    }

    /// Where the node is now. What is known of it stays.
    pub fn set_url(&self, url: &Url) {
        let mut state = self.shared.lock();
        if state.url != *url {
            state.url = url.clone();
            state.unary = None;
            drop(state);
            self.shared.changed.notify_one();
        }
    }

    /// Where the node is.
    pub fn url(&self) -> Url {
        self.shared.lock().url.clone()
    }

    /// Forgets the node: nothing is sent or taken any more.
    pub fn close(&self) {
        self.shared.close(Dropped::PeerLost);
    }

    /// Whether the node speaks only EDGELESS 1.x.
    pub fn is_unary(&self) -> bool {
        self.shared.lock().unary.is_some()
    }

    /// Whether there is a stream at present.
    pub fn is_linked(&self) -> bool {
        self.shared.lock().session.is_linked()
    }

    /// Whether there is no stream, nor anything that needs one.
    pub fn is_idle(&self) -> bool {
        let state = self.shared.lock();
        !state.session.is_linked() && !state.session.needs_link()
    }

    /// How much is held for the node.
    pub fn counts(&self) -> Counts {
        self.shared.lock().session.counts()
    }
}

fn reply_between(node: NodeId, peer: NodeId, reply: peer::Reply) -> Event {
    Event {
        source: InstanceId { node, function: reply.source },
        target: InstanceId { node: peer, function: reply.target },
        kind: Kind::Reply { reply: reply.reply, stream: reply.stream },
        created: std::time::SystemTime::UNIX_EPOCH,
        trace: reply.trace,
        id: None,
    }
}

impl<T: Ticket> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Senders.

    fn offer(&self, mut unsent: Unsent<T>, has_waited: bool) -> Offered<T> {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            return Offered::Refused(unsent.drop_for(Dropped::PeerLost));
        }
        if let Some(unary) = &state.unary {
            return Offered::Unary(unary.clone(), unsent);
        }
        let Some((event, ticket)) = unsent.0.take() else { return Offered::Queued };
        if event.payload.len() > self.options.session.max_payload {
            drop(state);
            return Offered::Refused(Unsent(Some((event, ticket))).drop_for(Dropped::TooLarge));
        }
        if state.session.check_room(&event, has_waited).is_err() {
            return Offered::Full(Unsent(Some((event, ticket))));
        }
        state.session.push(event, ticket);
        self.wake(state);
        Offered::Queued
    }

    /// Waits with an event for room, in turn with others.
    async fn wait(&self, mut unsent: Unsent<T>) -> Result<(), Dropped> {
        let deadline = Instant::now() + self.options.emit_wait;
        let mut place = self.place(&unsent);
        let mut passed_on = None;
        loop {
            if let Some(place) = &place
                && tokio::time::timeout_at(deadline, place.gate.notified()).await.is_err()
            {
                return Err(unsent.drop_for(Dropped::MailboxFull));
            }
            let target = place.as_ref().and_then(|place| place.target);
            match self.offer(unsent, target.is_some()) {
                Offered::Queued => return Ok(()),
                Offered::Refused(cause) => return Err(cause),
                Offered::Full(back) => unsent = back,
                Offered::Unary(unary, unsent) => {
                    drop(place);
                    return self.send_unary(&unary, unsent).await;
                }
            }
            // There was room, but not for this event. The next in line may need less: it is told, once for
            // each time that room was made, or they would tell each other for ever.
            match &place {
                Some(waiting) if self.still_waits(&unsent, waiting) => {
                    let made = self.lock().room_made;
                    if passed_on.replace(made) != Some(made) {
                        waiting.gate.notify_one();
                    }
                }
                _ => {
                    drop(place.take());
                    place = self.place(&unsent);
                }
            }
        }
    }

    /// Whether an event waits for the same thing as before.
    fn still_waits(&self, unsent: &Unsent<T>, place: &Place<'_, T>) -> bool {
        let Some((event, _)) = &unsent.0 else { return false };
        let full = self.lock().session.check_room(event, place.target.is_some());
        matches!((full, place.target), (Err(Full::Target), Some(_)) | (Err(Full::Queue), None))
    }

    /// A place among those who wait for what this event needs; `None` if there is room by now.
    fn place(&self, unsent: &Unsent<T>) -> Option<Place<'_, T>> {
        let (event, _) = unsent.0.as_ref()?;
        let mut state = self.lock();
        if state.is_closed || state.unary.is_some() {
            return None;
        }
        match state.session.check_room(event, false).err()? {
            Full::Target => {
                state.session.wait(event.target);
                let gate = state.gates.entry(event.target).or_default().clone();
                Some(Place { shared: self, target: Some(event.target), gate })
            }
            Full::Queue => {
                state.waiting_for_room += 1;
                Some(Place { shared: self, target: None, gate: self.room.clone() })
            }
        }
    }

    async fn send_unary(&self, unary: &Unary<T>, mut unsent: Unsent<T>) -> Result<(), Dropped> {
        match unsent.0.take() {
            Some((event, ticket)) => unary.send(unary_event(self.node, self.peer, event), ticket).await,
            None => Ok(()),
        }
    }

    /// Lets the writer look, if it is not about to.
    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let was_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if was_idle {
            self.desk.wake();
        }
    }

    /// Tells what the session has decided, and lets those go on who now can.
    fn after(&self, mut state: MutexGuard<'_, State<T>>) {
        let State { session, gates, room_made, .. } = &mut *state;
        for target in session.freed() {
            *room_made += 1;
            if let Some(gate) = gates.get(&target) {
                gate.notify_one();
            }
        }
        if state.waiting_for_room > 0 && state.session.has_room(0) {
            state.room_made += 1;
            self.room.notify_one();
        }
        if !state.session.has_told() {
            return;
        }
        let mut told = Vec::new();
        state.session.take_told(&mut told);
        drop(state);
        for (ticket, fate) in told {
            ticket.settle(fate);
        }
    }

    // Links.

    fn refusal(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Crossed | Refusal::Stale => Error::unavailable(refusal),
            Refusal::Hello(_) => {
                let error = Error::rejected(refusal);
                self.deliver.refused(self.peer, &error);
                error
            }
        }
    }

    /// A link has come to be.
    fn begin(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State<T>>,
        link: LinkId,
        frames: Values<Frame>,
    ) -> Outbound<T> {
        let reader = self.cancel.child_token();
        std::mem::replace(&mut state.reader, reader.clone()).cancel();
        state.up_since = Instant::now();
        state.is_idle = false;
        self.after(state);
        // Whoever wrote to the link before finds that it is over.
        self.desk.wake();
        tokio::spawn(read(self.clone(), link, frames, reader));
        Outbound { shared: self.clone(), link }
    }

    /// A link is over.
    fn over(&self, link: LinkId) {
        let mut state = self.lock();
        let was_heard = state.session.is_heard();
        if state.session.ended(link) {
            state.was_heard |= was_heard;
            state.reader.cancel();
            // A link that brings nothing and breaks at once is none.
            let was_a_link = was_heard || state.up_since.elapsed() >= self.options.lost_after;
            if was_a_link || state.down_since.is_none() {
                state.down_since = Some(Instant::now());
            }
            drop(state);
            self.changed.notify_one();
            // Whoever writes to it sees that it is over, and lets the other side know.
            self.desk.wake();
        }
    }

    /// The next frame for a link.
    fn poll_frame(&self, link: LinkId, context: &Context<'_>) -> Poll<Option<Frame>> {
        let mut state = self.lock();
        let mut desk = self.desk.lock();
        let next = state.session.next_frame(link, &mut desk.settled);
        let poll = match next {
            Next::Frame(frame) => Poll::Ready(Some(frame)),
            Next::Ended => Poll::Ready(None),
            Next::Nothing => {
                desk.writer = Some(context.waker().clone());
                state.is_idle = true;
                Poll::Pending
            }
        };
        drop(desk);
        self.after(state);
        poll
    }

    /// Takes a frame and hands on what it brought.
    fn take(&self, link: LinkId, frame: Frame) -> Result<(), Error> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let taken = state.session.on_frame(link, frame, &mut reading.arrivals);
        if taken.is_ok() {
            // What was taken may have to be accepted; what was settled may let more be sent.
            if (state.session.owes_acceptance() || state.session.has_queued()) && std::mem::take(&mut state.is_idle) {
                self.desk.wake();
            }
        }
        self.after(state);
        for arrival in reading.arrivals.drain(..) {
            match arrival {
                Arrival::Event(event, receipt) => {
                    let event = event_between(self.peer, self.node, event);
                    self.deliver.deliver(self.peer, event, Settler::new(&self.desk, receipt));
                }
                Arrival::Reply(reply) => {
                    let callee = InstanceId { node: self.peer, function: reply.source };
                    let caller = InstanceId { node: self.node, function: reply.target };
                    self.deliver.reply(callee, caller, reply.stream, reply.reply);
                }
            }
        }
        taken.map_err(Error::rejected)
    }

    fn close(&self, cause: Dropped) {
        let mut state = self.lock();
        state.is_closed = true;
        state.session.lose(rand::random(), cause);
        state.unary = None;
        state.reader.cancel();
        for gate in state.gates.values() {
            gate.notify_one();
        }
        self.room.notify_one();
        self.after(state);
        self.desk.wake();
        self.cancel.cancel();
    }

    // Dialling.

    /// Ready when a link is needed and there is none. Otherwise to be asked again when something is
    /// queued or settled.
    fn poll_needed(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.session.is_linked() || state.unary.is_some() || state.is_closed {
            return Poll::Pending;
        }
        let mut desk = self.desk.lock();
        state.session.collect(&mut desk.settled);
        if state.session.needs_link() {
            state.down_since.get_or_insert_with(Instant::now);
            return Poll::Ready(());
        }
        state.down_since = None;
        state.is_idle = true;
        desk.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// Whether the link that is over brought anything.
    fn was_heard(&self) -> bool {
        std::mem::take(&mut self.lock().was_heard)
    }

    /// When the node is to be given up, if it stays out of reach.
    fn lost_at(&self) -> Instant {
        self.lock().down_since.unwrap_or_else(Instant::now) + self.options.lost_after
    }

    fn lose(&self) {
        let mut state = self.lock();
        if !state.session.is_linked() {
            tracing::warn!(node = %self.peer, "a node is out of reach: what was on its way to it is lost");
            state.session.lose(rand::random(), Dropped::PeerLost);
            state.down_since = None;
        }
        self.after(state);
    }

    fn limits(&self) -> Limits {
        Limits { payload: self.options.session.max_payload, ..Limits::default() }
    }

    async fn dial(self: &Arc<Self>) -> Result<(), Error> {
        let ((attempt, hello), url) = {
            let mut state = self.lock();
            if state.session.is_linked() {
                return Ok(());
            }
            (state.session.dial(), state.url.clone())
        };
        let options = CallOptions { connect: self.options.connect, limits: self.limits(), ..CallOptions::default() };
        // A new connection each time: the old one may be dead without having noticed.
        let stream = PeerStream::new(Connection::for_link(&url, options)?);
        let (agreed, outbound) = oneshot::channel::<Outbound<T>>();
        let hello = Hello { invocation_url: self.own_url.get().cloned(), ..hello };
        let first = Frame { hello: Some(hello), ..Frame::default() };
        let rest = outbound.map(|outbound| match outbound {
            Ok(outbound) => outbound.left_stream(),
            Err(_) => stream::empty().right_stream(),
        });
        let mut frames = stream.link(stream::iter([first]).chain(rest.flatten_stream())).await?;
        let answer = frames.next().await.ok_or_else(|| Error::unavailable("the link ended at once"))??;
        let hello = answer.hello.ok_or_else(|| Error::rejected("the first frame has no hello"))?;
        // Fails if the stream is over already, which the reader will see.
        agreed.send(self.agree(attempt, &hello, frames)?).ok();
        Ok(())
    }

    fn agree(self: &Arc<Self>, attempt: Attempt, hello: &Hello, frames: Values<Frame>) -> Result<Outbound<T>, Error> {
        let mut state = self.lock();
        if state.is_closed {
            return Err(Error::unavailable("the other node is forgotten"));
        }
        let link = state.session.answered(attempt, hello).map_err(|refusal| self.refusal(refusal))?;
        Ok(self.begin(state, link, frames))
    }

    /// The node knows no links: gives it what is queued in the other way, and then all that follows.
    async fn hand_over(&self) {
        tracing::info!(node = %self.peer, "a node knows no links: it gets its events one by one");
        let url = self.lock().url.clone();
        let deadline = self.options.emit_wait + Duration::from_secs(5);
        let options = CallOptions { deadline, limits: self.limits(), ..CallOptions::default() };
        // It was good enough for the link.
        let Ok(connection) = Connection::lazy(&url, options) else { return };
        let lanes = unary::Options { emit_wait: self.options.emit_wait, queued: self.options.session.queue_bytes };
        let invocation = Invocation::new(connection);
        let invocation = match self.own_url.get() {
            Some(own) => invocation.of_node_at(own),
            None => invocation,
        };
        let unary = Arc::new(Unary::new(invocation, lanes));
        self.take_back();
        while let Some((event, ticket)) = self.next_for(&unary) {
            // Its ticket is told.
            unary.send(unary_event(self.node, self.peer, event), ticket).await.ok();
        }
    }

    /// Ends the session and keeps what was never sent.
    fn take_back(&self) {
        let mut state = self.lock();
        state.session.hand_over(rand::random());
        self.after(state);
    }

    /// The next event that is to go the other way; after the last one, all that follow do.
    fn next_for(&self, unary: &Arc<Unary<T>>) -> Option<(peer::Event, T)> {
        let mut state = self.lock();
        if state.is_closed || state.session.is_linked() {
            return None;
        }
        while let Some(reply) = state.session.pop_reply() {
            // What does not fit is lost, as replies are: their callers stop to wait.
            unary.reply(reply_between(self.node, self.peer, reply)).ok();
        }
        let next = state.session.pop();
        if next.is_none() {
            state.unary = Some(unary.clone());
            for gate in state.gates.values() {
                gate.notify_one();
            }
            self.room.notify_one();
        }
        self.after(state);
        next
    }
}

/// Keeps a link to the node while one is needed.
async fn keep<T: Ticket>(shared: Arc<Shared<T>>) {
    let cancel = shared.cancel.clone();
    let keep = async {
        let mut failures = 0;
        loop {
            tokio::select! {
                () = future::poll_fn(|context| shared.poll_needed(context)) => {}
                () = shared.changed.notified() => continue,
            }
            // A link that comes to be and brings nothing is no better than none.
            if shared.was_heard() {
                failures = 0;
            }
            let lost_at = shared.lost_at();
            if failures > 0 {
                if Instant::now() >= lost_at {
                    // Also a node that agrees to a link each time and then brings nothing.
                    shared.lose();
                    failures = 0;
                    continue;
                }
                let next = Instant::now() + backoff(shared.options.retry, failures);
                tokio::time::timeout_at(next.min(lost_at), shared.changed.notified()).await.ok();
            }
            failures += 1;
            let attempt = tokio::time::timeout(shared.options.connect, shared.dial()).await;
            let Err(error) = attempt.unwrap_or_else(|_| Err(Error::timeout("there was no answer in time"))) else {
                continue;
            };
            tracing::debug!(node = %shared.peer, %error, "a link does not come to be");
            if error.code == Code::Unimplemented {
                shared.hand_over().await;
            } else if Instant::now() >= lost_at {
                shared.lose();
            }
        }
    };
    cancel.run_until_cancelled(keep).await;
    shared.close(Dropped::SenderGone);
}

/// The time before the next attempt: doubled each time, and a part of it by chance, so that two that
/// dial each other do not meet again and again.
fn backoff([first, longest]: [Duration; 2], failures: u32) -> Duration {
    let pause = first.saturating_mul(1 << failures.min(16)).min(longest);
    pause.mul_f64(rand::random_range(0.5..1.0))
}

/// What goes out over one link.
struct Outbound<T: Ticket> {
    shared: Arc<Shared<T>>,
    link: LinkId,
}

impl<T: Ticket> Stream for Outbound<T> {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        self.shared.poll_frame(self.link, context)
    }
}

impl<T: Ticket> Drop for Outbound<T> {
    /// The transport has let go of it: the other side is gone.
    fn drop(&mut self) {
        self.shared.over(self.link);
    }
}

/// Takes what comes in over one link.
async fn read<T: Ticket>(shared: Arc<Shared<T>>, link: LinkId, mut frames: Values<Frame>, ended: CancellationToken) {
    while let Some(Some(frame)) = ended.run_until_cancelled(frames.next()).await {
        match frame.and_then(|frame| shared.take(link, frame)) {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(node = %shared.peer, %error, "a link is over");
                if matches!(error.code, Code::Rejected | Code::Exhausted | Code::Bug) {
                    shared.deliver.refused(shared.peer, &error);
                }
                break;
            }
        }
    }
    shared.over(link);
}

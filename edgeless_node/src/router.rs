//! The node's router: from an instance to another, here or elsewhere.
//!
//! ```text
//!  Outputs --+-> row of the component -> instance --+-> mailbox, if it runs here
//!  peers ----+                                      +-> peer, if it runs elsewhere
//! ```
//! What comes for an instance that has moved is still taken from its mailbox, and [forwarded](Router::forward).
//! Tables are read without a lock. Every event that gets lost is counted with its cause, and every
//! call gets an answer: a reply, an error, or the end of its time.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use edgeless_api::component::Row;
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::{ComponentId, Error, Event, EventId, InstanceId, NodeId, Url};
use tokio::sync::{Semaphore, oneshot};
use uuid::Uuid;

use crate::books::Entry;
use crate::calls::{Answer, Calls, Expected, Taken};
use crate::delivery::Receipt;
use crate::event::{Cause, EventKind, Incoming, Payload};
use crate::fate::{Fate, Ticket};
use crate::mailbox::{Delivery, Mailbox, Replier, Told};
use crate::metrics::{Dropped, Metrics};
use crate::peer::{self, Deliver, Link, Peers, Settler, session};
use crate::requests::Requests;
use crate::rows::{Patience, RowCell, Rows, WAKE_AGAIN};

/// How long things may take and how large they may be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a sender waits for room in the mailbox of its target.
    pub emit_wait: Duration,
    /// How long an event waits for a target that is on its way to another place; at least as long as `emit_wait`.
    pub move_wait: Duration,
    /// How long a caller waits for a reply.
    pub call_timeout: Duration,
    /// The largest payload, bytes.
    pub max_payload: usize,
    /// The payloads that wait for one component, or for one other node, bytes.
    pub queued: usize,
    /// How long another node may be out of reach before what is on its way to it is given up.
    pub peer_lost_after: Duration,
}

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The output leads nowhere.
    #[error("the output '{0}' leads nowhere")]
    Unmapped(String),
    /// The target answered with an error, or failed while it had the call in hand.
    #[error("the target failed")]
    Failed,
    /// The time was up.
    #[error("the target did not answer in time")]
    Timeout,
    /// The target has more to do than it can take.
    #[error("the target is overloaded")]
    Overloaded,
    /// The target cannot be reached.
    #[error("the target cannot be reached: {0}")]
    Unreachable(Dropped),
    /// The caller is being stopped.
    #[error("the caller is being stopped")]
    Stopping,
}

impl From<Dropped> for CallError {
    fn from(cause: Dropped) -> Self {
        match cause {
            Dropped::MailboxFull | Dropped::SelfFull | Dropped::HeldFull | Dropped::OutboxFull => Self::Overloaded,
            Dropped::TargetFailed => Self::Failed,
            Dropped::Expired => Self::Timeout,
            cause => Self::Unreachable(cause),
        }
    }
}

/// Replies that wait until it is known where their callers are.
const REPLIES: usize = 256;

/// What an output leads to.
#[derive(Clone, Debug)]
pub enum Route {
    /// A component, wherever it runs.
    Row(Arc<RowCell>),
    /// One instance.
    Instance(InstanceId),
}

/// The router of one node.
#[derive(Debug)]
pub struct Router {
    node: NodeId,
    options: Options,
    metrics: Arc<Metrics>,
    mailboxes: papaya::HashMap<Uuid, Mailbox>,
    rows: Rows,
    outgoing: Arc<Outgoing>,
    peers: Arc<Peers<Sent>>,
    requests: OnceLock<Arc<Requests>>,
    replies: Arc<Semaphore>,
    me: Weak<Self>,
    runtime: tokio::runtime::Handle,
}

/// What the tickets of events on their way to other nodes share.
#[derive(Debug)]
struct Outgoing {
    calls: Calls,
    metrics: Arc<Metrics>,
}

/// An event on its way to another node: who is told its fate, and the call that it is.
#[derive(Debug)]
pub struct Sent {
    teller: Teller,
    call: Option<u64>,
    outgoing: Arc<Outgoing>,
}

/// Who is told the fate of an event that is on another node.
#[derive(Debug)]
enum Teller {
    /// The books of an output of this node.
    Books(Entry),
    /// The outbox of a component of this node.
    Outbox(Receipt),
    /// Another node, which it was forwarded for: seldom, and large.
    Node(Box<Settler>),
    /// Nobody.
    Nobody,
}

impl From<Told> for Teller {
    fn from(told: Told) -> Self {
        match told {
            Told::Here(entry) => Self::Books(entry),
            Told::Outbox(receipt) => Self::Outbox(receipt),
            Told::There(settler) => Self::Node(Box::new(settler)),
            Told::Nobody => Self::Nobody,
        }
    }
}

impl Ticket for Sent {
    fn settle(self, fate: Fate) {
        let cause = match fate {
            Fate::Handled | Fate::HandedOver => None,
            Fate::Expired => Some(Dropped::Expired),
            Fate::Dropped(cause) => Some(cause),
            Fate::Unknown => Some(Dropped::PeerLost),
        };
        // Whatever else was dropped is counted where that was.
        if cause == Some(Dropped::PeerLost) {
            self.outgoing.metrics.drop_event(Dropped::PeerLost);
        }
        if let Some((stream, cause)) = self.call.zip(cause) {
            self.outgoing.calls.fail(stream, cause);
        }
        match self.teller {
            Teller::Books(entry) => entry.settle(fate),
            Teller::Outbox(receipt) => receipt.settle(fate),
            Teller::Node(settler) => settler.settle(fate),
            Teller::Nobody => {}
        }
    }
}

/// What comes from other nodes over their links.
struct FromPeers(Weak<Router>);

impl Deliver for FromPeers {
    fn deliver(&self, from: NodeId, event: Event, settler: Settler) {
        if let Some(router) = self.0.upgrade() {
            router.take(from, event, settler);
        }
    }

    fn reply(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Reply) {
        if let Some(router) = self.0.upgrade() {
            router.take_reply(callee, caller, stream, reply);
        }
    }

    fn refused(&self, from: NodeId, error: &Error) {
        tracing::warn!(node = %from, %error, "a node breaks the protocol of links");
        if let Some(router) = self.0.upgrade() {
            router.metrics.refuse_event();
        }
    }
}

impl Router {
    /// A router that knows nobody yet. Must be called in the tokio runtime of the node.
    pub fn new(node: NodeId, options: Options, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new_cyclic(|me| {
            let session = session::Options {
                max_payload: options.max_payload,
                queue_bytes: options.queued,
                ..session::Options::default()
            };
            let links = peer::Options {
                session,
                emit_wait: options.emit_wait,
                lost_after: options.peer_lost_after,
                ..peer::Options::default()
            };
            Self {
                node,
                options,
                metrics: metrics.clone(),
                mailboxes: papaya::HashMap::new(),
                rows: Rows::default(),
                outgoing: Arc::new(Outgoing { calls: Calls::default(), metrics }),
                peers: Arc::new(Peers::new(node, links, Arc::new(FromPeers(me.clone())))),
                requests: OnceLock::new(),
                replies: Arc::new(Semaphore::new(REPLIES)),
                me: me.clone(),
                runtime: tokio::runtime::Handle::current(),
            }
        })
    }

    /// Starts a task where the node's tasks run, whoever asks for it: guests that burn their time run
    /// elsewhere.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// The node that this is the router of.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How long things may take.
    pub fn options(&self) -> Options {
        self.options
    }

    /// What the node measures.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Lets events reach an instance.
    pub fn add_mailbox(&self, instance: Uuid, mailbox: Mailbox) {
        self.mailboxes.pin().insert(instance, mailbox);
    }

    /// Lets no more events reach an instance.
    pub fn remove_mailbox(&self, instance: Uuid) {
        self.mailboxes.pin().remove(&instance);
    }

    /// Lets it ask the orchestrator; before, what runs nowhere is not woken and unknown nodes stay unknown.
    pub fn set_requests(&self, requests: Arc<Requests>) {
        // There is one orchestrator: a second one changes nothing.
        self.requests.get_or_init(|| requests);
    }

    /// Where a component runs, as far as that is known.
    pub fn row(&self, component: ComponentId) -> Arc<RowCell> {
        self.rows.of(component)
    }

    /// Learns where a component runs, and where the nodes are. A row older than the one known changes
    /// nothing.
    pub fn set_row(&self, mut row: Row) -> Arc<RowCell> {
        let addresses = std::mem::take(&mut row.addresses);
        // First: whoever finds an instance in the row finds its node.
        self.learn(&addresses);
        self.rows.set(row).0
    }

    /// Learns where a component runs if anything here leads to it. Whether it was news.
    pub fn update_row(&self, mut row: Row) -> bool {
        let addresses = std::mem::take(&mut row.addresses);
        if !self.is_needed(row.component) {
            return false;
        }
        self.learn(&addresses);
        self.rows.update(row)
    }

    /// Whether anything here leads to a component, or it runs here.
    pub fn is_needed(&self, component: ComponentId) -> bool {
        self.rows.is_needed(component)
    }

    /// Forgets where components run, and the epochs of that.
    pub fn clear_rows(&self) {
        self.rows.clear();
    }

    fn learn(&self, addresses: &BTreeMap<NodeId, Url>) {
        for (node, url) in addresses {
            if let Err(error) = self.add_peer(*node, url) {
                tracing::warn!(%node, %url, %error, "a node that a component runs on cannot be reached");
            }
        }
    }

    /// Learns of a node. This node itself is never its own peer.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn add_peer(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        if node == self.node { Ok(()) } else { self.peers.add(node, url) }
    }

    /// Forgets a node; whoever waits for a reply from it gets an error.
    pub fn remove_peer(&self, node: NodeId) {
        self.peers.remove(node);
        self.outgoing.calls.fail_all(node);
    }

    /// Forgets all nodes.
    pub fn clear_peers(&self) {
        for node in self.peers.nodes() {
            self.remove_peer(node);
        }
    }

    /// The other nodes that are known: what serves their links.
    pub fn peers(&self) -> &Arc<Peers<Sent>> {
        &self.peers
    }

    /// Counts an event that got lost.
    pub fn count(&self, cause: Dropped) {
        self.metrics.drop_event(cause);
    }

    /// The end of the wait for what is on its way to another place, if the wait begins now.
    pub fn moved_by(&self) -> Instant {
        Instant::now() + self.options.move_wait.max(self.options.emit_wait)
    }

    /// Where an event to a component goes. Waits a while for one that runs nowhere, and has it started; until
    /// `moved_by` for one that is on its way to another place; never longer than the deadline of the event.
    async fn resolve(
        &self,
        cell: &RowCell,
        moved_by: Instant,
        deadline: Option<Instant>,
        pick: impl Fn() -> Option<InstanceId>,
    ) -> Result<InstanceId, Dropped> {
        let mut patience = Patience::new(Instant::now(), self.options.emit_wait, moved_by);
        loop {
            let changed = cell.changed();
            if let Some(id) = pick() {
                return Ok(id);
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Err(Dropped::Expired);
            }
            let until = patience.until(now, cell.is_moving());
            if until <= now {
                tracing::debug!(component = %cell.component(), "an event found no instance of its target");
                return Err(Dropped::NoInstance);
            }
            if let Some(requests) = self.requests.get().filter(|_| cell.wants_waking(now)) {
                requests.wake(cell.component());
            }
            // A request may have been lost.
            let look = until.min(now + WAKE_AGAIN);
            let look = deadline.map_or(look, |deadline| deadline.min(look));
            tokio::time::timeout_at(look.into(), changed).await.ok();
        }
    }

    /// Sends an event that needs no answer.
    ///
    /// # Errors
    /// It got lost; that is counted, and its entry closed.
    pub async fn cast(
        &self,
        source: InstanceId,
        route: &Route,
        entry: Entry,
        payload: Payload,
        cause: Cause,
    ) -> Result<(), Dropped> {
        let told = Told::Here(entry);
        let cause = Cause { deadline: None, ..cause };
        let sending = Sending { source, told, payload, kind: EventKind::Cast, cause, reply: None, id: None };
        self.send(route, sending).await.map(|_| ())
    }

    /// Sends an event that is kept until it is handled, and that its target knows a repeat of by its id.
    ///
    /// # Errors
    /// It did not arrive, as its receipt was told.
    pub async fn cast_kept(
        &self,
        source: InstanceId,
        route: &Route,
        receipt: Receipt,
        payload: Payload,
        cause: Cause,
        id: EventId,
    ) -> Result<(), Dropped> {
        let told = Told::Outbox(receipt);
        let id = Some(Box::new(id));
        let sending = Sending { source, told, payload, kind: EventKind::Cast, cause, reply: None, id };
        // It is not lost yet, and not counted as such.
        match self.send_now(route, sending) {
            Ok(sent) => sent,
            Err(waits) => Box::pin(self.send_later(*waits)).await.map(|_| ()),
        }
    }

    /// Sends an event and waits for the reply, until the deadline of its cause or the limit of this
    /// node, whichever is first.
    ///
    /// # Errors
    /// There is no reply.
    pub async fn call(
        &self,
        source: InstanceId,
        route: &Route,
        entry: Entry,
        payload: Payload,
        cause: Cause,
    ) -> Result<Option<Payload>, CallError> {
        let limit = Instant::now() + self.options.call_timeout;
        let deadline = cause.deadline.map_or(limit, |deadline| deadline.min(limit));
        let cause = Cause { deadline: Some(deadline), ..cause };
        let (sender, reply) = oneshot::channel();
        let (told, reply_to) = (Told::Here(entry), Some(sender));
        let sending = Sending { source, told, payload, kind: EventKind::Call, cause, reply: reply_to, id: None };
        let answered = async {
            // Keeps the call known until it is answered or given up.
            let _expected = self.send(route, sending).await?;
            reply.await.map_err(|_| CallError::Failed)
        };
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(CallError::Timeout),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Err(cause))) => Err(cause.into()),
            Ok(Ok(Ok(Reply::Message(payload)))) => Ok(Some(payload)),
            Ok(Ok(Ok(Reply::Empty))) => Ok(None),
            Ok(Ok(Ok(Reply::Error))) => Err(CallError::Failed),
        }
    }

    /// Sends an event on its way. What it is kept small for: mostly nothing has to be waited for.
    async fn send(&self, route: &Route, sending: Sending) -> Result<Option<Expected<'_>>, Dropped> {
        let sent = match self.send_now(route, sending) {
            Ok(sent) => sent.map(|()| None),
            Err(waits) => Box::pin(self.send_later(*waits)).await,
        };
        // That a node is lost its ticket counts, whenever it is.
        sent.inspect_err(|cause| {
            if *cause != Dropped::PeerLost {
                self.count(*cause)
            }
        })
    }

    /// Sends an event as far as that takes no waiting.
    fn send_now(&self, route: &Route, sending: Sending) -> Result<Result<(), Dropped>, Box<Waits>> {
        if sending.payload.len() > self.options.max_payload {
            return Ok(Err(refuse(sending.told, Dropped::TooLarge)));
        }
        let target = match route {
            Route::Instance(target) => *target,
            Route::Row(cell) => match cell.pick(sending.source, &sending.payload) {
                Some(target) => target,
                None => return Err(Box::new(Waits::Instance(cell.clone(), sending))),
            },
        };
        if target.node == self.node { self.put(target, sending) } else { Err(Box::new(Waits::Peer(target, sending))) }
    }

    /// Puts an event into a mailbox of this node.
    fn put(&self, target: InstanceId, sending: Sending) -> Result<Result<(), Dropped>, Box<Waits>> {
        let Some(mailbox) = self.mailbox(target.function) else {
            return Ok(Err(refuse(sending.told, Dropped::UnknownTarget)));
        };
        let Sending { source, told: fate, payload, kind, cause, reply, id } = sending;
        let incoming = Incoming { source, kind, payload, cause, id };
        let reply = reply.map(Replier::here);
        let delivery = Delivery { incoming, sent: Instant::now(), reply, fate };
        if source == target {
            return Ok(mailbox.put_own(delivery));
        }
        mailbox.try_put(delivery).map_err(|delivery| Box::new(Waits::Room(mailbox, delivery)))
    }

    async fn send_later(&self, waits: Waits) -> Result<Option<Expected<'_>>, Dropped> {
        match waits {
            Waits::Room(mailbox, delivery) => mailbox.put_later(*delivery, self.options.emit_wait).await.map(|()| None),
            Waits::Peer(target, sending) => self.send_to_peer(target, sending).await,
            // What is about to move takes along what it sends to itself: it would wait for its own end.
            Waits::Instance(cell, sending) if cell.is_left(sending.source) => match self.put(sending.source, sending) {
                Ok(sent) => sent.map(|()| None),
                Err(waits) => Box::pin(self.send_later(*waits)).await,
            },
            Waits::Instance(cell, sending) => {
                let pick = || cell.pick(sending.source, &sending.payload);
                match self.resolve(&cell, self.moved_by(), sending.cause.deadline, pick).await {
                    Err(cause) => Err(refuse(sending.told, cause)),
                    Ok(target) if target.node != self.node => self.send_to_peer(target, sending).await,
                    Ok(target) => match self.put(target, sending) {
                        Ok(sent) => sent.map(|()| None),
                        Err(waits) => Box::pin(self.send_later(*waits)).await,
                    },
                }
            }
        }
    }

    async fn send_to_peer(&self, target: InstanceId, sending: Sending) -> Result<Option<Expected<'_>>, Dropped> {
        let Sending { source, told, payload, cause, reply, id, .. } = sending;
        let id = id.map(|id| *id);
        let expected = reply.map(|reply| self.outgoing.calls.expect(source, target, reply));
        let kind = match &expected {
            None => Kind::Cast(payload),
            Some(expected) => {
                let remaining = cause.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                Kind::Call { payload, stream: expected.stream(), remaining }
            }
        };
        let event = Event { source, target, kind, created: SystemTime::now(), trace: cause.trace, id };
        let call = expected.as_ref().map(Expected::stream);
        let sent = Sent { teller: told.into(), call, outgoing: self.outgoing.clone() };
        self.send_event(event, sent).await.map(|()| expected)
    }

    async fn send_event(&self, event: Event, sent: Sent) -> Result<(), Dropped> {
        let link = match self.peers.get(event.target.node) {
            Ok(link) => Ok(link),
            Err(cause) => Box::pin(self.locate(event.target.node)).await.ok_or(cause),
        };
        match link {
            Ok(link) => link.send(event, sent).await,
            Err(cause) => {
                sent.settle(Fate::Dropped(cause));
                Err(cause)
            }
        }
    }

    /// The way to a node that was not known.
    async fn locate(&self, node: NodeId) -> Option<Link<Sent>> {
        let requests = self.requests.get().filter(|_| node != self.node)?;
        let url = tokio::time::timeout(self.options.emit_wait, requests.locate(node)).await.ok()??;
        self.add_peer(node, &url).ok()?;
        self.peers.get(node).ok()
    }

    /// Where an event goes that has come for an instance that is gone: another one of its component. If that
    /// is on its way to another place, the event waits until `moved_by`.
    ///
    /// # Errors
    /// There was none in time.
    pub async fn another(
        &self,
        row: &RowCell,
        gone: Uuid,
        event: &Incoming,
        moved_by: Instant,
    ) -> Result<InstanceId, Dropped> {
        let deadline = event.cause.deadline;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Dropped::Expired);
        }
        self.resolve(row, moved_by, deadline, || row.pick_other(gone, event.source, &event.payload)).await
    }

    /// Passes on an event to [another](Self::another) instance. Whoever sent it learns what becomes of it in
    /// the end, and gets the reply if it was a call.
    pub async fn forward(&self, target: InstanceId, delivery: Delivery) {
        let sent = match target.node == self.node {
            false => self.forward_to_peer(target, delivery).await,
            true => match self.mailbox_for(target, delivery) {
                Ok((mailbox, delivery)) => mailbox.put(delivery, self.options.emit_wait).await,
                Err(cause) => Err(cause),
            },
        };
        match sent {
            // That a node is lost its ticket counts, whenever it is.
            Ok(()) | Err(Dropped::PeerLost) => {}
            Err(cause) => self.count(cause),
        }
    }

    async fn forward_to_peer(&self, target: InstanceId, delivery: Delivery) -> Result<(), Dropped> {
        let Delivery { incoming, sent, reply, fate } = delivery;
        let Incoming { source, kind: _, payload, cause, id } = incoming;
        let mut call = None;
        let kind = match reply {
            None => Kind::Cast(payload),
            Some(replier) => {
                let deadline = cause.deadline.unwrap_or_else(|| Instant::now() + self.options.call_timeout);
                let stream = self.expect_for(replier, source, target, deadline);
                call = Some(stream);
                Kind::Call { payload, stream, remaining: Some(deadline.saturating_duration_since(Instant::now())) }
            }
        };
        let now = SystemTime::now();
        let created = now.checked_sub(sent.elapsed()).unwrap_or(now);
        let event = Event { source, target, kind, created, trace: cause.trace, id: id.map(|id| *id) };
        self.send_event(event, Sent { teller: fate.into(), call, outgoing: self.outgoing.clone() }).await
    }

    /// Expects the reply to a call that is forwarded, and passes it on to the caller.
    fn expect_for(&self, replier: Replier, source: InstanceId, target: InstanceId, deadline: Instant) -> u64 {
        let outgoing = self.outgoing.clone();
        let (sender, answer) = oneshot::channel();
        // The reply comes back over the link, to this node.
        let caller = InstanceId { node: self.node, function: source.function };
        let stream = outgoing.calls.expect_until(caller, target, sender);
        self.spawn(async move {
            match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(Ok(Ok(reply))) => replier.send(reply),
                Ok(Ok(Err(cause))) => replier.refuse(cause),
                Ok(Err(_)) => replier.send(Reply::Error),
                Err(_) => replier.refuse(Dropped::Expired),
            }
            outgoing.calls.forget(stream);
        });
        stream
    }

    /// Takes an event from an EDGELESS 1.x node. Returns when it is in its mailbox, or lost and counted.
    ///
    /// # Errors
    /// It is not for this node.
    pub async fn accept(&self, event: Event) -> Result<(), Error> {
        if event.target.node != self.node {
            self.metrics.refuse_event();
            return Err(Error::rejected(format!("this is {:?}, the event is for {:?}", self.node, event.target.node)));
        }
        let (from, target) = (event.source.node, event.target);
        if let Some(delivery) = self.delivery(from, event, Told::Nobody) {
            let put = match self.mailbox_for(target, delivery) {
                Ok((mailbox, delivery)) => mailbox.put(delivery, self.options.emit_wait).await,
                Err(cause) => Err(cause),
            };
            // The sender did what it could; what is lost here is counted here.
            put.unwrap_or_else(|cause| self.count(cause));
        }
        Ok(())
    }

    /// Takes an event that came over a link, and waits for nothing: its sender was granted the room.
    fn take(&self, from: NodeId, event: Event, settler: Settler) {
        let target = event.target;
        if let Some(delivery) = self.delivery(from, event, Told::There(settler)) {
            let put = match self.mailbox_for(target, delivery) {
                Ok((mailbox, delivery)) => mailbox.put_granted(delivery),
                Err(cause) => Err(cause),
            };
            put.unwrap_or_else(|cause| self.count(cause));
        }
    }

    fn take_reply(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Reply) {
        if self.outgoing.calls.take(callee, caller, stream, reply) == Taken::Forged {
            self.metrics.refuse_event();
        }
    }

    /// An event of another node as a handler will see it; a reply is taken at once. The node that sends it
    /// gets the reply to a call, also if it passes it on for another.
    fn delivery(&self, from: NodeId, event: Event, fate: Told) -> Option<Delivery> {
        let Event { source, target, kind, created, trace, id } = event;
        let (kind, payload, deadline, reply) = match kind {
            Kind::Reply { reply, stream } => {
                self.take_reply(source, target, stream, reply);
                return None;
            }
            Kind::Cast(payload) => (EventKind::Cast, payload, None, None),
            Kind::Call { payload, stream, remaining } => {
                let time = remaining.unwrap_or(self.options.call_timeout).min(self.options.call_timeout);
                let caller = InstanceId { node: from, function: source.function };
                let reply = Replier::elsewhere(self.me.clone(), target, caller, stream, trace);
                (EventKind::Call, payload, Some(Instant::now() + time), Some(reply))
            }
        };
        let incoming = Incoming { source, kind, payload, cause: Cause { trace, deadline }, id: id.map(Box::new) };
        Some(Delivery { incoming, sent: made(created), reply, fate })
    }

    fn mailbox_for(&self, target: InstanceId, delivery: Delivery) -> Result<(Mailbox, Delivery), Dropped> {
        let found = match self.mailbox(target.function) {
            Some(_) if delivery.incoming.payload.len() > self.options.max_payload => Err(Dropped::TooLarge),
            Some(mailbox) => Ok(mailbox),
            None => Err(Dropped::UnknownTarget),
        };
        match found {
            Ok(mailbox) => Ok((mailbox, delivery)),
            Err(cause) => {
                delivery.lose(cause);
                Err(cause)
            }
        }
    }

    /// Sends the reply to a call of another node. Waits for nothing; what gets lost is counted.
    pub fn reply(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Reply, trace: Trace) {
        let send = move |link: Link<Sent>| link.reply(callee.function, caller.function, stream, reply, trace);
        match self.peers.get(caller.node) {
            Ok(link) => send(link).unwrap_or_else(|cause| self.count(cause)),
            Err(cause) => self.reply_later(caller.node, cause, send),
        }
    }

    /// Sends a reply once it is known where its caller is; otherwise it is lost for this cause.
    fn reply_later(
        &self,
        caller: NodeId,
        cause: Dropped,
        send: impl FnOnce(Link<Sent>) -> Result<(), Dropped> + Send + 'static,
    ) {
        let place = self.requests.get().and_then(|_| self.replies.clone().try_acquire_owned().ok());
        let (Some(place), Some(me)) = (place, self.me.upgrade()) else { return self.count(cause) };
        self.spawn(async move {
            let sent = me.locate(caller).await.ok_or(cause).and_then(send);
            sent.unwrap_or_else(|cause| me.count(cause));
            drop(place);
        });
    }

    fn mailbox(&self, instance: Uuid) -> Option<Mailbox> {
        self.mailboxes.pin().get(&instance).cloned()
    }
}

/// An event that is being sent.
#[derive(Debug)]
struct Sending {
    source: InstanceId,
    told: Told,
    payload: Payload,
    kind: EventKind,
    cause: Cause,
    reply: Option<oneshot::Sender<Answer>>,
    id: Option<Box<EventId>>,
}

/// What an event waits for before it is on its way.
#[derive(Debug)]
enum Waits {
    /// For its target to run somewhere.
    Instance(Arc<RowCell>, Sending),
    /// For room in the mailbox of its target.
    Room(Mailbox, Box<Delivery>),
    /// For its way to another node.
    Peer(InstanceId, Sending),
}

/// A moment on another node's clock, by the clock of this one.
fn made(created: SystemTime) -> Instant {
    let now = Instant::now();
    now.checked_sub(created.elapsed().unwrap_or_default()).unwrap_or(now)
}

/// Says that an event is lost.
fn refuse(told: Told, cause: Dropped) -> Dropped {
    told.settle(if cause == Dropped::Expired { Fate::Expired } else { Fate::Dropped(cause) });
    cause
}

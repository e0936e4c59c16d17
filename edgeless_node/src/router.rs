//! The node's router: from an instance to another, here or elsewhere.
//!
//! ```text
//!  Outputs --+-> row of the component -> instance --+-> mailbox, if it runs here
//!  peers ----+                                      +-> peer, if it runs elsewhere
//! ```
//! Tables are read without a lock. Every event that gets lost is counted with its cause, and every
//! call gets an answer: a reply, an error, or the end of its time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use edgeless_api::component::Row;
use edgeless_api::event::{Kind, Reply};
use edgeless_api::{ComponentId, Error, Event, InstanceId, NodeId, Url};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use crate::books::Entry;
use crate::calls::{Calls, Expected, Taken};
use crate::event::{Cause, EventKind, Incoming, Payload};
use crate::fate::{Fate, Ticket};
use crate::mailbox::{Delivery, Mailbox, Replier, Told};
use crate::metrics::{Dropped, Metrics};
use crate::peer::{self, Peers};

/// How long things may take and how large they may be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a sender waits for room in the mailbox of its target.
    pub emit_wait: Duration,
    /// How long a caller waits for a reply.
    pub call_timeout: Duration,
    /// The largest payload, bytes.
    pub max_payload: usize,
    /// The payloads that wait for one component, or for one other node, bytes.
    pub queued: usize,
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
            Dropped::MailboxFull | Dropped::SelfFull | Dropped::HeldFull => Self::Overloaded,
            Dropped::TargetFailed => Self::Failed,
            Dropped::Expired => Self::Timeout,
            cause => Self::Unreachable(cause),
        }
    }
}

/// Where a component runs at present; shared by all outputs that lead to it.
#[derive(Debug)]
pub struct RowCell {
    component: ComponentId,
    row: ArcSwap<Row>,
    next: AtomicUsize,
    changed: Notify,
}

impl RowCell {
    /// The instance that gets the next event; several take turns.
    fn pick(&self) -> Option<InstanceId> {
        let row = self.row.load();
        match row.instances.as_slice() {
            [] => None,
            [only] => Some(*only),
            several => {
                let turn = self.next.fetch_add(1, Ordering::Relaxed) % several.len();
                several.get(turn).copied()
            }
        }
    }
}

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
    rows: Mutex<HashMap<ComponentId, Weak<RowCell>>>,
    calls: Arc<Calls>,
    peers: Arc<Peers>,
}

impl Router {
    /// A router that knows nobody yet.
    pub fn new(node: NodeId, options: Options, metrics: Arc<Metrics>) -> Arc<Self> {
        let calls = Arc::new(Calls::default());
        let Options { emit_wait, max_payload, queued, .. } = options;
        let waiting = peer::Options { max_payload, emit_wait, queued };
        let peers = Peers::new(calls.clone(), metrics.clone(), waiting);
        Arc::new(Self {
            node,
            options,
            metrics,
            mailboxes: papaya::HashMap::new(),
            rows: Mutex::default(),
            calls,
            peers: Arc::new(peers),
        })
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

    /// Learns where a component runs. A row older than the one known changes nothing.
    pub fn set_row(&self, row: Row) -> Arc<RowCell> {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = rows.get(&row.component).and_then(Weak::upgrade) {
            if row.epoch >= cell.row.load().epoch {
                cell.row.store(Arc::new(row));
                cell.changed.notify_waiters();
            }
            return cell;
        }
        rows.retain(|_, cell| cell.strong_count() > 0);
        let component = row.component;
        let cell = Arc::new(RowCell {
            component,
            row: ArcSwap::from_pointee(row),
            next: AtomicUsize::new(0),
            changed: Notify::new(),
        });
        rows.insert(component, Arc::downgrade(&cell));
        cell
    }

    /// Learns of a node. This node itself is never its own peer.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn add_peer(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        if node == self.node { Ok(()) } else { self.peers.add(node, url) }
    }

    /// The other nodes that are known.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Counts an event that got lost.
    pub fn count(&self, cause: Dropped) {
        self.metrics.drop_event(cause);
    }

    /// Where the next event to a component goes. Waits a while for one that runs nowhere.
    async fn resolve(&self, cell: &RowCell) -> Result<InstanceId, Dropped> {
        let wait = async {
            loop {
                let changed = cell.changed.notified();
                if let Some(id) = cell.pick() {
                    return id;
                }
                changed.await;
            }
        };
        tokio::time::timeout(self.options.emit_wait, wait).await.map_err(|_| {
            tracing::debug!(component = %cell.component, "an event found no instance of its target");
            Dropped::NoInstance
        })
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
        let sending = Sending { source, entry, payload, kind: EventKind::Cast, cause, reply: None };
        self.send(route, Sending { cause: Cause { deadline: None, ..cause }, ..sending }).await.map(|_| ())
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
        let sending = Sending { source, entry, payload, kind: EventKind::Call, cause, reply: Some(sender) };
        let answered = async {
            // Keeps the call known until it is answered or given up.
            let _expected = self.send(route, sending).await?;
            reply.await.map_err(|_| CallError::Failed)
        };
        match tokio::time::timeout_at(deadline.into(), answered).await {
            Err(_) => Err(CallError::Timeout),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Reply::Message(payload))) => Ok(Some(payload)),
            Ok(Ok(Reply::Empty)) => Ok(None),
            Ok(Ok(Reply::Error)) => Err(CallError::Failed),
        }
    }

    /// Sends an event on its way. What it is kept small for: mostly nothing has to be waited for.
    async fn send(&self, route: &Route, sending: Sending) -> Result<Option<Expected<'_>>, Dropped> {
        let sent = match self.send_now(route, sending) {
            Ok(sent) => sent.map(|()| None),
            Err(waits) => Box::pin(self.send_later(waits)).await,
        };
        sent.inspect_err(|cause| self.count(*cause))
    }

    /// Sends an event as far as that takes no waiting.
    fn send_now(&self, route: &Route, sending: Sending) -> Result<Result<(), Dropped>, Waits> {
        if sending.payload.len() > self.options.max_payload {
            return Ok(Err(refuse(sending.entry, Dropped::TooLarge)));
        }
        let target = match route {
            Route::Instance(target) => *target,
            Route::Row(cell) => match cell.pick() {
                Some(target) => target,
                None => return Err(Waits::ForAnInstance(cell.clone(), sending)),
            },
        };
        if target.node == self.node { self.put(target, sending) } else { Err(Waits::ForAPeer(target, sending)) }
    }

    /// Puts an event into a mailbox of this node.
    fn put(&self, target: InstanceId, sending: Sending) -> Result<Result<(), Dropped>, Waits> {
        let Some(mailbox) = self.mailbox(target.function) else {
            return Ok(Err(refuse(sending.entry, Dropped::UnknownTarget)));
        };
        let Sending { source, entry, payload, kind, cause, reply } = sending;
        let incoming = Incoming { source, kind, payload, cause };
        let (reply, fate) = (reply.map(Replier::here), Told::Here(entry));
        let delivery = Delivery { incoming, sent: Instant::now(), reply, fate };
        if source == target {
            return Ok(mailbox.put_own(delivery));
        }
        mailbox.try_put(delivery).map_err(|delivery| Waits::ForRoom(mailbox, delivery))
    }

    async fn send_later(&self, waits: Waits) -> Result<Option<Expected<'_>>, Dropped> {
        match waits {
            Waits::ForRoom(mailbox, delivery) => {
                mailbox.put_later(delivery, self.options.emit_wait).await.map(|()| None)
            }
            Waits::ForAPeer(target, sending) => self.send_to_peer(target, sending).await,
            Waits::ForAnInstance(cell, sending) => match self.resolve(&cell).await {
                Err(cause) => Err(refuse(sending.entry, cause)),
                Ok(target) if target.node != self.node => self.send_to_peer(target, sending).await,
                Ok(target) => match self.put(target, sending) {
                    Ok(sent) => sent.map(|()| None),
                    Err(waits) => Box::pin(self.send_later(waits)).await,
                },
            },
        }
    }

    async fn send_to_peer(&self, target: InstanceId, sending: Sending) -> Result<Option<Expected<'_>>, Dropped> {
        let Sending { source, entry, payload, cause, reply, .. } = sending;
        let peer = match self.peers.get(target.node) {
            Ok(peer) => peer,
            Err(cause) => return Err(refuse(entry, cause)),
        };
        let expected = reply.map(|reply| self.calls.expect(source, target, reply));
        let kind = match &expected {
            None => Kind::Cast(payload),
            Some(expected) => {
                let remaining = cause.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
                Kind::Call { payload, stream: expected.stream(), remaining }
            }
        };
        let event = Event { source, target, kind, created: SystemTime::now(), trace: cause.trace };
        peer.send(event, entry).await.map(|()| expected)
    }

    /// Takes an event from another node.
    ///
    /// # Errors
    /// It is not for this node.
    pub async fn accept(&self, event: Event) -> Result<(), Error> {
        if event.target.node != self.node {
            self.metrics.refuse_event();
            return Err(Error::rejected(format!("this is {:?}, the event is for {:?}", self.node, event.target.node)));
        }
        let (incoming, reply) = match event.kind {
            Kind::Reply { reply, stream } => {
                if self.calls.take(event.source, event.target, stream, reply) == Taken::Forged {
                    self.metrics.refuse_event();
                }
                return Ok(());
            }
            Kind::Cast(payload) => {
                let cause = Cause { trace: event.trace, deadline: None };
                (Incoming { source: event.source, kind: EventKind::Cast, payload, cause }, None)
            }
            Kind::Call { payload, stream, remaining } => {
                let time = remaining.unwrap_or(self.options.call_timeout).min(self.options.call_timeout);
                let cause = Cause { trace: event.trace, deadline: Some(Instant::now() + time) };
                let reply = Replier::elsewhere(self.peers.clone(), event.target, event.source, stream, event.trace);
                (Incoming { source: event.source, kind: EventKind::Call, payload, cause }, Some(reply))
            }
        };
        let put = async {
            if incoming.payload.len() > self.options.max_payload {
                return Err(Dropped::TooLarge);
            }
            let mailbox = self.mailbox(event.target.function).ok_or(Dropped::UnknownTarget)?;
            let delivery = Delivery { incoming, sent: made(event.created), reply, fate: Told::Nobody };
            mailbox.put(delivery, self.options.emit_wait).await
        };
        // The sender did what it could; what is lost here is counted here.
        if let Err(cause) = put.await {
            self.count(cause);
        }
        Ok(())
    }

    fn mailbox(&self, instance: Uuid) -> Option<Mailbox> {
        self.mailboxes.pin().get(&instance).cloned()
    }
}

/// An event that is being sent.
#[derive(Debug)]
struct Sending {
    source: InstanceId,
    entry: Entry,
    payload: Payload,
    kind: EventKind,
    cause: Cause,
    reply: Option<oneshot::Sender<Reply>>,
}

/// What an event waits for before it is on its way.
#[derive(Debug)]
enum Waits {
    ForAnInstance(Arc<RowCell>, Sending),
    ForRoom(Mailbox, Delivery),
    ForAPeer(InstanceId, Sending),
}

/// A moment on another node's clock, by the clock of this one.
fn made(created: SystemTime) -> Instant {
    let now = Instant::now();
    now.checked_sub(created.elapsed().unwrap_or_default()).unwrap_or(now)
}

/// Closes the entry of an event that is lost.
fn refuse(entry: Entry, cause: Dropped) -> Dropped {
    entry.settle(Fate::Dropped(cause));
    cause
}

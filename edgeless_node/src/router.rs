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

    /// Where the next event on a route goes. Waits a while for a component that runs nowhere.
    async fn resolve(&self, route: &Route) -> Result<InstanceId, Dropped> {
        let cell = match route {
            Route::Instance(id) => return Ok(*id),
            Route::Row(cell) => cell,
        };
        if let Some(id) = cell.pick() {
            return Ok(id);
        }
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
        let sent = match self.aim(route, payload.len()).await {
            Err(cause) => Err(refuse(entry, cause)),
            Ok(target) if target.node == self.node => {
                let cause = Cause { deadline: None, ..cause };
                let incoming = Incoming { source, kind: EventKind::Cast, payload, cause };
                self.put(target, incoming, None, entry).await
            }
            Ok(target) => match self.peers.get(target.node) {
                Err(cause) => Err(refuse(entry, cause)),
                Ok(peer) => {
                    let (kind, trace) = (Kind::Cast(payload), cause.trace);
                    peer.send(Event { source, target, kind, created: SystemTime::now(), trace }, entry).await
                }
            },
        };
        sent.inspect_err(|cause| self.count(*cause))
    }

    /// Where the next event on a route goes, if it is not too large.
    async fn aim(&self, route: &Route, size: usize) -> Result<InstanceId, Dropped> {
        if size > self.options.max_payload {
            return Err(Dropped::TooLarge);
        }
        self.resolve(route).await
    }

    /// Puts an event into a mailbox of this node.
    async fn put(
        &self,
        target: InstanceId,
        incoming: Incoming,
        reply: Option<Replier>,
        entry: Entry,
    ) -> Result<(), Dropped> {
        let mailbox = match self.mailbox(target.function) {
            Ok(mailbox) => mailbox,
            Err(cause) => return Err(refuse(entry, cause)),
        };
        let is_own = incoming.source == target;
        let delivery = Delivery { incoming, created: SystemTime::now(), reply, fate: Told::Here(entry) };
        if is_own { mailbox.put_own(delivery) } else { mailbox.put(delivery, self.options.emit_wait).await }
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
        let answered = async {
            // Keeps the call known until it is answered or given up.
            let sent = self.send_call(source, route, entry, payload, cause, sender).await;
            let _expected = sent.inspect_err(|cause| self.count(*cause))?;
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

    async fn send_call(
        &self,
        source: InstanceId,
        route: &Route,
        entry: Entry,
        payload: Payload,
        cause: Cause,
        reply: oneshot::Sender<Reply>,
    ) -> Result<Option<Expected<'_>>, Dropped> {
        let target = match self.aim(route, payload.len()).await {
            Ok(target) => target,
            Err(cause) => return Err(refuse(entry, cause)),
        };
        if target.node == self.node {
            let incoming = Incoming { source, kind: EventKind::Call, payload, cause };
            self.put(target, incoming, Some(Replier::here(reply)), entry).await?;
            return Ok(None);
        }
        let peer = match self.peers.get(target.node) {
            Ok(peer) => peer,
            Err(cause) => return Err(refuse(entry, cause)),
        };
        let expected = self.calls.expect(source, target, reply);
        let remaining = cause.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let kind = Kind::Call { payload, stream: expected.stream(), remaining };
        peer.send(Event { source, target, kind, created: SystemTime::now(), trace: cause.trace }, entry).await?;
        Ok(Some(expected))
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
            let mailbox = self.mailbox(event.target.function)?;
            let delivery = Delivery { incoming, created: event.created, reply, fate: Told::Nobody };
            mailbox.put(delivery, self.options.emit_wait).await
        };
        // The sender did what it could; what is lost here is counted here.
        if let Err(cause) = put.await {
            self.count(cause);
        }
        Ok(())
    }

    fn mailbox(&self, instance: Uuid) -> Result<Mailbox, Dropped> {
        self.mailboxes.pin().get(&instance).cloned().ok_or(Dropped::UnknownTarget)
    }
}

/// Closes the entry of an event that is lost.
fn refuse(entry: Entry, cause: Dropped) -> Dropped {
    entry.settle(Fate::Dropped(cause));
    cause
}

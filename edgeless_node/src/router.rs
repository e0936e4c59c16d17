//! The node's router: from an instance to another, here or elsewhere.
//!
//! ```text
//!  Outputs --+-> row of the component -> instance --+-> mailbox, if it runs here
//!  peers ----+                                      +-> peer, if it runs elsewhere
//! ```
//! Tables are read without a lock. Every event that gets lost is counted with its cause, and every
//! call gets an answer: a reply, an error, or the end of its time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use edgeless_api::component::Row;
use edgeless_api::event::{Kind, Reply};
use edgeless_api::{ComponentId, Error, Event, InstanceId, NodeId, Url};
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use crate::instance::{Cause, EventKind, Incoming, Payload};
use crate::mailbox::{Delivery, Mailbox, Replier};
use crate::metrics::{Dropped, Metrics};
use crate::peer::Peer;

/// How long things may take and how large they may be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a sender waits for room in the mailbox of its target.
    pub emit_wait: Duration,
    /// How long a caller waits for a reply.
    pub call_timeout: Duration,
    /// The largest payload, bytes.
    pub max_payload: usize,
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

/// A call that waits for a reply from another node.
#[derive(Debug)]
struct Pending {
    caller: InstanceId,
    callee: InstanceId,
    reply: oneshot::Sender<Reply>,
}

/// The router of one node.
#[derive(Debug)]
pub struct Router {
    node: NodeId,
    options: Options,
    metrics: Arc<Metrics>,
    mailboxes: papaya::HashMap<Uuid, Mailbox>,
    peers: papaya::HashMap<NodeId, Arc<Peer>>,
    rows: Mutex<HashMap<ComponentId, Weak<RowCell>>>,
    pending: Mutex<HashMap<u64, Pending>>,
    next_stream: AtomicU64,
}

impl Router {
    /// A router that knows nobody yet.
    pub fn new(node: NodeId, options: Options, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            node,
            options,
            metrics,
            mailboxes: papaya::HashMap::new(),
            peers: papaya::HashMap::new(),
            rows: Mutex::default(),
            pending: Mutex::default(),
            // EDGELESS 1.2 nodes take a call for a reply if its number is one of theirs; they count
            // from 1.
            next_stream: AtomicU64::new(rand::random::<u64>() >> 2 | 1 << 61),
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
    pub fn add_peer(self: &Arc<Self>, node: NodeId, url: &Url) -> Result<(), Error> {
        if node == self.node || self.peers.pin().get(&node).is_some_and(|peer| peer.url() == url) {
            return Ok(());
        }
        let peer = Peer::new(Arc::downgrade(self), url, self.options)?;
        self.peers.pin().insert(node, Arc::new(peer));
        Ok(())
    }

    /// Forgets a node; whoever waits for a reply from it gets an error.
    pub fn remove_peer(&self, node: NodeId) {
        self.peers.pin().remove(&node);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, call| call.callee.node != node);
    }

    /// Forgets all nodes.
    pub fn clear_peers(&self) {
        let nodes: Vec<NodeId> = self.peers.pin().keys().copied().collect();
        for node in nodes {
            self.remove_peer(node);
        }
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
    /// It got lost; that is counted.
    pub async fn cast(&self, source: InstanceId, route: &Route, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        let sent = async {
            if payload.len() > self.options.max_payload {
                return Err(Dropped::TooLarge);
            }
            let target = self.resolve(route).await?;
            if target.node != self.node {
                let event =
                    Event { source, target, kind: Kind::Cast(payload), created: SystemTime::now(), trace: cause.trace };
                return self.peer(target.node)?.send(event).await;
            }
            let incoming =
                Incoming { source, kind: EventKind::Cast, payload, cause: Cause { deadline: None, ..cause } };
            let delivery = Delivery { incoming, created: SystemTime::now(), reply: None };
            let mailbox = self.mailbox(target.function)?;
            if target == source {
                mailbox.put_own(delivery)
            } else {
                mailbox.put(delivery, self.options.emit_wait).await
            }
        };
        sent.await.inspect_err(|cause| self.count(*cause))
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
        payload: Payload,
        cause: Cause,
    ) -> Result<Option<Payload>, CallError> {
        let limit = Instant::now() + self.options.call_timeout;
        let deadline = cause.deadline.map_or(limit, |deadline| deadline.min(limit));
        let cause = Cause { deadline: Some(deadline), ..cause };
        let (sender, reply) = oneshot::channel();
        let answered = async {
            // Keeps the call known until it is answered or given up.
            let _pending = self.send_call(source, route, payload, cause, sender).await?;
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
        payload: Payload,
        cause: Cause,
        reply: oneshot::Sender<Reply>,
    ) -> Result<Option<PendingCall<'_>>, Dropped> {
        let sent = async {
            if payload.len() > self.options.max_payload {
                return Err(Dropped::TooLarge);
            }
            let target = self.resolve(route).await?;
            if target.node == self.node {
                let incoming = Incoming { source, kind: EventKind::Call, payload, cause };
                let delivery = Delivery { incoming, created: SystemTime::now(), reply: Some(Replier::here(reply)) };
                let mailbox = self.mailbox(target.function)?;
                if target == source {
                    mailbox.put_own(delivery)?;
                } else {
                    mailbox.put(delivery, self.options.emit_wait).await?;
                }
                return Ok(None);
            }
            let peer = self.peer(target.node)?;
            let pending = self.expect_reply(source, target, reply);
            let remaining = cause.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let kind = Kind::Call { payload, stream: pending.stream, remaining };
            peer.send(Event { source, target, kind, created: SystemTime::now(), trace: cause.trace }).await?;
            Ok(Some(pending))
        };
        sent.await.inspect_err(|cause| self.count(*cause))
    }

    fn expect_reply(&self, caller: InstanceId, callee: InstanceId, reply: oneshot::Sender<Reply>) -> PendingCall<'_> {
        let stream = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.insert(stream, Pending { caller, callee, reply });
        PendingCall { router: self, stream }
    }

    /// Ends a call with an error: its event did not arrive.
    pub fn fail_call(&self, stream: u64) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream);
    }

    /// Sends a reply to a caller on another node. Waits for nothing.
    pub fn reply(&self, reply: Event) {
        let sent = self.peer(reply.target.node).and_then(|peer| peer.send_reply(reply));
        if let Err(cause) = sent {
            self.count(cause);
        }
    }

    /// Takes an event from another node.
    ///
    /// # Errors
    /// It is not for this node.
    pub async fn accept(self: &Arc<Self>, event: Event) -> Result<(), Error> {
        if event.target.node != self.node {
            self.metrics.refuse_event();
            return Err(Error::rejected(format!("this is {:?}, the event is for {:?}", self.node, event.target.node)));
        }
        let (incoming, reply) = match event.kind {
            Kind::Reply { reply, stream } => {
                self.take_reply(event.source, event.target, stream, reply);
                return Ok(());
            }
            Kind::Cast(payload) => {
                let cause = Cause { trace: event.trace, deadline: None };
                (Incoming { source: event.source, kind: EventKind::Cast, payload, cause }, None)
            }
            Kind::Call { payload, stream, remaining } => {
                let time = remaining.unwrap_or(self.options.call_timeout).min(self.options.call_timeout);
                let cause = Cause { trace: event.trace, deadline: Some(Instant::now() + time) };
                let reply = Replier::elsewhere(self.clone(), event.target, event.source, stream, event.trace);
                (Incoming { source: event.source, kind: EventKind::Call, payload, cause }, Some(reply))
            }
        };
        let put = async {
            if incoming.payload.len() > self.options.max_payload {
                return Err(Dropped::TooLarge);
            }
            let mailbox = self.mailbox(event.target.function)?;
            mailbox.put(Delivery { incoming, created: event.created, reply }, self.options.emit_wait).await
        };
        // The sender did what it could; what is lost here is counted here.
        if let Err(cause) = put.await {
            self.count(cause);
        }
        Ok(())
    }

    /// A reply counts only if it comes from whom the call went to, and goes to who made it.
    fn take_reply(&self, callee: InstanceId, caller: InstanceId, stream: u64, reply: Reply) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match pending.get(&stream) {
            Some(call) if call.callee == callee && call.caller == caller => {
                if let Some(call) = pending.remove(&stream) {
                    // Fails if the caller gave up.
                    call.reply.send(reply).ok();
                }
            }
            Some(_) => self.metrics.refuse_event(),
            // Too late: the caller gave up.
            None => {}
        }
    }

    fn mailbox(&self, instance: Uuid) -> Result<Mailbox, Dropped> {
        self.mailboxes.pin().get(&instance).cloned().ok_or(Dropped::UnknownTarget)
    }

    fn peer(&self, node: NodeId) -> Result<Arc<Peer>, Dropped> {
        self.peers.pin().get(&node).cloned().ok_or(Dropped::UnknownPeer)
    }
}

/// A call whose reply is awaited; forgotten when it is dropped.
struct PendingCall<'r> {
    router: &'r Router,
    stream: u64,
}

impl Drop for PendingCall<'_> {
    fn drop(&mut self) {
        self.router.fail_call(self.stream);
    }
}

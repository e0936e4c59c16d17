//! The ways to other nodes.
//!
//! The targets on a node share a number of lanes: bounded queues, each with a task that sends one event
//! after the other. A target keeps to one lane, so that its events keep their order; one that is slow
//! slows its own senders and the few that share its lane; a node that is slow slows only itself.
//! Replies have lanes beside, because they must never wait behind what their callers cause.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::{Connection, Invocation, Options as CallOptions};
use edgeless_api::event::{Kind, Reply};
use edgeless_api::{Error, Event, InstanceId, Limits, NodeId, Url};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::{Budget, Share};
use crate::calls::Calls;
use crate::metrics::{Dropped, Metrics};

/// Lanes to one node, for events and again for replies. More would bring no more at once, and targets
/// are as many as guests can think of.
const LANES: u64 = 256;
/// Events that wait in a lane.
const LANE: usize = 256;
/// Replies that wait in a lane. A caller has no more outstanding than it has calls in hand.
const REPLIES: usize = 8192;

/// An event in a lane, with its part of what may wait for one node.
type Waiting = (Event, Share);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Events(u64),
    Replies(u64),
}

/// How much may wait for one node, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The largest payload, bytes.
    pub max_payload: usize,
    /// How long a sender waits for room, on this side and on the other.
    pub emit_wait: Duration,
    /// The payloads that wait, bytes.
    pub queued: usize,
}

/// The other nodes that a node knows.
#[derive(Debug)]
pub struct Peers {
    known: papaya::HashMap<NodeId, Arc<Peer>>,
    options: Options,
    fate: Fate,
}

/// Who learns what becomes of events that do not arrive.
#[derive(Clone, Debug)]
struct Fate {
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
}

impl Fate {
    /// An event is lost, with the call that it was.
    fn lost(&self, call: Option<u64>) {
        self.metrics.drop_event(Dropped::PeerLost);
        if let Some(stream) = call {
            self.calls.fail(stream);
        }
    }
}

impl Peers {
    /// Nobody yet.
    pub fn new(calls: Arc<Calls>, metrics: Arc<Metrics>, options: Options) -> Self {
        Self { known: papaya::HashMap::new(), options, fate: Fate { calls, metrics } }
    }

    /// Learns of a node.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn add(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        if self.known.pin().get(&node).is_some_and(|peer| peer.url == *url) {
            return Ok(());
        }
        let emit_wait = self.options.emit_wait;
        let limits = Limits { payload: self.options.max_payload, ..Limits::default() };
        let call = CallOptions { deadline: emit_wait + Duration::from_secs(5), limits, ..CallOptions::default() };
        let cancel = CancellationToken::new();
        let peer = Peer {
            url: url.clone(),
            invocation: Invocation::new(Connection::lazy(url, call)?),
            emit_wait,
            budget: Budget::new(self.options.queued),
            fate: self.fate.clone(),
            lanes: Mutex::default(),
            cancel: cancel.clone(),
            _forgotten: cancel.drop_guard(),
        };
        self.known.pin().insert(node, Arc::new(peer));
        Ok(())
    }

    /// Forgets a node; whoever waits for a reply from it gets an error.
    pub fn remove(&self, node: NodeId) {
        if let Some(peer) = self.known.pin().remove(&node) {
            peer.cancel.cancel();
        }
        self.fate.calls.fail_all(node);
    }

    /// Forgets all nodes.
    pub fn clear(&self) {
        let nodes: Vec<NodeId> = self.known.pin().keys().copied().collect();
        for node in nodes {
            self.remove(node);
        }
    }

    /// The way to a node.
    ///
    /// # Errors
    /// It is not known.
    pub fn get(&self, node: NodeId) -> Result<Arc<Peer>, Dropped> {
        self.known.pin().get(&node).cloned().ok_or(Dropped::UnknownPeer)
    }

    /// Sends a reply to a caller on another node. Waits for nothing; what gets lost is counted.
    pub fn reply(&self, reply: Event) {
        if let Err(cause) = self.get(reply.target.node).and_then(|peer| peer.send_reply(reply)) {
            self.fate.metrics.drop_event(cause);
        }
    }
}

/// One other node.
#[derive(Debug)]
pub struct Peer {
    url: Url,
    invocation: Invocation,
    emit_wait: Duration,
    budget: Budget,
    fate: Fate,
    lanes: Mutex<HashMap<Lane, mpsc::Sender<Waiting>>>,
    /// Ends the lanes when the node is forgotten.
    cancel: CancellationToken,
    _forgotten: DropGuard,
}

impl Peer {
    /// Puts an event on its way, and waits a while for room in its lane.
    ///
    /// # Errors
    /// There was no room in time, or the node is forgotten.
    pub async fn send(&self, event: Event) -> Result<(), Dropped> {
        let size = match &event.kind {
            Kind::Cast(payload) | Kind::Call { payload, .. } => payload.len(),
            Kind::Reply { .. } => 0,
        };
        let lane = self.lane(Lane::Events(lane_of(event.target)), LANE);
        let put = async {
            let share = self.budget.take(size).await;
            lane.send((event, share)).await.map_err(|_| Dropped::PeerLost)
        };
        tokio::time::timeout(self.emit_wait, put).await.unwrap_or(Err(Dropped::MailboxFull))
    }

    fn send_reply(&self, event: Event) -> Result<(), Dropped> {
        let size = match &event.kind {
            Kind::Reply { reply: Reply::Message(payload), .. } => payload.len(),
            _ => 0,
        };
        let share = self.budget.try_take(size).ok_or(Dropped::PeerLost)?;
        let lane = self.lane(Lane::Replies(lane_of(event.target)), REPLIES);
        lane.try_send((event, share)).map_err(|_| Dropped::PeerLost)
    }

    fn lane(&self, key: Lane, capacity: usize) -> mpsc::Sender<Waiting> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (sender, receiver) = mpsc::channel(capacity);
            tokio::spawn(drive(receiver, self.invocation.clone(), self.fate.clone(), self.cancel.clone()));
            sender
        };
        lanes.entry(key).or_insert_with(start).clone()
    }
}

fn lane_of(target: InstanceId) -> u64 {
    let mut hasher = DefaultHasher::new();
    target.function.hash(&mut hasher);
    hasher.finish() % LANES
}

/// Sends what comes down a lane until its node is forgotten.
async fn drive(mut receiver: mpsc::Receiver<Waiting>, invocation: Invocation, fate: Fate, cancel: CancellationToken) {
    while let Some(Some((event, _share))) = cancel.run_until_cancelled(receiver.recv()).await {
        let (target, call) = (event.target, call_of(&event));
        match cancel.run_until_cancelled(invocation.handle(event)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::debug!(%target, %error, "an event did not reach its node");
                fate.lost(call);
            }
            None => fate.lost(call),
        }
    }
    receiver.close();
    while let Ok((event, _share)) = receiver.try_recv() {
        fate.lost(call_of(&event));
    }
}

/// The number of the call that an event is.
fn call_of(event: &Event) -> Option<u64> {
    match event.kind {
        Kind::Call { stream, .. } => Some(stream),
        Kind::Cast(_) | Kind::Reply { .. } => None,
    }
}

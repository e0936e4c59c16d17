//! The ways to other nodes.
//!
//! Each target on that node has a lane of its own: a bounded queue and a task that sends one event
//! after the other. So events keep their order for each target, a target that is slow slows its own
//! senders only, and a node that is slow slows only itself. Replies have lanes beside, because they
//! must never wait behind what their callers cause.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::{Connection, Invocation, Options as CallOptions};
use edgeless_api::event::Kind;
use edgeless_api::{Error, Event, InstanceId, Limits, NodeId, Url};
use tokio::sync::mpsc;

use crate::calls::Calls;
use crate::metrics::{Dropped, Metrics};

/// Events that wait in a lane.
const LANE: usize = 256;
/// Replies that wait in a lane. A caller has no more outstanding than it has calls in hand.
const REPLIES: usize = 8192;
/// A lane that had nothing to do for this time ends.
const IDLE: Duration = Duration::from_secs(10);

type Lanes = Mutex<HashMap<(InstanceId, Lane), mpsc::Sender<Event>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Events,
    Replies,
}

/// The other nodes that a node knows.
#[derive(Debug)]
pub struct Peers {
    known: papaya::HashMap<NodeId, Arc<Peer>>,
    max_payload: usize,
    emit_wait: Duration,
    fate: Fate,
}

/// Who learns what becomes of events that do not arrive.
#[derive(Clone, Debug)]
struct Fate {
    calls: Arc<Calls>,
    metrics: Arc<Metrics>,
}

impl Peers {
    /// Nobody yet. Senders wait for room for `emit_wait`, on this side and on the other.
    pub fn new(calls: Arc<Calls>, metrics: Arc<Metrics>, max_payload: usize, emit_wait: Duration) -> Self {
        Self { known: papaya::HashMap::new(), max_payload, emit_wait, fate: Fate { calls, metrics } }
    }

    /// Learns of a node.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn add(&self, node: NodeId, url: &Url) -> Result<(), Error> {
        if self.known.pin().get(&node).is_some_and(|peer| peer.url == *url) {
            return Ok(());
        }
        let limits = Limits { payload: self.max_payload, ..Limits::default() };
        let call = CallOptions { deadline: self.emit_wait + Duration::from_secs(5), limits, ..CallOptions::default() };
        let peer = Peer {
            url: url.clone(),
            invocation: Invocation::new(Connection::lazy(url, call)?),
            emit_wait: self.emit_wait,
            fate: self.fate.clone(),
            lanes: Arc::default(),
        };
        self.known.pin().insert(node, Arc::new(peer));
        Ok(())
    }

    /// Forgets a node; whoever waits for a reply from it gets an error.
    pub fn remove(&self, node: NodeId) {
        self.known.pin().remove(&node);
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
    fate: Fate,
    lanes: Arc<Lanes>,
}

impl Peer {
    /// Puts an event on its way, and waits a while for room in its lane.
    ///
    /// # Errors
    /// There was no room in time.
    pub async fn send(&self, event: Event) -> Result<(), Dropped> {
        let mut event = event;
        loop {
            match self.lane(event.target, Lane::Events).send_timeout(event, self.emit_wait).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(Dropped::MailboxFull),
                // The lane ended just now; the next try makes another.
                Err(mpsc::error::SendTimeoutError::Closed(back)) => event = back,
            }
        }
    }

    fn send_reply(&self, reply: Event) -> Result<(), Dropped> {
        let mut reply = reply;
        loop {
            match self.lane(reply.target, Lane::Replies).try_send(reply) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Full(_)) => return Err(Dropped::PeerLost),
                Err(mpsc::error::TrySendError::Closed(back)) => reply = back,
            }
        }
    }

    fn lane(&self, target: InstanceId, lane: Lane) -> mpsc::Sender<Event> {
        let key = (target, lane);
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = lanes.get(&key).filter(|sender| !sender.is_closed()) {
            return sender.clone();
        }
        let capacity = match lane {
            Lane::Events => LANE,
            Lane::Replies => REPLIES,
        };
        let (sender, receiver) = mpsc::channel(capacity);
        lanes.insert(key, sender.clone());
        tokio::spawn(drive(receiver, key, self.lanes.clone(), self.invocation.clone(), self.fate.clone()));
        sender
    }
}

/// Sends what comes down a lane until it is idle or its peer is forgotten.
async fn drive(
    mut receiver: mpsc::Receiver<Event>,
    key: (InstanceId, Lane),
    lanes: Arc<Lanes>,
    invocation: Invocation,
    fate: Fate,
) {
    loop {
        let event = match tokio::time::timeout(IDLE, receiver.recv()).await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(_) => {
                lanes.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                // Whoever got hold of the sender before may have used it: what is queued still goes.
                receiver.close();
                match receiver.recv().await {
                    Some(event) => event,
                    None => return,
                }
            }
        };
        let stream = match event.kind {
            Kind::Call { stream, .. } => Some(stream),
            Kind::Cast(_) | Kind::Reply { .. } => None,
        };
        if let Err(error) = invocation.handle(event).await {
            tracing::debug!(target = %key.0, %error, "an event did not reach its node");
            fate.metrics.drop_event(Dropped::PeerLost);
            if let Some(stream) = stream {
                fate.calls.fail(stream);
            }
        }
    }
}

//! The ways to the nodes that a forwarder sends events to.
//!
//! ```text
//!  events  -> bounded queue --> one task per node: several at once, one at a time for each
//!  replies -> bounded queue --> the same beside    (source, target)
//! ```
//! A node that is dead or slow holds up its own events only, and replies never wait behind what their
//! callers cause. A way that was not used for a while ends by itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::Limits;
use edgeless_api::client::{Connection, Invocation, NodeManagement, Options};
use edgeless_api::error::Error;
use edgeless_api::event::{Event, Kind};
use edgeless_api::id::{InstanceId, NodeId};
use edgeless_api::node::PeerUpdate;
use edgeless_api::url::Url;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::rows::Contact;
use crate::metrics::Forwarded;

/// Events that wait for one node.
const QUEUE: usize = 1024;
/// Events that are on their way to one node at a time, or wait for another one between the same two.
const AT_ONCE: usize = 64;
/// How long a sender waits for room.
const ROOM: Duration = Duration::from_secs(2);
/// How long a node may take to accept an event.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a node may take to learn of the forwarder.
const INTRODUCTION: Duration = Duration::from_secs(2);
/// When a way that nobody uses ends.
const IDLE: Duration = Duration::from_secs(60);
/// Instances of one node that are known to know the forwarder.
const INTRODUCED: usize = 4096;

/// An event that is to be sent on.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// As its target shall see it.
    pub(crate) event: Event,
    /// What its caller gets if it is lost.
    pub(crate) failed: Option<Event>,
}

/// What becomes of events.
pub(crate) trait Report: Send + Sync + 'static {
    /// An event was handed over, or is lost.
    fn ended(&self, outgoing: Outgoing, outcome: Forwarded);
}

/// How a forwarder shows itself to the nodes.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) url: Url,
    pub(crate) limits: Limits,
}

/// The ways to all nodes.
pub(crate) struct Lanes {
    me: Identity,
    open: Mutex<HashMap<(NodeId, bool), Lane>>,
    cancel: CancellationToken,
}

#[derive(Clone)]
struct Lane {
    contact: Way,
    queue: mpsc::Sender<Outgoing>,
}

/// Where a node is; the address for commands is known of the nodes of the domain only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) events: Url,
    pub(crate) agent: Option<Url>,
}

impl From<Contact> for Way {
    fn from(contact: Contact) -> Self {
        Self { events: contact.events, agent: Some(contact.agent) }
    }
}

impl Lanes {
    /// No ways yet; `cancel` ends those that follow.
    pub(crate) fn new(me: Identity, cancel: CancellationToken) -> Self {
        Self { me, open: Mutex::default(), cancel }
    }

    /// Puts an event on its way. A cast or a call waits a moment for room, a reply for nothing.
    ///
    /// # Errors
    /// There is no room, or the node cannot be reached at all.
    pub(crate) async fn send(
        &self,
        way: &Way,
        report: &Arc<dyn Report>,
        mut outgoing: Outgoing,
    ) -> Result<(), (Outgoing, Forwarded)> {
        let is_reply = matches!(outgoing.event.kind, Kind::Reply { .. });
        // A way may end just when it is wanted again.
        for _ in 0..3 {
            let queue = match self.lane((outgoing.event.target.node, is_reply), way, report) {
                Ok(queue) => queue,
                Err(error) => {
                    tracing::debug!(%error, "an address cannot be used");
                    return Err((outgoing, Forwarded::Unreachable));
                }
            };
            let room = if is_reply { Duration::ZERO } else { ROOM };
            match queue.send_timeout(outgoing, room).await {
                Ok(()) => return Ok(()),
                Err(mpsc::error::SendTimeoutError::Timeout(unsent)) => return Err((unsent, Forwarded::QueueFull)),
                Err(mpsc::error::SendTimeoutError::Closed(unsent)) => outgoing = unsent,
            }
        }
        Err((outgoing, Forwarded::Unreachable))
    }

    fn lane(&self, key: (NodeId, bool), way: &Way, report: &Arc<dyn Report>) -> Result<mpsc::Sender<Outgoing>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = open.get(&key)
            && lane.contact == *way
            && !lane.queue.is_closed()
        {
            return Ok(lane.queue.clone());
        }
        open.retain(|_, lane| !lane.queue.is_closed());
        let node = Node::new(&self.me, way)?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        let driver = Driver { node: Arc::new(node), report: report.clone(), receiver, cancel: self.cancel.clone() };
        tokio::spawn(driver.run());
        open.insert(key, Lane { contact: way.clone(), queue: queue.clone() });
        Ok(queue)
    }
}

/// A node that takes events.
struct Node {
    me: Identity,
    invocation: Invocation,
    management: Option<NodeManagement>,
    introduced: Mutex<HashSet<InstanceId>>,
}

impl Node {
    fn new(me: &Identity, way: &Way) -> Result<Self, Error> {
        let options = Options { deadline: DEADLINE, limits: me.limits, ..Options::default() };
        let invocation = Invocation::new(Connection::lazy(&way.events, options)?).of_node_at(&me.url);
        let quick = Options { deadline: INTRODUCTION, ..options };
        let management = way.agent.as_ref().map(|agent| Connection::lazy(agent, quick)).transpose()?;
        let management = management.map(NodeManagement::new);
        Ok(Self { me: me.clone(), invocation, management, introduced: Mutex::default() })
    }

    /// Before an instance gets its first event, its node learns where replies go: to one that has started
    /// again too, because then its instances are others.
    async fn introduce(&self, instance: InstanceId) {
        let Some(management) = &self.management else { return };
        let is_known = |known: &HashSet<InstanceId>| known.contains(&instance);
        if is_known(&self.introduced.lock().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        if let Err(error) = management.update_peers(PeerUpdate::Add(self.me.node, self.me.url.clone())).await {
            tracing::debug!(node = %instance.node, %error, "a node did not learn of the forwarder");
            return;
        }
        let mut introduced = self.introduced.lock().unwrap_or_else(PoisonError::into_inner);
        if introduced.len() >= INTRODUCED {
            introduced.clear();
        }
        introduced.insert(instance);
    }

    async fn deliver(&self, event: Event) -> Forwarded {
        if !matches!(event.kind, Kind::Reply { .. }) {
            self.introduce(event.target).await;
        }
        let target = event.target;
        match self.invocation.handle(event).await {
            Ok(()) => Forwarded::HandedOver,
            Err(error) => {
                tracing::debug!(%target, %error, "an event did not reach its node");
                if error.code.is_refusal() { Forwarded::Refused } else { Forwarded::Unreachable }
            }
        }
    }
}

/// Events between two instances keep their order.
type Pair = (InstanceId, InstanceId);

/// Sends what comes down one queue.
struct Driver {
    node: Arc<Node>,
    report: Arc<dyn Report>,
    receiver: mpsc::Receiver<Outgoing>,
    cancel: CancellationToken,
}

impl Driver {
    async fn run(mut self) {
        let mut running: FuturesUnordered<BoxFuture<'static, Pair>> = FuturesUnordered::new();
        // By pair that has an event on its way: those that follow it.
        let mut following: HashMap<Pair, VecDeque<Outgoing>> = HashMap::new();
        let mut held = 0;
        let mut is_open = true;
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                Some(pair) = running.next(), if !running.is_empty() => {
                    match following.get_mut(&pair).and_then(VecDeque::pop_front) {
                        Some(next) => {
                            held -= 1;
                            running.push(self.deliver(pair, next));
                        }
                        None => {
                            following.remove(&pair);
                        }
                    }
                }
                received = self.receiver.recv(), if is_open && running.len() + held < AT_ONCE => match received {
                    Some(outgoing) => {
                        let pair = (outgoing.event.source, outgoing.event.target);
                        if let Some(behind) = following.get_mut(&pair) {
                            held += 1;
                            behind.push_back(outgoing);
                        } else {
                            following.insert(pair, VecDeque::new());
                            running.push(self.deliver(pair, outgoing));
                        }
                    }
                    None => is_open = false,
                },
                () = tokio::time::sleep(IDLE), if is_open && running.is_empty() => self.receiver.close(),
            }
            if !is_open && running.is_empty() {
                return;
            }
        }
    }

    fn deliver(&self, pair: Pair, outgoing: Outgoing) -> BoxFuture<'static, Pair> {
        let (node, report) = (self.node.clone(), self.report.clone());
        Box::pin(async move {
            let outcome = node.deliver(outgoing.event.clone()).await;
            report.ended(outgoing, outcome);
            pair
        })
    }
}

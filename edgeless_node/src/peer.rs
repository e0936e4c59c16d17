//! The way to one other node.
//!
//! Each target on that node has a lane of its own: a bounded queue and a task that sends one event
//! after the other. So events keep their order for each target, a target that is slow slows its own
//! senders only, and a node that is slow slows only itself. Replies have lanes beside, because they
//! must never wait behind what their callers cause.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use edgeless_api::client::{Connection, Invocation, Options as CallOptions};
use edgeless_api::event::Kind;
use edgeless_api::{Error, Event, InstanceId, Limits, Url};
use tokio::sync::mpsc;

use crate::metrics::Dropped;
use crate::router::{Options, Router};

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

/// One other node.
#[derive(Debug)]
pub struct Peer {
    url: Url,
    invocation: Invocation,
    router: Weak<Router>,
    emit_wait: Duration,
    lanes: Arc<Lanes>,
}

impl Peer {
    /// A node that is connected to when it is first needed.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(router: Weak<Router>, url: &Url, options: Options) -> Result<Self, Error> {
        let limits = Limits { payload: options.max_payload, ..Limits::default() };
        // The other side may wait for room as long as we would.
        let call =
            CallOptions { deadline: options.emit_wait + Duration::from_secs(5), limits, ..CallOptions::default() };
        let invocation = Invocation::new(Connection::lazy(url, call)?);
        Ok(Self { url: url.clone(), invocation, router, emit_wait: options.emit_wait, lanes: Arc::default() })
    }

    /// Where it takes events.
    pub fn url(&self) -> &Url {
        &self.url
    }

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

    /// Puts a reply on its way. Waits for nothing.
    ///
    /// # Errors
    /// There is no room.
    pub fn send_reply(&self, reply: Event) -> Result<(), Dropped> {
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
        tokio::spawn(drive(receiver, key, self.lanes.clone(), self.invocation.clone(), self.router.clone()));
        sender
    }
}

/// Sends what comes down a lane until it is idle or its peer is forgotten.
async fn drive(
    mut receiver: mpsc::Receiver<Event>,
    key: (InstanceId, Lane),
    lanes: Arc<Lanes>,
    invocation: Invocation,
    router: Weak<Router>,
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
            let Some(router) = router.upgrade() else { return };
            tracing::debug!(target = %key.0, %error, "an event did not reach its node");
            router.count(Dropped::PeerLost);
            if let Some(stream) = stream {
                router.fail_call(stream);
            }
        }
    }
}

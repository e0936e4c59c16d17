//! Mailboxes: what waits to be handled by one component.
//!
//! A mailbox belongs to the host loop and survives its instance: what is queued outlives a trap. It
//! is bounded, and has slots of its own for what the instance sends to itself, since nobody would
//! empty a full mailbox whose owner waits for room in it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::{Event, InstanceId};
use tokio::sync::{mpsc, oneshot};

use crate::event::Incoming;
use crate::metrics::{Dropped, InstanceMetrics};
use crate::peer::Peers;

/// An event on its way into a handler.
#[derive(Debug)]
pub struct Delivery {
    /// What the handler sees.
    pub incoming: Incoming,
    /// When it was made, by the sender's clock.
    pub created: SystemTime,
    /// How the reply reaches the caller; `None` for casts.
    pub reply: Option<Replier>,
}

/// The duty to answer a call. Dropped without an answer, it answers with an error.
#[derive(Debug)]
pub struct Replier(Option<Caller>);

#[derive(Debug)]
enum Caller {
    Here(oneshot::Sender<Reply>),
    Elsewhere { peers: Arc<Peers>, callee: InstanceId, caller: InstanceId, stream: u64, trace: Trace },
}

impl Replier {
    /// Answers a caller on this node.
    pub fn here(caller: oneshot::Sender<Reply>) -> Self {
        Self(Some(Caller::Here(caller)))
    }

    /// Answers a caller on another node.
    pub fn elsewhere(peers: Arc<Peers>, callee: InstanceId, caller: InstanceId, stream: u64, trace: Trace) -> Self {
        Self(Some(Caller::Elsewhere { peers, callee, caller, stream, trace }))
    }

    /// Answers.
    pub fn send(mut self, reply: Reply) {
        self.answer(reply);
    }

    fn answer(&mut self, reply: Reply) {
        match self.0.take() {
            // Fails if the caller gave up.
            Some(Caller::Here(caller)) => {
                caller.send(reply).ok();
            }
            Some(Caller::Elsewhere { peers, callee, caller, stream, trace }) => peers.reply(Event {
                source: callee,
                target: caller,
                kind: Kind::Reply { reply, stream },
                created: SystemTime::UNIX_EPOCH,
                trace,
            }),
            None => {}
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        self.answer(Reply::Error);
    }
}

/// Slots for what an instance sends to itself.
const OWN: usize = 64;

/// Where events for a component are put.
#[derive(Clone, Debug)]
pub struct Mailbox {
    queue: mpsc::Sender<Delivery>,
    own: mpsc::Sender<Delivery>,
    metrics: Arc<InstanceMetrics>,
}

/// Where its host takes them out.
#[derive(Debug)]
pub struct Receiver {
    queue: mpsc::Receiver<Delivery>,
    own: mpsc::Receiver<Delivery>,
}

/// A mailbox for `capacity` events.
pub fn mailbox(capacity: usize, metrics: Arc<InstanceMetrics>) -> (Mailbox, Receiver) {
    let (queue, queue_receiver) = mpsc::channel(capacity.max(1));
    let (own, own_receiver) = mpsc::channel(OWN);
    (Mailbox { queue, own, metrics }, Receiver { queue: queue_receiver, own: own_receiver })
}

impl Mailbox {
    /// Puts an event in, and waits for room at most for `wait`.
    ///
    /// # Errors
    /// There was no room in time, or the component is gone.
    pub async fn put(&self, delivery: Delivery, wait: Duration) -> Result<(), Dropped> {
        let put = match self.queue.try_send(delivery) {
            Ok(()) => return Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Dropped::UnknownTarget),
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                self.queue.send_timeout(delivery, wait).await.map_err(|_| Dropped::MailboxFull)
            }
        };
        put.inspect_err(|_| self.metrics.count_dropped())
    }

    /// Puts an event in that the component sends to itself.
    ///
    /// # Errors
    /// There is no room, or the component is gone.
    pub fn put_own(&self, delivery: Delivery) -> Result<(), Dropped> {
        let put = self.own.try_send(delivery).map_err(|error| match error {
            mpsc::error::TrySendError::Closed(_) => Dropped::UnknownTarget,
            mpsc::error::TrySendError::Full(_) => Dropped::SelfFull,
        });
        put.inspect_err(|_| self.metrics.count_dropped())
    }
}

impl Receiver {
    /// The next event. Never ends while a mailbox exists.
    pub async fn take(&mut self) -> Option<Delivery> {
        tokio::select! {
            Some(delivery) = self.own.recv() => Some(delivery),
            Some(delivery) = self.queue.recv() => Some(delivery),
            else => None,
        }
    }
}

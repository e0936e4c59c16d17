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

use crate::budget::{Budget, Share};
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

/// An event in a mailbox, with its part of what may wait there.
type Waiting = (Delivery, Share);

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
    queue: mpsc::Sender<Waiting>,
    own: mpsc::Sender<Waiting>,
    budget: Budget,
    metrics: Arc<InstanceMetrics>,
}

/// Where its host takes them out.
#[derive(Debug)]
pub struct Receiver {
    queue: mpsc::Receiver<Waiting>,
    own: mpsc::Receiver<Waiting>,
}

/// A mailbox for `capacity` events, whose payloads share a budget.
pub fn mailbox(capacity: usize, budget: Budget, metrics: Arc<InstanceMetrics>) -> (Mailbox, Receiver) {
    let (queue, queue_receiver) = mpsc::channel(capacity.max(1));
    let (own, own_receiver) = mpsc::channel(OWN);
    (Mailbox { queue, own, budget, metrics }, Receiver { queue: queue_receiver, own: own_receiver })
}

impl Mailbox {
    /// Puts an event in, and waits for room at most for `wait`.
    ///
    /// # Errors
    /// There was no room in time, or the component is gone.
    pub async fn put(&self, delivery: Delivery, wait: Duration) -> Result<(), Dropped> {
        self.try_put(delivery, wait).await.inspect_err(|_| self.metrics.count_dropped())
    }

    async fn try_put(&self, delivery: Delivery, wait: Duration) -> Result<(), Dropped> {
        let size = delivery.incoming.payload.len();
        // Mostly there is room, and then no timer is needed.
        let (delivery, share) = match self.budget.try_take(size) {
            None => (delivery, None),
            Some(share) => match self.queue.try_send((delivery, share)) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(Dropped::Stopping),
                Err(mpsc::error::TrySendError::Full((delivery, share))) => (delivery, Some(share)),
            },
        };
        let put = async {
            let share = match share {
                Some(share) => share,
                None => self.budget.take(size).await,
            };
            self.queue.send((delivery, share)).await.map_err(|_| Dropped::Stopping)
        };
        tokio::time::timeout(wait, put).await.unwrap_or(Err(Dropped::MailboxFull))
    }

    /// Puts an event in that the component sends to itself.
    ///
    /// # Errors
    /// There is no room, or the component is gone.
    pub fn put_own(&self, delivery: Delivery) -> Result<(), Dropped> {
        let put = match self.budget.try_take(delivery.incoming.payload.len()) {
            None => Err(Dropped::SelfFull),
            Some(share) => self.own.try_send((delivery, share)).map_err(|error| match error {
                mpsc::error::TrySendError::Closed(_) => Dropped::Stopping,
                mpsc::error::TrySendError::Full(_) => Dropped::SelfFull,
            }),
        };
        put.inspect_err(|_| self.metrics.count_dropped())
    }
}

impl Receiver {
    /// The next event; `None` only once the mailbox is closed and empty.
    pub async fn take(&mut self) -> Option<Delivery> {
        let (delivery, _share) = tokio::select! {
            Some(waiting) = self.own.recv() => waiting,
            Some(waiting) = self.queue.recv() => waiting,
            else => return None,
        };
        Some(delivery)
    }

    /// Takes no more events in. Those that are left are taken as before, and after the last there is
    /// none for ever.
    pub fn close(&mut self) {
        self.own.close();
        self.queue.close();
    }
}

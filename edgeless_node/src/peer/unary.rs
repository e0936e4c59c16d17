//! The way to a node that knows no links, as those of EDGELESS 1.x: one call per event.
//!
//! The targets on it share a number of lanes: bounded queues, each with a task that sends one event
//! after the other. A target keeps to one lane, so that its events keep their order. Replies have
//! lanes beside, because they must never wait behind what their callers cause. What becomes of an
//! event that the node takes is not heard: it is handed over.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::Invocation;
use edgeless_api::event::{Kind, Reply};
use edgeless_api::{Event, InstanceId};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::{Budget, Share};
use crate::fate::{Fate, Ticket};
use crate::metrics::Dropped;

/// Lanes for events and again for replies. More would bring no more at once, and targets are as many
/// as guests can think of.
const LANES: u64 = 256;
/// Events that wait in a lane.
const LANE: usize = 256;
/// Replies that wait in a lane. A caller has no more outstanding than it has calls in hand.
const REPLIES: usize = 8192;

/// How much may wait, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a sender waits for room in its lane.
    pub emit_wait: Duration,
    /// The payloads that wait, bytes.
    pub queued: usize,
}

/// What waits in a lane. A reply has nobody to be told.
struct Waiting<T: Ticket> {
    event: Event,
    ticket: Option<T>,
    _share: Share,
}

impl<T: Ticket> Waiting<T> {
    fn tell(self, fate: Fate) {
        if let Some(ticket) = self.ticket {
            ticket.settle(fate);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Events(u64),
    Replies(u64),
}

/// The lanes to one node.
pub struct Unary<T: Ticket> {
    invocation: Invocation,
    options: Options,
    budget: Budget,
    hasher: RandomState,
    lanes: Mutex<HashMap<Lane, mpsc::Sender<Waiting<T>>>>,
    /// Where lanes run, whoever needs them first.
    runtime: Handle,
    cancel: CancellationToken,
    _ends: DropGuard,
}

impl<T: Ticket> std::fmt::Debug for Unary<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unary").field("invocation", &self.invocation).finish_non_exhaustive()
    }
}

impl<T: Ticket> Unary<T> {
    /// Lanes that end when this is dropped.
    pub fn new(invocation: Invocation, options: Options) -> Self {
        let cancel = CancellationToken::new();
        Self {
            invocation,
            options,
            budget: Budget::new(options.queued),
            hasher: RandomState::new(),
            lanes: Mutex::default(),
            runtime: Handle::current(),
            _ends: cancel.clone().drop_guard(),
            cancel,
        }
    }

    /// Puts an event on its way, and waits a while for room in its lane. Its ticket is told its fate
    /// in any case.
    ///
    /// # Errors
    /// There was no room in time, or the node is forgotten.
    pub async fn send(&self, event: Event, ticket: T) -> Result<(), Dropped> {
        let size = match &event.kind {
            Kind::Cast(payload) | Kind::Call { payload, .. } => payload.len(),
            Kind::Reply { .. } => 0,
        };
        let lane = self.lane(Lane::Events(self.lane_of(event.target)), LANE);
        let ticket = Held(Some(ticket));
        let room = async {
            let share = self.budget.take(size).await;
            (share, lane.reserve().await)
        };
        match tokio::time::timeout(self.options.emit_wait, room).await {
            Ok((share, Ok(permit))) => {
                permit.send(Waiting { event, ticket: ticket.take(), _share: share });
                Ok(())
            }
            Ok((_, Err(_))) => Err(ticket.drop_for(Dropped::PeerLost)),
            Err(_) => Err(ticket.drop_for(Dropped::MailboxFull)),
        }
    }

    /// Sends a reply. Waits for nothing.
    ///
    /// # Errors
    /// There is no room.
    pub fn reply(&self, event: Event) -> Result<(), Dropped> {
        let size = match &event.kind {
            Kind::Reply { reply: Reply::Message(payload), .. } => payload.len(),
            _ => 0,
        };
        let share = self.budget.try_take(size).ok_or(Dropped::PeerLost)?;
        let lane = self.lane(Lane::Replies(self.lane_of(event.target)), REPLIES);
        lane.try_send(Waiting { event, ticket: None, _share: share }).map_err(|_| Dropped::PeerLost)
    }

    fn lane_of(&self, target: InstanceId) -> u64 {
        self.hasher.hash_one(target.function) % LANES
    }

    fn lane(&self, key: Lane, capacity: usize) -> mpsc::Sender<Waiting<T>> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let start = || {
            let (sender, receiver) = mpsc::channel(capacity);
            self.runtime.spawn(drive(receiver, self.invocation.clone(), self.cancel.clone()));
            sender
        };
        lanes.entry(key).or_insert_with(start).clone()
    }
}

/// A ticket in the hands of its sender. If the sender goes away, the ticket says so.
struct Held<T: Ticket>(Option<T>);

impl<T: Ticket> Held<T> {
    fn take(mut self) -> Option<T> {
        self.0.take()
    }

    fn drop_for(self, cause: Dropped) -> Dropped {
        if let Some(ticket) = self.take() {
            ticket.settle(Fate::Dropped(cause));
        }
        cause
    }
}

impl<T: Ticket> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.0.take() {
            ticket.settle(Fate::Dropped(Dropped::SenderGone));
        }
    }
}

/// Sends what comes down a lane until its node is forgotten.
async fn drive<T: Ticket>(mut receiver: mpsc::Receiver<Waiting<T>>, invocation: Invocation, cancel: CancellationToken) {
    while let Some(Some(waiting)) = cancel.run_until_cancelled(receiver.recv()).await {
        let handled = invocation.handle(waiting.event.clone());
        let fate = match cancel.run_until_cancelled(handled).await {
            Some(Ok(())) => Fate::HandedOver,
            None => Fate::Unknown,
            // It may have arrived all the same.
            Some(Err(error)) if !error.code.is_refusal() => {
                tracing::debug!(target = %waiting.event.target, %error, "an event may not have reached its node");
                Fate::Unknown
            }
            Some(Err(error)) => {
                tracing::debug!(target = %waiting.event.target, %error, "an event did not reach its node");
                Fate::Dropped(Dropped::PeerLost)
            }
        };
        waiting.tell(fate);
    }
    receiver.close();
    // Also those whose senders have a place in the lane and are about to fill it.
    while let Some(waiting) = receiver.recv().await {
        waiting.tell(Fate::Dropped(Dropped::PeerLost));
    }
}

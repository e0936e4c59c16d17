//! Mailboxes: what waits to be handled by one component.
//!
//! A mailbox belongs to the host loop and survives its instance: what is queued outlives a trap. It
//! is bounded, and has slots of its own for what the instance sends to itself, since nobody would
//! empty a full mailbox whose owner waits for room in it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use edgeless_api::InstanceId;
use edgeless_api::event::{Reply, Trace};
use tokio::sync::{Notify, oneshot};

use crate::books::Entry;
use crate::calls::Answer;
use crate::delivery::Receipt;
use crate::event::Incoming;
use crate::fate::{Fate, Ticket};
use crate::metrics::{Dropped, InstanceMetrics};
use crate::peer::Settler;
use crate::router::Router;

/// An event on its way into a handler.
#[derive(Debug)]
pub struct Delivery {
    /// What the handler sees.
    pub incoming: Incoming,
    /// When it was made.
    pub sent: Instant,
    /// How the reply reaches the caller; `None` for casts.
    pub reply: Option<Replier>,
    /// How its sender learns what became of it.
    pub fate: Told,
}

impl Delivery {
    /// No handler takes it: tells its sender, and its caller if it was a call.
    pub fn lose(self, cause: Dropped) {
        self.fate.settle(if cause == Dropped::Expired { Fate::Expired } else { Fate::Dropped(cause) });
        if let Some(reply) = self.reply {
            reply.refuse(cause);
        }
    }
}

/// Who is told what became of an event.
#[derive(Debug)]
pub enum Told {
    /// The books of an output of this node.
    Here(Entry),
    /// The outbox of a component of this node.
    Outbox(Receipt),
    /// The node of the sender.
    There(Settler),
    /// Nobody: the sender is an EDGELESS 1.x node.
    Nobody,
}

impl Told {
    /// A handler has the event.
    pub fn begin(&mut self) {
        match self {
            Self::Here(entry) => entry.begin(),
            Self::Outbox(_) | Self::There(_) | Self::Nobody => {}
        }
    }

    /// This is what became of it.
    pub fn settle(self, fate: Fate) {
        match self {
            Self::Here(entry) => entry.settle(fate),
            Self::Outbox(receipt) => receipt.settle(fate),
            Self::There(settler) => settler.settle(fate),
            Self::Nobody => {}
        }
    }
}

/// The duty to answer a call. Dropped without an answer, it answers with an error.
#[derive(Debug)]
pub struct Replier(Option<Caller>);

#[derive(Debug)]
enum Caller {
    Here(oneshot::Sender<Answer>),
    /// Seldom, and large.
    Elsewhere(Box<Elsewhere>),
}

#[derive(Debug)]
struct Elsewhere {
    router: Weak<Router>,
    callee: InstanceId,
    caller: InstanceId,
    stream: u64,
    trace: Trace,
}

impl Replier {
    /// Answers a caller on this node.
    pub fn here(caller: oneshot::Sender<Answer>) -> Self {
        Self(Some(Caller::Here(caller)))
    }

    /// Answers a caller on another node.
    pub fn elsewhere(router: Weak<Router>, callee: InstanceId, caller: InstanceId, stream: u64, trace: Trace) -> Self {
        Self(Some(Caller::Elsewhere(Box::new(Elsewhere { router, callee, caller, stream, trace }))))
    }

    /// Answers.
    pub fn send(mut self, reply: Reply) {
        self.answer(Ok(reply));
    }

    /// Tells the caller why there is no answer.
    pub fn refuse(mut self, cause: Dropped) {
        self.answer(Err(cause));
    }

    fn answer(&mut self, answer: Answer) {
        match self.0.take() {
            // Fails if the caller gave up.
            Some(Caller::Here(caller)) => {
                caller.send(answer).ok();
            }
            Some(Caller::Elsewhere(call)) => {
                if let Some(router) = call.router.upgrade() {
                    let reply = answer.unwrap_or(Reply::Error);
                    router.reply(call.callee, call.caller, call.stream, reply, call.trace);
                }
            }
            None => {}
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        self.answer(Ok(Reply::Error));
    }
}

/// Slots for what an instance sends to itself.
const OWN: usize = 64;
/// Slots for what other nodes were granted: enough for 256 of them at once.
const GRANTED: usize = 1 << 16;
/// What one other node is granted.
const WINDOW: usize = 256;
/// A queue that was longer than this gives its memory back once it is empty.
const KEPT: usize = 64;
/// Payloads below this are bounded well enough by their number.
const SMALL: usize = 1024;

/// Where events for a component are put.
#[derive(Clone, Debug)]
pub struct Mailbox(Arc<Shared>);

/// Where its host takes them out.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queues: Mutex<Queues>,
    /// There is room again.
    room: Notify,
    capacity: usize,
    /// The payloads that may wait, bytes.
    bytes: usize,
    metrics: Arc<InstanceMetrics>,
    pressure: Option<Pressure>,
}

/// Who wants to know at once that events pile up.
#[derive(Debug)]
struct Pressure {
    /// With so many in one line.
    at: usize,
    told: Arc<Notify>,
}

/// A mutex of the standard library: it is held for a few instructions and never across an await.
#[derive(Debug, Default)]
struct Queues {
    /// One for each [`Line`], so that none of them takes the room of another.
    lines: [Queue; 3],
    /// Whose turn it is.
    next: usize,
    /// Senders that wait for room.
    senders: usize,
    /// It is closed once it is empty for a moment.
    is_draining: bool,
    is_closed: bool,
    receiver: Option<Waker>,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Delivery>,
    /// Of all payloads that are not small.
    bytes: usize,
}

/// Where an event waits.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// It comes from this node.
    Here,
    /// It comes from another node, which was granted the room.
    There,
    /// It comes from the component itself.
    Own,
}

/// A mailbox for `capacity` events, whose payloads have so many `bytes` at most. A larger payload may
/// wait alone.
pub fn mailbox(capacity: usize, bytes: usize, metrics: Arc<InstanceMetrics>) -> (Mailbox, Receiver) {
    watched(capacity, bytes, metrics, None)
}

/// The same; `pressed` is told whenever half of what may wait waits.
pub fn watched(
    capacity: usize,
    bytes: usize,
    metrics: Arc<InstanceMetrics>,
    pressed: Option<Arc<Notify>>,
) -> (Mailbox, Receiver) {
    let (queues, room, capacity) = (Mutex::default(), Notify::new(), capacity.max(1));
    // One other node alone is never granted more than its window.
    let at = (capacity.min(WINDOW) / 2).max(1);
    let pressure = pressed.map(|told| Pressure { at, told });
    let shared = Arc::new(Shared { queues, room, capacity, bytes, metrics, pressure });
    (Mailbox(shared.clone()), Receiver(shared))
}

fn size_of(delivery: &Delivery) -> usize {
    let size = delivery.incoming.payload.len();
    if size < SMALL { 0 } else { size }
}

impl Queue {
    fn fits(&self, size: usize, most: usize, bytes: usize) -> bool {
        let is_small_enough = size == 0 || self.bytes == 0 || self.bytes.saturating_add(size) <= bytes;
        self.events.len() < most && is_small_enough
    }

    fn pop(&mut self) -> Option<Delivery> {
        let delivery = self.events.pop_front()?;
        self.bytes -= size_of(&delivery);
        if self.events.is_empty() && self.events.capacity() > KEPT {
            self.events = VecDeque::new();
        }
        Some(delivery)
    }
}

impl Queues {
    fn pop(&mut self) -> Option<Delivery> {
        for turn in 0..self.lines.len() {
            let line = (self.next + turn) % self.lines.len();
            if let Some(delivery) = self.lines.get_mut(line).and_then(Queue::pop) {
                self.next = line + 1;
                return Some(delivery);
            }
        }
        None
    }
}

/// What one attempt to put an event in leads to.
enum Put {
    Done(Option<Waker>),
    NoRoom(Delivery),
    Closed(Delivery),
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refuse(&self, delivery: Delivery, cause: Dropped) -> Dropped {
        self.metrics.count_dropped();
        delivery.lose(cause);
        cause
    }
}

impl Put {
    fn wake(waker: Option<Waker>) {
        // After the lock is let go, so that whoever is woken need not wait for it.
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Mailbox {
    fn attempt(&self, delivery: Delivery, line: Line) -> Put {
        let mut queues = self.0.queues();
        if queues.is_closed {
            return Put::Closed(delivery);
        }
        let most = match line {
            Line::Here => self.0.capacity,
            Line::There => GRANTED,
            Line::Own => OWN,
        };
        let size = size_of(&delivery);
        match queues.lines.get_mut(line as usize) {
            Some(queue) if queue.fits(size, most, self.0.bytes) => {
                queue.events.push_back(delivery);
                queue.bytes += size;
                if let Some(pressure) = &self.0.pressure
                    && queue.events.len() == pressure.at
                {
                    pressure.told.notify_one();
                }
                Put::Done(queues.receiver.take())
            }
            _ => Put::NoRoom(delivery),
        }
    }

    /// Events that wait.
    pub fn queued(&self) -> usize {
        self.0.queues().lines.iter().map(|queue| queue.events.len()).sum()
    }

    /// Lets its host handle what waits, and then end. Events are taken in as before: what comes after the
    /// end waits for whoever has the [`Receiver`] by then.
    pub fn drain(&self) {
        let waker = {
            let mut queues = self.0.queues();
            queues.is_draining = true;
            queues.receiver.take()
        };
        Put::wake(waker);
    }

    fn put_now(&self, delivery: Delivery, line: Line, full: Dropped) -> Result<(), Dropped> {
        match self.attempt(delivery, line) {
            Put::Done(waker) => {
                Put::wake(waker);
                Ok(())
            }
            Put::Closed(delivery) => Err(self.0.refuse(delivery, Dropped::Stopping)),
            Put::NoRoom(delivery) => Err(self.0.refuse(delivery, full)),
        }
    }

    /// Puts an event in, if there is room.
    ///
    /// # Errors
    /// The event, if there is none; see [`put_later`](Self::put_later).
    pub fn try_put(&self, delivery: Delivery) -> Result<Result<(), Dropped>, Box<Delivery>> {
        match self.attempt(delivery, Line::Here) {
            Put::Done(waker) => {
                Put::wake(waker);
                Ok(Ok(()))
            }
            Put::Closed(delivery) => Ok(Err(self.0.refuse(delivery, Dropped::Stopping))),
            Put::NoRoom(delivery) => Err(Box::new(delivery)),
        }
    }

    /// Puts an event in, and waits for room at most for `wait`.
    ///
    /// # Errors
    /// There was no room in time, or the component is gone. Its sender is told.
    pub async fn put(&self, delivery: Delivery, wait: Duration) -> Result<(), Dropped> {
        match self.try_put(delivery) {
            Ok(done) => done,
            Err(delivery) => self.put_later(*delivery, wait).await,
        }
    }

    /// Puts an event in that there was no room for, and waits for it at most for `wait`.
    ///
    /// # Errors
    /// There was no room in time, or the component is gone. Its sender is told.
    pub async fn put_later(&self, delivery: Delivery, wait: Duration) -> Result<(), Dropped> {
        let _sender = Waiting::new(&self.0);
        let deadline = tokio::time::Instant::now() + wait;
        let mut delivery = delivery;
        loop {
            let room = self.0.room.notified();
            match self.attempt(delivery, Line::Here) {
                Put::Done(waker) => {
                    Put::wake(waker);
                    return Ok(());
                }
                Put::Closed(delivery) => return Err(self.0.refuse(delivery, Dropped::Stopping)),
                Put::NoRoom(refused) => delivery = refused,
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(self.0.refuse(delivery, Dropped::MailboxFull));
            }
        }
    }

    /// Puts an event in that the component sends to itself: there is room now or never, since nobody
    /// would empty a full mailbox whose owner waits for room in it.
    ///
    /// # Errors
    /// There is no room, or the component is gone. Its sender is told.
    pub fn put_own(&self, delivery: Delivery) -> Result<(), Dropped> {
        self.put_now(delivery, Line::Own, Dropped::SelfFull)
    }

    /// Puts an event in whose sender, on another node, was granted the room.
    ///
    /// # Errors
    /// The component is gone, or there is no room after all: so many nodes send to it, or one breaks what
    /// was agreed. Its sender is told.
    pub fn put_granted(&self, delivery: Delivery) -> Result<(), Dropped> {
        self.put_now(delivery, Line::There, Dropped::MailboxFull)
    }
}

/// A sender that waits for room.
struct Waiting<'m>(&'m Shared);

impl<'m> Waiting<'m> {
    fn new(mailbox: &'m Shared) -> Self {
        mailbox.queues().senders += 1;
        Self(mailbox)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.queues().senders -= 1;
    }
}

impl Receiver {
    /// The next event; `None` once the mailbox is closed and empty, and one time when it is empty after
    /// [`drain`](Mailbox::drain). Gives way to other tasks after a
    /// number of events, also if there are always more.
    pub async fn take(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|context| {
            let fair = std::task::ready!(tokio::task::coop::poll_proceed(context));
            let mut queues = self.0.queues();
            if let Some(delivery) = queues.pop() {
                fair.made_progress();
                if queues.senders > 0 {
                    // All of them look: the first may need more room than there is, and the second less.
                    self.0.room.notify_waiters();
                }
                return Poll::Ready(Some(delivery));
            }
            if queues.is_closed || std::mem::take(&mut queues.is_draining) {
                return Poll::Ready(None);
            }
            match &mut queues.receiver {
                Some(known) => known.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }

    /// Takes no more events in. Those that are left are taken as before, and after the last there is
    /// none for ever.
    pub fn close(&mut self) {
        self.0.queues().is_closed = true;
        self.0.room.notify_waiters();
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.close();
    }
}

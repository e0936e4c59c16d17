//! The loop around a pure engine.
//!
//! ```text
//!  requests -> Inbox (bounded, may refuse) -+
//!  results of effects (never refused) ------+-> Engine::on(now, event) -> effects -> Shell::run
//!  ticks -----------------------------------+
//! ```
//! Effects run concurrently and their results come back as events. What keeps them in order is the
//! engine: it has at most one effect under way for each thing that it looks after, which also bounds
//! their number.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgeless_api::error::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A time of the engine's clock: milliseconds since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The time from this one to a later one; none if that one is earlier.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

impl std::ops::Add<Duration> for Millis {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Names a request that waits for its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Decides. No clock, no I/O, no task: the same events give the same effects.
pub trait Engine: Send + 'static {
    /// What happens.
    type Event: Send + 'static;
    /// What is to be done.
    type Effect: Send + 'static;
    /// What a request is answered with.
    type Answer: Send + 'static;

    /// Takes note of what happened and says what is to be done.
    fn on(&mut self, now: Millis, event: Self::Event) -> Vec<Self::Effect>;

    /// The event that tells the time.
    fn tick() -> Self::Event;
}

/// An effect under way; it yields the event that tells its result.
pub type Running<E> = Pin<Box<dyn Future<Output = <E as Engine>::Event> + Send>>;

/// Does what an engine decides.
pub trait Shell<E: Engine>: Send + 'static {
    /// Starts an effect. `None`: it is done, and its result does not matter.
    fn run(&mut self, effect: E::Effect) -> Option<Running<E>>;
}

type Read<E> = Box<dyn FnOnce(&E, Millis) + Send>;

enum Message<E: Engine> {
    Event(E::Event),
    Read(Read<E>),
}

/// The requests that wait for a reply.
pub struct Replies<A> {
    waiting: Arc<Mutex<HashMap<Ticket, oneshot::Sender<A>>>>,
}

impl<A> Clone for Replies<A> {
    fn clone(&self) -> Self {
        Self { waiting: self.waiting.clone() }
    }
}

impl<A> Replies<A> {
    /// Answers a request. One whose asker is gone is no error.
    pub fn answer(&self, ticket: Ticket, answer: A) {
        if let Some(asker) = self.take(ticket) {
            asker.send(answer).ok();
        }
    }

    fn take(&self, ticket: Ticket) -> Option<oneshot::Sender<A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&ticket)
    }
}

/// The way to an engine; cheap to clone.
pub struct Inbox<E: Engine> {
    sender: mpsc::Sender<Message<E>>,
    replies: Replies<E::Answer>,
    next: Arc<AtomicU64>,
}

impl<E: Engine> Clone for Inbox<E> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), replies: self.replies.clone(), next: self.next.clone() }
    }
}

impl<E: Engine> fmt::Debug for Inbox<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl<E: Engine> Inbox<E> {
    /// Asks for something and waits for the answer. The request goes on if the asker gives up.
    ///
    /// # Errors
    /// The engine has more requests than it can take, or is stopped.
    pub async fn ask(&self, event: impl FnOnce(Ticket) -> E::Event) -> Result<E::Answer, Error> {
        let ticket = Ticket(self.next.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.replies.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(ticket, answer);
        if self.sender.try_send(Message::Event(event(ticket))).is_err() {
            self.replies.take(ticket);
            return Err(self.refused());
        }
        answered.await.map_err(|_| self.refused())
    }

    /// Tells the engine something that must not get lost, and waits until there is room.
    ///
    /// # Errors
    /// The engine is stopped.
    pub async fn tell(&self, event: E::Event) -> Result<(), Error> {
        self.sender.send(Message::Event(event)).await.map_err(|_| self.refused())
    }

    /// Looks at the engine.
    ///
    /// # Errors
    /// The engine has more requests than it can take, or is stopped.
    pub async fn read<R: Send + 'static>(
        &self,
        look: impl FnOnce(&E, Millis) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let (found, result) = oneshot::channel();
        let read: Read<E> = Box::new(move |engine, now| {
            found.send(look(engine, now)).ok();
        });
        self.sender.try_send(Message::Read(read)).map_err(|_| self.refused())?;
        result.await.map_err(|_| self.refused())
    }

    fn refused(&self) -> Error {
        Error::unavailable(if self.sender.is_closed() { "shutting down" } else { "too many requests: try again later" })
    }
}

/// The most requests that wait for the engine to look at them.
const INBOX: usize = 4096;

/// An engine with its inbox, ready to be driven.
pub struct Driver<E: Engine> {
    engine: E,
    inbox: Inbox<E>,
    receiver: mpsc::Receiver<Message<E>>,
}

impl<E: Engine> Driver<E> {
    /// Puts an inbox before an engine.
    pub fn new(engine: E) -> Self {
        let (sender, receiver) = mpsc::channel(INBOX);
        let inbox = Inbox { sender, replies: Replies { waiting: Arc::default() }, next: Arc::default() };
        Self { engine, inbox, receiver }
    }

    /// The way to the engine.
    pub fn inbox(&self) -> Inbox<E> {
        self.inbox.clone()
    }

    /// The requests that wait for a reply.
    pub fn replies(&self) -> Replies<E::Answer> {
        self.inbox.replies.clone()
    }

    /// Runs the engine until it is cancelled; effects that are under way by then are dropped. Ends by
    /// itself only if an effect panics.
    pub async fn run(self, mut shell: impl Shell<E>, tick: Duration, cancel: CancellationToken) {
        let Self { mut engine, inbox, mut receiver } = self;
        let start = Instant::now();
        let mut effects: JoinSet<E::Event> = JoinSet::new();
        let mut ticks = tokio::time::interval(tick);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => break,
                Some(result) = effects.join_next() => match result {
                    Ok(event) => event,
                    // Its result will never come, and what it was about would wait for ever.
                    Err(error) => {
                        tracing::error!(%error, "an effect panicked: this is a fault of ours");
                        break;
                    }
                },
                _ = ticks.tick() => E::tick(),
                Some(message) = receiver.recv() => match message {
                    Message::Event(event) => event,
                    Message::Read(read) => {
                        read(&engine, elapsed(start));
                        continue;
                    }
                },
            };
            for effect in engine.on(elapsed(start), event) {
                if let Some(running) = shell.run(effect) {
                    effects.spawn(running);
                }
            }
        }
        // Nobody can ask any more; whoever still waits is told that nothing will come.
        drop(receiver);
        inbox.replies.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn elapsed(start: Instant) -> Millis {
    Millis(0) + start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Doubles what it is asked, by way of an effect.
    struct Doubler;
    enum Event {
        Ask(Ticket, u32),
        Done(Ticket, u32),
        Tick,
    }
    enum Effect {
        Double(Ticket, u32),
        Reply(Ticket, u32),
    }

    impl Engine for Doubler {
        type Event = Event;
        type Effect = Effect;
        type Answer = u32;
        fn on(&mut self, _: Millis, event: Event) -> Vec<Effect> {
            match event {
                Event::Ask(ticket, value) => vec![Effect::Double(ticket, value)],
                Event::Done(ticket, value) => vec![Effect::Reply(ticket, value)],
                Event::Tick => vec![],
            }
        }
        fn tick() -> Event {
            Event::Tick
        }
    }

    struct Doubling(Replies<u32>);
    impl Shell<Doubler> for Doubling {
        fn run(&mut self, effect: Effect) -> Option<Running<Doubler>> {
            match effect {
                Effect::Double(ticket, value) => Some(Box::pin(async move { Event::Done(ticket, value * 2) })),
                Effect::Reply(ticket, value) => {
                    self.0.answer(ticket, value);
                    None
                }
            }
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_by_the_result_of_an_effect() {
        let driver = Driver::new(Doubler);
        let (inbox, cancel) = (driver.inbox(), CancellationToken::new());
        let shell = Doubling(driver.replies());
        let running = tokio::spawn(driver.run(shell, Duration::from_secs(1), cancel.clone()));
        assert_eq!(inbox.ask(|ticket| Event::Ask(ticket, 21)).await.unwrap(), 42);
        cancel.cancel();
        running.await.unwrap();
        let error = inbox.ask(|ticket| Event::Ask(ticket, 1)).await.unwrap_err();
        assert_eq!(error.message, "shutting down");
    }
}

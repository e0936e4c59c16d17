//! A guest in a container: what it asks of its node, and the two ways in which it is given events.
//!
//! ```text
//!  host loop -> Events -+-> stream --> guest     its SDK attached: numbered, up to 64 under way
//!                       +-> unary --->           EDGELESS 1.x: one at a time
//!  outputs, state, log <-- Guest <------------   over the stream, or as calls (`host`)
//! ```
//! A guest handles one event at a time, in the order in which it was given them. What it emits meanwhile
//! belongs to that event.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgeless_api::event::Reply;
use edgeless_api::guest::{Ask, FromGuest, FromGuestKind, Goal, Request, Tell, ToGuest};
use edgeless_api::server::Values;
use edgeless_api::status::Level;
use edgeless_api::{Code, Error, client};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::instance::{Cause, Context, EventKind, Incoming, InstanceError, Payload};
use crate::outputs::{CallError, Outputs};

/// Events that a guest with a stream may have in hand.
pub(super) const IN_FLIGHT: usize = 64;
/// Messages that wait to be sent to it.
const WAITING: usize = 2 * IN_FLIGHT;

/// A guest's hold on its node; one for each incarnation of its instance.
pub(super) struct Guest {
    pub(super) context: Context,
    /// The end of its connection: after that of its component, for its stop handler runs in between.
    end: CancellationToken,
    link: Mutex<Option<Link>>,
    is_attached: watch::Sender<bool>,
    /// Why it is of no use any more.
    lost: watch::Sender<Option<String>>,
    hand: Mutex<Hand>,
}

/// The way to a guest that attached.
#[derive(Clone)]
struct Link(mpsc::Sender<Result<ToGuest, Error>>);

/// What the guest has in hand.
#[derive(Default)]
struct Hand {
    /// The number of the last request.
    last: u64,
    asked: HashMap<u64, Asked>,
    /// Of the event that was given it by a call, or is being.
    cause: Cause,
}

struct Asked {
    cause: Cause,
    answer: oneshot::Sender<Answer>,
}

/// What became of a request: a reply, or why the guest is of no use any more.
type Answer = Result<Reply, String>;

impl Guest {
    /// A guest whose connection ends with the guard.
    pub(super) fn new(context: Context) -> (Arc<Self>, DropGuard) {
        let end = CancellationToken::new();
        let guard = end.clone().drop_guard();
        let guest = Arc::new(Self {
            context,
            end,
            link: Mutex::default(),
            is_attached: watch::Sender::new(false),
            lost: watch::Sender::new(None),
            hand: Mutex::default(),
        });
        (guest, guard)
    }

    /// Tells when its connection ends.
    pub(super) fn end(&self) -> CancellationToken {
        self.end.clone()
    }

    fn hand<R>(&self, act: impl FnOnce(&mut Hand) -> R) -> R {
        act(&mut self.hand.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn link(&self) -> Option<Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes its stream; returns what goes to it.
    pub(super) fn attach(self: &Arc<Self>, messages: Values<FromGuest>) -> Result<Values<ToGuest>, Error> {
        let (sender, receiver) = mpsc::channel(WAITING);
        {
            let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
            if link.is_some() {
                return Err(Error::rejected("the guest has attached already"));
            }
            *link = Some(Link(sender));
        }
        self.is_attached.send_replace(true);
        let (guest, end) = (self.clone(), self.end.clone());
        tokio::spawn(async move {
            let end = end.run_until_cancelled(guest.listen(messages)).await;
            guest.lose(end.unwrap_or_else(|| "its component is stopped".to_string()));
        });
        // Ends with the instance, whatever the guest does.
        let outgoing = ReceiverStream::new(receiver).take_until(self.end.clone().cancelled_owned());
        Ok(Box::pin(outgoing))
    }

    /// Resolves when it has attached.
    pub(super) async fn attached(&self) {
        // The sender is its own: there always is one.
        self.is_attached.subscribe().wait_for(|is_attached| *is_attached).await.ok();
    }

    pub(super) fn is_attached(&self) -> bool {
        *self.is_attached.borrow()
    }

    /// Resolves when it is of no use any more, with the reason.
    pub(super) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        // The sender is its own: there always is one.
        lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    fn lose(&self, reason: String) {
        self.lost.send_if_modified(|lost| {
            let is_first = lost.is_none();
            if is_first {
                *lost = Some(reason.clone());
            }
            is_first
        });
        // After that, so that what is asked meanwhile is either found here or sees it.
        for (_, asked) in self.hand(|hand| std::mem::take(&mut hand.asked)) {
            asked.answer.send(Err(reason.clone())).ok();
        }
    }

    /// Takes what it says; returns why it says nothing more.
    async fn listen(self: &Arc<Self>, mut messages: Values<FromGuest>) -> String {
        let asks = Arc::new(Semaphore::new(IN_FLIGHT));
        while let Some(message) = messages.next().await {
            let FromGuest { id, said } = match message {
                Ok(message) => message,
                Err(error) if error.code == Code::Rejected => {
                    return format!("the guest does not keep to the protocol: {error}");
                }
                Err(error) => return format!("the connection to the guest broke: {error}"),
            };
            match said {
                FromGuestKind::Done => self.answered(id, Ok(Reply::Empty)),
                FromGuestKind::Returned(reply) => self.answered(id, Ok(reply)),
                FromGuestKind::Failed(reason) => {
                    self.answered(id, Err(reason.clone()));
                    return reason;
                }
                // One after the other: a full mailbox slows the guest, and order is kept.
                FromGuestKind::Tell(tell) => self.tell(tell, self.cause(id)).await,
                FromGuestKind::Ask(number, ask) => {
                    // Its handler waits for the answer before it goes on: there is one at a time, unless it
                    // misbehaves.
                    let Ok(permit) = asks.clone().acquire_owned().await else { continue };
                    let guest = self.clone();
                    let cause = self.cause(id);
                    let answer = async move {
                        let _permit = permit;
                        let answer = match (guest.ask(ask.clone(), cause).await, ask) {
                            (Ok(_), Ask::Sync(_)) => ToGuest::Synced(number),
                            (Ok(reply), Ask::Call(..)) => ToGuest::Reply(number, reply),
                            (Err(error), _) => ToGuest::Refused(number, error.to_string()),
                        };
                        if let Some(Link(sender)) = guest.link() {
                            sender.send(Ok(answer)).await.ok();
                        }
                    };
                    tokio::spawn(self.end.clone().run_until_cancelled_owned(answer));
                }
            }
        }
        "the guest closed the connection".to_string()
    }

    fn answered(&self, id: u64, answer: Answer) {
        // Nobody waits any more for what comes too late.
        if let Some(asked) = self.hand(|hand| hand.asked.remove(&id)) {
            asked.answer.send(answer).ok();
        }
    }

    /// Why it says something while it has this request in hand.
    fn cause(&self, id: u64) -> Cause {
        self.hand(|hand| hand.asked.get(&id).map(|asked| asked.cause).unwrap_or_default())
    }

    /// Why it says something, as far as a guest without numbers can be understood: because of the last event.
    pub(super) fn last_cause(&self) -> Cause {
        self.hand(|hand| hand.cause)
    }

    /// Does what it asks for without waiting.
    pub(super) async fn tell(&self, tell: Tell, cause: Cause) {
        let outputs = &self.context.outputs;
        // What gets lost is counted; a cast tells the guest nothing.
        match tell {
            Tell::Cast(Goal::Output(output), payload) => _ = outputs.cast(&output, payload, cause).await,
            Tell::Cast(Goal::Instance(target), payload) => _ = outputs.cast_raw(target, payload, cause).await,
            Tell::DelayedCast(delay, output, payload) => _ = outputs.delayed_cast(delay, &output, payload, cause),
            Tell::Log(level, target, message) => self.context.log.push(level, &target, message),
        }
    }

    /// Does what it waits for.
    pub(super) async fn ask(&self, ask: Ask, cause: Cause) -> Result<Reply, Error> {
        match ask {
            Ask::Sync(bytes) => self.context.save(bytes).await.map(|()| Reply::Empty),
            Ask::Call(goal, payload) => call(&self.context.outputs, goal, payload, cause).await,
        }
    }

    /// Asks it for something over its stream.
    async fn request(&self, request: Request, cause: Cause) -> Answer {
        let Some(Link(sender)) = self.link() else { return Err("the guest is not attached".to_string()) };
        let (answer, answered) = oneshot::channel();
        let id = self.hand(|hand| {
            hand.last += 1;
            hand.asked.insert(hand.last, Asked { cause, answer });
            hand.last
        });
        // Nobody waits for it any more when this is dropped.
        let _waiting = Waiting { guest: self, id };
        if let Some(reason) = self.lost.borrow().clone() {
            return Err(reason);
        }
        // In the order of their numbers, for each is sent where it is numbered unless there is no room.
        let gone = || Err("the connection to the guest broke".to_string());
        if sender.send(Ok(ToGuest::Request(id, request))).await.is_err() {
            return gone();
        }
        match answered.await {
            Ok(answer) => answer,
            Err(_) => gone(),
        }
    }
}

struct Waiting<'g> {
    guest: &'g Guest,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.guest.hand(|hand| hand.asked.remove(&self.id));
    }
}

async fn call(outputs: &Outputs, goal: Goal, payload: Payload, cause: Cause) -> Result<Reply, Error> {
    let reply = match goal {
        Goal::Output(output) => outputs.call(&output, payload, cause).await,
        Goal::Instance(target) => outputs.call_raw(target, payload, cause).await,
    };
    match reply {
        Ok(Some(payload)) => Ok(Reply::Message(payload)),
        Ok(None) => Ok(Reply::Empty),
        Err(CallError::Unmapped(output)) => {
            Err(Error::rejected(format!("the output '{output}' leads nowhere: map it in the workflow")))
        }
        Err(_) => Ok(Reply::Error),
    }
}

/// The way in which a guest is given its events.
pub(super) enum Way {
    /// Over its stream.
    Stream,
    /// By calls of its server.
    Unary(Box<client::Guest>),
}

/// A guest, and how it is given events.
pub(super) struct Events {
    pub(super) guest: Arc<Guest>,
    pub(super) way: Way,
    /// How long it may take for one.
    pub(super) limit: Duration,
    /// Since when it has events in hand and answers none.
    pub(super) silent: Mutex<Option<Instant>>,
}

/// How often its time a guest may be silent before it counts as hung.
const PATIENCE: u32 = 10;

/// Why a guest did not do what it was asked.
pub(super) enum Trouble {
    /// It says so.
    Refused(String),
    /// It is of no use any more.
    Lost(String),
    /// It did not answer in time.
    Late,
}

impl Events {
    /// Asks the guest for something that is no event.
    pub(super) async fn ask(&self, request: Request) -> Result<(), Trouble> {
        let asked = async {
            match &self.way {
                Way::Stream => self.guest.request(request, Cause::default()).await.map(|_| ()).map_err(Trouble::Lost),
                Way::Unary(client) => {
                    let asked = match request {
                        Request::Init { payload, state } => client.init(payload, state).await,
                        Request::Stop => client.stop().await,
                        Request::Boot(boot) => client.boot(boot).await.map(|_| ()),
                        Request::Cast { source, payload } => client.cast(source, payload).await,
                        Request::Call { source, payload } => client.call(source, payload).await.map(|_| ()),
                    };
                    asked.map_err(trouble)
                }
            }
        };
        tokio::time::timeout(self.limit, asked).await.unwrap_or(Err(Trouble::Late))
    }

    /// Gives it an event.
    pub(super) async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let now = Instant::now();
        let since = *self.silent.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(now);
        let limit =
            event.cause.deadline.map_or(self.limit, |deadline| self.limit.min(deadline.saturating_duration_since(now)));
        let handled = match &self.way {
            Way::Stream => {
                let Incoming { source, kind, payload, cause, .. } = event;
                let request = match kind {
                    EventKind::Cast => Request::Cast { source, payload },
                    EventKind::Call => Request::Call { source, payload },
                };
                let asked = tokio::time::timeout(limit, self.guest.request(request, cause)).await;
                asked.map_or(Err(Trouble::Late), |answer| answer.map_err(Trouble::Lost))
            }
            Way::Unary(client) => self.by_call(client, event, limit).await,
        };
        let silent = || self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(handled, Err(Trouble::Late)) {
            *silent() = None;
        }
        match handled {
            Ok(Reply::Message(payload)) => Ok(Some(payload)),
            Ok(Reply::Empty) => Ok(None),
            Ok(Reply::Error) => Err(InstanceError::Failed("its handler answered with an error".to_string())),
            Err(Trouble::Refused(reason)) => Err(InstanceError::Failed(reason)),
            Err(Trouble::Late) if since.elapsed() >= self.limit * PATIENCE => {
                let seconds = since.elapsed().as_secs();
                Err(InstanceError::Broken(format!("it hangs: it has answered nothing for {seconds} seconds")))
            }
            Err(Trouble::Late) => Err(InstanceError::Failed("the container did not answer in time".to_string())),
            Err(Trouble::Lost(reason)) => Err(InstanceError::Broken(reason)),
        }
    }

    async fn by_call(&self, client: &client::Guest, event: Incoming, limit: Duration) -> Result<Reply, Trouble> {
        let Incoming { source, kind, payload, cause, .. } = event;
        self.guest.hand(|hand| hand.cause = cause);
        let handled = async {
            match kind {
                EventKind::Cast => client.cast(source, payload).await.map(|()| Reply::Empty),
                EventKind::Call => client.call(source, payload).await,
            }
        };
        let handled = tokio::time::timeout(limit, handled).await;
        // What it still says belongs to the event, but nobody waits for it any more.
        self.guest.hand(|hand| hand.cause.deadline = None);
        match handled {
            Ok(handled) => handled.map_err(trouble),
            Err(_) => Err(Trouble::Late),
        }
    }
}

fn trouble(error: Error) -> Trouble {
    match error.code {
        Code::Unavailable => Trouble::Lost(error.message),
        Code::Timeout => Trouble::Late,
        _ => Trouble::Refused(error.message),
    }
}

/// A warning in the log of a component.
pub(super) fn warn(context: &Context, message: &str) {
    context.log.push(Level::Warn, "edgeless", message);
}

//! A function as a process of its own, for a container: what [`export!`](crate::export!) makes `main` of
//! with the feature `container`.
//!
//! ```text
//!   the node <--- gRPC ---> I/O thread ---- requests, bounded ----> main thread: the handlers, one at a time
//!                                      <--- outbox, bounded -------
//! ```
//!
//! Here is the main thread: in which order a function may be asked what, what becomes of a handler that
//! panics, and how the process ends. How the node is found and spoken to is in `io`.
//!
//! A panic ends the process, as it ends a WebAssembly module: the node is told first, and may start the
//! function afresh. It is dealt with in the panic hook, so that it does not matter whether the function
//! was compiled to unwind.

mod io;
mod link;
pub(crate) mod node;

/// The generated messages, clients and servers.
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    reason = "generated; the comments are in proto/"
)]
mod pb {
    tonic::include_proto!("edgeless_api");
}

use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, ThreadId};

use bytes::Bytes;
use pb::guest_message;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::rt::Handlers;
use crate::{CallRet, InstanceId, Message};
use link::{Answer, Session, lock};

/// The exit code after a panic.
const PANICKED: i32 = 101;

/// How many requests may wait for the handlers. A node of ours has at most 64 under way.
const REQUESTS: usize = 1024;

/// Serves the function to its node until it was stopped.
pub fn run<F: 'static>(handlers: Handlers<F>) -> ! {
    let (requests, queue) = mpsc::channel(REQUESTS);
    let guest = GUEST.get_or_init(Guest::new);
    std::panic::set_hook(Box::new(move |info| {
        let message = info.payload_as_str().unwrap_or("a panic without a message");
        guest.panicked(&match info.location() {
            Some(place) => format!("{message}, at {place}"),
            None => message.to_owned(),
        });
    }));
    io::start(guest, requests);
    let mut process = Process { guest, handlers, state: State::PreBoot, function: None, session: None };
    process.serve(queue);
    // The I/O thread is about to end the process.
    park()
}

/// What the two threads share. There is one, for the whole life of the process.
struct Guest {
    /// Of the boot that counts.
    session: Mutex<Option<Arc<Session>>>,
    /// The request that is being handled.
    handled: Mutex<Option<(Arc<Session>, AnswerTo)>>,
    end: watch::Sender<End>,
    handlers: ThreadId,
}

static GUEST: OnceLock<Guest> = OnceLock::new();

/// How the process comes to its end: with what exit code, and whether all is said that there is to say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Soon(i32),
    Now(i32),
}

impl Guest {
    fn new() -> Self {
        Self {
            session: Mutex::default(),
            handled: Mutex::default(),
            end: watch::Sender::new(End::NotYet),
            handlers: thread::current().id(),
        }
    }

    /// None in a process that is not a container's: in a test.
    fn get() -> Option<&'static Self> {
        GUEST.get()
    }

    fn session(&self) -> Option<Arc<Session>> {
        lock(&self.session).clone()
    }

    /// Sends to the node, if there is one.
    fn send(&self, message: guest_message::Message) {
        if let Some(session) = self.session() {
            session.send(message);
        }
    }

    fn ask(&self, message: guest_message::Message) -> Option<Answer> {
        self.session()?.ask(message)
    }

    fn begin(&self, session: &Arc<Session>, answer: AnswerTo) {
        session.set_handled(answer.number());
        *lock(&self.handled) = Some((session.clone(), answer));
    }

    /// Answers the request that is being handled.
    fn answer(&self, outcome: Result<Outcome, Refusal>) {
        let handled = lock(&self.handled).take();
        if let Some((session, answer)) = handled {
            answer.give(&session, outcome);
            session.set_handled(0);
        }
    }

    fn panicked(&self, text: &str) {
        let thread = thread::current();
        if thread.name() == Some(io::THREAD) {
            say(text);
            std::process::exit(PANICKED);
        }
        if thread.id() != self.handlers {
            return node::log(log::Level::Error, "panic", text);
        }
        self.end.send_replace(End::Soon(PANICKED));
        node::log(log::Level::Error, "panic", text);
        self.answer(Err(Refusal::Failed(text.to_owned())));
        self.end(PANICKED)
    }

    /// Ends the process once all that was sent has reached the node.
    fn end(&self, code: i32) -> ! {
        self.end.send_replace(End::Now(code));
        park()
    }
}

fn park() -> ! {
    loop {
        thread::park();
    }
}

/// Says something where no node can hear it.
fn say(text: &str) {
    eprintln!("{text}");
}

/// What the I/O thread asks for.
struct Work {
    session: Arc<Session>,
    task: Task,
}

enum Task {
    Handle(Request, AnswerTo),
    /// The node of the session is gone.
    Forget,
}

/// What the node asks for.
enum Request {
    Boot(InstanceId),
    Init { payload: String, state: Bytes },
    Cast { source: InstanceId, message: Bytes },
    Call { source: InstanceId, message: Bytes },
    Stop,
}

/// What became of it.
enum Outcome {
    Done,
    Returned(CallRet),
}

enum Refusal {
    /// It may not be asked in this state.
    Order(&'static str),
    /// The handler panicked.
    Failed(String),
    /// Another node, or the same one again, has booted the function meanwhile.
    Replaced,
}

enum AnswerTo {
    /// To the request of this number, over the stream.
    Stream(u64),
    /// To a call of its own.
    Unary(oneshot::Sender<Result<Outcome, Status>>),
}

impl AnswerTo {
    fn number(&self) -> u64 {
        match self {
            AnswerTo::Stream(number) => *number,
            AnswerTo::Unary(_) => 0,
        }
    }

    fn give(self, session: &Session, outcome: Result<Outcome, Refusal>) {
        match self {
            AnswerTo::Stream(_) => {
                session.send(match outcome {
                    Ok(Outcome::Done) => guest_message::Message::Done(()),
                    Ok(Outcome::Returned(reply)) => guest_message::Message::Returned(node::to_wire(reply)),
                    Err(refusal) => guest_message::Message::Failed(refusal.reason()),
                });
            }
            AnswerTo::Unary(answer) => {
                let outcome = outcome.map_err(|refusal| match refusal {
                    Refusal::Order(_) => Status::failed_precondition(refusal.reason()),
                    Refusal::Failed(_) => Status::internal(refusal.reason()),
                    Refusal::Replaced => Status::aborted(refusal.reason()),
                });
                // A node that has hung up wants no answer.
                drop(answer.send(outcome));
            }
        }
    }
}

impl Refusal {
    fn reason(self) -> String {
        match self {
            Refusal::Order(reason) => reason.to_owned(),
            Refusal::Failed(reason) => reason,
            Refusal::Replaced => "the function was booted again meanwhile".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    PreBoot,
    Booted,
    Initialized,
}

/// The function, and where it stands.
struct Process<F: 'static> {
    guest: &'static Guest,
    handlers: Handlers<F>,
    state: State,
    /// None before init, and always with static handlers.
    function: Option<F>,
    session: Option<Arc<Session>>,
}

impl<F> Process<F> {
    fn serve(&mut self, mut queue: mpsc::Receiver<Work>) {
        while let Some(Work { session, task }) = queue.blocking_recv() {
            match task {
                Task::Forget if self.is_of(&session) => self.forget(),
                Task::Forget => {}
                Task::Handle(request, answer) => {
                    let is_stop = matches!(request, Request::Stop);
                    self.guest.begin(&session, answer);
                    let outcome = self.handle(&session, request);
                    let is_over = is_stop && outcome.is_ok();
                    self.guest.answer(outcome);
                    if is_over {
                        self.guest.end(0);
                    }
                }
            }
        }
    }

    fn is_of(&self, session: &Arc<Session>) -> bool {
        self.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session))
    }

    /// Drops the function without its stop handler: it has no node any more.
    fn forget(&mut self) {
        self.state = State::PreBoot;
        self.function = None;
        self.session = None;
        *lock(&self.guest.session) = None;
    }

    fn handle(&mut self, session: &Arc<Session>, request: Request) -> Result<Outcome, Refusal> {
        if session.is_lost() {
            return Err(Refusal::Replaced);
        }
        if let Request::Boot(instance) = request {
            self.forget();
            session.set_instance(instance);
            *lock(&self.guest.session) = Some(session.clone());
            self.session = Some(session.clone());
            self.state = State::Booted;
            return Ok(Outcome::Done);
        }
        if !self.is_of(session) {
            return Err(Refusal::Order("the function is not booted"));
        }
        match (self.state, request) {
            (State::Booted, Request::Init { payload, state }) => {
                let state = (!state.is_empty()).then(|| Message::new(&state));
                self.function = (self.handlers.init)(Message::from(payload.as_str()), state);
                self.state = State::Initialized;
                Ok(Outcome::Done)
            }
            (State::Initialized, Request::Cast { source, message }) => {
                (self.handlers.cast)(&mut self.function, source, Message::new(&message));
                Ok(Outcome::Done)
            }
            (State::Initialized, Request::Call { source, message }) => {
                let reply = (self.handlers.call)(&mut self.function, source, Message::new(&message));
                Ok(Outcome::Returned(reply))
            }
            (State::Initialized, Request::Stop) => {
                (self.handlers.stop)(self.function.take());
                Ok(Outcome::Done)
            }
            // There is nothing to clean up yet.
            (State::Booted, Request::Stop) => Ok(Outcome::Done),
            (State::Initialized, Request::Init { .. }) => Err(Refusal::Order("the function is initialized already")),
            (State::Booted, _) => Err(Refusal::Order("the function is not initialized")),
            (State::PreBoot, _) | (_, Request::Boot(_)) => Err(Refusal::Order("the function is not booted")),
        }
    }
}

fn wire_id(id: InstanceId) -> pb::InstanceId {
    pb::InstanceId { node_id: id.node.to_string(), function_id: id.function.to_string() }
}

fn from_wire_id(id: Option<&pb::InstanceId>) -> Option<InstanceId> {
    let id = id?;
    Some(InstanceId { node: id.node_id.parse().ok()?, function: id.function_id.parse().ok()? })
}

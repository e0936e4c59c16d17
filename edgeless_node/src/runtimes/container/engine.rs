//! The Docker engine of this machine: whether it is there, and what it tells of our containers.
//!
//! One task holds its stream of events. The end of that stream is how the node learns that the engine is
//! gone; when it is back, every container that is watched is looked at again, for nothing was told of it
//! meanwhile.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::Docker;
use bollard::errors::Error as DockerError;
use bollard::models::EventMessage;
use bollard::query_parameters::{EventsOptionsBuilder, InspectContainerOptions};
use edgeless_api::{Error, NodeId};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The label that says which node a thing belongs to.
pub(super) const NODE: &str = "org.edgeless.node";

/// How long the engine may take for one answer, seconds: it starts containers while its machine is busy.
const DEADLINE: u64 = 60;
/// How long who needs the engine waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest wait between two attempts to reach it.
const LONGEST: Duration = Duration::from_secs(5);
const FIRST: Duration = Duration::from_millis(100);
/// The oldest version of its interface that has all that is used: Docker 20.10.
const OLDEST: usize = 41;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Its process ended.
    Code {
        /// Its exit code; 128 more than a signal that ended it.
        code: i64,
        /// It was killed because it needed more memory than it may have.
        out_of_memory: bool,
    },
    /// Somebody removed it.
    Removed,
    /// Nobody was there to see how.
    Unseen,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { out_of_memory: true, .. } => {
                f.write_str("the container was killed: it needed more than its limit of memory")
            }
            Self::Code { code: 137, .. } => f.write_str("the container was killed"),
            Self::Code { code, .. } => write!(f, "the container ended with exit code {code}"),
            Self::Removed => f.write_str("the container was removed by somebody else"),
            Self::Unseen => f.write_str("the container ended while the Docker engine was away"),
        }
    }
}

/// Whether the engine is there.
#[derive(Clone)]
enum State {
    /// Nobody knows yet.
    Unknown,
    Up(Docker),
    /// Why it cannot be reached.
    Down(String),
}

/// What is known of a container while it is watched.
struct Watched {
    exit: watch::Sender<Option<Exit>>,
    out_of_memory: bool,
}

/// The engine; shared by all containers of a node.
pub(super) struct Engine {
    node: NodeId,
    socket: String,
    state: watch::Sender<State>,
    watched: Mutex<HashMap<String, Watched>>,
}

impl Engine {
    pub(super) fn new(node: NodeId, socket: String) -> Arc<Self> {
        Arc::new(Self { node, socket, state: watch::Sender::new(State::Unknown), watched: Mutex::default() })
    }

    /// The engine, if it is there or comes soon.
    ///
    /// # Errors
    /// It does not; the same request may succeed later.
    pub(super) async fn docker(&self) -> Result<Docker, Error> {
        let mut state = self.state.subscribe();
        let known = tokio::time::timeout(PATIENCE, state.wait_for(|state| !matches!(state, State::Unknown))).await;
        match known {
            Ok(Ok(state)) => match &*state {
                State::Up(docker) => Ok(docker.clone()),
                State::Down(reason) => Err(self.away(reason)),
                State::Unknown => Err(self.away("nobody answered yet")),
            },
            Ok(Err(_)) => Err(self.away("the node is being stopped")),
            Err(_) => Err(self.away("it does not answer")),
        }
    }

    fn away(&self, reason: &str) -> Error {
        Error::unavailable(format!("the Docker engine at {} cannot be reached: {reason}", self.socket))
    }

    /// What an error of the engine means for who asked.
    pub(super) fn error(&self, error: DockerError) -> Error {
        match error {
            DockerError::DockerResponseServerError { status_code: 404, message } => Error::not_found(message),
            DockerError::DockerResponseServerError { message, .. } => Error::rejected(message),
            DockerError::DockerStreamError { error } => Error::rejected(error),
            DockerError::RequestTimeoutError => self.away("it did not answer in time"),
            other => self.away(&chain(&other)),
        }
    }

    /// Whether the engine is there, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), State::Up(_))
    }

    /// Why it cannot be reached; `None`: it can, or nobody knows yet.
    pub(super) fn trouble(&self) -> Option<String> {
        match &*self.state.borrow() {
            State::Down(reason) => Some(self.away(reason).message),
            State::Unknown | State::Up(_) => None,
        }
    }

    /// Resolves while it cannot be reached.
    pub(super) async fn is_away(&self) {
        // The sender is its own: there always is one.
        self.state.subscribe().wait_for(|state| matches!(state, State::Down(_))).await.ok();
    }

    /// Tells when a container ends, from now on and until [`forget`](Self::forget).
    pub(super) fn watch(&self, container: &str) -> watch::Receiver<Option<Exit>> {
        let (exit, receiver) = watch::channel(None);
        self.with(|watched| watched.insert(container.to_string(), Watched { exit, out_of_memory: false }));
        receiver
    }

    /// Watches it no more.
    pub(super) fn forget(&self, container: &str) {
        self.with(|watched| watched.remove(container));
    }

    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Watched>) -> R) -> R {
        act(&mut self.watched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps in touch until it is cancelled. `on_return` is run whenever the engine has come, before
    /// others may use it.
    pub(super) async fn run<F: Future<Output = ()>>(
        self: Arc<Self>,
        cancel: CancellationToken,
        on_return: impl Fn(Docker) -> F,
    ) {
        let mut wait = FIRST;
        while !cancel.is_cancelled() {
            let reason = match self.connect().await {
                Err(reason) => reason,
                Ok(docker) => {
                    wait = FIRST;
                    cancel.run_until_cancelled(self.listen(docker, &on_return)).await.unwrap_or_default()
                }
            };
            let was_down = matches!(&*self.state.borrow(), State::Down(_));
            if !was_down && !cancel.is_cancelled() {
                tracing::warn!(socket = self.socket, reason, "the Docker engine cannot be reached");
            }
            self.state.send_replace(State::Down(reason));
            let jitter = wait.mul_f64(rand::random_range(0.5..1.0));
            cancel.run_until_cancelled(tokio::time::sleep(jitter)).await;
            wait = LONGEST.min(wait * 2);
        }
    }

    async fn connect(&self) -> Result<Docker, String> {
        let docker = Docker::connect_with_unix(&self.socket, DEADLINE, bollard::API_DEFAULT_VERSION);
        let docker = match docker {
            Ok(docker) => docker.negotiate_version().await,
            Err(error) => Err(error),
        };
        let docker = docker.map_err(|error| chain(&error))?;
        let version = docker.client_version();
        if version.major_version == 1 && version.minor_version < OLDEST {
            return Err(format!(
                "it speaks version {version} of its interface: Docker 20.10 is the oldest that will do"
            ));
        }
        Ok(docker)
    }

    /// Takes what the engine tells; returns why it does no more.
    async fn listen<F: Future<Output = ()>>(&self, docker: Docker, on_return: &impl Fn(Docker) -> F) -> String {
        let filters = HashMap::from([
            ("type", vec!["container".to_string()]),
            ("label", vec![format!("{NODE}={}", self.node)]),
            ("event", vec!["die".into(), "oom".into(), "destroy".into()]),
        ]);
        // From before the look at what there is: nothing may happen in between unheard.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let options = EventsOptionsBuilder::new().since(&now.to_string()).filters(&filters).build();
        let mut events = Box::pin(docker.events(Some(options)));
        on_return(docker.clone()).await;
        let known: Vec<String> = self.with(|watched| watched.keys().cloned().collect());
        for container in known {
            self.look(&docker, &container).await;
        }
        if matches!(&*self.state.borrow(), State::Down(_)) {
            tracing::info!(socket = self.socket, "the Docker engine is back");
        }
        self.state.send_replace(State::Up(docker.clone()));
        loop {
            match events.next().await {
                Some(Ok(event)) => self.take(&docker, event).await,
                Some(Err(error)) => return chain(&error),
                None => return "it closed the connection".to_string(),
            }
        }
    }

    async fn take(&self, docker: &Docker, event: EventMessage) {
        let Some(container) = event.actor.and_then(|actor| actor.id) else { return };
        match event.action.as_deref() {
            Some("oom") => self.with(|watched| {
                if let Some(watched) = watched.get_mut(&container) {
                    watched.out_of_memory = true;
                }
            }),
            _ => self.look(docker, &container).await,
        }
    }

    /// Looks whether a container that is watched still runs.
    async fn look(&self, docker: &Docker, container: &str) {
        if !self.with(|watched| watched.contains_key(container)) {
            return;
        }
        let exit = match docker.inspect_container(container, None::<InspectContainerOptions>).await {
            Ok(found) => {
                let state = found.state.unwrap_or_default();
                if state.running.unwrap_or_default() {
                    return;
                }
                Exit::Code {
                    code: state.exit_code.unwrap_or_default(),
                    out_of_memory: state.oom_killed.unwrap_or_default(),
                }
            }
            Err(DockerError::DockerResponseServerError { status_code: 404, .. }) => Exit::Removed,
            // The engine is about to be gone; it is asked again when it is back.
            Err(_) => return,
        };
        self.with(|watched| {
            let Some(watched) = watched.get(container) else { return };
            let exit = match exit {
                // The kernel's word may come before or after the end of the process.
                Exit::Code { code, out_of_memory } => {
                    Exit::Code { code, out_of_memory: out_of_memory || watched.out_of_memory && code == 137 }
                }
                other => other,
            };
            watched.exit.send_if_modified(|known| {
                let is_news = known.is_none();
                if is_news {
                    *known = Some(exit);
                }
                is_news
            });
        });
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

//! The host loop, written once for everything that handles events.
//!
//! It takes an event from the mailbox, gives it to the instance, answers if it was a call, and
//! counts. When an instance breaks, by a trap or a panic, it is replaced after a back-off that
//! grows; when its replacements keep breaking, the component is *failed*: it stays known, with the
//! reason, and what is sent to it is answered with errors.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use edgeless_api::component::{ComponentKind, Target};
use edgeless_api::event::Reply;
use edgeless_api::status::{ComponentStatus, Level, State};
use edgeless_api::{ComponentId, Error, InstanceId};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::instance::{Instance, InstanceError};
use crate::log::Log;
use crate::mailbox::{Delivery, Receiver, mailbox};
use crate::metrics::{Dropped, InstanceMetrics};
use crate::outputs::Outputs;
use crate::router::Router;
use crate::state::State as SavedState;

/// The wait before the first replacement; it doubles with each that breaks.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest wait before a replacement.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(10);
/// Replacements that may break one after the other.
const ATTEMPTS: u32 = 6;
/// An instance that ran this long has recovered.
const RECOVERED: Duration = Duration::from_secs(60);
/// Lines of log that a status shows.
const STATUS_LINES: usize = 10;

/// Makes an instance, and its replacements. The token ends what one incarnation waits for.
pub type Factory = Box<dyn Fn(CancellationToken) -> BoxFuture<'static, Result<Box<dyn Instance>, Error>> + Send + Sync>;

/// A component that is to be hosted.
pub struct Component {
    /// The instance that it runs as here.
    pub id: InstanceId,
    /// What it is known by above.
    pub component: ComponentId,
    /// Which placement of it this is.
    pub epoch: u64,
    /// Its name in the workflow.
    pub name: String,
    /// Function or resource.
    pub kind: ComponentKind,
    /// How many events it handles at once.
    pub max_in_flight: usize,
    /// How long a handler may take; `None`: the runtime sees to it.
    pub handler_limit: Option<Duration>,
    /// Events that may wait.
    pub mailbox: usize,
    /// Its outputs.
    pub outputs: Outputs,
    /// Its log.
    pub log: Log,
    /// What it saves.
    pub state: SavedState,
    /// Its measures.
    pub metrics: Arc<InstanceMetrics>,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// A component that is hosted.
pub struct Hosted {
    component: Component,
    status: Arc<Mutex<(State, String)>>,
    ended: watch::Receiver<bool>,
}

/// Makes the first instance and starts to serve it.
///
/// # Errors
/// The instance cannot be made.
pub async fn host(
    component: Component,
    factory: Factory,
    router: Arc<Router>,
    grace: Duration,
) -> Result<Hosted, Error> {
    let token = component.cancel.child_token();
    let instance: Arc<dyn Instance> = factory(token.clone()).await?.into();
    let (sender, receiver) = mailbox(component.mailbox, component.metrics.clone());
    router.add_mailbox(component.id.function, sender);
    let status = Arc::new(Mutex::new((State::Running, String::new())));
    let (end, ended) = watch::channel(false);
    let host = Host {
        receiver,
        factory,
        router,
        grace,
        limit: component.handler_limit,
        max_in_flight: component.max_in_flight.max(1),
        id: component.id,
        log: component.log.clone(),
        metrics: component.metrics.clone(),
        cancel: component.cancel.clone(),
        status: status.clone(),
        failures: 0,
        since: Instant::now(),
    };
    tokio::spawn(async move {
        host.run(instance, token).await;
        end.send(true).ok();
    });
    Ok(Hosted { component, status, ended })
}

impl Hosted {
    /// What is hosted.
    pub fn component(&self) -> &Component {
        &self.component
    }

    /// Replaces what its outputs lead to.
    pub fn set_outputs(&self, outputs: std::collections::BTreeMap<String, Target>) {
        self.component.outputs.set(outputs);
    }

    /// Where it stands.
    pub fn status(&self) -> ComponentStatus {
        let (state, reason) = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let component = &self.component;
        ComponentStatus {
            component: component.component,
            name: component.name.clone(),
            state,
            instance: Some(component.id),
            epoch: component.epoch,
            restarts: component.metrics.restarts(),
            reason,
            log: component.log.last(STATUS_LINES),
            handled: component.metrics.handled(),
            dropped: component.metrics.dropped(),
        }
    }

    /// Ends it: what it waits for fails, the handler in hand gets a while to end, then its stop
    /// handler runs.
    pub async fn stop(&self) {
        self.component.cancel.cancel();
        let mut ended = self.ended.clone();
        // An error means that the loop is gone, which is what is waited for.
        ended.wait_for(|ended| *ended).await.ok();
    }
}

struct Host {
    id: InstanceId,
    receiver: Receiver,
    factory: Factory,
    router: Arc<Router>,
    grace: Duration,
    limit: Option<Duration>,
    max_in_flight: usize,
    log: Log,
    metrics: Arc<InstanceMetrics>,
    cancel: CancellationToken,
    status: Arc<Mutex<(State, String)>>,
    failures: u32,
    since: Instant,
}

/// What an instance died of.
struct Broken(String);

impl Host {
    async fn run(mut self, first: Arc<dyn Instance>, token: CancellationToken) {
        let mut current = Some((first, token));
        while let Some((instance, token)) = current.take() {
            match self.serve(&instance).await {
                None => {
                    token.cancel();
                    if tokio::time::timeout(self.grace, instance.stop()).await.is_err() {
                        self.log.push(Level::Warn, "edgeless", "the stop handler did not end in time");
                    }
                }
                Some(Broken(reason)) => {
                    // Cancels its delayed casts, which die with it.
                    token.cancel();
                    current = self.replace(reason).await;
                    if current.is_none() {
                        self.refuse().await;
                    }
                }
            }
        }
        self.router.remove_mailbox(self.id.function);
        self.set_status(State::Stopped, "");
        self.drain(Dropped::Stopping);
        self.router.metrics().forget(&self.metrics);
    }

    /// Handles events until the component is stopped (`None`) or the instance breaks.
    async fn serve(&mut self, instance: &Arc<dyn Instance>) -> Option<Broken> {
        let mut in_flight = FuturesUnordered::new();
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(handled) = in_flight.next(), if !in_flight.is_empty() => {
                    if let Err(broken) = handled {
                        return Some(broken);
                    }
                }
                delivery = self.receiver.take(), if in_flight.len() < self.max_in_flight => {
                    let Some(delivery) = delivery else { break };
                    let (limit, router) = (self.limit, self.router.clone());
                    in_flight.push(handle(
                        instance.clone(), delivery, limit, router, self.metrics.clone(), self.log.clone(),
                    ));
                }
            }
        }
        let rest = async { while in_flight.next().await.is_some() {} };
        if tokio::time::timeout(self.grace, rest).await.is_err() {
            self.log.push(Level::Warn, "edgeless", "a handler did not end in time and was cut off");
        }
        None
    }

    /// Makes a replacement, after a while; `None`: the component is failed or stopped.
    async fn replace(&mut self, reason: String) -> Option<(Arc<dyn Instance>, CancellationToken)> {
        if self.since.elapsed() >= RECOVERED {
            self.failures = 0;
        }
        let mut reason = reason;
        loop {
            self.log.push(Level::Error, "edgeless", format!("the instance broke: {reason}"));
            self.failures += 1;
            if self.failures >= ATTEMPTS {
                self.set_status(State::Failed, &reason);
                self.log.push(Level::Error, "edgeless", format!("failed: it broke {} times in a row", self.failures));
                return None;
            }
            self.set_status(State::Restarting, &reason);
            let back_off = FIRST_BACK_OFF.saturating_mul(1 << (self.failures - 1)).min(LONGEST_BACK_OFF);
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = tokio::time::sleep(back_off) => {}
            }
            let token = self.cancel.child_token();
            match (self.factory)(token.clone()).await {
                Ok(instance) => {
                    self.metrics.count_restart();
                    self.since = Instant::now();
                    self.set_status(State::Running, &reason);
                    return Some((instance.into(), token));
                }
                Err(error) => reason = error.to_string(),
            }
        }
    }

    /// Answers everything with errors until the component is stopped.
    async fn refuse(&mut self) {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                delivery = self.receiver.take() => match delivery {
                    Some(delivery) => self.lose(delivery, Dropped::TargetFailed),
                    None => return,
                },
            }
        }
    }

    /// Answers what is still queued with errors.
    fn drain(&mut self, cause: Dropped) {
        while let Some(Some(delivery)) = self.receiver.take().now_or_never() {
            self.lose(delivery, cause);
        }
    }

    fn lose(&self, delivery: Delivery, cause: Dropped) {
        self.metrics.count_dropped();
        self.router.count(cause);
        // Its reply, if it wants one, is an error.
        drop(delivery);
    }

    fn set_status(&self, state: State, reason: &str) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = (state, reason.to_string());
    }
}

/// Handles one event and answers it.
async fn handle(
    instance: Arc<dyn Instance>,
    delivery: Delivery,
    limit: Option<Duration>,
    router: Arc<Router>,
    metrics: Arc<InstanceMetrics>,
    log: Log,
) -> Result<(), Broken> {
    let Delivery { incoming, created, reply } = delivery;
    let started = Instant::now();
    if incoming.cause.deadline.is_some_and(|deadline| deadline <= started) {
        metrics.count_dropped();
        router.count(Dropped::Expired);
        return Ok(());
    }
    metrics.begin(SystemTime::now().duration_since(created).unwrap_or_default());
    let kind = incoming.kind;
    let deadline = match (limit.map(|limit| started + limit), incoming.cause.deadline) {
        (Some(limit), Some(deadline)) => Some(limit.min(deadline)),
        // A runtime keeps its own time: a guest is not to be dropped in the middle.
        (limit, _) => limit,
    };
    let result = AssertUnwindSafe(within(deadline, instance.handle(incoming))).catch_unwind().await;
    metrics.end(kind, started.elapsed());
    let (answer, broken) = match result {
        Ok(Ok(Some(payload))) => (Reply::Message(payload), Ok(())),
        Ok(Ok(None)) => (Reply::Empty, Ok(())),
        Ok(Err(InstanceError::Failed(reason))) => {
            log.push(Level::Warn, "edgeless", format!("an event was not handled: {reason}"));
            (Reply::Error, Ok(()))
        }
        Ok(Err(InstanceError::Broken(reason))) => (Reply::Error, Err(Broken(reason))),
        Err(_) => (Reply::Error, Err(Broken("its handler panicked: this is a fault of the node".to_string()))),
    };
    if let Some(reply) = reply {
        reply.send(answer);
    }
    broken
}

async fn within<T>(
    deadline: Option<Instant>,
    handler: impl Future<Output = Result<T, InstanceError>>,
) -> Result<T, InstanceError> {
    match deadline {
        None => handler.await,
        Some(deadline) => match tokio::time::timeout_at(deadline.into(), handler).await {
            Ok(result) => result,
            Err(_) => Err(InstanceError::Failed("the time of its handler is up".to_string())),
        },
    }
}

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
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::budget::Budget;
use crate::instance::{Instance, InstanceError};
use crate::log::Log;
use crate::mailbox::{Delivery, Receiver, mailbox};
use crate::metrics::{Dropped, InstanceMetrics};
use crate::outputs::Outputs;
use crate::router::Router;
use crate::state::State as SavedState;

/// The wait before the first replacement; it doubles with each that breaks.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// Instances that may break one after the other, without having handled an event in between.
const ATTEMPTS: u32 = 6;
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
    /// What its measures are filed under: the function type or the class.
    pub metrics_type: String,
    /// The payloads that may wait, bytes.
    pub queued: usize,
    /// Nobody will say when it may emit: its first outputs do.
    pub is_untold: bool,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// A component that is hosted.
pub struct Hosted {
    component: Component,
    metrics: Arc<InstanceMetrics>,
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
    // Whatever it started in vain ends with it.
    let guard = token.clone().drop_guard();
    let instance: Arc<dyn Instance> = factory(token).await?.into();
    let metrics = Arc::new(router.metrics().instance(component.id, &component.metrics_type));
    let (sender, receiver) = mailbox(component.mailbox, Budget::new(component.queued), metrics.clone());
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
        metrics: metrics.clone(),
        cancel: component.cancel.clone(),
        status: status.clone(),
        failures: 0,
    };
    tokio::spawn(async move {
        host.run(instance, guard).await;
        end.send(true).ok();
    });
    Ok(Hosted { component, metrics, status, ended })
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
            restarts: self.metrics.restarts(),
            reason,
            log: component.log.last(STATUS_LINES),
            handled: self.metrics.handled(),
            dropped: self.metrics.dropped(),
        }
    }

    /// Resolves when it has ended, stop handler included.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the loop is gone, which is what is waited for.
            ended.wait_for(|ended| *ended).await.ok();
        }
    }

    /// Ends it: what it waits for fails, the handler in hand gets a while to end, then its stop
    /// handler runs.
    pub async fn stop(&self) {
        self.component.cancel.cancel();
        self.ended().await;
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
    /// Instances that broke since the last event was handled.
    failures: u32,
}

/// Whether a handler took an event.
enum Handled {
    Yes,
    /// Its time was up before.
    Expired,
}

/// What an instance died of.
struct Broken(String);

/// Why an instance is served no more.
enum End {
    /// The component is stopped.
    Stopped,
    /// The component is stopped, and a handler was cut off in the middle.
    CutOff,
    /// It broke.
    Broken(String),
}

impl Host {
    async fn run(mut self, first: Arc<dyn Instance>, token: DropGuard) {
        let mut current = Some((first, token));
        // The token ends what an incarnation left behind: its delayed casts die with it.
        while let Some((instance, token)) = current.take() {
            match self.serve(&instance).await {
                End::Stopped => {
                    if tokio::time::timeout(self.grace, instance.stop()).await.is_err() {
                        self.log.push(Level::Warn, "edgeless", "the stop handler did not end in time");
                    }
                }
                // What was cut off in the middle is in no state to be asked anything.
                End::CutOff => {
                    self.log.push(Level::Warn, "edgeless", "a handler did not end in time and was cut off");
                }
                End::Broken(reason) => {
                    // Its place is free before its replacement wants one.
                    drop((instance, token));
                    current = self.replace(reason).await;
                    if current.is_none() {
                        self.refuse().await;
                    }
                }
            }
        }
        self.router.remove_mailbox(self.id.function);
        self.set_status(State::Stopped, "");
        self.receiver.close();
        while let Some(delivery) = self.receiver.take().await {
            lose(&self.metrics, &self.router, delivery, Dropped::Stopping);
        }
        self.metrics.retire();
    }

    /// Handles events until the component is stopped or the instance breaks.
    async fn serve(&mut self, instance: &Arc<dyn Instance>) -> End {
        let mut in_flight = FuturesUnordered::new();
        let cancel = self.cancel.clone();
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(handled) = in_flight.next(), if !in_flight.is_empty() => match handled {
                    Ok(Handled::Yes) => self.failures = 0,
                    Ok(Handled::Expired) => {}
                    Err(Broken(reason)) => return End::Broken(reason),
                },
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
        match tokio::time::timeout(self.grace, rest).await {
            Ok(()) => End::Stopped,
            Err(_) => End::CutOff,
        }
    }

    /// Makes a replacement, after a while; `None`: the component is failed or stopped.
    async fn replace(&mut self, reason: String) -> Option<(Arc<dyn Instance>, DropGuard)> {
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
            let back_off = FIRST_BACK_OFF.saturating_mul(1 << (self.failures - 1));
            tokio::select! {
                () = self.cancel.cancelled() => return None,
                () = tokio::time::sleep(back_off) => {}
            }
            let token = self.cancel.child_token();
            let guard = token.clone().drop_guard();
            let cancel = self.cancel.clone();
            match cancel.run_until_cancelled((self.factory)(token)).await? {
                Ok(instance) => {
                    self.metrics.count_restart();
                    self.set_status(State::Running, &reason);
                    return Some((instance.into(), guard));
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
                    Some(delivery) => lose(&self.metrics, &self.router, delivery, Dropped::TargetFailed),
                    None => return,
                },
            }
        }
    }

    fn set_status(&self, state: State, reason: &str) {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = (state, reason.to_string());
    }
}

/// Counts an event that is not handled. Its reply, if it wants one, is an error.
fn lose(metrics: &InstanceMetrics, router: &Router, delivery: Delivery, cause: Dropped) {
    metrics.count_dropped();
    router.count(cause);
    drop(delivery);
}

/// Handles one event and answers it.
async fn handle(
    instance: Arc<dyn Instance>,
    delivery: Delivery,
    limit: Option<Duration>,
    router: Arc<Router>,
    metrics: Arc<InstanceMetrics>,
    log: Log,
) -> Result<Handled, Broken> {
    let Delivery { incoming, created, reply } = delivery;
    let started = Instant::now();
    if incoming.cause.deadline.is_some_and(|deadline| deadline <= started) {
        metrics.count_dropped();
        router.count(Dropped::Expired);
        return Ok(Handled::Expired);
    }
    let in_hand = metrics.begin(SystemTime::now().duration_since(created).unwrap_or_default());
    let kind = incoming.kind;
    let deadline = match (limit.map(|limit| started + limit), incoming.cause.deadline) {
        (Some(limit), Some(deadline)) => Some(limit.min(deadline)),
        // A runtime keeps its own time: a guest is not to be dropped in the middle.
        (limit, _) => limit,
    };
    let result = AssertUnwindSafe(within(deadline, instance.handle(incoming))).catch_unwind().await;
    in_hand.end(kind, started.elapsed());
    let (answer, broken) = match result {
        Ok(Ok(Some(payload))) => (Reply::Message(payload), Ok(Handled::Yes)),
        Ok(Ok(None)) => (Reply::Empty, Ok(Handled::Yes)),
        Ok(Err(InstanceError::Failed(reason))) => {
            log.push(Level::Warn, "edgeless", format!("an event was not handled: {reason}"));
            (Reply::Error, Ok(Handled::Yes))
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

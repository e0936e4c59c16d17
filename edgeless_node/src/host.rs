//! The host loop, written once for everything that handles events.
//!
//! It takes an event from the mailbox, gives it to the instance, answers if it was a call, and
//! counts. When an instance breaks, by a trap or a panic, it is replaced after a back-off that
//! grows; when its replacements keep breaking, the component is *failed*: it stays known, with the
//! reason, and what is sent to it is answered with errors.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use edgeless_api::component::{ComponentKind, Target};
use edgeless_api::event::Reply;
use edgeless_api::node::InstanceLoad;
use edgeless_api::status::{ComponentStatus, Level, State};
use edgeless_api::{Code, ComponentId, Error, InstanceId};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::delivery::Transaction;
use crate::delivery::inbox::Arrival;
use crate::fate::Fate;
use crate::instance::{Controls, EventKind, Instance, InstanceError};
use crate::log::Log;
use crate::mailbox::{Delivery, Mailbox, Receiver, Replier, Told, watched};
use crate::metrics::{Dropped, InstanceMetrics};
use crate::outputs::Outputs;
use crate::router::Router;
use crate::rows::{Patience, RowCell};
use crate::state::State as SavedState;

/// The wait before the first replacement; it doubles with each that breaks.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// Instances that may break one after the other, without having handled an event in between.
const ATTEMPTS: u32 = 6;
/// Time after which an instance counts as one that worked, also when there was no event to handle.
const SETTLED: Duration = Duration::from_secs(60);
/// The longest wait for something that a replacement needs and that is away.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Time in handlers after which others have their turn, also when more events wait.
const TURN: Duration = Duration::from_micros(200);
/// The longest wait is reached by then.
const MOST_DOUBLINGS: u32 = 6;
/// How long what comes for an instance that has moved is passed on, once it is known where to.
const FORWARDING: Duration = Duration::from_secs(10);
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
    /// Which of its instances this is.
    pub replica: u32,
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
    /// What can be asked of it beside its events.
    pub controls: Option<Arc<dyn Controls>>,
    /// What its measures are filed under: the function type or the class.
    pub metrics_type: String,
    /// The payloads that may wait, bytes.
    pub queued: usize,
    /// Nobody will say when it may emit: its first outputs do.
    pub is_untold: bool,
    /// Told when events pile up; `None`: nobody wants to know what it has to do.
    pub pressed: Option<Arc<Notify>>,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Ends what is left of it when it has moved: the node stops.
    pub node: CancellationToken,
}

/// A component that is hosted.
pub struct Hosted {
    component: Component,
    mailbox: Mailbox,
    is_released: Arc<AtomicBool>,
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
    let instance = factory(token).await?;
    Ok(begin(component, factory, router, grace, Some((instance, guard))))
}

/// Serves a component again that another process of the node ran: its events wait until it has its first instance here,
/// which is made as any replacement is.
pub fn host_again(component: Component, factory: Factory, router: Arc<Router>, grace: Duration) -> Hosted {
    begin(component, factory, router, grace, None)
}

fn begin(
    component: Component,
    factory: Factory,
    router: Arc<Router>,
    grace: Duration,
    first: Option<(Box<dyn Instance>, DropGuard)>,
) -> Hosted {
    let ledger = component.outputs.ledger().clone();
    let metrics = router.metrics().instances().add(component.id, &component.metrics_type, ledger);
    let (mailbox, receiver) = watched(component.mailbox, component.queued, metrics.clone(), component.pressed.clone());
    router.add_mailbox(component.id.function, mailbox.clone());
    let is_released = Arc::new(AtomicBool::new(false));
    let status = match first {
        Some(_) => (State::Running, String::new()),
        None => (State::Restarting, "the node has started again".to_string()),
    };
    let status = Arc::new(Mutex::new(status));
    let (end, ended) = watch::channel(false);
    // A resource may emit at any moment, and a function only in its handlers.
    if component.kind == ComponentKind::Function
        && component.max_in_flight <= 1
        && let Some(custody) = component.outputs.custody()
    {
        custody.set_single();
    }
    let host = Host {
        receiver,
        factory,
        grace,
        max_in_flight: component.max_in_flight.max(1),
        id: component.id,
        row: router.row(component.component),
        is_released: is_released.clone(),
        hand: Hand {
            router,
            metrics: metrics.clone(),
            log: component.log.clone(),
            limit: component.handler_limit,
            outputs: component.outputs.clone(),
            state: component.state.clone(),
        },
        cancel: component.cancel.clone(),
        status: status.clone(),
        failures: 0,
        undone: 0,
    };
    let node = component.node.clone();
    tokio::spawn(async move {
        let late = host.run(first).await;
        end.send(true).ok();
        if let Some(late) = late {
            late.forward(&node).await;
        }
    });
    Hosted { component, mailbox, is_released, metrics, status, ended }
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
        let (state, mut reason) = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let component = &self.component;
        if state == State::Running
            && let Some(trouble) = component.controls.as_ref().and_then(|controls| controls.trouble())
        {
            // It goes on; what it broke of before is of less interest.
            reason = trouble;
        }
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
            outputs: component.outputs.ledger().read(),
            limits: Vec::new(),
            usage: None,
            instances: Vec::new(),
        }
    }

    /// Where it stands, with its limits and what it uses as far as these are known in time.
    pub async fn status_in_full(&self, deadline: tokio::time::Instant) -> ComponentStatus {
        let mut status = self.status();
        if let Some(controls) = &self.component.controls {
            let limits = tokio::time::timeout_at(deadline, controls.limits());
            let usage = tokio::time::timeout_at(deadline, controls.usage());
            let (limits, usage) = tokio::join!(limits, usage);
            (status.limits, status.usage) = (limits.unwrap_or_default(), usage.ok().flatten());
        }
        status
    }

    /// Resolves when it has ended, stop handler included.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move {
            // An error means that the loop is gone, which is what is waited for.
            ended.wait_for(|ended| *ended).await.ok();
        }
    }

    /// What it has to do, if anybody wants to know.
    pub fn load(&self) -> Option<InstanceLoad> {
        self.component.pressed.as_ref()?;
        Some(InstanceLoad {
            instance: self.component.id.function,
            // One that is busy is not idle, whatever waits for it.
            queued: u32::try_from(self.mailbox.queued() as u64 + self.metrics.in_flight()).unwrap_or(u32::MAX),
            handled: self.metrics.handled(),
        })
    }

    /// Ends it: what it waits for fails, the handler in hand gets a while to end, then its stop
    /// handler runs.
    pub async fn stop(&self) {
        self.component.cancel.cancel();
        self.ended().await;
    }

    /// Ends it because its component has moved: once it has handled what waits for it, its stop handler
    /// runs; when `grace` is over it is stopped, whatever it is about. What comes later, or is left, goes
    /// where the row of its component leads.
    pub async fn release(&self, grace: Duration) {
        self.is_released.store(true, Ordering::Release);
        self.mailbox.drain();
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.stop().await;
        }
    }
}

struct Host {
    id: InstanceId,
    /// Where its component runs.
    row: Arc<RowCell>,
    is_released: Arc<AtomicBool>,
    receiver: Receiver,
    factory: Factory,
    hand: Hand,
    grace: Duration,
    max_in_flight: usize,
    cancel: CancellationToken,
    status: Arc<Mutex<(State, String)>>,
    /// Instances that broke since the last event was handled.
    failures: u32,
    /// How often in a row what it did could not be written down.
    undone: u32,
}

/// Whether a handler took an event.
enum Handled {
    /// After so much time.
    Yes(Duration),
    /// Its time was up before, or it was here before.
    No,
}

/// What an instance died of.
struct Broken(String);

/// Why an instance is served no more.
enum End {
    /// The component is stopped.
    Stopped,
    /// The component is released, and everything that waited was handled.
    Drained,
    /// The component is stopped, and a handler was cut off in the middle.
    CutOff,
    /// It broke.
    Broken(String),
    /// What it did cannot be written down, and so is undone.
    Undone(String),
}

impl Host {
    /// Serves the component until it is stopped. What is left if it has moved.
    async fn run(mut self, first: Option<(Box<dyn Instance>, DropGuard)>) -> Option<Late> {
        let mut current = first;
        if current.is_none() {
            current = self.bring_back().await;
            if current.is_none() {
                self.refuse().await;
            }
        }
        // The token ends what an incarnation left behind: its delayed casts die with it.
        while let Some((instance, token)) = current.take() {
            let since = Instant::now();
            let end = self.serve(instance.as_ref()).await;
            let is_undone = match self.hand.outputs.custody() {
                Some(custody) => custody.begin_anew().await,
                None => false,
            };
            let end = match end {
                // It remembers what it has not done.
                End::Stopped | End::Drained if is_undone => End::CutOff,
                end => end,
            };
            if since.elapsed() >= SETTLED {
                self.failures = 0;
                self.undone = 0;
            }
            match end {
                End::Stopped | End::Drained => {
                    let began = Instant::now();
                    if !self.has_stopped(instance.as_ref()).await {
                        self.hand.log.push(Level::Warn, "edgeless", "the stop handler did not end in time");
                    }
                    self.hand.metrics.stop(began.elapsed());
                }
                // What was cut off in the middle is in no state to be asked anything.
                End::CutOff => {
                    self.hand.log.push(Level::Warn, "edgeless", "a handler did not end in time and was cut off");
                }
                End::Broken(reason) => {
                    // Its place is free before its replacement wants one.
                    drop((instance, token));
                    current = self.replace(reason).await;
                    if current.is_none() {
                        self.refuse().await;
                    }
                }
                End::Undone(reason) => {
                    drop((instance, token));
                    current = self.repeat(reason).await;
                    if current.is_none() {
                        self.refuse().await;
                    }
                }
            }
        }
        self.cancel.cancel();
        self.set_status(State::Stopped, "");
        let late = Late { id: self.id.function, row: self.row, receiver: self.receiver, hand: self.hand };
        if self.is_released.load(Ordering::Acquire) {
            late.hand.retire();
            return Some(late);
        }
        let hand = late.lose().await;
        hand.retire();
        None
    }

    /// Runs the stop handler. Whether it ended in time: what is released may finish what it has begun, and
    /// gets answers to what it asks, until it is stopped.
    async fn has_stopped(&self, instance: &dyn Instance) -> bool {
        let mut stop = pin!(instance.stop());
        tokio::select! {
            biased;
            () = &mut stop => true,
            () = self.cancel.cancelled() => tokio::time::timeout(self.grace, stop).await.is_ok(),
        }
    }

    /// Handles events until the component is stopped or the instance breaks.
    async fn serve(&mut self, instance: &dyn Instance) -> End {
        match self.max_in_flight {
            1 => self.serve_one_by_one(instance).await,
            _ => self.serve_several(instance).await,
        }
    }

    async fn serve_one_by_one(&mut self, instance: &dyn Instance) -> End {
        let cancel = self.cancel.clone();
        let mut cancelled = pin!(cancel.cancelled());
        // Made once and watched only while no event waits: it costs the events nothing.
        let mut broken = instance.broken();
        let outputs = self.hand.outputs.clone();
        let mut undone = pin!(async {
            match outputs.custody() {
                Some(custody) => custody.failed().await,
                None => std::future::pending().await,
            }
        });
        let mut busy = Duration::ZERO;
        loop {
            if busy > TURN {
                busy = Duration::ZERO;
                tokio::task::yield_now().await;
                // However many events wait.
                if let Some(reason) = (&mut broken).now_or_never() {
                    return End::Broken(reason);
                }
                if let Some(reason) = undone.as_mut().now_or_never() {
                    return End::Undone(reason);
                }
            }
            let delivery = tokio::select! {
                biased;
                () = &mut cancelled => return End::Stopped,
                delivery = self.receiver.take() => delivery,
                reason = &mut broken => return End::Broken(reason),
                reason = &mut undone => return End::Undone(reason),
            };
            let Some(delivery) = delivery else { return End::Drained };
            let mut handling = pin!(self.hand.handle(instance, delivery));
            let handled = tokio::select! {
                biased;
                handled = &mut handling => handled,
                () = &mut cancelled => {
                    return match tokio::time::timeout(self.grace, handling).await {
                        Ok(_) => End::Stopped,
                        Err(_) => End::CutOff,
                    };
                }
            };
            match handled {
                Ok(Handled::Yes(time)) => {
                    self.failures = 0;
                    busy += time;
                }
                Ok(Handled::No) => {}
                Err(Broken(reason)) => return End::Broken(reason),
            }
        }
    }

    async fn serve_several(&mut self, instance: &dyn Instance) -> End {
        let mut in_flight = FuturesUnordered::new();
        let cancel = self.cancel.clone();
        let mut cancelled = pin!(cancel.cancelled());
        let mut broken = instance.broken();
        let end = loop {
            tokio::select! {
                biased;
                () = &mut cancelled => break End::Stopped,
                Some(handled) = in_flight.next(), if !in_flight.is_empty() => match handled {
                    Ok(Handled::Yes(_)) => self.failures = 0,
                    Ok(Handled::No) => {}
                    Err(Broken(reason)) => return End::Broken(reason),
                },
                delivery = self.receiver.take(), if in_flight.len() < self.max_in_flight => {
                    let Some(delivery) = delivery else { break End::Drained };
                    in_flight.push(self.hand.handle(instance, delivery));
                }
                reason = &mut broken => return End::Broken(reason),
            }
        };
        let mut rest = pin!(async { while in_flight.next().await.is_some() {} });
        if matches!(end, End::Drained) {
            // Until the time of grace of whoever releases it is over.
            tokio::select! {
                () = &mut rest => return end,
                () = cancelled => {}
            }
        }
        match tokio::time::timeout(self.grace, rest).await {
            Ok(()) => End::Stopped,
            Err(_) => End::CutOff,
        }
    }

    /// Makes the first instance of a component that another process of the node ran; `None`: it is failed or stopped.
    async fn bring_back(&mut self) -> Option<(Box<dyn Instance>, DropGuard)> {
        let token = self.cancel.child_token();
        let guard = token.clone().drop_guard();
        match self.cancel.run_until_cancelled((self.factory)(token)).await? {
            Ok(instance) => {
                self.set_status(State::Running, "");
                Some((instance, guard))
            }
            Err(error) => {
                drop(guard);
                self.replace(error.to_string()).await
            }
        }
    }

    /// Makes a replacement, after a while; `None`: the component is failed or stopped.
    async fn replace(&mut self, reason: String) -> Option<(Box<dyn Instance>, DropGuard)> {
        let mut reason = reason;
        loop {
            self.hand.log.push(Level::Error, "edgeless", format!("the instance broke: {reason}"));
            self.failures += 1;
            if self.failures >= ATTEMPTS {
                self.set_status(State::Failed, &reason);
                self.hand.log.push(
                    Level::Error,
                    "edgeless",
                    format!("failed: it broke {} times in a row", self.failures),
                );
                return None;
            }
            match self.make(&reason).await? {
                Ok(replacement) => return Some(replacement),
                Err(error) => reason = error.to_string(),
            }
        }
    }

    /// Makes a replacement that begins where what is on the disk ends; `None`: the component is failed or stopped. That
    /// the disk takes no more is no fault of the component.
    async fn repeat(&mut self, reason: String) -> Option<(Box<dyn Instance>, DropGuard)> {
        self.hand.log.push(Level::Error, "edgeless", format!("what it did is undone: {reason}"));
        self.set_status(State::Restarting, &reason);
        self.undone = (self.undone + 1).min(MOST_DOUBLINGS);
        let back_off = FIRST_BACK_OFF.saturating_mul(1 << self.undone).min(LONGEST_WAIT);
        let cancel = self.cancel.clone();
        cancel.run_until_cancelled(tokio::time::sleep(back_off)).await?;
        let replacement = self.bring_back().await?;
        self.set_status(State::Running, &reason);
        Some(replacement)
    }

    /// Makes one replacement of what broke for this reason. While something that it needs is away,
    /// which is no fault of the component, it is tried again. `None`: the component is stopped.
    async fn make(&mut self, broke: &str) -> Option<Result<(Box<dyn Instance>, DropGuard), Error>> {
        let cancel = self.cancel.clone();
        let mut back_off = FIRST_BACK_OFF.saturating_mul(1 << (self.failures - 1));
        let mut away = String::new();
        self.set_status(State::Restarting, broke);
        loop {
            cancel.run_until_cancelled(tokio::time::sleep(back_off)).await?;
            let token = cancel.child_token();
            let guard = token.clone().drop_guard();
            match cancel.run_until_cancelled((self.factory)(token)).await? {
                Ok(instance) => {
                    self.hand.metrics.count_restart();
                    self.set_status(State::Running, broke);
                    return Some(Ok((instance, guard)));
                }
                Err(error) if error.code == Code::Unavailable => {
                    if away != error.message {
                        self.set_status(State::Restarting, &error.message);
                        let line = format!("it cannot be started again yet: {error}");
                        self.hand.log.push(Level::Warn, "edgeless", line);
                        away = error.message;
                    }
                    back_off = back_off.saturating_mul(2).min(LONGEST_WAIT);
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Answers everything with errors until the component is stopped.
    async fn refuse(&mut self) {
        loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return,
                delivery = self.receiver.take() => match delivery {
                    Some(delivery) => self.hand.lose(delivery, Dropped::TargetFailed),
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

/// What still comes for an instance that has ended.
struct Late {
    id: Uuid,
    row: Arc<RowCell>,
    receiver: Receiver,
    hand: Hand,
}

impl Late {
    /// Passes on what is left and what still comes, in order, to where the component runs now, or will run
    /// when it has moved.
    async fn forward(mut self, node: &CancellationToken) {
        let router = self.hand.router.clone();
        let moved_by = router.moved_by();
        let mut patience = Patience::new(Instant::now(), FORWARDING, moved_by);
        while let Some(delivery) = node.run_until_cancelled(self.next(&mut patience)).await.flatten() {
            let found = router.another(&self.row, self.id, &delivery.incoming, moved_by);
            match node.run_until_cancelled(found).await.unwrap_or(Err(Dropped::Stopping)) {
                Ok(target) => router.forward(target, delivery).await,
                Err(cause) => self.hand.lose(delivery, cause),
            }
        }
        self.lose().await;
    }

    /// What comes next; `None`: it has come for long enough.
    async fn next(&mut self, patience: &mut Patience) -> Option<Delivery> {
        loop {
            let changed = self.row.changed();
            let until = patience.until(Instant::now(), self.row.is_moving());
            tokio::select! {
                biased;
                delivery = self.receiver.take() => {
                    // None says only that nothing waited when it was released.
                    if delivery.is_some() {
                        return delivery;
                    }
                }
                () = changed => {}
                () = tokio::time::sleep_until(until.into()) => return None,
            }
        }
    }

    /// Takes nothing in any more, and drops what is left.
    async fn lose(mut self) -> Hand {
        self.hand.router.remove_mailbox(self.id);
        self.receiver.close();
        while let Some(delivery) = self.receiver.take().await {
            self.hand.lose(delivery, Dropped::Stopping);
        }
        self.hand
    }
}

/// What handling an event takes beside the instance.
struct Hand {
    router: Arc<Router>,
    metrics: Arc<InstanceMetrics>,
    log: Log,
    /// How long a handler may take; `None`: the runtime sees to it.
    limit: Option<Duration>,
    outputs: Outputs,
    state: SavedState,
}

impl Hand {
    /// The instance is gone.
    fn retire(&self) {
        self.router.metrics().instances().retire(&self.metrics);
    }

    /// Counts an event that is not handled. Its reply, if it wants one, is an error.
    fn lose(&self, delivery: Delivery, cause: Dropped) {
        self.metrics.count_dropped();
        self.router.count(cause);
        delivery.lose(cause);
    }

    /// Handles one event and answers it.
    async fn handle(&self, instance: &dyn Instance, delivery: Delivery) -> Result<Handled, Broken> {
        let started = Instant::now();
        if delivery.incoming.cause.deadline.is_some_and(|deadline| deadline <= started) {
            self.lose(delivery, Dropped::Expired);
            return Ok(Handled::No);
        }
        if let Some(custody) = self.outputs.custody() {
            let options = self.router.options();
            // Its sender tries again, or is told: nothing is lost, and nothing waits for ever.
            let id = delivery.incoming.id.as_deref();
            if !custody.is_open(id, options.queued, options.emit_wait).await {
                match delivery.incoming.id {
                    Some(_) => delivery.fate.settle(Fate::Dropped(Dropped::OutboxFull)),
                    None => self.lose(delivery, Dropped::OutboxFull),
                }
                return Ok(Handled::No);
            }
        }
        let transaction = match self.outputs.begin(delivery.incoming.id.as_deref()) {
            Ok(transaction) => transaction,
            Err(Arrival::Handled) => {
                delivery.fate.settle(Fate::Handled);
                return Ok(Handled::No);
            }
            // Its sender asks again, and is told when it is certain.
            Err(Arrival::New | Arrival::InHand) => {
                delivery.fate.settle(Fate::Dropped(Dropped::MailboxFull));
                return Ok(Handled::No);
            }
        };
        let Delivery { incoming, sent, reply, fate } = delivery;
        let in_hand = InHand::new(&self.metrics, fate, started.saturating_duration_since(sent));
        let kind = incoming.kind;
        let deadline = match (self.limit.map(|limit| started + limit), incoming.cause.deadline) {
            (Some(limit), Some(deadline)) => Some(limit.min(deadline)),
            // A runtime keeps its own time: a guest is not to be dropped in the middle.
            (limit, _) => limit,
        };
        let result = AssertUnwindSafe(within(deadline, instance.handle(incoming))).catch_unwind().await;
        let time = started.elapsed();
        let fate = in_hand.end(kind, time);
        let (answer, outcome) = match result {
            Ok(Ok(Some(payload))) => (Reply::Message(payload), Outcome::Handled),
            Ok(Ok(None)) => (Reply::Empty, Outcome::Handled),
            Ok(Err(InstanceError::Failed(reason))) => {
                self.log.push(Level::Warn, "edgeless", format!("an event was not handled: {reason}"));
                // A function that answers a call with an error has handled it.
                let is_call = kind == EventKind::Call;
                (Reply::Error, if is_call { Outcome::Handled } else { Outcome::Failed })
            }
            Ok(Err(InstanceError::Broken(reason))) => (Reply::Error, Outcome::Broken(reason)),
            Err(_) => (Reply::Error, Outcome::Broken("its handler panicked: this is a fault of the node".to_string())),
        };
        let end = Ending { fate, reply, answer };
        match transaction {
            None => end.come(Fate::Handled),
            Some(transaction) => return self.commit(transaction, outcome, end, time).await,
        }
        match outcome {
            Outcome::Handled | Outcome::Failed => Ok(Handled::Yes(time)),
            Outcome::Broken(reason) => Err(Broken(reason)),
        }
    }

    /// Has what a handler did written down, if it has come to its end; else it has done nothing.
    async fn commit(
        &self,
        transaction: Transaction,
        outcome: Outcome,
        end: Ending,
        time: Duration,
    ) -> Result<Handled, Broken> {
        let outcome = match outcome {
            Outcome::Handled if transaction.is_too_much() => {
                Outcome::Broken("it sent more at once than may wait to be delivered at least once".to_string())
            }
            outcome => outcome,
        };
        let refused = Fate::Dropped(Dropped::TargetFailed);
        match outcome {
            Outcome::Handled => {
                let written = move |written: Result<(), Error>| match written {
                    Ok(()) => end.come(Fate::Handled),
                    Err(_) => end.undo(),
                };
                transaction.commit(&self.state, Box::new(written)).await;
                Ok(Handled::Yes(time))
            }
            Outcome::Failed => {
                drop(transaction);
                end.come(refused);
                Ok(Handled::Yes(time))
            }
            Outcome::Broken(reason) => {
                drop(transaction);
                Ending { answer: Reply::Error, ..end }.come(refused);
                Err(Broken(reason))
            }
        }
    }
}

/// How a handler ended.
enum Outcome {
    Handled,
    /// The event could not be handled, and the instance goes on.
    Failed,
    Broken(String),
}

/// What its sender and its caller wait for.
struct Ending {
    fate: Told,
    reply: Option<Replier>,
    answer: Reply,
}

impl Ending {
    fn come(self, fate: Fate) {
        self.fate.settle(fate);
        if let Some(reply) = self.reply {
            reply.send(self.answer);
        }
    }

    /// What the handler did is undone, and so is its answer.
    fn undo(self) {
        Self { answer: Reply::Error, ..self }.come(Fate::Dropped(Dropped::NotKept));
    }
}

/// An event that a handler has. Dropped before its end, it counts as lost: the handler was cut off.
struct InHand<'m> {
    metrics: &'m InstanceMetrics,
    /// `None` once the handler is through with it.
    fate: Option<Told>,
}

impl<'m> InHand<'m> {
    fn new(metrics: &'m InstanceMetrics, mut fate: Told, transfer: Duration) -> Self {
        metrics.begin(transfer);
        fate.begin();
        Self { metrics, fate: Some(fate) }
    }

    /// The handler is through with it: what its sender is to be told with.
    fn end(mut self, kind: EventKind, execution: Duration) -> Told {
        self.metrics.end(kind, execution);
        self.fate.take().unwrap_or(Told::Nobody)
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(fate) = self.fate.take() {
            self.metrics.cut_off();
            fate.settle(Fate::Dropped(Dropped::Stopping));
        }
    }
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

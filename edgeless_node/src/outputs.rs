//! The outputs of one instance: where it emits by name.
//!
//! A component that is being started emits nothing: what it sends is held back, bounded, until the
//! whole workflow is wired and [`Outputs::activate`] lets it go, in order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgeless_api::InstanceId;
use edgeless_api::component::Target;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use crate::metrics::Dropped;
pub use crate::router::CallError;

use crate::books::{Books, Entry, Ledger};
use crate::budget::{Budget, Share};
use crate::delivery::{Custody, Origin};
use crate::event::{Cause, Payload};
use crate::fate::{Fate, Ticket};
use crate::router::{Route, Router};

/// The output that leads to the instance itself, without being mapped.
const SELF: &str = "self";
/// Where events are booked that were sent to an instance and not on an output.
pub(crate) const RAW: &str = "(raw)";
/// Where events are booked whose output leads nowhere. Guests name these, and might name any number.
const UNMAPPED: &str = "(unmapped)";
/// Events that are held back at the most.
const HELD: usize = 1024;
/// Delayed events that may be pending at the most.
const DELAYED: usize = 4096;

/// The outputs of one instance; clones are the same outputs.
#[derive(Clone, Debug)]
pub struct Outputs {
    shared: Arc<Shared>,
    /// Ends what the instance waits for.
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Shared {
    id: InstanceId,
    router: Arc<Router>,
    mapped: ArcSwap<Vec<(String, Arc<Output>)>>,
    /// What needs no mapping is made when it is first used: most instances never do.
    itself: OnceLock<Arc<Output>>,
    raw: OnceLock<Arc<Books>>,
    ledger: Arc<Ledger>,
    is_active: AtomicBool,
    activated: Notify,
    is_opening: AtomicBool,
    held: Mutex<VecDeque<Held>>,
    delayed: AtomicUsize,
    /// Bounds what is held back and what is delayed.
    budget: Budget,
    /// What is kept of events, if anything is.
    custody: OnceLock<Arc<Custody>>,
}

/// Where one output leads, and its books.
#[derive(Debug)]
struct Output {
    route: Route,
    books: Arc<Books>,
    /// What is sent is kept until it is handled.
    is_kept: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for _ in self.held.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.router.count(Dropped::SenderGone);
        }
    }
}

/// A cast that waits for activation. Its output is resolved then: it may not be wired before.
#[derive(Debug)]
struct Held {
    to: To,
    payload: Payload,
    cause: Cause,
    _share: Share,
}

#[derive(Debug)]
enum To {
    Output(String),
    Instance(InstanceId),
}

impl Outputs {
    /// Outputs that lead nowhere yet and hold back what is emitted.
    pub fn new(id: InstanceId, router: Arc<Router>, cancel: CancellationToken) -> Self {
        let budget = Budget::new(router.options().queued);
        let shared = Shared {
            id,
            router,
            budget,
            mapped: ArcSwap::default(),
            itself: OnceLock::new(),
            raw: OnceLock::new(),
            ledger: Arc::default(),
            is_active: AtomicBool::new(false),
            activated: Notify::new(),
            is_opening: AtomicBool::new(false),
            held: Mutex::default(),
            delayed: AtomicUsize::new(0),
            custody: OnceLock::new(),
        };
        Self { shared: Arc::new(shared), cancel }
    }

    /// The same outputs for another incarnation of the instance, whose end is `cancel`.
    #[must_use]
    pub fn until(&self, cancel: CancellationToken) -> Self {
        Self { shared: self.shared.clone(), cancel }
    }

    /// Keeps events here from now on. Called before anything is sent.
    pub fn keep(&self, custody: Custody) {
        // There is one: a second one changes nothing.
        self.shared.custody.get_or_init(|| Arc::new(custody));
    }

    /// What is kept of events, if anything is.
    pub fn custody(&self) -> Option<&Arc<Custody>> {
        self.shared.custody.get()
    }

    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.shared.router
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.shared.id
    }

    /// Where an output leads.
    pub(crate) fn route_of(&self, output: &str) -> Option<Route> {
        self.output(output).map(|output| output.route.clone())
    }

    fn keeps(&self, output: &str) -> bool {
        self.custody().is_some_and(|custody| custody.keeps(output))
    }

    /// The books of all outputs.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.shared.ledger
    }

    /// Replaces what the outputs lead to.
    pub fn set(&self, outputs: BTreeMap<String, Target>) {
        let router = &self.shared.router;
        let route = |target| match target {
            Target::Row(row) => Route::Row(router.set_row(row)),
            Target::Instance(id) => Route::Instance(id),
            // Components are what orchestrators are told; a node that is told one knows no instance.
            Target::Component(component) => {
                Route::Row(router.set_row(edgeless_api::component::Row::new(component, 0, Vec::new())))
            }
        };
        let output = |(name, target): (String, Target)| {
            let (books, is_kept) = (self.shared.ledger.of(&name), self.keeps(&name));
            (name, Arc::new(Output { route: route(target), books, is_kept }))
        };
        // In the order of their names.
        self.shared.mapped.store(Arc::new(outputs.into_iter().map(output).collect()));
    }

    /// Lets everything out that was held back, in order, and then whatever comes. Waits for nothing;
    /// a repeat changes nothing.
    pub fn activate(&self) {
        if self.shared.is_opening.swap(true, Ordering::Relaxed) {
            return;
        }
        // For those who send what is kept: it has waited for longer than what is held back.
        self.shared.activated.notify_waiters();
        self.resume();
        if self.open() {
            return;
        }
        let outputs = self.clone();
        self.shared.router.spawn(async move {
            outputs.cancel.run_until_cancelled(outputs.release()).await;
        });
    }

    /// Whether it was said that the component may emit.
    pub fn is_activated(&self) -> bool {
        self.shared.is_opening.load(Ordering::Relaxed)
    }

    /// Opens the outputs if nothing is held back.
    fn open(&self) -> bool {
        let held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_empty() {
            // Under the lock, so that nothing is held back after the last look.
            self.shared.is_active.store(true, Ordering::Release);
            self.shared.activated.notify_waiters();
        }
        held.is_empty()
    }

    async fn release(&self) {
        while !self.open() {
            let next = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(Held { to, payload, cause, .. }) = next {
                // What gets lost is counted by the router.
                self.send(to, payload, cause).await.ok();
            }
        }
    }

    fn is_active(&self) -> bool {
        self.shared.is_active.load(Ordering::Acquire)
    }

    /// Resolves when it is said that the component may emit, and it is about to.
    pub(crate) async fn opened(&self) {
        loop {
            let activated = self.shared.activated.notified();
            if self.is_activated() {
                return;
            }
            activated.await;
        }
    }

    /// Resolves when the component may emit.
    pub async fn activated(&self) {
        loop {
            let activated = self.shared.activated.notified();
            if self.is_active() {
                return;
            }
            activated.await;
        }
    }

    /// Whether an output leads anywhere.
    pub fn is_mapped(&self, output: &str) -> bool {
        output == SELF || self.shared.mapped.load().iter().any(|(name, _)| name == output)
    }

    /// Sends an event on an output.
    ///
    /// # Errors
    /// It got lost; that is counted.
    pub async fn cast(&self, output: &str, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        if !self.is_active() {
            // What a handler does counts at its end, and waits in the outbox.
            if self.custody().is_some_and(|custody| custody.keeps(output) && custody.is_staging()) {
                return Box::pin(self.cast_surely(output, payload, cause, Origin::Handler)).await;
            }
            return Box::pin(self.hold(To::Output(output.to_string()), payload, cause)).await;
        }
        let Some(found) = self.output(output) else { return Err(self.lost(Dropped::Unmapped)) };
        if found.is_kept {
            // Seldom, and large.
            return Box::pin(self.cast_surely(output, payload, cause, Origin::Handler)).await;
        }
        let output = found;
        tokio::select! {
            biased;
            sent = self.shared.router.cast(self.shared.id, &output.route, output.books.open(), payload, cause) => sent,
            () = self.ending() => {
                self.shared.router.count(Dropped::SenderGone);
                Err(Dropped::SenderGone)
            }
        }
    }

    /// Resolves a while after the instance was stopped: however long the target is on its way, a handler that
    /// sends to it can end in time.
    async fn ending(&self) {
        // Seldom looked at, and then for long: what is sent at once does without the room.
        Box::pin(async {
            self.cancel.cancelled().await;
            tokio::time::sleep(self.shared.router.options().emit_wait).await;
        })
        .await;
    }

    /// Sends an event to an instance.
    ///
    /// # Errors
    /// It got lost; that is counted.
    pub async fn cast_raw(&self, target: InstanceId, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        if !self.is_active() {
            return Box::pin(self.hold(To::Instance(target), payload, cause)).await;
        }
        let route = Route::Instance(target);
        self.shared.router.cast(self.shared.id, &route, self.raw().open(), payload, cause).await
    }

    async fn hold(&self, to: To, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        {
            let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_active() {
                let share = self.shared.budget.try_take(payload.len()).filter(|_| held.len() < HELD);
                let Some(share) = share else { return Err(self.lost(Dropped::HeldFull)) };
                held.push_back(Held { to, payload, cause, _share: share });
                return Ok(());
            }
        }
        self.send(to, payload, cause).await
    }

    async fn send(&self, to: To, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        let (id, router) = (self.shared.id, &self.shared.router);
        match to {
            To::Instance(target) => router.cast(id, &Route::Instance(target), self.raw().open(), payload, cause).await,
            To::Output(output) => match self.output(&output) {
                Some(found) if found.is_kept => self.cast_surely(&output, payload, cause, Origin::Elsewhere).await,
                Some(output) => router.cast(id, &output.route, output.books.open(), payload, cause).await,
                None => Err(self.lost(Dropped::Unmapped)),
            },
        }
    }

    /// Sends an event on an output after a while, to whatever the output leads to by then. Nothing
    /// is sent once the instance has ended.
    ///
    /// # Errors
    /// Too many are pending; that is counted.
    pub fn delayed_cast(&self, delay: Duration, output: &str, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        let cause = Cause { deadline: None, ..cause };
        let is_full = self.shared.delayed.fetch_add(1, Ordering::Relaxed) >= DELAYED;
        let share = self.shared.budget.try_take(payload.len()).filter(|_| !is_full);
        let entry = self.books(output).open().delayed();
        let Some(share) = share else {
            self.shared.delayed.fetch_sub(1, Ordering::Relaxed);
            return Err(self.refuse(entry, Dropped::DelayedFull));
        };
        let outputs = self.clone();
        let output = output.to_string();
        self.shared.router.spawn(async move {
            let _share = share;
            let due = async {
                tokio::time::sleep(delay).await;
                outputs.activated().await;
            };
            let found = match outputs.cancel.run_until_cancelled(due).await {
                Some(()) => outputs.output(&output).ok_or(Dropped::Unmapped),
                None => Err(Dropped::SenderGone),
            };
            match found {
                Ok(found) if found.is_kept => {
                    // It is in the outbox from here on, and in the books as sent then.
                    entry.withdraw();
                    outputs.cast_surely(&output, payload, cause, Origin::Elsewhere).await.ok();
                }
                Ok(output) => {
                    let (id, router) = (outputs.shared.id, &outputs.shared.router);
                    // What gets lost is counted by the router.
                    router.cast(id, &output.route, entry.due(), payload, cause).await.ok();
                }
                Err(cause) => _ = outputs.refuse(entry, cause),
            }
            outputs.shared.delayed.fetch_sub(1, Ordering::Relaxed);
        });
        Ok(())
    }

    /// Sends an event on an output and waits for the reply.
    ///
    /// # Errors
    /// There is no reply.
    pub async fn call(&self, output: &str, payload: Payload, cause: Cause) -> Result<Option<Payload>, CallError> {
        self.wait_active(cause).await?;
        let Some(found) = self.output(output) else {
            self.lost(Dropped::Unmapped);
            return Err(CallError::Unmapped(output.to_string()));
        };
        self.call_route(&found.route, found.books.open(), payload, cause).await
    }

    /// Sends an event to an instance and waits for the reply.
    ///
    /// # Errors
    /// There is no reply.
    pub async fn call_raw(
        &self,
        target: InstanceId,
        payload: Payload,
        cause: Cause,
    ) -> Result<Option<Payload>, CallError> {
        self.wait_active(cause).await?;
        self.call_route(&Route::Instance(target), self.raw().open(), payload, cause).await
    }

    async fn call_route(
        &self,
        route: &Route,
        entry: Entry,
        payload: Payload,
        cause: Cause,
    ) -> Result<Option<Payload>, CallError> {
        tokio::select! {
            biased;
            reply = self.shared.router.call(self.shared.id, route, entry, payload, cause) => reply,
            () = self.cancel.cancelled() => Err(CallError::Stopping),
        }
    }

    /// A call cannot be held back: its caller waits for the activation.
    async fn wait_active(&self, cause: Cause) -> Result<(), CallError> {
        if self.is_active() {
            return Ok(());
        }
        let limit = Instant::now() + self.shared.router.options().call_timeout;
        let deadline = cause.deadline.map_or(limit, |deadline| deadline.min(limit));
        tokio::select! {
            () = self.activated() => Ok(()),
            () = tokio::time::sleep_until(deadline.into()) => Err(CallError::Timeout),
            () = self.cancel.cancelled() => Err(CallError::Stopping),
        }
    }

    fn output(&self, name: &str) -> Option<Arc<Output>> {
        // A component has few outputs: to compare their names is quicker than to hash one.
        match self.shared.mapped.load().iter().find(|(known, _)| known == name) {
            Some((_, output)) => Some(output.clone()),
            None if name == SELF => Some(self.itself().clone()),
            None => None,
        }
    }

    fn itself(&self) -> &Arc<Output> {
        let shared = &self.shared;
        let make = || {
            let (route, books) = (Route::Instance(shared.id), shared.ledger.of(SELF));
            Arc::new(Output { route, books, is_kept: self.keeps(SELF) })
        };
        shared.itself.get_or_init(make)
    }

    fn raw(&self) -> &Arc<Books> {
        self.shared.raw.get_or_init(|| self.shared.ledger.of(RAW))
    }

    pub(crate) fn books(&self, output: &str) -> Arc<Books> {
        match self.output(output) {
            Some(output) => output.books.clone(),
            None if output == RAW => self.raw().clone(),
            None => self.shared.ledger.of(UNMAPPED),
        }
    }

    /// Counts an event that got lost before it was sent on an output.
    pub fn lost(&self, cause: Dropped) -> Dropped {
        self.refuse(self.shared.ledger.of(UNMAPPED).open(), cause)
    }

    /// Counts an event on an output that got lost before it was sent.
    pub fn lost_on(&self, output: &str, cause: Dropped) -> Dropped {
        self.refuse(self.books(output).open(), cause)
    }

    fn refuse(&self, entry: Entry, cause: Dropped) -> Dropped {
        entry.settle(Fate::Dropped(cause));
        self.shared.router.count(cause);
        cause
    }
}

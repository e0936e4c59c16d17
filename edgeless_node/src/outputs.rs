//! The outputs of one instance: where it emits by name.
//!
//! A component that is being started emits nothing: what it sends is held back, bounded, until the
//! whole workflow is wired and [`Outputs::activate`] lets it go, in order.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use edgeless_api::InstanceId;
use edgeless_api::component::Target;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use crate::metrics::Dropped;
pub use crate::router::CallError;

use crate::budget::{Budget, Share};
use crate::event::{Cause, Payload};
use crate::router::{Route, Router};

/// The output that leads to the instance itself, without being mapped.
const SELF: &str = "self";
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
    routes: ArcSwap<HashMap<String, Route>>,
    active: watch::Sender<bool>,
    is_opening: AtomicBool,
    held: Mutex<VecDeque<Held>>,
    delayed: AtomicUsize,
    /// Bounds what is held back and what is delayed.
    budget: Budget,
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
            is_opening: AtomicBool::new(false),
            routes: ArcSwap::default(),
            active: watch::Sender::new(false),
            held: Mutex::default(),
            delayed: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared), cancel }
    }

    /// The same outputs for another incarnation of the instance, whose end is `cancel`.
    #[must_use]
    pub fn until(&self, cancel: CancellationToken) -> Self {
        Self { shared: self.shared.clone(), cancel }
    }

    /// Replaces what the outputs lead to.
    pub fn set(&self, outputs: BTreeMap<String, Target>) {
        let router = &self.shared.router;
        let route = |target| match target {
            Target::Row(row) => Route::Row(router.set_row(row)),
            Target::Instance(id) => Route::Instance(id),
            // Components are what orchestrators are told; a node that is told one knows no instance.
            Target::Component(component) => {
                Route::Row(router.set_row(edgeless_api::component::Row { component, epoch: 0, instances: Vec::new() }))
            }
        };
        let routes = outputs.into_iter().map(|(channel, target)| (channel, route(target))).collect();
        self.shared.routes.store(Arc::new(routes));
    }

    /// Lets everything out that was held back, in order, and then whatever comes. Waits for nothing;
    /// a repeat changes nothing.
    pub fn activate(&self) {
        if self.shared.is_opening.swap(true, Ordering::Relaxed) {
            return;
        }
        let outputs = self.clone();
        tokio::spawn(async move { outputs.cancel.run_until_cancelled(outputs.release()).await });
    }

    async fn release(&self) {
        loop {
            let next = {
                let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
                let next = held.pop_front();
                if next.is_none() {
                    // Under the lock, so that nothing is held back after the last look.
                    self.shared.active.send_replace(true);
                }
                next
            };
            let Some(Held { to, payload, cause, .. }) = next else { return };
            // What gets lost is counted by the router.
            self.send(to, payload, cause).await.ok();
        }
    }

    /// Resolves when the component may emit.
    pub async fn activated(&self) {
        let mut active = self.shared.active.subscribe();
        // Ends with an error only if the outputs are gone, and then nobody waits.
        active.wait_for(|active| *active).await.ok();
    }

    /// Whether an output leads anywhere.
    pub fn is_mapped(&self, output: &str) -> bool {
        output == SELF || self.shared.routes.load().contains_key(output)
    }

    /// Sends an event on an output.
    ///
    /// # Errors
    /// It got lost; that is counted.
    pub async fn cast(&self, output: &str, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        if !*self.shared.active.borrow() {
            return self.hold(To::Output(output.to_string()), payload, cause).await;
        }
        match self.route(output) {
            Some(route) => self.shared.router.cast(self.shared.id, &route, payload, cause).await,
            None => Err(self.lost(Dropped::Unmapped)),
        }
    }

    /// Sends an event to an instance.
    ///
    /// # Errors
    /// It got lost; that is counted.
    pub async fn cast_raw(&self, target: InstanceId, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        if !*self.shared.active.borrow() {
            return self.hold(To::Instance(target), payload, cause).await;
        }
        self.shared.router.cast(self.shared.id, &Route::Instance(target), payload, cause).await
    }

    async fn hold(&self, to: To, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        {
            let mut held = self.shared.held.lock().unwrap_or_else(PoisonError::into_inner);
            if !*self.shared.active.borrow() {
                let share = self.shared.budget.try_take(payload.len()).filter(|_| held.len() < HELD);
                let Some(share) = share else { return Err(self.lost(Dropped::HeldFull)) };
                held.push_back(Held { to, payload, cause, _share: share });
                return Ok(());
            }
        }
        self.send(to, payload, cause).await
    }

    async fn send(&self, to: To, payload: Payload, cause: Cause) -> Result<(), Dropped> {
        let route = match to {
            To::Instance(target) => Some(Route::Instance(target)),
            To::Output(output) => self.route(&output),
        };
        match route {
            Some(route) => self.shared.router.cast(self.shared.id, &route, payload, cause).await,
            None => Err(self.lost(Dropped::Unmapped)),
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
        let Some(share) = share else {
            self.shared.delayed.fetch_sub(1, Ordering::Relaxed);
            return Err(self.lost(Dropped::DelayedFull));
        };
        let outputs = self.clone();
        let output = output.to_string();
        tokio::spawn(async move {
            let _share = share;
            tokio::select! {
                () = tokio::time::sleep(delay) => {
                    // What gets lost is counted by the router.
                    outputs.cast(&output, payload, cause).await.ok();
                }
                () = outputs.cancel.cancelled() => {
                    outputs.lost(Dropped::SenderGone);
                }
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
        let Some(route) = self.route(output) else {
            self.lost(Dropped::Unmapped);
            return Err(CallError::Unmapped(output.to_string()));
        };
        self.call_route(&route, payload, cause).await
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
        self.call_route(&Route::Instance(target), payload, cause).await
    }

    async fn call_route(&self, route: &Route, payload: Payload, cause: Cause) -> Result<Option<Payload>, CallError> {
        tokio::select! {
            reply = self.shared.router.call(self.shared.id, route, payload, cause) => reply,
            () = self.cancel.cancelled() => Err(CallError::Stopping),
        }
    }

    /// A call cannot be held back: its caller waits for the activation.
    async fn wait_active(&self, cause: Cause) -> Result<(), CallError> {
        if *self.shared.active.borrow() {
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

    fn route(&self, output: &str) -> Option<Route> {
        match self.shared.routes.load().get(output) {
            Some(route) => Some(route.clone()),
            None if output == SELF => Some(Route::Instance(self.shared.id)),
            None => None,
        }
    }

    /// Counts an event that got lost before it was sent.
    pub fn lost(&self, cause: Dropped) -> Dropped {
        self.shared.router.count(cause);
        cause
    }
}

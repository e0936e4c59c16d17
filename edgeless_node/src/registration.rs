//! Keeps the node known to its orchestrator.
//!
//! The node announces itself three times within the interval that the orchestrator names, and earlier when
//! events pile up for an instance whose load the orchestrator wants to know. An orchestrator that is away is tried again, with growing pauses, and that is said once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edgeless_api::client::{Connection, NodeRegistry, Options};
use edgeless_api::node::{Registered, Registration};
use edgeless_api::{Error, Url};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::capabilities::HealthMeter;
use crate::samples::Samples;

/// The shortest pause between two announcements.
const SHORTEST: Duration = Duration::from_millis(50);
/// The shortest pause before one that is made because events pile up.
const PRESSED: Duration = Duration::from_millis(200);
/// The first pause after an announcement that failed; it doubles with each.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest pause after an announcement that failed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// How long an announcement may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What keeps one node known.
pub struct Announcer {
    registry: NodeRegistry,
    url: Url,
    registration: Registration,
    /// Between two announcements, if the orchestrator does not say.
    interval: Duration,
    registered: Arc<AtomicBool>,
    samples: Samples,
    agent: Arc<Agent>,
}

impl Announcer {
    /// Announces to the orchestrator at `url`, and tells it of `samples`; `registered` tells whether it
    /// knows the node.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(
        url: &Url,
        registration: Registration,
        interval: Duration,
        registered: Arc<AtomicBool>,
        samples: Samples,
        agent: Arc<Agent>,
    ) -> Result<Self, Error> {
        let connection = Connection::lazy(url, Options { deadline: DEADLINE, ..Options::default() })?;
        let registry = NodeRegistry::new(connection);
        Ok(Self { registry, url: url.clone(), registration, interval, registered, samples, agent })
    }

    /// Announces until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut meter = HealthMeter::default();
        let mut back_off = FIRST_BACK_OFF;
        let mut said = false;
        tracing::info!(
            "Registering this node '{}' on e-ORC {}, capabilities: {}",
            self.registration.node,
            self.url,
            self.registration.capabilities
        );
        loop {
            let announced_at = Instant::now();
            self.registration.health = meter.measure();
            self.registration.loads = self.agent.loads();
            let performance = self.samples.take();
            let registration = Registration { performance: performance.clone(), ..self.registration.clone() };
            let announced = tokio::select! {
                () = cancel.cancelled() => {
                    // The goodbye may tell it.
                    self.samples.put_back(performance);
                    return;
                }
                announced = self.registry.update_node(registration) => announced,
            };
            if announced.is_err() {
                // If it did arrive, a repeat does no harm.
                self.samples.put_back(performance);
            }
            let pause = match announced {
                Ok(Registered { keep_alive }) => {
                    if !self.registered.swap(true, Ordering::Relaxed) {
                        tracing::info!("this node '{}' registered to e-ORC '{}'", self.registration.node, self.url);
                    }
                    (back_off, said) = (FIRST_BACK_OFF, false);
                    keep_alive.map_or(self.interval, |keep_alive| keep_alive / 3).max(SHORTEST)
                }
                Err(error) => {
                    self.registered.store(false, Ordering::Relaxed);
                    if !said {
                        tracing::warn!(orchestrator = %self.url, %error, "cannot register, trying again");
                        said = true;
                    }
                    let pause = back_off.mul_f64(rand::random_range(0.7..1.3));
                    back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                    pause
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // One that cannot be told of it is not told more often.
                () = self.agent.pressed().notified(), if self.registered.load(Ordering::Relaxed) => {
                    cancel.run_until_cancelled(tokio::time::sleep_until(announced_at + PRESSED)).await;
                }
            }
        }
    }

    /// What says goodbye when the node is about to stop.
    pub fn farewell(&self) -> Farewell {
        let registration = Registration { leaving: true, loads: Vec::new(), ..self.registration.clone() };
        let (registry, registered) = (self.registry.clone(), self.registered.clone());
        Farewell { registry, registration, registered, samples: self.samples.clone() }
    }
}

/// Says goodbye.
pub struct Farewell {
    registry: NodeRegistry,
    registration: Registration,
    registered: Arc<AtomicBool>,
    samples: Samples,
}

impl Farewell {
    /// Tells an orchestrator that knows the node that it leaves, and waits for it a moment only: one
    /// that is away finds out by itself.
    pub async fn say(self) {
        if self.registered.load(Ordering::Relaxed) {
            let registration = Registration { performance: self.samples.take(), ..self.registration };
            let said = tokio::time::timeout(Duration::from_secs(1), self.registry.update_node(registration)).await;
            if !matches!(said, Ok(Ok(_))) {
                tracing::debug!("the orchestrator did not hear the goodbye");
            }
        }
    }
}

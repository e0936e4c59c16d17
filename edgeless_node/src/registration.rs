//! Keeps the node known to its orchestrator.
//!
//! Beside that it keeps a link to an orchestrator that takes one, and announces itself when that ends.
//!
//! The node announces itself three times within the interval that the orchestrator names, and earlier when
//! events pile up for an instance whose load the orchestrator wants to know. An orchestrator that is away, or refuses the
//! node, is tried again, with growing pauses; the reason is said once, and again when it is another one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edgeless_api::client::{Connection, NodeRegistry, Options};
use edgeless_api::node::{Registered, Registration};
use edgeless_api::{Error, Url};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agent::Agent;
use crate::capabilities::HealthMeter;
use crate::key::KeyPair;
use crate::link::Link;
use crate::samples::Samples;

/// The shortest pause between two announcements.
const SHORTEST: Duration = Duration::from_millis(50);
/// The shortest pause before one that is made because events pile up.
const PRESSED: Duration = Duration::from_millis(200);
/// The first pause after an announcement that failed; it doubles with each.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest pause after an announcement that failed, give or take a third: an orchestrator that is back has its nodes
/// within a second.
const LONGEST_BACK_OFF: Duration = Duration::from_millis(700);
/// The pause between announcements where neither side names one.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long an announcement may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// What the orchestrator thinks of the node; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<Mutex<Opinion>>);

#[derive(Debug, Default)]
enum Opinion {
    /// Nothing was heard yet.
    #[default]
    Unheard,
    /// It knows the node.
    Known,
    /// It does not know the node, or cannot be reached.
    Failed(String),
}

impl Standing {
    /// Why the orchestrator does not know the node; `None`: it does.
    pub fn not_known(&self) -> Option<String> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Opinion::Known => None,
            Opinion::Unheard => Some("the orchestrator does not know this node yet".to_string()),
            Opinion::Failed(reason) => Some(format!("the orchestrator does not know this node: {reason}")),
        }
    }

    fn replace(&self, opinion: Opinion) -> Opinion {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), opinion)
    }

    /// The orchestrator knows the node; tells whether that is news.
    fn succeed(&self) -> bool {
        !matches!(self.replace(Opinion::Known), Opinion::Known)
    }

    /// The orchestrator does not; tells whether that, or the reason, is news.
    fn fail(&self, error: &Error) -> bool {
        let before = self.replace(Opinion::Failed(error.message.clone()));
        !matches!(before, Opinion::Failed(reason) if reason == error.message)
    }
}

/// What keeps one node known.
pub struct Announcer {
    registry: NodeRegistry,
    url: Url,
    registration: Registration,
    goodbye: Registration,
    standing: Standing,
    samples: Samples,
    agent: Arc<Agent>,
    link: Link,
}

impl Announcer {
    /// Announces to the orchestrator at `url`, signed with `key`, and tells it of `samples`; `standing` is what it
    /// answers. The link lasts until `base` is cancelled, and so until after the goodbye.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(
        url: &Url,
        registration: Registration,
        key: &KeyPair,
        standing: Standing,
        samples: Samples,
        agent: Arc<Agent>,
        base: CancellationToken,
    ) -> Result<Self, Error> {
        let connection = Connection::lazy(url, Options { deadline: DEADLINE, ..Options::default() })?;
        let registry = NodeRegistry::new(connection);
        let link = Link::new(url, key.hello(registration.node, registration.nonce), base)?;
        let goodbye = key.sign(Registration { leaving: true, ..registration.clone() });
        let registration = key.sign(registration);
        Ok(Self { registry, url: url.clone(), registration, goodbye, standing, samples, agent, link })
    }

    /// Announces until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut meter = HealthMeter::default();
        let mut back_off = FIRST_BACK_OFF;
        let interval = self.registration.interval.unwrap_or(INTERVAL);
        tracing::info!(
            "Registering this node '{}' on e-ORC {}, capabilities: {}",
            self.registration.node,
            self.url,
            self.registration.capabilities
        );
        let (mut is_asked, mut is_first) = (false, true);
        loop {
            let announced_at = Instant::now();
            self.registration.health = meter.measure();
            self.registration.loads = self.agent.loads();
            let performance = self.samples.take();
            let report = is_asked.then(|| self.agent.report());
            let registration = Registration { performance: performance.clone(), report, ..self.registration.clone() };
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
                Ok(Registered { keep_alive, wants_report, offers_link }) => {
                    if self.standing.succeed() {
                        tracing::info!("this node '{}' registered to e-ORC '{}'", self.registration.node, self.url);
                    }
                    back_off = FIRST_BACK_OFF;
                    if offers_link {
                        self.link.keep();
                    }
                    if std::mem::take(&mut is_first) && !wants_report {
                        // It cannot hear of what ran here before, and may start it elsewhere.
                        let agent = self.agent.clone();
                        tokio::spawn(async move { agent.end_revived().await });
                    }
                    // One that asks again although it was told waits as long as any other.
                    is_asked = wants_report && !is_asked;
                    if is_asked {
                        continue;
                    }
                    keep_alive.map_or(interval, |keep_alive| keep_alive / 3).max(SHORTEST)
                }
                Err(error) => {
                    if self.standing.fail(&error) {
                        tracing::warn!(orchestrator = %self.url, %error, "cannot register, trying again");
                    }
                    let pause = back_off.mul_f64(rand::random_range(0.7..1.3));
                    back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                    pause
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.link.lost() => {}
                // One that cannot be told of it is not told more often.
                () = self.agent.pressed().notified(), if self.standing.not_known().is_none() => {
                    cancel.run_until_cancelled(tokio::time::sleep_until(announced_at + PRESSED)).await;
                }
            }
        }
    }

    /// What says goodbye when the node is about to stop.
    pub fn farewell(&self) -> Farewell {
        let (registry, registration) = (self.registry.clone(), self.goodbye.clone());
        Farewell { registry, registration, standing: self.standing.clone(), samples: self.samples.clone() }
    }
}

/// Says goodbye.
pub struct Farewell {
    registry: NodeRegistry,
    registration: Registration,
    standing: Standing,
    samples: Samples,
}

impl Farewell {
    /// Tells an orchestrator that knows the node that it leaves, and waits for it a moment only: one
    /// that is away finds out by itself. Whether it was heard.
    pub async fn say(self) -> bool {
        if self.standing.not_known().is_some() {
            return false;
        }
        let registration = Registration { performance: self.samples.take(), ..self.registration };
        let said = tokio::time::timeout(Duration::from_secs(1), self.registry.update_node(registration)).await;
        let is_heard = matches!(said, Ok(Ok(_)));
        if !is_heard {
            tracing::debug!("the orchestrator did not hear the goodbye");
        }
        is_heard
    }
}

//! Keeps the domain known to its parent, as one node.
//!
//! As a node does: three times within the interval that the parent names, and at once when the nodes of the
//! domain change. A parent that is away is tried again, and that is said once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::client::{Connection, NodeRegistry, Options};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::Error;
use edgeless_api::id::{DomainId, NodeId};
use edgeless_api::node::{Health, InstanceLoad, Registered, Registration};
use edgeless_api::url::Url;
use edgeless_daemon::engine::Inbox;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::agent::Agent;
use super::aggregate;
use crate::engine::Engine;
use crate::forwarder::Locate;

/// The shortest pause between two announcements.
const SHORTEST: Duration = Duration::from_millis(50);
/// The first pause after an announcement that failed; it doubles with each.
const FIRST_BACK_OFF: Duration = Duration::from_millis(100);
/// The longest pause after an announcement that failed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// How long the parent may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long the nodes may take to say what they have to do.
const LOADS: Duration = Duration::from_millis(300);
/// How long the parent may take to hear a goodbye, or to say where a node is.
const MOMENT: Duration = Duration::from_secs(1);

/// The orchestrator of the domain above.
#[derive(Clone)]
pub(crate) struct Parent {
    url: Url,
    registry: NodeRegistry,
    knows_us: Arc<AtomicBool>,
}

impl Parent {
    /// The one at `url`.
    ///
    /// # Errors
    /// The address cannot be used.
    pub(crate) fn new(url: &Url) -> Result<Self, Error> {
        let connection = Connection::lazy(url, Options { deadline: DEADLINE, ..Options::default() })?;
        Ok(Self { url: url.clone(), registry: NodeRegistry::new(connection), knows_us: Arc::default() })
    }
}

#[async_trait]
impl Locate for Parent {
    async fn locate(&self, node: NodeId) -> Option<Url> {
        tokio::time::timeout(MOMENT, self.registry.locate(node)).await.ok()?.ok()?
    }
}

/// What keeps the domain known.
pub(crate) struct Announcer {
    pub(crate) parent: Parent,
    pub(crate) domain: DomainId,
    pub(crate) node: NodeId,
    pub(crate) agent_url: Url,
    pub(crate) invocation_url: Url,
    /// Names this process.
    pub(crate) nonce: u64,
    /// Between two announcements, if the parent does not say.
    pub(crate) interval: Duration,
    pub(crate) inbox: Inbox<Engine>,
    pub(crate) capabilities: watch::Receiver<DomainCapabilities>,
    pub(crate) agent: Arc<Agent>,
    /// Ends the announcements.
    pub(crate) cancel: CancellationToken,
}

impl Announcer {
    /// Announces the domain until the goodbye.
    pub(crate) async fn run(self) {
        self.cancel.clone().run_until_cancelled(self.repeat()).await;
    }

    async fn repeat(mut self) {
        tracing::info!("Registering domain '{}' as node '{}' on e-ORC {}", self.domain, self.node, self.parent.url);
        let mut back_off = FIRST_BACK_OFF;
        let mut is_said = false;
        let mut loads = Vec::new();
        loop {
            self.capabilities.borrow_and_update();
            let pause = match self.once(&mut loads).await {
                Ok(Registered { keep_alive, .. }) => {
                    if !self.parent.knows_us.swap(true, Ordering::Relaxed) {
                        tracing::info!(parent = %self.parent.url, domain = %self.domain, "the parent knows this domain");
                    }
                    (back_off, is_said) = (FIRST_BACK_OFF, false);
                    keep_alive.map_or(self.interval, |keep_alive| keep_alive / 3).max(SHORTEST)
                }
                Err(error) => {
                    self.parent.knows_us.store(false, Ordering::Relaxed);
                    if !is_said {
                        tracing::warn!(parent = %self.parent.url, %error, "cannot register the domain, trying again");
                        is_said = true;
                    }
                    let pause = back_off.mul_f64(rand::random_range(0.7..1.3));
                    back_off = (back_off * 2).min(LONGEST_BACK_OFF);
                    pause
                }
            };
            if matches!(tokio::time::timeout(pause, self.capabilities.changed()).await, Ok(Err(_))) {
                return;
            }
            // Nodes that come and go all the time are no reason to announce more often than this.
            tokio::time::sleep(SHORTEST).await;
        }
    }

    async fn once(&self, loads: &mut Vec<InstanceLoad>) -> Result<Registered, Error> {
        if let Ok(Ok(fresh)) = tokio::time::timeout(LOADS, self.agent.loads()).await {
            *loads = fresh;
        }
        // Those that are not part of the domain yet do not count.
        let is_empty = self.capabilities.borrow().num_nodes == 0;
        let nodes = if is_empty { vec![] } else { self.inbox.read(|engine, _| engine.nodes()).await? };
        let registration = Registration {
            providers: aggregate::providers(&nodes),
            capabilities: aggregate::capabilities(&self.domain, &nodes),
            loads: loads.clone(),
            reports: false,
            report: None,
            performance: edgeless_api::node::Performance::default(),
            ..self.farewell().registration
        };
        self.parent.registry.update_node(Registration { leaving: false, ..registration }).await
    }

    /// What says goodbye when the daemon is about to stop.
    pub(crate) fn farewell(&self) -> Farewell {
        let registration = Registration {
            node: self.node,
            agent_url: self.agent_url.clone(),
            invocation_url: self.invocation_url.clone(),
            providers: vec![],
            capabilities: aggregate::capabilities(&self.domain, &[]),
            nonce: self.nonce,
            lifetime: None,
            interval: Some(self.interval),
            health: Health::default(),
            native: true,
            leaving: true,
            proof: None,
            loads: vec![],
            reports: false,
            report: None,
            performance: edgeless_api::node::Performance::default(),
        };
        let (parent, agent, cancel) = (self.parent.clone(), self.agent.clone(), self.cancel.clone());
        Farewell { parent, registration, agent, cancel }
    }
}

/// Says goodbye.
pub(crate) struct Farewell {
    parent: Parent,
    registration: Registration,
    agent: Arc<Agent>,
    cancel: CancellationToken,
}

impl std::fmt::Debug for Farewell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Farewell").field("parent", &self.parent.url).finish_non_exhaustive()
    }
}

impl Farewell {
    /// Tells a parent that knows the domain that it leaves, and stops what ran for it: the parent starts that
    /// elsewhere. A parent that is away finds out by itself.
    pub(crate) async fn say(self) {
        self.cancel.cancel();
        if self.parent.knows_us.load(Ordering::Relaxed) {
            let said = tokio::time::timeout(MOMENT, self.parent.registry.update_node(self.registration)).await;
            if !matches!(said, Ok(Ok(_))) {
                tracing::debug!("the parent did not hear the goodbye");
            }
        }
        if let Err(error) = self.agent.stop_all().await {
            tracing::debug!(%error, "what ran for the parent cannot be stopped");
        }
    }
}

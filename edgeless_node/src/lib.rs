//! The node: runs functions and resources and carries their events.
//!
//! ```text
//!  orchestrator -> agent -> host loop -> instance (a runtime's or a provider's)
//!                             ^              |
//!                          mailbox        outputs
//!                             ^              v
//!                             +--- router <--+
//!                                  ^    ^
//!  other nodes <------- peer <-----+    |
//!  EDGELESS 1.x nodes -> invocation ----+
//! ```
//! - [`instance`]: what a function and a resource have in common, and what makes them:
//!   [`runtimes`] and [`resources`].
//! - [`host`]: the loop that serves an instance; [`mailbox`], [`outputs`]: its two ends.
//! - [`router`] and [`peer`]: the way from outputs to mailboxes, here and elsewhere; [`calls`]: the
//!   replies that are waited for; [`budget`]: the bytes that may wait; [`books`] and [`fate`]: what becomes of
//!   events.
//! - [`rows`]: where components run, and which of several instances gets an event;
//!   [`requests`]: what the orchestrator is asked for on behalf of events.
//! - [`backends`]: servers of this node that stand behind its HTTP ingress.
//! - [`metrics`]: what monitoring sees; [`starts`]: what functions take before their first event;
//!   [`samples`]: what the orchestrator is told of single measurements.
//! - [`records`]: what the node goes on with when its process has ended; [`journal`]: what runs; [`state`]: what
//!   functions save, [`shared`]: what they save outside the node, [`copies`]: what the orchestrator is told of it;
//!   [`delivery`]: what is kept of events.
//! - [`agent`] and [`registration`]: the two ends of the orchestrator's hold on the node; [`link`]: how either notices
//!   the end of the other; [`key`]: what it knows the
//!   node by.

pub mod agent;
pub mod backends;
pub mod books;
pub mod budget;
pub mod calls;
pub mod capabilities;
pub mod config;
pub mod copies;
pub mod delivery;
pub mod event;
pub mod fate;
pub mod host;
pub mod instance;
pub mod journal;
pub mod key;
pub mod link;
pub mod log;
pub mod mailbox;
pub mod measures;
pub mod metrics;
pub mod outputs;
pub mod peer;
pub mod records;
pub mod registration;
pub mod requests;
pub mod resources;
pub mod router;
pub mod rows;
pub mod runtimes;
pub mod samples;
pub mod shared;
pub mod starts;
pub mod state;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::node::{Capabilities, Presence, Registration};
use edgeless_api::server::{Invocation, Server};
use edgeless_api::{Error, Event, NodeId, Url};
use edgeless_daemon::config::Config as _;
use edgeless_daemon::tasks::Failure;
use edgeless_daemon::{Daemon, Handle, Stopped, Tasks, listen, status};

use agent::{Agent, Offer, Options as AgentOptions};
use backends::Backends;
pub use config::Config;
use copies::Copies;
use instance::Runtime;
use key::KeyPair;
use metrics::Metrics;
use records::Records;
use registration::{Announcer, Farewell, Standing};
use requests::Requests;
use resources::Surroundings;
use router::{Options as RouterOptions, Router};
use runtimes::container::{self, Containers};
use runtimes::wasm::{Limits as WasmLimits, Wasm};
use samples::Samples;
use shared::Shared;
use starts::StartTimes;
use state::StateStore;

/// A node that runs.
pub struct Node {
    id: NodeId,
    agent: Arc<Agent>,
    agent_url: Url,
    invocation_url: Url,
    metrics_url: Option<Url>,
    backends: Backends,
    containers: Option<Containers>,
    records: Records,
    farewell: Farewell,
    /// What the node does: stops first.
    front: Tasks,
    /// What its components live on.
    base: Tasks,
    grace: Duration,
}

impl Node {
    /// Who it is.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where it takes commands.
    pub fn addr(&self) -> &Url {
        &self.agent_url
    }

    /// Where it takes events.
    pub fn invocation_url(&self) -> &Url {
        &self.invocation_url
    }

    /// Where it serves metrics.
    pub fn metrics_url(&self) -> Option<&Url> {
        self.metrics_url.as_ref()
    }

    /// The servers that stand behind its HTTP ingress, for whoever has one to add.
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Ends without a goodbye, as a crash would: for tests of what the others then do.
    pub async fn kill(self) {
        // What its components would still like to write is lost.
        self.records.close();
        self.front.stop(Duration::ZERO).await;
        self.base.stop(Duration::ZERO).await;
    }
}

fn runtimes(config: &Config, starts: &StartTimes) -> Result<Vec<Arc<dyn Runtime>>, Error> {
    if !config.wasm_runtime.enabled {
        return Ok(Vec::new());
    }
    let limits = WasmLimits {
        instances: config.wasm_runtime.max_instances,
        memory: usize::try_from(config.wasm_runtime.memory_limit.as_u64()).unwrap_or(usize::MAX),
        time: config.wasm_runtime.cpu_limit,
        payload: config.limits.api().payload,
    };
    let wasm = Wasm::new(limits, config.module_cache(), starts.clone())?;
    Ok(vec![Arc::new(wasm)])
}

async fn containers(
    config: &Config,
    tasks: &Tasks,
    metrics: &Arc<Metrics>,
    backends: &Backends,
) -> Result<Option<Containers>, Error> {
    if !config.container_runtime.enabled {
        return Ok(None);
    }
    let surroundings = container::Surroundings {
        node: config.general.node_id,
        settings: config.container_runtime.clone(),
        limits: config.limits.api(),
        call_timeout: config.limits.call_timeout,
        backends: backends.clone(),
        starts: metrics.starts().clone(),
    };
    Containers::start(surroundings, tasks).await.map(Some)
}

async fn offers(
    config: &Config,
    tasks: &Tasks,
    metrics: &Arc<Metrics>,
    backends: &Backends,
) -> Result<Vec<Offer>, Error> {
    let mut offers = Vec::new();
    for (class, id, settings) in config.providers().map_err(Error::rejected)? {
        let surroundings = Surroundings {
            settings,
            tasks: tasks.clone(),
            limits: config.limits.api(),
            call_timeout: config.limits.call_timeout,
            metrics: metrics.clone(),
            backends: backends.clone(),
        };
        offers.push(Offer { id, class, provider: (class.provide)(surroundings).await? });
    }
    Ok(offers)
}

impl Daemon for Node {
    const NAME: &'static str = "edgeless_node_d";
    type Config = Config;
    type Handle = Self;

    async fn start(config: Config) -> Result<Self, Error> {
        Self::start_from(config, runtimes).await
    }
}

impl Node {
    /// Starts a node whose functions run in these runtimes, whatever its configuration says of them: for
    /// runtimes that are watched, or shared by several nodes of one process.
    ///
    /// # Errors
    /// Something local is wrong, as when a node is started from its configuration alone.
    pub async fn start_with(config: Config, runtimes: Vec<Arc<dyn Runtime>>) -> Result<Self, Error> {
        Self::start_from(config, |_, _| Ok(runtimes)).await
    }

    async fn start_from(
        config: Config,
        runtimes: impl FnOnce(&Config, &StartTimes) -> Result<Vec<Arc<dyn Runtime>>, Error> + Send,
    ) -> Result<Self, Error> {
        config.check().map_err(Error::rejected)?;
        tracing::info!("Starting Edgeless Node");
        let (front, base) = (Tasks::default(), Tasks::default());
        let started = Self::open(&config, runtimes, &front, &base).await;
        if started.is_err() {
            // What was bound before the failure is let go.
            front.cancel().cancel();
            base.cancel().cancel();
        }
        started
    }

    async fn open(
        config: &Config,
        runtimes: impl FnOnce(&Config, &StartTimes) -> Result<Vec<Arc<dyn Runtime>>, Error> + Send,
        front: &Tasks,
        base: &Tasks,
    ) -> Result<Self, Error> {
        let id = config.general.node_id;
        let directory = &config.general.state_directory;
        let key = KeyPair::of_directory(directory, id)?;
        let records = Records::open(directory, id).await?;
        let shared = config.general.state_url().map(Shared::new).transpose()?;
        let limits = config.limits.api();
        let metrics = {
            let samples = Samples::new(config.telemetry.performance_samples);
            Arc::new(Metrics::with_samples(id, config.limits.max_series, samples))
        };
        let options = RouterOptions {
            emit_wait: config.limits.emit_wait,
            move_wait: config.limits.move_wait,
            call_timeout: config.limits.call_timeout,
            max_payload: limits.payload,
            queued: usize::try_from(config.limits.queued.as_u64()).unwrap_or(usize::MAX),
            peer_lost_after: config.limits.peer_lost_after,
        };
        let router = Router::new(id, options, metrics.clone());

        let (invocation, invocation_url) = listen(&config.general.invocation_url).await?;
        tracing::info!("Start InvocationAPI GRPC Server at {invocation_url}");
        // They end with the front: requests in hand are answered by components that still run.
        let backends = Backends::default();
        let offers = offers(config, front, &metrics, &backends).await?;
        tracing::info!("Starting Edgeless Runner");
        let mut runtimes = runtimes(config, metrics.starts())?;
        let containers = containers(config, base, &metrics, &backends).await?;
        runtimes.extend(containers.iter().flat_map(Containers::runtimes));
        let kinds = runtimes.iter().map(|runtime| runtime.kind().to_string()).collect();
        let capabilities = Capabilities {
            has_global_state: shared.is_some(),
            ..capabilities::capabilities(capabilities::detect(), &config.user_node_capabilities, kinds)
        };
        let (agent_listener, agent_url) = listen(&config.general.agent_url).await?;
        let metrics_listener = match config.metrics_url() {
            Some(url) => Some(listen(url).await?),
            None => None,
        };

        let providers = agent::provider_specs(&offers);
        let agent_options = AgentOptions {
            components: config.limits.components,
            mailbox: config.limits.mailbox,
            log_lines: config.limits.log_lines,
            grace: config.limits.grace,
            delivery_tries: config.limits.delivery_tries,
        };
        tracing::info!("Starting Edgeless Agent");
        let register_url = config.register_url().ok_or_else(|| Error::rejected("there is no orchestrator_url"))?;
        let copies = Copies::new(id, register_url, limits.payload)?;
        let states = StateStore::new(records.clone(), shared).with_copies(copies);
        let agent = Agent::new(
            router.clone(),
            runtimes,
            offers,
            states,
            records.clone(),
            agent_options,
            base.cancel().child_token(),
        );

        let general = &config.general;
        let announced_url = general.invocation_url_announced.clone().unwrap_or_else(|| invocation_url.announced());
        router.set_requests(Requests::new(register_url)?);
        router.peers().set_own_url(announced_url.clone());
        // Before anybody can ask for anything: what runs is known, and can be told.
        agent.revive().await?;

        let events = Server::new(limits, base.cancel().clone())
            .peer_stream(router.peers().clone())
            .invocation(Arc::new(Ingress(router)));
        base.vital("invocation server", events.serve(invocation));
        let nonce = rand::random();
        let commands = Server::new(limits, front.cancel().clone())
            .components(agent.clone())
            .node_management(agent.clone())
            .node_presence(Presence { node: id, nonce });
        front.vital("agent server", commands.serve(agent_listener));
        tracing::info!("Start AgentAPI GRPC Server at {agent_url}");

        let standing = Standing::default();
        let samples = metrics.samples().clone();
        let metrics_url = metrics_listener.map(|(listener, url)| {
            let status = Arc::new(NodeStatus { metrics, standing: standing.clone() });
            front.vital("metrics server", status::serve(listener, status, front.cancel().clone()));
            url
        });

        let interval = Duration::from_secs(general.subscription_refresh_interval_sec.max(1));
        let registration = Registration {
            node: id,
            agent_url: general.agent_url_announced.clone().unwrap_or_else(|| agent_url.announced()),
            invocation_url: announced_url,
            providers,
            capabilities,
            nonce,
            lifetime: None,
            interval: Some(interval),
            health: edgeless_api::node::Health::default(),
            performance: edgeless_api::node::Performance::default(),
            native: true,
            leaving: false,
            proof: None,
            loads: Vec::new(),
            reports: true,
            report: None,
        };
        let announcer =
            Announcer::new(register_url, registration, &key, standing, samples, agent.clone(), base.cancel().clone())?;
        let farewell = announcer.farewell();
        front.helper("registration", announcer.run(front.cancel().clone()));

        Ok(Self {
            id,
            agent,
            agent_url,
            invocation_url,
            metrics_url,
            backends,
            containers,
            records,
            farewell,
            front: front.clone(),
            base: base.clone(),
            grace: config.limits.grace,
        })
    }
}

impl Handle for Node {
    fn ready(&self) -> String {
        format!("edgeless_node_d: node {} is ready at {}", self.id, self.agent_url)
    }

    async fn failed(&self) -> Failure {
        tokio::select! {
            failure = self.front.failed() => failure,
            failure = self.base.failed() => failure,
        }
    }

    async fn stop(self) -> Stopped {
        self.front.cancel().cancel();
        if let Some(containers) = &self.containers {
            // Or the front waits for them, and they for what they start.
            containers.end_starts();
        }
        let is_heard = self.farewell.say().await;
        let front = self.front.stop(self.grace).await;
        // Each component keeps to the grace itself; the rest is for its stop handler.
        let stopped = tokio::time::timeout(self.grace * 2, self.agent.stop_all(false)).await;
        let removed = match &self.containers {
            // What is not gone by then is removed by the next run of this node.
            Some(containers) => tokio::time::timeout(self.grace + container::REMOVAL, containers.stop()).await,
            None => Ok(()),
        };
        if is_heard {
            // It is given to others: this node does not go on with it.
            self.agent.forget_running().await;
        }
        self.records.close();
        let base = self.base.stop(self.grace).await;
        let mut forced = Vec::new();
        for part in [front, base] {
            if let Stopped::Forced { tasks } = part {
                forced.extend(tasks);
            }
        }
        forced.extend(stopped.is_err().then(|| "components".to_string()));
        forced.extend(removed.is_err().then(|| "containers".to_string()));
        if forced.is_empty() { Stopped::Clean } else { Stopped::Forced { tasks: forced } }
    }
}

/// Takes events from EDGELESS 1.x nodes.
struct Ingress(Arc<Router>);

#[async_trait]
impl Invocation for Ingress {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        self.0.accept(event).await
    }

    fn malformed(&self, error: &Error) {
        tracing::debug!(%error, "a malformed event was refused");
        self.0.metrics().refuse_event();
    }
}

struct NodeStatus {
    metrics: Arc<Metrics>,
    standing: Standing,
}

impl status::Status for NodeStatus {
    fn not_ready(&self) -> Option<String> {
        self.standing.not_known()
    }

    fn metrics(&self) -> String {
        self.metrics.text()
    }
}

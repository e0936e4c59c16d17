//! The orchestrator as a value: binds its ports, starts its tasks, stops them in order.

use std::sync::Arc;
use std::time::Duration;

use edgeless_api::component::ComponentSpec;
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::Error;
use edgeless_api::id::{DomainId, NodeId};
use edgeless_api::server::Server;
use edgeless_api::url::Url;
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::engine::{Driver, Inbox};
use edgeless_daemon::store::Store;
use edgeless_daemon::tasks::Failure;
use edgeless_daemon::{Daemon, Handle, Stopped, Tasks, listen, status};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::announce::Announcement;
use crate::border::Border;
use crate::config::Config;
use crate::doorman::{Doorman, Refusals};
use crate::engine::{Engine, Settings};
use crate::forwarder::{EngineRows, Forwarder, Identity, Locate};
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::mirror;
use crate::nested::{self, Agent, Announcer, Farewell, Parent};
use crate::owner::Owner;
use crate::prober::Prober;
use crate::service::Service;
use crate::shell::{Links, ROWS, Shell};
use crate::store;

/// How soon the engine sees that a deadline has passed.
const TICK: Duration = Duration::from_millis(100);
/// What requests in hand, and then everything else, may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// An orchestrator that runs.
#[derive(Debug)]
pub struct Orchestrator {
    domain: DomainId,
    url: Url,
    node_register_url: Url,
    metrics_url: Option<Url>,
    agent_url: Option<Url>,
    invocation_url: Option<Url>,
    farewell: Option<Farewell>,
    /// Cancelled once the file of the domain is closed.
    closed: CancellationToken,
    /// What takes requests; it ends first.
    servers: Tasks,
    tasks: Tasks,
}

impl Orchestrator {
    /// Where it listens to its controller: the real address where the configuration says port 0.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Where it listens to its nodes.
    pub fn node_register_url(&self) -> &Url {
        &self.node_register_url
    }

    /// Where monitoring finds it, if anywhere.
    pub fn metrics_url(&self) -> Option<&Url> {
        self.metrics_url.as_ref()
    }

    /// Where its parent commands it, if it has one.
    pub fn agent_url(&self) -> Option<&Url> {
        self.agent_url.as_ref()
    }

    /// Where its forwarder takes events, if it has one.
    pub fn invocation_url(&self) -> Option<&Url> {
        self.invocation_url.as_ref()
    }

    /// Ends in the middle of whatever it does, as a crash would: for tests of what becomes of components. Its ports and
    /// its file are free then.
    pub async fn kill(mut self) {
        self.farewell = None;
        self.servers.cancel().cancel();
        self.tasks.cancel().cancel();
        self.stop().await;
    }
}

impl Daemon for Orchestrator {
    const NAME: &'static str = "edgeless_orc_d";
    type Config = Config;
    type Handle = Self;

    async fn start(config: Config) -> Result<Self, Error> {
        let baseline = &config.baseline;
        tracing::info!("Starting Edgeless Orchestrator at {}", config.general.orchestrator_url);
        let (listener, url) = listen(&config.general.orchestrator_url).await?;
        let nodes = listen_if_set(config.general.node_register_url.as_ref()).await?;
        let monitoring = listen_if_set(config.general.metrics_url.as_ref()).await?;
        let gate = Gate::open(&config).await?;
        tracing::info!("node keep-alive enabled every {} seconds", baseline.keep_alive_interval_secs);
        tracing::info!("Orchestration logic strategy: {}", baseline.orchestration_strategy.title);

        let (servers, tasks) = (Tasks::default(), Tasks::default());
        let binaries = Binaries::new(config.limits.code_memory(), "limits.code_memory of the orchestrator");
        let (store, engine) = gate.engine(&config, &binaries).await?;
        let closed = store.as_ref().map(Store::closed).unwrap_or_else(cancelled);
        let driver = Driver::new(engine);
        let inbox = driver.inbox();
        let (published, capabilities) = watch::channel(DomainCapabilities::default());
        let rows = broadcast::Sender::new(ROWS);
        let links = Links::new(config.limits.wire());
        let metrics = Arc::new(Metrics::new());
        let refusals = Refusals::new(metrics.clone());
        let shell = Shell {
            links: links.clone(),
            replies: driver.replies(),
            capabilities: published,
            rows: rows.clone(),
            metrics: metrics.clone(),
            refusals: refusals.clone(),
            prober: Prober::default(),
            store,
        };
        let cancel = tasks.cancel().clone();
        tasks.vital("orchestration", async move {
            driver.run(shell, TICK, cancel).await;
            Ok::<(), Error>(())
        });

        let domain = DomainId(config.general.domain_id.clone());
        let owner = Owner::default();
        let forwarder = gate.forwarder(&config, &inbox, &metrics, tasks.cancel().clone());
        let border = match (&forwarder, &gate.parent) {
            (None, _) => Border::Open,
            (Some(forwarder), None) => Border::Private(forwarder.clone()),
            (Some(forwarder), Some(_)) => Border::Nested(forwarder.clone()),
        };
        let reports = mirror::start(&config, &inbox, &tasks, &metrics.mirror)?;
        let service = Arc::new(Service {
            inbox: inbox.clone(),
            limiter: Limiter::new(inbox.clone(), links.clone()),
            links,
            domain: domain.clone(),
            keep_alive: baseline.keep_alive(),
            capabilities: capabilities.clone(),
            rows,
            watchers: Arc::new(Semaphore::new(config.limits.max_watchers)),
            owner,
            border,
            doorman: Doorman::new(refusals),
            binaries,
            reports,
        });
        let server = || Server::new(config.limits.wire(), servers.cancel().clone());
        let mut main = server().components(service.clone()).domain(service.clone()).operations(service.clone());
        let node_register_url = match nodes {
            Some((listener, url)) => {
                servers.vital(
                    "node registration",
                    server().node_registry(service.clone()).node_link(service.clone()).serve(listener),
                );
                url
            }
            None => {
                main = main.node_registry(service.clone()).node_link(service.clone());
                url.clone()
            }
        };
        tracing::info!("Start OrchestratorAPIServer GRPC Server at {url}");
        servers.vital("orchestrator server", main.serve(listener));

        let (agent_url, invocation_url) = (gate.agent_url(), gate.invocation_url());
        let mut farewell = None;
        if let Some(forwarder) = forwarder {
            let announcer = gate.serve(&config, service, forwarder, capabilities.clone(), server, (&servers, &tasks));
            if let Some(announcer) = announcer {
                farewell = Some(announcer.farewell());
                tasks.helper("registration at the parent", announcer.run());
            }
        }
        if let Some(announcement) = announcement(&config, &url) {
            let cancel = tasks.cancel().clone();
            tasks.helper("domain announcement", async move {
                cancel.run_until_cancelled(announcement.repeat(capabilities, inbox)).await;
            });
        }
        let metrics_url = monitoring.map(|(listener, url)| {
            tasks.vital("metrics", status::serve(listener, metrics, tasks.cancel().clone()));
            url
        });
        Ok(Self {
            domain,
            url,
            node_register_url,
            metrics_url,
            agent_url,
            invocation_url,
            farewell,
            closed,
            servers,
            tasks,
        })
    }
}

/// Where others reach the domain that do not reach its nodes.
#[derive(Default)]
struct Gate {
    parent: Option<Parent>,
    agent: Option<(TcpListener, Url)>,
    invocation: Option<(TcpListener, Url)>,
}

impl Gate {
    /// Listens where the configuration says that somebody will come.
    async fn open(config: &Config) -> Result<Self, Error> {
        let general = &config.general;
        let parent = config.parent.orchestrator_url.as_ref().map(Parent::new).transpose()?;
        let mut gate = Self { parent, ..Self::default() };
        if gate.parent.is_some() {
            gate.agent = listen_if_set(general.agent_url.as_ref()).await?;
        }
        if gate.parent.is_some() || general.private {
            gate.invocation = listen_if_set(general.invocation_url.as_ref()).await?;
        }
        Ok(gate)
    }

    /// The engine, with the file that keeps it. What other domains know of one with a forwarder is known by that
    /// alone, and lost with it: such a domain begins with nothing, and whoever commands it sees that.
    async fn engine(&self, config: &Config, binaries: &Binaries) -> Result<(Option<Store>, Engine), Error> {
        let (directory, settings) = (&config.general.state_directory, settings(config));
        if directory.as_os_str().is_empty() || self.invocation.is_some() {
            return Ok((None, Engine::new(settings)));
        }
        let path = store::file(directory, &settings.domain);
        let (store, mut kept) = store::open(&path, rand::random()).await?;
        if !kept.components.is_empty() {
            tracing::info!(components = kept.components.len(), "components of before the restart");
        }
        for component in &mut kept.components {
            if let ComponentSpec::Function(function) = &mut component.spec {
                let code = &mut function.class.binary;
                // There may be less room for it than there was; it is needed all the same.
                *code = binaries.keep(code.clone()).unwrap_or_else(|_| code.clone());
            }
        }
        let engine = Engine::restore(settings, kept).map_err(|error| error.context(path.display()))?;
        Ok((Some(store), engine))
    }

    fn agent_url(&self) -> Option<Url> {
        self.agent.as_ref().map(|(_, url)| url.clone())
    }

    fn invocation_url(&self) -> Option<Url> {
        self.invocation.as_ref().map(|(_, url)| url.clone())
    }

    fn forwarder(
        &self,
        config: &Config,
        inbox: &Inbox<Engine>,
        metrics: &Arc<Metrics>,
        cancel: CancellationToken,
    ) -> Option<Arc<Forwarder>> {
        let (general, bound) = (&config.general, &self.invocation.as_ref()?.1);
        let node = match &self.parent {
            Some(_) => {
                let domain = DomainId(general.domain_id.clone());
                config.parent.node_id.unwrap_or_else(|| nested::node_of(&domain))
            }
            None => general.forwarder_id.unwrap_or_else(NodeId::random),
        };
        let url = general.invocation_url_announced.clone().unwrap_or_else(|| bound.announced());
        let me = Identity { node, url, limits: config.limits.wire() };
        let rows = Arc::new(EngineRows::new(inbox.clone()));
        let parent = self.parent.clone().map(|parent| Arc::new(parent) as Arc<dyn Locate>);
        Some(Forwarder::new(me, config.limits.max_forwarded, rows, parent, metrics.clone(), cancel))
    }

    /// Begins to serve, and returns what makes the domain known to its parent, if it has one.
    fn serve(
        self,
        config: &Config,
        service: Arc<Service>,
        forwarder: Arc<Forwarder>,
        capabilities: watch::Receiver<DomainCapabilities>,
        server: impl Fn() -> Server,
        (servers, tasks): (&Tasks, &Tasks),
    ) -> Option<Announcer> {
        let general = &config.general;
        let (listener, _) = self.invocation?;
        servers.vital("forwarder", server().invocation(forwarder.clone()).serve(listener));
        let (cancel, watching) = (tasks.cancel().clone(), forwarder.clone());
        tasks.helper("calls at the forwarder", async move {
            cancel.run_until_cancelled(watching.watch()).await;
        });
        let (parent, (listener, bound)) = (self.parent?, self.agent?);
        let (inbox, domain) = (service.inbox.clone(), service.domain.clone());
        let agent = Agent::new(service, forwarder.clone(), domain.clone());
        let commands = server().components(agent.clone()).node_management(agent.clone());
        servers.vital("agent of the domain", commands.serve(listener));
        Some(Announcer {
            parent,
            domain,
            node: forwarder.node(),
            agent_url: general.agent_url_announced.clone().unwrap_or_else(|| bound.announced()),
            invocation_url: forwarder.url().clone(),
            nonce: rand::random(),
            interval: Duration::from_secs(general.subscription_refresh_interval_sec),
            inbox,
            capabilities,
            agent,
            cancel: tasks.cancel().child_token(),
        })
    }
}

fn cancelled() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

async fn listen_if_set(url: Option<&Url>) -> Result<Option<(TcpListener, Url)>, Error> {
    match url {
        Some(url) => listen(url).await.map(Some),
        None => Ok(None),
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        domain: DomainId(config.general.domain_id.clone()),
        keep_alive: config.baseline.keep_alive(),
        state_grace: config.baseline.state_grace,
        strategy: config.baseline.orchestration_strategy,
        seed: rand::random(),
        max_nodes: config.limits.max_nodes,
        max_components: config.limits.max_components,
    }
}

fn announcement(config: &Config, bound: &Url) -> Option<Announcement> {
    let general = &config.general;
    Some(Announcement {
        controller: general.domain_register_url.clone()?,
        interval: Duration::from_secs(general.subscription_refresh_interval_sec),
        domain: DomainId(general.domain_id.clone()),
        orchestrator_url: general.orchestrator_url_announced.clone().unwrap_or_else(|| bound.announced()),
    })
}

impl Handle for Orchestrator {
    fn ready(&self) -> String {
        format!("edgeless_orc_d: domain '{}' at {}", self.domain, self.url)
    }

    async fn failed(&self) -> Failure {
        tokio::select! {
            failure = self.servers.failed() => failure,
            failure = self.tasks.failed() => failure,
        }
    }

    async fn stop(self) -> Stopped {
        if let Some(farewell) = self.farewell {
            farewell.say().await;
        }
        // Requests in hand may end by themselves; then whoever still waits is told that nothing
        // will come, which ends them too.
        drop(self.servers.stop(GRACE).await);
        let tasks = self.tasks.stop(GRACE).await;
        let servers = self.servers.stop(GRACE).await;
        // What was queued is written; the file can be opened again then.
        tokio::time::timeout(GRACE, self.closed.cancelled()).await.ok();
        let left: Vec<String> = [servers, tasks].into_iter().flat_map(left).collect();
        if left.is_empty() { Stopped::Clean } else { Stopped::Forced { tasks: left } }
    }
}

fn left(stopped: Stopped) -> Vec<String> {
    match stopped {
        Stopped::Clean => vec![],
        Stopped::Forced { tasks } => tasks,
    }
}

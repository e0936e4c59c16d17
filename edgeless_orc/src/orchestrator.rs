//! The orchestrator as a value: binds its ports, starts its tasks, stops them in order.

use std::sync::Arc;
use std::time::Duration;

use edgeless_api::domain::DomainCapabilities;
use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_api::server::Server;
use edgeless_api::url::Url;
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::engine::Driver;
use edgeless_daemon::tasks::Failure;
use edgeless_daemon::{Daemon, Handle, Stopped, Tasks, listen, status};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast, watch};

use crate::announce::Announcement;
use crate::config::Config;
use crate::engine::{Engine, Settings};
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::owner::Owner;
use crate::service::Service;
use crate::shell::{Links, ROWS, Shell};

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
        tracing::info!("node keep-alive enabled every {} seconds", baseline.keep_alive_interval_secs);
        tracing::info!("Orchestration logic strategy: {}", baseline.orchestration_strategy.title);

        let (servers, tasks) = (Tasks::default(), Tasks::default());
        let driver = Driver::new(Engine::new(settings(&config)));
        let inbox = driver.inbox();
        let (published, capabilities) = watch::channel(DomainCapabilities::default());
        let rows = broadcast::Sender::new(ROWS);
        let links = Links::new(config.limits.wire());
        let metrics = Arc::new(Metrics::new());
        let (replies, for_log) = (driver.replies(), metrics.clone());
        let shell =
            Shell { links: links.clone(), replies, capabilities: published, rows: rows.clone(), metrics: for_log };
        let cancel = tasks.cancel().clone();
        tasks.vital("orchestration", async move {
            driver.run(shell, TICK, cancel).await;
            Ok::<(), Error>(())
        });

        let domain = DomainId(config.general.domain_id.clone());
        let owner = Owner::new();
        let service = Arc::new(Service {
            inbox: inbox.clone(),
            limiter: Limiter::new(inbox.clone(), links.clone()),
            links,
            domain: domain.clone(),
            keep_alive: baseline.keep_alive(),
            capabilities: capabilities.clone(),
            rows,
            watchers: Arc::new(Semaphore::new(config.limits.max_watchers)),
            owner: owner.clone(),
            binaries: Binaries::new(config.limits.code_memory(), "limits.code_memory of the orchestrator"),
        });
        let server = || Server::new(config.limits.wire(), servers.cancel().clone());
        let mut main = server().components(service.clone()).domain(service.clone()).operations(service.clone());
        let node_register_url = match nodes {
            Some((listener, url)) => {
                servers.vital("node registration", server().node_registry(service).serve(listener));
                url
            }
            None => {
                main = main.node_registry(service);
                url.clone()
            }
        };
        tracing::info!("Start OrchestratorAPIServer GRPC Server at {url}");
        servers.vital("orchestrator server", main.serve(listener));

        if let Some(announcement) = announcement(&config, &url, owner) {
            let cancel = tasks.cancel().clone();
            tasks.helper("domain announcement", async move {
                cancel.run_until_cancelled(announcement.repeat(capabilities, inbox)).await;
            });
        }
        let metrics_url = monitoring.map(|(listener, url)| {
            tasks.vital("metrics", status::serve(listener, metrics, tasks.cancel().clone()));
            url
        });
        Ok(Self { domain, url, node_register_url, metrics_url, servers, tasks })
    }
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
        strategy: config.baseline.orchestration_strategy,
        seed: rand::random(),
        max_nodes: config.limits.max_nodes,
        max_components: config.limits.max_components,
    }
}

fn announcement(config: &Config, bound: &Url, owner: Owner) -> Option<Announcement> {
    let general = &config.general;
    Some(Announcement {
        controller: general.domain_register_url.clone()?,
        interval: Duration::from_secs(general.subscription_refresh_interval_sec),
        domain: DomainId(general.domain_id.clone()),
        orchestrator_url: general.orchestrator_url_announced.clone().unwrap_or_else(|| bound.announced()),
        owner,
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
        // Requests in hand may end by themselves; then whoever still waits is told that nothing
        // will come, which ends them too.
        drop(self.servers.stop(GRACE).await);
        let tasks = self.tasks.stop(GRACE).await;
        let servers = self.servers.stop(GRACE).await;
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

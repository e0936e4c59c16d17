//! The controller: takes workflows from users and gives their components to orchestration domains.
//!
//! - [`config`]: the keys of `controller.toml`.
//! - [`engine`]: every decision, as a pure function of events; [`placement`] is its choice of domain,
//!   [`cut`] that of several.
//! - `store`: the file that keeps workflows over a restart.
//! - `shell`: does what the engine decides. `follow`: watches the domains of the configuration; `rows`: where
//!   components run to which other domains have outputs; `probe`: what is left of a domain.
//! - `service`: what users and orchestrators ask, in terms of the engine; `limits`: what components may use;
//!   `operations`: what operators ask of domains.
//!
//! [`Controller`] puts them together. Nothing here knows a node: nodes are their domain's concern.

pub mod config;
pub mod cut;
mod dead;
pub mod engine;
mod follow;
mod limits;
mod metrics;
mod operations;
pub mod placement;
mod probe;
mod rows;
mod service;
mod shell;
mod store;

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use edgeless_api::client::{self, Connection};
use edgeless_api::error::Error;
use edgeless_api::id::DomainId;
use edgeless_api::record::Workflow;
use edgeless_api::server::Server;
use edgeless_api::{Binary, Limits, Url};
use edgeless_daemon::binaries::Binaries;
use edgeless_daemon::config::Config as _;
use edgeless_daemon::engine::Driver;
use edgeless_daemon::tasks::Failure;
use edgeless_daemon::{Daemon, Handle, Stopped, Tasks};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use config::{Config, Orchestrator};
use engine::{Engine, Settings};
use metrics::Metrics;
use operations::Operator;
use rows::Followers;
use service::Service;
use shell::{Executor, Peers};
use store::Records;

/// The time between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);

/// A controller that runs.
#[derive(Debug)]
pub struct Controller {
    url: Url,
    domain_register_url: Url,
    metrics_url: Option<Url>,
    tasks: Tasks,
    /// Ends the engine, which outlives the servers so that requests in hand are answered.
    engine: CancellationToken,
    /// Cancelled once the file of workflows is closed.
    closed: CancellationToken,
    grace: Duration,
}

impl Controller {
    /// Where users reach it.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Where orchestrators announce themselves.
    pub fn domain_register_url(&self) -> &Url {
        &self.domain_register_url
    }

    /// Where monitoring asks how it is.
    pub fn metrics_url(&self) -> Option<&Url> {
        self.metrics_url.as_ref()
    }

    /// Ends in the middle of whatever it does, as a crash would: for tests of what becomes of workflows. Its ports and
    /// its file are free then.
    pub async fn kill(self) {
        self.tasks.cancel().cancel();
        self.engine.cancel();
        self.stop().await;
    }
}

impl Daemon for Controller {
    const NAME: &'static str = "edgeless_con_d";
    type Config = Config;
    type Handle = Self;

    async fn start(config: Config) -> Result<Self, Error> {
        config.check().map_err(Error::rejected)?;
        let ports = Ports::bind(&config).await?;
        let kept = Kept::open(&config).await?;
        let limits = Limits { message: bytes(config.max_message_size), ..Limits::default() };
        let options = client::Options { deadline: config.call_timeout, limits, ..client::Options::default() };
        let controller = Self {
            url: ports.workflows.1.clone(),
            domain_register_url: ports.registry.as_ref().unwrap_or(&ports.workflows).1.clone(),
            metrics_url: ports.metrics.as_ref().map(|(_, url)| url.clone()),
            tasks: Tasks::default(),
            engine: CancellationToken::new(),
            closed: kept.records.closed(),
            grace: config.grace,
        };
        tracing::info!("Starting Edgeless Controller at {}", controller.url);
        controller.run(config, kept, ports, limits, options)?;
        Ok(controller)
    }
}

impl Handle for Controller {
    fn ready(&self) -> String {
        format!("Edgeless Controller is ready at {}", self.url)
    }

    async fn failed(&self) -> Failure {
        self.tasks.failed().await
    }

    async fn stop(self) -> Stopped {
        let stopped = self.tasks.stop(self.grace).await;
        self.engine.cancel();
        // What was queued is written; the file can be opened again then.
        tokio::time::timeout(self.grace, self.closed.cancelled()).await.ok();
        stopped
    }
}

/// What a controller knows from before it started.
struct Kept {
    records: Records,
    nonce: u64,
    workflows: Vec<Workflow>,
}

impl Kept {
    async fn open(config: &Config) -> Result<Self, Error> {
        let (records, found) = Records::open(&config.store_file())?;
        let nonce = records.nonce(&found, rand::random()).await?;
        if !found.workflows.is_empty() {
            tracing::info!(workflows = found.workflows.len(), "workflows of before the restart");
        }
        Ok(Self { records, nonce, workflows: found.workflows })
    }

    /// The workflows with their code as it is kept in memory.
    fn workflows(&mut self, binaries: &Binaries) -> Result<Vec<Workflow>, Error> {
        // There may be less room for it than there was; it is needed all the same.
        let keep = |binary: Binary| Ok::<_, Error>(binaries.keep(binary.clone()).unwrap_or(binary));
        let with_code = |mut workflow: Workflow| {
            workflow.asked = workflow.asked.map(|asked| asked.with_binaries(keep)).transpose()?;
            Ok(workflow)
        };
        std::mem::take(&mut self.workflows).into_iter().map(with_code).collect()
    }
}

/// What a controller listens on, with the real addresses.
struct Ports {
    workflows: (TcpListener, Url),
    /// `None`: the same as for workflows.
    registry: Option<(TcpListener, Url)>,
    metrics: Option<(TcpListener, Url)>,
}

impl Ports {
    async fn bind(config: &Config) -> Result<Self, Error> {
        let main = &config.controller_url;
        let registry = config.domain_register_url.as_ref().filter(|url| *url != main || url.port() == 0);
        Ok(Self {
            workflows: edgeless_daemon::listen(main).await?,
            registry: listen_if_set(registry).await?,
            metrics: listen_if_set(config.metrics_url.as_ref()).await?,
        })
    }
}

async fn listen_if_set(url: Option<&Url>) -> Result<Option<(TcpListener, Url)>, Error> {
    match url {
        Some(url) => edgeless_daemon::listen(url).await.map(Some),
        None => Ok(None),
    }
}

/// Saturates where addresses are too short for a limit that nobody can meet then.
fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

impl Controller {
    /// Starts every task.
    fn run(
        &self,
        config: Config,
        mut kept: Kept,
        ports: Ports,
        limits: Limits,
        options: client::Options,
    ) -> Result<(), Error> {
        let cancel = self.tasks.cancel();
        let peers = Peers::new(options);
        let orchestrators = config.orchestrators.into_iter();
        let orchestrators: Vec<_> = orchestrators.map(|own| (own.domain_id, own.orchestrator_url)).collect();
        let connect = |(domain, url): &(DomainId, Url)| Ok((domain.clone(), Connection::lazy(url, options)?));
        let watched = orchestrators.iter().map(connect).collect::<Result<Vec<_>, Error>>()?;
        let settings = Settings {
            orchestrators,
            max_workflows: config.max_workflows,
            max_domains: config.max_domains,
            domain_grace: config.domain_grace,
        };
        let binaries = Binaries::new(bytes(config.code_memory), "'code_memory' of the controller");
        let workflows = kept.workflows(&binaries)?;
        let driver = Driver::new(Engine::restore(settings, rand::random(), workflows)?);
        let inbox = driver.inbox();
        let metrics = Arc::new(Metrics::default());
        let Kept { records, nonce, .. } = kept;
        let followers = Followers::new(inbox.clone(), nonce);
        let executor = Executor::new(peers.clone(), driver.replies(), metrics.clone(), followers, records);
        let engine = self.engine.clone();
        self.tasks.vital("engine", async move {
            driver.run(executor, TICK, engine).await;
            Ok::<_, Error>(())
        });

        let operator = Arc::new(Operator::new(inbox.clone(), peers.clone()));
        let service = Arc::new(Service::new(inbox.clone(), peers, binaries));
        let engine_needed = Arc::new(self.engine.clone().drop_guard());
        let mut workflows = Server::new(limits, cancel.clone()).workflows(service.clone()).operations(operator);
        if let Some((listener, _)) = ports.registry {
            let server = Server::new(limits, cancel.clone()).domain_registry(service);
            let engine_needed = engine_needed.clone();
            self.tasks.vital("domain registry", async move {
                let served = server.serve(listener).await;
                drop(engine_needed);
                served
            });
        } else {
            workflows = workflows.domain_registry(service);
        }
        self.tasks.vital("workflow server", async move {
            let served = workflows.serve(ports.workflows.0).await;
            drop(engine_needed);
            served
        });
        if let Some((listener, _)) = ports.metrics {
            self.tasks.helper("metrics", metrics::refresh(metrics.clone(), inbox.clone(), cancel.clone()));
            self.tasks.vital("status port", edgeless_daemon::status::serve(listener, metrics, cancel.clone()));
        }
        for (domain, connection) in watched {
            self.tasks.helper("domain watch", follow::follow(domain, connection, nonce, inbox.clone(), cancel.clone()));
        }
        Ok(())
    }
}

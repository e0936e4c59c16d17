//! A platform on free ports, for tests: daemons are killed and started again one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use edgeless_api::client::{Connection, Operations, Options, Workflows};
use edgeless_api::{DomainId, Error, NodeId, Url};
use edgeless_con::Controller;
use edgeless_daemon::config::{Config as _, parse};
use edgeless_daemon::{Daemon, Handle, Stopped};
use edgeless_node::Node;
use edgeless_orc::Orchestrator;

/// An orchestration domain of a cluster.
#[derive(Clone, Debug)]
pub struct Domain {
    config: edgeless_orc::Config,
    nodes: usize,
    labels: Vec<Vec<String>>,
}

impl Domain {
    /// A domain with one node.
    ///
    /// # Errors
    /// Never in practice: the template of an orchestrator can be read.
    pub fn new(id: &str) -> Result<Self, Error> {
        let mut config: edgeless_orc::Config =
            parse(&edgeless_orc::Config::template(), std::iter::empty()).map_err(Error::bug)?;
        let general = &mut config.general;
        general.domain_id = id.to_string();
        general.orchestrator_url = free_port();
        general.agent_url = Some(free_port());
        general.invocation_url = Some(free_port());
        general.metrics_url = Some(free_port());
        config.baseline.keep_alive_interval_secs = 1;
        Ok(Self { config, nodes: 1, labels: Vec::new() })
    }

    /// How many nodes.
    #[must_use]
    pub fn nodes(self, nodes: usize) -> Self {
        Self { nodes, ..self }
    }

    /// The labels of each node, in order; nodes beyond the list have none.
    #[must_use]
    pub fn labels(self, labels: Vec<Vec<String>>) -> Self {
        Self { labels, ..self }
    }

    /// Changes what its orchestrator is configured with.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut edgeless_orc::Config)) -> Self {
        change(&mut self.config);
        self
    }
}

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: usize,
    labels: Vec<Vec<String>>,
    domains: Vec<Domain>,
    controller: edgeless_con::Config,
    change_node: fn(&mut edgeless_node::Config),
    directory: std::path::PathBuf,
}

impl Builder {
    /// How many nodes the one domain has, if no other is added.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// The labels of each of its nodes, in order; nodes beyond the list have none.
    #[must_use]
    pub fn labels(mut self, labels: Vec<Vec<String>>) -> Self {
        self.labels = labels;
        self
    }

    /// Adds a domain. With the first, `nodes` and `labels` have no effect.
    #[must_use]
    pub fn domain(mut self, domain: Domain) -> Self {
        self.domains.push(domain);
        self
    }

    /// Changes what the controller is configured with.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut edgeless_con::Config)) -> Self {
        change(&mut self.controller);
        self
    }

    /// Changes what its nodes are configured with, also those that are added later.
    #[must_use]
    pub fn configure_nodes(mut self, change: fn(&mut edgeless_node::Config)) -> Self {
        self.change_node = change;
        self
    }

    /// Starts the daemons and waits until the controller knows all nodes.
    ///
    /// # Errors
    /// A daemon cannot be started, or not all are known in time.
    pub async fn start(mut self) -> Result<Cluster, Error> {
        if self.domains.is_empty() {
            self.domains.push(Domain::new("domain-1")?.nodes(self.nodes).labels(self.labels));
        }
        let mut orchestrators = Vec::new();
        for domain in &mut self.domains {
            domain.config.general.state_directory = self.directory.join("orchestrators");
            orchestrators.push(Orchestrator::start(domain.config.clone()).await?);
        }
        let known = |(domain, orchestrator): (&Domain, &Orchestrator)| edgeless_con::Orchestrator {
            domain_id: DomainId(domain.config.general.domain_id.clone()),
            orchestrator_url: orchestrator.url().clone(),
        };
        let config = edgeless_con::Config {
            controller_url: free_port(),
            orchestrators: self.domains.iter().zip(&orchestrators).map(known).collect(),
            metrics_url: Some(free_port()),
            state_directory: self.directory.join("controller"),
            ..self.controller
        };
        let controller = Controller::start(config.clone()).await?;
        let mut cluster = Cluster {
            config: edgeless_con::Config { controller_url: controller.url().clone(), ..config },
            controller: Some(controller),
            domains: self.domains.iter().zip(orchestrators).map(|(domain, own)| Running::new(domain, own)).collect(),
            nodes: Vec::new(),
            configs: BTreeMap::new(),
            change_node: self.change_node,
            directory: self.directory,
        };
        for (index, domain) in self.domains.into_iter().enumerate() {
            cluster.add_nodes(index, domain.nodes, domain.labels).await?;
        }
        cluster.until_known().await?;
        Ok(cluster)
    }
}

/// A domain, and its orchestrator as long as that runs.
struct Running {
    url: Url,
    orchestrator: Option<Orchestrator>,
    /// With the ports that it has.
    config: edgeless_orc::Config,
}

impl Running {
    fn new(domain: &Domain, orchestrator: Orchestrator) -> Self {
        let mut config = domain.config.clone();
        let general = &mut config.general;
        general.orchestrator_url = orchestrator.url().clone();
        let bound = [
            (&mut general.agent_url, orchestrator.agent_url()),
            (&mut general.invocation_url, orchestrator.invocation_url()),
            (&mut general.metrics_url, orchestrator.metrics_url()),
        ];
        for (configured, bound) in bound {
            *configured = bound.cloned().or(configured.take());
        }
        Self { url: orchestrator.url().clone(), orchestrator: Some(orchestrator), config }
    }
}

fn free_port() -> Url {
    Url::of(([127, 0, 0, 1], 0).into())
}

/// A controller, its domains and their nodes, in this process.
pub struct Cluster {
    /// `None` between its end and its restart.
    controller: Option<Controller>,
    /// Of the controller, with its port.
    config: edgeless_con::Config,
    domains: Vec<Running>,
    nodes: Vec<Node>,
    /// Of all nodes that there ever were, with the place of their domain.
    configs: BTreeMap<NodeId, (usize, edgeless_node::Config)>,
    change_node: fn(&mut edgeless_node::Config),
    directory: std::path::PathBuf,
}

impl Cluster {
    /// A cluster whose nodes write below `directory`.
    pub fn builder(directory: &std::path::Path) -> Builder {
        Builder {
            nodes: 1,
            labels: Vec::new(),
            domains: Vec::new(),
            controller: edgeless_con::Config::default(),
            change_node: |_| {},
            directory: directory.to_path_buf(),
        }
    }

    /// Where users reach the controller.
    pub fn controller_url(&self) -> &Url {
        &self.config.controller_url
    }

    /// A user of the controller.
    ///
    /// # Errors
    /// Never in practice: the address is one that was bound.
    pub fn workflows(&self) -> Result<Workflows, Error> {
        Ok(Workflows::new(Connection::lazy(self.controller_url(), Options::default())?))
    }

    /// The nodes that run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// An operator at the controller.
    ///
    /// # Errors
    /// Never in practice: the address is one that was bound.
    pub fn operations(&self) -> Result<Operations, Error> {
        let options = Options { deadline: Duration::from_secs(60), ..Options::default() };
        Ok(Operations::new(Connection::lazy(self.controller_url(), options)?))
    }

    /// The nodes of a domain that run, by its place among the domains.
    pub fn nodes_of(&self, domain: usize) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| self.configs.get(&node.id()).is_some_and(|(own, _)| *own == domain))
    }

    /// Where the orchestrator of a domain is or was, by its place among the domains.
    pub fn orchestrator_url(&self, domain: usize) -> Option<&Url> {
        self.domains.get(domain).map(|domain| &domain.url)
    }

    /// Adds a domain of which the controller is not told, with its nodes, and tells its place.
    ///
    /// # Errors
    /// One of its daemons cannot be started.
    pub async fn add_domain(&mut self, mut domain: Domain) -> Result<usize, Error> {
        domain.config.general.state_directory = self.directory.join("orchestrators");
        let orchestrator = Orchestrator::start(domain.config.clone()).await?;
        let index = self.domains.len();
        self.domains.push(Running::new(&domain, orchestrator));
        self.add_nodes(index, domain.nodes, domain.labels).await?;
        Ok(index)
    }

    /// Ends the controller in the middle of whatever it does, as a crash would.
    pub async fn kill_controller(&mut self) {
        if let Some(controller) = self.controller.take() {
            controller.kill().await;
        }
    }

    /// Starts the controller again where it was, and with what it has kept, after ending it if it runs.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn restart_controller(&mut self) -> Result<(), Error> {
        self.kill_controller().await;
        self.controller = Some(Controller::start(self.config.clone()).await?);
        Ok(())
    }

    /// Ends the orchestrator of a domain in the middle of whatever it does, as a crash would.
    pub async fn kill_orchestrator(&mut self, domain: usize) {
        if let Some(orchestrator) = self.domains.get_mut(domain).and_then(|domain| domain.orchestrator.take()) {
            orchestrator.kill().await;
        }
    }

    /// Starts the orchestrator of a domain again where it was, and with what it has kept, after ending it if it runs.
    ///
    /// # Errors
    /// There is no such domain, or it cannot be started.
    pub async fn restart_orchestrator(&mut self, domain: usize) -> Result<(), Error> {
        self.kill_orchestrator(domain).await;
        let missing = || Error::not_found(format!("there is no domain at place {domain}"));
        let running = self.domains.get_mut(domain).ok_or_else(missing)?;
        running.orchestrator = Some(Orchestrator::start(running.config.clone()).await?);
        Ok(())
    }

    /// Ends a domain as a power cut would: its orchestrator and its nodes, without a goodbye.
    pub async fn kill_domain(&mut self, domain: usize) {
        self.stop_orchestrator(domain).await;
        let nodes: Vec<NodeId> = self.nodes_of(domain).map(Node::id).collect();
        for node in nodes {
            self.kill_node(node).await;
        }
    }

    /// Ends the orchestrator of a domain, and nothing else: orchestrators say no goodbye.
    pub async fn stop_orchestrator(&mut self, domain: usize) {
        if let Some(orchestrator) = self.domains.get_mut(domain).and_then(|domain| domain.orchestrator.take()) {
            orchestrator.stop().await;
        }
    }

    async fn add_nodes(&mut self, domain: usize, count: usize, labels: Vec<Vec<String>>) -> Result<(), Error> {
        for index in 0..count {
            self.add_node_to(domain, labels.get(index).cloned().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// Adds a node to the first domain.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn add_node(&mut self, labels: Vec<String>) -> Result<NodeId, Error> {
        self.add_node_to(0, labels).await
    }

    /// Adds a node to a domain.
    ///
    /// # Errors
    /// There is no such domain, or the node cannot be started.
    pub async fn add_node_to(&mut self, domain: usize, labels: Vec<String>) -> Result<NodeId, Error> {
        self.add_node_with(domain, labels, |_| {}).await
    }

    /// Adds a node to a domain that is configured otherwise than the others, as to be reached through a proxy.
    ///
    /// # Errors
    /// There is no such domain, or the node cannot be started.
    pub async fn add_node_with(
        &mut self,
        domain: usize,
        labels: Vec<String>,
        change: impl FnOnce(&mut edgeless_node::Config),
    ) -> Result<NodeId, Error> {
        let orchestrator = self.orchestrator_url(domain).cloned();
        let mut config: edgeless_node::Config =
            parse(&edgeless_node::Config::template(), std::iter::empty()).map_err(Error::bug)?;
        let general = &mut config.general;
        general.agent_url = free_port();
        general.invocation_url = free_port();
        general.metrics_url = Some(free_port());
        general.orchestrator_url =
            Some(orchestrator.ok_or_else(|| Error::not_found(format!("there is no domain at place {domain}")))?);
        general.state_directory = self.directory.join("state").join(general.node_id.to_string());
        let id = general.node_id;
        config.wasm_runtime.cache_directory = Some(self.directory.join(format!("cache-{id}")));
        // Many of them share an address space.
        config.wasm_runtime.max_instances = 64;
        config.user_node_capabilities.labels = labels;
        let text = |value: String| toml::Value::String(value);
        config.resources.insert("http_ingress_url".to_string(), text(free_port().to_string()));
        let logs = self.directory.display().to_string();
        config.resources.insert("file_log_directory".to_string(), text(logs));
        (self.change_node)(&mut config);
        change(&mut config);
        self.nodes.push(Node::start(config.clone()).await?);
        self.configs.insert(id, (domain, config));
        Ok(id)
    }

    /// Stops a node and starts it again, with the same identity and the same directories.
    ///
    /// # Errors
    /// There was never such a node, or it cannot be started.
    pub async fn restart_node(&mut self, id: NodeId) -> Result<(), Error> {
        self.stop_node(id).await;
        let (_, config) = self.configs.get(&id).ok_or_else(|| Error::not_found(format!("there is no node {id}")))?;
        self.nodes.push(Node::start(config.clone()).await?);
        Ok(())
    }

    /// Where monitoring finds the controller, and the first orchestrator.
    pub fn metrics_urls(&self) -> [Option<&Url>; 2] {
        let orchestrator = self.domains.first().and_then(|domain| domain.orchestrator.as_ref());
        [self.controller.as_ref().and_then(Controller::metrics_url), orchestrator.and_then(Orchestrator::metrics_url)]
    }

    /// Ends a node without a goodbye, as a crash would.
    pub async fn kill_node(&mut self, id: NodeId) {
        if let Some(index) = self.nodes.iter().position(|node| node.id() == id) {
            self.nodes.remove(index).kill().await;
        }
    }

    /// Stops a node as its operator would.
    pub async fn stop_node(&mut self, id: NodeId) -> Option<Stopped> {
        let index = self.nodes.iter().position(|node| node.id() == id)?;
        Some(self.nodes.remove(index).stop().await)
    }

    /// Waits until the controller knows all nodes that run.
    ///
    /// # Errors
    /// They are not known within ten seconds.
    pub async fn until_known(&self) -> Result<(), Error> {
        let workflows = self.workflows()?;
        let ready = crate::platform::until_ready(&workflows, &self.nodes);
        let in_time = tokio::time::timeout(Duration::from_secs(10), ready).await;
        in_time.map_err(|_| Error::timeout("the controller does not know all nodes"))
    }

    /// Stops everything, from the controller down.
    pub async fn stop(self) -> Vec<Stopped> {
        let mut stopped = Vec::new();
        if let Some(controller) = self.controller {
            stopped.push(controller.stop().await);
        }
        for orchestrator in self.domains.into_iter().filter_map(|domain| domain.orchestrator) {
            stopped.push(orchestrator.stop().await);
        }
        stopped.extend(futures_util::future::join_all(self.nodes.into_iter().map(Node::stop)).await);
        stopped
    }
}

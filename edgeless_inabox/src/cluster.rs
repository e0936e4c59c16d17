//! A platform on free ports, for tests: daemons are killed and started again one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use edgeless_api::client::{Connection, Options, Workflows};
use edgeless_api::{Error, NodeId, Url};
use edgeless_con::Controller;
use edgeless_daemon::config::{Config as _, parse};
use edgeless_daemon::{Daemon, Handle, Stopped};
use edgeless_node::Node;
use edgeless_orc::Orchestrator;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct Builder {
    nodes: usize,
    keep_alive_secs: u64,
    labels: Vec<Vec<String>>,
    directory: std::path::PathBuf,
}

impl Builder {
    /// How many nodes.
    #[must_use]
    pub fn nodes(mut self, count: usize) -> Self {
        self.nodes = count;
        self
    }

    /// The labels of each node, in order; nodes beyond the list have none.
    #[must_use]
    pub fn labels(mut self, labels: Vec<Vec<String>>) -> Self {
        self.labels = labels;
        self
    }

    /// Starts the daemons and waits until the controller knows all nodes.
    ///
    /// # Errors
    /// A daemon cannot be started, or not all are known in time.
    pub async fn start(self) -> Result<Cluster, Error> {
        let mut config = orchestrator_config()?;
        config.baseline.keep_alive_interval_secs = self.keep_alive_secs;
        let orchestrator = Orchestrator::start(config).await?;
        let domain = edgeless_con::Orchestrator {
            domain_id: edgeless_api::DomainId("domain-1".to_string()),
            orchestrator_url: orchestrator.url().clone(),
        };
        let config = edgeless_con::Config {
            controller_url: free_port(),
            orchestrators: vec![domain],
            metrics_url: Some(free_port()),
            ..edgeless_con::Config::default()
        };
        let controller = Controller::start(config).await?;
        let mut cluster =
            Cluster { controller, orchestrator, nodes: Vec::new(), configs: BTreeMap::new(), builder: self };
        for index in 0..cluster.builder.nodes {
            let labels = cluster.builder.labels.get(index).cloned().unwrap_or_default();
            cluster.add_node(labels).await?;
        }
        cluster.until_known().await?;
        Ok(cluster)
    }
}

fn free_port() -> Url {
    Url::of(([127, 0, 0, 1], 0).into())
}

fn orchestrator_config() -> Result<edgeless_orc::Config, Error> {
    let mut config: edgeless_orc::Config =
        parse(&edgeless_orc::Config::template(), std::iter::empty()).map_err(Error::bug)?;
    config.general.orchestrator_url = free_port();
    config.general.metrics_url = Some(free_port());
    Ok(config)
}

/// A controller, an orchestrator and nodes, in this process.
pub struct Cluster {
    controller: Controller,
    orchestrator: Orchestrator,
    nodes: Vec<Node>,
    /// Of all nodes that there ever were.
    configs: BTreeMap<NodeId, edgeless_node::Config>,
    builder: Builder,
}

impl Cluster {
    /// A cluster whose nodes write below `directory`.
    pub fn builder(directory: &std::path::Path) -> Builder {
        Builder { nodes: 1, keep_alive_secs: 1, labels: Vec::new(), directory: directory.to_path_buf() }
    }

    /// Where users reach the controller.
    pub fn controller_url(&self) -> &Url {
        self.controller.url()
    }

    /// A user of the controller.
    ///
    /// # Errors
    /// Never in practice: the address is one that was bound.
    pub fn workflows(&self) -> Result<Workflows, Error> {
        Ok(Workflows::new(Connection::lazy(self.controller.url(), Options::default())?))
    }

    /// The nodes that run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Adds a node.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn add_node(&mut self, labels: Vec<String>) -> Result<NodeId, Error> {
        let mut config: edgeless_node::Config =
            parse(&edgeless_node::Config::template(), std::iter::empty()).map_err(Error::bug)?;
        let general = &mut config.general;
        general.agent_url = free_port();
        general.invocation_url = free_port();
        general.metrics_url = Some(free_port());
        general.orchestrator_url = Some(self.orchestrator.url().clone());
        general.state_directory = self.builder.directory.join("state");
        let id = general.node_id;
        config.wasm_runtime.cache_directory = Some(self.builder.directory.join(format!("cache-{id}")));
        // Many of them share an address space.
        config.wasm_runtime.max_instances = 64;
        config.user_node_capabilities.labels = labels;
        let text = |value: String| toml::Value::String(value);
        config.resources.insert("http_ingress_url".to_string(), text(free_port().to_string()));
        let logs = self.builder.directory.display().to_string();
        config.resources.insert("file_log_directory".to_string(), text(logs));
        self.nodes.push(Node::start(config.clone()).await?);
        self.configs.insert(id, config);
        Ok(id)
    }

    /// Stops a node and starts it again, with the same identity and the same directories.
    ///
    /// # Errors
    /// There was never such a node, or it cannot be started.
    pub async fn restart_node(&mut self, id: NodeId) -> Result<(), Error> {
        self.stop_node(id).await;
        let config = self.configs.get(&id).ok_or_else(|| Error::not_found(format!("there is no node {id}")))?;
        self.nodes.push(Node::start(config.clone()).await?);
        Ok(())
    }

    /// Where monitoring finds the controller, and the orchestrator.
    pub fn metrics_urls(&self) -> [Option<&Url>; 2] {
        [self.controller.metrics_url(), self.orchestrator.metrics_url()]
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
        let mut stopped = vec![self.controller.stop().await, self.orchestrator.stop().await];
        stopped.extend(futures_util::future::join_all(self.nodes.into_iter().map(Node::stop)).await);
        stopped
    }
}

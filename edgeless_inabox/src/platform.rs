//! The daemons together, as one value.

use std::path::Path;
use std::time::Duration;

use edgeless_api::client::{Connection, Options, Workflows};
use edgeless_api::{Error, Url};
use edgeless_con::Controller;
use edgeless_daemon::config::{self, Config as _};
use edgeless_daemon::tasks::Failure;
use edgeless_daemon::{Daemon, Handle, Stopped};
use edgeless_node::Node;
use edgeless_orc::Orchestrator;

use crate::layout::Files;

/// The configurations of the daemons that run together.
#[derive(Clone, Debug, Default)]
pub struct Configs {
    /// At most one controller.
    pub controller: Option<edgeless_con::Config>,
    /// At most one orchestrator.
    pub orchestrator: Option<edgeless_orc::Config>,
    /// Any number of nodes.
    pub nodes: Vec<edgeless_node::Config>,
}

impl Configs {
    /// Reads the files that are in a directory; `None` if there is none.
    ///
    /// # Errors
    /// A file is wrong.
    pub fn load(directory: &Path) -> Result<Option<Self>, config::ConfigError> {
        let mut configs = Self::default();
        let controller = directory.join(edgeless_con::Config::FILE);
        if controller.is_file() {
            configs.controller = Some(config::load(&controller)?);
        }
        let orchestrator = directory.join(edgeless_orc::Config::FILE);
        if orchestrator.is_file() {
            configs.orchestrator = Some(config::load(&orchestrator)?);
        }
        let unreadable = |reason| config::ConfigError::Unreadable { file: directory.display().to_string(), reason };
        let mut nodes = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("node") && name.ends_with(".toml") {
                nodes.push(path);
            }
        }
        nodes.sort();
        for path in nodes {
            configs.nodes.push(config::load(&path)?);
        }
        let is_empty = configs.controller.is_none() && configs.orchestrator.is_none() && configs.nodes.is_empty();
        Ok((!is_empty).then_some(configs))
    }

    /// Parses the texts of files that were never written.
    ///
    /// # Errors
    /// The environment sets something wrong.
    pub fn parse(files: &Files) -> Result<Self, String> {
        Ok(Self {
            controller: Some(config::parse(&files.controller, config::environment())?),
            orchestrator: Some(config::parse(&files.orchestrator, config::environment())?),
            nodes: files
                .nodes
                .iter()
                .map(|text| config::parse(text, config::environment()))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Daemons that run together.
pub struct Platform {
    controller: Option<Controller>,
    orchestrator: Option<Orchestrator>,
    nodes: Vec<Node>,
    /// Where HTTP requests reach workflows, for whoever reads what is said at the start.
    ingress: Vec<String>,
}

impl Platform {
    /// Starts the daemons. When one of them cannot be started, the others are stopped again.
    ///
    /// # Errors
    /// What is wrong, and with which daemon.
    pub async fn start(configs: Configs) -> Result<Self, Error> {
        let mut platform = Self { controller: None, orchestrator: None, nodes: Vec::new(), ingress: Vec::new() };
        match platform.start_all(configs).await {
            Ok(()) => Ok(platform),
            Err(error) => {
                platform.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self, configs: Configs) -> Result<(), Error> {
        if let Some(config) = configs.orchestrator {
            self.orchestrator = Some(Orchestrator::start(config).await.map_err(|error| error.context("orchestrator"))?);
        }
        if let Some(config) = configs.controller {
            self.controller = Some(Controller::start(config).await.map_err(|error| error.context("controller"))?);
        }
        for config in configs.nodes {
            let providers = config.providers().map_err(Error::rejected)?;
            let ingress = providers.iter().filter(|(class, ..)| class.class_type == "http-ingress");
            self.ingress.extend(ingress.map(|(_, _, settings)| settings.text("http_ingress_url").to_string()));
            self.nodes.push(Node::start(config).await.map_err(|error| error.context("node"))?);
        }
        Ok(())
    }

    /// Waits until workflows can be started: until the controller knows all nodes of this process.
    /// Gives up after `patience`, since some of the daemons may be elsewhere and away.
    pub async fn until_ready(&self, patience: Duration) -> bool {
        let Some(url) = self.controller.as_ref().map(Controller::url) else { return true };
        let Ok(connection) = Connection::lazy(url, Options::default()) else { return false };
        tokio::time::timeout(patience, until_ready(&Workflows::new(connection), &self.nodes)).await.is_ok()
    }

    /// Where users reach the controller, if it is part of this.
    pub fn controller_url(&self) -> Option<&Url> {
        self.controller.as_ref().map(Controller::url)
    }
}

/// Waits until the controller knows all these nodes, and their domains place components on them.
pub(crate) async fn until_ready(workflows: &Workflows, nodes: &[Node]) {
    loop {
        let known = workflows.nodes(None).await.unwrap_or_default();
        let domains = workflows.domains(None).await.unwrap_or_default();
        let ready: u32 = domains.values().map(|domain| domain.num_nodes).sum();
        let all_known = nodes.iter().all(|node| known.iter().any(|known| known.node == node.id()));
        if all_known && ready as usize >= known.len() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Handle for Platform {
    fn ready(&self) -> String {
        let mut text = String::from("edgeless_inabox:");
        if let Some(controller) = &self.controller {
            text.push_str(&format!(" controller at {},", controller.url()));
        }
        if let Some(orchestrator) = &self.orchestrator {
            text.push_str(&format!(" orchestrator at {},", orchestrator.url()));
        }
        text.push_str(&format!(" {} node(s)", self.nodes.len()));
        if !self.ingress.is_empty() {
            text.push_str(&format!(" with HTTP ingress at {}", self.ingress.join(", ")));
        }
        text.push_str(" ready");
        text
    }

    async fn failed(&self) -> Failure {
        let mut waiting: Vec<std::pin::Pin<Box<dyn Future<Output = Failure> + Send + '_>>> = Vec::new();
        if let Some(controller) = &self.controller {
            waiting.push(Box::pin(controller.failed()));
        }
        if let Some(orchestrator) = &self.orchestrator {
            waiting.push(Box::pin(orchestrator.failed()));
        }
        for node in &self.nodes {
            waiting.push(Box::pin(node.failed()));
        }
        if waiting.is_empty() {
            return std::future::pending().await;
        }
        futures_util::future::select_all(waiting).await.0
    }

    /// From the controller down: an orchestrator that outlived its nodes would look for others.
    async fn stop(self) -> Stopped {
        let mut tasks = Vec::new();
        let mut note = |stopped| {
            if let Stopped::Forced { tasks: more } = stopped {
                tasks.extend(more);
            }
        };
        if let Some(controller) = self.controller {
            note(controller.stop().await);
        }
        if let Some(orchestrator) = self.orchestrator {
            note(orchestrator.stop().await);
        }
        for stopped in futures_util::future::join_all(self.nodes.into_iter().map(Node::stop)).await {
            note(stopped);
        }
        if tasks.is_empty() { Stopped::Clean } else { Stopped::Forced { tasks } }
    }
}

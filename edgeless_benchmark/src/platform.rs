//! The three daemons as child processes, and a workflow for them.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;
use edgeless_api::client::{Connection, Options, Workflows};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::workflow::{Function, Workflow};
use edgeless_api::{FunctionClass, Url};
use tempfile::TempDir;

use crate::node::class;
use crate::programs::{Daemon, configure, free_port};

/// How long the node may take to be known.
const PATIENCE: Duration = Duration::from_secs(20);

/// A controller, an orchestrator and a node, until this is dropped.
pub(crate) struct Platform {
    pub(crate) workflows: Workflows,
    pub(crate) node: Daemon,
    _controller: Daemon,
    _orchestrator: Daemon,
    /// Where they run; the last to go.
    pub(crate) directory: TempDir,
}

impl Platform {
    /// Starts them, from their templates.
    pub(crate) async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let (controller, orchestrator) = (free_port()?, free_port()?);
        configure("edgeless_con_d", path, "controller.toml", &[(7001, controller), (7011, orchestrator)]).await?;
        configure("edgeless_orc_d", path, "orchestrator.toml", &[(7011, orchestrator)]).await?;
        let own = [(7021, free_port()?), (7002, free_port()?), (7003, free_port()?), (7035, free_port()?)];
        configure("edgeless_node_d", path, "node.toml", &[own.as_slice(), &[(7011, orchestrator)]].concat()).await?;
        let url: Url = format!("http://127.0.0.1:{controller}").parse()?;
        let platform = Self {
            workflows: Workflows::new(Connection::lazy(&url, Options::default())?),
            _orchestrator: Daemon::start("edgeless_orc_d", path).await?,
            _controller: Daemon::start("edgeless_con_d", path).await?,
            node: Daemon::start("edgeless_node_d", path).await?,
            directory,
        };
        platform.is_complete().await?;
        Ok(platform)
    }

    /// Returns when the controller can place something on the node.
    async fn is_complete(&self) -> Result<()> {
        let began = Instant::now();
        let has_node = |domain: &DomainCapabilities| domain.num_nodes > 0;
        while !self.workflows.domains(None).await.is_ok_and(|domains| domains.values().any(has_node)) {
            if began.elapsed() > PATIENCE {
                bail!("the node did not become known to the controller in {} s", PATIENCE.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// A workflow of one function without outputs.
pub(crate) fn workflow(module: &Bytes) -> Result<Workflow> {
    let class = FunctionClass { binary: module.clone().into(), ..class("function") };
    let function = Function { name: "function".to_string(), class, outputs: [].into(), annotations: [].into() };
    Ok(Workflow::new(vec![function], vec![], [].into())?)
}

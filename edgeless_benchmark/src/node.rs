//! Nodes without an orchestrator: this program plays it. In this process, or as a child of it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use bytes::Bytes;
use edgeless_api::client::{Components, Connection, Invocation, NodeManagement, Options};
use edgeless_api::component::{
    ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, RUST_WASM, ResourceSpec, Start,
    StartContext, StatePolicy, StateSpec, Target,
};
use edgeless_api::event::{Event, Kind, Trace};
use edgeless_api::node::PeerUpdate;
use edgeless_api::status::ComponentStatus;
use edgeless_api::{ComponentId, InstanceId, NodeId, StateId, Url, WorkflowId};
use edgeless_daemon::config::parse;
use edgeless_daemon::{Daemon as _, Handle as _};
use edgeless_node::instance::Runtime;
use edgeless_node::{Config, Node};
use tempfile::TempDir;

use crate::programs::{Daemon, free_port};

/// How large a node is.
pub(crate) struct Size {
    pub(crate) instances: usize,
    pub(crate) memory_mib: usize,
    pub(crate) cpu_limit: Duration,
}

impl Default for Size {
    fn default() -> Self {
        Self { instances: 16, memory_mib: 64, cpu_limit: Duration::from_secs(10) }
    }
}

/// What is asked of a node.
#[derive(Clone)]
pub(crate) struct Access {
    id: NodeId,
    components: Components,
    invocation: Invocation,
    management: NodeManagement,
    invocation_url: Url,
}

fn configuration(id: NodeId, urls: [&str; 2], directory: &Path, size: &Size, ingress: Option<SocketAddr>) -> String {
    let [agent, invocation] = urls;
    let ingress = ingress.map(|address| {
        format!("http_ingress_provider = \"http-ingress-1\"\nhttp_ingress_url = \"http://{address}\"\n")
    });
    format!(
        r#"[general]
node_id = "{id}"
agent_url = "{agent}"
invocation_url = "{invocation}"
# Nobody is there: this program plays the orchestrator.
orchestrator_url = "http://127.0.0.1:1"
state_directory = "{}"
[wasm_runtime]
max_instances = {}
memory_limit = "{}MiB"
cpu_limit = "{}ms"
[limits]
components = {}
[resources]
{}"#,
        directory.join("state").display(),
        size.instances,
        size.memory_mib,
        size.cpu_limit.as_millis(),
        // Resources are components too.
        size.instances + 16,
        ingress.unwrap_or_default(),
    )
}

impl Access {
    fn new(id: NodeId, agent: &Url, invocation: &Url) -> Result<Self> {
        let connection = |url: &Url| Connection::lazy(url, Options::default());
        Ok(Self {
            id,
            components: Components::new(connection(agent)?),
            invocation: Invocation::new(connection(invocation)?),
            management: NodeManagement::new(connection(agent)?),
            invocation_url: invocation.clone(),
        })
    }

    /// Starts an instance of a module. It emits when it is wired.
    pub(crate) async fn function(&self, name: &str, module: &Bytes, init: &str) -> Result<InstanceId> {
        self.start(function(name, module, init)).await
    }

    /// Opens a resource. It emits when it is wired.
    pub(crate) async fn resource(&self, class: &str, configuration: &[(&str, &str)]) -> Result<InstanceId> {
        let pairs = configuration.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        let spec = ResourceSpec {
            class_type: class.to_string(),
            configuration: pairs.collect(),
            workflow: WorkflowId::random(),
        };
        self.start(start(ComponentSpec::Resource(spec), class)).await
    }

    /// Starts what it is told.
    pub(crate) async fn start(&self, start: Start) -> Result<InstanceId> {
        match self.components.start(start).await? {
            ComponentRef::Instance(id) => Ok(id),
            ComponentRef::Component(id) => bail!("a node answered a start with {id:?}"),
        }
    }

    /// Says where the outputs of a component lead, and lets it emit.
    pub(crate) async fn wire(&self, kind: ComponentKind, id: InstanceId, outputs: &[(&str, InstanceId)]) -> Result<()> {
        let outputs = outputs.iter().map(|(name, target)| (name.to_string(), Target::Instance(*target)));
        let patch = Patch::new(id.function, outputs.collect());
        self.components.patch(kind, patch).await?;
        Ok(self.components.activate(&[id.function]).await?)
    }

    /// Stops a function.
    pub(crate) async fn stop(&self, id: InstanceId) -> Result<()> {
        Ok(self.components.stop(ComponentKind::Function, ComponentRef::Instance(id)).await?)
    }

    /// Changes a limit of a function that runs.
    pub(crate) async fn limit(&self, id: InstanceId, name: &str, value: &str) -> Result<()> {
        let changes = [(name.to_string(), value.to_string())].into();
        self.components.limits(id.function, changes).await?;
        Ok(())
    }

    /// Returns when the node has the event.
    pub(crate) async fn cast(&self, target: InstanceId, payload: impl Into<Bytes>) -> Result<()> {
        Ok(self.invocation.handle(cast(target, payload)).await?)
    }

    pub(crate) async fn status(&self, id: InstanceId) -> Result<ComponentStatus> {
        match self.components.status(&[id.function]).await?.pop() {
            Some(status) => Ok(status),
            None => bail!("the node does not know {id} any more"),
        }
    }

    /// How many events a component took.
    pub(crate) async fn handled(&self, id: InstanceId) -> Result<u64> {
        Ok(self.status(id).await?.handled)
    }

    /// Lets this node send events to another.
    pub(crate) async fn meet(&self, other: &Self) -> Result<()> {
        Ok(self.management.update_peers(PeerUpdate::Add(other.id, other.invocation_url.clone())).await?)
    }
}

/// How an instance of a module is started.
pub(crate) fn function(name: &str, module: &Bytes, init: &str) -> Start {
    let class = FunctionClass { binary: module.clone().into(), ..class(name) };
    match init {
        "" => start_class(class, &[]),
        init => start_class(class, &[("init-payload", init)]),
    }
}

/// How an instance of a class is started.
pub(crate) fn start_class(class: FunctionClass, annotations: &[(&str, &str)]) -> Start {
    let annotations = annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let state = StateSpec { id: StateId::random(), policy: StatePolicy::Transient };
    let name = class.id.clone();
    let spec = FunctionSpec { class, annotations, state, workflow: WorkflowId::random() };
    start(ComponentSpec::Function(spec), &name)
}

/// The class of a function, without its code.
pub(crate) fn class(name: &str) -> FunctionClass {
    FunctionClass {
        id: name.to_string(),
        function_type: RUST_WASM.to_string(),
        version: "0.1".to_string(),
        ..FunctionClass::default()
    }
}

fn start(spec: ComponentSpec, name: &str) -> Start {
    let component = ComponentId::random();
    let context = StartContext::new(component, 1, name.to_string());
    Start { spec, context: Some(context) }
}

/// A cast from nobody.
pub(crate) fn cast(target: InstanceId, payload: impl Into<Bytes>) -> Event {
    let (created, trace) = (SystemTime::now(), Trace::default());
    Event { source: InstanceId::NONE, target, kind: Kind::Cast(payload.into()), created, trace, id: None }
}

/// A node in this process.
pub(crate) struct LocalNode {
    pub(crate) access: Access,
    node: Node,
    directory: TempDir,
}

impl LocalNode {
    /// Where it keeps what it writes.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) async fn start(size: &Size) -> Result<Self> {
        let (config, directory) = Self::config(size)?;
        Self::of(Node::start(config).await?, directory)
    }

    /// A node whose functions run in other runtimes than its own.
    pub(crate) async fn start_with(size: &Size, runtimes: Vec<Arc<dyn Runtime>>) -> Result<Self> {
        let (config, directory) = Self::config(size)?;
        Self::of(Node::start_with(config, runtimes).await?, directory)
    }

    fn config(size: &Size) -> Result<(Config, TempDir)> {
        let directory = tempfile::tempdir()?;
        let config = Self::parsed(size, directory.path(), "")?;
        Ok((config, directory))
    }

    fn parsed(size: &Size, directory: &Path, more: &str) -> Result<Config> {
        let any = "http://127.0.0.1:0";
        let text = configuration(NodeId::random(), [any, any], directory, size, None);
        parse(&format!("{text}\n{more}"), std::iter::empty()).map_err(anyhow::Error::msg)
    }

    fn of(node: Node, directory: TempDir) -> Result<Self> {
        let access = Access::new(node.id(), node.addr(), node.invocation_url())?;
        Ok(Self { access, node, directory })
    }

    pub(crate) async fn stop(self) {
        self.node.stop().await;
    }
}

/// A node in this process that runs containers. They end with it, also where it is dropped.
pub(crate) struct ContainerNode {
    pub(crate) access: Access,
    node: Option<LocalNode>,
}

impl ContainerNode {
    /// A node that runs functions in containers, and in these runtimes.
    pub(crate) async fn start(size: &Size, runtimes: Vec<Arc<dyn Runtime>>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let sockets = directory.path().join("sockets");
        let more = format!("[container_runtime]\nenabled = true\nsocket_directory = {:?}\n", sockets.display());
        let config = LocalNode::parsed(size, directory.path(), &more)?;
        let node = LocalNode::of(Node::start_with(config, runtimes).await?, directory)?;
        Ok(Self { access: node.access.clone(), node: Some(node) })
    }

    pub(crate) fn id(&self) -> NodeId {
        self.access.id
    }

    pub(crate) async fn stop(mut self) {
        if let Some(node) = self.node.take() {
            node.stop().await;
        }
    }
}

impl Drop for ContainerNode {
    fn drop(&mut self) {
        // A measurement was broken off: Docker would let containers run for ever.
        if let Some(node) = self.node.take() {
            tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(node.stop()));
        }
    }
}

/// A node as a child process, with an HTTP ingress.
pub(crate) struct ChildNode {
    pub(crate) access: Access,
    pub(crate) daemon: Daemon,
    pub(crate) ingress: SocketAddr,
    _directory: TempDir,
}

impl ChildNode {
    pub(crate) async fn start(size: &Size) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let id = NodeId::random();
        let url = || Ok::<_, anyhow::Error>(format!("http://127.0.0.1:{}", free_port()?));
        let (agent, invocation) = (url()?, url()?);
        let ingress = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let text = configuration(id, [&agent, &invocation], directory.path(), size, Some(ingress));
        std::fs::write(directory.path().join("node.toml"), text)?;
        let daemon = Daemon::start("edgeless_node_d", directory.path()).await?;
        let access = Access::new(id, &agent.parse()?, &invocation.parse()?)?;
        Ok(Self { access, daemon, ingress, _directory: directory })
    }
}

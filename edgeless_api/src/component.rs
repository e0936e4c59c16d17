//! Components: the functions and resources that orchestrators place and nodes run.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

use crate::annotation::AnnotationError;
use crate::binary::Binary;
use crate::error::Error;
use crate::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use crate::status::Limit;
use crate::url::Url;

/// Keys and values that a user gives a component.
pub type Annotations = BTreeMap<String, String>;

/// The function type of WebAssembly modules.
pub const RUST_WASM: &str = "RUST_WASM";

/// The function type of functions in containers.
pub const CONTAINER: &str = "CONTAINER";

/// The function type of containers that take no events.
pub const SERVICE: &str = "SERVICE";

/// The annotations that limit a container. They can be changed while it runs.
pub const LIMITS: [&str; 8] = [
    "cpu",
    "cpu_shares",
    "cpuset",
    "memory",
    "network_bandwidth",
    "network_bandwidth_down",
    "network_bandwidth_up",
    "pids",
];

/// What else a workflow may say of a container.
pub const CONTAINER_OPTIONS: [&str; 9] =
    ["capabilities", "command", "devices", "disk", "network", "port", "read_only", "tmp", "user"];

/// What else a workflow may say of a service.
pub const SERVICE_OPTIONS: [&str; 7] =
    ["health", "health_interval", "health_timeout", "http_host", "http_path", "http_port", "publish"];

/// What the annotations begin with that are a container's environment: the name of a variable follows.
pub const ENVIRONMENT: &str = "env:";

/// What the annotations begin with that are a service's volumes: a name follows.
pub const VOLUME: &str = "volume:";

/// Whether an annotation is about the container of a component of this type.
pub fn is_of_container(function_type: &str, key: &str) -> bool {
    let is_service = function_type == SERVICE;
    (is_service || function_type == CONTAINER)
        && (LIMITS.contains(&key)
            || CONTAINER_OPTIONS.contains(&key)
            || key.starts_with(ENVIRONMENT)
            || is_service && (SERVICE_OPTIONS.contains(&key) || key.starts_with(VOLUME)))
}

/// The annotation whose bytes a function is given when it starts.
pub const INIT_PAYLOAD: &str = "init-payload";

/// What a function is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FunctionClass {
    /// Name of the class.
    pub id: String,
    /// The runtime it needs, such as `RUST_WASM`.
    pub function_type: String,
    /// Free text.
    pub version: String,
    /// The code itself, where it is not named by `code`.
    pub binary: Binary,
    /// A reference to the code.
    pub code: String,
    /// The output channels that it declares.
    pub outputs: Vec<String>,
}

/// Where a function's saved state is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatePolicy {
    /// Lost with the instance.
    #[default]
    Transient,
    /// Kept on the node.
    NodeLocal,
    /// Kept on the node, and a copy at its orchestrator.
    Replicated,
    /// Kept outside the nodes.
    Global,
}

/// The annotation that says where a function's saved state is kept.
pub const STATE: &str = "state";

impl StatePolicy {
    /// Reads the annotation [`STATE`].
    ///
    /// # Errors
    /// It has a value that cannot be understood.
    pub fn parse(annotations: &Annotations) -> Result<Self, AnnotationError> {
        match annotations.get(STATE).map(String::as_str) {
            None | Some("node-local") => Ok(Self::NodeLocal),
            Some("transient") => Ok(Self::Transient),
            Some("replicated") => Ok(Self::Replicated),
            Some("global") => Ok(Self::Global),
            Some(other) => {
                Err(AnnotationError::value(STATE, other, "write transient, node-local, replicated or global"))
            }
        }
    }
}

/// The state of one component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSpec {
    /// Names the stored state.
    pub id: StateId,
    /// Where it is kept.
    pub policy: StatePolicy,
}

/// A function to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionSpec {
    /// Its code.
    pub class: FunctionClass,
    /// What the user asks of it.
    pub annotations: Annotations,
    /// Its state.
    pub state: StateSpec,
    /// The workflow that it belongs to.
    pub workflow: WorkflowId,
}

/// A resource to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceSpec {
    /// Its class, such as `http-ingress`.
    pub class_type: String,
    /// What the user asks of it.
    pub configuration: Annotations,
    /// The workflow that it belongs to.
    pub workflow: WorkflowId,
}

/// A component to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentSpec {
    /// A function.
    Function(FunctionSpec),
    /// A resource.
    Resource(ResourceSpec),
}

impl ComponentSpec {
    /// Which of the two it is.
    pub fn kind(&self) -> ComponentKind {
        match self {
            Self::Function(_) => ComponentKind::Function,
            Self::Resource(_) => ComponentKind::Resource,
        }
    }

    /// The workflow that it belongs to.
    pub fn workflow(&self) -> WorkflowId {
        match self {
            Self::Function(spec) => spec.workflow,
            Self::Resource(spec) => spec.workflow,
        }
    }

    /// What the user asks of it.
    pub fn annotations(&self) -> &Annotations {
        match self {
            Self::Function(spec) => &spec.annotations,
            Self::Resource(spec) => &spec.configuration,
        }
    }

    /// The same, to be changed.
    pub fn annotations_mut(&mut self) -> &mut Annotations {
        match self {
            Self::Function(spec) => &mut spec.annotations,
            Self::Resource(spec) => &mut spec.configuration,
        }
    }

    /// Its limits as they were asked for.
    ///
    /// # Errors
    /// It is no container.
    pub fn limits(&self, name: &str) -> Result<Vec<Limit>, Error> {
        match self {
            Self::Function(spec) if matches!(spec.class.function_type.as_str(), CONTAINER | SERVICE) => {
                let asked = |name: &&str| Some((name.to_string(), spec.annotations.get(*name)?.clone()));
                let limit = |(name, asked)| Limit { name, asked, kernel: String::new() };
                Ok(LIMITS.iter().filter_map(asked).map(limit).collect())
            }
            Self::Function(spec) => Err(without_limits(name, ComponentKind::Function, &spec.class.function_type)),
            Self::Resource(spec) => Err(without_limits(name, ComponentKind::Resource, &spec.class_type)),
        }
    }
}

/// The refusal to speak of the limits of a component that has none, being of this function type or class.
pub fn without_limits(name: &str, kind: ComponentKind, class: &str) -> Error {
    let what = match kind {
        ComponentKind::Function if class == CONTAINER => "a server that runs already".to_string(),
        ComponentKind::Function => format!("a {class} function"),
        ComponentKind::Resource => format!("a resource of class {class}"),
    };
    Error::rejected(format!("'{name}' is {what}: only containers have limits that can be changed"))
}

/// Function or resource: which of two services speaks about a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentKind {
    /// A function.
    Function,
    /// A resource.
    Resource,
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Function => "function",
            Self::Resource => "resource",
        })
    }
}

/// How one of our peers asks for a start. A peer that speaks only EDGELESS 1.2 sends none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartContext {
    /// The component: a repeat with the same epoch returns the first result.
    pub component: ComponentId,
    /// Raised whenever the component is placed again; an older one is refused.
    pub epoch: u64,
    /// The component's name in its workflow.
    pub name: String,
    /// The provider that shall open a resource; empty where any of its class may.
    pub provider: String,
    /// Which of the component's instances this is, from 0. A node knows a start by component and replica.
    pub replica: u32,
    /// The node shall report what the instance has to do.
    pub reports_load: bool,
    /// The state that the component saved where it ran before. `None`: what the node has stored.
    pub state: Option<Bytes>,
}

impl StartContext {
    /// The only instance of a component, which has moved from nowhere.
    pub fn new(component: ComponentId, epoch: u64, name: impl Into<String>) -> Self {
        Self {
            component,
            epoch,
            name: name.into(),
            provider: String::new(),
            replica: 0,
            reports_load: false,
            state: None,
        }
    }
}

/// A request to start a component. With a context it is the first of three steps and the component
/// emits nothing before it is activated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// What to start.
    pub spec: ComponentSpec,
    /// How to start it.
    pub context: Option<StartContext>,
}

/// What a started component is known by: orchestrators know components, nodes instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentRef {
    /// At an orchestrator.
    Component(ComponentId),
    /// At a node.
    Instance(InstanceId),
}

/// Where a component runs at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The component.
    pub component: ComponentId,
    /// Its epoch when this was true.
    pub epoch: u64,
    /// Its instances; none while it runs nowhere.
    pub instances: Vec<InstanceId>,
    /// Where the nodes of these instances take events, as far as the sender knows.
    pub addresses: BTreeMap<NodeId, Url>,
    /// How several instances share the events, as the annotation says it; empty: in turns.
    pub partition_by: String,
    /// It runs nowhere because it is on its way to another place: its events wait for it longer than usual.
    pub moving: bool,
}

impl Row {
    /// A row of a component that stays, without addresses; several instances take turns.
    pub fn new(component: ComponentId, epoch: u64, instances: Vec<InstanceId>) -> Self {
        Self { component, epoch, instances, addresses: BTreeMap::new(), partition_by: String::new(), moving: false }
    }
}

/// What an output leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One instance, and for ever: all that EDGELESS 1.2 can say.
    Instance(InstanceId),
    /// A component of the domain: towards its orchestrator.
    Component(ComponentId),
    /// A component and where it runs: towards our nodes, and, for one of another domain, towards an orchestrator.
    Row(Row),
}

/// Replaces all outputs of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The component or instance, depending on who is asked.
    pub id: Uuid,
    /// Output channel to what it leads to.
    pub outputs: BTreeMap<String, Target>,
    /// Components of other domains have outputs to it: only towards an orchestrator.
    pub exported: bool,
}

impl Patch {
    /// The outputs of what only its own domain sends events to.
    pub fn new(id: Uuid, outputs: BTreeMap<String, Target>) -> Self {
        Self { id, outputs, exported: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_annotation_is_understood_or_refused() {
        let parse = |value: &str| StatePolicy::parse(&BTreeMap::from([(STATE.to_string(), value.to_string())]));
        assert_eq!(StatePolicy::parse(&BTreeMap::new()), Ok(StatePolicy::NodeLocal));
        assert_eq!(parse("node-local"), Ok(StatePolicy::NodeLocal));
        assert_eq!(parse("transient"), Ok(StatePolicy::Transient));
        assert_eq!(parse("replicated"), Ok(StatePolicy::Replicated));
        assert_eq!(parse("global"), Ok(StatePolicy::Global));
        let error = parse("elsewhere").unwrap_err().to_string();
        assert!(error.starts_with("annotation 'state' has the value 'elsewhere': write transient,"), "{error}");
    }
}

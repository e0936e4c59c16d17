//! What the log of an orchestrator says.

use std::fmt;

use edgeless_api::component::ComponentKind;
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId};
use edgeless_api::node::{Capabilities, ProviderSpec};
use edgeless_api::url::Url;

use super::Fault;

/// Something worth a line in the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// A node offers a provider that it did not offer before.
    Provider(NodeId, ProviderSpec),
    /// A node was added.
    NodeAdded {
        /// The node.
        node: NodeId,
        /// Where it takes commands.
        agent_url: Url,
        /// Where it takes events.
        invocation_url: Url,
        /// What it has.
        capabilities: Capabilities,
    },
    /// The announcement of a node was refused.
    NodeRefused {
        /// The node that it says it is.
        node: NodeId,
        /// What it has wrong.
        fault: Fault,
        /// Why, as it was told.
        error: Error,
    },
    /// Nobody waits for a node any more that is gone.
    Forgotten {
        /// The node.
        node: NodeId,
    },
    /// The link of a node has ended, and nothing else is known.
    Suspected {
        /// The node.
        node: NodeId,
    },
    /// A node whose link had ended is there.
    Acquitted {
        /// The node.
        node: NodeId,
    },
    /// A node is gone.
    NodeLost {
        /// The node.
        node: NodeId,
        /// Why.
        reason: &'static str,
        /// How many components must be placed again.
        components: usize,
    },
    /// A node does not do what makes it part of the domain; tried again.
    NodeFailing {
        /// The node.
        node: NodeId,
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        error: Error,
    },
    /// A component has an instance.
    Spawned {
        /// The component.
        component: ComponentId,
        /// Which of the two it is.
        kind: ComponentKind,
        /// Its name in its workflow.
        name: String,
        /// The instance.
        instance: InstanceId,
        /// How often it was placed.
        epoch: u64,
    },
    /// A node runs a component already, as it should.
    Adopted {
        /// The component.
        component: ComponentId,
        /// Its name in its workflow.
        name: String,
        /// The instance.
        instance: InstanceId,
        /// How often it was placed.
        epoch: u64,
    },
    /// A component was not started, and its controller was told why.
    Refused {
        /// Its name in its workflow.
        name: String,
        /// Why.
        error: Error,
    },
    /// A component that ran has no place at present.
    Waiting {
        /// The component.
        component: ComponentId,
        /// Its name in its workflow.
        name: String,
        /// Why.
        error: Error,
    },
    /// A node does not wire or activate an instance; tried again.
    InstanceFailing {
        /// The component.
        component: ComponentId,
        /// Its name in its workflow.
        name: String,
        /// What was tried.
        attempt: &'static str,
        /// Why it failed.
        error: Error,
    },
    /// Nothing new is placed on a node, or is again.
    Cordoned {
        /// The node.
        node: NodeId,
        /// Whether nothing is.
        is_cordoned: bool,
    },
    /// A component moves, because it was asked to.
    Moving {
        /// The component.
        component: ComponentId,
        /// Its name in its workflow.
        name: String,
        /// Where it runs.
        from: Option<NodeId>,
        /// Where it shall run, if that was said.
        to: Option<NodeId>,
    },
    /// A component has more to do, or less, than before.
    Scaled {
        /// The component.
        component: ComponentId,
        /// Its name in its workflow.
        name: String,
        /// How many instances it should have.
        from: u32,
        /// How many it shall have now.
        to: u32,
    },
    /// A component was stopped as asked.
    Stopped {
        /// The component.
        component: ComponentId,
        /// Which of the two it is.
        kind: ComponentKind,
        /// Its name in its workflow.
        name: String,
    },
}

impl Note {
    /// Whether an operator should look into it.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::NodeLost { reason, .. } => *reason != super::node::SAID_GOODBYE,
            Self::NodeRefused { .. }
            | Self::Suspected { .. }
            | Self::NodeFailing { .. }
            | Self::Waiting { .. }
            | Self::InstanceFailing { .. } => true,
            Self::Provider(..)
            | Self::NodeAdded { .. }
            | Self::Forgotten { .. }
            | Self::Acquitted { .. }
            | Self::Spawned { .. }
            | Self::Adopted { .. }
            | Self::Refused { .. }
            | Self::Cordoned { .. }
            | Self::Moving { .. }
            | Self::Scaled { .. }
            | Self::Stopped { .. } => false,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Provider(node, provider) => write!(
                f,
                "new resource advertised by node {node}: provider_id {}, class_type {}, outputs [{}]",
                provider.id,
                provider.class_type,
                provider.outputs.join(", ")
            ),
            Self::NodeAdded { node, agent_url, invocation_url, capabilities } => write!(
                f,
                "added function instance client: node_id {node}, agent URL {agent_url}, invocation URL \
                 {invocation_url}, capabilities {capabilities}"
            ),
            Self::NodeRefused { node, error, .. } => write!(f, "refused the registration of node {node}: {error}"),
            Self::Forgotten { node } => write!(f, "forgot node {node}: the next that comes with its id is a new one"),
            Self::Suspected { node } => write!(f, "the link of node {node} has ended: finding out whether it is gone"),
            Self::Acquitted { node } => write!(f, "node {node} is there: only its link had ended"),
            Self::NodeLost { node, reason, components } => {
                write!(f, "lost node {node}: {reason}, {components} component(s) to be placed again")
            }
            Self::NodeFailing { node, attempt, error } => {
                write!(f, "cannot {attempt} node {node}, will retry: {error}")
            }
            Self::Spawned { component, kind, name, instance, epoch } => write!(
                f,
                "spawned {kind} '{name}' on node {}: component {component}, instance {}, epoch {epoch}",
                instance.node, instance.function
            ),
            Self::Adopted { component, name, instance, epoch } => write!(
                f,
                "node {} runs component {component} '{name}' already: instance {}, epoch {epoch}",
                instance.node, instance.function
            ),
            Self::Refused { name, error } => write!(f, "refused to start '{name}': {error}"),
            Self::Waiting { component, name, error } => {
                write!(f, "component {component} '{name}' waits for a node: {error}")
            }
            Self::InstanceFailing { component, name, attempt, error } => {
                write!(f, "cannot {attempt} component {component} '{name}', will retry: {error}")
            }
            Self::Cordoned { node, is_cordoned: true } => {
                write!(f, "cordoned node {node}: nothing new is placed on it")
            }
            Self::Cordoned { node, is_cordoned: false } => write!(f, "uncordoned node {node}"),
            Self::Moving { component, name, from, to } => {
                write!(f, "component {component} '{name}' moves")?;
                from.map_or(Ok(()), |node| write!(f, " from node {node}"))?;
                to.map_or(Ok(()), |node| write!(f, " to node {node}"))
            }
            Self::Scaled { component, name, from, to } => {
                write!(f, "component {component} '{name}' is scaled from {from} to {to} instance(s)")
            }
            Self::Stopped { component, kind, name } => write!(f, "stopped {kind} '{name}': component {component}"),
        }
    }
}

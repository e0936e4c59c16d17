//! What operators do with nodes and components.

use super::{error::refusal, pb, uuid};
use crate::error::Error;
use crate::id::{ComponentId, NodeId};
use crate::operations::{DrainProgress, Relocation};

impl From<NodeId> for pb::NodeRef {
    fn from(node: NodeId) -> Self {
        Self { node_id: node.to_string() }
    }
}

impl TryFrom<pb::NodeRef> for NodeId {
    type Error = Error;

    fn try_from(node: pb::NodeRef) -> Result<Self, Error> {
        Ok(Self(uuid(&node.node_id, "node_id")?))
    }
}

/// Whether something was done. A refusal is an answer; whatever else went wrong is an error.
pub(crate) fn outcome(done: Result<(), Error>) -> Result<pb::Outcome, Error> {
    match done {
        Ok(()) => Ok(pb::Outcome::default()),
        Err(error) if error.code.is_refusal() => {
            Ok(pb::Outcome { response_error: Some(refusal("Request rejected", &error)) })
        }
        Err(error) => Err(error),
    }
}

impl From<pb::Outcome> for Result<(), Error> {
    fn from(outcome: pb::Outcome) -> Self {
        outcome.response_error.map_or(Ok(()), |error| Err(error.into()))
    }
}

impl From<DrainProgress> for pb::DrainProgress {
    fn from(progress: DrainProgress) -> Self {
        let DrainProgress { total, moved, component, reason } = progress;
        Self { total, moved, component, reason }
    }
}

impl From<pb::DrainProgress> for DrainProgress {
    fn from(progress: pb::DrainProgress) -> Self {
        let pb::DrainProgress { total, moved, component, reason } = progress;
        Self { total, moved, component, reason }
    }
}

impl From<Relocation> for pb::Relocation {
    fn from(relocation: Relocation) -> Self {
        let (node_id, hostname, reason) = match relocation.to {
            Ok((node, hostname)) => (node.to_string(), hostname, String::new()),
            Err(reason) => (String::new(), String::new(), reason),
        };
        Self { component_id: relocation.component.to_string(), name: relocation.name, node_id, hostname, reason }
    }
}

impl TryFrom<pb::Relocation> for Relocation {
    type Error = Error;

    fn try_from(relocation: pb::Relocation) -> Result<Self, Error> {
        let to = if relocation.node_id.is_empty() {
            Err(relocation.reason)
        } else {
            Ok((NodeId(uuid(&relocation.node_id, "node_id")?), relocation.hostname))
        };
        let component = ComponentId(uuid(&relocation.component_id, "component_id")?);
        Ok(Self { component, name: relocation.name, to })
    }
}

/// The answer to a plan. A refusal is an answer; whatever else went wrong is an error.
pub(crate) fn relocation_list(plan: Result<Vec<Relocation>, Error>) -> Result<pb::RelocationList, Error> {
    match plan {
        Ok(relocations) => Ok(pb::RelocationList {
            response_error: None,
            relocations: relocations.into_iter().map(Into::into).collect(),
        }),
        Err(error) if error.code.is_refusal() => Ok(pb::RelocationList {
            response_error: Some(refusal("Request rejected", &error)),
            relocations: Vec::new(),
        }),
        Err(error) => Err(error),
    }
}

pub(crate) fn relocations(list: pb::RelocationList) -> Result<Vec<Relocation>, Error> {
    match list.response_error {
        Some(error) => Err(error.into()),
        None => list.relocations.into_iter().map(TryInto::try_into).collect(),
    }
}

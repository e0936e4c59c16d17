//! What operators do with nodes and components.

use std::time::Duration;

use super::node::millis;
use super::{error::refusal, pb, required, uuid};
use crate::decision::{Decision, Outcome, Verdict};
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

impl From<Verdict> for pb::Verdict {
    fn from(verdict: Verdict) -> Self {
        let outcome = match verdict.outcome {
            Outcome::Chosen(score) => pb::verdict::Outcome::Chosen(score),
            Outcome::Excluded(rule) => pb::verdict::Outcome::Excluded(rule),
            Outcome::Score(score) => pb::verdict::Outcome::Score(score),
        };
        Self { node_id: verdict.node.to_string(), hostname: verdict.hostname, outcome: Some(outcome) }
    }
}

impl TryFrom<pb::Verdict> for Verdict {
    type Error = Error;

    fn try_from(verdict: pb::Verdict) -> Result<Self, Error> {
        let outcome = match required(verdict.outcome, "outcome")? {
            pb::verdict::Outcome::Chosen(score) => Outcome::Chosen(score),
            pb::verdict::Outcome::Excluded(rule) => Outcome::Excluded(rule),
            pb::verdict::Outcome::Score(score) => Outcome::Score(score),
        };
        Ok(Self { node: NodeId(uuid(&verdict.node_id, "node_id")?), hostname: verdict.hostname, outcome })
    }
}

/// The answer to why. A refusal is an answer; whatever else went wrong is an error.
pub(crate) fn why_response(decision: Result<Decision, Error>) -> Result<pb::WhyResponse, Error> {
    match decision {
        Ok(Decision { component, strategy, outcome, age, nodes }) => Ok(pb::WhyResponse {
            response_error: None,
            component,
            strategy,
            outcome,
            nodes: nodes.into_iter().map(Into::into).collect(),
            age_ms: age.map(millis),
        }),
        Err(error) if error.code.is_refusal() => Ok(pb::WhyResponse {
            response_error: Some(refusal("Request rejected", &error)),
            ..pb::WhyResponse::default()
        }),
        Err(error) => Err(error),
    }
}

impl TryFrom<pb::WhyResponse> for Decision {
    type Error = Error;

    fn try_from(response: pb::WhyResponse) -> Result<Self, Error> {
        let pb::WhyResponse { response_error, component, strategy, outcome, nodes, age_ms } = response;
        match response_error {
            Some(error) => Err(error.into()),
            None => {
                let nodes = nodes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
                Ok(Self { component, strategy, outcome, age: age_ms.map(Duration::from_millis), nodes })
            }
        }
    }
}

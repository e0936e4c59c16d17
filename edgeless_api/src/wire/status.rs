//! What became of components, their logs, and where they would go.

use std::time::{Duration, UNIX_EPOCH};

use super::{pb, required, uuid};
use crate::error::Error;
use crate::id::{ComponentId, DomainId, NodeId};
use crate::status::{ComponentStatus, InstanceStatus, Level, Limit, LogLine, OutputBooks, Placement, Usage};

const LEVELS: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

impl From<LogLine> for pb::LogLine {
    fn from(line: LogLine) -> Self {
        let since_epoch = line.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            timestamp_ns: u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX),
            level: line.level.to_string(),
            target: line.target,
            message: line.message,
            component: line.component,
        }
    }
}

impl From<pb::LogLine> for LogLine {
    fn from(line: pb::LogLine) -> Self {
        Self {
            at: UNIX_EPOCH + Duration::from_nanos(line.timestamp_ns),
            level: LEVELS.into_iter().find(|level| level.to_string() == line.level).unwrap_or(Level::Error),
            target: line.target,
            message: line.message,
            component: line.component,
        }
    }
}

impl From<ComponentStatus> for pb::ComponentStatus {
    fn from(status: ComponentStatus) -> Self {
        Self {
            component_id: status.component.to_string(),
            name: status.name,
            state: status.state.to_string(),
            instance: status.instance.map(Into::into),
            epoch: status.epoch,
            restarts: status.restarts,
            reason: status.reason,
            log: status.log.into_iter().map(Into::into).collect(),
            handled: status.handled,
            dropped: status.dropped,
            outputs: status.outputs.into_iter().map(Into::into).collect(),
            limits: status.limits.into_iter().map(Into::into).collect(),
            usage: status.usage.map(Into::into),
            instances: status.instances.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ComponentStatus> for ComponentStatus {
    type Error = Error;

    fn try_from(status: pb::ComponentStatus) -> Result<Self, Error> {
        Ok(Self {
            component: ComponentId(uuid(&status.component_id, "component_id")?),
            name: status.name,
            state: status.state.parse()?,
            instance: status.instance.map(TryInto::try_into).transpose()?,
            epoch: status.epoch,
            restarts: status.restarts,
            reason: status.reason,
            log: status.log.into_iter().map(Into::into).collect(),
            handled: status.handled,
            dropped: status.dropped,
            outputs: status.outputs.into_iter().map(Into::into).collect(),
            limits: status.limits.into_iter().map(Into::into).collect(),
            usage: status.usage.map(Into::into),
            instances: status.instances.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

impl From<InstanceStatus> for pb::InstanceStatus {
    fn from(status: InstanceStatus) -> Self {
        let InstanceStatus { instance, state, handled, queued, hostname } = status;
        Self { instance: Some(instance.into()), state: state.to_string(), handled, queued, hostname }
    }
}

impl TryFrom<pb::InstanceStatus> for InstanceStatus {
    type Error = Error;

    fn try_from(status: pb::InstanceStatus) -> Result<Self, Error> {
        let pb::InstanceStatus { instance, state, handled, queued, hostname } = status;
        let instance = required(instance, "instance")?.try_into()?;
        Ok(Self { instance, state: state.parse()?, handled, queued, hostname })
    }
}

impl From<Limit> for pb::Limit {
    fn from(limit: Limit) -> Self {
        let Limit { name, asked, kernel } = limit;
        Self { name, asked, kernel }
    }
}

impl From<pb::Limit> for Limit {
    fn from(limit: pb::Limit) -> Self {
        let pb::Limit { name, asked, kernel } = limit;
        Self { name, asked, kernel }
    }
}

impl From<Usage> for pb::Usage {
    fn from(usage: Usage) -> Self {
        let Usage { cpu, memory, processes, received, sent } = usage;
        Self { cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX), memory, processes, received, sent }
    }
}

impl From<pb::Usage> for Usage {
    fn from(usage: pb::Usage) -> Self {
        let pb::Usage { cpu_ns, memory, processes, received, sent } = usage;
        Self { cpu: Duration::from_nanos(cpu_ns), memory, processes, received, sent }
    }
}

impl From<OutputBooks> for pb::OutputBooks {
    fn from(books: OutputBooks) -> Self {
        let OutputBooks {
            output,
            produced,
            handled,
            queued,
            in_flight,
            delayed,
            expired,
            dropped,
            unknown,
            handed_over,
        } = books;
        Self { output, produced, handled, queued, in_flight, delayed, expired, dropped, unknown, handed_over }
    }
}

impl From<pb::OutputBooks> for OutputBooks {
    fn from(books: pb::OutputBooks) -> Self {
        let pb::OutputBooks {
            output,
            produced,
            handled,
            queued,
            in_flight,
            delayed,
            expired,
            dropped,
            unknown,
            handed_over,
        } = books;
        Self { output, produced, handled, queued, in_flight, delayed, expired, dropped, unknown, handed_over }
    }
}

pub(crate) fn statuses(list: pb::ComponentStatusList) -> Result<Vec<ComponentStatus>, Error> {
    list.components.into_iter().map(TryInto::try_into).collect()
}

pub(crate) fn status_list(statuses: Vec<ComponentStatus>) -> pb::ComponentStatusList {
    pb::ComponentStatusList { components: statuses.into_iter().map(Into::into).collect() }
}

impl From<Placement> for pb::Placement {
    fn from(placement: Placement) -> Self {
        Self {
            name: placement.name,
            domain_id: placement.domain.0,
            node_id: placement.node.to_string(),
            hostname: placement.hostname,
        }
    }
}

impl TryFrom<pb::Placement> for Placement {
    type Error = Error;

    fn try_from(placement: pb::Placement) -> Result<Self, Error> {
        Ok(Self {
            name: placement.name,
            domain: DomainId(placement.domain_id),
            node: NodeId(uuid(&placement.node_id, "node_id")?),
            hostname: placement.hostname,
        })
    }
}

pub(crate) fn placements(response: pb::PlanResponse) -> Result<Vec<Placement>, Error> {
    match response.response_error {
        Some(error) => Err(error.into()),
        None => response.placements.into_iter().map(TryInto::try_into).collect(),
    }
}

/// The answer to a plan. A refusal is an answer; whatever else went wrong is an error.
pub(crate) fn plan_response(plan: Result<Vec<Placement>, Error>) -> Result<pb::PlanResponse, Error> {
    match plan {
        Ok(placements) => {
            Ok(pb::PlanResponse { response_error: None, placements: placements.into_iter().map(Into::into).collect() })
        }
        Err(error) if error.code.is_refusal() => Ok(pb::PlanResponse {
            response_error: Some(super::error::refusal("Request rejected", &error)),
            placements: Vec::new(),
        }),
        Err(error) => Err(error),
    }
}

pub(crate) fn limits(response: pb::LimitsResponse) -> Result<Vec<Limit>, Error> {
    match response.response_error {
        Some(error) => Err(error.into()),
        None => Ok(response.limits.into_iter().map(Into::into).collect()),
    }
}

/// The answer about limits. A refusal is an answer; whatever else went wrong is an error.
pub(crate) fn limits_response(limits: Result<Vec<Limit>, Error>) -> Result<pb::LimitsResponse, Error> {
    match limits {
        Ok(limits) => {
            Ok(pb::LimitsResponse { response_error: None, limits: limits.into_iter().map(Into::into).collect() })
        }
        Err(error) if error.code.is_refusal() => Ok(pb::LimitsResponse {
            response_error: Some(super::error::refusal("Request rejected", &error)),
            limits: Vec::new(),
        }),
        Err(error) => Err(error),
    }
}

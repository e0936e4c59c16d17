//! `component`: moves one component, shows what it may use, and changes that while it runs.

use std::time::Duration;

use edgeless_api::client::{Operations, Workflows};
use edgeless_api::decision::{self, Decision, Outcome};
use edgeless_api::status::Limit;
use edgeless_api::{ComponentId, Error, NodeId};
use serde::Serialize;

use super::{node, unless_offered};
use crate::failure::Failure;
use crate::opts::{Component, Named};
use crate::output::{Console, Progress, Report, Style, one_line, or_dash, table};

/// Does it.
pub(crate) async fn run(
    command: Component,
    workflows: &Workflows,
    operations: &Operations,
    console: &Console,
) -> Result<(), Failure> {
    match command {
        Component::Limits { component, changes } => {
            let component = find(component, workflows).await?;
            let changes = changes.into_iter().map(|change| (change.key, change.value)).collect();
            let limits = workflows.limits(component, changes).await.map_err(unless_offered("limits"))?;
            console.report(&Limits { component, limits })
        }
        Component::Why { component } => {
            let component = find(component, workflows).await?;
            let decision = operations.why(component).await.map_err(unless_offered("explanation"))?;
            console.report(&Why { id: component, ..decision.into() })
        }
        Component::Move { component, node } => {
            let component = find(component, workflows).await?;
            let node = node::find(&node, workflows).await?;
            let moved = {
                let _progress = Progress::begin(format!("moving component {component}"), console);
                operations.move_component(component, node.node).await.map_err(unless_offered("moves"))
            };
            moved?;
            console.line(format!("component {component} moved to node {}", node.node))
        }
    }
}

async fn find(component: Named, workflows: &Workflows) -> Result<ComponentId, Error> {
    let (workflow, name) = match component {
        Named::Id(id) => return Ok(id),
        Named::InWorkflow(workflow, name) => (workflow, name),
    };
    let (_, status) = workflows.inspect(workflow).await?;
    let found = status.mapping.iter().find(|mapped| mapped.name == name);
    found.map(|mapped| mapped.component).ok_or_else(|| {
        let names: Vec<_> = status.mapping.iter().map(|mapped| one_line(&mapped.name)).collect();
        let (name, names) = (one_line(&name), names.join(", "));
        Error::not_found(format!("there is no component '{name}' in {workflow}; there are: {names}"))
    })
}

/// A decision, as it is shown.
#[derive(Serialize)]
struct Why {
    #[serde(rename = "component")]
    id: ComponentId,
    name: String,
    strategy: String,
    outcome: String,
    /// How long ago it was placed by this decision, in seconds; `null` if this is what would be decided now.
    decided_s_ago: Option<u64>,
    nodes: Vec<Verdict>,
}

#[derive(Serialize)]
struct Verdict {
    node: NodeId,
    hostname: String,
    verdict: &'static str,
    why: String,
}

impl From<Decision> for Why {
    fn from(decision: Decision) -> Self {
        let Decision { component, strategy, outcome, age, nodes } = decision;
        let id = ComponentId(uuid::Uuid::nil());
        let nodes = nodes.into_iter().map(Verdict::from).collect();
        Self { id, name: component, strategy, outcome, decided_s_ago: age.map(|age| age.as_secs()), nodes }
    }
}

impl From<decision::Verdict> for Verdict {
    fn from(verdict: decision::Verdict) -> Self {
        let (word, why) = match verdict.outcome {
            Outcome::Chosen(score) => ("chosen", score),
            Outcome::Excluded(rule) => ("excluded", rule),
            Outcome::Score(score) => ("feasible", score),
        };
        Self { node: verdict.node, hostname: verdict.hostname, verdict: word, why }
    }
}

impl Report for Why {
    fn text(&self, style: Style) -> String {
        let (name, strategy, outcome) = (one_line(&self.name), one_line(&self.strategy), one_line(&self.outcome));
        let row = |verdict: &Verdict| {
            let node = verdict.node.to_string();
            vec![node, or_dash(&verdict.hostname), verdict.verdict.to_string(), or_dash(&verdict.why)]
        };
        let nodes = table(style, &["NODE", "HOSTNAME", "VERDICT", "WHY"], self.nodes.iter().map(row).collect());
        let when = match self.decided_s_ago {
            Some(seconds) => format!("decided {} ago:", humantime::format_duration(Duration::from_secs(seconds))),
            None => "what would be decided now:".to_string(),
        };
        format!("'{name}' [{strategy}]: {outcome}\n{when}\n{nodes}")
    }
}

#[derive(Serialize)]
struct Limits {
    component: ComponentId,
    limits: Vec<Limit>,
}

impl Report for Limits {
    fn text(&self, style: Style) -> String {
        let row = |limit: &Limit| [&limit.name, &limit.asked, &limit.kernel].map(|text| or_dash(text)).to_vec();
        table(style, &["LIMIT", "ASKED", "KERNEL"], self.limits.iter().map(row).collect())
    }
}

//! `plan`: what would move, if something happened.

use edgeless_api::client::{Operations, Workflows};
use edgeless_api::operations::Relocation;
use edgeless_api::{ComponentId, NodeId};
use serde::Serialize;

use super::{node, unless_offered, workflow};
use crate::failure::Failure;
use crate::opts::Plan;
use crate::output::{Console, Report, Style, or_dash, table};

/// Does it.
pub(crate) async fn run(
    command: Plan,
    workflows: &Workflows,
    operations: &Operations,
    console: &Console,
) -> Result<(), Failure> {
    if let Some(file) = command.add_workflow {
        return workflow::plan(&file, workflows, console).await;
    }
    let node = node::find(command.lose.as_deref().unwrap_or_default(), workflows).await?;
    let plan = operations.plan_loss(node.node).await.map_err(unless_offered("plan"))?;
    if plan.is_empty() {
        console.hint(format!("nothing runs on node {}: nothing would move", node.node));
    }
    console.report(&Loss(plan.into_iter().map(Row::from).collect()))
}

#[derive(Serialize)]
struct Row {
    component: ComponentId,
    name: String,
    node: Option<NodeId>,
    hostname: String,
    reason: String,
}

impl From<Relocation> for Row {
    fn from(relocation: Relocation) -> Self {
        let Relocation { component, name, to } = relocation;
        match to {
            Ok((node, hostname)) => Self { component, name, node: Some(node), hostname, reason: String::new() },
            Err(reason) => Self { component, name, node: None, hostname: String::new(), reason },
        }
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Loss(Vec<Row>);

impl Report for Loss {
    fn text(&self, style: Style) -> String {
        if self.0.is_empty() {
            return String::new();
        }
        let row = |row: &Row| {
            vec![
                or_dash(&row.name),
                row.component.to_string(),
                row.node.map_or("-".to_string(), |node| node.to_string()),
                or_dash(&row.hostname),
                or_dash(&row.reason),
            ]
        };
        let header = ["NAME", "COMPONENT", "WOULD RUN ON", "HOSTNAME", "WHY NOT"];
        table(style, &header, self.0.iter().map(row).collect())
    }
}

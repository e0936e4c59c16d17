//! `component`: what one component may use, and changes to that while it runs.

use edgeless_api::client::Workflows;
use edgeless_api::status::Limit;
use edgeless_api::{ComponentId, Error};
use serde::Serialize;

use super::unless_offered;
use crate::failure::Failure;
use crate::opts::{Component, Named};
use crate::output::{Console, Report, Style, one_line, or_dash, table};

/// Looks at the limits of a component, or changes them first.
pub(crate) async fn run(command: Component, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let Component::Limits { component, changes } = command;
    let component = find(component, workflows).await?;
    let changes = changes.into_iter().map(|change| (change.key, change.value)).collect();
    let limits = workflows.limits(component, changes).await.map_err(unless_offered("limits"))?;
    console.report(&Limits { component, limits })
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

//! `workflow`: starts, stops and moves workflows, and shows how they fare.

mod inspect;
mod logs;

use std::time::{Duration, Instant};

use edgeless_api::client::Workflows;
use edgeless_api::status::Placement;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{Code, DomainId, Error, NodeId, WorkflowId};
use serde::Serialize;
use uuid::Uuid;

use super::unless_offered;
use crate::failure::Failure;
use crate::opts::{self, Start, Which};
use crate::output::{Console, Report, Style, one_line, table};
use crate::workflow_file;

/// How often a start is attempted whose outcome stays unknown.
const ATTEMPTS: u32 = 3;
/// How long a controller may be out of reach while its answer to a start is unknown.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time between two looks for the controller.
const PAUSE: Duration = Duration::from_millis(250);

/// Does it.
pub(crate) async fn run(command: opts::Workflow, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    match command {
        opts::Workflow::Start(options) => start(options, workflows, console).await,
        opts::Workflow::Stop { which } => stop(which, workflows, console).await,
        opts::Workflow::List => list(workflows, console).await,
        opts::Workflow::Inspect { which } => inspect::run(which, workflows, console).await,
        opts::Workflow::Logs { follow, workflow, component } => {
            logs::run(workflow, component, follow, workflows, console).await
        }
        opts::Workflow::Migrate { workflow, domain } => migrate(workflow, domain, None, workflows, console).await,
        opts::Workflow::MigrateComponent { workflow, domain, component } => {
            migrate(workflow, domain, Some(component), workflows, console).await
        }
    }
}

async fn start(options: Start, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let loaded = workflow_file::load(&options.file)?;
    if options.strict && !loaded.warnings.is_empty() {
        return Err(Failure::Input(loaded.warnings));
    }
    loaded.warnings.iter().for_each(|warning| console.warn(warning));
    let refused = |error: Error| match error.code {
        Code::Unavailable | Code::Timeout => error,
        _ => error.context(format!("{} is refused", options.file.display())),
    };
    if options.dry_run {
        let plan = workflows.plan(loaded.workflow).await.map_err(unless_offered("a dry run"));
        return console.report(&DryRun::from(plan.map_err(refused)?));
    }
    let status = start_once(loaded.workflow, workflows).await.map_err(refused)?;
    console.line(status.workflow)
}

/// Starts a workflow once, however often that takes: a controller of ours answers a repeated request
/// id with the first result. One that speaks EDGELESS 1.2 only would start it again and is not asked
/// twice.
async fn start_once(workflow: Workflow, workflows: &Workflows) -> Result<WorkflowStatus, Error> {
    let request = Some(Uuid::new_v4());
    for _ in 1..ATTEMPTS {
        match workflows.start(workflow.clone(), request).await {
            Err(error) if is_unknown(&error) => remembers_requests(workflows, error).await?,
            answer => return answer,
        }
    }
    workflows.start(workflow, request).await.map_err(|error| match error.code {
        Code::Timeout => Error::timeout(format!(
            "{error}; whether the workflow started is not known: see `edgeless_cli workflow list`"
        )),
        _ => error,
    })
}

fn is_unknown(error: &Error) -> bool {
    matches!(error.code, Code::Unavailable | Code::Timeout)
}

/// Returns when the controller is back and knows request ids; otherwise fails with `lost`, the error
/// that left the outcome open.
async fn remembers_requests(workflows: &Workflows, lost: Error) -> Result<(), Error> {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        match workflows.nodes(None).await {
            Err(error) if error.code == Code::Unimplemented => break,
            Err(error) if is_unknown(&error) => tokio::time::sleep(PAUSE).await,
            _ => return Ok(()),
        }
    }
    Err(lost)
}

/// Where the components of a workflow would go.
#[derive(Serialize)]
#[serde(transparent)]
struct DryRun(Vec<Place>);

#[derive(Serialize)]
struct Place {
    component: String,
    domain: String,
    node: NodeId,
    hostname: String,
}

impl From<Vec<Placement>> for DryRun {
    fn from(placements: Vec<Placement>) -> Self {
        let place = |placement: Placement| Place {
            component: placement.name,
            domain: placement.domain.0,
            node: placement.node,
            hostname: placement.hostname,
        };
        Self(placements.into_iter().map(place).collect())
    }
}

impl Report for DryRun {
    fn text(&self, style: Style) -> String {
        let row = |place: &Place| {
            let hostname = if place.hostname.is_empty() { "-".into() } else { one_line(&place.hostname) };
            let (component, domain) = (one_line(&place.component), one_line(&place.domain));
            vec![component.into_owned(), domain.into_owned(), place.node.to_string(), hostname.into_owned()]
        };
        table(style, &["COMPONENT", "DOMAIN", "NODE", "HOSTNAME"], self.0.iter().map(row).collect())
    }
}

/// The ids in an order that stays, whatever order they come in.
async fn sorted_ids(workflows: &Workflows) -> Result<Vec<WorkflowId>, Error> {
    let mut ids = workflows.list().await?;
    ids.sort_unstable();
    Ok(ids)
}

async fn stop(which: Which<WorkflowId>, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let running = sorted_ids(workflows).await?;
    let chosen = match which {
        Which::All => running,
        // A controller that speaks EDGELESS 1.2 would stop an unknown one without a word.
        Which::One(id) if !running.contains(&id) => return Err(unknown(id)),
        Which::One(id) => vec![id],
    };
    let mut exit_code = None;
    for id in chosen {
        match workflows.stop(id).await {
            Ok(()) => console.line(format!("Workflow {id} stopped"))?,
            Err(error) if is_unknown(&error) => return Err(error.into()),
            Err(error) => {
                console.error(format!("workflow {id} is not stopped: {error}"));
                exit_code.get_or_insert(error.code.exit_code());
            }
        }
    }
    exit_code.map_or(Ok(()), |code| Err(Failure::Said(code)))
}

fn unknown(id: WorkflowId) -> Failure {
    Failure::Refused(format!("there is no workflow {id}: `edgeless_cli workflow list` shows all"))
}

#[derive(Serialize)]
#[serde(transparent)]
struct Ids(Vec<WorkflowId>);

impl Report for Ids {
    fn text(&self, _: Style) -> String {
        self.0.iter().map(|id| format!("{id}\n")).collect()
    }
}

async fn list(workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let ids = sorted_ids(workflows).await?;
    if ids.is_empty() {
        console.hint("no workflow is running; `edgeless_cli workflow start FILE` starts one");
    }
    console.report(&Ids(ids))
}

async fn migrate(
    id: WorkflowId,
    domain: String,
    component: Option<String>,
    workflows: &Workflows,
    console: &Console,
) -> Result<(), Failure> {
    let what = match &component {
        Some(component) => format!("migration of {component} of {id} to {domain}"),
        None => format!("migration of {id} to {domain}"),
    };
    match workflows.migrate(id, DomainId(domain), component).await {
        Ok(_) => console.line(format!("{what} successful")),
        Err(error) if is_unknown(&error) => Err(error.into()),
        Err(error) => Err(Error { message: format!("{what} failed: {error}"), ..error }.into()),
    }
}

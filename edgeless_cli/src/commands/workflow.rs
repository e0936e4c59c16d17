//! `workflow`: starts, stops and moves workflows, and shows how they fare.

mod inspect;
mod logs;

use std::path::Path;
use std::time::{Duration, Instant};

use edgeless_api::client::Workflows;
use edgeless_api::status::Placement;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{Code, DomainId, Error, NodeId, WorkflowId};
use serde::Serialize;
use uuid::Uuid;

use super::unless_offered;
use crate::failure::{Failure, INTERRUPTED, reason};
use crate::opts::{self, Start, Which};
use crate::output::{Console, Progress, Report, Style, one_line, table};
use crate::workflow_file;

/// How often a start is attempted that is not answered in time.
const ATTEMPTS: u32 = 3;
/// How long a start waits for the controller, its domains and their nodes.
const PATIENCE: Duration = Duration::from_secs(5);
/// The time until a start is attempted again; longer from attempt to attempt, for code travels in each.
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long an interrupted start tries to find out what became of it.
const FAREWELL: Duration = Duration::from_secs(2);

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
        let plan = workflows.plan(loaded.workflow).await.map_err(unless_offered("dry run"));
        return console.report(&DryRun::from(plan.map_err(refused)?));
    }
    let request = Uuid::new_v4();
    let started = tokio::select! {
        started = start_once(&loaded.workflow, request, workflows, console) => started,
        _ = tokio::signal::ctrl_c() => {
            let outcome = tokio::time::timeout(FAREWELL, undo(loaded.workflow, request, workflows)).await;
            let unknown = "the workflow may still start: see `edgeless_cli workflow list`";
            console.note(format!("interrupted: {}", outcome.ok().flatten().unwrap_or(unknown)));
            return Err(Failure::Said(INTERRUPTED));
        }
    };
    let id = started.map_err(refused)?.workflow;
    console.line(id).map_err(|failure| match failure {
        // Without its id, nobody would know what to stop.
        Failure::Output(error) => {
            Failure::Refused(format!("the workflow {id} runs, but its id cannot be written: {}", reason(&error)))
        }
        other => other,
    })
}

/// Shows where the components of a workflow would go.
pub(super) async fn plan(file: &Path, workflows: &Workflows, console: &Console) -> Result<(), Failure> {
    let loaded = workflow_file::load(file)?;
    loaded.warnings.iter().for_each(|warning| console.warn(warning));
    let plan = workflows.plan(loaded.workflow).await.map_err(unless_offered("plan"))?;
    console.report(&DryRun::from(plan))
}

/// Stops what an interrupted start has started; says what became of it, if that is known.
async fn undo(workflow: Workflow, request: Uuid, workflows: &Workflows) -> Option<&'static str> {
    if !remembers_requests(workflows).await? {
        return None;
    }
    match workflows.start(workflow, Some(request)).await {
        Ok(status) => workflows.stop(status.workflow).await.ok().map(|()| "the workflow was stopped"),
        Err(error) => error.code.is_refusal().then_some("the workflow was refused"),
    }
}

/// Starts a workflow once, however many attempts that takes: a controller of ours answers a repeated
/// request id with the first result. One that speaks EDGELESS 1.2 only would start it again and is not
/// asked twice.
async fn start_once(
    workflow: &Workflow,
    request: Uuid,
    workflows: &Workflows,
    console: &Console,
) -> Result<WorkflowStatus, Error> {
    let (mut attempts, mut timeouts, mut since) = (0, 0, None);
    let mut waiting = None;
    loop {
        let lost = match workflows.start(workflow.clone(), Some(request)).await {
            Err(error) if is_unknown(&error) => error,
            answer => return answer,
        };
        attempts += 1;
        if lost.code == Code::Timeout {
            timeouts += 1;
            since = None;
        }
        if timeouts == ATTEMPTS {
            return Err(unclear(lost));
        }
        let since = *since.get_or_insert_with(Instant::now);
        loop {
            let remembers = remembers_requests(workflows).await;
            let pause = (PAUSE * attempts).min(LONGEST_PAUSE);
            if remembers == Some(false) || since.elapsed() + pause > PATIENCE {
                return Err(unclear(lost));
            }
            waiting.get_or_insert_with(|| Progress::begin(format!("waiting: {lost}"), console));
            tokio::time::sleep(pause).await;
            if remembers == Some(true) {
                break;
            }
        }
    }
}

/// Says so where nobody can tell whether a start has succeeded.
fn unclear(error: Error) -> Error {
    match error.code {
        Code::Timeout => Error::timeout(format!(
            "{error}; whether the workflow started is not known: see `edgeless_cli workflow list`"
        )),
        _ => error,
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(error.code, Code::Unavailable | Code::Timeout)
}

/// Whether a controller knows request ids, as all do that do not only speak EDGELESS 1.2; `None` if it
/// cannot be reached.
async fn remembers_requests(workflows: &Workflows) -> Option<bool> {
    // Any question will do that only these answer; there is no such workflow.
    match workflows.status(WorkflowId(Uuid::nil())).await {
        Err(error) if error.code == Code::Unimplemented => Some(false),
        Err(error) if is_unknown(&error) => None,
        _ => Some(true),
    }
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

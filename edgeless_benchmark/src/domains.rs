//! `domains`: a controller with several domains in one process, many workflows, and the loss of a whole domain.
//!
//! ```text
//!   start all workflows, clients at once -> every component runs            ready_s
//!   kill the orchestrator and the nodes of the fullest domain -> what ran there runs elsewhere   relocated_s
//! ```
//! Real daemons that speak over loopback, and no processes of their own: the same code as in `edgeless_*_d`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use edgeless_api::client::Workflows;
use edgeless_api::status::State;
use edgeless_api::workflow::{Function, Resource, Workflow, WorkflowStatus};
use edgeless_api::{DomainId, FunctionClass, WorkflowId};
use edgeless_inabox::{Cluster, Domain};
use tokio::task::JoinSet;

use crate::modules::module;
use crate::node::class;
use crate::report::{Figure, Report, Row, Unit};
use crate::{Bench, Options};

/// Clients that start workflows at once.
const CLIENTS: usize = 16;
/// How long a domain may be silent before what ran there runs elsewhere.
const GRACE: Duration = Duration::from_secs(1);
/// How long the controller gets to learn which nodes it has to find gone before a domain counts as lost.
const SETTLE: Duration = Duration::from_secs(3);
/// How long is waited for what must happen.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(20);

/// How much there is.
#[derive(Args)]
pub(crate) struct Size {
    /// Domains, each with an orchestrator of its own.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(2..=64))]
    domains: u32,
    /// Nodes in each of them.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: u32,
    /// Workflows, each of a function that sends to a log file.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    workflows: u32,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn measure(size: Size) -> Result<Report> {
    let Size { domains, nodes, workflows: count, options } = size;
    let bench = Bench::from(options);
    let workflow = workflow(&module(&bench, "relay").await?)?;
    let directory = tempfile::tempdir()?;
    bench.progress.say(&format!("starting {domains} domains of {nodes} nodes"));
    let mut builder = Cluster::builder(directory.path()).configure(|controller| controller.domain_grace = GRACE);
    for number in 1..=domains {
        builder = builder.domain(Domain::new(&format!("domain-{number}"))?.nodes(nodes as usize));
    }
    let mut cluster = builder.start().await?;
    let workflows = cluster.workflows()?;

    bench.progress.say(&format!("starting {count} workflows"));
    let began = Instant::now();
    let started = start_all(&workflows, &workflow, count as usize).await?;
    let ids: Vec<WorkflowId> = started.iter().map(|status| status.workflow).collect();
    until_running(&workflows, &ids, None).await?;
    let ready = began.elapsed();

    let mut shares: BTreeMap<&DomainId, Vec<WorkflowId>> = BTreeMap::new();
    for status in &started {
        let home = status.mapping.first().context("a workflow of no components was started")?;
        shares.entry(&home.domain).or_default().push(status.workflow);
    }
    let (lost, moved) = shares.into_iter().max_by_key(|(_, share)| share.len()).context("no workflow was started")?;
    let index = lost.0.strip_prefix("domain-").and_then(|number| number.parse::<usize>().ok());
    let index = index.with_context(|| format!("a workflow runs in {lost}, which is none of ours"))? - 1;

    bench.progress.say(&format!("killing {lost}, where {} workflows run", moved.len()));
    tokio::time::sleep(SETTLE).await;
    let began = Instant::now();
    cluster.kill_domain(index).await;
    until_running(&workflows, &moved, Some(lost)).await?;
    let relocated = began.elapsed();
    cluster.stop().await;

    let mut report = Report::new("domains");
    let seconds = |key: &str, time: Duration| Figure::new(key, time.as_secs_f64(), Unit::Seconds);
    let what = format!("{count} workflows over {domains} domains of {nodes} nodes, until all run");
    report.add(Row::new(what, seconds("ready_s", ready)).aim("≤ 20 s"));
    let what = format!("a whole domain killed, grace {} s, until its workflows run elsewhere", GRACE.as_secs());
    report.add(Row::new(what, seconds("relocated_s", relocated)).aim("≤ 10 s"));
    report.add(Row::new("workflows that had to move", Figure::count("relocated", moved.len() as u64)));
    Ok(report)
}

/// A function that sends to a log file: two components, and one connection between them.
fn workflow(module: &Bytes) -> Result<Workflow> {
    let class = FunctionClass { binary: module.clone().into(), outputs: vec!["next".to_string()], ..class("relay") };
    let outputs = [("next".to_string(), "log".to_string())].into();
    let function = Function { name: "relay".to_string(), class, outputs, annotations: [].into() };
    let configuration = [("filename".to_string(), "log".to_string())].into();
    let log =
        Resource { name: "log".to_string(), class_type: "file-log".to_string(), outputs: [].into(), configuration };
    Ok(Workflow::new(vec![function], vec![log], [].into())?)
}

async fn start_all(workflows: &Workflows, workflow: &Workflow, count: usize) -> Result<Vec<WorkflowStatus>> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS.min(count) {
        let (workflows, workflow) = (workflows.clone(), workflow.clone());
        let share = (client..count).step_by(CLIENTS).len();
        clients.spawn(async move {
            let mut started = Vec::with_capacity(share);
            for _ in 0..share {
                started.push(workflows.start(workflow.clone(), None).await?);
            }
            anyhow::Ok(started)
        });
    }
    let mut started = Vec::with_capacity(count);
    while let Some(share) = clients.join_next().await {
        started.extend(share??);
    }
    Ok(started)
}

/// Waits until every component of these runs, and none of them in the domain that is lost.
async fn until_running(workflows: &Workflows, ids: &[WorkflowId], lost: Option<&DomainId>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for (done, id) in ids.iter().enumerate() {
        while !runs(workflows, *id, lost).await? {
            if Instant::now() > deadline {
                let status = workflows.status(*id).await?;
                bail!("{} of {} workflows do not run, one of them: {status:?}", ids.len() - done, ids.len());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

async fn runs(workflows: &Workflows, id: WorkflowId, lost: Option<&DomainId>) -> Result<bool> {
    if let Some(lost) = lost {
        let (_, status) = workflows.inspect(id).await?;
        if status.mapping.iter().any(|mapped| mapped.domain == *lost) {
            return Ok(false);
        }
    }
    Ok(workflows.status(id).await?.iter().all(|component| component.state == State::Running))
}

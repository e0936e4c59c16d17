//! `chaos`: the daemons as processes, of which one is killed again and again, while workflows come and go.
//!
//! ```text
//!  churn: start, later stop; what was answered is in the ledger -+
//!  killer: SIGKILL, start again, time until it serves            +-> quiet -> the ledger against what there is
//! ```
//! What was acknowledged must be there at the end, and nothing else: the controller is asked for its workflows, the
//! nodes for what they run, and the files of [`events`] for what arrived.

mod events;
mod outage;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use edgeless_api::client::{Connection, Options as Dial, Workflows};
use edgeless_api::status::State;
use edgeless_api::workflow::{Function, Workflow, WorkflowStatus};
use edgeless_api::{Code, Error, FunctionClass, Url, WorkflowId};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::events::{Count, Line};
use self::outage::Outages;
use crate::modules::module;
use crate::node::class;
use crate::programs::{Daemon, configure, free_port};
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{millis, quantile};
use crate::{Bench, Options};

/// Nodes of the domain.
const NODES: usize = 3;
/// Functions of a workflow, each of which sends to the next.
const FUNCTIONS: usize = 3;
/// The pause between two starts or stops.
const CHURN: Duration = Duration::from_millis(50);
/// The pause between two kills.
const KILLS: Duration = Duration::from_secs(2);
/// How long an answer may take, however often it is asked for, before what was asked counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long things may take to become quiet at the end.
const QUIET: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// How much there is.
#[derive(Args)]
pub(crate) struct Storm {
    /// Workflows that stay, each of three functions.
    #[arg(long, value_name = "N", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workflows: u32,
    /// Events each second that are delivered at least once.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u32).range(..=100_000))]
    events: u32,
    /// Chooses which daemon is killed when.
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Nodes that are killed and left dead in the end, and as many that hang, one after the other.
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(0..=1000))]
    outages: u32,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Controller,
    Orchestrator,
    Node,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Self::Controller => "edgeless_con_d",
            Self::Orchestrator => "edgeless_orc_d",
            Self::Node => "edgeless_node_d",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Orchestrator => "orchestrator",
            Self::Node => "node",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::Controller => "controller.toml",
            Self::Orchestrator => "orchestrator.toml",
            Self::Node => "node.toml",
        }
    }
}

/// A daemon in a directory of its own, whether it runs or not.
struct Place {
    kind: Kind,
    directory: PathBuf,
    daemon: Option<Daemon>,
}

impl Place {
    async fn new(root: &Path, name: &str, kind: Kind, ports: &[(u16, u16)]) -> Result<Self> {
        let directory = root.join(name);
        std::fs::create_dir(&directory)?;
        configure(kind.program(), &directory, kind.file(), ports).await?;
        Ok(Self { kind, directory, daemon: None })
    }

    /// The id of a node, as its configuration has it.
    fn node_id(&self) -> Result<String> {
        let text = std::fs::read_to_string(self.directory.join(self.kind.file()))?;
        let id = text.lines().find_map(|line| line.strip_prefix("node_id = "));
        Ok(id.context("a node without an id")?.trim_matches('"').to_string())
    }

    async fn start(&mut self) -> Result<()> {
        self.daemon = Some(Daemon::start(self.kind.program(), &self.directory).await?);
        Ok(())
    }

    fn kill(&mut self) {
        self.daemon = None;
    }
}

/// A node: its id, where it takes requests, and where it writes.
type Node = (String, SocketAddr, PathBuf);

/// The platform: its daemons, and how they are asked.
struct World {
    places: Vec<Place>,
    workflows: Workflows,
    metrics: Vec<Url>,
    lines: Vec<Line>,
    /// Of the lines that were started.
    resources: usize,
}

impl World {
    async fn start(root: &Path) -> Result<Self> {
        let (controller, orchestrator) = (free_port()?, free_port()?);
        let url = |port: u16| format!("http://127.0.0.1:{port}").parse::<Url>();
        let mut places = vec![
            Place::new(root, "controller", Kind::Controller, &[(7001, controller), (7011, orchestrator)]).await?,
            Place::new(root, "orchestrator", Kind::Orchestrator, &[(7011, orchestrator)]).await?,
        ];
        let (mut metrics, mut nodes) = (Vec::new(), Vec::new());
        for number in 1..=NODES {
            let (own, seen) = ([free_port()?, free_port()?, free_port()?, free_port()?], orchestrator);
            let [agent, invocation, shown, http] = own;
            let ports = [(7021, agent), (7002, invocation), (7003, shown), (7035, http), (7011, seen)];
            let place = Place::new(root, &format!("node-{number}"), Kind::Node, &ports).await?;
            metrics.push(url(shown)?);
            nodes.push((place.node_id()?, SocketAddr::from(([127, 0, 0, 1], http)), place.directory.clone()));
            places.push(place);
        }
        for place in &mut places {
            place.start().await?;
        }
        let workflows = Workflows::new(Connection::lazy(&url(controller)?, Dial::default())?);
        let line = |(number, (from, to)): (usize, (&Node, &Node))| {
            let name = format!("line-{number}");
            let file = to.2.join(format!("{name}.log"));
            Line { name, from: (from.0.clone(), from.1), to: (to.0.clone(), file) }
        };
        let next = nodes.iter().cycle().skip(1);
        let lines = nodes.iter().zip(next).enumerate().map(line).collect();
        let world = Self { places, workflows, metrics, lines, resources: 0 };
        world.has_nodes().await.context("the nodes do not become part of the domain")?;
        Ok(world)
    }

    /// Returns when the controller knows all nodes to be part of the domain.
    async fn has_nodes(&self) -> Result<()> {
        until(PATIENCE, async || {
            let nodes = self.workflows.domains(None).await;
            nodes.is_ok_and(|domains| domains.values().any(|domain| domain.num_nodes as usize == NODES))
        })
        .await
    }

    /// Kills a daemon and starts it again: how long it took from there until a workflow could be started, or, for a node,
    /// until all workflows that stay run again.
    async fn kill(&mut self, index: usize, workflow: &Workflow, base: &[WorkflowStatus]) -> Result<Duration> {
        let Some(place) = self.places.get_mut(index) else { bail!("there is no daemon {index}") };
        let kind = place.kind;
        let began = Instant::now();
        place.kill();
        place.start().await?;
        match kind {
            Kind::Controller | Kind::Orchestrator => {
                let mut probe = Ledger::default();
                let started = probe.start(&self.workflows, workflow).await;
                let served = began.elapsed();
                if let Some(id) = started {
                    probe.stop(&self.workflows, id).await;
                }
                if let Some(stuck) = probe.stuck.first() {
                    bail!("the {} does not come back: {stuck}", kind.name());
                }
                Ok(served)
            }
            Kind::Node => {
                // The orchestrator may not have noticed anything yet: the nodes themselves know what they run.
                let wanted = self.wanted(base.len());
                let run = async || self.instances().await.is_ok_and(|instances| instances >= wanted);
                until(PATIENCE, run).await.context("not all instances run again")?;
                for status in base {
                    let runs = async || self.runs(status.workflow).await.is_ok_and(|runs| runs);
                    until(PATIENCE, runs).await.with_context(|| format!("{} does not run", status.workflow))?;
                }
                Ok(began.elapsed())
            }
        }
    }

    /// How many instances so many workflows have, among them those of the lines.
    fn wanted(&self, workflows: usize) -> u64 {
        (workflows * FUNCTIONS + self.resources) as u64
    }

    /// Whether every component of a workflow runs.
    async fn runs(&self, id: WorkflowId) -> Result<bool, Error> {
        let components = self.workflows.status(id).await?;
        Ok(components.len() >= FUNCTIONS && components.iter().all(|component| component.state == State::Running))
    }

    /// How many instances the nodes say that they run.
    async fn instances(&self) -> Result<u64> {
        let mut sum = 0;
        for url in &self.metrics {
            sum += outage::instances(&get(url, "/metrics").await?)?;
        }
        Ok(sum)
    }
}

/// Asks again until something holds.
async fn until(patience: Duration, holds: impl AsyncFn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !holds().await {
        if began.elapsed() > patience {
            bail!("not within {} s", patience.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// The body of what a plain web server answers.
async fn get(url: &Url, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect((url.host(), url.port())).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", url.host());
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// What was acknowledged.
#[derive(Default)]
struct Ledger {
    /// These run.
    running: BTreeSet<WorkflowId>,
    started: u64,
    stopped: u64,
    /// The controller did not know of them when they were to be stopped.
    forgotten: u64,
    /// Nobody knows whether these were stopped.
    unsure: BTreeSet<WorkflowId>,
    /// Requests that got no answer in time, with what was said last.
    stuck: Vec<String>,
}

impl Ledger {
    async fn start(&mut self, workflows: &Workflows, workflow: &Workflow) -> Option<WorkflowId> {
        // The same request however often it is sent: whoever got no answer does not know whether it was heard.
        let mut request = Uuid::new_v4();
        let began = Instant::now();
        loop {
            match workflows.start(workflow.clone(), Some(request)).await {
                Ok(status) => {
                    self.started += 1;
                    self.running.insert(status.workflow);
                    return Some(status.workflow);
                }
                Err(error) if began.elapsed() > PATIENCE => {
                    self.stuck.push(format!("start: {error}"));
                    return None;
                }
                // An answer: there is no place for it now, for an orchestrator that was just started has no node yet.
                Err(error) if error.code.is_refusal() => request = Uuid::new_v4(),
                Err(_) => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn stop(&mut self, workflows: &Workflows, id: WorkflowId) {
        let (began, mut may_be_done) = (Instant::now(), false);
        loop {
            match workflows.stop(id).await {
                Ok(()) => break self.stopped += 1,
                Err(error) if error.code == Code::NotFound && may_be_done => break self.stopped += 1,
                Err(error) if error.code == Code::NotFound => break self.forgotten += 1,
                Err(error) if began.elapsed() > PATIENCE => {
                    self.stuck.push(format!("stop {id}: {error}"));
                    self.unsure.insert(id);
                    break;
                }
                Err(_) => may_be_done = true,
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.running.remove(&id);
    }
}

/// Starts and stops workflows until it is told to end.
async fn churn(workflows: &Workflows, workflow: Workflow, mut ledger: Ledger, end: &CancellationToken) -> Ledger {
    let mut recent = std::collections::VecDeque::new();
    while end.run_until_cancelled(tokio::time::sleep(CHURN)).await.is_some() {
        if recent.len() < 4 {
            recent.extend(ledger.start(workflows, &workflow).await);
        } else if let Some(oldest) = recent.pop_front() {
            ledger.stop(workflows, oldest).await;
        }
    }
    ledger
}

pub(crate) async fn measure(storm: Storm) -> Result<Report> {
    let Storm { workflows: count, events, seed, outages, options } = storm;
    let bench = Bench::from(options);
    let relay = module(&bench, "relay").await?;
    let workflow = workflow(&relay)?;
    let directory = tempfile::tempdir()?;
    bench.progress.say("starting the daemons");
    let mut world = World::start(directory.path()).await?;

    bench.progress.say(&format!("starting {count} workflows"));
    let mut base = Vec::new();
    for _ in 0..count {
        base.push(world.workflows.start(workflow.clone(), None).await?);
    }
    let lines = std::mem::take(&mut world.lines);
    for line in lines.iter().filter(|_| events > 0) {
        base.push(world.workflows.start(line.workflow(&relay, FUNCTIONS)?, None).await?);
        world.resources += Line::RESOURCES;
    }
    let ledger = Ledger { running: base.iter().map(|status| status.workflow).collect(), ..Ledger::default() };

    let (end, clients) = (CancellationToken::new(), world.workflows.clone());
    let storm = async {
        // Whatever comes of it, the churn ends with it.
        let _end = end.clone().drop_guard();
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut recovered: BTreeMap<Kind, Vec<Duration>> = BTreeMap::new();
        let (began, mut kills) = (Instant::now(), 0_u64);
        while began.elapsed() < bench.seconds {
            tokio::time::sleep(KILLS).await;
            // One of the three kinds, then one of that kind.
            let index = match rng.random_range(0..3) {
                2 => 2 + rng.random_range(0..NODES),
                one => one,
            };
            let kind = world.places.get(index).context("a daemon")?.kind;
            kills += 1;
            bench.progress.say(&format!("{} s: kill {kills}, a {}", began.elapsed().as_secs(), kind.name()));
            let took =
                world.kill(index, &workflow, &base).await.with_context(|| format!("kill {kills} of seed {seed}"))?;
            recovered.entry(kind).or_default().push(took);
        }
        anyhow::Ok((recovered, kills))
    };
    let per_line = f64::from(events) / lines.len().max(1) as f64;
    let sending = async {
        match events {
            0 => Vec::new(),
            _ => futures_util::future::join_all(lines.iter().map(|line| line.send(per_line, &end))).await,
        }
    };
    let (ledger, sent, stormed) = tokio::join!(churn(&clients, workflow.clone(), ledger, &end), sending, storm);
    let (recovered, kills) = stormed?;

    bench.progress.say("waiting until all is quiet");
    tokio::time::sleep(QUIET).await;
    let mut counted = Count::default();
    for (line, sent) in lines.iter().zip(&sent) {
        // What waits for a longer time than that is not lost, but it is not there.
        until(PATIENCE, async || line.count(sent).await.lost == 0).await.ok();
        let Count { acknowledged, lost, repeated } = line.count(sent).await;
        counted.acknowledged += acknowledged;
        counted.lost += lost;
        counted.repeated += repeated;
    }
    let verdict = Verdict::now(&world, &ledger).await?;
    // Their ingress and their log can be nowhere but on their node.
    let pinned: Vec<_> = base.iter().skip(count as usize).map(|status| status.workflow).collect();
    for id in pinned {
        world.workflows.stop(id).await?;
    }
    world.resources = 0;
    let outages = Outages::of(&mut world, outages, |what| bench.progress.say(what)).await?;
    let mut report = Report::new("chaos");
    report.add(Row::new("daemons killed", Figure::count("kills", kills)));
    report.add(Row::new("workflows started meanwhile", Figure::count("started", ledger.started)));
    report.add(Row::new("workflows stopped meanwhile", Figure::count("stopped", ledger.stopped)));
    report.add(Row::new("events acknowledged meanwhile", Figure::count("events", counted.acknowledged)));
    report
        .add(Row::new("events that are in a file more than once", Figure::count("repeated_events", counted.repeated)));
    for (what, key, value) in [
        ("acknowledged workflows that do not run at the end", "lost_workflows", verdict.lost),
        ("workflows that nobody has asked for, or that were stopped", "ghost_workflows", verdict.ghosts),
        ("acknowledged events that are in no file", "lost_events", counted.lost),
        ("requests without an answer in 30 s", "stuck", ledger.stuck.len() as u64),
        ("instances at the nodes beyond those of the workflows", "duplicate_instances", verdict.duplicates),
        ("instances of the workflows that the nodes lack", "missing_instances", verdict.missing),
    ] {
        report.add(Row::new(what, Figure::count(key, value)).aim("0"));
    }
    for (kind, times) in &recovered {
        let name = kind.name();
        let (what, aim) = match kind {
            Kind::Node => ("all components run", "≤ 2 s"),
            Kind::Controller | Kind::Orchestrator => ("a workflow can be started", "≤ 1 s"),
        };
        for (label, share) in [("p50", 0.5), ("p99", 0.99)] {
            let figure =
                Figure::new(format!("recover_ms_{label}.{name}"), millis(quantile(times, share)), Unit::Milliseconds);
            let row = Row::new(format!("{name} killed and started again, until {what}, {label}"), figure);
            report.add(if label == "p99" { row.aim(aim) } else { row });
        }
    }
    outages.report(&mut report);
    for stuck in &ledger.stuck {
        eprintln!("stuck: {stuck}");
    }
    Ok(report)
}

/// What there is, compared to what there should be.
struct Verdict {
    lost: u64,
    ghosts: u64,
    duplicates: u64,
    missing: u64,
}

impl Verdict {
    async fn now(world: &World, ledger: &Ledger) -> Result<Self> {
        let listed: BTreeSet<WorkflowId> = world.workflows.list().await?.into_iter().collect();
        let mut lost = ledger.forgotten;
        for id in &ledger.running {
            let runs = listed.contains(id) && world.runs(*id).await.unwrap_or(false);
            lost += u64::from(!runs);
        }
        let ghosts = listed.iter().filter(|id| !ledger.running.contains(id) && !ledger.unsure.contains(id)).count();
        let (wanted, instances) = (world.wanted(listed.len()), world.instances().await?);
        Ok(Self {
            lost,
            ghosts: ghosts as u64,
            duplicates: instances.saturating_sub(wanted),
            missing: wanted.saturating_sub(instances),
        })
    }
}

/// Functions in a row.
fn workflow(module: &Bytes) -> Result<Workflow> {
    let name = |number: usize| format!("relay-{number}");
    let function = |number: usize| {
        let class =
            FunctionClass { binary: module.clone().into(), outputs: vec!["next".to_string()], ..class("relay") };
        let next = (number + 1 < FUNCTIONS).then(|| ("next".to_string(), name(number + 1)));
        Function { name: name(number), class, outputs: next.into_iter().collect(), annotations: [].into() }
    };
    Ok(Workflow::new((0..FUNCTIONS).map(function).collect(), vec![], [].into())?)
}

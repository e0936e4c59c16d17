//! A folder to run the program in, and a controller and a node that it talks to.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use async_trait::async_trait;
use edgeless_api::component::{Annotations, ComponentKind, without_limits};
use edgeless_api::dead::{DeadLetter, DeadLetters, LetterId, Letters, Resolved, Scope, Treatment};
use edgeless_api::decision::{Decision, Outcome, Verdict};
use edgeless_api::domain::DomainCapabilities;
use edgeless_api::node::{Capabilities, NodeInfo, ProviderSpec};
use edgeless_api::operations::{DrainProgress, Relocation};
use edgeless_api::server::{Invocation, Operations, Server, Values, Workflows};
use edgeless_api::status::{
    ComponentStatus, InstanceStatus, Level, Limit, LogLine, OutputBooks, Placement, State, Usage,
};
use edgeless_api::workflow::{Mapping, Workflow, WorkflowStatus};
use edgeless_api::{ComponentId, DomainId, Error, Event, InstanceId, Limits, NodeId, Url, WorkflowId};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A folder with files in it, in which the program runs.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with a configuration for `controller` and a workflow that can be started.
    pub(crate) fn for_controller(controller: &Served) -> Self {
        Self::new()
            .with("cli.toml", format!("controller_url = \"{}\"\n", controller.url))
            .with("workflow.json", WORKFLOW)
            .with("count.wasm", b"\0asm\x01\0\0\0")
    }

    pub(crate) fn with(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(name, content);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program, to be run in this folder.
    pub(crate) fn program<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgeless_cli"));
        command.current_dir(self.0.path()).args(args).stdin(Stdio::null());
        command.env_remove("EDGELESS_CLI__CONTROLLER_URL").env_remove("CARGO_TARGET_DIR");
        command
    }

    /// Runs the program with arguments that contain no blanks.
    pub(crate) fn run(&self, args: &str) -> Ended {
        Ended::of(self.program(args.split_whitespace()))
    }
}

/// What the program said before it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(mut command: Command) -> Self {
        let output = command.output().unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// It succeeded, with this on stdout and nothing on stderr.
    #[track_caller]
    pub(crate) fn prints(self, stdout: &str) {
        self.is(0, stdout, "");
    }

    /// It failed with this on stderr and nothing on stdout.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, stderr: &str) {
        self.is(code, "", stderr);
    }

    #[track_caller]
    pub(crate) fn is(self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!(self, Self { code, stdout: stdout.into(), stderr: stderr.into() });
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Served {
    pub(crate) url: Url,
    cancel: CancellationToken,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn start(with: impl FnOnce(Server) -> Server) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let cancel = CancellationToken::new();
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let url = Url::of(listener.local_addr().unwrap());
        runtime.spawn(with(Server::new(Limits::default(), cancel.clone())).serve(listener));
        Self { url, cancel, _runtime: runtime }
    }

    pub(crate) fn controller(controller: &Arc<Controller>) -> Self {
        Self::start(|server| server.workflows(controller.clone()).operations(controller.clone()))
    }

    pub(crate) fn node(node: &Arc<Node>) -> Self {
        Self::start(|server| server.invocation(node.clone()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Waits until something has happened.
#[track_caller]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An address where nobody listens.
pub(crate) fn nobody() -> Url {
    Url::of(StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap())
}

pub(crate) const WORKFLOW: &str = r#"{
    "functions": [
        {
            "name": "counter",
            "class_specification": {
                "id": "count",
                "function_type": "RUST_WASM",
                "version": "0.1",
                "code": "count.wasm",
                "outputs": ["out"]
            },
            "output_mapping": { "out": "log" },
            "annotations": { "init-payload": "two\nlines" }
        }
    ],
    "resources": [
        {
            "name": "log",
            "class_type": "file-log",
            "output_mapping": {},
            "configurations": { "filename": "count.log" }
        }
    ],
    "annotations": {}
}
"#;

/// The workflow with one text replaced, which must occur.
pub(crate) fn workflow_but(from: &str, to: &str) -> String {
    assert!(WORKFLOW.contains(from), "{from}");
    WORKFLOW.replacen(from, to, 1)
}

/// The id of the n-th workflow that is started.
pub(crate) fn id(n: u128) -> WorkflowId {
    WorkflowId(Uuid::from_u128(n))
}

pub(crate) const NODE: NodeId = NodeId(Uuid::from_u128(0xA));

/// What becomes of a log that is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Follow {
    /// It goes on.
    #[default]
    Open,
    /// It ends.
    Closed,
    /// It ends because its workflow is stopped.
    Stopped,
}

/// A controller that runs nothing and remembers what it was asked.
#[derive(Default)]
pub(crate) struct Controller {
    running: Mutex<BTreeMap<WorkflowId, Workflow>>,
    /// The request id of every start.
    pub(crate) requests: Mutex<Vec<Option<Uuid>>>,
    /// Why starts and migrations are refused.
    pub(crate) refusal: Mutex<Option<Error>>,
    /// So many answers to starts are lost.
    pub(crate) losses: AtomicU32,
    /// So many starts find no domain that is ready.
    pub(crate) unready: AtomicU32,
    /// Starts are not answered.
    pub(crate) is_held: AtomicBool,
    /// How logs that are followed go on.
    pub(crate) follow: Mutex<Follow>,
    /// The limits that the first component was given.
    pub(crate) limits: Mutex<Annotations>,
    /// What was done to nodes, components and dead letters.
    pub(crate) done: Mutex<Vec<String>>,
    /// The dead letters there are.
    pub(crate) dead: Mutex<Vec<DeadLetter>>,
    /// What cannot be asked about dead letters.
    pub(crate) troubles: Mutex<Vec<String>>,
    /// It speaks EDGELESS 1.2 only.
    pub(crate) is_old: AtomicBool,
    /// Nothing is registered with it.
    pub(crate) is_empty: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What was started, in the order of the ids.
    pub(crate) fn started(&self) -> Vec<Workflow> {
        lock(&self.running).values().cloned().collect()
    }

    pub(crate) fn refuse(&self, reason: &str) {
        *lock(&self.refusal) = Some(Error::rejected(reason));
    }

    fn refused(&self) -> Result<(), Error> {
        lock(&self.refusal).clone().map_or(Ok(()), Err)
    }

    fn offered(&self) -> Result<(), Error> {
        match self.is_old.load(Ordering::Relaxed) {
            true => Err(Error::unimplemented("")),
            false => Ok(()),
        }
    }

    fn known(&self, workflow: WorkflowId) -> Result<Workflow, Error> {
        let found = lock(&self.running).get(&workflow).cloned();
        found.ok_or_else(|| Error::not_found(format!("there is no workflow {workflow}")))
    }
}

fn status_of(workflow: WorkflowId) -> WorkflowStatus {
    // Not in the order of the file.
    let mapping = [("log", 2), ("counter", 1)].map(|(name, n)| Mapping {
        name: name.into(),
        component: ComponentId(Uuid::from_u128(n)),
        domain: DomainId("domain-1".into()),
    });
    WorkflowStatus { workflow, mapping: mapping.to_vec() }
}

fn line(seconds: u64, level: Level, message: &str) -> LogLine {
    LogLine {
        at: UNIX_EPOCH + Duration::from_secs(seconds),
        level,
        target: "count".into(),
        message: message.into(),
        component: "counter".into(),
    }
}

fn instance_status(function: u128) -> InstanceStatus {
    InstanceStatus {
        instance: InstanceId { node: NODE, function: Uuid::from_u128(function) },
        state: State::Running,
        handled: 4,
        queued: 1,
        hostname: "edge-1".into(),
    }
}

/// A dead letter of the n-th workflow.
pub(crate) fn dead_letter(workflow: u128, number: u64, payload: &'static [u8]) -> DeadLetter {
    DeadLetter {
        id: LetterId { outbox: Uuid::from_u128(7), number },
        component: ComponentId(Uuid::from_u128(1)),
        name: "counter".into(),
        workflow: Some(id(workflow)),
        output: "count".into(),
        payload: payload.into(),
        size: payload.len() as u64,
        sent: UNIX_EPOCH + Duration::from_secs(number),
        tries: 5,
        reason: "the target has failed".into(),
    }
}

fn limit(name: &str, asked: &str, kernel: &str) -> Limit {
    Limit { name: name.into(), asked: asked.into(), kernel: kernel.into() }
}

fn capabilities() -> Capabilities {
    Capabilities {
        num_cpus: 2,
        num_cores: 4,
        mem_size: 2048,
        labels: vec!["hostname=edge-1".into(), "gpu".into()],
        runtimes: vec!["RUST_WASM".into()],
        ..Capabilities::default()
    }
}

fn providers() -> Vec<ProviderSpec> {
    let provider = |class: &str| ProviderSpec { id: format!("{class}-1"), class_type: class.into(), outputs: vec![] };
    vec![provider("file-log"), provider("redis")]
}

#[async_trait]
impl Workflows for Controller {
    async fn start(&self, workflow: Workflow, request: Option<Uuid>) -> Result<WorkflowStatus, Error> {
        lock(&self.requests).push(request);
        self.refused()?;
        if self.unready.load(Ordering::Relaxed) > 0 {
            self.unready.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::unavailable("no orchestration domain is ready"));
        }
        if self.is_held.load(Ordering::Relaxed) {
            // As if the first answer were on its way for ever.
            self.is_held.store(false, Ordering::Relaxed);
            lock(&self.running).insert(id(1), workflow);
            std::future::pending::<()>().await;
            return Err(Error::bug("never"));
        }
        let mut running = lock(&self.running);
        let is_repeat = lock(&self.requests).iter().filter(|known| **known == request).count() > 1;
        if !is_repeat || running.is_empty() {
            let next = id(running.len() as u128 + 1);
            running.insert(next, workflow);
        }
        if self.losses.load(Ordering::Relaxed) > 0 {
            self.losses.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::unavailable("the answer is lost"));
        }
        Ok(status_of(*running.last_key_value().unwrap().0))
    }

    async fn stop(&self, workflow: WorkflowId) -> Result<(), Error> {
        self.refused()?;
        lock(&self.running).remove(&workflow);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<WorkflowId>, Error> {
        Ok(lock(&self.running).keys().rev().copied().collect())
    }

    async fn inspect(&self, workflow: WorkflowId) -> Result<(Workflow, WorkflowStatus), Error> {
        Ok((self.known(workflow)?, status_of(workflow)))
    }

    async fn domains(&self, domain: Option<DomainId>) -> Result<BTreeMap<DomainId, DomainCapabilities>, Error> {
        let mut all = BTreeMap::new();
        if !self.is_empty.load(Ordering::Relaxed) {
            let has = DomainCapabilities {
                num_nodes: 1,
                num_cpus: 2,
                num_cores: 8,
                mem_size: 2048,
                labels: ["hostname=edge-1", "gpu"].map(String::from).into(),
                runtimes: ["RUST_WASM".into()].into(),
                resource_providers: ["file-log-1", "redis-1"].map(String::from).into(),
                resource_classes: ["file-log", "redis"].map(String::from).into(),
                ..DomainCapabilities::default()
            };
            all.insert(DomainId("domain-1".into()), has);
            all.insert(DomainId("domain-2".into()), DomainCapabilities::default());
        }
        all.retain(|id, _| domain.as_ref().is_none_or(|wanted| wanted == id));
        Ok(all)
    }

    async fn migrate(&self, workflow: WorkflowId, _: DomainId, _: Option<String>) -> Result<WorkflowStatus, Error> {
        self.refused()?;
        self.known(workflow)?;
        Ok(status_of(workflow))
    }

    async fn plan(&self, workflow: Workflow) -> Result<Vec<Placement>, Error> {
        self.offered()?;
        self.refused()?;
        let functions = workflow.functions().iter().map(|function| &function.name);
        let names = functions.chain(workflow.resources().iter().map(|resource| &resource.name));
        let place = |name: &String| Placement {
            name: name.clone(),
            domain: DomainId("domain-1".into()),
            node: NODE,
            hostname: "edge-1".into(),
        };
        Ok(names.map(place).collect())
    }

    async fn status(&self, workflow: WorkflowId) -> Result<Vec<ComponentStatus>, Error> {
        self.offered()?;
        self.known(workflow)?;
        let status = |name: &str, n: u128| ComponentStatus {
            component: ComponentId(Uuid::from_u128(n)),
            name: name.into(),
            state: State::Running,
            instance: Some(InstanceId { node: NODE, function: Uuid::from_u128(n + 0x10) }),
            epoch: 1,
            restarts: 0,
            reason: String::new(),
            log: vec![],
            handled: 5,
            dropped: 0,
            outputs: vec![],
            limits: vec![],
            usage: None,
            instances: vec![instance_status(n + 0x10)],
        };
        let measured = ComponentStatus {
            limits: vec![limit("cpu", "0.5", "0.5"), limit("memory", "128MiB", "")],
            usage: Some(Usage {
                cpu: Duration::from_millis(1500),
                memory: 7 << 20,
                processes: 3,
                received: 1000,
                sent: 20,
            }),
            ..status("log", 2)
        };
        let failed = ComponentStatus {
            state: State::Failed,
            instance: None,
            restarts: 3,
            reason: "trap: out of bounds\n0: count!handle_cast".into(),
            log: vec![line(1, Level::Info, "hello"), line(2, Level::Error, "trap\n0: count!handle_cast")],
            dropped: 2,
            instances: vec![instance_status(0x11), instance_status(0x21)],
            outputs: vec![OutputBooks {
                output: "count".into(),
                produced: 7,
                handled: 5,
                queued: 1,
                dropped: [("MailboxFull".to_string(), 1)].into(),
                ..OutputBooks::default()
            }],
            ..status("counter", 1)
        };
        Ok(vec![measured, failed])
    }

    async fn limits(&self, component: ComponentId, changes: Annotations) -> Result<Vec<Limit>, Error> {
        self.offered()?;
        self.refused()?;
        match component.0.as_u128() {
            1 => {}
            2 => return Err(without_limits("log", ComponentKind::Resource, "file-log")),
            _ => return Err(Error::not_found(format!("there is no component {component}"))),
        }
        let mut limits = lock(&self.limits);
        limits.extend(changes);
        Ok(limits.iter().map(|(name, asked)| limit(name, asked, if name == "memory" { "" } else { asked })).collect())
    }

    async fn dead_letters(&self, scope: Scope, most: usize) -> Result<DeadLetters, Error> {
        self.offered()?;
        let is_meant = |letter: &DeadLetter| {
            scope.workflow.is_none_or(|workflow| letter.workflow == Some(workflow))
                && scope.component.as_ref().is_none_or(|name| *name == letter.name)
        };
        let letters = lock(&self.dead).iter().filter(|letter| is_meant(letter)).cloned().collect();
        let troubles = lock(&self.troubles).clone();
        Ok(DeadLetters::together([DeadLetters { letters, more: 0, troubles }], most))
    }

    async fn resolve_dead(&self, scope: Scope, letters: Letters, treatment: Treatment) -> Result<Resolved, Error> {
        self.offered()?;
        lock(&self.done).push(format!("{treatment:?} {:?}", scope.component));
        let mut dead = lock(&self.dead);
        let before = dead.len();
        let is_of = |letter: &DeadLetter| scope.workflow.is_none_or(|workflow| letter.workflow == Some(workflow));
        dead.retain(|letter| !is_of(letter) || !letters.has(&letter.id));
        Ok(Resolved { count: (before - dead.len()) as u64, troubles: lock(&self.troubles).clone() })
    }

    async fn logs(
        &self,
        workflow: WorkflowId,
        component: Option<String>,
        follow: bool,
    ) -> Result<Values<LogLine>, Error> {
        self.offered()?;
        self.known(workflow)?;
        let lines = match component.as_deref() {
            None | Some("counter") => vec![line(1, Level::Info, "hello"), line(2, Level::Error, "trap\n0: f\u{1b}[2J")],
            Some(other) => return Err(Error::not_found(format!("there is no component '{other}'"))),
        };
        let lines = futures_util::stream::iter(lines.into_iter().map(Ok));
        let end = *lock(&self.follow);
        if end == Follow::Stopped {
            lock(&self.running).remove(&workflow);
        }
        let follow = follow && end == Follow::Open;
        if follow { Ok(Box::pin(lines.chain(futures_util::stream::pending()))) } else { Ok(Box::pin(lines)) }
    }

    async fn nodes(&self, domain: Option<DomainId>) -> Result<Vec<NodeInfo>, Error> {
        self.offered()?;
        let node = |n: u128, domain: &str, capabilities: Capabilities, providers| NodeInfo {
            node: NodeId(Uuid::from_u128(n)),
            domain: DomainId(domain.into()),
            agent_url: "http://10.0.0.1:7021".parse().unwrap(),
            invocation_url: "http://10.0.0.1:7002".parse().unwrap(),
            capabilities,
            providers,
            components: 2,
            native: true,
            cordoned: false,
            suspected: false,
        };
        if domain.as_ref().is_some_and(|domain| domain.0 == "away") {
            return Err(Error::unavailable("the domain away is out of reach: connection refused"));
        }
        let mut nodes = vec![
            node(0xB, "domain-2", Capabilities::default(), vec![]),
            node(0xA, "domain-1", capabilities(), providers()),
        ];
        nodes.retain(|node| domain.as_ref().is_none_or(|wanted| *wanted == node.domain));
        Ok(nodes)
    }
}

#[async_trait]
impl Operations for Controller {
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        self.offered()?;
        lock(&self.done).push(format!("cordon {node} {cordoned}"));
        Ok(())
    }

    async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.offered()?;
        if node.0.as_u128() <= 0xB {
            return Err(Error::rejected(format!("node {node} is there: stop it first")));
        }
        lock(&self.done).push(format!("forget {node}"));
        Ok(())
    }

    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        self.offered()?;
        lock(&self.done).push(format!("drain {node}"));
        let step = |moved, component: &str, reason: &str| DrainProgress {
            total: 2,
            moved,
            component: component.into(),
            reason: reason.into(),
        };
        let mut steps = vec![step(0, "", ""), step(1, "counter", "")];
        // Of the two nodes, one cannot be emptied.
        if node.0.as_u128() == 0xA {
            steps.push(step(1, "log", "no node for 'log': 0 of 1 nodes offer file-log"));
        } else {
            steps.push(step(2, "log", ""));
        }
        Ok(Box::pin(futures_util::stream::iter(steps.into_iter().map(Ok))))
    }

    async fn residents(&self, node: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        self.offered()?;
        let running = lock(&self.running).keys().next().copied();
        let is_drained = lock(&self.done).contains(&format!("drain {node}"));
        // See `drain`.
        let stays = |one: &ComponentStatus| !is_drained || (node.0.as_u128() == 0xA && one.name == "log");
        Ok(self.status(running.unwrap()).await?.into_iter().filter(stays).collect())
    }

    async fn plan_loss(&self, node: NodeId) -> Result<Vec<Relocation>, Error> {
        self.offered()?;
        if node.0.as_u128() == 0xB {
            return Ok(vec![]);
        }
        let relocation =
            |n: u128, name: &str, to| Relocation { component: ComponentId(Uuid::from_u128(n)), name: name.into(), to };
        let none = "no node for 'log': 0 of 1 nodes offer file-log";
        let node = NodeId(Uuid::from_u128(0xB));
        Ok(vec![relocation(1, "counter", Ok((node, "edge-2".into()))), relocation(2, "log", Err(none.into()))])
    }

    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        self.offered()?;
        self.refused()?;
        lock(&self.done).push(format!("move {component} {node}"));
        Ok(())
    }

    async fn why(&self, _: ComponentId) -> Result<Decision, Error> {
        self.offered()?;
        let verdict = |n: u128, hostname: &str, outcome| Verdict {
            node: NodeId(Uuid::from_u128(n)),
            hostname: hostname.into(),
            outcome,
        };
        Ok(Decision {
            component: "counter".into(),
            strategy: "least loaded".into(),
            outcome: "runs on edge-1".into(),
            age: Some(Duration::from_millis(61_234)),
            nodes: vec![
                verdict(0xA, "edge-1", Outcome::Chosen("load 0.10".into())),
                verdict(0xB, "", Outcome::Excluded("it does not run RUST_WASM".into())),
            ],
        })
    }
}

/// A node that remembers the events it was sent.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) events: Mutex<Vec<Event>>,
}

#[async_trait]
impl Invocation for Node {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        if event.target.node != NODE {
            return Err(Error::rejected("the event is for another node"));
        }
        lock(&self.events).push(event);
        Ok(())
    }
}

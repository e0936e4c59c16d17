//! A real controller on free ports, with an orchestrator behind it that is fake but for the wire.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::{
    Annotations, CONTAINER, ComponentKind, ComponentRef, ComponentSpec, FunctionClass, Patch, Row, Start, StatePolicy,
    Target,
};
use edgeless_api::domain::{DomainCapabilities, DomainRegistration, DomainState};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, DomainId, InstanceId, NodeId, WorkflowId};
use edgeless_api::node::{Capabilities, NodeInfo};
use edgeless_api::operations::{DrainProgress, Relocation};
use edgeless_api::server::{Components, Domain, Operations, Server, Values};
use edgeless_api::status::{ComponentStatus, Level, Limit, LogLine, Placement, State};
use edgeless_api::workflow::{Function, Resource, Workflow};
use edgeless_api::{Digest, Limits, Url};
use edgeless_con::{Config, Controller, Orchestrator};
use edgeless_daemon::{Daemon, Handle, Stopped};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for a condition, and fails the test if it does not come.
async fn wait_until<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let start = Instant::now();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    while start.elapsed() < DEADLINE {
        pace.tick().await;
        if let Some(value) = condition().await {
            return value;
        }
    }
    panic!("waited in vain until {what}");
}

fn any_port() -> Url {
    "http://127.0.0.1:0".parse().unwrap()
}

/// An orchestrator that notes what it is told.
struct Orc {
    url: Url,
    cancel: CancellationToken,
    told: Arc<Told>,
}

struct Told {
    state: watch::Sender<DomainState>,
    started: Mutex<Vec<Start>>,
    /// The code that it was sent.
    kept: Mutex<BTreeSet<Digest>>,
    patched: Mutex<Vec<Patch>>,
    activated: Mutex<Vec<Vec<Uuid>>>,
    stopped: Mutex<Vec<ComponentId>>,
    /// The component that cannot be started, and why.
    refused: Mutex<Option<(String, Error)>>,
    /// Starts wait while this is true.
    is_held: watch::Sender<bool>,
    /// Where it says that its components run.
    rows: watch::Sender<Vec<Row>>,
    released: Mutex<Vec<Uuid>>,
    /// The nodes that it had.
    lost: Mutex<BTreeSet<NodeId>>,
    /// Where its nodes take commands; none: it has none.
    agents: Mutex<Vec<Url>>,
    /// How often it was asked for its nodes since they are these.
    nodes_asked: Mutex<usize>,
    /// By whom it was followed.
    controllers: Mutex<Vec<u64>>,
    /// Its node, and what was asked of it.
    node: NodeId,
    asked: Mutex<Vec<String>>,
}

impl Orc {
    async fn serve(domain: &str) -> Self {
        Self::serve_as(domain, true).await
    }

    /// One that is not native has the services of EDGELESS 1.2 only.
    async fn serve_as(domain: &str, native: bool) -> Self {
        Self::serve_having(domain, native, &["RUST_WASM", CONTAINER], &["file-log"]).await
    }

    async fn serve_having(domain: &str, native: bool, runtimes: &[&str], classes: &[&str]) -> Self {
        let capabilities = DomainCapabilities {
            num_nodes: 1,
            runtimes: runtimes.iter().map(|name| name.to_string()).collect(),
            resource_classes: classes.iter().map(|name| name.to_string()).collect(),
            ..DomainCapabilities::default()
        };
        let domain = DomainId(domain.into());
        let state = DomainState { domain, nonce: 1, capabilities, lifetime: Duration::from_secs(60) };
        let told = Arc::new(Told {
            state: watch::Sender::new(state),
            started: Mutex::default(),
            kept: Mutex::default(),
            patched: Mutex::default(),
            activated: Mutex::default(),
            stopped: Mutex::default(),
            refused: Mutex::default(),
            is_held: watch::Sender::new(false),
            rows: watch::Sender::new(Vec::new()),
            released: Mutex::default(),
            lost: Mutex::default(),
            agents: Mutex::new(vec![any_port()]),
            nodes_asked: Mutex::default(),
            controllers: Mutex::default(),
            node: NodeId::random(),
            asked: Mutex::default(),
        });
        let (listener, url) = edgeless_daemon::listen(&any_port()).await.unwrap();
        let cancel = CancellationToken::new();
        let server = Server::new(Limits::default(), cancel.clone()).components(told.clone());
        let server = if native { server.domain(told.clone()).operations(told.clone()) } else { server };
        tokio::spawn(server.serve(listener));
        Self { url, cancel, told }
    }

    fn listed_as(&self, domain: &str) -> Orchestrator {
        Orchestrator { domain_id: DomainId(domain.into()), orchestrator_url: self.url.clone() }
    }

    /// How it announces itself.
    fn registration(&self) -> DomainRegistration {
        let DomainState { domain, nonce, capabilities, lifetime } = self.told.state.borrow().clone();
        let orchestrator_url = self.url.clone();
        DomainRegistration { domain, orchestrator_url, capabilities, lifetime, counter: 0, nonce }
    }

    fn refuse(&self, component: &str, error: Error) {
        *self.told.refused.lock().unwrap() = Some((component.into(), error));
    }

    fn started(&self) -> Vec<Start> {
        self.told.started.lock().unwrap().clone()
    }

    /// Of each start of a function, whether it carried the code.
    fn carried(&self) -> Vec<bool> {
        let carries = |start: Start| match start.spec {
            ComponentSpec::Function(function) => Some(function.class.binary.bytes().is_some()),
            ComponentSpec::Resource(_) => None,
        };
        self.started().into_iter().filter_map(carries).collect()
    }

    fn stopped(&self) -> Vec<ComponentId> {
        self.told.stopped.lock().unwrap().clone()
    }
}

impl Drop for Orc {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[async_trait]
impl Components for Told {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        self.is_held.subscribe().wait_for(|held| !held).await.unwrap();
        let context = start.context.clone().expect("a controller of ours gives a context");
        if let Some((name, error)) = &*self.refused.lock().unwrap()
            && *name == context.name
        {
            return Err(error.clone());
        }
        if let ComponentSpec::Function(function) = &start.spec {
            let binary = &function.class.binary;
            let is_new = !self.kept.lock().unwrap().contains(&binary.digest());
            match binary.bytes() {
                Some(_) => drop(self.kept.lock().unwrap().insert(binary.digest())),
                None if is_new => return Err(Error::needs_code(binary.digest())),
                None => {}
            }
        }
        self.started.lock().unwrap().push(start);
        Ok(ComponentRef::Component(context.component))
    }

    async fn stop(&self, _: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        let ComponentRef::Component(id) = id else { panic!("an orchestrator knows components") };
        self.stopped.lock().unwrap().push(id);
        Ok(())
    }

    async fn patch(&self, _: ComponentKind, patch: Patch) -> Result<(), Error> {
        self.patched.lock().unwrap().push(patch);
        Ok(())
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        self.activated.lock().unwrap().push(ids);
        Ok(())
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let first = ids.first().expect("a component");
        Ok(vec![ComponentStatus {
            component: ComponentId(*first),
            name: String::new(),
            state: State::Running,
            instance: None,
            epoch: 1,
            restarts: 3,
            reason: String::new(),
            log: Vec::new(),
            handled: 7,
            dropped: 0,
            outputs: Vec::new(),
            limits: Vec::new(),
            usage: None,
            instances: Vec::new(),
        }])
    }

    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let started = self.started.lock().unwrap();
        let is_it = |start: &&Start| start.context.as_ref().unwrap().component.0 == id;
        let known = started.iter().rev().find(is_it).ok_or_else(|| Error::not_found("not here"))?;
        known.spec.limits("f")?;
        let limit = |(name, asked): (String, String)| match name.as_str() {
            "colour" => Err(Error::rejected("'colour' is not a limit")),
            _ => Ok(Limit { name, kernel: asked.clone(), asked }),
        };
        changes.into_iter().map(limit).collect()
    }

    async fn release(&self, id: Uuid, _: Duration) -> Result<Option<Bytes>, Error> {
        self.released.lock().unwrap().push(id);
        Ok(Some(Bytes::from_static(b"remembered")))
    }

    async fn logs(&self, ids: Vec<Uuid>, _: bool) -> Result<Values<LogLine>, Error> {
        let line = |id: Uuid| {
            Ok(LogLine {
                at: SystemTime::UNIX_EPOCH,
                level: Level::Info,
                target: "t".into(),
                message: id.to_string(),
                component: String::new(),
            })
        };
        Ok(Box::pin(futures_util::stream::iter(ids).map(line)))
    }
}

#[async_trait]
impl Domain for Told {
    async fn watch(&self, controller: u64) -> Result<Values<DomainState>, Error> {
        self.controllers.lock().unwrap().push(controller);
        let mut states = self.state.subscribe();
        states.mark_changed();
        Ok(Box::pin(futures_util::stream::unfold(states, |mut states| async move {
            states.changed().await.ok()?;
            let state = states.borrow_and_update().clone();
            Some((Ok(state), states))
        })))
    }

    async fn plan(&self, items: Vec<(String, ComponentSpec)>) -> Result<Vec<Placement>, Error> {
        let domain = self.state.borrow().domain.clone();
        let place = |(name, spec): (String, ComponentSpec)| {
            if spec.annotations().contains_key("label_match_all") {
                return Err(Error::rejected(format!("no node for '{name}': 0 of 1 nodes have the label 'gpu'")));
            }
            Ok(Placement { name, domain: domain.clone(), node: NodeId(Uuid::nil()), hostname: "here".into() })
        };
        items.into_iter().map(place).collect()
    }

    async fn watch_rows(&self, _controller: u64) -> Result<Values<Vec<Row>>, Error> {
        let mut rows = self.rows.subscribe();
        rows.mark_changed();
        Ok(Box::pin(futures_util::stream::unfold(rows, |mut rows| async move {
            rows.changed().await.ok()?;
            let list = rows.borrow_and_update().clone();
            Some((Ok(list), rows))
        })))
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, Error> {
        let info = |agent_url: &Url| NodeInfo {
            node: self.node,
            domain: self.state.borrow().domain.clone(),
            agent_url: agent_url.clone(),
            invocation_url: any_port(),
            capabilities: Capabilities::default(),
            providers: Vec::new(),
            components: 0,
            native: true,
            cordoned: false,
            suspected: false,
        };
        *self.nodes_asked.lock().unwrap() += 1;
        Ok(self.agents.lock().unwrap().iter().map(info).collect())
    }
}

impl Told {
    fn remembers(&self, node: NodeId) -> Result<(), Error> {
        let is_known = node == self.node || self.lost.lock().unwrap().contains(&node);
        is_known.then_some(()).ok_or_else(|| Error::not_found("not known in this domain"))
    }
}

#[async_trait]
impl Operations for Told {
    async fn cordon(&self, node: NodeId, cordoned: bool) -> Result<(), Error> {
        self.remembers(node)?;
        self.asked.lock().unwrap().push(format!("cordon {node} {cordoned}"));
        Ok(())
    }

    async fn forget(&self, node: NodeId) -> Result<(), Error> {
        self.remembers(node)?;
        if node == self.node {
            return Err(Error::rejected(format!("node {node} is there")));
        }
        self.lost.lock().unwrap().remove(&node);
        Ok(())
    }

    async fn drain(&self, node: NodeId) -> Result<Values<DrainProgress>, Error> {
        self.asked.lock().unwrap().push(format!("drain {node}"));
        Ok(Box::pin(futures_util::stream::iter([Ok(DrainProgress { total: 3, ..DrainProgress::default() })])))
    }

    async fn residents(&self, _: NodeId) -> Result<Vec<ComponentStatus>, Error> {
        Ok(Vec::new())
    }

    async fn plan_loss(&self, _: NodeId) -> Result<Vec<Relocation>, Error> {
        Err(Error::rejected("nothing runs there"))
    }

    async fn move_component(&self, component: ComponentId, node: NodeId) -> Result<(), Error> {
        self.asked.lock().unwrap().push(format!("move {component} {node}"));
        Ok(())
    }
}

/// The configuration of a controller that keeps its workflows below a directory.
fn config(directory: &TempDir) -> Config {
    Config { state_directory: directory.path().join("state"), ..Config::default() }
}

/// A controller with one orchestrator in reach.
struct Fixture {
    directory: TempDir,
    orc: Orc,
    controller: Controller,
    user: client::Workflows,
}

impl Fixture {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let orc = Orc::serve("domain-1").await;
        let config =
            Config { controller_url: any_port(), orchestrators: vec![orc.listed_as("domain-1")], ..config(&directory) };
        let controller = Controller::start(config).await.unwrap();
        let user = user_of(&controller);
        wait_until("the domain is in reach", || has_domains(&user, 1)).await;
        Self { directory, orc, controller, user }
    }
}

fn user_of(controller: &Controller) -> client::Workflows {
    client::Workflows::new(Connection::lazy(controller.url(), Options::default()).unwrap())
}

async fn has_domains(user: &client::Workflows, count: usize) -> Option<()> {
    (user.domains(None).await.unwrap().len() == count).then_some(())
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// A function `f` that sends to a log `l`.
fn workflow(annotations: &[(&str, &str)]) -> Workflow {
    let class = FunctionClass {
        id: "f".into(),
        function_type: "RUST_WASM".into(),
        binary: vec![0; 1000].into(),
        outputs: vec!["out".into()],
        ..FunctionClass::default()
    };
    let function =
        Function { name: "f".into(), class, outputs: pairs(&[("out", "l")]), annotations: pairs(annotations) };
    let log = Resource {
        name: "l".into(),
        class_type: "file-log".into(),
        outputs: BTreeMap::new(),
        configuration: pairs(&[("filename", "out.log")]),
    };
    Workflow::new(vec![function], vec![log], BTreeMap::new()).unwrap()
}

/// The same, as a container.
fn container() -> Workflow {
    let wasm = workflow(&[]);
    let [mut function] = wasm.functions().to_vec().try_into().unwrap();
    function.class.function_type = CONTAINER.into();
    Workflow::new(vec![function], wasm.resources().to_vec(), BTreeMap::new()).unwrap()
}

#[tokio::test]
async fn a_workflow_is_started_shown_and_stopped() {
    let Fixture { directory: _directory, orc, controller, user } = Fixture::start().await;
    let wanted = workflow(&[("init-payload", "hello")]);
    let status = user.start(wanted.clone(), Some(Uuid::from_u128(1))).await.unwrap();
    let [f, l] = [status.mapping[0].component, status.mapping[1].component];

    let started = orc.started();
    let ComponentSpec::Function(function) =
        &started.iter().find(|own| own.context.as_ref().unwrap().component == f).unwrap().spec
    else {
        panic!("f is a function")
    };
    assert_eq!(function.class.binary, vec![0; 1000].into());
    assert_eq!(function.annotations, pairs(&[("init-payload", "hello")]));
    assert_eq!((function.state.policy, function.workflow), (StatePolicy::NodeLocal, status.workflow));
    assert_eq!(started.len(), 2);
    let outputs = BTreeMap::from([("out".to_string(), Target::Component(l))]);
    assert_eq!(*orc.told.patched.lock().unwrap(), [Patch::new(f.0, outputs)]);
    assert_eq!(*orc.told.activated.lock().unwrap(), [vec![f.0, l.0]]);

    let repeat = user.start(wanted.clone(), Some(Uuid::from_u128(1))).await.unwrap();
    assert_eq!(repeat, status, "a repeat of the request");
    assert_eq!(user.list().await.unwrap(), [status.workflow]);
    assert_eq!(user.inspect(status.workflow).await.unwrap(), (wanted, status.clone()));

    let components = user.status(status.workflow).await.unwrap();
    assert_eq!((components[0].name.as_str(), components[0].state, components[0].handled), ("f", State::Running, 7));
    assert_eq!((components[1].name.as_str(), components[1].state), ("l", State::Waiting));
    assert!(components[1].reason.contains("domain-1"), "{}", components[1].reason);

    let lines: Vec<_> = user.logs(status.workflow, Some("l".into()), false).await.unwrap().collect().await;
    assert_eq!(lines.into_iter().map(|line| line.unwrap().message).collect::<Vec<_>>(), [l.to_string()]);

    user.stop(status.workflow).await.unwrap();
    assert_eq!(orc.stopped().into_iter().collect::<BTreeSet<_>>(), BTreeSet::from([f, l]));
    assert!(user.list().await.unwrap().is_empty());
    assert_eq!(controller.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn code_travels_to_a_domain_once() {
    let Fixture { directory: _directory, orc, controller, user } = Fixture::start().await;
    let started = user.start(workflow(&[]), None).await.unwrap();
    user.start(workflow(&[]), None).await.unwrap();
    user.stop(started.workflow).await.unwrap();
    user.start(workflow(&[]), None).await.unwrap();
    assert_eq!(orc.carried(), [true, false, false]);

    orc.told.kept.lock().unwrap().clear();
    user.start(workflow(&[]), None).await.unwrap();
    assert_eq!(orc.carried(), [true, false, false, true], "a domain that has forgotten it is given it again");
    assert_eq!(controller.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn an_orchestrator_of_edgeless_1_2_gets_the_code_with_each_start() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve_as("domain-1", false).await;
    let controller = Controller::start(Config { controller_url: any_port(), ..config(&directory) }).await.unwrap();
    let user = user_of(&controller);
    let registry = client::DomainRegistry::new(Connection::lazy(controller.url(), Options::default()).unwrap());
    let registration = orc.registration();
    while registry.update_domain(registration.clone()).await.unwrap().reset {}
    for _ in 0..2 {
        user.start(workflow(&[]), None).await.unwrap();
    }
    assert_eq!(orc.carried(), [true, true]);
}

/// What does not fit beside the code of what runs is refused with the key to turn.
#[tokio::test]
async fn the_code_that_is_kept_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("domain-1").await;
    let config = Config {
        controller_url: any_port(),
        orchestrators: vec![orc.listed_as("domain-1")],
        code_memory: bytesize::ByteSize::b(1500),
        ..config(&directory)
    };
    let controller = Controller::start(config).await.unwrap();
    let user = user_of(&controller);
    wait_until("the domain is known", || has_domains(&user, 1)).await;
    let other = workflow(&[]).with_binaries(|_| Ok::<_, Error>(vec![1; 1000].into())).unwrap();
    let started = user.start(workflow(&[]), None).await.unwrap();
    let error = user.start(other.clone(), None).await.unwrap_err();
    assert!(error.code == Code::Exhausted && error.message.contains("'code_memory'"), "{error}");
    user.stop(started.workflow).await.unwrap();
    wait_until("there is room again", || async { user.start(other.clone(), None).await.ok() }).await;
}

#[tokio::test]
async fn what_a_domain_has_is_shown() {
    let Fixture { directory: _directory, orc: _orc, controller: _controller, user } = Fixture::start().await;
    let domain = DomainId("domain-1".into());
    assert_eq!(user.domains(Some(domain.clone())).await.unwrap()[&domain].num_nodes, 1);
    assert_eq!(user.nodes(None).await.unwrap().len(), 1);
    assert_eq!(user.nodes(Some(domain)).await.unwrap()[0].domain.0, "domain-1");
    let error = user.nodes(Some(DomainId("nowhere".into()))).await.unwrap_err();
    assert_eq!(error, Error::not_found("there is no domain 'nowhere'; there are: domain-1"));
}

#[tokio::test]
async fn a_plan_starts_nothing_and_says_what_is_missing() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    let placements = user.plan(workflow(&[])).await.unwrap();
    assert_eq!(placements.iter().map(|own| own.name.as_str()).collect::<Vec<_>>(), ["f", "l"]);
    assert_eq!(placements[0].hostname, "here");
    let error = user.plan(workflow(&[("label_match_all", "gpu")])).await.unwrap_err();
    let reason = "no domain can host this workflow: domain-1: no node for 'f': 0 of 1 nodes have the label 'gpu'";
    assert_eq!(error, Error::rejected(reason));
    assert_eq!(user.start(workflow(&[("label_match_all", "gpu")]), None).await.unwrap_err(), Error::rejected(reason));
    assert!(orc.started().is_empty());
}

#[tokio::test]
async fn the_cause_of_a_refusal_reaches_the_user_and_nothing_stays() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    orc.refuse("l", Error::rejected("'out.log' cannot be opened: permission denied"));
    let error = user.start(workflow(&[]), None).await.unwrap_err();
    assert_eq!(error, Error::rejected("component 'l': 'out.log' cannot be opened: permission denied"));
    let f = orc.started()[0].context.clone().unwrap().component;
    assert_eq!(orc.stopped(), [f]);
    assert!(user.list().await.unwrap().is_empty());
    let error = user.start(workflow(&[("state", "global")]), None).await.unwrap_err();
    assert!(error.message.contains("lacks a node with a state_url, which 'f' needs"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let Fixture { directory: _directory, orc: _orc, controller: _controller, user } = Fixture::start().await;
    let nothing = WorkflowId(Uuid::nil());
    let unknown =
        Error::not_found(format!("there is no workflow {nothing}; `edgeless_cli workflow list` shows those that run"));
    assert_eq!(user.stop(nothing).await, Err(unknown.clone()));
    assert_eq!(user.inspect(nothing).await, Err(unknown.clone()));
    assert_eq!(user.status(nothing).await, Err(unknown));
    let status = user.start(workflow(&[]), None).await.unwrap();
    let error = user.logs(status.workflow, Some("x".into()), false).await.err().unwrap();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.ends_with("there are: f, l"), "{error}");
    let error = user.migrate(status.workflow, DomainId("domain-1".into()), None).await.unwrap_err();
    assert_eq!(error, Error::rejected("the workflow runs in domain-1 already"));
}

#[tokio::test]
async fn a_restarted_orchestrator_is_given_its_components_again() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    let status = user.start(workflow(&[]), None).await.unwrap();
    orc.told.state.send_modify(|state| state.nonce = 2);
    wait_until("both components are activated again", || async {
        (orc.told.activated.lock().unwrap().len() == 2).then_some(())
    })
    .await;
    let again = &orc.started()[2..];
    assert!(again.iter().all(|start| start.context.as_ref().unwrap().epoch == 2));
    let ids: BTreeSet<_> = again.iter().map(|start| start.context.as_ref().unwrap().component).collect();
    assert_eq!(ids, status.mapping.iter().map(|own| own.component).collect());
    assert_eq!(user.list().await.unwrap(), [status.workflow]);
}

#[tokio::test]
async fn a_workflow_of_an_orchestrator_that_is_gone_can_be_stopped() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    let status = user.start(workflow(&[]), None).await.unwrap();
    drop(orc);
    wait_until("the domain is lost", || has_domains(&user, 0)).await;
    let components = user.status(status.workflow).await.unwrap();
    assert!(components[0].reason.contains("out of reach"), "{}", components[0].reason);
    user.stop(status.workflow).await.unwrap();
    assert!(user.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_orchestrator_may_announce_itself() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("own").await;
    let config = Config { controller_url: any_port(), domain_register_url: Some(any_port()), ..config(&directory) };
    let controller = Controller::start(config).await.unwrap();
    assert_ne!(controller.url(), controller.domain_register_url());
    let user = user_of(&controller);
    let error = user.start(workflow(&[]), None).await.unwrap_err();
    assert!(error.message.contains("no orchestration domain is known"), "{error}");

    let connection = Connection::lazy(controller.domain_register_url(), Options::default()).unwrap();
    let registry = client::DomainRegistry::new(connection);
    let registration = orc.registration();
    assert!(registry.update_domain(registration.clone()).await.unwrap().reset, "a domain that is not known");
    assert!(!registry.update_domain(registration.clone()).await.unwrap().reset);
    let status = user.start(workflow(&[]), None).await.unwrap();
    assert_eq!(status.mapping[0].domain.0, "own");
    assert!(registry.update_domain(DomainRegistration { nonce: 2, ..registration }).await.unwrap().reset);
}

#[tokio::test]
async fn announcements_go_to_the_main_port_unless_configured_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let controller = Controller::start(Config { controller_url: any_port(), ..config(&directory) }).await.unwrap();
    assert_eq!(controller.url(), controller.domain_register_url());
    let connection = Connection::lazy(controller.url(), Options::default()).unwrap();
    let registration = DomainRegistration {
        domain: DomainId("own".into()),
        orchestrator_url: "http://127.0.0.1:9".parse().unwrap(),
        capabilities: DomainCapabilities::default(),
        lifetime: Duration::from_secs(60),
        counter: 0,
        nonce: 1,
    };
    assert!(client::DomainRegistry::new(connection).update_domain(registration).await.unwrap().reset);
}

#[tokio::test]
async fn an_orchestrator_of_another_domain_is_ignored_with_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("other").await;
    let orchestrators = vec![orc.listed_as("domain-1")];
    let config = Config { controller_url: any_port(), orchestrators, ..config(&directory) };
    let controller = Controller::start(config).await.unwrap();
    let user = user_of(&controller);
    wait_until("the refusal says so", || async {
        let error = user.plan(workflow(&[])).await.unwrap_err();
        error.message.contains("serves the domain 'other'").then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_in_hand_are_answered_before_the_controller_stops() {
    let Fixture { directory: _directory, orc, controller, user } = Fixture::start().await;
    orc.told.is_held.send_replace(true);
    let starting = tokio::spawn(async move { user.start(workflow(&[]), None).await });
    wait_until("the start is under way", || async { (orc.told.is_held.receiver_count() > 0).then_some(()) }).await;
    let stopping = tokio::spawn(controller.stop());
    orc.told.is_held.send_replace(false);
    starting.await.unwrap().unwrap();
    assert_eq!(stopping.await.unwrap(), Stopped::Clean);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (_listener, url) = edgeless_daemon::listen(&any_port()).await.unwrap();
    let error = Controller::start(Config { controller_url: url.clone(), ..config(&directory) }).await.unwrap_err();
    assert!(error.message.contains(&format!("cannot listen on {url}")), "{error}");
    for config in [
        Config { domain_register_url: Some(url.clone()), controller_url: any_port(), ..config(&directory) },
        Config { metrics_url: Some(url.clone()), controller_url: any_port(), ..config(&directory) },
    ] {
        assert!(Controller::start(config).await.unwrap_err().message.contains(&url.to_string()));
    }
}

async fn get(url: &Url, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(url.bind_addr().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

#[tokio::test]
async fn monitoring_is_told_whether_there_is_a_domain() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("domain-1").await;
    let config = Config {
        controller_url: any_port(),
        metrics_url: Some(any_port()),
        orchestrators: vec![orc.listed_as("domain-1")],
        ..config(&directory)
    };
    let controller = Controller::start(config).await.unwrap();
    let url = controller.metrics_url().unwrap();
    assert!(get(url, "/healthz").await.starts_with("HTTP/1.1 200"));
    wait_until("it is ready", || async { get(url, "/readyz").await.starts_with("HTTP/1.1 200").then_some(()) }).await;
    assert!(get(url, "/metrics").await.contains("\nedgeless_controller_domains_in_reach 1\n"));
    drop(orc);
    wait_until("it is not ready", || async { get(url, "/readyz").await.contains("503").then_some(()) }).await;
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_edgeless_con_d"))
}

#[test]
fn the_program_refuses_a_wrong_configuration_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("controller.toml");
    std::fs::write(&path, "controller_url = \"http://127.0.0.1:0\"\norchestratros = []\n").unwrap();
    let output = program().arg("-c").arg(&path).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    for part in [path.to_str().unwrap(), "line 2", "orchestratros"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn the_program_writes_a_template_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("controller.toml");
    assert!(program().arg("-t").arg(&path).status().unwrap().success());
    let again = program().arg("-t").arg(&path).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8(again.stderr).unwrap().contains("cannot overwrite configuration file: "));
}

#[test]
fn the_program_says_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("controller.toml");
    std::fs::write(&path, "controller_url = \"http://127.0.0.1:0\"\n").unwrap();
    let mut child = program()
        .arg("-c")
        .arg(&path)
        .current_dir(dir.path())
        .env("RUST_LOG", "info")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said: Vec<_> = lines.take(2).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(said[0].contains("Starting Edgeless Controller at http://127.0.0.1:"), "{said:?}");
    assert!(said[1].contains("is ready at http://127.0.0.1:"), "{said:?}");
}

#[tokio::test]
async fn limits_are_changed_in_the_domain_and_shown_from_then_on() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    let [f, l] = {
        let status = user.start(container(), None).await.unwrap();
        [status.mapping[0].component, status.mapping[1].component]
    };
    let shown = async || {
        let workflow = user.list().await.unwrap()[0];
        user.inspect(workflow).await.unwrap().0.functions()[0].annotations.clone()
    };
    let changed = user.limits(f, pairs(&[("cpu", "0.5")])).await.unwrap();
    assert_eq!(changed, [Limit { name: "cpu".into(), asked: "0.5".into(), kernel: "0.5".into() }]);
    assert_eq!(shown().await, pairs(&[("cpu", "0.5")]));
    let refused = user.limits(f, pairs(&[("cpu", "9"), ("colour", "red")])).await;
    assert_eq!(refused, Err(Error::rejected("'colour' is not a limit")), "the words of the node");
    assert_eq!(user.limits(f, Annotations::new()).await, Ok(vec![]));
    assert_eq!(shown().await, pairs(&[("cpu", "0.5")]), "only what was granted");
    let refused = user.limits(l, Annotations::new()).await.unwrap_err();
    assert!(refused.message.contains("only containers have limits"), "{refused}");
    let unknown = user.limits(ComponentId::random(), Annotations::new()).await.unwrap_err();
    assert_eq!(unknown.code, Code::NotFound);
    assert!(unknown.message.ends_with("`edgeless_cli workflow inspect all` shows them"), "{unknown}");

    orc.told.state.send_modify(|state| state.nonce = 2);
    wait_until("it is started again", || async { (orc.started().len() == 4).then_some(()) }).await;
    let again = orc.started().into_iter().rev().find(|start| start.context.as_ref().unwrap().component == f).unwrap();
    assert_eq!(*again.spec.annotations(), pairs(&[("cpu", "0.5")]));
}

#[tokio::test]
async fn limits_in_a_domain_that_cannot_say_are_an_error() {
    let Fixture { directory: _directory, orc, controller: _controller, user } = Fixture::start().await;
    let f = user.start(container(), None).await.unwrap().mapping[0].component;
    orc.told.started.lock().unwrap().clear();
    let error = user.limits(f, pairs(&[("cpu", "1")])).await.unwrap_err();
    assert_eq!(error, Error::unavailable("the domain domain-1 does not run it yet: try again in a moment"));
    drop(orc);
    wait_until("the domain is lost", || has_domains(&user, 0)).await;
    let error = user.limits(f, pairs(&[("cpu", "1")])).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("the domain domain-1 is out of reach"), "{error}");
}

/// A controller with two orchestrators in reach, neither of which can host everything, or both of which can.
async fn two(directory: &TempDir, halves: bool, grace: Duration) -> (Orc, Orc, Controller, client::Workflows) {
    let (wasm, log): (&[&str], &[&str]) = (&["RUST_WASM"], &["file-log"]);
    let nothing: &[&str] = &[];
    let a = Orc::serve_having("a", true, wasm, if halves { nothing } else { log }).await;
    let b = Orc::serve_having("b", true, if halves { nothing } else { wasm }, log).await;
    let orchestrators = vec![a.listed_as("a"), b.listed_as("b")];
    let config = Config { controller_url: any_port(), orchestrators, domain_grace: grace, ..config(directory) };
    let controller = Controller::start(config).await.unwrap();
    let user = user_of(&controller);
    wait_until("both domains are in reach", || has_domains(&user, 2)).await;
    (a, b, controller, user)
}

async fn homes(user: &client::Workflows, workflow: WorkflowId) -> Vec<String> {
    let (_, status) = user.inspect(workflow).await.unwrap();
    status.mapping.into_iter().map(|own| own.domain.0).collect()
}

#[tokio::test]
async fn a_workflow_is_split_and_its_domains_exchange_where_it_runs() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b, controller, user) = two(&directory, true, Duration::from_secs(30)).await;
    let plan = user.plan(workflow(&[])).await.unwrap();
    assert_eq!(plan.iter().map(|own| own.domain.0.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    let status = user.start(workflow(&[]), None).await.unwrap();
    assert_eq!(homes(&user, status.workflow).await, ["a", "b"]);
    let [f, l] = [status.mapping[0].component, status.mapping[1].component];
    assert_eq!(*b.told.patched.lock().unwrap(), [Patch { exported: true, ..Patch::new(l.0, BTreeMap::new()) }]);

    let node = NodeId::random();
    let instance = InstanceId { node, function: Uuid::from_u128(1) };
    let mut row = Row::new(l, 1 << 32, vec![instance]);
    row.addresses.insert(node, "http://10.0.0.1:7005".parse().unwrap());
    b.told.rows.send_replace(vec![row.clone()]);
    let wanted = Patch::new(f.0, BTreeMap::from([("out".to_string(), Target::Row(row))]));
    wait_until("the sender's domain knows", || async {
        (a.told.patched.lock().unwrap().last() == Some(&wanted)).then_some(())
    })
    .await;

    let states: Vec<_> = user.status(status.workflow).await.unwrap().into_iter().map(|own| own.state).collect();
    assert_eq!(states, [State::Running, State::Running], "each domain is asked for its own");
    let lines: Vec<_> = user.logs(status.workflow, None, false).await.unwrap().collect().await;
    let lines: BTreeSet<_> = lines.into_iter().map(|line| line.unwrap().message).collect();
    assert_eq!(lines, BTreeSet::from([f.to_string(), l.to_string()]));
    user.stop(status.workflow).await.unwrap();
    assert_eq!((a.stopped(), b.stopped()), (vec![f], vec![l]));
    assert_eq!(controller.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_workflow_migrates_with_its_state() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b, _controller, user) = two(&directory, false, Duration::from_secs(30)).await;
    let before = user.start(workflow(&[]), None).await.unwrap();
    let [f, l] = [before.mapping[0].component, before.mapping[1].component];
    let (from, to) = if before.mapping[0].domain.0 == "a" { (&a, &b) } else { (&b, &a) };
    let target = to.told.state.borrow().domain.clone();
    let after = user.migrate(before.workflow, target.clone(), None).await.unwrap();
    assert_eq!(after.workflow, before.workflow);
    assert!(after.mapping.iter().all(|own| own.domain == target));
    assert_eq!(*from.told.released.lock().unwrap(), [f.0]);
    assert_eq!(from.stopped(), [l]);
    let state = |start: Start| start.context.map(|context| (context.component, context.state));
    let states: BTreeMap<_, _> = to.started().into_iter().filter_map(state).collect();
    assert_eq!(states, BTreeMap::from([(f, Some(Bytes::from_static(b"remembered"))), (l, None)]));

    let error = user.migrate(before.workflow, target.clone(), Some("f".into())).await.unwrap_err();
    assert_eq!(error, Error::rejected(format!("'f' runs in {target} already")));
    let error = user.migrate(before.workflow, DomainId("x".into()), None).await.unwrap_err();
    assert_eq!(error, Error::not_found("there is no domain 'x'; there are: a, b"));
    let back = from.told.state.borrow().domain.clone();
    let split = user.migrate(before.workflow, back.clone(), Some("l".into())).await.unwrap();
    assert_eq!((&split.mapping[0].domain, &split.mapping[1].domain), (&target, &back));
}

#[tokio::test]
async fn a_domain_that_is_killed_as_a_whole_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b, _controller, user) = two(&directory, false, Duration::from_millis(300)).await;
    let (listener, agent) = edgeless_daemon::listen(&any_port()).await.unwrap();
    for orc in [&a, &b] {
        *orc.told.agents.lock().unwrap() = vec![agent.clone()];
        *orc.told.nodes_asked.lock().unwrap() = 0;
        // It says that it has changed, so that its nodes are learnt.
        orc.told.state.send_modify(|state| state.capabilities.mem_size = 4096);
        wait_until("the nodes are learnt", || async { (*orc.told.nodes_asked.lock().unwrap() > 0).then_some(()) })
            .await;
    }
    let status = user.start(workflow(&[]), None).await.unwrap();
    let home = status.mapping[0].domain.0.clone();
    let (lost, other) = if home == "a" { (a, b) } else { (b, a) };
    drop(lost);
    wait_until("the domain is lost", || has_domains(&user, 1)).await;
    for _ in 0..2 {
        // A probe comes, and after a while the next one.
        tokio::time::timeout(DEADLINE, listener.accept()).await.unwrap().unwrap();
    }
    assert_eq!(homes(&user, status.workflow).await, [home.clone(), home], "a node of it answers");
    drop(listener);
    let left = other.told.state.borrow().domain.0.clone();
    wait_until("it runs elsewhere", || async {
        (homes(&user, status.workflow).await == [left.clone(), left.clone()]).then_some(())
    })
    .await;
    wait_until("it is activated there", || async { (!other.told.activated.lock().unwrap().is_empty()).then_some(()) })
        .await;
}

#[tokio::test]
async fn operators_reach_the_domain_of_a_node_or_component() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b, controller, user) = two(&directory, true, Duration::from_secs(30)).await;
    let operations = client::Operations::new(Connection::lazy(controller.url(), Options::default()).unwrap());
    operations.cordon(a.told.node, true).await.unwrap();
    let progress: Vec<_> = operations.drain(b.told.node).await.unwrap().collect().await;
    assert_eq!(progress[0].as_ref().unwrap().total, 3);
    assert_eq!(operations.residents(a.told.node).await.unwrap(), []);
    assert_eq!(operations.plan_loss(a.told.node).await, Err(Error::rejected("nothing runs there")));
    let nobody = NodeId::random();
    let error = operations.cordon(nobody, true).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    assert!(error.message.starts_with(&format!("there is no node {nobody} in a domain")), "{error}");
    assert_eq!(operations.forget(nobody).await, Err(error));

    // One that both domains had, and one that has moved from one to the other.
    let gone = NodeId::random();
    let both = [&a.told.lost, &b.told.lost];
    both.iter().for_each(|lost| assert!(lost.lock().unwrap().insert(gone)));
    operations.forget(gone).await.unwrap();
    assert!(both.iter().all(|lost| lost.lock().unwrap().is_empty()), "each domain has forgotten it");
    b.told.lost.lock().unwrap().extend([gone, a.told.node]);
    operations.cordon(gone, true).await.unwrap();
    let error = operations.forget(a.told.node).await.unwrap_err();
    assert_eq!(error.message, format!("node {} is there", a.told.node));

    let f = user.start(workflow(&[]), None).await.unwrap().mapping[0].component;
    operations.move_component(f, a.told.node).await.unwrap();
    let error = operations.move_component(f, b.told.node).await.unwrap_err();
    assert!(error.message.contains(" runs in a, and node ") && error.message.contains("migrate-component"), "{error}");
    let error = operations.move_component(ComponentId::random(), a.told.node).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
    let asked = |orc: &Orc| orc.told.asked.lock().unwrap().clone();
    assert_eq!(asked(&a), [format!("cordon {} true", a.told.node), format!("move {f} {}", a.told.node)]);
    assert_eq!(asked(&b), [format!("drain {}", b.told.node), format!("cordon {gone} true")]);
}

/// What an orchestrator is told by a controller that starts again where it was: nothing that it need act upon.
#[tokio::test]
async fn a_controller_that_was_killed_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("domain-1").await;
    let own =
        Config { controller_url: any_port(), orchestrators: vec![orc.listed_as("domain-1")], ..config(&directory) };
    let first = Controller::start(own.clone()).await.unwrap();
    let user = user_of(&first);
    wait_until("the domain is in reach", || has_domains(&user, 1)).await;
    let request = Uuid::new_v4();
    let started = user.start(workflow(&[]), Some(request)).await.unwrap();
    let another = user.start(workflow(&[]), None).await.unwrap();
    let before = user.inspect(started.workflow).await.unwrap();
    let own = Config { controller_url: first.url().clone(), ..own };
    let in_use = Controller::start(Config { controller_url: any_port(), ..own.clone() }).await.unwrap_err();
    assert!(in_use.message.contains("controller.redb: another process uses it"), "{in_use}");
    first.kill().await;

    let told = orc.started().len();
    let second = Controller::start(own).await.unwrap();
    let user = user_of(&second);
    let mut ids = [started.workflow, another.workflow];
    ids.sort();
    assert_eq!(user.list().await.unwrap(), ids, "before the domain is in reach");
    wait_until("the domain is in reach again", || has_domains(&user, 1)).await;
    assert_eq!(user.inspect(started.workflow).await.unwrap(), before, "with its code");
    assert_eq!(user.start(workflow(&[]), Some(request)).await.unwrap(), started, "the request is known");
    assert_eq!(orc.started().len(), told);
    let mut controllers = orc.told.controllers.lock().unwrap().clone();
    controllers.dedup();
    assert_eq!(controllers.len(), 1, "it is the same controller for an orchestrator");
    for id in ids {
        user.stop(id).await.unwrap();
    }
    assert_eq!(second.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_controller_that_cannot_keep_workflows_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("state"), "a file").unwrap();
    let own = Config { controller_url: any_port(), ..config(&directory) };
    let error = Controller::start(own).await.unwrap_err();
    assert!(error.message.contains("cannot make the directory of"), "{error}");
    let own = Config { controller_url: any_port(), ..config(&directory) };
    let file = directory.path().join("state").to_str().unwrap().to_string();
    let error = Controller::start(Config { persistence_filename: file, ..own }).await.unwrap_err();
    assert!(error.message.contains("is damaged") && error.message.contains("move the file away"), "{error}");
}

/// A disk that is full, as the limit of a file's size: what does not fit is refused with the reason, the controller
/// lives on, and what fits is taken.
#[tokio::test]
async fn a_workflow_that_does_not_fit_on_the_disk_is_refused_and_the_next_one_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let orc = Orc::serve("domain-1").await;
    let url = orc.listed_as("domain-1").orchestrator_url;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "controller_url = \"http://127.0.0.1:{port}\"\norchestrators = [{{ domain_id = \"domain-1\", orchestrator_url = \"{url}\" }}]\n"
    );
    std::fs::write(directory.path().join("controller.toml"), text).unwrap();
    let limited = "trap '' XFSZ; ulimit -f 16384; exec \"$0\"";
    let mut child = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_edgeless_con_d")])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let controller: Url = format!("http://127.0.0.1:{port}").parse().unwrap();
    let user = client::Workflows::new(Connection::lazy(&controller, Options::default()).unwrap());
    wait_until("the domain is in reach", || async {
        user.domains(None).await.is_ok_and(|domains| domains.len() == 1).then_some(())
    })
    .await;
    let large: Vec<u8> = (0..20_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let large = workflow(&[]).with_binaries(|_| Ok::<_, Error>(large.clone().into())).unwrap();
    let error = user.start(large, None).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("controller.redb") && error.message.contains("arge"), "{error}");
    assert!(orc.started().is_empty(), "nothing was done for it");
    let started = user.start(workflow(&[]), None).await.unwrap();
    assert_eq!(user.list().await.unwrap(), [started.workflow]);
    child.kill().unwrap();
    child.wait().unwrap();
}

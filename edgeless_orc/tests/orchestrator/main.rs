//! A real orchestrator on free ports, with nodes and controllers that are played over the real wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected shall fail"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::{
    Annotations, CONTAINER, ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, Row, Start,
    StartContext, StateSpec, Target, without_limits,
};
use edgeless_api::domain::{DomainRegistered, DomainRegistration};
use edgeless_api::error::{Code, Error};
use edgeless_api::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use edgeless_api::node::{Capabilities, Health, PeerUpdate, Performance, ProviderSpec, Registration};
use edgeless_api::server::{Components, DomainRegistry, NodeManagement, Server, Values};
use edgeless_api::status::{ComponentStatus, Level, Limit, LogLine, State};
use edgeless_api::{Binary, Digest, Limits, Url};
use edgeless_daemon::{Daemon, Handle, Stopped, listen};
use edgeless_orc::{Config, Orchestrator};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

mod durable;
mod operations;
mod registrations;

const PATIENCE: Duration = Duration::from_secs(20);

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn free() -> Url {
    "http://127.0.0.1:0".parse().unwrap()
}

fn connection(url: &Url) -> Connection {
    Connection::lazy(url, Options { deadline: PATIENCE, ..Options::default() }).unwrap()
}

fn config() -> Config {
    let mut config = Config::default();
    // Nothing is kept: tests that are about that say where.
    config.general.state_directory = Default::default();
    config.general.orchestrator_url = free();
    // Longer than a busy machine may hold up the beat of a node.
    config.baseline.keep_alive_interval_secs = 5;
    config
}

/// What a played node was asked to do.
#[derive(Default)]
struct Asked {
    resets: usize,
    peers: Vec<PeerUpdate>,
    started: Vec<(Start, InstanceId)>,
    /// The code that it was sent.
    kept: BTreeSet<Digest>,
    patches: Vec<Patch>,
    activated: Vec<Uuid>,
    stopped: Vec<ComponentRef>,
    released: Vec<Uuid>,
    /// Where components run, as it was told last.
    rows: BTreeMap<ComponentId, Row>,
    /// How often its log was followed.
    followed: usize,
    /// The limits that its instances were given while they ran.
    limits: BTreeMap<Uuid, Annotations>,
}

struct Played {
    node: NodeId,
    asked: Mutex<Asked>,
    /// To those who follow its log.
    log: broadcast::Sender<Result<LogLine, Error>>,
}

fn line(message: &str, at: SystemTime) -> LogLine {
    LogLine { at, level: Level::Info, target: "test".into(), message: message.into(), component: "f".into() }
}

#[async_trait]
impl NodeManagement for Played {
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        self.asked.lock().unwrap().peers.push(update);
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        self.asked.lock().unwrap().resets += 1;
        Ok(())
    }
}

#[async_trait]
impl Components for Played {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        if matches!(&start.spec, ComponentSpec::Function(function) if function.class.id == "garbage") {
            return Err(Error::rejected("the code is not WebAssembly"));
        }
        if let ComponentSpec::Function(function) = &start.spec {
            let binary = &function.class.binary;
            let mut asked = self.asked.lock().unwrap();
            if binary.bytes().is_some() {
                asked.kept.insert(binary.digest());
            } else if !asked.kept.contains(&binary.digest()) {
                return Err(Error::needs_code(binary.digest()));
            }
        }
        let instance = InstanceId::random(self.node);
        self.asked.lock().unwrap().started.push((start, instance));
        Ok(ComponentRef::Instance(instance))
    }

    async fn stop(&self, _: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        self.asked.lock().unwrap().stopped.push(id);
        Ok(())
    }

    async fn patch(&self, _: ComponentKind, patch: Patch) -> Result<(), Error> {
        let mut asked = self.asked.lock().unwrap();
        for target in patch.outputs.values() {
            if let Target::Row(row) = target {
                asked.rows.insert(row.component, row.clone());
            }
        }
        asked.patches.push(patch);
        Ok(())
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        self.asked.lock().unwrap().activated.extend(ids);
        Ok(())
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let asked = self.asked.lock().unwrap();
        let known = asked.started.iter().filter(|(_, instance)| ids.contains(&instance.function));
        let status = |(start, instance): &(Start, InstanceId)| ComponentStatus {
            component: start.context.as_ref().unwrap().component,
            name: String::new(),
            state: State::Restarting,
            instance: Some(*instance),
            epoch: 0,
            restarts: 3,
            reason: "it trapped".into(),
            log: vec![],
            handled: 7,
            dropped: 1,
            outputs: vec![],
            limits: in_force(asked.limits.get(&instance.function)),
            usage: None,
            instances: Vec::new(),
        };
        Ok(known.map(status).collect())
    }

    async fn release(&self, instance: Uuid, _: Duration) -> Result<Option<Bytes>, Error> {
        self.asked.lock().unwrap().released.push(instance);
        Ok(Some(Bytes::from_static(b"saved")))
    }

    async fn set_rows(&self, rows: Vec<Row>) -> Result<(), Error> {
        self.asked.lock().unwrap().rows.extend(rows.into_iter().map(|row| (row.component, row)));
        Ok(())
    }

    async fn limits(&self, id: Uuid, changes: Annotations) -> Result<Vec<Limit>, Error> {
        let mut asked = self.asked.lock().unwrap();
        let (start, _) = asked.started.iter().find(|(_, instance)| instance.function == id).unwrap();
        if let ComponentSpec::Function(function) = &start.spec
            && function.class.function_type != CONTAINER
        {
            return Err(without_limits("f", ComponentKind::Function, &function.class.function_type));
        }
        if changes.contains_key("colour") {
            return Err(Error::rejected("'colour' is not a limit"));
        }
        let limits = asked.limits.entry(id).or_default();
        limits.extend(changes);
        Ok(in_force(Some(limits)))
    }

    async fn logs(&self, ids: Vec<Uuid>, follow: bool) -> Result<Values<LogLine>, Error> {
        let kept = stream::iter([Ok(line(&format!("{} instance(s)", ids.len()), SystemTime::UNIX_EPOCH))]);
        if !follow {
            return Ok(Box::pin(kept));
        }
        let log = self.log.subscribe();
        self.asked.lock().unwrap().followed += 1;
        let live = stream::unfold(log, async |mut log| Some((log.recv().await.ok()?, log)));
        Ok(Box::pin(kept.chain(live)))
    }
}

fn in_force(limits: Option<&Annotations>) -> Vec<Limit> {
    let limit = |(name, asked): (&String, &String)| Limit {
        name: name.clone(),
        asked: asked.clone(),
        kernel: format!("{asked} in force"),
    };
    limits.into_iter().flatten().map(limit).collect()
}

/// A node that refreshes until it is silenced.
struct Node {
    played: Arc<Played>,
    beat: CancellationToken,
    server: DropGuard,
}

impl Node {
    async fn join(orchestrator: &Url) -> Self {
        Self::join_as(orchestrator, true).await
    }

    /// One that is not native says nothing of our fields and services.
    async fn join_as(orchestrator: &Url, native: bool) -> Self {
        let node = NodeId::random();
        let played = Arc::new(Played { node, asked: Mutex::default(), log: broadcast::Sender::new(16) });
        let (listener, url) = listen(&free()).await.unwrap();
        let cancel = CancellationToken::new();
        let server = Server::new(Limits::default(), cancel.clone());
        let server = server.components(played.clone()).node_management(played.clone());
        tokio::spawn(async move { server.serve(listener).await.unwrap() });
        let registry = client::NodeRegistry::new(connection(orchestrator));
        let lifetime = (!native).then_some(PATIENCE);
        let registration = Registration { native, lifetime, ..registration(node, &url) };
        assert!(registry.update_node(registration.clone()).await.unwrap().keep_alive.is_some());
        let beat = CancellationToken::new();
        let stop = beat.clone();
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(200));
            while stop.run_until_cancelled(beats.tick()).await.is_some() {
                drop(registry.update_node(registration.clone()).await);
            }
        });
        Self { played, beat, server: cancel.drop_guard() }
    }

    fn id(&self) -> NodeId {
        self.played.node
    }

    /// Logs a line, for whoever follows.
    fn log(&self, message: &str) {
        self.played.log.send(Ok(line(message, SystemTime::now()))).unwrap();
    }

    fn see<T>(&self, look: impl FnOnce(&Asked) -> T) -> T {
        look(&self.played.asked.lock().unwrap())
    }

    /// Of each start, whether it carried the code.
    fn carried(&self) -> Vec<bool> {
        let carries = |(start, _): &(Start, InstanceId)| match &start.spec {
            ComponentSpec::Function(function) => function.class.binary.bytes().is_some(),
            ComponentSpec::Resource(_) => false,
        };
        self.see(|asked| asked.started.iter().map(carries).collect())
    }

    fn runs(&self, component: ComponentId) -> Option<InstanceId> {
        let is_it = |(start, _): &&(Start, InstanceId)| start.context.as_ref().unwrap().component == component;
        self.see(|asked| asked.started.iter().rev().find(is_it).map(|(_, instance)| *instance))
    }
}

fn registration(node: NodeId, url: &Url) -> Registration {
    Registration {
        node,
        agent_url: url.clone(),
        invocation_url: url.clone(),
        providers: vec![ProviderSpec {
            id: "http-ingress-1".into(),
            class_type: "http-ingress".into(),
            outputs: vec!["new_request".into()],
        }],
        capabilities: Capabilities {
            num_cpus: 1,
            num_cores: 4,
            clock_freq_cpu: 800.0,
            labels: vec!["hostname=test".into()],
            runtimes: vec!["RUST_WASM".into(), CONTAINER.into()],
            ..Capabilities::default()
        },
        nonce: rand::random(),
        lifetime: None,
        interval: None,
        health: Health::default(),
        performance: Performance::default(),
        native: true,
        leaving: false,
        proof: None,
        loads: Vec::new(),
        reports: false,
        report: None,
    }
}

/// A controller of ours.
struct Controller {
    components: client::Components,
    domain: client::Domain,
}

impl Controller {
    fn of(orchestrator: &Orchestrator) -> Self {
        let connection = connection(orchestrator.url());
        Self { components: client::Components::new(connection.clone()), domain: client::Domain::new(connection) }
    }

    async fn start(&self, component: ComponentId, spec: ComponentSpec) -> Result<ComponentRef, Error> {
        let context = StartContext::new(component, 1, "f");
        self.components.start(Start { spec, context: Some(context) }).await
    }

    /// A component that runs, once there is a node for it.
    async fn run(&self, component: ComponentId) {
        self.until_nodes(1).await;
        assert_eq!(self.start(component, function("f", &[])).await, Ok(ComponentRef::Component(component)));
    }

    async fn until_nodes(&self, count: u32) {
        let mut states = self.domain.watch(1).await.unwrap();
        while states.next().await.unwrap().unwrap().capabilities.num_nodes != count {}
    }

    async fn patch(&self, from: ComponentId, to: ComponentId) {
        let outputs = BTreeMap::from([("out".to_string(), Target::Component(to))]);
        self.components.patch(ComponentKind::Function, Patch::new(from.0, outputs)).await.unwrap();
    }
}

fn function(class: &str, annotations: &[(&str, &str)]) -> ComponentSpec {
    ComponentSpec::Function(FunctionSpec {
        class: FunctionClass { id: class.into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
        annotations: annotations
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect::<Annotations>(),
        state: StateSpec { id: StateId::random(), policy: Default::default() },
        workflow: WorkflowId::random(),
    })
}

fn container(annotations: &[(&str, &str)]) -> ComponentSpec {
    let mut spec = function("f", annotations);
    if let ComponentSpec::Function(function) = &mut spec {
        function.class.function_type = CONTAINER.into();
    }
    spec
}

fn limits(pairs: &[(&str, &str)]) -> Annotations {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn with_code(mut spec: ComponentSpec, binary: Binary) -> ComponentSpec {
    if let ComponentSpec::Function(function) = &mut spec {
        function.class.binary = binary;
    }
    spec
}

fn targets(patch: &Patch) -> Vec<InstanceId> {
    patch
        .outputs
        .values()
        .flat_map(|target| match target {
            Target::Row(row) => row.instances.clone(),
            other => panic!("{other:?} is not a row"),
        })
        .collect()
}

#[tokio::test]
async fn components_live_and_end_on_a_node() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    let (one, two) = (ComponentId::random(), ComponentId::random());
    controller.run(one).await;
    controller.run(two).await;
    controller.run(two).await;
    assert_eq!(node.see(|asked| (asked.resets, asked.started.len())), (1, 2), "a repeat starts nothing");
    controller.patch(one, two).await;
    assert_eq!(node.see(|asked| targets(&asked.patches[0])), [node.runs(two).unwrap()]);
    controller.components.activate(&[one.0, two.0]).await.unwrap();
    assert_eq!(node.see(|asked| asked.activated.len()), 2);

    let status = controller.components.status(&[one.0, Uuid::nil()]).await.unwrap();
    assert_eq!(status.len(), 1, "what is not known is left out");
    let known = (status[0].name.as_str(), status[0].state, status[0].restarts, status[0].handled, status[0].epoch);
    assert_eq!(known, ("f", State::Restarting, 3, 7, 1));
    let mut lines = controller.components.logs(&[one.0, two.0], false).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().message, "2 instance(s)");
    let nodes = controller.domain.nodes().await.unwrap();
    assert_eq!((nodes[0].node, nodes[0].components), (node.id(), 2));

    let id = ComponentRef::Component(one);
    controller.components.stop(ComponentKind::Function, id).await.unwrap();
    controller.components.stop(ComponentKind::Function, id).await.unwrap();
    let instance = ComponentRef::Instance(node.runs(one).unwrap());
    assert_eq!(node.see(|asked| asked.stopped.clone()), [instance]);
    let error = controller.components.stop(ComponentKind::Function, instance).await.unwrap_err();
    assert_eq!(error.code, Code::Rejected, "an orchestrator knows components only");
    assert_eq!(orchestrator.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn code_travels_to_the_domain_once_and_to_each_node_once() {
    let mut config = config();
    config.baseline.keep_alive_interval_secs = 2;
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(1).await;
    let code = Binary::from(vec![7; 1000]);
    let start = async |code: Binary| controller.start(ComponentId::random(), with_code(function("f", &[]), code)).await;
    let error = start(code.without_bytes()).await.unwrap_err();
    assert_eq!(error.code, Code::NeedsCode, "{error}");
    start(code.clone()).await.unwrap();
    start(code.without_bytes()).await.unwrap();
    assert_eq!(node.carried(), [true, false]);

    // Components that lose their node are started elsewhere, where the code is not known.
    let second = Node::join(orchestrator.url()).await;
    controller.until_nodes(2).await;
    node.beat.cancel();
    wait_until("both run on the other node", || second.carried().len() == 2).await;
    assert_eq!(second.carried().into_iter().filter(|carried| *carried).count(), 1);
}

#[tokio::test]
async fn a_node_of_edgeless_1_2_gets_the_code_with_each_start() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let node = Node::join_as(orchestrator.url(), false).await;
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(1).await;
    let code = Binary::from(vec![7; 1000]);
    for code in [code.clone(), code.without_bytes()] {
        controller.start(ComponentId::random(), with_code(function("f", &[]), code)).await.unwrap();
    }
    assert_eq!(node.carried(), [true, true]);
}

#[tokio::test]
async fn a_refusal_reaches_the_controller_with_its_reason() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let controller = Controller::of(&orchestrator);
    let error = controller.start(ComponentId::random(), function("f", &[])).await.unwrap_err();
    assert!(error.message.contains("no node for 'f': the domain has no node"), "{error}");
    let node = Node::join(orchestrator.url()).await;
    controller.until_nodes(1).await;
    let error = controller.start(ComponentId::random(), function("garbage", &[])).await.unwrap_err();
    assert_eq!(error, Error::rejected("the code is not WebAssembly"));
    let gpu = function("f", &[("label_match_all", "gpu")]);
    let error = controller.start(ComponentId::random(), gpu.clone()).await.unwrap_err();
    let reason = "no node for 'f': 1 of 1 nodes run RUST_WASM, 0 of 1 have the label 'gpu'";
    assert!(error.message.starts_with(reason), "{error}");
    let error = controller.domain.plan(vec![("f".into(), gpu)]).await.unwrap_err();
    assert!(error.message.starts_with(reason), "{error}");
    let plan = controller.domain.plan(vec![("f".into(), function("f", &[]))]).await.unwrap();
    assert_eq!((plan[0].node, plan[0].hostname.as_str()), (node.id(), "test"));
}

#[tokio::test]
async fn a_silent_node_is_dropped_and_its_component_runs_elsewhere() {
    let mut config = config();
    config.baseline.keep_alive_interval_secs = 2;
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let nodes = [Node::join(orchestrator.url()).await, Node::join(orchestrator.url()).await];
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(2).await;
    // Pinned, so that the one that stays sends to the one that moves.
    let (sender, moving) = (ComponentId::random(), ComponentId::random());
    let [stays, dies] = &nodes;
    let pinned = function("f", &[("node_id_match_any", &stays.id().to_string())]);
    controller.start(sender, pinned).await.unwrap();
    let mut tries = 0;
    while dies.runs(moving).is_none() {
        tries += 1;
        assert!(tries < 100, "two equal nodes are never drawn the same way so often");
        controller.components.stop(ComponentKind::Function, ComponentRef::Component(moving)).await.unwrap();
        controller.start(moving, function("f", &[])).await.unwrap();
    }
    controller.patch(sender, moving).await;
    controller.components.activate(&[sender.0, moving.0]).await.unwrap();
    assert_eq!(stays.see(|asked| targets(asked.patches.last().unwrap())), [dies.runs(moving).unwrap()]);
    let before = stays.see(|asked| asked.started.len());

    dies.beat.cancel();
    wait_until("the component is created on the other node", || stays.see(|asked| asked.started.len()) > before).await;
    let instance = stays.runs(moving).unwrap();
    let is_told = || stays.see(|asked| asked.rows.get(&moving).is_some_and(|row| row.instances == [instance]));
    wait_until("the node of its sender is told of the new instance", is_told).await;
    let is_active = || stays.see(|asked| asked.activated.contains(&instance.function));
    wait_until("the new instance is activated", is_active).await;
    let is_removed = || stays.see(|asked| asked.peers.contains(&PeerUpdate::Remove(dies.id())));
    wait_until("the other node is told", is_removed).await;
    let known = controller.domain.nodes().await.unwrap();
    assert_eq!(known.iter().map(|node| node.node).collect::<Vec<_>>(), [stays.id()]);
}

#[tokio::test]
async fn a_node_that_cannot_be_asked_costs_its_own_lines_only() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let Node { played, beat, server } = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    let one = ComponentId::random();
    controller.run(one).await;
    drop(server);
    let status = loop {
        let status = controller.components.status(&[one.0]).await.unwrap().remove(0);
        if status.reason.contains("does not say how it is") {
            break status;
        }
    };
    assert_eq!((status.name.as_str(), status.instance.unwrap().node), ("f", played.node));
    let mut lines = controller.components.logs(&[one.0], false).await.unwrap();
    let line = lines.next().await.unwrap().unwrap();
    assert!(line.message.contains("does not give its logs"), "{line:?}");
    beat.cancel();
}

#[tokio::test]
async fn a_log_is_followed_from_node_to_node_until_its_component_is_stopped() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let goes = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    let one = ComponentId::random();
    controller.run(one).await;
    let mut lines = controller.components.logs(&[one.0, Uuid::nil()], true).await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, lines.next()).await.unwrap().map(Result::unwrap);
    assert_eq!(next().await.unwrap().message, "1 instance(s)", "what was logged before");
    goes.log("one");
    assert_eq!(next().await.unwrap().message, "one");

    let other = controller.components.logs(&[one.0], true).await.unwrap();
    let followers = || goes.played.log.receiver_count();
    wait_until("two follow", || followers() == 2).await;
    drop(other);
    wait_until("whoever hangs up is gone", || followers() == 1).await;

    goes.played.log.send(Err(Error::unavailable("a cable was pulled"))).unwrap();
    let remark = next().await.unwrap();
    assert_eq!((remark.level, remark.target.as_str(), remark.component.as_str()), (Level::Warn, "edgeless", "f"));
    let is_named = remark.message.contains(&goes.id().to_string());
    assert!(is_named && remark.message.contains("cannot be reached"), "{remark:?}");
    wait_until("the node is asked again", || goes.see(|asked| asked.followed) == 3).await;
    goes.log("two");
    assert_eq!(next().await.unwrap().message, "two", "no line comes twice");

    let Node { beat, server, .. } = goes;
    beat.cancel();
    drop(server);
    let mut is_followed = async |message: &str| loop {
        let line = next().await.expect("a component that waits does not end the log");
        match line.level {
            Level::Warn => assert!(line.message.contains("cannot be reached"), "{line:?}"),
            _ => break assert_eq!(line.message, message),
        }
    };
    let stays = Node::join(orchestrator.url()).await;
    is_followed("1 instance(s)").await;
    stays.log("three");
    is_followed("three").await;

    controller.components.stop(ComponentKind::Function, ComponentRef::Component(one)).await.unwrap();
    assert_eq!(next().await, None, "nobody logs any more");
    wait_until("the node is not followed any more", || stays.played.log.receiver_count() == 0).await;
}

#[tokio::test]
async fn the_domain_is_followed_as_it_changes() {
    let mut config = config();
    config.limits.max_watchers = 1;
    config.baseline.keep_alive_interval_secs = 1;
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let controller = Controller::of(&orchestrator);
    let mut states = controller.domain.watch(1).await.unwrap();
    let first = states.next().await.unwrap().unwrap();
    assert_eq!((first.domain.0.as_str(), first.capabilities.num_nodes), ("domain-1", 0));
    assert_eq!(first.lifetime, Duration::from_secs(3));
    let again = states.next().await.unwrap().unwrap();
    assert_eq!(again, first, "at every keep-alive");
    let error = match controller.domain.watch(1).await {
        Ok(_) => panic!("more follow than may"),
        Err(error) => error,
    };
    assert!(error.message.contains("max_watchers"), "{error}");
    let _node = Node::join(orchestrator.url()).await;
    let changed = loop {
        let state = states.next().await.unwrap().unwrap();
        if state.capabilities.num_nodes == 1 {
            break state;
        }
    };
    assert_eq!((changed.nonce, changed.capabilities.num_cores), (first.nonce, 4));
    assert!(changed.capabilities.resource_classes.contains("http-ingress"));
    assert_eq!(orchestrator.stop().await, Stopped::Clean, "although someone follows");
    while let Some(state) = states.next().await {
        drop(state);
    }
}

#[tokio::test]
async fn a_controller_that_comes_back_learns_that_nothing_of_it_runs() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    controller.run(ComponentId::random()).await;
    let domain = &controller.domain;
    let nonce = async |controller| loop {
        // Until the orchestrator sees that the one before has hung up.
        if let Ok(mut states) = domain.watch(controller).await {
            break states.next().await.unwrap().unwrap().nonce;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let first = nonce(1).await;
    assert_eq!(nonce(1).await, first, "it only lost its connection");
    assert_eq!(node.see(|asked| asked.stopped.len()), 0);
    let second = nonce(2).await;
    wait_until("what ran for the first is stopped", || node.see(|asked| asked.stopped.len()) == 1).await;
    let back = nonce(1).await;
    assert!(first != second && second != back && back != first);
}

#[derive(Default)]
struct PlayedController {
    announced: Mutex<Vec<DomainRegistration>>,
    reset: Mutex<bool>,
}

#[async_trait]
impl DomainRegistry for PlayedController {
    async fn update_domain(&self, domain: DomainRegistration) -> Result<DomainRegistered, Error> {
        self.announced.lock().unwrap().push(domain);
        Ok(DomainRegistered { reset: std::mem::take(&mut *self.reset.lock().unwrap()) })
    }
}

#[tokio::test]
async fn the_domain_is_announced_and_a_controller_may_have_it_emptied() {
    let played = Arc::new(PlayedController::default());
    let (listener, url) = listen(&free()).await.unwrap();
    let cancel = CancellationToken::new();
    let server = Server::new(Limits::default(), cancel.clone()).domain_registry(played.clone());
    tokio::spawn(async move { server.serve(listener).await.unwrap() });
    let _guard = cancel.drop_guard();

    let mut config = config();
    config.general.domain_register_url = Some(url);
    config.general.subscription_refresh_interval_sec = 1;
    config.general.node_register_url = Some(free());
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let announced = |look: &dyn Fn(&DomainRegistration) -> bool| played.announced.lock().unwrap().iter().any(look);
    wait_until("the domain is announced", || announced(&|domain| domain.capabilities.num_nodes == 0)).await;
    let node = Node::join(orchestrator.node_register_url()).await;
    assert_ne!(orchestrator.node_register_url(), orchestrator.url());
    wait_until("a change raises the counter", || {
        announced(&|domain| domain.capabilities.num_nodes == 1 && domain.counter > 0)
    })
    .await;
    let last = played.announced.lock().unwrap().last().unwrap().clone();
    assert_eq!((&last.orchestrator_url, last.lifetime), (orchestrator.url(), Duration::from_secs(2)));

    let controller = Controller::of(&orchestrator);
    controller.run(ComponentId::random()).await;
    *played.reset.lock().unwrap() = true;
    wait_until("everything is stopped", || node.see(|asked| asked.stopped.len()) == 1).await;
}

#[tokio::test]
async fn monitoring_finds_it() {
    let mut config = config();
    config.general.metrics_url = Some(free());
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let _node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    controller.run(ComponentId::random()).await;
    let addr = orchestrator.metrics_url().unwrap().bind_addr().unwrap();
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    for line in ["edgeless_orc_nodes 1", "edgeless_orc_components_spawned_total 1"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let (_listener, taken) = listen(&free()).await.unwrap();
    for change in [
        |config: &mut Config, url| config.general.orchestrator_url = url,
        |config: &mut Config, url| {
            config.general.node_register_url = Some(url);
        },
        |config: &mut Config, url| {
            config.general.metrics_url = Some(url);
        },
    ] {
        let mut config = config();
        change(&mut config, taken.clone());
        let error = Orchestrator::start(config).await.unwrap_err();
        assert!(error.message.contains(&taken.to_string()), "{error}");
    }
}

/// Runs the program until it ends by itself.
fn program(dir: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_edgeless_orc_d")).current_dir(dir).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_program_writes_a_template_and_refuses_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(program(dir.path(), &["-t", "orchestrator.toml"]).0, Some(0));
    let template = std::fs::read_to_string(dir.path().join("orchestrator.toml")).unwrap();
    for line in ["domain_id = \"domain-1\"", "orchestration_strategy = \"Random\"", "collector_type = \"None\""] {
        assert!(template.contains(line), "{line}");
    }
    let (code, error) = program(dir.path(), &["-t", "orchestrator.toml"]);
    assert!(code == Some(1) && error.contains("cannot overwrite configuration file: orchestrator.toml"), "{error}");

    for (file, text, part) in [
        ("key.toml", "[general]\ndomane_id = \"a\"", "domane_id"),
        ("redis.toml", "[proxy]\nproxy_type = \"Redis\"", "name the server, such as redis://127.0.0.1:6379"),
        ("proxy.toml", "[proxy]\nproxy_type = \"etcd\"", "'etcd' is not known: write \"None\" or \"Redis\""),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
        let (code, error) = program(dir.path(), &["-c", file]);
        assert!(code == Some(2) && error.contains(part) && error.contains(file), "{error}");
    }
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    std::fs::write(dir.path().join("port.toml"), format!("[general]\norchestrator_url = \"http://{taken}\"")).unwrap();
    let (code, error) = program(dir.path(), &["-c", "port.toml"]);
    assert!(code != Some(0) && error.contains(&taken.to_string()), "{error}");
}

#[tokio::test]
async fn limits_are_changed_at_the_node_and_hold_where_the_component_runs_next() {
    let mut config = config();
    config.baseline.keep_alive_interval_secs = 2;
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let node = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    let (one, two) = (ComponentId::random(), ComponentId::random());
    controller.run(two).await;
    controller.start(one, container(&[("cpu", "1")])).await.unwrap();
    let components = &controller.components;
    let changes = limits(&[("cpu", "0.5")]);
    let changed = components.limits(one.0, changes.clone()).await.unwrap();
    assert_eq!(changed, in_force(Some(&changes)), "what the node has read back");
    assert_eq!(components.limits(one.0, changes).await.unwrap(), changed, "a repeat");
    assert_eq!(components.limits(one.0, Annotations::new()).await.unwrap(), changed);
    assert_eq!(components.status(&[one.0]).await.unwrap()[0].limits, changed);
    let refused = components.limits(one.0, limits(&[("cpu", "9"), ("colour", "red")])).await;
    assert_eq!(refused, Err(Error::rejected("'colour' is not a limit")), "the words of the node");
    let refused = components.limits(two.0, Annotations::new()).await.unwrap_err();
    assert!(refused.message.starts_with("'f' is a RUST_WASM function"), "{refused}");
    assert_eq!(components.limits(Uuid::nil(), Annotations::new()).await.unwrap_err().code, Code::NotFound);

    let next = Node::join(orchestrator.url()).await;
    controller.until_nodes(2).await;
    node.beat.cancel();
    wait_until("it runs on the other node", || next.runs(one).is_some()).await;
    let spec = next.see(|asked| {
        let is_it = |(start, _): &&(Start, InstanceId)| start.context.as_ref().unwrap().component == one;
        asked.started.iter().find(is_it).unwrap().0.spec.clone()
    });
    assert_eq!(*spec.annotations(), limits(&[("cpu", "0.5")]));
}

#[tokio::test]
async fn limits_at_a_node_that_cannot_be_reached_or_is_old_are_an_error() {
    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let Node { beat: _beat, server, .. } = Node::join(orchestrator.url()).await;
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(1).await;
    let one = ComponentId::random();
    controller.start(one, container(&[("cpu", "1")])).await.unwrap();
    drop(server);
    let cpu = limits(&[("cpu", "2")]);
    let error = loop {
        match controller.components.limits(one.0, cpu.clone()).await {
            // The last request of a connection that is being closed.
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.starts_with("cannot reach http://"), "{error}");

    let orchestrator = Orchestrator::start(config()).await.unwrap();
    let _node = Node::join_as(orchestrator.url(), false).await;
    let controller = Controller::of(&orchestrator);
    controller.until_nodes(1).await;
    controller.start(one, container(&[])).await.unwrap();
    let error = controller.components.limits(one.0, cpu).await.unwrap_err();
    assert_eq!(error.code, Code::Unimplemented);
    assert!(error.message.contains("speaks only EDGELESS 1.2"), "{error}");
}

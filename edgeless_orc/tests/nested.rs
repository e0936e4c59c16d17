//! Domains within domains: real orchestrators on free ports, with nodes that are played over the real wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected shall fail"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, Start, StartContext,
    StateSpec, Target,
};
use edgeless_api::error::{Code, Error};
use edgeless_api::event::{Event, Kind, Reply, Trace};
use edgeless_api::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use edgeless_api::node::{Capabilities, Health, NodeInfo, PeerUpdate, ProviderSpec, Registration};
use edgeless_api::server::{Components, Invocation, NodeManagement, Server, Values};
use edgeless_api::status::{ComponentStatus, Level, Limit, LogLine, State};
use edgeless_api::{Limits, Url};
use edgeless_daemon::{Daemon, Handle, Stopped, listen};
use edgeless_orc::{Config, Orchestrator};
use futures_util::{StreamExt, stream};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
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

fn config(domain: &str) -> Config {
    let mut config = Config::default();
    config.general.domain_id = domain.into();
    // Nothing is kept: tests that are about that say where.
    config.general.state_directory = Default::default();
    config.general.orchestrator_url = free();
    config.general.agent_url = Some(free());
    config.general.invocation_url = Some(free());
    // Longer than a busy machine may hold up the beat of a node.
    config.baseline.keep_alive_interval_secs = 5;
    config
}

fn child(domain: &str, parent: &Url) -> Config {
    let mut config = config(domain);
    config.parent.orchestrator_url = Some(parent.clone());
    config
}

/// What a played node was asked to do, and what it was sent.
#[derive(Default)]
struct Seen {
    started: Vec<(Start, InstanceId)>,
    patches: Vec<Patch>,
    activated: Vec<Uuid>,
    stopped: Vec<ComponentRef>,
    released: Vec<Uuid>,
    peers: BTreeMap<NodeId, Url>,
    events: Vec<Event>,
}

struct Played {
    node: NodeId,
    seen: Mutex<Seen>,
}

#[async_trait]
impl NodeManagement for Played {
    async fn update_peers(&self, update: PeerUpdate) -> Result<(), Error> {
        if let PeerUpdate::Add(node, url) = update {
            self.seen.lock().unwrap().peers.insert(node, url);
        }
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl Invocation for Played {
    async fn handle(&self, event: Event) -> Result<(), Error> {
        assert_eq!(event.target.node, self.node);
        self.seen.lock().unwrap().events.push(event);
        Ok(())
    }
}

#[async_trait]
impl Components for Played {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        let instance = InstanceId::random(self.node);
        self.seen.lock().unwrap().started.push((start, instance));
        Ok(ComponentRef::Instance(instance))
    }

    async fn stop(&self, _: ComponentKind, id: ComponentRef) -> Result<(), Error> {
        self.seen.lock().unwrap().stopped.push(id);
        Ok(())
    }

    async fn patch(&self, _: ComponentKind, patch: Patch) -> Result<(), Error> {
        self.seen.lock().unwrap().patches.push(patch);
        Ok(())
    }

    async fn activate(&self, ids: Vec<Uuid>) -> Result<(), Error> {
        self.seen.lock().unwrap().activated.extend(ids);
        Ok(())
    }

    async fn status(&self, ids: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        let seen = self.seen.lock().unwrap();
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
            limits: vec![],
            usage: None,
            instances: Vec::new(),
        };
        Ok(seen.started.iter().filter(|(_, instance)| ids.contains(&instance.function)).map(status).collect())
    }

    async fn limits(&self, _: Uuid, _: Annotations) -> Result<Vec<Limit>, Error> {
        Ok(vec![Limit { name: "cpu".into(), ..Limit::default() }])
    }

    async fn logs(&self, ids: Vec<Uuid>, _: bool) -> Result<Values<LogLine>, Error> {
        let (at, message) = (SystemTime::UNIX_EPOCH, format!("{} instance(s)", ids.len()));
        let line = LogLine { at, level: Level::Info, target: "test".into(), message, component: "f".into() };
        Ok(Box::pin(stream::iter([Ok(line)])))
    }

    async fn release(&self, instance: Uuid, _: Duration) -> Result<Option<bytes::Bytes>, Error> {
        self.seen.lock().unwrap().released.push(instance);
        Ok(Some("saved".into()))
    }
}

/// A node that refreshes until it is dropped.
struct Node {
    played: Arc<Played>,
    url: Url,
    _server: DropGuard,
}

impl Node {
    /// One of the orchestrator, whose components must ask for this label to get there.
    async fn join(orchestrator: &Url, label: &str) -> Self {
        let node = NodeId::random();
        let played = Arc::new(Played { node, seen: Mutex::default() });
        let (listener, url) = listen(&free()).await.unwrap();
        let cancel = CancellationToken::new();
        let server = Server::new(Limits::default(), cancel.clone()).components(played.clone());
        let server = server.node_management(played.clone()).invocation(played.clone());
        tokio::spawn(async move { server.serve(listener).await.unwrap() });
        let registry = client::NodeRegistry::new(connection(orchestrator));
        let registration = registration(node, &url, label);
        let stop = cancel.clone();
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(200));
            while stop.run_until_cancelled(beats.tick()).await.is_some() {
                drop(registry.update_node(registration.clone()).await);
            }
        });
        Self { played, url, _server: cancel.drop_guard() }
    }

    fn id(&self) -> NodeId {
        self.played.node
    }

    fn see<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.played.seen.lock().unwrap())
    }

    /// What it runs under this name.
    fn runs(&self, name: &str) -> Option<(Start, InstanceId)> {
        let is_it = |(start, _): &&(Start, InstanceId)| start.context.as_ref().unwrap().name == name;
        self.see(|seen| seen.started.iter().rev().find(is_it).cloned())
    }

    /// Sends an event as one of its instances, to where it learned that the target is.
    async fn send(&self, event: Event, at: &Url) {
        let wire = client::Invocation::new(connection(at)).of_node_at(&self.url);
        wire.handle(event).await.unwrap();
    }

    /// The next event that it gets.
    async fn next(&self) -> Event {
        wait_until("an event comes", async || self.see(|seen| !seen.events.is_empty())).await;
        self.played.seen.lock().unwrap().events.remove(0)
    }
}

fn registration(node: NodeId, url: &Url, label: &str) -> Registration {
    Registration {
        node,
        agent_url: url.clone(),
        invocation_url: url.clone(),
        providers: vec![ProviderSpec { id: "log-1".into(), class_type: "file-log".into(), outputs: vec![] }],
        capabilities: Capabilities {
            num_cpus: 2,
            num_cores: 4,
            clock_freq_cpu: 800.0,
            mem_size: 512,
            labels: vec![label.into()],
            runtimes: vec!["RUST_WASM".into()],
            ..Capabilities::default()
        },
        nonce: rand::random(),
        lifetime: None,
        interval: None,
        health: Health::default(),
        native: true,
        leaving: false,
        proof: None,
        performance: edgeless_api::node::Performance::default(),
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

    async fn start(&self, name: &str, epoch: u64, annotations: &[(&str, &str)]) -> Result<ComponentId, Error> {
        let component = ComponentId::random();
        let spec = ComponentSpec::Function(FunctionSpec {
            class: FunctionClass { id: name.into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
            annotations: annotations.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            state: StateSpec { id: StateId::random(), policy: Default::default() },
            workflow: WorkflowId::random(),
        });
        let context = StartContext::new(component, epoch, name);
        self.components.start(Start { spec, context: Some(context) }).await?;
        Ok(component)
    }

    async fn patch(&self, from: ComponentId, to: ComponentId) {
        let outputs = BTreeMap::from([("out".to_string(), Target::Component(to))]);
        self.components.patch(ComponentKind::Function, Patch::new(from.0, outputs)).await.unwrap();
    }

    async fn stop(&self, id: ComponentId) {
        self.components.stop(ComponentKind::Function, ComponentRef::Component(id)).await.unwrap();
    }

    /// The instance that runs a component, as this orchestrator knows it.
    async fn instance(&self, id: ComponentId) -> InstanceId {
        self.components.status(&[id.0]).await.unwrap()[0].instance.unwrap()
    }

    async fn nodes(&self) -> Vec<NodeInfo> {
        self.domain.nodes().await.unwrap()
    }

    /// The node that has this label.
    async fn until_node(&self, label: &str) -> NodeInfo {
        let has = |node: &NodeInfo| node.capabilities.labels.iter().any(|has| has == label);
        let mut states = self.domain.watch(1).await.unwrap();
        while !states.next().await.unwrap().unwrap().capabilities.labels.contains(label) {}
        self.nodes().await.into_iter().find(has).unwrap()
    }
}

fn event(source: InstanceId, target: InstanceId, kind: Kind) -> Event {
    Event { source, target, kind, created: SystemTime::UNIX_EPOCH, trace: Trace::default(), id: None }
}

fn cast(text: &'static str) -> Kind {
    Kind::Cast(text.into())
}

#[tokio::test]
async fn a_domain_is_one_node_of_another() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let inner = Orchestrator::start(child("leaf", parent.url())).await.unwrap();
    let (one, two) = (Node::join(inner.url(), "a").await, Node::join(inner.url(), "b").await);
    let controller = Controller::of(&parent);
    controller.until_node("b").await;
    let node = controller.until_node("a").await;
    let known = &node.capabilities;
    assert_eq!((known.num_cpus * known.num_cores, known.mem_size, known.hostname()), (16, 1024, "leaf"));
    assert_eq!(controller.nodes().await.len(), 1, "the nodes of the domain are its own business");
    assert_eq!(node.providers.len(), 1);
    assert_eq!(Some(&node.invocation_url), inner.invocation_url());

    let annotations = [("label_match_all", "a,hostname=leaf"), ("node_id_match_any", &node.node.to_string())];
    let first = controller.start("first", 4, &annotations).await.unwrap();
    let second = controller.start("second", 1, &[("label_match_all", "b")]).await.unwrap();
    let (start, inside) = one.runs("first").expect("it runs where the label is");
    let left: Annotations = [("label_match_all".to_string(), "a".to_string())].into();
    assert_eq!(*start.spec.annotations(), left, "what the parent has settled is not asked again");
    assert_ne!(start.context.unwrap().component, first);
    let (_, target) = two.runs("second").unwrap();

    controller.patch(first, second).await;
    wait_until("the two are wired to each other", async || {
        one.see(|seen| {
            matches!(&seen.patches.last().map(|patch| patch.outputs["out"].clone()),
            Some(Target::Row(row)) if row.instances == [target])
        })
    })
    .await;
    controller.components.activate(&[first.0, second.0]).await.unwrap();
    assert_eq!(one.see(|seen| seen.activated.clone()), [inside.function]);

    let status = controller.components.status(&[first.0]).await.unwrap().remove(0);
    let known = (status.component, status.name.as_str(), status.state, status.restarts, status.reason.as_str());
    assert_eq!(known, (first, "first", State::Restarting, 3, "it trapped"));
    assert_eq!(status.instance.map(|instance| instance.node), Some(node.node));
    let mut lines = controller.components.logs(&[first.0], false).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap().message, "1 instance(s)");
    assert_eq!(controller.components.limits(first.0, Annotations::new()).await.unwrap()[0].name, "cpu");

    controller.stop(first).await;
    assert_eq!(one.see(|seen| seen.stopped.clone()), [ComponentRef::Instance(inside)]);
    assert!(two.see(|seen| seen.stopped.is_empty()));
}

#[tokio::test]
async fn events_go_in_and_out_of_a_domain() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let inner = Orchestrator::start(child("leaf", parent.url())).await.unwrap();
    let (node, outside) = (Node::join(inner.url(), "a").await, Node::join(parent.url(), "o").await);
    let controller = Controller::of(&parent);
    let leaf = controller.until_node("a").await;
    controller.until_node("o").await;
    let component = controller.start("f", 1, &[("label_match_all", "a")]).await.unwrap();
    let (inside, alias) = (node.runs("f").unwrap().1, controller.instance(component).await);
    assert_eq!(alias.node, leaf.node);
    // What its row would say.
    let way = leaf.invocation_url.clone();

    let sender = InstanceId::random(outside.id());
    outside.send(event(sender, alias, cast("in")), &way).await;
    let came = node.next().await;
    assert_eq!((came.target, &came.kind, came.source.node), (inside, &cast("in"), leaf.node));
    let back = node.see(|seen| seen.peers[&leaf.node].clone());
    assert_eq!(Some(&back), inner.invocation_url(), "its node was told where the forwarder is");
    node.send(event(inside, came.source, cast("out")), &back).await;
    let raw = outside.next().await;
    assert_eq!((raw.target, raw.source.node), (sender, leaf.node));

    let call = Kind::Call { payload: "?".into(), stream: 8, remaining: None };
    outside.send(event(sender, alias, call), &way).await;
    let called = node.next().await;
    let reply = Kind::Reply { reply: Reply::Message("!".into()), stream: 8 };
    node.send(event(inside, called.source, reply.clone()), &back).await;
    assert_eq!(outside.next().await, event(alias, sender, reply));
}

#[tokio::test]
async fn domains_nest_three_levels_deep() {
    let top = Orchestrator::start(config("top")).await.unwrap();
    let middle = Orchestrator::start(child("middle", top.url())).await.unwrap();
    let leaf = Orchestrator::start(child("leaf", middle.url())).await.unwrap();
    let (node, outside) = (Node::join(leaf.url(), "deep").await, Node::join(top.url(), "o").await);
    let controller = Controller::of(&top);
    let domain = controller.until_node("deep").await;
    assert_eq!(domain.capabilities.hostname(), "middle");
    let component = controller.start("f", 1, &[("label_match_all", "deep")]).await.unwrap();
    let (inside, alias) = (node.runs("f").unwrap().1, controller.instance(component).await);
    controller.components.activate(&[component.0]).await.unwrap();
    assert_eq!(node.see(|seen| seen.activated.clone()), [inside.function]);
    assert_eq!(controller.components.status(&[component.0]).await.unwrap()[0].reason, "it trapped");

    let sender = InstanceId::random(outside.id());
    let call = Kind::Call { payload: "?".into(), stream: 3, remaining: Some(PATIENCE) };
    outside.send(event(sender, alias, call), &domain.invocation_url).await;
    let came = node.next().await;
    let reply = Kind::Reply { reply: Reply::Empty, stream: 3 };
    node.send(event(inside, came.source, reply.clone()), leaf.invocation_url().unwrap()).await;
    assert_eq!(outside.next().await, event(alias, sender, reply));

    controller.stop(component).await;
    assert_eq!(node.see(|seen| seen.stopped.clone()), [ComponentRef::Instance(inside)]);
    assert_eq!(leaf.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_domain_goes_on_without_its_parent_and_starts_afresh_for_the_next() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let url = parent.url().clone();
    let inner = Orchestrator::start(child("leaf", &url)).await.unwrap();
    let node = Node::join(inner.url(), "a").await;
    let controller = Controller::of(&parent);
    controller.until_node("a").await;
    controller.start("f", 7, &[]).await.unwrap();
    let (_, inside) = node.runs("f").unwrap();
    assert_eq!(parent.stop().await, Stopped::Clean);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(node.see(|seen| seen.stopped.is_empty()), "it goes on");

    let mut again = config("top");
    again.general.orchestrator_url = url;
    let parent = Orchestrator::start(again).await.unwrap();
    let controller = Controller::of(&parent);
    controller.until_node("a").await;
    assert_eq!(node.see(|seen| seen.stopped.clone()), [ComponentRef::Instance(inside)], "nobody could stop it now");
    controller.start("f", 1, &[]).await.unwrap();
    assert_ne!(node.runs("f").unwrap().1, inside);
    assert_eq!(inner.stop().await, Stopped::Clean);
    assert_eq!(node.see(|seen| seen.stopped.len()), 2, "a domain that leaves runs nothing any more");
    wait_until("the parent knows", async || controller.nodes().await.is_empty()).await;
}

#[tokio::test]
async fn a_start_is_repeatable_and_what_is_late_is_refused() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let inner = Orchestrator::start(child("leaf", parent.url())).await.unwrap();
    let node = Node::join(inner.url(), "a").await;
    Controller::of(&parent).until_node("a").await;
    let agent = client::Components::new(connection(inner.agent_url().unwrap()));
    let component = ComponentId::random();
    let start = async |epoch, replica| {
        let spec = ComponentSpec::Function(FunctionSpec {
            class: FunctionClass { id: "f".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
            annotations: Annotations::new(),
            state: StateSpec { id: StateId::random(), policy: Default::default() },
            workflow: WorkflowId::random(),
        });
        let context = StartContext { replica, ..StartContext::new(component, epoch, "f") };
        match agent.start(Start { spec, context: Some(context) }).await? {
            ComponentRef::Instance(instance) => Ok::<_, Error>(instance),
            other => panic!("{other:?}"),
        }
    };
    let first = start(2, 0).await.unwrap();
    assert_eq!(start(2, 0).await.unwrap(), first, "a repeat");
    assert_ne!(start(2, 1).await.unwrap(), first, "another replica");
    assert_eq!(node.see(|seen| seen.started.len()), 2);
    assert!(start(1, 0).await.unwrap_err().message.contains("epoch 1 is older than 2"));
    let newer = start(3, 0).await.unwrap();
    assert_ne!(newer, first);
    let stop = async |instance| agent.stop(ComponentKind::Function, ComponentRef::Instance(instance)).await;
    let count = || node.see(|seen| seen.stopped.len());
    wait_until("the older one is stopped", async || count() == 1).await;
    stop(first).await.unwrap();
    assert_eq!(count(), 1, "what is late about the older one stops nothing");
    for attempt in ["first", "repeat"] {
        let state = agent.release(newer.function, Duration::from_secs(1)).await.unwrap();
        assert_eq!(state.unwrap(), "saved", "{attempt}");
    }
    assert_eq!(node.see(|seen| seen.released.len()), 1);
    stop(newer).await.unwrap();
    assert!(start(3, 0).await.unwrap_err().message.contains("was stopped here meanwhile, in epoch 3"));
    let error = stop(InstanceId::random(NodeId::random())).await.unwrap_err();
    assert!(error.message.contains("is of another node"), "{error}");
    let missing = agent.patch(ComponentKind::Function, Patch::new(Uuid::nil(), BTreeMap::new())).await.unwrap_err();
    assert_eq!(missing.code, Code::NotFound);
}

/// A parent of EDGELESS 1.x knows no third step.
#[tokio::test]
async fn what_nobody_activates_emits_after_a_second() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let inner = Orchestrator::start(child("leaf", parent.url())).await.unwrap();
    let node = Node::join(inner.url(), "a").await;
    Controller::of(&parent).until_node("a").await;
    let agent = client::Components::new(connection(inner.agent_url().unwrap()));
    let spec = ComponentSpec::Function(FunctionSpec {
        class: FunctionClass { id: "old".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() },
        annotations: Annotations::new(),
        state: StateSpec { id: StateId::random(), policy: Default::default() },
        workflow: WorkflowId::random(),
    });
    let id = agent.start(Start { spec, context: None }).await.unwrap();
    let (_, inside) = node.runs("old").unwrap();
    assert!(node.see(|seen| seen.activated.is_empty()));
    wait_until("it emits", async || node.see(|seen| seen.activated == [inside.function])).await;
    agent.stop(ComponentKind::Function, id).await.unwrap();
    assert_eq!(node.see(|seen| seen.stopped.clone()), [ComponentRef::Instance(inside)]);
}

#[tokio::test]
async fn a_nested_domain_works_for_no_controller() {
    let parent = Orchestrator::start(config("top")).await.unwrap();
    let inner = Orchestrator::start(child("leaf", parent.url())).await.unwrap();
    let controller = Controller::of(&inner);
    let refused = controller.start("f", 1, &[]).await.unwrap_err();
    let followed = controller.domain.watch(1).await.err().unwrap();
    for error in [refused, followed] {
        assert_eq!(error.code, Code::Rejected);
        assert!(error.message.contains("works for its parent alone") && error.message.contains("[parent]"), "{error}");
    }
}

#[tokio::test]
async fn the_forwarder_of_a_private_domain_is_found() {
    let mut private = config("private");
    private.general.private = true;
    let id = NodeId::random();
    private.general.forwarder_id = Some(id);
    let orchestrator = Orchestrator::start(private).await.unwrap();
    let node = Node::join(orchestrator.url(), "a").await;
    let registry = client::NodeRegistry::new(connection(orchestrator.url()));
    assert_eq!(registry.locate(id).await.unwrap().as_ref(), orchestrator.invocation_url());
    wait_until("its node is found too", async || registry.locate(node.id()).await.unwrap().as_ref() == Some(&node.url))
        .await;
    assert_eq!(registry.locate(NodeId::random()).await.unwrap(), None);
    let (_listener, taken) = listen(&free()).await.unwrap();
    let mut second = config("other");
    second.general.private = true;
    second.general.invocation_url = Some(taken.clone());
    let error = Orchestrator::start(second).await.unwrap_err();
    assert!(error.message.contains(&taken.to_string()), "{error}");
}

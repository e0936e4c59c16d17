//! A real orchestrator and a real Redis server, with a node that is played over the real wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets the unexpected shall fail"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use edgeless_api::client::{self, Connection, Options};
use edgeless_api::component::{
    Annotations, ComponentKind, ComponentRef, ComponentSpec, FunctionClass, FunctionSpec, Patch, Start, StartContext,
    StateSpec, Target,
};
use edgeless_api::error::Error;
use edgeless_api::id::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use edgeless_api::node::{
    Capabilities, Health, LogEntry, PeerUpdate, Performance, Phase, ProviderSpec, Registration, Sample,
};
use edgeless_api::server::{Components, NodeManagement, Server, Values};
use edgeless_api::status::{ComponentStatus, Limit, LogLine};
use edgeless_api::{Limits, Url};
use edgeless_daemon::{Daemon, Handle, Stopped, listen};
use edgeless_orc::config::DatasetSettings;
use edgeless_orc::{Config, Orchestrator};
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A Redis server.
struct Redis {
    addr: SocketAddr,
    server: Child,
    directory: tempfile::TempDir,
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

impl Redis {
    /// `None`: there is no Redis on this machine, which is said, or a failure if it is required.
    async fn start() -> Option<Self> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            let required = std::env::var("EDGELESS_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "redis"), "redis-server is required and not installed");
            let test = std::thread::current().name().unwrap_or_default().to_string();
            // Not by a macro, whose output would be captured.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "skipped: redis: {test}: redis-server is not installed").unwrap();
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let redis = Self { addr, server: Self::spawn(addr, &directory), directory };
        redis.ready().await;
        Some(redis)
    }

    fn spawn(addr: SocketAddr, directory: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--bind", &addr.ip().to_string(), "--port", &addr.port().to_string(), "--save", ""])
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn ready(&self) {
        wait_until("redis-server listens", async || tokio::net::TcpStream::connect(self.addr).await.is_ok()).await;
    }

    fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    async fn come_back(&mut self) {
        self.server = Self::spawn(self.addr, &self.directory);
        self.ready().await;
    }

    fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        self.ask_in(0, command)
    }

    fn ask_in<T: redis::FromRedisValue>(&self, database: u8, command: &[&str]) -> T {
        let client = redis::Client::open(format!("{}/{database}", self.url())).unwrap();
        redis::cmd(command[0]).arg(&command[1..]).query(&mut client.get_connection().unwrap()).unwrap()
    }

    fn get(&self, key: &str) -> Option<String> {
        self.ask(&["GET", key])
    }

    fn has(&self, key: &str) -> bool {
        self.ask::<u32>(&["EXISTS", key]) == 1
    }

    async fn until(&self, key: &str, is: impl Fn(Option<String>) -> bool) {
        wait_until(&format!("{key} is as it should be"), async || is(self.get(key))).await;
    }
}

fn free() -> Url {
    "http://127.0.0.1:0".parse().unwrap()
}

fn config(redis: &Redis) -> Config {
    let mut config = Config::default();
    // Nothing is kept: tests that are about that say where.
    config.general.state_directory = Default::default();
    config.general.orchestrator_url = free();
    config.general.metrics_url = Some(free());
    config.general.domain_id = "here".into();
    // Longer than a busy machine may hold up the beat of a node.
    config.baseline.keep_alive_interval_secs = 5;
    config.proxy.proxy_type = "Redis".into();
    config.proxy.redis_url = redis.url();
    config
}

fn connection(url: &Url) -> Connection {
    Connection::lazy(url, Options { deadline: PATIENCE, ..Options::default() }).unwrap()
}

async fn metrics(orchestrator: &Orchestrator) -> String {
    let addr = orchestrator.metrics_url().unwrap().bind_addr().unwrap();
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn until_metric(orchestrator: &Orchestrator, line: &str) {
    let line = format!("edgeless_orc_{line}");
    wait_until(&line, async || metrics(orchestrator).await.lines().any(|shown| shown == line)).await;
}

/// Starts whatever it is told to.
struct Played {
    node: NodeId,
    started: Mutex<BTreeMap<ComponentId, InstanceId>>,
}

#[async_trait]
impl NodeManagement for Played {
    async fn update_peers(&self, _: PeerUpdate) -> Result<(), Error> {
        Ok(())
    }

    async fn reset(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[async_trait]
impl Components for Played {
    async fn start(&self, start: Start) -> Result<ComponentRef, Error> {
        let instance = InstanceId::random(self.node);
        self.started.lock().unwrap().insert(start.context.unwrap().component, instance);
        Ok(ComponentRef::Instance(instance))
    }

    async fn stop(&self, _: ComponentKind, _: ComponentRef) -> Result<(), Error> {
        Ok(())
    }

    async fn patch(&self, _: ComponentKind, _: Patch) -> Result<(), Error> {
        Ok(())
    }

    async fn activate(&self, _: Vec<Uuid>) -> Result<(), Error> {
        Ok(())
    }

    async fn status(&self, _: Vec<Uuid>) -> Result<Vec<ComponentStatus>, Error> {
        Ok(vec![])
    }

    async fn limits(&self, _: Uuid, _: Annotations) -> Result<Vec<Limit>, Error> {
        Ok(vec![])
    }

    async fn logs(&self, _: Vec<Uuid>, _: bool) -> Result<Values<LogLine>, Error> {
        Ok(Box::pin(stream::empty()))
    }
}

/// A node that refreshes until it says goodbye.
struct Node {
    played: Arc<Played>,
    registry: client::NodeRegistry,
    registration: Registration,
    beat: CancellationToken,
    _server: DropGuard,
}

impl Node {
    async fn join(orchestrator: &Orchestrator) -> Self {
        let node = NodeId::random();
        let played = Arc::new(Played { node, started: Mutex::default() });
        let (listener, url) = listen(&free()).await.unwrap();
        let cancel = CancellationToken::new();
        let server = Server::new(Limits::default(), cancel.clone());
        let server = server.components(played.clone()).node_management(played.clone());
        tokio::spawn(async move { server.serve(listener).await.unwrap() });
        let registry = client::NodeRegistry::new(connection(orchestrator.node_register_url()));
        let provider = |id: &str| ProviderSpec { id: id.into(), class_type: "file-log".into(), outputs: vec![] };
        let registration = Registration {
            node,
            agent_url: url.clone(),
            invocation_url: url.clone(),
            providers: vec![provider("file-log-1")],
            capabilities: Capabilities {
                num_cpus: 1,
                num_cores: 1,
                runtimes: vec!["RUST_WASM".into()],
                ..Capabilities::default()
            },
            nonce: rand::random(),
            lifetime: None,
            interval: None,
            health: Health { mem_free: Some(7), ..Health::default() },
            performance: Performance::default(),
            native: true,
            leaving: false,
            proof: None,
            loads: Vec::new(),
            reports: false,
            report: None,
        };
        let (beat, beating, told) = (CancellationToken::new(), registry.clone(), registration.clone());
        let stop = beat.clone();
        tokio::spawn(async move {
            let mut beats = tokio::time::interval(Duration::from_millis(200));
            while stop.run_until_cancelled(beats.tick()).await.is_some() {
                drop(beating.update_node(told.clone()).await);
            }
        });
        Self { played, registry, registration, beat, _server: cancel.drop_guard() }
    }

    fn id(&self) -> NodeId {
        self.played.node
    }

    fn instance(&self, component: ComponentId) -> Option<InstanceId> {
        self.played.started.lock().unwrap().get(&component).copied()
    }

    async fn tell(&self, performance: Performance) {
        self.registry.update_node(Registration { performance, ..self.registration.clone() }).await.unwrap();
    }

    async fn leave(self) {
        self.beat.cancel();
        self.registry.update_node(Registration { leaving: true, ..self.registration.clone() }).await.unwrap();
    }
}

struct Controller(client::Components);

impl Controller {
    fn of(orchestrator: &Orchestrator) -> Self {
        Self(client::Components::new(connection(orchestrator.url())))
    }

    /// Starts a function, as soon as there is a node for it.
    async fn start(&self) -> ComponentId {
        let component = ComponentId::random();
        let class = FunctionClass { id: "f".into(), function_type: "RUST_WASM".into(), ..FunctionClass::default() };
        let spec = ComponentSpec::Function(FunctionSpec {
            class,
            annotations: Annotations::new(),
            state: StateSpec { id: StateId::random(), policy: Default::default() },
            workflow: WorkflowId::random(),
        });
        let context = StartContext::new(component, 1, "f");
        let start = Start { spec, context: Some(context) };
        wait_until("a node takes it", async || self.0.start(start.clone()).await.is_ok()).await;
        component
    }

    async fn patch(&self, from: ComponentId, to: ComponentId) {
        let outputs = BTreeMap::from([("out".to_string(), Target::Component(to))]);
        self.0.patch(ComponentKind::Function, Patch::new(from.0, outputs)).await.unwrap();
    }

    async fn stop(&self, component: ComponentId) {
        self.0.stop(ComponentKind::Function, ComponentRef::Component(component)).await.unwrap();
    }
}

#[tokio::test]
async fn the_domain_appears_and_its_changes_follow() {
    let Some(redis) = Redis::start().await else { return };
    let (gone, others) = (Uuid::new_v4(), ["provider:electricity", "instance:of-a-cloud", "something"]);
    for key in others {
        redis.ask::<()>(&["SET", key, "not ours"]);
    }
    redis.ask::<()>(&["SET", &format!("instance:{gone}"), "of a run before"]);
    let provider = format!(r#"{{"class_type":"c","node_id":"{gone}","outputs":[]}}"#);
    redis.ask::<()>(&["SET", "provider:gone", &provider]);

    let orchestrator = Orchestrator::start(config(&redis)).await.unwrap();
    let (one, controller) = (Node::join(&orchestrator).await, Controller::of(&orchestrator));
    let (a, b) = (controller.start().await, controller.start().await);
    controller.patch(a, b).await;
    let instance = format!("instance:{a}");
    let id = one.instance(a).unwrap().to_string();
    redis.until(&instance, |text| text.is_some_and(|text| text.contains(&id))).await;
    redis.until(&format!("dependency:{a}"), |text| text == Some(format!(r#"{{"out":"{b}"}}"#))).await;
    let capabilities = redis.get(&format!("node:capabilities:{}", one.id())).unwrap();
    assert!(capabilities.starts_with(r#"{"num_cpus":1,"#), "{capabilities}");
    let expected = format!(r#"{{"class_type":"file-log","node_id":"{}","outputs":[]}}"#, one.id());
    assert_eq!(redis.get("provider:file-log-1"), Some(expected));
    assert_eq!(redis.get("domain_info:domain_id").as_deref(), Some("here"));
    let health = format!("node:health:{}", one.id());
    wait_until("there is health", async || redis.has(&health)).await;
    let members: Vec<String> = redis.ask(&["ZRANGE", &health, "0", "-1"]);
    assert!(members[0].starts_with(r#"{"mem_free":7,"mem_used":-1,"#), "{members:?}");
    until_metric(&orchestrator, "redis_connected{database=\"proxy\"} 1").await;

    let touched: f64 = redis.get("instance:last_update").unwrap().parse().unwrap();
    let two = Node::join(&orchestrator).await;
    redis.until(&format!("node:capabilities:{}", two.id()), |text| text.is_some()).await;
    assert_eq!(redis.get("instance:last_update").unwrap().parse(), Ok(touched), "no instance has changed");
    let lost = one.id();
    one.leave().await;
    redis.until(&format!("node:capabilities:{lost}"), |text| text.is_none()).await;
    redis.until(&instance, |text| text.is_some_and(|text| text.contains(&two.id().to_string()))).await;
    assert!(redis.get("instance:last_update").unwrap().parse::<f64>().unwrap() > touched);
    controller.stop(a).await;
    redis.until(&instance, |text| text.is_none()).await;
    redis.until(&format!("dependency:{a}"), |text| text.is_none()).await;

    for key in others {
        assert_eq!(redis.get(key).as_deref(), Some("not ours"), "{key}");
    }
    assert!(!redis.has(&format!("instance:{gone}")) && !redis.has("provider:gone"), "what a run before left");
    assert_eq!(orchestrator.stop().await, Stopped::Clean);
    assert!(redis.has(&format!("instance:{b}")), "it stands as it was, for whoever still reads it");
}

#[tokio::test]
async fn a_server_that_goes_and_comes_has_all_of_it_again() {
    let Some(mut redis) = Redis::start().await else { return };
    let orchestrator = Orchestrator::start(config(&redis)).await.unwrap();
    let (node, controller) = (Node::join(&orchestrator).await, Controller::of(&orchestrator));
    let before = controller.start().await;
    redis.until(&format!("instance:{before}"), |text| text.is_some()).await;
    redis.kill();
    until_metric(&orchestrator, "redis_connected{database=\"proxy\"} 0").await;
    let meanwhile = controller.start().await;
    assert!(node.instance(meanwhile).is_some(), "the domain goes on");
    redis.come_back().await;
    for component in [before, meanwhile] {
        redis.until(&format!("instance:{component}"), |text| text.is_some()).await;
    }
    redis.until(&format!("node:capabilities:{}", node.id()), |text| text.is_some()).await;
    until_metric(&orchestrator, "redis_connected{database=\"proxy\"} 1").await;

    redis.ask::<()>(&["FLUSHALL"]);
    redis.until(&format!("instance:{meanwhile}"), |text| text.is_some()).await;
    assert_eq!(orchestrator.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn a_server_that_is_not_there_holds_up_nothing() {
    let Some(mut redis) = Redis::start().await else { return };
    redis.kill();
    let orchestrator = Orchestrator::start(config(&redis)).await.unwrap();
    let (_node, controller) = (Node::join(&orchestrator).await, Controller::of(&orchestrator));
    let component = controller.start().await;
    redis.come_back().await;
    redis.until(&format!("instance:{component}"), |text| text.is_some()).await;
    assert_eq!(orchestrator.stop().await, Stopped::Clean);
}

#[tokio::test]
async fn bad_intents_are_ignored_and_counted() {
    let Some(redis) = Redis::start().await else { return };
    let orchestrator = Orchestrator::start(config(&redis)).await.unwrap();
    let (node, controller) = (Node::join(&orchestrator).await, Controller::of(&orchestrator));
    let component = controller.start().await;
    let migrate = format!("intent:migrate:{}", Uuid::new_v4());
    redis.ask::<()>(&["SET", &migrate, &node.id().to_string()]);
    redis.ask::<()>(&["RPUSH", "intents", &migrate]);
    redis.ask::<()>(&["SET", "intent:cordon:nobody", "yes"]);
    redis.ask::<()>(&["LPUSH", "intents", "intent:cordon:nobody"]);
    redis.ask::<()>(&["SET", "something", "not ours"]);
    redis.ask::<()>(&["RPUSH", "intents", "something", "intent:cordon:without-a-key"]);
    redis.ask::<()>(&["RPUSH", "intent:migrate:a-list", "x"]);
    redis.ask::<()>(&["RPUSH", "intents", "intent:migrate:a-list"]);
    until_metric(&orchestrator, "intents_refused_total 5").await;
    assert!(!redis.has(&migrate) && !redis.has("intent:cordon:nobody"), "what is read is removed");
    assert_eq!((redis.ask::<u32>(&["LLEN", "intents"]), redis.has("something")), (0, true));
    controller.stop(component).await;
    redis.until(&format!("instance:{component}"), |text| text.is_none()).await;
}

#[tokio::test]
async fn what_nodes_measure_arrives_and_ends() {
    let Some(redis) = Redis::start().await else { return };
    let mut config = config(&redis);
    config.proxy.proxy_gc_period_seconds = 100;
    let directory = tempfile::tempdir().unwrap();
    let dataset_path = directory.path().join("run-").display().to_string();
    config.proxy.dataset_settings = Some(DatasetSettings { dataset_path, ..DatasetSettings::default() });
    config.collector.collector_type = "redis".into();
    config.collector.redis_url = format!("{}/1", redis.url());
    let orchestrator = Orchestrator::start(config).await.unwrap();
    let node = Node::join(&orchestrator).await;
    let (instance, now) = (Uuid::new_v4(), SystemTime::now());
    let sample = |at, seconds| Sample { instance, phase: Phase::Execution, at, seconds };
    let performance = Performance {
        samples: vec![sample(now, 0.25), sample(now - Duration::from_secs(1000), 0.5)],
        entries: vec![LogEntry { instance, at: now, target: "t".into(), message: "hello".into() }],
        left_out: 4,
    };
    node.tell(performance).await;
    let (times, lines) =
        (format!("performance:{instance}:function_execution_time"), format!("performance:{instance}:t"));
    for database in [0, 1] {
        let members = |key: &str| redis.ask_in::<Vec<String>>(database, &["ZRANGE", key, "0", "-1"]);
        wait_until("samples arrive, and the one goes that is too old", async || members(&times).len() == 1).await;
        let shown = members(&times);
        let (at, value) = shown[0].split_once(':').unwrap();
        assert!(at.parse::<f64>().is_ok() && value == "0.25", "{shown:?}");
        wait_until("lines arrive", async || members(&lines).iter().any(|line| line.ends_with(":hello"))).await;
        let left: i64 = redis.ask_in(database, &["TTL", &times]);
        assert!((1..=100).contains(&left), "they end by themselves: {left}");
    }
    assert_eq!(redis.ask_in::<u32>(1, &["DBSIZE"]), 2, "a collector has nothing else");
    let file = |name: &str| std::fs::read_to_string(directory.path().join(format!("run-{name}"))).unwrap();
    wait_until("the samples are in a file", async || file("performance_samples.csv").lines().count() == 3).await;
    assert!(file("application_logs.csv").ends_with(",hello\n"));
    for name in ["capabilities.csv", "health_status.csv"] {
        let id = node.id().to_string();
        wait_until("the node is in a file", async || file(name).lines().any(|line| line.contains(&id))).await;
    }
    until_metric(&orchestrator, "samples_written_total 6").await;
    until_metric(&orchestrator, "samples_left_out_total 4").await;
}

/// Two domains in one database would overwrite each other, and take each other's intents.
#[tokio::test]
async fn the_mirror_of_another_domain_is_left_alone() {
    let Some(redis) = Redis::start().await else { return };
    let theirs = format!("instance:{}", Uuid::new_v4());
    redis.ask::<()>(&["SET", "domain_info:domain_id", "elsewhere"]);
    redis.ask::<()>(&["SET", &theirs, "theirs"]);
    redis.ask::<()>(&["RPUSH", "intents", "theirs"]);
    let orchestrator = Orchestrator::start(config(&redis)).await.unwrap();
    let (_node, controller) = (Node::join(&orchestrator).await, Controller::of(&orchestrator));
    let component = controller.start().await;
    until_metric(&orchestrator, "redis_failures_total{database=\"proxy\"} 2").await;
    let keys: Vec<String> = redis.ask(&["KEYS", "*"]);
    assert_eq!(keys.len(), 3, "{keys:?}");
    redis.ask::<()>(&["DEL", "domain_info:domain_id"]);
    redis.until(&format!("instance:{component}"), |text| text.is_some()).await;
    assert!(!redis.has(&theirs), "it is ours now");
}

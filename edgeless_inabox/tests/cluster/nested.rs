//! Three domains within each other, each a real orchestrator, with real nodes at both ends.

use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::client::{Connection, Invocation, Options, Workflows};
use edgeless_api::dead::{DeadLetters, Letters, Scope, Treatment};
use edgeless_api::event::{Kind, Trace};
use edgeless_api::status::State;
use edgeless_api::workflow::Workflow;
use edgeless_api::{DomainId, Event, InstanceId, Url};
use edgeless_con::Controller;
use edgeless_daemon::config::{Config as _, parse};
use edgeless_daemon::{Daemon, Handle, Stopped};
use edgeless_node::Node;
use edgeless_orc::Orchestrator;

use super::programs::free_port;
use super::support::{function, lines, relay_module, resource, wait_until, workflow};

fn free() -> Url {
    Url::of(([127, 0, 0, 1], 0).into())
}

/// A controller, a domain in a domain in a domain, and a node at the top and at the bottom.
struct Tree {
    directory: tempfile::TempDir,
    controller: Controller,
    orchestrators: Vec<Orchestrator>,
    nodes: Vec<Node>,
    ingress: String,
}

impl Tree {
    async fn grow() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut orchestrators: Vec<Orchestrator> = Vec::new();
        for domain in ["top", "middle", "leaf"] {
            let mut config = edgeless_orc::Config::default();
            config.general.domain_id = domain.into();
            config.general.state_directory = directory.path().join("orchestrators");
            config.general.orchestrator_url = free();
            config.general.agent_url = Some(free());
            config.general.invocation_url = Some(free());
            config.parent.orchestrator_url = orchestrators.last().map(|parent| parent.url().clone());
            orchestrators.push(Orchestrator::start(config).await.unwrap());
        }
        let top = edgeless_con::Orchestrator {
            domain_id: DomainId("top".into()),
            orchestrator_url: orchestrators[0].url().clone(),
        };
        let config = edgeless_con::Config {
            controller_url: free(),
            orchestrators: vec![top],
            state_directory: directory.path().join("controller"),
            ..edgeless_con::Config::default()
        };
        let controller = Controller::start(config).await.unwrap();
        let ingress = format!("http://127.0.0.1:{}", free_port());
        let nodes = vec![
            node(directory.path(), orchestrators[0].url(), "high", &ingress).await,
            node(directory.path(), orchestrators[2].url(), "low", &free().to_string()).await,
        ];
        let tree = Self { directory, controller, orchestrators, nodes, ingress };
        wait_until("the top knows the node at the bottom", async || {
            let nodes = tree.workflows().nodes(None).await.unwrap_or_default();
            ["high", "low"]
                .iter()
                .all(|label| nodes.iter().any(|node| node.capabilities.labels.iter().any(|has| has == label)))
        })
        .await;
        tree
    }

    fn workflows(&self) -> Workflows {
        Workflows::new(Connection::lazy(self.controller.url(), Options::default()).unwrap())
    }

    /// Runs a workflow, and tells where its component `first` is.
    async fn run(&self, flow: Workflow) -> InstanceId {
        let started = self.workflows().start(flow, None).await.unwrap();
        let all = self.workflows().status(started.workflow).await.unwrap();
        let is_up = all.iter().all(|status| status.state == State::Running);
        assert!(is_up, "{all:?}");
        all.iter().find(|status| status.name == "first").and_then(|status| status.instance).unwrap()
    }

    fn log(&self) -> Vec<String> {
        lines(&self.directory.path().join("log"))
    }

    /// Sends an event to an instance at the top.
    async fn cast(&self, first: InstanceId, payload: &str) {
        let invocation = Invocation::new(Connection::lazy(self.nodes[0].invocation_url(), Options::default()).unwrap());
        let kind = Kind::Cast(payload.to_string().into());
        let (source, created, trace) = (InstanceId::NONE, SystemTime::now(), Trace::default());
        invocation.handle(Event { source, target: first, kind, created, trace, id: None }).await.unwrap();
    }

    /// Sends events to an instance at the top, and waits until all are logged in their order.
    async fn relays(&self, first: InstanceId) {
        let expected: Vec<String> = (0..100).map(|number| format!("event {number}")).collect();
        for payload in &expected {
            self.cast(first, payload).await;
        }
        wait_until("all events are logged", async || self.log().len() == expected.len()).await;
        assert_eq!(self.log(), expected, "events keep their order");
    }

    async fn fell(self) {
        assert_eq!(self.controller.stop().await, Stopped::Clean);
        for orchestrator in self.orchestrators.into_iter().rev() {
            assert_eq!(orchestrator.stop().await, Stopped::Clean);
        }
        for node in self.nodes {
            assert_eq!(node.stop().await, Stopped::Clean);
        }
    }
}

async fn node(directory: &Path, orchestrator: &Url, label: &str, ingress: &str) -> Node {
    let mut config: edgeless_node::Config = parse(&edgeless_node::Config::template(), std::iter::empty()).unwrap();
    let general = &mut config.general;
    (general.agent_url, general.invocation_url, general.metrics_url) = (free(), free(), None);
    general.orchestrator_url = Some(orchestrator.clone());
    general.state_directory = directory.join(format!("state-{label}"));
    config.wasm_runtime.cache_directory = Some(directory.join(format!("cache-{label}")));
    config.wasm_runtime.max_instances = 64;
    config.limits.delivery_tries = 1;
    config.user_node_capabilities.labels = vec![label.into()];
    for (key, value) in [("http_ingress_url", ingress), ("file_log_directory", &directory.display().to_string())] {
        config.resources.insert(key.into(), toml::Value::String(value.into()));
    }
    Node::start(config).await.unwrap()
}

/// Answers any call with an HTTP response that says "deep".
fn deep_module() -> Bytes {
    let response = r#"{"status":200,"body":[100,101,101,112],"headers":{}}"#;
    let (text, len) = (response.replace('"', "\\\""), response.len());
    wat::parse_str(format!(
        r#"(module
            (memory (export "memory") 1)
            (data (i32.const 16) "{text}")
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32 i32 i32))
            (func (export "handle_call_asm")
                (param i32 i32) (param i32 i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (i32.const 16))
                (i32.store (local.get $out_len) (i32.const {len}))
                (i32.const 1))
            (func (export "handle_stop_asm")))"#
    ))
    .unwrap()
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_that_is_started_at_the_top_runs_at_the_bottom() {
    let tree = Tree::grow().await;
    let relay = relay_module();
    let low = [("label_match_all", "low")];
    let functions = vec![
        function("first", &relay, &[("out", "second")], &[("label_match_all", "high")]),
        function("second", &relay, &[("out", "log")], &low),
    ];
    let log = resource("log", "file-log", &[], &[("filename", "log"), low[0]]);
    let first = tree.run(workflow(functions, vec![log])).await;
    assert_eq!(first.node, tree.nodes[0].id());
    tree.relays(first).await;
    tree.fell().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_the_top_is_answered_from_the_bottom() {
    let tree = Tree::grow().await;
    let deep = function("first", &deep_module(), &[], &[("label_match_all", "low,hostname=middle")]);
    let ingress = resource("ingress", "http-ingress", &[("new_request", "first")], &[("label_match_all", "high")]);
    let first = tree.run(workflow(vec![deep], vec![ingress])).await;
    assert_ne!(first.node, tree.nodes[1].id(), "the top knows it by the domain that runs it");
    let url = tree.ingress.clone();
    let curl = move || Command::new("curl").args(["-sS", "--max-time", "20", &url]).output().unwrap();
    let output = tokio::task::spawn_blocking(curl).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deep", "{}", String::from_utf8_lossy(&output.stderr));
    tree.fell().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_back_from_the_bottom_to_the_top() {
    let tree = Tree::grow().await;
    let relay = relay_module();
    let functions = vec![
        function("first", &relay, &[("out", "second")], &[("label_match_all", "high")]),
        function("second", &relay, &[("out", "log")], &[("label_match_all", "low")]),
    ];
    let log = resource("log", "file-log", &[], &[("filename", "log"), ("label_match_all", "high")]);
    let first = tree.run(workflow(functions, vec![log])).await;
    tree.relays(first).await;
    tree.fell().await;
}

/// Traps on every cast.
fn trapping_module() -> Bytes {
    wat::parse_str(
        r#"(module
            (memory (export "memory") 1)
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) unreachable)
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_at_the_bottom_are_seen_and_resolved_at_the_top() {
    let tree = Tree::grow().await;
    let (relay, low) = (relay_module(), ("label_match_all", "low"));
    let functions = vec![
        function("first", &relay, &[("out", "second")], &[("label_match_all", "high")]),
        function("second", &relay, &[("out", "third")], &[low, ("delivery:out", "at-least-once")]),
        function("third", &trapping_module(), &[], &[low]),
    ];
    let first = tree.run(workflow(functions, vec![])).await;
    let workflows = tree.workflows();
    let started = workflows.list().await.unwrap()[0];
    let (_, status) = workflows.inspect(started).await.unwrap();
    let second = status.mapping.iter().find(|mapped| mapped.name == "second").unwrap().component;
    let letters = async |component: Option<&str>| {
        let scope = Scope { workflow: Some(started), component: component.map(str::to_string) };
        workflows.dead_letters(scope, 100).await.unwrap()
    };
    assert_eq!(letters(None).await, DeadLetters::default());

    tree.cast(first, "poison").await;
    wait_until("it is a dead letter", async || letters(None).await.letters.len() == 1).await;
    let letter = letters(Some("second")).await.letters.remove(0);
    let known = (letter.component, letter.name.as_str(), letter.workflow, letter.output.as_str());
    assert_eq!(known, (second, "second", Some(started), "out"));
    assert_eq!((letter.payload.as_ref(), letter.size, letter.tries), (&b"poison"[..], 6, 1));
    assert_eq!(letters(Some("first")).await, DeadLetters::default());
    let unknown = Scope { workflow: Some(started), component: Some("fourth".into()) };
    let refused = workflows.dead_letters(unknown, 100).await.unwrap_err();
    assert!(refused.message.contains("there is no component 'fourth'"), "{refused}");

    let named = Letters::Named(vec![letter.id]);
    let retried = workflows.resolve_dead(Scope::default(), named.clone(), Treatment::Retry).await.unwrap();
    assert_eq!((retried.count, retried.troubles), (1, vec![]));
    wait_until("it was tried again, as another", async || {
        letters(None).await.letters.iter().any(|again| again.id != letter.id)
    })
    .await;
    let gone = workflows.resolve_dead(Scope::default(), named, Treatment::Drop).await.unwrap();
    assert_eq!(gone.count, 0, "it has another number now");
    let dropped = workflows.resolve_dead(Scope::default(), Letters::All, Treatment::Drop).await.unwrap();
    assert_eq!((dropped.count, dropped.troubles), (1, vec![]));
    assert_eq!(workflows.dead_letters(Scope::default(), 100).await.unwrap(), DeadLetters::default());
    tree.fell().await;
}

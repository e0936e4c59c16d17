//! How a node is commanded, and what it does with input that is wrong.

use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::component::ComponentKind::{Function, Resource};
use edgeless_api::component::{ComponentRef, Patch, Row, Start, Target};
use edgeless_api::event::{Kind, Reply, Trace};
use edgeless_api::node::PeerUpdate;
use edgeless_api::{Code, ComponentId, Event, InstanceId, NodeId};
use edgeless_daemon::config::parse;
use edgeless_daemon::{Daemon, Stopped};
use edgeless_node::{Config, Node};
use uuid::Uuid;

use super::support::{TestNode, config_text, context, function, http_get, wait_until};

/// Answers calls with nothing, passes casts on to `out`.
fn relay() -> Vec<u8> {
    wat::parse_str(
        r#"(module
            (import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "out")
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
}

#[tokio::test]
async fn a_start_is_repeatable_and_fenced_by_its_epoch() {
    let node = TestNode::start().await;
    let first = context("f");
    let spec = function(&relay(), &[]);
    let id = node.create(spec.clone(), first.clone()).await.unwrap();
    let (one, two) = tokio::join!(node.create(spec.clone(), first.clone()), node.create(spec.clone(), first.clone()));
    assert_eq!((one.unwrap(), two.unwrap()), (id, id), "a repeat returns the first result");

    let mut second = first.clone();
    second.epoch = 2;
    let newer = node.create(spec.clone(), second).await.unwrap();
    assert_ne!(newer, id);
    assert!(node.components.status(&[id.function]).await.unwrap().is_empty(), "the older instance is gone");
    let error = node.create(spec.clone(), first.clone()).await.unwrap_err();
    assert!(error.message.contains("epoch 1 is older than 2"), "{error}");

    // A start that was on its way while its component was stopped must not bring it back.
    node.stop(Function, newer).await;
    let mut late = first;
    late.epoch = 2;
    let error = node.create(spec.clone(), late.clone()).await.unwrap_err();
    assert!(error.message.contains("was stopped here meanwhile, in epoch 2"), "{error}");
    late.epoch = 3;
    node.create(spec, late).await.unwrap();
}

#[tokio::test]
async fn a_row_moves_all_outputs_that_lead_to_its_component() {
    let node = TestNode::start().await;
    let relay_id = node.start_module(&relay(), &[]).await.unwrap();
    let target = ComponentId::random();
    let set = async |epoch, instances: Vec<InstanceId>| {
        let row = Row::new(target, epoch, instances);
        let outputs = [("out".to_string(), Target::Row(row))].into();
        node.components.patch(Function, Patch::new(relay_id.function, outputs)).await.unwrap();
    };
    set(2, vec![node.peer.id]).await;
    node.cast(relay_id, "one").await;
    assert_eq!(node.peer.next_cast().await, "one");
    // Older news changes nothing.
    set(1, vec![InstanceId::random(NodeId::random())]).await;
    node.cast(relay_id, "two").await;
    assert_eq!(node.peer.next_cast().await, "two");
    // A component that runs nowhere keeps its events waiting a while, until it runs again.
    set(3, vec![]).await;
    node.cast(relay_id, "three").await;
    set(4, vec![node.peer.id]).await;
    assert_eq!(node.peer.next_cast().await, "three");
}

/// A node that takes connections and never says a word must not hold up what goes to others.
#[tokio::test]
async fn a_silent_node_slows_only_what_goes_to_it() {
    let node = TestNode::start().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap()).parse().unwrap();
    let nobody = InstanceId::random(NodeId::random());
    node.management.update_peers(PeerUpdate::Add(nobody.node, url)).await.unwrap();
    let to_nobody = node.start_module(&relay(), &[]).await.unwrap();
    node.patch(Function, to_nobody, &[("out", nobody)]).await;
    let to_peer = node.start_module(&relay(), &[]).await.unwrap();
    node.patch(Function, to_peer, &[("out", node.peer.id)]).await;
    for number in 0..50 {
        node.cast(to_nobody, "lost").await;
        node.cast(to_peer, number.to_string()).await;
        assert_eq!(node.peer.next_cast().await, number.to_string());
    }
    let metrics = node.metrics().await;
    assert!(!metrics.contains("PeerLost"), "the silent node was waited for all the while: {metrics}");
}

#[tokio::test]
async fn an_orchestrator_of_old_is_understood() {
    let node = TestNode::start().await;
    let started = node.components.start(Start { spec: function(&relay(), &[]), context: None }).await.unwrap();
    let ComponentRef::Instance(id) = started else { panic!("a node knows instances") };
    // Its first patch counts as the activation it does not know.
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    assert_eq!(node.peer.next_cast().await, "x");
    node.management.reset().await.unwrap();
    assert!(node.components.status(&[id.function]).await.unwrap().is_empty());
}

#[tokio::test]
async fn commands_with_wrong_ids_are_refused() {
    let node = TestNode::start().await;
    let id = node.start_module(&relay(), &[]).await.unwrap();
    let component = ComponentRef::Component(ComponentId(id.function));
    assert_eq!(node.components.stop(Function, component).await.unwrap_err().code, Code::Rejected);
    let elsewhere = ComponentRef::Instance(InstanceId { node: NodeId::random(), function: id.function });
    assert_eq!(node.components.stop(Function, elsewhere).await.unwrap_err().code, Code::Rejected);
    let wrong_kind = node.components.stop(Resource, ComponentRef::Instance(id)).await.unwrap_err();
    assert!(wrong_kind.message.contains("is a function, not a resource"), "{wrong_kind}");
    let unknown = ComponentRef::Instance(InstanceId::random(node.id()));
    node.components.stop(Function, unknown).await.expect("what is gone is stopped");
    let patch = Patch::new(Uuid::new_v4(), [].into());
    assert_eq!(node.components.patch(Function, patch).await.unwrap_err().code, Code::NotFound);
    assert_eq!(node.components.activate(&[Uuid::new_v4()]).await.unwrap_err().code, Code::NotFound);
    let error = node.start_resource("teleporter", &[]).await.unwrap_err();
    assert!(error.message.contains("does not offer teleporter"), "{error}");
}

#[tokio::test]
async fn events_that_cannot_be_delivered_are_refused_or_counted() {
    let node = TestNode::start().await;
    let event = |target, kind| Event {
        source: node.peer.id,
        target,
        kind,
        created: SystemTime::now(),
        trace: Trace::default(),
        id: None,
    };
    let elsewhere = event(InstanceId::random(NodeId::random()), Kind::Cast(Bytes::new()));
    let error = node.invocation.handle(elsewhere).await.unwrap_err();
    assert_eq!(error.code, Code::Rejected, "{error}");
    let unknown = InstanceId::random(node.id());
    assert_eq!(node.call(unknown, "x").await, Reply::Error, "a call to nobody is answered at once");
    // A reply that nobody waits for.
    let reply = Kind::Reply { reply: Reply::Empty, stream: 12345 };
    node.invocation.handle(event(unknown, reply)).await.unwrap();
    // Over the limit of this node; then over what its port takes at all.
    let id = node.start_module(&relay(), &[]).await.unwrap();
    node.cast(id, vec![0; (65 << 10) + 1]).await;
    let too_large = event(id, Kind::Cast(vec![0; 1 << 20].into()));
    assert_eq!(node.invocation.handle(too_large).await.unwrap_err().code, Code::Exhausted);
    let metrics = node.metrics().await;
    assert!(metrics.contains("events_dropped_total{cause=\"TooLarge\"} 1"), "{metrics}");
    assert!(metrics.contains("events_dropped_total{cause=\"UnknownTarget\"} 1"), "{metrics}");
    assert!(metrics.contains("events_refused_total 1"), "{metrics}");
}

#[tokio::test]
async fn a_full_mailbox_loses_what_finds_no_room_in_time() {
    let node = TestNode::start().await;
    // Never done with its first cast, so that the others fill its mailbox.
    let busy = wat::parse_str(
        r#"(module
            (memory (export "memory") 1)
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (loop $for_ever (br $for_ever)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap();
    let busy = node.start_module(&busy, &[]).await.unwrap();
    let casts = (0..40).map(|_| node.cast(busy, "x"));
    futures_util::future::join_all(casts).await;
    wait_until("some are lost", || async { node.status(busy).await.dropped > 0 }).await;
    assert!(node.metrics().await.contains("events_dropped_total{cause=\"MailboxFull\"}"));
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_know() {
    let node = TestNode::start().await;
    let id = node.start_module(&relay(), &[]).await.unwrap();
    assert_eq!(node.call(id, "x").await, Reply::Empty);
    let text = node.metrics().await;
    let labels = format!("node_id=\"{}\",function_id=\"{}\"", node.id(), id.function);
    for expected in [
        format!("function_count{{node_id=\"{}\",function_type=\"RUST_WASM\"}} 1", node.id()),
        format!("execution_times_count{{{labels},function_type=\"RUST_WASM\",invocation_type=\"Call\"}} 1"),
        format!("transfer_times_count{{{labels}}} 1"),
    ] {
        assert!(text.contains(&expected), "{expected}\n{text}");
    }
    assert_eq!(http_get(node.metrics_url(), "/healthz").await.0, 200);
    assert_eq!(http_get(node.metrics_url(), "/readyz").await.0, 503, "no orchestrator knows it");
}

#[tokio::test]
async fn a_node_stops_cleanly_with_its_components() {
    let node = TestNode::start().await;
    let relay = relay();
    for _ in 0..5 {
        node.start_module(&relay, &[]).await.unwrap();
    }
    assert_eq!(node.stop_node().await, Stopped::Clean);
}

fn config(change: impl Fn(&str) -> String) -> Result<Config, String> {
    let directory = tempfile::tempdir().unwrap();
    parse(&change(&config_text(directory.path())), std::iter::empty())
}

#[test]
fn a_wrong_configuration_is_refused_with_its_key() {
    for (from, to, expected) in [
        ("[limits]", "[limits]\nmailbocks = 1", "mailbocks"),
        ("agent_url = \"http://127.0.0.1:0\"", "agent_url = \"nonsense\"", "nonsense"),
        ("cpu_limit = \"300ms\"", "cpu_limit = \"0s\"", "wasm_runtime.cpu_limit"),
        ("memory_limit = \"4MiB\"", "memory_limit = \"1KiB\"", "wasm_runtime.memory_limit"),
        (
            "[limits]",
            "[container_runtime]\nmax_containers = 0\n[limits]",
            "container_runtime.max_containers: must be at",
        ),
        ("[limits]", "[container_runtime]\nstart_timeout = \"0s\"\n[limits]", "container_runtime.start_timeout"),
        ("[limits]", "[container_runtime]\nsubnet = \"10.0.0.1/8\"\n[limits]", "is not a range of IPv4 addresses"),
        ("[limits]", "[container_runtime.maxima]\nram = 1\n[limits]", "ram: there is no such limit"),
        ("[limits]", "[resources]\ndda_provider = \"dda-1\"\n[limits]", "resources.dda_provider"),
    ] {
        let error = config(|text| text.replace(from, to)).unwrap_err();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn the_template_works_as_it_stands() {
    use edgeless_daemon::config::Config as _;
    let config: Config = parse(&Config::template(), std::iter::empty()).unwrap();
    let providers: Vec<_> = config.providers().unwrap().into_iter().map(|(_, id, _)| id).collect();
    assert_eq!(providers, ["http-ingress-1", "http-egress-1", "file-log-1", "redis-1"]);
    assert_eq!(config.general.agent_url.to_string(), "http://127.0.0.1:7021");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", taken.local_addr().unwrap());
    let config = config(|text| text.replacen("http://127.0.0.1:0", &url, 1)).unwrap();
    let error = Node::start(config).await.err().expect("a taken port");
    assert!(error.message.contains(&url), "{error}");
}

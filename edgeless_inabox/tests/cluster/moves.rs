//! Components that move and come in several instances, under load and without losing an event: real daemons
//! over real sockets.

use std::time::Duration;

use bytes::Bytes;
use edgeless_api::status::State;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{InstanceId, NodeId};
use edgeless_inabox::Cluster;
use futures_util::TryStreamExt;

use super::cluster::{cast, status_of};
use super::support::{function, lines, relay_module, resource, wait_until, workflow};

const FIXED: (&str, &str) = ("label_match_all", "fixed");
const FREE: (&str, &str) = ("label_match_all", "free");

/// One node that is `fixed` and two that are `free`.
async fn three_nodes(directory: &std::path::Path) -> Cluster {
    let labels = ["fixed", "free", "free"].map(|label| vec![label.to_string()]).to_vec();
    Cluster::builder(directory).nodes(3).labels(labels).start().await.unwrap()
}

/// `first` and `log` on the fixed node, and `second` between them.
fn flow(second: &Bytes, annotations: &[(&str, &str)]) -> Workflow {
    workflow(
        vec![
            function("first", &relay_module(), &[("out", "second")], &[FIXED]),
            function("second", second, &[("out", "log")], annotations),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log"), FIXED])],
    )
}

async fn instances(cluster: &Cluster, started: &WorkflowStatus, name: &str) -> Vec<InstanceId> {
    let running = |status: &edgeless_api::status::InstanceStatus| status.state == State::Running;
    let status = status_of(cluster, started, name).await;
    status.instances.into_iter().filter(running).map(|status| status.instance).collect()
}

async fn home(cluster: &Cluster, started: &WorkflowStatus, name: &str) -> NodeId {
    status_of(cluster, started, name).await.instance.unwrap().node
}

/// A drained node is empty, its components are elsewhere, and whatever was sent meanwhile arrives once.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_under_load_loses_no_event() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = three_nodes(directory.path()).await;
    let (workflows, operations) = (cluster.workflows().unwrap(), cluster.operations().unwrap());
    let log = directory.path().join("log");
    let mut sent = 0;
    for state in ["transient", "node-local"] {
        let flow = flow(&relay_module(), &[FREE, ("state", state)]);
        let started = workflows.start(flow, None).await.unwrap();
        let first = status_of(&cluster, &started, "first").await.instance.unwrap();
        let drained = home(&cluster, &started, "second").await;
        let draining = async {
            let steps: Vec<_> = operations.drain(drained).await.unwrap().try_collect().await.unwrap();
            assert!(steps.iter().all(|step| step.reason.is_empty()), "{steps:?}");
            assert_eq!(steps.last().map(|step| (step.moved, step.total)), Some((1, 1)), "{steps:?}");
        };
        let sending = async {
            for _ in 0..500 {
                cast(&cluster, first, &format!("event {sent}")).await;
                sent += 1;
            }
        };
        tokio::join!(draining, sending);
        assert_ne!(home(&cluster, &started, "second").await, drained);
        assert!(operations.residents(drained).await.unwrap().is_empty());
        let nodes = workflows.nodes(None).await.unwrap();
        assert!(nodes.iter().any(|node| node.node == drained && node.cordoned && node.components == 0), "{nodes:?}");
        wait_until("all events are logged", || async { lines(&log).len() == sent }).await;
        operations.cordon(drained, false).await.unwrap();
        workflows.stop(started.workflow).await.unwrap();
    }
    let mut logged = lines(&log);
    logged.sort();
    logged.dedup();
    assert_eq!(logged.len(), sent, "no event twice");
    cluster.stop().await;
}

/// A sender waits for hardly anything but for what is on its way, and that takes as long as it takes. There is
/// room for all that is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_loses_no_event_however_long_a_component_takes_to_start_again() {
    let directory = tempfile::tempdir().unwrap();
    let labels = ["fixed", "free", "free"].map(|label| vec![label.to_string()]).to_vec();
    let cluster = Cluster::builder(directory.path()).nodes(3).labels(labels).configure_nodes(|config| {
        config.limits.emit_wait = Duration::from_millis(1);
        config.limits.move_wait = Duration::from_secs(600);
    });
    let cluster = cluster.start().await.unwrap();
    let log = directory.path().join("log");
    let flow = flow(&relay_module(), &[FREE, ("state", "node-local")]);
    let started = cluster.workflows().unwrap().start(flow, None).await.unwrap();
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    let operations = cluster.operations().unwrap();
    let mut sent = 0;
    for _ in 0..3 {
        let drained = home(&cluster, &started, "second").await;
        let draining = async {
            let steps: Vec<_> = operations.drain(drained).await.unwrap().try_collect().await.unwrap();
            assert!(steps.iter().all(|step| step.reason.is_empty()), "{steps:?}");
        };
        let sending = async {
            for _ in 0..200 {
                cast(&cluster, first, &format!("event {sent}")).await;
                sent += 1;
            }
        };
        tokio::join!(draining, sending);
        assert_ne!(home(&cluster, &started, "second").await, drained);
        wait_until("all events are logged", || async { lines(&log).len() == sent }).await;
        operations.cordon(drained, false).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_moves_where_it_is_told_or_says_why_not() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = three_nodes(directory.path()).await;
    let operations = cluster.operations().unwrap();
    let started = cluster.workflows().unwrap().start(flow(&relay_module(), &[FREE]), None).await.unwrap();
    let id = started.mapping.iter().find(|mapped| mapped.name == "second").unwrap().component;
    let from = home(&cluster, &started, "second").await;
    let [fixed, to] = [0, 1].map(|place| {
        let others = cluster.nodes().iter().map(edgeless_node::Node::id).filter(|node| *node != from);
        others.collect::<Vec<_>>()[place]
    });
    let plan = operations.plan_loss(from).await.unwrap();
    assert_eq!(plan.iter().map(|moved| moved.to.as_ref().map(|(node, _)| *node)).collect::<Vec<_>>(), [Ok(to)]);
    operations.move_component(id, to).await.unwrap();
    assert_eq!(home(&cluster, &started, "second").await, to);
    let refused = operations.move_component(id, fixed).await.unwrap_err();
    assert!(refused.message.contains("free"), "{refused}");
    assert_eq!(home(&cluster, &started, "second").await, to, "it stays where it is");
    let why = operations.why(id).await.unwrap();
    assert_eq!(why.component, "second");
    let excluded = why.nodes.iter().find(|verdict| verdict.node == fixed).unwrap();
    assert!(excluded.outcome.to_string().contains("free"), "{:?}", excluded.outcome);
    cluster.stop().await;
}

/// A function that takes its time before it passes on what it gets.
fn slow_module() -> Bytes {
    let relay = r#"(module
        (import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "out")
        (global $top (mut i32) (i32.const 1024))
        (func (export "edgeless_mem_alloc") (param $len i32) (result i32)
            (local $at i32)
            (local.set $at (global.get $top))
            (global.set $top (i32.add (global.get $top) (local.get $len)))
            (local.get $at))
        (func (export "edgeless_mem_free") (param i32 i32))
        (func (export "edgeless_mem_clear") (global.set $top (i32.const 1024)))
        (func (export "handle_init_asm") (param i32 i32 i32 i32))
        (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
            (local $left i32)
            (local.set $left (i32.const 20000000))
            (loop $again
                (local.set $left (i32.sub (local.get $left) (i32.const 1)))
                (br_if $again (local.get $left)))
            (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
        (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
        (func (export "handle_stop_asm")))"#;
    wat::parse_str(relay).unwrap().into()
}

/// From nothing to several instances while events wait, back to nothing when all is done, and no event is
/// lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn instances_come_with_the_work_and_go_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = three_nodes(directory.path()).await;
    let scale = [FREE, ("state", "transient"), ("min_instances", "0"), ("max_instances", "3")];
    let started = cluster.workflows().unwrap().start(flow(&slow_module(), &scale), None).await.unwrap();
    assert!(instances(&cluster, &started, "second").await.is_empty(), "nothing came yet");
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    let mut sent = 0;
    wait_until("there are several instances", || {
        let (cluster, started) = (&cluster, &started);
        sent += 10;
        async move {
            for _ in 0..10 {
                cast(cluster, first, "x").await;
            }
            instances(cluster, started, "second").await.len() > 1
        }
    })
    .await;
    let log = directory.path().join("log");
    wait_until("all events are logged", || async { lines(&log).len() == sent }).await;
    wait_until("all instances are gone", || async { instances(&cluster, &started, "second").await.is_empty() }).await;
    cast(&cluster, first, "x").await;
    wait_until("the next event starts one again", || async { lines(&log).len() == sent + 1 }).await;
    cluster.stop().await;
}

//! Controller, orchestrator and nodes in this process, over real sockets.

use std::time::SystemTime;

use bytes::Bytes;
use edgeless_api::client::{Connection, Invocation, Options};
use edgeless_api::event::{Kind, Trace};
use edgeless_api::status::{ComponentStatus, Level, State};
use edgeless_api::workflow::WorkflowStatus;
use edgeless_api::{Code, Event, InstanceId};
use edgeless_daemon::Stopped;
use edgeless_inabox::Cluster;
use futures_util::StreamExt;

use super::support::{PATIENCE, function, lines, relay_module, resource, wait_until, workflow};

pub(crate) async fn status_of(cluster: &Cluster, started: &WorkflowStatus, name: &str) -> ComponentStatus {
    let all = cluster.workflows().unwrap().status(started.workflow).await.unwrap();
    all.into_iter().find(|status| status.name == name).unwrap()
}

/// A function that logs each cast.
fn logging_module() -> Bytes {
    wat::parse_str(
        r#"(module
            (import "env" "telemetry_log_asm" (func $log (param i32 i32 i32 i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "cast")
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32 i32 i32))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $log (i32.const 3) (i32.const 0) (i32.const 4) (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
    .into()
}

/// Sends an event to an instance, as a user would.
pub(crate) async fn cast(cluster: &Cluster, target: InstanceId, payload: &str) {
    let node = cluster.nodes().iter().find(|node| node.id() == target.node).expect("a node that runs");
    let invocation = Invocation::new(Connection::lazy(node.invocation_url(), Options::default()).unwrap());
    let event = Event {
        source: InstanceId::NONE,
        target,
        kind: Kind::Cast(payload.to_string().into()),
        created: SystemTime::now(),
        trace: Trace::default(),
        id: None,
    };
    invocation.handle(event).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_crosses_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let labels = vec![vec!["left".to_string()], vec!["right".to_string()]];
    let cluster = Cluster::builder(directory.path()).nodes(2).labels(labels).start().await.unwrap();
    let relay = relay_module();
    let started = cluster
        .workflows()
        .unwrap()
        .start(
            workflow(
                vec![
                    function("first", &relay, &[("out", "second")], &[("label_match_all", "left")]),
                    function("second", &relay, &[("out", "log")], &[("label_match_all", "right")]),
                ],
                vec![resource("log", "file-log", &[], &[("filename", "log"), ("label_match_all", "left")])],
            ),
            None,
        )
        .await
        .unwrap();
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    let second = status_of(&cluster, &started, "second").await.instance.unwrap();
    assert_eq!((first.node, second.node), (cluster.nodes()[0].id(), cluster.nodes()[1].id()));
    let expected: Vec<String> = (0..100).map(|number| format!("event {number}")).collect();
    for payload in &expected {
        cast(&cluster, first, payload).await;
    }
    let log = directory.path().join("log");
    wait_until("all events are logged", || async { lines(&log).len() == expected.len() }).await;
    assert_eq!(lines(&log), expected, "events keep their order on their way over two nodes and back");
    assert!(cluster.stop().await.iter().all(|stopped| *stopped == Stopped::Clean));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ran_on_a_lost_node_runs_elsewhere_and_is_found_there() {
    let directory = tempfile::tempdir().unwrap();
    let labels = vec![vec!["stays".to_string()]];
    let mut cluster = Cluster::builder(directory.path()).nodes(1).labels(labels).start().await.unwrap();
    let relay = relay_module();
    let lost = cluster.add_node(vec!["goes".to_string()]).await.unwrap();
    cluster.until_known().await.unwrap();
    // Two nodes can run `second`; round by round one of them gets it, and that one is killed.
    let flow = workflow(
        vec![
            function("first", &relay, &[("out", "second")], &[("label_match_all", "stays")]),
            function("second", &relay, &[("out", "log")], &[]),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log"), ("label_match_all", "stays")])],
    );
    let workflows = cluster.workflows().unwrap();
    let started = loop {
        let started = workflows.start(flow.clone(), None).await.unwrap();
        if status_of(&cluster, &started, "second").await.instance.unwrap().node == lost {
            break started;
        }
        workflows.stop(started.workflow).await.unwrap();
    };
    cluster.kill_node(lost).await;
    wait_until("it runs on the other node", || async {
        let status = status_of(&cluster, &started, "second").await;
        status.state == State::Running && status.instance.is_some_and(|instance| instance.node != lost)
    })
    .await;
    assert!(status_of(&cluster, &started, "second").await.epoch > 1);
    let first = status_of(&cluster, &started, "first").await.instance.unwrap();
    let log = directory.path().join("log");
    wait_until("its sender was told", || async {
        cast(&cluster, first, "x").await;
        !lines(&log).is_empty()
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_to_where_its_function_runs_next() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let flow = workflow(vec![function("f", &logging_module(), &[], &[])], vec![]);
    let started = workflows.start(flow, None).await.unwrap();
    let first = status_of(&cluster, &started, "f").await.instance.unwrap();
    let mut lines = workflows.logs(started.workflow, None, true).await.unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, lines.next()).await.unwrap().map(Result::unwrap);
    cast(&cluster, first, "here").await;
    let line = next().await.unwrap();
    assert_eq!((line.component.as_str(), line.target.as_str(), line.message.as_str()), ("f", "cast", "here"));

    cluster.kill_node(first.node).await;
    wait_until("it runs on the other node", || async {
        let status = status_of(&cluster, &started, "f").await;
        status.state == State::Running && status.instance.is_some_and(|instance| instance.node != first.node)
    })
    .await;
    let second = status_of(&cluster, &started, "f").await.instance.unwrap();
    cast(&cluster, second, "there").await;
    let mut line = next().await.unwrap();
    // Said if the end of the node is seen before it is replaced.
    if line.level == Level::Warn {
        assert_eq!((line.component.as_str(), line.target.as_str()), ("f", "edgeless"));
        line = next().await.unwrap();
    }
    assert_eq!((line.component.as_str(), line.message.as_str()), ("f", "there"));
    workflows.stop(started.workflow).await.unwrap();
    assert_eq!(next().await, None, "nobody logs any more");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_goodbye_is_replaced_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let flow = workflow(vec![function("f", &relay_module(), &[], &[])], vec![]);
    let started = cluster.workflows().unwrap().start(flow, None).await.unwrap();
    let first = status_of(&cluster, &started, "f").await.instance.unwrap();
    assert_eq!(cluster.stop_node(first.node).await, Some(Stopped::Clean));
    wait_until("it runs on the other node", || async {
        let status = status_of(&cluster, &started, "f").await;
        status.state == State::Running && status.instance.is_some_and(|instance| instance.node != first.node)
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_starts_wholly_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let good = relay_module();
    let bad = bytes::Bytes::from_static(b"\0asm but nothing more");
    let refused = async |flow| workflows.start(flow, None).await.unwrap_err();

    let error =
        refused(workflow(vec![function("good", &good, &[], &[]), function("bad", &bad, &[], &[])], vec![])).await;
    assert_eq!(error.code, Code::Rejected);
    assert!(error.message.contains("'bad'") && error.message.contains("not a WebAssembly module"), "{error}");

    let error = refused(workflow(vec![function("f", &good, &[], &[("label_match_all", "gpu")])], vec![])).await;
    assert!(error.message.contains("'f'") && error.message.contains("0 of 1 have the label 'gpu'"), "{error}");

    let wrong_key = resource("log", "file-log", &[], &[("filename", "log"), ("colour", "red")]);
    let error = refused(workflow(vec![function("f", &good, &[], &[])], vec![wrong_key])).await;
    assert!(error.message.contains("no configuration 'colour'"), "{error}");

    let escaping = resource("log", "file-log", &[], &[("filename", "../../etc/passwd")]);
    let error = refused(workflow(vec![], vec![escaping])).await;
    assert!(error.message.contains("../../etc/passwd"), "{error}");

    assert!(workflows.list().await.unwrap().is_empty());
    let components: u32 = workflows.nodes(None).await.unwrap().iter().map(|node| node.components).sum();
    assert_eq!(components, 0, "what had started was stopped");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_where_and_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let flow = workflow(
        vec![function("f", &relay_module(), &[("out", "log")], &[])],
        vec![resource("log", "file-log", &[], &[("filename", "log")])],
    );
    let plan = workflows.plan(flow).await.unwrap();
    let names: Vec<_> = plan.iter().map(|placement| placement.name.as_str()).collect();
    assert_eq!(names, ["f", "log"]);
    assert!(plan.iter().all(|placement| placement.node == cluster.nodes()[0].id()));
    assert!(workflows.list().await.unwrap().is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_may_offer_providers_of_the_same_name() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).nodes(2).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    for node in cluster.nodes() {
        let id = node.id().to_string();
        let log = resource("log", "file-log", &[], &[("filename", "log"), ("node_id_match_any", &id)]);
        let started = workflows.start(workflow(vec![], vec![log]), None).await.unwrap();
        assert_eq!(status_of(&cluster, &started, "log").await.instance.unwrap().node, node.id());
    }
    cluster.stop().await;
}

//! Several domains: workflows that are cut, that move from one to another, and that outlive their domain.

use std::time::Duration;

use bytes::Bytes;
use edgeless_api::status::State;
use edgeless_api::workflow::{Workflow, WorkflowStatus};
use edgeless_api::{DomainId, InstanceId};
use edgeless_inabox::{Cluster, Domain};

use super::cluster::{cast, status_of};
use super::support::{PATIENCE, function, lines, relay_module, resource, wait_until, workflow};

fn domain(id: &str) -> Domain {
    Domain::new(id).unwrap().labels(vec![vec![id.to_string()]])
}

/// `first` and `log` ask for the label `left`, `second` between them for `right`.
fn cut() -> Workflow {
    let relay = relay_module();
    let (left, right) = (("label_match_all", "left"), ("label_match_all", "right"));
    workflow(
        vec![
            function("first", &relay, &[("out", "second")], &[left]),
            function("second", &relay, &[("out", "log")], &[right]),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log"), left])],
    )
}

/// Asks for nothing that only one domain has.
fn anywhere() -> Workflow {
    let relay = relay_module();
    let log = resource("log", "file-log", &[], &[("filename", "log")]);
    workflow(vec![function("first", &relay, &[("out", "log")], &[])], vec![log])
}

/// The domain of each component, in their order.
fn domains(status: &WorkflowStatus) -> Vec<&str> {
    status.mapping.iter().map(|mapped| mapped.domain.0.as_str()).collect()
}

async fn first(cluster: &Cluster, started: &WorkflowStatus) -> InstanceId {
    status_of(cluster, started, "first").await.instance.unwrap()
}

/// All that is sent comes through, in order, `count` events at a time.
async fn comes_through(cluster: &Cluster, started: &WorkflowStatus, log: &std::path::Path, count: usize) {
    let (before, first) = (lines(log).len(), first(cluster, started).await);
    let expected: Vec<String> = (before..before + count).map(|number| format!("event {number}")).collect();
    for payload in &expected {
        cast(cluster, first, payload).await;
    }
    wait_until("all events are logged", || async { lines(log).len() >= before + count }).await;
    assert_eq!(lines(log)[before..], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_is_cut_and_its_events_need_no_orchestrator() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    let mut cluster = cluster.start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let started = workflows.start(cut(), None).await.unwrap();
    assert_eq!(domains(&started), ["left", "right", "left"]);
    let log = directory.path().join("log");
    comes_through(&cluster, &started, &log, 100).await;
    let sender = first(&cluster, &started).await;
    cluster.stop_orchestrator(1).await;
    for number in 100..200 {
        cast(&cluster, sender, &format!("event {number}")).await;
    }
    wait_until("events flow on", || async { lines(&log).len() == 200 }).await;
    workflows.stop(started.workflow).await.ok();
    cluster.stop().await;
}

/// Neither side knows the nodes of the other: everything goes by the orchestrator of the private domain.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_domain_is_reached_through_its_orchestrator() {
    let directory = tempfile::tempdir().unwrap();
    let private = domain("right").configure(|config| config.general.private = true);
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(private).start().await.unwrap();
    let started = cluster.workflows().unwrap().start(cut(), None).await.unwrap();
    assert_eq!(domains(&started), ["left", "right", "left"]);
    comes_through(&cluster, &started, &directory.path().join("log"), 100).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_migrates_and_a_component_may_alone() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    let cluster = cluster.start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let started = workflows.start(anywhere(), None).await.unwrap();
    let log = directory.path().join("log");
    comes_through(&cluster, &started, &log, 20).await;
    let to = |from: &str| DomainId(if from == "left" { "right" } else { "left" }.to_string());
    let other = to(domains(&started)[0]);
    let moved = workflows.migrate(started.workflow, other.clone(), None).await.unwrap();
    assert_eq!(domains(&moved), [other.0.as_str(), other.0.as_str()]);
    assert_eq!(moved.workflow, started.workflow);
    comes_through(&cluster, &moved, &log, 20).await;
    let back = to(&other.0);
    let split = workflows.migrate(started.workflow, back.clone(), Some("first".into())).await.unwrap();
    assert_eq!(domains(&split), [back.0.as_str(), other.0.as_str()]);
    comes_through(&cluster, &split, &log, 20).await;
    let again = workflows.migrate(started.workflow, back, Some("first".into())).await.unwrap_err();
    assert!(again.message.contains("'first'"), "{again}");
    let nowhere = workflows.migrate(started.workflow, DomainId("nowhere".into()), None).await.unwrap_err();
    assert!(nowhere.message.contains("left, right"), "{nowhere}");
    cluster.stop().await;
}

/// An orchestrator that is lost alone moves nothing; a domain that is gone as a whole leaves its workflows to
/// the others.
#[tokio::test(flavor = "multi_thread")]
async fn what_ran_in_a_domain_that_is_gone_runs_in_another() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    let cluster = cluster.configure(|config| config.domain_grace = Duration::from_secs(1));
    let mut cluster = cluster.start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let started = workflows.start(anywhere(), None).await.unwrap();
    let lost = usize::from(domains(&started)[0] == "right");
    let log = directory.path().join("log");
    comes_through(&cluster, &started, &log, 20).await;
    // The controller learns a moment after they have joined which nodes it must find gone, and whether it has nobody
    // can see. What must not happen afterwards needs time not to happen.
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.stop_orchestrator(lost).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (_, still) = workflows.inspect(started.workflow).await.unwrap();
    assert_eq!(domains(&still), domains(&started), "its nodes are there");
    cluster.kill_domain(lost).await;
    wait_until("it runs in the other domain", || async {
        let (_, status) = workflows.inspect(started.workflow).await.unwrap();
        domains(&status) != domains(&started) && status_of(&cluster, &status, "first").await.state == State::Running
    })
    .await;
    let (_, moved) = workflows.inspect(started.workflow).await.unwrap();
    comes_through(&cluster, &moved, &log, 20).await;
    cluster.stop().await;
}

/// A function that counts the events that it gets, keeps the count as its state, and passes it on for each.
fn counting_module() -> Bytes {
    wat::parse_str(
        r#"(module
            (import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
            (import "env" "sync_asm" (func $sync (param i32 i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "out")
            (data (i32.const 16) "000000")
            (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear"))
            (func (export "handle_init_asm") (param i32 i32) (param $state i32) (param $len i32)
                (if (i32.eq (local.get $len) (i32.const 6))
                    (then
                        (i32.store (i32.const 16) (i32.load (local.get $state)))
                        (i32.store16 (i32.const 20) (i32.load16_u offset=4 (local.get $state))))))
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (local $at i32)
                (local.set $at (i32.const 21))
                (block $done
                    (loop $carry
                        (i32.store8 (local.get $at) (i32.add (i32.load8_u (local.get $at)) (i32.const 1)))
                        (br_if $done (i32.le_u (i32.load8_u (local.get $at)) (i32.const 57)))
                        (i32.store8 (local.get $at) (i32.const 48))
                        (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                        (br_if $carry (i32.ge_u (local.get $at) (i32.const 16)))))
                (call $sync (i32.const 16) (i32.const 6))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 16) (i32.const 6)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
            (func (export "handle_stop_asm")))"#,
    )
    .unwrap()
    .into()
}

/// What a function has counted goes on counting in the other domain, under load, and nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_migrates_with_its_state_while_events_come_from_the_domain_that_it_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    // However slow the machine is, nothing waits in vain.
    let cluster = cluster.configure_nodes(|config| config.limits.move_wait = PATIENCE).start().await.unwrap();
    let (workflows, operations) = (cluster.workflows().unwrap(), cluster.operations().unwrap());
    let left = ("label_match_all", "left");
    let flow = workflow(
        vec![
            function("first", &relay_module(), &[("out", "count")], &[left]),
            function("count", &counting_module(), &[("out", "log")], &[("state", "node-local")]),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log"), left])],
    );
    let started = workflows.start(flow, None).await.unwrap();
    assert_eq!(domains(&started), ["left", "left", "left"]);
    let count = started.mapping.iter().find(|mapped| mapped.name == "count").unwrap().component;
    let (log, first) = (directory.path().join("log"), first(&cluster, &started).await);
    let mut sent = 0;
    for (from, to) in [(0, "right"), (1, "left"), (0, "right")] {
        cast(&cluster, first, "before").await;
        sent += 1;
        wait_until("it has counted", || async { lines(&log).len() == sent }).await;
        let migrating = workflows.migrate(started.workflow, DomainId(to.into()), Some("count".into()));
        let sending = async {
            for _ in 0..200 {
                cast(&cluster, first, "meanwhile").await;
                sent += 1;
            }
        };
        let (migrated, ()) = tokio::join!(migrating, sending);
        assert_eq!(domains(&migrated.unwrap()), ["left", to, "left"]);
        for node in cluster.nodes_of(from) {
            let residents = operations.residents(node.id()).await.unwrap();
            assert!(residents.iter().all(|one| one.component != count), "{residents:?}");
        }
    }
    wait_until("all events are counted", || async { lines(&log).len() >= sent }).await;
    let expected: Vec<String> = (1..=sent).map(|number| format!("{number:06}")).collect();
    assert_eq!(lines(&log), expected);
    assert_eq!(status_of(&cluster, &started, "count").await.reason, "");
    cluster.stop().await;
}

/// Nothing of the workflow stays in the domain that could say where the rest has gone: the controller does.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_workflow_migrates_and_what_still_comes_follows_it() {
    let directory = tempfile::tempdir().unwrap();
    let cluster = Cluster::builder(directory.path()).domain(domain("left")).domain(domain("right"));
    let cluster = cluster.configure_nodes(|config| config.limits.move_wait = PATIENCE).start().await.unwrap();
    let workflows = cluster.workflows().unwrap();
    let flow = workflow(
        vec![
            function("first", &relay_module(), &[("out", "count")], &[]),
            function("count", &counting_module(), &[("out", "log")], &[("state", "node-local")]),
        ],
        vec![resource("log", "file-log", &[], &[("filename", "log")])],
    );
    let started = workflows.start(flow, None).await.unwrap();
    let (log, first) = (directory.path().join("log"), first(&cluster, &started).await);
    let to = if domains(&started)[0] == "left" { "right" } else { "left" };
    let sent = 200;
    let migrating = workflows.migrate(started.workflow, DomainId(to.into()), None);
    let sending = async {
        for _ in 0..sent {
            cast(&cluster, first, "to where it was").await;
        }
    };
    let (migrated, ()) = tokio::join!(migrating, sending);
    assert_eq!(domains(&migrated.unwrap()), [to, to, to]);
    wait_until("all events are counted", || async { lines(&log).len() >= sent }).await;
    // They may overtake each other on their way, and each is counted once.
    let mut counted = lines(&log);
    counted.sort();
    let expected: Vec<String> = (1..=sent).map(|number| format!("{number:06}")).collect();
    assert_eq!(counted, expected);
    cluster.stop().await;
}

//! What must arrive does, whatever happens to either end.

use std::collections::BTreeMap;
use std::time::SystemTime;

use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{Patch, Row, StartContext, Target};
use edgeless_api::event::{Kind, Trace};
use edgeless_api::server::Invocation as _;
use edgeless_api::status::OutputBooks;
use edgeless_api::{Event, EventId, InstanceId};
use uuid::Uuid;

use super::durable::{keeper, said};
use super::guest_abi::{CALL, CAST_ASM, INIT, OUT, STOP, module};
use super::support::{TestNode, context, function, resource, wait_until};

const SURE: [(&str, &str); 1] = [("delivery:out", "at-least-once")];
const LOG: &str = "file_log_provider = \"log\"\nfile_log_directory = \"{dir}/logs\"";

/// Passes on each cast on the output `out`, and then does this.
fn relay(then: &str) -> Vec<u8> {
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len))
                {then})"#
        ),
    )
}

/// Traps on the casts of everybody.
fn trapping() -> Vec<u8> {
    module(
        "",
        &format!(r#"{INIT} {CALL} {STOP} (func (export "handle_cast_asm") (param i32 i32 i32 i32) unreachable)"#),
    )
}

async fn lead(node: &TestNode, from: InstanceId, row: Row) {
    let outputs = BTreeMap::from([("out".to_string(), Target::Row(row))]);
    node.components.patch(Function, Patch::new(from.function, outputs)).await.unwrap();
    node.components.activate(&[from.function]).await.unwrap();
}

async fn books(node: &TestNode, id: InstanceId) -> OutputBooks {
    node.status(id).await.outputs.into_iter().find(|books| books.output == "out").unwrap_or_default()
}

/// A cast that a repeat of is known by its number.
fn numbered(target: InstanceId, number: u64, payload: &str) -> Event {
    let id = Some(EventId { outbox: Uuid::from_u128(1), number, oldest: 1 });
    let (source, kind) = (InstanceId::NONE, Kind::Cast(payload.to_string().into()));
    Event { source, target, kind, created: SystemTime::now(), trace: Trace::default(), id }
}

#[tokio::test]
async fn what_was_sent_before_a_crash_arrives_after_it_once() {
    let node = TestNode::with_resources(LOG).await;
    let to = context("log");
    let from = node.create(function(&relay(""), &SURE), context("relay")).await.unwrap();
    lead(&node, from, Row::new(to.component, 1, Vec::new())).await;
    for number in 0..20 {
        node.cast(from, format!("event {number}")).await;
    }
    wait_until("all are sent", || async { books(&node, from).await.produced == 20 }).await;

    let node = node.crash().await;
    wait_until("they are known", || async { books(&node, from).await.queued == 20 }).await;
    let log = node.create(resource("file-log", &[("filename", "a.log")]), to.clone()).await.unwrap();
    node.components.set_rows(vec![Row::new(to.component, 2, vec![log])]).await.unwrap();
    wait_until("they arrive", || async { books(&node, from).await.handled == 20 }).await;
    let file = node.directory.path().join("logs").join("a.log");
    let lines = || std::fs::read_to_string(&file).unwrap();
    let mut seen: Vec<_> = lines().lines().map(str::to_string).collect();
    seen.sort();
    let mut expected: Vec<_> = (0..20).map(|number| format!("event {number}")).collect();
    expected.sort();
    assert_eq!(seen, expected);

    let node = node.crash().await;
    node.cast(from, "last").await;
    wait_until("it arrives", || async { lines().lines().count() > 20 }).await;
    assert!(lines().ends_with("last\n"), "nothing came again: {}", lines());
}

#[tokio::test]
async fn a_repeat_is_settled_without_being_handled_also_by_the_next_process() {
    let node = TestNode::with_resources(LOG).await;
    let log = node.create(resource("file-log", &[("filename", "a.log")]), context("log")).await.unwrap();
    let keeper = node.create(function(&keeper(), &[]), context("keeper")).await.unwrap();
    for target in [log, keeper] {
        for number in [1, 2, 2, 1] {
            node.invocation.handle(numbered(target, number, &format!("event {number}"))).await.unwrap();
        }
        wait_until("both are handled", || async { node.status(target).await.handled == 2 }).await;
    }
    assert_eq!(node.call(keeper, "").await, said(""), "init was given no state");
    let node = node.crash().await;
    assert_eq!(node.call(keeper, "").await, said("event 2"), "its state came with the id of the event");
    for target in [log, keeper] {
        node.invocation.handle(numbered(target, 2, "again")).await.unwrap();
        node.invocation.handle(numbered(target, 3, "event 3")).await.unwrap();
        wait_until("the new one is handled", || async { node.status(target).await.handled >= 1 }).await;
    }
    let file = node.directory.path().join("logs").join("a.log");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "event 1\nevent 2\nevent 3\n");
}

#[tokio::test]
async fn a_handler_that_traps_has_sent_nothing() {
    let node = TestNode::with_resources(LOG).await;
    let to = context("log");
    let log = node.create(resource("file-log", &[("filename", "a.log")]), to.clone()).await.unwrap();
    let trap = "(if (i32.eq (local.get $len) (i32.const 4)) (then unreachable))";
    let from = node.create(function(&relay(trap), &SURE), context("relay")).await.unwrap();
    lead(&node, from, Row::new(to.component, 1, vec![log])).await;
    node.cast(from, "trap").await;
    node.cast(from, "and on").await;
    wait_until("the second one arrives", || async { books(&node, from).await.handled == 1 }).await;
    assert_eq!((books(&node, from).await.produced, node.status(log).await.handled), (1, 1));
}

#[tokio::test]
async fn what_its_target_fails_at_again_and_again_is_a_dead_letter() {
    let node = TestNode::with(&[("grace", "\"1s\"\ndelivery_tries = 2")]).await;
    let to = context("trapping");
    let target = node.create(function(&trapping(), &[]), to.clone()).await.unwrap();
    let from = node.create(function(&relay(""), &SURE), context("relay")).await.unwrap();
    lead(&node, from, Row::new(to.component, 1, vec![target])).await;
    node.cast(from, "poison").await;
    let dead = async || books(&node, from).await.dropped.get("DeadLetter").copied().unwrap_or_default();
    wait_until("it is given up", || async { dead().await == 1 }).await;
    let books = books(&node, from).await;
    assert_eq!((books.produced, books.handled, books.queued), (1, 0, 0), "{books:?}");
    assert_eq!(node.dropped("DeadLetter").await, 1);
    wait_until("it was tried twice", || async { node.status(target).await.restarts >= 1 }).await;
}

#[tokio::test]
async fn what_is_on_its_way_moves_with_its_component() {
    let (here, there) = (TestNode::start().await, TestNode::start().await);
    let to = context("keeper");
    let spec = function(&relay(""), &SURE);
    let moving = context("relay");
    let from = here.create(spec.clone(), moving.clone()).await.unwrap();
    lead(&here, from, Row::new(to.component, 1, Vec::new())).await;
    here.invocation.handle(numbered(from, 1, "hello")).await.unwrap();
    wait_until("it is sent", || async { books(&here, from).await.produced == 1 }).await;
    let belongings = here.components.release(from.function, std::time::Duration::from_secs(1)).await.unwrap();
    let moved = there.create(spec, StartContext { epoch: 2, state: belongings, ..moving }).await.unwrap();
    let there = there.crash().await;
    let target = there.create(function(&keeper(), &[]), to.clone()).await.unwrap();
    lead(&there, moved, Row::new(to.component, 2, vec![target])).await;
    wait_until("it arrives", || async { there.status(target).await.handled == 1 }).await;
    // And what it has handled before, it knows.
    there.invocation.handle(numbered(moved, 1, "hello")).await.unwrap();
    there.invocation.handle(numbered(moved, 2, "more")).await.unwrap();
    wait_until("the new one is passed on", || async { there.status(target).await.handled == 2 }).await;
    assert_eq!(there.status(moved).await.handled, 1);
}

/// A link that ends with its node: what is on its way is sent again, and what was handled is known.
#[tokio::test]
async fn events_between_nodes_survive_the_death_of_either() {
    let (mut here, mut there) = (TestNode::start().await, TestNode::with_resources(LOG).await);
    let to = context("log");
    let target = there.create(resource("file-log", &[("filename", "a.log")]), to.clone()).await.unwrap();
    let from = here.create(function(&relay(""), &SURE), context("relay")).await.unwrap();
    let row = |epoch, node: &TestNode| Row {
        addresses: BTreeMap::from([(node.id(), node.invocation_url().clone())]),
        ..Row::new(to.component, epoch, vec![target])
    };
    lead(&here, from, row(1, &there)).await;
    let mut expected = Vec::new();
    for epoch in 2..6 {
        let before = books(&here, from).await.produced;
        for number in 0..50 {
            let event = format!("{epoch} {number}");
            here.cast(from, event.clone()).await;
            expected.push(event);
        }
        wait_until("all are sent", || async { books(&here, from).await.produced >= before + 50 }).await;
        if epoch % 2 == 0 {
            there = there.crash().await;
        } else {
            here = here.crash().await;
        }
        here.components.set_rows(vec![row(epoch, &there)]).await.unwrap();
        wait_until("nothing is on its way", || async {
            let books = books(&here, from).await;
            books.queued == 0 && books.in_flight == 0
        })
        .await;
    }
    let lines = std::fs::read_to_string(there.directory.path().join("logs").join("a.log")).unwrap();
    let mut lines: Vec<_> = lines.lines().map(str::to_string).collect();
    lines.sort();
    expected.sort();
    lines.dedup();
    assert_eq!(lines, expected);
}

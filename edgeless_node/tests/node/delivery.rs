//! What must arrive does, whatever happens to either end.

use std::collections::BTreeMap;
use std::time::SystemTime;

use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{Patch, Row, StartContext, Target};
use edgeless_api::dead::{DeadLetter, LetterId, Letters, Treatment};
use edgeless_api::event::{Kind, Trace};
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

async fn dead(node: &TestNode, id: InstanceId) -> Vec<DeadLetter> {
    node.components.dead_letters(&[id.function], 100).await.unwrap().letters
}

async fn resolve(node: &TestNode, id: InstanceId, letters: Letters, treatment: Treatment) -> (u64, Vec<String>) {
    let resolved = node.components.resolve_dead(&[id.function], letters, treatment).await.unwrap();
    (resolved.count, resolved.troubles)
}

/// A node that gives events up the first time, and what sends events there that nothing can handle.
async fn with_poison(payloads: &[&str]) -> (TestNode, StartContext, InstanceId) {
    let node = TestNode::with_config(&[("grace", "\"1s\"\ndelivery_tries = 1")], LOG).await;
    let to = context("target");
    let target = node.create(function(&trapping(), &[]), to.clone()).await.unwrap();
    let from = node.create(function(&relay(""), &SURE), context("relay")).await.unwrap();
    lead(&node, from, Row::new(to.component, 1, vec![target])).await;
    for (sent, payload) in payloads.iter().enumerate() {
        node.cast(from, payload.to_string()).await;
        wait_until("it is a dead letter", || async { dead(&node, from).await.len() == sent + 1 }).await;
    }
    (node, to, from)
}

#[tokio::test]
async fn dead_letters_outlive_the_process_and_are_sent_again() {
    let long = "x".repeat(5000);
    let (node, to, from) = with_poison(&["first", &long]).await;
    let letters = dead(&node, from).await;
    let node = node.crash().await;
    assert_eq!(dead(&node, from).await, letters);
    let told: Vec<_> =
        letters.iter().map(|one| (one.payload.len(), one.size, one.tries, one.reason.as_str())).collect();
    assert_eq!(told, [(4096, 5000, 1, "the target has failed"), (5, 5, 1, "the target has failed")]);
    assert_eq!((letters[1].name.as_str(), letters[1].output.as_str()), ("relay", "out"));
    let newest = node.components.dead_letters(&[from.function], 1).await.unwrap();
    assert_eq!((newest.letters, newest.more), (letters[..1].to_vec(), 1));

    let log = resource("file-log", &[("filename", "a.log")]);
    let target = node.create(log, StartContext { epoch: 2, ..to.clone() }).await.unwrap();
    node.components.set_rows(vec![Row::new(to.component, 2, vec![target])]).await.unwrap();
    let named = Letters::Named(vec![letters[1].id]);
    assert_eq!(resolve(&node, from, named.clone(), Treatment::Retry).await, (1, vec![]));
    wait_until("it arrives", || async { node.status(target).await.handled == 1 }).await;
    assert_eq!(resolve(&node, from, named, Treatment::Retry).await, (0, vec![]), "it is no dead letter any more");
    assert_eq!(dead(&node, from).await, letters[..1]);
    assert_eq!(resolve(&node, from, Letters::All, Treatment::Retry).await, (1, vec![]));
    wait_until("the other one arrives", || async { node.status(target).await.handled >= 2 }).await;
    let node = node.crash().await;
    assert_eq!(dead(&node, from).await, []);
    let file = node.directory.path().join("logs").join("a.log");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("first\n{long}\n"));
}

#[tokio::test]
async fn a_dead_letter_that_is_dropped_is_gone() {
    let (node, _, from) = with_poison(&["first", "second"]).await;
    let letters = dead(&node, from).await;
    let unknown = LetterId { number: 999, ..letters[0].id };
    let other = LetterId { outbox: Uuid::from_u128(5), ..letters[0].id };
    let named = Letters::Named(vec![letters[0].id, unknown, other]);
    assert_eq!(resolve(&node, from, named, Treatment::Drop).await, (1, vec![]));
    let node = node.crash().await;
    assert_eq!(dead(&node, from).await, letters[1..]);
    assert_eq!(resolve(&node, from, Letters::All, Treatment::Drop).await, (1, vec![]));
    let node = node.crash().await;
    assert_eq!(dead(&node, from).await, []);
}

#[tokio::test]
async fn dead_letters_move_with_their_component() {
    let (here, _, from) = with_poison(&["first", "second"]).await;
    let letters = dead(&here, from).await;
    let there = TestNode::start().await;
    let belongings = here.components.release(from.function, std::time::Duration::from_secs(1)).await.unwrap();
    let moving = StartContext { component: letters[0].component, epoch: 2, state: belongings, ..context("relay") };
    let moved = there.create(function(&relay(""), &SURE), moving).await.unwrap();
    assert_eq!(dead(&there, moved).await, letters, "by the same ids");
    assert_eq!(dead(&here, from).await, []);
    let there = there.crash().await;
    assert_eq!(dead(&there, moved).await, letters);
}

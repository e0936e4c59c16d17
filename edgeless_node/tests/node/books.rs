//! The books: every event that an instance sends is accounted for, whatever becomes of it.

use edgeless_api::component::ComponentKind::Function;
use edgeless_api::event::Reply;
use edgeless_api::node::PeerUpdate;
use edgeless_api::status::OutputBooks;
use edgeless_api::{InstanceId, NodeId};

use super::guest_abi::{CALL, CAST, CAST_ASM, INIT, OUT, STOP, module};
use super::support::{TestNode, wait_until};

/// Passes on each cast on the output `out`; traps on a call.
fn relay() -> Vec<u8> {
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {STOP}
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) unreachable)"#
        ),
    )
}

/// Casts 1000 times on the output `out` for each cast that it gets.
fn fountain() -> Vec<u8> {
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (local $i i32)
                (loop $again
                    (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3))
                    (local.set $i (i32.add (local.get $i) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $i) (i32.const 1000)))))"#
        ),
    )
}

fn sink() -> Vec<u8> {
    module("", &format!("{INIT} {CAST} {CALL} {STOP}"))
}

/// Takes for ever over the first event that it gets.
fn stuck() -> Vec<u8> {
    module(
        "",
        &format!(
            r#"{INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (loop $for_ever (br $for_ever)))"#
        ),
    )
}

async fn books(node: &TestNode, id: InstanceId, output: &str) -> OutputBooks {
    let outputs = node.status(id).await.outputs;
    outputs.into_iter().find(|books| books.output == output).unwrap_or_default()
}

fn settled(books: &OutputBooks) -> u64 {
    books.handled + books.expired + books.dropped.values().sum::<u64>() + books.unknown + books.handed_over
}

#[tokio::test]
async fn what_is_handled_is_booked_as_handled() {
    let node = TestNode::start().await;
    let (from, to) =
        (node.start_module(&fountain(), &[]).await.unwrap(), node.start_module(&sink(), &[]).await.unwrap());
    node.patch(Function, from, &[("out", to)]).await;
    for _ in 0..3 {
        node.cast(from, "go").await;
    }
    wait_until("all are handled", || async { books(&node, from, "out").await.handled == 3000 }).await;
    let books = books(&node, from, "out").await;
    assert_eq!((books.produced, books.queued, books.in_flight), (3000, 0, 0), "{books:?}");
    assert_eq!(node.status(to).await.handled, 3000, "the receiver counts the same");
    let shown = format!("function_id=\"{}\",output=\"out\",fate=\"handled\"}} 3000", from.function);
    assert!(node.metrics().await.contains(&shown), "{}", node.metrics().await);
}

#[tokio::test]
async fn what_a_full_mailbox_refuses_is_booked_with_its_cause() {
    let node = TestNode::with(&[("emit_wait", "\"1ms\""), ("cpu_limit", "\"60s\"")]).await;
    let (from, to) =
        (node.start_module(&fountain(), &[]).await.unwrap(), node.start_module(&stuck(), &[]).await.unwrap());
    node.patch(Function, from, &[("out", to)]).await;
    node.cast(from, "go").await;
    wait_until("all are sent", || async { books(&node, from, "out").await.produced == 1000 }).await;
    wait_until("none is on its way", || async {
        let books = books(&node, from, "out").await;
        // The mailbox of a test node holds 16.
        books.in_flight == 1 && books.queued == 16 && books.dropped["MailboxFull"] == 983
    })
    .await;
    node.stop(Function, to).await;
    wait_until("what it had is booked as well", || async { settled(&books(&node, from, "out").await) == 1000 }).await;
    let books = books(&node, from, "out").await;
    assert_eq!(books.dropped["Stopping"], 17, "{books:?}");
}

#[tokio::test]
async fn what_has_nobody_to_go_to_is_booked_too() {
    let node = TestNode::start().await;
    let from = node.start_module(&fountain(), &[]).await.unwrap();
    node.cast(from, "go").await;
    wait_until("it is booked", || async { books(&node, from, "(unmapped)").await.produced == 1000 }).await;
    let nobody = InstanceId::random(NodeId::random());
    for (target, cause) in [(nobody, "UnknownPeer"), (InstanceId::random(node.id()), "UnknownTarget")] {
        node.patch(Function, from, &[("out", target)]).await;
        node.cast(from, "go").await;
        wait_until(cause, || async { books(&node, from, "out").await.dropped.get(cause) == Some(&1000) }).await;
    }
    let books = books(&node, from, "out").await;
    assert_eq!(
        (books.produced, settled(&books)),
        (2000, 2000),
        "the books outlive what the output leads to: {books:?}"
    );
}

#[tokio::test]
async fn an_event_that_its_handler_traps_on_was_handled_and_what_waits_is_not_lost() {
    let node = TestNode::start().await;
    let trapping = module(
        "",
        &format!(r#"{INIT} {CALL} {STOP} (func (export "handle_cast_asm") (param i32 i32 i32 i32) unreachable)"#),
    );
    let (from, to) =
        (node.start_module(&relay(), &[]).await.unwrap(), node.start_module(&trapping, &[]).await.unwrap());
    node.patch(Function, from, &[("out", to)]).await;
    for _ in 0..3 {
        node.cast(from, "x").await;
    }
    wait_until("each took its instance", || async { node.status(to).await.restarts >= 2 }).await;
    wait_until("all are handled", || async { books(&node, from, "out").await.handled == 3 }).await;
    // The books survive a restart of the sender as well.
    assert_eq!(node.call(from, "trap").await, Reply::Error);
    wait_until("it runs again", || async { node.status(from).await.restarts == 1 }).await;
    assert_eq!(books(&node, from, "out").await.produced, 3);
}

/// Two nodes that know each other.
async fn two_nodes() -> (TestNode, TestNode) {
    let (here, there) = (TestNode::start().await, TestNode::start().await);
    for (one, other) in [(&here, &there), (&there, &here)] {
        let other = PeerUpdate::Add(other.id(), other.invocation_url().clone());
        one.management.update_peers(other).await.unwrap();
    }
    (here, there)
}

#[tokio::test]
async fn a_flood_from_node_to_node_arrives_whole_and_is_booked_here() {
    let (here, there) = two_nodes().await;
    let (from, to) =
        (here.start_module(&fountain(), &[]).await.unwrap(), there.start_module(&sink(), &[]).await.unwrap());
    here.patch(Function, from, &[("out", to)]).await;
    for _ in 0..5 {
        here.cast(from, "go").await;
    }
    wait_until("all are handled", || async { books(&here, from, "out").await.handled == 5000 }).await;
    let books = books(&here, from, "out").await;
    assert_eq!((books.produced, books.queued), (5000, 0), "{books:?}");
    assert_eq!(there.status(to).await.handled, 5000, "the receiver counts the same");
}

#[tokio::test]
async fn what_a_killed_node_took_with_it_is_unknown_and_all_else_adds_up() {
    let (here, there) = two_nodes().await;
    let (from, to) =
        (here.start_module(&fountain(), &[]).await.unwrap(), there.start_module(&stuck(), &[]).await.unwrap());
    here.patch(Function, from, &[("out", to)]).await;
    here.cast(from, "go").await;
    wait_until("its window is full", || async { books(&here, from, "out").await.queued > 200 }).await;
    let lost = there.id();
    there.kill().await;
    here.management.update_peers(PeerUpdate::Remove(lost)).await.unwrap();
    wait_until("all are sent", || async { books(&here, from, "out").await.produced == 1000 }).await;
    wait_until("each has its fate", || async { settled(&books(&here, from, "out").await) == 1000 }).await;
    let books = books(&here, from, "out").await;
    assert!(books.unknown > 200 && books.handled == 0, "{books:?}");
    assert_eq!(
        books.dropped.get("UnknownPeer").copied().unwrap_or_default()
            + books.unknown
            + books.dropped.get("PeerLost").copied().unwrap_or_default(),
        1000,
        "{books:?}"
    );
}

#[tokio::test]
async fn a_call_to_a_node_that_is_killed_ends_with_an_error_at_once() {
    let (here, there) = two_nodes().await;
    let forwarder = module(
        r#"(import "env" "call_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        &format!(
            r#"{OUT} {INIT} {CAST} {STOP}
            (func (export "handle_call_asm")
                (param i32 i32) (param $payload i32) (param $len i32) (param $reply i32) (param $reply_len i32) (result i32)
                (call $call (i32.const 0) (i32.const 3)
                    (local.get $payload) (local.get $len) (local.get $reply) (local.get $reply_len)))"#
        ),
    );
    let endless = module(
        "",
        &format!(
            r#"{INIT} {CAST} {STOP}
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32)
                (loop $for_ever (br $for_ever)) unreachable)"#
        ),
    );
    let from = here.start_module(&forwarder, &[]).await.unwrap();
    let to = there.start_module(&endless, &[]).await.unwrap();
    here.patch(Function, from, &[("out", to)]).await;
    let call = here.begin_call(from, "x", None).await;
    wait_until("it is there", || async { there.metric("events_in_flight").await == 1 }).await;
    let lost = there.id();
    there.kill().await;
    here.management.update_peers(PeerUpdate::Remove(lost)).await.unwrap();
    assert_eq!(call.reply().await, Reply::Error);
}

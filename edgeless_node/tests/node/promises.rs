//! What the node promises about events, calls and starts when something goes wrong: each event that
//! is lost is counted with its cause, each call ends, and nothing is left behind.
//!
//! Where something must not be waited for, the time that would be waited is longer than the patience
//! of a test, so that no test measures time.

use std::time::Duration;

use bytes::Bytes;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{ComponentRef, Start};
use edgeless_api::event::{Kind, Reply};
use edgeless_api::node::PeerUpdate;
use edgeless_api::status::State;
use edgeless_api::{Code, InstanceId, NodeId};

use super::guest_abi::{CALL, CAST, CAST_ASM, INIT, OUT, STOP, module, module_of};
use super::support::{PATIENCE, TestNode, context, function, wait_until};

/// Longer than any test waits.
const EVER: &str = "\"60s\"";

const CALL_ASM: &str = r#"(import "env" "call_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#;
const DELAYED_ASM: &str = r#"(import "env" "delayed_cast_asm" (func $delayed (param i64 i32 i32 i32 i32)))"#;
const SYNC_ASM: &str = r#"(import "env" "sync_asm" (func $sync (param i32 i32)))"#;
/// The output `self`, at 8.
const SELF: &str = r#"(data (i32.const 8) "self")"#;

/// Calls `out` for whatever it gets; a call is answered with what that call brought.
fn forwarder() -> Vec<u8> {
    module(
        CALL_ASM,
        &format!(
            r#"{OUT} {INIT} {STOP}
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (drop (call $call (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len) (i32.const 32) (i32.const 40))))
            (func (export "handle_call_asm")
                (param i32 i32) (param $payload i32) (param $len i32) (param $reply i32) (param $reply_len i32) (result i32)
                (call $call (i32.const 0) (i32.const 3)
                    (local.get $payload) (local.get $len) (local.get $reply) (local.get $reply_len)))"#
        ),
    )
}

/// Does nothing with what it gets.
fn sink() -> Vec<u8> {
    module("", &format!("{INIT} {CAST} {CALL} {STOP}"))
}

/// A loop over the local `$i`, so many rounds of `body`.
fn repeat(times: u32, body: &str) -> String {
    format!(
        r#"(loop $again
            {body}
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))"#
    )
}

/// Emits the numbers from 0 on, each in 4 bytes, while it is initialised.
fn emits_numbers(count: u32) -> Vec<u8> {
    let emit = repeat(
        count,
        r#"(i32.store (i32.const 64) (local.get $i))
            (call $cast (i32.const 0) (i32.const 3) (i32.const 64) (i32.const 4))"#,
    );
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {CAST} {CALL} {STOP}
            (func (export "handle_init_asm") (param i32 i32 i32 i32) (local $i i32) {emit})"#
        ),
    )
}

/// The next numbers that the peer gets.
async fn numbers(node: &TestNode, count: u32) -> Vec<u32> {
    let mut got = Vec::new();
    for _ in 0..count {
        got.push(u32::from_le_bytes(node.peer.next_cast().await[..].try_into().unwrap()));
    }
    got
}

#[tokio::test]
async fn a_patch_of_an_old_orchestrator_activates_at_once() {
    // The timer that activates without being told must not be what let the event out: another one,
    // which began before it, has not fired when the event is here. A machine so slow that it has
    // fired by then proves nothing, so there are several attempts.
    for _ in 0..10 {
        let node = TestNode::start().await;
        let start = async || {
            let spec = function(&emits_numbers(1), &[]);
            match node.components.start(Start { spec, context: None }).await.unwrap() {
                ComponentRef::Instance(id) => id,
                ComponentRef::Component(id) => panic!("a node answered with {id:?}"),
            }
        };
        let _never_patched = start().await;
        let id = start().await;
        node.patch(Function, id, &[("out", node.peer.id)]).await;
        assert_eq!(numbers(&node, 1).await, [0]);
        if node.dropped("Unmapped").await == 0 {
            return;
        }
    }
    panic!("only the timer activates");
}

#[tokio::test]
async fn a_reply_is_taken_only_from_who_was_called() {
    let node = TestNode::with(&[("call_timeout", EVER)]).await;
    let id = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    let pending = node.begin_call(id, "question", None).await;
    let mut call = node.peer.next().await;
    let forged = || Reply::Message(Bytes::from_static(b"forged"));
    node.answer(&call, InstanceId::random(node.peer.id.node), forged()).await;
    node.answer(&call, InstanceId { node: NodeId::random(), ..node.peer.id }, forged()).await;
    // From the right one, but to somebody else.
    let caller = std::mem::replace(&mut call.source, InstanceId::random(node.id()));
    node.answer(&call, node.peer.id, forged()).await;
    assert_eq!(node.metric("events_refused_total").await, 3);
    call.source = caller;
    node.answer(&call, node.peer.id, Reply::Message(Bytes::from_static(b"true"))).await;
    assert_eq!(pending.reply().await, Reply::Message(Bytes::from_static(b"true")));
    assert_eq!(node.metric("events_refused_total").await, 3);
}

#[tokio::test]
async fn a_call_whose_time_is_up_in_the_queue_is_not_handled() {
    let node = TestNode::with(&[("call_timeout", EVER)]).await;
    let id = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "first").await;
    let in_hand = node.peer.next().await;
    let queued = node.begin_call(id, "second", Some(Duration::from_millis(1))).await;
    // Its time began before this, and is shorter.
    tokio::time::sleep(Duration::from_millis(20)).await;
    node.answer(&in_hand, node.peer.id, Reply::Empty).await;
    assert_eq!(queued.reply().await, Reply::Error);
    wait_until("the first is handled", || async { node.status(id).await.handled == 1 }).await;
    assert_eq!(node.dropped("Expired").await, 1);
    assert_eq!(node.status(id).await.dropped, 1);
    assert!(node.peer.try_next().await.is_none(), "no handler took it");
}

#[tokio::test]
async fn a_payload_over_the_limit_is_dropped_and_counted() {
    let node = TestNode::start().await;
    let roomy = module_of(3, "", &format!("{INIT} {CAST} {CALL} {STOP}"));
    let id = node.start_module(&roomy, &[]).await.unwrap();
    let limit = 64 << 10;
    for (count, size) in [(1, limit + 1), (2, limit * 2)] {
        node.cast(id, vec![0; size]).await;
        assert_eq!(node.dropped("TooLarge").await, count, "{size} bytes");
    }
    assert_eq!(node.call(id, vec![0; limit + 1]).await, Reply::Error);
    assert_eq!(node.dropped("TooLarge").await, 3);
    assert_eq!(node.status(id).await.handled, 0);
    assert_eq!(node.call(id, vec![0; limit]).await, Reply::Empty, "what is within the limit is handled");
}

#[tokio::test]
async fn what_a_guest_emits_over_the_limit_is_counted() {
    let node = TestNode::start().await;
    let wasteful = module_of(
        3,
        &format!("{CAST_ASM} {CALL_ASM} {DELAYED_ASM}"),
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 65537))
                (call $delayed (i64.const 0) (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 65537))
                (if (i32.ne (i32.const 2) (call $call
                        (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 65537) (i32.const 32) (i32.const 40)))
                    (then unreachable))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 65536)))"#
        ),
    );
    let id = node.start_module(&wasteful, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    assert_eq!(node.peer.next_cast().await.len(), 65536, "only what is within the limit gets out");
    assert_eq!(node.dropped("TooLarge").await, 3);
    assert_eq!(node.status(id).await.restarts, 0);
}

#[tokio::test]
async fn the_calls_to_a_removed_peer_fail_at_once() {
    let node = TestNode::with(&[("call_timeout", EVER)]).await;
    let id = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    // The peer has the call and never answers.
    assert!(matches!(node.peer.next().await.kind, Kind::Call { .. }));
    node.management.update_peers(PeerUpdate::Remove(node.peer.id.node)).await.unwrap();
    wait_until("the call failed", || async { node.status(id).await.handled == 1 }).await;
    let log = node.status(id).await.log;
    assert!(log.iter().any(|line| line.message.contains("a call brought no reply")), "{log:?}");
}

#[tokio::test]
async fn a_call_to_a_peer_that_cannot_be_reached_fails_at_once() {
    let node = TestNode::with(&[("call_timeout", EVER)]).await;
    // Nobody listens there, and nobody else can.
    let nowhere = tokio::net::TcpSocket::new_v4().unwrap();
    nowhere.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", nowhere.local_addr().unwrap()).parse().unwrap();
    let lost = InstanceId::random(NodeId::random());
    node.management.update_peers(PeerUpdate::Add(lost.node, url)).await.unwrap();
    let id = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, id, &[("out", lost)]).await;
    assert_eq!(node.call(id, "x").await, Reply::Error);
    assert_eq!(node.dropped("PeerLost").await, 1);
}

#[tokio::test]
async fn a_nested_call_ends_with_the_call_that_it_is_for() {
    let node = TestNode::with(&[("call_timeout", EVER)]).await;
    let outer = node.start_module(&forwarder(), &[]).await.unwrap();
    let inner = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, outer, &[("out", inner)]).await;
    node.patch(Function, inner, &[("out", node.peer.id)]).await;
    let time = Duration::from_secs(2);
    let pending = node.begin_call(outer, "x", Some(time)).await;
    let Kind::Call { remaining, .. } = node.peer.next().await.kind else { panic!("a call") };
    let remaining = remaining.expect("a limit");
    assert!(remaining <= time, "{remaining:?}");
    // The peer never answers: nobody waits for it longer than the first caller does.
    assert_eq!(pending.reply().await, Reply::Error);
    wait_until("both are done", || async {
        node.status(inner).await.handled == 1 && node.status(outer).await.handled == 1
    })
    .await;
}

#[tokio::test]
async fn what_is_emitted_before_the_activation_is_bounded() {
    let node = TestNode::with(&[("cpu_limit", EVER), ("emit_wait", EVER)]).await;
    let id = node.create(function(&emits_numbers(1500), &[]), context("f")).await.unwrap();
    assert_eq!(node.dropped("HeldFull").await, 1500 - 1024);
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.components.activate(&[id.function]).await.unwrap();
    assert_eq!(numbers(&node, 1024).await, (0..1024).collect::<Vec<_>>());
    assert_eq!(node.dropped("HeldFull").await, 1500 - 1024);
}

#[tokio::test]
async fn two_activations_at_once_keep_the_order() {
    let node = TestNode::with(&[("cpu_limit", EVER), ("emit_wait", EVER)]).await;
    let id = node.create(function(&emits_numbers(1000), &[]), context("f")).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    let ids = [id.function];
    let (one, two) = tokio::join!(node.components.activate(&ids), node.components.activate(&ids));
    one.unwrap();
    two.unwrap();
    assert_eq!(numbers(&node, 1000).await, (0..1000).collect::<Vec<_>>());
}

#[tokio::test]
async fn pending_delayed_casts_are_bounded() {
    let node = TestNode::with(&[("cpu_limit", EVER)]).await;
    let delay =
        repeat(5000, "(call $delayed (i64.const 100000000) (i32.const 8) (i32.const 4) (i32.const 0) (i32.const 4))");
    let patient = module(
        DELAYED_ASM,
        &format!(
            r#"{SELF} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (local $i i32) {delay})"#
        ),
    );
    let id = node.start_module(&patient, &[]).await.unwrap();
    node.cast(id, "x").await;
    wait_until("all are emitted", || async { node.status(id).await.handled == 1 }).await;
    assert_eq!(node.dropped("DelayedFull").await, 5000 - 4096);
    node.stop(Function, id).await;
    wait_until("the others are cancelled", || async { node.dropped("SenderGone").await == 4096 }).await;
}

#[tokio::test]
async fn a_cast_to_self_never_waits_for_room() {
    let node = TestNode::with(&[("cpu_limit", EVER), ("emit_wait", EVER), ("call_timeout", EVER)]).await;
    // At "x" it calls `out`, then casts to itself 70 times, then to `out`. The rest it ignores.
    let own = repeat(70, "(call $cast (i32.const 8) (i32.const 4) (i32.const 0) (i32.const 3))");
    let selfish = module(
        &format!("{CAST_ASM} {CALL_ASM}"),
        &format!(
            r#"{OUT} {SELF} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32) (param $len i32) (local $i i32)
                (if (i32.eq (local.get $len) (i32.const 1)) (then
                    (drop (call $call (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3) (i32.const 32) (i32.const 40)))
                    {own}
                    (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3)))))"#
        ),
    );
    let id = node.start_module(&selfish, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    let call = node.peer.next().await;
    // It waits for the reply while its mailbox is filled.
    for _ in 0..16 {
        node.cast(id, "full").await;
    }
    node.answer(&call, node.peer.id, Reply::Empty).await;
    assert_eq!(node.peer.next_cast().await, "out", "it did not wait");
    assert_eq!(node.dropped("SelfFull").await, 70 - 64);
    wait_until("the rest is handled", || async { node.status(id).await.handled == 1 + 16 + 64 }).await;
    assert_eq!(node.status(id).await.dropped, 70 - 64);
}

#[tokio::test]
async fn all_that_is_queued_at_a_stop_is_counted_and_answered() {
    let node = TestNode::with(&[("mailbox", "512"), ("call_timeout", EVER)]).await;
    let id = node.start_module(&forwarder(), &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "in hand").await;
    assert!(matches!(node.peer.next().await.kind, Kind::Call { .. }));
    // More than a task may do without giving way to others.
    for _ in 0..399 {
        node.cast(id, "queued").await;
    }
    let last = node.begin_call(id, "queued", None).await;
    node.stop(Function, id).await;
    assert_eq!(last.reply().await, Reply::Error);
    assert_eq!(node.dropped("Stopping").await, 400);
    assert_eq!(node.metric("events_handled_total").await, 1);
}

#[tokio::test]
async fn a_handler_that_is_cut_off_is_in_flight_no_more() {
    let node = TestNode::with(&[("cpu_limit", EVER), ("grace", "\"100ms\"")]).await;
    let busy = module(
        "",
        &format!(
            r#"{INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (loop $for_ever (br $for_ever)))"#
        ),
    );
    let id = node.start_module(&busy, &[]).await.unwrap();
    node.cast(id, "x").await;
    wait_until("it is in hand", || async { node.metric("events_in_flight").await == 1 }).await;
    node.stop(Function, id).await;
    assert_eq!(node.metric("events_in_flight").await, 0);
}

#[tokio::test]
async fn waiting_for_replies_costs_no_processor_time() {
    // All its calls take four times as long as it may run.
    let node = TestNode::with(&[("cpu_limit", "\"300ms\""), ("call_timeout", EVER)]).await;
    let ask = repeat(
        60,
        "(drop (call $call (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3) (i32.const 32) (i32.const 40)))",
    );
    let asking = module(
        CALL_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (local $i i32) {ask})"#
        ),
    );
    let id = node.start_module(&asking, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    wait_until("it is done", || async {
        if let Some(call) = node.peer.try_next().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
            node.answer(&call, node.peer.id, Reply::Empty).await;
            return false;
        }
        let status = node.status(id).await;
        assert_eq!(status.restarts, 0, "{}", status.reason);
        assert_eq!(status.state, State::Running, "{}", status.reason);
        status.handled == 1
    })
    .await;
}

#[test]
fn a_looping_start_section_is_refused_and_the_node_goes_on() {
    // On threads of its own: a guest that nobody ends would keep them, and the test with them.
    let (done, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let refusal = runtime.block_on(async {
            let node = TestNode::start().await;
            let looping = module(
                "",
                &format!("{INIT} {CAST} {CALL} {STOP} (func $begin (loop $for_ever (br $for_ever))) (start $begin)"),
            );
            let refusal = node.start_module(&looping, &[]).await.unwrap_err();
            let id = node.start_module(&sink(), &[]).await.unwrap();
            assert_eq!(node.call(id, "x").await, Reply::Empty);
            refusal
        });
        done.send(refusal).ok();
    });
    let refusal = result.recv_timeout(PATIENCE).expect("it is refused in time");
    assert!(refusal.message.contains("processor time"), "{refusal}");
}

#[tokio::test]
async fn a_trap_is_recovered_from_also_when_there_is_room_for_no_other_instance() {
    let node = TestNode::with(&[("max_instances", "1")]).await;
    let trapping = module(
        "",
        &format!(r#"{INIT} {CALL} {STOP} (func (export "handle_cast_asm") (param i32 i32 i32 i32) unreachable)"#),
    );
    let id = node.start_module(&trapping, &[]).await.unwrap();
    for restarts in 1..=2 {
        node.cast(id, "x").await;
        wait_until("it is restarted", || async {
            let status = node.status(id).await;
            assert!(status.reason.is_empty() || status.reason.contains("unreachable"), "{}", status.reason);
            status.restarts == restarts && status.state == State::Running
        })
        .await;
        assert_eq!(node.call(id, "x").await, Reply::Empty);
    }
}

#[tokio::test]
async fn a_start_beyond_max_instances_is_refused_with_its_key() {
    let node = TestNode::with(&[("max_instances", "1")]).await;
    let id = node.start_module(&sink(), &[]).await.unwrap();
    let error = node.start_module(&sink(), &[]).await.unwrap_err();
    assert!(error.message.contains("max_instances"), "{error}");
    assert_eq!(error.code, Code::Exhausted, "{error}");
    node.stop(Function, id).await;
    node.start_module(&sink(), &[]).await.expect("a stop makes room");
}

#[tokio::test]
async fn a_guest_that_begins_with_too_much_memory_is_refused_with_the_key() {
    let node = TestNode::start().await;
    let largest = module_of(64, "", &format!("{INIT} {CAST} {CALL} {STOP}"));
    node.start_module(&largest, &[]).await.expect("4 MiB are the limit");
    let greedy = module_of(65, "", &format!("{INIT} {CAST} {CALL} {STOP}"));
    let error = node.start_module(&greedy, &[]).await.unwrap_err();
    assert!(error.message.contains("wasm_runtime.memory_limit"), "{error}");
}

#[tokio::test]
async fn a_refused_start_leaves_nothing_behind() {
    let node = TestNode::with(&[("cpu_limit", EVER)]).await;
    let delay =
        repeat(100, "(call $delayed (i64.const 100000000) (i32.const 8) (i32.const 4) (i32.const 0) (i32.const 4))");
    let trapping = module(
        DELAYED_ASM,
        &format!(
            r#"{SELF} {CAST} {CALL} {STOP}
            (func (export "handle_init_asm") (param i32 i32 i32 i32) (local $i i32) {delay} unreachable)"#
        ),
    );
    for _ in 0..5 {
        node.start_module(&trapping, &[]).await.unwrap_err();
    }
    wait_until("the delayed casts are cancelled", || async { node.dropped("SenderGone").await == 500 }).await;
    assert_eq!(node.metric("function_count{").await, 0);
    let metrics = node.metrics().await;
    assert!(!metrics.contains("function_id="), "{metrics}");
}

#[tokio::test]
async fn a_stop_leaves_no_series_and_counts_what_was_held() {
    let node = TestNode::start().await;
    let id = node.create(function(&emits_numbers(3), &[]), context("f")).await.unwrap();
    assert_eq!(node.metric("function_count{").await, 1);
    node.stop(Function, id).await;
    wait_until("it is counted no more", || async { node.metric("function_count{").await == 0 }).await;
    wait_until("what was held is counted", || async { node.dropped("SenderGone").await == 3 }).await;
    let metrics = node.metrics().await;
    assert!(!metrics.contains("function_id="), "{metrics}");
}

/// Gives a start up once its guest is being initialised, which it tells by saving its state.
async fn abandon(node: &TestNode, start: impl Future<Output = Result<InstanceId, edgeless_api::Error>>) {
    let file = edgeless_node::records::file(&node.directory.path().join("state"), node.id());
    let records = || std::fs::read(&file).unwrap();
    let before = records();
    let initialising = wait_until("it is being initialised", || async { records() != before });
    tokio::select! {
        biased;
        () = initialising => {}
        started = start => panic!("it was too quick: {started:?}"),
    }
}

#[tokio::test]
async fn a_start_that_its_client_gave_up_keeps_no_place() {
    let node = TestNode::with(&[("components", "1"), ("max_instances", "1"), ("cpu_limit", "\"2s\"")]).await;
    let endless = module(
        SYNC_ASM,
        &format!(
            r#"{CAST} {CALL} {STOP}
            (func (export "handle_init_asm") (param i32 i32 i32 i32)
                (call $sync (i32.const 0) (i32.const 1))
                (loop $for_ever (br $for_ever)))"#
        ),
    );
    abandon(&node, node.create(function(&endless, &[]), context("abandoned"))).await;
    wait_until("another has its place", || async { node.create(function(&sink(), &[]), context("f")).await.is_ok() })
        .await;
    assert_eq!(node.metric("function_count{").await, 1);
}

#[tokio::test]
async fn a_start_that_its_client_gave_up_can_be_repeated() {
    let node = TestNode::with(&[("cpu_limit", EVER)]).await;
    // Slow only without a state: the first time.
    let work = repeat(300_000_000, "");
    let slow = module(
        SYNC_ASM,
        &format!(
            r#"{CAST} {CALL} {STOP}
            (func (export "handle_init_asm") (param i32 i32 i32) (param $len i32) (local $i i32)
                (if (i32.eqz (local.get $len)) (then
                    (call $sync (i32.const 0) (i32.const 1))
                    {work})))"#
        ),
    );
    let (spec, placed) = (function(&slow, &[]), context("repeated"));
    abandon(&node, node.create(spec.clone(), placed.clone())).await;
    let id = node.create(spec.clone(), placed.clone()).await.unwrap();
    assert_eq!(node.create(spec, placed).await.unwrap(), id);
    node.components.activate(&[id.function]).await.unwrap();
    assert_eq!(node.call(id, "x").await, Reply::Empty);
    wait_until("only one is left", || async { node.metric("function_count{").await == 1 }).await;
}

/// Two that call each other wait for each other: until the time of the call is up, and no longer.
#[tokio::test]
async fn a_cycle_of_calls_ends_with_an_error() {
    let node = TestNode::with(&[("call_timeout", "\"200ms\"")]).await;
    let (one, other) =
        (node.start_module(&forwarder(), &[]).await.unwrap(), node.start_module(&forwarder(), &[]).await.unwrap());
    node.patch(Function, one, &[("out", other)]).await;
    node.patch(Function, other, &[("out", one)]).await;
    assert_eq!(node.call(one, "x").await, Reply::Error);
    wait_until("nothing is left of it", || async { node.metric("events_in_flight").await == 0 }).await;
    node.patch(Function, other, &[]).await;
    assert_eq!(node.call(one, "x").await, Reply::Error, "its target traps for want of an output");
    wait_until("both run again", || async {
        node.status(one).await.state == State::Running && node.status(other).await.state == State::Running
    })
    .await;
}

//! The interface between host and guest, against modules written by hand: not with our SDK, so that
//! each side is checked on its own.

use bytes::Bytes;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::event::{Kind, Reply};
use edgeless_api::status::{Level, State};

use super::support::{TestNode, context, function, wait_until};

/// A module with everything that a host needs; `body` holds its handlers and what they need.
///
/// Memory: 0 to 1 KiB is scratch for the tests, from 1 KiB on the guest hands out what is asked for
/// and starts again at each clear.
pub(crate) fn module(imports: &str, body: &str) -> Vec<u8> {
    module_of(1, imports, body)
}

/// The same with so many pages of memory.
pub(crate) fn module_of(pages: u32, imports: &str, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            {imports}
            (memory (export "memory") {pages})
            (global $top (mut i32) (i32.const 1024))
            (func $alloc (export "edgeless_mem_alloc") (param $len i32) (result i32)
                (local $at i32)
                (local.set $at (global.get $top))
                (global.set $top (i32.add (global.get $top) (i32.and (i32.add (local.get $len) (i32.const 7)) (i32.const -8))))
                (local.get $at))
            (func (export "edgeless_mem_free") (param i32 i32))
            (func (export "edgeless_mem_clear") (global.set $top (i32.const 1024)))
            {body})"#
    );
    wat::parse_str(text).unwrap()
}

pub(crate) const INIT: &str = r#"(func (export "handle_init_asm") (param i32 i32 i32 i32))"#;
pub(crate) const CAST: &str = r#"(func (export "handle_cast_asm") (param i32 i32 i32 i32))"#;
pub(crate) const CALL: &str =
    r#"(func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))"#;
pub(crate) const STOP: &str = r#"(func (export "handle_stop_asm"))"#;

pub(crate) const CAST_ASM: &str = r#"(import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))"#;
const LOG: &str = r#"(import "env" "telemetry_log_asm" (func $log (param i32 i32 i32 i32 i32)))"#;
/// The output `out`, at 0.
pub(crate) const OUT: &str = r#"(data (i32.const 0) "out")"#;

#[tokio::test]
async fn a_cast_hands_over_source_and_payload() {
    let node = TestNode::start().await;
    // Emits the 16 bytes of the node, the 16 bytes of the component and the payload on `out`.
    let echo = module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param $node i32) (param $component i32) (param $payload i32) (param $len i32)
                (memory.copy (i32.const 64) (local.get $node) (i32.const 16))
                (memory.copy (i32.const 80) (local.get $component) (i32.const 16))
                (memory.copy (i32.const 96) (local.get $payload) (local.get $len))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 64) (i32.add (local.get $len) (i32.const 32))))"#
        ),
    );
    let id = node.start_module(&echo, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    // Not text, which the interface never asks of a payload.
    node.cast(id, vec![0xff, 0x00, 0xfe]).await;
    let got = node.peer.next_cast().await;
    assert_eq!(&got[..16], node.peer.id.node.0.as_bytes());
    assert_eq!(&got[16..32], node.peer.id.function.as_bytes());
    assert_eq!(&got[32..], [0xff, 0x00, 0xfe]);
}

#[tokio::test]
async fn an_empty_payload_has_length_zero_and_a_pointer_that_is_not_null() {
    let node = TestNode::start().await;
    let check = module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 $payload i32) (param $len i32)
                (if (i32.or (i32.eqz (local.get $payload)) (local.get $len)) (then unreachable))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 0)))"#
        )
        .replace("(param i32 i32 $payload i32)", "(param i32) (param i32) (param $payload i32)"),
    );
    let id = node.start_module(&check, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, Bytes::new()).await;
    assert_eq!(node.peer.next_cast().await, Bytes::new());
}

/// Answers a call with its own payload; `len_first` poisons the memory behind the length's cell
/// first, which a host that stores 8 bytes would spoil.
#[tokio::test]
async fn a_call_is_answered_with_what_the_guest_points_at() {
    let node = TestNode::start().await;
    let echo = module(
        "",
        &format!(
            r#"{INIT} {CAST} {STOP}
            (func (export "handle_call_asm")
                (param $node i32) (param $component i32) (param $payload i32) (param $len i32)
                (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (local.get $payload))
                (i32.store (local.get $out_len) (local.get $len))
                (i32.const 1))"#
        ),
    );
    let id = node.start_module(&echo, &[]).await.unwrap();
    assert_eq!(node.call(id, "ping").await, Reply::Message(Bytes::from_static(b"ping")));
    assert_eq!(node.call(id, "").await, Reply::Message(Bytes::new()));
}

#[tokio::test]
async fn results_of_a_call_are_none_reply_and_error() {
    let node = TestNode::start().await;
    let result = |code: i32| {
        module(
            "",
            &format!(
                r#"{INIT} {CAST} {STOP}
                (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const {code}))"#
            ),
        )
    };
    for (code, expected) in [(0, Reply::Empty), (2, Reply::Error), (-7, Reply::Error)] {
        let id = node.start_module(&result(code), &[]).await.unwrap();
        assert_eq!(node.call(id, "x").await, expected, "result {code}");
        assert_eq!(node.status(id).await.state, State::Running, "an error is no failure of the instance");
    }
}

#[tokio::test]
async fn a_call_of_the_guest_brings_the_reply_in_memory_that_the_guest_allocated() {
    let node = TestNode::start().await;
    // Poisons the 8 bytes from the cell of the length on, calls `out` with its payload, checks that
    // only 4 of them were written, and emits the reply on `out`.
    let caller = module(
        r#"(import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
           (import "env" "call_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32) (param i32) (param $payload i32) (param $len i32)
                (i64.store (i32.const 40) (i64.const -1))
                (if (i32.ne (i32.const 1) (call $call
                        (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len) (i32.const 32) (i32.const 40)))
                    (then unreachable))
                (if (i32.ne (i32.load (i32.const 44)) (i32.const -1)) (then unreachable))
                (call $cast (i32.const 0) (i32.const 3) (i32.load (i32.const 32)) (i32.load (i32.const 40))))"#
        ),
    );
    let answerer = module(
        "",
        &format!(
            r#"{INIT} {CAST} {STOP}
            (data (i32.const 16) "pong")
            (func (export "handle_call_asm") (param i32 i32 i32 i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (i32.const 16))
                (i32.store (local.get $out_len) (i32.const 4))
                (i32.const 1))"#
        ),
    );
    let answerer = node.start_module(&answerer, &[]).await.unwrap();
    let caller = node.start_module(&caller, &[]).await.unwrap();
    // First to a function on the same node, whose answer must not show in what is emitted next.
    node.patch(Function, caller, &[("out", answerer)]).await;
    node.cast(caller, "ping").await;
    wait_until("the answerer was called and cast to", || async { node.status(answerer).await.handled == 2 }).await;
    assert_eq!(node.status(caller).await.state, State::Running);
    assert_eq!(node.status(caller).await.restarts, 0, "{:?}", node.status(caller).await.log);
}

#[tokio::test]
async fn init_gets_payload_and_state_or_null_where_absent() {
    let node = TestNode::start().await;
    // Emits its four parameters as numbers, then the payload.
    let check = module(
        CAST_ASM,
        &format!(
            r#"{OUT} {CAST} {CALL} {STOP}
            (func (export "handle_init_asm") (param $payload i32) (param $len i32) (param $state i32) (param $state_len i32)
                (i32.store (i32.const 64) (local.get $len))
                (i32.store (i32.const 68) (local.get $state))
                (i32.store (i32.const 72) (local.get $state_len))
                (memory.copy (i32.const 76) (local.get $payload) (local.get $len))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 64) (i32.add (local.get $len) (i32.const 12))))"#
        ),
    );
    // What init emits is held until the outputs are known.
    let id = node.create(function(&check, &[("init-payload", "hello")]), context("f")).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    assert!(node.peer.try_next().await.is_none(), "nothing is emitted before the activation");
    node.components.activate(&[id.function]).await.unwrap();
    let got = node.peer.next_cast().await;
    assert_eq!(&got[..12], [5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&got[12..], b"hello");
}

#[tokio::test]
async fn saved_state_comes_back_after_a_trap() {
    let node = TestNode::start().await;
    // A cast saves its payload, an empty one traps; a call is answered with what init was given.
    let keeper = module(
        r#"(import "env" "sync_asm" (func $sync (param i32 i32)))"#,
        &format!(
            r#"{STOP}
            (func (export "handle_init_asm") (param i32 i32) (param $state i32) (param $len i32)
                (i32.store (i32.const 0) (local.get $len))
                (memory.copy (i32.const 16) (local.get $state) (local.get $len)))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (if (i32.eqz (local.get $len)) (then unreachable))
                (call $sync (local.get $payload) (local.get $len)))
            (func (export "handle_call_asm") (param i32 i32 i32 i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (i32.const 16))
                (i32.store (local.get $out_len) (i32.load (i32.const 0)))
                (i32.const 1))"#
        ),
    );
    let id = node.start_module(&keeper, &[]).await.unwrap();
    assert_eq!(node.call(id, "").await, Reply::Message(Bytes::new()));
    node.cast(id, vec![1, 0xff]).await;
    node.cast(id, "").await;
    // Queued behind the trap: the mailbox survives it.
    assert_eq!(node.call(id, "").await, Reply::Message(Bytes::from_static(&[1, 0xff])));
    let status = node.status(id).await;
    assert_eq!((status.state, status.restarts), (State::Running, 1));
    assert!(status.reason.contains("unreachable"), "{}", status.reason);
}

#[tokio::test]
async fn logs_keep_level_target_and_text() {
    let node = TestNode::start().await;
    let logger = module(
        LOG,
        &format!(
            r#"{INIT} {CALL} {STOP}
            (data (i32.const 0) "target")
            (data (i32.const 16) "it happened")
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (call $log (i32.const 2) (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 11))
                (call $log (i32.const 9) (i32.const 0) (i32.const 6) (i32.const 16) (i32.const 11)))"#
        ),
    );
    let id = node.start_module(&logger, &[]).await.unwrap();
    node.cast(id, "x").await;
    wait_until("three lines are logged", || async { node.status(id).await.log.len() == 3 }).await;
    let log = node.status(id).await.log;
    assert_eq!((log[0].level, log[0].target.as_str(), log[0].message.as_str()), (Level::Warn, "target", "it happened"));
    assert!(log[1].message.contains("9 is not a log level"));
    assert_eq!(log[2].level, Level::Error, "an unknown level is an error");
}

#[tokio::test]
async fn slf_is_who_events_come_from() {
    let node = TestNode::start().await;
    let teller = module(
        &format!(r#"{CAST_ASM} (import "env" "slf_asm" (func $slf (param i32 i32)))"#),
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (call $slf (i32.const 64) (i32.const 80))
                (call $cast (i32.const 0) (i32.const 3) (i32.const 64) (i32.const 32)))"#
        ),
    );
    let id = node.start_module(&teller, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.cast(id, "x").await;
    let event = node.peer.next().await;
    assert_eq!(event.source, id);
    let Kind::Cast(payload) = event.kind else { panic!("a cast") };
    assert_eq!(&payload[..16], id.node.0.as_bytes());
    assert_eq!(&payload[16..], id.function.as_bytes());
}

#[tokio::test]
async fn raw_casts_and_calls_reach_an_instance_by_its_id() {
    let node = TestNode::start().await;
    // Calls back whoever casts to it, and casts the reply there too.
    let back = module(
        r#"(import "env" "cast_raw_asm" (func $cast (param i32 i32 i32 i32)))
           (import "env" "call_raw_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        &format!(
            r#"{INIT} {STOP}
            (func (export "handle_cast_asm") (param $node i32) (param $component i32) (param $payload i32) (param $len i32)
                (i32.store (i32.const 0) (call $call
                    (local.get $node) (local.get $component) (local.get $payload) (local.get $len) (i32.const 32) (i32.const 40)))
                (call $cast (local.get $node) (local.get $component) (i32.const 0) (i32.const 4)))
            {CALL}"#
        ),
    );
    let id = node.start_module(&back, &[]).await.unwrap();
    // The fake peer never answers: the call ends with an error at its deadline, the cast follows.
    node.cast(id, "hello").await;
    let event = node.peer.next().await;
    assert!(matches!(&event.kind, Kind::Call { payload, .. } if payload == "hello"), "{event:?}");
    assert_eq!(event.target, node.peer.id);
    assert_eq!(node.peer.next_cast().await, Bytes::from_static(&[2, 0, 0, 0]), "a call without an answer is an error");
}

#[tokio::test]
async fn a_delayed_cast_to_self_needs_no_mapping() {
    let node = TestNode::start().await;
    let later = module(
        &format!(r#"{CAST_ASM} (import "env" "delayed_cast_asm" (func $delayed (param i64 i32 i32 i32 i32)))"#),
        &format!(
            r#"{OUT} {CALL} {STOP}
            (data (i32.const 8) "self")
            (func (export "handle_init_asm") (param i32 i32 i32 i32)
                (call $delayed (i64.const 10) (i32.const 8) (i32.const 4) (i32.const 0) (i32.const 3)))
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))"#
        ),
    );
    let id = node.create(function(&later, &[]), context("f")).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.components.activate(&[id.function]).await.unwrap();
    assert_eq!(node.peer.next_cast().await, "out");
}

#[tokio::test]
async fn an_unmapped_output_loses_casts_and_traps_calls() {
    let node = TestNode::start().await;
    let casting = module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3)))"#
        ),
    );
    let casting = node.start_module(&casting, &[]).await.unwrap();
    node.cast(casting, "x").await;
    wait_until("the cast is handled", || async { node.status(casting).await.handled == 1 }).await;
    assert_eq!(node.status(casting).await.restarts, 0);
    assert!(node.metrics().await.contains("events_dropped_total{cause=\"Unmapped\"} 1"));

    let calling = module(
        r#"(import "env" "call_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (drop (call $call (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3) (i32.const 32) (i32.const 40))))"#
        ),
    );
    let calling = node.start_module(&calling, &[]).await.unwrap();
    node.cast(calling, "x").await;
    wait_until("the trap is seen", || async { node.status(calling).await.restarts == 1 }).await;
    assert!(node.status(calling).await.reason.contains("the output 'out' leads nowhere"));
}

#[tokio::test]
async fn bad_code_is_refused_with_the_reason() {
    let node = TestNode::start().await;
    let refusal = async |module: &[u8]| node.start_module(module, &[]).await.unwrap_err().message;
    let text = refusal(b"this is not WebAssembly").await;
    assert!(text.contains("the code is not a WebAssembly module"), "{text}");
    let text = refusal(b"").await;
    assert!(text.contains("comes without code"), "{text}");
    let text = refusal(&module("", &format!("{INIT} {CAST} {CALL}"))).await;
    assert!(text.contains("does not export 'handle_stop_asm'"), "{text}");
    let two_params = r#"(func (export "handle_stop_asm") (param i32))"#;
    let text = refusal(&module("", &format!("{INIT} {CAST} {CALL} {two_params}"))).await;
    assert!(text.contains("'handle_stop_asm' with another type"), "{text}");
    let unknown = r#"(import "env" "launch_missiles" (func))"#;
    let text = refusal(&module(unknown, &format!("{INIT} {CAST} {CALL} {STOP}"))).await;
    assert!(text.contains("imports what this node does not offer") && text.contains("launch_missiles"), "{text}");
    let trapping = r#"(func $explode (export "handle_init_asm") (param i32 i32 i32 i32) unreachable)"#;
    let text = refusal(&module("", &format!("{trapping} {CAST} {CALL} {STOP}"))).await;
    assert!(text.contains("its initialisation failed") && text.contains("explode"), "{text}");
    // A page more than the 4 MiB that the node allows.
    let greedy = module_of(65, "", &format!("{INIT} {CAST} {CALL} {STOP}"));
    let text = refusal(&greedy).await;
    assert!(text.contains("memory"), "{text}");
}

/// What a hostile or broken guest does in its cast handler, and what its status must then say.
#[tokio::test]
async fn a_broken_guest_harms_only_itself() {
    let node = TestNode::start().await;
    let healthy = module(
        "",
        &format!(
            r#"{INIT} {CAST} {STOP}
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))"#
        ),
    );
    let healthy = node.start_module(&healthy, &[]).await.unwrap();
    let cases = [
        ("(loop $for_ever (br $for_ever))", "processor time"),
        ("(call $deeper)", "call stack exhausted"),
        ("unreachable", "unreachable"),
        ("(call $cast (i32.const -8) (i32.const 64) (i32.const 0) (i32.const 3))", "out of its memory"),
        ("(call $cast (i32.const 0) (i32.const 3) (i32.const 65530) (i32.const 1000))", "out of its memory"),
        ("(call $cast (i32.const 0) (i32.const 100000) (i32.const 0) (i32.const 1))", "256 is the limit"),
        (
            "(i32.store8 (i32.const 0) (i32.const 255)) (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 1))",
            "not UTF-8",
        ),
        ("(if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))", "memory_limit"),
    ];
    for (body, expected) in cases {
        let bad = module(
            CAST_ASM,
            &format!(
                r#"{OUT} {INIT} {CALL} {STOP}
                (func $deeper (call $deeper))
                (func $handle (export "handle_cast_asm") (param i32 i32 i32 i32) {body})"#
            ),
        );
        let bad = node.start_module(&bad, &[]).await.unwrap();
        node.cast(bad, "x").await;
        wait_until("it is restarted", || async { node.status(bad).await.restarts == 1 }).await;
        let status = node.status(bad).await;
        assert!(status.reason.contains(expected), "{body}: {}", status.reason);
        assert_eq!(node.call(healthy, "x").await, Reply::Empty, "beside {body}");
        node.stop(Function, bad).await;
    }
}

#[tokio::test]
async fn a_looping_guest_does_not_keep_others_from_running() {
    let node = TestNode::start().await;
    let looping = module(
        "",
        &format!(
            r#"{INIT} {CALL} {STOP}
        (func (export "handle_cast_asm") (param i32 i32 i32 i32) (loop $for_ever (br $for_ever)))"#
        ),
    );
    // More of them than threads.
    let mut loops = Vec::new();
    for _ in 0..4 {
        let id = node.start_module(&looping, &[]).await.unwrap();
        node.cast(id, "x").await;
        loops.push(id);
    }
    let working = module("", &format!("{INIT} {CAST} {CALL} {STOP}"));
    let working = node.start_module(&working, &[]).await.unwrap();
    assert_eq!(node.call(working, "x").await, Reply::Empty);
    wait_until("all loops were ended", || async {
        let ended = node.components.status(&loops.iter().map(|id| id.function).collect::<Vec<_>>()).await.unwrap();
        ended.iter().all(|status| status.restarts >= 1)
    })
    .await;
}

#[tokio::test]
async fn what_keeps_breaking_is_failed_and_answers_with_errors() {
    let node = TestNode::start().await;
    let bad = module(
        "",
        &format!(
            r#"{INIT} {STOP} {CAST}
        (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) unreachable)"#
        ),
    );
    let bad = node.start_module(&bad, &[]).await.unwrap();
    wait_until("it is failed", || async {
        assert_eq!(node.call(bad, "x").await, Reply::Error);
        node.status(bad).await.state == State::Failed
    })
    .await;
    assert_eq!(node.call(bad, "x").await, Reply::Error);
    assert!(node.status(bad).await.reason.contains("unreachable"));
}

#[tokio::test]
async fn stop_runs_the_stop_handler() {
    let node = TestNode::start().await;
    let polite = module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CAST} {CALL}
            (func (export "handle_stop_asm") (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3)))"#
        ),
    );
    let id = node.start_module(&polite, &[]).await.unwrap();
    node.patch(Function, id, &[("out", node.peer.id)]).await;
    node.stop(Function, id).await;
    assert_eq!(node.peer.next_cast().await, "out");
    assert!(node.components.status(&[id.function]).await.unwrap().is_empty());
}

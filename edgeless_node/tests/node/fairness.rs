//! Guests that take all they can get, and what is left for the others.

use std::time::{Duration, Instant};

use edgeless_api::InstanceId;
use edgeless_api::event::Reply;
use edgeless_api::status::State;

use super::guest_abi::{CALL, CAST, INIT, STOP, module};
use super::support::{TestNode, wait_until};

/// Never ends what it begins.
fn endless() -> Vec<u8> {
    module(
        "",
        &format!(
            r#"{INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32 i32 i32) (loop $for_ever (br $for_ever)))"#
        ),
    )
}

fn sink() -> Vec<u8> {
    module("", &format!("{INIT} {CAST} {CALL} {STOP}"))
}

/// How many calls are answered in a while, one after the other.
async fn calls(node: &TestNode, id: InstanceId) -> f64 {
    let began = Instant::now();
    let mut count = 0.0;
    while began.elapsed() < Duration::from_millis(300) {
        assert_eq!(node.call(id, "x").await, Reply::Empty);
        count += 1.0;
    }
    count / began.elapsed().as_secs_f64()
}

/// A rate says something only beside another that was measured a moment before, on a machine that did
/// nothing else meanwhile: so this is tried until it holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_working_guest_keeps_its_rate_beside_a_looping_one() {
    let mut best: f64 = 0.0;
    for _ in 0..20 {
        let node = TestNode::with(&[("cpu_limit", "\"60s\"")]).await;
        let working = node.start_module(&sink(), &[]).await.unwrap();
        calls(&node, working).await;
        let alone = calls(&node, working).await;
        let looping = node.start_module(&endless(), &[]).await.unwrap();
        node.cast(looping, "go").await;
        wait_until("it loops", || async { node.metric("events_in_flight").await == 1 }).await;
        // It is found out at the end of its slice.
        calls(&node, working).await;
        best = best.max(calls(&node, working).await / alone);
        assert_eq!(node.status(looping).await.handled, 0, "it has looped all the time");
        node.kill().await;
        if best >= 0.8 {
            return;
        }
    }
    panic!("beside a looping guest it kept {best:.2} of its rate at best");
}

#[tokio::test]
async fn a_guest_that_loops_in_the_background_is_stopped_by_its_limit_and_by_a_stop() {
    let node = TestNode::with(&[("cpu_limit", "\"100ms\"")]).await;
    let id = node.start_module(&endless(), &[]).await.unwrap();
    node.cast(id, "go").await;
    wait_until("it has used up its time", || async { node.status(id).await.restarts == 1 }).await;
    assert!(node.status(id).await.reason.contains("cpu_limit"), "{}", node.status(id).await.reason);
    wait_until("it runs again", || async { node.status(id).await.state == State::Running }).await;
    assert_eq!(node.call(id, "x").await, Reply::Empty);

    let node = TestNode::with(&[("cpu_limit", "\"60s\""), ("grace", "\"50ms\"")]).await;
    let id = node.start_module(&endless(), &[]).await.unwrap();
    node.cast(id, "go").await;
    wait_until("it loops", || async { node.metric("events_in_flight").await == 1 }).await;
    node.stop(edgeless_api::component::ComponentKind::Function, id).await;
    assert_eq!(node.metric("function_count{").await, 0, "a stop does not wait for it");
    // Its place is free once its thread has let go of it.
    wait_until("another takes its place", || async { node.start_module(&sink(), &[]).await.is_ok() }).await;
}

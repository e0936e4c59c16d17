//! Components that move, have several instances, or are started by their first event: what a node does to
//! lose nothing, and what it asks of its orchestrator.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeless_api::component::ComponentKind::Function;
use edgeless_api::component::{Patch, Row, StartContext, Target};
use edgeless_api::event::{Kind, Reply};
use edgeless_api::node::{InstanceLoad, PeerUpdate, Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::status::OutputBooks;
use edgeless_api::{Code, ComponentId, Error, InstanceId, NodeId, Url};
use edgeless_daemon::listen;
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::guest_abi::{CALL, CAST, CAST_ASM, INIT, OUT, STOP, module};
use super::support::{TestNode, context, function, wait_until};

/// Longer than any test waits.
const EVER: &str = "\"60s\"";
const GRACE: Duration = Duration::from_secs(20);

/// Counts what is cast to it, goes on from its state, and saves the count when it is stopped; a call is
/// answered with the count, in 4 bytes.
fn counter() -> Vec<u8> {
    module(
        r#"(import "env" "sync_asm" (func $sync (param i32 i32)))"#,
        r#"(func (export "handle_init_asm") (param i32 i32) (param $state i32) (param $len i32)
                (memory.copy (i32.const 16) (local.get $state) (local.get $len)))
            (func (export "handle_cast_asm") (param i32 i32 i32 i32)
                (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1))))
            (func (export "handle_call_asm") (param i32 i32 i32 i32) (param $out i32) (param $out_len i32) (result i32)
                (i32.store (local.get $out) (i32.const 16))
                (i32.store (local.get $out_len) (i32.const 4))
                (i32.const 1))
            (func (export "handle_stop_asm") (call $sync (i32.const 16) (i32.const 4)))"#,
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

/// Passes on each cast on the output `out`.
fn relay() -> Vec<u8> {
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))"#
        ),
    )
}

/// Calls on the output `out` whenever it is called, and answers with what it is answered.
fn caller() -> Vec<u8> {
    module(
        r#"(import "env" "call_asm" (func $call (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        &format!(
            r#"{OUT} {INIT} {CAST} {STOP}
            (func (export "handle_call_asm") (param i32 i32) (param $payload i32) (param $len i32)
                    (param $reply i32) (param $reply_len i32) (result i32)
                (call $call (i32.const 0) (i32.const 3)
                    (local.get $payload) (local.get $len) (local.get $reply) (local.get $reply_len)))"#
        ),
    )
}

/// Passes on each cast on the output `out`, and saves something when it is stopped.
fn saving_relay() -> Vec<u8> {
    module(
        r#"(import "env" "cast_asm" (func $cast (param i32 i32 i32 i32)))
        (import "env" "sync_asm" (func $sync (param i32 i32)))"#,
        &format!(
            r#"{OUT} {INIT} {CALL}
            (func (export "handle_cast_asm") (param i32 i32) (param $payload i32) (param $len i32)
                (call $cast (i32.const 0) (i32.const 3) (local.get $payload) (local.get $len)))
            (func (export "handle_stop_asm") (call $sync (i32.const 0) (i32.const 3)))"#
        ),
    )
}

/// Casts what is cast to it back to whoever sent it.
fn mirror() -> Vec<u8> {
    module(
        r#"(import "env" "cast_raw_asm" (func $raw (param i32 i32 i32 i32)))"#,
        &format!(
            r#"{INIT} {CALL} {STOP}
            (func (export "handle_cast_asm") (param $node i32) (param $component i32) (param $payload i32) (param $len i32)
                (call $raw (local.get $node) (local.get $component) (local.get $payload) (local.get $len)))"#
        ),
    )
}

/// Casts on `out` when it is called, and handles a cast without a word.
fn asker() -> Vec<u8> {
    module(
        CAST_ASM,
        &format!(
            r#"{OUT} {INIT} {CAST} {STOP}
            (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32)
                (call $cast (i32.const 0) (i32.const 3) (i32.const 0) (i32.const 3))
                (i32.const 0))"#
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

/// An orchestrator that takes note of what it is told and asked.
#[derive(Default)]
struct Above {
    registrations: Mutex<Vec<Registration>>,
    woken: Mutex<Vec<ComponentId>>,
    asked: Mutex<Vec<NodeId>>,
    nodes: Mutex<HashMap<NodeId, Url>>,
}

#[async_trait]
impl NodeRegistry for Above {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        self.registrations.lock().unwrap().push(node);
        // No test waits for the next one.
        Ok(Registered::new(Some(Duration::from_secs(600))))
    }

    async fn wake(&self, components: Vec<ComponentId>) -> Result<(), Error> {
        self.woken.lock().unwrap().extend(components);
        Ok(())
    }

    async fn locate(&self, node: NodeId) -> Result<Option<Url>, Error> {
        self.asked.lock().unwrap().push(node);
        Ok(self.nodes.lock().unwrap().get(&node).cloned())
    }
}

impl Above {
    /// An orchestrator, and a node that knows it.
    async fn start() -> (Arc<Self>, TestNode) {
        let above = Arc::new(Self::default());
        let (listener, url) = listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
        let server = Server::new(edgeless_api::Limits::default(), CancellationToken::new());
        tokio::spawn(server.node_registry(above.clone()).serve(listener));
        let node = TestNode::with(&[("orchestrator_url", &format!("\"{url}\"")), ("emit_wait", EVER)]).await;
        (above, node)
    }
}

/// Where components run that are on these nodes.
fn row(component: ComponentId, epoch: u64, instances: &[InstanceId], nodes: &[&TestNode]) -> Row {
    let addresses = nodes.iter().map(|node| (node.id(), node.invocation_url().clone())).collect();
    Row { addresses, ..Row::new(component, epoch, instances.to_vec()) }
}

fn on_its_way(component: ComponentId, epoch: u64) -> Row {
    Row { moving: true, ..Row::new(component, epoch, Vec::new()) }
}

/// A node that waits only for what is on its way.
async fn impatient() -> TestNode {
    TestNode::with(&[("emit_wait", "\"50ms\""), ("call_timeout", EVER), ("cpu_limit", EVER)]).await
}

/// Waits until an event that was sent now has waited in vain for a component that runs nowhere: whatever was
/// sent before has waited longer than that.
async fn outlast_the_wait_for_others(node: &TestNode) {
    let from = node.start_module(&relay(), &[]).await.unwrap();
    lead_to(node, from, row(ComponentId::random(), 1, &[], &[])).await;
    node.cast(from, "in vain").await;
    wait_until("it is lost", async || books(node, from).await.dropped.get("NoInstance") == Some(&1)).await;
}

async fn lead_to(node: &TestNode, from: InstanceId, row: Row) {
    let outputs = BTreeMap::from([("out".to_string(), Target::Row(row))]);
    node.components.patch(Function, Patch::new(from.function, outputs)).await.unwrap();
}

async fn books(node: &TestNode, id: InstanceId) -> OutputBooks {
    let outputs = node.status(id).await.outputs;
    outputs.into_iter().find(|books| books.output == "out").unwrap_or_default()
}

async fn count(node: &TestNode, id: InstanceId) -> u32 {
    let Reply::Message(count) = node.call(id, "").await else { panic!("it does not answer") };
    u32::from_le_bytes(count[..].try_into().unwrap())
}

async fn create(node: &TestNode, code: &[u8], context: StartContext) -> InstanceId {
    let id = node.create(function(code, &[]), context).await.unwrap();
    node.components.activate(&[id.function]).await.unwrap();
    id
}

/// Nobody tells the two nodes of each other: the addresses in the rows have to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_component_that_moves_under_load_takes_its_state_along_and_loses_nothing() {
    let (here, there) = (TestNode::with(&[("emit_wait", EVER)]).await, TestNode::with(&[("emit_wait", EVER)]).await);
    let from = here.start_module(&fountain(), &[]).await.unwrap();
    let at_first = context("counter");
    let (component, mut state, mut expected) = (at_first.component, None, 0);
    let mut place = (&here, &there);
    for turn in 0..4_u64 {
        let (node, next) = place;
        let context = StartContext { epoch: 2 * turn + 1, state: state.take(), ..at_first.clone() };
        let id = create(node, &counter(), context).await;
        let now = row(component, 2 * turn + 1, &[id], &[node]);
        match turn {
            0 => lead_to(&here, from, now).await,
            _ => here.components.set_rows(vec![now.clone()]).await.unwrap(),
        }
        // The other one passes on what still comes for the instance before.
        there.components.set_rows(vec![row(component, 2 * turn + 1, &[id], &[node])]).await.unwrap();
        for _ in 0..3 {
            here.cast(from, "go").await;
        }
        expected += 3000;
        let halfway = expected - 1500;
        wait_until("it is in the middle of it", || async { books(&here, from).await.handled > halfway }).await;
        for node in [&here, &there] {
            node.components.set_rows(vec![row(component, 2 * turn + 2, &[], &[])]).await.unwrap();
        }
        state = node.components.release(id.function, GRACE).await.unwrap();
        assert!(state.is_some(), "its stop handler saves the count");
        assert_eq!(node.components.release(id.function, GRACE).await.unwrap(), state, "a repeat gets the same");
        assert!(node.components.status(&[id.function]).await.unwrap().is_empty());
        place = (next, node);
    }
    let context = StartContext { epoch: 9, state, ..at_first };
    let id = create(&here, &counter(), context).await;
    for node in [&here, &there] {
        node.components.set_rows(vec![row(component, 9, &[id], &[&here])]).await.unwrap();
    }
    wait_until("all are handled", || async { books(&here, from).await.handled == expected }).await;
    let books = books(&here, from).await;
    assert_eq!((books.produced, books.queued, books.in_flight), (expected, 0, 0), "{books:?}");
    assert_eq!(u64::from(count(&here, id).await), expected, "each was counted once, wherever it was");
}

#[tokio::test]
async fn what_comes_late_goes_where_the_component_has_gone() {
    let node = TestNode::with(&[("emit_wait", EVER)]).await;
    let from = node.start_module(&relay(), &[]).await.unwrap();
    let here = context("sink");
    let (component, id) = (here.component, create(&node, &sink(), here).await);
    // It leads to the instance and not to the component, as raw casts and nodes of old do.
    node.patch(Function, from, &[("out", id)]).await;
    assert_eq!(node.components.release(id.function, GRACE).await.unwrap(), None, "it has saved nothing");
    node.cast(from, "one").await;
    node.cast(id, "two").await;
    let call = node.begin_call(id, "three", None).await;
    node.components.set_rows(vec![Row::new(component, 2, vec![node.peer.id])]).await.unwrap();
    let (mut casts, mut call_there) = (Vec::new(), None);
    for _ in 0..3 {
        let event = node.peer.next().await;
        match &event.kind {
            Kind::Cast(payload) => casts.push((payload.clone(), event.source)),
            _ => call_there = Some(event),
        }
    }
    casts.sort();
    let expected = [("one", from), ("two", node.peer.id)];
    assert_eq!(casts, expected.map(|(payload, source)| (Bytes::from(payload), source)), "with their sources");
    node.answer(&call_there.unwrap(), node.peer.id, Reply::Message("yes".into())).await;
    assert_eq!(call.reply().await, Reply::Message("yes".into()), "in the name of who was called");
    wait_until("the books say so", || async { books(&node, from).await.handed_over == 1 }).await;
}

#[tokio::test]
async fn what_grace_leaves_undone_goes_there_too_and_a_release_of_nobody_is_refused() {
    let node = TestNode::with(&[("emit_wait", EVER), ("grace", "\"10ms\""), ("cpu_limit", EVER)]).await;
    let from = node.start_module(&relay(), &[]).await.unwrap();
    let here = context("stuck");
    let (component, id) = (here.component, create(&node, &stuck(), here.clone()).await);
    lead_to(&node, from, row(component, 1, &[id], &[])).await;
    for number in 0..5 {
        node.cast(from, number.to_string()).await;
    }
    wait_until("it has them", || async { books(&node, from).await.queued == 4 }).await;
    node.components.set_rows(vec![Row::new(component, 2, vec![node.peer.id])]).await.unwrap();
    node.components.release(id.function, Duration::from_millis(10)).await.unwrap();
    for number in 1..5 {
        assert_eq!(node.peer.next_cast().await, number.to_string(), "in order");
    }
    wait_until("each has its fate", || async { books(&node, from).await.handed_over == 4 }).await;
    assert_eq!(books(&node, from).await.dropped["Stopping"], 1, "the one that was in hand");
    let error = node.create(function(&stuck(), &[]), here).await.unwrap_err();
    assert!(error.message.contains("was stopped here meanwhile"), "{error}");
    let error = node.components.release(InstanceId::random(node.id()).function, GRACE).await.unwrap_err();
    assert_eq!(error.code, Code::NotFound);
}

/// A node of ours passes on to another of ours: the link tells who the sender was, and the sender hears
/// what became of the event there.
#[tokio::test]
async fn a_call_and_a_cast_pass_through_a_node_that_was_left() {
    let nodes = [
        TestNode::with(&[("emit_wait", EVER)]).await,
        TestNode::with(&[("emit_wait", EVER)]).await,
        TestNode::with(&[("emit_wait", EVER)]).await,
    ];
    let [from, left, now] = &nodes;
    let here = context("counter");
    let (component, old) = (here.component, create(left, &counter(), here.clone()).await);
    let relay = from.start_module(&relay(), &[]).await.unwrap();
    from.management.update_peers(PeerUpdate::Add(left.id(), left.invocation_url().clone())).await.unwrap();
    from.patch(Function, relay, &[("out", old)]).await;
    let new = create(now, &counter(), StartContext { epoch: 2, ..here }).await;
    left.components.set_rows(vec![row(component, 2, &[new], &[now])]).await.unwrap();
    left.components.release(old.function, GRACE).await.unwrap();
    for _ in 0..10 {
        from.cast(relay, "x").await;
    }
    wait_until("their sender knows", || async { books(from, relay).await.handled == 10 }).await;
    assert_eq!(count(now, new).await, 10);
    assert_eq!(left.call(old, "").await, Reply::Message(10_u32.to_le_bytes().to_vec().into()));
}

/// The new node is one of EDGELESS 1.2: it answers whoever is named as the source, and the number of the call is
/// that of the node which passes it on.
#[tokio::test]
async fn a_call_that_is_passed_on_to_a_node_of_old_is_answered_by_way_of_who_passed_it_on() {
    let (from, left) = (TestNode::start().await, TestNode::start().await);
    let here = context("counter");
    let (component, old) = (here.component, create(&left, &counter(), here).await);
    let (caller, relay) =
        (from.start_module(&caller(), &[]).await.unwrap(), from.start_module(&relay(), &[]).await.unwrap());
    for sender in [caller, relay] {
        lead_to(&from, sender, row(component, 1, &[old], &[&left])).await;
    }
    left.components.set_rows(vec![Row::new(component, 2, vec![left.peer.id])]).await.unwrap();
    left.components.release(old.function, GRACE).await.unwrap();
    from.cast(relay, "a cast").await;
    let cast = left.peer.next().await;
    assert_eq!((cast.source, cast.kind), (relay, Kind::Cast("a cast".into())), "nobody answers it");
    let pending = from.begin_call(caller, "a call", None).await;
    let call = left.peer.next().await;
    assert!(matches!(&call.kind, Kind::Call { payload, .. } if payload == "a call"), "{call:?}");
    assert_eq!(call.source, InstanceId { node: left.id(), function: caller.function });
    left.answer(&call, left.peer.id, Reply::Message("yes".into())).await;
    assert_eq!(pending.reply().await, Reply::Message("yes".into()));
}

#[tokio::test]
async fn nothing_is_lost_while_its_target_is_on_its_way() {
    let node = impatient().await;
    let (from, caller) =
        (node.start_module(&relay(), &[]).await.unwrap(), node.start_module(&caller(), &[]).await.unwrap());
    let here = context("stuck");
    let (component, id) = (here.component, create(&node, &stuck(), here).await);
    for sender in [from, caller] {
        lead_to(&node, sender, row(component, 1, &[id], &[])).await;
    }
    for number in 0..5 {
        node.cast(from, number.to_string()).await;
    }
    wait_until("it has them", || async { books(&node, from).await.queued == 4 }).await;
    node.components.set_rows(vec![on_its_way(component, 2)]).await.unwrap();
    node.components.release(id.function, Duration::from_millis(10)).await.unwrap();
    node.cast(from, "5").await;
    let call = node.begin_call(caller, "call", None).await;
    let hurried = node.begin_call(id, "too late", Some(Duration::from_millis(10))).await;
    wait_until("all of them wait", async || {
        books(&node, from).await.queued == 5 && books(&node, caller).await.queued == 1
    })
    .await;
    outlast_the_wait_for_others(&node).await;
    node.cast(id, "6").await;
    outlast_the_wait_for_others(&node).await;
    assert_eq!(node.peer.try_next().await, None);
    node.components.set_rows(vec![Row::new(component, 3, vec![node.peer.id])]).await.unwrap();
    let (mut late, mut sent) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let event = node.peer.next().await;
        match &event.kind {
            Kind::Cast(payload) if payload == "5" => sent.push("cast"),
            Kind::Cast(payload) => late.push(String::from_utf8(payload.to_vec()).unwrap()),
            _ => {
                node.answer(&event, node.peer.id, Reply::Message("yes".into())).await;
                sent.push("call");
            }
        }
    }
    sent.sort_unstable();
    assert_eq!((sent, late.as_slice()), (vec!["call", "cast"], ["1", "2", "3", "4", "6"].map(String::from).as_slice()));
    assert_eq!(call.reply().await, Reply::Message("yes".into()));
    assert_eq!(hurried.reply().await, Reply::Error, "it has a time of its own");
    assert_eq!((node.dropped("NoInstance").await, node.dropped("Expired").await), (2, 1));
}

#[tokio::test]
async fn what_is_on_its_way_no_more_is_waited_for_no_longer_than_others() {
    let node = impatient().await;
    let component = ComponentId::random();
    let (from, caller) =
        (node.start_module(&relay(), &[]).await.unwrap(), node.start_module(&caller(), &[]).await.unwrap());
    for sender in [from, caller] {
        lead_to(&node, sender, on_its_way(component, 1)).await;
    }
    let hurried = node.begin_call(caller, "x", Some(Duration::from_millis(10))).await;
    assert_eq!(hurried.reply().await, Reply::Error);
    wait_until("it is counted", async || node.dropped("Expired").await == 1).await;
    node.cast(from, "x").await;
    let call = node.begin_call(caller, "x", None).await;
    outlast_the_wait_for_others(&node).await;
    assert_eq!((books(&node, from).await.queued, books(&node, caller).await.queued), (1, 1));
    node.components.set_rows(vec![Row::new(component, 2, vec![])]).await.unwrap();
    assert_eq!(call.reply().await, Reply::Error);
    let is_lost = async |id| books(&node, id).await.dropped.get("NoInstance") == Some(&1);
    wait_until("both are lost", async || is_lost(from).await && is_lost(caller).await).await;
}

#[tokio::test]
async fn what_comes_after_an_instance_that_was_cut_off_with_nothing_left_is_passed_on() {
    let node = impatient().await;
    let here = context("stuck");
    let (component, id) = (here.component, create(&node, &stuck(), here).await);
    node.cast(id, "in hand").await;
    wait_until("it has it", async || node.metric("events_in_flight").await == 1).await;
    node.components.set_rows(vec![Row::new(component, 2, vec![node.peer.id])]).await.unwrap();
    node.components.release(id.function, Duration::from_millis(10)).await.unwrap();
    for payload in ["one", "two"] {
        node.cast(id, payload).await;
        assert_eq!(node.peer.next_cast().await, payload);
    }
}

/// It is stopped in the middle of a cast that would wait for longer than its node grants it: it ends in time, and
/// so it can save its state.
#[tokio::test]
async fn a_sender_that_is_stopped_waits_for_nobody_who_is_on_the_way() {
    let node = TestNode::with(&[("emit_wait", "\"50ms\""), ("grace", EVER), ("cpu_limit", EVER)]).await;
    let from = node.start_module(&saving_relay(), &[]).await.unwrap();
    lead_to(&node, from, on_its_way(ComponentId::random(), 1)).await;
    node.cast(from, "x").await;
    wait_until("it waits", async || books(&node, from).await.queued == 1).await;
    let released = node.components.release(from.function, Duration::from_millis(10));
    let state = tokio::time::timeout(super::support::PATIENCE, released).await.expect("in time").unwrap();
    assert_eq!(state.as_deref(), Some(&b"out"[..]));
    assert_eq!(node.dropped("SenderGone").await, 1);
}

/// It would wait for itself to run elsewhere, which it does only when it has ended.
#[tokio::test]
async fn what_is_about_to_move_takes_along_what_it_sends_to_itself() {
    let node = impatient().await;
    let here = context("relay");
    let (component, id) = (here.component, create(&node, &relay(), here).await);
    lead_to(&node, id, row(component, 1, &[id], &[])).await;
    node.components.set_rows(vec![on_its_way(component, 2)]).await.unwrap();
    node.cast(id, "again and again").await;
    node.components.release(id.function, Duration::from_millis(10)).await.unwrap();
    node.components.set_rows(vec![Row::new(component, 3, vec![node.peer.id])]).await.unwrap();
    assert_eq!(node.peer.next_cast().await, "again and again");
    for cause in ["NoInstance", "SenderGone", "Stopping", "SelfFull"] {
        assert_eq!(node.dropped(cause).await, 0, "{cause}");
    }
}

#[tokio::test]
async fn instances_of_one_component_may_share_a_node() {
    let node = TestNode::start().await;
    let first = context("sink");
    let second = StartContext { replica: 1, epoch: 2, ..first.clone() };
    let one = create(&node, &sink(), first.clone()).await;
    let two = create(&node, &sink(), second.clone()).await;
    assert_ne!(one, two);
    assert_eq!(create(&node, &sink(), first.clone()).await, one, "an epoch is of one replica");
    assert_eq!(create(&node, &sink(), second.clone()).await, two);
    let error = node.create(function(&sink(), &[]), StartContext { epoch: 1, ..second }).await.unwrap_err();
    assert!(error.message.contains("epoch 1 is older than 2"), "{error}");
    node.components.release(one.function, GRACE).await.unwrap();
    assert_eq!(node.components.status(&[one.function, two.function]).await.unwrap().len(), 1);
    let from = node.start_module(&relay(), &[]).await.unwrap();
    lead_to(&node, from, row(first.component, 3, &[two], &[])).await;
    node.cast(one, "late").await;
    wait_until("the other one has it", || async { node.status(two).await.handled == 1 }).await;
}

#[tokio::test]
async fn equal_events_stay_together_if_the_row_says_so() {
    let node = TestNode::start().await;
    let first = context("sink");
    let mut all = Vec::new();
    for replica in 0..3 {
        all.push(create(&node, &sink(), StartContext { replica, ..first.clone() }).await);
    }
    let from = node.start_module(&relay(), &[]).await.unwrap();
    let handled = async || {
        let status = node.components.status(&all.iter().map(|id| id.function).collect::<Vec<_>>()).await.unwrap();
        let mut handled: Vec<_> = status.iter().map(|status| status.handled).collect();
        handled.sort_unstable();
        handled
    };
    lead_to(&node, from, row(first.component, 1, &all, &[])).await;
    for _ in 0..9 {
        node.cast(from, "same").await;
    }
    wait_until("they take turns", async || handled().await == [3, 3, 3]).await;
    let by_user = Row { partition_by: "json:/user".into(), ..row(first.component, 2, &all, &[]) };
    node.components.set_rows(vec![by_user]).await.unwrap();
    for number in 0..12 {
        node.cast(from, format!(r#"{{"number":{number},"user":"her"}}"#)).await;
    }
    wait_until("one has them all", async || handled().await == [3, 3, 15]).await;
}

#[tokio::test]
async fn the_first_event_has_its_target_started() {
    let (above, node) = Above::start().await;
    let from = node.start_module(&relay(), &[]).await.unwrap();
    let target = ComponentId::random();
    lead_to(&node, from, row(target, 1, &[], &[])).await;
    node.cast(from, "first").await;
    wait_until("it is asked for", async || above.woken.lock().unwrap().contains(&target)).await;
    assert_eq!(node.peer.try_next().await, None);
    node.components.set_rows(vec![Row::new(target, 2, vec![node.peer.id])]).await.unwrap();
    assert_eq!(node.peer.next_cast().await, "first");
    let asked = above.woken.lock().unwrap().len();
    node.cast(from, "second").await;
    assert_eq!(node.peer.next_cast().await, "second");
    assert_eq!(above.woken.lock().unwrap().len(), asked, "it runs");
}

#[tokio::test]
async fn a_node_that_nobody_has_spoken_of_is_asked_for_once() {
    let (above, node) = Above::start().await;
    let there = TestNode::start().await;
    let target = there.start_module(&sink(), &[]).await.unwrap();
    let from = node.start_module(&relay(), &[]).await.unwrap();
    node.patch(Function, from, &[("out", InstanceId::random(NodeId::random()))]).await;
    for _ in 0..5 {
        node.cast(from, "x").await;
    }
    wait_until("they are lost", async || books(&node, from).await.dropped.get("UnknownPeer") == Some(&5)).await;
    let asked = above.asked.lock().unwrap().len();
    assert!(asked < 5, "what is known to be nowhere is remembered for a while: asked {asked} times");
    above.nodes.lock().unwrap().insert(there.id(), there.invocation_url().clone());
    node.patch(Function, from, &[("out", target)]).await;
    for _ in 0..5 {
        node.cast(from, "x").await;
    }
    wait_until("they are handled", async || books(&node, from).await.handled == 5).await;
    assert_eq!(above.asked.lock().unwrap().iter().filter(|node| **node == there.id()).count(), 1);
}

#[tokio::test]
async fn nodes_connect_when_there_is_an_event_and_learn_from_it_where_to_answer() {
    let (here, there) = (TestNode::start().await, TestNode::start().await);
    let (from, mirror) =
        (here.start_module(&asker(), &[]).await.unwrap(), there.start_module(&mirror(), &[]).await.unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (nobody, target) = (InstanceId::random(NodeId::random()), ComponentId::random());
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let silent = Row { addresses: [(nobody.node, url)].into(), ..Row::new(target, 1, vec![nobody]) };
    lead_to(&here, from, silent).await;
    assert!(listener.accept().now_or_never().is_none(), "there is nothing to say yet");

    lead_to(&here, from, row(ComponentId::random(), 1, &[mirror], &[&there])).await;
    assert_eq!(here.call(from, "go").await, Reply::Empty);
    wait_until("it comes back", async || here.status(from).await.handled == 2).await;
    assert!(listener.accept().now_or_never().is_none());

    lead_to(&here, from, row(target, 1, &[nobody], &[])).await;
    here.call(from, "go").await;
    tokio::time::timeout(super::support::PATIENCE, listener.accept()).await.unwrap().unwrap();
}

#[tokio::test]
async fn loads_are_reported_and_at_once_when_events_pile_up() {
    let (above, node) = Above::start().await;
    wait_until("it is registered", async || !above.registrations.lock().unwrap().is_empty()).await;
    let watched = StartContext { reports_load: true, ..context("stuck") };
    let watched = create(&node, &stuck(), watched).await;
    let silent = node.start_module(&stuck(), &[]).await.unwrap();
    // The mailbox of a test node holds 16.
    for _ in 0..12 {
        node.cast(silent, "x").await;
        node.cast(watched, "x").await;
    }
    wait_until("its orchestrator hears of it", async || {
        let last = above.registrations.lock().unwrap().last().unwrap().loads.clone();
        matches!(last[..], [InstanceLoad { instance, queued: 7.., .. }] if instance == watched.function)
    })
    .await;
}

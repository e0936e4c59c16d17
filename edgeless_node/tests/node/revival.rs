//! What ran on a node goes on in its next process, also while nobody else is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use edgeless_api::component::ComponentKind::{Function, Resource};
use edgeless_api::component::{ComponentSpec, Patch, Row, StartContext, Target};
use edgeless_api::node::{Registered, Registration};
use edgeless_api::server::{NodeRegistry, Server};
use edgeless_api::status::State;
use edgeless_api::{Code, ComponentId, Error, InstanceId, NodeId, StateId, Url};
use edgeless_daemon::listen;
use tokio_util::sync::CancellationToken;

use super::durable::{keeper, said};
use super::guest_abi::{CALL, CAST_ASM, INIT, OUT, STOP, module};
use super::support::{TestNode, context, function, resource, wait_until};

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

/// Lets `out` of an instance lead to a component that runs there.
async fn lead(node: &TestNode, from: InstanceId, to: &StartContext, there: InstanceId) {
    let row = Row::new(to.component, 1, vec![there]);
    let outputs = BTreeMap::from([("out".to_string(), Target::Row(row))]);
    node.components.patch(Function, Patch::new(from.function, outputs)).await.unwrap();
}

async fn runs(node: &TestNode, id: InstanceId) {
    wait_until("it runs again", || async { node.status(id).await.state == State::Running }).await;
}

async fn is_known(node: &TestNode, id: InstanceId) -> bool {
    !node.components.status(&[id.function]).await.unwrap().is_empty()
}

#[tokio::test]
async fn what_ran_goes_on_under_its_id_with_its_state_its_outputs_and_the_newest_row() {
    let node = TestNode::start().await;
    let (spec, kept) = (function(&keeper(), &[]), context("keeper"));
    let first = node.create(spec.clone(), kept.clone()).await.unwrap();
    let second = node.create(function(&keeper(), &[]), StartContext { replica: 1, ..kept.clone() }).await.unwrap();
    let relay = node.create(function(&relay(), &[]), context("relay")).await.unwrap();
    lead(&node, relay, &kept, first).await;
    node.components.set_rows(vec![Row::new(kept.component, 2, vec![second])]).await.unwrap();
    node.components.activate(&[relay.function]).await.unwrap();
    node.cast(first, "kept").await;
    node.call(first, "").await;

    let node = node.crash().await;
    assert_eq!(node.call(first, "").await, said("kept"));
    node.cast(relay, "to the newest").await;
    wait_until("it arrives", || async { node.status(second).await.handled == 1 }).await;
    assert_eq!(node.status(first).await.restarts, 0, "a new process is no fault of it");
    assert_eq!(node.create(spec.clone(), kept.clone()).await.unwrap(), first, "its start has been acknowledged");

    // And so on, until it is stopped, or placed there again.
    let node = node.crash().await;
    runs(&node, first).await;
    node.stop(Function, second).await;
    let newer = node.create(spec, StartContext { epoch: 2, ..kept }).await.unwrap();
    let node = node.crash().await;
    assert_eq!(node.call(newer, "").await, said("kept"));
    assert!(!is_known(&node, first).await && !is_known(&node, second).await);
}

/// What may not emit yet, because its workflow is not wired, must not after a restart either.
#[tokio::test]
async fn what_waited_for_its_activation_still_does() {
    let node = TestNode::start().await;
    let kept = context("keeper");
    let target = node.create(function(&keeper(), &[]), kept.clone()).await.unwrap();
    let relay = node.create(function(&relay(), &[]), context("relay")).await.unwrap();
    lead(&node, relay, &kept, target).await;
    let node = node.crash().await;
    node.cast(relay, "held").await;
    wait_until("it is handled", || async { node.status(relay).await.handled == 1 }).await;
    assert_eq!(node.status(target).await.handled, 0, "it is held back");
    node.components.activate(&[relay.function]).await.unwrap();
    wait_until("it is let go", || async { node.status(target).await.handled == 1 }).await;
}

#[tokio::test]
async fn a_resource_goes_on_until_it_is_stopped() {
    let node = TestNode::with_resources("file_log_provider = \"log\"\nfile_log_directory = \"{dir}/logs\"").await;
    let log = node.create(resource("file-log", &[("filename", "a.log")]), context("log")).await.unwrap();
    node.call(log, "before").await;
    let node = node.crash().await;
    node.call(log, "after").await;
    let file = node.directory.path().join("logs").join("a.log");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "before\nafter\n");
    node.stop(Resource, log).await;
    let node = node.crash().await;
    assert!(!is_known(&node, log).await);
}

#[tokio::test]
async fn a_function_whose_code_is_compiled_nowhere_has_it_from_the_journal() {
    let node = TestNode::with(&[("cache_directory", "\"\"")]).await;
    let spec = function(&keeper(), &[]);
    let first = node.create(spec.clone(), context("one")).await.unwrap();
    let ComponentSpec::Function(mut named) = spec else { panic!("it is a function") };
    named.class.binary = named.class.binary.without_bytes();
    named.state.id = StateId::random();
    let named = ComponentSpec::Function(named);
    let second = node.create(named.clone(), context("other")).await.unwrap();
    node.stop(Function, first).await;
    let node = node.crash().await;
    assert_eq!(node.call(second, "").await, said(""), "it is needed until the last one is stopped");
    node.stop(Function, second).await;
    let node = node.crash().await;
    let error = node.create(named, context("late")).await.unwrap_err();
    assert_eq!(error.code, Code::NeedsCode, "{error}");
}

#[tokio::test]
async fn what_was_reset_is_over() {
    let node = TestNode::start().await;
    let id = node.create(function(&keeper(), &[]), context("keeper")).await.unwrap();
    node.management.reset().await.unwrap();
    let node = node.crash().await;
    assert!(!is_known(&node, id).await);
}

/// An orchestrator that may be away, and may not ask what nodes run.
struct Above {
    is_there: AtomicBool,
    asks: bool,
    told: AtomicUsize,
}

#[async_trait]
impl NodeRegistry for Above {
    async fn update_node(&self, node: Registration) -> Result<Registered, Error> {
        if !self.is_there.load(Ordering::SeqCst) {
            return Err(Error::unavailable("away"));
        }
        if let Some(report) = &node.report {
            self.told.store(report.len(), Ordering::SeqCst);
        }
        let wants_report = self.asks && node.report.is_none();
        Ok(Registered { wants_report, ..Registered::new(Some(Duration::from_millis(150))) })
    }

    async fn wake(&self, _components: Vec<ComponentId>) -> Result<(), Error> {
        Ok(())
    }

    async fn locate(&self, _node: NodeId) -> Result<Option<Url>, Error> {
        Ok(None)
    }
}

/// A node of an orchestrator that is away at first, and whether that asks.
async fn below(asks: bool) -> (TestNode, Arc<Above>) {
    let above = Arc::new(Above { is_there: AtomicBool::new(false), asks, told: AtomicUsize::new(0) });
    let (listener, url) = listen(&"http://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let server = Server::new(edgeless_api::Limits::default(), CancellationToken::new());
    tokio::spawn(server.node_registry(above.clone()).serve(listener));
    (TestNode::with(&[("orchestrator_url", &format!("\"{url}\""))]).await, above)
}

#[tokio::test]
async fn an_orchestrator_that_returns_is_told_what_goes_on_and_nothing_is_restarted() {
    let (node, above) = below(true).await;
    let id = node.create(function(&keeper(), &[]), context("keeper")).await.unwrap();
    let node = node.crash().await;
    runs(&node, id).await;
    above.is_there.store(true, Ordering::SeqCst);
    wait_until("it is told", || async { above.told.load(Ordering::SeqCst) == 1 }).await;
    let status = node.status(id).await;
    assert_eq!((status.state, status.restarts), (State::Running, 0));
}

/// As one of EDGELESS 1.2: it cannot be told what runs, and counts on a node that comes with nothing.
#[tokio::test]
async fn an_orchestrator_that_does_not_ask_gets_a_node_that_runs_nothing() {
    let (node, above) = below(false).await;
    let id = node.create(function(&keeper(), &[]), context("keeper")).await.unwrap();
    let node = node.crash().await;
    runs(&node, id).await;
    above.is_there.store(true, Ordering::SeqCst);
    wait_until("it is stopped", || async { !is_known(&node, id).await }).await;
    let later = node.create(function(&keeper(), &[]), context("later")).await.unwrap();
    let node = node.crash().await;
    wait_until("it is stopped as well", || async { !is_known(&node, later).await }).await;
}

/// What runs is given to other nodes by an orchestrator that hears a goodbye; one that does not hear it finds it again.
#[tokio::test]
async fn only_a_goodbye_that_is_heard_ends_what_runs() {
    let (node, above) = below(true).await;
    let id = node.create(function(&keeper(), &[]), context("keeper")).await.unwrap();
    node.cast(id, "kept").await;
    node.call(id, "").await;
    let node = node.restart().await;
    assert_eq!(node.call(id, "").await, said("kept"));
    above.is_there.store(true, Ordering::SeqCst);
    wait_until("it is told", || async { above.told.load(Ordering::SeqCst) == 1 }).await;
    let node = node.restart().await;
    assert!(!is_known(&node, id).await);
}

/// Others run what it ran; what it has sent nobody else has.
#[tokio::test]
async fn what_was_sent_and_must_arrive_goes_on_after_a_goodbye() {
    let (node, above) = below(true).await;
    let spec = function(&relay(), &[("delivery", "at-least-once")]);
    let from = node.create(spec, context("relay")).await.unwrap();
    let (idle, to) = (node.create(function(&keeper(), &[]), context("idle")).await.unwrap(), context("keeper"));
    let outputs = BTreeMap::from([("out".to_string(), Target::Row(Row::new(to.component, 1, Vec::new())))]);
    node.components.patch(Function, Patch::new(from.function, outputs)).await.unwrap();
    node.components.activate(&[from.function]).await.unwrap();
    node.cast(from, "kept").await;
    let queued = async |node: &TestNode| node.status(from).await.outputs.iter().map(|books| books.queued).sum::<u64>();
    wait_until("it is sent", || async { queued(&node).await == 1 }).await;
    above.is_there.store(true, Ordering::SeqCst);
    wait_until("it is told", || async { above.told.load(Ordering::SeqCst) == 2 }).await;
    let node = node.restart().await;
    assert!(!is_known(&node, idle).await);
    assert_eq!(queued(&node).await, 1);
    let target = node.create(function(&keeper(), &[]), to.clone()).await.unwrap();
    node.components.set_rows(vec![Row::new(to.component, 2, vec![target])]).await.unwrap();
    wait_until("it arrives", || async { node.status(target).await.handled == 1 }).await;
}

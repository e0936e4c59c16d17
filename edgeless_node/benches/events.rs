//! What an event costs, part by part: the router with its mailbox, the host loop, the call of a guest.
//!
//!     cargo bench -p edgeless_node --bench events
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use divan::Bencher;
use edgeless_api::component::{ComponentKind, FunctionClass, FunctionSpec, RUST_WASM, StatePolicy, StateSpec, Target};
use edgeless_api::{ComponentId, InstanceId, NodeId, StateId, WorkflowId};
use edgeless_node::books::Books;
use edgeless_node::event::{Cause, EventKind, Incoming, Payload};
use edgeless_node::fate::Fate;
use edgeless_node::host::{Component, Hosted, host};
use edgeless_node::instance::{Context, Instance, InstanceError, Runtime as _};
use edgeless_node::log::Log;
use edgeless_node::mailbox::{Delivery, Told, mailbox};
use edgeless_node::metrics::Metrics;
use edgeless_node::outputs::Outputs;
use edgeless_node::router::{Options, Router};
use edgeless_node::runtimes::wasm::{Limits, Wasm};
use edgeless_node::starts::StartTimes;
use edgeless_node::state::State;
use tokio_util::sync::CancellationToken;

fn main() {
    divan::main();
}

fn in_tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn router() -> Arc<Router> {
    let node = NodeId::random();
    let options = Options {
        emit_wait: Duration::from_secs(2),
        move_wait: Duration::from_secs(30),
        call_timeout: Duration::from_secs(30),
        max_payload: 4 << 20,
        queued: 64 << 20,
        peer_lost_after: Duration::from_secs(10),
    };
    Router::new(node, options, Arc::new(Metrics::new(node, 1000)))
}

fn outputs(router: &Arc<Router>) -> (InstanceId, Outputs) {
    let id = InstanceId::random(router.node());
    let outputs = Outputs::new(id, router.clone(), CancellationToken::new());
    outputs.activate();
    (id, outputs)
}

fn leads_to(outputs: &Outputs, target: InstanceId) {
    outputs.set(BTreeMap::from([("out".to_string(), Target::Instance(target))]));
}

const HELLO: Payload = Bytes::from_static(b"hello");

fn incoming(kind: EventKind) -> Incoming {
    Incoming { source: InstanceId::NONE, kind, payload: HELLO, cause: Cause::default(), id: None }
}

/// An event into a mailbox, out of it, and settled.
#[divan::bench]
fn through_a_mailbox(bencher: Bencher) {
    let metrics = Metrics::new(NodeId::random(), 1).instances().add(InstanceId::NONE, "", Arc::default());
    let (mailbox, mut receiver) = mailbox(512, 64 << 20, metrics);
    let (books, runtime) = (Arc::new(Books::default()), in_tokio());
    bencher.bench_local(|| {
        let fate = Told::Here(books.open());
        let delivery = Delivery { incoming: incoming(EventKind::Cast), sent: Instant::now(), reply: None, fate };
        runtime.block_on(async {
            mailbox.put(delivery, Duration::from_secs(1)).await.unwrap();
            receiver.take().await.unwrap().fate.settle(Fate::Handled);
        });
    });
}

/// A cast on an output to an instance of the same node, until it is in the mailbox and out of it.
#[divan::bench]
fn through_the_router(bencher: Bencher) {
    let runtime = in_tokio();
    let _inside = runtime.enter();
    let router = router();
    let (_, from) = outputs(&router);
    let target = InstanceId::random(router.node());
    let metrics = router.metrics().instances().add(target, "", Arc::default());
    let (mailbox, mut receiver) = mailbox(512, 64 << 20, metrics);
    router.add_mailbox(target.function, mailbox);
    leads_to(&from, target);
    bencher.bench_local(|| {
        runtime.block_on(async {
            from.cast("out", HELLO, Cause::default()).await.unwrap();
            receiver.take().await.unwrap().fate.settle(Fate::Handled);
        });
    });
}

struct Silent;

#[async_trait]
impl Instance for Silent {
    async fn handle(&self, _: Incoming) -> Result<Option<Payload>, InstanceError> {
        Ok(None)
    }
}

async fn hosted(router: &Arc<Router>) -> Hosted {
    let (id, outputs) = outputs(router);
    let component = Component {
        id,
        component: ComponentId::random(),
        replica: 0,
        epoch: 1,
        name: "silent".to_string(),
        kind: ComponentKind::Function,
        max_in_flight: 1,
        handler_limit: None,
        mailbox: 512,
        outputs,
        log: Log::new("silent", 1),
        state: State::none(),
        controls: None,
        metrics_type: "NATIVE".to_string(),
        queued: 64 << 20,
        is_untold: false,
        pressed: None,
        cancel: CancellationToken::new(),
        node: CancellationToken::new(),
    };
    let factory: edgeless_node::host::Factory = Box::new(|_| Box::pin(async { Ok(Box::new(Silent) as Box<_>) }));
    host(component, factory, router.clone(), Duration::from_secs(1)).await.unwrap()
}

/// A call of an instance that does nothing: router, mailbox, host loop and reply.
#[divan::bench]
fn through_the_host_loop(bencher: Bencher) {
    let runtime = in_tokio();
    let _inside = runtime.enter();
    let router = router();
    let hosted = runtime.block_on(hosted(&router));
    let (_, from) = outputs(&router);
    leads_to(&from, hosted.component().id);
    bencher.bench_local(|| {
        runtime.block_on(from.call("out", HELLO, Cause::default())).unwrap();
    });
}

/// A guest that does nothing, alone: from the event to the end of its handler.
#[divan::bench(args = ["cast", "call"])]
fn into_a_guest(bencher: Bencher, kind: &str) {
    let kind = if kind == "cast" { EventKind::Cast } else { EventKind::Call };
    let runtime = in_tokio();
    let instance = runtime.block_on(guest());
    bencher.bench_local(|| runtime.block_on(instance.handle(incoming(kind))).unwrap());
}

async fn guest() -> Box<dyn Instance> {
    let limits = Limits { instances: 1, memory: 4 << 20, time: Duration::from_secs(10), payload: 4 << 20 };
    let wasm = Wasm::new(limits, None, StartTimes::new(NodeId::NONE)).unwrap();
    let class = FunctionClass {
        id: "silent".to_string(),
        function_type: RUST_WASM.to_string(),
        binary: wat::parse_str(SILENT).unwrap().into(),
        ..FunctionClass::default()
    };
    let state = StateSpec { id: StateId::random(), policy: StatePolicy::Transient };
    let spec = FunctionSpec { class, annotations: BTreeMap::new(), state, workflow: WorkflowId::random() };
    let program = wasm.load(spec).await.unwrap();
    let (id, outputs) = outputs(&router());
    let (log, cancel) = (Log::new("silent", 1), CancellationToken::new());
    let context = Context {
        id,
        component: ComponentId::random(),
        workflow: WorkflowId::random(),
        name: "silent".to_string(),
        outputs,
        state: State::none(),
        log,
        cancel,
    };
    program.instantiate(context).await.unwrap()
}

const SILENT: &str = r#"(module
    (memory (export "memory") 1)
    (func (export "edgeless_mem_alloc") (param i32) (result i32) (i32.const 1024))
    (func (export "edgeless_mem_free") (param i32 i32))
    (func (export "edgeless_mem_clear"))
    (func (export "handle_init_asm") (param i32 i32 i32 i32))
    (func (export "handle_cast_asm") (param i32 i32 i32 i32))
    (func (export "handle_call_asm") (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 0))
    (func (export "handle_stop_asm")))"#;

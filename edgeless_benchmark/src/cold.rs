//! `cold`: a new instance, from the agent's start until its first event is handled.
//!
//! The limit is the instantiation of the same module on wasmtime alone, with the engine of a node, until
//! its exports are at hand. A module that the node has never seen is compiled first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use edgeless_api::component::{ComponentKind, ComponentRef, Start};
use edgeless_api::server::Components;
use edgeless_api::{InstanceId, NodeId};
use edgeless_node::agent::{Agent, Options as AgentOptions};
use edgeless_node::config::Limits;
use edgeless_node::metrics::Metrics;
use edgeless_node::records::Records;
use edgeless_node::router::{Options as RouterOptions, Router};
use edgeless_node::state::StateStore;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wasmtime::Module;

use crate::Bench;
use crate::bare::{self, Guest, Guests};
use crate::modules::module;
use crate::node::{Size, cast, function};
use crate::report::{Figure, Report, Row, Unit};
use crate::stats::{micros, millis, quantile};
use crate::watched::{Watcher, watched};
use crate::worker::on_worker;

/// How often a module is compiled.
const COMPILATIONS: u8 = 5;

pub(crate) async fn measure(bench: &Bench) -> Result<Report> {
    let module = module(bench, "noop").await?;
    bench.progress.say("new instances");
    let Measured { times, compilations } = on_worker(on_node(module.clone(), bench.seconds)).await?;
    bench.progress.say("the limit: instances on wasmtime alone");
    let window = bench.seconds;
    let Measured { times: bare, compilations: limits } = on_worker(async move { alone(&module, window).await }).await?;

    let mut report = Report::new("cold");
    let us = |key: &str, times: &[Duration], q| Figure::new(key, micros(quantile(times, q)), Unit::Microseconds);
    let ms = |key: &str, times: &[Duration]| Figure::new(key, millis(quantile(times, 0.5)), Unit::Milliseconds);
    let what = "new instance of a known module, until its first event is handled";
    for (name, q) in [("p50", 0.5), ("p99", 0.99)] {
        let row = Row::new(format!("{what}, {name}"), us(&format!("us_{name}"), &times, q));
        let limit = us(&format!("limit_us_{name}"), &bare, q);
        report.add(row.limit(limit, &format!("ratio_{name}")).aim(if name == "p50" { "≤ 100 µs" } else { "" }));
    }
    report.add(
        Row::new("the same of a module never seen, p50", ms("compile_ms", &compilations))
            .limit(ms("limit_compile_ms", &limits), "compile_ratio"),
    );
    Ok(report)
}

/// How long new instances took, of a module that is known and of modules that are not.
struct Measured {
    times: Vec<Duration>,
    compilations: Vec<Duration>,
}

async fn on_node(module: Bytes, window: Duration) -> Result<Measured> {
    let mut node = Core::new().await?;
    let mut compilations = Vec::new();
    for number in 0..COMPILATIONS {
        compilations.push(node.first_event(&unseen(&module, number)).await?);
    }
    // From here on it is known.
    node.first_event(&module).await?;
    let until = Instant::now() + window;
    let mut times = Vec::new();
    while Instant::now() < until || times.is_empty() {
        times.push(node.first_event(&module).await?);
    }
    Ok(Measured { times, compilations })
}

async fn alone(module: &Bytes, window: Duration) -> Result<Measured> {
    let engine = bare::node_engine(&Size::default()).map_err(bare::error)?;
    let mut compilations = Vec::new();
    for number in 0..COMPILATIONS {
        let unseen = unseen(module, number);
        let began = Instant::now();
        Module::from_binary(&engine, &unseen).map_err(bare::error)?;
        compilations.push(began.elapsed());
    }
    let module = bare::prepare(&engine, module, Guests::CanWait).map_err(bare::error)?;
    let (out, _in) = mpsc::channel(1);
    let until = Instant::now() + window;
    let mut times = Vec::new();
    while Instant::now() < until || times.is_empty() {
        let out = out.clone();
        let began = Instant::now();
        let guest = Guest::new(&module, out).await.map_err(bare::error)?;
        times.push(began.elapsed());
        drop(guest);
    }
    Ok(Measured { times, compilations })
}

/// The agent and the router of a node, without the services around them.
struct Core {
    agent: Arc<Agent>,
    router: Arc<Router>,
    handled: mpsc::Receiver<Instant>,
    _state: TempDir,
}

/// Tells when an event is handled.
struct Handled(mpsc::Sender<Instant>);

impl Watcher for Handled {
    fn ended(&self) {
        // There is never more than one.
        self.0.try_send(Instant::now()).ok();
    }
}

impl Core {
    async fn new() -> Result<Self> {
        let limits = Limits::default();
        let id = NodeId::random();
        let options = RouterOptions {
            emit_wait: limits.emit_wait,
            move_wait: limits.move_wait,
            call_timeout: limits.call_timeout,
            max_payload: limits.api().payload,
            queued: usize::try_from(limits.queued.as_u64())?,
            peer_lost_after: limits.peer_lost_after,
        };
        let router = Router::new(id, options, Arc::new(Metrics::new(id, limits.max_series)));
        let (tell, handled) = mpsc::channel(16);
        let runtime = watched(&Size::default(), Arc::new(Handled(tell)))?;
        let state = tempfile::tempdir()?;
        let options = AgentOptions {
            components: limits.components,
            mailbox: limits.mailbox,
            log_lines: limits.log_lines,
            grace: limits.grace,
            delivery_tries: limits.delivery_tries,
        };
        let records = Records::open(state.path(), id).await?;
        let agent = Agent::new(
            router.clone(),
            vec![runtime],
            Vec::new(),
            StateStore::new(records.clone(), None),
            records,
            options,
            CancellationToken::new(),
        );
        Ok(Self { agent, router, handled, _state: state })
    }

    /// Starts an instance and has it handle one event: how long that took. It is stopped again.
    async fn first_event(&mut self, module: &Bytes) -> Result<Duration> {
        let start = function("cold", module, "");
        let began = Instant::now();
        let id = self.start(start).await?;
        self.router.accept(cast(id, "first")).await?;
        let ended = self.handled.recv().await.context("the runtime is gone")?;
        self.agent.stop(ComponentKind::Function, ComponentRef::Instance(id)).await?;
        Ok(ended - began)
    }

    async fn start(&self, start: Start) -> Result<InstanceId> {
        match self.agent.start(start).await? {
            ComponentRef::Instance(id) => Ok(id),
            ComponentRef::Component(id) => anyhow::bail!("a node answered a start with {id:?}"),
        }
    }
}

/// The same module with other bytes: a section that means nothing, at its end.
fn unseen(module: &Bytes, number: u8) -> Bytes {
    const CUSTOM: u8 = 0;
    let name = *b"number";
    let mut section = vec![CUSTOM, name.len() as u8 + 2, name.len() as u8];
    section.extend(name);
    section.push(number);
    [module, section.as_slice()].concat().into()
}

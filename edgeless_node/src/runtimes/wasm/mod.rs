//! WebAssembly functions, on wasmtime.
//!
//! Modules are compiled once per content and kept on disk. An instance is a store of its own with a limit on its
//! memory and a budget of processor time for each event; a guest that uses up a time slice yields
//! to others, one that uses up its budget is stopped. Waiting in a host call suspends the guest and
//! costs it nothing.
//!
//! - `guest`: the interface between host and guest, both ways.
//! - `modules`: compilation, and what is kept of it; [`cache`]: on disk.
//! - `ticker`: the clock of time slices, which runs only while a guest does.

pub mod cache;
mod guest;
mod modules;
mod ticker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edgeless_api::Error;
use edgeless_api::component::{FunctionSpec, INIT_PAYLOAD, RUST_WASM};
use edgeless_api::status::Level;
use tokio::sync::Mutex;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::instance::{Context, Incoming, Instance, InstanceError, Payload, Program, Runtime};
use crate::starts::{StartTimes, Step};
use cache::{Cache, Disk};
use guest::Guest;
use modules::Modules;
use ticker::{Clock, SLICE, Ticker};

/// What guests may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Instances at the same time.
    pub instances: u32,
    /// Memory of each, bytes.
    pub memory: usize,
    /// Processor time of each handler.
    pub time: Duration,
    /// The largest payload that a guest may emit, bytes.
    pub payload: usize,
}

/// The engine that instances share. It is costly, so that several nodes in one process may share
/// one as well.
#[derive(Clone)]
pub struct Wasm {
    modules: Arc<Modules>,
    ticker: Arc<Ticker>,
    limits: Limits,
    starts: StartTimes,
}

impl Wasm {
    /// An engine with room for the instances that the limits allow, which keeps what it compiles on
    /// `disk`, if there is one.
    ///
    /// # Errors
    /// The machine cannot give it that room.
    pub fn new(limits: Limits, disk: Option<Disk>, starts: StartTimes) -> Result<Self, Error> {
        let mut pool = PoolingAllocationConfig::default();
        pool.total_core_instances(limits.instances)
            .total_memories(limits.instances)
            .total_tables(limits.instances)
            .total_stacks(limits.instances)
            .max_memory_size(limits.memory);
        let mut config = Config::new();
        config.epoch_interruption(true).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).map_err(|error| {
            Error::exhausted(format!(
                "no room for {} instances, lower wasm_runtime.max_instances: {error}",
                limits.instances
            ))
        })?;
        let ticker = Arc::new(Ticker::start(engine.clone())?);
        let cache = disk.map(|disk| Cache::new(disk, &engine));
        let modules = Arc::new(Modules::new(engine, cache, starts.clone())?);
        Ok(Self { modules, ticker, limits, starts })
    }
}

#[async_trait]
impl Runtime for Wasm {
    fn kind(&self) -> &'static str {
        RUST_WASM
    }

    async fn load(&self, spec: FunctionSpec) -> Result<Arc<dyn Program>, Error> {
        if spec.class.binary.is_empty() {
            return Err(Error::rejected(format!("the function class '{}' comes without code", spec.class.id)));
        }
        let module = self.modules.get(&spec.class).await?;
        let payload = spec.annotations.get(INIT_PAYLOAD).cloned();
        let (class, ticker, starts) = (spec.class.id, self.ticker.clone(), self.starts.clone());
        Ok(Arc::new(WasmProgram { module, class, payload, ticker, limits: self.limits, starts }))
    }
}

/// A module, and what its instances are initialised with.
struct WasmProgram {
    module: guest::Module,
    class: String,
    payload: Option<String>,
    ticker: Arc<Ticker>,
    limits: Limits,
    starts: StartTimes,
}

#[async_trait]
impl Program for WasmProgram {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let saved = context.state.load().await?;
        let clock = self.ticker.clock();
        let log = context.log.clone();
        // The start section of a module is code of the guest like any other.
        let instantiate = Guest::instantiate(&self.module, context, self.limits, clock.clone());
        let begin = Instant::now();
        let mut guest = self.ticker.run(&clock, instantiate).await?;
        self.starts.observe(&self.class, Step::Instantiate, begin.elapsed());
        let begin = Instant::now();
        let init = guest.init(self.payload.as_deref().map(str::as_bytes), saved.as_deref());
        let initialised = self.ticker.run(&clock, init).await;
        initialised.map_err(|trap| {
            // What the guest said last is lost with it, and is mostly why it gave up.
            let said = log.last(1).pop().filter(|line| line.level == Level::Error);
            let said = said.map(|line| format!("{}: ", line.message)).unwrap_or_default();
            Error::rejected(format!("its initialisation failed: {said}{trap}"))
        })?;
        self.starts.observe(&self.class, Step::Init, begin.elapsed());
        Ok(Box::new(WasmInstance { guest: Mutex::new(guest), ticker: self.ticker.clone(), clock }))
    }
}

/// How many time slices a budget is.
fn slices(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(SLICE.as_millis().max(1))).unwrap_or(u64::MAX).max(1)
}

struct WasmInstance {
    /// Never contended: the host loop gives a function one event at a time.
    guest: Mutex<Guest>,
    ticker: Arc<Ticker>,
    clock: Clock,
}

#[async_trait]
impl Instance for WasmInstance {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let mut guest = self.guest.lock().await;
        self.ticker.run(&self.clock, guest.handle(event)).await
    }

    async fn stop(&self) {
        let mut guest = self.guest.lock().await;
        self.ticker.run(&self.clock, guest.stop()).await;
    }
}

//! WebAssembly functions, on wasmtime.
//!
//! Modules are compiled once per content and kept on disk. An instance is a store of its own with a limit on its
//! memory and a budget of processor time for each event; a guest that uses up a time slice yields
//! to others, one that uses up its budget is stopped. Waiting in a host call suspends the guest and
//! costs it nothing.
//!
//! - `guest`: the interface between host and guest, both ways.
//! - `modules`: compilation, and what is kept of it; [`cache`]: on disk.
//! - `places`: how many instances there may be.
//! - `background`: where guests go on that burn their time.
//! - `ticker`: the clock of time slices, which runs only while a guest does.

mod background;
pub mod cache;
mod guest;
mod modules;
mod places;
mod ticker;

use std::future::Future as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use edgeless_api::Error;
use edgeless_api::component::{FunctionSpec, INIT_PAYLOAD, RUST_WASM};
use edgeless_api::status::Level;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::instance::{Context, Incoming, Instance, InstanceError, Payload, Program, Runtime};
use crate::starts::{StartTimes, Step};
use background::Background;
use cache::{Cache, Disk};
use guest::{Entry, Guest};
use modules::Modules;
use places::Places;
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
    shared: Arc<Shared>,
}

/// What all guests of an engine share.
struct Shared {
    ticker: Ticker,
    background: Background,
    places: Places,
    starts: StartTimes,
    limits: Limits,
}

impl Wasm {
    /// An engine with room for the instances that the limits allow, which keeps what it compiles on
    /// `disk`, if there is one.
    ///
    /// # Errors
    /// The machine cannot give it that room.
    pub fn new(limits: Limits, disk: Option<Disk>, starts: StartTimes) -> Result<Self, Error> {
        let places = Places::new(limits.instances);
        let mut pool = PoolingAllocationConfig::default();
        // Beside each guest there is the module that it is entered by. A stack stays with its guest, since
        // wasmtime does not take it back.
        pool.total_core_instances(places.total().saturating_mul(2))
            .total_memories(places.total())
            .total_tables(places.total())
            .total_stacks(places.total().saturating_add(NESTED))
            .max_memory_size(limits.memory);
        let mut config = Config::new();
        config.epoch_interruption(true).allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let engine = Engine::new(&config).map_err(|error| {
            Error::exhausted(format!(
                "no room for {} instances, lower wasm_runtime.max_instances: {error}",
                limits.instances
            ))
        })?;
        let shared = Shared {
            ticker: Ticker::start(engine.clone())?,
            background: Background::default(),
            places,
            starts: starts.clone(),
            limits,
        };
        let cache = disk.map(|disk| Cache::new(disk, &engine));
        let modules = Arc::new(Modules::new(engine, cache, starts)?);
        Ok(Self { modules, shared: Arc::new(shared) })
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
        Ok(Arc::new(WasmProgram {
            module,
            class: spec.class.id,
            entry: self.modules.entry().await?,
            payload,
            shared: self.shared.clone(),
        }))
    }
}

/// A module, and what its instances are initialised with.
struct WasmProgram {
    module: guest::Module,
    class: String,
    entry: Arc<Entry>,
    payload: Option<String>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Program for WasmProgram {
    async fn instantiate(&self, context: Context) -> Result<Box<dyn Instance>, Error> {
        let Shared { ticker, places, starts, limits, .. } = &*self.shared;
        let place = places.take()?;
        let saved = context.state.load().await?;
        let clock = ticker.clock();
        let (id, log) = (context.id, context.log.clone());
        // The start section of a module is code of the guest like any other.
        let instantiate = Guest::instantiate(&self.module, &self.entry, context, *limits, clock.clone(), place);
        let began = Instant::now();
        let mut guest = ticker.run(&clock, instantiate).await?;
        starts.observe_one(id, &self.class, Step::Instantiate, began.elapsed());
        let began = Instant::now();
        let init = guest.init(self.payload.as_deref().map(str::as_bytes), saved.as_deref());
        let initialised = ticker.run(&clock, init).await;
        initialised.map_err(|trap| {
            // What the guest said last is lost with it, and is mostly why it gave up.
            let said = log.last(1).pop().filter(|line| line.level == Level::Error);
            let said = said.map(|line| format!("{}: ", line.message)).unwrap_or_default();
            Error::rejected(format!("its initialisation failed: {said}{trap}"))
        })?;
        starts.observe_one(id, &self.class, Step::Init, began.elapsed());
        let guest = Arc::new(Mutex::new(Some(Box::new(guest))));
        Ok(Box::new(WasmInstance { guest, shared: self.shared.clone(), clock }))
    }
}

/// How many time slices a budget is.
fn slices(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(SLICE.as_millis().max(1))).unwrap_or(u64::MAX).max(1)
}

struct WasmInstance {
    /// Empty while a handler has it, for the host loop gives a function one event at a time; and for good
    /// if that handler was cut off.
    guest: Arc<Mutex<Option<Box<Guest>>>>,
    shared: Arc<Shared>,
    clock: Clock,
}

/// Stacks beside those of the guests: for buffers that they are asked for in the middle of a handler, which
/// takes no time.
const NESTED: u32 = 64;
/// A guest with a memory up to this size, bytes, is disposed of at once; to unmap a larger one takes a
/// while.
const SMALL: usize = 4 << 20;

#[async_trait]
impl Instance for WasmInstance {
    async fn handle(&self, event: Incoming) -> Result<Option<Payload>, InstanceError> {
        let (slot, shared, clock) = (self.guest.clone(), self.shared.clone(), self.clock.clone());
        let mut handling = Box::pin(async move {
            let Some(mut guest) = take(&slot) else { return Err(gone()) };
            let handled = shared.ticker.run(&clock, guest.handle(event)).await;
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(guest);
            handled
        });
        // A tick may come at any moment: only who is met by two of them, without having waited in between,
        // has computed for the whole of a slice.
        let mut met = 0;
        let in_a_slice = std::future::poll_fn(|context| match handling.as_mut().poll(context) {
            Poll::Ready(handled) => Poll::Ready(Some(handled)),
            Poll::Pending => {
                met = if self.clock.take_met() { met + 1 } else { 0 };
                if met < 2 { Poll::Pending } else { Poll::Ready(None) }
            }
        });
        if let Some(handled) = in_a_slice.await {
            return handled;
        }
        match self.shared.background.go_on(handling).await {
            Ok(handled) => handled,
            Err(_) => Err(gone()),
        }
    }

    async fn stop(&self) {
        if let Some(mut guest) = take(&self.guest) {
            self.shared.ticker.run(&self.clock, guest.stop()).await;
        }
    }
}

fn take(slot: &Mutex<Option<Box<Guest>>>) -> Option<Box<Guest>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn gone() -> InstanceError {
    InstanceError::Broken("a handler was cut off in the middle".to_string())
}

impl Drop for WasmInstance {
    fn drop(&mut self) {
        if let Some(guest) = take(&self.guest).filter(|guest| guest.size() > SMALL) {
            self.shared.background.dispose(guest);
        }
    }
}
